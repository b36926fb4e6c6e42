//! `kvist calibrate`: which heads of a model read how much?

use std::io::IsTerminal;
use std::path::PathBuf;

use indicatif::ProgressBar;
use kvist::policies::{Rules, Select};
use kvist_bench::calibrate::{Calibration, calibrate};

use crate::show::json;
use crate::{Done, Failure, UNUSABLE};

/// Makes a profile from real queries, keys and values: how each KV head is read, and its share of the budget.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A file of real q, k, v made by `python -m kvist dump`.
    #[arg(long)]
    dump: PathBuf,
    /// The profile to write.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Tokens read per KV head and query, mean over the heads.
    #[arg(long, default_value_t = 1024)]
    budget: usize,
    /// The selector that it is for; `kvist presets` lists them.
    #[arg(long, default_value = "boxed")]
    select: String,
    /// The model's name, if not the dump's.
    #[arg(long)]
    model: Option<String>,
    /// Steps measured at most.
    #[arg(long, default_value_t = 48)]
    steps: usize,
    /// Mass that a window must cover at the worst steps of a head that streams, or `never`.
    #[arg(long, value_parser = share, default_value = "0.99")]
    streaming: Share,
    /// Part of the context that the effective support of a dense head exceeds, or `never`.
    #[arg(long, value_parser = share, default_value = "0.125")]
    dense: Share,
    /// DuoAttention instead: this share of the heads streams, those that a window covers best.
    #[arg(long)]
    sparsity: Option<f64>,
    /// The report as one JSON object.
    #[arg(long)]
    json: bool,
}

/// A share, or never.
#[derive(Clone, Copy, Debug)]
struct Share(Option<f64>);

fn share(text: &str) -> Result<Share, String> {
    match text.parse::<f64>() {
        _ if text == "never" => Ok(Share(None)),
        Ok(x) if (0.0..=1.0).contains(&x) => Ok(Share(Some(x))),
        _ => Err("expected a number from 0 to 1, or never".to_owned()),
    }
}

pub(crate) fn run(args: &Args) -> Done {
    let unusable = |e: kvist_bench::Error| -> Failure { (UNUSABLE, e.into()) };
    let select = Select::parse(&args.select).map_err(|e| (UNUSABLE, e.into()))?;
    let how = Calibration {
        rules: Rules { streaming: args.streaming.0, dense: args.dense.0 },
        sparsity: args.sparsity,
        steps: args.steps,
        model: args.model.clone(),
        ..Calibration::new(select.with_budget(args.budget))
    };
    let bar = match std::io::stderr().is_terminal() {
        true => ProgressBar::new(0),
        false => ProgressBar::hidden(),
    };
    let progress = |done: usize, layers: usize| {
        bar.set_length(layers as u64);
        bar.set_position(done as u64);
    };
    let made = calibrate(&args.dump, &how, progress).map_err(unusable)?;
    bar.finish_and_clear();
    if let Some(out) = &args.out {
        std::fs::write(out, made.profile.to_json() + "\n")
            .map_err(|e| (1, format!("writing {}: {e}", out.display()).into()))?;
    }
    match args.json {
        true => json(&made.report)?,
        false => print!("{}", made.report),
    }
    Ok(0)
}
