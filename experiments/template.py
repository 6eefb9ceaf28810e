"""With smoothed labels LeNet-5 reads handwritten digits better: the claim, in one line.

Question: what is compared, and why; which table of which paper says what. Write down what you
expect before anything runs.

    opsin run ./NAME.py --smoke    two steps, to see that it runs
    opsin inspect ./NAME.py        draws a batch as the network sees it
    opsin run ./NAME.py            trains it once
    opsin sweep ./NAME.py          trains every arm under every seed
    opsin report ./NAME.py         writes results/NAME.md, with error bars

A model, a loss or a data set of your own is a class or a function in this file; the commands that
open a finished run then need --allow with its name.
"""

from functools import partial

from opsin.config.table import Arm, Table
from opsin.data.geometry import random_crop
from opsin.losses.classification import cross_entropy_loss
from opsin.models.classification.lenet import LeNet5
from opsin.train.experiment import Data, Experiment, Loop
from opsin.train.methods import adamw
from opsin.train.optim import Optimizer
from opsin.train.schedules import cosine
from opsin.train.tasks.classify import Classify

SMOKE = {"loop.duration": "2 steps", "optimizer.warmup": "0 steps", "data.batch": 16}


def config() -> Experiment:
    """What all arms have in common; `opsin list --models --losses --data` names more."""
    return Experiment(
        task=Classify(model=LeNet5(num_classes=10), loss_function=cross_entropy_loss),
        data=Data(source="digits", batch=64, augment=(partial(random_crop, padding=1),)),
        optimizer=Optimizer(
            method=adamw, learning_rate=2e-3, schedule=cosine, warmup="1 epoch", weight_decay=0.01
        ),
        loop=Loop(duration="20 epochs", evaluate_every="5 epochs", checkpoint_every="5 epochs"),
    )


def sweep() -> list[Arm]:
    """The arms: a name, and what it changes."""
    return [
        Arm("hard"),
        Arm("smooth", {"task.loss_function.smoothing": 0.1}),
    ]


TABLE = Table(
    title="Smoothed labels on handwritten digits",
    metrics={"test/accuracy": ".1%", "test/nll": ".3f"},
    lower_is_better=("test/nll",),
    baseline="hard",
)
