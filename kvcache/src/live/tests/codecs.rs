//! Pages stored as they are or compressed, by what reading them back was seen to cost.

use super::*;
use crate::live::OnShelf;
use crate::vfs::sim::{Call, Fault, SimVfs, Trigger};
use crate::{Codec, DiskCodec, DiskOptions};

/// By stripe of the first layer, whether it is stored as it is.
fn plain_below(s: &Sequence) -> Vec<bool> {
    let sealed = s.layers[0].sealed.iter();
    let stored = sealed.map(|stripe| stripe.stored().unwrap());
    stored.map(|stored| OnShelf::of(&*stored).unwrap().directory().is_plain(0)).collect()
}

fn on_disk(sim: &SimVfs, codec: impl Into<DiskCodec>) -> Cache {
    let disk = DiskOptions::new("/store", 64 << 20).segment_bytes(1 << 20);
    let cache = builder(&Select::Full, 8 << 20, 64).disk(disk).disk_codec(codec);
    let cache = cache.vfs(Arc::new(sim.process())).prefetch(false);
    cache.read_deadline(Duration::from_secs(100_000)).build().unwrap()
}

/// Adds tokens to both, stores them, and checks that all of them can be read back.
fn grow(pair: &mut [Sequence; 2], random: &mut Random) {
    let (k, v) = data(random, 640);
    pair.iter_mut().for_each(|s| append(s, &k, &v).unwrap());
    pair[0].offload().unwrap();
    let q = query(random, 1);
    let [(out, _), (want, _)] =
        [&pair[0], &pair[1]].map(|s| attend(s, 0, &q, &AttendOptions::default()).unwrap());
    assert!(near(&out, &want));
}

#[test]
fn a_fast_disk_takes_pages_as_they_are_and_a_slow_one_compressed() {
    let sim = SimVfs::new(5);
    let cache = on_disk(&sim, DiskCodec::Dynamic);
    let twin = builder(&Select::Full, 64 << 20, 64).build().unwrap();
    let mut random = Random(71);
    let mut pair = [&cache, &twin].map(Cache::sequence);
    grow(&mut pair, &mut random);
    assert_eq!(plain_below(&pair[0]), [false; 10], "nothing was read back before");
    // The simulated disk takes no time.
    grow(&mut pair, &mut random);
    assert_eq!(plain_below(&pair[0])[10..], [true; 10]);
    let slow = sim.inject(Fault::Slow, Trigger::from(1).on(Call::Read));
    pair[0].offload().unwrap();
    grow(&mut pair, &mut random);
    assert!(sim.fired(slow) > 0);
    grow(&mut pair, &mut random);
    assert_eq!(plain_below(&pair[0])[30..], [false; 10]);
    // What was stored before stays as it was.
    assert_eq!(plain_below(&pair[0])[..20], [[false; 10], [true; 10]].concat());
    assert_eq!(cache.stats().pages_failed, 0);
}

#[test]
fn a_codec_that_was_named_stays() {
    for (codec, plain) in [(Codec::raw(), true), (Codec::lossless(), false)] {
        let sim = SimVfs::new(6);
        let twin = builder(&Select::Full, 64 << 20, 64).build().unwrap();
        let mut random = Random(72);
        let mut pair = [&on_disk(&sim, codec), &twin].map(Cache::sequence);
        (0..2).for_each(|_| grow(&mut pair, &mut random));
        assert_eq!(plain_below(&pair[0]), [plain; 20]);
    }
}
