"""The tasks, by name."""

from __future__ import annotations

from . import docs, facts, lists
from ._base import ROOM, Document, Maker, Question, Task

TASKS: dict[str, Task] = {task.name: task for task in (*facts.TASKS, *lists.TASKS, *docs.TASKS)}

__all__ = ["ROOM", "TASKS", "Document", "Maker", "Question", "Task"]
