"""What are ImageNet's weights worth where there are few labels?

EfficientNet-Lite0 (4.7 million weights, 75.1 % of ImageNet's photographs at 224 pixels by its
authors), on CIFAR-10's images resized from 32 to 96 pixels, with 10, 100 or 1,000 labels a class.
Kornblith et al., 2019, arXiv:1805.08974, section 4: a classifier on frozen features, fine-tuning
and beginning anew come closer together the more labels there are.

*Frozen* trains the head alone: the backbone is as in evaluation, with the statistics of ImageNet.
*Fine-tuned* trains all, in three groups of rates: the head at that of the experiment, the last
stages at a third of it and all before at a tenth; statistics stay those of ImageNet, for batches
are small. *In steps* comes to the same rates one group after the other: a fifth of the steps trains
the head on a frozen backbone, until two fifths the last stages train too, and then all, by a rate
that falls. *Anew* begins at random, with its own statistics. All see the same number of images.

In small: 150 to 500 steps of 64 images. Not run yet: there is no table.

    pip install 'opsin[pretrained]'
    opsin sweep cifar10_finetune
    opsin report cifar10_finetune
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from opsin.config.table import Arm, Table
from opsin.data.geometry import random_crop, random_flip
from opsin.data.selection import per_class
from opsin.data.sources import synthetic
from opsin.data.squares import squared
from opsin.interchange.pretrained import efficientnet_lite0
from opsin.models.classification.efficientnet import EfficientNetLite0
from opsin.models.classification.linear import Linear
from opsin.models.layers import batch_norm
from opsin.train.experiment import Data, Experiment, Loop
from opsin.train.methods import adamw
from opsin.train.optim import Optimizer
from opsin.train.schedules import cosine
from opsin.train.tasks.classify import Classify

LABELS = {10: 150, 100: 300, 1000: 500}
"""Images of each class → steps."""
LAST_STAGES = r"backbone/(stage[67]|top)"
FROZEN_STATISTICS = partial(batch_norm, epsilon=1e-3, frozen_statistics=True)
OWN_STATISTICS = partial(batch_norm, epsilon=1e-3, momentum=0.9)

SMOKE = {
    "data.source.source": partial(synthetic, n=64),
    "data.source.size": 32,
    "data.select": partial(per_class, n=2),
    "data.batch": 8,
    "data.eval_batch": 16,
    "task.model.stages": ((1, 3, 1, 8, 1), (6, 3, 2, 8, 1)),
    "weights": None,
    "loop.duration": "2 steps",
    "optimizer.warmup": "0 steps",
}

TABLE = Table(
    title="EfficientNet-Lite0 on few labels of CIFAR-10, at 96x96",
    metrics={"test/accuracy": ".2%", "test/nll": ".3f"},
    lower_is_better=("test/nll",),
    baseline={
        f"{kind}, {n}": f"anew, {n}"
        for n in LABELS
        for kind in ("frozen", "fine-tuned", "in steps")
    },
    references=tuple(f"pixels, {n}" for n in LABELS),
    seeds=3,
)


def config() -> Experiment:
    """Fine-tuned on ten labels a class."""
    return Experiment(
        task=Classify(
            model=EfficientNetLite0(num_classes=10, norm=FROZEN_STATISTICS, stochastic_depth=0.0)
        ),
        weights=efficientnet_lite0,
        data=Data(
            source=partial(squared, source="tfds:cifar10", size=96, interpolation="bicubic"),
            select=partial(per_class, n=10),
            batch=64,
            eval_batch=250,
            augment=(partial(random_crop, padding=8, mode="reflect"), random_flip),
            # (pixel - 127) / 128, as the network was trained to see them.
            mean=(127 / 255,) * 3,
            std=(128 / 255,) * 3,
        ),
        optimizer=Optimizer(
            method=adamw,
            learning_rate=3e-3,
            schedule=cosine,
            warmup="20 steps",
            weight_decay=1e-2,
            lr_scale=((LAST_STAGES, 0.3), ("backbone", 0.1)),
        ),
        loop=Loop(
            duration="150 steps",
            log_every="10 steps",
            evaluate_every="500 steps",
            checkpoint_every="50 steps",
        ),
    )


def sweep() -> Iterator[Arm]:
    """Four ways to train the network, and logistic regression on pixels, by three numbers."""
    ways: dict[str, dict[str, Any]] = {
        "fine-tuned": {},
        "in steps": {"optimizer.unfreeze": ((LAST_STAGES, 0.2), ("backbone", 0.4))},
        "frozen": {"optimizer.freeze": ("backbone",), "optimizer.lr_scale": ()},
        "anew": {"weights": None, "task.model.norm": OWN_STATISTICS, "optimizer.lr_scale": ()},
        "pixels": {
            "task.model": Linear(num_classes=10),
            "weights": None,
            "optimizer.lr_scale": (),
            "optimizer.learning_rate": 3e-4,
        },
    }
    for count, steps in LABELS.items():
        for name, changes in ways.items():
            size = {
                "data.select": partial(per_class, n=count),
                "loop.duration": f"{steps} steps",
            }
            yield Arm(f"{name}, {count}", changes | size)
