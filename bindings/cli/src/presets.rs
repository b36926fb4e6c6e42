//! `kvist presets`: what `select=` and `prefill=` take.

use kvist::policies::prefill::PATTERNS;
use kvist::policies::{Preset, Select};
use kvist::prefill::Prefill;
use serde_json::{Map, Value};

/// Lists the selectors and the prefill patterns with their settings.
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args) -> Result<(), kvist_bench::Error> {
    for p in kvist::selection_presets() {
        show(p, &Select::parse(p.name).map(|s| s.settings()).unwrap_or_default());
    }
    println!("\nprefill:");
    for p in PATTERNS {
        show(p, &Prefill::parse(p.name).map(|p| p.settings()).unwrap_or_default());
    }
    Ok(())
}

fn show(p: &Preset, settings: &Map<String, Value>) {
    println!("{:<14} {} ({})", p.name, p.about, p.source);
    if !settings.is_empty() {
        let shown = settings.iter().map(|(name, value)| format!("{name}={value}"));
        println!("{:<14} {}", "", shown.collect::<Vec<_>>().join(", "));
    }
}
