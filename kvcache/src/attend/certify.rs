//! The certificate: reading until the softmax mass not read is provably small for every query head.
//!
//! Every bound holds for the exact real-number attention of the stored keys. Estimates carry their
//! rigorous half-width; exact logits carry the rounding slack of their f32 sums; masses are summed
//! in f64 relative to one reference per head.

use kvist_policies::{Boxed, cover};

use super::boxed::{self, Scored};
use super::head::{Choice, Scratch, Work, sized};
use crate::Error;
use crate::summaries::{Spec, TILE};

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
    /// From the exact logits of the positions read.
    pub(super) fn of_read(work: &Work, positions: &[u32]) -> Result<Certificate, Error> {
        let logits = work.logits(&work.exact_query(true), positions.iter().copied())?;
        let scale = f64::from(work.call.params.scale) * std::f64::consts::LOG2_E;
        let slack = slack(work);
        let n = positions.len();
        let read = (0..work.group).map(|h| {
            let low = logits[h * n..(h + 1) * n].iter().map(|&x| (f64::from(x) - slack[h]) * scale);
            let top = low.clone().fold(f64::NEG_INFINITY, f64::max);
            (top, low.map(|x| (x - top).exp2()).sum())
        });
        Ok(Certificate { scale, read: read.collect() })
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

fn round_up(x: f64) -> f32 {
    let near = x as f32;
    if f64::from(near) < x { near.next_up() } else { near }
}

/// Error of an f32 dot product per head, before the scale: n terms of relative error 2^-24 each,
/// bounded by the norms (doubled, for the order of summation and the product's own rounding).
fn slack(work: &Work) -> Vec<f64> {
    let dim = work.q.len() / work.group;
    let key = f64::from(work.head.norm_max());
    let of_head = |q: &[f32]| {
        let norm: f64 = q.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        2.0 * dim as f64 * norm * key * f64::from(f32::EPSILON / 2.0)
    };
    work.q.chunks(dim).map(of_head).collect()
}

/// Upper bounds of the raw logits of all candidates, `[group][candidates]`.
fn uppers(work: &Work, scored: &Scored, bounds: &[f32]) -> Vec<Vec<f64>> {
    let (candidates, tiles) = (scored.candidates(), scored.stride / TILE);
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

/// Scores with every stored plane and returns upper bounds with the scores.
fn bounded<'a>(
    work: &Work,
    boxed: &Boxed,
    estimates: &'a mut Vec<f32>,
    bounds: &mut Vec<f32>,
) -> Result<(Scored<'a>, Vec<Vec<f64>>), Error> {
    let bounds = sized(bounds, work.group * work.cells().len());
    let scored =
        boxed::score(work, boxed, boxed.planes, estimates, Some(&mut *bounds), None, true)?;
    let uppers = uppers(work, &scored, bounds);
    Ok((scored, uppers))
}

fn plane_bytes(work: &Work, boxed: &Boxed) -> u64 {
    match work.store.spec {
        Spec::Boxed(spec) => (work.cells().len() * spec.bytes_read(boxed.planes)) as u64,
        Spec::Units(_) => 0,
    }
}

/// The bound that a given choice has.
pub(super) fn prove(
    work: &Work,
    boxed: &Boxed,
    positions: &[u32],
    scratch: &mut Scratch,
) -> Result<Vec<f32>, Error> {
    let (scored, uppers) = bounded(work, boxed, &mut scratch.estimates, &mut scratch.bounds)?;
    let first = scored.candidates().start;
    let mut read = vec![false; scored.candidates().len()];
    for &p in positions {
        if scored.candidates().contains(&(p as usize)) {
            read[p as usize - first] = true;
        }
    }
    let certificate = Certificate::of_read(work, positions)?;
    Ok(certificate.bounds(|h| {
        let unread = uppers[h].iter().zip(&read).filter(|(_, read)| !**read);
        unread.map(|(&upper, _)| Unread { upper, tokens: 1.0 }).collect()
    }))
}

/// Masses of one head relative to its reference.
struct Masses {
    /// Kept tokens, from below.
    kept: f64,
    /// Candidates, from above, before any key is read.
    upper: Vec<f64>,
    top: f64,
}

fn masses(work: &Work, scored: &Scored, uppers: &[Vec<f64>], slack: &[f64]) -> Vec<Masses> {
    let scale = f64::from(work.call.params.scale) * std::f64::consts::LOG2_E;
    let kept = scored.kept_tokens();
    let of_head = |h: usize| {
        let row = &scored.kept[h * kept..(h + 1) * kept];
        let low = row.iter().map(|&x| (f64::from(x) - slack[h]) * scale);
        let highest = uppers[h].iter().copied().filter(|x| x.is_finite());
        let top = low.clone().chain(highest.map(|x| x * scale)).fold(f64::NEG_INFINITY, f64::max);
        let top = if top.is_finite() { top } else { 0.0 };
        let upper = uppers[h].iter().map(|&x| (x * scale - top).exp2()).collect();
        Masses { kept: low.map(|x| (x - top).exp2()).sum(), upper, top }
    };
    (0..work.group).map(of_head).collect()
}

/// Estimated total mass of a head, relative to its reference.
fn total(work: &Work, scored: &Scored, masses: &Masses, head: usize) -> f64 {
    let scale = f64::from(work.call.params.scale) * std::f64::consts::LOG2_E;
    let row = &scored.estimates[head * scored.stride..];
    let estimate = |t: usize| (f64::from(row[t]) * scale - masses.top).exp2();
    let sum: f64 = scored.candidates().map(estimate).filter(|x| x.is_finite()).sum();
    masses.kept + sum
}

/// Candidates in the order in which their keys should be read, and how many of them: until what
/// stays unread is small for every head.
fn to_read(masses: &[Masses], totals: &[f64], eps: f64) -> (Vec<u32>, usize) {
    let n = masses[0].upper.len();
    let worst = |t: u32| {
        let share =
            |(m, &total): (&Masses, &f64)| m.upper[t as usize] / total.max(f64::MIN_POSITIVE);
        masses.iter().zip(totals).map(share).fold(0.0, f64::max)
    };
    let mut order: Vec<(f64, u32)> = (0..n as u32).map(|t| (worst(t), t)).collect();
    order.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let order: Vec<u32> = order.into_iter().map(|x| x.1).collect();
    let mut count = n;
    let mut unread = vec![0f64; masses.len()];
    while count > 0 {
        let t = order[count - 1] as usize;
        unread.iter_mut().zip(masses).for_each(|(u, m)| *u += m.upper[t]);
        let within = |(u, total): (&f64, &f64)| *u <= UNREAD_SHARE * eps * total;
        if !unread.iter().zip(totals).all(within) {
            break;
        }
        count -= 1;
    }
    (order, count)
}

/// What the certificate works on.
struct Proof<'a> {
    work: &'a Work<'a>,
    boxed: &'a Boxed,
    scored: Scored<'a>,
    slack: Vec<f64>,
    masses: Vec<Masses>,
    /// Candidates, those whose keys to read first in front.
    order: Vec<u32>,
}

/// Reads keys until the certificate can be given, then attends to the fewest tokens that give it.
pub(super) fn choose(work: &Work, boxed: &Boxed, scratch: &mut Scratch) -> Result<Choice, Error> {
    let eps = boxed.max_missed_mass.map_or(0.0, f64::from);
    let (scored, uppers) = bounded(work, boxed, &mut scratch.estimates, &mut scratch.bounds)?;
    let slack = slack(work);
    let masses = masses(work, &scored, &uppers, &slack);
    let totals: Vec<f64> =
        masses.iter().enumerate().map(|(h, m)| total(work, &scored, m, h)).collect();
    let (order, mut count) = to_read(&masses, &totals, eps);
    let proof = Proof { work, boxed, scored, slack, masses, order };
    let n = proof.order.len();
    loop {
        if count as f64 > SCAN_SHARE * n as f64 {
            count = n;
        }
        let choice = proof.with_keys(count, eps)?;
        let proven = choice.bound.iter().flatten().all(|&b| f64::from(b) <= eps);
        // Estimated totals were too high: more keys. Or the cap on tokens binds: more will not help.
        if proven || count == n || choice.positions.len() >= boxed.cap_tokens() {
            return Ok(choice);
        }
        count = (2 * count).max(TILE).min(n);
    }
}

impl Proof<'_> {
    /// The choice after reading the keys of the first `count` candidates in order.
    fn with_keys(&self, count: usize, eps: f64) -> Result<Choice, Error> {
        let (work, scored, masses) = (self.work, &self.scored, &self.masses);
        let first = scored.candidates().start as u32;
        let mut read: Vec<u32> = self.order[..count].to_vec();
        read.sort_unstable();
        let logits = work.logits(&work.exact_query(true), read.iter().map(|&t| t + first))?;
        let low = self.key_masses(&logits, -1.0);
        let high = self.key_masses(&logits, 1.0);
        let unread: Vec<f64> = masses
            .iter()
            .map(|m| self.order[count..].iter().map(|&t| m.upper[t as usize]).sum())
            .collect();
        // What is missed must stay below eps of everything: read >= (1 - eps) * all.
        let need = |h: usize| {
            let all = masses[h].kept + unread[h] + high[h].iter().sum::<f64>();
            (1.0 - eps) * all * (1.0 + 1e-9) - masses[h].kept
        };
        let need: Vec<f64> = (0..work.group).map(need).collect();
        let kept = scored.kept_tokens();
        let mut chosen = cover::fewest(&low, &need, self.boxed.cap_tokens().saturating_sub(kept));
        fill(&mut chosen, &low, self.boxed.floor_tokens().saturating_sub(kept));
        let bound = (0..work.group).map(|h| {
            let all = unread[h] + high[h].iter().sum::<f64>();
            let missed = chosen.iter().fold(all, |m, &i| m - high[h][i as usize]);
            let held = chosen.iter().fold(masses[h].kept, |m, &i| m + low[h][i as usize]);
            // The subtraction may leave rounding dust of either sign.
            round_up(cover::missed_share(missed.max(0.0) + (all + held) * 1e-12, held))
        });
        let mut choice = Choice { bound: Some(bound.collect()), ..Choice::default() };
        choice.positions = scored.kept_positions().collect();
        choice.positions.extend(chosen.iter().map(|&i| read[i as usize] + first));
        choice.positions.sort_unstable();
        choice.bytes.summary = plane_bytes(work, self.boxed);
        choice.bytes.keys = (read.len() - chosen.len()) as u64 * work.key_bytes();
        Ok(choice)
    }

    /// Masses `[group][tokens]` of tokens whose raw logits are known: from below for `side` -1,
    /// from above for 1.
    fn key_masses(&self, logits: &[f32], side: f64) -> Vec<Vec<f64>> {
        let scale = f64::from(self.work.call.params.scale) * std::f64::consts::LOG2_E;
        let tokens = logits.len() / self.work.group;
        let mass = |h: usize, i: usize| {
            let x = f64::from(logits[h * tokens + i]) + side * self.slack[h];
            let mass = (x * scale - self.masses[h].top).exp2();
            // A NaN key could hold anything: nothing from below, everything from above.
            match (mass.is_nan(), side < 0.0) {
                (false, _) => mass,
                (true, true) => 0.0,
                (true, false) => f64::INFINITY,
            }
        };
        (0..self.work.group).map(|h| (0..tokens).map(|i| mass(h, i)).collect()).collect()
    }
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
