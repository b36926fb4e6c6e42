//! `kvist inspect DIR`: what is stored?

use std::path::PathBuf;

use kvist::inspect::{Inventory, StoreView};

use crate::show::{age, bytes, json, short, table};
use crate::{Done, UNUSABLE};

/// Lists what a store's directory holds: models, tenants, codecs, segments, saved sessions.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The store's directory; it may be in use.
    dir: PathBuf,
    /// One JSON object, with whole fingerprints.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Done {
    let view = StoreView::open(&args.dir).map_err(|e| (UNUSABLE, e.into()))?;
    let inventory = view.inventory();
    if args.json {
        json(&inventory)?;
    } else {
        print(&inventory);
    }
    Ok(0)
}

fn print(i: &Inventory) {
    let used = if i.in_use == Some(true) { ", in use" } else { "" };
    println!("{}: format {}, made by {}{used}", i.path, i.format, i.created_by);
    println!(
        "  {} records, {} tokens, {} on disk, {} decoded",
        i.records,
        i.tokens,
        bytes(i.live_bytes),
        bytes(i.decoded_bytes)
    );
    println!(
        "  {} in files: {} live, {} superseded, {} erased, {} free; {} put aside",
        bytes(i.file_bytes),
        bytes(i.live_bytes),
        bytes(i.superseded_bytes),
        bytes(i.erased_bytes),
        bytes(i.free_bytes),
        bytes(i.aside_bytes)
    );
    if i.erased_tenants > 0 {
        println!("  {} tenants were erased", i.erased_tenants);
    }
    println!("  the budget is not written down: it is what the store is opened with\n");
    groups(i);
    segments(i);
    sessions(i);
}

fn groups(i: &Inventory) {
    let mut rows = vec![row([
        "model", "layout", "tenant", "codec", "records", "tokens", "stored", "decoded", "ratio",
        "age",
    ])];
    for g in &i.groups {
        rows.push(vec![
            short(&g.model),
            short(&g.layout),
            short(&g.tenant),
            if g.sealed { format!("{} sealed", g.codec) } else { g.codec.clone() },
            g.records.to_string(),
            g.tokens.to_string(),
            bytes(g.stored_bytes),
            bytes(g.decoded_bytes),
            format!("{:.2}", g.ratio()),
            format!("{} to {}", age(g.newest), age(g.oldest)),
        ]);
    }
    table(&rows);
}

fn segments(i: &Inventory) {
    println!();
    let mut rows = vec![row(["segment", "bytes", "records", "live", "live bytes", "age", ""])];
    for s in &i.segments {
        let state = match &s.unreadable {
            Some(reason) => reason.clone(),
            None if s.finished => String::new(),
            None => "no index".to_owned(),
        };
        let age = match s.records {
            0 => String::new(),
            _ => format!("{} to {}", age(s.newest), age(s.oldest)),
        };
        let (records, live) = (s.records.to_string(), s.live_records.to_string());
        let name = s.file.clone();
        rows.push(vec![name, bytes(s.bytes), records, live, bytes(s.live_bytes), age, state]);
    }
    table(&rows);
}

fn sessions(i: &Inventory) {
    if i.sessions.is_empty() {
        return;
    }
    println!();
    let mut rows = vec![row(["session", "model", "tokens", "stored", "records", "age", ""])];
    for s in &i.sessions {
        let state = match &s.unreadable {
            Some(reason) => reason.clone(),
            None if s.missing_records > 0 => format!("{} records missing", s.missing_records),
            None => String::new(),
        };
        rows.push(vec![
            s.name.clone(),
            short(&s.model),
            s.tokens.to_string(),
            bytes(s.stored_bytes + s.file_bytes),
            s.records.to_string(),
            age(s.written as u32),
            state,
        ]);
    }
    table(&rows);
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}
