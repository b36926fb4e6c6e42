//! How often what was said of a block's future came true.

use super::ghosts::Ghosts;

/// Sources of hints that are told apart: their numbers lie below.
pub const SOURCES: usize = 8;

/// Events that count as one each before anything was seen.
const PRIOR: f32 = 16.0;
/// Events after which earlier ones count half.
const MEMORY: f32 = 4096.0;
/// One in so many blocks that left is remembered.
const SAMPLE: u32 = 4;

/// How often something was said, and how often it was wrong.
#[derive(Clone, Debug)]
pub(super) struct Rate {
    said: f32,
    wrong: f32,
}

impl Rate {
    /// What is believed at first.
    pub(super) fn new(wrong: f32) -> Rate {
        Rate { said: PRIOR, wrong: PRIOR * wrong }
    }

    pub(super) fn said(&mut self, n: f32) {
        self.said += n;
        if self.said > MEMORY {
            self.said /= 2.0;
            self.wrong /= 2.0;
        }
    }

    pub(super) fn wrong(&mut self, n: f32) {
        self.wrong += n;
    }

    /// The share that was wrong.
    pub(super) fn of_wrong(&self) -> f32 {
        (self.wrong / self.said).min(1.0)
    }
}

/// Blocks that left for a reason, and how often they were wanted again.
#[derive(Clone, Debug)]
pub(super) struct Regret {
    pub(super) rate: Rate,
    gone: Ghosts,
}

impl Regret {
    pub(super) fn new(wrong: f32) -> Regret {
        Regret { rate: Rate::new(wrong), gone: Ghosts::default() }
    }

    /// A block left.
    pub(super) fn left(&mut self, print: u32, capacity: usize) {
        if print.is_multiple_of(SAMPLE) {
            self.gone.add(print, capacity / SAMPLE as usize + 1);
        }
    }

    /// A block came; if it had left, that was wrong. For all those that are not remembered, too.
    pub(super) fn came(&mut self, print: u32) {
        if print.is_multiple_of(SAMPLE) && self.gone.take(print) {
            self.rate.wrong(SAMPLE as f32);
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.gone.bytes()
    }
}

/// What is known of the sources of hints.
#[derive(Clone, Debug)]
pub(super) struct Trust {
    /// Blocks of sessions that were closed, by source.
    pub(super) closed: Vec<Regret>,
    /// Blocks that should be wanted, by source.
    pub(super) wanted: Vec<Rate>,
    /// Blocks that left without a hint.
    pub(super) others: Regret,
}

/// Share of wrong hints from which on blocks are not kept for them.
const WRONG_MOST: f32 = 0.4;

impl Trust {
    /// Blocks that left and are remembered, for each there is room for.
    pub(super) const MEMORY: f32 = (SOURCES + 1) as f32 / SAMPLE as f32;

    pub(super) fn new() -> Trust {
        Trust {
            closed: vec![Regret::new(0.0); SOURCES],
            wanted: vec![Rate::new(0.0); SOURCES],
            others: Regret::new(0.25),
        }
    }

    /// Whether blocks of a closed session should leave first: if they are wanted again no more often than
    /// those that leave otherwise.
    pub(super) fn closes(&self, source: u8) -> bool {
        let wrong = self.closed[usize::from(source)].rate.of_wrong();
        wrong <= self.others.rate.of_wrong()
    }

    /// Whether blocks are kept for it.
    pub(super) fn keeps(&self, source: u8) -> bool {
        self.wanted[usize::from(source)].of_wrong() <= WRONG_MOST
    }

    /// A block came.
    pub(super) fn came(&mut self, print: u32) {
        self.closed.iter_mut().for_each(|closed| closed.came(print));
        self.others.came(print);
    }

    pub(super) fn bytes(&self) -> usize {
        self.others.bytes() + self.closed.iter().map(Regret::bytes).sum::<usize>()
    }
}
