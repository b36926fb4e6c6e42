//! What a sequence remembers of a layer from one step to the next: hints and selections, never keys or
//! values. Losing it costs time, not exactness.

use std::ops::Range;
use std::sync::Arc;

use kvist_policies::prefetch::Recent;
use kvist_policies::share::Sharing;
use parking_lot::{Mutex, MutexGuard};

use crate::boxes::{Boxes, FAN};
use crate::coarse::Coarse;
use crate::index::Index;
use crate::summaries::TILE;

/// Of one layer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    /// What each head read last, for prefetching. Only with a lower tier.
    pub(crate) recent: Vec<Recent>,
    /// What each head selected last, where its selector may use that again.
    pub(crate) last: Vec<Option<Last>>,
    /// Boxes of each head's tiles, where a long sequence is searched by them.
    pub(crate) coarse: Vec<Arc<Coarse>>,
    /// What was derived from each head's keys, where its selector goes by that.
    pub(crate) index: Vec<Index>,
    /// What the queries looked for, where what is derived depends on it.
    pub(crate) asked: Asked,
    /// Boxes over each head's 16-token boxes, where a tree of them is searched.
    pub(crate) boxes: Vec<Arc<Boxes>>,
    /// How flat attention is, where the selector asks.
    pub(crate) support: Option<Support>,
    /// The last queries of the prompt, where the selector looks at them.
    pub(crate) observed: Option<Arc<Observed>>,
}

/// A selection and the step that made it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Last {
    /// The queries it was made for.
    pub(crate) q: Vec<f32>,
    /// Positions picked, ascending; those kept anyway are not among them.
    pub(crate) chosen: Vec<u32>,
    /// Where the kept recent tokens began.
    pub(crate) from: usize,
    /// Tokens of the layer that it needs: those there were then, or of the prompt it is for.
    pub(crate) len: usize,
    /// Steps that used it, the one that made it included.
    pub(crate) steps: usize,
    /// Tokens of the layer when its own head used it last.
    pub(crate) used: usize,
}

/// Whose selections heads and layers read, and the tokens there were when that was found.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Paired {
    pub(crate) sharing: Sharing,
    pub(crate) len: usize,
}

/// Sums over the queries of a layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Asked {
    /// Of each channel's magnitude, `[kv_heads, dim_k]`.
    pub(crate) channels: Vec<f32>,
    /// Of the queries of each block of tokens.
    pub(crate) blocks: Blocks,
}

/// Sums of the queries of blocks of `tokens` tokens, `[blocks][kv_heads, dim_k]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Blocks {
    pub(crate) sums: Vec<f32>,
    pub(crate) tokens: usize,
    /// Numbers of a block.
    pub(crate) width: usize,
}

impl Blocks {
    /// The sum of a position's block.
    pub(crate) fn of(&mut self, position: usize) -> &mut [f32] {
        let at = position / self.tokens * self.width;
        if self.sums.len() < at + self.width {
            self.sums.resize(at + self.width, 0.0);
        }
        &mut self.sums[at..at + self.width]
    }

    /// Forgets the blocks that hold tokens from `len` on.
    fn cut(&mut self, len: usize) {
        let blocks = len.checked_div(self.tokens).unwrap_or(0);
        self.sums.truncate(blocks * self.width);
    }
}

/// Effective support of attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Support {
    /// As a share of the tokens.
    pub(crate) share: f64,
    /// Tokens of the layer when it was measured.
    pub(crate) at: usize,
}

/// Queries of consecutive positions, `[positions][q_heads, dim_k]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Observed {
    pub(crate) positions: Range<usize>,
    pub(crate) q: Vec<f32>,
}

impl Observed {
    /// Forgets the queries from `len` on: drafts that were verified and refused.
    fn cut(this: &mut Arc<Observed>, len: usize) {
        let surplus = this.positions.end.saturating_sub(len);
        if surplus > 0 {
            let width = this.q.len() / this.positions.len();
            let this = Arc::make_mut(this);
            this.q.truncate(this.q.len() - surplus * width);
            this.positions.end = len;
        }
    }
}

impl Memory {
    /// Forgets what speaks of tokens from `len` on.
    fn cut(&mut self, len: usize) {
        for last in &mut self.last {
            last.take_if(|last| last.len > len);
            // A step at that length is another one from here on.
            last.iter_mut().filter(|last| last.used > len).for_each(|last| last.used = 0);
        }
        self.observed.take_if(|observed| observed.positions.start >= len);
        self.observed.iter_mut().for_each(|observed| Observed::cut(observed, len));
        self.coarse.iter_mut().for_each(|coarse| Arc::make_mut(coarse).truncate(len / TILE));
        self.index.iter_mut().for_each(|index| index.truncate(len));
        self.asked.blocks.cut(len);
        let leaves = len / TILE * FAN;
        self.boxes.iter_mut().for_each(|boxes| Arc::make_mut(boxes).truncate(leaves));
        self.support.take_if(|support| support.at > len);
    }

    /// Notes queries, of which the last `most` are kept. What they select is another thing than before.
    pub(crate) fn observe(&mut self, new: &Observed, most: usize) {
        let width = new.q.len() / new.positions.len().max(1);
        let before = self.observed.take().filter(|o| o.positions.end == new.positions.start);
        let mut all = before.map_or(new.clone(), |before| Observed {
            positions: before.positions.start..new.positions.end,
            q: [&before.q[..], &new.q].concat(),
        });
        let surplus = all.positions.len().saturating_sub(most);
        all.q.drain(..surplus * width);
        all.positions.start += surplus;
        self.observed = Some(Arc::new(all));
        self.last.clear();
    }
}

/// The memories of all layers of a sequence.
#[derive(Debug)]
pub(crate) struct Memories {
    layers: Vec<Mutex<Memory>>,
    /// Where the selector shares selections, once that is found.
    paired: Mutex<Option<Arc<Paired>>>,
}

impl Memories {
    pub(crate) fn new(layers: usize) -> Memories {
        Memories::with(std::iter::repeat_with(Mutex::default).take(layers).collect())
    }

    fn with(layers: Vec<Mutex<Memory>>) -> Memories {
        Memories { layers, paired: Mutex::default() }
    }

    pub(crate) fn of(&self, layer: usize) -> MutexGuard<'_, Memory> {
        self.layers[layer].lock()
    }

    /// Whose selections are read. Locked before a layer's memory, never after.
    pub(crate) fn paired(&self) -> MutexGuard<'_, Option<Arc<Paired>>> {
        self.paired.lock()
    }

    /// For a fork with the same selector.
    pub(crate) fn forked(&self) -> Memories {
        let of_layer = |memory: &Mutex<Memory>| {
            let memory = Memory { recent: Vec::new(), ..memory.lock().clone() };
            Mutex::new(memory)
        };
        let layers = self.layers.iter().map(of_layer).collect();
        Memories { layers, paired: Mutex::new(self.paired().clone()) }
    }

    /// For a fork with another selector.
    pub(crate) fn with_selector(&self) -> Memories {
        let of_layer = |memory: &Mutex<Memory>| {
            Mutex::new(Memory { observed: memory.lock().observed.clone(), ..Memory::default() })
        };
        Memories::with(self.layers.iter().map(of_layer).collect())
    }

    /// Forgets what speaks of tokens from `len` on.
    pub(crate) fn cut(&mut self, len: usize) {
        self.layers.iter_mut().for_each(|memory| memory.get_mut().cut(len));
        self.paired.get_mut().take_if(|paired| paired.len > len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(positions: Range<usize>) -> Observed {
        let q = positions.clone().flat_map(|p| [p as f32, 0.5]).collect();
        Observed { positions, q }
    }

    #[test]
    fn the_last_queries_stay_whatever_the_chunks() {
        for cuts in [vec![0, 10], vec![0, 4, 10], vec![0, 4, 5, 10], vec![2, 3, 6, 10]] {
            let chunks = cuts.windows(2).map(|cut| cut[0]..cut[1]);
            let mut memory = Memory::default();
            chunks.for_each(|c| memory.observe(&observed(c), 4));
            assert_eq!(memory.observed.as_deref(), Some(&observed(6..10)));
        }
        let mut memory = Memory::default();
        memory.observe(&observed(3..5), 4);
        assert_eq!(memory.observed.as_deref(), Some(&observed(3..5)));
        memory.cut(5);
        assert!(memory.observed.is_some());
        memory.cut(4);
        assert_eq!(memory.observed.as_deref(), Some(&observed(3..4)));
        memory.cut(3);
        assert!(memory.observed.is_none());
    }
}
