//! Clusters of sizes that suit reading: large ones split, tiny ones merged.

use super::members::{CHUNK, Members, mean};
use super::points::Points;
use super::settings::KMeans;
use super::targets::Metric;
use crate::Executor;

/// Lists of members of the clusters that have any, each ascending, with sizes as the settings want
/// them.
pub(super) fn balance(
    points: &Points,
    members: &Members,
    settings: &KMeans,
    exec: &Executor,
) -> Vec<Vec<u32>> {
    let mut lists = Vec::with_capacity(members.len());
    for cluster in (0..members.len()).map(|c| members.of(c)).filter(|m| !m.is_empty()) {
        split(points, cluster.to_vec(), settings.size_max, &mut lists);
    }
    if lists.iter().any(|list| list.len() < settings.size_min) {
        Merge::new(points, settings, &lists, exec).run(&mut lists);
        lists.retain(|list| !list.is_empty());
    }
    lists
}

/// Splits a list until no part has more than `most` members (0: any number). The farther half of the
/// members goes, as seen from the mean towards the farthest of them.
fn split(points: &Points, mut list: Vec<u32>, most: usize, lists: &mut Vec<Vec<u32>>) {
    if most == 0 || list.len() <= most {
        lists.push(list);
        return;
    }
    let (dot, distance2) = (points.loops.dot, points.loops.distance2);
    let mut middle = vec![0f32; points.stride];
    mean(points, &list, &mut middle);
    let row = |i: u32| points.row(i as usize);
    // SAFETY: the level is one this CPU has (so below).
    let distance = |&i: &u32| unsafe { distance2(row(i), &middle) };
    let farthest =
        list.iter().map(|i| (distance(i), *i)).reduce(|a, b| if b.0 > a.0 { b } else { a });
    let farthest = farthest.map_or(list[0], |f| f.1);
    let towards: Vec<f32> = row(farthest).iter().zip(&middle).map(|(x, m)| x - m).collect();
    // SAFETY: as above.
    let mut order: Vec<(f64, u32)> =
        list.iter().map(|&i| (unsafe { dot(row(i), &towards) }, i)).collect();
    order.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut off: Vec<u32> = order[..list.len() / 2].iter().map(|o| o.1).collect();
    off.sort_unstable();
    list.retain(|i| off.binary_search(i).is_err());
    split(points, list, most, lists);
    split(points, off, most, lists);
}

/// Merges small clusters into others.
struct Merge<'a> {
    points: &'a Points,
    settings: &'a KMeans,
    /// Means before any merge, `[clusters][stride]`, and their norms.
    means: Vec<f32>,
    norms: Vec<f64>,
}

impl Merge<'_> {
    fn new<'a>(
        points: &'a Points,
        settings: &'a KMeans,
        lists: &[Vec<u32>],
        exec: &Executor,
    ) -> Merge<'a> {
        let stride = points.stride;
        let (mut means, mut norms) = (vec![0f32; lists.len() * stride], vec![0f64; lists.len()]);
        let parts = (&mut means[..], CHUNK * stride);
        let tasks = lists.len().div_ceil(CHUNK);
        exec.chunks2(parts, (&mut norms, CHUNK), tasks, |task, means, norms| {
            let lists = &lists[task * CHUNK..];
            for ((mean_of, norm), list) in means.chunks_exact_mut(stride).zip(norms).zip(lists) {
                mean(points, list, mean_of);
                // SAFETY: the level is one this CPU has.
                *norm = unsafe { (points.loops.dot)(mean_of, mean_of) }.sqrt();
            }
        });
        Merge { points, settings, means, norms }
    }

    fn mean(&self, cluster: usize) -> &[f32] {
        &self.means[cluster * self.points.stride..][..self.points.stride]
    }

    fn score(&self, of: &[f32], cluster: usize) -> f64 {
        // SAFETY: as above.
        let dot = unsafe { (self.points.loops.dot)(of, self.mean(cluster)) };
        let norm = self.norms[cluster];
        match self.settings.metric {
            Metric::Euclidean => dot - 0.5 * norm * norm,
            Metric::Cosine if norm > 0.0 => dot / norm,
            Metric::Cosine => 0.0,
        }
    }

    /// Merges in order of the clusters; the one merged into has room for all.
    fn run(&self, lists: &mut [Vec<u32>]) {
        let most = if self.settings.size_max == 0 { usize::MAX } else { self.settings.size_max };
        for small in 0..lists.len() {
            let size = lists[small].len();
            if size == 0 || size >= self.settings.size_min {
                continue;
            }
            let fits =
                |c: &usize| *c != small && !lists[*c].is_empty() && lists[*c].len() + size <= most;
            let scores =
                (0..lists.len()).filter(fits).map(|c| (self.score(self.mean(small), c), c));
            let best = scores.reduce(|a, b| if b.0 > a.0 { b } else { a });
            if let Some((_, into)) = best {
                let taken = std::mem::take(&mut lists[small]);
                lists[into].extend(taken);
                lists[into].sort_unstable();
            }
        }
    }
}
