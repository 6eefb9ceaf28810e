"""What measurements ask of their task, before training."""

from __future__ import annotations

from typing import Any


def check_task(measurement: object, task: Any, kind: type[Any], needed: str) -> None:
    """Raises SettingError for a task of another kind than is needed, which is put in words."""
    name = type(measurement).__name__
    task.as_kind(kind, f"{name} needs {needed}, not {type(task).__name__}: leave it out")
