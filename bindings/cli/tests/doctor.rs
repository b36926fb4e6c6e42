//! `kvist doctor` as a user runs it, on directories that are fine and on others.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use kvist::format::{BlockDType, BlockLayout};
use kvist::{BlockRows, DiskOptions, PrefixStore, SpaceOptions, Strides};
use serde_json::Value;

/// A directory that goes when the test ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let name = format!("doctor-{name}-{}", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        Scratch(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).unwrap();
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// A store with a block of each model.
    fn store(&self, models: &[u8]) -> PrefixStore {
        let disk = DiskOptions::new(&self.0, 64 << 20);
        let store = PrefixStore::builder().host_bytes(8 << 20).disk(disk).build().unwrap();
        let layout = BlockLayout::new(BlockDType::Bf16, 16, 2, 1, 64);
        let block = vec![7u8; layout.bytes()];
        for &model in models {
            let space = store.space(SpaceOptions::new([model; 32], layout.clone())).unwrap();
            let prefix = space.prefix(&(0..16).collect::<Vec<u32>>()).unwrap();
            let rows = BlockRows::new(&layout, &block, Strides::nhd(&layout)).unwrap();
            space.put(&prefix, 0, &[rows]).unwrap();
        }
        assert!(store.flush(Duration::from_secs(30)));
        store
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvist"));
    command.arg("doctor").args(args);
    command
}

fn run(args: &[&str]) -> (i32, String, String) {
    let done = command(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (done.status.code().unwrap(), text(done.stdout), text(done.stderr))
}

fn report(dir: &str, more: &[&str]) -> (i32, Value) {
    let (status, out, error) = run(&[&[dir, "--json", "--quick"], more].concat());
    (status, serde_json::from_str(&out).unwrap_or_else(|_| panic!("{error}")))
}

/// Text and advice of the findings of a level.
fn said(report: &Value, level: &str) -> Vec<String> {
    let findings = report["findings"].as_array().unwrap();
    let of = findings.iter().filter(|f| f["level"] == level);
    of.map(|f| format!("{} -> {}", f["text"].as_str().unwrap(), f["advice"].as_str().unwrap()))
        .collect()
}

fn refused(dir: &str, words: &[&str]) {
    let (status, report) = report(dir, &[]);
    let errors = said(&report, "error");
    assert_eq!((status, &report["verdict"]), (1, &"error".into()), "{errors:?}");
    for word in words {
        assert!(errors.iter().any(|e| e.contains(word)), "{word}: {errors:?}");
    }
}

#[test]
fn a_directory_that_is_fine_is_measured_and_left_as_it_was() {
    let dir = Scratch::new("fine");
    let args = ["--host-bytes", "1MiB", "--disk-bytes", "1GiB", "--geometry", "2,1,64,bf16"];
    let (status, out, _) =
        run(&[&[dir.path(), "--quick", "--prefill-rate", "1000"][..], &args].concat());
    assert_eq!(status, 0, "{out}");
    for text in [
        "machine",
        "directory",
        "links",
        "gain: 2 layers x 1 KV heads",
        "verdict:",
        "host_bytes 1.0 MiB",
    ] {
        assert!(out.contains(text), "{text}: {out}");
    }
    assert!(dir.names().is_empty());
    let missing = format!("{}/not-yet", dir.path());
    let (status, report) = report(&missing, &["--disk-bytes", "1GiB"]);
    assert_eq!((status, &report["directory"]["exists"]), (0, &false.into()));
    assert!(said(&report, "ok").iter().any(|t| t.contains("a store makes it")));
    assert!(dir.names().is_empty());
}

#[test]
fn directories_that_no_store_can_use_are_named_with_what_to_do() {
    let dir = Scratch::new("refused");
    let at = |name: &str| format!("{}/{name}", dir.path());
    std::fs::write(at("file"), "hello").unwrap();
    refused(&at("file"), &["Not a directory", "name a directory"]);
    refused(&at("no/such/place"), &["is no directory", "mkdir -p"]);
    refused(&at("file/below"), &["Not a directory"]);
    let foreign = Scratch::new("foreign");
    std::fs::write(foreign.0.join("thesis.tex"), "").unwrap();
    refused(foreign.path(), &["it has \"thesis.tex\"", "an empty directory"]);
    assert_eq!(foreign.names(), ["thesis.tex"]);
    std::os::unix::fs::symlink(&foreign.0, at("link")).unwrap();
    refused(&at("link"), &["is a symbolic link", foreign.path()]);
    let open = Scratch::new("open");
    std::fs::set_permissions(&open.0, std::fs::Permissions::from_mode(0o777)).unwrap();
    refused(open.path(), &["others may write to it (mode 0777)", "chmod 0700"]);
    let (status, shared) = report(open.path(), &["--allow-shared-dir"]);
    assert_eq!(status, 0, "{shared}");
    let newer = Scratch::new("newer");
    std::fs::write(newer.0.join("kvist.meta"), "kvist store 2.0\n").unwrap();
    refused(newer.path(), &["has format 2, this version reads 1", "version of kvist"]);
    refused("/proc", &["/proc"]);
}

#[test]
fn a_store_at_work_is_found_with_its_process() {
    let dir = Scratch::new("locked");
    let store = dir.store(&[1]);
    let own = std::process::id();
    refused(dir.path(), &[&format!("in use by another process (pid {own})"), "stop that process"]);
    drop(store);
    let (status, report) = report(dir.path(), &[]);
    assert_eq!(status, 0, "{:?}", said(&report, "error"));
    assert_eq!(report["directory"]["in_use"], false);
}

#[test]
fn what_is_stored_already_is_told() {
    let dir = Scratch::new("stored");
    drop(dir.store(&[1, 2]));
    // Only without --quick.
    let (status, out, error) = run(&[dir.path(), "--json"]);
    let found: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{error}"));
    let store = &found["directory"]["store"];
    assert_eq!((status, &store["records"], &store["tokens"]), (0, &2.into(), &32.into()));
    assert_eq!(store["models"].as_array().unwrap().len(), 2);
    let warned = said(&found, "warning");
    assert!(warned.iter().any(|t| t.contains("blocks of 2 models")), "{warned:?}");
    assert_eq!(report(dir.path(), &[]).1["directory"]["store"], Value::Null);

    let segment = dir.names().into_iter().find(|n| n.starts_with("seg-")).unwrap();
    let segment = dir.0.join(segment);
    let whole = std::fs::read(&segment).unwrap();
    std::fs::write(&segment, &whole[..whole.len() / 2]).unwrap();
    let (_, out, _) = run(&[dir.path(), "--json"]);
    let cut: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(cut["directory"]["store"]["unfinished"], 1, "a truncated segment has no index");
    let mut damaged = whole;
    damaged[9] ^= 1;
    std::fs::write(&segment, damaged).unwrap();
    std::fs::write(dir.0.join("notes.txt"), "").unwrap();
    let (_, out, _) = run(&[dir.path(), "--json"]);
    let warned = said(&serde_json::from_str(&out).unwrap(), "warning");
    assert!(
        warned
            .iter()
            .any(|t| t.contains("1 segments cannot be read") && t.contains("kvist verify")),
        "{warned:?}"
    );
    assert!(warned.iter().any(|t| t.contains("notes.txt")), "{warned:?}");
}

#[test]
fn a_process_that_is_killed_leaves_nothing() {
    let dir = Scratch::new("killed");
    for wait in [1, 200, 700, 1500, 2500] {
        let mut child =
            command(&[dir.path()]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(wait));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(dir.names().is_empty(), "after {wait} ms: {:?}", dir.names());
    }
}

#[test]
fn more_than_there_is_is_an_error() {
    let dir = Scratch::new("too-much");
    let (status, report) =
        report(dir.path(), &["--host-bytes", "4000TiB", "--disk-bytes", "4000TiB"]);
    let errors = said(&report, "error");
    assert_eq!((status, errors.len()), (1, 2), "{errors:?}");
    assert!(
        errors[0].contains("host_bytes is") && errors[1].contains("disk_bytes is"),
        "{errors:?}"
    );
}

/// Every field of the report, as docs/doctor.md lists them.
#[test]
fn the_schema_is_that_of_the_docs() {
    let dir = Scratch::new("schema");
    drop(dir.store(&[1]));
    let host = r#"{"name": "engine", "facts": [{"name": "a", "value": 1}], "findings":
        [{"level": "error", "about": "settings", "text": "bad", "advice": "mend it"}]}"#;
    let args = [dir.path(), "--json", "--geometry", "2,1,64,bf16", "--host-report", host];
    let (status, out, error) = run(&args);
    assert_eq!(status, 1, "an error of the host's is one: {error}");
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&report["schema"], &report["errors"]), (&1.into(), &1.into()));
    let (mut found, mut empty) = (BTreeSet::new(), BTreeSet::new());
    fields("", &report, &mut found, &mut empty);
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/doctor.md");
    let docs = std::fs::read_to_string(docs).unwrap();
    let lines = docs.lines().skip_while(|l| !l.starts_with("| field |"));
    let rows = lines.skip(2).take_while(|l| l.starts_with('|'));
    let listed: BTreeSet<String> =
        rows.flat_map(|row| row.split('|').nth(1).unwrap().split(',').map(clean)).collect();
    // What this machine has nothing of, such as GPUs, stands for all that the docs have below it.
    let below = |name: &String, of: &String| {
        name.strip_prefix(of.as_str()).is_some_and(|rest| rest.starts_with(['.', '[']))
    };
    let stands = |of: &&String| listed.iter().any(|name| below(name, of));
    let empty: BTreeSet<&String> = empty.iter().filter(stands).collect();
    let found: BTreeSet<&String> = found.iter().filter(|name| !empty.contains(name)).collect();
    let there = |name: &&String| !empty.iter().any(|of| below(name, of));
    assert_eq!(found, listed.iter().filter(there).collect());
}

/// A cell's names, without their marks.
fn clean(name: &str) -> String {
    name.trim().trim_matches('`').to_owned()
}

/// Paths of the fields of objects; those of a list's elements end the list's name with `[]`.
/// `empty` gets those that are null or a list of nothing.
fn fields(prefix: &str, value: &Value, out: &mut BTreeSet<String>, empty: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(name, value)| {
            let dot = if prefix.is_empty() { "" } else { "." };
            let path = format!("{prefix}{dot}{name}");
            let objects =
                value.as_array().is_some_and(|a| a.iter().all(Value::is_object) && !a.is_empty());
            if value.is_null() || value.as_array().is_some_and(Vec::is_empty) {
                empty.insert(path.clone());
            }
            if !value.is_object() && !objects {
                out.insert(path.clone());
            }
            fields(&path, value, out, empty);
        }),
        Value::Array(all) => {
            all.iter().for_each(|v| fields(&format!("{prefix}[]"), v, out, empty));
        }
        _ => {}
    }
}

#[test]
fn mistakes_are_named_with_exit_status_2() {
    let dir = Scratch::new("mistakes");
    std::fs::write(dir.0.join("config.json"), "{\"n_layer\": 2}").unwrap();
    std::fs::write(dir.0.join("model.gguf"), "GGUF").unwrap();
    let (config, gguf) =
        (format!("{}/config.json", dir.path()), format!("{}/model.gguf", dir.path()));
    let cases: &[(&[&str], &str)] = &[
        (&["--host-bytes", "much"], "digits and a unit"),
        (&["--host-bytes", "0"], "more than 0 bytes"),
        (&["--disk-bytes", "1GiB"], "<DIR>"),
        (&["--geometry", "32,8,128"], "such as 32,8,128,bf16"),
        (&["--geometry", "32,8,128,bf17"], "for dtype"),
        (&["--geometry", "1,1,8,f32", "--model", &config], "cannot be used with"),
        (&["--model", "/nonexistent/model"], "No such file"),
        (&["--model", &config], "num_attention_heads"),
        (&["--model", &gguf], "cut short"),
        (&["--prefill-rate=-1"], "prefill-rate"),
        (&["--prefill-rate", "nan"], "above 0"),
        (&["--block-tokens", "0"], "1 to 4096"),
        (&["--host-report", "{}"], "name"),
        (&["--hots", "vllm"], "unexpected argument"),
    ];
    for (args, text) in cases {
        let args = [&["--quick"], *args].concat();
        let (status, out, error) = run(&args);
        assert_eq!((status, out.as_str()), (2, ""), "{args:?}: {error}");
        assert!(error.contains(text) && error.starts_with("error: "), "{args:?}: {error}");
    }
}
