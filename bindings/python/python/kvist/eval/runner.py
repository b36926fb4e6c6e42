"""Runs what is missing: every document is read once, and asked in every way over forks."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import transformers
from tqdm import tqdm

import kvist
from kvist.hf import KvistCache

from .. import _kvist
from .._errors import OptionError
from . import corpus
from .decode import Answer, Decoder
from .models import Model
from .options import FULL, NO_TEXT, TAIL, Settings, Variant, variants
from .records import Record, Results
from .score import greedy, score
from .tasks import TASKS, Document, Maker, Question, Task

SUITE = 1
"""Raised when figures of the same questions would come out differently."""
HOST = "16GiB"
"""Most bytes of a document and its forks."""


@dataclass(frozen=True)
class Cell:
    """One task at one length."""

    task: Task
    length: int
    variants: list[Variant]
    samples: int
    run: str


def check(settings: Settings, longest: int | None) -> None:
    """Raises `OptionError` (or `UnknownNameError`) for what could not be run."""
    for length in settings.lengths:
        if longest is not None and length > longest:
            raise OptionError(
                f"length: expected at most {longest} tokens for this model, found {length}"
            )
        for name in settings.tasks:
            if length < TASKS[name].shortest:
                raise OptionError(
                    f"length: expected at least {TASKS[name].shortest} tokens for {name}, "
                    f"found {length}"
                )
        variants(settings, length)


def run(model: Model, settings: Settings, results: Results) -> None:
    """Answers every question that `results` does not have, and appends each at once."""
    check(settings, model.longest)
    lengths = []
    for length in settings.lengths:
        ways, left_out = variants(settings, length)
        lengths.append((length, ways))
        for why in left_out:
            warnings.warn(f"left out: {why}", stacklevel=2)
    maker = Maker(corpus.Corpus(model.tokenizer), settings.seed)
    cells = [
        Cell(
            TASKS[name],
            length,
            ways,
            settings.samples[name],
            results.begin(_identity(model, settings, TASKS[name], length)),
        )
        for length, ways in lengths
        for name in settings.tasks
    ]
    missing = sum(
        not results.has(cell.run, variant.rule, sample)
        for cell in cells
        for variant in cell.variants
        for sample in range(cell.samples)
    )
    decoder = Decoder(model.model, model.stop, HOST)
    with tqdm(total=missing, unit="answer", dynamic_ncols=True, smoothing=0.05) as bar:
        for cell in cells:
            _Cell(model, decoder, maker, settings, cell, results, bar).run()


def _identity(model: Model, settings: Settings, task: Task, length: int) -> dict[str, Any]:
    """Every setting that could change a figure."""
    with open(_kvist.__file__, "rb") as file:
        build = hashlib.blake2b(file.read(), digest_size=8).hexdigest()
    return {
        "suite": SUITE,
        "model": model.name,
        "weights": model.digest,
        "dtype": str(model.model.dtype).removeprefix("torch."),
        "task": task.name,
        "revision": task.revision,
        "length": length,
        "seed": settings.seed,
        "text": corpus.digest(),
        "dense_layers": list(settings.dense_layers),
        "kvist": kvist.__version__,
        "build": build,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


class _Cell:
    """The work of one cell."""

    def __init__(
        self,
        model: Model,
        decoder: Decoder,
        maker: Maker,
        settings: Settings,
        cell: Cell,
        results: Results,
        bar: Any,
    ) -> None:
        self.model, self.decoder, self.maker, self.settings = model, decoder, maker, settings
        self.cell, self.results, self.bar = cell, results, bar

    def run(self) -> None:
        per_document = self.cell.task.per_document(self.cell.length)
        for first in range(0, self.cell.samples, per_document):
            count = min(per_document, self.cell.samples - first)
            missing = [v for v in self.cell.variants if self._missing(v, first, count)]
            if missing:
                number = first // per_document
                document = self.cell.task.document(self.maker, self.cell.length, number)
                self._document(document, first, count, missing)

    def _missing(self, variant: Variant, first: int, count: int) -> bool:
        has = partial(self.results.has, self.cell.run, variant.rule)
        return not all(has(sample) for sample in range(first, first + count))

    def _document(
        self, document: Document, first: int, count: int, missing: Sequence[Variant]
    ) -> None:
        """Asks about a document in the ways that are missing, and in full, which they are compared
        with."""
        questions = document.questions
        title = f"{self.cell.task.name} {self.cell.length}, text {first // len(questions) + 1}"
        context = [*self.model.head, *document.context]
        reference: dict[int, torch.Tensor] = {}

        def read(select: Any = FULL) -> KvistCache:
            def progress(tokens: int) -> None:
                self.bar.set_description_str(f"{title}: reading {tokens}/{len(context)}")

            dense = self.settings.dense_layers
            cache = self.decoder.prefill(context, dense, progress, select)
            self.bar.set_description_str(f"{title}: asking")
            return cache

        def keep(i: int, variant: Variant, answer: Answer) -> None:
            if i < count and not self.results.has(self.cell.run, variant.rule, first + i):
                self._keep(first + i, variant, questions[i], answer, reference[i])

        full = self.cell.variants[0]
        assert full.select == FULL
        others = [v for v in missing if v.select not in (FULL, NO_TEXT)]
        together = [full, *(v for v in others if not v.looks_back)]
        tail = context[-TAIL:]
        with read() as cache:
            selects = [variant.selection for variant in together]
            for i, answers in self.decoder.answer(cache, tail, selects, questions):
                reference[i] = answers[0].log_probs
                for variant, answer in zip(together, answers):
                    keep(i, variant, answer)
        for variant in others:
            if variant.looks_back:
                with read(variant.selection) as cache:
                    for i, (answer,) in self.decoder.answer(cache, tail, [None], questions):
                        keep(i, variant, answer)
        for variant in missing:
            if variant.select == NO_TEXT:
                for i, answer in enumerate(self.decoder.without_text(self.model.head, questions)):
                    keep(i, variant, answer)

    def _keep(
        self,
        sample: int,
        variant: Variant,
        question: Question,
        answer: Answer,
        reference: torch.Tensor,
    ) -> None:
        said = None
        if answer.generated is not None:
            said = self.model.tokenizer.decode(answer.generated, skip_special_tokens=True)
        worth = asdict(score(question, answer.log_probs, reference))
        if variant.select != NO_TEXT:
            worth["generated"] = greedy(question, answer.log_probs, said)
        self.results.append(
            Record(
                run=self.cell.run,
                sample=sample,
                select=variant.select,
                budget=variant.budget,
                rule=variant.rule,
                tokens_read=answer.tokens_read,
                bytes_read=answer.bytes_read,
                depth=question.depth,
                said=said,
                **worth,
            )
        )
        self.bar.update()
