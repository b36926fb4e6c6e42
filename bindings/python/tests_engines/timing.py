"""The connector, adding up the CPU time of its hooks."""

import os
import time
from collections import Counter

from kvist.vllm import KvistConnector
from recording import HOOKS

_spent = Counter()


def timed(name):
    original = getattr(KvistConnector, name)

    def hook(self, *args, **kwargs):
        start = time.thread_time()
        try:
            return original(self, *args, **kwargs)
        finally:
            _spent[name] += time.thread_time() - start

    return hook


class TimingConnector(KvistConnector):
    """As its base."""


for _name in HOOKS:
    setattr(TimingConnector, _name, timed(_name))


def spent():
    """CPU seconds so far: of each hook, of the store's threads, and of the whole process."""
    return {"hooks": dict(_spent), "threads": threads(), "process": time.process_time()}


def threads():
    """CPU seconds of the threads that kvist named."""
    total, tick = 0, os.sysconf("SC_CLK_TCK")
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/stat", encoding="ascii") as stat:
            name, _, rest = stat.read().partition("(")[2].rpartition(")")
        fields = rest.split()
        total += name.startswith("kvist") * (int(fields[11]) + int(fields[12]))
    return total / tick
