//! The simulated disk keeps what it says it keeps, and fails where it is told to.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod batch;
mod crash;
mod faults;
mod machine;
mod model;

use std::path::Path;
use std::sync::Arc;

use kvist::vfs::sim::SimVfs;
use kvist::vfs::{Access, Buf, Dir, File, Op, Transfer, Vfs};

/// A disk with one directory, durable, and the directory.
fn disk(seed: u64) -> (SimVfs, Arc<dyn Dir>) {
    let sim = SimVfs::new(seed);
    let dir = sim.open_dir(Path::new("/store"), true).unwrap();
    (sim, dir)
}

/// A file with bytes in it, all durable.
fn durable_file(dir: &dyn Dir, name: &str, bytes: &[u8]) -> Arc<dyn File> {
    let file = dir.create(name, Access::Buffered).unwrap();
    assert_eq!(file.write_at(bytes, 0).unwrap(), bytes.len());
    file.sync_data().unwrap();
    dir.sync().unwrap();
    file
}

fn op(file: &Arc<dyn File>, transfer: Transfer, offset: u64, bytes: &[u8]) -> Op {
    let mut buf = Buf::alloc(bytes.len()).unwrap();
    buf.copy_from_slice(bytes);
    Op { transfer, ..Op::read(file.clone(), offset, buf) }
}

fn read(file: &dyn File, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    let n = file.read_at(&mut out, 0).unwrap();
    out.truncate(n);
    out
}

/// Numbers that look random.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % bound
    }
}
