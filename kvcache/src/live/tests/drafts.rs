//! Draft trees over pages that are not near.

use super::*;
use crate::{Drafts, ROOT, Trees};

/// A tree and the keys and values of its nodes.
pub(super) struct Draft {
    trees: Trees,
    k: Vec<bf16>,
    v: Vec<bf16>,
}

impl Draft {
    pub(super) fn new(nodes: usize, random: &mut Random) -> Draft {
        let parent = |i: usize| match random.below(i + 1) {
            0 => ROOT,
            n => n as u32 - 1,
        };
        let parents: Vec<u32> = (0..nodes).map(parent).collect();
        let trees = Trees::new(&[0, nodes as u32], &parents).unwrap();
        let (k, v) = data(random, nodes);
        Draft { trees, k, v }
    }

    pub(super) fn attend(
        &self,
        s: &Sequence,
        q: &[f32],
        options: &AttendOptions,
    ) -> Result<(Vec<f32>, AttendInfo), Error> {
        let drafts = Drafts { trees: &self.trees, k: rows(&self.k), v: rows(&self.v) };
        with_output(q, |q, out| s.attend_tree(0, q, &drafts, options, out))
    }
}

#[test]
fn nodes_see_pages_that_are_below_as_if_their_path_were_appended() {
    let mut random = Random(11);
    let (cache, memory) = tiered(&Select::Full, 1 << 20, Faults::default());
    let [few, all] = filled([&cache, &roomy(&Select::Full, 64)], 1500, &mut random);
    assert!(few.offload().unwrap() > 0);
    let reads = cache.stats().below_read_bytes;
    let draft = Draft::new(9, &mut random);
    let q = query(&mut random, 9);
    for window in [0, 700] {
        let options = AttendOptions { window, ..AttendOptions::default() };
        let (out, info) = draft.attend(&few, &q, &options).unwrap();
        for node in 0..9 {
            let mut fork = all.fork();
            for row in draft.trees.path(0, node as u32).unwrap() {
                let row = row as usize * ROW..(row as usize + 1) * ROW;
                append(&mut fork, &draft.k[row.clone()], &draft.v[row]).unwrap();
            }
            let q = &q[node * WIDTH..(node + 1) * WIDTH];
            let (want, reference) = attend(&fork, 0, q, &options).unwrap();
            assert!(near(&out[node * WIDTH..(node + 1) * WIDTH], &want), "node {node}");
            assert!(near(&info.lse2[node * HEADS * GROUP..], &reference.lse2));
        }
        let seen = if window == 0 { 1500 } else { 699 };
        assert_eq!(info.tokens_read, [seen; HEADS]);
    }
    assert_ne!(draft.trees.depths(), [0; 9], "not only roots");
    assert!(cache.stats().below_read_bytes > reads);
    drop((few, all));
    nothing_left(&cache, &memory);
}
