//! Opening a session: its summaries and open rows are read, its pages stay below until they are
//! selected.

use std::sync::Arc;

use super::body::{Body, SavedLayer};
use super::{check_name, model, shelf};
use crate::disk::{BlobPlan, reason};
use crate::format::{BlockKey, SessionAbout};
use crate::layer::{Chunk, Layer};
use crate::live::{Kept, Shelf, Stored};
use crate::memory::Memories;
use crate::summaries::Store;
use crate::{Cache, Error, Geometry, MissReason, Sequence};

/// A layer's records, held.
#[derive(Default)]
struct Records {
    stripes: Vec<Arc<dyn Stored>>,
    chunks: Vec<Chunk>,
}

/// A session on its way back.
struct Opening<'a> {
    cache: &'a Cache,
    shelf: &'a Arc<Shelf>,
    name: &'a str,
}

impl Cache {
    /// Opens a saved session: a sequence that gives the results that the saved one gave, with the
    /// cache's selector. Reads summaries and unfinished pages now, and finished pages when attention
    /// selects them: see [`Sequence::restore`] and [`Sequence::restore_behind`] to have them sooner.
    /// With a selector whose summaries are other ones than those saved, or a profile that wants them of other
    /// heads, they are built from the keys, which reads everything.
    ///
    /// The saved session stays as it is whatever becomes of the sequence, until it is saved again or
    /// deleted.
    ///
    /// # Errors
    /// [`Error::Session`] if there is none of this name, or it cannot be read; [`Error::OtherSession`]
    /// if it was saved for another model or geometry; [`Error::Setting`] without a disk tier or model
    /// identity, or for an impossible name; [`Error::OverBudget`] if its summaries and tables do not
    /// fit into host memory.
    pub fn open_session(&self, name: &str) -> Result<Sequence, Error> {
        let shelf = shelf(&self.shared)?;
        let model = model(&self.shared)?;
        check_name(name)?;
        let opening = Opening { cache: self, shelf, name };
        let (front, body) =
            shelf.disk().open_session(name).map_err(|reason| opening.missing(reason))?;
        let kept: Vec<Kept> = front.keys.iter().map(|&key| shelf.adopt(key)).collect();
        opening.check(&front.about, model)?;
        let body = Body::decode(&body, &front.keys, &self.shared, shelf.plan());
        let mut body = body.map_err(|bad| opening.missing(reason(bad)))?;
        opening.build(&mut body, kept)
    }
}

fn shown(model: &[u8]) -> String {
    match std::str::from_utf8(model) {
        Ok(text) if text.chars().all(|c| !c.is_control()) => format!("{text:?}"),
        _ => model.iter().map(|b| format!("{b:02x}")).collect(),
    }
}

/// A geometry in words.
pub(crate) fn shape(g: &Geometry) -> String {
    format!(
        "{} layers, {} query and {} KV heads of {} and {} {}, pages of {}",
        g.layers, g.q_heads, g.kv_heads, g.dim_k, g.dim_v, g.dtype, g.page_tokens
    )
}

impl Opening<'_> {
    fn missing(&self, reason: MissReason) -> Error {
        Error::Session { name: self.name.to_owned(), reason }
    }

    /// Refuses a session of something else.
    fn check(&self, about: &SessionAbout, model: &[u8]) -> Result<(), Error> {
        let other = |what, expected, found| Error::OtherSession {
            name: self.name.to_owned(),
            what,
            expected,
            found,
        };
        if about.model != model {
            return Err(other("model", shown(model), shown(&about.model)));
        }
        let own = self.cache.geometry();
        if about.geometry != *own {
            return Err(other("geometry", shape(own), shape(&about.geometry)));
        }
        Ok(())
    }

    fn build(&self, body: &mut Body, kept: Vec<Kept>) -> Result<Sequence, Error> {
        let shared = &self.cache.shared;
        let selector = &shared.selector;
        let mut kept = kept.into_iter();
        let records: Vec<Records> =
            body.layers.iter_mut().map(|layer| self.records(layer, &mut kept)).collect();
        let pieces: Vec<Kept> = kept.collect();
        let store = selector.store.as_ref();
        let same = store.is_some_and(|s| s.spec.code() == body.spec);
        // Which layers get summaries, and which of them find their own.
        let wanted = |number: usize| selector.summarised(number).contains(&true);
        let ready = |(number, saved): (usize, &SavedLayer)| {
            same && wanted(number) && saved.summarised == selector.summarised(number)
        };
        let ready: Vec<bool> = body.layers.iter().enumerate().map(ready).collect();
        let empty = || -> Result<Vec<Layer>, Error> {
            let layer = |(number, (saved, records)): (usize, (&SavedLayer, &Records))| {
                let (at, all) = ((number, saved.len), selector.summarised(number));
                let summarised = all.iter().map(|&s| s && ready[number]).collect::<Vec<_>>();
                Layer::opened(shared, at, &records.stripes, selector, &summarised)
            };
            body.layers.iter().zip(&records).enumerate().map(layer).collect()
        };
        let mut layers = self.cache.with_room(empty)?;
        self.read_open_rows(body, &pieces, &mut layers)?;
        if let Some(store) = store {
            self.read_summaries(body, &records, &ready, store, &mut layers)?;
        }
        for (number, (layer, records)) in layers.iter_mut().zip(records).enumerate() {
            if ready[number] {
                layer.set_chunks(records.chunks);
            } else if wanted(number) {
                let built = || layer.with_selector(shared, selector, false);
                *layer = self.cache.with_room(built)?;
            }
        }
        let layers = layers.into_iter().map(Arc::new).collect();
        let memories = Memories::new(self.cache.geometry().layers);
        let cache = self.cache.clone();
        Ok(Sequence { cache, selector: selector.clone(), layers, memories })
    }

    /// The records of a layer: the next of all.
    fn records(&self, layer: &mut SavedLayer, kept: &mut impl Iterator<Item = Kept>) -> Records {
        let mut records = Records::default();
        for (directory, kept) in std::mem::take(&mut layer.directories).into_iter().zip(&mut *kept)
        {
            records.stripes.push(self.shelf.adopt_stripe(kept, directory));
        }
        for (tiles, kept) in layer.chunks.iter().zip(kept) {
            records.chunks.push(Chunk { tiles: tiles.clone(), record: Arc::new(kept) });
        }
        records
    }

    fn read_open_rows(
        &self,
        body: &Body,
        pieces: &[Kept],
        layers: &mut [Layer],
    ) -> Result<(), Error> {
        let mut bytes = vec![0; body.open_bytes];
        let len = |i: usize| (body.open_bytes - i * body.piece).min(body.piece);
        let blobs = self.blobs(pieces.iter().enumerate().map(|(i, kept)| (kept.key(), len(i))))?;
        let read = self.shelf.disk().read_blobs(&blobs, |i, piece| {
            bytes[i * body.piece..][..piece.len()].copy_from_slice(piece);
        });
        read.map_err(|(_, reason)| self.missing(reason))?;
        let mut rest = &bytes[..];
        for layer in layers {
            let (len, geometry) = (layer.len, self.cache.geometry());
            for head in &mut layer.heads {
                let left = head.take_rows(len, geometry, rest);
                rest = left.ok_or_else(|| self.missing(MissReason::Torn))?;
            }
        }
        Ok(())
    }

    /// Reads the summaries of the layers that are ready for them straight into their cells.
    fn read_summaries(
        &self,
        body: &Body,
        records: &[Records],
        ready: &[bool],
        store: &Store,
        layers: &mut [Layer],
    ) -> Result<(), Error> {
        let (geometry, cell) = (self.cache.geometry(), store.arena.cell_bytes());
        let saved_heads = |number: usize| body.layers[number].heads();
        let chunks = |number: usize| records[number].chunks.iter().map(move |c| (number, c));
        let chunks: Vec<(usize, &Chunk)> =
            (0..layers.len()).filter(|&number| ready[number]).flat_map(chunks).collect();
        let bytes = |number: usize, c: &Chunk| c.tiles.len() * saved_heads(number) * cell;
        let blobs = chunks.iter().map(|&(number, c)| (c.record.key(), bytes(number, c)));
        let blobs = self.blobs(blobs)?;
        let read = self.shelf.disk().read_blobs(&blobs, |i, raw| {
            let (number, chunk) = &chunks[i];
            for (tile, raw) in
                chunk.tiles.clone().zip(raw.chunks_exact(saved_heads(*number) * cell))
            {
                let heads = layers[*number].heads.iter_mut().filter(|head| head.summarised());
                heads.zip(raw.chunks_exact(cell)).for_each(|(head, raw)| head.take_cell(tile, raw));
            }
        });
        read.map_err(|(_, reason)| self.missing(reason))?;
        for (number, layer) in layers.iter_mut().enumerate().filter(|(n, _)| ready[*n]) {
            let (len, saved) = (layer.len, &body.layers[number]);
            let pages = layer.sealed.len();
            let heads = layer.heads.iter_mut().filter(|head| head.summarised());
            for (h, head) in heads.enumerate() {
                let norms = saved.norms[h * pages..][..pages].iter().copied();
                head.complete(len, norms, geometry, store);
            }
        }
        Ok(())
    }

    fn blobs(
        &self,
        blobs: impl Iterator<Item = (BlockKey, usize)>,
    ) -> Result<Vec<(BlockKey, BlobPlan)>, Error> {
        blobs.map(|(key, len)| Ok((key, BlobPlan::new(len)?))).collect()
    }
}
