"""How a finished run becomes a network that generators are judged by."""

from __future__ import annotations

import json
from pathlib import Path

from experiments.runs import RunError
from experiments.trained import open_run
from train.extractor import save_extractor
from train.tasks.classify import Classify


def export(run: Path, path: Path) -> str:
    """Writes the network of a finished classification run as a feature extractor.

    Returns:
        The sha256 of the file.

    Raises:
        RunError: if this is no finished run of a classifier.
        ExtractorError: if the file cannot be written.
    """
    trained = open_run(run)
    task, data = trained.experiment.task, trained.experiment.data
    if not isinstance(task, Classify):
        raise RunError(f"{run}: an extractor is a classifier, not {type(task).__name__}")
    if not (run / "DONE").exists():
        raise RunError(f"{run} is not trained to its end: run it again, it goes on")
    summary = json.loads((run / "summary.json").read_text())
    accuracies = {name: x for name, x in summary.items() if name.endswith("/accuracy")}
    return save_extractor(
        path,
        path.stem,
        {"params": trained.params, **trained.mutable},
        mean=data.mean,
        std=data.std,
        image=trained.image,
        classes=len(trained.class_names),
        origin={"run": run.name, "step": trained.step} | accuracies,
    )
