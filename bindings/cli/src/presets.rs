//! `kvist presets`: what `select=` takes.

use kvist::policies::Select;

/// Lists the selectors with their settings.
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args) -> Result<(), kvist_bench::Error> {
    for p in kvist::selection_presets() {
        println!("{:<12} {} ({})", p.name, p.about, p.source);
        let settings = Select::parse(p.name).map(|s| s.settings()).unwrap_or_default();
        if !settings.is_empty() {
            let shown = settings.iter().map(|(name, value)| format!("{name}={value}"));
            println!("{:<12} {}", "", shown.collect::<Vec<_>>().join(", "));
        }
    }
    Ok(())
}
