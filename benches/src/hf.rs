//! A real model's decoding speed: its own cache against kvist. Python does the work.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::python::interpreter;
use crate::{Error, Line, Options, Params, Sink};

const SCRIPT: &str = include_str!("../python/hf_decode.py");

pub(crate) fn run(options: &Options, sink: &mut Sink) -> Result<(), Error> {
    if options.no_peers {
        sink.note("hf-decode needs Python; left out");
        return Ok(());
    }
    let context = options.context.as_ref().and_then(|c| c.first()).copied().unwrap_or(7168);
    let mut child = Command::new(interpreter())
        .args(["-u", "-c", SCRIPT, &context.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .map_err(Error::io("starting python"))?;
    let out = child.stdout.take().ok_or_else(|| Error::Python("has no output".to_owned()))?;
    for line in BufReader::new(out).lines() {
        let line = line.map_err(Error::io("reading from python"))?;
        if let Ok(row) = serde_json::from_str::<Value>(&line) {
            push(&row, sink);
        }
    }
    let status = child.wait().map_err(Error::io("waiting for python"))?;
    if status.success() {
        Ok(())
    } else {
        Err(Error::Python(format!("hf-decode ended with {status}")))
    }
}

/// A row is `{model, context, cache, tokens_per_s, own_tokens_per_s, tokens, spread, ...}`.
fn push(row: &Value, sink: &mut Sink) {
    let number = |name: &str| row[name].as_f64().unwrap_or(f64::NAN);
    let text = |name: &str| row[name].as_str().unwrap_or("?").to_owned();
    let Some(error) = row.get("error") else {
        let params = Params::new()
            .with("model", text("model"))
            .with("context", row["context"].clone())
            .with("dtype", text("dtype"))
            .with("cache", text("cache"));
        let columns = Params::new()
            .with("tokens_read", row["tokens_read"].clone())
            .with("mb_read_per_step", number("mb_read"));
        sink.push(
            Line::new("hf-decode", params, number("tokens_per_s"), "tok/s")
                .peer("transformers DynamicCache, sdpa", number("own_tokens_per_s"))
                .repeated(row["tokens"].as_u64().unwrap_or(0) as usize, number("spread"))
                .columns(columns),
        );
        return;
    };
    sink.note(&format!("hf-decode: {}", error.as_str().unwrap_or("failed")));
}
