//! Traces made up: sessions with turns, that begin with one of some system prompts.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, Write};

use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, Exp, LogNormal, Zipf};
use rand_pcg::Pcg64;

use super::trace::{Request, Trace};
use crate::Error;

/// What sessions are like. The defaults come near Mooncake's conversation trace: 24 blocks of 512 tokens in a request,
/// three quarters of the blocks used once, more than a third of the uses again, two minutes in the middle between them.
#[derive(Clone, Debug, PartialEq)]
pub struct Generator {
    /// Requests.
    pub requests: usize,
    /// Requests a second, on average.
    pub rate: f64,
    /// System prompts; how often each is used goes as Zipf's law.
    pub systems: usize,
    /// Blocks of a system prompt, on average; all begin with the same block.
    pub system_blocks: f64,
    /// Blocks of what a session begins with, in the middle; their logarithm is normal.
    pub first_blocks: f64,
    /// Blocks that a later turn adds, answer before it included, in the middle.
    pub turn_blocks: f64,
    /// Share of turns after which another one comes.
    pub goes_on: f64,
    /// Seconds between the turns of a session, in the middle.
    pub gap: f64,
    /// Tokens of a block.
    pub block_tokens: usize,
    /// Another number gives another trace.
    pub seed: u64,
}

impl Default for Generator {
    fn default() -> Generator {
        Generator {
            requests: 10_000,
            rate: 3.3,
            systems: 64,
            system_blocks: 2.0,
            first_blocks: 11.0,
            turn_blocks: 4.0,
            goes_on: 0.3,
            gap: 135.0,
            block_tokens: 512,
            seed: 1,
        }
    }
}

/// Spread of the logarithms of lengths, and of the gaps: p90 is four times the middle.
const SPREAD: f64 = 1.1;

impl Generator {
    /// The trace, in the order of arrival, told which requests are the last of their session.
    ///
    /// # Errors
    /// [`Error::BadValue`] for numbers that make no sense.
    pub fn trace(&self) -> Result<Trace, Error> {
        self.check()?;
        let mut rng = Pcg64::seed_from_u64(self.seed);
        let normal = |median: f64| LogNormal::new(median.ln(), SPREAD).map_err(|_| bad("a length"));
        let (first, turn, gap) =
            (normal(self.first_blocks)?, normal(self.turn_blocks)?, normal(self.gap)?);
        let turns = 1.0 / (1.0 - self.goes_on);
        let arrival = Exp::new(self.rate / turns).map_err(|_| bad("rate"))?;
        let system = Zipf::new(self.systems as f64, 1.0).map_err(|_| bad("systems"))?;
        let length = Exp::new(1.0 / self.system_blocks).map_err(|_| bad("system_blocks"))?;
        let blocks = |x: f64| (x.round() as usize).clamp(1, 1 << 16);
        // The same block is the first of all.
        let mut next = 1;
        let mut new = |n: usize| {
            let names: Vec<u64> = (next..next + n as u64).collect();
            next += n as u64;
            names
        };
        let systems: Vec<Vec<u64>> = (0..self.systems)
            .map(|_| [vec![0], new(length.sample(&mut rng).round() as usize)].concat())
            .collect();
        let (mut requests, mut now) = (Vec::<Request>::new(), 0.0);
        // Those that came, and those of sessions that have begun and are still to come.
        let (mut came, mut to_come) = (0, BinaryHeap::new());
        while came < self.requests {
            now += arrival.sample(&mut rng);
            while to_come.peek().is_some_and(|Reverse(at)| *at <= order(now)) {
                to_come.pop();
                came += 1;
            }
            let mut at = now;
            let mut names = systems[system.sample(&mut rng) as usize - 1].clone();
            names.extend(new(blocks(first.sample(&mut rng))));
            loop {
                let closed = rng.random::<f64>() >= self.goes_on;
                let tokens = (names.len() * self.block_tokens) as u64;
                to_come.push(Reverse(order(at)));
                requests.push(Request {
                    at,
                    blocks: names.clone(),
                    tokens,
                    closed,
                    ..Request::default()
                });
                if closed {
                    break;
                }
                at += gap.sample(&mut rng);
                names.extend(new(blocks(turn.sample(&mut rng))));
            }
        }
        requests.sort_by(|a, b| a.at.total_cmp(&b.at));
        requests.truncate(self.requests);
        let (name, format) = ("generated".to_owned(), "kvist");
        Ok(Trace { name, format, block_tokens: self.block_tokens, requests })
    }

    fn check(&self) -> Result<(), Error> {
        let lengths = [
            ("rate", self.rate),
            ("system-blocks", self.system_blocks),
            ("first-blocks", self.first_blocks),
            ("turn-blocks", self.turn_blocks),
            ("gap", self.gap),
        ];
        let wrong = |flag: &str, expected: &str, found: String| {
            Err(Error::BadValue { flag: flag.to_owned(), expected: expected.to_owned(), found })
        };
        if let Some((flag, found)) = lengths.iter().find(|(_, x)| !(*x > 0.0 && *x <= 1e9)) {
            return wrong(flag, "above 0, at most 1e9", found.to_string());
        }
        if !(0.0..0.999).contains(&self.goes_on) {
            return wrong("goes-on", "0 to 0.999", self.goes_on.to_string());
        }
        let counts = [
            ("requests", self.requests, 1 << 24),
            ("systems", self.systems, 1 << 20),
            ("block-tokens", self.block_tokens, 1 << 20),
        ];
        match counts.iter().find(|(_, n, most)| *n == 0 || n > most) {
            Some((flag, n, most)) => wrong(flag, &format!("1 to {most}"), n.to_string()),
            None => Ok(()),
        }
    }
}

/// A time that can be compared, in microseconds.
fn order(at: f64) -> u64 {
    (at * 1e6) as u64
}

fn bad(flag: &str) -> Error {
    let expected = "a number that makes sense".to_owned();
    Error::BadValue { flag: flag.to_owned(), expected, found: "another".to_owned() }
}

impl Trace {
    /// Writes it in kvist's own format.
    ///
    /// # Errors
    /// What writing says.
    pub fn write(&self, mut to: impl Write) -> io::Result<()> {
        writeln!(to, "{{\"kvist_trace\": 1, \"block_tokens\": {}}}", self.block_tokens)?;
        for Request { at, blocks, closed, .. } in &self.requests {
            let line = serde_json::json!({
                "at": (at * 1e3).round() / 1e3,
                "blocks": blocks,
                "closed": closed,
            });
            writeln!(to, "{line}")?;
        }
        to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_the_same_each_time_and_comes_back_from_its_file() {
        let generator = Generator { requests: 500, ..Generator::default() };
        let trace = generator.trace().unwrap();
        assert_eq!(trace, generator.trace().unwrap());
        assert_ne!(trace, Generator { seed: 2, ..generator.clone() }.trace().unwrap());
        assert_eq!(trace.requests.len(), 500);
        assert!(trace.requests.is_sorted_by(|a, b| a.at <= b.at));
        let mut file = Vec::new();
        trace.write(&mut file).unwrap();
        let read = super::super::trace::read(&file[..]).unwrap();
        assert_eq!(read.block_tokens, 512);
        for (a, b) in trace.requests.iter().zip(&read.requests) {
            assert_eq!((&a.blocks, a.closed, a.tokens), (&b.blocks, b.closed, b.tokens));
            assert!((a.at - trace.requests[0].at - b.at).abs() < 2e-3);
        }
    }

    #[test]
    fn it_has_the_statistics_that_it_stands_for() {
        let trace = Generator::default().trace().unwrap();
        let (used, different, seconds) = trace.size();
        let mut times = std::collections::HashMap::<u64, usize>::new();
        trace
            .requests
            .iter()
            .flat_map(|r| &r.blocks)
            .for_each(|b| *times.entry(*b).or_default() += 1);
        let once = times.values().filter(|n| **n == 1).count() as f64 / different as f64;
        let each = used as f64 / trace.requests.len() as f64;
        let again = 1.0 - different as f64 / used as f64;
        // That trace: 24.0 blocks, 0.758 used once, 0.366 of the uses again, an hour for 12,031.
        assert!((22.0..27.0).contains(&each), "{each} blocks a request");
        assert!((0.70..0.80).contains(&once), "{once} used once");
        assert!((0.32..0.40).contains(&again), "{again} used again");
        assert!((2700.0..3300.0).contains(&seconds), "{seconds} s");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let usual = Generator::default;
        let wrong = [
            (Generator { requests: 0, ..usual() }, "requests"),
            (Generator { rate: f64::NAN, ..usual() }, "rate"),
            (Generator { goes_on: 1.0, ..usual() }, "goes-on"),
            (Generator { gap: -1.0, ..usual() }, "gap"),
        ];
        for (generator, flag) in wrong {
            let error = generator.trace().unwrap_err().to_string();
            assert!(error.contains(flag), "{error}");
        }
    }
}
