//! Secrets stay where they belong: files are private, and no name, key, salt or token is printed.

use std::fmt::Write;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};

use kvist::format::KeySecret;
use kvist::vfs::sim::{Fault, SimVfs, Trigger};
use kvist::{DiskOptions, PrefixStore, SpaceOptions};

use crate::common::{MODEL, SEGMENT, get, layout, put, simulated, tokens};
use crate::scratch::Scratch;

#[test]
fn files_are_private_whatever_the_umask() {
    let scratch = Scratch::new("modes");
    let before = rustix::process::umask(rustix::fs::Mode::empty());
    let options = DiskOptions::new(&scratch.0, 40 * SEGMENT).segment_bytes(SEGMENT);
    let store = PrefixStore::builder().disk(options).threads(false).build().unwrap();
    let space = crate::common::space(&store, 0);
    put(&space, 0, 1).unwrap();
    store.run_pending();
    rustix::process::umask(before);
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&scratch.0), 0o700);
    let mut files = 0;
    for entry in std::fs::read_dir(&scratch.0).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
        files += 1;
    }
    assert_eq!(files, 4, "description, secret, lock, segment");
}

/// Collects everything that is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<String>>);

struct Fields<'a>(&'a mut String);

impl tracing::field::Visit for Fields<'_> {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        let _ = write!(self.0, "{field}={value:?} ");
    }
}

impl tracing::Subscriber for Log {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        span.record(&mut Fields(&mut self.0.lock().unwrap()));
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, values: &tracing::span::Record<'_>) {
        values.record(&mut Fields(&mut self.0.lock().unwrap()));
    }

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut text = self.0.lock().unwrap();
        event.record(&mut Fields(&mut text));
        text.push('\n');
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

const SALT: &[u8] = b"salt-of-the-tenant";
const MASTER: [u8; 32] = *b"the-master-key-of-thirty-two-b-!";
const SECRET: [u8; 32] = *b"the-cache-key-of-thirty-two-byt!";

/// Every way in which one of the secrets could be spelt.
fn spellings() -> Vec<String> {
    let secrets = [SALT, &MASTER[..], &SECRET[..]];
    let mut all = Vec::new();
    for secret in secrets {
        all.push(String::from_utf8(secret.to_vec()).unwrap());
        all.push(format!("{secret:?}").trim_matches(['[', ']']).to_owned());
        all.push(secret.iter().map(|b| format!("{b:02x}")).collect());
    }
    all.push(format!("{:?}", &tokens(7)[..4]).trim_matches(['[', ']']).to_owned());
    all
}

fn check(what: &str, text: &str) {
    for secret in spellings() {
        assert!(!text.contains(&secret), "{what} tells {secret:?}");
    }
}

#[test]
fn nothing_printed_tells_a_secret() {
    let log = Log::default();
    let guard = tracing::subscriber::set_default(log.clone());
    let sim = SimVfs::new(1);
    let options = DiskOptions::new("/store", 8 * SEGMENT)
        .segment_bytes(SEGMENT)
        .seal(MASTER)
        .key_secret(KeySecret::new(SECRET));
    check("DiskOptions", &format!("{options:?} {options:#?}"));
    let builder = simulated(sim.process(), 8).disk(options);
    check("PrefixBuilder", &format!("{builder:?}"));
    let store = builder.build().unwrap();
    let options = SpaceOptions::new(MODEL, layout()).salt(SALT);
    check("SpaceOptions", &format!("{options:?}"));
    let space = store.space(options).unwrap();
    put(&space, 0, 7).unwrap();
    for fault in [Fault::WriteIo, Fault::SyncIo, Fault::ReadIo, Fault::BitFlip, Fault::Denied] {
        sim.inject(fault, Trigger::chance(0.5));
        for n in 0..20 {
            let _ = put(&space, 0, n);
        }
        store.run_pending();
        let _ = get(&space, 0, 7);
        let error = store.erase_tenant(SALT).err().map(|e| format!("{e} {e:?}"));
        check("an error", &error.unwrap_or_default());
        sim.heal();
    }
    check("Space", &format!("{space:?} {:?}", crate::common::prefix(&space, 7)));
    check("PrefixStore", &format!("{store:?} {:?}", store.stats()));
    let wrong = store.space(SpaceOptions::new(MODEL, layout()).salt(&[7; 65])).unwrap_err();
    check("an error", &format!("{wrong} {wrong:?}"));
    drop((space, store, guard));
    let logged = log.0.lock().unwrap();
    assert!(!logged.is_empty(), "faults are logged");
    check("the log", &logged);
}
