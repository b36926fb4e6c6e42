"""Results on disk: one JSON line per finished question, appended at once.

A line is `{"run": ID, "settings": {...}}` or one question's `Record`. What a run is depends on every
setting that could change a figure, the library's build included; so other settings make another run,
and the old lines stay.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .._errors import InUseError, OptionError

FILE = "results.jsonl"


@dataclass(frozen=True)
class Record:
    """One question, answered one way; see `Score` for the figures."""

    run: str
    sample: int
    select: str
    budget: int | None
    rule: str
    score: float
    generated: float | None
    log_prob: float
    agree: float
    kl: float
    kl_max: float
    tokens_read: float
    """Per KV head and step, mean over layers, dense ones included."""
    bytes_read: float
    """Summaries, keys and values per step, all layers."""
    depth: float | None = None
    said: str | None = None
    """The generated answer, where one was made."""


def run_id(settings: dict[str, Any]) -> str:
    """Identifies settings."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class Results:
    """The results of one directory, for one process at a time."""

    def __init__(self, directory: Path) -> None:
        """Opens or makes the directory.

        Raises `OptionError` if it cannot be written, `InUseError` while another process writes it.
        """
        self.settings: dict[str, dict[str, Any]] = {}
        """Run to settings, the latest last."""
        self.records: list[Record] = []
        self._known: set[tuple[str, str, int]] = set()
        path = directory / FILE
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as e:
            raise OptionError(
                f"out: expected a directory that can be written, found {directory}: {e.strerror}"
            ) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise InUseError(f"{path}: another `kvist eval` is writing it") from None
        self._load(path)

    def _load(self, path: Path) -> None:
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            # A line is written with its end at once: without it, it was cut.
            warnings.warn(f"{path}: the last line was cut; it is dropped", stacklevel=3)
            os.ftruncate(self._file, whole)
        for number, line in enumerate(data[:whole].splitlines(), start=1):
            try:
                self._take(json.loads(line))
            except (ValueError, TypeError, KeyError):
                warnings.warn(f"{path}: line {number} is damaged; it is left out", stacklevel=3)

    def _take(self, line: dict[str, Any]) -> None:
        if "settings" in line:
            self.settings.pop(line["run"], None)
            self.settings[line["run"]] = line["settings"]
            return
        record = Record(**line)
        self._known.add((record.run, record.rule, record.sample))
        self.records.append(record)

    def begin(self, settings: dict[str, Any]) -> str:
        """Starts or continues the run with these settings; its id."""
        run = run_id(settings)
        self._write({"run": run, "settings": settings})
        return run

    def has(self, run: str, rule: str, sample: int) -> bool:
        """Whether this question was answered this way."""
        return (run, rule, sample) in self._known

    def append(self, record: Record) -> None:
        """Keeps a result; it is in the file when this returns."""
        self._write(asdict(record))

    def _write(self, line: dict[str, Any]) -> None:
        os.write(self._file, json.dumps(line).encode() + b"\n")
        self._take(line)

    def close(self) -> None:
        """Lets other processes write."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
