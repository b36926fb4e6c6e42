//! How each KV head of a sequence is read: what its selector says, and its profile.

use std::sync::Arc;

use kvist_policies::{Keep, Method, Profile, Select, Shape};

use crate::budget::Budget;
use crate::summaries::{Spec, Store, Stores};
use crate::{Error, Geometry, attend};

/// How one KV head is read.
#[derive(Debug)]
pub(crate) struct Reads {
    pub(crate) method: Method,
    /// A shorter sequence is read whole.
    pub(crate) floor_tokens: usize,
    keep: Keep,
    /// Whether its keys are summarised.
    summarised: bool,
}

/// A selector, what it means for each head, and the summaries it reads.
#[derive(Clone, Debug)]
pub(crate) struct Selector {
    pub(crate) select: Select,
    pub(crate) profile: Option<Arc<Profile>>,
    /// None where no head is summarised.
    pub(crate) store: Option<Store>,
    /// `[layers][kv_heads]`
    heads: Arc<[Vec<Arc<Reads>>]>,
}

/// What selectors are made for.
pub(crate) struct For<'a> {
    pub(crate) geometry: &'a Geometry,
    pub(crate) dense_layers: &'a [bool],
    /// Identity of the weights; empty if it was not given.
    pub(crate) model: &'a [u8],
    pub(crate) budget: &'a Arc<Budget>,
    /// Whether pages may leave host memory.
    pub(crate) tiered: bool,
}

impl Reads {
    fn of(select: &Select, to: &For) -> Result<Reads, Error> {
        let method = select.method();
        if to.tiered
            && let Method::Parts(parts) = &method
            && parts.needs_keys()
        {
            let expected = "one that goes by summaries, as keys may leave host memory";
            return Err(Error::setting("select", expected, select.name()));
        }
        if let Method::Parts(parts) = &method {
            attend::check_digest(&parts.digest, to.geometry)?;
        }
        let summarised = Spec::of(&method, to.geometry)?.is_some();
        let (floor_tokens, keep) = (select.floor_tokens(), select.keep());
        Ok(Reads { method, floor_tokens, keep, summarised })
    }
}

impl Selector {
    /// The selector of a sequence, its heads read as the profile says.
    ///
    /// # Errors
    /// [`Error::Select`] for impossible settings, a profile of another model or geometry, or one that does not
    /// go with the selector; [`Error::Setting`] if the selector cannot work with a lower tier.
    pub(crate) fn new(
        select: &Select,
        profile: Option<&Arc<Profile>>,
        stores: &Stores,
        to: &For,
    ) -> Result<Selector, Error> {
        let heads = match profile {
            Some(profile) => profiled(select, profile, to)?,
            None => alike(select, to)?,
        };
        let spec = Spec::of(&select.method(), to.geometry)?;
        let wanted = heads.iter().flatten().any(|reads| reads.summarised);
        let store = spec.filter(|_| wanted).map(|spec| stores.of(spec, to.budget)).transpose()?;
        Ok(Selector {
            select: select.clone(),
            profile: profile.cloned(),
            store,
            heads: heads.into(),
        })
    }

    /// How the heads of a layer are read.
    pub(crate) fn layer(&self, layer: usize) -> &[Arc<Reads>] {
        &self.heads[layer]
    }

    /// How a head of a layer with `len` tokens is read.
    pub(crate) fn method(&self, layer: usize, head: usize, len: usize) -> &Method {
        let reads = &self.heads[layer][head];
        if len > reads.floor_tokens { &reads.method } else { &Method::Full }
    }

    /// Whether some head of a layer with `len` tokens leaves tokens out.
    pub(crate) fn selects(&self, layer: usize, len: usize) -> bool {
        self.heads[layer].iter().any(|reads| len > reads.floor_tokens)
    }

    /// Which heads of a layer are summarised.
    pub(crate) fn summarised(&self, layer: usize) -> Vec<bool> {
        self.heads[layer].iter().map(|reads| reads.summarised).collect()
    }

    /// Tokens that some head of a layer always reads.
    pub(crate) fn keep(&self, layer: usize) -> Keep {
        let most = |a: Keep, reads: &Arc<Reads>| Keep {
            sinks: a.sinks.max(reads.keep.sinks),
            recent: a.recent.max(reads.keep.recent),
        };
        self.heads[layer].iter().fold(Keep { sinks: 0, recent: 0 }, most)
    }
}

/// All heads are read alike, but for dense layers.
fn alike(select: &Select, to: &For) -> Result<Vec<Vec<Arc<Reads>>>, Error> {
    select.validate()?;
    if select.needs_profile() {
        let selector = select.name();
        return Err(kvist_policies::Error::NeedsProfile { selector }.into());
    }
    let (own, dense) = (Arc::new(Reads::of(select, to)?), Arc::new(Reads::of(&Select::Full, to)?));
    let of_layer = |&is_dense: &bool| {
        let reads = if is_dense { &dense } else { &own };
        vec![reads.clone(); to.geometry.kv_heads]
    };
    Ok(to.dense_layers.iter().map(of_layer).collect())
}

/// Each head is read as the profile says.
fn profiled(select: &Select, profile: &Profile, to: &For) -> Result<Vec<Vec<Arc<Reads>>>, Error> {
    let Geometry { layers, q_heads, kv_heads, dim_k, .. } = *to.geometry;
    let model = Some(to.model).filter(|model| !model.is_empty());
    profile.check(model, Shape { layers, q_heads, kv_heads, dim_k })?;
    let selects = profile.selects(select, to.dense_layers)?;
    let of_head = |select: &Select| Ok(Arc::new(Reads::of(select, to)?));
    selects.iter().map(|row| row.iter().map(of_head).collect()).collect()
}
