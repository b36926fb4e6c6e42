"""Stores of KV blocks from Python packages: a small server for `kvist bench store`.

Reads one JSON request per line (`{"case": {op, size, durable, batch}, "plan": {bytes, dir, repeats,
least, seconds}}`), answers with one JSON object per line (`{"times": {peer: {median, best, spread,
repeats}}, "notes": [..]}`, seconds per repeat), ends with its input. The first line it writes names
the peers that are installed, and why others are not.

What is timed is the same as in the Rust half (`benches/src/store/measure.rs`): blocks leave the
caller's memory and come back into it, in one thread of the caller, and each peer proves once per
case that it returns what it was given.

- `safetensors`: `save_file` and `safe_open(..).get_tensor`, one file per block.
- `lmcache`: `LocalCPUBackend` and `LocalDiskBackend` themselves, without the engine above them:
  `allocate`, copy in, `submit_put_task`; `get_blocking` (`batched_get_blocking` for batches), copy
  out. The disk backend once as it is by default (page cache) and once with `use_odirect`. It never
  syncs: where a case asks for durability, the bench syncs its files.
"""

import asyncio
import json
import mmap
import os
import shutil
import sys
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

os.environ["LMCACHE_TRACK_USAGE"] = "false"  # it reports to its makers otherwise
os.environ["LMCACHE_LOG_LEVEL"] = "ERROR"


def say(value):
    print(json.dumps(value), flush=True)


def summary(times):
    times = sorted(times)

    def at(share):
        return times[round((len(times) - 1) * share)]

    median = at(0.5)
    spread = (at(0.75) - at(0.25)) / median if median else 0.0
    return {"median": median, "best": times[0], "spread": spread, "repeats": len(times)}


def memory(torch, size):
    """A tensor of bytes in memory of its own, on huge pages where the system grants them."""
    area = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        area.madvise(mmap.MADV_HUGEPAGE)
    tensor = torch.frombuffer(area, dtype=torch.uint8)
    step = 1 << 20
    pattern = torch.randint(0, 256, (step + 4096,), dtype=torch.uint8)
    for i, at in enumerate(range(0, size, step)):
        part = tensor[at : at + step]
        part.copy_(pattern[i * 64 % 4096 :][: part.numel()])
    return tensor


def sync(paths, directory):
    for path in [*paths, directory]:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle) if path is directory else os.fdatasync(handle)
        os.close(handle)


def forget(paths):
    """Drops files that are on disk from the page cache."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


class Files:
    """What peers that keep one file per block share."""

    tier, most_batch = "disk", 1

    def __init__(self, directory):
        self.directory = directory
        self.dirty, self.written = [], set()

    def settle(self, durable):
        if durable:
            sync(self.dirty, self.directory)
            self.dirty = []

    def chill(self):
        self.settle(True)
        forget(self.written)


class SafeTensors(Files):
    def __init__(self, directory):
        from safetensors import __version__, safe_open
        from safetensors.torch import save_file

        super().__init__(directory)
        self.name = f"safetensors {__version__}"
        self.open, self.save = safe_open, save_file

    def clear(self, _size):
        for path in self.written:
            os.remove(path)
        self.dirty, self.written = [], set()

    def path(self, key):
        return f"{self.directory}/{key:016x}.safetensors"

    def put(self, key, block):
        self.save({"kv": block}, self.path(key))
        self.dirty.append(self.path(key))
        self.written.add(self.path(key))

    def get(self, keys, into):
        for key, to in zip(keys, into):
            with self.open(self.path(key), framework="pt") as file:
                to.copy_(file.get_tensor("kv"))


class LMCache:
    """The host tier, and what the disk tier shares with it."""

    tier, most_batch = "host", 1 << 30
    TOKENS, POOL_GIB = 16, 1.0

    def __init__(self, torch, directory=None, odirect=False):
        from lmcache import __version__
        from lmcache.utils import CacheEngineKey
        from lmcache.v1.config import LMCacheEngineConfig
        from lmcache.v1.metadata import LMCacheMetadata
        from lmcache.v1.storage_backend.local_cpu_backend import LocalCPUBackend

        self.torch, self.Key, self.dtype = torch, CacheEngineKey, torch.bfloat16
        self.name = f"lmcache {__version__}"
        self.config = LMCacheEngineConfig.from_defaults(
            chunk_size=self.TOKENS,
            local_cpu=directory is None,
            max_local_cpu_size=self.POOL_GIB,
            local_disk=directory and str(directory),
            max_local_disk_size=8.0,
            extra_config={"use_odirect": odirect},
        )
        shape = (1, 2, self.TOKENS, 1, 64)
        self.metadata = LMCacheMetadata("bench", 1, 1, 0, 0, self.dtype, shape)
        self.cpu = LocalCPUBackend(self.config, metadata=self.metadata, dst_device="cpu")
        # With a GPU its pool is pinned, so that no page is touched for the first time later.
        self.cpu.memory_allocator.buffer.zero_()
        self.backend, self.keys, self.shape = self.cpu, {}, None

    def clear(self, size):
        for key in self.keys.values():
            self.backend.remove(key)
        self.keys.clear()
        # K and V, one layer, some tokens, and as many numbers per token as fill the block.
        width = size // (2 * self.TOKENS * self.dtype.itemsize)
        self.shape = self.torch.Size([2, 1, self.TOKENS, width])

    def staged(self, key, block):
        """The block in memory of its pool, with its key."""
        held = self.cpu.allocate(self.shape, self.dtype)
        held.tensor.view(-1).copy_(block.view(self.dtype))
        # A hash as an engine would make it.
        self.keys[key] = self.Key("bench", 1, 0, key * 0x9E3779B97F4A7C15 % (1 << 63), self.dtype)
        return self.keys[key], held

    def put(self, key, block):
        key, held = self.staged(key, block)
        self.backend.submit_put_task(key, held)
        held.ref_count_down()

    def settle(self, durable):
        pass

    def chill(self):
        pass

    def get(self, keys, into):
        names = [self.keys[key] for key in keys]
        if len(names) == 1:
            found = [self.backend.get_blocking(names[0])]
        else:
            found = self.backend.batched_get_blocking(names)
        for held, to in zip(found, into):
            to.view(self.dtype).copy_(held.tensor.view(-1))
            held.ref_count_down()


class LMCacheDisk(LMCache):
    tier = "disk"

    def __init__(self, torch, directory, odirect):
        super().__init__(torch, directory, odirect)
        from lmcache.v1.storage_backend.local_disk_backend import LocalDiskBackend

        if odirect:
            self.name += ", O_DIRECT"
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        self.directory, self.ended, self.under_way = directory, threading.Semaphore(0), []
        self.dirty = []
        self.backend = LocalDiskBackend(
            self.config, loop, self.cpu, dst_device="cpu", metadata=self.metadata
        )

    def path(self, key):
        return self.backend.dict[key].path

    def clear(self, size):
        self.settle(False)
        self.dirty = []
        super().clear(size)

    def put(self, key, block):
        key, held = self.staged(key, block)
        self.backend.submit_put_task(key, held, on_complete_callback=self.done)
        held.ref_count_down()
        self.under_way.append(key)

    def done(self, _key):
        self.ended.release()

    def settle(self, durable):
        for _ in self.under_way:
            self.ended.acquire()
        self.dirty += self.under_way
        self.under_way = []
        if durable:
            sync([self.path(key) for key in self.dirty], self.directory)
            self.dirty = []

    def chill(self):
        self.settle(True)
        forget([self.path(key) for key in self.keys.values()])


class Bench:
    """The same steps as `measure` in the Rust half."""

    def __init__(self, torch, peer, data, request):
        self.peer, self.case, self.plan = peer, request["case"], request["plan"]
        self.group = request["group"]
        shape, blocks = (-1, self.case["size"]), request["blocks"]
        self.source, self.target = (d.view(*shape)[:blocks] for d in data)
        self.order = torch.randperm(len(self.source)).tolist()

    def fill(self):
        waiting = 0
        for key, block in enumerate(self.source):
            self.peer.put(key, block)
            waiting += self.case["size"]
            if self.case["durable"] == "group" and waiting >= self.group:
                self.peer.settle(True)
                waiting = 0

    def fetch(self):
        step = self.case["batch"]
        for at in range(0, len(self.order), step):
            self.peer.get(self.order[at : at + step], self.target[at : at + step])

    def repeat(self):
        op = self.case["op"]
        if op.endswith("put"):
            self.peer.clear(self.case["size"])
        if op == "disk-put":
            os.sync()
        if op == "disk-get":
            self.peer.chill()
        start = time.perf_counter()
        if op.endswith("put"):
            self.fill()
            if op == "disk-put":
                self.peer.settle(self.case["durable"] != "no")
        else:
            self.fetch()
        return time.perf_counter() - start

    def run(self):
        self.peer.clear(self.case["size"])
        self.fill()
        self.peer.settle(True)
        self.peer.chill()
        self.fetch()
        if not all(self.source[k].equal(got) for k, got in zip(self.order, self.target)):
            raise RuntimeError("returned other bytes than were put")
        times, began = [], time.perf_counter()
        while not times or not self.enough(len(times), time.perf_counter() - began):
            times.append(self.repeat())
        self.peer.clear(self.case["size"])
        return summary(times)

    def enough(self, count, elapsed):
        if self.plan["repeats"] is not None:
            return count >= self.plan["repeats"]
        return count >= self.plan["least"] and elapsed >= self.plan["seconds"]


class Server:
    """Peers are made when first needed."""

    def __init__(self, torch, packages):
        self.torch, self.packages = torch, packages
        self.peers, self.data = None, None

    def make(self, root, notes):
        def fresh(name):
            path = Path(root) / name
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir()
            return path

        makers = [
            ("safetensors", lambda: SafeTensors(fresh("safetensors"))),
            ("lmcache", lambda: LMCache(self.torch)),
            ("lmcache", lambda: LMCacheDisk(self.torch, fresh("lmcache"), False)),
            ("lmcache", lambda: LMCacheDisk(self.torch, fresh("lmcache-direct"), True)),
        ]
        self.peers = []
        for package, make in makers:
            if package not in self.packages:
                continue
            try:
                self.peers.append(make())
            except Exception as problem:  # a broken installation raises more than ImportError
                notes.append(f"no {package}: {type(problem).__name__}: {problem}")

    def answer(self, request):
        case, plan = request["case"], request["plan"]
        times, notes = {}, []
        if self.data is None or self.data[0].numel() != plan["bytes"]:
            self.data = [memory(self.torch, plan["bytes"]) for _ in range(2)]
        if self.peers is None:
            self.make(plan["dir"], notes)
        for peer in self.peers:
            if not case["op"].startswith(peer.tier) or case["batch"] > peer.most_batch:
                continue
            try:
                times[peer.name] = Bench(self.torch, peer, self.data, request).run()
            except Exception as problem:
                notes.append(f"{peer.name}: {type(problem).__name__}: {problem}")
        return {"times": times, "notes": notes}


def installed(notes):
    """Versions of the packages that are here; notes about the others."""
    found = {}
    for package in ("safetensors", "lmcache"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            notes.append(f"no {package}: not installed (make bench-peers)")
    return found


def main():
    try:
        import torch
    except Exception as problem:
        say({"error": f"torch cannot be imported: {problem}"})
        return
    torch.set_num_threads(1)
    torch.manual_seed(7)
    notes = []
    packages = installed(notes)
    server = Server(torch, packages)
    say({"peers": [f"{name} {found}" for name, found in packages.items()], "notes": notes})
    for line in sys.stdin:
        request = json.loads(line)
        say(server.answer(request))


if __name__ == "__main__":
    main()
