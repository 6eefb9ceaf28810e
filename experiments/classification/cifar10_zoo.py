"""Seven architectures and the same number of floating-point operations: which learns most?

Parameters, operations and images per second put networks in different orders (Dehghani et al.,
2021, arXiv:2110.12894). Papers compare them after hundreds of epochs; here each gets 6 TFLOP of
training (multiplications and additions of convolutions and matrix products, forward and backward),
on CIFAR-10 from nothing: networks of cheap steps make three and a half passes over the images, the
most expensive half of one. One recipe for all, and nothing tuned for any: AdamW, a cosine schedule,
shifts and mirror images. Networks are small sisters of those of their papers.

Not run yet: there is no table.

    opsin sweep cifar10_zoo
    opsin report cifar10_zoo
"""

from collections.abc import Iterator
from functools import partial

import flax.linen as nn

from opsin.config.table import Arm, Table
from opsin.data.geometry import random_crop, random_flip
from opsin.data.sources import synthetic
from opsin.experiments.whitening import MEAN, STD
from opsin.models.classification.airbench import Airbench
from opsin.models.classification.convnext import ConvNeXt
from opsin.models.classification.linear import Linear
from opsin.models.classification.mobilenet import MobileNetV2
from opsin.models.classification.resnet import cifar_resnet
from opsin.models.classification.small_cnn import SmallCNNBatchNorm
from opsin.models.classification.vit import ViT
from opsin.models.classification.wide_resnet import WideResNet
from opsin.train.experiment import Data, Experiment, Loop
from opsin.train.methods import adamw
from opsin.train.optim import Optimizer
from opsin.train.schedules import cosine
from opsin.train.tasks.classify import Classify

BATCH = 64
BUDGET = 6e12
"""Floating-point operations of a run's training steps."""
# For 32x32 pixels the first stages of the MobileNet keep the size, and patches have 4x4 pixels.
STAGES = ((1, 3, 1, 16, 1), (6, 3, 1, 24, 2), (6, 3, 2, 32, 3), (6, 3, 2, 64, 4), (6, 3, 1, 96, 3))
NETWORKS: dict[str, tuple[nn.Module, float]] = {
    "small CNN": (SmallCNNBatchNorm(num_classes=10), 36.9),
    "ResNet-20": (cifar_resnet(20), 242.4),
    "Wide ResNet-10-2": (WideResNet(stage_sizes=(1, 1, 1), widening=2), 266.0),
    "airbench, narrow": (Airbench(widths=(32, 64, 128)), 118.8),
    "MobileNetV2 x0.5": (MobileNetV2(num_classes=10, width=0.5, stages=STAGES, dropout=0.0), 34.1),
    "ConvNeXt, narrow": (
        ConvNeXt(stage_sizes=(2, 2, 4), width=48, num_classes=10, stochastic_depth=0.0),
        62.9,
    ),
    "ViT-4/4": (
        ViT(depth=4, width=128, mlp_width=256, heads=4, patch=4, pool="gap", num_classes=10),
        228.1,
    ),
}
"""Each network, and the millions of operations of a training step for an image."""
ARMS = (*NETWORKS, "pixels")

SMOKE = {
    "data.source": partial(synthetic, n=64, size=32),
    "data.batch": 8,
    "data.eval_batch": 32,
    "loop.duration": "2 steps",
    "optimizer.warmup": "0 steps",
}

TABLE = Table(
    title="Seven networks on CIFAR-10, 6 TFLOP each",
    metrics={
        "test/accuracy": ".2%",
        "test/nll": ".3f",
        "images_per_second": ".0f",
        "parameters": ".0f",
    },
    lower_is_better=("test/nll", "parameters"),
    baseline="small CNN",
    references=("pixels",),
    seeds=3,
    lines={arm: (arm, "parameters") for arm in ARMS},
    x_label="parameters",
    x_scale="log",
    log_metrics=("images_per_second",),
)


def config() -> Experiment:
    """ResNet-20."""
    network, _ = NETWORKS["ResNet-20"]
    return Experiment(
        task=Classify(model=network),
        data=Data(
            source="tfds:cifar10",
            batch=BATCH,
            eval_batch=250,
            augment=(partial(random_crop, padding=4, mode="reflect"), random_flip),
            mean=MEAN,
            std=STD,
        ),
        optimizer=Optimizer(
            method=adamw, learning_rate=2e-3, schedule=cosine, warmup="50 steps", weight_decay=0.05
        ),
        loop=Loop(
            duration=_duration("ResNet-20"),
            log_every="20 steps",
            evaluate_every="1 epoch",
            checkpoint_every="100 steps",
        ),
    )


def sweep() -> Iterator[Arm]:
    """The networks, each for as long as its budget lasts, and logistic regression on pixels."""
    for name, (network, _) in NETWORKS.items():
        yield Arm(name, {"task.model": network, "loop.duration": _duration(name)})
    linear = {"task.model": Linear(num_classes=10), "optimizer.learning_rate": 3e-4}
    yield Arm("pixels", {**linear, "loop.duration": "10 epochs"})


def _duration(name: str) -> str:
    _, millions = NETWORKS[name]
    return f"{round(BUDGET / (millions * 1e6 * BATCH))} steps"
