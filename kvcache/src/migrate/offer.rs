//! What is offered, and the answer of who does not want it.

use super::wire::{Kind, Wire};
use super::{Ended, Link, MigrationId, Refusal};
use crate::cache::Shared;
use crate::format::{MODEL_MAX, put_geometry, take, take_geometry};
use crate::selector::Selector;
use crate::session::shape;
use crate::{Error, Geometry, Sequence};

/// What the destination must know of a sequence to take it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Offer {
    pub(super) geometry: Geometry,
    /// Pages of all layers, the unfinished ones included, counted once for all heads.
    pub(super) pages: u64,
    /// Stands for how it is read.
    pub(super) selector: [u8; 32],
    pub(super) model: Vec<u8>,
}

/// Stands for how the sequences of a cache are read: equal only if that is equal.
pub(super) fn fingerprint(shared: &Shared, selector: &Selector) -> [u8; 32] {
    let said = format!("{:?}{:?}{:?}", selector.select, selector.profile, shared.dense_layers);
    *blake3::hash(said.as_bytes()).as_bytes()
}

/// The model that sequences are moved for.
pub(super) fn model(shared: &Shared) -> Result<&[u8], Error> {
    if shared.model.is_empty() {
        let expected =
            "the identity of the weights (`Builder::model`) that sequences are moved for";
        return Err(Error::setting("model", expected, "none"));
    }
    Ok(&shared.model)
}

impl Offer {
    pub(super) fn of(sequence: &Sequence) -> Result<Offer, Error> {
        let shared = &sequence.cache.shared;
        let geometry = shared.geometry.clone();
        let pages = |len: usize| len.div_ceil(geometry.page_tokens) as u64;
        Ok(Offer {
            pages: sequence.layers.iter().map(|layer| pages(layer.len)).sum(),
            selector: fingerprint(shared, &sequence.selector),
            model: model(shared)?.to_vec(),
            geometry,
        })
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put_geometry(&self.geometry, out);
        out.extend(self.pages.to_le_bytes());
        out.extend(self.selector);
        out.extend(&self.model);
    }

    pub(super) fn decode(mut raw: &[u8]) -> Result<Offer, Ended> {
        let bad = |_| Ended::Protocol("an offer that cannot be");
        let raw = &mut raw;
        let geometry = take_geometry(raw).map_err(bad)?;
        let pages = u64::from_le_bytes(take(raw).map_err(bad)?);
        let selector = take(raw).map_err(bad)?;
        if raw.is_empty() || raw.len() > MODEL_MAX {
            return Err(Ended::Protocol("an offer without a model's identity"));
        }
        Ok(Offer { geometry, pages, selector, model: raw.to_vec() })
    }

    /// Whether a cache can hold it, room aside.
    pub(super) fn suits(&self, shared: &Shared) -> Result<(), Refusal> {
        if self.model != shared.model {
            return Err(Refusal::Model);
        }
        if self.geometry != shared.geometry {
            let (expected, found) = (shape(&shared.geometry), shape(&self.geometry));
            return Err(Refusal::Geometry { expected, found });
        }
        match self.selector == fingerprint(shared, &shared.selector) {
            true => Ok(()),
            false => Err(Refusal::Selector),
        }
    }
}

/// Why memory for a sequence could not be had.
pub(super) fn refusal(error: &Error) -> Refusal {
    match *error {
        Error::OverBudget { needed, free, .. } => Refusal::NoRoom { needed, free },
        _ => Refusal::Failed,
    }
}

impl Refusal {
    /// Tells the source; `own` is the destination's geometry.
    pub(super) fn tell<L: Link>(
        &self,
        wire: &mut Wire<L>,
        id: MigrationId,
        own: &Geometry,
    ) -> Result<(), Ended> {
        let (code, numbers): (u16, [u64; 2]) = match self {
            Refusal::Model => (1, [0; 2]),
            Refusal::Geometry { .. } => (2, [0; 2]),
            Refusal::Selector => (3, [0; 2]),
            Refusal::NoRoom { needed, free } => (4, [*needed, *free]),
            Refusal::Stale { known } => (5, [*known, 0]),
            Refusal::Crowded => (6, [0; 2]),
            Refusal::Failed => (7, [0; 2]),
        };
        let fill = |out: &mut Vec<u8>| {
            out.extend(code.to_le_bytes());
            numbers.iter().for_each(|n| out.extend(n.to_le_bytes()));
            put_geometry(own, out);
            Ok::<(), Ended>(())
        };
        wire.say(Kind::Refused, id, fill).map(drop)
    }

    /// What the destination said of a sequence of this geometry.
    pub(super) fn decode(mut raw: &[u8], own: &Geometry) -> Result<Refusal, Ended> {
        let bad = |_| Ended::Protocol("a refusal that cannot be");
        let raw = &mut raw;
        let code = u16::from_le_bytes(take(raw).map_err(bad)?);
        let first = u64::from_le_bytes(take(raw).map_err(bad)?);
        let second = u64::from_le_bytes(take(raw).map_err(bad)?);
        let geometry = take_geometry(raw).map_err(bad)?;
        Ok(match code {
            1 => Refusal::Model,
            2 => Refusal::Geometry { expected: shape(&geometry), found: shape(own) },
            3 => Refusal::Selector,
            4 => Refusal::NoRoom { needed: first, free: second },
            5 => Refusal::Stale { known: first },
            6 => Refusal::Crowded,
            _ => Refusal::Failed,
        })
    }
}
