"""Which temperature does SimCLR want, and does a larger batch change the answer?

Chen et al., 2020, arXiv:2002.05709: Table 5 finds τ = 0.1 best on ImageNet and Fig. 9 that larger
batches, with more negatives, learn more in the same epochs; on CIFAR-10 (appendix B.9) the best τ
is 0.5 and batches matter less.

Ours, three seeds: τ = 0.1 is best at both batches, 46.5 ± 0.3 % with 64 images and 44.9 ± 0.7 with
256, then 0.5 (43.7 and 42.3) and 1.0 (41.3 and 41.2); random features give 30.2 ± 1.1. As many
images in larger batches are fewer steps, and so early in training that costs more than the
negatives bring: the paper's gain is over batches of equal, long training. A low temperature spreads
embeddings out (uniformity −3.5 against −2.7) at the cost of views that are farther apart.

In small: as ``cifar10_simclr``, with half the width, the first 10,000 training images, of which the
probes learn too, and 128,000 images (12.8 epochs) an arm; a tenth of the steps is warm-up, and the
rate of AdamW is the same for both batches. Two minutes a run on one core.

    opsin sweep cifar10_simclr_temperature
    opsin report cifar10_simclr_temperature
"""

from collections.abc import Iterator
from functools import partial

from opsin.config.table import Arm, Table
from opsin.config.tree import override
from opsin.experiments.representation.cifar10_simclr import (
    SMALL,
    SMOKE_IN_SMALL,
    in_small,
    references,
)
from opsin.losses.contrastive import nt_xent_loss
from opsin.train.experiment import Experiment

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
    lower_is_better=("test/alignment", "test/uniformity"),
    references=("random", "supervised"),
    baseline="0.5@64",
    seeds=3,
)


def config() -> Experiment:
    """τ = 0.5 and 64 images a batch."""
    changes = {"data.batch": BATCHES[0], "loop.duration": f"{IMAGES // BATCHES[0]} steps"}
    return override(in_small(), changes)


def sweep() -> Iterator[Arm]:
    """The two references, and temperatures by batches."""
    yield from references(SMALL)
    for name, (tau, batch) in ARMS.items():
        changes = {
            "task.loss_function": partial(nt_xent_loss, temperature=tau),
            "data.batch": batch,
            "optimizer.warmup": f"{IMAGES // batch // 10} steps",
            "loop.duration": f"{IMAGES // batch} steps",
        }
        yield Arm(name, changes)
