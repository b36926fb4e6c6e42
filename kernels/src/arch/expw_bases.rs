//! EXPW: choosing the base of every channel, 64 channels at a time.

use super::expw_lanes::{Bytes, split};
use crate::DType;
use crate::entropy::Expw;
use crate::entropy::layout::Bases;
use crate::entropy::plain::{search, too_dear};
use crate::entropy::planes::CHUNK;
use crate::entropy::symbols::{CANDIDATES, COSTS};

/// Up to 64 channels, walked from token to token.
struct Block<'a> {
    plan: &'a Expw,
    dtype: DType,
    tile: &'a [u8],
    channel: usize,
}

impl Block<'_> {
    /// Exponents of a token's channels; lanes beyond the row hold anything.
    ///
    /// # Safety
    /// The CPU must have the features of `B`.
    #[inline(always)]
    unsafe fn exponents<B: Bytes>(&self, token: usize) -> B::V {
        let size = self.dtype.size();
        let row = &self.tile[(token * self.plan.dim() + self.channel) * size..];
        if row.len() >= CHUNK * size {
            // SAFETY: 64 elements are readable; the caller vouches for the instruction set (so below).
            return unsafe { split::<B>(self.dtype, row.as_ptr())[0] };
        }
        // Only at the tile's end, and only if the dimension is no multiple of 64.
        let mut copy = [0u8; 4 * CHUNK];
        copy[..row.len()].copy_from_slice(row);
        // SAFETY: as above.
        unsafe { split::<B>(self.dtype, copy.as_ptr())[0] }
    }

    /// Second largest exponents, the largest if there is one token only.
    ///
    /// # Safety
    /// The CPU must have the features of `B`.
    #[inline(always)]
    unsafe fn tops<B: Bytes>(&self) -> B::V {
        // SAFETY: as above.
        unsafe {
            let (mut first, mut second) = (self.exponents::<B>(0), B::splat(0));
            if self.plan.tokens() == 1 {
                return first;
            }
            for token in 1..self.plan.tokens() {
                let e = self.exponents::<B>(token);
                second = B::max(second, B::min(first, e));
                first = B::max(first, e);
            }
            second
        }
    }

    /// Costs of each candidate in units of two bits.
    ///
    /// # Safety
    /// The CPU must have the features of `B`.
    #[inline(always)]
    unsafe fn costs<B: Bytes>(&self, tops: B::V) -> [[u16; CHUNK]; CANDIDATES] {
        /// The largest cost is 7, so this many fit a byte.
        const ROWS: usize = 36;
        let mut costs = [[0u16; CHUNK]; CANDIDATES];
        // SAFETY: as above.
        unsafe {
            let above = B::add(tops, B::splat(1));
            for from in (0..self.plan.tokens()).step_by(ROWS) {
                let mut sums = [B::splat(0); CANDIDATES];
                for token in from..(from + ROWS).min(self.plan.tokens()) {
                    let x = B::sub(above, self.exponents::<B>(token));
                    let x = B::min(x, B::splat(15));
                    for (sum, table) in sums.iter_mut().zip(&COSTS) {
                        *sum = B::add(*sum, B::lookup(table, x));
                    }
                }
                for (cost, sum) in costs.iter_mut().zip(sums) {
                    let mut bytes = [0u8; CHUNK];
                    B::store(sum, bytes.as_mut_ptr());
                    for (cost, byte) in cost.iter_mut().zip(bytes) {
                        *cost += u16::from(byte);
                    }
                }
            }
        }
        costs
    }
}

/// For each lane the cheapest candidate, of equal ones the first, and its cost.
#[inline(always)]
fn cheapest(costs: &[[u16; CHUNK]; CANDIDATES]) -> ([u16; CHUNK], [u16; CHUNK]) {
    let mut least = costs[0];
    for costs in &costs[1..] {
        for i in 0..CHUNK {
            least[i] = least[i].min(costs[i]);
        }
    }
    // The number of candidates before the first that costs the least.
    let (mut best, mut before) = ([0u16; CHUNK], [1u16; CHUNK]);
    for costs in &costs[..CANDIDATES - 1] {
        for i in 0..CHUNK {
            before[i] &= u16::from(costs[i] != least[i]);
            best[i] += before[i];
        }
    }
    (best, least)
}

/// The bases of all channels.
///
/// # Safety
/// The CPU must have the features of `B`.
#[inline(always)]
pub(crate) unsafe fn bases<B: Bytes>(plan: &Expw, dtype: DType, tile: &[u8]) -> Bases {
    let mut bases = Bases::new(plan.dim());
    for channel in (0..plan.dim()).step_by(CHUNK) {
        let block = Block { plan, dtype, tile, channel };
        let of = bases.block_mut(channel);
        // SAFETY: as above; `of` has 64 bytes.
        let costs = unsafe {
            let tops = block.tops::<B>();
            B::store(tops, of.as_mut_ptr());
            block.costs::<B>(tops)
        };
        let (best, least) = cheapest(&costs);
        for i in 0..CHUNK {
            of[i] = of[i].wrapping_sub(best[i] as u8);
        }
        if least.iter().max().is_some_and(|&cost| too_dear(plan, u32::from(cost))) {
            let channels = of.iter_mut().zip(least).zip(channel..plan.dim());
            for ((base, cost), channel) in channels {
                if too_dear(plan, u32::from(cost)) {
                    *base = search(plan, tile, channel);
                }
            }
        }
    }
    bases.repeat();
    bases
}
