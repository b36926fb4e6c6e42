//! Traces of requests, and the formats that they come in.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::Deserialize;

use crate::Error;

/// Requests that one line may stand for at most: their blocks.
const BLOCKS_MOST: usize = 1 << 20;
/// Tokens of a block where a trace has lengths only.
const BLOCK_TOKENS: usize = 512;

/// One request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    /// Seconds from the trace's first request.
    pub at: f64,
    /// Its full blocks in order, named so that equal names mean equal prefixes.
    pub blocks: Vec<u64>,
    /// Tokens of the prompt.
    pub tokens: u64,
    /// Tokens of the answer.
    pub output: u64,
    /// Whether the server said at its end that the session does not go on.
    pub closed: bool,
    /// Seconds, as [`Request::at`], before which the session's next request is expected.
    pub wanted: Option<f64>,
    /// Whose it is.
    pub tenant: u16,
    /// Blocks of a lower one leave first.
    pub priority: i8,
}

/// A trace in the order of arrival.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    /// Its file's name.
    pub name: String,
    /// How it was written.
    pub format: &'static str,
    /// Tokens of a block.
    pub block_tokens: usize,
    /// Its requests.
    pub requests: Vec<Request>,
}

impl Trace {
    /// Reads a trace; the format is told by its first line.
    ///
    /// # Errors
    /// [`Error::Trace`] with the line that makes no sense, or if there is none at all.
    pub fn open(path: &Path) -> Result<Trace, Error> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(Error::io(format!("opening {name}")))?;
        let mut trace = read(BufReader::new(file)).map_err(|(line, problem)| Error::Trace {
            path: name.clone(),
            line,
            problem,
        })?;
        trace.name = path.file_stem().map_or(name, |stem| stem.to_string_lossy().into_owned());
        Ok(trace)
    }

    /// Blocks used, different ones, and seconds from the first request to the last.
    #[must_use]
    pub fn size(&self) -> (usize, usize, f64) {
        let all = self.requests.iter().flat_map(|r| &r.blocks);
        let different: std::collections::HashSet<&u64> = all.clone().collect();
        let end = self.requests.last().map_or(0.0, |r| r.at);
        (all.count(), different.len(), end)
    }
}

type Problem = (usize, String);

pub(super) fn read(lines: impl BufRead) -> Result<Trace, Problem> {
    let mut reader: Option<Reader> = None;
    for (i, line) in lines.lines().enumerate() {
        let at = |problem: String| (i + 1, problem);
        let line = line.map_err(|e| at(e.to_string()))?;
        // Files written on other systems begin with a mark.
        let line = line.trim_start_matches('\u{feff}').trim();
        if line.is_empty() {
            continue;
        }
        match &mut reader {
            None => reader = Some(Reader::new(line).map_err(at)?),
            Some(reader) => reader.line(line).map_err(at)?,
        }
    }
    let Some(reader) = reader else { return Err((1, "expected a request, found none".to_owned())) };
    reader.finish()
}

/// The formats.
enum Format {
    Kvist,
    Mooncake,
    Bailian,
    Azure,
}

struct Reader {
    format: Format,
    trace: Trace,
    /// Numbers of blocks of traces without any.
    next: u64,
    /// Columns of a table, by name.
    columns: HashMap<String, usize>,
}

#[derive(Deserialize)]
struct Header {
    block_tokens: usize,
}

#[derive(Deserialize)]
struct Kvist {
    at: f64,
    blocks: Vec<u64>,
    tokens: Option<u64>,
    #[serde(default)]
    output: u64,
    #[serde(default)]
    closed: bool,
    wanted: Option<f64>,
    #[serde(default)]
    tenant: u16,
    #[serde(default)]
    priority: i8,
}

#[derive(Deserialize)]
struct Mooncake {
    timestamp: f64,
    input_length: u64,
    output_length: u64,
    hash_ids: Vec<u64>,
}

impl Reader {
    fn new(first: &str) -> Result<Reader, String> {
        let value: serde_json::Value = match serde_json::from_str(first) {
            Ok(value) => value,
            Err(_) => return Reader::table(first),
        };
        let reader = |format, name, block_tokens| Reader {
            format,
            trace: Trace { format: name, block_tokens, ..Trace::default() },
            next: 0,
            columns: HashMap::new(),
        };
        if let Some(version) = value.get("kvist_trace") {
            if version.as_u64() != Some(1) {
                return Err(format!("expected \"kvist_trace\": 1, found {version}"));
            }
            let header: Header = serde_json::from_value(value).map_err(|e| e.to_string())?;
            return Ok(reader(Format::Kvist, "kvist", header.block_tokens.max(1)));
        }
        let mut reader = match (value.get("hash_ids"), value.get("chat_id")) {
            (Some(_), Some(_)) => reader(Format::Bailian, "bailian", 16),
            (Some(_), None) => reader(Format::Mooncake, "mooncake", 512),
            (None, _) => {
                let expected = "\"kvist_trace\", \"hash_ids\" or a table with ContextTokens";
                return Err(format!("expected a line with {expected}, found {}", cut(first)));
            }
        };
        reader.line(first)?;
        Ok(reader)
    }

    fn table(first: &str) -> Result<Reader, String> {
        let columns: HashMap<String, usize> =
            first.split(',').enumerate().map(|(i, name)| (name.trim().to_owned(), i)).collect();
        for wanted in ["TIMESTAMP", "ContextTokens", "GeneratedTokens"] {
            if !columns.contains_key(wanted) {
                let found = cut(first);
                return Err(format!("expected JSON, or a table with {wanted}, found {found}"));
            }
        }
        let trace = Trace { format: "azure", block_tokens: BLOCK_TOKENS, ..Trace::default() };
        Ok(Reader { format: Format::Azure, trace, next: 0, columns })
    }

    fn line(&mut self, line: &str) -> Result<(), String> {
        let request = match self.format {
            Format::Kvist => {
                let k: Kvist = serde_json::from_str(line).map_err(|e| e.to_string())?;
                let tokens = (k.blocks.len() * self.trace.block_tokens) as u64;
                Request {
                    at: k.at,
                    blocks: k.blocks,
                    tokens: k.tokens.unwrap_or(tokens),
                    output: k.output,
                    closed: k.closed,
                    wanted: k.wanted,
                    tenant: k.tenant,
                    priority: k.priority,
                }
            }
            Format::Mooncake | Format::Bailian => {
                let m: Mooncake = serde_json::from_str(line).map_err(|e| e.to_string())?;
                // Mooncake counts milliseconds, Bailian seconds.
                let seconds = if matches!(self.format, Format::Mooncake) { 1e-3 } else { 1.0 };
                let (tokens, output) = (m.input_length, m.output_length);
                let at = m.timestamp * seconds;
                Request { at, blocks: m.hash_ids, tokens, output, ..Request::default() }
            }
            Format::Azure => self.row(line)?,
        };
        if !request.at.is_finite() {
            return Err(format!("expected a time, found {}", request.at));
        }
        if request.blocks.len() > BLOCKS_MOST {
            let found = request.blocks.len();
            return Err(format!("expected at most {BLOCKS_MOST} blocks, found {found}"));
        }
        self.trace.requests.push(request);
        Ok(())
    }

    /// Azure's traces have lengths only: no two prompts have anything in common.
    fn row(&mut self, line: &str) -> Result<Request, String> {
        let cells: Vec<&str> = line.split(',').map(str::trim).collect();
        let cell = |name: &str| {
            let cell = self.columns.get(name).and_then(|&i| cells.get(i));
            cell.copied().ok_or_else(|| format!("expected a column {name}, found {}", cut(line)))
        };
        let number = |name: &str| -> Result<u64, String> {
            let text = cell(name)?;
            text.parse().map_err(|_| format!("{name}: expected a number, found {}", cut(text)))
        };
        let (tokens, output) = (number("ContextTokens")?, number("GeneratedTokens")?);
        let at = seconds(cell("TIMESTAMP")?)?;
        let n = (tokens / BLOCK_TOKENS as u64).min(BLOCKS_MOST as u64);
        let blocks = (self.next..self.next + n).collect();
        self.next += n;
        Ok(Request { at, blocks, tokens, output, ..Request::default() })
    }

    fn finish(self) -> Result<Trace, Problem> {
        let mut trace = self.trace;
        trace.requests.sort_by(|a, b| a.at.total_cmp(&b.at));
        let Some(first) = trace.requests.first().map(|r| r.at) else {
            return Err((1, "expected a request, found none".to_owned()));
        };
        for request in &mut trace.requests {
            request.at -= first;
            request.wanted = request.wanted.map(|wanted| wanted - first);
        }
        Ok(trace)
    }
}

/// Seconds of `2023-11-16 18:15:46.6805900`, counted from the beginning of that month's year zero: only
/// differences within a month mean anything.
fn seconds(text: &str) -> Result<f64, String> {
    let wrong = || format!("TIMESTAMP: expected \"2023-11-16 18:15:46.68\", found {}", cut(text));
    let (date, time) = text.split_once([' ', 'T']).ok_or_else(wrong)?;
    let day: f64 = date.rsplit('-').next().and_then(|d| d.parse().ok()).ok_or_else(wrong)?;
    let parts: Vec<&str> =
        time.trim_end_matches('Z').split('+').next().unwrap_or("").split(':').collect();
    let [hours, minutes, seconds] = parts[..] else { return Err(wrong()) };
    let part = |text: &str| text.parse::<f64>().map_err(|_| wrong());
    Ok(day * 86_400.0 + part(hours)? * 3_600.0 + part(minutes)? * 60.0 + part(seconds)?)
}

/// The beginning of a line, for messages.
fn cut(line: &str) -> String {
    let start: String = line.chars().take(60).collect();
    if start.len() < line.len() { format!("{start:?}...") } else { format!("{start:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Trace, Problem> {
        read(text.as_bytes())
    }

    #[test]
    fn formats_are_told_apart() {
        let mooncake = parse("{\"timestamp\": 1500, \"input_length\": 1100, \"output_length\": 7, \"hash_ids\": [3, 9]}\n\n{\"timestamp\": 500, \"input_length\": 5, \"output_length\": 1, \"hash_ids\": []}\n").unwrap();
        assert_eq!((mooncake.format, mooncake.block_tokens), ("mooncake", 512));
        let second = &mooncake.requests[1];
        assert_eq!((second.at, &second.blocks[..], second.tokens), (1.0, &[3, 9][..], 1100));
        let bailian = parse("{\"chat_id\": 1, \"parent_chat_id\": -1, \"timestamp\": 2.5, \"input_length\": 32, \"output_length\": 7, \"type\": \"text\", \"turn\": 1, \"hash_ids\": [3, 9]}").unwrap();
        assert_eq!((bailian.format, bailian.block_tokens), ("bailian", 16));
        let azure = parse("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.5,1100,44\n2023-11-16 18:16:46,512,2\n").unwrap();
        let blocks: Vec<_> = azure.requests.iter().map(|r| r.blocks.clone()).collect();
        assert_eq!((azure.requests[1].at, blocks), (59.5, vec![vec![0, 1], vec![2]]));
        let own = parse("{\"kvist_trace\": 1, \"block_tokens\": 64}\n{\"at\": 3.0, \"blocks\": [1], \"closed\": true, \"wanted\": 9}\n").unwrap();
        let first = &own.requests[0];
        assert_eq!((first.at, first.tokens, first.wanted), (0.0, 64, Some(6.0)));
        assert_eq!(own.size(), (1, 1, 0.0));
    }

    #[test]
    fn what_makes_no_sense_is_said_with_its_line() {
        for (text, line, expected) in [
            ("", 1, "expected a request, found none"),
            ("{\"kvist_trace\": 2}", 1, "expected \"kvist_trace\": 1, found 2"),
            ("{\"kvist_trace\": 1, \"block_tokens\": 4}\n{\"at\": 1}", 2, "missing field `blocks`"),
            ("{\"a\": 1}", 1, "expected a line with"),
            ("time,tokens\n", 1, "a table with TIMESTAMP"),
            ("TIMESTAMP,ContextTokens,GeneratedTokens\nx,1,2", 2, "TIMESTAMP: expected"),
            (
                "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 1:1:1,-1,2",
                2,
                "expected a number, found \"-1\"",
            ),
            ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023", 2, "expected a column"),
        ] {
            let (at, problem) = parse(text).unwrap_err();
            assert_eq!(at, line, "{problem}");
            assert!(problem.contains(expected), "{problem}");
        }
    }
}
