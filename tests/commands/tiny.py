"""The smallest experiment, as a file of ``experiments/`` is: it compiles in a moment."""

from functools import partial

import flax.linen as nn

from opsin.config.table import Arm
from opsin.data.sources import synthetic
from opsin.ranges import Count
from opsin.train.experiment import Data, Experiment, Loop
from opsin.train.methods import sgd
from opsin.train.optim import Optimizer
from opsin.train.schedules import constant
from opsin.train.tasks.classify import Classify

SMOKE = {"loop.duration": "2 steps"}


class Small(nn.Module):
    """Two layers, so that numbers can overflow."""

    num_classes: Count = 4

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        x = nn.Dense(8, name="hidden")(x.reshape(len(x), -1))
        return nn.Dense(self.num_classes, name="head")(x)


def config() -> Experiment:
    return Experiment(
        task=Classify(model=Small()),
        data=Data(source=partial(synthetic, n=32, size=6, classes=4), batch=8, eval_batch=32),
        optimizer=Optimizer(method=sgd, schedule=constant, learning_rate=0.1),
        loop=Loop(duration="3 steps", log_every="1 step", checkpoint_every="1 step", previews=0),
    )


def sweep() -> list[Arm]:
    return [
        Arm("slow"),
        Arm("broken", {"optimizer.learning_rate": 1e30}),
        Arm("fast", {"optimizer.learning_rate": 0.2}),
    ]
