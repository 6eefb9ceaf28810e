"""Which augmentations must two views differ by: is cropping enough, are colours, or only both?

Chen et al., 2020, arXiv:2002.05709, Fig. 5: on ImageNet no single one learns good features, and
random cropping composed with colour distortion stands out: crops of an image have much the same
histogram of colours, by which they are told from others without a look at what is in them.

    opsin sweep cifar10_simclr_augmentations
    opsin report cifar10_simclr_augmentations
"""

from collections.abc import Iterator

from data.geometry import random_flip
from experiments.representation.cifar10_simclr import (
    COLOR,
    CROP,
    SMALL,
    SMOKE_IN_SMALL,
    in_small,
    references,
)
from experiments.table import Arm, Table
from train.experiment import Experiment
from train.final_probe import Probe

ARMS = {
    "flip": (random_flip,),
    "colour": (random_flip, COLOR),
    "crop": (CROP, random_flip),
    "crop + colour": (CROP, random_flip, COLOR),
}

SMOKE = SMOKE_IN_SMALL

TABLE = Table(
    title="Augmentations of SimCLR, each with flips, CIFAR-10 at 16x16 in small",
    metrics={"test/linear_accuracy": ".2%", "test/knn_accuracy": ".2%"},
    details={"test/alignment": ".3f", "test/uniformity": ".2f", "test/embedding_rank": ".1f"},
    lower_is_better=("test/alignment", "test/uniformity"),
    references=("random", "supervised"),
    baseline="crop + colour",
    seeds=3,
)


def config() -> Experiment:
    """Both, as SimCLR has it."""
    return in_small()


def sweep() -> Iterator[Arm]:
    """The two references, single augmentations and composed ones."""
    yield from references(SMALL, (Probe(),))
    for name, views in ARMS.items():
        yield Arm(name, {"task.views": views})
