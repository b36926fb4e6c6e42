//! Records that stay while somebody needs them, and making sure that they survive a crash.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::item::Item;
use super::read::Place;
use super::write::Writer;
use super::{Disk, Entry, Segment, State};
use crate::format::BlockKey;
use crate::miss::MissReason;

impl Disk {
    /// One holder of a record less. The last one forgets it: its bytes leave with its segment, at once
    /// if nothing else is in it.
    pub(crate) fn release(&self, key: &BlockKey) {
        self.release_all(std::slice::from_ref(key));
    }

    /// [`Disk::release`] of several.
    pub(super) fn release_all(&self, keys: &[BlockKey]) {
        self.take_out(|state| keys.iter().filter_map(|key| state.release(key)).collect());
    }

    /// Forgets a record, whoever holds it. Its bytes leave with its segment, at once if nothing else
    /// is in it.
    pub(crate) fn remove(&self, key: &BlockKey) -> bool {
        self.take_out(|state| state.unpublish(key).into_iter().collect())
    }

    /// Removes the segments in which nothing is left after this; whether any record went.
    fn take_out(&self, forget: impl FnOnce(&mut State) -> Vec<Entry>) -> bool {
        let mut state = self.state.lock();
        let gone = forget(&mut state);
        let empty = |e: &Entry| state.segments.get(&e.segment).is_some_and(|s| s.live_records == 0);
        let last = gone.iter().any(empty);
        drop(state);
        if last {
            self.remove_empty();
        }
        !gone.is_empty()
    }

    /// Bytes of a record on disk, if it is there.
    pub(crate) fn stored_bytes(&self, key: &BlockKey) -> Option<u64> {
        self.state.lock().index.get(key).map(|entry| entry.bytes())
    }

    /// Makes records survive any crash, which the caller holds: each segment is synced once. Those
    /// whose segment cannot be synced any more are copied to another one.
    ///
    /// # Errors
    /// The first record that is not there, or could not be made durable, and why.
    pub(crate) fn make_durable(&self, keys: &[BlockKey]) -> Result<(), (usize, MissReason)> {
        if bug!("session_not_synced") {
            return Ok(());
        }
        let mut writer = self.writer.take(self.options.deadline).ok_or((0, MissReason::Timeout))?;
        for segment in self.segments_of(keys)? {
            if !segment.is_synced() && !segment.is_poisoned() {
                self.sync_or_retire(&mut writer, &segment);
            }
        }
        let volatile = |place: &Place| !place.segment.is_synced();
        let mut places: Vec<Place> =
            keys.iter().filter_map(|key| self.place_of(key)).filter(volatile).collect();
        places.sort_by_key(|p| (p.segment.id, p.entry.position));
        self.copy_records(&mut writer, places);
        drop(writer);
        for (i, key) in keys.iter().enumerate() {
            match self.place_of(key) {
                Some(place) if place.segment.is_synced() => {}
                Some(_) => return Err((i, MissReason::Io)),
                None => return Err((i, MissReason::Gone)),
            }
        }
        Ok(())
    }

    /// The segments that hold these records.
    fn segments_of(&self, keys: &[BlockKey]) -> Result<Vec<Arc<Segment>>, (usize, MissReason)> {
        let mut segments = BTreeMap::new();
        for (i, key) in keys.iter().enumerate() {
            let place = self.place_of(key).ok_or((i, MissReason::Gone))?;
            segments.entry(place.segment.id).or_insert(place.segment);
        }
        Ok(segments.into_values().collect())
    }

    fn place_of(&self, key: &BlockKey) -> Option<Place> {
        let state = self.state.lock();
        let entry = *state.index.get(key)?;
        let segment = state.segments.get(&entry.segment)?.segment.clone();
        Some(Place { segment, entry, key: *key })
    }

    /// Syncs a segment. One that fails gets nothing more: what it holds must be copied to be safe.
    fn sync_or_retire(&self, writer: &mut Writer, segment: &Segment) {
        let Err(e) = self.sync_segment(segment) else { return };
        tracing::warn!(segment = segment.id, "fdatasync failed: {e}");
        writer.open.retain(|open| open.segment.id != segment.id);
        let mut state = self.state.lock();
        state.counts.poisoned_segments += 1;
        if let Some(slot) = state.segments.get_mut(&segment.id) {
            slot.finished = true;
        }
    }

    /// Copies records into segments that are synced, a part at a time.
    pub(super) fn copy_records(&self, writer: &mut Writer, mut places: Vec<Place>) {
        while !places.is_empty() {
            let rest = places.split_off(super::clean::run_of(&places, super::clean::MOVE));
            let items: Vec<(usize, Item)> = self.load(&places).into_iter().enumerate().collect();
            let mut results = vec![Ok(()); items.len()];
            self.append(writer, &items, &mut results);
            places = rest;
        }
    }
}
