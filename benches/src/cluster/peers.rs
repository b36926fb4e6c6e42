//! Who else clusters: faiss and scikit-learn, in a Python of their own.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use serde_json::json;

use super::scene::{Head, Scene};
use crate::python::{Server, peers_interpreter};
use crate::{Error, Options, Sample, Sink};

const PYTHON: &str = include_str!("../../python/cluster_peers.py");

/// What a peer did.
pub(super) struct Clustered {
    pub(super) name: String,
    pub(super) sample: Sample,
    pub(super) labels: Vec<u32>,
    pub(super) clusters: usize,
}

#[derive(Deserialize)]
struct Answer {
    median: f64,
    best: f64,
    spread: f64,
    repeats: usize,
}

/// A Python with the peers that it could import, or none.
pub(super) struct Peers {
    server: Option<(Server, Vec<String>)>,
    folder: PathBuf,
}

/// What to make of the keys.
#[derive(Clone, Copy)]
pub(super) struct Task {
    pub(super) clusters: usize,
    pub(super) segment: usize,
    /// How often every key is compared with the centroids.
    pub(super) assignments: usize,
    pub(super) threads: usize,
}

impl Peers {
    /// Starts the peers and says who is not there.
    pub(super) fn start(options: &Options, sink: &Sink) -> Peers {
        let folder = std::env::temp_dir().join(format!("kvist-cluster-{}", std::process::id()));
        let mut peers = Peers { server: None, folder };
        if options.no_peers {
            return peers;
        }
        match start(&peers.folder) {
            Ok((server, names, notes)) => {
                notes.iter().for_each(|note| sink.note(note));
                peers.server = Some((server, names));
            }
            Err(problem) => sink.note(&format!("no peers: {problem}")),
        }
        peers
    }

    /// Results of all peers on one head.
    pub(super) fn cluster(
        &mut self,
        scene: &Scene,
        head: &Head,
        task: Task,
        options: &Options,
        sink: &Sink,
    ) -> Vec<Clustered> {
        let Some((server, names)) = &mut self.server else { return vec![] };
        let mut found = Vec::new();
        for name in names.iter() {
            match ask(server, &self.folder, name, scene, head, task, options) {
                Ok(clustered) => found.push(clustered),
                Err(problem) => sink.note(&format!("{name}: {problem}")),
            }
        }
        found
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        // What is left is a file in the folder for temporary ones.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn start(folder: &Path) -> Result<(Server, Vec<String>, Vec<String>), Error> {
    #[derive(Deserialize)]
    struct Hello {
        peers: Vec<String>,
        notes: Vec<String>,
    }
    std::fs::create_dir_all(folder).map_err(Error::io(format!("making {}", folder.display())))?;
    let (server, hello) =
        Server::start(Command::new(peers_interpreter()).args(["-u", "-c", PYTHON]))?;
    let hello: Hello = serde_json::from_value(hello).map_err(|e| Error::Python(e.to_string()))?;
    Ok((server, hello.peers, hello.notes))
}

fn ask(
    server: &mut Server,
    folder: &Path,
    name: &str,
    scene: &Scene,
    head: &Head,
    task: Task,
    options: &Options,
) -> Result<Clustered, Error> {
    let (keys, labels) = (folder.join("keys"), folder.join("labels"));
    let numbers: Vec<u8> = head.keys.iter().flat_map(|k| k.to_f32().to_le_bytes()).collect();
    std::fs::write(&keys, numbers).map_err(Error::io("writing keys for a peer"))?;
    let request = json!({
        "peer": name, "keys": keys, "labels": labels, "dim": scene.dim, "clusters": task.clusters,
        "segment": task.segment, "assignments": task.assignments, "threads": task.threads,
        "seconds": options.repeats().seconds, "repeats": options.repeats,
    });
    let answer = server.ask(&request)?;
    let a: Answer = serde_json::from_value(answer).map_err(|e| Error::Python(e.to_string()))?;
    let bytes = std::fs::read(&labels).map_err(Error::io("reading a peer's labels"))?;
    let labels: Vec<u32> =
        bytes.as_chunks::<4>().0.iter().map(|c| u32::from_le_bytes(*c)).collect();
    if labels.len() != scene.tokens {
        return Err(Error::Python(format!("{} labels for {} keys", labels.len(), scene.tokens)));
    }
    let clusters = labels.iter().max().map_or(0, |&l| l as usize + 1);
    let sample = Sample { median: a.median, best: a.best, spread: a.spread, repeats: a.repeats };
    Ok(Clustered { name: name.to_owned(), sample, labels, clusters })
}
