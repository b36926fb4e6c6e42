//! Peers in programs of their own: one JSON request per line in, one JSON answer per line out.
//!
//! The first answer comes unasked and names the peers, `{"peers": [..], "notes": [..]}`. A request
//! is a [`Request`]; its answer is `{"times": {name: {median, best, spread, repeats}}, "notes"}` in
//! seconds per repeat. A peer that cannot do what is asked is left out of the answer.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};

use serde::{Deserialize, Serialize};

use crate::{Error, Sample};

use super::case::{Case, GROUP, Plan};
use super::measure::{Data, measure};
use super::subject::Subject;

/// What a peer is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// The row.
    pub case: Case,
    /// The run.
    pub plan: Plan,
    /// Blocks of one repeat.
    blocks: usize,
    /// Bytes between two syncs of a durable write.
    group: usize,
}

impl Request {
    /// The request for a row: peers move as many blocks as we do, and sync as often.
    #[must_use]
    pub fn new(case: &Case, plan: &Plan) -> Request {
        let blocks = case.bytes(plan) / case.size;
        Request { case: *case, plan: plan.clone(), blocks, group: GROUP }
    }
}

/// What it answers.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Answer {
    /// Names of the peers, in the first answer.
    #[serde(default)]
    pub(super) peers: Vec<String>,
    /// Seconds per repeat, by name.
    #[serde(default)]
    pub(super) times: BTreeMap<String, Times>,
    /// What went wrong.
    #[serde(default)]
    pub(super) notes: Vec<String>,
}

/// A [`Sample`] on the wire.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Times {
    median: f64,
    best: f64,
    spread: f64,
    repeats: usize,
}

impl From<Times> for Sample {
    fn from(t: Times) -> Sample {
        Sample { median: t.median, best: t.best, spread: t.spread, repeats: t.repeats }
    }
}

impl From<Sample> for Times {
    fn from(s: Sample) -> Times {
        Times { median: s.median, best: s.best, spread: s.spread, repeats: s.repeats }
    }
}

/// Answers requests about one store until the input ends: the whole of a peer's main function.
///
/// # Errors
/// If the pipes break or a request cannot be read. What the store says goes into the answer.
pub fn serve(subject: &mut dyn Subject) -> Result<(), Error> {
    let name = subject.name();
    say(&Answer { peers: vec![name.clone()], ..Answer::default() })?;
    let mut data: Option<Data> = None;
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(Error::io("reading a request"))?;
        let request: Request = serde_json::from_str(&line).map_err(|e| Error::subject(&name, e))?;
        if request != Request::new(&request.case, &request.plan) {
            // A program of another day would time something else.
            return Err(Error::subject(&name, "built for other rows (make bench-peers)"));
        }
        let Request { case, plan, .. } = request;
        let mut answer = Answer::default();
        if subject.can(&case) {
            let own = match data.take().filter(|d| d.from.bytes().len() == plan.bytes) {
                Some(data) => data,
                None => Data::new(&plan)?,
            };
            let data = data.insert(own);
            match measure(subject, &case, &plan, data, &mut |_| Ok(0.0)) {
                Ok((_, sample)) => drop(answer.times.insert(name.clone(), sample.into())),
                Err(e) => answer.notes.push(e.to_string()),
            }
            // What is left behind takes room that the next peer may need.
            let cleared = subject.clear(case.size);
            answer.notes.extend(cleared.err().map(|e| e.to_string()));
        }
        say(&answer)?;
    }
    Ok(())
}

fn say(answer: &Answer) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    let text = serde_json::json!(answer);
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(Error::io("answering"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_how_much_is_moved() {
        let plan = Plan::new(&crate::Options::default(), std::env::temp_dir());
        for case in Case::of_size(64 << 10) {
            let text = serde_json::to_string(&Request::new(&case, &plan)).unwrap();
            let request: Request = serde_json::from_str(&text).unwrap();
            assert_eq!(request.blocks * case.size, case.bytes(&plan));
            assert_eq!(request, Request::new(&case, &plan));
        }
    }

    #[test]
    fn an_answer_needs_nothing_but_what_it_has() {
        let answer: Answer = serde_json::from_str(r#"{"notes": ["no lmcache"]}"#).unwrap();
        assert!(answer.times.is_empty());
        let text = r#"{"times": {"a": {"median": 1, "best": 1, "spread": 0, "repeats": 3}}}"#;
        let answer: Answer = serde_json::from_str(text).unwrap();
        assert_eq!(Sample::from(answer.times["a"]).repeats, 3);
    }
}
