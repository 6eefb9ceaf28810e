"""What every kind of learning supplies to the loop."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import flax.struct
from jaxtyping import Array, Float, Int, Key, PyTree

from opsin.data.augment import Batch
from opsin.metrics.state import Metric
from opsin.ranges import Depth, NonNegative
from opsin.train.optim import Optimizer
from opsin.train.tasks.views import Views


@flax.struct.dataclass
class Aux:
    """What a loss returns in addition to its value.

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
    weight: Float[Array, ""] | NonNegative = 1.0


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
    turns: Depth = 1
    project: Callable[[PyTree], PyTree] | None = None


class Task(Views):
    """How models, losses and metrics become a step. Implementations are frozen dataclasses.

    Nobody outside ``train/tasks`` asks which task it has: the defaults here and in ``Views`` say
    what most do.
    """

    distinct_rows: ClassVar[bool] = False
    """Whether no batch may hold an example twice."""

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
        self, params: PyTree, mutable: PyTree, batch: Batch, keys: Key[Array, " batch"]
    ) -> dict[str, Metric]:
        """Metric states of a batch in which ``batch["valid"]`` marks what counts.

        What is drawn for an example comes from its own key, whatever the size of the batch.
        """
