//! Every part attends over what it has; the partial results are merged in the order of the parts.

use std::ops::Range;

use kvist_kernels::attend::{self, Out};
use kvist_kernels::{Tensor3, Tensor3Mut};

use super::ParallelSequence;
use crate::{AttendInfo, AttendOptions, Error, Sequence};

/// What a part made of some queries.
struct Partial {
    part: usize,
    /// `[queries, q_heads, dim_v]`
    o: Vec<f32>,
    info: AttendInfo,
}

impl ParallelSequence {
    /// Attends with the last `queries` positions of a layer, as [`Sequence::attend`] does: `q` is `[queries,
    /// q_heads, dim_k]`, `out` `[queries, q_heads, dim_v]`, any dtypes.
    ///
    /// A single query reads what the selector of each part picks there. The parts are asked one after the
    /// other, each with all the threads that its cache has. Several queries are taken in pieces that lie in
    /// one stripe; with a window, one by one.
    ///
    /// What is reported covers all parts: tokens read are summed, positions are those of the whole
    /// sequence, and a bound of the missed mass is proven if every part proves one.
    ///
    /// # Errors
    /// As [`Sequence::attend`], and [`Error::Setting`] for scores of an indexer and for sparse prefill, which
    /// are of one cache. Several queries need room to copy the pages in which their pieces end. If that fails,
    /// or a page cannot be read, rows of `out` may have been written.
    pub fn attend(
        &self,
        layer: usize,
        q: &Tensor3,
        options: &AttendOptions,
        out: &mut Tensor3Mut,
    ) -> Result<AttendInfo, Error> {
        let [queries, heads, _] = q.shape();
        self.check(layer, q, options, out)?;
        let len = self.lens[layer];
        let mut all = AttendInfo::default();
        let pieces: Vec<Range<usize>> = match options.window {
            0 => self.stripes.cut(len - queries..len).collect(),
            _ => (len - queries..len).map(|position| position..position + 1).collect(),
        };
        for piece in pieces {
            let rows = piece.start + queries - len..piece.end + queries - len;
            let q = q.rows(rows.start, rows.end);
            let parts = self.partials(layer, &q, &piece, options, queries == 1)?;
            let mut lse2 = vec![0f32; rows.len() * heads];
            let shape = [rows.len(), heads, out.shape()[2]];
            let views =
                parts.iter().map(|p| Ok((Tensor3::contiguous(&p.o, shape)?, &p.info.lse2[..])));
            let views = views.collect::<Result<Vec<_>, Error>>()?;
            let to = &mut Out { o: out.rows_mut(rows.start, rows.end), lse2: Some(&mut lse2) };
            attend::merge(&views, to)?;
            let mut info = self.together(&parts, &lse2, heads);
            all.lse2.append(&mut lse2);
            info.lse2 = std::mem::take(&mut all.lse2);
            all = info;
        }
        Ok(all)
    }

    fn check(
        &self,
        layer: usize,
        q: &Tensor3,
        options: &AttendOptions,
        out: &Tensor3Mut,
    ) -> Result<(), Error> {
        let len = self.layer_len(layer)?;
        let queries = q.shape()[0];
        let cache = self.parts[0].cache();
        cache.check_heads("out", out.shape(), queries, cache.geometry().dim_v)?;
        if options.scores.is_some() {
            return Err(Error::setting("scores", "none for a sequence in several caches", "some"));
        }
        if options.prefill.is_some() {
            return Err(Error::setting("prefill", "none for a sequence in several caches", "some"));
        }
        if queries > len {
            let what = "queries to attend";
            return Err(Error::Length { what, layer, len, found: queries });
        }
        Ok(())
    }

    /// What each part that has something to see makes of queries at neighbouring positions of one stripe, which
    /// are all of the call if they are `alone`.
    fn partials(
        &self,
        layer: usize,
        q: &Tensor3,
        positions: &Range<usize>,
        options: &AttendOptions,
        alone: bool,
    ) -> Result<Vec<Partial>, Error> {
        let owner = self.stripes.part_of(positions.start);
        let [queries, heads, _] = q.shape();
        let shape = [queries, heads, self.parts[0].cache().geometry().dim_v];
        let mut partials = Vec::new();
        for part in 0..self.parts.len() {
            let seen = self.stripes.count(part, positions.end);
            let before = match options.window {
                0 => 0,
                window => self.stripes.count(part, positions.end.saturating_sub(window)),
            };
            if seen == before {
                continue;
            }
            // The layer has a window even where it reaches beyond the part's first token.
            let window = if options.window == 0 { 0 } else { seen - before };
            // A learned logit joins the softmax once.
            let sinks = options.sinks.filter(|_| part == owner);
            let own = AttendOptions { window, sinks, ..*options };
            let sequence = &self.parts[part];
            let cut = self.cut_to(sequence, layer, seen)?;
            let sequence = cut.as_ref().unwrap_or(sequence);
            let mut o = vec![0f32; shape.iter().product()];
            let mut to = Tensor3Mut::contiguous(&mut o, shape)?;
            // A query that is alone, or has a window, stands at the part's last token. Of several, those of
            // the owner stand at their own; elsewhere, and if a piece has but one, they see all there is, densely.
            let at_the_end = alone || options.window > 0 || (part == owner && queries > 1);
            let info = match at_the_end {
                true => sequence.attend(layer, q, &own, &mut to)?,
                false => sequence.attend_all(layer, q, &own, &mut to)?,
            };
            partials.push(Partial { part, o, info });
        }
        Ok(partials)
    }

    /// A part's sequence without the tokens behind `len` of a layer; none if it has no more.
    fn cut_to(&self, part: &Sequence, layer: usize, len: usize) -> Result<Option<Sequence>, Error> {
        if part.layer_len(layer)? == len {
            return Ok(None);
        }
        let mut fork = part.fork();
        fork.cut(layer..layer + 1, len)?;
        Ok(Some(fork))
    }

    /// What the parts report, as of one sequence; `lse2` is the merged one of the last query.
    fn together(&self, parts: &[Partial], lse2: &[f32], heads: usize) -> AttendInfo {
        let mut all = AttendInfo::default();
        for Partial { info, .. } in parts {
            all.tokens_read.resize(info.tokens_read.len(), 0);
            all.tokens_read.iter_mut().zip(&info.tokens_read).for_each(|(sum, n)| *sum += n);
            all.bytes.summary += info.bytes.summary;
            all.bytes.keys += info.bytes.keys;
            all.bytes.kv += info.bytes.kv;
        }
        all.selected = self.positions(parts);
        all.missed_mass_bound = missed(parts, lse2.len() - heads, heads);
        all
    }

    /// Positions that were read per KV head, if every part reports them.
    fn positions(&self, parts: &[Partial]) -> Option<Vec<Vec<u32>>> {
        let mut all: Vec<Vec<u32>> = Vec::new();
        for Partial { part, info, .. } in parts {
            let selected = info.selected.as_ref()?;
            all.resize(selected.len(), Vec::new());
            for (all, own) in all.iter_mut().zip(selected) {
                let place = |&local: &u32| self.stripes.position(*part, local as usize) as u32;
                all.extend(own.iter().map(place));
            }
        }
        all.iter_mut().for_each(|positions| positions.sort_unstable());
        Some(all)
    }
}

/// The share of the softmax mass of all parts that may have been missed, per query head, if every part
/// proves one. A part that read `r` and missed at most the share `b` of its own has missed at most
/// `r b / (1 - b)`.
fn missed(parts: &[Partial], row: usize, heads: usize) -> Option<Vec<f32>> {
    let of = |head: usize| -> Option<f32> {
        let highest =
            parts.iter().map(|p| p.info.lse2[row + head]).fold(f32::NEG_INFINITY, f32::max);
        let (mut missed, mut total) = (0f64, 0f64);
        for Partial { info, .. } in parts {
            let bound = f64::from(info.missed_mass_bound.as_ref()?[head]);
            let read = match info.lse2[row + head] {
                f32::NEG_INFINITY => 0.0,
                lse => f64::from(lse - highest).exp2(),
            };
            if bound >= 1.0 {
                return Some(1.0);
            }
            missed += read * bound / (1.0 - bound);
            total += read / (1.0 - bound);
        }
        // Rounded up: it is a bound.
        Some(if total == 0.0 { 0.0 } else { ((missed / total) as f32).next_up().min(1.0) })
    };
    (0..heads).map(of).collect()
}
