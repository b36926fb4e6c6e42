//! `kvist presets`: what `select=` takes.

/// Lists the selectors.
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args) -> Result<(), kvist_bench::Error> {
    for p in kvist::selection_presets() {
        println!("{:<8} {} ({})", p.name, p.about, p.source);
    }
    Ok(())
}
