"""One engine in a process of its own: `run(...)` starts it, plays a script, and returns what came out; an
`Engine` is played step by step.

vLLM keeps state for the life of a process, so every engine gets one. Its process reads what it is, then
steps, a line of JSON each, and prints a line for each step.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODEL = Path(os.environ.get("KVIST_MODELS_DIR", HERE.parents[2] / ".cache/models")) / "smollm2-135m"
RESULT = "KVIST-RESULT "
LIMIT = 400
"""Seconds that an engine may take, on a machine that has other things to do."""
TRANSFER = {
    "kv_connector": "KvistConnector",
    "kv_connector_module_path": "kvist.vllm",
    "kv_role": "kv_both",
    "kv_load_failure_policy": "recompute",
}
LMCACHE = "LMCacheMPConnector"
COMMAND = [sys.executable, str(HERE / "engine.py")]


def transfer(**extra):
    """The one line of configuration, with kvist's keys."""
    # What is stored is loaded, however slow the machine is while it is tested.
    defaults = {"host_bytes": "256MiB", "admit.min_tokens": 0, "load.margin_ms": -1e9}
    return {**TRANSFER, "kv_connector_extra_config": {**defaults, **extra}}


def offloading(bytes_, *below):
    """vLLM's own CPU tier with a test copy engine, and the tiers below it."""
    return {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "spec_name": "CpuTieringSpec",
            "spec_module_path": "kvist.vllm.testing",
            "cpu_bytes_to_use": bytes_,
            **({"secondary_tiers": list(below)} if below else {}),
        },
    }


def environment(separate=False):
    return {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "0-1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1" if separate else "0",
        "VLLM_LOGGING_LEVEL": "INFO",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
        "TOKENIZERS_PARALLELISM": "false",
    }


def run(*steps, config=None, separate=False, survives=True, ends="shutdown", **options):
    """Plays steps (`["generate", [prompt, ...]]`, ...) in an engine with this `kv_transfer_config`, which is
    shut down then, or killed (`ends="kill"`).

    Returns what each step gave, and the engine's output under "log".
    """
    task = {"config": config, "options": options, "ends": ends}
    done = subprocess.run(
        COMMAND,
        input="\n".join(json.dumps(line) for line in [task, *steps]),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        env=environment(separate),
    )
    log = done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith(RESULT)]
    if not survives:
        return {"log": log, "code": done.returncode}
    assert done.returncode == (-9 if ends == "kill" else 0) and lines, log[-6000:]
    return {"steps": [json.loads(line[len(RESULT) :]) for line in lines], "log": log}


class Engine:
    """An engine that is played step by step."""

    def __init__(self, config=None, **options):
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed by `close`)
        self.process = subprocess.Popen(
            COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
            text=True, env=environment(),
        )  # fmt: skip
        self._send({"config": config, "options": options, "ends": "shutdown"})

    def _send(self, line):
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()

    def play(self, *step):
        """What a step gave."""
        self._send(step)
        for line in self.process.stdout:
            if line.startswith(RESULT):
                return json.loads(line[len(RESULT) :])
        self.log.seek(0)
        raise AssertionError(self.log.read()[-6000:])

    def close(self):
        """Shuts it down."""
        self.process.stdin.close()
        self.process.stdout.read()
        self.process.wait(60)
        self.log.close()


# --- In the engine's process ---------------------------------------------------------------------


class Play:
    """The steps that a script may have."""

    def __init__(self, config, options):
        import faults
        from vllm import LLM

        faults.install()
        if config and config["kv_connector"] == LMCACHE:
            import peers

            peers.mend_llvmlite()
        self.llm = LLM(
            str(MODEL),
            **{
                "kv_transfer_config": config,
                "enforce_eager": True,
                "max_model_len": 2048,
                "max_num_seqs": 4,
                "disable_log_stats": False,
                **options,
            },
        )

    def generate(self, prompts, tokens=8, salts=None):
        """Greedy: tokens, how many of each prompt were cached, and the seconds for all."""
        from vllm import SamplingParams

        prompts = [
            {"prompt_token_ids": p} if isinstance(p, list) else {"prompt": p} for p in prompts
        ]
        for prompt, salt in zip(prompts, salts or ()):
            prompt["cache_salt"] = salt
        start = time.monotonic()
        greedy = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        outputs = self.llm.generate(prompts, greedy, use_tqdm=False)
        return {
            "tokens": [list(o.outputs[0].token_ids) for o in outputs],
            "cached": [o.num_cached_tokens for o in outputs],
            "prompt": [len(o.prompt_token_ids) for o in outputs],
            "seconds": time.monotonic() - start,
        }

    def preemptions(self):
        """How often a request was preempted so far."""
        metrics = {metric.name: metric for metric in self.llm.get_metrics()}
        return metrics["vllm:num_preemptions"].value

    def reset(self, connector=False):
        """Empties the engine's own prefix cache."""
        return self.llm.reset_prefix_cache(reset_connector=connector)

    def flush(self):
        """Waits until what was stored is on disk."""
        return worker()._store.flush(60)

    def settle(self):
        """Steps until the connector has nothing more to do."""
        for _ in range(50):
            self.llm.llm_engine.step()
            time.sleep(0.05)

    def stats(self):
        import dataclasses

        return dataclasses.asdict(worker()._store.stats())

    def damage(self, kind, *how):
        """Does something bad to the running store."""
        import faults

        return getattr(faults, kind)(self, *how)

    def storm(self, *how):
        """See `storm.storm`."""
        import storm

        return storm.storm(self, *how)

    def listen(self):
        """Keeps every batch of KV events that the engine publishes."""
        publisher = self.llm.llm_engine.engine_core.engine_core.scheduler.kv_event_publisher
        publish, self.batches = publisher.publish, []

        def keep(batch):
            self.batches.append(batch)
            publish(batch)

        publisher.publish = keep

    def events(self):
        """Published events so far, as a subscriber decodes them: kind, medium, hashes, parent."""
        import msgspec

        said = []
        for batch in self.batches:
            for event in msgspec.msgpack.decode(msgspec.msgpack.encode(batch))[1]:
                hashes = [str(name) for name in event.get("block_hashes", [])]
                parent = event.get("parent_block_hash")
                parent = None if parent is None else str(parent)
                said.append([event["type"], event.get("medium"), hashes, parent])
        return said

    def spent(self):
        """See `timing.spent`."""
        import timing

        return timing.spent()

    def calls(self):
        import faults

        return faults.taken()


def worker():
    """The worker's half, where it lives in this process."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    return get_kv_transfer_group()._worker


def main():
    task = json.loads(sys.stdin.readline())
    play = Play(task["config"], task["options"])
    for line in sys.stdin:
        name, *args = json.loads(line)
        print(RESULT + json.dumps(getattr(play, name)(*args)), flush=True)
    if task["ends"] == "kill":
        play.damage("kill")
    play.llm.llm_engine.engine_core.shutdown()


if __name__ == "__main__":
    main()
