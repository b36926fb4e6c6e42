"""Many requests on one engine, with aborts and faults at random, and what is left when they are over."""

import os
import random
import time

import faults
from vllm import SamplingParams

LIVE = 6
"""Requests at a time: more than the engine runs."""
LIMIT = 300
"""Seconds that a storm may take: a request that waits for ever fails the test."""


def storm(play, prompts, seed, count, ends):
    """Sends `count` prompts drawn from `prompts`, and aborts one in twelve. `ends` are the faults, as
    `[start, stop]` of how it begins and ends, one after the other with pauses.

    Returns what came out, as `[prompt, tokens]` with no tokens for an aborted one, and what was free and
    held before and after.
    """
    engine, draw, outcome = play.llm.llm_engine, random.Random(seed), []
    live, until = {}, time.monotonic() + LIMIT
    greedy = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    before = left(play)
    # Faults come between the requests, and each is over before the next.
    times = sorted(draw.sample(range(count // 8, count), 2 * len(ends)))
    switches = dict(zip(times, [each for pair in ends for each in pair], strict=True))
    sent = 0
    while sent < count or live:
        assert time.monotonic() < until, f"{sorted(live)} wait for ever"
        while sent < count and len(live) < LIVE and draw.random() < 0.7:
            if sent in switches:
                name, *how = switches[sent]
                getattr(faults, name)(play, *how)
            which = draw.randrange(len(prompts))
            live[str(sent)] = which
            engine.add_request(str(sent), {"prompt_token_ids": prompts[which]}, greedy)
            sent += 1
        if live and draw.random() < 1 / 40:
            gone = draw.choice(sorted(live))
            engine.abort_request([gone])
            outcome.append([live.pop(gone), None])
        for output in engine.step():
            if output.finished and output.request_id in live:
                outcome.append([live.pop(output.request_id), list(output.outputs[0].token_ids)])
    settle(play, until)
    return {"outcome": outcome, "before": before, "after": left(play), "did": did()}


def settle(play, until):
    """Steps until nothing is under way any more, and empties the engine's own cache."""
    from engine import worker

    half = worker()
    while half._loading or half._trials:
        assert time.monotonic() < until, "a load or a trial never ends"
        play.llm.llm_engine.step()
        time.sleep(0.01)
    play.llm.llm_engine.step()
    assert half._store.flush(60), "what was stored is never written"
    assert play.llm.reset_prefix_cache(), "the engine still uses blocks"


def left(play):
    """What is free in the engine, and what kvist holds of requests that are over."""
    from engine import worker

    core = play.llm.llm_engine.engine_core.engine_core.scheduler
    half, other = worker(), core.connector._scheduler
    stats = half._store.stats()
    return {
        "free": core.kv_cache_manager.block_pool.get_num_free_blocks(),
        "tickets": len(half._loading) + len(half._trials),
        "requests": len(other._requests) + len(core.requests),
        "queued": stats.queued_bytes,
        "over": max(0, stats.host_used_bytes - stats.host_budget_bytes),
        "parked": stats.disk.parked_bytes,
        **files(str(half._config.disk_dir), stats.disk.segments),
        "threads": threads(),
        "resident": resident(),
        "off": other.off,
    }


def files(folder, segments):
    """Open files: the store's beyond one for each segment, rings of io_uring and the like, and what all
    others are."""
    found, own, rings = [], 0, 0
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # The one that listed them.
        if target.startswith(folder):
            own += 1
        elif target.startswith("anon_inode"):
            rings += 1
        else:
            # Of sockets and pipes, without their numbers.
            found.append(target.partition(":[")[0])
    return {"files": sorted(found), "rings": rings, "store_files": own - segments}


def threads():
    """Threads of this process that are kvist's; the kernel and the engine start and end some of theirs."""
    names = []
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/comm", encoding="ascii") as comm:
            names.append(comm.read())
    return sum(name.startswith("kvist") for name in names)


def resident():
    """Bytes of this process in memory."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def did():
    """What the store did in all."""
    from engine import worker

    stats = worker()._store.stats()
    return {"gets": stats.gets, "from_disk": stats.gets_from_disk, "misses": stats.misses}
