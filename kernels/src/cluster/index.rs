//! The clusters of one KV head.

use crate::Error;

/// Clusters of the keys of one KV head: centroids, members, and a radius that bounds scores.
///
/// Every token it covers is in exactly one cluster or in [`Clusters::unclustered`], whose keys are not
/// finite: no centroid says anything about them, so whoever selects clusters must read them always.
/// No cluster is empty. Token numbers are those of the rows given, plus what [`Clusters::append`] adds.
#[derive(Clone, Debug, PartialEq)]
pub struct Clusters {
    pub(super) dim: usize,
    pub(super) value_dim: usize,
    pub(super) tokens: usize,
    pub(super) centroids: Vec<f32>,
    pub(super) radii: Vec<f32>,
    pub(super) value_sums: Vec<f32>,
    pub(super) offsets: Vec<u32>,
    pub(super) order: Vec<u32>,
    pub(super) unclustered: Vec<u32>,
}

impl Clusters {
    /// No clusters yet, for keys of `dim` elements and values of `value_dim` (0: no value sums).
    #[must_use]
    pub fn empty(dim: usize, value_dim: usize) -> Clusters {
        Clusters {
            dim,
            value_dim,
            tokens: 0,
            centroids: Vec::new(),
            radii: Vec::new(),
            value_sums: Vec::new(),
            offsets: vec![0],
            order: Vec::new(),
            unclustered: Vec::new(),
        }
    }

    /// Number of clusters.
    #[must_use]
    pub fn len(&self) -> usize {
        self.radii.len()
    }

    /// Whether there is no cluster.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.radii.is_empty()
    }

    /// One more than the last token it speaks of.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Elements of a centroid.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Elements of a value sum; 0 without.
    #[must_use]
    pub fn value_dim(&self) -> usize {
        self.value_dim
    }

    /// All centroids, `[clusters, dim]`, in the keys' scale.
    #[must_use]
    pub fn centroids(&self) -> &[f32] {
        &self.centroids
    }

    /// Per cluster at least the largest Euclidean distance of a member from the centroid, so that
    /// `q . k <= q . centroid + |q| radius` for every member, in real numbers. `[clusters]`.
    #[must_use]
    pub fn radii(&self) -> &[f32] {
        &self.radii
    }

    /// Sums of the members' values in f32, `[clusters, value_dim]`.
    #[must_use]
    pub fn value_sums(&self) -> &[f32] {
        &self.value_sums
    }

    /// Where each cluster's members begin in [`Clusters::order`], `[clusters + 1]`.
    #[must_use]
    pub fn offsets(&self) -> &[u32] {
        &self.offsets
    }

    /// Tokens in the order of their clusters, ascending in each.
    #[must_use]
    pub fn order(&self) -> &[u32] {
        &self.order
    }

    /// Tokens of a cluster, ascending.
    ///
    /// # Panics
    /// If there is no such cluster.
    #[must_use]
    pub fn members(&self, cluster: usize) -> &[u32] {
        &self.order[self.offsets[cluster] as usize..self.offsets[cluster + 1] as usize]
    }

    /// Tokens whose keys are not finite, ascending: always to be read.
    #[must_use]
    pub fn unclustered(&self) -> &[u32] {
        &self.unclustered
    }

    /// Adds the clusters of later tokens; token 0 of `other` becomes `first`.
    ///
    /// # Errors
    /// [`Error::Shape`] if dimensions differ, [`Error::Range`] if `first` lies before the end of this
    /// index or tokens would not fit in `u32`. Nothing is added then.
    pub fn append(&mut self, other: &Clusters, first: usize) -> Result<(), Error> {
        let (found, expected) = ([other.dim, other.value_dim], [self.dim, self.value_dim]);
        if found != expected {
            let text = |d: [usize; 2]| format!("keys of {}, values of {}", d[0], d[1]);
            return Err(Error::shape("clusters to append", text(expected), text(found)));
        }
        if first < self.tokens {
            return Err(Error::range("first token", format!("{}..", self.tokens), first));
        }
        let last = first.checked_add(other.tokens).filter(|&end| u32::try_from(end).is_ok());
        let Some(tokens) = last else {
            return Err(Error::range("tokens", format!("0..={}", u32::MAX), first));
        };
        let (at, before) = (first as u32, self.order.len() as u32);
        self.tokens = tokens;
        self.centroids.extend_from_slice(&other.centroids);
        self.radii.extend_from_slice(&other.radii);
        self.value_sums.extend_from_slice(&other.value_sums);
        self.offsets.extend(other.offsets[1..].iter().map(|o| o + before));
        self.order.extend(other.order.iter().map(|t| t + at));
        self.unclustered.extend(other.unclustered.iter().map(|t| t + at));
        Ok(())
    }

    /// Forgets all tokens from `tokens` on and the clusters that have no others, and returns the clusters
    /// that lost some of theirs, by their new numbers. Those keep centroid and radius, which still bounds
    /// what is left; their value sums are NaN until [`refresh`](super::refresh) computes them again.
    ///
    /// At the end of a segment (or of an appended index) no cluster loses some of its tokens only, and what
    /// is left equals a fresh build of it, if the settings cluster segments by themselves
    /// (not [`Last::Everywhere`](super::Last), not `centre` over several segments).
    pub fn truncate(&mut self, tokens: usize) -> Vec<u32> {
        let mut cut = Vec::new();
        if tokens >= self.tokens {
            return cut;
        }
        self.tokens = tokens;
        let old = std::mem::replace(self, Clusters::empty(self.dim, self.value_dim));
        self.tokens = tokens;
        for cluster in 0..old.len() {
            let members = old.members(cluster);
            let left = members.partition_point(|&t| (t as usize) < tokens);
            if left == 0 {
                continue;
            }
            let whole = left == members.len();
            if !whole {
                cut.push(self.len() as u32);
            }
            self.order.extend_from_slice(&members[..left]);
            self.offsets.push(self.order.len() as u32);
            self.radii.push(old.radii[cluster]);
            self.centroids.extend_from_slice(&old.centroids[cluster * self.dim..][..self.dim]);
            let sum = &old.value_sums[cluster * self.value_dim..][..self.value_dim];
            self.value_sums.extend(sum.iter().map(|&s| if whole { s } else { f32::NAN }));
        }
        let left = old.unclustered.partition_point(|&t| (t as usize) < tokens);
        self.unclustered.extend_from_slice(&old.unclustered[..left]);
        cut
    }
}
