//! The certificate: reading until the softmax mass not read is provably small for every query head.
//!
//! Every bound holds for the exact real-number attention of the stored keys. Estimates carry their
//! rigorous half-width; exact logits carry the rounding slack of their f32 sums; masses are summed
//! in f64 relative to one reference per head.

use kvist_policies::{Boxed, cover};

use super::boxed::{self, Scored};
use super::head::{Choice, Scratch, Work, sized};
use super::tree::Tiles;
use crate::Error;
use crate::summaries::TILE;

/// Share of the allowed miss that tokens may hold whose keys were never read. The rest is for
/// tokens whose keys were read and found light. Measured on SmolLM2-135M: see `docs/papers.md`.
const UNREAD_SHARE: f64 = 0.2;
/// Above this share of all keys, reading the rest as well costs less than it saves.
const SCAN_SHARE: f64 = 0.9;

/// Something not read: at most `tokens` times `2^(upper)`.
pub(super) struct Unread {
    /// Upper bound of the raw logit.
    pub(super) upper: f64,
    pub(super) tokens: f64,
}

/// Lower bounds of the mass that is read.
pub(super) struct Certificate {
    scale: f64,
    /// Per head: reference in base-2 logits, and mass relative to it.
    read: Vec<(f64, f64)>,
}

impl Certificate {
    /// From the exact logits of the positions read; `norm` bounds those of the keys.
    pub(super) fn of_read(work: &Work, positions: &[u32], norm: f32) -> Result<Certificate, Error> {
        let logits = work.logits(&work.exact_query(true), positions.iter().copied())?;
        Ok(Certificate::of_logits(work, &logits, norm))
    }

    /// The same from the logits, `[group, positions]`.
    pub(super) fn of_logits(work: &Work, logits: &[f32], norm: f32) -> Certificate {
        let scale = scale(work);
        let slack = slack(work, norm);
        let n = logits.len() / work.group;
        let read = (0..work.group).map(|h| {
            let low = logits[h * n..(h + 1) * n].iter().map(|&x| (f64::from(x) - slack[h]) * scale);
            let top = low.clone().fold(f64::NEG_INFINITY, f64::max);
            (top, low.map(|x| (x - top).exp2()).sum())
        });
        Certificate { scale, read: read.collect() }
    }

    /// The proven bound per head, given what each leaves unread.
    pub(super) fn bounds(&self, unread: impl Fn(usize) -> Vec<Unread>) -> Vec<f32> {
        let each = |(h, &(top, read)): (usize, &(f64, f64))| {
            let of = |u: Unread| u.tokens * (u.upper * self.scale - top).exp2();
            round_up(cover::missed_share(unread(h).into_iter().map(of).sum(), read))
        };
        self.read.iter().enumerate().map(each).collect()
    }
}

pub(super) fn round_up(x: f64) -> f32 {
    let near = x as f32;
    if f64::from(near) < x { near.next_up() } else { near }
}

/// Error of an f32 dot product per head, before the scale: n terms of relative error 2^-24 each,
/// bounded by the norms (doubled, for the order of summation and the product's own rounding). `norm` bounds
/// those of the keys.
pub(super) fn slack(work: &Work, norm: f32) -> Vec<f64> {
    let dim = work.q.len() / work.group;
    let key = f64::from(norm);
    let of_head = |q: &[f32]| {
        let norm: f64 = q.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        2.0 * dim as f64 * norm * key * f64::from(f32::EPSILON / 2.0)
    };
    work.q.chunks(dim).map(of_head).collect()
}

/// Upper bounds of the raw logits of all candidates, `[group][candidates]`.
fn uppers(work: &Work, scored: &Scored, bounds: &[f32]) -> Vec<Vec<f64>> {
    let (candidates, tiles) = (&scored.candidates, scored.stride / TILE);
    let of_head = |h: usize| -> Vec<f64> {
        let upper = |t: usize| {
            let at = f64::from(scored.estimates[h * scored.stride + t]);
            let sum = at + f64::from(bounds[h * tiles + t / TILE]);
            // An open tile's estimate is NaN: nothing is known of it.
            if sum.is_nan() { f64::INFINITY } else { sum }
        };
        candidates.clone().map(upper).collect()
    };
    (0..work.group).map(of_head).collect()
}

/// Scores with every stored plane; `bounds` `[group][tiles]` says how far off they can be.
fn bounded<'a>(
    work: &Work,
    boxed: &Boxed,
    estimates: &'a mut Vec<f32>,
    bounds: &mut [f32],
) -> Result<Scored<'a>, Error> {
    boxed::score(work, boxed, Tiles::all(work, boxed.planes), estimates, Some(bounds), None, true)
}

fn plane_bytes(work: &Work, boxed: &Boxed) -> u64 {
    let (spec, cells) = work.boxed();
    (cells.len() * spec.bytes_read(boxed.planes)) as u64
}

/// The bound that a given choice has.
pub(super) fn prove(
    work: &Work,
    boxed: &Boxed,
    positions: &[u32],
    scratch: &mut Scratch,
) -> Result<Vec<f32>, Error> {
    let bounds = sized(&mut scratch.bounds, work.group * work.boxed().1.len());
    let scored = bounded(work, boxed, &mut scratch.estimates, bounds)?;
    let uppers = uppers(work, &scored, bounds);
    let first = scored.candidates.start;
    let mut read = vec![false; scored.candidates.len()];
    for &p in positions {
        if scored.candidates.contains(&(p as usize)) {
            read[p as usize - first] = true;
        }
    }
    let certificate = Certificate::of_read(work, positions, work.head.norm_max())?;
    Ok(certificate.bounds(|h| {
        let unread = uppers[h].iter().zip(&read).filter(|(_, read)| !**read);
        unread.map(|(&upper, _)| Unread { upper, tokens: 1.0 }).collect()
    }))
}

/// Masses of one head relative to its reference.
struct Masses {
    /// Reference in base-2 logits.
    top: f64,
    /// Kept tokens, from below.
    kept: f64,
    /// Candidates, from above, before any key is read.
    upper: Vec<f64>,
    /// Estimated total.
    total: f64,
    /// Bound of the rounding of an exact raw logit.
    slack: f64,
    /// A mass from above is this times the mass from below, once the key is known.
    growth: f64,
}

impl Masses {
    fn of_head(work: &Work, scored: &Scored, bounds: &[f32], slack: f64, head: usize) -> Masses {
        let scale = scale(work);
        let (kept, candidates) = (scored.kept_tokens(), &scored.candidates);
        let row = &scored.kept[head * kept..(head + 1) * kept];
        let low = row.iter().map(|&x| (f64::from(x) - slack) * scale);
        let estimates = &scored.estimates[head * scored.stride..][..scored.stride];
        let highest =
            estimates[candidates.clone()].iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let top = low.clone().fold(f64::from(highest) * scale, f64::max);
        let top = if top.is_finite() { top } else { 0.0 };
        let kept = low.map(|x| (x - top).exp2()).sum();
        let (mut upper, mut total) = (Vec::with_capacity(candidates.len()), kept);
        let tiles = scored.stride / TILE;
        let mut at = candidates.start;
        while at < candidates.end {
            let tile = at / TILE;
            let end = ((tile + 1) * TILE).min(candidates.end);
            let widest = (f64::from(bounds[head * tiles + tile]) * scale).exp2();
            for &x in &estimates[at..end] {
                let mass = (f64::from(x) * scale - top).exp2();
                // An open tile's estimate is NaN: nothing is known of it.
                let known = mass.is_finite();
                total += if known { mass } else { 0.0 };
                upper.push(if known { mass * widest } else { f64::INFINITY });
            }
            at = end;
        }
        let growth = (2.0 * slack * scale).exp2();
        Masses { top, kept, upper, total, slack, growth }
    }
}

/// Factor from raw logits to base 2.
pub(super) fn scale(work: &Work) -> f64 {
    f64::from(work.call.params.scale) * std::f64::consts::LOG2_E
}

/// Candidates by the largest share of a head's mass that each could hold.
struct Order(Vec<Ranked>);

/// A share and a candidate.
type Ranked = (f64, u32);

impl Order {
    fn new(masses: &[Masses]) -> Order {
        let mut worst = vec![0f64; masses[0].upper.len()];
        for m in masses {
            let share = 1.0 / m.total.max(f64::MIN_POSITIVE);
            worst.iter_mut().zip(&m.upper).for_each(|(w, u)| *w = w.max(u * share));
        }
        Order(worst.into_iter().zip(0..).collect())
    }

    /// Puts the `count - from` candidates of largest share among `from..to` first.
    fn part(&mut self, from: usize, to: usize, count: usize) {
        if (from..to).contains(&count) {
            self.0[from..to].select_nth_unstable_by(count - from, |a, b| {
                b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
            });
        }
    }

    /// How many keys to read, those of largest share, so that what stays unread is small for every
    /// head. They are put first.
    fn count(&mut self, masses: &[Masses], eps: f64) -> usize {
        // Candidates from `high` on stay unread, which is little enough; those before `low` may not.
        let (mut low, mut high) = (0, self.0.len());
        let mut unread = vec![0f64; masses.len()];
        while low < high {
            let middle = low + (high - low) / 2;
            self.part(low, high, middle);
            let more = |(m, u): (&Masses, &f64)| -> f64 {
                u + self.0[middle..high].iter().map(|&(_, t)| m.upper[t as usize]).sum::<f64>()
            };
            let with: Vec<f64> = masses.iter().zip(&unread).map(more).collect();
            let small = |(m, u): (&Masses, &f64)| *u <= UNREAD_SHARE * eps * m.total;
            if masses.iter().zip(&with).all(small) {
                (unread, high) = (with, middle);
            } else {
                low = middle + 1;
            }
        }
        high
    }
}

/// What the certificate works on.
struct Proof<'a> {
    work: &'a Work<'a>,
    boxed: &'a Boxed,
    scored: Scored<'a>,
    masses: Vec<Masses>,
}

/// Reads keys until the certificate can be given, then attends to the fewest tokens that give it.
pub(super) fn choose(work: &Work, boxed: &Boxed, scratch: &mut Scratch) -> Result<Choice, Error> {
    let eps = boxed.max_missed_mass.map_or(0.0, f64::from);
    let bounds = sized(&mut scratch.bounds, work.group * work.boxed().1.len());
    let scored = bounded(work, boxed, &mut scratch.estimates, bounds)?;
    let of_head = |(h, &slack): (usize, &f64)| Masses::of_head(work, &scored, bounds, slack, h);
    let masses: Vec<Masses> =
        slack(work, work.head.norm_max()).iter().enumerate().map(of_head).collect();
    let mut order = Order::new(&masses);
    let n = order.0.len();
    let mut count = order.count(&masses, eps);
    let proof = Proof { work, boxed, scored, masses };
    loop {
        if count as f64 > SCAN_SHARE * n as f64 {
            count = n;
        }
        order.part(0, n, count);
        let choice = proof.with_keys(&order.0[..count], &order.0[count..], eps)?;
        let proven = choice.bound.iter().flatten().all(|&b| f64::from(b) <= eps);
        // Estimated totals were too high: more keys. Or the cap on tokens binds: more will not help.
        if proven || count == n || choice.positions.len() >= boxed.cap_tokens() {
            return Ok(choice);
        }
        count = (2 * count).max(TILE).min(n);
    }
}

impl Proof<'_> {
    /// The choice after reading the keys of some candidates, and not those of the others.
    fn with_keys(&self, near: &[Ranked], far: &[Ranked], eps: f64) -> Result<Choice, Error> {
        let (work, scored, masses) = (self.work, &self.scored, &self.masses);
        let first = scored.candidates.start as u32;
        let read = ascending(near, near.len() + far.len());
        let logits = work.logits(&work.exact_query(true), read.iter().map(|&t| t + first))?;
        let low = self.key_masses(&logits);
        // All that is not kept, from above.
        let all: Vec<f64> = masses
            .iter()
            .zip(&low)
            .map(|(m, low)| {
                let unread: f64 = far.iter().map(|&(_, t)| m.upper[t as usize]).sum();
                unread + low.all * m.growth
            })
            .collect();
        // What is missed must stay below eps of everything: read >= (1 - eps) * all.
        let need = |(m, all): (&Masses, &f64)| (1.0 - eps) * (m.kept + all) * (1.0 + 1e-9) - m.kept;
        let need: Vec<f64> = masses.iter().zip(&all).map(need).collect();
        let low: Vec<Vec<f64>> = low.into_iter().map(|l| l.each).collect();
        let kept = scored.kept_tokens();
        let mut chosen = cover::fewest(&low, &need, self.boxed.cap_tokens().saturating_sub(kept));
        fill(&mut chosen, &low, self.boxed.floor_tokens().saturating_sub(kept));
        let bound = masses.iter().zip(&all).zip(&low).map(|((m, all), low)| {
            let held: f64 = chosen.iter().map(|&i| low[i as usize]).sum();
            let missed = (all - held * m.growth).max(0.0);
            let held = m.kept + held;
            // The subtraction may leave rounding dust of either sign.
            round_up(cover::missed_share(missed + (all + held) * 1e-12, held))
        });
        let mut choice = Choice { bound: Some(bound.collect()), ..Choice::default() };
        chosen.iter_mut().for_each(|i| *i = read[*i as usize] + first);
        choice.set(&scored.keep, &chosen);
        choice.bytes.summary = plane_bytes(work, self.boxed);
        choice.bytes.keys = (read.len() - chosen.len()) as u64 * work.key_bytes();
        Ok(choice)
    }

    /// Masses of tokens whose raw logits `[group][tokens]` are known.
    fn key_masses(&self, logits: &[f32]) -> Vec<KeyMasses> {
        let scale = scale(self.work);
        let tokens = logits.len() / self.work.group;
        let of_head = |(h, m): (usize, &Masses)| {
            let row = &logits[h * tokens..(h + 1) * tokens];
            let mass = |&x: &f32| ((f64::from(x) - m.slack) * scale - m.top).exp2();
            let mut each: Vec<f64> = row.iter().map(mass).collect();
            // A NaN key could hold anything: nothing from below, everything from above.
            let all: f64 = each.iter().sum();
            if all.is_nan() {
                each.iter_mut().filter(|x| x.is_nan()).for_each(|x| *x = 0.0);
            }
            KeyMasses { each, all: if all.is_nan() { f64::INFINITY } else { all } }
        };
        self.masses.iter().enumerate().map(of_head).collect()
    }
}

/// Masses of tokens whose keys were read.
struct KeyMasses {
    /// From below.
    each: Vec<f64>,
    /// Their sum; infinite if it is not known.
    all: f64,
}

/// The candidates of a part of the order, ascending; `n` in all.
fn ascending(part: &[Ranked], n: usize) -> Vec<u32> {
    let mut there = vec![false; n];
    part.iter().for_each(|&(_, t)| there[t as usize] = true);
    (0..n as u32).filter(|&t| there[t as usize]).collect()
}

/// Adds the heaviest tokens left until there are `least`.
fn fill(chosen: &mut Vec<u32>, mass: &[Vec<f64>], least: usize) {
    let n = mass.first().map_or(0, Vec::len);
    if chosen.len() >= least.min(n) {
        return;
    }
    let mut taken = vec![false; n];
    chosen.iter().for_each(|&i| taken[i as usize] = true);
    let sum = |i: u32| mass.iter().map(|m| m[i as usize]).sum::<f64>();
    let mut rest: Vec<(f64, u32)> =
        (0..n as u32).filter(|&i| !taken[i as usize]).map(|i| (sum(i), i)).collect();
    rest.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    chosen.extend(rest.iter().take(least - chosen.len()).map(|r| r.1));
    chosen.sort_unstable();
}
