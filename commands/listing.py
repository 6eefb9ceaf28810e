"""``opsin list``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from opsin.commands.terminal import listed
from opsin.commands.values import Folder
from opsin.config import catalogue, shelves
from opsin.errors import UserError


def listing(
    *,
    models: bool = False,
    losses: bool = False,
    data: bool = False,
    augmentations: bool = False,
    selections: bool = False,
    measurements: bool = False,
    optimizers: bool = False,
    schedules: bool = False,
    runs: bool = False,
    workdir: Folder[Path] = Path("runs"),
) -> int:
    """Lists every experiment with its claim, the names that an override can hold, or your runs.

    Args:
        models: networks, for task.model
        losses: for task.loss_function
        data: data sets, for data.source
        augmentations: for data.augment
        selections: of training images, for data.select
        measurements: of a finished run, for opsin evaluate
        optimizers: for optimizer.method
        schedules: of the learning rate, for optimizer.schedule
        runs: that are in --workdir, each with its arm, its seed and what became of it
        workdir: parent of the directories of runs
    """
    asked = dict(locals())
    kinds = [kind for kind in shelves.SHELVES if asked[kind]]
    if runs:
        print(listed(_runs(workdir)) or f"no runs in {workdir}")
    if not (kinds or runs):
        claims = {name: catalogue.claim(path) for name, path in catalogue.experiments().items()}
        print(listed(claims))
    for kind in kinds:
        print(f"{kind}: {shelves.SHELVES[kind].usage}")
        print(listed(shelves.found(kind)))
    return 0


def _runs(workdir: Path) -> dict[str, str]:
    """Directory → arm, seed and state of each run, in a line."""
    from opsin.data.enclosure import check_enclosed
    from opsin.report.run_files import read_place

    found: dict[str, str] = {}
    for file in sorted(workdir.glob("*/*/config.json")):
        run = file.parent
        try:
            check_enclosed(run)
            place = read_place(run)
            told = f"{place['arm']}, seed {place['seed']}: " if place else ""
            found[str(run)] = told + _became(run)
        except UserError as error:
            found[str(run)] = str(error)
    return found


def _became(run: Path) -> str:
    """What became of a run: its numbers, why it failed, or the step that it resumes from."""
    from opsin.report.rows import error_line, status_of
    from opsin.report.run_files import read_summary
    from opsin.train.checkpoint import saved_step

    status = status_of(run)
    if status == "done":
        numbers = read_summary(run)
        told = [f"{name} {numbers[name]:.4g}" for name in _shown(run.parent.name, numbers)]
        return ", ".join([f"trained for {numbers.get('steps', 0):.0f} steps", *told])
    if status == "failed":
        return f"failed: {error_line(run / 'FAILED')}"
    step = saved_step(run / "checkpoints")
    return "not finished, " + ("nothing saved" if step is None else f"saved at step {step}")


def _shown(name: str, numbers: Mapping[str, float]) -> list[str]:
    """The numbers of a run that its table has, or else the first two."""
    table = (
        getattr(catalogue.find(name), "TABLE", None) if name in catalogue.experiments() else None
    )
    wanted = table.metrics if table else (name for name in numbers if "/" in name)
    return [name for name in wanted if name in numbers][:2]
