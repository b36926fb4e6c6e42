"""What PyTorch does with one decode step or one prompt of one layer: a small server for `kvist bench`.

Reads one JSON request per line, answers with one JSON object per line, ends with its input.
The first line it writes says which torch it found, or why it has none.

A request `{"op": "dense", "q_heads", "kv_heads", "head_dim", "context", "dtype", "threads",
"seconds", "repeats"}` is answered with `{form: {"median", "best", "spread", "repeats"}}` in seconds
for three forms of the same attention (one query token over the whole context):

- `sdpa-gqa`: `scaled_dot_product_attention(..., enable_gqa=True)`, what users run today;
- `sdpa-folded`: the query heads of a group as rows of one query, so that K and V are read once;
- `matmul`: `softmax(q @ k.T) @ v` with the group folded into rows.

A request with `"op": "quest"`, `"budget"` and `"unit"` is answered for one form of Quest over rotating layers:
`quest`, with two products for the bounds of pages, the largest of a group's for each page, top-k, a gather of
the pages and `scaled_dot_product_attention`.

A request with `"op": "prefill"` is answered for one form of causal attention of `context` queries:
`sdpa-flash`, the flash kernel of `scaled_dot_product_attention(.., is_causal=True, enable_gqa=True)`.
"""

import json
import sys
import time

CACHE_BYTES = 256 << 20  # walk over at least this much before reading the same bytes again


def say(value):
    print(json.dumps(value), flush=True)


def summary(times):
    times = sorted(times)

    def at(share):
        return times[round((len(times) - 1) * share)]

    median = at(0.5)
    spread = (at(0.75) - at(0.25)) / median if median else 0.0
    return {"median": median, "best": times[0], "spread": spread, "repeats": len(times)}


def measure(step, layers, seconds, repeats):
    """Times `step(layer)` over rotating layers after one unmeasured call."""
    step(0)
    times, began = [], time.perf_counter()
    while not times or not done(len(times), repeats, time.perf_counter() - began, seconds):
        start = time.perf_counter()
        step(len(times) % layers)
        times.append(time.perf_counter() - start)
    return summary(times)


def done(count, repeats, elapsed, seconds):
    if repeats is not None:
        return count >= repeats
    # A form that takes seconds a step is as certain after two steps as it needs to be.
    return elapsed >= seconds and (count >= 5 or (elapsed >= 4 * seconds and count >= 2))


def forms(torch, request, layers):
    """The three forms as functions of the layer, over the same K and V."""
    functional = torch.nn.functional
    heads, kv_heads = request["q_heads"], request["kv_heads"]
    dim, context = request["head_dim"], request["context"]
    group, scale = heads // kv_heads, dim**-0.5
    dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[request["dtype"]]
    torch.manual_seed(0)
    q = torch.randn(1, heads, 1, dim).to(dtype)
    folded = q.view(1, kv_heads, group, dim)
    one = torch.randn(1, kv_heads, context, dim).to(dtype)
    k = [one.clone() for _ in range(layers)]
    v = [one.flip(2).clone() for _ in range(layers)]

    def sdpa_gqa(i):
        functional.scaled_dot_product_attention(q, k[i], v[i], scale=scale, enable_gqa=True)

    def sdpa_folded(i):
        functional.scaled_dot_product_attention(folded, k[i], v[i], scale=scale)

    def matmul(i):
        weights = torch.softmax((folded @ k[i].transpose(2, 3)).float() * scale, dim=-1)
        weights.to(dtype) @ v[i]

    return {"sdpa-gqa": sdpa_gqa, "sdpa-folded": sdpa_folded, "matmul": matmul}


def quest_form(torch, request, layers):
    """One step as a function of the layer. Keys and values lie by page, so that a page is gathered in one piece."""
    functional = torch.nn.functional
    heads, kv_heads, dim = request["q_heads"], request["kv_heads"], request["head_dim"]
    unit, scale = request["unit"], dim**-0.5
    pages, chosen = request["context"] // unit, request["budget"] // unit
    dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[request["dtype"]]
    torch.manual_seed(0)
    q = torch.randn(kv_heads, heads // kv_heads, dim).to(dtype)
    k = [torch.randn(kv_heads, pages, unit, dim).to(dtype) for _ in range(layers)]
    v = [x.flip(1) for x in k]
    # Ready for the product, as they would be kept.
    upper = [x.amax(2).transpose(1, 2) for x in k]
    lower = [x.amin(2).transpose(1, 2) for x in k]
    head = torch.arange(kv_heads)[:, None]

    def step(i):
        bounds = torch.bmm(q.clamp(min=0), upper[i])
        bounds = torch.baddbmm(bounds, q.clamp(max=0), lower[i])
        best = bounds.amax(1).topk(chosen, sorted=False).indices
        keys, values = (x[i][head, best].view(1, kv_heads, -1, dim) for x in (k, v))
        functional.scaled_dot_product_attention(q[None], keys, values, scale=scale)

    return {"quest": step}


def layers_of(request):
    size = 4 if request["dtype"] == "f32" else 2
    layer = 2 * request["kv_heads"] * request["context"] * request["head_dim"] * size
    return -(-CACHE_BYTES // layer)


def dense(torch, request):
    return steps(torch, request, forms, layers_of(request))


def quest(torch, request):
    # What one step reads is a small part of a layer: several, so that it is not in a cache.
    return steps(torch, request, quest_form, max(4, layers_of(request)))


def steps(torch, request, forms, layers):
    torch.set_num_threads(request["threads"])
    with torch.inference_mode():
        steps = forms(torch, request, layers)
        return {
            name: measure(step, layers, request["seconds"], request.get("repeats"))
            for name, step in steps.items()
        }


def prefill(torch, request):
    """The first step counts if it alone takes longer than all repeats shall."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    functional = torch.nn.functional
    heads, kv_heads = request["q_heads"], request["kv_heads"]
    dim, context = request["head_dim"], request["context"]
    dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[request["dtype"]]
    torch.set_num_threads(request["threads"])
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, n, context, dim).to(dtype) for n in (heads, kv_heads, kv_heads))

    def step(_):
        functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    # Another kernel would hold the whole matrix of scores.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        start = time.perf_counter()
        step(0)
        first = time.perf_counter() - start
        if request.get("repeats") is None and first >= request["seconds"]:
            return {"sdpa-flash": summary([first])}
        return {"sdpa-flash": measure(step, 1, request["seconds"], request.get("repeats"))}


def main():
    try:
        import torch
    except Exception as problem:  # a broken installation raises more than ImportError
        say({"error": f"torch cannot be imported: {problem}"})
        return
    say({"torch": torch.__version__, "capability": torch.backends.cpu.get_cpu_capability()})
    for line in sys.stdin:
        try:
            request = json.loads(line)
            say({"dense": dense, "quest": quest, "prefill": prefill}[request["op"]](torch, request))
        except Exception as problem:
            say({"error": f"{type(problem).__name__}: {problem}"})


if __name__ == "__main__":
    main()
