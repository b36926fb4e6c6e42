"""The settings of the connector and the tier: from `kvist.toml`, then from variables `KVIST_*`, then from
`kv_connector_extra_config`; what comes later wins."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .._errors import OptionError, UnknownNameError
from .._kvist import parse_bytes

EXTRA = "kv_connector_extra_config"
FILE = "kvist.toml"
FILE_VARIABLE = "KVIST_CONFIG"
HOST_SHARE = 4
HOST_BYTES_MAX = 8 << 30
"""Where `host_bytes` is not given: a quarter of the free memory, at most this."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of the connector. Field names are keys with `_` for `.`; docs/vllm.md explains them."""

    host_bytes: int
    disk_dir: Path | None = None
    disk_bytes: int = 0
    prefault: bool = True
    disk_required: bool = True
    disk_deadline: float = 10.0
    codec_disk: str = "lossless"
    canonical: bool = True
    policy_evict: str = "adaptive"
    admit_sightings: int = 1
    admit_min_tokens: int = 256
    admit_decode_tokens: bool = False
    load_max_wait_ms: int = 50
    load_margin_ms: float = 0.0
    model: bytes | None = None
    key_secret_file: bytes | None = dataclasses.field(default=None, repr=False)
    """What the file holds."""
    multi_tenant: bool = False
    namespace_extra: str = ""
    verify: str = "startup"

    @classmethod
    def of(cls, extra: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Config:
        """The settings of the file, of the environment (`os.environ` if not given) and of an engine's extra
        configuration, nested or with dotted keys.

        Raises `UnknownNameError` for a key that does not exist, `OptionError` for an impossible value;
        both name where it is said, what was expected and what was found.
        """
        variables = os.environ if environment is None else environment
        said = [*_of_file(variables), *_of_variables(variables), *_of_mapping(EXTRA, extra)]
        values = {_KEYS[key]: _READ[_KEYS[key]](where, value) for where, key, value in said}
        if values.get("host_bytes") is None:
            values["host_bytes"] = min(_free_memory() // HOST_SHARE, HOST_BYTES_MAX)
        config = cls(**values)
        if (config.disk_dir is None) != (config.disk_bytes == 0):
            where = [where for where, key, _ in said if key in ("disk_dir", "disk_bytes")]
            raise OptionError(f"{where[-1]}: expected disk_dir and disk_bytes together, found one")
        return config


_Said = tuple[str, str, Any]
"""Where something is said, the key, and its value."""


def _of_mapping(source: str, mapping: Mapping[str, Any]) -> Iterator[_Said]:
    for key, value in _flat(mapping):
        if key not in _KEYS:
            raise UnknownNameError(_unknown(source, key))
        yield f"{source}: {key}", key, value


def _of_file(variables: Mapping[str, str]) -> Iterator[_Said]:
    """What the file says that `KVIST_CONFIG` names, or `kvist.toml` in the working directory."""
    named = variables.get(FILE_VARIABLE)
    path = Path(named or FILE)
    if not named and not path.is_file():
        return
    try:
        toml = importlib.import_module("tomllib").loads(path.read_text("utf-8"))
    except OSError as e:
        raise OptionError(f"{FILE_VARIABLE}: expected a file, found {path}: {e.strerror}") from e
    except ImportError as e:
        raise OptionError(f"{path}: expected Python 3.11 or newer to read it") from e
    except ValueError as e:
        raise OptionError(f"{path}: expected TOML, found {e}") from e
    yield from _of_mapping(str(path), toml)


def _of_variables(variables: Mapping[str, str]) -> Iterator[_Said]:
    """Variables such as `KVIST_ADMIT_MIN_TOKENS`. Others may mean something to other programs, unless they
    look like a slip of the pen."""
    names = {f"KVIST_{key.replace('.', '_').upper()}": key for key in _KEYS}
    for variable, text in variables.items():
        if variable in names:
            key = names[variable]
            yield variable, key, _parsed(text) if _READ[_KEYS[key]] in _PARSED else text
            continue
        known = variable == FILE_VARIABLE or not variable.startswith("KVIST_")
        near = [] if known else difflib.get_close_matches(variable, names, n=1, cutoff=0.9)
        if near:
            raise UnknownNameError(f"unknown variable {variable}; did you mean {near[0]}?")


def _parsed(text: str) -> Any:
    """A number, true or false; what is none of these stays text, and is refused by what reads it."""
    try:
        return json.loads(text.lower())
    except ValueError:
        return text


def worker_folder(engine: int, rank: int, world: int) -> str:
    """The directory of one of several workers, below `disk_dir`."""
    return f"engine{engine}-worker{rank}of{world}"


def _flat(extra: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in extra.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _unknown(source: str, key: str) -> str:
    near = difflib.get_close_matches(key, _KEYS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(_KEYS))}"
    return f"{source}: unknown key {key!r}; {hint}"


def _refuse(where: str, expected: str, found: object) -> OptionError:
    return OptionError(f"{where}: expected {expected}, found {found!r}")


def _size(where: str, value: Any) -> int | None:
    if value is None:
        return None
    try:
        size = parse_bytes(value)
    except (ValueError, TypeError):
        size = 0
    if size <= 0:
        raise _refuse(where, "a size such as '8GiB'", value)
    return size


def _flag(where: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _refuse(where, "true or false", value)
    return value


def _count(where: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _refuse(where, "a whole number of 0 or more", value)
    return value


def _seconds(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise _refuse(where, "seconds above 0", value)
    return float(value)


def _milliseconds(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise _refuse(where, "milliseconds", value)
    return float(value)


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _refuse(where, "text", value)
    return value


def _path(where: str, value: Any) -> Path:
    return Path(_text(where, value))


def _digest(where: str, value: Any) -> bytes:
    try:
        digest = bytes.fromhex(_text(where, value))
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise _refuse(where, "64 hexadecimal digits", value)
    return digest


def _secret(where: str, value: Any) -> bytes:
    # A file, because engines print their configuration.
    path = _path(where, value)
    try:
        secret = path.read_bytes()
    except OSError as e:
        raise _refuse(where, "a file of 32 bytes", f"{path}: {e.strerror}") from e
    if len(secret) != 32:
        raise _refuse(where, "a file of 32 bytes", f"{path} with {len(secret)}")
    return secret


def _verify(where: str, value: Any) -> str:
    if value not in ("startup", "always"):
        raise _refuse(where, "'startup' or 'always'", value)
    return str(value)


_READ: dict[str, Callable[[str, Any], Any]] = {
    "host_bytes": _size,
    "disk_dir": _path,
    "disk_bytes": _size,
    "prefault": _flag,
    "disk_required": _flag,
    "disk_deadline": _seconds,
    "codec_disk": _text,
    "canonical": _flag,
    "policy_evict": _text,
    "admit_sightings": _count,
    "admit_min_tokens": _count,
    "admit_decode_tokens": _flag,
    "load_max_wait_ms": _count,
    "load_margin_ms": _milliseconds,
    "model": _digest,
    "key_secret_file": _secret,
    "multi_tenant": _flag,
    "namespace_extra": _text,
    "verify": _verify,
}
_PARSED = (_flag, _count, _seconds, _milliseconds)
"""Those that take no text."""
_DOTTED = ("admit", "codec", "load", "namespace", "policy")
_KEYS = {
    name.replace("_", ".", 1) if name.split("_")[0] in _DOTTED else name: name for name in _READ
}


def _free_memory() -> int:
    """Bytes of memory that can be had without swapping."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    raise OptionError("host_bytes: expected one, since this system does not say what is free")
