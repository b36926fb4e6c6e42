//! Keys are the same everywhere: vectors that Python checks too, with a BLAKE3 of its own.
//!
//! `KVIST_WRITE_GOLDEN=1 cargo test -p kvist --test store keys` writes them anew: for a new version of
//! the key only.

use std::path::PathBuf;

use kvist::format::{
    AttentionKind, BlockDType, BlockKey, BlockLayout, KeyParts, KeySecret, MODEL_WIDE,
};
use serde_json::{Value, json};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The fields of a key.
#[derive(Clone)]
struct Fields {
    name: &'static str,
    secret: [u8; 32],
    salt: Vec<u8>,
    model: [u8; 32],
    layout: [u8; 32],
    parent: [u8; 32],
    tokens: Vec<u32>,
    adapter: Option<[u8; 32]>,
    extra: Vec<u8>,
    layer: u32,
}

impl Fields {
    fn key(&self) -> BlockKey {
        let layout = BlockLayout::new(BlockDType::Bf16, 16, 2, 1, 8);
        let mut parts = KeyParts::new(self.model, &layout);
        parts.layout = self.layout;
        parts.salt.extend(&self.salt);
        parts.adapter = self.adapter;
        parts.extra = self.extra.clone();
        parts.validate().unwrap();
        let parent = BlockKey(self.parent);
        parts.key(&KeySecret::new(self.secret), &parent, &self.tokens, self.layer)
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name, "secret": hex(&self.secret), "salt": hex(&self.salt),
            "model": hex(&self.model), "layout": hex(&self.layout), "parent": hex(&self.parent),
            "tokens": self.tokens, "adapter": self.adapter.map(|a| hex(&a)).unwrap_or_default(),
            "extra": hex(&self.extra), "layer": self.layer, "key": self.key().to_string(),
        })
    }
}

fn fields() -> Vec<Fields> {
    let base = Fields {
        name: "base",
        secret: [1; 32],
        salt: b"tenant".to_vec(),
        model: [2; 32],
        layout: [3; 32],
        parent: [0; 32],
        tokens: (0..16).collect(),
        adapter: None,
        extra: Vec::new(),
        layer: MODEL_WIDE,
    };
    let x = [0x78; 32];
    let of = |name, change: &dyn Fn(&mut Fields)| {
        let mut fields = Fields { name, ..base.clone() };
        change(&mut fields);
        fields
    };
    vec![
        base.clone(),
        of("another secret", &|f| f.secret = [9; 32]),
        of("no salt", &|f| f.salt.clear()),
        of("longest salt", &|f| f.salt = (0..64).collect()),
        of("salt that ends in zero", &|f| f.salt.push(0)),
        of("another model", &|f| f.model[31] ^= 1),
        of("another layout", &|f| f.layout[0] ^= 0x80),
        of("second block", &|f| f.parent = f.key().0),
        of("x as salt", &|f| f.salt = x.to_vec()),
        of("x as model", &|f| f.model = x),
        of("x as layout", &|f| f.layout = x),
        of("x as parent", &|f| f.parent = x),
        of("x as tokens", &|f| f.tokens = vec![0x7878_7878; 8]),
        of("x as adapter", &|f| f.adapter = Some(x)),
        of("x as extra", &|f| f.extra = x.to_vec()),
        of("x as salt and adapter", &|f| (f.salt, f.adapter) = (x.to_vec(), Some(x))),
        of("x as salt and extra", &|f| (f.salt, f.extra) = (x.to_vec(), x.to_vec())),
        of("x as adapter and extra", &|f| (f.adapter, f.extra) = (Some(x), x.to_vec())),
        of("adapter of zeros is not none", &|f| f.adapter = Some([0; 32])),
        of("no tokens", &|f| f.tokens.clear()),
        of("one token", &|f| f.tokens.truncate(1)),
        of("tokens in another order", &|f| f.tokens.reverse()),
        of("largest token", &|f| f.tokens[15] = (1 << 31) - 1),
        of("most tokens", &|f| f.tokens = (0..4096).collect()),
        of("longest extra", &|f| f.extra = (0..4096u32).map(|i| i as u8).collect()),
        of("extra of one chunk", &|f| f.extra = vec![0x55; 1024]),
        of("layer 0", &|f| f.layer = 0),
        of("layer 7", &|f| f.layer = 7),
        of("salt and extra change places", &|f| {
            f.extra = std::mem::take(&mut f.salt);
        }),
        of("salt with a frame inside", &|f| f.salt = [&b"a"[..], &[3, 32, 0, 0, 0], b"b"].concat()),
        of("everything", &|f| {
            f.salt = vec![0xFF; 64];
            f.parent = [0xEE; 32];
            f.adapter = Some([0xDD; 32]);
            f.extra = vec![0xCC; 4096];
            f.tokens = (0..2048).map(|t| t * 1_048_573 % (1 << 31)).collect();
        }),
    ]
}

fn layouts() -> Vec<BlockLayout> {
    let base = BlockLayout::new(BlockDType::Bf16, 64, 32, 8, 128);
    let mut all: Vec<BlockLayout> =
        BlockDType::ALL.into_iter().map(|dtype| BlockLayout { dtype, ..base.clone() }).collect();
    all.push(BlockLayout { layers: 16..32, ..base.clone() });
    all.push(BlockLayout { kv_heads: 4..8, ..base.clone() });
    all.push(BlockLayout { attention: AttentionKind::Window(4096), ..base.clone() });
    let latent = AttentionKind::Latent;
    all.push(BlockLayout { kv_heads: 0..1, dim_k: 576, dim_v: 0, attention: latent, ..base });
    all
}

fn layout_json(layout: &BlockLayout) -> Value {
    let (attention, window) = match layout.attention {
        AttentionKind::Full => ("full", 0),
        AttentionKind::Window(n) => ("window", n),
        AttentionKind::Latent => ("mla", 0),
    };
    json!({
        "dtype": layout.dtype.name(), "code": layout.dtype.code(),
        "block_tokens": layout.block_tokens,
        "layers": [layout.layers.start, layout.layers.end],
        "kv_heads": [layout.kv_heads.start, layout.kv_heads.end],
        "dim_k": layout.dim_k, "dim_v": layout.dim_v,
        "attention": attention, "window": window,
        "fingerprint": hex(&layout.fingerprint()),
    })
}

#[test]
fn keys_are_those_of_the_golden_vectors() {
    let vectors = fields();
    assert!(vectors.len() >= 24);
    let found = json!({
        "format": 1,
        "keys": vectors.iter().map(Fields::json).collect::<Vec<_>>(),
        "layouts": layouts().iter().map(layout_json).collect::<Vec<_>>(),
    });
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/keys-v1.json");
    if std::env::var_os("KVIST_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, serde_json::to_string_pretty(&found).unwrap() + "\n").unwrap();
    }
    let expected: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(found, expected);
}

#[test]
fn fields_in_other_places_make_other_keys() {
    let mut keys: Vec<BlockKey> = fields().iter().map(Fields::key).collect();
    let n = keys.len();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), n);
}
