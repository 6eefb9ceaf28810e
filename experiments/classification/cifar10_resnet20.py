"""ResNet-20 as in the paper, on CIFAR-10 from JPEGs, in fewer epochs.

He et al., 2015, arXiv:1512.03385, section 4.2 and Table 6: 91.25 % after 64,000 steps of 128
images (164 epochs) with two drops of the rate. Ours: the same network (option A, 269,722
parameters), batch, momentum, decay and augmentation, 72 epochs, and a cosine schedule. The images
were stored as JPEGs of quality 75 with chroma of half the size: ``accuracy_jpeg75`` says what
coding them once more costs, ``accuracy_jpeg95`` what a better code would. Not run yet: there is no
table.

    opsin sweep cifar10_resnet20
    opsin report cifar10_resnet20
"""

from collections.abc import Iterator
from functools import partial

from opsin.analysis.views import AveragedViews, Recoded
from opsin.config.table import Arm, Table
from opsin.data.geometry import random_crop, random_flip
from opsin.data.sources import synthetic
from opsin.experiments.whitening import MEAN, STD
from opsin.models.classification.linear import Linear
from opsin.models.classification.resnet import ResNet20
from opsin.train.experiment import Data, Experiment, Loop
from opsin.train.methods import sgd
from opsin.train.optim import Optimizer
from opsin.train.schedules import cosine
from opsin.train.tasks.classify import Classify

SMOKE = {
    "data.source": partial(synthetic, n=64),
    "data.batch": 16,
    "data.eval_batch": 32,
    "loop.duration": "2 steps",
    "optimizer.warmup": "0 steps",
}

TABLE = Table(
    title="ResNet-20 on CIFAR-10",
    metrics={
        "test/accuracy": ".2%",
        "test/accuracy_tta": ".2%",
        "test/nll": ".3f",
        "test/accuracy_jpeg75": ".2%",
        "test/accuracy_jpeg95": ".2%",
    },
    lower_is_better=("test/nll",),
    paper={("resnet-20", "test/accuracy"): "91.25 (He et al., 2015, Table 6; original pixels)"},
    baseline="pixels",
    references=("pixels",),
    seeds=1,
)


def config() -> Experiment:
    """72 epochs."""
    return Experiment(
        task=Classify(model=ResNet20(num_classes=10)),
        data=Data(
            source="tfds:cifar10",
            batch=128,
            augment=(partial(random_crop, padding=4), random_flip),
            mean=MEAN,
            std=STD,
        ),
        optimizer=Optimizer(
            method=partial(sgd, momentum=0.9, nesterov=False),
            learning_rate=0.1,
            schedule=cosine,
            warmup="1 epoch",
            weight_decay=1e-4,
        ),
        loop=Loop(
            duration="72 epochs",
            log_every="50 steps",
            evaluate_every="8 epochs",
            checkpoint_every="1 epoch",
        ),
        measurements=(AveragedViews(), Recoded()),
    )


def sweep() -> Iterator[Arm]:
    """The network, and logistic regression on pixels."""
    yield Arm("resnet-20")
    plain = {
        "task.model": Linear(num_classes=10),
        "optimizer.learning_rate": 0.01,
        "loop.duration": "10 epochs",
    }
    yield Arm("pixels", plain)
