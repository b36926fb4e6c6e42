//! Dense attention of a run of sequences; pages that neighbours share are read once.

use kvist_kernels::attend::{self, Listed, Out, Params, Queries};
use kvist_kernels::{PageLists, Tensor3, Tensor3Mut};

use super::{AttendInfo, BytesRead, Call, Run};
use crate::{Error, Sequence};

/// Page lists of some sequences, all KV heads.
#[derive(Default)]
pub(super) struct Lists {
    indptr: Vec<u32>,
    frames: Vec<u32>,
    lens: Vec<u32>,
    first: Vec<u32>,
}

impl Lists {
    /// Pages `skip..` of sequence `i` of the run, up to `len` tokens in all.
    pub(super) fn push(&mut self, call: &Call, run: &Run, i: usize, skip: usize, len: usize) {
        let g = call.cache.geometry();
        let page = g.page_tokens;
        if self.indptr.is_empty() {
            self.indptr.push(0);
        }
        for head in 0..g.kv_heads {
            self.frames.extend(&run.ids(call, i, head)[skip..len.div_ceil(page)]);
            self.indptr.push(self.frames.len() as u32);
            self.lens.push((len - skip * page) as u32);
            self.first.push((skip * page) as u32);
        }
    }

    pub(super) fn view(&self) -> PageLists<'_> {
        PageLists {
            indptr: &self.indptr,
            frames: &self.frames,
            lens: &self.lens,
            first_pos: Some(&self.first),
            per_head: true,
        }
    }
}

/// Runs the kernel: `parts` are sequences with the number of their leading pages to leave out.
fn run(
    call: &Call,
    lists: &Lists,
    indptr: &[u32],
    positions: &[u32],
    params: &Params,
    q: &Tensor3,
    out: &mut Out,
) -> Result<(), Error> {
    let queries = Queries { q: *q, indptr, positions: Some(positions) };
    let pool = call.cache.pool()?;
    call.kernel(&queries, Listed::Pages(&pool, &lists.view()), params, out)
}

pub(super) fn attend(
    call: &Call,
    all: &Run,
    q: &Tensor3,
    out: &mut Tensor3Mut,
) -> Result<Vec<AttendInfo>, Error> {
    let mut infos = Vec::with_capacity(all.sequences.len());
    let (mut i, mut row) = (0, 0);
    while i < all.sequences.len() {
        let (n, shared) = call.group(&all.part(i..all.sequences.len(), row));
        let group = all.part(i..i + n, row);
        let rows = group.rows.clone();
        (i, row) = (i + n, rows.end);
        let q = q.rows(rows.start, rows.end);
        let mut out = out.rows_mut(rows.start, rows.end);
        infos.append(&mut match shared {
            0 => call.separate(&group, &q, &mut out)?,
            pages => call.relay(&group, pages, &q, &mut out)?,
        });
    }
    Ok(infos)
}

impl Call<'_> {
    /// How many of the first sequences form a group, and the leading pages they share: either
    /// neighbours with at least one page in common, or neighbours with none.
    fn group(&self, run: &Run) -> (usize, usize) {
        let all = run.sequences.len();
        let shared = |n: usize| self.shared_pages(&run.part(0..n, 0));
        let mut n = 1;
        if all > 1 && shared(2) > 0 {
            n = 2;
            while n < all && shared(n + 1) > 0 {
                n += 1;
            }
            return (n, shared(n));
        }
        let alone = |i: usize| self.shared_pages(&run.part(i..i + 2, 0)) == 0;
        while n < all && (n + 1 == all || alone(n)) {
            n += 1;
        }
        (n, 0)
    }

    /// Leading pages that all these sequences hold and all their queries see in full.
    fn shared_pages(&self, run: &Run) -> usize {
        if self.options.window > 0 {
            return 0;
        }
        let g = self.cache.geometry();
        let seen = |i: usize| run.stands(self, i).start / g.page_tokens;
        let most = (0..run.sequences.len()).map(seen).min().unwrap_or(0);
        let common = |a: &[u32], b: &[u32]| a.iter().zip(b).take_while(|(x, y)| x == y).count();
        let ids = |i: usize, head: usize| run.ids(self, i, head);
        (1..run.sequences.len()).fold(most, |most, i| {
            (0..g.kv_heads).fold(most, |most, h| most.min(common(ids(0, h), ids(i, h))))
        })
    }

    pub(super) fn params(&self) -> Params<'_> {
        Params { causal: true, window: self.options.window as u32, ..self.params }
    }

    /// Row offsets and positions of a group's queries.
    pub(super) fn rows(&self, group: &Run) -> (Vec<u32>, Vec<u32>) {
        let mut indptr = vec![0];
        indptr.extend(group.queries.iter().scan(0, |row, &n| {
            *row += n as u32;
            Some(*row)
        }));
        (indptr, group.positions(self))
    }

    fn separate(
        &self,
        group: &Run,
        q: &Tensor3,
        out: &mut Tensor3Mut,
    ) -> Result<Vec<AttendInfo>, Error> {
        let (indptr, positions) = self.rows(group);
        let mut lists = Lists::default();
        let len = |s: &Sequence| s.layers[self.layer].len;
        let each = group.sequences.iter().enumerate();
        each.for_each(|(i, s)| lists.push(self, group, i, 0, len(s)));
        let mut lse = vec![0f32; q.shape()[0] * q.shape()[1]];
        let rows = out.shape()[0];
        let mut to = Out { o: out.rows_mut(0, rows), lse2: Some(&mut lse) };
        run(self, &lists, &indptr, &positions, &self.params(), q, &mut to)?;
        Ok(self.infos(group, &lse, 0))
    }

    /// One pass of all rows over the shared pages, one of each sequence over its own, merged.
    fn relay(
        &self,
        group: &Run,
        pages: usize,
        q: &Tensor3,
        out: &mut Tensor3Mut,
    ) -> Result<Vec<AttendInfo>, Error> {
        let (indptr, positions) = self.rows(group);
        let [rows, heads, dim] = out.shape();
        let part = || (vec![0f32; rows * heads * dim], vec![0f32; rows * heads]);
        let (mut prefix, mut suffix) = (part(), part());
        let mut lists = Lists::default();
        lists.push(self, group, 0, 0, pages * self.cache.geometry().page_tokens);
        let view = Tensor3Mut::contiguous(&mut prefix.0, [rows, heads, dim])?;
        let params = Params { sinks: None, ..self.params };
        let mut to = Out { o: view, lse2: Some(&mut prefix.1) };
        run(self, &lists, &[0, rows as u32], &positions, &params, q, &mut to)?;
        let mut lists = Lists::default();
        let len = |s: &Sequence| s.layers[self.layer].len;
        let each = group.sequences.iter().enumerate();
        each.for_each(|(i, s)| lists.push(self, group, i, pages, len(s)));
        let view = Tensor3Mut::contiguous(&mut suffix.0, [rows, heads, dim])?;
        let mut to = Out { o: view, lse2: Some(&mut suffix.1) };
        run(self, &lists, &indptr, &positions, &self.params(), q, &mut to)?;
        let mut lse = vec![0f32; rows * heads];
        let parts = [
            (Tensor3::contiguous(&prefix.0, [rows, heads, dim])?, &prefix.1[..]),
            (Tensor3::contiguous(&suffix.0, [rows, heads, dim])?, &suffix.1[..]),
        ];
        attend::merge(&parts, &mut Out { o: out.rows_mut(0, rows), lse2: Some(&mut lse) })?;
        Ok(self.infos(group, &lse, pages))
    }

    pub(super) fn infos(&self, group: &Run, lse: &[f32], shared_pages: usize) -> Vec<AttendInfo> {
        let g = self.cache.geometry();
        let mut row = 0;
        let each = |(i, (s, &n)): (usize, (&&Sequence, &usize))| {
            let len = s.layers[self.layer].len;
            let seen = match self.options.window {
                _ if n == 0 => len..len,
                0 => 0..len,
                w => (group.stands(self, i).start + 1).saturating_sub(w).min(len)..len,
            };
            let own = if i == 0 { seen.len() } else { len - shared_pages * g.page_tokens };
            let own = own.min(seen.len());
            let positions = || seen.clone().map(|p| p as u32).collect::<Vec<u32>>();
            let info = AttendInfo {
                lse2: lse[row * g.q_heads..(row + n) * g.q_heads].to_vec(),
                tokens_read: vec![seen.len() as u32; g.kv_heads],
                missed_mass_bound: Some(vec![0.0; g.q_heads]),
                selected: self.options.selected.then(|| vec![positions(); g.kv_heads]),
                bytes: BytesRead {
                    kv: (own * g.kv_heads * g.token_bytes()) as u64,
                    ..BytesRead::default()
                },
            };
            row += n;
            info
        };
        group.sequences.iter().zip(group.queries).enumerate().map(each).collect()
    }
}
