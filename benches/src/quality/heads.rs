//! What a profile of heads is worth: calibrated on the first half of a dump's queries, measured on the second,
//! beside equal budgets that read as many tokens in all.

use kvist::policies::{Class, Rules};
use kvist::{Boxed, Cache, Geometry, Profile, Select};
use kvist_kernels::DType;

use super::dump::Dump;
use super::truth::Truth;
use super::{append, attend, dump_path, params};
use crate::calibrate::{measure, shape};
use crate::{Error, Line, Options, Params, Sink};

/// Steps calibrated on, and steps measured, at most.
const STEPS: usize = 48;
/// Layers of the model that are dense where nothing is measured: the default for transformers models.
const DENSE: [usize; 2] = [0, 1];

pub(crate) fn run(options: &Options, sink: &mut Sink) -> Result<(), Error> {
    let Some(path) = dump_path(options, sink)? else { return Ok(()) };
    let dump = Dump::open(&path)?;
    let half = dump.queries / 2;
    let test = measure::spread(half..dump.queries, STEPS);
    // What is measured does not depend on the budget.
    let steps = measure::spread(0..half, STEPS);
    let stats = measure::measure(&dump, &Boxed::default().into(), &steps, |_| ())?;
    for &budget in options.budget.as_deref().unwrap_or(&[256, 512, 1024]) {
        let select = Select::from(Boxed::with_budget(budget));
        let made = |select: &Select, rules: &Rules| {
            Profile::measured(dump.model.clone(), shape(&dump), &stats, select, rules)
        };
        let line = |name, profile: Option<Profile>, select: &Select, dense: &[usize]| {
            let cache = cache(&dump, select, profile, dense)?;
            let measured = Measured::of(&dump, &cache, &test)?;
            Ok::<_, Error>(measured.line(&dump, name, budget))
        };
        // Every head selects or streams.
        sink.push(line("boxed", None, &select, &[])?);
        let shared = made(&select, &Rules { dense: None, ..Rules::default() })?;
        sink.push(line("boxed, profiled", Some(shared), &select, &[])?);
        // Some heads are dense: layers 0 and 1, or those that are flat, with what that saves for the others.
        let dense: Vec<usize> =
            (0..dump.layers.len()).filter(|&i| DENSE.contains(&dump.layers[i])).collect();
        if dense.is_empty() {
            continue;
        }
        sink.push(line("boxed, dense layers", None, &select, &dense)?);
        let flat = made(&select, &Rules::default())?;
        let saved = select.clone().with_budget(as_many(&dump, &flat, &dense, budget));
        if saved.validate().is_err() {
            // More heads are flat than these layers have tokens for.
            continue;
        }
        let profile = made(&saved, &Rules::default())?;
        sink.push(line("boxed, profiled, dense heads", Some(profile), &saved, &[])?);
    }
    Ok(())
}

/// The budget with which a profile's dense heads and its others read as many tokens at the end of the dump as
/// the dense layers and all others with `budget`.
fn as_many(dump: &Dump, profile: &Profile, layers: &[usize], budget: usize) -> usize {
    let heads = dump.layers.len() * dump.kv_heads;
    let plain = layers.len() * dump.kv_heads;
    let dense = profile.heads().iter().flatten().filter(|c| **c == Class::Dense).count();
    let total = plain * dump.tokens + (heads - plain) * budget;
    total.saturating_sub(dense * dump.tokens) / (heads - dense).max(1)
}

/// A cache of all layers.
fn cache(
    dump: &Dump,
    select: &Select,
    profile: Option<Profile>,
    dense: &[usize],
) -> Result<Cache, Error> {
    let layers = dump.layers.len();
    let mut geometry = Geometry::new(layers, dump.q_heads, dump.kv_heads, dump.dim_k, DType::Bf16);
    geometry.dim_v = dump.dim_v;
    let bytes = 2 * layers * (dump.tokens + 64) * dump.kv_heads * geometry.token_bytes();
    let builder = Cache::builder(geometry).host_bytes(bytes as u64).select(select.clone());
    let builder = builder.dense_layers(dense);
    Ok(match profile {
        Some(profile) => builder.profile(profile).build()?,
        None => builder.build()?,
    })
}

/// What a cache's heads read, and what that covers.
#[derive(Default)]
struct Measured {
    /// Covered mass of each query head at each step.
    mass: Vec<f64>,
    error: f64,
    tokens: f64,
    summary: f64,
    /// (step, KV head).
    count: f64,
}

impl Measured {
    fn of(dump: &Dump, cache: &Cache, steps: &[usize]) -> Result<Measured, Error> {
        let (mut all, mut s) = (Measured::default(), cache.sequence());
        let first = dump.tokens - dump.queries;
        let mut done = 0;
        for &step in steps {
            let len = first + step + 1;
            for layer in 0..dump.layers.len() {
                append(dump, layer, done..len, &mut s, layer)?;
                let (_, info) = attend(dump, layer, step, &s, layer)?;
                all.summary += info.bytes.summary as f64;
                for (head, chosen) in info.selected.iter().flatten().enumerate() {
                    let truth = Truth::of(dump, layer, step, head, len);
                    all.mass.extend(truth.covered(chosen));
                    all.error += truth.output_error(dump, layer, head, chosen);
                    all.tokens += chosen.len() as f64;
                    all.count += 1.0;
                }
            }
            done = len;
        }
        Ok(all)
    }

    fn line(mut self, dump: &Dump, name: &str, budget: usize) -> Line {
        self.mass.sort_by(f64::total_cmp);
        let at = |share: f64| self.mass.get((share * self.mass.len() as f64) as usize);
        let mean = self.mass.iter().sum::<f64>() / self.mass.len().max(1) as f64;
        let columns = Params::new()
            .with("missed", 1.0 - mean)
            .with("p05", at(0.05).copied().unwrap_or(0.0))
            .with("p01", at(0.01).copied().unwrap_or(0.0))
            .with("output_error", self.error / self.count)
            .with("tokens_read", self.tokens / self.count)
            .with("summary_bytes_per_step", self.summary / self.count);
        Line::new("head-profile", params(dump, name).with("budget", budget), mean, "mass")
            .repeated(self.count as usize, 0.0)
            .columns(columns)
    }
}
