"""What measurements ask of their task, before training."""

from __future__ import annotations

from typing import Any

from opsin.train.settings import SettingError


def check_task(measurement: object, task: object, kind: type[Any], needed: str) -> None:
    """Raises SettingError for a task of another kind than is needed, which is put in words."""
    if not isinstance(task, kind):
        raise SettingError(
            f"{type(measurement).__name__} needs {needed}, not {type(task).__name__}: leave it out"
        )
