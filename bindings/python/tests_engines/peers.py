"""Time to the first token of a prompt with a long shared prefix, by who keeps the prefix, in one run.

    make bench-vllm

One engine for each, all there at once; rounds go from one to the next, in another order each time, so that
what else the machine does, and what the one before leaves in the caches, meets all of them. Prints a table, and one JSON object as the last line; seconds. Not a test: figures of a
machine that does nothing else. Needs about 2 GB of memory for each engine.
"""

import argparse
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from engine import LMCACHE, Engine, offloading, transfer
from measure import BUDGET, PREFIX, TAIL, tokens

BLOCK = 128
KEEP = 1 << 30
"""Bytes that each of them may keep in memory."""


def lmcache(port):
    """LMCache's server, over its own protocol."""
    return {
        "kv_connector": LMCACHE,
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"lmcache.mp.host": "127.0.0.1", "lmcache.mp.port": port},
    }


def mend_llvmlite():
    """vLLM asks everything in every module for its `__dict__`. llvmlite's library, which LMCache brings in,
    answers with a function of that name."""
    from llvmlite.binding.ffi import _lib_wrapper

    find = _lib_wrapper.__getattr__

    def named(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return find(self, name)

    _lib_wrapper.__getattr__ = named


class Server:
    """A server of LMCache, in its multi-process mode."""

    def __init__(self, command, log):
        self.port, http = free_port(), free_port()
        settings = {
            "--chunk-size": BLOCK, "--l1-size-gb": KEEP >> 30, "--eviction-policy": "LRU",
            "--supported-transfer-mode": "auto", "--host": "127.0.0.1", "--port": self.port,
            "--http-host": "127.0.0.1", "--http-port": http,
        }  # fmt: skip
        quiet = {"LMCACHE_TRACK_USAGE": "false", "LMCACHE_DISABLE_BANNER": "1"}
        self.log = log.open("w")
        self.process = subprocess.Popen(
            [command, "server", *(str(part) for pair in settings.items() for part in pair)],
            stdout=self.log, stderr=self.log, env={**os.environ, **quiet},
        )  # fmt: skip
        until = time.monotonic() + 120
        while not answers(self.port):
            if self.process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"LMCache does not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.2)

    def close(self):
        self.process.terminate()
        self.process.wait(30)
        self.log.close()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def systems(folder, server):
    """Name, `kv_transfer_config`, and what is done before each round besides emptying the engine's cache."""
    disk = {"disk_dir": f"{folder}/store", "disk_bytes": "2GiB", "host_bytes": "256MiB"}
    listed = [
        ("computed", None, ()),
        ("kvist, memory", transfer(host_bytes=KEEP), ()),
        ("kvist, disk", transfer(**disk), (["flush"], ["damage", "forget_memory"])),
        ("native tier, test copy engine", offloading(KEEP), ()),
    ]
    if server is not None:
        listed.append(("LMCache, server's memory", lmcache(server.port), ()))
    return listed


def measure(rounds, prefix, folder, server):
    ask = [tokens(1, prefix) + tokens(100 + i, TAIL) for i in range(rounds + 1)]
    engines = []
    try:
        for name, config, before in systems(folder, server):
            engine = Engine(config=config, **BUDGET)
            engines.append((name, engine, before))
            engine.play("generate", [tokens(0, 256)], 1)
            engine.play("generate", [ask[0]], 1)
        seconds, cached = ({name: [] for name, _, _ in engines} for _ in range(2))
        draw = random.Random(0)
        for prompt in ask[1:]:
            for name, engine, before in draw.sample(engines, len(engines)):
                for step in before:
                    engine.play(*step)
                # Whoever stores behind the engine's back has stored then.
                engine.play("settle")
                assert engine.play("reset"), f"{name}: blocks are still in use"
                out = engine.play("generate", [prompt], 1)
                seconds[name].append(round(out["seconds"], 4))
                cached[name].append(out["cached"][0])
    finally:
        for _, engine, _ in engines:
            engine.close()
    return {"prompt": prefix + TAIL, "seconds": seconds, "cached": cached}


def table(result):
    first = statistics.median(result["seconds"]["computed"])
    lines = [f"{'':32}{'median s':>10}{'least':>8}{'most':>8}{'cached':>8}{'times':>7}"]
    for name, each in result["seconds"].items():
        middle = statistics.median(each)
        cached = min(result["cached"][name])
        lines.append(
            f"{name:32}{middle:10.3f}{min(each):8.3f}{max(each):8.3f}{cached:8}{first / middle:7.1f}"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--prefix", type=int, default=PREFIX, help="shared tokens")
    args = parser.parse_args()
    beside = Path(sys.executable).with_name("lmcache")
    command = str(beside) if beside.exists() else shutil.which("lmcache")
    with tempfile.TemporaryDirectory() as folder:
        if command is None:
            print("no LMCache here (scripts/bench-peers-vllm.sh): left out", file=sys.stderr)
        server = Server(command, Path(folder) / "lmcache.log") if command else None
        try:
            result = measure(args.rounds, args.prefix, folder, server)
        finally:
            if server is not None:
                server.close()
    print(table(result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
