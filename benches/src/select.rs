//! Choosing from scores that are there: microseconds per call on one core.

use kvist_kernels::select;

use crate::{Error, Line, Options, Params, Rng, Sink, repeat};

/// Units to choose from.
const UNITS: usize = 65536;
/// Query heads of a group.
const GROUP: usize = 4;

pub(crate) fn run(options: &Options, sink: &mut Sink) -> Result<(), Error> {
    let mut rng = Rng::new(9);
    let est = rng.normals(GROUP * UNITS);
    let mut weights = vec![0f32; UNITS];
    let mut lse = [f32::NEG_INFINITY; GROUP];
    select::lse2(&est, UNITS, 1.0, &mut lse);
    select::fold_mass(&est, UNITS, 1.0, &lse, &mut weights);
    let mut ids = Vec::new();
    let mut emit = |what: &str, k: usize, f: &mut dyn FnMut()| {
        let sample = repeat(options.repeats(), f);
        let params = Params::new().with("what", what).with("units", UNITS).with("k", k);
        sink.push(
            Line::new("select", params, sample.median * 1e6, "us")
                .repeated(sample.repeats, sample.spread)
                .best(sample.best * 1e6),
        );
    };
    for k in options.budget.clone().unwrap_or_else(|| vec![128, 2048]) {
        emit("top_k", k, &mut || select::top_k(&weights, k, &mut ids));
        emit("full sort (reference)", k, &mut || {
            let mut all: Vec<u32> = (0..UNITS as u32).collect();
            all.sort_unstable_by(|&a, &b| weights[b as usize].total_cmp(&weights[a as usize]));
            all.truncate(k);
            std::hint::black_box(&all);
        });
    }
    emit("top_p 0.9", 0, &mut || {
        select::top_p(&weights, 0.9 * GROUP as f64, 256, UNITS, &mut ids);
    });
    let mut folded = vec![0f32; UNITS];
    emit("lse2 of 4 heads", 0, &mut || {
        lse = [f32::NEG_INFINITY; GROUP];
        select::lse2(&est, UNITS, 1.0, &mut lse);
    });
    let lse = lse;
    emit("fold_mass of 4 heads", 0, &mut || {
        select::fold_mass(&est, UNITS, 1.0, &lse, &mut folded);
    });
    Ok(())
}
