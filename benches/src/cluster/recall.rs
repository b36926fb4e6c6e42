//! What clusters are worth: the softmax mass that the best of them cover.

use half::bf16;

use super::scene::{Head, Scene};

/// One token in so many is read.
pub(super) const READ: usize = 16;

/// Clusters of one head as everybody has them: a label per token. Centroids are the means.
pub(super) struct Labels<'a> {
    pub(super) labels: &'a [u32],
    pub(super) clusters: usize,
}

impl Labels<'_> {
    /// Covered mass of the head's queries when the clusters are read in the order of q . mean until a
    /// sixteenth of the tokens is; the last one in part. Mean over the queries.
    pub(super) fn recall(&self, scene: &Scene, head: &Head) -> f64 {
        let (means, members) = self.means(scene, head);
        let budget = scene.tokens / READ;
        let queries = head.queries.chunks_exact(scene.dim);
        let covered = queries.clone().map(|q| {
            let mass = masses(scene, head, q);
            let scores: Vec<f64> = means.chunks_exact(scene.dim).map(|m| dot(q, m)).collect();
            let mut order: Vec<usize> =
                (0..self.clusters).filter(|&c| !members[c].is_empty()).collect();
            order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
            let read = order.iter().flat_map(|&c| &members[c]).take(budget);
            read.map(|&t| mass[t as usize]).sum::<f64>()
        });
        covered.sum::<f64>() / queries.len() as f64
    }

    fn means(&self, scene: &Scene, head: &Head) -> (Vec<f32>, Vec<Vec<u32>>) {
        let mut members = vec![Vec::new(); self.clusters];
        let mut means = vec![0f32; self.clusters * scene.dim];
        for (token, &label) in self.labels.iter().enumerate() {
            members[label as usize].push(token as u32);
            let mean = &mut means[label as usize * scene.dim..][..scene.dim];
            mean.iter_mut().zip(key(scene, head, token)).for_each(|(m, k)| *m += k.to_f32());
        }
        for (mean, members) in means.chunks_exact_mut(scene.dim).zip(&members) {
            mean.iter_mut().for_each(|m| *m /= members.len().max(1) as f32);
        }
        (means, members)
    }
}

/// The most that any choice of a sixteenth of the tokens covers.
pub(super) fn oracle(scene: &Scene, head: &Head) -> f64 {
    let queries = head.queries.chunks_exact(scene.dim);
    let best = queries.clone().map(|q| {
        let mut mass = masses(scene, head, q);
        mass.sort_by(|a, b| b.total_cmp(a));
        mass[..scene.tokens / READ].iter().sum::<f64>()
    });
    best.sum::<f64>() / queries.len() as f64
}

fn key<'a>(scene: &Scene, head: &'a Head, token: usize) -> &'a [bf16] {
    &head.keys[token * scene.dim..][..scene.dim]
}

fn dot(q: &[f32], k: &[f32]) -> f64 {
    q.iter().zip(k).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// Softmax masses of all tokens.
fn masses(scene: &Scene, head: &Head, q: &[f32]) -> Vec<f64> {
    let logit = |token: usize| {
        let key = key(scene, head, token).iter().map(|k| f64::from(k.to_f32()));
        let dot: f64 = q.iter().zip(key).map(|(&a, b)| f64::from(a) * b).sum();
        dot * f64::from(scene.scale)
    };
    let logits: Vec<f64> = (0..scene.tokens).map(logit).collect();
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|x| (x - top).exp()).sum();
    logits.iter().map(|x| (x - top).exp() / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_of_one_token_are_the_oracle_and_one_cluster_is_chance() {
        let keys: Vec<f32> = (0..64).map(|i| ((i * 37) % 64) as f32 / 16.0).collect();
        let head =
            Head { keys: keys.iter().map(|&x| bf16::from_f32(x)).collect(), queries: vec![1.0] };
        let scene = Scene { name: String::new(), tokens: 64, dim: 1, scale: 1.0, heads: vec![] };
        let single: Vec<u32> = (0..64).collect();
        let recall = |labels: &[u32], clusters| Labels { labels, clusters }.recall(&scene, &head);
        let best = oracle(&scene, &head);
        assert!((recall(&single, 64) - best).abs() < 1e-12);
        assert!(recall(&[0; 64], 2) < 0.5 * best);
    }
}
