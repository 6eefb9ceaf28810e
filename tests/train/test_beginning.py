"""What a new run says: which weights it has, and which frozen norms still see the batch."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import flax.linen as nn
import numpy as np
import pytest

from opsin.config.tree import override
from opsin.models.layers import batch_norm, group_norm
from opsin.train.beginning import said_of_start
from opsin.train.paths import flatten
from opsin.train.weights import Weights, save_weights
from tests import drawn
from tests.train.conftest import Tiny, make_tiny
from tests.train.test_step import lay_out


def linen_norm(*, train: bool, frozen: bool = False, **options):
    """Linen's own, as a user's model may have it."""
    return nn.BatchNorm(use_running_average=frozen or not train, **options)


def said(experiment) -> list[str]:
    feed, program = lay_out(experiment)
    return list(said_of_start(experiment, program.state, feed.spec))


def test_a_batch_that_holds_images_several_times_is_told():
    feed, program = lay_out(make_tiny())

    def told(examples: int) -> list[str]:
        spec = replace(feed.spec, examples=examples)
        return list(said_of_start(make_tiny(), program.state, spec))

    assert told(feed.spec.batch_size) == []
    (line,) = told(feed.spec.batch_size - 1)
    assert line.startswith(f"data.batch={feed.spec.batch_size} is more than the ")


@pytest.mark.parametrize(
    ("norm", "freeze", "warned"),
    [
        (batch_norm, ("conv", "norm"), True),
        (linen_norm, ("norm",), True),
        (batch_norm, ("hidden",), False),
        (batch_norm, (), False),
        (partial(batch_norm, frozen_statistics=True), ("norm",), False),
        (partial(linen_norm, frozen=True), ("norm",), False),
        (partial(group_norm, groups=2), ("norm",), False),
    ],
)
def test_frozen_norms_that_see_the_batch_are_told_with_the_remedy(norm, freeze, warned):
    tiny = make_tiny()
    experiment = override(
        replace(tiny, task=replace(tiny.task, model=Tiny(norm=norm))), {"optimizer.freeze": freeze}
    )
    lines = said(experiment)
    assert len(lines) == warned
    for line in lines:
        assert line.startswith("optimizer: norm still normalise by the batch")
        assert "partial(batch_norm, frozen_statistics=True)" in line


def test_norms_that_are_unfrozen_later_are_told_too():
    held = {"optimizer.unfreeze": (("norm", 0.5),)}
    share, line = said(override(make_tiny(), held))
    assert share == "optimizer.unfreeze: 'norm' is held for 50% of the steps"
    assert line.startswith("optimizer: norm still normalise by the batch")


def test_the_weights_that_a_run_begins_with_are_told_with_what_stays_random(tmp_path: Path):
    variables = drawn.variables(Tiny().init, np.zeros((1, 8, 8, 1), np.float32))
    described = {"mean": [0.0], "std": [1.0], "image": [8, 8, 1]}
    path = tmp_path / "tiny.safetensors"
    sha256 = save_weights(path, variables, described)
    everything = len(flatten(variables))
    tiny = make_tiny()
    named = f"{path} (sha256 {sha256[:12]})"
    assert said(replace(tiny, weights=Weights(str(path)))) == [
        f"weights: {everything} arrays from {named}",
        "weights: random is nothing",
    ]
    larger = replace(Weights(str(path)), path=str(tmp_path / "larger.safetensors"))
    save_weights(larger.path, variables, described | {"image": [224, 224, 1]})
    assert said(replace(tiny, weights=larger))[1:] == [
        f"weights: {larger.path} saw images of 224x224, these are 8x8",
        "weights: random is nothing",
    ]
    parts = tuple(Weights(str(path), sha256, part=part) for part in ("conv", "norm"))
    assert said(replace(tiny, weights=parts)) == [
        f"weights: 2 arrays of 'conv' from {named}",
        f"weights: 4 arrays of 'norm' from {named}",
        "weights: random is head/bias, head/kernel, hidden/bias and 1 more",
    ]
