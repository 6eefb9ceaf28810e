"""Which augmentations must two views differ by: is cropping enough, are colours, or only both?

Chen et al., 2020, arXiv:2002.05709, Fig. 5: on ImageNet no single one learns good features, and
random cropping composed with colour distortion stands out: crops of an image have similar
histograms of colours, which suffice to recognise them, whatever they show.

Ours, three seeds: crops with colours 43.2 ± 0.4 %, crops alone 37.2 ± 0.2, colours alone
32.6 ± 0.3, and flips, which are in all arms, 36.3 ± 0.3; random features give 30.2 ± 1.1. As in the
paper it takes both; colours alone teach less than flips do.

Unlike the paper's figure, which always crops and changes one of the two views, both views are
changed here, and single augmentations have no crop. In small: as ``cifar10_simclr``, with half the
width, the first 10,000 training images, of which the probes learn too, and 1,000 steps (12.8
epochs). Two and a half minutes a run on one core.

    opsin sweep cifar10_simclr_augmentations
    opsin report cifar10_simclr_augmentations
"""

from collections.abc import Iterator

from opsin.config.table import Arm, Table
from opsin.data.geometry import random_flip
from opsin.experiments.representation.cifar10_simclr import (
    COLOR,
    CROP,
    SMALL,
    SMOKE_IN_SMALL,
    in_small,
    references,
)
from opsin.train.experiment import Experiment

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
    yield from references(SMALL)
    for name, views in ARMS.items():
        yield Arm(name, {"task.views": views})
