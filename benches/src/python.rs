//! Peers that need Python, run as a subprocess that answers JSON lines.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{Error, Options, Sample, Shape, Sink};
use kvist_kernels::DType;

const TORCH_PEERS: &str = include_str!("../python/torch_peers.py");

/// The interpreter to use: `KVIST_PYTHON`, else the project's virtual environment, else `python3`.
#[must_use]
pub(crate) fn interpreter() -> PathBuf {
    if let Some(given) = std::env::var_os("KVIST_PYTHON") {
        return PathBuf::from(given);
    }
    let active = std::env::var_os("VIRTUAL_ENV").map(PathBuf::from);
    let local = [PathBuf::from(".venv"), PathBuf::from("../.venv")];
    let found = active.into_iter().chain(local).map(|v| v.join("bin/python")).find(|p| p.exists());
    found.unwrap_or_else(|| PathBuf::from("python3"))
}

/// Python with the peers: `KVIST_PEERS_PYTHON`, else `.venv-peers`, else the benchmarks' own.
#[must_use]
pub(crate) fn peers_interpreter() -> PathBuf {
    let given = std::env::var_os("KVIST_PEERS_PYTHON").map(PathBuf::from);
    let local = [".venv-peers", "../.venv-peers"].map(|v| PathBuf::from(v).join("bin/python"));
    let found = local.into_iter().find(|p| p.exists());
    given.or(found).unwrap_or_else(interpreter)
}

/// Time of one form of the same attention in PyTorch.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PeerTime {
    /// Name of the form, e.g. `torch sdpa-gqa`.
    pub(crate) name: String,
    /// Seconds per step.
    pub(crate) sample: Sample,
}

/// A running PyTorch, or none.
pub(crate) struct Torch {
    server: Option<Server>,
}

/// A helper that answers each line of JSON with one line of JSON.
pub(crate) struct Server {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

#[derive(Deserialize)]
struct Answer {
    median: f64,
    best: f64,
    spread: f64,
    repeats: usize,
}

impl Torch {
    /// Starts the server; when torch is not importable or not wanted, says so and answers
    /// nothing later.
    pub(crate) fn start(options: &Options, sink: &Sink) -> Torch {
        if options.no_peers {
            return Torch { server: None };
        }
        let mut python = Command::new(interpreter());
        match Server::start(python.args(["-u", "-c", TORCH_PEERS])) {
            Ok((server, hello)) => {
                sink.note(&format!("peers: torch {}", hello["torch"].as_str().unwrap_or("?")));
                Torch { server: Some(server) }
            }
            Err(problem) => {
                sink.note(&format!("no torch peers: {problem}"));
                Torch { server: None }
            }
        }
    }

    /// Times all forms of one dense decode step, fastest first; empty without torch.
    pub(crate) fn dense(
        &mut self,
        shape: Shape,
        context: usize,
        dtype: DType,
        threads: usize,
        options: &Options,
        sink: &Sink,
    ) -> Vec<PeerTime> {
        let request = request("dense", shape, context, dtype, threads, options);
        self.forms(&request, sink)
    }

    /// Times Quest over a rotating set of layers, pages of `unit` tokens; none without torch.
    #[expect(clippy::too_many_arguments, reason = "the axes of the table")]
    pub(crate) fn quest(
        &mut self,
        shape: Shape,
        context: usize,
        dtype: DType,
        threads: usize,
        (budget, unit): (usize, usize),
        options: &Options,
        sink: &Sink,
    ) -> Option<PeerTime> {
        let mut request = request("quest", shape, context, dtype, threads, options);
        request["budget"] = budget.into();
        request["unit"] = unit.into();
        self.forms(&request, sink).into_iter().next()
    }

    /// Times causal attention of a whole prompt; empty without torch.
    pub(crate) fn prefill(
        &mut self,
        shape: Shape,
        context: usize,
        dtype: DType,
        threads: usize,
        options: &Options,
        sink: &Sink,
    ) -> Vec<PeerTime> {
        let request = request("prefill", shape, context, dtype, threads, options);
        self.forms(&request, sink)
    }

    fn forms(&mut self, request: &Value, sink: &Sink) -> Vec<PeerTime> {
        let Some(server) = &mut self.server else { return vec![] };
        match server.ask(request).and_then(|answer| times(&answer)) {
            Ok(times) => times,
            Err(problem) => {
                sink.note(&format!("torch peers: {problem}"));
                vec![]
            }
        }
    }
}

fn request(
    op: &str,
    shape: Shape,
    context: usize,
    dtype: DType,
    threads: usize,
    options: &Options,
) -> Value {
    json!({
        "op": op, "q_heads": shape.q_heads, "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim, "context": context, "dtype": dtype.name(),
        "threads": threads, "seconds": options.repeats().seconds, "repeats": options.repeats,
    })
}

fn times(answer: &Value) -> Result<Vec<PeerTime>, Error> {
    let forms = answer.as_object().ok_or_else(|| Error::Python(format!("answered {answer}")))?;
    let time = |(name, value): (&String, &Value)| {
        let a = Answer::deserialize(value).map_err(|e| Error::Python(format!("{name}: {e}")))?;
        let sample =
            Sample { median: a.median, best: a.best, spread: a.spread, repeats: a.repeats };
        Ok(PeerTime { name: format!("torch {name}"), sample })
    };
    let mut times = forms.iter().map(time).collect::<Result<Vec<_>, Error>>()?;
    times.sort_by(|a, b| a.sample.median.total_cmp(&b.sample.median));
    Ok(times)
}

impl Server {
    /// Starts the helper and waits for its first line.
    pub(crate) fn start(command: &mut Command) -> Result<(Server, Value), Error> {
        let what = format!("starting {}", command.get_program().display());
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(Error::io(what))?;
        let no_pipe = || Error::Python("has no pipes".to_owned());
        let to = child.stdin.take().ok_or_else(no_pipe)?;
        let from = BufReader::new(child.stdout.take().ok_or_else(no_pipe)?);
        let mut server = Server { child, to, from };
        let hello = server.answer()?;
        Ok((server, hello))
    }

    pub(crate) fn ask(&mut self, request: &Value) -> Result<Value, Error> {
        writeln!(self.to, "{request}").map_err(Error::io("asking a peer"))?;
        self.answer()
    }

    fn answer(&mut self) -> Result<Value, Error> {
        let mut line = String::new();
        self.from.read_line(&mut line).map_err(Error::io("reading from a peer"))?;
        let answer: Value = serde_json::from_str(&line)
            .map_err(|_| Error::Python(format!("ended without an answer {}", line.trim())))?;
        match answer.get("error") {
            Some(problem) => Err(Error::Python(problem.as_str().unwrap_or("unknown").to_owned())),
            None => Ok(answer),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nothing is lost with it: it holds random numbers only.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_sorted_by_time() {
        let form = |median: f64| json!({"median": median, "best": 1, "spread": 0, "repeats": 3});
        let found = times(&json!({"slow": form(2.0), "fast": form(1.0)})).unwrap();
        assert_eq!(found[0].name, "torch fast");
        assert!(times(&json!({"broken": {}})).is_err());
    }
}
