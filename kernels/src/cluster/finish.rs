//! What a cluster is known by, from its members: mean, radius, sum of values.

use super::index::Clusters;
use super::rows::Rows;
use crate::arch::cluster::{ClusterLoops, loops};
use crate::{DIM_MAX, Error, Executor, Isa};

/// Clusters that one task finishes.
const CHUNK: usize = 32;
/// A row as f32, padded with zeros.
type Row = [f32; DIM_MAX];

/// Keys of one KV head, with their values if value sums are wanted.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// Keys in token order.
    pub keys: Rows<'a>,
    /// As many values.
    pub values: Option<Rows<'a>>,
}

impl Head<'_> {
    pub(super) fn check(&self) -> Result<(), Error> {
        match self.values {
            Some(v) if v.len() != self.keys.len() => {
                let expected = format!("{} rows, one per key", self.keys.len());
                Err(Error::shape("values", expected, format!("{} rows", v.len())))
            }
            _ => Ok(()),
        }
    }

    fn dims(&self) -> [usize; 2] {
        [self.keys.dim(), self.values.map_or(0, |v| v.dim())]
    }
}

/// Computes centroid (the mean of the members), radius and value sum of the clusters listed again, as
/// [`build`](super::build) does; for those that [`Clusters::truncate`] cut. Row `i` of `head` is token
/// `first + i`.
///
/// # Errors
/// [`Error::Shape`] if dimensions or numbers of rows do not fit, [`Error::Range`] if a cluster does not
/// exist or has a member that `head` has no row for. Nothing is changed then.
pub fn refresh(
    clusters: &mut Clusters,
    which: &[u32],
    head: &Head,
    first: usize,
    isa: Isa,
    exec: &Executor,
) -> Result<(), Error> {
    head.check()?;
    let dims = [clusters.dim, clusters.value_dim];
    if head.dims() != dims {
        let text = |d: [usize; 2]| format!("keys of {}, values of {}", d[0], d[1]);
        return Err(Error::shape("rows of the clusters", text(dims), text(head.dims())));
    }
    for &cluster in which {
        if cluster as usize >= clusters.len() {
            return Err(Error::range("cluster", format!("0..{}", clusters.len()), cluster));
        }
        let end = first + head.keys.len();
        let outside = |t: &&u32| !(first..end).contains(&(**t as usize));
        if let Some(token) = clusters.members(cluster as usize).iter().find(outside) {
            return Err(Error::range("token of a cluster", format!("{first}..{end}"), token));
        }
    }
    Finish { loops: loops(isa), head: *head, first, kept: false }.run(clusters, which, exec);
    Ok(())
}

/// Computes what clusters are known by.
pub(super) struct Finish<'a> {
    pub(super) loops: ClusterLoops,
    /// Row `i` is token `first + i`; every member has one.
    pub(super) head: Head<'a>,
    pub(super) first: usize,
    /// Centroids are there already and stay.
    pub(super) kept: bool,
}

impl Finish<'_> {
    /// Writes what belongs to the clusters listed.
    pub(super) fn run(&self, clusters: &mut Clusters, which: &[u32], exec: &Executor) {
        let [dim, value_dim] = self.head.dims();
        clusters.centroids.resize(clusters.offsets.len().saturating_sub(1) * dim, 0.0);
        clusters.radii.resize(clusters.offsets.len() - 1, 0.0);
        clusters.value_sums.resize(clusters.radii.len() * value_dim, 0.0);
        let width = dim + 1 + value_dim;
        let mut found = vec![0f32; which.len() * width];
        exec.chunks(&mut found, CHUNK * width, |task, found| {
            let which = which[task * CHUNK..].iter().map(|&c| c as usize);
            for (found, cluster) in found.chunks_exact_mut(width).zip(which) {
                let (centroid, rest) = found.split_at_mut(dim);
                let members = clusters.members(cluster);
                if self.kept {
                    centroid.copy_from_slice(&clusters.centroids[cluster * dim..][..dim]);
                } else {
                    self.sum(&self.head.keys, members, members.len() as f64, centroid);
                }
                rest[0] = self.radius(members, centroid);
                if let Some(values) = &self.head.values {
                    self.sum(values, members, 1.0, &mut rest[1..]);
                }
            }
        });
        for (found, &cluster) in found.chunks_exact(width).zip(which) {
            let cluster = cluster as usize;
            clusters.centroids[cluster * dim..][..dim].copy_from_slice(&found[..dim]);
            clusters.radii[cluster] = found[dim];
            let sum = &mut clusters.value_sums[cluster * value_dim..][..value_dim];
            sum.copy_from_slice(&found[dim + 1..]);
        }
    }

    /// Reads a member's row.
    fn read<'b>(&self, rows: &Rows, token: u32, row: &'b mut Row) -> &'b [f32] {
        let dim = rows.dim();
        let src = rows.ptr(token as usize - self.first);
        // SAFETY: rows are readable for their dimension; the level is one this CPU has (so below).
        unsafe { (self.loops.widen)(rows.dtype(), src, &mut row[..dim]) };
        &row[..dim.next_multiple_of(8)]
    }

    /// Sum of members' rows in f64, over `by`.
    fn sum(&self, rows: &Rows, members: &[u32], by: f64, out: &mut [f32]) {
        let (mut row, mut sum) = ([0f32; DIM_MAX], [0f64; DIM_MAX]);
        for &token in members {
            let row = self.read(rows, token, &mut row);
            // SAFETY: as above.
            unsafe { (self.loops.add64)(&mut sum, row) }
        }
        out.iter_mut().zip(sum).for_each(|(o, s)| *o = (s / by) as f32);
    }

    /// A bound of the members' distances from the centroid: what f64 may have rounded off is added, and
    /// f32 is rounded up.
    fn radius(&self, members: &[u32], centroid: &[f32]) -> f32 {
        let (mut row, mut middle) = ([0f32; DIM_MAX], [0f32; DIM_MAX]);
        middle[..centroid.len()].copy_from_slice(centroid);
        let mut top = 0f64;
        for &token in members {
            let row = self.read(&self.head.keys, token, &mut row);
            // SAFETY: as above.
            top = top.max(unsafe { (self.loops.distance2)(row, &middle[..row.len()]) });
        }
        let bound = (top.sqrt() * (1.0 + 2f64.powi(-40))) as f32;
        if bound == 0.0 && top == 0.0 { 0.0 } else { bound.next_up() }
    }
}
