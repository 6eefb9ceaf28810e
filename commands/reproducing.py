"""What ``opsin reproduce`` does: draws rows of a table, trains them again, compares."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from opsin.commands.provenance import own_code, this_code
from opsin.commands.runs import Options, Outcome, RunError, directory_of, execute
from opsin.config import catalogue
from opsin.config.sweep import key_of
from opsin.config.table import Table
from opsin.config.tree import override
from opsin.data.files import in_shell
from opsin.data.sources import open_source
from opsin.errors import ConfigError
from opsin.report.reproduction import Reproduced, compare
from opsin.report.rows import Row, read_rows, read_run
from opsin.train.experiment import Experiment
from opsin.train.logging import NonFiniteError


@dataclass(frozen=True)
class Drawn:
    """A row to train again.

    Attributes:
        name: of the experiment.
        row: as it is committed.
        seeds: all rows of its arm that are done.
        experiment: that gives it.
        table: of the experiment.
    """

    name: str
    row: Row
    seeds: Sequence[Row]
    experiment: Experiment
    table: Table


def drawn(typed: str, results: Path, count: int, seed: int) -> list[Drawn]:
    """``count`` of the rows of a table that are done, drawn at random.

    The table is that of an experiment of the house, or of the file that is typed.

    Raises:
        ConfigError: there are not so many, or one is no run of the sweep as it stands.
        ReportError: the rows cannot be read.
    """
    name, module = catalogue.opened(typed)
    table = catalogue.report_of(typed).table
    done = [row for row in read_rows(results / f"{name}.jsonl") if row.status == "done"]
    if count > len(done):
        raise ConfigError(f"--rows {count}: {typed} has {len(done)} rows that are done")
    arms = {arm.name: arm for arm in catalogue.arms(module)}
    chosen = []
    for index in random.Random(seed).sample(range(len(done)), count):
        row = done[index]
        name_there = in_shell(typed)
        again = f"opsin sweep {name_there} && opsin report {name_there} makes the table anew"
        if row.arm not in arms:
            raise ConfigError(f"the sweep of {name} has no arm {row.arm!r} any more: {again}")
        experiment = override(module.config(), arms[row.arm].under(row.seed))
        if key_of(experiment) != row.key():
            raise ConfigError(
                f"{row.arm} with seed {row.seed} is run {row.id} in the table of {name}, and "
                f"another by the sweep as it stands: {again}"
            )
        seeds = [each for each in done if each.arm == row.arm]
        chosen.append(Drawn(name, row, seeds, experiment, table))
    return chosen


def train(chosen: Drawn, options: Options) -> Outcome:
    """Trains and measures a row again. A run whose numbers are not finite is finished too.

    Each commit has directories of its own below the workdir, and so has the user's own code of an
    experiment: a finished run there is by this code.

    Raises:
        RunFailed: as ``execute``, for another reason.
        RunError: as ``execute``; or there is a finished run, and it may be by other code.
    """
    code = this_code()
    known = code["commit"] is not None and not code["dirty"]
    place = (code["commit"] or "unknown")[:12] + ("-dirty" if code["dirty"] else "")
    if own := own_code(chosen.experiment):
        place += "-" + hashlib.sha256(repr(sorted(own.items())).encode()).hexdigest()[:8]
    options = replace(options, workdir=options.workdir / place)
    directory = directory_of(chosen.name, chosen.experiment, options.workdir)
    if not known and (directory / "DONE").exists():
        raise RunError(
            f"{directory} may be by other code than this, as nothing here names its changes: "
            f"commit them, or rm -r {in_shell(directory)} to train it again"
        )
    try:
        return execute(chosen.name, chosen.row.arm, chosen.experiment, options)
    except NonFiniteError:  # its directory says why
        return Outcome(directory, finished=True)


def compared(chosen: Drawn, directory: Path) -> Reproduced:
    """A row, compared to the finished run in this directory.

    One that diverged has only the metrics that the table gives to it.
    """
    row = chosen.row
    now = read_run(directory, row.arm, row.seed, row.key())
    if now is None:
        raise RunError(f"{directory} is not measured: repeat the command")
    end = directory / ("DONE" if now.status == "done" else "FAILED")
    metrics = now.metrics if now.status == "done" else chosen.table.failed_as
    images = _images(chosen.experiment)
    return Reproduced(
        experiment=chosen.name,
        arm=row.arm,
        seed=row.seed,
        id=row.id,
        measurement=row.measurement,
        commit=now.commit,
        dirty=now.dirty,
        hardware=now.hardware,
        date=datetime.fromtimestamp(end.stat().st_mtime, UTC).date().isoformat(),
        seconds=now.seconds,
        error=now.error,
        metrics={
            metric: compare(
                row.metrics[metric],
                metrics.get(metric),
                [each.metrics[metric] for each in chosen.seeds if metric in each.metrics],
                form=form,
                images=_averaged(metric, row.metrics, images),
            )
            for metric, form in chosen.table.all_metrics().items()
            if metric in row.metrics
        },
    )


def _images(experiment: Experiment) -> dict[str, int]:
    """Name → number of examples of each set that is evaluated."""
    splits = experiment.data.eval_splits.items()
    return {name: len(open_source(experiment.data.source, split).records) for name, split in splits}


def _averaged(metric: str, metrics: Mapping[str, float], images: Mapping[str, int]) -> int | None:
    """How many images a metric is a mean over: those drawn, where fewer are drawn than tested."""
    split = metric.partition("/")[0]
    tested = images.get(split.removesuffix("_ema"))
    drawn = metrics.get(f"{split}/samples")
    known = [int(number) for number in (tested, drawn) if number is not None]
    return min(known) if known else None
