"""What tests do to a running engine, and what they see of it."""

_calls = []


def install():
    """Nothing by default; `RecordingConnector` records."""
    _calls.clear()


def taken():
    """The recorded hooks so far, in order."""
    return list(_calls)


def note(call):
    _calls.append(call)


def close_store(play):
    from engine import worker

    worker()._store.close()


def stall(play, seconds=2.0):
    """Every load from now on takes so much longer."""
    import time

    from engine import worker

    half = worker()
    start = half._start

    class Slow:
        def __init__(self, ticket):
            self.ticket, self.until = ticket, time.monotonic() + seconds

        @property
        def done(self):
            return time.monotonic() > self.until and (self.ticket is None or self.ticket.done)

        def wait(self, timeout):
            return None if self.ticket is None else self.ticket.wait(timeout)

    half._start = lambda blocks: Slow(start(blocks))


def truncate(play):
    """Cuts the files on disk to nothing, and forgets what is in memory."""
    import os

    from engine import worker

    half = worker()
    for path in half._config.disk_dir.glob("seg-*.kv"):
        os.truncate(path, 4096)
    return _forget_memory(half)


def _forget_memory(half):
    """Fills the memory with other blocks, so that the next load comes from disk."""
    space = half._space(b"filler")
    count = half._config.host_bytes // space.block_bytes + 2
    for i in range(count):
        prefix = space.prefix([i] * space.block_tokens)
        space.put(prefix, 0, [bytes(space.block_bytes)])
    half._store.flush(60)
    return count


def forget_memory(play):
    from engine import worker

    return _forget_memory(worker())


def no_room(play):
    """Files may not grow from now on: every write to disk fails as on a full one."""
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))


def room(play):
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def kill(play):
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def abort_while_loading(play):
    """Adds a request whose blocks are stored, aborts it while they are on their way, and serves others
    meanwhile and after: how many loads were under way, and how many are left."""
    import time

    from conftest import PREEMPTED
    from engine import worker
    from vllm import SamplingParams

    engine = play.llm.llm_engine
    greedy = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    stall(play, 1.0)
    engine.add_request("aborted", {"prompt_token_ids": list(PREEMPTED[0])}, greedy)
    engine.step()
    loading = len(worker()._loading)
    engine.abort_request(["aborted"])
    for name, delay in (("meanwhile", 0.0), ("after", 1.5)):
        time.sleep(delay)
        engine.add_request(name, {"prompt_token_ids": [7] * 20}, greedy)
        while engine.has_unfinished_requests():
            engine.step()
    return {"loading": loading, "left": len(worker()._loading)}
