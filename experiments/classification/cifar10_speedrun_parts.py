"""Which part of the recipe of ``cifar10_speedrun`` earns its place?

Jordan, 2024, arXiv:2404.00498, section 4 and Table 2, takes one part after the other out of
airbench94 and counts the epochs that it then takes to 94 %: each costs some. Here all have the same
budget: three passes over the images instead of sixteen, and convolutions of half the width (0.5
million parameters), so that a run should take six minutes on two cores. Not run yet: there is no
table.

    opsin sweep cifar10_speedrun_parts
    opsin report cifar10_speedrun_parts
"""

from collections.abc import Iterator
from dataclasses import replace

from opsin.analysis.views import AveragedViews, shift_views
from opsin.config.table import Arm, Table
from opsin.config.tree import override
from opsin.data.geometry import random_flip
from opsin.experiments.classification import cifar10_speedrun
from opsin.models.classification.airbench import fan_in_uniform
from opsin.train.experiment import Experiment

SMOKE = cifar10_speedrun.SMOKE

TABLE = Table(
    title="Parts of the recipe, three passes over CIFAR-10, half the width",
    metrics={"test/accuracy_tta": ".2%", "test/accuracy": ".2%", "test/nll": ".3f"},
    lower_is_better=("test/nll",),
    baseline="all parts",
    references=("pixels",),
    seeds=3,
)


def config() -> Experiment:
    """A small sister of ``cifar10_speedrun``."""
    whole = override(cifar10_speedrun.config(), {"task.model.widths": (32, 128, 128)})
    return replace(
        whole,
        optimizer=replace(whole.optimizer, warmup="0.345 epochs"),
        loop=replace(whole.loop, duration="1.5 epochs"),
        measurements=(AveragedViews(views=shift_views),),
    )


def sweep() -> Iterator[Arm]:
    """One part less each, and logistic regression on pixels."""
    yield Arm("all parts")
    yield Arm("first layer learned", {"weights": None, "optimizer.freeze": (r"norm\d/scale",)})
    yield Arm("no identity", {"task.model.kernel_init": fan_in_uniform})
    yield Arm("no lookahead", {"optimizer.lookahead": None})
    yield Arm("one rate", {"optimizer.lr_scale": ()})
    flips = {"data.source": "tfds:cifar10", "data.augment": (random_flip, cifar10_speedrun.CROP)}
    yield Arm(
        "random flips", {**flips, "loop.duration": "3 epochs", "optimizer.warmup": "0.69 epochs"}
    )
    yield Arm("no smoothing", {"task.loss_function.smoothing": 0.0})
    yield cifar10_speedrun.PIXELS
