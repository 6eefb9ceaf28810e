"""A classifier of latents that say the class, and of pixels that hide it."""

from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.analysis.latents import LatentClassifier
from opsin.analysis.sampling import untracked
from opsin.data.augment import scale
from opsin.data.examples import Arrays, DataError, Examples
from opsin.train.measurements import Subject
from opsin.train.settings import SettingError
from opsin.train.tasks.classify import Classify
from opsin.train.tasks.views import Views


@dataclass(frozen=True)
class Knowing:
    """Its latents say the class, which is hidden in one pixel among noise."""

    num_classes: int | None = None
    as_kind = Views.as_kind

    def latents(self, params: Any, mutable: Any, batch: Any) -> Any:
        return jax.nn.one_hot(jnp.round(batch["image"][:, 0, 0, 0] * 255).astype(int), 3)


def hidden(n: int, seed: int) -> Examples:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (n, 3, 3, 1), np.uint8)
    label = np.arange(n, dtype=np.int32) % 3
    image[:, 0, 0, 0] = label
    return Examples(Arrays({"image": image, "label": label}), ("a", "b", "c"))


def test_few_labels_teach_a_classifier_of_good_latents():
    sets = {"train": hidden(60, 0), "test": hidden(90, 1)}
    measurement = LatentClassifier(labels_per_class=(1, 2), repeats=2)
    found = measurement(Subject(Knowing(), (np.zeros(1), {}), sets, scale, untracked))
    assert found["test/latent_accuracy_1"] == found["test/latent_accuracy_2"] == 1.0
    assert 1 / 3 - 0.15 < found["test/pixel_accuracy_2"] < 0.95
    measurement.check(Knowing(), sets)
    with pytest.raises(DataError, match="ask for at most that"):
        replace(measurement, labels_per_class=(21,)).check(Knowing(), sets)
    unlabelled = Examples(Arrays({"image": np.zeros((4, 3, 3, 1), np.uint8)}))
    with pytest.raises(DataError, match='have no "label"'):
        measurement.check(Knowing(), {**sets, "test": unlabelled})
    with pytest.raises(SettingError, match="labels_per_class is empty"):
        replace(measurement, labels_per_class=()).check(Knowing(), sets)
    with pytest.raises(SettingError, match="no split"):
        replace(measurement, split="x").check(Knowing(), sets)
    with pytest.raises(SettingError, match="its latents need not hold it"):
        measurement.check(Knowing(num_classes=3), sets)
    with pytest.raises(SettingError, match=r"needs a model with latents.*, not Classify"):
        measurement.check(Classify(nn.Dense(3)), sets)  # pyright: ignore[reportArgumentType]
