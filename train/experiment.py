"""The configuration of a run: a frozen tree of dataclasses, functions and modules.

Fields with the metadata ``{"identity": False}`` change no trained number: measurements, how often
something is logged or saved, the placement of arrays. They are no part of a run's id, and may
differ when a run resumes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from opsin.data.augment import Augmentation
from opsin.data.examples import Source
from opsin.data.selection import Selection
from opsin.ranges import BelowOne, Count, CountOrZero, Depth, Positive, Seed, StepsOrZero
from opsin.train.durations import Cadence, Every, in_steps
from opsin.train.measurements import Measurement
from opsin.train.optim import Optimizer
from opsin.train.preprocessing import Preprocessing
from opsin.train.sharding import Parallel
from opsin.train.tasks.task import Task
from opsin.train.weights import Weights


@dataclass(frozen=True)
class Data:
    """Which images a run trains and evaluates on, in which batches.

    Attributes:
        source: ``"digits"``, ``"tfds:mnist"``, ``"folder:/path"``, ``"synthetic"``, or a function
            ``split -> Examples``.
        train_split: the split that is trained on.
        eval_splits: name in the log → split that is evaluated.
        select: ``(labels, *, seed) -> indices`` of the training images to keep, or None for all.
        batch: global training batch, over all devices and processes.
        eval_batch: global evaluation batch; the last one is padded and masked.
        augment: functions ``(key, batch) -> batch``, applied in order, on the device.
        mean: channel means that are subtracted from images in [0, 1], after augmentation.
        std: channel standard deviations that they are then divided by.
        resident_megabytes: a training set up to this size lives on the device.
    """

    source: str | Source = "digits"
    train_split: str = "train"
    eval_splits: Mapping[str, str] = field(
        default_factory=lambda: {"test": "test"},
        metadata={"identity": False, "counts_with": "loop.keep_best"},
    )
    select: Selection | None = None
    batch: Count = 128
    eval_batch: Count = field(
        default=500, metadata={"identity": False, "counts_with": "loop.keep_best"}
    )
    augment: tuple[Augmentation, ...] = ()
    mean: tuple[float, ...] = (0.0,)
    std: tuple[Positive, ...] = (1.0,)
    resident_megabytes: StepsOrZero = field(default=1024, metadata={"identity": False})


@dataclass(frozen=True)
class Loop:
    """How long to train, and what to do meanwhile. Durations: ``"20 epochs"`` or ``"500 steps"``.

    Attributes:
        duration: the length of training; ``"0 steps"`` initialises, trains nothing and is measured.
        log_every: between two lines of training metrics.
        evaluate_every: between two evaluations; there is always one at the end.
        checkpoint_every: between two checkpoints; there is always one at the end.
        steps_per_dispatch: steps in one call of the device. More hides the latency of the host.
        accumulate: microbatches that a batch is split into, to save memory.
        ema_decay: decay of the moving average of parameters and batch statistics, or None.
        strategy: ``"jit"`` over a mesh of devices, or ``"pmap"``.
        replicas: devices of ``"pmap"``. Each draws by itself, so that their number counts.
        keep_best: a metric, such as ``"val/accuracy"``, or ``"-val/nll"`` for the lowest: the run
            ends with the state that had the best, among those evaluated, instead of the last. A
            metric that ``train.best.HIGHER`` lacks has a sign, ``+`` or ``-``.
        previews: images in a preview picture, six at most where each has a mask; 0 draws none.
    """

    duration: str = "10 epochs"
    log_every: str = field(default="10 steps", metadata={"identity": False})
    evaluate_every: str = field(
        default="1 epoch", metadata={"identity": False, "counts_with": "loop.keep_best"}
    )
    checkpoint_every: str = field(default="1 epoch", metadata={"identity": False})
    steps_per_dispatch: Depth = field(default=1, metadata={"identity": False})
    accumulate: Depth = 1
    ema_decay: BelowOne | None = None
    strategy: Literal["jit", "pmap"] = "jit"
    replicas: Count = 1
    keep_best: str | None = None
    previews: CountOrZero = field(default=25, metadata={"identity": False})

    def cadence(self, steps_per_epoch: Fraction, last: int) -> Cadence:
        """When it logs, evaluates and saves, in a run that ends with the step ``last``."""
        names = ("log_every", "evaluate_every", "checkpoint_every")
        durations = {name: in_steps(getattr(self, name), steps_per_epoch) for name in names}
        return Cadence(*(Every(f"loop.{name}", n, last) for name, n in durations.items()))


@dataclass(frozen=True)
class Experiment:
    """One run, completely: what changes its trained numbers is hashed into the run's id.

    Attributes:
        task: what is learned, with its model and loss.
        weights: initial weights from one file or several, instead of random ones.
        data: what it is learned from.
        optimizer: how gradients become updates.
        loop: how long, and what happens meanwhile.
        parallel: how the devices share the work.
        seed: of initialisation, data order, augmentation and dropout.
        measurements: what is measured once training has ended; see ``analysis``. A run can be
            measured again, and in other ways, without training.
    """

    task: Task
    weights: Weights | tuple[Weights, ...] | None = None
    data: Data = field(default_factory=Data)
    optimizer: Optimizer = field(default_factory=Optimizer)
    loop: Loop = field(default_factory=Loop)
    parallel: Parallel = field(default_factory=Parallel, metadata={"identity": False})
    seed: Seed = 0
    measurements: tuple[Measurement, ...] = field(default=(), metadata={"identity": False})

    def preprocessing(self, image: tuple[int, ...]) -> Preprocessing:
        """How images of this height, width and channels reach the network, after augmentation."""
        return Preprocessing(self.data.mean, self.data.std, image, self.task.input_range)
