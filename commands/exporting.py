"""How a finished run becomes a file: weights for other runs, or a program for other machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import jax

from opsin.commands.prediction import prediction_of
from opsin.commands.runs import RunError
from opsin.commands.trained import Trained, open_run
from opsin.data.files import check_new, save_bytes, to_json
from opsin.interchange import conversion, onnx, stablehlo
from opsin.report.run_files import read_summary
from opsin.train.settings import SettingError
from opsin.train.weights import save_weights

PROGRAMS = {stablehlo.SUFFIX: stablehlo.program_of, onnx.SUFFIX: onnx.model_of}


def export(run: Path, path: Path, *, names: str | None = None, allow: Sequence[str] = ()) -> str:
    """Writes the network of a finished run, its moving average if it has one.

    Args:
        run: its directory.
        path: of the file; one that ends in ``.stablehlo`` or ``.onnx`` gets a program, from images
            to probabilities, any other one the weights as safetensors.
        names: of another library, to write the arrays by: see ``interchange.conversion``.
        allow: see ``reopen``.

    Returns:
        The sha256 of the file.

    Raises:
        RunError: if this is no finished run, or a program is asked for that would predict nothing.
        WeightsError: if its model has no such names.
        WriteError: if the file cannot be written, or is there already.
    """
    check_new([path], "give another name")
    trained = open_run(run, allow=allow)
    if not (run / "DONE").exists():
        raise RunError(f"{run} is not finished: run it again, and it resumes")
    if path.suffix in PROGRAMS:
        if names is not None:
            raise RunError(f"--names is for files of weights: leave it out for a {path.suffix}")
        return _write_program(trained, run, path)
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


def _write_program(trained: Trained, run: Path, path: Path) -> str:
    """Writes what predicts as a program, and returns its sha256."""
    predicted, tile = prediction_of(trained)

    def answer(image: jax.Array) -> jax.Array:
        return predicted(trained.params, trained.mutable, image[None]).probabilities[0]

    try:
        program = PROGRAMS[path.suffix](answer, (*tile, trained.image[2]))
    except SettingError as error:
        raise RunError(f"{run}: {error}") from error
    return save_bytes(path, program)
