//! Keys: the same as by a naive encoder, and different for whatever is different.

use zeroize::Zeroizing;

use super::Input;
use crate::format::{BlockDType, BlockKey, BlockLayout, KeyParts, KeySecret, MODEL_WIDE};

/// Everything that a key depends on.
#[derive(PartialEq, Eq)]
struct Fields {
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
    fn read(input: &mut Input) -> Fields {
        // One byte repeated: fields that run into one another are what is looked for.
        let mut fill = || [input.byte(); 32];
        let (model, layout, parent) = (fill(), fill(), fill());
        let adapter = (input.byte() & 1 == 1).then(|| [input.byte(); 32]);
        let layer = if input.byte() & 1 == 1 { MODEL_WIDE } else { u32::from(input.byte()) };
        let mut bytes = |most: u8| {
            let len = usize::from(input.byte() % most);
            input.take(len).to_vec()
        };
        let (salt, extra, tokens) = (bytes(65), bytes(200), bytes(64));
        let tokens = tokens.iter().map(|&t| u32::from(t) << (t % 24)).collect();
        Fields { salt, model, layout, parent, tokens, adapter, extra, layer }
    }

    fn parts(&self) -> KeyParts {
        let layout = BlockLayout::new(BlockDType::U8, 16, 1, 1, 16);
        KeyParts {
            salt: Zeroizing::new(self.salt.clone()),
            layout: self.layout,
            adapter: self.adapter,
            extra: self.extra.clone(),
            ..KeyParts::new(self.model, &layout)
        }
    }

    fn key(&self, secret: &KeySecret) -> BlockKey {
        self.parts().key(secret, &BlockKey(self.parent), &self.tokens, self.layer)
    }

    /// The same, as `docs/formats.md` has it, in the plainest way.
    fn naive(&self, secret: &KeySecret) -> BlockKey {
        let tokens: Vec<u8> = self.tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
        let adapter = self.adapter.map_or(Vec::new(), |a| a.to_vec());
        let layer = self.layer.to_le_bytes();
        let fields: [&[u8]; 9] = [
            &[1, 0],
            &self.salt,
            &self.model,
            &self.layout,
            &self.parent,
            &tokens,
            &adapter,
            &self.extra,
            &layer,
        ];
        let mut framed = Vec::new();
        for (tag, field) in (1..).zip(fields) {
            framed.push(tag);
            framed.extend((field.len() as u32).to_le_bytes());
            framed.extend(field);
        }
        BlockKey(*blake3::keyed_hash(secret.bytes(), &framed).as_bytes())
    }
}

/// Two keys and a chain.
pub fn keys(data: &[u8]) {
    let mut input = Input(data);
    let secret = KeySecret::new([input.byte(); 32]);
    let (a, b) = (Fields::read(&mut input), Fields::read(&mut input));
    for fields in [&a, &b] {
        assert_eq!(fields.key(&secret), fields.naive(&secret), "another framing");
    }
    assert_eq!(a == b, a.key(&secret) == b.key(&secret), "keys of different contents");
    let block = 1 + usize::from(input.byte() % 8);
    let chain = a.parts().chain(&secret, &BlockKey(a.parent), &a.tokens, block);
    let mut parent = a.parent;
    for (key, tokens) in chain.unwrap_or_default().iter().zip(a.tokens.chunks_exact(block)) {
        let one = Fields { parent, tokens: tokens.to_vec(), layer: MODEL_WIDE, ..a.copy() };
        assert_eq!(*key, one.naive(&secret), "another chain");
        parent = key.0;
    }
}

impl Fields {
    fn copy(&self) -> Fields {
        Fields {
            salt: self.salt.clone(),
            tokens: self.tokens.clone(),
            extra: self.extra.clone(),
            ..*self
        }
    }
}
