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
    get = type(half)._get

    class Slow:
        def __init__(self, ticket):
            self.ticket, self.until = ticket, time.monotonic() + seconds

        @property
        def done(self):
            return time.monotonic() > self.until and self.ticket.done

        @property
        def seconds(self):
            return self.ticket.seconds + seconds if self.done else None

        def wait(self, timeout):
            return self.ticket.wait(timeout)

    half._get = lambda wanted, **to: Slow(get(half, wanted, **to))


def recover(play):
    """Loads take no longer than they do."""
    from engine import worker

    del worker()._get


def slow_store(play, prompt):
    """Asks for a prompt while loads take longer than to compute it, and until they are used again."""
    import time

    def ask():
        play.reset()
        return play.generate([prompt], 1)

    asked = {"cold": ask(), "quick": ask()}
    asked["stall"] = 4 * asked["cold"]["seconds"] + 0.5
    stall(play, asked["stall"])
    asked["slow"], asked["next"] = ask(), ask()
    recover(play)
    until = time.monotonic() + 20 * asked["stall"] + 20
    while not (back := ask())["cached"][0]:
        assert time.monotonic() < until, "it never comes back"
        time.sleep(0.1)
    return {**asked, "back": back}


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


def nothing(play):
    pass


_kept = {}


def read_errors(play):
    """Every read and write of the store's files fails from now on: their descriptors are a directory's."""
    import os

    from engine import worker

    folder = worker()._config.disk_dir
    other = os.open(folder, os.O_RDONLY)
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # The one that listed them.
        if target.startswith(f"{folder}/seg-"):
            _kept[int(name)] = os.dup(int(name))
            os.dup2(other, int(name), inheritable=False)
    os.close(other)


def reads(play):
    """The end of `read_errors`."""
    import os

    folder = worker_folder()
    for fd, kept in _kept.items():
        # The store may have closed it meanwhile.
        if os.path.exists(f"/proc/self/fd/{fd}") and os.readlink(f"/proc/self/fd/{fd}") == folder:
            os.dup2(kept, fd, inheritable=False)
        os.close(kept)
    _kept.clear()


def worker_folder():
    from engine import worker

    return str(worker()._config.disk_dir)


def flip(play):
    """Flips a byte in every 64 KiB of the files on disk, and forgets what is in memory."""
    from engine import worker

    half = worker()
    half._store.flush(60)
    for path in half._config.disk_dir.glob("seg-*.kv"):
        with path.open("r+b") as file:
            size = file.seek(0, 2)
            for at in range(4096 + 700, size, 64 << 10):
                file.seek(at)
                (byte,) = file.read(1)
                file.seek(at)
                file.write(bytes([byte ^ 1]))
    return _forget_memory(half)


def mix_up(play):
    """From now on a load puts every block into the next one's place."""
    from engine import worker

    half = worker()
    get = type(half)._get

    def other(wanted, block_ids, **to):
        return get(half, wanted, block_ids=[*block_ids[1:], block_ids[0]], **to)

    half._get = other


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
