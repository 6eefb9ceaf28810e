"""The networks that are raced, their inputs, and the speed-ups that they must reach."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import flax.linen as nn
import numpy as np

from opsin.data.examples import Examples
from opsin.data.shapes import shapes
from opsin.data.sources import synthetic
from opsin.models.classification.efficientnet import EfficientNetB0, EfficientNetLite0
from opsin.models.classification.lenet import LeNet5
from opsin.models.classification.mobilenet import MobileNetV2
from opsin.models.classification.resnet import ResNet18Cifar, ResNet20
from opsin.models.classification.vit import ViTCifar
from opsin.models.generative.diffusion_unet import DiffusionUNet
from opsin.models.layers import batch_norm
from opsin.models.segmentation.unet import UNet
from opsin.ops.diffusion.schedules import Discrete
from opsin.train.experiment import Data, Experiment, Loop
from opsin.train.methods import adamw, sgd
from opsin.train.optim import Optimizer
from opsin.train.schedules import constant
from opsin.train.tasks.classify import Classify
from opsin.train.tasks.diffuse import Diffuse
from opsin.train.tasks.segment import Segment

EXAMPLES = 2048  # images that live on the device
# Of images and of noise, by time: those of Ho et al., 2020.
LEVELS = Discrete().levels(np.arange(1001))
ALPHA, SIGMA = LEVELS.alpha.astype(np.float32), LEVELS.sigma.astype(np.float32)


@dataclass(frozen=True)
class Case:
    """One network, its images and its optimiser.

    Attributes:
        title: for the table.
        model: of ten classes, of four where it labels pixels, or of noise.
        batch: images a step.
        size: height and width of an image.
        channels: of an image.
        optimizer: with a rate so small that hundreds of steps on one batch stay well-behaved:
            vanishing gradients would be denormal numbers, which are slow.
        targets: peer → the required ratio of training speeds.
        task: of what it learns, called with the model.
        label: the entry of a batch that it learns to predict.
        images: makes a set of images, called with its number of examples and their size.
        denoises: whether it learns to predict the noise that is added to images, given its
            strength; it has no labels then.
    """

    title: str
    model: nn.Module
    batch: int
    size: int
    channels: int
    optimizer: Optimizer
    targets: Mapping[str, float] = field(default_factory=dict)
    task: Callable[..., Any] = Classify
    label: str = "label"
    images: Callable[..., Examples] = synthetic
    denoises: bool = False

    def source(self) -> Callable[[str], Examples]:
        """Synthetic images of the case's shape, ``split -> Examples``; some megabytes of them."""
        channels = {"channels": self.channels} if self.images is synthetic else {}
        n = EXAMPLES * 32**2 // max(self.size, 32) ** 2
        return partial(self.images, n=n, size=self.size, **channels)

    def batch_on_host(self) -> tuple[np.ndarray, np.ndarray]:
        """One batch: images float32 in [0, 1] [batch, size, size, channels] and labels int32."""
        records = self.source()("train").records
        rows = [records[index] for index in range(self.batch)]
        images = np.stack([row["image"] for row in rows]).astype(np.float32) / 255
        return images, np.stack([row[self.label] for row in rows]).astype(np.int32)

    def told(self) -> tuple[np.ndarray, ...]:
        """Inputs beside the images, for one batch: times of all strengths of noise."""
        if not self.denoises:
            return ()
        return (np.linspace(1, ALPHA.size - 1, self.batch).round().astype(np.float32),)

    def experiment(self, steps_per_dispatch: int = 1) -> Experiment:
        """The case as a run of Opsin, which only ends when it is stopped."""
        forever = "1000000 steps"
        return Experiment(
            task=self.task(model=self.model),
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
# What the peers have too: no dropout, and one form of the norm.
ALIKE: dict[str, Any] = {"num_classes": 10, "dropout": 0.0, "norm": batch_norm}
NO_DROPS: dict[str, Any] = {**ALIKE, "stochastic_depth": 0.0}

CASES = {
    "lenet5": Case("LeNet-5", LeNet5(), 128, 28, 1, MOMENTUM, {"pytorch": 1.3}),
    "resnet20": Case("ResNet-20", ResNet20(), 64, 32, 3, MOMENTUM, {"pytorch": 0.8}),
    "resnet18": Case(
        "ResNet-18 (CIFAR)", ResNet18Cifar(), 64, 32, 3, MOMENTUM, {"flax": 2.2, "pytorch": 0.8}
    ),
    "vit": Case(
        "ViT, 7 blocks, width 384, patch 4", ViTCifar(), 64, 32, 3, ADAMW, {"pytorch": 0.95}
    ),
    "unet": Case(
        "U-Net, width 16, 128x128",
        UNet(num_classes=4, width=16, padding="same", norm=batch_norm),
        4,
        128,
        3,
        MOMENTUM,
        {"pytorch": 0.8},
        task=Segment,
        label="mask",
        images=shapes,
    ),
    "ddpm": Case(
        "DDPM U-Net, width 32",
        DiffusionUNet(outputs=1, width=32, multiples=(1, 2, 2), dropout=0.0),
        32,
        32,
        1,
        ADAMW,
        {"pytorch": 0.8},
        task=partial(Diffuse, image=(32, 32, 1)),
        denoises=True,
    ),
    "mobilenet_v2": Case(
        "MobileNetV2, 224x224", MobileNetV2(**ALIKE), 8, 224, 3, MOMENTUM, {"pytorch": 0.8}
    ),
    "efficientnet_b0": Case(
        "EfficientNet-B0, 224x224",
        EfficientNetB0(**NO_DROPS),
        8,
        224,
        3,
        MOMENTUM,
        {"pytorch": 0.8},
    ),
    "efficientnet_lite0": Case(
        "EfficientNet-Lite0, 224x224",
        EfficientNetLite0(**NO_DROPS),
        8,
        224,
        3,
        MOMENTUM,
        {"flax": 5.0, "pytorch": 0.8},
    ),
}
