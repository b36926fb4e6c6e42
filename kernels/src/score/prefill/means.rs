//! Means over tokens and over heads.

use crate::attend::sink::Sink;
use crate::attend::{Listed, Out};
use crate::{Error, Executor, Tensor3Mut};

use super::same_len;

/// Windows that a task does.
const WINDOWS: usize = 64;

/// Means of keys over windows of tokens and groups of heads, `out` `[windows, groups, dim_k]` of any
/// dtype: row `w` is the mean over tokens `w * stride .. w * stride + window` (as many as there are)
/// and over the KV heads of each group of `kv_heads / groups` neighbours. Sums run in f32.
///
/// Blocks of a prompt (MInference's block-sparse pattern): `window = stride = block`. Compressed keys
/// (NSA): window 32, stride 16. Proxy heads (ProxyAttn): `window = stride = 1` and fewer groups than
/// heads. Queries go the same way, as the rows of [`KvPool::from_rows`](crate::KvPool::from_rows).
///
/// # Errors
/// [`Error`] if the lists do not fit or are not those of one sequence, if `groups` does not divide the
/// heads, or if a window would have no token.
pub fn means(
    keys: &Listed,
    window: usize,
    stride: usize,
    exec: &Executor,
    out: &mut Tensor3Mut,
) -> Result<(), Error> {
    let (pool, source) = keys.source();
    let layout = pool.layout();
    // Frames of one head serve as many heads as there are lists.
    let kv_heads = match layout.kv_heads {
        1 if source.per_head() => source.lists().max(1),
        heads => heads,
    };
    keys.check_lists(1, kv_heads)?;
    let [windows, groups, dim] = out.shape();
    if groups == 0 || !kv_heads.is_multiple_of(groups) {
        return Err(Error::shape("groups of heads", format!("a divisor of {kv_heads}"), groups));
    }
    if dim != layout.dim_k {
        return Err(Error::shape("means", format!("dim_k {}", layout.dim_k), dim));
    }
    for (what, n) in [("window", window), ("stride", stride)] {
        if n == 0 {
            return Err(Error::range(what, "at least 1", n));
        }
    }
    let len = same_len(&source, kv_heads)?;
    let most = len.div_ceil(stride);
    if windows > most {
        return Err(Error::shape("windows", format!("at most {most} of {len} tokens"), windows));
    }
    let heads = kv_heads / groups;
    let mut out = Out { o: out.rows_mut(0, windows), lse2: None };
    let sink = Sink::new(&mut out);
    exec.run(windows.div_ceil(WINDOWS), |task| {
        let (mut sum, mut row) = (vec![0f32; dim], vec![0f32; dim]);
        let none = std::ptr::null();
        for w in task * WINDOWS..((task + 1) * WINDOWS).min(windows) {
            let tokens = w * stride..(w * stride + window).min(len);
            let (mut k, mut v) = (vec![none; tokens.len()], vec![none; tokens.len()]);
            for group in 0..groups {
                sum.fill(0.0);
                for head in group * heads..(group + 1) * heads {
                    let list = source.list(0, head, kv_heads);
                    source.fill(pool, list, head, tokens.start, (&mut k, &mut v));
                    for &ptr in &k {
                        // SAFETY: the pool vouches for the rows of listed tokens.
                        unsafe { crate::convert::widen(pool.dtype(), ptr, &mut row) }
                        sum.iter_mut().zip(&row).for_each(|(s, x)| *s += x);
                    }
                }
                let n = (heads * tokens.len()) as f32;
                sum.iter_mut().for_each(|s| *s /= n);
                // SAFETY: a window and group belongs to one task.
                unsafe { sink.write(w, group, &sum, f32::NEG_INFINITY) }
            }
        }
    });
    Ok(())
}
