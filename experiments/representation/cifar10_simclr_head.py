"""Should features be taken before the projection head, and does its depth matter?

Chen et al., 2020, arXiv:2002.05709, Fig. 8 and section 4.2: on ImageNet a head of two layers beats
a linear one by 3 points and none by more than 10, and the layer before the head is better than the
one behind it by more than 10 points.

Ours, three seeds: without a head 39.5 ± 0.7 %, with a linear one 44.5 ± 0.7, with two layers
43.2 ± 0.4 and with three 41.9 ± 0.9; random features give 30.2 ± 1.1. So a head pays here too, but
after so short a training the linear one is the best, against the paper. Behind the head less is
left the deeper it is: nothing is lost by one layer, 2.1 points by two and 2.4 by three.

In small: as ``cifar10_simclr``, with half the width, the first 10,000 training images, of which the
probes learn too, and 1,000 steps (12.8 epochs). Two minutes a run on one core.

    opsin sweep cifar10_simclr_head
    opsin report cifar10_simclr_head
"""

from collections.abc import Iterator

from opsin.analysis.probes import Probe
from opsin.config.table import Arm, Table
from opsin.config.tree import override
from opsin.experiments.representation.cifar10_simclr import (
    SMALL,
    SMOKE_IN_SMALL,
    in_small,
    references,
)
from opsin.models.representation.simclr import ProjectionHead
from opsin.train.experiment import Experiment

HEADS = {"none": 0, "linear": 1, "mlp": 2, "mlp of 3": 3}

SMOKE = SMOKE_IN_SMALL

TABLE = Table(
    title="Projection heads of SimCLR, features before and behind them, CIFAR-10 at 16x16 in small",
    metrics={"test/linear_accuracy": ".2%", "test/linear_accuracy_head": ".2%"},
    details={
        "test/knn_accuracy": ".2%",
        "test/knn_accuracy_head": ".2%",
        "test/feature_rank": ".1f",
        "test/feature_rank_head": ".1f",
    },
    references=("random", "supervised"),
    baseline="mlp",
    seeds=3,
)


def config() -> Experiment:
    """The paper's head of two layers."""
    return override(in_small(), {"measurements": (Probe(layers=("features", "head")),)})


def sweep() -> Iterator[Arm]:
    """The two references, and heads of no, one, two and three layers."""
    yield from references(SMALL)
    for name, layers in HEADS.items():
        yield Arm(name, {"task.model.head": ProjectionHead(layers=layers)})
