"""Time to the first token with and without a stored prefix, and what the connector costs when nothing hits.

    .venv-vllm/bin/python bindings/python/tests_engines/measure.py [first_token] [no_hits]

Who else keeps prefixes is measured by `peers.py`. Not a test: figures of a machine that does nothing else. Prints one JSON object; seconds.
"""

import json
import random
import statistics
import sys
import tempfile

from engine import Engine, run, transfer

PREFIX, TAIL, ROUNDS, PAIRS = 3584, 64, 5, 24
BUDGET = {"max_model_len": 4096, "max_num_batched_tokens": 4096}


def tokens(seed, count):
    draw = random.Random(seed)
    return [draw.randrange(1000, 40000) for _ in range(count)]


def seconds(steps):
    return [round(step["seconds"], 4) for step in steps if isinstance(step, dict)]


def first_token():
    """A prompt of 3,648 tokens, of which 3,584 may be shared; one new token."""
    ask = [tokens(1, PREFIX) + tokens(100 + i, TAIL) for i in range(ROUNDS)]
    with tempfile.TemporaryDirectory() as folder:
        disk = {"disk_dir": f"{folder}/store", "disk_bytes": "1GiB", "host_bytes": "1GiB"}
        warm_up = ["generate", [tokens(0, 256)], 1]
        plain = run(
            warm_up,
            *(step for ask_ in ask for step in (["generate", [ask_], 1], ["reset"])),
            **BUDGET,
        )["steps"][1:]
        near = run(
            warm_up, ["generate", [ask[0]], 1], ["flush"], ["reset"],
            *(step for ask_ in ask for step in (["generate", [ask_], 1], ["reset"])),
            config=transfer(**disk), **BUDGET,
        )["steps"][4:]  # fmt: skip
        far = [
            run(warm_up, ["generate", [ask_], 1], config=transfer(**disk), **BUDGET)["steps"][1]
            for ask_ in ask[:3]
        ]
    return {
        "computed": seconds(plain),
        "from_memory": seconds(near),
        "from_disk_in_a_new_process": seconds(far),
        "cached": [near[0]["cached"], far[0]["cached"]],
    }


def no_hits():
    """Prompts of 1,024 tokens that nobody has asked, 16 new tokens each, to an engine without the connector and
    to one with it, in turns: each pair's ratio, and how much of the engine's CPU time is the connector's."""
    store = transfer(host_bytes="1GiB")
    store["kv_connector"], store["kv_connector_module_path"] = "TimingConnector", "timing"
    engines = [Engine(**BUDGET), Engine(config=store, **BUDGET)]
    took = [[], []]
    for engine in engines:
        engine.play("generate", [tokens(0, 1024)], 16)
    before = engines[1].play("spent")
    for i in range(PAIRS):
        # The first of a pair changes, so that what follows on what favours none.
        for which in (i % 2, 1 - i % 2):
            out = engines[which].play("generate", [tokens(500 + i, 1024)], 16)
            assert out["cached"] == [0]
            took[which].append(round(out["seconds"], 4))
    after = engines[1].play("spent")
    for engine in engines:
        engine.close()
    ratios = sorted(b / a for a, b in zip(*took, strict=True))
    whole = after["process"] - before["process"]
    hooks = sum(after["hooks"].values()) - sum(before["hooks"].values())
    return {
        "without": took[0],
        "with": took[1],
        "median_ratio": round(statistics.median(ratios), 4),
        "middle_half": [round(ratios[PAIRS // 4], 4), round(ratios[-PAIRS // 4], 4)],
        "cpu_share_of_hooks": round(hooks / whole, 4),
        "cpu_share_of_threads": round((after["threads"] - before["threads"]) / whole, 4),
    }


if __name__ == "__main__":
    parts = {"first_token": first_token, "no_hits": no_hits}
    wanted = sys.argv[1:] or list(parts)
    print(json.dumps({name: parts[name]() for name in wanted}, indent=1))
