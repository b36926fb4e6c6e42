//! Saving a sequence: what is not stored yet is stored, all of it made durable, then the session's
//! file put in place.

use std::ops::Range;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Body, Saved, check_name, model, refused, shelf, tier};
use crate::disk::NotSaved;
use crate::format::{BlockKey, SECTOR, SessionAbout, SessionFront};
use crate::layer::{Chunk, Layer};
use crate::live::{Kept, OnShelf, Shelf};
use crate::summaries::Store;
use crate::{Error, MissReason, Sequence};

/// Records of summaries and open rows have this many bytes, where a stripe has as many.
const PIECE: usize = 1 << 20;
/// Such records are written this many bytes at a time.
const BATCH: usize = 8 << 20;

use super::body::SavedLayer;

/// A session on its way to disk.
struct Saving<'a> {
    sequence: &'a Sequence,
    shelf: &'a Arc<Shelf>,
    piece: usize,
    keys: Vec<BlockKey>,
    /// What the keys are, for errors: layer and page.
    pages: Vec<(usize, usize)>,
    /// Records that were not there before.
    new: Vec<BlockKey>,
}

impl Sequence {
    /// Saves the sequence under a name, in place of what was saved under it before, so that it can be
    /// opened again by [`Cache::open_session`](crate::Cache::open_session), also by another process
    /// later. Only what is not on disk yet is written; nothing leaves host memory. When this returns,
    /// the session survives any crash; after a crash before that, there is what was saved before.
    ///
    /// A name is 1 to 64 of `A-Z a-z 0-9 . _ -`, the first neither `.` nor `-`.
    ///
    /// # Errors
    /// [`Error::Setting`] without a disk tier or model identity, or for an impossible name;
    /// [`Error::Demote`] or [`Error::Save`] if it cannot be stored, as where the disk's budget does not
    /// hold it; [`Error::Missing`] if a page is not there any more. What was saved under that name
    /// before is as it was.
    pub fn save(&self, name: &str) -> Result<Saved, Error> {
        let shared = &self.cache.shared;
        let shelf = shelf(shared)?;
        let model = model(shared)?;
        check_name(name)?;
        let piece = (shared.geometry.kv_heads * shared.geometry.page_bytes()).clamp(4096, PIECE);
        let mut saving = Saving {
            sequence: self,
            shelf,
            piece: piece / SECTOR * SECTOR,
            keys: Vec::new(),
            pages: Vec::new(),
            new: Vec::new(),
        };
        let (body, _open) = saving.store()?;
        let body = body.encode();
        shelf.disk().make_durable(&saving.keys).map_err(|(i, reason)| saving.lost(i, reason))?;
        let bytes_of = |keys: &[BlockKey]| -> u64 {
            keys.iter().filter_map(|key| shelf.disk().stored_bytes(key)).sum()
        };
        let (stored_bytes, written) = (bytes_of(&saving.keys), bytes_of(&saving.new));
        let about = SessionAbout {
            model: model.to_vec(),
            geometry: shared.geometry.clone(),
            tokens: self.len() as u64,
            stored_bytes,
            written: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs()),
        };
        let front = SessionFront { about, keys: std::mem::take(&mut saving.keys) };
        let file = shelf.disk().save_session(name, &front, &body).map_err(|why| match why {
            NotSaved::Gone(i) => saving.lost(i, MissReason::Gone),
            why => refused(name, "saved", why),
        })?;
        Ok(Saved { tokens: self.len(), bytes: stored_bytes + file, written: written + file })
    }
}

impl Saving<'_> {
    /// Stores what is not stored yet. The records of open rows stay while they are held.
    fn store(&mut self) -> Result<(Body, Vec<Kept>), Error> {
        let store = self.sequence.selector.store.as_ref();
        let mut body = Body {
            spec: store.map_or([0; 3], |s| s.spec.code()),
            piece: self.piece,
            ..Body::default()
        };
        for (number, layer) in self.sequence.layers.iter().enumerate() {
            let mut saved = SavedLayer {
                len: layer.len,
                summarised: layer.summarised(),
                ..SavedLayer::default()
            };
            self.stripes(number, layer, &mut saved)?;
            if let Some(store) = store.filter(|_| saved.heads() > 0) {
                self.summaries(number, layer, store, &mut saved)?;
            }
            body.layers.push(saved);
        }
        let open = self.open_rows(&mut body)?;
        Ok((body, open))
    }

    fn stripes(
        &mut self,
        number: usize,
        layer: &Layer,
        saved: &mut SavedLayer,
    ) -> Result<(), Error> {
        let tier = tier(&self.sequence.cache.shared)?;
        let was_stored: Vec<bool> = layer.sealed.iter().map(|s| s.stored().is_some()).collect();
        tier.store(&layer.sealed).map_err(|reason| Error::Demote { pages: 0, reason })?;
        for (page, (stripe, was_stored)) in layer.sealed.iter().zip(was_stored).enumerate() {
            let stored = stripe.stored();
            let on_shelf = stored.as_deref().and_then(OnShelf::of);
            let gone = Error::Missing { layer: number, page, reason: MissReason::Gone };
            let on_shelf = on_shelf.ok_or(gone)?;
            saved.directories.push(on_shelf.directory().clone());
            self.take(on_shelf.key(), (number, page), !was_stored);
        }
        layer.summarised_heads().for_each(|h| saved.norms.extend(h.sealed_norms()));
        Ok(())
    }

    fn take(&mut self, key: BlockKey, at: (usize, usize), is_new: bool) {
        self.keys.push(key);
        self.pages.push(at);
        if is_new {
            self.new.push(key);
        }
    }

    /// Stores the summaries of finished tiles that no record has yet.
    fn summaries(
        &mut self,
        number: usize,
        layer: &Layer,
        store: &Store,
        saved: &mut SavedLayer,
    ) -> Result<(), Error> {
        let tile_bytes = saved.heads() * store.arena.cell_bytes();
        let most = (self.piece / tile_bytes).max(1);
        let mut chunks = layer.chunks();
        let new = new_chunks(&mut chunks, layer.finished_tiles(), most);
        for batch in new.chunks((BATCH / (most * tile_bytes)).max(1)) {
            let bytes_of = |tiles: &Range<usize>| {
                let mut bytes = Vec::with_capacity(tiles.len() * tile_bytes);
                for tile in tiles.clone() {
                    layer.summarised_heads().for_each(|h| bytes.extend_from_slice(h.summary(tile)));
                }
                bytes
            };
            let records = self.shelf.write_blobs(batch.iter().map(bytes_of).collect())?;
            self.new.extend(records.iter().map(Kept::key));
            let chunk = |(tiles, record): (&Range<usize>, Kept)| Chunk {
                tiles: tiles.clone(),
                record: Arc::new(record),
            };
            chunks.extend(batch.iter().zip(records).map(chunk));
        }
        let page = self.sequence.cache.geometry().page_tokens;
        for chunk in &chunks {
            saved.chunks.push(chunk.tiles.clone());
            let first = chunk.tiles.start * crate::summaries::TILE / page;
            self.take(chunk.record.key(), (number, first), false);
        }
        layer.set_chunks(chunks);
        Ok(())
    }

    /// Stores the rows of open pages.
    fn open_rows(&mut self, body: &mut Body) -> Result<Vec<Kept>, Error> {
        let geometry = self.sequence.cache.geometry();
        let mut bytes = Vec::new();
        for layer in &self.sequence.layers {
            layer.heads.iter().for_each(|h| h.open_rows(layer.len, geometry, &mut bytes));
        }
        body.open_bytes = bytes.len();
        let mut kept = Vec::new();
        for batch in bytes.chunks((BATCH / self.piece).max(1) * self.piece) {
            let pieces = batch.chunks(self.piece).map(<[u8]>::to_vec).collect();
            kept.extend(self.shelf.write_blobs(pieces)?);
        }
        let page = self.sequence.len() / geometry.page_tokens;
        kept.iter().for_each(|piece| self.take(piece.key(), (0, page), true));
        Ok(kept)
    }

    fn lost(&self, i: usize, reason: MissReason) -> Error {
        let (layer, page) = self.pages.get(i).copied().unwrap_or_default();
        Error::Missing { layer, page, reason }
    }
}

/// Records that must be written so that all `tiles` are in some, none of more than `most`. Small ones
/// at the end of `chunks` are taken out, to be written again together: so that sequences saved after
/// every few tokens do not end up as many small records, and none is written too often.
fn new_chunks(chunks: &mut Vec<Chunk>, tiles: usize, most: usize) -> Vec<Range<usize>> {
    let mut from = chunks.last().map_or(0, |c| c.tiles.end);
    if from == tiles {
        return Vec::new();
    }
    while let Some(last) = chunks.last()
        && last.tiles.len() <= tiles - from
        && tiles - last.tiles.start <= most
    {
        from = last.tiles.start;
        chunks.pop();
    }
    (from..tiles).step_by(most).map(|at| at..(at + most).min(tiles)).collect()
}
