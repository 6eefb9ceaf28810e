"""With few labels, is it better to go on from SimCLR's weights than to begin anew?

Chen et al., 2020, arXiv:2002.05709, Table 7: fine-tuned on 1 % and 10 % of ImageNet's labels,
SimCLR's ResNet-50 reaches 75.5 and 87.8 % (top 5), and one that begins anew 48.4 and 80.4 %.

Ours, three seeds: with 1 % of the labels 47.5 ± 0.3 against 39.4 ± 2.8 %, with 10 % 64.5 ± 0.3
against 61.6 ± 0.6 %: as in the paper, the fewer labels, the more it helps.

In small: ``cifar10_simclr``'s network and images; 500 steps of 64 images on 1 % of the labels,
2,500 on 10 %. All three seeds start from one pre-training, that of seed 0: the deviations come from
the draw of the labels and from fine-tuning alone. Half a minute and three minutes a run, on one
core.

    opsin sweep cifar10_simclr_finetune
    opsin report cifar10_simclr_finetune
"""

from collections.abc import Iterator
from functools import partial

from opsin.config.table import Arm, Table
from opsin.data.geometry import random_crop, random_flip
from opsin.data.selection import per_class
from opsin.data.sources import shrunk, synthetic
from opsin.experiments.extractors import CIFAR10_SIMCLR
from opsin.experiments.representation.cifar10_simclr import WIDTH, classifier
from opsin.train.experiment import Data, Experiment, Loop
from opsin.train.methods import adamw
from opsin.train.optim import Optimizer
from opsin.train.schedules import cosine
from opsin.train.tasks.classify import Classify

LABELS = {"1 %": (50, 500), "10 %": (500, 2500)}
"""Share of the training images → images of each class, and steps."""
WEIGHTS = {"anew": None, "simclr": CIFAR10_SIMCLR}

SMOKE = {
    "data.source.source": partial(synthetic, n=64),
    "data.select": partial(per_class, n=2),
    "data.batch": 16,
    "data.eval_batch": 32,
    "loop.duration": "2 steps",
    "optimizer.warmup": "0 steps",
}

TABLE = Table(
    title="Fine-tuning on few labels, CIFAR-10 at 16x16",
    metrics={"test/accuracy": ".2%", "test/nll": ".3f"},
    lower_is_better=("test/nll",),
    baseline={f"simclr, {share}": f"anew, {share}" for share in LABELS},
    seeds=3,
)


def config() -> Experiment:
    """From SimCLR's weights, on one label in a hundred."""
    return Experiment(
        task=Classify(model=classifier(WIDTH)),
        weights=CIFAR10_SIMCLR,
        data=Data(
            source=partial(shrunk, source="tfds:cifar10", factor=2),
            select=partial(per_class, n=LABELS["1 %"][0]),
            batch=64,
            augment=(partial(random_crop, padding=2), random_flip),
        ),
        optimizer=Optimizer(
            method=adamw,
            learning_rate=1e-3,
            schedule=cosine,
            warmup="50 steps",
            weight_decay=1e-2,
        ),
        loop=Loop(
            duration="500 steps",
            log_every="25 steps",
            evaluate_every="500 steps",
            checkpoint_every="250 steps",
        ),
    )


def sweep() -> Iterator[Arm]:
    """Two beginnings by two shares of the labels."""
    for share, (count, steps) in LABELS.items():
        for name, weights in WEIGHTS.items():
            changes = {
                "weights": weights,
                "data.select": partial(per_class, n=count),
                "loop.duration": f"{steps} steps",
            }
            yield Arm(f"{name}, {share}", changes)
