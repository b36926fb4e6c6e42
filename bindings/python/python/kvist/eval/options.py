"""What is asked for on the command line, checked before anything is loaded."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np

import kvist

from .._errors import OptionError, UnknownNameError

Budget = int | Fraction
"""Tokens, or a share of the length."""

FULL, NO_TEXT = "full", "no text"
"""The reference, and the same questions without their document."""
TAIL = 64
"""Last tokens of a document that are read for each selector (SnapKV looks at the last 32 queries)."""
ALL = "all"
"""Every preset that there is."""


@dataclass(frozen=True)
class Variant:
    """One way to read: a selector with a budget, at one length."""

    select: str
    """The preset, with the settings of its own that were asked for."""
    budget: int | None
    """Tokens per KV head and query, keeps included; `None` where none is set."""
    selection: Any
    """The selection itself; `None` for `NO_TEXT`."""
    looks_back: bool = False
    """Whether it goes by queries of the whole document, so that it must read it by itself."""

    @property
    def rule(self) -> str:
        """All settings of the selection, defaults included."""
        return NO_TEXT if self.selection is None else repr(self.selection)


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    tasks: tuple[str, ...]
    selectors: tuple[str, ...]
    budgets: tuple[Budget, ...]
    lengths: tuple[int, ...]
    samples: dict[str, int]
    """Questions per task and length."""
    seed: int = 0
    dense_layers: tuple[int, ...] = (0, 1)


def known(kind: str, name: str, names: Iterable[str]) -> str:
    """`name`, if it is one of `names`; else `UnknownNameError` with the nearest one."""
    names = list(names)
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=1)
    hint = f", did you mean {near[0]!r}?" if near else ""
    raise UnknownNameError(f"unknown {kind} {name!r}{hint}; there are: {', '.join(names)}")


def parse_list(text: str) -> list[str]:
    """Items between commas; those inside parentheses do not count."""
    items, depth = [""], 0
    for char in text:
        depth += (char == "(") - (char == ")")
        if char == "," and depth == 0:
            items.append("")
        else:
            items[-1] += char
    return [item.strip() for item in items if item.strip()]


def parse_budget(text: str) -> Budget:
    """`512`, `1/16` or `0.05`."""
    try:
        budget = Fraction(text.replace(" ", ""))
    except (ValueError, ZeroDivisionError):
        budget = Fraction(0)
    if budget.denominator == 1 and budget >= 1 and "/" not in text:
        return int(budget)
    if 0 < budget <= 1:
        return budget
    raise OptionError(
        f"budget: expected tokens (512) or a share above 0 and at most 1 (1/16), found {text!r}"
    )


def parse_samples(text: str, tasks: Iterable[str], names: Iterable[str]) -> dict[str, int]:
    """`20`, or `20,needle=200`: questions per length for each of `tasks`; a task that is not among
    them but in `names` may have a number too."""
    counts: dict[str, int] = {}
    others = None
    for item in parse_list(text):
        name, _, number = item.rpartition("=")
        if not number.strip().isdecimal() or int(number) < 1:
            raise OptionError(f"samples: expected a number or TASK=NUMBER, found {item!r}")
        if name:
            counts[known("task", name.strip(), names)] = int(number)
        else:
            others = int(number)
    left = [task for task in tasks if task not in counts]
    if others is None and left:
        raise OptionError(f"samples: expected a number for {', '.join(left)}, found {text!r}")
    return {task: counts.get(task, others or 0) for task in tasks}


def tokens_of(budget: Budget, length: int) -> int:
    """A budget in tokens.

    Raises `OptionError` if it is more than there is.
    """
    tokens = budget if isinstance(budget, int) else int(budget * length)
    if tokens > length:
        raise OptionError(f"budget: expected at most the length {length}, found {tokens}")
    return tokens


def variants(settings: Settings, length: int) -> tuple[list[Variant], list[str]]:
    """Every selector with every budget, full attention first and each rule once; and of `all` those
    that cannot be, and why.

    A selector with settings of its own, `boxed(top_p=0.9)`, stands for itself. Raises `OptionError`
    (or `UnknownNameError`) if one that was named cannot be.
    """
    found, left_out = [Variant(FULL, None, kvist.selection(FULL))], []
    for text in settings.selectors:
        if text == ALL:
            for preset in kvist.selection_presets():
                for budget in settings.budgets:
                    tokens_of(budget, length)
                    try:
                        found.append(_with_budget(preset["name"], budget, length))
                    except OptionError as e:
                        left_out.append(str(e))
        elif "(" in text:
            found.append(_with_settings(text, length))
        else:
            found += [_with_budget(text, budget, length) for budget in settings.budgets]
    rules: dict[str, Variant] = {}
    for variant in found:
        rules.setdefault(variant.rule, variant)
    return [*rules.values(), Variant(NO_TEXT, None, None)], left_out


def _with_budget(name: str, budget: Budget, length: int) -> Variant:
    """A preset with a budget; full attention has none."""
    if name == FULL:
        return Variant(FULL, None, kvist.selection(FULL))
    tokens = tokens_of(budget, length)
    try:
        return _variant(name, tokens, kvist.selection(name, tokens), length)
    except UnknownNameError:
        raise
    except OptionError as e:
        raise OptionError(f"budget {budget} of length {length}: {e}") from None


def _with_settings(text: str, length: int) -> Variant:
    """`boxed(planes=2, budget=1/8)`: a preset with keyword arguments of `kvist.Select`."""
    name, arguments = _call(text, length)
    budget = arguments.get("budget")
    preset = kvist.Select(name)
    if "budget" not in preset.settings:
        # Its budget is made of other settings.
        arguments.pop("budget", None)
        selection = kvist.selection(kvist.Select(name, **arguments), budget)
    else:
        selection = kvist.Select(name, **arguments)
        budget = selection.budget
    own = ", ".join(f"{k}={v!r}" for k, v in arguments.items() if k != "budget")
    return _variant(f"{name}({own})" if own else name, budget, selection, length)


def _call(text: str, length: int) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a call, its budget in tokens."""
    try:
        call = ast.parse(text, mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError
        arguments = {
            str(k.arg): tokens_of(parse_budget(ast.unparse(k.value)), length)
            if k.arg == "budget"
            else ast.literal_eval(k.value)
            for k in call.keywords
        }
    except (SyntaxError, ValueError) as e:
        if isinstance(e, OptionError):
            raise
        raise OptionError(
            f"select: expected NAME or NAME(KEY=VALUE, ...), found {text!r}"
        ) from None
    return call.func.id, arguments


def _variant(select: str, budget: int | None, selection: kvist.Select, length: int) -> Variant:
    """Raises `OptionError` if a query cannot be answered this way from keys and values alone: some
    selectors need scores that a model was trained to give."""
    return Variant(select, budget, selection, looks_back(selection, length))


@dataclass
class _Toy:
    """One head's worth of random numbers, for `looks_back`."""

    length: int

    def __post_init__(self) -> None:
        shape = (3, self.length + 1, 1, 16)
        self.q, self.k, self.v = np.random.default_rng(0).standard_normal(shape, np.float32)

    def cache(self, select: str | kvist.Select) -> kvist.Cache:
        return kvist.Cache(
            layers=1, q_heads=1, kv_heads=1, head_dim=16, dtype="f32", host="1GiB", select=select
        )

    def read(self, sequence: kvist.Sequence, begin: int, end: int) -> None:
        """Appends and attends the tokens of a prompt."""
        for at in range(begin, end, 512):
            part = slice(at, min(at + 512, end))
            sequence.append(0, self.k[part], self.v[part])
            sequence.attend(0, self.q[part])

    def picks(self, sequence: kvist.Sequence) -> list[list[int]]:
        """What a step after the prompt reads."""
        sequence.append(0, self.k[-1:], self.v[-1:])
        _, info = sequence.attend(0, self.q[-1], info=True, selected=True)
        return [head.tolist() for head in info.selected or []]


@cache
def _toy(length: int) -> _Toy:
    return _Toy(length)


def looks_back(selection: kvist.Select, length: int) -> bool:
    """Whether what is selected depends on queries of the prompt before its last `TAIL` tokens: found
    out on random numbers, as selectors do not say.

    Raises `OptionError` if the selector cannot be used so.
    """
    toy = _toy(length)
    with toy.cache(selection) as cache:
        sequence = cache.sequence()
        toy.read(sequence, 0, length)
        whole = toy.picks(sequence)
    with toy.cache(FULL) as cache:
        sequence = cache.sequence()
        toy.read(sequence, 0, length - TAIL)
        late = sequence.fork(select=selection)
        toy.read(late, length - TAIL, length)
        return toy.picks(late) != whole
