"""With equal parameters and steps, does U-Net, FCN or DeepLabv3+ label a street scene best?

Long et al., 2015, arXiv:1411.4038; Ronneberger et al., 2015, arXiv:1505.04597; Chen et al., 2018,
arXiv:1802.02611. CamVid (Brostow et al., 2009) at 180×240 pixels: 367 images for training and 233
for testing, 11 classes, void ignored. Each network has 1.94 million parameters and starts from
random weights; FCN and DeepLabv3+ have a ResNet-18 of 26 and 24 channels with output stride 8. The
loss is cross-entropy plus Dice, for the classes differ in size by a factor of a hundred.

Small: half the resolution that papers use, no weights from ImageNet, 800 steps of eight images (17
epochs). DeepLab's pyramid has the rates 3, 6 and 9, for features of 23×30 pixels.

Ours, three seeds: FCN has a mean IoU of 0.414 ± 0.006, DeepLabv3+ 0.401 ± 0.006 and U-Net 0.391 ±
0.024; the U-Net, whose features have the size of the image, has the best boundaries (boundary F1
0.325 against 0.278 and 0.266) at 1.4 times the arithmetic. No network learns poles in so few steps.
6 to 13 minutes a run on two cores of an AMD EPYC, beside other work.

    opsin sweep camvid_models
    opsin report camvid_models
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from opsin.config.table import Arm, Table
from opsin.data.color import color_jitter
from opsin.data.geometry import random_affine, random_flip
from opsin.data.shapes import shapes
from opsin.losses.classification import cross_entropy_loss
from opsin.losses.segmentation import combined_loss, dice_loss
from opsin.models.classification.resnet import ResNet18
from opsin.models.layers import batch_norm
from opsin.models.segmentation.deeplab import DeepLabv3Plus
from opsin.models.segmentation.fcn import FCN
from opsin.models.segmentation.unet import UNet
from opsin.train.experiment import Data, Experiment, Loop
from opsin.train.methods import adamw
from opsin.train.optim import Optimizer
from opsin.train.schedules import cosine
from opsin.train.tasks.segment import Segment

CLASSES = 11

SMOKE = {
    "data.source": partial(shapes, n=8, size=32),
    "task.model.num_classes": 4,
    "data.batch": 4,
    "data.eval_batch": 4,
    "loop.duration": "2 steps",
    "optimizer.warmup": "0 steps",
}

TABLE = Table(
    title="Three networks of 1.94 million parameters on CamVid at 180x240, 800 steps",
    metrics={
        "test/miou": ".4f",
        "test/boundary_f1": ".4f",
        "test/accuracy": ".2%",
    },
    details={
        "parameters": ".0f",
        "model_flops_per_step": ".3g",
        **{f"test/iou/{c}": ".3f" for c in range(CLASSES)},
    },
    lower_is_better=("parameters", "model_flops_per_step"),
    baseline="fcn",
    seeds=3,
)


def networks(num_classes: int = CLASSES) -> dict[str, Any]:
    """The networks that are compared."""
    return {
        "fcn": FCN(
            backbone=ResNet18(width=26, output_stride=8).without_head(), num_classes=num_classes
        ),
        "u-net": UNet(num_classes=num_classes, width=16, padding="same", norm=batch_norm),
        "deeplabv3+": DeepLabv3Plus(
            backbone=ResNet18(width=24, output_stride=8).without_head(),
            rates=(3, 6, 9),
            width=55,
            low_level_width=24,
            num_classes=num_classes,
        ),
    }


def config() -> Experiment:
    """The fully convolutional network."""
    return Experiment(
        task=Segment(
            model=networks()["fcn"],
            loss_function=partial(
                combined_loss, terms=((1.0, cross_entropy_loss), (1.0, dice_loss))
            ),
            boundary_tolerance=2.0,
        ),
        data=Data(
            source="tfds:camvid",
            batch=8,
            eval_batch=8,
            augment=(
                random_flip,
                partial(random_affine, rotation=5.0, scale=(0.8, 1.6), translation=0.1),
                partial(color_jitter, brightness=0.3, contrast=0.3, saturation=0.3),
            ),
            mean=(0.42, 0.44, 0.44),
            std=(0.31, 0.31, 0.30),
        ),
        optimizer=Optimizer(
            method=adamw, learning_rate=2e-3, schedule=cosine, warmup="50 steps", weight_decay=1e-3
        ),
        loop=Loop(
            duration="800 steps",
            evaluate_every="400 steps",
            checkpoint_every="100 steps",
            previews=4,
        ),
    )


def sweep() -> Iterator[Arm]:
    """The network is all that changes."""
    for name, model in networks().items():
        yield Arm(name, {"task.model": model})
