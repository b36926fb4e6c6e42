//! How keys are clustered.

use super::targets::Metric;
use crate::Error;

/// How many clusters a segment gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// One per so many tokens, rounded to the nearest number, at least one.
    PerTokens(usize),
    /// This many.
    Exactly(usize),
}

/// What follows the iterations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Last {
    /// Nothing: each centroid is the mean of the members that the last iteration gave it.
    Means,
    /// Every token is labelled once more; centroids stay where the last iteration put them. Sizes are
    /// as they come then: `size_max` and `size_min` must be 0.
    Labels,
    /// Every token is labelled once more, with the clusters of all segments to choose from; each centroid
    /// is the mean of its members.
    Everywhere,
}

/// Settings of k-means over the keys of one KV head. Each published system is one value of them.
///
/// No randomness: centroids begin at every `floor(n / clusters)`-th key of their segment, equal scores go
/// to the lower cluster, sums run in token order. A centroid whose cluster is empty stays where it was.
///
/// Leave the first few tokens (attention sinks) out and read them always, as all published systems do: their
/// keys are unlike all others, and in a cluster with others they are not found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KMeans {
    /// Clusters of a segment; never more than it has keys.
    pub count: Count,
    /// Tokens of a segment, which is clustered by itself; the last one may be shorter. 0: one segment.
    pub segment: usize,
    /// What labels maximise.
    pub metric: Metric,
    /// Whether the mean of the keys is taken off before, and put back after.
    pub centre: bool,
    /// How often labels and centroids are computed.
    pub iterations: usize,
    /// What follows.
    pub last: Last,
    /// Most tokens of a cluster; larger ones are split. 0: any number.
    pub size_max: usize,
    /// Clusters with fewer tokens are merged into the nearest one that has room, if there is one.
    pub size_min: usize,
}

impl Default for KMeans {
    /// kvist's own: segments of 8192 tokens, 16 tokens a cluster, cosine, 3 iterations, at most 32 and at
    /// least 4 tokens a cluster.
    fn default() -> KMeans {
        KMeans {
            count: Count::PerTokens(16),
            segment: 8192,
            metric: Metric::Cosine,
            centre: false,
            iterations: 3,
            last: Last::Means,
            size_max: 32,
            size_min: 4,
        }
    }
}

impl KMeans {
    /// ClusterKV (DAC 2025, section 4 and its code): one segment, a cluster per 80 tokens, cosine against
    /// the mean of the raw keys, 20 iterations and a last labelling; sizes as they come. Its centroids
    /// begin at random tokens, drawn with replacement and so sometimes twice; here they begin at even
    /// distances.
    #[must_use]
    pub fn cluster_kv() -> KMeans {
        KMeans {
            count: Count::PerTokens(80),
            segment: 0,
            iterations: 20,
            last: Last::Labels,
            size_max: 0,
            size_min: 0,
            ..KMeans::default()
        }
    }

    /// RetroInfer (arXiv 2505.02922, the wave index and its code): keys centred by their mean over all
    /// tokens, segments of 8192 with a cluster per 16 tokens, nine iterations by cosine inside the
    /// segments and a tenth over all clusters; sizes as they come. Its code compares the first iteration's
    /// keys with centroids that are not normalised yet, and rounds the number of clusters to what its
    /// kernels like; here neither.
    #[must_use]
    pub fn retro_infer() -> KMeans {
        KMeans {
            centre: true,
            iterations: 9,
            last: Last::Everywhere,
            size_max: 0,
            size_min: 0,
            ..KMeans::default()
        }
    }

    /// Plain k-means by Euclidean distance, one segment, `count` clusters.
    #[must_use]
    pub fn lloyd(count: usize, iterations: usize) -> KMeans {
        KMeans {
            count: Count::Exactly(count),
            segment: 0,
            metric: Metric::Euclidean,
            iterations,
            size_max: 0,
            size_min: 0,
            ..KMeans::default()
        }
    }

    /// Checks that the settings mean something.
    ///
    /// # Errors
    /// [`Error::Range`] naming the setting.
    pub fn check(&self) -> Result<(), Error> {
        let (name, count) = match self.count {
            Count::PerTokens(n) => ("tokens per cluster", n),
            Count::Exactly(n) => ("clusters", n),
        };
        if count == 0 {
            return Err(Error::range(name, "at least 1", count));
        }
        if self.iterations == 0 {
            return Err(Error::range("iterations", "at least 1", self.iterations));
        }
        if self.last == Last::Labels && (self.size_max > 0 || self.size_min > 1) {
            let found = format!("{} and {}", self.size_max, self.size_min);
            return Err(Error::range("size_max and size_min", "0 with Last::Labels", found));
        }
        if self.size_max > 0 && self.size_max < 2 * self.size_min {
            // Halves of a cluster that is too large must not be too small.
            let least = format!("at least twice size_min = {}, or 0", self.size_min);
            return Err(Error::range("size_max", least, self.size_max));
        }
        Ok(())
    }

    /// Clusters of a segment with `keys` keys.
    pub(super) fn clusters(&self, keys: usize) -> usize {
        match self.count {
            Count::PerTokens(n) => ((keys + n / 2) / n).max(1).min(keys),
            Count::Exactly(n) => n.min(keys),
        }
    }
}
