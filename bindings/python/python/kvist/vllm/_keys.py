"""The keys of a request's blocks."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np

from .._kvist import PrefixStore, Space
from . import _identity as identity
from ._meta import Hello

SPACES_MAX = 256
"""Spaces that are kept: one for each tenant, adapter and set of images."""
EXTRA_MAX = 4096
"""Bytes of what else a block depends on; a block with more is not shared."""


class Keys:
    """Computes keys as the workers' stores do, from the same secret. Holds no blocks."""

    def __init__(self, hello: Hello, multi_tenant: bool) -> None:
        self._options = hello.space
        self._multi_tenant = multi_tenant
        self._adapters = identity.Adapters()
        self._spaces: dict[tuple[bytes, bytes | None, bytes], Space] = {}
        self.block_tokens: int = hello.space["block_tokens"]
        # A store wants room for a block, although none comes here.
        self._store = PrefixStore(2 * hello.block_bytes, key_secret=hello.secret)

    def salt(self, request: Any) -> bytes | None:
        """The request's tenant; `None` if it has none and needs one."""
        salt = identity.salt_of(request.cache_salt)
        return None if self._multi_tenant and not salt else salt

    def of(self, request: Any, tokens: list[int], known: list[bytes]) -> list[bytes] | None:
        """Keys of all full blocks of `tokens`, of which the first `known` were computed before;
        `None` if the request's blocks cannot be shared."""
        salt, adapter = self.salt(request), None
        if salt is None or getattr(request, "prompt_embeds", None) is not None:
            return None
        if request.lora_request is not None:
            adapter = self._adapters.fingerprint(request.lora_request)
            if adapter is None:
                return None
        keys, size = list(known), self.block_tokens
        blocks = range(len(known), len(tokens) // size)
        features = request.mm_features or ()
        shown = [identity.images(features, i * size, (i + 1) * size) for i in blocks]
        if any(len(extra) + len(self._options["extra"]) + 8 > EXTRA_MAX for extra in shown):
            return None
        for extra, run in groupby(blocks, key=lambda i: shown[i - blocks.start]):
            indices = list(run)
            part = np.asarray(tokens[indices[0] * size : (indices[-1] + 1) * size], np.int64)
            parent = keys[-1] if keys else None
            keys += self._space(salt, adapter, extra).prefix(part, parent=parent).keys
        return keys

    def _space(self, salt: bytes, adapter: bytes | None, shown: bytes) -> Space:
        name = (salt, adapter, shown)
        if name not in self._spaces:
            if len(self._spaces) >= SPACES_MAX:
                self._spaces.clear()
            extra = identity.frame([self._options["extra"], shown])
            options = {**self._options, "extra": extra}
            self._spaces[name] = self._store.space(**options, salt=salt, adapter=adapter)
        return self._spaces[name]

    def close(self) -> None:
        """Gives everything back."""
        self._store.close()
