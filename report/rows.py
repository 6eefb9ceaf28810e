"""The raw data of a report: one row for each run that ended, from run folders to JSON Lines."""

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypedDict

from opsin.config.table import Key, ReportError
from opsin.data.enclosure import check_enclosed
from opsin.data.files import from_json, in_shell, replace_text, to_json
from opsin.data.records import RecordError, conform, open_regular, parse, read_records, unreadable
from opsin.report import evaluations
from opsin.report.run_files import read_config, read_summary, repeated
from opsin.report.starts import commits, read_starts, that_count


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run that ended, well or not.

    Attributes:
        arm: the arm of the sweep; "default" for a run without one.
        seed: the run's seed.
        id: the name of its folder, which is the hash of what changes its trained numbers.
        measurement: the id of its measurements, in which arms that only measure differ; several
            ids are joined by "+". None without measurements.
        evaluation: the id of how its splits were evaluated and it was measured, see
            ``config.identity.evaluation_id``.
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
    evaluation: str | None = None
    commits: Sequence[str] | None = None

    def key(self) -> Key:
        """What tells it from all others."""
        return Key(self.id, self.measurement, self.evaluation)

    def diverged(self) -> bool:
        """Whether it failed by numbers that are not finite, and not by a full disk or a bug."""
        return (self.error or "").startswith("NonFiniteError")


def collect(
    run_dir: Path,
    arms: Sequence[str],
    identity_of: Callable[[str, int], Key],
    typed: str | None = None,
) -> list[Row]:
    """Reads the runs below ``run_dir`` that ended, sorted by arm and seed.

    A folder makes a row for each arm that it belongs to. There is no row without ``DONE`` or
    ``FAILED``, nor for an arm whose measurements were not made; the report lists its seed as
    missing. Runs of another config (with overrides, or older than a change of the experiment) make
    no row either. A warning names both.

    Args:
        run_dir: ``runs/<experiment>``, with a folder for each run.
        arms: the arms of the sweep, in order.
        identity_of: (arm, seed) -> the key of that row of the sweep.
        typed: the name or file of the experiment, if it is not that of the folder.

    Raises:
        ReportError: no run of the sweep has ended.
        RecordError: a file is missing or damaged.
        DataError: a folder holds a link that leads out of it.
    """
    again = in_shell(typed or run_dir.name)
    folders = sorted(path for path in run_dir.glob("*") if path.is_dir())
    ended = [path for path in folders if status_of(path) is not None]
    rows: list[Row] = []
    strangers: list[str] = []
    unmeasured: list[str] = []
    for path in ended:
        check_enclosed(path)
        seed = read_config(path)["seed"]
        keys = {arm: identity_of(arm, seed) for arm in arms}
        own = {arm: key for arm, key in keys.items() if key.run == path.name}
        strangers += [] if own else [path.name]
        found = [read_run(path, arm, seed, key) for arm, key in own.items()]
        rows += [row for row in found if row]
        unmeasured += [] if all(found) else [path.name]
    for names, what in (
        (strangers, "are not of the sweep as it stands"),
        (unmeasured, f"are not measured as it asks, which opsin sweep {again} does"),
    ):
        if names:
            logging.getLogger(__name__).warning(
                "left out the runs in %s that %s: %s", run_dir, what, ", ".join(names)
            )
    if not rows and unmeasured:
        raise ReportError(
            f"no run in {run_dir} is measured as the sweep asks: run opsin sweep {again}, which "
            "trains none that is finished"
        )
    if not rows:
        raise ReportError(
            f"no run of the sweep has ended in {run_dir} ({len(folders)} folders, {len(ended)} "
            f"ended): run opsin sweep {again}"
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
        RecordError: the file is missing, or a line of it is no row.
    """
    return read_records(path, _row, f"write it with opsin report {path.stem}")


class _Measured(TypedDict):
    metrics: dict[str, float | None]


def _row(line: bytes) -> Row:
    record: Any = parse(line, _Measured)
    row = conform({**record, "metrics": {}}, Row)
    return replace(row, metrics=from_json(record["metrics"]))  # as they stand: a count stays one


def status_of(folder: Path) -> Literal["done", "failed"] | None:
    """How a run ended; None if it did not."""
    if (folder / "DONE").exists():  # a failed run that was repeated and ended well is done
        return "done"
    return "failed" if (folder / "FAILED").exists() else None


def read_run(folder: Path, arm: str, seed: int, key: Key) -> Row | None:
    """The row of a run that ended; None if it lacks what is to be measured of it, in this way.

    Raises:
        RecordError: a file is missing or damaged.
        DataError: a folder holds a link that leads out of it.
    """
    starts = that_count(read_starts(folder / "env.json", repeated(folder)))
    env, ran_on = starts[-1], commits(starts)
    failed = status_of(folder) == "failed"
    summary = {} if failed else read_summary(folder, "seconds")
    seconds = summary.pop("seconds", 0.0)
    taken = float(summary.get("steps", 0))
    if not taken.is_integer():
        raise RecordError(f"{folder / 'summary.json'} has no whole steps: {repeated(folder)}")
    steps = int(taken)
    again = evaluations.read(folder, evaluations.SPLITS, steps, key.evaluation)
    if again is None and not failed:
        return None
    metrics = summary | (again["metrics"] if again else {})
    by = [again["commit"]] if again else []
    for name in key.measurement.split("+") if key.measurement and not failed else ():
        found = evaluations.read(folder, name, steps, key.evaluation)
        if found is None:
            return None
        metrics |= found["metrics"]
        by.append(found["commit"])
        seconds += found["seconds"] or 0.0
    every_commit = list(dict.fromkeys([*ran_on, *(commit or "unknown" for commit in by)]))
    return Row(
        arm=arm,
        seed=seed,
        id=folder.name,
        measurement=key.measurement,
        evaluation=key.evaluation,
        status="failed" if failed else "done",
        commit=env["commit"] or "unknown",
        commits=every_commit if len(every_commit) > 1 else None,
        dirty=any(start["dirty"] for start in starts),
        devices=env["devices"],
        hardware=env["hardware"],
        versions={"python": env["python"], **env["versions"]},
        seconds=None if failed else seconds,
        metrics=metrics,
        error=error_line(folder / "FAILED") if failed else None,
    )


def error_line(path: Path) -> str:
    """The line that says why: the first one, or the last one of a traceback.

    Raises:
        RecordError: the file cannot be read.
    """
    try:
        with open_regular(path) as file:
            text = file.read(2**20).decode(errors="replace")
    except OSError as error:
        raise unreadable(path, error, repeated(path.parent)) from error
    lines = text.strip().splitlines() or ["no reason given"]
    return (lines[-1] if lines[0].startswith("Traceback") else lines[0]).strip()
