//! The patterns of the tables.

use kvist::policies::prefill::{
    AShape, BlockSparse, Grid, MInference, Nsa, Prefill, ProxyAttn, VerticalSlash,
};
use kvist::prefill::{self, BLOCK, Lists};
use kvist_kernels::Executor;

use super::prompt::Prompt;
use crate::Error;

/// Of the keys that a share stands for, as many distances are read by vertical-slash on real attention.
pub(super) const SLASH: f32 = 0.1;
/// First keys that patterns always read.
const SINKS: usize = 30;

/// How blocks are chosen. A share is that of the prompt's keys that the last queries shall read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Pattern {
    AShape(f32),
    /// Its second number: distances of a share that are not among the nearest.
    VerticalSlash(f32, f32),
    BlockSparse(f32),
    /// The best of the three for each head.
    Choice(f32),
    /// So many proxy heads, so much of the mass.
    Proxy(usize, f32),
    Nsa,
    /// The blocks with the highest true mass.
    Oracle(f32),
}

impl Pattern {
    pub(super) fn name(self) -> String {
        match self {
            Pattern::AShape(share) => format!("a-shape {share}"),
            Pattern::VerticalSlash(share, 0.0) => format!("vertical and nearest {share}"),
            Pattern::VerticalSlash(share, _) => format!("vertical-slash {share}"),
            Pattern::BlockSparse(share) => format!("block-sparse {share}"),
            Pattern::Choice(share) => format!("minference {share}"),
            Pattern::Proxy(1, mass) => format!("1 proxy, mass {mass}"),
            Pattern::Proxy(n, mass) => format!("{n} proxies, mass {mass}"),
            Pattern::Nsa => "nsa".to_owned(),
            Pattern::Oracle(share) => format!("oracle blocks {share}"),
        }
    }

    /// With the settings for a prompt of so many keys; for the oracle the share of the blocks.
    fn settings(self, keys: usize) -> Result<Prefill, f32> {
        let tokens = |share: f32| (share * keys as f32) as usize;
        let blocks = |share: f32| BlockSparse { blocks: tokens(share).div_ceil(BLOCK).max(1) };
        Ok(match self {
            Pattern::AShape(share) => {
                let local = tokens(share).saturating_sub(BLOCK).max(BLOCK);
                Prefill::AShape(AShape { sinks: SINKS, local })
            }
            Pattern::VerticalSlash(share, slash) => {
                let lines = VerticalSlash::default();
                let vertical = (tokens(share) / 2).max(SINKS);
                let slash = lines.recent.max((tokens(share) as f32 * slash) as usize);
                Prefill::VerticalSlash(VerticalSlash { vertical, slash, ..lines })
            }
            Pattern::BlockSparse(share) => Prefill::BlockSparse(blocks(share)),
            Pattern::Choice(share) => {
                Prefill::MInference(MInference { share: Some(share), ..MInference::default() })
            }
            Pattern::Proxy(proxies, mass) => {
                Prefill::ProxyAttn(ProxyAttn { proxies, mass, ..ProxyAttn::default() })
            }
            Pattern::Nsa => Prefill::Nsa(Nsa::default()),
            Pattern::Oracle(share) => return Err(share),
        })
    }

    /// Scores the prompt and builds the lists.
    pub(super) fn build(self, prompt: &Prompt, exec: &Executor) -> Result<Option<Lists>, Error> {
        prompt.with(prompt.queries, |queries, keys, params| match self.settings(prompt.keys) {
            Ok(p) => Ok(prefill::lists(&p, queries, keys, prompt.keys, params, exec)?),
            Err(share) => {
                let grid = Grid::causal(prompt.queries, prompt.keys, BLOCK, BLOCK);
                let grid = grid.map_err(kvist::Error::from)?;
                let scores = prefill::block_masses(queries, keys, params, &grid, exec)?;
                let blocks = (share * grid.key_blocks() as f32).ceil().max(1.0) as usize;
                let lists = BlockSparse { blocks }.lists(&grid, prompt.shape.q_heads, &scores);
                let lists = lists.map_err(kvist::Error::from)?;
                Ok(Some(Lists { lists, grid, per_query_head: true }))
            }
        })
    }
}
