"""`KvistCache` against the library's own cache, on the real model and on tiny random ones."""

import os
import threading
from pathlib import Path

import kvist
import pytest
import torch
from kvist.hf import KvistCache
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

ROOT = Path(__file__).resolve().parents[3]
MODELS = Path(os.environ.get("KVIST_MODELS_DIR", ROOT / ".cache" / "models"))


SMALL = {
    "vocab_size": 199, "hidden_size": 96, "intermediate_size": 128, "num_hidden_layers": 4,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 2048,
}  # fmt: skip


def tiny(kind, config, **more):
    """A random model of this kind: what is tested is the wiring, not what it says."""
    torch.manual_seed(0)
    return kind(config(**{**SMALL, **more})).eval()


def tiny_llama(**more):
    return tiny(LlamaForCausalLM, LlamaConfig, **more)


def tiny_gemma():
    return tiny(
        Gemma3ForCausalLM, Gemma3TextConfig, num_hidden_layers=6, head_dim=32,
        num_attention_heads=4, num_key_value_heads=1, sliding_window=16,
    )  # fmt: skip


MODELS_OF_ALL_KINDS = {
    "llama": tiny_llama,
    "mistral": lambda: tiny(MistralForCausalLM, MistralConfig, sliding_window=None),
    "qwen2": lambda: tiny(Qwen2ForCausalLM, Qwen2Config),
    "qwen2, half sliding": lambda: tiny(
        Qwen2ForCausalLM, Qwen2Config, use_sliding_window=True, sliding_window=16,
        max_window_layers=2,
    ),
    "qwen3, wide heads": lambda: tiny(Qwen3ForCausalLM, Qwen3Config, head_dim=32),
    "gemma2, soft cap": lambda: tiny(
        Gemma2ForCausalLM, Gemma2Config, head_dim=32, sliding_window=16
    ),
    "gemma3, sliding": tiny_gemma,
    "gpt-oss, sinks": lambda: tiny(
        GptOssForCausalLM, GptOssConfig, head_dim=32, sliding_window=16, num_local_experts=4,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
}  # fmt: skip


def random_ids(*shape, seed=7):
    return torch.randint(1, 199, shape, generator=torch.Generator().manual_seed(seed))


def generate(model, ids, cache, **options):
    options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0, **options}
    return model.generate(ids, past_key_values=cache, **options)


def equals_own(model, ids, **options):
    """Whether kvist, reading everything, generates what the library's own cache does."""
    outs = []
    for cache in (DynamicCache(config=model.config), KvistCache.for_model(model)):
        torch.manual_seed(3)
        outs.append(generate(model, ids, cache, **options))
    return torch.equal(*outs)


@pytest.mark.parametrize("kind", MODELS_OF_ALL_KINDS)
def test_full_equals_the_own_cache(kind):
    assert equals_own(MODELS_OF_ALL_KINDS[kind](), random_ids(1, 70))


def test_windows_alone_are_refused():
    model = tiny(MistralForCausalLM, MistralConfig, sliding_window=16)
    with pytest.raises(kvist.UnsupportedError, match="at least one full-attention layer, found"):
        KvistCache.for_model(model)


def test_sampling_draws_the_same():
    model, ids = tiny_llama(), random_ids(2, 40)
    assert equals_own(model, ids, do_sample=True, temperature=0.8, top_p=0.9)
    assert equals_own(model, ids, do_sample=True, num_return_sequences=3)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gemma])
def test_assisted_decoding_crops_to_the_same(make):
    """Drafts that are refused are cropped from the cache."""
    model, ids = make(), random_ids(1, 20).repeat(1, 4)
    want = generate(model, ids, DynamicCache(config=model.config))
    crops = []

    class Spied(KvistCache):
        def crop(self, tokens_to_remove):
            crops.append(int(tokens_to_remove))
            super().crop(tokens_to_remove)

    cache = Spied.for_model(model)
    assert torch.equal(generate(model, ids, cache, prompt_lookup_num_tokens=4), want)
    assert min(crops) < 0
    assert {cache.get_seq_length(layer) for layer in range(len(cache.layers))} == {103}
    model.set_attn_implementation("sdpa")
    assert equals_own(model, ids, assistant_model=make())


def test_a_long_prompt_in_chunks_is_the_same():
    assert equals_own(tiny_llama(), random_ids(1, 90), prefill_chunk_size=32)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gemma])
def test_a_left_padded_batch_equals_the_own_cache(make):
    model = make()
    ids = random_ids(3, 40)
    mask = torch.ones_like(ids)
    mask[0, :13], mask[2, :1] = 0, 0
    assert equals_own(model, ids, attention_mask=mask)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gemma])
def test_beams_equal_the_own_cache(make):
    assert equals_own(make(), random_ids(2, 30), num_beams=4)


def test_a_conversation_continues_and_crops():
    model = tiny_llama()
    ids = random_ids(1, 50)
    cache = KvistCache.for_model(model)
    first = generate(model, ids, cache)
    longer = torch.cat([first, random_ids(1, 9, seed=8)], 1)
    want = generate(model, longer, DynamicCache(config=model.config))
    assert torch.equal(generate(model, longer, cache), want)
    cache.crop(40)
    assert cache.get_seq_length() == 40
    want = generate(model, longer[:, :60], DynamicCache(config=model.config))
    assert torch.equal(generate(model, longer[:, :60], cache), want)
    with pytest.raises(kvist.PositionError, match="crop: expected at most 83 tokens, found 84"):
        cache.crop(-84)
    cache.crop(0)
    assert cache.get_seq_length() == 83


def test_a_fork_leaves_its_parent_alone():
    model, ids = tiny_gemma(), random_ids(1, 50)
    cache = KvistCache.for_model(model)
    first = generate(model, ids, cache)
    want = generate(model, torch.cat([first, random_ids(1, 5)], 1), cache.fork())
    generate(model, torch.cat([first, random_ids(1, 40, seed=9)], 1), cache.fork())
    assert torch.equal(generate(model, torch.cat([first, random_ids(1, 5)], 1), cache), want)


def test_two_models_in_two_threads():
    models = [tiny_llama(), tiny(Qwen3ForCausalLM, Qwen3Config, head_dim=32)]
    prompts = [random_ids(1, 60, seed=seed) for seed in (1, 2)]
    wants = [generate(m, x, DynamicCache(config=m.config)) for m, x in zip(models, prompts)]
    caches = [KvistCache.for_model(model) for model in models]
    start = threading.Barrier(2)

    def work(i):
        start.wait()
        for _ in range(3):
            caches[i].reset()
            outs.append((i, generate(models[i], prompts[i], caches[i])))

    outs = []
    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(outs) == 6
    assert all(torch.equal(out, wants[i]) for i, out in outs)


def test_a_failed_forward_leaves_every_layer_as_it_was():
    model, ids = tiny_llama(), random_ids(1, 900)
    cache = KvistCache.for_model(model, host="280KiB")
    model(ids[:, :64], past_key_values=cache)
    with pytest.raises(kvist.BudgetError, match="over budget"):
        model(ids[:, 64:], past_key_values=cache)
    assert {cache.get_seq_length(layer) for layer in range(4)} == {64}
    got = model(ids[:, 64:70], past_key_values=cache).logits
    own = DynamicCache(config=model.config)
    model.set_attn_implementation("sdpa")
    model(ids[:, :64], past_key_values=own)
    assert torch.allclose(got, model(ids[:, 64:70], past_key_values=own).logits, atol=1e-4)


def test_a_reset_cache_is_new_whatever_made_its_tensors():
    model, ids = tiny_gemma(), random_ids(1, 40)
    cache = KvistCache.for_model(model)
    with torch.inference_mode():
        model(random_ids(1, 30, seed=8), past_key_values=cache)
    cache.reset()
    assert cache.get_seq_length() == 0 and cache.report().resident_bytes == 0
    want = generate(model, ids, DynamicCache(config=model.config))
    assert torch.equal(generate(model, ids, cache), want)


def test_use_after_close():
    model, ids = tiny_gemma(), random_ids(1, 40)
    cache = KvistCache.for_model(model)
    generate(model, ids, cache)
    cache.close()
    cache.close()
    assert cache.report().resident_bytes == 0
    for use in (
        lambda: generate(model, ids, cache),
        lambda: cache.fork(),
        lambda: cache.reset(),
        lambda: cache.crop(-1),
    ):
        with pytest.raises(kvist.ClosedError, match="cache: expected an open one, found it closed"):
            use()


def test_another_attention_implementation_is_noticed():
    model, ids = tiny_llama(), random_ids(1, 40)
    cache = KvistCache.for_model(model)
    model.set_attn_implementation("sdpa")
    with pytest.raises(kvist.UnsupportedError, match=r"set_attn_implementation\('kvist'\)"):
        generate(model, ids, cache)


def test_a_budget_of_everything_is_dense():
    model = tiny_llama()
    ids = random_ids(1, 300)
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
