"""Records queries, keys and values as they pass the attention function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .._errors import UnsupportedError

if TYPE_CHECKING:
    from ._masks import Plan


class Recorder:
    """Keeps every key and value and the last `queries` queries of each slot (batch 1), on the CPU."""

    def __init__(self, queries: int) -> None:
        self.queries = queries
        self.keys: dict[int, list[torch.Tensor]] = {}
        self.values: dict[int, list[torch.Tensor]] = {}
        self.rows: dict[int, torch.Tensor] = {}
        self.scale: dict[int, float] = {}
        self.soft_cap = 0.0

    def add(
        self,
        slot: int,
        query: torch.Tensor,
        new: tuple[torch.Tensor, torch.Tensor] | None,
        plan: Plan | None,
        options: dict[str, Any],
    ) -> None:
        """One call of the attention function; tensors as `Store.attend` gets them."""
        if len(query) != 1 or plan is not None:
            raise UnsupportedError(
                f"recording: expected one row without padding, found {len(query)} rows"
            )
        if new is not None:
            self.keys.setdefault(slot, []).append(_copy(new[0][0].transpose(0, 1)))
            self.values.setdefault(slot, []).append(_copy(new[1][0].transpose(0, 1)))
        if self.queries:
            rows = _copy(query[0].transpose(0, 1)[-self.queries :])
            if slot in self.rows:
                rows = torch.cat([self.rows[slot], rows])[-self.queries :]
            self.rows[slot] = rows
        scale = options["scale"]
        self.scale[slot] = query.shape[3] ** -0.5 if scale is None else float(scale)
        self.soft_cap = options["soft_cap"]

    def kv(self, slot: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a slot, `[tokens, kv_heads, dim]`."""
        return torch.cat(self.keys[slot]), torch.cat(self.values[slot])


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to("cpu", copy=True)
