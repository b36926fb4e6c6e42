"""`KvistCache` against the library's own cache, on the real model and on tiny random ones."""

import os
from pathlib import Path

import kvist
import pytest
import torch
from kvist.hf import KvistCache
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

ROOT = Path(__file__).resolve().parents[3]
MODELS = Path(os.environ.get("KVIST_MODELS_DIR", ROOT / ".cache" / "models"))


def tiny_llama(**more):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=199, hidden_size=96, intermediate_size=128, num_hidden_layers=3,
        num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=2048, **more,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def tiny_gemma():
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=199, hidden_size=96, intermediate_size=128, num_hidden_layers=6, head_dim=32,
        num_attention_heads=4, num_key_value_heads=1, sliding_window=16, max_position_embeddings=2048,
    )  # fmt: skip
    return Gemma3ForCausalLM(config).eval()


def generate(model, ids, cache, **options):
    options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0, **options}
    return model.generate(ids, past_key_values=cache, **options)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gemma])
def test_full_equals_the_own_cache(make):
    model = make()
    ids = torch.randint(1, 199, (1, 70))
    want = generate(model, ids, DynamicCache(config=model.config))
    assert torch.equal(generate(model, ids, KvistCache.for_model(model)), want)


def test_a_left_padded_batch_equals_the_own_cache():
    model = tiny_llama()
    ids = torch.randint(1, 199, (3, 40))
    mask = torch.ones_like(ids)
    mask[0, :13], mask[2, :1] = 0, 0
    want = generate(model, ids, DynamicCache(config=model.config), attention_mask=mask)
    got = generate(model, ids, KvistCache.for_model(model), attention_mask=mask)
    assert torch.equal(got, want)


def test_beams_equal_the_own_cache():
    model = tiny_llama()
    ids = torch.randint(1, 199, (2, 30))
    want = generate(model, ids, DynamicCache(config=model.config), num_beams=4)
    assert torch.equal(generate(model, ids, KvistCache.for_model(model), num_beams=4), want)


def test_a_conversation_continues_and_crops():
    model = tiny_llama()
    ids = torch.randint(1, 199, (1, 50))
    cache = KvistCache.for_model(model)
    first = generate(model, ids, cache)
    longer = torch.cat([first, torch.randint(1, 199, (1, 9))], 1)
    want = generate(model, longer, DynamicCache(config=model.config))
    assert torch.equal(generate(model, longer, cache), want)
    cache.crop(40)
    assert cache.get_seq_length() == 40
    want = generate(model, longer[:, :60], DynamicCache(config=model.config))
    assert torch.equal(generate(model, longer[:, :60], cache), want)


def test_a_budget_of_everything_is_dense():
    model = tiny_llama()
    ids = torch.randint(1, 199, (1, 300))
    want = generate(model, ids, DynamicCache(config=model.config))
    cache = KvistCache.for_model(model, select="boxed", budget=2000)
    assert torch.equal(generate(model, ids, cache), want)


def test_bad_options_are_named():
    model = tiny_llama()
    with pytest.raises(kvist.UnknownNameError, match="boxed"):
        KvistCache.for_model(model, select="boxd")
    with pytest.raises(kvist.KvistError, match="dense_layers"):
        KvistCache.for_model(model, dense_layers=(9,))


def test_the_real_model_gives_the_same_64_tokens():
    path = MODELS / "smollm2-135m"
    if not path.exists():
        pytest.fail(f"{path} is missing: run `make models`")
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    ids = tokenizer(
        "The Python language has many built-in types. " * 20, return_tensors="pt"
    ).input_ids
    own = DynamicCache(config=model.config)
    want = generate(model, ids, own, max_new_tokens=64)
    got = generate(model, ids, KvistCache.for_model(model), max_new_tokens=64)
    assert torch.equal(got, want)
