"""Text from a model on disk, its attention read through kvist.

    python examples/python/hf_generate.py .cache/models/smollm2-135m "The first moon landing"

`make models` puts a small model there. Any decoder-only transformers model on the CPU will do.
"""

import sys
import time

import torch
from kvist.hf import KvistCache
from transformers import AutoModelForCausalLM, AutoTokenizer

if len(sys.argv) < 2:
    sys.exit(__doc__)
directory = sys.argv[1]
prompt = sys.argv[2] if len(sys.argv) > 2 else "Python's built-in types are"

tokenizer = AutoTokenizer.from_pretrained(directory)
model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()

# Some text in front, so that there is something to leave out.
notes = "Lists, dictionaries and sets hold objects; strings and numbers cannot change. " * 40
inputs = tokenizer(notes + "\n\n" + prompt, return_tensors="pt")

# Each KV head reads at most 256 tokens per step; the first two layers read everything.
with KvistCache.for_model(model, select="boxed", budget=256) as cache:
    start = time.perf_counter()
    ids = model.generate(
        **inputs, past_key_values=cache, max_new_tokens=24, do_sample=False,
        pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    new = ids[0, inputs.input_ids.shape[1] :]
    print(prompt + tokenizer.decode(new, skip_special_tokens=True))
    print(f"\n{inputs.input_ids.shape[1]} + {len(new)} tokens in {seconds:.1f} s\n")
    print(cache.report())
