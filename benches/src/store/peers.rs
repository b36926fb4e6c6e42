//! Who else stores blocks. A peer that is missing is a note, never a failure.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::python::{Server, peers_interpreter};
use crate::{Error, Options, Sample, Sink};

use super::case::{Case, Plan};
use super::files::Files;
use super::measure::{Data, measure};
use super::place::Place;
use super::redis;
use super::subject::Subject;
use super::wire::{Answer, Request};

const PYTHON: &str = include_str!("../../python/store_peers.py");
const FOYER: &str = "kvist-peer-foyer";

/// All peers that are here.
#[derive(Default)]
pub(super) struct Peers {
    here: Vec<Box<dyn Subject>>,
    python: Option<Server>,
    /// Programs that are started for each case: their threads do not rest.
    restless: Vec<Command>,
    /// After the clients: dropped last.
    redis: Option<redis::Server>,
}

impl Peers {
    /// Starts what is installed and says what is not.
    pub(super) fn start(options: &Options, place: &Place, sink: &Sink) -> Result<Peers, Error> {
        let mut peers = Peers::default();
        if options.no_peers {
            return Ok(peers);
        }
        for direct in [false, true] {
            peers.here.push(Box::new(Files::new(place.path(), direct)?));
        }
        match redis::Server::start(place.path()) {
            Ok(server) => {
                peers.here.push(Box::new(server.client(false)?));
                peers.here.push(Box::new(server.client(true)?));
                peers.redis = Some(server);
            }
            Err(problem) => sink.note(&format!("no redis: {problem}")),
        }
        match foyer() {
            Some(program) => {
                for engine in ["memory", "io_uring", "psync"] {
                    let mut command = Command::new(&program);
                    command.arg(place.path().join(format!("foyer-{engine}"))).arg(engine);
                    if start("foyer", &mut command, sink).is_some() {
                        peers.restless.push(command);
                    }
                }
            }
            None => sink.note("peer foyer not built (make bench-peers)"),
        }
        let mut python = Command::new(peers_interpreter());
        peers.python = start("python", python.args(["-u", "-c", PYTHON]), sink);
        Ok(peers)
    }

    /// Figures of all peers that can do it.
    pub(super) fn measure(
        &mut self,
        case: &Case,
        plan: &Plan,
        data: &mut Data,
        sink: &Sink,
    ) -> Vec<(String, Sample)> {
        let mut found = Vec::new();
        for peer in self.here.iter_mut().filter(|p| p.can(case)) {
            match measure(peer.as_mut(), case, plan, data, &mut |_| Ok(0.0)) {
                Ok((_, sample)) => found.push((peer.name(), sample)),
                Err(problem) => sink.note(&format!("{}: {problem}", peer.name())),
            }
        }
        // What is left behind takes room that the next peer may need.
        for peer in &mut self.here {
            if let Err(problem) = peer.clear(case.size) {
                sink.note(&format!("{}: {problem}", peer.name()));
            }
        }
        let request = serde_json::json!(Request::new(case, plan));
        for command in &mut self.restless {
            let started = Server::start(command);
            let answer = started.and_then(|(mut server, _)| ask("foyer", &mut server, &request));
            take(answer, &mut found, sink);
        }
        if let Some(server) = &mut self.python {
            let answer = ask("python", server, &request);
            if answer.is_err() {
                self.python = None;
            }
            take(answer, &mut found, sink);
        }
        found
    }
}

/// Starts a peer in a program of its own and says who it is, or why it is not there.
fn start(what: &str, command: &mut Command, sink: &Sink) -> Option<Server> {
    let started = Server::start(command).and_then(|(server, hello)| {
        let hello = serde_json::from_value::<Answer>(hello);
        Ok((server, hello.map_err(|e| Error::subject(what, e))?))
    });
    match started {
        Ok((server, hello)) => {
            hello.notes.iter().for_each(|note| sink.note(note));
            if hello.peers.is_empty() {
                return None;
            }
            sink.note(&format!("peers: {}", hello.peers.join(", ")));
            Some(server)
        }
        Err(problem) => {
            sink.note(&format!("no {what} peers: {problem}"));
            None
        }
    }
}

fn ask(what: &str, server: &mut Server, request: &Value) -> Result<Answer, Error> {
    let answer = server.ask(request)?;
    serde_json::from_value(answer).map_err(|e| Error::subject(what, e))
}

fn take(answer: Result<Answer, Error>, found: &mut Vec<(String, Sample)>, sink: &Sink) {
    match answer {
        Ok(answer) => {
            answer.notes.iter().for_each(|note| sink.note(note));
            found.extend(answer.times.into_iter().map(|(name, t)| (name, t.into())));
        }
        Err(problem) => sink.note(&format!("peers: {problem}")),
    }
}

/// `KVIST_PEER_FOYER`, else where `make bench-peers` puts it: below the target directory of this
/// program, else below `target`.
fn foyer() -> Option<PathBuf> {
    if let Some(given) = std::env::var_os("KVIST_PEER_FOYER") {
        return Some(PathBuf::from(given));
    }
    let exe = std::env::current_exe().ok();
    let target = exe.as_deref().and_then(Path::parent).and_then(Path::parent).map(Path::to_owned);
    let places = target.into_iter().chain([PathBuf::from("target")]);
    places.map(|target| target.join("peers/release").join(FOYER)).find(|p| p.is_file())
}
