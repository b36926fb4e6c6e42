"""300 requests with aborts, faults of the store and restarts: right or computed, nothing left behind."""

import random

import pytest
from conftest import text
from engine import MODEL, run, transfer
from transformers import AutoTokenizer

BLOCK = 32
REQUESTS, ENGINES = 300, 3
SMALL = {
    "block_size": BLOCK, "max_model_len": 512, "max_num_batched_tokens": 256,
    # Room for four requests of seven blocks, and little to keep for later ones: hits are kvist's.
    "num_gpu_blocks_override": 36,
}  # fmt: skip
FAULTS = [
    ["stall", 0.3], ["recover"], ["no_room"], ["room"], ["read_errors"], ["reads"], ["flip"], ["nothing"],
]  # fmt: skip
RINGS = 16
"""Rings that a file system keeps for later, at most."""
RESIDENT_MORE = 256 << 20
"""Bytes by which a process may grow after its first requests: the store's memory, which is less than
half of this, and what allocators keep."""


def prompts():
    """Twenty-four, in families of four that begin alike, of 100 to 200 tokens."""
    tokenizer, draw = AutoTokenizer.from_pretrained(MODEL), random.Random(5)
    made = []
    for family in range(6):
        shared = tokenizer(text(300 + family, 120))["input_ids"][: 3 * BLOCK]
        for member in range(4):
            own = tokenizer(text(400 + 10 * family + member, 120))["input_ids"]
            made.append(shared + own[: draw.randrange(BLOCK, 100)])
    return made


@pytest.fixture(scope="module")
def asked():
    return prompts()


@pytest.fixture(scope="module")
def computed(asked):
    """What an engine without kvist and without a cache says, one prompt after the other."""
    steps = (["generate", [prompt], 4] for prompt in asked)
    alone = run(*steps, enable_prefix_caching=False, **SMALL)["steps"]
    return [step["tokens"][0] for step in alone]


def config(path):
    disk = {"disk_dir": str(path / "store"), "disk_bytes": "256MiB", "disk_deadline": 2.0}
    # A quarter of the prompts' blocks, so that the others come from disk.
    return transfer(**{**disk, "host_bytes": "32MiB"})


def test_300_requests_whatever_happens(asked, computed, tmp_path):
    """The machine-readable form of "right or missing": every answer that was not aborted is the one without
    a cache; blocks, tickets, files, threads and memory are as before; every wait ends."""
    pairs = [FAULTS[i : i + 2] for i in range(0, len(FAULTS), 2)]
    answers = aborted = hits = far = 0
    misses = set()
    for engine in range(ENGINES):
        ends = "kill" if engine % 2 else "shutdown"
        warm_up = ["storm", asked, 1000 + engine, 8, []]
        # Each engine in another order.
        faults = pairs[engine:] + pairs[:engine]
        storm = ["storm", asked, engine, REQUESTS // ENGINES - 8, faults]
        first, last = run(warm_up, storm, config=config(tmp_path), ends=ends, **SMALL)["steps"]
        for which, tokens in first["outcome"] + last["outcome"]:
            if tokens is None:
                aborted += 1
            else:
                answers += 1
                assert tokens == computed[which], (engine, which)
        before, after = last["before"], last["after"]
        kept = ("free", "files", "threads")
        assert {what: after[what] for what in kept} == {what: before[what] for what in kept}
        assert after["threads"] and after["store_files"] <= before["store_files"] + 2
        assert after["rings"] <= before["rings"] + RINGS
        nothing = {"tickets": 0, "requests": 0, "queued": 0, "over": 0, "off": None}
        assert {what: after[what] for what in nothing} == nothing
        assert after["resident"] < before["resident"] + RESIDENT_MORE
        hits += last["did"]["gets"]
        far += last["did"]["from_disk"]
        misses |= set(last["did"]["misses"])
    assert answers + aborted == REQUESTS and 0 < aborted < REQUESTS / 4
    # It was not because nothing was loaded, or nothing failed.
    assert hits > REQUESTS / 10 and far > 0
    assert misses & {"io", "checksum", "torn", "gone", "degraded"}, misses


def test_other_bytes_would_have_shown(asked, computed, tmp_path):
    """The comparison means something: a prompt's blocks in each other's place change answers, although the
    texts repeat themselves."""
    swapped = run(
        *(["generate", [prompt], 4] for prompt in asked[:8]), ["reset"], ["damage", "mix_up"],
        *(["generate", [prompt], 4] for prompt in asked[:8]), config=config(tmp_path), **SMALL,
    )["steps"]  # fmt: skip
    tokens = [step["tokens"][0] for step in swapped if isinstance(step, dict)]
    assert tokens[:8] == computed[:8]
    assert sum(a != b for a, b in zip(tokens[8:], computed)) >= 1
