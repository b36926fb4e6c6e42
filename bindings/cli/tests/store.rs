//! `kvist verify`, `inspect` and `why` as a user runs them.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The golden store of the library's tests.
fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kvcache/tests/data/store-v1")
}

/// A directory that goes when the test ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let name = format!("cli-{name}-{}", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    fn golden(name: &str) -> Scratch {
        let scratch = Scratch::new(name);
        for entry in std::fs::read_dir(golden()).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), scratch.0.join(entry.file_name())).unwrap();
        }
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&scratch.0, std::fs::Permissions::from_mode(0o700)).unwrap();
        scratch
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn kvist(args: &[&str]) -> (i32, String, String) {
    let done = Command::new(env!("CARGO_BIN_EXE_kvist")).args(args).output().unwrap();
    let Output { status, stdout, stderr } = done;
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

fn json(args: &[&str]) -> (i32, serde_json::Value) {
    let (status, out, _) = kvist(args);
    (status, serde_json::from_str(&out).unwrap())
}

#[test]
fn a_clean_store_is_shown() {
    let copy = Scratch::golden("clean");
    let (status, out, _) = kvist(&["verify", copy.path()]);
    assert_eq!(status, 0, "{out}");
    assert!(out.contains(": clean") && out.contains("7 records"), "{out}");
    let (status, report) = json(&["verify", copy.path(), "--json"]);
    assert_eq!((status, &report["clean"], &report["records"]), (0, &true.into(), &7.into()));

    let (status, out, _) = kvist(&["inspect", copy.path()]);
    assert_eq!(status, 0);
    for text in ["6 records, 96 tokens", "raw", "1 tenants were erased", "no index", "budget"] {
        assert!(out.contains(text), "{text}: {out}");
    }
    let (_, mut found) = json(&["inspect", copy.path(), "--json"]);
    found["path"] = "store-v1".into();
    let expected = std::fs::read(golden().with_extension("json")).unwrap();
    let expected: serde_json::Value = serde_json::from_slice(&expected).unwrap();
    assert_eq!(found, expected);
}

#[test]
fn damage_is_shown_with_exit_status_1() {
    let copy = Scratch::golden("damaged");
    let segment = copy.0.join("seg-0000000000000002.kv");
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[4096 + 512 + 5] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let (status, out, _) = kvist(&["verify", copy.path()]);
    assert_eq!(status, 1, "{out}");
    for text in [": damaged", "damaged record in seg-0000000000000002.kv", "block ", "is a miss"] {
        assert!(out.contains(text), "{text}: {out}");
    }
    let (status, report) = json(&["verify", copy.path(), "--json"]);
    assert_eq!((status, report["damage"].as_array().unwrap().len()), (1, 1));
    let key = report["damage"][0]["key"].as_str().unwrap().to_owned();
    let (status, out, _) = kvist(&["why", &key, "--dir", copy.path()]);
    assert_eq!(status, 1);
    assert!(out.contains("a miss, checksum") && out.contains("section of layer"), "{out}");
    let (status, why) = json(&["why", &key, "--dir", copy.path(), "--json"]);
    assert_eq!((status, &why["answer"]["reason"]), (1, &"checksum".into()));
}

#[test]
fn mistakes_are_named_with_exit_status_2() {
    let copy = Scratch::golden("mistakes");
    let (newer, foreign, bad) =
        (Scratch::golden("newer"), Scratch::new("foreign"), Scratch::golden("bad"));
    std::fs::write(newer.0.join("kvist.meta"), "kvist store 2.0\n").unwrap();
    std::fs::write(foreign.0.join("readme.txt"), "hello").unwrap();
    std::fs::write(bad.0.join("kvist.meta"), "kvist store 1.0\nuuid\n").unwrap();
    let empty = Scratch::new("empty");
    let missing = format!("{}/nowhere", copy.path());
    let file = format!("{}/kvist.meta", copy.path());
    let key = "ab".repeat(32);
    let (short, odd) = (&key[..62], format!("{}zz", &key[..62]));
    let cases: &[(&[&str], &str)] = &[
        (&["verify", &missing], "No such file or directory"),
        (&["inspect", &missing], "No such file or directory"),
        (&["why", &key, "--dir", &missing], "No such file or directory"),
        (&["verify", &file], "Not a directory"),
        (&["verify", foreign.path()], "is not a kvist store, and not empty: it has \"readme.txt\""),
        (&["verify", empty.path()], "holds no kvist store"),
        (&["inspect", newer.path()], "has format 2, this version reads 1"),
        (&["verify", bad.path()], "kvist.meta is damaged; nothing was changed"),
        (&["why", short, "--dir", copy.path()], "a key is 64 hexadecimal digits"),
        (&["why", &odd, "--dir", copy.path()], "a key is 64 hexadecimal digits"),
        (&["why", "", "--dir", copy.path()], "a key is 64 hexadecimal digits"),
        (&["why", &key], "--dir <DIR>"),
        (&["verify"], "<DIR>"),
        (&["verfy", copy.path()], "verify"),
        (&["verify", copy.path(), "--jsn"], "--json"),
    ];
    for (args, text) in cases {
        let (status, out, error) = kvist(args);
        assert_eq!((status, out.as_str()), (2, ""), "{args:?}: {error}");
        assert!(error.contains(text) && error.starts_with("error: "), "{args:?}: {error}");
    }
    let (status, out, _) = kvist(&["why", &key, "--dir", copy.path()]);
    assert_eq!(status, 1);
    assert!(out.contains("a miss, absent: never stored"), "{out}");
}
