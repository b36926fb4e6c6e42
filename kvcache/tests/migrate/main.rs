//! Sequences that move from one process to another.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use half::bf16;
use kvist::migrate::{
    Destination, Finished, MigrateOptions, MigrationId, Outgoing, Served, Settled, Stream,
};
use kvist::{AttendOptions, Boxed, Cache, DType, Geometry, Select, Sequence, Tensor3, Tensor3Mut};

const CHILD: &str = "KVIST_MIGRATE_CHILD";
const HEADS: usize = 2;
const DIM: usize = 32;

fn cache() -> Cache {
    let boxed = Boxed { sinks: 16, recent: 64, ..Boxed::with_budget(256) };
    Cache::builder(Geometry::new(2, 2 * HEADS, HEADS, DIM, DType::Bf16))
        .host_bytes(64 << 20)
        .select(Select::Boxed(boxed))
        .threads(1)
        .model("weights")
        .build()
        .unwrap()
}

fn number(i: usize) -> f32 {
    let x = (i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    ((x >> 40) as f32 / (1u64 << 23) as f32) - 1.0
}

/// Appends tokens whose rows follow from their positions.
fn append(s: &mut Sequence, n: usize) {
    let (from, row) = (s.len(), HEADS * DIM);
    let rows: Vec<bf16> =
        (from * row..(from + n) * row).map(|i| bf16::from_f32(number(i))).collect();
    let rows = Tensor3::contiguous(&rows, [n, HEADS, DIM]).unwrap();
    (0..2).for_each(|layer| s.append(layer, &rows, &rows).unwrap());
}

/// What some queries see, bit by bit.
fn seen(s: &Sequence) -> String {
    let mut hash = blake3::Hasher::new();
    for (layer, seed) in [(0, 1), (0, 2), (1, 3), (1, 4)] {
        let width = 2 * HEADS * DIM;
        let q: Vec<f32> = (0..width).map(|i| 2.0 * number(seed << 32 | i)).collect();
        let (mut out, shape) = (vec![0f32; width], [1, 2 * HEADS, DIM]);
        let mut view = Tensor3Mut::contiguous(&mut out, shape).unwrap();
        let q = Tensor3::contiguous(&q, shape).unwrap();
        s.attend(layer, &q, &AttendOptions::default(), &mut view).unwrap();
        hash.update(bytemuck::cast_slice(&out));
    }
    hash.finalize().to_hex().to_string()
}

/// The child: takes what comes and says what it sees of it.
#[test]
fn child() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let listener = UnixListener::bind(Path::new(&path)).unwrap();
    let destination = Destination::new(&cache());
    let mut out = std::io::stdout();
    // The harness has begun a line.
    writeln!(out, "\nlistening").unwrap();
    let mut owned = Vec::new();
    for socket in listener.incoming() {
        let socket = socket.unwrap();
        let mut link = Stream::new(&socket, &socket);
        while let Ok(served) = destination.serve(&mut link) {
            match served {
                Served::Arrived(mut arrived) => {
                    writeln!(out, "arrived {} {}", arrived.sequence.len(), seen(&arrived.sequence))
                        .unwrap();
                    append(&mut arrived.sequence, 77);
                    writeln!(out, "went on {}", seen(&arrived.sequence)).unwrap();
                    owned.push(arrived);
                }
                Served::Closed => break,
                _ => {}
            }
        }
    }
}

struct Process {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
    path: PathBuf,
}

impl Process {
    fn new(name: &str) -> Process {
        let root =
            std::env::var_os("CARGO_TARGET_TMPDIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let path = root.join(format!("kvist-migrate-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut process = Process { child, lines, path };
        process.hear("listening");
        process
    }

    /// The rest of its next line that begins so.
    fn hear(&mut self, what: &str) -> String {
        let mut lines = self.lines.by_ref().map_while(Result::ok);
        let line = lines.find(|line| line.starts_with(what)).unwrap();
        line[what.len()..].trim().to_owned()
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.path).unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.path);
    }
}

fn id(epoch: u64) -> MigrationId {
    MigrationId { sequence: [5; 16], epoch }
}

fn offer<'a>(
    s: &Sequence,
    epoch: u64,
    socket: &'a UnixStream,
) -> Outgoing<Stream<&'a UnixStream, &'a UnixStream>> {
    let options = MigrateOptions { rounds: 3, blocks: 2 };
    Outgoing::offer(s, id(epoch), Stream::new(socket, socket), options).unwrap()
}

#[test]
fn a_sequence_moves_to_another_process() {
    let mut process = Process::new("moves");
    let (here, socket) = (cache(), process.connect());
    let mut s = here.sequence();
    append(&mut s, 3000);
    let mut moving = offer(&s, 1, &socket);
    while !moving.is_close(&s) {
        // The rounds go on a thread of their own while the sequence decodes.
        let snapshot = s.fork();
        std::thread::scope(|scope| {
            let round = scope.spawn(|| moving.round(snapshot));
            (0..5).for_each(|_| append(&mut s, 31));
            round.join().unwrap().unwrap();
        });
    }
    let mut twin = s.fork();
    assert!(matches!(moving.finish(s), Finished::Moved(_)));
    assert_eq!(process.hear("arrived"), format!("{} {}", twin.len(), seen(&twin)));
    append(&mut twin, 77);
    assert_eq!(process.hear("went on"), seen(&twin));
}

#[test]
fn a_process_that_dies_leaves_the_source_its_sequence() {
    let mut process = Process::new("dies");
    let (here, socket) = (cache(), process.connect());
    let mut s = here.sequence();
    append(&mut s, 2000);
    let before = seen(&s);
    let mut moving = offer(&s, 1, &socket);
    moving.round(s.fork()).unwrap();
    process.child.kill().unwrap();
    process.child.wait().unwrap();
    let s = match moving.finish(s) {
        Finished::Kept(s, _) => s,
        // The commit was sent before the kernel knew that nobody reads it.
        Finished::Unsure(unsure, _) => {
            let Settled::Unsure(unsure, _) = unsure.settle(Stream::new(&socket, &socket)) else {
                panic!("a dead process answered");
            };
            unsure.destination_is_gone()
        }
        Finished::Moved(_) => panic!("it moved to a dead process"),
    };
    assert_eq!(seen(&s), before);
    // And moves elsewhere.
    let mut other = Process::new("lives");
    let socket = other.connect();
    assert!(matches!(offer(&s, 2, &socket).finish(s), Finished::Moved(_)));
    assert_eq!(other.hear("arrived"), format!("2000 {before}"));
}

#[test]
fn a_lost_answer_is_asked_for() {
    let mut process = Process::new("lost");
    let (here, socket) = (cache(), process.connect());
    let mut s = here.sequence();
    append(&mut s, 1000);
    let before = seen(&s);
    // The source's ear is cut off after the two answers to offer and round.
    let ear = Deaf { socket: &socket, left: 2 * 64 };
    let options = MigrateOptions { rounds: 1, blocks: 0 };
    let mut moving = Outgoing::offer(&s, id(1), Stream::new(ear, &socket), options).unwrap();
    moving.round(s.fork()).unwrap();
    let Finished::Unsure(unsure, _) = moving.finish(s) else { panic!("it heard the answer") };
    assert_eq!(process.hear("arrived"), format!("1000 {before}"));
    // On another link: the first is in use by nobody who listens.
    drop(socket);
    let again = process.connect();
    let settled = unsure.settle(Stream::new(&again, &again));
    assert!(matches!(settled, Settled::Moved), "{settled:?}");
    assert_eq!(here.stats().used_bytes, 0);
}

/// Reads so many bytes and no more.
struct Deaf<'a> {
    socket: &'a UnixStream,
    left: usize,
}

impl std::io::Read for Deaf<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.left == 0 {
            return Err(std::io::ErrorKind::ConnectionReset.into());
        }
        let n = self.left.min(into.len());
        let read = self.socket.read(&mut into[..n])?;
        self.left -= read;
        Ok(read)
    }
}
