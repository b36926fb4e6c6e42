//! A process that saves sessions and says so is killed at any moment: what it said last is there, or
//! what it was about to say.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::*;

const CHILD: &str = "KVIST_SESSION_CHILD";
/// Tokens between two saves.
const STEP: usize = 37;

fn open(path: &Path) -> Cache {
    builder(path, 4 << 20, 64 << 20).build().unwrap()
}

/// The child: goes on with what is there, for ever.
#[test]
fn child() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let cache = open(Path::new(&path));
    let mut s = cache.open_session("chat").unwrap_or_else(|_| cache.sequence());
    let mut out = std::io::stdout();
    // The harness has begun a line.
    writeln!(out).unwrap();
    loop {
        append(&mut s, 1, STEP);
        let saved = s.save("chat").unwrap();
        writeln!(out, "saved {}", saved.tokens).unwrap();
        out.flush().unwrap();
        if s.len() > 3000 {
            s.truncate(STEP).unwrap();
        }
    }
}

/// What a child said last before it was killed.
fn kill(path: &Path, after: Duration) -> usize {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kill::child", "--nocapture", "--test-threads=1"])
        .env(CHILD, path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut said = 0;
    let mut listen = |line: String| match line.strip_prefix("saved ") {
        Some(n) => {
            said = n.parse().unwrap();
            true
        }
        None => false,
    };
    // The time runs from the first word on: starting a process takes longer than its life.
    while lines.next().is_some_and(|line| !listen(line)) {}
    std::thread::sleep(after);
    child.kill().unwrap();
    child.wait().unwrap();
    lines.for_each(|line| {
        listen(line);
    });
    said
}

#[test]
fn a_killed_process_leaves_its_session_as_it_said() {
    let scratch = Scratch::new("kill");
    for round in 0..12 {
        let said = kill(&scratch.0, Duration::from_millis(round * 7 % 60));
        assert!(said > 0, "the child said nothing");
        let cache = open(&scratch.0);
        let s = cache.open_session("chat").unwrap();
        // The last save may have been done and not said.
        let next = if said > 3000 { 2 * STEP } else { said + STEP };
        assert!([said, next].contains(&s.len()), "{} tokens after {said}", s.len());
        check(&s, 1);
    }
}

#[test]
fn another_process_is_told_while_the_directory_is_in_use() {
    let scratch = Scratch::new("use");
    let cache = open(&scratch.0);
    let mut s = cache.sequence();
    append(&mut s, 2, 500);
    s.save("chat").unwrap();
    assert!(matches!(
        builder(&scratch.0, 4 << 20, 64 << 20).build(),
        Err(kvist::Error::InUse { .. })
    ));
    drop((s, cache));
    check(&open(&scratch.0).open_session("chat").unwrap(), 2);
}
