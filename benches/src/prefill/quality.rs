//! What lists cover of real attention, and what the output loses.

use std::path::Path;

use kvist_kernels::Executor;

use super::patterns::{Pattern, SLASH};
use super::prompt::{Attended, Prompt};
use crate::quality::dump::Dump;
use crate::timing::time;
use crate::{Error, Line, Options, Params, Sink};

/// What a pattern gathers over layers.
#[derive(Default)]
struct Tally {
    /// Covered softmax mass of each query and head.
    mass: Vec<f64>,
    error: f64,
    density: f64,
    /// Seconds of all, of the lists, of dense attention.
    all: f64,
    build: f64,
    dense: f64,
    layers: usize,
}

fn patterns(kv_heads: usize) -> Vec<Pattern> {
    let shares = [0.0625, 0.125, 0.25];
    let kinds: [fn(f32) -> Pattern; 5] = [
        Pattern::Oracle,
        Pattern::AShape,
        |share| Pattern::VerticalSlash(share, SLASH),
        Pattern::BlockSparse,
        Pattern::Choice,
    ];
    let mut patterns: Vec<Pattern> = kinds.into_iter().flat_map(|k| shares.map(k)).collect();
    let mut proxies = vec![1, kv_heads];
    proxies.dedup();
    let masses = [0.7, 0.85, 0.95];
    patterns.extend(proxies.iter().flat_map(|&n| masses.map(|mass| Pattern::Proxy(n, mass))));
    patterns.push(Pattern::Nsa);
    patterns
}

pub(super) fn run(path: &Path, options: &Options, sink: &mut Sink) -> Result<(), Error> {
    let dump = Dump::open(path)?;
    let threads = options.threads.as_ref().and_then(|t| t.first()).copied().unwrap_or(1);
    let exec = Executor::with_threads(threads)?;
    let patterns = patterns(dump.kv_heads);
    let mut tallies: Vec<Tally> = patterns.iter().map(|_| Tally::default()).collect();
    let (mut want, mut got) = (Attended::default(), Attended::default());
    for layer in 0..dump.layers.len() {
        let prompt = Prompt::of(&dump, layer);
        let mut done = Ok(());
        let dense = time(|| done = prompt.attend(None, &exec, &mut want));
        done?;
        for (pattern, tally) in patterns.iter().zip(&mut tallies) {
            tally.dense += dense;
            tally.add(*pattern, &prompt, &exec, &want, &mut got)?;
        }
    }
    for (pattern, tally) in patterns.iter().zip(tallies) {
        sink.push(line(&dump, *pattern, threads, tally));
    }
    Ok(())
}

impl Tally {
    fn add(
        &mut self,
        pattern: Pattern,
        prompt: &Prompt,
        exec: &Executor,
        want: &Attended,
        got: &mut Attended,
    ) -> Result<(), Error> {
        let mut lists = None;
        let build = time(|| lists = Some(pattern.build(prompt, exec)));
        let lists = lists.transpose()?.flatten();
        let mut done = Ok(());
        let attend = time(|| done = prompt.attend(lists.as_ref(), exec, got));
        done?;
        self.density += lists.map_or(0.0, |l| l.lists.density(&l.grid));
        self.build += build;
        self.all += build + attend;
        let lses = got.lse2.iter().zip(&want.lse2);
        self.mass.extend(lses.map(|(got, want)| f64::from(got - want).exp2()));
        let dim = got.o.len() / got.lse2.len();
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
        let errors = got.o.chunks(dim).zip(want.o.chunks(dim)).map(|(got, want)| {
            let off = norm(&mut got.iter().zip(want).map(|(a, b)| f64::from(a - b)));
            off / norm(&mut want.iter().map(|&x| f64::from(x))).max(f64::MIN_POSITIVE)
        });
        self.error += errors.sum::<f64>() / got.lse2.len() as f64;
        self.layers += 1;
        Ok(())
    }
}

fn line(dump: &Dump, pattern: Pattern, threads: usize, mut t: Tally) -> Line {
    t.mass.sort_by(f64::total_cmp);
    let n = t.mass.len().max(1);
    let mean = t.mass.iter().sum::<f64>() / n as f64;
    let layers = t.layers.max(1) as f64;
    let params = Params::new().with("model", dump.model.clone()).with("tokens", dump.tokens);
    let params = params.with("queries", dump.queries).with("layers", t.layers);
    let params = params.with("threads", threads).with("pattern", pattern.name());
    let columns = Params::new()
        .with("density", t.density / layers)
        .with("p05", t.mass.get(n / 20).copied().unwrap_or(0.0))
        .with("min", t.mass.first().copied().unwrap_or(0.0))
        .with("output_error", t.error / layers)
        .with("ms", t.all / layers * 1e3)
        .with("of_it_lists_ms", t.build / layers * 1e3)
        .with("of_own_dense", t.all / t.dense);
    Line::new("prefill", params, mean, "mass").repeated(n, 0.0).columns(columns)
}
