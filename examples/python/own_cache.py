"""A decode loop of your own over `kvist.Cache`, with NumPy.

    python examples/python/own_cache.py

Random numbers stand in for a model's projections; shapes, order of calls and reports are real.
"""

import kvist
import numpy as np

LAYERS, Q_HEADS, KV_HEADS, DIM, PROMPT = 4, 8, 2, 64, 4000
rng = np.random.default_rng(0)


def rows(tokens: int, heads: int) -> np.ndarray:
    return rng.standard_normal((tokens, heads, DIM)).astype(np.float32)


cache = kvist.Cache(
    layers=LAYERS, q_heads=Q_HEADS, kv_heads=KV_HEADS, head_dim=DIM, dtype="f32",
    host="256MiB", select="boxed", budget=512,
)  # fmt: skip
seq = cache.sequence()

# Prefill: any number of tokens at once.
for layer in range(LAYERS):
    seq.append(layer, rows(PROMPT, KV_HEADS), rows(PROMPT, KV_HEADS))

# Decode: one token per step and layer; each query reads at most 512 tokens per KV head.
for _ in range(3):
    for layer in range(LAYERS):
        seq.append(layer, rows(1, KV_HEADS), rows(1, KV_HEADS))
        out = seq.attend(layer, rows(1, Q_HEADS)[0])
print(f"{len(seq)} tokens, output {out.shape}, {seq}")

# What was read, and how far the result can be from attention over everything.
q = 3 * rows(1, Q_HEADS)[0]
dense, every = seq.fork(select="full").attend(0, q, info=True)
out, info = seq.attend(0, q, info=True)
print(
    f"budget 512: {info.tokens_read} tokens read per KV head, {sum(info.bytes_read.values()):,} of "
    f"{sum(every.bytes_read.values()):,} bytes, largest error {np.abs(out - dense).max():.4f}"
)

# A fork shares the pages and may read by another rule: here until at most 5 % of the softmax mass
# is left unread, proven for every query head.
certified = seq.fork(select=kvist.Select("boxed", max_missed_mass=0.05))
out, info = certified.attend(0, q, info=True)
missed = 1 - np.exp(info.lse - every.lse)
print(
    f"missed <= 0.05: {info.tokens_read} tokens read, proven {info.missed_mass_bound.max():.3f}, "
    f"true {missed.max():.3f}, largest error {np.abs(out - dense).max():.4f}"
)

# A mistake is named and changes nothing.
try:
    seq.append(0, rows(1, KV_HEADS), rows(1, KV_HEADS), position=7)
except kvist.PositionError as error:
    print(f"refused: {error}")

stats = cache.stats()
print(f"{stats.used_bytes:,} of {stats.budget_bytes:,} bytes used, forks included")
