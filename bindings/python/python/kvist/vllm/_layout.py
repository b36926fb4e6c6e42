"""What the engine's blocks look like, and the same memory as K and V tiles.

vLLM shows a layer as `[blocks, kv_heads, tokens, 2 * head_dim]`, whatever the order in memory is, and
whatever lies inside a cell `[tokens, 2 * head_dim]`. Each layout below is a way to see the K and V of the cells
without a copy; which one holds is not taken from a name: the engine's own writer fills scratch blocks,
and the layout that shows the same numbers is the one. If none does, blocks are opaque: bytes, as they
are, with everything that tells them apart in their key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .._errors import OptionError

Views = tuple[torch.Tensor, torch.Tensor]


def _tiles(cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    """The halves of each cell as flat runs `[blocks, kv_heads, tokens * head_dim]`."""
    blocks, heads, tokens, content = cache.shape
    dim = content // 2
    flat = cache.as_strided((blocks, heads, tokens * content), (*cache.stride()[:2], 1))
    return flat[..., : tokens * dim], flat[..., tokens * dim :], tokens, dim


def split(cache: torch.Tensor) -> Views:
    """Rows of K and V side by side: FlashAttention."""
    dim = cache.shape[3] // 2
    return cache[..., :dim], cache[..., dim:]


def transposed(cache: torch.Tensor) -> Views:
    """K `[head_dim][tokens]`, then V `[tokens][head_dim]`: the CPU's `vec` and `vec16`."""
    k, v, tokens, dim = _tiles(cache)
    return k.unflatten(2, (dim, tokens)).transpose(2, 3), v.unflatten(2, (tokens, dim))


def matrix(cache: torch.Tensor) -> Views:
    """K in tiles of 16 tokens by pairs of channels, V of pairs of tokens by 16 channels: the CPU's `amx`.

    As `[blocks, kv_heads, token tiles, tokens of one, channel tiles, channels of one]`.
    """
    k, v, tokens, dim = _tiles(cache)
    k = k.unflatten(2, (tokens // 16, dim // 2, 16, 2)).permute(0, 1, 2, 4, 3, 5)
    v = v.unflatten(2, (dim // 16, tokens // 2, 16, 2)).permute(0, 1, 3, 5, 2, 4)
    return k, v


LAYOUTS: dict[str, Callable[[torch.Tensor], Views]] = {
    "split": split,
    "cpu-vec-kT-v": transposed,
    "cpu-amx": matrix,
}


def rows(view: torch.Tensor) -> torch.Tensor:
    """A view of a layout as `[blocks, kv_heads, tokens, head_dim]`; a copy if it is in tiles."""
    return view if view.dim() == 4 else view.flatten(2, 3).flatten(3, 4)


def suits(name: str, cache: torch.Tensor) -> bool:
    """Whether a layout makes sense for tensors of this shape and these strides."""
    tokens, content = cache.shape[2:]
    if content % 2 or cache.stride(3) != 1:
        return False
    # All but `split` look at a cell as one run.
    dense = cache.stride(2) == content
    fits = name != "cpu-amx" or (tokens % 16 == 0 and content % 32 == 0)
    return name == "split" or (dense and fits)


Writer = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]
"""The engine's: `(k, v, cache, slots)`, K and V `[tokens, kv_heads, head_dim]`."""


def detect(cache: torch.Tensor, write: Writer) -> str | None:
    """The layout by which the engine's writer fills blocks like those of `cache`; none if it is unknown.

    Costs two scratch blocks and less than a millisecond.
    """
    _, heads, tokens, content = cache.shape
    shape, dim = (2, heads, tokens, content), content // 2
    size = sum((n - 1) * s for n, s in zip(shape, cache.stride(), strict=True)) + 1
    scratch = torch.zeros(size, dtype=cache.dtype).as_strided(shape, cache.stride())
    generator = torch.Generator().manual_seed(0)
    rows_of = (2 * tokens, heads, dim)
    k, v = (torch.randn(rows_of, generator=generator).to(cache.dtype) for _ in range(2))
    write(k, v, scratch, torch.arange(2 * tokens))
    wanted = [x.unflatten(0, (2, tokens)).transpose(1, 2) for x in (k, v)]
    for name, views in LAYOUTS.items():
        if suits(name, cache) and all(
            torch.equal(rows(view), want) for view, want in zip(views(scratch), wanted, strict=True)
        ):
            return name
    return None


DIM_MAX = 512
"""Of a store's blocks, in elements."""


def as_bytes(size: int, tokens: int) -> tuple[int, int]:
    """KV heads and head dimension of a block of `tokens` tokens, of bytes, that takes `size` bytes."""
    row = size // tokens // 2
    if row * tokens * 2 != size or row == 0:
        raise OptionError(
            f"expected an even number of bytes for each of {tokens} tokens, found {size}"
        )
    dim = max(d for d in range(1, min(row, DIM_MAX) + 1) if row % d == 0)
    return row // dim, dim


def opaque(cache: torch.Tensor) -> Views | None:
    """A layer's blocks as bytes, in the shape of K and V: the halves of each block, whatever they hold.
    None if a block is not one run of memory."""
    run = 1
    for stride, count in sorted(zip(cache.stride()[1:], cache.shape[1:], strict=True)):
        if stride != run:
            return None
        run *= count
    blocks, tokens = cache.shape[0], cache.shape[2]
    flat = cache.as_strided((blocks, run), (cache.stride(0), 1)).view(torch.uint8)
    heads, dim = as_bytes(flat.shape[1], tokens)
    k, v = flat.unflatten(1, (2, heads, tokens, dim)).unbind(1)
    return k, v


def describe(cache: torch.Tensor, **more: Any) -> str:
    """Everything that tells opaque blocks of two engines apart."""
    parts = {"shape": tuple(cache.shape[1:]), "strides": cache.stride(), "dtype": cache.dtype}
    return "|".join(f"{name}={value}" for name, value in {**parts, **more}.items())
