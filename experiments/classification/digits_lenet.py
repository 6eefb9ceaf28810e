"""LeNet-5 reads handwritten digits: 98 % of 360 unseen ones after ten seconds on two cores.

The first thing to run. Its 1,797 digits of 8×8 pixels come with scikit-learn: no download.

    opsin run digits_lenet
"""

from functools import partial

from opsin.config.table import Table
from opsin.data.geometry import random_crop
from opsin.losses.classification import cross_entropy_loss
from opsin.models.classification.lenet import LeNet5
from opsin.train.experiment import Data, Experiment, Loop
from opsin.train.methods import adamw
from opsin.train.optim import Optimizer
from opsin.train.schedules import cosine
from opsin.train.tasks.classify import Classify

SMOKE = {
    "loop.duration": "2 steps",
    "optimizer.warmup": "0 steps",
    "data.batch": 16,
    "data.eval_batch": 120,
}

TABLE = Table(
    title="LeNet-5 on scikit-learn's digits",
    metrics={"test/accuracy": ".2%", "test/nll": ".4f", "test/ece": ".4f"},
    lower_is_better=("test/nll", "test/ece"),
    seeds=3,
)


def config() -> Experiment:
    """LeNet-5 with AdamW, smoothed labels, and images shifted by up to one pixel."""
    return Experiment(
        task=Classify(
            model=LeNet5(num_classes=10),
            loss_function=partial(cross_entropy_loss, smoothing=0.1),
        ),
        data=Data(
            source="digits",
            batch=64,
            eval_batch=360,
            augment=(partial(random_crop, padding=1),),
        ),
        optimizer=Optimizer(
            method=adamw, learning_rate=2e-3, schedule=cosine, warmup="1 epoch", weight_decay=0.01
        ),
        loop=Loop(duration="40 epochs", evaluate_every="5 epochs", checkpoint_every="5 epochs"),
    )
