"""The raw data of a report: one row for each run that ended, from run folders to JSON Lines."""

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from opsin.config.table import ReportError
from opsin.data.files import check_enclosed, from_json, replace_text, to_json
from opsin.report import evaluations
from opsin.report.starts import commits, starts_of, that_count


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run that ended, well or not.

    Attributes:
        arm: the arm of the sweep; "default" for a run without one.
        seed: the run's seed.
        id: the name of its folder, which is the hash of what changes its trained numbers.
        measurement: the id of its measurements, in which arms that only measure differ; several
            ids are joined by "+". None without measurements.
        status: how it ended.
        commit: the commit that it was trained on, the last of several, or "unknown".
        commits: all of them in order, if it resumed or was measured under other code; None for a
            single one.
        dirty: whether files differed from that commit, or one of them.
        devices: the kind of each device.
        hardware: the machine.
        versions: library -> version, Python among them.
        seconds: how long it took; None for a failed run.
        metrics: its final metrics; empty for a failed run.
        error: of a failed run, the line that says why; None for the others.
    """

    arm: str
    seed: int
    id: str
    status: Literal["done", "failed"]
    commit: str
    dirty: bool
    devices: Sequence[str]
    hardware: str
    versions: Mapping[str, str]
    seconds: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    measurement: str | None = None
    commits: Sequence[str] | None = None

    def diverged(self) -> bool:
        """Whether it failed by numbers that are not finite, and not by a full disk or a bug."""
        return (self.error or "").startswith("NonFiniteError")


def collect(
    run_dir: Path,
    arms: Sequence[str],
    identity_of: Callable[[str, int], tuple[str, str | None]],
) -> list[Row]:
    """Reads the runs below ``run_dir`` that ended, sorted by arm and seed.

    A folder makes a row for each arm that it belongs to. There is no row without ``DONE`` or
    ``FAILED``, nor for an arm whose measurements were not made; the report lists its seed as
    missing. Runs of another config (with overrides, or older than a change of the experiment) make
    no row either: a warning is logged.

    Args:
        run_dir: ``runs/<experiment>``, with a folder for each run.
        arms: the arms of the sweep, in order.
        identity_of: (arm, seed) -> the id of that run of the sweep, and that of its measurements.

    Raises:
        ReportError: no run of the sweep has ended, or a file is missing or broken.
        DataError: a folder holds a link that leads out of it.
    """
    folders = sorted(path for path in run_dir.glob("*") if path.is_dir())
    ended = [path for path in folders if _status(path) is not None]
    rows: list[Row] = []
    strangers: list[str] = []
    for path in ended:
        check_enclosed(path)
        seed = _read(path / "config.json", "seed")["seed"]
        measured_in = {arm: identity_of(arm, seed) for arm in arms}
        own = {arm: what for arm, (run, what) in measured_in.items() if run == path.name}
        strangers += [] if own else [path.name]
        rows += [row for arm, what in own.items() if (row := read_run(path, arm, seed, what))]
    if strangers:
        logging.getLogger(__name__).warning(
            "left out the runs in %s that are not of the sweep as it stands: %s",
            run_dir,
            ", ".join(strangers),
        )
    if not rows:
        raise ReportError(
            f"no run of the sweep has ended in {run_dir} ({len(folders)} folders, {len(ended)} "
            f"ended): run opsin sweep {run_dir.name}"
        )
    return in_order(rows, arms)


def in_order(rows: Iterable[Row], arms: Sequence[str]) -> list[Row]:
    """``rows`` in the order of ``arms``, then of seeds."""
    return sorted(rows, key=lambda row: (arms.index(row.arm), row.seed))


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Writes one JSON object a line; floats keep every digit."""
    lines = []
    for row in rows:
        record = {**asdict(row), "metrics": to_json(dict(sorted(row.metrics.items())))}
        record["versions"] = dict(sorted(row.versions.items()))
        lines.append(json.dumps({k: v for k, v in record.items() if v is not None}) + "\n")
    replace_text(path, "".join(lines))


def read_rows(path: Path) -> list[Row]:
    """Reads what ``write_rows`` wrote.

    Raises:
        ReportError: the file is missing, or a line of it is no row.
    """
    if not path.exists():
        raise ReportError(f"no {path}: write it with opsin report {path.stem}")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
            record["metrics"] = from_json(record["metrics"])
            rows.append(Row(**record))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ReportError(
                f"{path}, line {number} is no row ({error}): write the file again with "
                f"opsin report {path.stem}"
            ) from error
    return rows


def _status(folder: Path) -> Literal["done", "failed"] | None:
    if (folder / "DONE").exists():  # a failed run that was repeated and ended well is done
        return "done"
    return "failed" if (folder / "FAILED").exists() else None


def read_run(folder: Path, arm: str, seed: int, measurement: str | None) -> Row | None:
    """The row of a run that ended; None if it lacks what is to be measured of it.

    Raises:
        ReportError: a file is missing or broken.
    """
    keys = ("commit", "dirty", "devices", "hardware", "versions", "python")
    env_file = folder / "env.json"
    every = [_with(env_file, start, *keys) for start in starts_of(_json(env_file))]
    starts = that_count(every)
    env, ran_on = starts[-1], commits(starts)
    failed = _status(folder) == "failed"
    summary = {} if failed else _read_summary(folder / "summary.json")
    seconds = summary.pop("seconds", None)
    steps = int(summary.get("steps", 0))
    again = evaluations.read(folder, evaluations.SPLITS, steps)
    metrics = summary | (again["metrics"] if again else {})
    by = [again["commit"]] if again else []
    for name in measurement.split("+") if measurement and not failed else ():
        found = evaluations.read(folder, name, steps)
        if found is None:
            return None
        metrics |= found["metrics"]
        by.append(found["commit"])
        seconds += found["seconds"]
    every_commit = list(dict.fromkeys([*ran_on, *(commit or "unknown" for commit in by)]))
    return Row(
        arm=arm,
        seed=seed,
        id=folder.name,
        measurement=measurement,
        status="failed" if failed else "done",
        commit=env["commit"] or "unknown",
        commits=every_commit if len(every_commit) > 1 else None,
        dirty=any(start["dirty"] for start in starts),
        devices=env["devices"],
        hardware=env["hardware"],
        versions={"python": env["python"], **env["versions"]},
        seconds=seconds,
        metrics=metrics,
        error=_error_line((folder / "FAILED").read_text(encoding="utf-8")) if failed else None,
    )


def _read(path: Path, *keys: str) -> dict[str, Any]:
    """The JSON object in ``path``, which must have ``keys``."""
    return _with(path, _json(path), *keys)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(
            f"{path} cannot be read ({error}): remove {path.parent} and repeat the run"
        ) from error


def _with(path: Path, content: Any, *keys: str) -> dict[str, Any]:
    """An object of ``path``, if it has these keys."""
    lacking = [key for key in keys if not isinstance(content, dict) or key not in content]
    if lacking:
        raise ReportError(
            f"{path} has no {', '.join(lacking)}: remove {path.parent} and repeat the run"
        )
    return content


def _read_summary(path: Path) -> dict[str, float]:
    summary = from_json(_read(path, "seconds"))
    for name, value in summary.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ReportError(
                f"{path} has {name!r} = {value!r}, which is no number: remove {path.parent} and "
                "repeat the run"
            )
    return summary


def _error_line(text: str) -> str:
    """The line that says why: the first one, or the last one of a traceback."""
    lines = text.strip().splitlines() or ["no reason given"]
    return (lines[-1] if lines[0].startswith("Traceback") else lines[0]).strip()
