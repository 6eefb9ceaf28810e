"""What every kind of learning supplies to the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any, Protocol, TypeVar, runtime_checkable

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from data.augment import Batch
from errors import UserError
from losses.likelihoods import Likelihood
from metrics.state import Metric
from train.optim import Optimizer

ROUNDING = 1e-4
"""What augmentations may round an image out of its range by; a wrong range is further off."""

AnyTask = TypeVar("AnyTask")
Item = TypeVar("Item")


@flax.struct.dataclass
class Aux:
    """What a loss returns beside its value.

    Attributes:
        mutable: the mutable variables after the step.
        metrics: metric states of this batch; every term of the loss is one of them, so that a term
            that is not finite can be named.
        weight: what the loss is a mean over, such as the number of pixels that count: where a batch
            is cut up among microbatches or mapped devices, each part counts by it. 1 where parts of
            one size count alike.
    """

    mutable: PyTree
    metrics: dict[str, Metric]
    weight: Float[Array, ""] | float = 1.0


@flax.struct.dataclass
class Preview:
    """Images for people to look at, with the classes to write above them.

    Attributes:
        images: [n, H, W, C] in [0, 1].
        labels: true classes [n], or None.
        predictions: predicted classes [n], or None.
    """

    images: Float[Array, "n height width channels"]
    labels: Int[Array, " n"] | None = None
    predictions: Int[Array, " n"] | None = None


@flax.struct.dataclass
class MaskPreview:
    """Images with the class of each pixel, true and predicted.

    Attributes:
        images: [n, H, W, C] in [0, 1].
        masks: true classes [n, H, W]; ``data.masks.IGNORE`` where there is none.
        predictions: predicted classes [n, H, W].
    """

    images: Float[Array, "n height width channels"]
    masks: Int[Array, "n height width"]
    predictions: Int[Array, "n height width"]


@flax.struct.dataclass
class Panels:
    """Images in rows that belong together, such as originals and reconstructions.

    Attributes:
        images: [rows, columns, H, W, C] in [0, 1].
        rows: what each row shows; empty where there is nothing to say.
        columns: what each column shows, or empty.
    """

    images: Float[Array, "rows columns height width channels"]
    rows: tuple[str, ...] = flax.struct.field(pytree_node=False, default=())
    columns: tuple[str, ...] = flax.struct.field(pytree_node=False, default=())


Picture = Preview | MaskPreview | Panels

Look = Callable[[], Mapping[str, Batch]]
"""Gives a few examples of each split as the model would see them, ``"train"`` augmented."""


class SettingError(UserError):
    """Settings of a run that do not fit one another."""


def check_outputs(model: nn.Module, class_names: Sequence[str], path: str = "task.model") -> None:
    """Raises SettingError unless a model with a field ``num_classes`` has one output a class."""
    outputs = getattr(model, "num_classes", None)
    if class_names and outputs not in (None, len(class_names)):
        raise SettingError(
            f"{path}.num_classes is {outputs}, the data have {len(class_names)} classes: "
            f"set {path}.num_classes={len(class_names)}"
        )


def check_decoder(model: nn.Module, likelihood: Likelihood, batch: Batch) -> None:
    """Raises SettingError unless a decoder puts out as much for a pixel as the likelihood takes."""
    wanted = likelihood.outputs(batch["image"].shape[-1])
    outputs = getattr(model, "outputs", wanted)
    if outputs != wanted:
        raise SettingError(
            f"task.model.outputs is {outputs}, {likelihood} takes {wanted} for each pixel of these "
            f"images: set task.model.outputs={wanted}"
        )


def check_range(images: np.ndarray, split: str) -> None:
    """Raises SettingError for images, as the model sees them, outside of [0, 1]."""
    low, high = float(np.min(images)), float(np.max(images))
    if not (low >= -1e-6 and high <= 1 + 1e-6):  # written so that a NaN fails
        raise SettingError(
            f"images of {split!r} reach from {low:g} to {high:g}, and the task is of images in "
            "[0, 1]: set data.mean=(0.0,) data.std=(1.0,)"
        )


def in_range(images: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The images, but NaN where they are clearly outside of [0, 1].

    A check before training sees a few images of a set; this sees all. A loss of an image that it is
    not for then stops the run, as that of a wrong label does.
    """
    return jnp.where((images >= -ROUNDING) & (images <= 1 + ROUNDING), images, jnp.nan)


def supported(
    likelihood: Likelihood, images: Float[Array, "*shape"], *, greys: bool = False
) -> Float[Array, "*shape"]:
    """The images, but NaN where they have no likelihood under such a model.

    Args:
        likelihood: of images in [0, 1].
        images: as the model sees them.
        greys: as of ``check_support``.
    """
    images = in_range(images)
    if likelihood.support == "binary" and not greys:
        return jnp.where((images == 0) | (images == 1), images, jnp.nan)
    if likelihood.support == "bytes":
        off = jnp.abs(images * 255 - jnp.round(images * 255))
        return jnp.where(off <= 255 * ROUNDING, images, jnp.nan)
    return images


def check_support(
    likelihood: Likelihood, images: np.ndarray, split: str, *, greys: bool = False
) -> None:
    """Raises SettingError for images that have no likelihood under such a model.

    Args:
        likelihood: of images in [0, 1].
        images: a few of them, as the model sees them.
        split: where they are from.
        greys: whether the cross-entropy of greys will do in place of a likelihood of binary pixels.
    """
    check_range(images, split)
    if likelihood.support == "binary" and not greys and not np.isin(images, (0, 1)).all():
        raise SettingError(
            f"images of {split!r} have greys, {likelihood} is of zeros and ones: binarize them "
            "with data.source=partial(data.binarize.binarized, source=…), for training also with "
            "data.augment=(data.binarize.random_binarize,), or choose another task.likelihood"
        )
    bytes_off = np.abs(images * 255 - np.round(images * 255)).max()
    if likelihood.support == "bytes" and bytes_off > 1e-3:
        raise SettingError(
            f"images of {split!r} have values between the 256 steps that {likelihood} is of: "
            "leave out augmentations that blend pixels, or choose another task.likelihood"
        )


def require_entry(batch: Batch, name: str, choices: str) -> None:
    """Raises SettingError for data without what a task learns to tell."""
    if name not in batch:
        raise SettingError(
            f"the task needs a {name} for each image, and these data have only "
            f"{', '.join(sorted(batch))}: choose a data.source with {name}s, {choices}"
        )


def over_axis(task: AnyTask, axis_name: str) -> AnyTask:
    """The same task for pmap: its models take statistics of a batch over the named axis."""
    whole: Any = task
    changed = {}
    for field in fields(whole):
        value = getattr(whole, field.name)
        if isinstance(value, nn.Module) and hasattr(value, "axis_name"):
            changed[field.name] = value.clone(axis_name=axis_name)
        elif hasattr(value, "over_axis"):  # such as a loss that compares means of a batch
            changed[field.name] = value.over_axis(axis_name)
        elif field.name == "axis_name":  # the task itself takes means of a batch
            changed[field.name] = axis_name
    return replace(whole, **changed)


Loss = Callable[
    [PyTree, PyTree, Batch, Key[Array, ""], Int[Array, ""] | int], tuple[Float[Array, ""], Aux]
]


@dataclass(frozen=True)
class Player:
    """Parameters that one loss and one optimiser train.

    Attributes:
        loss: as ``Learning.loss``, of the parameters of all players.
        name: the entry of the parameters that is this player's; None is all of them.
        optimizer: of this player; None is the experiment's own.
        turns: updates in one step, each on a part of the batch of its own. Whoever has fewer takes
            the last parts.
        project: from parameters that were updated to those that are allowed, such as clipped ones.
    """

    loss: Loss
    name: str | None = None
    optimizer: Optimizer | None = None
    turns: int = 1
    project: Callable[[PyTree], PyTree] | None = None


class Task(Protocol):
    """How models, losses and metrics become a step. Implementations are frozen dataclasses.

    It is also either ``Learning`` or ``Playing``.
    """

    def check(self, class_names: Sequence[str], look: Look) -> None:
        """Compares the task to the data before anything runs.

        Args:
            class_names: of the data; empty where they have no classes.
            look: at the data themselves, which takes a moment.

        Raises:
            SettingError: if they do not fit; names the field to change.
        """
        ...

    def init(self, key: Key[Array, ""], batch: Batch) -> PyTree:
        """All variables of the model: ``{"params": …}`` and its mutable collections."""
        ...

    def evaluate(
        self, params: PyTree, mutable: PyTree, batch: Batch, key: Key[Array, ""]
    ) -> dict[str, Metric]:
        """Metric states of a batch in which ``batch["valid"]`` marks what counts."""
        ...

    def preview(
        self, params: PyTree, mutable: PyTree, batch: Batch, key: Key[Array, ""]
    ) -> Mapping[str, Picture]:
        """Pictures of what the model does with a batch."""
        ...


@runtime_checkable
class Learning(Protocol):
    """A task of one loss."""

    def loss(
        self,
        params: PyTree,
        mutable: PyTree,
        batch: Batch,
        key: Key[Array, ""],
        step: Int[Array, ""] | int,
    ) -> tuple[Float[Array, ""], Aux]:
        """The scalar to descend, the mean over the batch, and what else the step must know.

        ``step`` counts the steps that were taken before, for weights that change as training goes.
        """
        ...


@runtime_checkable
class Playing(Protocol):
    """A task of several losses, each of which trains parameters of its own."""

    def players(self) -> tuple[Player, ...]:
        """Who is trained, in the order of a step; the names are the entries of the parameters."""
        ...


def players_of(task: Task) -> tuple[Player, ...]:
    """Who is trained in a step of a task."""
    if isinstance(task, Playing):
        return task.players()
    assert isinstance(task, Learning), f"{task} has neither a loss nor players"
    return (Player(task.loss),)


class Track(Protocol):
    """Shows how far work has come that is done piece by piece."""

    def __call__(self, items: Iterable[Item], what: str) -> Iterable[Item]:
        """The items themselves; ``what`` says what is done with them."""
        ...


Prepare = Callable[[Batch], Batch]
"""From a batch as a source gives it to what the model sees outside training."""


@runtime_checkable
class Particular(Protocol):
    """A task that not every loop trains as it says."""

    def check_loop(self, *, accumulate: int, pmap: bool, steps: int, epoch: Fraction) -> None:
        """Compares the task to how it is trained, before anything runs.

        Args:
            accumulate: parts of a batch whose gradients are added up.
            pmap: whether each device computes the loss of its part alone.
            steps: of the whole run.
            epoch: training images over the batch.

        Raises:
            SettingError: if parts of a batch are not the batch, or the run is too short.
        """
        ...


@runtime_checkable
class Watching(Protocol):
    """A task that tells when training goes wrong in a way that no error shows."""

    def watch(self, numbers: Mapping[str, float]) -> Iterable[str]:
        """Lines for people about the ``split/metric`` numbers of an evaluation."""
        ...


@runtime_checkable
class Generative(Protocol):
    """A task whose model makes images."""

    @property
    def num_classes(self) -> int | None:
        """The number of classes that can be asked for; None if there is nothing to ask for."""
        ...

    def sample(
        self,
        params: PyTree,
        mutable: PyTree,
        keys: Key[Array, " n"],
        labels: Int[Array, " n"] | None,
    ) -> Float[Array, "n height width channels"]:
        """Images in [0, 1], each from its own key alone; ``labels`` if ``num_classes`` is set."""
        ...
