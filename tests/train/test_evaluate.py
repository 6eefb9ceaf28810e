"""An evaluation is of a set: the batches and devices that it is cut into do not show."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from opsin.config.tree import override
from opsin.data.color import gaussian_noise
from opsin.data.examples import Examples
from opsin.data.sources import synthetic
from opsin.train.evaluate import evaluate, numbers_of
from opsin.train.experiment import Data, Experiment, Loop
from opsin.train.loop import fit
from opsin.train.sets import open_sets
from tests.train.test_contrast import TASK as CONTRAST
from tests.train.test_pmap import TASKS
from tests.train.test_step import lay_out

GREYS = partial(synthetic, n=40, size=8, channels=1, classes=4)
DRAWS: dict[str, tuple[Any, set[str]]] = {
    "autoencode": (
        replace(TASKS["autoencode"][0], corrupt=partial(gaussian_noise, std=0.3)),
        set(),
    ),
    "variational": (TASKS["variational"][0], set()),
    "diffuse": (TASKS["diffuse"][0], set()),
    "adversarial": (TASKS["adversarial"][0], set()),
    "contrast": (CONTRAST, {"test/uniformity"}),  # which is over the pairs of a batch
}


def numbers(task: Any, batch: int, devices: int, state: Any = None) -> tuple[Any, dict[str, float]]:
    """Of the 40 test images, for the weights of a seed or those of a state."""
    experiment = Experiment(
        task=task,
        data=Data(source=GREYS, batch=16, eval_batch=batch),
        loop=Loop(duration="3 steps", previews=0),
    )
    experiment = override(experiment, {"parallel.data": devices})
    _, program = lay_out(experiment)
    state = state or jax.device_get(program.init())
    images = open_sets(experiment).in_memory["test"]
    return state, numbers_of(evaluate(program, state, images, batch, "test"))


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n == "autoencode" else pytest.mark.proofs) for n in DRAWS],
)
def test_neither_batches_nor_devices_show_in_what_is_drawn(name: str):
    task, of_batches = DRAWS[name]
    state, expected = numbers(task, 16, 1)
    assert set(expected) > of_batches
    _, found = numbers(task, 7, 4, state)  # each device has two images of eight
    assert found.keys() == expected.keys()
    for metric in expected.keys() - of_batches:
        np.testing.assert_allclose(
            found[metric], expected[metric], rtol=2e-5, atol=1e-6, err_msg=metric
        )


def test_pictures_do_without_class_names(tiny: Experiment, tmp_path: Path):
    def nameless(split: str) -> Examples:
        return replace(GREYS(split), class_names=())

    data = replace(tiny.data, source=nameless)
    changes = {"parallel.data": 1, "loop.duration": "0 steps", "loop.previews": 4}
    fit(override(replace(tiny, data=data), changes), tmp_path, config={}, progress=False)
    assert (tmp_path / "confusion_test.png").exists()
    assert (tmp_path / "previews" / "test_predictions.png").exists()
