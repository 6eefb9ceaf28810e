"""What helps a network that knows its thousand images by heart?

All training images right and not half of the test images: the remedies that every course names are
dropout (Srivastava et al., 2014), weight decay (Krogh & Hertz, 1991), augmentation, and more
images. Each alone and the first three together, on a convolutional network of 0.8 million
parameters and 1,000 images of CIFAR-10, for as many steps. *seen* is the accuracy on these 1,000.

Not run yet: there is no table.

    opsin sweep cifar10_overfitting
    opsin report cifar10_overfitting
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from opsin.config.table import Arm, Table
from opsin.data.geometry import random_crop, random_flip
from opsin.data.sources import synthetic
from opsin.experiments.whitening import MEAN, STD
from opsin.models.classification.linear import Linear
from opsin.models.classification.small_cnn import SmallCNN
from opsin.train.experiment import Data, Experiment, Loop
from opsin.train.methods import adamw
from opsin.train.optim import Optimizer
from opsin.train.schedules import cosine
from opsin.train.tasks.classify import Classify

SMOKE = {
    "data.source": partial(synthetic, n=64, size=32),
    "data.train_split": "train",
    "data.eval_splits.seen": "train",
    "data.batch": 16,
    "data.eval_batch": 32,
    "loop.duration": "2 steps",
    "optimizer.warmup": "0 steps",
}

TABLE = Table(
    title="Against overfitting: 1,000 images of CIFAR-10",
    metrics={"test/accuracy": ".2%", "seen/accuracy": ".2%", "test/nll": ".3f"},
    lower_is_better=("test/nll",),
    baseline="nothing",
    references=("pixels",),
    seeds=3,
)


def config() -> Experiment:
    """A thousand images, a hundred times, and no remedy."""
    return Experiment(
        task=Classify(model=SmallCNN(num_classes=10)),
        data=Data(
            source="tfds:cifar10",
            train_split="train[:1000]",
            eval_splits={"test": "test", "seen": "train[:1000]"},
            batch=64,
            eval_batch=500,
            mean=MEAN,
            std=STD,
        ),
        optimizer=Optimizer(method=adamw, learning_rate=1e-3, schedule=cosine, warmup="50 steps"),
        loop=Loop(
            duration="1500 steps",
            log_every="50 steps",
            evaluate_every="250 steps",
            checkpoint_every="500 steps",
        ),
    )


def sweep() -> Iterator[Arm]:
    """One remedy each, three together, more images, and logistic regression on pixels."""
    remedies: dict[str, dict[str, Any]] = {
        "dropout": {"task.model.dropout": 0.5},
        "decay": {"optimizer.weight_decay": 1.0},
        "augmentation": {"data.augment": (partial(random_crop, padding=4), random_flip)},
    }
    yield Arm("nothing")
    for name, changes in remedies.items():
        yield Arm(name, changes)
    together = {path: value for changes in remedies.values() for path, value in changes.items()}
    yield Arm("all three", together)
    yield Arm("ten times the images", {"data.train_split": "train[:10000]"})
    yield Arm("pixels", {"task.model": Linear(num_classes=10), "optimizer.weight_decay": 1.0})
