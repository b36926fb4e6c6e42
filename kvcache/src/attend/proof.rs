//! The certificate over whole pages: what is not read is bounded from its summary, what is read is
//! counted by its true keys while it is near.

use kvist_policies::cover;

use super::certify::{round_up, scale, slack};
use super::head::Work;
use crate::summaries::TILE;

/// Share of the allowed miss up to which bounds are trusted before a key was read.
const FIRST_SHARE: f64 = 0.9;

/// What bounds the missed mass of a query group. Masses are relative to one reference per head.
pub(super) struct Proof {
    scale: f64,
    /// Per head: reference in base-2 logits, rounding of a raw logit, estimated total.
    top: Vec<f64>,
    slack: Vec<f64>,
    total: Vec<f64>,
    /// Mass of each page from above, `[group][pages]`.
    upper: Vec<Vec<f64>>,
    /// Mass of what was read, from below.
    mass: Vec<f64>,
    /// Pages chosen to be read.
    chosen: Vec<bool>,
    /// The others, those that could hold most last.
    left: Vec<u32>,
    /// Pages chosen at most.
    cap: usize,
}

impl Proof {
    /// From raw logit bounds of units, `[group, stored]`.
    pub(super) fn of_units(work: &Work, upper: &[f32], unit: usize, chosen: &[u32]) -> Proof {
        let (scale, stored) = (scale(work), upper.len() / work.group);
        let (mut top, mut masses) = (Vec::new(), Vec::new());
        for row in upper.chunks(stored) {
            let row = &row[..work.len.div_ceil(unit)];
            let finite = row.iter().copied().filter(|x| x.is_finite());
            let highest = f64::from(finite.fold(f32::NEG_INFINITY, f32::max)) * scale;
            let highest = if highest.is_finite() { highest } else { 0.0 };
            let mass = |(u, &x): (usize, &f32)| {
                let tokens = unit.min(work.len - u * unit) as f64;
                tokens * (f64::from(x) * scale - highest).exp2()
            };
            let units: Vec<f64> = row.iter().enumerate().map(mass).collect();
            let of_page = |page| {
                let tokens = work.tokens_of(page);
                units[tokens.start / unit..tokens.end.div_ceil(unit)].iter().sum()
            };
            masses.push((0..work.len.div_ceil(work.page_tokens())).map(of_page).collect());
            top.push(highest);
        }
        let total = vec![1.0; work.group];
        Proof::new(work, (top, total, masses), chosen, 0)
    }

    /// From raw estimates `[group, stride]`, how far off they can be `[group, tiles]`, and the exact
    /// raw logits of the tokens behind them.
    pub(super) fn of_boxed(
        work: &Work,
        (estimates, bounds, tail): (&[f32], &[f32], &[f32]),
        chosen: &[u32],
        cap: usize,
    ) -> Proof {
        let scale = scale(work);
        let (stride, rest) = (estimates.len() / work.group, tail.len() / work.group);
        let (mut top, mut total, mut masses) = (Vec::new(), Vec::new(), Vec::new());
        for h in 0..work.group {
            let row = &estimates[h * stride..(h + 1) * stride];
            let tail = &tail[h * rest..(h + 1) * rest];
            let known = row.iter().chain(tail).copied().filter(|x| x.is_finite());
            let highest = f64::from(known.clone().fold(f32::NEG_INFINITY, f32::max)) * scale;
            let highest = if highest.is_finite() { highest } else { 0.0 };
            let tiles = stride / TILE;
            let upper = |t: usize| {
                let raw = f64::from(row[t]) + f64::from(bounds[h * tiles + t / TILE]);
                let mass = (raw * scale - highest).exp2();
                // An open tile's estimate is NaN: nothing is known of it.
                if mass.is_nan() { f64::INFINITY } else { mass }
            };
            // Tokens without a summary lie in pages that are always read.
            let of_page = |page| work.tokens_of(page).take_while(|&t| t < stride).map(upper).sum();
            masses.push((0..work.len.div_ceil(work.page_tokens())).map(of_page).collect());
            total.push(known.map(|x| (f64::from(x) * scale - highest).exp2()).sum());
            top.push(highest);
        }
        Proof::new(work, (top, total, masses), chosen, cap)
    }

    fn new(
        work: &Work,
        (top, total, upper): (Vec<f64>, Vec<f64>, Vec<Vec<f64>>),
        chosen: &[u32],
        cap: usize,
    ) -> Proof {
        let pages = work.len.div_ceil(work.page_tokens());
        let mut is_chosen = vec![false; pages];
        chosen.iter().for_each(|&p| is_chosen[p as usize] = true);
        let share = |p: u32| {
            let of_head = |(m, t): (&Vec<f64>, &f64)| m[p as usize] / t.max(f64::MIN_POSITIVE);
            upper.iter().zip(&total).map(of_head).fold(0.0, f64::max)
        };
        let left = (0..pages as u32).filter(|&p| !is_chosen[p as usize]);
        let mut left: Vec<(f64, u32)> = left.map(|p| (share(p), p)).collect();
        left.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
        let left = left.into_iter().map(|(_, p)| p).collect();
        let mass = vec![0.0; work.group];
        let (scale, slack) = (scale(work), slack(work, work.head.norm_max()));
        Proof { scale, top, slack, total, upper, mass, chosen: is_chosen, left, cap }
    }

    /// Chooses pages until the bounds alone nearly suffice; all that are chosen, ascending.
    pub(super) fn first(&mut self, eps: f64) -> Vec<u32> {
        let small = |(sum, total): (&f64, &f64)| *sum <= FIRST_SHARE * eps * total;
        let mut sums = vec![0.0; self.upper.len()];
        // As many as may stay unread, from the lightest on.
        let mut light = |&p: &u32| {
            self.upper.iter().zip(&mut sums).for_each(|(m, s)| *s += m[p as usize]);
            sums.iter().zip(&self.total).all(small)
        };
        let stay = self.left.iter().take_while(|p| light(p)).count();
        self.take(self.left.len() - stay);
        (0..self.chosen.len() as u32).filter(|&p| self.chosen[p as usize]).collect()
    }

    /// Chooses `n` more, as far as the cap allows; ascending.
    fn take(&mut self, n: usize) -> Vec<u32> {
        let room = self.cap.saturating_sub(self.chosen.len() - self.left.len());
        let keep = self.left.len() - n.min(room).min(self.left.len());
        let mut taken = self.left.split_off(keep);
        taken.iter().for_each(|&p| self.chosen[p as usize] = true);
        taken.sort_unstable();
        taken
    }

    /// Counts keys that are read.
    ///
    /// # Safety
    /// Every row must be readable as a key.
    pub(super) unsafe fn add(&mut self, work: &Work, rows: &[*const u8]) {
        // SAFETY: the caller's promise.
        let logits = unsafe { work.logits_at(&work.exact_query(true), rows) };
        let n = rows.len();
        for h in 0..work.group {
            let low = |&x: &f32| ((f64::from(x) - self.slack[h]) * self.scale - self.top[h]).exp2();
            // A NaN key could hold nothing.
            let masses = logits[h * n..(h + 1) * n].iter().map(low).filter(|m| !m.is_nan());
            self.mass[h] += masses.sum::<f64>();
        }
    }

    /// The proven missed mass per head, given that all that was chosen has been added.
    pub(super) fn bounds(&self) -> Vec<f32> {
        let bound = |(upper, &read): (&Vec<f64>, &f64)| {
            let unread: f64 = self.left.iter().map(|&p| upper[p as usize]).sum();
            // A hair upwards for the sums.
            round_up(cover::missed_share(unread * (1.0 + 1e-12), read * (1.0 - 1e-12)))
        };
        self.upper.iter().zip(&self.mass).map(bound).collect()
    }

    /// Pages to read in addition, ascending: none once `eps` is proven, or nothing is left, or the cap
    /// binds.
    pub(super) fn more(&mut self, eps: f64) -> Vec<u32> {
        match self.bounds().iter().all(|&b| f64::from(b) <= eps) {
            true => Vec::new(),
            // Twice as many, so that few rounds suffice.
            false => self.take((self.chosen.len() - self.left.len()).max(1)),
        }
    }
}
