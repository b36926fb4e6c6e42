"""A model that drafts for itself: a fork guesses over a part of the context, one dense pass checks.

    python examples/python/hf_speculate.py .cache/models/smollm2-135m

Greedy, so the text is exactly that of plain decoding. It gains time where reading the KV cache is
what a step costs: long contexts, large batches.
"""

import sys

import torch
from kvist.hf import KvistCache
from transformers import AutoModelForCausalLM, AutoTokenizer

if len(sys.argv) < 2:
    sys.exit(__doc__)
NEW, DRAFTED = 32, 3

tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
notes = "Lists, dictionaries and sets hold objects; strings and numbers cannot change. " * 40
ids = tokenizer(notes + "\n\nPython's built-in types are", return_tensors="pt").input_ids

with KvistCache.for_model(model, select="magicdec") as cache, torch.inference_mode():
    logits = model(ids, past_key_values=cache).logits[0, -1]
    text, views, rounds = [int(logits.argmax())], None, 0
    while len(text) < NEW:
        # The fork shares all pages. What its heads read is chosen once and handed on.
        with cache.fork(views=views) as draft:
            chain = [text[-1]]
            for _ in range(DRAFTED):
                step = model(torch.tensor([chain[-1:]]), past_key_values=draft)
                chain.append(int(step.logits[0, -1].argmax()))
            views = [sequence.view() for sequence in draft.sequences]
            read = draft.report().tokens_read
        # Several queries at once read everything.
        length = cache.get_seq_length()
        best = model(torch.tensor([chain]), past_key_values=cache).logits[0].argmax(-1).tolist()
        accepted = 0
        while accepted < DRAFTED and chain[accepted + 1] == best[accepted]:
            accepted += 1
        text += best[: accepted + 1]
        cache.crop(length + accepted + 1)
        rounds += 1

print(tokenizer.decode(text[:NEW]))
print(
    f"\n{len(text)} tokens in {rounds} rounds of {DRAFTED} drafts and a pass over all {ids.shape[1]}"
)
print(f"a draft step reads {read:.0f} tokens per KV head, dense layers counted in")
