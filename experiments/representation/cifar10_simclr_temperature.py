"""Which temperature does SimCLR want, and does a larger batch change the answer?

Chen et al., 2020, arXiv:2002.05709: Table 5 finds τ = 0.1 best on ImageNet and Fig. 9 that larger
batches, with more negatives, learn more in the same epochs; on CIFAR-10 (appendix B.9) the best τ
is 0.5 and batches matter less.

    opsin sweep cifar10_simclr_temperature
    opsin report cifar10_simclr_temperature
"""

from collections.abc import Iterator
from functools import partial

from experiments.config import override
from experiments.representation.cifar10_simclr import (
    SMALL,
    SMOKE_IN_SMALL,
    in_small,
    references,
)
from experiments.table import Arm, Table
from losses.contrastive import nt_xent_loss
from train.experiment import Experiment
from train.final_probe import Probe

IMAGES = 128_000
"""That every arm sees, one view or two."""
TEMPERATURES = (0.1, 0.5, 1.0)
BATCHES = (64, 256)
ARMS = {f"{tau}@{batch}": (tau, batch) for batch in BATCHES for tau in TEMPERATURES}

SMOKE = SMOKE_IN_SMALL

TABLE = Table(
    title="Temperature and batch of SimCLR, CIFAR-10 at 16x16 in small",
    metrics={"test/linear_accuracy": ".2%", "test/knn_accuracy": ".2%"},
    details={"test/alignment": ".3f", "test/uniformity": ".2f", "test/embedding_rank": ".1f"},
    baseline="0.5@64",
    seeds=3,
)


def config() -> Experiment:
    """τ = 0.5 and 64 images a batch."""
    changes = {"data.batch": BATCHES[0], "loop.duration": f"{IMAGES // BATCHES[0]} steps"}
    return override(in_small(), changes)


def sweep() -> Iterator[Arm]:
    """The two references, and temperatures by batches."""
    yield from references(SMALL, (Probe(),))
    for name, (tau, batch) in ARMS.items():
        changes = {
            "task.loss_function": partial(nt_xent_loss, temperature=tau),
            "data.batch": batch,
            "optimizer.warmup": f"{IMAGES // batch // 10} steps",
            "loop.duration": f"{IMAGES // batch} steps",
        }
        yield Arm(name, changes)
