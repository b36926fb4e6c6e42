//! Writes of which a crash left a part.

use std::ops::Range;

use super::content::{CHUNK, Content, SECTOR, Write};
use super::disk::Disk;
use super::rng::Rng;

/// How far the damage reaches from where it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    /// To the end of the write.
    Tail,
    /// To the next border of 512 bytes; what follows is there.
    Sector,
    /// To the next border of 4096 bytes; what follows is there.
    Page,
}

/// What is there instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filling {
    /// Nothing: the file ends.
    Cut,
    Zeros,
    /// What was there before.
    Old,
    /// Noise, or sectors of some file.
    Garbage,
}

use Extent::{Page, Sector, Tail};
use Filling::{Cut, Garbage, Old, Zeros};

const OVERWRITTEN: [(Extent, Filling); 9] = [
    (Tail, Zeros),
    (Tail, Old),
    (Tail, Garbage),
    (Sector, Zeros),
    (Sector, Old),
    (Sector, Garbage),
    (Page, Zeros),
    (Page, Old),
    (Page, Garbage),
];
/// Behind the old end, what was there before is zeros.
const APPENDED: [(Extent, Filling); 7] = [
    (Tail, Cut),
    (Tail, Zeros),
    (Tail, Garbage),
    (Sector, Zeros),
    (Sector, Garbage),
    (Page, Zeros),
    (Page, Garbage),
];
const BOTH: [(Extent, Filling); 10] = [
    (Tail, Cut),
    (Tail, Zeros),
    (Tail, Old),
    (Tail, Garbage),
    (Sector, Zeros),
    (Sector, Old),
    (Sector, Garbage),
    (Page, Zeros),
    (Page, Old),
    (Page, Garbage),
];

/// All ways to tear one write, numbered.
#[derive(Debug)]
pub(super) struct Tears {
    write: usize,
    offset: u64,
    /// Places where damage may begin: the start of the write and every sector border inside.
    steps: u64,
    damages: &'static [(Extent, Filling)],
    /// Whether later writes exist and may be there.
    later: bool,
}

/// One torn write.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tear {
    /// Its place among the pending writes.
    pub(super) write: usize,
    /// Whether later writes are there as well.
    pub(super) others: bool,
    /// Bytes that are as they should be.
    whole: u64,
    extent: Extent,
    filling: Filling,
}

impl Tears {
    pub(super) fn new(write: &Write, position: usize, last: bool, old_len: u64) -> Tears {
        let damages: &[_] = if write.end() <= old_len {
            &OVERWRITTEN
        } else if write.offset >= old_len {
            &APPENDED
        } else {
            &BOTH
        };
        let borders = (write.end().max(1) - 1) / SECTOR;
        let borders = borders.saturating_sub(write.offset / SECTOR);
        // A change of length alone is there or not.
        let steps = if write.has_data() { 1 + borders } else { 0 };
        Tears { write: position, offset: write.offset, steps, damages, later: !last }
    }

    pub(super) fn count(&self) -> u64 {
        self.steps * self.damages.len() as u64 * (1 + u64::from(self.later))
    }

    pub(super) fn get(&self, index: u64) -> Tear {
        let kinds = self.damages.len() as u64;
        let (extent, filling) = self.damages[(index % kinds) as usize];
        let step = index / kinds % self.steps;
        let border = (self.offset / SECTOR + step) * SECTOR;
        let whole = border.saturating_sub(self.offset);
        Tear { write: self.write, others: index / kinds >= self.steps, whole, extent, filling }
    }
}

impl Tear {
    /// Leaves of `write` what the tear lets through; garbage is taken from `disk`.
    pub(super) fn apply(self, content: &mut Content, write: &Write, disk: &Disk, rng: &mut Rng) {
        if self.whole > 0 {
            content.apply(write, 0..self.whole);
        }
        let from = write.offset + self.whole;
        let to = match self.extent {
            Tail => write.end(),
            Sector => write.end().min((from / SECTOR + 1) * SECTOR),
            Page => write.end().min((from / CHUNK as u64 + 1) * CHUNK as u64),
        };
        match self.filling {
            Cut => return,
            Zeros => content.zero(from..to),
            Old => {}
            Garbage => garbage(content, from..to, disk, rng),
        }
        content.extend(to);
        if to < write.end() {
            content.apply(write, to - write.offset..write.len);
        }
    }
}

/// Noise, or what another place of the disk holds: a block that was freed and given out again.
fn garbage(content: &mut Content, range: Range<u64>, disk: &Disk, rng: &mut Rng) {
    let files = disk.inodes.keys().filter_map(|ino| disk.file(*ino));
    let files: Vec<_> = files.map(|file| &file.durable).filter(|c| c.len() >= SECTOR).collect();
    if files.is_empty() || rng.coin() {
        content.scramble(range, rng);
        return;
    }
    let source = files[rng.below(files.len() as u64) as usize];
    let from = rng.below(source.len() / SECTOR) * SECTOR;
    let mut bytes = vec![0; (range.end - range.start) as usize];
    source.read(from, &mut bytes);
    content.overwrite(range.start, &bytes);
}
