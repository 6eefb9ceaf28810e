"""Should features be taken before the projection head, and does its depth matter?

Chen et al., 2020, arXiv:2002.05709, Fig. 8 and section 4.2: on ImageNet a head of two layers beats
a linear one by 3 points and none by more than 10, and the layer before the head is better than the
one behind it by more than 10 points.

    opsin sweep cifar10_simclr_head
    opsin report cifar10_simclr_head
"""

from collections.abc import Iterator

from experiments.config import override
from experiments.representation.cifar10_simclr import (
    SMALL,
    SMOKE_IN_SMALL,
    in_small,
    references,
)
from experiments.table import Arm, Table
from models.representation.simclr import ProjectionHead
from train.experiment import Experiment
from train.final_probe import Probe

HEADS = {"none": 0, "linear": 1, "mlp": 2, "mlp of 3": 3}
FINAL = (Probe(layers=("features", "head")),)

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
    baseline="mlp",
    seeds=3,
)


def config() -> Experiment:
    """The paper's head of two layers."""
    return override(in_small(), {"task.final": FINAL})


def sweep() -> Iterator[Arm]:
    """The two references, and heads of no, one, two and three layers."""
    yield from references(SMALL, FINAL)
    for name, layers in HEADS.items():
        yield Arm(name, {"task.model.head": ProjectionHead(layers=layers)})
