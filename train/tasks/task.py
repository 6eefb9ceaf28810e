"""What every kind of learning supplies to the loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, runtime_checkable

import flax.struct
from jaxtyping import Array, Float, Int, Key, PyTree

from opsin.data.augment import Batch
from opsin.metrics.state import Metric
from opsin.pictures.kinds import Chart, Curve, Picture, Prediction
from opsin.train.optim import Optimizer
from opsin.train.settings import SettingError

if TYPE_CHECKING:
    from opsin.train.tasks.generative import Generative

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


Look = Callable[[], Mapping[str, Batch]]
"""Gives a few examples of each split as the model would see them, ``"train"`` augmented."""

Loss = Callable[
    [PyTree, PyTree, Batch, Key[Array, ""], Int[Array, ""] | int], tuple[Float[Array, ""], Aux]
]


@dataclass(frozen=True)
class Player:
    """Parameters that one loss and one optimiser train.

    Attributes:
        loss: as ``Task.loss``, of the parameters of all players.
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


class Task(ABC):
    """How models, losses and metrics become a step. Implementations are frozen dataclasses.

    Nobody outside ``train/tasks`` asks which task it has: the defaults below say what most do.

    Attributes:
        curves: panels of the training curve.
        progress: training metrics that the progress bar shows.
        context: pixels around a tile of an image that ``predict`` takes too, at each side.
    """

    curves: ClassVar[tuple[Curve, ...]] = (Curve(("loss", "nll"), logarithmic=True),)
    progress: ClassVar[tuple[str, ...]] = ("loss",)

    @property
    def context(self) -> int:  # noqa: D102
        return 0

    def check(self, class_names: Sequence[str], look: Look) -> None:
        """Compares the task to the data before anything runs.

        Args:
            class_names: of the data; empty where they have no classes.
            look: at the data themselves, which takes a moment.

        Raises:
            SettingError: if they do not fit; names the field to change.
        """
        del class_names, look

    def check_loop(self, *, accumulate: int, pmap: bool, steps: int, epoch: Fraction) -> None:
        """Compares the task to how it is trained, before anything runs.

        Args:
            accumulate: parts of a batch whose gradients are added up.
            pmap: whether each device computes the loss of its part alone.
            steps: of the whole run.
            epoch: training images over the batch, exact.

        Raises:
            SettingError: if parts of a batch are not the batch, or the run is too short.
        """
        del accumulate, pmap, steps, epoch

    @abstractmethod
    def init(self, key: Key[Array, ""], batch: Batch) -> PyTree:
        """All variables of the model: ``{"params": …}`` and its mutable collections."""

    def players(self) -> tuple[Player, ...]:
        """Who is trained, in the order of a step; the names are the entries of the parameters."""
        return (Player(self.loss),)

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
        A task of several players has none; each of them has its own.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither a loss nor players")

    @abstractmethod
    def evaluate(
        self, params: PyTree, mutable: PyTree, batch: Batch, key: Key[Array, ""]
    ) -> dict[str, Metric]:
        """Metric states of a batch in which ``batch["valid"]`` marks what counts."""

    def diagnose(self, numbers: Mapping[str, float]) -> Iterable[str]:
        """Lines for people about the ``split/metric`` numbers of an evaluation.

        They tell of training that goes wrong in a way that no error shows.
        """
        del numbers
        return ()

    @abstractmethod
    def preview(
        self, params: PyTree, mutable: PyTree, batch: Batch, key: Key[Array, ""]
    ) -> Mapping[str, Picture]:
        """Pictures of what the model does with a batch."""

    def charts(self, states: Mapping[str, Any]) -> Mapping[str, Chart]:
        """Charts of the metric states of a whole evaluation, by the name of the metric."""
        del states
        return {}

    def predict(
        self, params: PyTree, mutable: PyTree, images: Float[Array, "images height width channels"]
    ) -> Prediction:
        """What the model says of prepared images, which have ``context`` at each side.

        Raises:
            SettingError: if it says nothing of single images.
        """
        raise SettingError(
            f"predict is for classification and segmentation, not for {type(self).__name__}; "
            "images are made by opsin sample"
        )

    def as_generative(self) -> Generative:
        """The task itself, if its model makes images.

        Raises:
            SettingError: if it does not.
        """
        raise SettingError(
            f"there are no images to make with {type(self).__name__}: give a run of a generator, "
            "such as mnist_ddpm, or ask for labels and masks with opsin predict"
        )


@runtime_checkable
class Track(Protocol):
    """Shows how far work has come that is done piece by piece."""

    def __call__(self, items: Iterable[Item], what: str) -> Iterable[Item]:
        """The items themselves; ``what`` says what is done with them."""
        ...


Prepare = Callable[[Batch], Batch]
"""From a batch as a source gives it to what the model sees outside training."""
