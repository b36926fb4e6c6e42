//! How much of the softmax mass each selector covers on real queries, keys and values, and what
//! the certificate costs.

pub(crate) mod dump;
pub(crate) mod heads;
mod open;
mod pages;
pub(crate) mod truth;

use std::ops::Range;
use std::path::PathBuf;
use std::process::Command;

use kvist::policies::{Keep, Twilight};
use kvist::{AttendInfo, AttendOptions, Boxed, Cache, Geometry, Select, Sequence};
use kvist_kernels::summary::UnitKind;
use kvist_kernels::{DType, Tensor3, Tensor3Mut};
use serde_json::json;

use crate::python::interpreter;
use crate::{Error, Line, Options, Params, Sink};
use dump::Dump;
use open::Boxes;
use pages::{RECENT, SINKS, Units};
use truth::Truth;

/// Of the mass rows every eighth step is measured, of the certificate rows every one.
const EVERY: usize = 8;
/// Missed mass the certificate rows ask for.
const MISSED: f32 = 0.1;

/// One row of the table.
enum Row {
    OracleTokens,
    OracleUnits,
    Units(UnitKind),
    Store(Select),
    /// One that is asked at every step, as it may use what it selected at earlier ones.
    Steps(Select),
}

impl Row {
    fn select(&self) -> Option<&Select> {
        match self {
            Row::Store(select) | Row::Steps(select) => Some(select),
            Row::OracleTokens | Row::OracleUnits | Row::Units(_) => None,
        }
    }
}

fn rows(budget: usize) -> Result<Vec<(&'static str, Row)>, Error> {
    let flat =
        Boxed { sinks: SINKS, recent: RECENT, tree_from: usize::MAX, ..Boxed::with_budget(budget) };
    let boxed = |planes| Row::Store(Select::Boxed(Boxed { planes, ..flat.clone() }));
    // The systems of the literature, with the same kept tokens as far as they keep any.
    let preset = |name: &str, settings: serde_json::Value| {
        let mut all = settings.as_object().cloned().unwrap_or_default();
        let known = Select::parse(name).map_err(kvist::Error::from)?.settings();
        for (setting, value) in [("sinks", SINKS), ("recent", RECENT)] {
            if known.contains_key(setting) {
                all.insert(setting.to_owned(), value.into());
            }
        }
        let select = Select::configured(name, all).map_err(kvist::Error::from)?;
        Ok::<Row, Error>(Row::Store(select.with_budget(budget)))
    };
    Ok(vec![
        ("oracle token", Row::OracleTokens),
        ("oracle page", Row::OracleUnits),
        ("boxed, 2 planes", boxed(2)),
        ("boxed, 3 planes", boxed(3)),
        ("boxed, 4 planes", boxed(4)),
        ("boxed, tiles first", Row::Store(Select::Boxed(Boxed { tree_from: 1, ..flat.clone() }))),
        (
            "boxed, reused at 0.9",
            Row::Steps(Select::Boxed(Boxed { reuse: Some(0.9), ..flat.clone() })),
        ),
        (
            "boxed, reused at 0.8",
            Row::Steps(Select::Boxed(Boxed { reuse: Some(0.8), ..flat.clone() })),
        ),
        ("moment2 page", Row::Units(UnitKind::Moment2)),
        ("mean page", Row::Units(UnitKind::Mean)),
        ("quest", preset("quest", json!({}))?),
        ("arkvale", preset("arkvale", json!({}))?),
        ("arkvale, per KV head", preset("arkvale", json!({ "layer_wide": false }))?),
        ("leoam", preset("leoam", json!({}))?),
        ("tokenselect", preset("tokenselect", json!({ "theta": null }))?),
        ("tidaldecode, anchor", preset("tidaldecode", json!({ "anchors": [0] }))?),
        ("twilight", Row::Store(Select::Twilight(Twilight::default()))),
        ("clusterkv", preset("clusterkv", json!({}))?),
        ("retroinfer", preset("retroinfer", json!({}))?),
        ("retroinfer, not estimated", preset("retroinfer", json!({ "estimated": 0.0 }))?),
        ("pqcache", preset("pqcache", json!({}))?),
        ("shadowkv", preset("shadowkv", json!({}))?),
        ("infinigen", preset("infinigen", json!({}))?),
        ("streaming", preset("streaming", json!({}))?),
    ])
}

/// What one row gathers over steps, layers and heads.
#[derive(Default)]
struct Tally {
    mass: Vec<f64>,
    relative: f64,
    /// Share of the oracle's tokens that were chosen.
    recall: f64,
    error: f64,
    tokens: f64,
    summary: f64,
    keys: f64,
    count: f64,
    /// Certificate rows: largest true miss, tokens of the oracle, bytes over dense.
    worst: f64,
    oracle: f64,
    bytes: f64,
    violations: usize,
}

pub(crate) fn run(options: &Options, sink: &mut Sink) -> Result<(), Error> {
    let Some(path) = dump_path(options, sink)? else { return Ok(()) };
    let dump = Dump::open(&path)?;
    for &budget in options.budget.as_deref().unwrap_or(&[256, 512, 1024]) {
        let wanted = rows(budget)?.into_iter().filter(|(name, _)| options.selects(name));
        for (name, row) in wanted {
            let mut tally = Tally::default();
            for layer in 0..dump.layers.len() {
                measure(&dump, layer, &row, budget, &mut tally)?;
            }
            sink.push(mass_line(&dump, name, budget, &row, &tally));
        }
    }
    for planes in [3, 4].into_iter().filter(|&planes| options.selects(&certificate(planes))) {
        let select =
            Boxed { planes, sinks: SINKS, recent: RECENT, ..Boxed::with_max_missed_mass(MISSED) };
        let mut tally = Tally::default();
        for layer in 0..dump.layers.len() {
            certify(&dump, layer, &Select::Boxed(select.clone()), &mut tally)?;
        }
        sink.push(certificate_line(&dump, planes, &tally));
    }
    if options.selects(&boxes_alone()) {
        sink.push(open_line(&dump)?);
    }
    Ok(())
}

/// Tiles that a certificate must open which knows the boxes of the others only.
fn open_line(dump: &Dump) -> Result<Line, Error> {
    let mut shares = Vec::new();
    for layer in (0..dump.layers.len()).filter(|&layer| dump.layers[layer] >= 2) {
        let of = |head| Boxes::build(dump, layer, head);
        let boxes = (0..dump.kv_heads).map(of).collect::<Result<Vec<_>, _>>()?;
        steps(dump, layer, EVERY, None, |step, len, _| {
            for (head, boxes) in boxes.iter().enumerate() {
                let truth = Truth::of(dump, layer, step, head, len);
                let rows = dump.group() * dump.dim_k;
                let q = &dump.query(layer, step)[head * rows..(head + 1) * rows];
                shares.push(boxes.to_open(dump, q, &truth, len, MISSED)?);
            }
            Ok(())
        })?;
    }
    shares.sort_by(f64::total_cmp);
    let (n, sum) = (shares.len(), shares.iter().sum::<f64>());
    let columns = Params::new().with("least", shares.first().copied().unwrap_or(0.0));
    let line = Line::new(
        "selection-quality",
        params(dump, &boxes_alone()),
        sum / n.max(1) as f64,
        "of tiles opened",
    );
    Ok(line.repeated(n, 0.0).columns(columns))
}

/// The dump given, or one made now from the demo's model and text.
fn dump_path(options: &Options, sink: &Sink) -> Result<Option<PathBuf>, Error> {
    let given = options.dump.clone().or_else(|| std::env::var_os("KVIST_DUMP").map(PathBuf::from));
    if given.is_some() {
        return Ok(given);
    }
    let path = std::env::temp_dir().join("kvist-smollm2.kvdump");
    if !path.exists() {
        sink.note("making a dump of real q, k, v (a minute)");
        let args = ["-m", "kvist", "dump", "--out"];
        let made = Command::new(interpreter()).args(args).arg(&path).status();
        if !made.map_err(Error::io("starting python"))?.success() {
            sink.note("no dump: the Python package or the model is missing (make develop models); left out");
            return Ok(None);
        }
    }
    Ok(Some(path))
}

/// A sequence of one layer of the dump, up to the first query.
pub(crate) fn sequence(dump: &Dump, layer: usize, select: &Select) -> Result<Sequence, Error> {
    let mut geometry = Geometry::new(1, dump.q_heads, dump.kv_heads, dump.dim_k, DType::Bf16);
    geometry.dim_v = dump.dim_v;
    let bytes = 2 * (dump.tokens + 64) * dump.kv_heads * geometry.token_bytes();
    let cache = Cache::builder(geometry).host_bytes(bytes as u64).select(select.clone()).build()?;
    let mut sequence = cache.sequence();
    append(dump, layer, 0..dump.tokens - dump.queries, &mut sequence, 0)?;
    Ok(sequence)
}

/// Appends tokens of a layer of the dump to layer `at` of a sequence.
pub(crate) fn append(
    dump: &Dump,
    layer: usize,
    tokens: Range<usize>,
    s: &mut Sequence,
    at: usize,
) -> Result<(), Error> {
    let Range { start: from, end: to } = tokens;
    let (k_row, v_row) = (dump.kv_heads * dump.dim_k, dump.kv_heads * dump.dim_v);
    let row = |t: usize| layer * dump.tokens + t;
    let k = &dump.k[row(from) * k_row..row(to) * k_row];
    let v = &dump.v[row(from) * v_row..row(to) * v_row];
    let k = Tensor3::contiguous(k, [to - from, dump.kv_heads, dump.dim_k])?;
    let v = Tensor3::contiguous(v, [to - from, dump.kv_heads, dump.dim_v])?;
    Ok(s.append(at, &k, &v)?)
}

/// Attends with a layer's queries of a step to layer `at` of a sequence.
pub(crate) fn attend(
    dump: &Dump,
    layer: usize,
    step: usize,
    s: &Sequence,
    at: usize,
) -> Result<(Vec<f32>, AttendInfo), Error> {
    let q = Tensor3::contiguous(dump.query(layer, step), [1, dump.q_heads, dump.dim_k])?;
    let mut out = vec![0f32; dump.q_heads * dump.dim_v];
    let mut to = Tensor3Mut::contiguous(&mut out, [1, dump.q_heads, dump.dim_v])?;
    let options = AttendOptions {
        scale: Some(dump.scale),
        soft_cap: dump.soft_cap,
        selected: true,
        ..AttendOptions::default()
    };
    let info = s.attend(at, &q, &options, &mut to)?;
    Ok((out, info))
}

/// Calls `each(step, len, attended)` for every `every`th step of a layer.
fn steps(
    dump: &Dump,
    layer: usize,
    every: usize,
    select: Option<&Select>,
    mut each: impl FnMut(usize, usize, Option<&(Vec<f32>, AttendInfo)>) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut sequence = select.map(|s| sequence(dump, layer, s)).transpose()?;
    for step in 0..dump.queries {
        let position = dump.tokens - dump.queries + step;
        if let Some(s) = &mut sequence {
            append(dump, layer, position..position + 1, s, 0)?;
        }
        if step % every == every - 1 {
            let found = sequence.as_ref().map(|s| attend(dump, layer, step, s, 0)).transpose()?;
            each(step, position + 1, found.as_ref())?;
        }
    }
    Ok(())
}

fn measure(
    dump: &Dump,
    layer: usize,
    row: &Row,
    budget: usize,
    tally: &mut Tally,
) -> Result<(), Error> {
    let every = if let Row::Steps(_) = row { 1 } else { EVERY };
    let units = match row {
        Row::Units(kind) => {
            let of = |head| Units::build(dump, layer, head, *kind);
            (0..dump.kv_heads).map(of).collect::<Result<Vec<_>, _>>()?
        }
        _ => Vec::new(),
    };
    steps(dump, layer, every, row.select(), |step, len, found| {
        if step % EVERY != EVERY - 1 {
            return Ok(());
        }
        let info = found.map(|f| &f.1);
        for head in 0..dump.kv_heads {
            let truth = Truth::of(dump, layer, step, head, len);
            let q = &dump.query(layer, step)[head * dump.group() * dump.dim_k..];
            let q = &q[..dump.group() * dump.dim_k];
            let chosen = match (row, info.and_then(|i| i.selected.as_ref())) {
                (_, Some(selected)) => selected[head].clone(),
                (Row::OracleUnits, _) => pages::oracle_units(&truth, len, budget),
                (Row::Units(_), _) => units[head].choose(dump, q, len, budget)?,
                _ => pages::oracle_tokens(&truth, len, budget),
            };
            let best = pages::oracle_tokens(&truth, len, budget);
            let covered = truth.covered(&chosen);
            let most: f64 = truth.covered(&best).iter().sum();
            tally.relative += covered.iter().sum::<f64>() / most;
            let hits = best.iter().filter(|t| chosen.binary_search(t).is_ok()).count();
            tally.recall += hits as f64 / best.len() as f64;
            tally.mass.extend(covered);
            tally.error += match found {
                Some((out, _)) => {
                    let width = dump.group() * dump.dim_v;
                    truth.error_of(dump, layer, head, &out[head * width..][..width])
                }
                None => truth.output_error(dump, layer, head, &chosen),
            };
            tally.tokens += chosen.len() as f64;
            tally.count += 1.0;
            if let Row::Units(_) = row {
                tally.summary += units[head].bytes_per_token();
            }
        }
        if let Some(info) = info {
            let tokens = (len * dump.kv_heads) as f64;
            tally.summary += info.bytes.summary as f64 / tokens * dump.kv_heads as f64;
            tally.keys += info.bytes.keys as f64 / tokens * dump.kv_heads as f64;
            let dense = tokens * ((dump.dim_k + dump.dim_v) * DType::Bf16.size()) as f64;
            tally.bytes += info.bytes.total() as f64 / dense * dump.kv_heads as f64;
        }
        Ok(())
    })
}

fn certify(dump: &Dump, layer: usize, select: &Select, tally: &mut Tally) -> Result<(), Error> {
    let token = (dump.dim_k + dump.dim_v) * DType::Bf16.size();
    steps(dump, layer, 1, Some(select), |step, len, found| {
        let Some((_, info)) = found else { return Ok(()) };
        let (Some(selected), Some(bound)) = (&info.selected, &info.missed_mass_bound) else {
            return Ok(());
        };
        for (head, chosen) in selected.iter().enumerate() {
            let truth = Truth::of(dump, layer, step, head, len);
            for (i, covered) in truth.covered(chosen).into_iter().enumerate() {
                let missed = 1.0 - covered;
                tally.worst = tally.worst.max(missed);
                let proven = f64::from(bound[head * dump.group() + i]);
                tally.violations += usize::from(missed > proven + 1e-9);
            }
            // The first two layers hardly concentrate; the target leaves them out.
            if dump.layers[layer] >= 2 {
                tally.tokens += chosen.len() as f64;
                tally.oracle += oracle_count(&truth, len) as f64;
                tally.count += 1.0;
            }
        }
        if dump.layers[layer] >= 2 {
            let dense = (len * dump.kv_heads * token) as f64;
            tally.bytes += info.bytes.total() as f64 / dense * dump.kv_heads as f64;
        }
        Ok(())
    })
}

/// Fewest tokens, keeps included, that cover the wanted mass for every head of the group.
fn oracle_count(truth: &Truth, len: usize) -> usize {
    let kept = |t: usize| t < SINKS || t + RECENT >= len;
    let mut mass = truth.mass.clone();
    let need: Vec<f64> = mass
        .iter_mut()
        .map(|m| {
            let held: f64 = (0..len).filter(|&t| kept(t)).map(|t| m[t]).sum();
            (0..len).filter(|&t| kept(t)).for_each(|t| m[t] = 0.0);
            1.0 - f64::from(MISSED) - held
        })
        .collect();
    let others = kvist::policies::cover::fewest(&mass, &need, usize::MAX);
    others.len() + (0..len).filter(|&t| kept(t)).count()
}

fn params(dump: &Dump, name: &str) -> Params {
    let params = Params::new().with("model", dump.model.clone()).with("tokens", dump.tokens);
    params.with("layers", dump.layers.len()).with("select", name)
}

fn mass_line(dump: &Dump, name: &str, budget: usize, row: &Row, t: &Tally) -> Line {
    let mut mass = t.mass.clone();
    mass.sort_by(f64::total_cmp);
    let mean = mass.iter().sum::<f64>() / mass.len().max(1) as f64;
    // Bytes per token and KV head, as if the head dimension were 128.
    let wide = 128.0 / dump.dim_k as f64 / t.count;
    let keep = row.select().map_or(Keep { sinks: SINKS, recent: RECENT }, Select::keep);
    let keep = format!("{} sinks + {} recent", keep.sinks, keep.recent);
    let columns = Params::new()
        .with("of_oracle", t.relative / t.count)
        .with("p05", mass.get(mass.len() / 20).copied().unwrap_or(0.0))
        .with("min", mass.first().copied().unwrap_or(0.0))
        .with("token_recall", t.recall / t.count)
        .with("output_error", t.error / t.count)
        .with("keep", keep)
        .with("tokens_read", t.tokens / t.count)
        .with("summary_bytes_per_token_d128", t.summary * wide)
        .with("extra_key_bytes_per_token_d128", t.keys * wide)
        .with("bytes_of_dense", t.bytes / t.count);
    Line::new("selection-quality", params(dump, name).with("budget", budget), mean, "mass")
        .repeated(t.count as usize, 0.0)
        .columns(columns)
}

/// Names of rows.
fn certificate(planes: u32) -> String {
    format!("boxed, {planes} planes, max_missed_mass={MISSED}")
}

fn boxes_alone() -> String {
    format!("boxes alone, max_missed_mass={MISSED}")
}

fn certificate_line(dump: &Dump, planes: u32, t: &Tally) -> Line {
    let columns = Params::new()
        .with("worst_true_miss", t.worst)
        .with("bound_violations", t.violations)
        .with("tokens_read", t.tokens / t.count)
        .with("oracle_tokens", t.oracle / t.count)
        .with("bytes_of_dense", t.bytes / t.count);
    Line::new(
        "selection-quality",
        params(dump, &certificate(planes)),
        t.tokens / t.oracle,
        "x oracle",
    )
    .repeated(t.count as usize, 0.0)
    .columns(columns)
}
