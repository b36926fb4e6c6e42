"""Real text: the documentation that comes with CPython, as tokens.

It differs between Python versions, so its digest is part of every run's settings.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from .._documentation import documentation

_MODULES = """
    ast asyncio.subprocess base64 bdb bisect calendar code codecs codeop colorsys compileall
    configparser contextlib copy csv difflib dis doctest enum filecmp fileinput fnmatch fractions
    ftplib functools getpass gettext glob gzip heapq hmac html imaplib importlib.resources inspect
    ipaddress json keyword linecache locale logging mailbox mimetypes numbers operator os
    pathlib pickletools pkgutil platform plistlib pprint profile pstats py_compile pyclbr pydoc
    quopri random re runpy sched secrets shelve shlex shutil signal smtplib socket
    ssl statistics string subprocess sysconfig tabnanny tarfile tempfile textwrap threading
    timeit token tokenize trace traceback types typing unittest.mock urllib.parse urllib.request
    uuid warnings wave weakref webbrowser wsgiref.util xml.dom.minidom xml.etree.ElementTree
    zipapp zipfile
"""
"""Modules of the standard library whose functions' documentation is asked for."""


@dataclass(frozen=True)
class Entry:
    """One documented function of the standard library."""

    name: str
    text: str
    """Name, signature and documentation."""
    summary: str
    """The documentation's first line."""


@cache
def entries() -> tuple[Entry, ...]:
    """Functions with documentation, by name; the same for one Python version."""
    found: dict[str, Entry] = {}
    for module_name in _MODULES.split():
        try:
            module = importlib.import_module(module_name)
        except ImportError:
            # Modules come and go between versions.
            continue
        for name in sorted(getattr(module, "__all__", dir(module))):
            function = getattr(module, name, None)
            if name.startswith("_") or not inspect.isfunction(function):
                continue
            if entry := _entry(module_name, name, function):
                found.setdefault(entry.summary, entry)
    return tuple(sorted(found.values(), key=lambda e: e.name))


def _entry(module: str, name: str, function: Any) -> Entry | None:
    text = inspect.getdoc(function)
    if not text or function.__module__ not in (module, f"_{module}"):
        return None
    try:
        signature = str(inspect.signature(function))
    except ValueError:
        return None
    if " at 0x" in signature or "='/" in signature or len(text) > 3000:
        # Addresses and paths differ between runs; a very long entry would fill a document alone.
        return None
    full = f"{module}.{name}"
    body = "\n".join(f"    {line}".rstrip() for line in text.split("\n"))
    return Entry(full, f"{full}{signature}\n\n{body}\n\n", text.split("\n")[0].strip())


@cache
def digest() -> str:
    """Identifies all text of this Python version."""
    text = documentation() + "".join(entry.text for entry in entries())
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class Corpus:
    """The documentation in the tokens of one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        parts = [part for part in documentation().split("\n\n") if part.strip()]
        texts = [part + "\n\n" for part in parts]
        self.paragraphs: list[list[int]] = tokenizer(texts, add_special_tokens=False).input_ids
        self.texts = texts

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, without what the model wants in front of one."""
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def decode(self, ids: list[int]) -> str:
        """The text of tokens."""
        return str(self.tokenizer.decode(ids))

    def from_paragraph(self, start: int) -> Iterator[int]:
        """Numbers of all paragraphs, from this one on and round again."""
        count = len(self.paragraphs)
        return ((start + i) % count for i in range(count))

    def split(self, prompt: str, answer: str) -> tuple[list[int], list[int]]:
        """Tokens of both, cut where the tokens of the whole agree with those of the prompt, so that
        the answer's are the ones the model would see in running text."""
        whole, alone = self.encode(prompt + answer), self.encode(prompt)
        same = 0
        while same < min(len(alone), len(whole) - 1) and whole[same] == alone[same]:
            same += 1
        return whole[:same], whole[same:]

    def single(self, words: list[str]) -> list[str]:
        """Those words that are one token after a space."""
        return [w for w in words if len(self.encode(" " + w)) == 1]


__all__ = ["Corpus", "Entry", "digest", "entries"]
