//! Numbers, tables and JSON for people and programs.

use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) use kvist_bench::text::bytes;

use crate::{Failure, UNUSABLE};

/// Time since a moment in seconds since 1970.
pub(crate) fn age(written: u32) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
    match now.saturating_sub(u64::from(written)) {
        s @ 0..=119 => format!("{s} s"),
        s @ 120..=7199 => format!("{} min", s / 60),
        s @ 7200..=172_799 => format!("{} h", s / 3600),
        s => format!("{} d", s / 86_400),
    }
}

/// The start of a fingerprint, enough to tell a few apart.
pub(crate) fn short(hex: &str) -> String {
    hex.chars().take(12).collect()
}

/// Prints columns of equal width.
pub(crate) fn table(rows: &[Vec<String>]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(String::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}"));
        println!("  {}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

/// Prints a value as JSON.
pub(crate) fn json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|e| (UNUSABLE, e.into()))?;
    println!("{text}");
    Ok(())
}
