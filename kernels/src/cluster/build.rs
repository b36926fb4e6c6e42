//! Building the clusters of some KV heads.

use std::ops::Range;

use super::balance::balance;
use super::finish::{Finish, Head};
use super::index::Clusters;
use super::lloyd::{Labelled, lloyd};
use super::members::Members;
use super::points::Points;
use super::rows::Rows;
use super::settings::{KMeans, Last};
use crate::{Error, Executor, Isa};

/// Tokens that are clustered without regard to others.
struct Span<'a> {
    head: usize,
    keys: Rows<'a>,
    values: Option<Rows<'a>>,
    clusters: Option<Clusters>,
}

/// Clusters the keys of each head. Token `i` of the result is row `i`.
///
/// Runs over heads, segments and parts of segments at once. The result depends on neither the number of
/// threads nor the instruction-set level. Working memory: five bytes per element of a segment's keys (of
/// all keys of a head where `settings` do not cluster segments by themselves), for each thread.
///
/// # Errors
/// [`Error::Range`] from [`KMeans::check`], [`Error::Shape`] if a head has not as many values as keys.
pub fn build(
    settings: &KMeans,
    heads: &[Head],
    isa: Isa,
    exec: &Executor,
) -> Result<Vec<Clusters>, Error> {
    settings.check()?;
    heads.iter().try_for_each(Head::check)?;
    let mut spans: Vec<Span> = Vec::new();
    for (i, head) in heads.iter().enumerate() {
        for range in parts(settings, head.keys.len()) {
            let keys = head.keys.slice(range.start, range.end);
            let values = head.values.map(|v| v.slice(range.start, range.end));
            spans.push(Span { head: i, keys, values, clusters: None });
        }
    }
    // As long as every thread has a span of its own that is the least trouble; the rest is shared.
    let alone = spans.len() - spans.len() % exec.threads();
    exec.chunks(&mut spans[..alone], 1, |_, span| span[0].run(settings, isa, &Executor::inline()));
    spans[alone..].iter_mut().for_each(|span| span.run(settings, isa, exec));
    let none = |h: &Head| Clusters::empty(h.keys.dim(), h.values.map_or(0, |v| v.dim()));
    let mut all: Vec<Clusters> = heads.iter().map(none).collect();
    for span in spans {
        let first = all[span.head].tokens();
        if let Some(clusters) = span.clusters {
            all[span.head].append(&clusters, first)?;
        }
    }
    Ok(all)
}

/// Ranges of tokens that do not influence each other.
fn parts(settings: &KMeans, tokens: usize) -> Vec<Range<usize>> {
    let apart = settings.last != Last::Everywhere && !settings.centre;
    ranges(if apart { settings.segment } else { 0 }, tokens)
}

/// `0..tokens` in pieces of `size` (0: one piece).
fn ranges(size: usize, tokens: usize) -> Vec<Range<usize>> {
    let size = if size == 0 { tokens.max(1) } else { size };
    (0..tokens).step_by(size).map(|from| from..(from + size).min(tokens)).collect()
}

impl Span<'_> {
    fn run(&mut self, settings: &KMeans, isa: Isa, exec: &Executor) {
        let points = Points::new(isa, &self.keys, settings.centre, 0.0, exec);
        let state = clustered(&points, settings, self.keys.len(), exec);
        let members = state.members(&points, 0);
        let lists = balance(&points, &members, settings, exec);
        let mut clusters = Clusters::empty(self.keys.dim(), self.values.map_or(0, |v| v.dim()));
        clusters.tokens = self.keys.len();
        clusters.unclustered.clone_from(&points.unclustered);
        for list in &lists {
            clusters.order.extend(list.iter().map(|&i| points.tokens[i as usize]));
            clusters.offsets.push(clusters.order.len() as u32);
        }
        let kept = settings.last == Last::Labels;
        if kept {
            clusters.centroids = restored(&points, &members, &state.centroids);
        }
        let head = Head { keys: self.keys, values: self.values };
        let all: Vec<u32> = (0..lists.len() as u32).collect();
        Finish { loops: points.loops, head, first: 0, kept }.run(&mut clusters, &all, exec);
        self.clusters = Some(clusters);
    }
}

/// Centroids and labels of all points of a span of `tokens` tokens.
fn clustered(points: &Points, settings: &KMeans, tokens: usize, exec: &Executor) -> Labelled {
    let (stride, metric) = (points.stride, settings.metric);
    let mut all = Labelled { centroids: Vec::new(), labels: Vec::with_capacity(points.len) };
    for range in ranges(settings.segment, tokens) {
        // Tokens that are not finite are no points.
        let point = |token: usize| points.tokens.partition_point(|&t| (t as usize) < token);
        let range = point(range.start)..point(range.end);
        let clusters = settings.clusters(range.len());
        let first = range.start;
        let mut part = lloyd(points, range, clusters, metric, settings.iterations, exec);
        if settings.last == Last::Labels {
            part.label(points, first, metric, exec);
        }
        let before = (all.centroids.len() / stride) as u32;
        all.labels.extend(part.labels.iter().map(|l| l + before));
        all.centroids.append(&mut part.centroids);
    }
    if settings.last == Last::Everywhere {
        all.label(points, 0, metric, exec);
    }
    all
}

/// Centroids of the clusters that have members, in the scale of the keys.
fn restored(points: &Points, members: &Members, centroids: &[f32]) -> Vec<f32> {
    let mut out = Vec::new();
    for (c, centroid) in centroids.chunks_exact(points.stride).enumerate() {
        if !members.of(c).is_empty() {
            let at = out.len();
            out.resize(at + points.dim, 0.0);
            points.restored(centroid, &mut out[at..]);
        }
    }
    out
}
