//! Every specialisation of the attention kernels against f64.

use half::{bf16, f16};
use kvist_kernels::cuda::TrialError;
use kvist_kernels::cuda::work::AttendSpec;
use kvist_kernels::reference::{self, Attended};
use kvist_kernels::{DType, Element};

use super::Gpu;
use super::batch::{Batch, of_type};
use super::tall::tall;
use crate::{Error, Line, Options, Shape, Sink};

/// Query heads for each KV head.
const GROUPS: [usize; 4] = [1, 4, 8, 16];
const PAGES: [usize; 2] = [16, 64];
const KV_HEADS: usize = 2;

/// Relative error of an output row, and absolute error of its log-sum-exp (docs/kernels.md).
fn tolerance(dtype: DType) -> (f64, f64) {
    if dtype == DType::F32 { (1e-5, 1e-5) } else { (5e-3, 1e-4) }
}

pub(crate) fn run(options: &Options, sink: &mut Sink) -> Result<(), Error> {
    let gpu = Gpu::open(sink)?;
    let mut wrong = 0;
    for dtype in options.dtype.clone().unwrap_or_else(|| DType::ALL.to_vec()) {
        for dim in AttendSpec::DIMS {
            let spec = AttendSpec { dim, dtype, slots: false, wide: false };
            let asked = options.head_dim.is_none_or(|only| only == dim);
            if !asked || spec.check().is_err() {
                continue;
            }
            for page in PAGES {
                for group in GROUPS {
                    let (q_heads, kv_heads) = (KV_HEADS * group, KV_HEADS);
                    let shape = Shape { q_heads, kv_heads, head_dim: dim };
                    wrong += of_type!(dtype, row(&gpu, shape, page, options, sink))?;
                    wrong += of_type!(dtype, tall(&gpu, shape, page, options, sink))?;
                }
            }
        }
    }
    if wrong > 0 {
        let problem = format!("{wrong} rows are further from f64 than allowed");
        return Err(Error::Subject { name: "gpu-check".to_owned(), problem });
    }
    Ok(())
}

/// One row; whether it is wrong.
fn row<T: Element>(
    gpu: &Gpu,
    shape: Shape,
    page: usize,
    options: &Options,
    sink: &mut Sink,
) -> Result<usize, Error> {
    let long = options.context.as_ref().and_then(|c| c.first().copied()).unwrap_or(5000);
    let lens = [0, 1, page - 1, page, page + 1, long];
    let batch = Batch::<T>::new(shape, page, &lens, 41);
    let mut trial = batch.trial(&gpu.device, &gpu.stream)?;
    trial.poison().and_then(|()| trial.launch()).map_err(TrialError::from)?;
    let (o, lse) = trial.read().map_err(TrialError::from)?;
    let want = batch.with(|queries, pool, lists, params| {
        let tokens = reference::page_tokens(pool, lists);
        reference::attend(queries, pool, &tokens, lists.per_head, params)
    })?;
    Ok(judge::<T>(gpu, "attend", shape, page, (&o, &lse), &want, sink))
}

/// Says how far a kernel is from f64; whether that is too far, as 0 or 1.
pub(super) fn judge<T: Element>(
    gpu: &Gpu,
    kernel: &str,
    shape: Shape,
    page: usize,
    (o, lse): (&[f32], &[f32]),
    want: &Attended,
    sink: &mut Sink,
) -> usize {
    let (error, lse_error) = errors(o, lse, want, shape.head_dim);
    let (most, lse_most) = tolerance(T::DTYPE);
    let params = gpu.params().with("kernel", kernel).with("dtype", T::DTYPE.name());
    let params = params.with("dim", shape.head_dim);
    let params = params.with("page", page).with("group", shape.group());
    let columns = crate::Params::new().with("lse_error", lse_error).with("allowed", most);
    sink.push(Line::new("gpu-check", params, error, "of f64").columns(columns));
    // A NaN is no less than anything.
    usize::from(!(error <= most && lse_error <= lse_most))
}

/// The largest relative error of a row, and the largest error of a log-sum-exp. Empty lists have to give
/// exactly 0 and minus infinity.
fn errors(o: &[f32], lse: &[f32], want: &Attended, dim: usize) -> (f64, f64) {
    let worst = |a: f64, b: f64| if a.is_nan() || a > b { a } else { b };
    let rows = o.chunks(dim).zip(want.o.chunks(dim)).map(|(got, want)| {
        let norm = want.iter().map(|b| b * b).sum::<f64>().sqrt();
        let far = got.iter().zip(want).map(|(&a, b)| (f64::from(a) - b).powi(2)).sum::<f64>();
        if norm > 0.0 { far.sqrt() / norm } else { far.sqrt() }
    });
    let lses = lse.iter().zip(&want.lse2).map(|(&a, &b)| match b == f64::NEG_INFINITY {
        true if f64::from(a) == b => 0.0,
        true => f64::NAN,
        false => (f64::from(a) - b).abs(),
    });
    (rows.fold(0.0, |all, one| worst(one, all)), lses.fold(0.0, |all, one| worst(one, all)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_seen_wherever_it_is() {
        let want = Attended { o: vec![3.0, 4.0, 0.0, 0.0], lse2: vec![1.0, f64::NEG_INFINITY] };
        let none = f32::NEG_INFINITY;
        assert_eq!(errors(&[3.0, 4.0, 0.0, 0.0], &[1.0, none], &want, 2), (0.0, 0.0));
        assert!((errors(&[3.0, 4.5, 0.0, 0.0], &[1.0, none], &want, 2).0 - 0.1).abs() < 1e-9);
        assert_eq!(errors(&[3.0, 4.0, 0.25, 0.0], &[1.5, none], &want, 2), (0.25, 0.5));
        assert!(errors(&[f32::NAN, 4.0, 9.0, 0.0], &[1.0, none], &want, 2).0.is_nan());
        assert!(errors(&[3.0, 4.0, 0.0, 0.0], &[1.0, 0.0], &want, 2).1.is_nan());
    }
}
