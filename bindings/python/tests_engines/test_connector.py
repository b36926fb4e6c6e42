"""kvist inside a real vLLM on the CPU, with SmolLM2: what it stores comes back, in the same process and in a
new one, and whatever happens to the store, the text stays what it is without it."""

import pytest
from conftest import LONG, PREEMPTED, PROMPTS, text
from engine import run, transfer

BLOCK = 128


def on_disk(path, **extra):
    return transfer(disk_dir=str(path / "store"), disk_bytes="512MiB", **extra)


def blocks(tokens):
    """Full blocks of a prompt of so many tokens, with one token left to compute."""
    return (tokens - 1) // BLOCK * BLOCK


def test_the_text_is_the_same_with_and_without(plain):
    """VL-1: 20 prompts, twice, the second time from the store."""
    cold, _, warm = run(
        ["generate", PROMPTS], ["reset"], ["generate", PROMPTS], config=transfer(host_bytes="1GiB")
    )["steps"]
    expected = [plain[prompt] for prompt in PROMPTS]
    assert cold["tokens"] == expected
    assert warm["tokens"] == expected
    assert warm["cached"] == [blocks(n) for n in warm["prompt"]]
    assert sum(warm["cached"]) > 0


def test_blocks_come_back_from_memory_disk_and_in_a_new_process(plain, tmp_path):
    """VL-2, I1: prompt, reset, prompt; a new process; one byte flipped on disk."""
    config = on_disk(tmp_path)
    cold, _, warm, _, _, disk, _ = run(
        ["generate", [LONG]], ["reset"], ["generate", [LONG]],
        ["damage", "forget_memory"], ["reset"], ["generate", [LONG]], ["flush"], config=config,
    )["steps"]  # fmt: skip
    want = blocks(cold["prompt"][0])
    assert want >= 5 * BLOCK and cold["cached"] == [0]
    assert warm["cached"] == disk["cached"] == [want]
    assert cold["tokens"] == warm["tokens"] == disk["tokens"] == [plain[LONG]]

    again, stats = run(["generate", [LONG]], ["stats"], config=config)["steps"]
    assert again["cached"] == [want] and again["tokens"] == [plain[LONG]]
    assert stats["gets_from_disk"] == want // BLOCK

    flipped = 0
    for segment in (tmp_path / "store").glob("seg-*.kv"):
        data = bytearray(segment.read_bytes())
        if len(data) > 1 << 20:
            # In the first record's payload: behind the segment's head, the record's head and tokens.
            data[4096 + (256 << 10)] ^= 1
            segment.write_bytes(data)
            flipped += 1
    assert flipped
    out = run(["generate", [LONG]], ["stats"], config=config)
    damaged, stats = out["steps"]
    assert damaged["tokens"] == [plain[LONG]]
    assert stats["misses"].get("checksum", 0) + stats["disk"]["quarantined"] >= 1
    assert out["log"].count("a load ended after") == 1


def test_chunks_preemption_and_shared_prefixes(plain):
    """VL-3: small chunks, too few blocks for four requests at once, shared prefixes, an abort while loading."""
    # Two shared blocks, and a third that is full after four more tokens; eight blocks for four such requests.
    prompts = list(PREEMPTED)
    assert [len(prompt) for prompt in prompts] == [3 * BLOCK - 4] * 4
    out = run(
        ["generate", prompts], ["reset"], ["generate", prompts],
        ["reset"], ["damage", "abort_while_loading"], ["generate", prompts], ["preemptions"],
        config=transfer(), max_num_batched_tokens=256, max_model_len=512, num_gpu_blocks_override=8,
    )  # fmt: skip
    cold, _, warm, _, aborted, after, preemptions = out["steps"]
    alone = [plain[prompt] for prompt in prompts]
    assert cold["tokens"] == warm["tokens"] == after["tokens"] == alone
    assert warm["cached"] == [2 * BLOCK] * 4
    assert preemptions > 0
    assert aborted == {"loading": 1, "left": 0}


@pytest.mark.parametrize("separate", [True, False])
def test_both_process_modes_and_a_connector_beside(plain, tmp_path, separate):
    """VL-4: the engine in a process of its own; beside vLLM's own disk connector."""
    config = transfer()
    if not separate:
        example = {
            "kv_connector": "ExampleConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"shared_storage_path": str(tmp_path)},
        }
        config = {
            "kv_connector": "MultiConnector",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": {"connectors": [config, example]},
        }
    cold, _, warm = run(
        ["generate", [LONG]], ["reset"], ["generate", [LONG]], config=config, separate=separate
    )["steps"]
    assert cold["tokens"] == warm["tokens"] == [plain[LONG]]
    assert warm["cached"] == [blocks(cold["prompt"][0])]


def test_opaque_blocks_come_back_too(plain, tmp_path):
    """3.6: the engine's bytes as they are; canonical blocks of the same directory are not taken for them."""
    cold, _, warm, _ = run(
        ["generate", [LONG]], ["reset"], ["generate", [LONG]], ["flush"],
        config=on_disk(tmp_path, canonical=False),
    )["steps"]  # fmt: skip
    assert cold["tokens"] == warm["tokens"] == [plain[LONG]]
    assert warm["cached"] == [blocks(cold["prompt"][0])]
    (other,) = run(["generate", [LONG]], config=on_disk(tmp_path))["steps"]
    assert other["cached"] == [0] and other["tokens"] == [plain[LONG]]


def test_tenants_do_not_meet(plain):
    """I5: the same prompt under another salt is not found."""
    first, _, other, _, same = run(
        ["generate", [LONG], 8, ["a"]], ["reset"], ["generate", [LONG], 8, ["b"]],
        ["reset"], ["generate", [LONG], 8, ["a"]], config=transfer(),
    )["steps"]  # fmt: skip
    assert first["cached"] == other["cached"] == [0]
    assert same["cached"] == [blocks(first["prompt"][0])]
    assert first["tokens"] == other["tokens"] == same["tokens"] == [plain[LONG]]


def test_the_engine_serves_on_whatever_happens_to_the_store(plain, tmp_path):
    """I6: no room on disk, files cut under it, a load that stalls, a store that is closed."""
    config = on_disk(tmp_path)
    full = [text(50, 300), text(51, 300)]
    out = run(
        ["generate", [LONG]], ["flush"],
        ["damage", "no_room"], ["generate", full], ["flush"], ["damage", "room"], ["generate", full],
        ["damage", "truncate"], ["reset"], ["generate", [LONG]],
        ["damage", "stall"], ["reset"], ["generate", [LONG]],
        ["damage", "close_store"], ["reset"], ["generate", [LONG]], ["generate", [LONG]],
        config=config,
    )  # fmt: skip
    steps = out["steps"]
    first, full_cold, full_warm = steps[0], steps[3], steps[6]
    cut, stalled, closed, last = steps[9], steps[12], steps[15], steps[16]
    assert full_cold["tokens"] == full_warm["tokens"]
    for step in (first, cut, stalled, closed, last):
        assert step["tokens"] == [plain[LONG]]
    assert stalled["cached"] == [blocks(first["prompt"][0])] and stalled["seconds"] > 2
    assert "the store was closed" in out["log"]


def test_a_killed_engine_leaves_a_store_that_is_right(plain, tmp_path):
    """I6: killed without warning while it writes; the next engine finds what was durable, and no other bytes."""
    config = on_disk(tmp_path)
    gone = run(["generate", [LONG]], ["damage", "kill"], config=config, survives=False)
    assert gone["code"] == -9
    again, _, warm = run(["generate", [LONG]], ["reset"], ["generate", [LONG]], config=config)[
        "steps"
    ]
    assert again["tokens"] == warm["tokens"] == [plain[LONG]]
    assert warm["cached"] == [blocks(again["prompt"][0])]


def test_a_directory_has_one_user(tmp_path):
    """I11: the second opener is refused with the pid; looking at the directory works."""
    import os

    import kvist

    with kvist.PrefixStore("16MiB", (tmp_path / "store", "64MiB")):
        out = run(["reset"], config=on_disk(tmp_path), survives=False)
        assert out["code"] != 0
        assert "InUseError" in out["log"] and str(os.getpid()) in out["log"]
        assert kvist.inspect(tmp_path / "store")


def test_a_wrong_key_stops_the_engine_with_a_suggestion():
    """Section 13: an unknown key names the one that was meant."""
    out = run(["reset"], config=transfer(host_byte="1GiB"), survives=False)
    assert out["code"] != 0 and "did you mean 'host_bytes'?" in out["log"]


def test_a_store_that_is_too_slow_is_left_alone_until_it_recovers():
    """Section 14: a load that takes longer than to compute is not promised again; trials in the background
    bring the store back."""
    prompt = text(61, 160)
    _, asked = run(
        ["generate", [LONG], 1], ["damage", "slow_store", prompt],
        config=transfer(**{"load.margin_ms": 0}),
    )["steps"]  # fmt: skip
    want = blocks(asked["cold"]["prompt"][0])
    cached = {name: asked[name]["cached"][0] for name in ("cold", "quick", "slow", "next", "back")}
    assert want == BLOCK
    assert cached == {"cold": 0, "quick": want, "slow": want, "next": 0, "back": want}
    assert asked["next"]["seconds"] < asked["stall"] < asked["slow"]["seconds"]
    assert len({str(step["tokens"]) for step in asked.values() if isinstance(step, dict)}) == 1
