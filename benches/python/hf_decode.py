"""Decoding speed of a real model at a long context: its own cache against kvist.

Run by `kvist bench hf-decode` with the context length as its argument; one JSON object per line. All
caches hold the same keys and values; the caches take turns, a few tokens each, so that all see the
same machine.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

TURNS, STEPS = 5, 8


def say(**row):
    print(json.dumps(row), flush=True)


def model_dir():
    root = Path(os.environ.get("KVIST_MODELS_DIR", ".cache/models"))
    return root / "smollm2-135m"


def main(context):
    try:
        from pydoc_data.topics import topics

        import torch
        from kvist.hf import KvistCache
        from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
    except ImportError as problem:
        say(error=f"left out: {problem}")
        return
    path = model_dir()
    if not path.exists():
        say(error=f"left out: no model in {path} (make models)")
        return
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    text = "\n\n".join(topics[name] for name in sorted(topics))[: 8 * context]
    ids = tokenizer(text, return_tensors="pt").input_ids[:, :context]
    with torch.inference_mode():
        own_attention = model.config._attn_implementation
        full = KvistCache.for_model(model, select="full", host="8GiB")
        for at in range(0, context, 512):
            model(ids[:, at : at + 512], past_key_values=full, logits_to_keep=1)
        own = DynamicCache(config=model.config)
        for layer, slot in full.kvist_layers.items():
            k, v = (torch.as_tensor(x).transpose(0, 1)[None] for x in full.sequences[0].read(slot))
            own.update(k, v, layer)
        budget = context // 8
        caches = {
            "own": own,
            "kvist full": full.fork(),
            "kvist boxed 1/8": full.fork(select="boxed", budget=budget),
            "kvist quest 1/8": full.fork(select="quest", budget=budget),
        }
        times = {name: [] for name in caches}
        for _ in range(TURNS + 1):
            for name, cache in caches.items():
                model.set_attn_implementation(own_attention if name == "own" else "kvist")
                start = time.perf_counter()
                for token in ids[0, :STEPS]:
                    model(token.reshape(1, 1), past_key_values=cache)
                times[name].append((time.perf_counter() - start) / STEPS)
    report(path.name, context, times, caches)


def report(model, context, times, caches):
    """The first turn of each cache warms up and does not count."""
    speeds = {}
    for name, turns in times.items():
        turns = sorted(turns[1:])
        spread = (turns[-2] - turns[1]) / turns[len(turns) // 2]
        speeds[name] = (1 / turns[len(turns) // 2], spread)
    for name, cache in caches.items():
        if name == "own":
            continue
        seen = cache.report()
        say(
            model=model,
            context=context,
            dtype="f32",
            cache=name,
            tokens_per_s=speeds[name][0],
            spread=speeds[name][1],
            own_tokens_per_s=speeds["own"][0],
            tokens=TURNS * STEPS,
            tokens_read=round(seen.tokens_read),
            mb_read=seen.bytes_read / 1e6,
        )


if __name__ == "__main__":
    main(int(sys.argv[1]))
