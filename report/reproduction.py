"""Committed rows that were trained again: ``results/reproduced.jsonl``, and the table of them.

A metric is reproduced if it lies where one more run of the same arm would, by one of four rules:

- ``spread``: the arm has seeds that differ. The metric is in their prediction interval
  (``statistics.prediction_interval``), where one more value is in 95 of 100 cases.
- ``count``: the arm has one seed, or seeds that agree, and the table shows the metric without
  decimals, as it does the number of parameters: it must be the same.
- ``share``: the arm has one seed, or seeds that agree, and the table shows the metric in percent,
  as it does a mean p of numbers in [0, 1]. Over N images its variance is p (1 - p) / N at most
  (Bhatia and Davis, 2000, The American Mathematical Monthly 107(4)), and that of the difference of
  two such means at most twice as much: the metric is within 2 standard deviations. p is taken as if
  four more images were half right (Agresti and Coull, 1998, The American Statistician 52(2)), so
  that 0 and 1 leave room too.
- ``2 %``: any other metric of one seed, or of seeds that agree, is within 2 % of that number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from opsin.data.enclosure import component
from opsin.data.files import holds, replace_text, to_json
from opsin.data.records import parse, read_records
from opsin.report.report import markdown_table
from opsin.report.rows import Row, read_rows
from opsin.report.statistics import prediction_interval

NAME = "reproduced"
ROUNDING = 1e-6
"""Relative difference of numbers that are the same."""

CLAIM = """\
Rows of the tables in this folder, drawn at random and trained again by `opsin reproduce NAME`. A
metric is within if it lies where one more run of its arm would lie in 95 of 100 cases, by the
spread over the committed seeds: by chance alone one metric in 20 is outside. The interval of three
seeds is wide, ± 5.0 standard deviations. Rules for metrics without a spread are in
`report/reproduction.py`."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A metric of a row, and of the same run made again. None is a number that is not finite.

    Attributes:
        recorded: in the committed row.
        now: by the present code; None also if the run failed.
        low: lower end of its interval.
        high: upper end.
        rule: that gave the interval.
        within: whether ``now`` is in it.
    """

    recorded: float | None
    now: float | None
    low: float | None
    high: float | None
    rule: Literal["spread", "count", "share", "2 %"]
    within: bool


@dataclass(frozen=True, kw_only=True)
class Reproduced:
    """A row that was trained again: a line of ``reproduced.jsonl``.

    Attributes:
        experiment: that the row is of.
        arm: of its sweep.
        seed: of the run.
        id: of the run.
        measurement: id of what was measured of it, or None.
        commit: of the code that trained it again.
        dirty: whether files differed from that commit.
        hardware: the machine.
        date: of its end, such as 2026-11-29.
        seconds: how long it took; None if it failed.
        error: of a run that failed, the line that says why.
        metrics: those of the table; the first one is the headline.
    """

    experiment: str
    arm: str
    seed: int
    id: str
    measurement: str | None
    commit: str
    dirty: bool
    hardware: str
    date: str
    seconds: float | None
    error: str | None
    metrics: Mapping[str, Comparison]

    def outside(self) -> dict[str, Comparison]:
        """The metrics that are not within their intervals."""
        return {name: each for name, each in self.metrics.items() if not each.within}


def compare(
    recorded: float, now: float | None, seeds: Sequence[float], *, form: str, images: int | None
) -> Comparison:
    """Whether a number lies where one more run of the arm would be.

    Args:
        recorded: of the run as it was.
        now: of the same run made again; None if it has none.
        seeds: the same of all seeds of the arm, ``recorded`` among them.
        form: how the table shows it, such as ".2%".
        images: that it is a mean over; None if that is not known.
    """
    low, high, rule = _interval(recorded, seeds, form, images)
    if now is None or not math.isfinite(recorded) or not math.isfinite(now):
        within = now is not None and not math.isfinite(recorded) and not math.isfinite(now)
    else:
        within = low <= now <= high or math.isclose(now, recorded, rel_tol=ROUNDING)
    numbers = to_json({"recorded": recorded, "now": now, "low": low, "high": high})
    return Comparison(**numbers, rule=rule, within=within)


def _interval(
    recorded: float, seeds: Sequence[float], form: str, images: int | None
) -> tuple[float, float, Literal["spread", "count", "share", "2 %"]]:
    finite = [value for value in seeds if math.isfinite(value)]
    if len(finite) > 1 and min(finite) < max(finite):
        return *prediction_interval(finite), "spread"
    if form == ".0f":
        return recorded, recorded, "count"
    if images and form.endswith("%"):
        n = images + 4
        p = (recorded * images + 2) / n
        room = 2 * math.sqrt(2 * p * (1 - p) / n)
        return recorded - room, recorded + room, "share"
    room = 0.02 * abs(recorded)
    return recorded - room, recorded + room, "2 %"


def lines_of(line: Reproduced) -> list[str]:
    """What a terminal shows of it, a line for each metric."""
    lines = [] if line.error is None else [f"  failed: {line.error}"]
    for name, each in line.metrics.items():
        numbers = f"recorded {_number(each.recorded):<11} now {_number(each.now):<11}"
        verdict = "within" if each.within else "OUTSIDE"
        lines.append(f"  {name:<32} {numbers} {verdict} {_interval_text(each)} ({each.rule})")
    return lines


def tables(results: Path) -> list[str]:
    """The experiments that have a table in the folder ``results``."""
    names = sorted(path.stem for path in results.glob("*.jsonl"))
    return [name for name in names if name != NAME]


def _run_of(line: Reproduced) -> tuple[Any, ...]:
    """What tells the run of a line from others; changes that were not committed are any."""
    changed = (line.date, line.seconds) if line.dirty else None
    return line.experiment, line.arm, line.seed, line.commit, changed


def add(results: Path, line: Reproduced) -> None:
    """Adds a line, and writes the table anew.

    It takes the place of one of the same row by the same commit, which is the same run; those of
    other commits, or with changes that nothing names, stay, so that no row is repeated until it is
    within.

    Raises:
        RecordError: the file that is there is damaged.
    """
    path = results / f"{NAME}.jsonl"
    with FileLock(results / f"{NAME}.lock"):  # another command may add a line meanwhile
        before = _read(path) if path.exists() else []
        lines = {_run_of(each): each for each in [*before, line]}
        kept = sorted(lines.values(), key=lambda x: (x.experiment, x.arm, x.seed, x.date))
        text = "".join(json.dumps(asdict(each)) + "\n" for each in kept)
        replace_text(path, text)
        derive(results)


def derive(results: Path) -> None:
    """Writes the table from the lines, if there are any.

    Raises:
        RecordError: they cannot be read.
    """
    if (text := _expected(results)) is not None:
        replace_text(results / f"{NAME}.md", text)


def check(results: Path) -> list[str]:
    """Names the table, if it is not what the lines give and the rows that they repeat.

    Raises:
        RecordError: one of them cannot be read.
    """
    path, text = results / f"{NAME}.md", _expected(results)
    same = not path.exists() if text is None else holds(path, text.encode())
    return [] if same else [path.name]


def _expected(results: Path) -> str | None:
    path = results / f"{NAME}.jsonl"
    if not path.exists():
        return None
    lines = _read(path)
    files = {line.experiment: results / f"{line.experiment}.jsonl" for line in lines}
    rows = {name: read_rows(file) if file.exists() else [] for name, file in files.items()}
    standing = [line for line in lines if any(_is_of(line, row) for row in rows[line.experiment])]
    return _markdown(standing, [line for line in lines if line not in standing])


def _is_of(line: Reproduced, row: Row) -> bool:
    """Whether a row is the one that a line repeats, with the numbers that it had then."""
    if (line.arm, line.seed, line.id) != (row.arm, row.seed, row.id):
        return False
    return all(
        name in row.metrics and _same(row.metrics[name], each.recorded)
        for name, each in line.metrics.items()
    )


def _same(one: float | None, other: float | None) -> bool:
    """Whether two numbers are; None and what is not finite are the same here."""
    one, other = (None if x is None or not math.isfinite(x) else x for x in (one, other))
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=ROUNDING)


def _read(path: Path) -> list[Reproduced]:
    return read_records(path, _line, "remove the line, and repeat its opsin reproduce")


def _line(line: bytes) -> Reproduced:
    found = parse(line, Reproduced)
    component("experiment", found.experiment)
    if found.experiment == NAME or not found.metrics:
        raise ValueError("it repeats no row of a table")
    return found


def _markdown(lines: Sequence[Reproduced], replaced: Sequence[Reproduced]) -> str:
    header = ["experiment", "arm", "seed", "metric", "recorded", "now", "interval", "within"]
    rows = [[*header, "seconds", "date", "commit", "machine"]]
    for line in lines:
        (name, headline), *_ = line.metrics.items()
        within = f"{len(line.metrics) - len(line.outside())} of {len(line.metrics)}"
        seconds = "failed" if line.seconds is None else f"{line.seconds:.0f}"
        commit = f"`{line.commit[:10]}`{' with uncommitted changes' if line.dirty else ''}"
        rows.append([*_cells(line, name, headline), within, seconds, line.date, commit])
        rows[-1].append(line.hardware)
    parts = ["# Rows that were trained again", CLAIM, markdown_table(rows)]
    outside = [
        [*_cells(line, name, each), each.rule]
        for line in lines
        for name, each in line.outside().items()
    ]
    total = sum(len(line.metrics) for line in lines)
    parts.append(f"Rows: {len(lines)}. Metrics: {total}, of which outside: {len(outside)}.")
    if outside:
        parts.append(markdown_table([[*header[:-1], "rule"], *outside]))
    if replaced:
        parts.append(
            "Of rows that are gone from their tables, or have other numbers there now:\n\n"
            + "\n".join(f"- {x.experiment}, `{x.arm}`, seed {x.seed}, {x.date}" for x in replaced)
        )
    if failed := [line for line in [*lines, *replaced] if line.error]:
        errors = (line.error.replace("`", "'") for line in failed if line.error)
        named = (f"- {line.experiment}, `{line.arm}`, seed {line.seed}" for line in failed)
        pairs = zip(named, errors, strict=True)
        parts.append("Failed:\n\n" + "\n".join(f"{name}: `{error}`" for name, error in pairs))
    return "\n\n".join(parts) + "\n"


def _cells(line: Reproduced, name: str, each: Comparison) -> list[str]:
    where = [f"[{line.experiment}]({line.experiment}.md)", f"`{line.arm}`", str(line.seed)]
    return [*where, name, _number(each.recorded), _number(each.now), _interval_text(each)]


def _number(value: float | None) -> str:
    """Five digits; "-" for one that is not finite."""
    return "-" if value is None else f"{value:.5g}"


def _interval_text(each: Comparison) -> str:
    return f"{_number(each.low)} … {_number(each.high)}"
