"""What a block's content depends on besides its tokens: model, adapter, tenant, images.

Everything here ends up in the block's key (kvist's `docs/formats.md`), so that two requests share a block
only if the engine would have computed the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .._errors import OptionError

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
CHUNK = 1 << 22
SALT_MAX = 64
"""Bytes of a salt that a key takes; longer ones are hashed."""
_UNRELATED = ("_name_or_path", "transformers_version")
"""Fields of a model's configuration that say nothing about its numbers."""


def frame(fields: Iterable[bytes]) -> bytes:
    """Fields one after the other, each after its length: two lists never run together."""
    return b"".join(len(field).to_bytes(4, "little") + field for field in fields)


def _digest_of(files: Iterable[Path], root: Path) -> bytes:
    """SHA-256 over names and contents."""
    total = hashlib.sha256()
    for file in sorted(files):
        content = hashlib.sha256()
        with file.open("rb", buffering=0) as data:
            while chunk := data.read(CHUNK):
                content.update(chunk)
        total.update(frame([file.relative_to(root).as_posix().encode(), content.digest()]))
    return total.digest()


def _local(model: str, revision: str | None) -> Path:
    """The directory with a model's files: itself, or its snapshot in the Hugging Face cache."""
    if os.path.isdir(model):
        return Path(model)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, revision=revision, local_files_only=True))


def weights_digest(model: str, revision: str | None) -> bytes:
    """SHA-256 over the weights of a model that is on this machine. Raises `OptionError` if they are not."""
    try:
        root = _local(model, revision)
        files = [file for file in root.iterdir() if file.suffix in WEIGHTS and file.is_file()]
    except Exception as e:
        raise OptionError(
            f"kvist: expected the weights of {model!r} in a local directory, found none ({e}); set "
            '"model" in kv_connector_extra_config to 64 hexadecimal digits that stand for them'
        ) from e
    if not files:
        raise OptionError(
            f"kvist: expected files {', '.join(WEIGHTS)} in {root}, found none; set "
            '"model" in kv_connector_extra_config to 64 hexadecimal digits that stand for the weights'
        )
    return _digest_of(files, root)


def model_fingerprint(model_config: Any, given: bytes | None) -> bytes:
    """32 bytes for the weights and for how the engine was told to compute with them."""
    if given is None and getattr(model_config, "load_format", None) == "dummy":
        raise OptionError(
            'kvist: expected "model" in kv_connector_extra_config for random weights, found none'
        )
    weights = given or weights_digest(model_config.model, model_config.revision)
    config = model_config.hf_config.to_dict()
    related = {key: value for key, value in config.items() if key not in _UNRELATED}
    told = json.dumps(related, sort_keys=True, default=str)
    # It rotates by other factors when the longest prompt may be long.
    length = model_config.max_model_len if "longrope" in told else ""
    parts = (told, model_config.dtype, model_config.quantization, length)
    fields = [weights, *(str(part).encode() for part in parts)]
    return hashlib.sha256(frame(fields)).digest()


def salt_of(cache_salt: str | None) -> bytes:
    """A request's tenant, as keys take it."""
    salt = (cache_salt or "").encode()
    return salt if len(salt) <= SALT_MAX else b"sha256:" + hashlib.sha256(salt).digest()


class Adapters:
    """Fingerprints of LoRA adapters: over their files, as they were when a request first used them.

    The engine loads an adapter once, and may load it again after having dropped it. An adapter whose
    files change while the engine runs has no fingerprint any more: which of the two the engine uses
    cannot be known.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, str], tuple[Any, bytes | None]] = {}

    def fingerprint(self, lora: Any) -> bytes | None:
        """32 bytes; `None` if the adapter's blocks cannot be shared."""
        key = (lora.lora_int_id, lora.lora_path)
        state = self._state(lora.lora_path)
        if key not in self._known:
            self._known[key] = (state, self._digest(lora.lora_path) if state else None)
        before, digest = self._known[key]
        if state != before:
            self._known[key] = (before, None)
            return None
        return digest

    def _state(self, path: str) -> Any:
        """What changes when a file does; `None` if there are no files."""
        try:
            stats = [(str(file), file.stat()) for file in _files(Path(path))]
        except OSError:
            return None
        return [(name, s.st_size, s.st_mtime_ns, s.st_ino) for name, s in stats] or None

    def _digest(self, path: str) -> bytes | None:
        try:
            return _digest_of(_files(Path(path)), Path(path))
        except OSError:
            return None


def _files(root: Path) -> Iterator[Path]:
    return (file for file in sorted(root.rglob("*")) if file.is_file())


def images(features: Iterable[Any], start: int, stop: int) -> bytes:
    """The images (or other inputs) that tokens `start..stop` stand for: identifier in full, and where
    the input begins, counted from the block's first token."""
    fields: list[bytes] = []
    for feature in features:
        offset, length = feature.mm_position.offset, feature.mm_position.length
        if offset < stop and offset + length > start:
            place = (offset - start).to_bytes(8, "little", signed=True)
            fields += [str(feature.identifier).encode(), place]
    return frame(fields) if fields else b""
