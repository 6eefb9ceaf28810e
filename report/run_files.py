"""The JSON files of a run, each with its schema; see docs/design.md. Nothing here imports jax."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from opsin.data.files import from_json, in_shell
from opsin.data.records import RecordError, read_record


class Config(TypedDict):
    """What is needed of ``config.json`` before its experiment is rebuilt, which checks the rest."""

    seed: int


class Place(TypedDict):
    """``arm.json``: where the run was started."""

    experiment: str
    arm: str
    seed: int


def read_config(run: Path) -> dict[str, Any]:
    """The resolved experiment of a run.

    Raises:
        RecordError: the file is missing or damaged.
    """
    config: Any = read_record(run / "config.json", Config, repeated(run))
    return config


def read_place(run: Path) -> Place | None:
    """Where a run was started; None where it does not say.

    Raises:
        RecordError: the file is damaged.
    """
    path = run / "arm.json"
    there = path.exists()
    return read_record(path, Place, "mv it away to go on without it") if there else None


def read_summary(run: Path, *needed: str) -> dict[str, float]:
    """The final numbers of a run as they were measured.

    Raises:
        RecordError: the file is missing or damaged, or lacks a number that is needed.
    """
    path = run / "summary.json"
    summary: Mapping[str, float | None] = read_record(path, dict[str, float | None], repeated(run))
    if lacking := [name for name in needed if summary.get(name) is None]:
        raise RecordError(f"{path} has no {', '.join(lacking)}: {repeated(run)}")
    return from_json(summary)


def repeated(run: Path) -> str:
    """The way out where a file of a run is damaged."""
    return f"put it back, or rm -r {in_shell(run)} to train it again"
