"""Decode attention on a GPU by others: torch's SDPA, and FlashInfer over pages. The rows are those of
`kvist bench gpu-attend`; rates count the bytes of K and V once, as there.

    python benches/python/gpu_peers.py [--out FILE] [--device cuda]

What is not installed is named and left out. `--device cpu --context 512` tries the program without a GPU.
"""

import argparse
import json
import statistics
import sys
import time

ROWS = [(1, 32 << 10), (1, 128 << 10), (8, 32 << 10), (32, 8 << 10)]
Q_HEADS, KV_HEADS, DIM, PAGE = 32, 8, 128, 16
CALLS, REPEATS = 20, 15
"""Calls between two waits, and how often they are timed."""


class Timer:
    """Seconds of a queued call: the median of many runs of calls."""

    def __init__(self, torch, device):
        self.wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def __call__(self, call):
        self.run(call, 3)
        return statistics.median(self.run(call, CALLS) for _ in range(REPEATS))

    def run(self, call, n):
        self.wait()
        start = time.perf_counter()
        for _ in range(n):
            call()
        self.wait()
        return (time.perf_counter() - start) / n


def sdpa(torch, device, batch, context):
    """Torch's attention over contiguous K and V, heads grouped."""
    kv = torch.randn(2, batch, KV_HEADS, context, DIM, dtype=torch.bfloat16, device=device)
    q = torch.randn(batch, Q_HEADS, 1, DIM, dtype=torch.bfloat16, device=device)
    attend = torch.nn.functional.scaled_dot_product_attention
    return lambda: attend(q, kv[0], kv[1], enable_gqa=True)


def folded(torch, device, batch, context):
    """The same with the query heads of a group as rows, which reads K and V once."""
    kv = torch.randn(2, batch, KV_HEADS, context, DIM, dtype=torch.bfloat16, device=device)
    shape = (batch, KV_HEADS, Q_HEADS // KV_HEADS, DIM)
    q = torch.randn(shape, dtype=torch.bfloat16, device=device)
    attend = torch.nn.functional.scaled_dot_product_attention
    return lambda: attend(q, kv[0], kv[1])


def flashinfer(torch, device, batch, context):
    """FlashInfer's decode over shuffled pages."""
    import flashinfer

    pages = context // PAGE
    shape = (batch * pages, 2, KV_HEADS, PAGE, DIM)
    kv = torch.randn(shape, dtype=torch.bfloat16, device=device)
    q = torch.randn(batch, Q_HEADS, DIM, dtype=torch.bfloat16, device=device)
    room = torch.empty(256 << 20, dtype=torch.uint8, device=device)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(room, "HND", use_tensor_cores=True)
    indptr = torch.arange(batch + 1, dtype=torch.int32, device=device) * pages
    indices = torch.randperm(batch * pages, device=device).to(torch.int32)
    last = torch.full((batch,), PAGE, dtype=torch.int32, device=device)
    wrapper.plan(indptr, indices, last, Q_HEADS, KV_HEADS, DIM, PAGE, q_data_type=q.dtype,
                 kv_data_type=kv.dtype)  # fmt: skip
    return lambda: wrapper.run(q, kv)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", help="file for the rows as JSON")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--context", type=int, help="one row of one sequence, this long")
    args = parser.parse_args()
    try:
        import torch
    except Exception as problem:
        print(f"SKIPPED: torch cannot be imported: {problem}")
        return 0
    if args.device == "cuda" and not torch.cuda.is_available():
        print("SKIPPED: torch sees no GPU")
        return 0
    name = torch.cuda.get_device_name() if args.device == "cuda" else args.device
    result = {"device": name, "torch": torch.__version__, "rows": [], "left_out": {}}
    timer = Timer(torch, args.device)
    for batch, context in [(1, args.context)] if args.context else ROWS:
        for peer in (sdpa, folded, flashinfer):
            try:
                seconds = timer(peer(torch, args.device, batch, context))
            except Exception as problem:
                result["left_out"][peer.__name__] = f"{type(problem).__name__}: {problem}"[:300]
                continue
            rate = 2 * batch * context * KV_HEADS * DIM * 2 / seconds * 1e-9
            row = {"peer": peer.__name__, "batch": batch, "context": context}
            result["rows"].append({**row, "us": round(seconds * 1e6, 2), "gb_s": round(rate, 1)})
            print(
                f"{peer.__name__:12}{batch:6}{context:9}{seconds * 1e6:12.1f} us{rate:10.1f} GB/s"
            )
    for peer, why in result["left_out"].items():
        print(f"left out: {peer}: {why}")
    if args.out:
        with open(args.out, "w", encoding="ascii") as out:
            json.dump(result, out, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
