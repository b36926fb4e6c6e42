"""kvist's kernels over tensors that stay yours: an engine's paged cache is read where it lies.

python examples/python/own_pages.py
"""

import numpy as np
from kvist import kernels

Q_HEADS, KV_HEADS, DIM, PAGE = 8, 2, 64, 16
rng = np.random.default_rng(0)

# A pool of frames [frames, page_tokens, kv_heads, dim] and a page table, as engines have them.
pool_k, pool_v = (
    rng.standard_normal((256, PAGE, KV_HEADS, DIM)).astype(np.float32) for _ in range(2)
)
pool_k += 2 * rng.standard_normal((256, 1, KV_HEADS, DIM)).astype(
    np.float32
)  # neighbours are alike
frames = rng.permutation(256)[:128]
tokens = 128 * PAGE - 5
q = rng.standard_normal((1, Q_HEADS, DIM)).astype(np.float32)

# Dense: one sequence that owns all listed frames. `lse` is the log of the softmax's denominator.
dense, lse = kernels.attend_pages(q, pool_k, pool_v, [0, 128], frames, [tokens])
print(f"dense: {dense.shape}, {tokens} tokens")

# Sparse: score units of 16 tokens by Quest's bound, keep the best 32 units, read their slots only.
keys = pool_k[frames].reshape(-1, KV_HEADS, DIM)[:tokens]
scores = kernels.box_bound(q[0], keys)  # [q_heads, units], an upper bound of q.k
slots, indptr = [], [0]
for head in range(KV_HEADS):
    group = scores[head * Q_HEADS // KV_HEADS : (head + 1) * Q_HEADS // KV_HEADS].max(axis=0)
    last = len(group) - 1
    units = kernels.top_k(group, 32, forced=[(0, 1), (last, last + 1)])
    at = np.concatenate([np.arange(u * 16, min(u * 16 + 16, tokens)) for u in units])
    slots.append(frames[at // PAGE] * PAGE + at % PAGE)
    indptr.append(indptr[-1] + len(at))
sparse, sparse_lse = kernels.attend_slots(
    q, pool_k, pool_v, indptr, np.concatenate(slots), per_head=True
)
covered = np.exp(sparse_lse - lse)
print(f"sparse: {indptr[1]} tokens per KV head cover {covered.mean():.0%} of the softmax mass")

# Parts attended apart, on other threads or machines, join exactly.
first = kernels.attend_pages(q, pool_k, pool_v, [0, 64], frames[:64], [64 * PAGE])
second = kernels.attend_pages(q, pool_k, pool_v, [0, 64], frames[64:], [tokens - 64 * PAGE])
joined, _ = kernels.merge([first, second])
print(f"merged parts differ from one call by at most {np.abs(joined - dense).max():.1e}")
