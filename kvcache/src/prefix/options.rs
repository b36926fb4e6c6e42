//! Settings of a space.

use zeroize::Zeroizing;

use crate::codec::Codec;
use crate::format::BlockLayout;

/// What the blocks of a space are.
#[derive(Clone)]
pub struct SpaceOptions {
    pub(super) model: [u8; 32],
    pub(super) layout: BlockLayout,
    pub(super) salt: Zeroizing<Vec<u8>>,
    pub(super) adapter: Option<[u8; 32]>,
    pub(super) extra: Vec<u8>,
    pub(super) codec: Codec,
    pub(super) loss_max: u8,
    pub(super) priority: i8,
}

impl std::fmt::Debug for SpaceOptions {
    /// Never the salt, nor what images were shown.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut fields = f.debug_struct("SpaceOptions");
        fields.field("layout", &self.layout).field("codec", &self.codec.name());
        fields.finish_non_exhaustive()
    }
}

impl SpaceOptions {
    /// Blocks of a model in a layout. `model` is blake3 over the weights, or a value that you vouch
    /// for: two models that share it share their blocks.
    #[must_use]
    pub fn new(model: [u8; 32], layout: BlockLayout) -> SpaceOptions {
        SpaceOptions {
            model,
            layout,
            salt: Zeroizing::default(),
            adapter: None,
            extra: Vec::new(),
            codec: Codec::lossless(),
            loss_max: 0,
            priority: 0,
        }
    }

    /// The tenant, up to 64 bytes. Set it in the server; never copy it from a client's request, or
    /// clients can read each other's hits.
    #[must_use]
    pub fn salt(mut self, salt: &[u8]) -> SpaceOptions {
        self.salt = Zeroizing::new(salt.to_vec());
        self
    }

    /// Fingerprint of the adapter that the blocks were computed with (LoRA id and scale).
    #[must_use]
    pub fn adapter(mut self, fingerprint: [u8; 32]) -> SpaceOptions {
        self.adapter = Some(fingerprint);
        self
    }

    /// Whatever else the content depends on, up to 4 KiB: full hashes of images, position offset,
    /// RoPE base and scaling.
    #[must_use]
    pub fn extra(mut self, extra: &[u8]) -> SpaceOptions {
        self.extra = extra.to_vec();
        self
    }

    /// How blocks are stored below the host tier. Default [`Codec::lossless`].
    #[must_use]
    pub fn codec(mut self, codec: Codec) -> SpaceOptions {
        self.codec = codec;
        self
    }

    /// The most loss that blocks may have, whoever stored them: 0 (default) only exact ones.
    #[must_use]
    pub fn loss_max(mut self, class: u8) -> SpaceOptions {
        self.loss_max = class;
        self
    }

    /// Blocks of a lower priority leave memory before all others. Default 0.
    #[must_use]
    pub fn priority(mut self, priority: i8) -> SpaceOptions {
        self.priority = priority;
        self
    }
}
