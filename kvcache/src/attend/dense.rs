//! Dense attention of a run of sequences; pages that neighbours share are read once.

use kvist_kernels::attend::{self, Out, Params, Queries};
use kvist_kernels::{PageLists, Tensor3, Tensor3Mut};

use super::{AttendInfo, BytesRead, Call, Run};
use crate::{Error, Sequence};

/// Page lists of some sequences, all KV heads.
#[derive(Default)]
struct Lists {
    indptr: Vec<u32>,
    frames: Vec<u32>,
    lens: Vec<u32>,
    first: Vec<u32>,
}

impl Lists {
    /// Pages `skip..` of each sequence, up to `lens` tokens in all.
    fn push(&mut self, call: &Call, sequence: &Sequence, skip: usize, len: usize) {
        let page = call.cache.geometry().page_tokens;
        if self.indptr.is_empty() {
            self.indptr.push(0);
        }
        for head in &sequence.layers[call.layer].heads {
            self.frames.extend(&head.ids()[skip..len.div_ceil(page)]);
            self.indptr.push(self.frames.len() as u32);
            self.lens.push((len - skip * page) as u32);
            self.first.push((skip * page) as u32);
        }
    }

    fn view(&self) -> PageLists<'_> {
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
    let exec = &call.cache.shared.exec;
    Ok(attend::pages(&queries, &pool, &lists.view(), params, exec, out)?)
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
        let (n, shared) = call.group(&all.sequences[i..], &all.queries[i..]);
        let rows = row..row + all.queries[i..i + n].iter().sum::<usize>();
        let (sequences, queries) = (&all.sequences[i..i + n], &all.queries[i..i + n]);
        let group = Run { sequences, queries, rows: rows.clone() };
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
    fn group(&self, sequences: &[&Sequence], queries: &[usize]) -> (usize, usize) {
        let shared = |n: usize| self.shared_pages(&sequences[..n], &queries[..n]);
        let mut n = 1;
        if sequences.len() > 1 && shared(2) > 0 {
            n = 2;
            while n < sequences.len() && shared(n + 1) > 0 {
                n += 1;
            }
            return (n, shared(n));
        }
        let alone = |i: usize| self.shared_pages(&sequences[i..i + 2], &queries[i..i + 2]) == 0;
        while n < sequences.len() && (n + 1 == sequences.len() || alone(n)) {
            n += 1;
        }
        (n, 0)
    }

    /// Leading pages that all these sequences hold and all their queries see in full.
    fn shared_pages(&self, sequences: &[&Sequence], queries: &[usize]) -> usize {
        if self.options.window > 0 {
            return 0;
        }
        let page = self.cache.geometry().page_tokens;
        let at = self.layer;
        let seen = sequences.iter().zip(queries).map(|(s, &n)| (s.layers[at].len - n) / page);
        let most = seen.min().unwrap_or(0);
        let first = &sequences[0].layers[at];
        let common = |a: &[u32], b: &[u32]| a.iter().zip(b).take_while(|(x, y)| x == y).count();
        sequences[1..].iter().fold(most, |most, s| {
            let heads = first.heads.iter().zip(&s.layers[at].heads);
            heads.fold(most, |most, (a, b)| most.min(common(a.ids(), b.ids())))
        })
    }

    fn params(&self) -> Params<'_> {
        Params { causal: true, window: self.options.window as u32, ..self.params }
    }

    /// Row offsets and positions of a group's queries.
    fn rows(&self, group: &Run) -> (Vec<u32>, Vec<u32>) {
        let (mut indptr, mut positions) = (vec![0], Vec::new());
        for (s, &n) in group.sequences.iter().zip(group.queries) {
            let len = s.layers[self.layer].len;
            positions.extend((len - n..len).map(|p| p as u32));
            indptr.push(positions.len() as u32);
        }
        (indptr, positions)
    }

    fn separate(
        &self,
        group: &Run,
        q: &Tensor3,
        out: &mut Tensor3Mut,
    ) -> Result<Vec<AttendInfo>, Error> {
        let (indptr, positions) = self.rows(group);
        let mut lists = Lists::default();
        group.sequences.iter().for_each(|s| lists.push(self, s, 0, s.layers[self.layer].len));
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
        lists.push(self, group.sequences[0], 0, pages * self.cache.geometry().page_tokens);
        let view = Tensor3Mut::contiguous(&mut prefix.0, [rows, heads, dim])?;
        let params = Params { sinks: None, ..self.params };
        let mut to = Out { o: view, lse2: Some(&mut prefix.1) };
        run(self, &lists, &[0, rows as u32], &positions, &params, q, &mut to)?;
        let mut lists = Lists::default();
        group.sequences.iter().for_each(|s| lists.push(self, s, pages, s.layers[self.layer].len));
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

    fn infos(&self, group: &Run, lse: &[f32], shared_pages: usize) -> Vec<AttendInfo> {
        let g = self.cache.geometry();
        let mut row = 0;
        let each = |(i, (s, &n)): (usize, (&&Sequence, &usize))| {
            let len = s.layers[self.layer].len;
            let seen = match self.options.window {
                0 => 0..len,
                w => len.saturating_sub(w + n.max(1) - 1)..len,
            };
            let own = if i == 0 { seen.len() } else { len - shared_pages * g.page_tokens };
            let own = own.min(seen.len());
            let positions = || seen.clone().map(|p| p as u32).collect::<Vec<u32>>();
            let info = AttendInfo {
                lse2: lse[row * g.q_heads..(row + n) * g.q_heads].to_vec(),
                tokens_read: vec![if n == 0 { 0 } else { seen.len() as u32 }; g.kv_heads],
                missed_mass_bound: Some(vec![0.0; g.q_heads]),
                selected: self.options.selected.then(|| vec![positions(); g.kv_heads]),
                bytes: BytesRead {
                    kv: if n == 0 { 0 } else { (own * g.kv_heads * g.token_bytes()) as u64 },
                    ..BytesRead::default()
                },
            };
            row += n;
            info
        };
        group.sequences.iter().zip(group.queries).enumerate().map(each).collect()
    }
}
