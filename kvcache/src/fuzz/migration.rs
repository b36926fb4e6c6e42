//! The destination of a migration, told anything.

use std::io;
use std::mem;

use twox_hash::XxHash3_64;

use super::Input;
use crate::migrate::{
    Destination, Finished, Link, MigrateOptions, MigrationId, Outgoing, Served, Stream,
};
use crate::{Boxed, Cache, DType, Geometry, Select, Sequence, Tensor3};

const LAYERS: usize = 2;
const DIM: usize = 16;
/// Bytes in front of a message's body, and where the body's length, its sum and the head's sum are there.
const HEAD: usize = 64;
const LEN_AT: usize = 12;
const BODY_SUM_AT: usize = 48;
const HEAD_SUM_AT: usize = 56;

fn cache() -> Cache {
    let geometry = Geometry::new(LAYERS, 2, 1, DIM, DType::Bf16);
    let select = Select::Boxed(Boxed { sinks: 4, recent: 16, ..Boxed::with_budget(128) });
    let builder = Cache::builder(Geometry { page_tokens: 16, ..geometry }).host_bytes(256 << 10);
    let builder = builder.select(select).threads(1).whole_pages(true).model("weights");
    builder.build().expect("a cache that fits")
}

/// Makes the sums of messages right, one after the other.
fn sign(mut bytes: &mut [u8]) {
    while bytes.len() >= HEAD {
        let (head, rest) = bytes.split_at_mut(HEAD);
        let len = u32::from_le_bytes(head[LEN_AT..LEN_AT + 4].try_into().expect("four bytes"));
        let (body, rest) = rest.split_at_mut(rest.len().min(len as usize));
        let sum = XxHash3_64::oneshot(body).to_le_bytes();
        head[BODY_SUM_AT..BODY_SUM_AT + 8].copy_from_slice(&sum);
        let sum = XxHash3_64::oneshot(&head[..HEAD_SUM_AT]).to_le_bytes();
        head[HEAD_SUM_AT..].copy_from_slice(&sum);
        bytes = rest;
    }
}

/// Messages of a source, as bytes. What arrives can be read, and when it is dropped nothing is left.
pub fn migration(data: &[u8]) {
    let mut input = Input(data);
    let signed = input.byte() & 1 == 1;
    let mut bytes = input.0.to_vec();
    if signed {
        sign(&mut bytes);
    }
    let cache = cache();
    let destination = Destination::new(&cache);
    let mut link = Stream::new(&bytes[..], io::sink());
    while let Ok(served) = destination.serve(&mut link) {
        match served {
            Served::Arrived(arrived) => drop(arrived.sequence.fork()),
            Served::Closed => break,
            _ => {}
        }
    }
    assert_eq!(cache.stats().used_bytes, 0, "pages of nobody");
}

/// All that a source sends for a sequence that grows meanwhile.
///
/// # Panics
/// Only if a sequence of a few tokens cannot be moved.
#[must_use]
pub fn a_migration() -> Vec<u8> {
    struct Recorder<L>(L, Vec<u8>);
    impl<L: Link> Link for Recorder<L> {
        fn send(&mut self, message: &mut Vec<u8>) -> io::Result<()> {
            self.1.extend_from_slice(message);
            self.0.send(message)
        }
        fn receive(&mut self, into: &mut [u8]) -> io::Result<()> {
            self.0.receive(into)
        }
    }
    let append = |sequence: &mut Sequence, n: usize| {
        let rows: Vec<half::bf16> =
            (0..n * DIM).map(|i| half::bf16::from_f32((i % 17) as f32 - 8.0)).collect();
        let rows = Tensor3::contiguous(&rows, [n, 1, DIM]).expect("rows");
        (0..LAYERS).for_each(|layer| sequence.append(layer, &rows, &rows).expect("room"));
    };
    let (from, to) = (cache(), cache());
    let (near, mut far) = crate::migrate::local();
    let served = std::thread::spawn(move || {
        let destination = Destination::new(&to);
        while !matches!(destination.serve(&mut far), Ok(Served::Closed) | Err(_)) {}
    });
    let mut sequence = from.sequence();
    append(&mut sequence, 40);
    let id = MigrationId { sequence: [2; 16], epoch: 1 };
    let mut recorder = Recorder(near, Vec::new());
    let options = MigrateOptions::default();
    let mut moving = Outgoing::offer(&sequence, id, &mut recorder, options).expect("an offer");
    moving.round(sequence.fork()).expect("a round");
    sequence.truncate(20).expect("shorter");
    append(&mut sequence, 15);
    assert!(matches!(moving.finish(sequence), Finished::Moved(_)), "it did not move");
    let said = mem::take(&mut recorder.1);
    drop(recorder);
    served.join().expect("a destination");
    said
}
