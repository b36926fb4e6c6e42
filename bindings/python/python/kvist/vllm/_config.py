"""What `kv_connector_extra_config` may say."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .._errors import OptionError, UnknownNameError
from .._kvist import parse_bytes

HOST_SHARE = 4
HOST_BYTES_MAX = 8 << 30
"""Where `host_bytes` is not given: a quarter of the free memory, at most this."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of the connector. Field names are keys with `_` for `.`; docs/vllm.md explains them."""

    host_bytes: int
    disk_dir: Path | None = None
    disk_bytes: int = 0
    disk_required: bool = True
    disk_deadline: float = 10.0
    codec_disk: str = "lossless"
    canonical: bool = True
    admit_min_tokens: int = 256
    admit_decode_tokens: bool = False
    load_max_wait_ms: int = 50
    model: bytes | None = None
    key_secret_file: bytes | None = dataclasses.field(default=None, repr=False)
    """What the file holds."""
    multi_tenant: bool = False
    namespace_extra: str = ""
    verify: str = "startup"

    @classmethod
    def of(cls, extra: Mapping[str, Any]) -> Config:
        """The settings in an engine's extra configuration, nested or with dotted keys.

        Raises `UnknownNameError` for a key that does not exist, `OptionError` for an impossible value;
        both name the key, what was expected and what was found.
        """
        given = dict(_flat(extra))
        if unknown := [key for key in given if key not in _KEYS]:
            raise UnknownNameError(_unknown(unknown[0]))
        values = {_KEYS[key]: _READ[_KEYS[key]](key, value) for key, value in given.items()}
        if values.get("host_bytes") is None:
            values["host_bytes"] = min(_free_memory() // HOST_SHARE, HOST_BYTES_MAX)
        config = cls(**values)
        if (config.disk_dir is None) != (config.disk_bytes == 0):
            raise OptionError(
                "kv_connector_extra_config: expected disk_dir and disk_bytes together, found one"
            )
        return config


def worker_folder(engine: int, rank: int, world: int) -> str:
    """The directory of one of several workers, below `disk_dir`."""
    return f"engine{engine}-worker{rank}of{world}"


def _flat(extra: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in extra.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _unknown(key: str) -> str:
    near = difflib.get_close_matches(key, _KEYS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(_KEYS))}"
    return f"kv_connector_extra_config: unknown key {key!r}; {hint}"


def _refuse(key: str, expected: str, found: object) -> OptionError:
    return OptionError(f"kv_connector_extra_config: {key}: expected {expected}, found {found!r}")


def _size(key: str, value: Any) -> int | None:
    if value is None:
        return None
    try:
        size = parse_bytes(value)
    except (ValueError, TypeError):
        size = 0
    if size <= 0:
        raise _refuse(key, "a size such as '8GiB'", value)
    return size


def _flag(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _refuse(key, "true or false", value)
    return value


def _count(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _refuse(key, "a whole number of 0 or more", value)
    return value


def _seconds(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise _refuse(key, "seconds above 0", value)
    return float(value)


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _refuse(key, "text", value)
    return value


def _path(key: str, value: Any) -> Path:
    return Path(_text(key, value))


def _digest(key: str, value: Any) -> bytes:
    try:
        digest = bytes.fromhex(_text(key, value))
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise _refuse(key, "64 hexadecimal digits", value)
    return digest


def _secret(key: str, value: Any) -> bytes:
    # A file, because engines print their configuration.
    path = _path(key, value)
    try:
        secret = path.read_bytes()
    except OSError as e:
        raise _refuse(key, "a file of 32 bytes", f"{path}: {e.strerror}") from e
    if len(secret) != 32:
        raise _refuse(key, "a file of 32 bytes", f"{path} with {len(secret)}")
    return secret


def _verify(key: str, value: Any) -> str:
    if value not in ("startup", "always"):
        raise _refuse(key, "'startup' or 'always'", value)
    return str(value)


_READ: dict[str, Callable[[str, Any], Any]] = {
    "host_bytes": _size,
    "disk_dir": _path,
    "disk_bytes": _size,
    "disk_required": _flag,
    "disk_deadline": _seconds,
    "codec_disk": _text,
    "canonical": _flag,
    "admit_min_tokens": _count,
    "admit_decode_tokens": _flag,
    "load_max_wait_ms": _count,
    "model": _digest,
    "key_secret_file": _secret,
    "multi_tenant": _flag,
    "namespace_extra": _text,
    "verify": _verify,
}
_DOTTED = ("admit", "codec", "load", "namespace")
_KEYS = {
    name.replace("_", ".", 1) if name.split("_")[0] in _DOTTED else name: name for name in _READ
}


def _free_memory() -> int:
    """Bytes of memory that can be had without swapping."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    raise OptionError("kv_connector_extra_config: expected host_bytes: this system does not say")
