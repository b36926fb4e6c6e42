//! Who reads what another selected: heads of a layer, and layers, whose selections overlap.
//!
//! Source: HShare (Wu et al., ICLR 2025): pairs are found greedily by the overlap of critical sets.

/// Tokens that both sets hold, as a share of the larger set; 0 for empty sets. Both are ascending.
#[must_use]
pub fn overlap(a: &[u32], b: &[u32]) -> f32 {
    let (mut i, mut j, mut both) = (0, 0, 0usize);
    while i < a.len() && j < b.len() {
        both += usize::from(a[i] == b[j]);
        let (x, y) = (a[i], b[j]);
        i += usize::from(x <= y);
        j += usize::from(y <= x);
    }
    both as f32 / a.len().max(b.len()).max(1) as f32
}

/// For each of `n`, who it borrows from: itself, or one with a lower number that does not borrow.
///
/// Of all pairs the one that overlaps most is taken first (ties: the lower borrower, then the lower
/// source), up to `most` of them. A source never borrows, a borrower borrows once and lends nothing; a
/// source may have several borrowers. `overlap(i, j)` is asked for `j < i` only; pairs with nothing in
/// common, or NaN, are left out.
#[must_use]
pub fn pairs(n: usize, most: usize, overlap: impl Fn(usize, usize) -> f32) -> Vec<usize> {
    let all = (0..n).flat_map(|i| (0..i).map(move |j| (i, j)));
    let mut all: Vec<(f32, usize, usize)> =
        all.map(|(i, j)| (overlap(i, j), i, j)).filter(|pair| pair.0 > 0.0).collect();
    // Stable: ties stay in the order of borrower and source.
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (mut from, mut lends, mut found) = ((0..n).collect::<Vec<_>>(), vec![false; n], 0);
    for (_, i, j) in all {
        if found == most {
            break;
        }
        if from[i] == i && from[j] == j && !lends[i] {
            (from[i], lends[j], found) = (j, true, found + 1);
        }
    }
    from
}

/// Which head of which layer selects for each head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sharing {
    /// By layer, who it reads from.
    layers: Vec<usize>,
    /// By layer and head, the head of the layer.
    heads: Vec<Vec<usize>>,
}

impl Sharing {
    /// From what each head selected at one step, `[layers][heads]`, ascending positions. Layers without
    /// heads are never partners: they are dense, or selected nothing.
    ///
    /// Of the heads of a layer the share `of_heads` reads what others of the layer selected, of the layers
    /// that partake the share `of_layers` what a layer below did, both rounded down. Layers overlap by the
    /// mean over their heads.
    #[must_use]
    pub fn found(sets: &[Vec<&[u32]>], of_heads: f32, of_layers: f32) -> Sharing {
        let most = |share: f32, n: usize| (f64::from(share) * n as f64) as usize;
        let of_layer = |sets: &Vec<&[u32]>| {
            pairs(sets.len(), most(of_heads, sets.len()), |a, b| overlap(sets[a], sets[b]))
        };
        let heads = sets.iter().map(of_layer).collect();
        let partake: Vec<usize> = (0..sets.len()).filter(|&l| !sets[l].is_empty()).collect();
        let mean = |a: usize, b: usize| {
            let (a, b) = (&sets[partake[a]], &sets[partake[b]]);
            let sum: f32 = a.iter().zip(b).map(|(a, b)| overlap(a, b)).sum();
            sum / a.len() as f32
        };
        let mut layers: Vec<usize> = (0..sets.len()).collect();
        let found = pairs(partake.len(), most(of_layers, partake.len()), mean);
        found.into_iter().enumerate().for_each(|(i, j)| layers[partake[i]] = partake[j]);
        Sharing { layers, heads }
    }

    /// The layer and the head whose selection this head reads: its own if it selects for itself. An owner
    /// is its own owner.
    #[must_use]
    pub fn owner(&self, layer: usize, head: usize) -> (usize, usize) {
        let from = self.layers.get(layer).copied().unwrap_or(layer);
        let of_layer = self.heads.get(from).and_then(|heads| heads.get(head));
        (from, of_layer.copied().unwrap_or(head))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// The best pair that may still be made, again and again.
    fn plain_pairs(n: usize, most: usize, overlap: &[Vec<f32>]) -> Vec<usize> {
        let mut taken: Vec<(usize, usize)> = Vec::new();
        for _ in 0..most {
            let mut best: Option<(usize, usize)> = None;
            for i in 0..n {
                for j in 0..i {
                    let free = taken.iter().all(|&(b, s)| b != i && b != j && s != i);
                    let larger = best.is_none_or(|(a, b)| overlap[i][j] > overlap[a][b]);
                    if free && overlap[i][j] > 0.0 && larger {
                        best = Some((i, j));
                    }
                }
            }
            taken.extend(best);
        }
        let from = |i| taken.iter().find(|p| p.0 == i).map_or(i, |p| p.1);
        (0..n).map(from).collect()
    }

    proptest! {
        #[test]
        fn overlaps_are_those_of_sets(
            a in prop::collection::btree_set(0u32..60, 0..40), b in prop::collection::btree_set(0u32..60, 0..40),
        ) {
            let list = |s: &BTreeSet<u32>| s.iter().copied().collect::<Vec<u32>>();
            let both = a.intersection(&b).count();
            let want = both as f32 / a.len().max(b.len()).max(1) as f32;
            prop_assert_eq!(overlap(&list(&a), &list(&b)), want);
            prop_assert_eq!(overlap(&list(&b), &list(&a)), want);
        }

        #[test]
        fn pairs_are_the_best_that_may_be_made(
            n in 0usize..9, most in 0usize..9, values in prop::collection::vec(0u8..6, 81), nan in any::<bool>(),
        ) {
            let value = |i: usize, j: usize| match values[i * 9 + j] {
                5 if nan => f32::NAN,
                x => f32::from(x) / 5.0,
            };
            let matrix: Vec<Vec<f32>> = (0..n).map(|i| (0..n).map(|j| value(i, j)).collect()).collect();
            let found = pairs(n, most, |i, j| matrix[i][j]);
            prop_assert_eq!(&found, &plain_pairs(n, most, &matrix));
            let borrow = (0..n).filter(|&i| found[i] != i);
            prop_assert!(borrow.clone().count() <= most);
            for i in borrow {
                prop_assert!(found[i] < i && found[found[i]] == found[i], "a source never borrows");
            }
        }

        #[test]
        fn owners_own_themselves_and_lie_below(
            seed in prop::collection::vec(prop::collection::btree_set(0u32..20, 1..8), 24),
            empty in prop::collection::vec(any::<bool>(), 6),
            of_heads in 0f32..1.0, of_layers in 0f32..1.0,
        ) {
            let lists: Vec<Vec<u32>> = seed.iter().map(|s| s.iter().copied().collect()).collect();
            let of_layer = |l: usize| match empty[l] {
                true => Vec::new(),
                false => lists[l * 4..l * 4 + 4].iter().map(Vec::as_slice).collect(),
            };
            let sets: Vec<Vec<&[u32]>> = (0..6).map(of_layer).collect();
            let sharing = Sharing::found(&sets, of_heads, of_layers);
            let mut borrowing = 0;
            for layer in 0..6 {
                let mut in_layer = 0;
                for head in 0..4 {
                    let (l, h) = sharing.owner(layer, head);
                    prop_assert!(l <= layer && sharing.owner(l, h) == (l, h));
                    prop_assert!(!empty[layer] || (l, h) == (layer, head), "never a partner");
                    prop_assert!(!empty[l] || l == layer);
                    in_layer += usize::from(l == layer && h != head);
                }
                prop_assert!(in_layer as f32 <= of_heads * 4.0);
                borrowing += usize::from(sharing.owner(layer, 0).0 != layer);
            }
            let partake = empty.iter().filter(|e| !**e).count();
            prop_assert!(borrowing as f32 <= of_layers * partake as f32);
        }
    }

    #[test]
    fn alike_sets_are_shared_first() {
        let (a, b, c): (&[u32], &[u32], &[u32]) = (&[1, 2, 3, 4], &[1, 2, 3, 9], &[7, 8, 9, 10]);
        let sets = [vec![a, c, b, c], vec![c, c, c, c], vec![b, c, b, c]];
        let sharing = Sharing::found(&sets, 0.5, 0.34);
        let of = |layer| (0..4).map(|head| sharing.owner(layer, head)).collect::<Vec<_>>();
        assert_eq!(of(0), [(0, 0), (0, 1), (0, 0), (0, 1)]);
        assert_eq!(of(1), [(1, 0), (1, 0), (1, 0), (1, 3)]);
        assert_eq!(of(2), of(0), "the layer it overlaps with most, not the nearest");
        assert_eq!(Sharing::found(&sets, 0.0, 0.0).owner(2, 3), (2, 3));
        assert_eq!(sharing.owner(7, 1), (7, 1));
    }
}
