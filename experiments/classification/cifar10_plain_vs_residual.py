"""From 20 to 56 layers a plain network gets much worse, even in training; what of a residual one?

He et al., 2015, arXiv:1512.03385, Fig. 6 and Table 6: on CIFAR-10 the error of plain networks rises
from 20 to 56 layers, that of residual networks falls (ResNet-20 91.25 %, ResNet-56 93.03 %).

In small, so that twelve runs fit two cores: images of 16×16 pixels (each the mean of 2×2), batches
of 64 instead of 128, 1,000 steps (1.3 epochs) instead of 64,000, a cosine schedule instead of two
drops. Depths, widths, shortcuts (option A), augmentation in kind, momentum and weight decay are
the paper's. Every arm sees the same images the same number of times; first_10k is the accuracy on
10,000 of them. After so few steps the question is how fast a network can be trained, not how good
it becomes: accuracies are far below the paper's. The images are stored as JPEG, which costs a
little more.

Ours, three seeds: plain 43.3 to 20.9 %, on training images as on test images, as in the paper;
residual 52.8 to 48.2 %, so that depth costs a fifth of what it costs without shortcuts but does not
pay yet: 1,000 steps are too few for the gain that the paper finds after 64,000. One to five minutes
a run, on two cores of an AMD EPYC that other jobs shared.

    opsin sweep cifar10_plain_vs_residual
    opsin report cifar10_plain_vs_residual
"""

from collections.abc import Iterator
from functools import partial

from opsin.config.table import Arm, Table
from opsin.data.geometry import random_crop, random_flip
from opsin.data.sources import shrunk, synthetic
from opsin.experiments.whitening import MEAN, STD
from opsin.models.classification.resnet import cifar_resnet
from opsin.train.experiment import Data, Experiment, Loop
from opsin.train.methods import sgd
from opsin.train.optim import Optimizer
from opsin.train.schedules import cosine
from opsin.train.tasks.classify import Classify

DEPTHS = (20, 56)
KINDS = {"plain": False, "residual": True}

SMOKE = {
    "data.source.source": partial(synthetic, n=64),
    "data.eval_splits.first_10k": "train",
    "data.batch": 16,
    "data.eval_batch": 32,
    "loop.duration": "2 steps",
    "optimizer.warmup": "0 steps",
}

TABLE = Table(
    title="Plain and residual networks on CIFAR-10 at 16x16, 1,000 steps",
    metrics={"test/accuracy": ".2%", "first_10k/accuracy": ".2%", "test/nll": ".3f"},
    lower_is_better=("test/nll",),
    baseline={f"{kind}-56": f"{kind}-20" for kind in KINDS},
    paper={
        ("residual-20", "test/accuracy"): "91.25 (He et al., 2015, Table 6)",
        ("residual-56", "test/accuracy"): "93.03 (He et al., 2015, Table 6)",
    },
    seeds=3,
    lines={f"{kind}-{depth}": (kind, depth) for kind in KINDS for depth in DEPTHS},
    x_label="layers",
)


def config() -> Experiment:
    """The plain network of 20 layers."""
    return Experiment(
        task=Classify(model=cifar_resnet(20, residual=False)),
        data=Data(
            source=partial(shrunk, source="tfds:cifar10", factor=2),
            eval_splits={"test": "test", "first_10k": "train[:10000]"},
            batch=64,
            augment=(partial(random_crop, padding=2), random_flip),
            mean=MEAN,
            std=STD,
        ),
        optimizer=Optimizer(
            method=partial(sgd, momentum=0.9, nesterov=False),
            learning_rate=0.1,
            schedule=cosine,
            warmup="100 steps",
            weight_decay=1e-4,
        ),
        loop=Loop(
            duration="1000 steps",
            log_every="25 steps",
            evaluate_every="1000 steps",
            checkpoint_every="250 steps",
        ),
    )


def sweep() -> Iterator[Arm]:
    """Two kinds at two depths."""
    for kind, residual in KINDS.items():
        for depth in DEPTHS:
            yield Arm(f"{kind}-{depth}", {"task.model": cifar_resnet(depth, residual=residual)})
