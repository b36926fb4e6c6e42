"""Time to the first token with and without a stored prefix, and what the connector costs when nothing hits.

    .venv-vllm/bin/python bindings/python/tests_engines/measure.py

Not a test: figures of a machine that does nothing else. Prints one JSON object; seconds.
"""

import json
import random
import statistics
import tempfile

from engine import run, transfer

PREFIX, TAIL, ROUNDS = 3584, 64, 5
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
    """Prompts of 1,024 tokens that nobody has asked, 16 new tokens each, one after the other."""

    def steps(first):
        return [["generate", [tokens(first + i, 1024)], 16] for i in range(8)]

    def one(first, config):
        out = run(["generate", [tokens(0, 256)], 1], *steps(first), config=config, **BUDGET)
        return sum(seconds(out["steps"][1:]))

    pairs = []
    for pair in range(3):
        store = transfer(host_bytes="1GiB")
        pairs.append((one(1000 * pair + 500, None), one(1000 * pair + 500, store)))
    return {
        "without": [round(a, 3) for a, _ in pairs],
        "with": [round(b, 3) for _, b in pairs],
        "ratio_of_medians": round(
            statistics.median(b for _, b in pairs) / statistics.median(a for a, _ in pairs), 4
        ),
    }


if __name__ == "__main__":
    print(json.dumps({"first_token": first_token(), "no_hits": no_hits()}, indent=1))
