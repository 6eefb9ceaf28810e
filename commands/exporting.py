"""How a finished run becomes a file of weights: to judge generators, or to start other runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import jax

from opsin.commands.runs import RunError
from opsin.commands.trained import open_run
from opsin.data.files import check_new, to_json
from opsin.interchange import conversion
from opsin.report.run_files import read_summary
from opsin.train.weights import save_weights


def export(run: Path, path: Path, *, names: str | None = None, allow: Sequence[str] = ()) -> str:
    """Writes the network of a finished run, its moving average if it has one.

    Args:
        run: its directory.
        path: of the file.
        names: of another library, to write the arrays by: see ``interchange.conversion``.
        allow: see ``reopen``.

    Returns:
        The sha256 of the file.

    Raises:
        RunError: if this is no finished run.
        WeightsError: if its model has no such names.
        WriteError: if the file cannot be written, or is there already.
    """
    check_new([path], "give another name")
    trained = open_run(run, allow=allow)
    if not (run / "DONE").exists():
        raise RunError(f"{run} is not finished: run it again, and it resumes")
    summary = to_json(read_summary(run))
    accuracies = {name: x for name, x in summary.items() if name.endswith("/accuracy")}
    described = {
        "network": path.stem,
        **asdict(trained.experiment.preprocessing(trained.image)),
        "classes": len(trained.class_names),
        "origin": {"run": run.name, "step": trained.step} | accuracies,
    }
    variables = {"params": trained.params, **trained.mutable}
    if names is not None:
        model = trained.experiment.task.feature_model()
        if model is None:
            raise RunError(f"{run} is not of one network that others know: leave --names out")
        variables = conversion.to_theirs(jax.device_get(variables), model, names)
        return save_weights(path, variables, described, header="opsin")
    return save_weights(path, variables, described)
