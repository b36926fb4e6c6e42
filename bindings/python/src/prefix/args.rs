//! Where the blocks of a call are: buffers of their own, or an engine's tensors.

use kvist::format::BlockLayout;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use super::tokens::blocks_of;
use crate::dlpack::{Blocks, Engine, Order, Tensors, canonical};
use crate::error::{option_error, raise};

/// Where blocks are, as `put` and `get` take it.
pub(super) struct BlockArgs<'a, 'py> {
    pub(super) blocks: Option<&'a Bound<'py, PyAny>>,
    pub(super) kv: Option<&'a Bound<'py, PyAny>>,
    pub(super) k: Option<&'a Bound<'py, PyAny>>,
    pub(super) v: Option<&'a Bound<'py, PyAny>>,
    pub(super) block_ids: Option<&'a Bound<'py, PyAny>>,
    pub(super) layout: &'a str,
}

impl BlockArgs<'_, '_> {
    /// `most` blocks, if they are not counted.
    pub(super) fn resolve(&self, layout: &BlockLayout, most: usize) -> PyResult<Blocks> {
        let engine = [self.kv, self.k, self.v].iter().any(Option::is_some);
        if let Some(blocks) = self.blocks {
            if engine || self.block_ids.is_some() {
                let text = "blocks: expected one buffer per block, or kv=, k=, v= and block_ids=";
                return Err(raise("OptionError", format!("{text}, found both")));
            }
            return Ok(Blocks::Canonical(canonical(layout, blocks)?));
        }
        if !engine {
            let text = "blocks: expected one buffer per block, or kv=, or k= and v=, found none";
            return Err(PyTypeError::new_err(text));
        }
        let order = match self.layout {
            "nhd" => Order::TokensFirst,
            "hnd" => Order::HeadsFirst,
            other => return Err(option_error("layout", "'nhd' or 'hnd'", format!("{other:?}"))),
        };
        let tensors = |object: Option<&Bound<PyAny>>, what| {
            object.map(|object| Tensors::new(object, what)).transpose()
        };
        let (kv, k, v) = (tensors(self.kv, "kv")?, tensors(self.k, "k")?, tensors(self.v, "v")?);
        let engine = Engine::new(layout, order, kv, k, v)?;
        let ids = match self.block_ids {
            Some(ids) => blocks_of(ids, engine.len())?,
            None if engine.len() > most => {
                return Err(option_error("blocks", &format!("at most {most}"), engine.len()));
            }
            None => (0..engine.len()).collect(),
        };
        Ok(Blocks::Engine(Box::new(engine), ids))
    }
}
