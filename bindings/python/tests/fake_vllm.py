"""A scheduler and a worker of no engine: just enough of vLLM's objects for the two halves of the connector."""

import hashlib
from types import SimpleNamespace

import torch
from kvist.vllm import _layout
from kvist.vllm._config import Config
from kvist.vllm._scheduler import Scheduler
from kvist.vllm._worker import Engine, Place, Worker

BLOCK, LAYERS, HEADS, DIM = 16, 2, 3, 8
MODEL = bytes(range(32))


def config(**extra):
    # No engine computes here, so that nothing would be worth loading.
    always = {"load.margin_ms": -1e9}
    return Config.of({"host_bytes": "8MiB", "admit.min_tokens": 0, **always, **extra})


def request(name, tokens, prompt=None, salt=None, lora=None, features=None, said=None):
    """What the connector reads of a request."""
    return SimpleNamespace(
        request_id=name,
        all_token_ids=list(tokens),
        num_tokens=len(tokens),
        num_prompt_tokens=len(tokens) if prompt is None else prompt,
        cache_salt=salt,
        lora_request=lora,
        mm_features=features,
        prompt_embeds=None,
        kv_transfer_params=said,
        block_hashes=[
            hashed(tokens[: i + BLOCK]) for i in range(0, len(tokens) - BLOCK + 1, BLOCK)
        ],
    )


def hashed(tokens):
    """The engine's hash of a block, over all tokens up to its end."""
    return hashlib.sha256(repr(list(tokens)).encode()).digest()


def image(identifier, offset, length):
    position = SimpleNamespace(offset=offset, length=length)
    return SimpleNamespace(identifier=identifier, mm_position=position)


class Fake:
    """An engine with `blocks` blocks of memory, which plays steps."""

    def __init__(self, blocks=64, settings=None, place=None, events=None):
        settings = settings or config()
        self.memory = [
            torch.randn(blocks, HEADS, BLOCK, 2 * DIM).to(torch.bfloat16) for _ in range(LAYERS)
        ]
        self.scheduler = Scheduler(settings, 1 if place is None else place.world, events)
        self.worker = Worker(settings, place or Place())
        self.worker.open()
        self.worker.register(engine_of(self.memory))
        self.tables = {}

    def greet(self):
        self.scheduler.greet(self.worker.hello)
        self.play()

    def play(self, new=(), cached=(), seconds=0.0):
        """A step: `new` and `cached` are (request, tokens computed before, tokens of this step). As if it
        had taken `seconds`."""
        output = SimpleNamespace(
            scheduled_new_reqs=[
                SimpleNamespace(req_id=r.request_id, num_computed_tokens=n) for r, n, _ in new
            ],
            scheduled_cached_reqs=SimpleNamespace(
                req_ids=[r.request_id for r, _, _ in cached],
                num_computed_tokens=[n for _, n, _ in cached],
            ),
            num_scheduled_tokens={r.request_id: n for r, _, n in [*new, *cached]},
            kv_connector_block_state=SimpleNamespace(
                resolve_block_ids=lambda name: (self.tables[name],)
            ),
        )
        meta = self.scheduler.step(output)
        self.worker.begin(idle=meta.idle)
        self.worker._began -= seconds
        self.worker.load(meta)
        self.worker.save(meta)
        received, failed = self.worker.done()
        self.scheduler.update(self.worker.report(), received, failed)
        return meta, received, failed

    def wait_for(self, name, tries=500):
        """Empty steps until the request's load is over; whether it failed."""
        import time

        for _ in range(tries):
            _, received, failed = self.play()
            if name in received:
                return name in failed
            time.sleep(0.01)
        raise AssertionError(f"{name} waits for ever")

    def compute(self, r, ids, seconds=0.0):
        """Runs a whole prompt in one step, into these blocks."""
        self.tables[r.request_id] = ids
        assert self.scheduler.matched(r, 0) == 0
        self.scheduler.allocated(r, ids, 0)
        return self.play(new=[(r, 0, r.num_tokens)], seconds=seconds)

    def load(self, r, ids, computed=0):
        """Asks, allocates and waits; tokens that were matched, and whether the load failed."""
        tokens = self.scheduler.matched(r, computed)
        self.tables[r.request_id] = ids
        self.scheduler.allocated(r, ids, tokens)
        return tokens, self.wait_for(r.request_id)

    def bytes_of(self, ids):
        return [layer[ids].clone() for layer in self.memory]


def engine_of(memory):
    space = {
        "model": MODEL, "layers": LAYERS, "kv_heads": HEADS, "head_dim": DIM, "dtype": "bf16",
        "block_tokens": BLOCK, "extra": b"",
    }  # fmt: skip
    views = [_layout.split(layer) for layer in memory]
    tensors = {"k": [k for k, _ in views], "v": [v for _, v in views], "layout": "hnd"}
    size = LAYERS * HEADS * BLOCK * 2 * DIM * 2
    return Engine(space, {}, size, "split", tensors)


def same(a, b):
    return all(torch.equal(x.view(torch.uint8), y.view(torch.uint8)) for x, y in zip(a, b))
