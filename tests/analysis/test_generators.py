"""The quality of samples, against sets with known answers."""

from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from scipy import special

from opsin.analysis.generators import SampleQuality
from opsin.analysis.sampling import untracked
from opsin.config.tree import check
from opsin.data.augment import scale
from opsin.data.examples import Arrays, Examples
from opsin.errors import ConfigError
from opsin.experiments.extractors import LENET
from opsin.metrics.generative import FEWEST, neighbour_metrics
from opsin.train.extractor import Extractor
from opsin.train.measurements import Subject
from opsin.train.settings import SettingError
from opsin.train.tasks.classify import Classify
from opsin.train.tasks.generative import Generative


@dataclass(frozen=True)
class Fake(Generative):
    """Gives the images of its parameters in their order of brightness, whatever the key is."""

    num_classes: int | None = None

    def sample(self, params: Any, mutable: Any, keys: Any, labels: Any) -> Any:
        if labels is not None:
            return params[labels]
        order = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(params)))(keys)
        return params[order]

    def init(self, key: Any, batch: Any) -> Any:
        return {"params": {}}

    def evaluate(self, params: Any, mutable: Any, batch: Any, keys: Any) -> Any:
        return {}

    def preview(self, params: Any, mutable: Any, batch: Any, key: Any) -> Any:
        return {}


class FakeExtractor(Extractor):
    """Pixels are features, and the brightest of the first four is the class."""

    def load(self) -> Any:
        def extract(images: np.ndarray) -> Any:
            pixels = images.reshape(len(images), -1) / (255 if images.dtype == np.uint8 else 1)
            return pixels, special.softmax(100 * pixels[:, :4], axis=-1)

        return extract


EXTRACTOR = FakeExtractor(name="pixels", model=None, path="")  # pyright: ignore


def noise(n: int, seed: int, offset: int = 0) -> Examples:
    image = np.random.default_rng(seed).integers(0, 200, (n, 2, 3, 1), np.uint8) + np.uint8(offset)
    return Examples(Arrays({"image": image, "label": np.zeros(n, np.int32)}))


def test_the_quality_of_samples_stands_beside_its_floor():
    sets = {"train": noise(300, 0), "test": noise(200, 1)}
    measurement = SampleQuality(extractor=EXTRACTOR, samples=200)
    like = np.float32(noise(1000, 2).records.arrays["image"] / 255)  # pyright: ignore
    good = measurement(Subject(Fake(), (like, {}), sets, scale, untracked))
    bad = measurement(Subject(Fake(), (like / 2, {}), sets, scale, untracked))
    assert good["test/fd_pixels"] < 5 * good["test/floor_fd_pixels"]
    assert bad["test/fd_pixels"] > 5 * good["test/fd_pixels"]
    assert bad["test/recall"] < good["test/recall"]
    assert good["test/samples"] == 200
    assert good["test/floor_fd_pixels"] == bad["test/floor_fd_pixels"] > 0
    assert good["test/floor_samples"] == 200
    assert good["test/floor_recall"] > bad["test/recall"]
    assert "test/sample_accuracy" not in good
    for above, diverged in ((bad["test/fd_pixels"] - 0.1, 1), (bad["test/fd_pixels"] + 0.1, 0)):
        counted = replace(measurement, diverged_above=above)(
            Subject(Fake(), (like / 2, {}), sets, scale, untracked)
        )
        assert counted["test/diverged"] == diverged
    with pytest.raises(SettingError, match=r"is for images \[28, 28, 1\], and those of 'test' are"):
        replace(measurement, extractor=LENET).check(Fake(), sets)
    elsewhere = replace(measurement, source=lambda split: noise(200, 5, offset=50))
    assert (
        elsewhere(Subject(Fake(), (like, {}), {}, scale, untracked))["test/fd_pixels"]
        > good["test/fd_pixels"]
    )


def test_a_network_reads_the_class_that_was_asked_for():
    wrong = np.eye(6, dtype=np.float32)[[0, 1, 3, 3]].reshape(4, 2, 3, 1)  # class 2 looks like 3
    sets = {"train": noise(40, 0), "test": noise(40, 1)}
    measurement = SampleQuality(extractor=EXTRACTOR, samples=40)
    found = measurement(Subject(Fake(num_classes=4), (wrong, {}), sets, scale, untracked))
    assert found["test/sample_accuracy"] == 0.75


def test_reference_images_are_drawn_from_all_of_a_set_in_the_order_of_its_classes():
    """A generator that makes one of two classes alone must not look like the whole set."""
    dark, bright = (
        noise(300, 0).records.arrays["image"] // 4,
        noise(300, 1, 50).records.arrays["image"],
    )
    both = Examples(Arrays({"image": np.concatenate([dark, bright])}))
    sets = {"train": both, "test": both}
    collapsed = np.float32(dark / 255)
    measurement = SampleQuality(extractor=EXTRACTOR, samples=300)
    found = measurement(Subject(Fake(), (collapsed, {}), sets, scale, untracked))
    assert found["test/reference_samples"] == 300
    assert found["test/recall"] < 0.6  # about half of the reference is of the other class
    first = replace(measurement, choice="first")
    blind = first(Subject(Fake(), (collapsed, {}), sets, scale, untracked))
    assert blind["test/recall"] > 0.8  # the head of the set is of one class
    again = replace(measurement, seed=1)(Subject(Fake(), (collapsed, {}), sets, scale, untracked))
    assert again["test/floor_fd_pixels"] == found["test/floor_fd_pixels"]  # the same, always


def test_models_that_make_no_images_are_told():
    sets = {"train": noise(40, 0), "test": noise(40, 1)}
    with pytest.raises(SettingError, match="SampleQuality needs a model that makes images, not"):
        SampleQuality(extractor=EXTRACTOR).check(Classify(nn.Dense(3)), sets)  # pyright: ignore


def test_too_few_samples_and_images_are_told_before_training():
    few, enough = (
        Examples(Arrays({"image": np.zeros((n, 28, 28, 1), np.uint8)})) for n in (5, FEWEST)
    )
    measurement = SampleQuality(extractor=LENET, samples=FEWEST)
    measurement.check(Fake(), {"train": enough, "test": enough})
    with pytest.raises(SettingError, match="'train' has 5 images, and at least 6 are needed"):
        measurement.check(Fake(), {"train": few, "test": enough})
    with pytest.raises(ConfigError, match=r"samples takes int from 6 to .*, not 5"):
        check(replace(measurement, samples=FEWEST - 1))
    flat = np.random.default_rng(0).uniform(size=(FEWEST, 3))
    assert neighbour_metrics(flat, flat)["precision"] == 1
    with pytest.raises(ValueError, match="at least 6 samples"):
        neighbour_metrics(flat[1:], flat)
