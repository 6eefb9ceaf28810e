"""Images from a finished run: a picture to look at, and the arrays themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments.runs import RunError
from experiments.trained import open_run
from train import figures
from train.sampling import sample_images
from train.tasks.task import Generative


def sample(run: Path, count: int, *, label: int | None, seed: int, output: Path) -> list[Path]:
    """Writes ``samples.png``, a grid, and ``samples.npz``.

    The arrays are ``image`` uint8 [count, height, width, channels], ``label`` int32 [count] where
    the model takes classes (all in turn, unless ``label`` asks for one), ``seed`` and ``step``.
    Image i of a seed is the same whatever ``count`` is.

    Raises:
        RunError: if the run makes no images, or the directory cannot be written.
        SettingError: if a class is asked for that the model does not know.
    """
    trained = open_run(run)
    task = trained.experiment.task
    if not isinstance(task, Generative):
        raise RunError(f"{run}: sample is for models that make images, not {type(task).__name__}")
    labels = None
    if label is not None:
        labels = np.full(count, label, np.int32)
    elif task.num_classes is not None:
        labels = np.arange(count, dtype=np.int32) % task.num_classes
    images = sample_images(task, trained.params, trained.mutable, count, seed=seed, labels=labels)
    arrays: dict[str, Any] = {
        "image": np.round(images * 255).astype(np.uint8),
        "seed": np.array(seed),
        "step": np.array(trained.step),
    }
    if labels is not None:
        arrays["label"] = labels
    written = [output / "samples.png", output / "samples.npz"]
    try:
        figures.save(figures.panels(_rows(images, task.num_classes)), written[0])
        with written[1].open("wb") as file:
            np.savez_compressed(file, **arrays)
    except OSError as error:
        raise RunError(
            f"cannot write to {output} ({error.strerror}): choose another place with --output"
        ) from error
    return written


def _rows(images: np.ndarray, classes: int | None) -> np.ndarray:
    """Images in rows: one column a class where all come in turn, else as near to a square as is."""
    columns = classes if classes and len(images) >= classes else int(np.ceil(np.sqrt(len(images))))
    missing = -len(images) % columns
    padded = np.concatenate([images, np.ones((missing, *images.shape[1:]), images.dtype)])
    return padded.reshape(-1, columns, *images.shape[1:])
