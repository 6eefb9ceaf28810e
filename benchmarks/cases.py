"""The networks that are raced, on what, and how much faster they are asked to train."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import flax.linen as nn
import numpy as np

from data.sources import synthetic
from models.classification.lenet import LeNet5
from models.classification.resnet import ResNet18Cifar, ResNet20
from models.classification.vit import ViTCifar
from train.experiment import Data, Experiment, Loop
from train.optim import Optimizer, adamw, constant, sgd
from train.tasks.classify import Classify

EXAMPLES = 2048  # images that live on the device


@dataclass(frozen=True)
class Case:
    """One network, its images and its optimiser.

    Attributes:
        title: for the table.
        model: of ten classes.
        batch: images a step.
        size: height and width of an image.
        channels: of an image.
        optimizer: with a rate so small that hundreds of steps on one batch stay well-behaved:
            vanishing gradients would be denormal numbers, which are slow.
        targets: peer → the training speed over it that is asked for.
    """

    title: str
    model: nn.Module
    batch: int
    size: int
    channels: int
    optimizer: Optimizer
    targets: Mapping[str, float] = field(default_factory=dict)

    def source(self) -> Callable:
        """Striped synthetic images of the case's shape, ``split -> Examples``."""
        return partial(synthetic, n=EXAMPLES, size=self.size, channels=self.channels)

    def batch_on_host(self) -> tuple[np.ndarray, np.ndarray]:
        """One batch: images float32 in [0, 1] [batch, size, size, channels] and labels int32."""
        records = self.source()("train").records
        rows = [records[index] for index in range(self.batch)]
        images = np.stack([row["image"] for row in rows]).astype(np.float32) / 255
        return images, np.stack([row["label"] for row in rows])

    def experiment(self, steps_per_dispatch: int = 1) -> Experiment:
        """The case as a run of Opsin, which only ends when it is stopped."""
        forever = "1000000 steps"
        return Experiment(
            task=Classify(model=self.model),
            data=Data(source=self.source(), batch=self.batch, eval_splits={}),
            optimizer=self.optimizer,
            loop=Loop(
                duration=forever,
                evaluate_every=forever,
                checkpoint_every=forever,
                steps_per_dispatch=steps_per_dispatch,
                previews=0,
            ),
        )


MOMENTUM = Optimizer(method=sgd, learning_rate=1e-3, schedule=constant, weight_decay=5e-4)
ADAMW = Optimizer(method=adamw, learning_rate=1e-4, schedule=constant, weight_decay=0.05)

CASES = {
    "lenet5": Case("LeNet-5", LeNet5(), 128, 28, 1, MOMENTUM, {"pytorch": 1.3}),
    "resnet20": Case("ResNet-20", ResNet20(), 64, 32, 3, MOMENTUM, {"pytorch": 0.8}),
    "resnet18": Case(
        "ResNet-18 (CIFAR)", ResNet18Cifar(), 64, 32, 3, MOMENTUM, {"flax": 2.2, "pytorch": 0.8}
    ),
    "vit": Case(
        "ViT, 7 blocks, width 384, patch 4", ViTCifar(), 64, 32, 3, ADAMW, {"pytorch": 0.95}
    ),
}
