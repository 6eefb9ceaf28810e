"""What ``import opsin`` offers: runs, made and opened from Python by the code of the commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, UInt8
from PIL import Image, ImageOps

from opsin.commands.prediction import Predictor, fitted, predictor_of, segment
from opsin.commands.runs import Options, Outcome, RunError, execute
from opsin.commands.trained import Trained, open_run
from opsin.config.catalogue import check_name
from opsin.data.examples import DataError
from opsin.data.files import at_home
from opsin.data.images import MODES, converted
from opsin.pictures.kinds import Labels
from opsin.train.experiment import Experiment
from opsin.train.preparation import prepared
from opsin.train.settings import SettingError

CHUNK = 256  # images in one call of the network


@dataclass(frozen=True, eq=False)
class Loaded:
    """A finished run, from ``opsin.load``.

    Attributes:
        experiment: that it was trained by.
        class_names: of its data, maybe none.
        step: at which the weights were saved, or, of the best state of a run, the last one.
        variables: of the model, on the host: ``{"params": …, "batch_stats": …}``.
    """

    experiment: Experiment
    class_names: tuple[str, ...]
    step: int
    variables: PyTree = field(repr=False)
    _trained: Trained = field(repr=False)

    @cached_property
    def _predictor(self) -> Predictor:
        return predictor_of(self._trained)  # traced once, and compiled where it is asked

    @property
    def model(self) -> nn.Module:
        """The network, for ``model.apply(variables, prepare(images))``.

        Raises:
            SettingError: if the task has several, such as ``experiment.task.generator``.
        """
        task = self.experiment.task
        model = task.feature_model()
        if model is not None:
            return model
        raise SettingError(f"{type(task).__name__} has no model: take a network of experiment.task")

    def prepare(
        self, images: UInt8[np.ndarray, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """Images as the model sees them: scaled to [0, 1] and normalised as in training.

        Raises:
            DataError: for an array of another kind.
        """
        given = np.asarray(images)
        if given.dtype != np.uint8 or given.ndim != 4:
            raise DataError(
                "prepare takes uint8 [batch, height, width, channels], not "
                f"{given.dtype} {list(given.shape)}: of one image, image[None]"
            )
        if given.shape[3] != (channels := self._trained.image[2]):
            raise DataError(f"the run saw images of {channels} channels, not of {given.shape[3]}")
        return prepared({"image": jnp.asarray(given)}, data=self.experiment.data)["image"]

    def predict(
        self, images: np.ndarray | Image.Image | Sequence[np.ndarray | Image.Image]
    ) -> np.ndarray | list[np.ndarray]:
        """Predictions as of ``opsin predict``, for images of any size.

        Args:
            images: one image, uint8 [height, width] or [height, width, channels]; several of one
                size [batch, height, width, channels]; or a list of images of any sizes. An image of
                Pillow's is one too.

        Returns:
            Of a classifier the probability of each class, float32 [batch, classes]. Of a
            segmenter the class of each pixel, uint8 [batch, height, width], a list if sizes differ.
            Of one image the same without ``batch``.

        Raises:
            DataError: for what is no image of the kind that the run was trained on.
            SettingError: if the run says nothing of images: it makes them.
        """
        predictor: Predictor = self._predictor
        alone: Any = images
        single = isinstance(images, Image.Image) or getattr(images, "ndim", 4) < 4
        if not (single or hasattr(images, "__getitem__")) or isinstance(images, str):
            raise DataError(
                f"predict takes images as arrays, not {type(images).__name__}: a file is read by "
                "PIL.Image.open, or by opsin predict"
            )
        given = [_image(each, predictor.image[2]) for each in ([alone] if single else alone)]
        if not given:
            raise DataError("there are no images to predict: give at least one")
        answers = _answers(predictor, given)
        if single:
            return answers[0]
        alike = len({answer.shape for answer in answers}) == 1
        return np.stack(answers) if alike else answers


def load(
    run: str | Path,
    *,
    weights: Literal["ema", "raw"] | None = None,
    allow: str | Path | Sequence[str] = (),
) -> Loaded:
    """Opens a run by its newest checkpoint; its data set is not needed.

    Args:
        run: its directory, ``runs/NAME/ID``.
        weights: the moving average, or what was trained; None takes the average if there is one.
        allow: modules and files of code that is not of opsin, and that the run may name.

    Raises:
        RunError: if this is no run, or it names code that is not allowed.
        CheckpointError: if it has no checkpoint that can be read.
    """
    if weights not in (None, "ema", "raw"):
        raise RunError(f"weights={weights!r}: give 'ema', 'raw' or None")
    allowed = [str(allow)] if isinstance(allow, str | Path) else [str(each) for each in allow]
    trained = open_run(at_home(run), weights, allow=allowed)
    return Loaded(
        experiment=trained.experiment,
        class_names=trained.class_names,
        step=trained.step,
        variables={"params": trained.params, **trained.mutable},
        _trained=trained,
    )


def fit(
    experiment: Experiment,
    name: str = "notebook",
    *,
    workdir: str | Path = "runs",
    progress: bool = True,
) -> Outcome:
    """Trains an experiment as ``opsin run`` does, in ``workdir/name/id``, or resumes it.

    The id is the hash of the experiment: the same one is not trained twice, which is said, and what
    was interrupted goes on. A function of yours counts by its name: where its code has changed, a
    line says so. Interrupting the kernel saves first, and gives an outcome with
    ``finished=False``.

    Args:
        experiment: what to train; what it holds is imported from modules, or defined in a cell.
        name: of the folder that its runs are in, one word.
        workdir: parent of that folder.
        progress: whether to show a bar.

    Returns:
        ``directory`` of the run, and its final ``metrics`` by name, such as ``test/accuracy``.

    Raises:
        UserError: the experiment asks for what cannot be; one line says what to change.
        RunFailed: training failed by itself, such as by a loss that is no number.
    """
    if not isinstance(experiment, Experiment):
        raise RunError(f"fit takes an Experiment, not {type(experiment).__name__}")
    options = Options(workdir=at_home(workdir), progress=progress)
    outcome = execute(check_name(name), "default", experiment, options)
    if outcome.trained_before:
        print(outcome.read_again(), file=sys.stderr)
    return outcome


def _answers(predictor: Predictor, images: list[Image.Image]) -> list[np.ndarray]:
    if predictor.kind is not Labels:
        return [segment(predictor, image) for image in images]

    answers: list[np.ndarray] = []
    for first in range(0, len(images), CHUNK):
        part = np.stack([fitted(predictor, image) for image in images[first : first + CHUNK]])
        size = 1 << (len(part) - 1).bit_length()  # few sizes, of which each is compiled
        filled = np.pad(part, ((0, size - len(part)), *[(0, 0)] * 3))
        answers += [*predictor.probabilities(filled)[: len(part)]]
    return answers


def _image(array: Any, channels: int) -> Image.Image:
    """An array, or an image of Pillow's, as an image file of the same pixels would be read."""
    if isinstance(array, Image.Image) and array.mode[0] not in "IF":
        return converted(ImageOps.exif_transpose(array), channels)
    given = np.asarray(array)
    pixels = given[..., None] if given.ndim == 2 else given
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in MODES:
        wrong = pixels.dtype != np.uint8
        remedy = "its values are from 0 to 255" if wrong else "of a grey batch, give x[..., None]"
        raise DataError(
            "an image is uint8 [height, width], or with 1 or 3 channels last, and not "
            f"{given.dtype} {list(given.shape)}: {remedy}"
        )
    if 0 in pixels.shape:
        raise DataError(f"an image of {pixels.shape[0]}x{pixels.shape[1]} pixels has none")
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return image.convert(MODES[channels])
