//! Attention of a prompt's queries over blocks of keys that a pattern chooses.

use kvist_kernels::attend::{self, Listed, Out, Queries};
use kvist_kernels::{PageLists, Tensor3, Tensor3Mut};

use super::dense::{self, Lists};
use super::{AttendInfo, Call, Run};
use crate::Error;
use crate::prefill::{self, Prefill};

impl Call<'_> {
    /// Whether a pattern decides what the queries of a run read.
    pub(super) fn blockwise(&self, run: &Run) -> bool {
        let wanted = self.options.prefill.is_some_and(|pattern| *pattern != Prefill::Dense);
        // Drafts are verified exactly.
        wanted
            && self.depths.is_none()
            && self.options.window == 0
            && self.options.sinks.is_none()
            && run.queries.iter().any(|&n| n >= prefill::BLOCK)
    }
}

/// Sequence after sequence; those with few queries densely.
pub(super) fn attend(
    call: &Call,
    run: &Run,
    q: &Tensor3,
    out: &mut Tensor3Mut,
) -> Result<Vec<AttendInfo>, Error> {
    let (mut infos, mut row) = (Vec::with_capacity(run.sequences.len()), 0);
    for (i, &n) in run.queries.iter().enumerate() {
        let one = run.part(i..i + 1, row);
        let (q, mut out) = (q.rows(row, row + n), out.rows_mut(row, row + n));
        row += n;
        infos.append(&mut match n >= prefill::BLOCK {
            true => vec![sparse(call, &one, &q, &mut out)?],
            false => dense::attend(call, &run.part(i..i + 1, 0), &q, &mut out)?,
        });
    }
    Ok(infos)
}

fn sparse(call: &Call, run: &Run, q: &Tensor3, out: &mut Tensor3Mut) -> Result<AttendInfo, Error> {
    let pattern = call.options.prefill.unwrap_or(&Prefill::Dense);
    let len = run.sequences[0].layers[call.layer].len;
    let (rows, heads) = (q.shape()[0], q.shape()[1]);
    let (indptr, positions) = call.rows(run);
    let queries = Queries { q: *q, indptr: &indptr, positions: Some(&positions) };
    let mut pages = Lists::default();
    pages.push(call, run, 0, 0, len);
    let pages: PageLists = pages.view();
    let (pool, exec, params) = (call.cache.pool()?, &call.cache.shared.exec, call.params());
    let keys = Listed::Pages(&pool, &pages);
    let lists = prefill::lists(pattern, &queries, &keys, len, &params, exec)?;
    let mut lse = vec![0f32; rows * heads];
    let mut info = call.infos(run, &lse, 0).pop().unwrap_or_default();
    let mut to = Out { o: out.rows_mut(0, rows), lse2: Some(&mut lse) };
    match &lists {
        None => call.kernel(&queries, keys, &params, &mut to)?,
        Some(lists) => {
            attend::blocks(&queries, &pool, &pages, &lists.view(), &params, exec, &mut to)?;
            read(call, lists, len, &mut info);
        }
    }
    info.lse2 = lse;
    Ok(info)
}

/// Says what the last query read, and the bytes that some query of each head did.
fn read(call: &Call, lists: &prefill::Lists, len: usize, info: &mut AttendInfo) {
    let g = call.cache.geometry();
    let (grid, block) = (&lists.grid, lists.grid.key_block());
    let rows = grid.query_blocks();
    let of_head = |head: usize| -> (Vec<u32>, usize) {
        // A KV head reads what some query head of its group does.
        let own = match lists.per_query_head {
            true => head * g.group()..(head + 1) * g.group(),
            false => head..head + 1,
        };
        let (mut last, mut any) = (vec![false; len], vec![false; len]);
        for list in own {
            for row in 0..rows {
                let blocks = lists.lists.list(list * rows + row).iter();
                let tokens =
                    blocks.flat_map(|&b| b as usize * block..((b as usize + 1) * block).min(len));
                for token in tokens.chain(lists.lists.columns(list).iter().map(|&t| t as usize)) {
                    any[token] = true;
                    last[token] |= row + 1 == rows;
                }
            }
        }
        let positions = (0..len as u32).filter(|&t| last[t as usize]).collect();
        (positions, any.into_iter().filter(|&read| read).count())
    };
    let read: Vec<(Vec<u32>, usize)> = (0..g.kv_heads).map(of_head).collect();
    info.missed_mass_bound = None;
    info.tokens_read = read.iter().map(|(last, _)| last.len() as u32).collect();
    let tokens: usize = read.iter().map(|(_, any)| any).sum();
    info.bytes.kv = (tokens * g.token_bytes()) as u64;
    if call.options.selected {
        info.selected = Some(read.into_iter().map(|(last, _)| last).collect());
    }
}
