//! The one contract: every result is a [`Line`], printed as a table row or as JSON.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::{Error, Machine};

/// Ordered names and values: the parameters of a row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Params(Vec<(&'static str, Value)>);

impl Params {
    /// No parameters.
    #[must_use]
    pub fn new() -> Params {
        Params::default()
    }

    /// Adds one, in order.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<Value>) -> Params {
        self.0.push((name, value.into()));
        self
    }

    /// Value of a parameter.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(n, _)| *n == name).map(|(_, v)| v)
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.0 {
            let value = value.as_str().map_or_else(|| short(value), str::to_owned);
            let _ = write!(text, "{}{name}={value}", if text.is_empty() { "" } else { " " });
        }
        text
    }
}

/// Numbers of a table cell: integers as they are, others with about four digits.
fn short(value: &Value) -> String {
    match value.as_f64() {
        Some(x) if value.is_f64() => number(x),
        _ => value.to_string(),
    }
}

impl Serialize for Params {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// One result.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Line {
    /// Name of the benchmark.
    pub bench: &'static str,
    /// What distinguishes this row.
    pub params: Params,
    /// Median, in `unit`.
    pub value: f64,
    /// Unit of `value`, `floor` and `peer_value`.
    pub unit: &'static str,
    /// The machine's limit for this work, measured in the same run.
    pub floor: Option<f64>,
    /// Share of the limit reached, 1 = at the limit: `value / floor` for rates and shares,
    /// `floor / value` for times.
    pub fraction: Option<f64>,
    /// Who did the same work.
    pub peer: Option<String>,
    /// The peer's median, in `unit`.
    pub peer_value: Option<f64>,
    /// `value / peer_value`.
    pub ratio: Option<f64>,
    /// Number of repeats behind `value`.
    pub repeats: usize,
    /// Distance between the quartiles over the median.
    pub spread: f64,
    /// Best repeat, in `unit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best: Option<f64>,
    /// Further measured columns, if the benchmark has any.
    #[serde(skip_serializing_if = "is_empty")]
    pub columns: Params,
}

fn is_empty(params: &Params) -> bool {
    params.0.is_empty()
}

/// Units in which less is better.
fn is_time(unit: &str) -> bool {
    matches!(unit, "s" | "ms" | "us" | "ns")
}

impl Line {
    /// A result without limit or peer.
    #[must_use]
    pub fn new(bench: &'static str, params: Params, value: f64, unit: &'static str) -> Line {
        Line { bench, params, value, unit, repeats: 1, ..Line::default() }
    }

    /// With the machine's limit.
    #[must_use]
    pub fn floor(mut self, floor: f64) -> Line {
        self.floor = Some(floor);
        let share = if is_time(self.unit) { floor / self.value } else { self.value / floor };
        self.fraction = Some(share);
        self
    }

    /// With somebody else's result for the same work.
    #[must_use]
    pub fn peer(mut self, name: impl Into<String>, value: f64) -> Line {
        self.peer = Some(name.into());
        self.peer_value = Some(value);
        self.ratio = Some(self.value / value);
        self
    }

    /// With the number of repeats and their spread.
    #[must_use]
    pub fn repeated(mut self, repeats: usize, spread: f64) -> Line {
        (self.repeats, self.spread) = (repeats, spread);
        self
    }

    /// With the best repeat.
    #[must_use]
    pub fn best(mut self, best: f64) -> Line {
        self.best = Some(best);
        self
    }

    /// With further columns.
    #[must_use]
    pub fn columns(mut self, columns: Params) -> Line {
        self.columns = columns;
        self
    }
}

/// About four significant digits.
fn number(x: f64) -> String {
    match x.abs() {
        a if a >= 1000.0 => format!("{x:.0}"),
        a if a >= 100.0 => format!("{x:.1}"),
        a if a >= 1.0 || a == 0.0 => format!("{x:.2}"),
        a if a >= 0.001 => format!("{x:.4}"),
        _ => format!("{x:.1e}"),
    }
}

fn cell(x: Option<f64>) -> String {
    x.map_or_else(|| "-".to_owned(), number)
}

/// Where lines go: standard output (table or JSON lines) and, if wanted, a file.
pub struct Sink {
    json: bool,
    quiet: bool,
    out: Option<PathBuf>,
    machine: Option<Machine>,
    lines: Vec<Line>,
    headed: Option<(&'static str, usize)>,
}

impl Sink {
    /// A table for people.
    #[must_use]
    pub fn table() -> Sink {
        Sink { json: false, quiet: false, out: None, machine: None, lines: vec![], headed: None }
    }

    /// One JSON object per line.
    #[must_use]
    pub fn json() -> Sink {
        Sink { json: true, ..Sink::table() }
    }

    /// Prints nothing; for tests.
    #[must_use]
    pub fn silent() -> Sink {
        Sink { quiet: true, ..Sink::table() }
    }

    /// Also writes everything to a file when [`Sink::finish`] is called.
    #[must_use]
    pub fn to_file(mut self, out: Option<PathBuf>) -> Sink {
        self.out = out;
        self
    }

    /// Lines so far.
    #[must_use]
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// Prints the header.
    pub fn machine(&mut self, machine: Machine) {
        let m = &machine;
        let text = format!(
            "kvist {} · {} · {} cores · {} · L3 {} MiB · huge pages {} · load {:.2} · {}",
            m.version, m.cpu, m.cores, m.isa, m.l3_mib, m.huge_pages, m.load, m.date
        );
        match (self.quiet, self.json) {
            (true, _) => {}
            (_, true) => eprintln!("{text}"),
            (_, false) => println!("{text}"),
        }
        self.machine = Some(machine);
    }

    /// Says what is going on, beside the results.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            eprintln!("  · {text}");
        }
    }

    /// Prints and keeps a line.
    pub fn push(&mut self, line: Line) {
        if !self.quiet {
            if self.json {
                println!("{}", serde_json::json!(line));
            } else {
                self.print_row(&line);
            }
        }
        self.lines.push(line);
    }

    fn print_row(&mut self, line: &Line) {
        let params = line.params.text();
        let width = match self.headed {
            Some((bench, width)) if bench == line.bench => width,
            _ => self.print_head(line.bench, params.len() + 6),
        };
        let (unit, peer) = (line.unit, line.peer.as_deref().unwrap_or("-"));
        let (value, floor) = (number(line.value), cell(line.floor));
        let (fraction, ratio) = (cell(line.fraction), cell(line.ratio));
        let peer_value = cell(line.peer_value);
        println!(
            "  {params:<width$} {value:>9} {unit:<6} {floor:>8} {fraction:>7} {peer:<18} \
             {peer_value:>9} {ratio:>8} {:>4} {:>6.1}%  {}",
            line.repeats,
            line.spread * 100.0,
            line.columns.text()
        );
    }

    fn print_head(&mut self, bench: &'static str, width: usize) -> usize {
        println!("\n{bench}");
        println!(
            "  {:<width$} {:>9} {:<6} {:>8} {:>7} {:<18} {:>9} {:>8} {:>4} {:>7}",
            "row", "value", "unit", "floor", "frac", "peer", "peer val", "ratio", "n", "spread"
        );
        self.headed = Some((bench, width));
        width
    }

    /// Writes the file, if one was asked for: `{"machine": .., "lines": [..]}`.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn finish(&self) -> Result<(), Error> {
        let Some(path) = &self.out else { return Ok(()) };
        let rows: Vec<String> =
            self.lines.iter().map(|l| format!("  {}", serde_json::json!(l))).collect();
        let machine = serde_json::json!(self.machine);
        let text = format!("{{\"machine\": {machine},\n\"lines\": [\n{}\n]}}\n", rows.join(",\n"));
        std::fs::write(path, text).map_err(Error::io(format!("writing {}", path.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_json_line_has_every_key_of_the_contract() {
        let line = Line::new("attend", Params::new().with("context", 8192), 20.0, "GB/s");
        let json = serde_json::json!(line.floor(25.0).peer("torch", 2.0).repeated(7, 0.01));
        let keys = "bench params value unit floor fraction peer peer_value ratio repeats spread";
        for key in keys.split(' ') {
            assert!(json.get(key).is_some(), "{key}");
        }
        assert_eq!(json["fraction"], 0.8);
        assert_eq!(json["ratio"], 10.0);
        assert_eq!(json["params"]["context"], 8192);
    }

    #[test]
    fn a_time_at_twice_its_floor_reaches_half_of_it() {
        let line = Line::new("select", Params::new(), 100.0, "us").floor(50.0).peer("x", 400.0);
        assert_eq!((line.fraction, line.ratio), (Some(0.5), Some(0.25)));
    }

    #[test]
    fn a_file_holds_machine_and_lines() {
        let path = std::env::temp_dir().join(format!("kvist-report-{}.json", std::process::id()));
        let mut sink = Sink::silent().to_file(Some(path.clone()));
        sink.machine(Machine::detect(Some("2026-01-01")));
        sink.push(Line::new("a", Params::new(), 1.0, "us"));
        sink.push(Line::new("b", Params::new(), 2.0, "us"));
        sink.finish().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let json: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["machine"]["date"], "2026-01-01");
        assert_eq!(json["lines"].as_array().unwrap().len(), 2);
    }
}
