//! Which rows of a benchmark to run, and how.

use std::path::PathBuf;

use kvist_kernels::DType;

use crate::error::nearest;
use crate::store::Op;
use crate::{Error, Repeats, Shape};

/// In which order the pages of a list lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frames {
    /// Page after page.
    Contiguous,
    /// A random permutation of the whole arena.
    Shuffled,
}

impl Frames {
    /// Name as the flag spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Frames::Contiguous => "contiguous",
            Frames::Shuffled => "shuffled",
        }
    }
}

/// Rows of `store`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreOp {
    /// Bare reads of the disk.
    RawRead,
    /// Storing or fetching blocks.
    Case(Op),
    /// Opening a directory.
    Open,
}

impl StoreOp {
    const NAMES: &str =
        "raw-read, host-put, host-get, disk-put, disk-get or open, separated by commas";

    fn of(name: &str) -> Option<StoreOp> {
        match name {
            "raw-read" => Some(StoreOp::RawRead),
            "open" => Some(StoreOp::Open),
            _ => Op::ALL.into_iter().find(|op| op.name() == name).map(StoreOp::Case),
        }
    }
}

/// A given flag restricts the rows to its values; a flag not given runs the default table.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Query heads.
    pub q_heads: Option<usize>,
    /// KV heads.
    pub kv_heads: Option<usize>,
    /// Dimension of K and V rows.
    pub head_dim: Option<usize>,
    /// Context lengths in tokens.
    pub context: Option<Vec<usize>>,
    /// Element types of K and V.
    pub dtype: Option<Vec<DType>>,
    /// Thread counts.
    pub threads: Option<Vec<usize>>,
    /// Orders of pages in memory.
    pub frames: Option<Vec<Frames>>,
    /// Tokens read per KV head and query, keeps included.
    pub budget: Option<Vec<usize>>,
    /// Exact number of repeats of every measurement.
    pub repeats: Option<usize>,
    /// Seconds to repeat each measurement for (default 1).
    pub seconds: Option<f64>,
    /// Date for the header instead of the system's clock.
    pub date: Option<String>,
    /// A dump of real q, k and v.
    pub dump: Option<PathBuf>,
    /// Sizes of blocks in bytes.
    pub size: Option<Vec<usize>>,
    /// Operations of a store.
    pub op: Option<Vec<StoreOp>>,
    /// Directory on the disk to measure.
    pub dir: Option<PathBuf>,
    /// Parts of the names of selectors.
    pub select: Option<Vec<String>>,
    /// Do not run peers.
    pub no_peers: bool,
}

/// Flags that take a value, with what they take.
pub(crate) const FLAGS: [(&str, &str); 17] = [
    ("q-heads", "a number of query heads"),
    ("kv-heads", "a number of KV heads that divides the query heads"),
    ("head-dim", "a dimension from 1 to 576"),
    ("context", "token counts such as 8k,32768"),
    ("dtype", "f32, f16 or bf16, separated by commas"),
    ("threads", "thread counts such as 1,2"),
    ("frames", "contiguous, shuffled or both"),
    ("budget", "token counts such as 512,2k"),
    ("repeats", "a number of at least 1"),
    ("seconds", "a positive number"),
    ("date", "a date"),
    ("dump", "a file made by `python -m kvist dump`"),
    ("size", "block sizes in bytes such as 64k,2048k"),
    ("op", StoreOp::NAMES),
    ("dir", "a directory"),
    ("select", "parts of the names of selectors such as quest,tiles"),
    ("peers", "all or none"),
];

impl Options {
    /// Sets one flag (without its dashes) from text.
    ///
    /// # Errors
    /// [`Error::UnknownFlag`] or [`Error::BadValue`], both naming what would have been right.
    pub fn set(&mut self, flag: &str, value: &str) -> Result<(), Error> {
        let Some(&(_, expected)) = FLAGS.iter().find(|(name, _)| *name == flag) else {
            return Err(unknown_flag(flag));
        };
        self.assign(flag, value).ok_or_else(|| Error::BadValue {
            flag: flag.to_owned(),
            expected: expected.to_owned(),
            found: value.to_owned(),
        })
    }

    fn assign(&mut self, flag: &str, value: &str) -> Option<()> {
        match flag {
            "q-heads" => self.q_heads = Some(count(value)?),
            "kv-heads" => self.kv_heads = Some(count(value)?),
            "head-dim" => self.head_dim = Some(count(value).filter(|&d| d <= 576)?),
            "context" => self.context = Some(list(value, count)?),
            "dtype" => self.dtype = Some(list(value, dtype)?),
            "threads" => self.threads = Some(list(value, |t| count(t).filter(|&n| n <= 1024))?),
            "frames" => self.frames = Some(frames(value)?),
            "budget" => self.budget = Some(list(value, count)?),
            "repeats" => self.repeats = Some(count(value)?),
            "seconds" => self.seconds = Some(value.parse().ok().filter(|s| *s > 0.0 && *s < 1e6)?),
            "date" => self.date = Some(value.to_owned()).filter(|d| !d.is_empty()),
            "dump" => self.dump = Some(PathBuf::from(value)).filter(|d| !d.as_os_str().is_empty()),
            "size" => self.size = Some(list(value, count)?),
            "op" => self.op = Some(list(value, StoreOp::of)?),
            "dir" => self.dir = Some(PathBuf::from(value)).filter(|d| !d.as_os_str().is_empty()),
            "select" => {
                let part = |text: &str| Some(text.to_owned()).filter(|t| !t.is_empty());
                self.select = Some(list(value, part)?);
            }
            "peers" if value == "none" => self.no_peers = true,
            "peers" if value == "all" => self.no_peers = false,
            _ => return None,
        }
        Some(())
    }

    /// Whether the row of a selector is to be run.
    #[must_use]
    pub fn selects(&self, name: &str) -> bool {
        self.select.as_ref().is_none_or(|parts| parts.iter().any(|part| name.contains(&part[..])))
    }

    /// How often measurements repeat.
    #[must_use]
    pub fn repeats(&self) -> Repeats {
        let default = Repeats::default();
        let seconds = self.seconds.unwrap_or(default.seconds);
        let least = if self.seconds.is_some() { 3 } else { default.least };
        Repeats { exact: self.repeats, seconds, least }
    }

    /// The shapes of `table` that match the flags; if none does, its first shape with the flags
    /// put in.
    ///
    /// # Errors
    /// [`Error::BadValue`] if the KV heads do not divide the query heads.
    pub fn shapes(&self, table: &[Shape]) -> Result<Vec<Shape>, Error> {
        let fits = |wanted: Option<usize>, has: usize| wanted.is_none_or(|w| w == has);
        let matching = |s: &&Shape| {
            fits(self.q_heads, s.q_heads)
                && fits(self.kv_heads, s.kv_heads)
                && fits(self.head_dim, s.head_dim)
        };
        let found: Vec<Shape> = table.iter().filter(matching).copied().collect();
        if !found.is_empty() {
            return Ok(found);
        }
        let shape = Shape {
            q_heads: self.q_heads.unwrap_or(table[0].q_heads),
            kv_heads: self.kv_heads.unwrap_or(table[0].kv_heads),
            head_dim: self.head_dim.unwrap_or(table[0].head_dim),
        };
        if !shape.q_heads.is_multiple_of(shape.kv_heads) {
            return Err(Error::BadValue {
                flag: "kv-heads".to_owned(),
                expected: format!("a divisor of {} query heads", shape.q_heads),
                found: shape.kv_heads.to_string(),
            });
        }
        Ok(vec![shape])
    }
}

fn unknown_flag(flag: &str) -> Error {
    let names: Vec<&str> = FLAGS.iter().map(|(name, _)| *name).collect();
    let known = names.iter().map(|n| format!("--{n}")).collect::<Vec<_>>().join(" ");
    Error::UnknownFlag { name: flag.to_owned(), near: nearest(flag, names), known }
}

/// `8192` or `8k`.
fn count(text: &str) -> Option<usize> {
    let (digits, unit) = match text.strip_suffix(['k', 'K']) {
        Some(digits) => (digits, 1024),
        None => (text, 1),
    };
    let n = digits.parse::<usize>().ok()?.checked_mul(unit)?;
    (1..=1 << 28).contains(&n).then_some(n)
}

fn dtype(text: &str) -> Option<DType> {
    DType::ALL.into_iter().find(|d| d.name() == text)
}

fn frames(text: &str) -> Option<Vec<Frames>> {
    match text {
        "contiguous" => Some(vec![Frames::Contiguous]),
        "shuffled" => Some(vec![Frames::Shuffled]),
        "both" => Some(vec![Frames::Contiguous, Frames::Shuffled]),
        _ => None,
    }
}

fn list<T>(text: &str, parse: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
    text.split(',').map(|part| parse(part.trim())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: [Shape; 2] = [
        Shape { q_heads: 32, kv_heads: 8, head_dim: 128 },
        Shape { q_heads: 9, kv_heads: 3, head_dim: 64 },
    ];

    fn with(flags: &[(&str, &str)]) -> Result<Options, Error> {
        let mut options = Options::default();
        flags.iter().try_for_each(|(f, v)| options.set(f, v))?;
        Ok(options)
    }

    #[test]
    fn lists_take_thousands_and_commas() {
        let options = with(&[("context", "8k,100"), ("dtype", "f32,bf16")]).unwrap();
        assert_eq!(options.context, Some(vec![8192, 100]));
        assert_eq!(options.dtype, Some(vec![DType::F32, DType::Bf16]));
    }

    #[test]
    fn a_flag_restricts_the_table_or_replaces_the_first_row() {
        let shapes = |flags: &[(&str, &str)]| with(flags).unwrap().shapes(&TABLE).unwrap();
        assert_eq!(shapes(&[]), TABLE);
        assert_eq!(shapes(&[("head-dim", "64")]), [TABLE[1]]);
        assert_eq!(shapes(&[("head-dim", "80")]), [Shape { head_dim: 80, ..TABLE[0] }]);
    }

    #[test]
    fn errors_name_what_was_expected() {
        let message = |flag, value| with(&[(flag, value)]).unwrap_err().to_string();
        assert!(message("context", "many").contains("expected token counts"));
        assert!(message("contxt", "8k").contains("did you mean \"context\""));
        let odd = with(&[("q-heads", "7"), ("kv-heads", "3")]).unwrap();
        assert!(odd.shapes(&TABLE).unwrap_err().to_string().contains("divisor of 7"));
    }
}
