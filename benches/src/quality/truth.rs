//! What dense attention of one step is, in f64: the measure of every selection.

use std::cell::OnceCell;

use crate::quality::dump::Dump;

/// Softmax masses of one KV head's query group, and its dense output.
pub(crate) struct Truth {
    /// `[group][len]`, each summing to 1.
    pub(crate) mass: Vec<Vec<f64>>,
    /// Natural log-sum-exp of the logits, `[group]`.
    log_sums: Vec<f64>,
    /// Made when first needed.
    output: OnceCell<Vec<Vec<f64>>>,
}

impl Truth {
    pub(crate) fn of(dump: &Dump, layer: usize, step: usize, head: usize, len: usize) -> Truth {
        let group = dump.group();
        let q = &dump.query(layer, step)[head * group * dump.dim_k..];
        let each = q.chunks(dump.dim_k).take(group).map(|q| masses(dump, layer, head, len, q));
        let (mass, log_sums) = each.unzip();
        Truth { mass, log_sums, output: OnceCell::new() }
    }

    /// Natural log-sum-exp of each query head's logits.
    pub(super) fn log_sums(&self) -> &[f64] {
        &self.log_sums
    }

    /// Mass covered by these positions, per query head.
    pub(crate) fn covered(&self, positions: &[u32]) -> Vec<f64> {
        let sum = |m: &Vec<f64>| positions.iter().map(|&p| m[p as usize]).sum();
        self.mass.iter().map(sum).collect()
    }

    /// Relative error of attention over these positions only, mean over the group.
    pub(crate) fn output_error(
        &self,
        dump: &Dump,
        layer: usize,
        head: usize,
        positions: &[u32],
    ) -> f64 {
        let of = |m: &Vec<f64>| weighted(dump, layer, head, m, positions);
        self.error(dump, layer, head, self.mass.iter().map(of))
    }

    /// Relative error of an output `[group, dim_v]`, mean over the group.
    pub(crate) fn error_of(&self, dump: &Dump, layer: usize, head: usize, out: &[f32]) -> f64 {
        let rows = out.chunks(dump.dim_v).map(|row| row.iter().map(|&x| f64::from(x)).collect());
        self.error(dump, layer, head, rows)
    }

    fn error(
        &self,
        dump: &Dump,
        layer: usize,
        head: usize,
        rows: impl Iterator<Item = Vec<f64>>,
    ) -> f64 {
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
        let one = |(got, want): (Vec<f64>, &Vec<f64>)| {
            let error = norm(&mut got.iter().zip(want).map(|(a, b)| a - b));
            error / norm(&mut want.iter().copied()).max(f64::MIN_POSITIVE)
        };
        let output = self.output.get_or_init(|| {
            let whole = |m: &Vec<f64>| {
                let all: Vec<u32> = (0..m.len() as u32).collect();
                weighted(dump, layer, head, m, &all)
            };
            self.mass.iter().map(whole).collect()
        });
        rows.zip(output).map(one).sum::<f64>() / self.mass.len() as f64
    }
}

/// Softmax masses, and the log-sum-exp of the logits.
fn masses(dump: &Dump, layer: usize, head: usize, len: usize, q: &[f32]) -> (Vec<f64>, f64) {
    let logit = |t: usize| -> f64 {
        let key = dump.key(layer, t, head);
        let dot: f64 = q.iter().zip(key).map(|(&a, b)| f64::from(a) * f64::from(b.to_f32())).sum();
        let (s, cap) = (dot * f64::from(dump.scale), f64::from(dump.soft_cap));
        if cap > 0.0 { cap * (s / cap).tanh() } else { s }
    };
    let logits: Vec<f64> = (0..len).map(logit).collect();
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = logits.iter().map(|x| (x - top).exp()).collect();
    let sum: f64 = exp.iter().sum();
    (exp.into_iter().map(|x| x / sum).collect(), top + sum.ln())
}

/// Output over some positions, renormalised.
fn weighted(dump: &Dump, layer: usize, head: usize, mass: &[f64], positions: &[u32]) -> Vec<f64> {
    let mut out = vec![0f64; dump.dim_v];
    let mut total = 0.0;
    for &p in positions {
        let m = mass[p as usize];
        total += m;
        let value = dump.value(layer, p as usize, head);
        out.iter_mut().zip(value).for_each(|(o, v)| *o += m * f64::from(v.to_f32()));
    }
    out.iter_mut().for_each(|o| *o /= total.max(f64::MIN_POSITIVE));
    out
}
