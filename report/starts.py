"""The starts of a run: ``env.json`` keeps the code, machine and step of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from opsin.data.records import RecordError, read_record

AWAY = "put it back, or mv it away to go on without it"


class Start(TypedDict):
    """A start of a run; None is what it did not know.

    ``own`` is the name and digest of each function and class that is of the user's own files.
    """

    commit: str | None
    dirty: bool | None
    versions: dict[str, str]
    python: str
    devices: list[str]
    hardware: str
    step: NotRequired[int]
    resumed: NotRequired[bool]
    own: NotRequired[dict[str, str]]


def read_starts(path: Path, way_out: str = AWAY) -> Sequence[Start]:
    """The starts in ``env.json``, which once held the last one alone.

    Args:
        path: of the file.
        way_out: what to do if it cannot be read.

    Raises:
        RecordError: there is no such file, or it is damaged.
    """
    found = read_record(path, list[Start] | Start, way_out)  # pyright: ignore[reportArgumentType]
    if not found:
        raise RecordError(f"{path} names no start: {way_out}")
    return found if isinstance(found, list) else [found]


def that_count(starts: Sequence[Start]) -> Sequence[Start]:
    """The starts that a run's numbers come from: what was before its last beginning is lost.

    A run of no steps resumes at step 0. Older starts do not say whether they resumed.
    """
    resumed = [start.get("resumed", start.get("step")) for start in starts]
    beginnings = [index for index, whether in enumerate(resumed) if not whether]
    return starts[beginnings[-1] :] if beginnings else starts


def commits(starts: Sequence[Start]) -> list[str]:
    """The commits that a run's numbers come from, in order, each once."""
    return list(dict.fromkeys(start["commit"] or "unknown" for start in that_count(starts)))


def other_code(starts: Sequence[Start], now: Mapping[str, Any]) -> str | None:
    """One line if the last of the starts was by other code than that of now; None if it was not.

    Uncommitted changes may be others each time. Installed code has no commit, but a version.
    """
    if not starts:
        return None
    own = starts[-1].get("own", {})
    changed = [name for name, digest in now.get("own", {}).items() if own.get(name) != digest]
    notes = (
        [f"trained with another {', '.join(changed)} than there is now"] if own and changed else []
    )
    notes += [note] if (note := _other_commit(starts[-1], now)) else []
    return "; ".join(notes) or None


def _other_commit(before: Start, here: Mapping[str, Any]) -> str | None:
    same = before["commit"] == here["commit"]
    if same and here["commit"] is None:
        same = _version(before) == _version(here)
    if same and not (before["dirty"] or here["dirty"]):
        return None
    if same and before["dirty"] and here["dirty"]:
        return f"trained at {_described(before)}, which may be others than now"
    return f"trained at {_described(before)}; this is {_described(here)}"


def _described(start: Mapping[str, Any]) -> str:
    commit = start["commit"]
    changed = " with uncommitted changes" if start["dirty"] else ""
    if commit:
        return f"commit {commit[:10]}{changed}"
    version = _version(start)
    return f"opsin {version}, an unknown commit" if version else "an unknown commit"


def _version(start: Mapping[str, Any]) -> str | None:
    return start.get("versions", {}).get("opsin")
