"""One prefill, then every row of the table over forks of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.utils.logging import disable_progress_bar

import kvist
from kvist.hf import KvistCache

from . import text

TURNS, STEPS = 5, 4
"""Turns of each cache when speed is measured, and tokens of a turn."""
CHUNK = 512
"""Tokens of a prefill step."""
ANSWER_TOKENS = 10


@dataclass
class Row:
    """One way to decode, measured."""

    name: str
    tokens_per_s: float = 0.0
    tokens_read: float = 0.0
    """Per KV head and step, mean over layers."""
    bytes_read: float = 0.0
    """Per step, all layers: summaries, keys and values."""
    resident: int = 0
    perplexity: float = float("nan")
    kl: float = float("nan")
    kl_max: float = float("nan")
    steps: int = 0
    found: int = 0
    agree: int = 0
    """Answers equal to those of kvist full, token for token."""
    bound: float | None = None
    """Largest proven missed mass over all heads, at the traced step."""


@dataclass
class Result:
    """All rows, and what the plots need."""

    model: str
    context: int
    facts: int
    depths: list[float]
    rows: list[Row] = field(default_factory=list)
    reads: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    """`[heads, bins]`: share of a head's reads that fall into each part of the text."""
    reads_end: float = 1.0
    """Where the last bin ends: after the text (1) comes the question."""
    read_by: str = ""
    asked: str = ""
    """The place asked for while reads were traced."""
    asked_depth: float = 0.0
    layers: int = 0
    """Layers that `reads` covers."""
    threads: int = 0
    weights: int = 0
    """Bytes of the model's parameters."""
    prefill_s: float = 0.0


def rows_to_run(tokens: int, quick: bool) -> list[tuple[str, Any, int | None]]:
    """Name, selector and budget of every kvist row but `full`."""
    shares = (8,) if quick else (16, 8, 4)
    rows: list[tuple[str, Any, int | None]] = []
    for share in shares:
        for select in ("quest", "boxed"):
            rows.append((f"kvist {select} 1/{share}", select, tokens // share))
    certified = kvist.Select("boxed", max_missed_mass=0.1)
    return [*rows, ("kvist boxed, missed <= 0.1", certified, None)]


def run(model_dir: Path, quick: bool) -> Result:
    """Measures everything; shows progress."""
    disable_progress_bar()
    bar = tqdm(
        total=100, desc="loading the model", bar_format="{desc:<38}{percentage:3.0f}%|{bar}|"
    )
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    tokens, held_out = (2000, 32) if quick else (7000, 96)
    task = text.build(tokenizer, tokens, held_out)
    own_attention = model.config._attn_implementation
    full = KvistCache.for_model(model, select="full", host="8GiB")
    result = Result(model_dir.name, len(task.context), len(task.questions), task.depths)
    result.threads = torch.get_num_threads()
    result.weights = sum(p.numel() * p.element_size() for p in model.parameters())
    result.layers = len(full.kvist_layers)
    with torch.inference_mode():
        start = time.perf_counter()
        last = _prefill(model, full, task.context, bar)
        result.prefill_s = time.perf_counter() - start
        others = rows_to_run(len(task.context), quick)
        share = 65 / (len(others) + 2)
        bench = _Bench(model, tokenizer, task, last)

        bar.set_description_str("decoding: kvist full")
        reference = bench.row("kvist full", lambda: full.fork())
        _advance(bar, share)
        bar.set_description_str("decoding: the model's own cache")
        model.set_attn_implementation(own_attention)
        own = bench.own_row(full, reference)
        model.set_attn_implementation("kvist")
        _advance(bar, share)
        result.rows = [own, reference.row]
        for name, select, budget in others:
            bar.set_description_str(f"decoding: {name}")
            done = bench.row(name, _forker(full, select, budget), reference)
            result.rows.append(done.row)
            if name.endswith("boxed 1/8"):
                result.reads, result.reads_end, result.read_by = *done.reads, name
            _advance(bar, share)
        bar.set_description_str("measuring speed, in turns")
        forks = [_forker(full, select, budget)() for _, select, budget in others]
        speeds = bench.speeds(own_attention, [bench.dynamic(full), full.fork(), *forks])
        for row, speed in zip(result.rows, speeds, strict=True):
            row.tokens_per_s = speed
        result.asked = text.FACTS[bench.asked][0]
        result.asked_depth = task.depths[bench.asked]
    bar.update(100 - bar.n)
    bar.close()
    return result


def _advance(bar: tqdm[Any], by: float) -> None:
    bar.update(min(by, 100 - bar.n))


def _forker(full: KvistCache, select: Any, budget: int | None) -> Callable[[], KvistCache]:
    return lambda: full.fork(select=select, budget=budget)


def _prefill(model: Any, cache: KvistCache, context: list[int], bar: tqdm[Any]) -> torch.Tensor:
    """Runs the text through the model in chunks; log-probabilities after its last token."""
    bar.set_description_str("reading the text (prefill)")
    for at in range(0, len(context), CHUNK):
        ids = torch.tensor([context[at : at + CHUNK]])
        out = model(ids, past_key_values=cache, logits_to_keep=1)
        _advance(bar, 30 * len(ids[0]) / len(context))
    return out.logits[0, -1].log_softmax(-1)


@dataclass
class _Done:
    row: Row
    log_probs: torch.Tensor
    answers: list[list[int]]
    reads: tuple[np.ndarray, float]


class _Bench:
    def __init__(self, model: Any, tokenizer: Any, task: text.Task, last: torch.Tensor) -> None:
        self.model, self.tokenizer, self.task, self.last = model, tokenizer, task, last
        self.asked = len(task.questions) // 2
        """The question whose first step is traced."""

    def row(
        self, name: str, fork: Callable[[], KvistCache], reference: _Done | None = None
    ) -> _Done:
        """Held-out tokens one by one, then the questions, each on a fork of its own."""
        row = Row(name)
        cache = fork()
        log_probs = self._held_out(cache)
        row.steps = len(log_probs)
        report = cache.report()
        row.tokens_read, row.bytes_read = report.tokens_read, report.bytes_read
        row.resident = report.resident_bytes
        self._compare(row, log_probs, reference.log_probs if reference else log_probs)
        answers = [self._answer(fork(), question) for question, _ in self.task.questions]
        found = self._score(row, answers, reference.answers if reference else answers)
        if reference is None and found:
            # The middle one of those that the model can answer at all.
            self.asked = min(found, key=lambda i: abs(self.task.depths[i] - 0.5))
        reads = self._trace(fork(), row)
        return _Done(row, log_probs, answers, reads)

    def own_row(self, full: KvistCache, reference: _Done) -> Row:
        """The model's own cache, filled with the keys and values that kvist holds."""
        row = Row("own cache (DynamicCache, sdpa)")
        cache = self.dynamic(full)
        past = cache.get_seq_length()
        log_probs = self._held_out(cache)
        row.steps = len(log_probs)
        row.tokens_read = past + len(log_probs) / 2
        tensors = [t for layer in cache.layers for t in (layer.keys, layer.values)]
        row.resident = sum(t.numel() * t.element_size() for t in tensors)
        row.bytes_read = row.resident * row.tokens_read / tensors[0].shape[2]
        self._compare(row, log_probs, reference.log_probs)
        cache.crop(past - cache.get_seq_length())
        answers = []
        for question, _ in self.task.questions:
            answers.append(self._answer(cache, question))
            cache.crop(past - cache.get_seq_length())
        self._score(row, answers, reference.answers)
        return row

    def dynamic(self, full: KvistCache) -> DynamicCache:
        cache = DynamicCache(config=self.model.config)
        sequence = full.sequences[0]
        for layer, slot in full.kvist_layers.items():
            k, v = (torch.as_tensor(x) for x in sequence.read(slot))
            cache.update(k.transpose(0, 1)[None], v.transpose(0, 1)[None], layer)
        return cache

    def speeds(self, own_attention: str, caches: list[Any]) -> list[float]:
        """Tokens/s of each cache, the first being the model's own. They take turns, a few tokens
        each, so that all see the same machine; the first turn warms up."""
        times: list[list[float]] = [[] for _ in caches]
        for _ in range(TURNS + 1):
            for cache, seconds in zip(caches, times):
                own = cache is caches[0]
                self.model.set_attn_implementation(own_attention if own else "kvist")
                start = time.perf_counter()
                for token in self.task.held_out[:STEPS]:
                    self.model(torch.tensor([[token]]), past_key_values=cache)
                seconds.append((time.perf_counter() - start) / STEPS)
        return [1 / float(np.median(seconds[1:])) for seconds in times]

    def _held_out(self, cache: Any) -> torch.Tensor:
        """Log-probabilities after each held-out token."""
        out = []
        for token in self.task.held_out:
            logits = self.model(torch.tensor([[token]]), past_key_values=cache).logits
            out.append(logits[0, -1].log_softmax(-1))
        return torch.stack(out)

    def _compare(self, row: Row, log_probs: torch.Tensor, reference: torch.Tensor) -> None:
        # Rounding may leave a sum of nothing just below zero.
        kl = (reference.exp() * (reference - log_probs)).sum(-1).clamp(min=0)
        row.kl, row.kl_max = float(kl.mean()), float(kl.max())
        # The first held-out token is predicted by the text itself, the same for every row.
        before = torch.cat([self.last[None], log_probs[:-1]])
        target = torch.tensor(self.task.held_out)
        row.perplexity = float(torch.exp(-before.gather(1, target[:, None]).mean()))

    def _answer(self, cache: Any, question: list[int]) -> list[int]:
        """Greedy answer to one question."""
        ids, answer = torch.tensor([question]), []
        for _ in range(ANSWER_TOKENS):
            logits = self.model(ids, past_key_values=cache, logits_to_keep=1).logits
            ids = logits[:, -1:].argmax(-1)
            answer.append(int(ids))
        return answer

    def _score(self, row: Row, answers: list[list[int]], reference: list[list[int]]) -> list[int]:
        """Fills the row; returns the questions that were answered right."""
        texts = [self.tokenizer.decode(a) for a in answers]
        found = [i for i, (_, code) in enumerate(self.task.questions) if code in texts[i]]
        row.found = len(found)
        row.agree = sum(a == b for a, b in zip(answers, reference))
        return found

    def _trace(self, cache: KvistCache, row: Row, bins: int = 60) -> tuple[np.ndarray, float]:
        """The step that begins an answer, traced: where each head reads (and where, in units of the
        text, the last bin ends), and what is proven."""
        question, _ = self.task.questions[self.asked]
        store = cache._store
        self.model(torch.tensor([question[:-1]]), past_key_values=cache, logits_to_keep=1)
        store.tracing = True
        self.model(torch.tensor([question[-1:]]), past_key_values=cache)
        store.tracing = False
        tokens = cache.get_seq_length()
        reads, bounds = [], []
        for slot in sorted(store.last):
            info = store.last[slot][0]
            for positions in info.selected or ():
                count = np.histogram(np.asarray(positions), bins, (0, tokens))[0]
                reads.append(count / max(1, count.sum()))
            if info.missed_mass_bound is not None:
                bounds.append(float(np.max(info.missed_mass_bound)))
        dense = len(store.options.dense_slots)
        row.bound = max(bounds[dense:]) if len(bounds) == len(store.last) else None
        return np.array(reads), tokens / len(self.task.context)
