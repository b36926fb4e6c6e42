//! Two tenants share nothing: no key, no byte, no fate.

use std::collections::HashMap;

use kvist::format::{BlockKey, KeyParts, KeySecret, MODEL_WIDE};
use kvist::vfs::sim::SimVfs;
use kvist::{BlockRows, BlockRowsMut, MissReason, PrefixStore, SpaceOptions, Strides};

use crate::common::{
    MODEL, Numbers, bytes_of, get, layout, prefix, put, restore, salt, simulated, soak, space,
};

/// The fields of a key, short enough that chance makes many alike.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Fields {
    salt: Vec<u8>,
    extra: Vec<u8>,
    adapter: Option<[u8; 32]>,
    model: [u8; 32],
    parent: [u8; 32],
    tokens: Vec<u32>,
}

impl Fields {
    fn random(numbers: &mut Numbers) -> Fields {
        let mut short = |most: u64| -> Vec<u8> {
            (0..numbers.below(most)).map(|_| b'a' + numbers.below(2) as u8).collect()
        };
        let (salt, extra) = (short(5), short(5));
        let mut long = || [b'a' + numbers.below(3) as u8; 32];
        let (model, parent, adapter) = (long(), long(), long());
        let adapter = (numbers.below(2) == 0).then_some(adapter);
        let tokens = (0..numbers.below(3)).map(|_| 0x6161_6161 + numbers.below(2) as u32).collect();
        Fields { salt, extra, adapter, model, parent, tokens }
    }

    fn key(&self, secret: &KeySecret) -> BlockKey {
        let mut parts = KeyParts::new(self.model, &layout());
        parts.salt = self.salt.clone().into();
        parts.extra = self.extra.clone();
        parts.adapter = self.adapter;
        parts.key(secret, &BlockKey(self.parent), &self.tokens, MODEL_WIDE)
    }
}

#[test]
fn different_fields_have_different_keys() {
    let (secret, mut numbers) = (KeySecret::new([5; 32]), Numbers::new(1));
    let mut by_key: HashMap<BlockKey, Fields> = HashMap::new();
    let cases = 1_000_000 * soak();
    for _ in 0..cases {
        let fields = Fields::random(&mut numbers);
        let key = fields.key(&secret);
        if let Some(other) = by_key.get(&key) {
            assert!(*other == fields, "two contents have the key {key}");
        } else {
            by_key.insert(key, fields);
        }
    }
    println!("tenants/keys: {cases} tuples, {} of them distinct", by_key.len());
}

#[test]
fn it_matters_where_a_string_stands() {
    let secret = KeySecret::new([5; 32]);
    let text = [b'x'; 32];
    let mut keys = Vec::new();
    // Every set of the five places it can be put to.
    for places in 0..32u32 {
        let at = |i: u32| places & (1 << i) != 0;
        let fields = Fields {
            salt: if at(0) { text.to_vec() } else { Vec::new() },
            extra: if at(1) { text.to_vec() } else { Vec::new() },
            adapter: at(2).then_some(text),
            model: if at(3) { text } else { [0; 32] },
            parent: if at(4) { text } else { [0; 32] },
            tokens: Vec::new(),
        };
        keys.push(fields.key(&secret));
    }
    // And split between neighbours.
    for cut in 1..32 {
        let (salt, extra) = (text[..cut].to_vec(), text[cut..].to_vec());
        let (model, parent) = ([0; 32], [0; 32]);
        let fields = Fields { salt, extra, adapter: None, model, parent, tokens: Vec::new() };
        keys.push(fields.key(&secret));
    }
    let count = keys.len();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), count);
}

#[test]
fn no_tenant_sees_anothers_block_even_by_its_key() {
    let sim = SimVfs::new(1);
    let store = simulated(sim.process(), 20).multi_tenant(true).build().unwrap();
    let (a, b) = (space(&store, 0), space(&store, 1));
    put(&a, 0, 7).unwrap();
    for round in 0..2 {
        assert_eq!(get(&b, 1, 7), Err(MissReason::Absent));
        let stolen = b.prefix_of_keys(prefix(&a, 7).keys().to_vec());
        let layout = layout();
        let mut out = vec![0; layout.bytes()];
        let mut rows = [BlockRowsMut::new(&layout, &mut out, Strides::canonical(&layout)).unwrap()];
        let restored = b.get(&stolen, 0..1, &mut rows).unwrap();
        assert_eq!((restored.blocks, restored.miss), (0, Some(MissReason::Absent)));
        assert_eq!((b.contains(&stolen), b.lease(&stolen.keys()[0]).is_none()), (0, true));
        if round == 0 {
            // The same from disk.
            store.run_pending();
            let key = prefix(&a, 7).keys()[0];
            assert!(a.lease(&key).is_some());
            for n in 100..400 {
                let _ = put(&a, 0, n);
            }
        }
    }
    assert!(store.space(SpaceOptions::new(MODEL, layout())).is_err(), "a salt is demanded");
}

/// Bytes of one tenant in a buffer of the other.
fn has_canary(buffer: &[u8], canaries: &[Vec<u8>]) -> bool {
    canaries.iter().any(|c| buffer.windows(16).step_by(16).any(|w| c.chunks(16).any(|x| x == w)))
}

#[test]
fn bytes_of_one_tenant_are_in_no_buffer_of_the_other() {
    let sim = SimVfs::new(1);
    let builder = simulated(sim.process(), 20).host_bytes(12_000).multi_tenant(true);
    let store = builder.build().unwrap();
    let (a, b) = (space(&store, 0), space(&store, 1));
    let canaries: Vec<Vec<u8>> = (0..12).map(|n| bytes_of(0, n)).collect();
    for n in 0..12 {
        put(&a, 0, n).unwrap();
        store.run_pending();
        // Frames of A have been evicted, wiped and given to B.
        put(&b, 1, n).unwrap();
        store.run_pending();
        let mut out = vec![0; layout().bytes()];
        let _ = restore(&b, n + 100, &mut out);
        assert!(!has_canary(&out, &canaries));
        let _ = restore(&b, n, &mut out);
        assert!(!has_canary(&out, &canaries));
        let lease = b.lease(&prefix(&b, n).keys()[0]).unwrap();
        assert!(!has_canary(&lease, &canaries));
        assert_eq!(get(&a, 0, n), Ok(()));
    }
    store.erase_tenant(&salt(0)).unwrap();
    for n in 0..12 {
        assert_eq!(get(&a, 0, n), Err(MissReason::Absent));
    }
    // What stood on the disk in segments that were rewritten is in no file that is left.
    for file in sim.files().into_iter().filter(|f| f.path.contains("seg-")) {
        assert!(!has_canary(&sim.bytes(&file.path).unwrap(), &canaries), "{}", file.path);
    }
}

#[test]
fn the_same_tokens_under_another_salt_are_another_block() {
    let store = PrefixStore::builder().host_bytes(1 << 20).build().unwrap();
    let layout = layout();
    for tenant in 0..3 {
        let space = space(&store, tenant);
        let bytes = bytes_of(tenant, 1);
        let rows = BlockRows::new(&layout, &bytes, Strides::canonical(&layout)).unwrap();
        assert_eq!(space.put(&prefix(&space, 1), 0, &[rows]).unwrap(), [Ok(())]);
    }
    (0..3).for_each(|tenant| assert_eq!(get(&space(&store, tenant), tenant, 1), Ok(())));
}
