//! A process that stores blocks and says so is killed at any moment: what it said is true.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use kvist::{DiskOptions, PrefixStore};

use crate::common::{Numbers, SEGMENT, get, put, salt, seeds, space};
use crate::scratch::Scratch;

const CHILD: &str = "KVIST_KILL_CHILD";

fn open(path: &Path, threads: bool) -> PrefixStore {
    let options = DiskOptions::new(path, 400 * SEGMENT).segment_bytes(SEGMENT);
    PrefixStore::builder().host_bytes(1 << 20).disk(options).threads(threads).build().unwrap()
}

/// The child: puts blocks from a number on, for ever.
#[test]
fn child() {
    let Some(arguments) = std::env::var_os(CHILD) else { return };
    let arguments = arguments.into_string().unwrap();
    let (path, first) = arguments.rsplit_once(' ').unwrap();
    let store = open(Path::new(path), false);
    let spaces = [space(&store, 0), space(&store, 1)];
    let first: u32 = first.parse().unwrap();
    let mut out = std::io::stdout();
    let mut say = move |line: String| {
        out.write_all(line.as_bytes()).unwrap();
        out.flush().unwrap();
    };
    // The harness has begun a line.
    say("\n".to_owned());
    for n in first.. {
        let tenant = n % 2;
        put(&spaces[tenant as usize], tenant, n).unwrap();
        if n % 3 == 0 {
            continue;
        }
        store.run_pending();
        let stats = store.stats();
        assert_eq!((stats.throttled, stats.write_errors), (0, 0));
        say(format!("ack {n}\n"));
        if n % 40 == 39 {
            say(format!("erasing {}\n", n + 1));
            store.erase_tenant(&salt(0)).unwrap();
            say(format!("erased {}\n", n + 1));
        }
    }
}

/// What a child said.
#[derive(Debug, Default)]
struct Said {
    /// Blocks below are durable.
    acknowledged: u32,
    /// Tenant 0's blocks below may be gone, are gone.
    erasing: u32,
    erased: u32,
}

impl Said {
    fn listen(&mut self, line: &str) {
        let Some((what, n)) = line.split_once(' ') else { return };
        let Ok(n) = n.parse::<u32>() else { return };
        match what {
            "ack" => self.acknowledged = n + 1,
            "erasing" => self.erasing = n,
            "erased" => self.erased = n,
            _ => {}
        }
    }

    fn check(&self, path: &Path, first: u32) {
        let store = open(path, true);
        for n in first..self.acknowledged + 3 {
            let tenant = n % 2;
            let there = get(&space(&store, tenant), tenant, n).is_ok();
            if tenant == 0 && n < self.erased {
                assert!(!there, "block {n} was erased, and came back");
            } else if n < self.acknowledged && !(tenant == 0 && n < self.erasing) {
                assert!(
                    there,
                    "block {n} was acknowledged, and is lost: {self:?} {:?}",
                    store.stats()
                );
            }
        }
    }
}

fn kill(path: &Path, first: u32, after: Duration) -> Said {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kill::child", "--nocapture", "--test-threads=1"])
        .env(CHILD, format!("{} {first}", path.display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut said = Said { acknowledged: first, ..Said::default() };
    let mut line = String::new();
    // The time runs from the first word on: starting a process takes longer than its life.
    while lines.read_line(&mut line).unwrap() > 0 && !line.starts_with("ack") {
        line.clear();
    }
    said.listen(line.trim());
    std::thread::sleep(after);
    child.kill().unwrap();
    child.wait().unwrap();
    for line in lines.lines().map_while(Result::ok) {
        said.listen(&line);
    }
    said
}

#[test]
fn what_a_killed_process_said_is_true() {
    let (mut kills, mut acknowledged) = (0, 0);
    for seed in seeds(10) {
        let scratch = Scratch::new("kill");
        let (mut first, mut numbers) = (0, Numbers::new(seed));
        for _ in 0..10 {
            let said = kill(&scratch.0, first, Duration::from_millis(1 + numbers.below(90)));
            said.check(&scratch.0, first);
            acknowledged += said.acknowledged - first;
            first = said.acknowledged + 10;
            kills += 1;
        }
    }
    println!("kill: {kills} kills, {acknowledged} blocks acknowledged");
}
