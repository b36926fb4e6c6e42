"""What is found of an engine, for the report of `kvist doctor` (docs/doctor.md)."""

from __future__ import annotations

import json
from typing import Any


class Report:
    """Facts and findings in order, as the Rust command takes them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.facts: list[dict[str, Any]] = []
        self.findings: list[dict[str, str]] = []

    def fact(self, name: str, value: Any) -> None:
        self.facts.append({"name": name, "value": value})

    def ok(self, about: str, text: str) -> None:
        self._add("ok", about, text, "")

    def warn(self, about: str, text: str, advice: str) -> None:
        self._add("warning", about, text, advice)

    def error(self, about: str, text: str, advice: str) -> None:
        self._add("error", about, text, advice)

    def _add(self, level: str, about: str, text: str, advice: str) -> None:
        self.findings.append({"level": level, "about": about, "text": text, "advice": advice})

    def json(self) -> str:
        return json.dumps({"name": self.name, "facts": self.facts, "findings": self.findings})
