"""Likelihoods by importance samples, against exact ones."""

from dataclasses import dataclass, field, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.analysis.likelihoods import ImportanceNLL
from opsin.analysis.sampling import untracked
from opsin.data.augment import scale
from opsin.data.examples import Arrays, DataError, Examples
from opsin.losses.likelihoods import Bernoulli, Gaussian
from opsin.train.measurements import Subject
from opsin.train.settings import SettingError
from opsin.train.tasks.classify import Classify
from opsin.train.tasks.views import Views

PIXELS = 6


@dataclass(frozen=True)
class LinearGaussian:
    """z ~ N(0, 1), x = z w + N(0, 1), and a posterior that is too wide: log p(x) is known."""

    num_classes: int | None = None
    as_kind = Views.as_kind
    likelihood: Any = field(default_factory=Bernoulli)

    def log_weights(self, params: Any, mutable: Any, batch: Any, key: Any, samples: int) -> Any:
        x, w = batch["image"].reshape(len(batch["image"]), -1), params
        precision = 1 + jnp.sum(w**2)
        mean, std = x @ w / precision, 1.5 / jnp.sqrt(precision)
        z = mean + std * jax.random.normal(key, (samples, len(x)))
        logpdf = jax.scipy.stats.norm.logpdf
        likelihood = jnp.sum(logpdf(x, z[..., None] * w), axis=-1)
        return likelihood + logpdf(z) - logpdf(z, mean, std)


def exact_nll(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    covariance = np.eye(len(w)) + np.outer(w, w)
    distance = np.einsum("ni,ij,nj->n", x, np.linalg.inv(covariance), x)
    return 0.5 * (distance + np.linalg.slogdet(2 * np.pi * covariance)[1])


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (10, 2, 3, 1), np.uint8)


def test_importance_samples_give_the_likelihood(images):
    w = np.linspace(-1, 1, PIXELS, dtype=np.float32)
    sets = {"test": Examples(Arrays({"image": images}))}
    measurement = ImportanceNLL(samples=4000, at_once=500, batch=4)
    subject = Subject(LinearGaussian(), (w, {}), sets, scale, untracked)
    found = measurement(subject)
    truth = exact_nll(images.reshape(10, -1) / 255, w)
    np.testing.assert_allclose(found["test/nll"], truth.mean(), atol=0.01)
    np.testing.assert_allclose(
        found["test/nll_bits_per_dim"], found["test/nll"] / PIXELS / np.log(2), rtol=1e-6
    )
    assert found["test/nll_draws"] == 4000
    other = replace(measurement, batch=10)(subject)
    np.testing.assert_allclose(other["test/nll"], found["test/nll"], rtol=1e-6)
    first = replace(measurement, images=3, choice="first")
    few = first(subject)
    np.testing.assert_allclose(few["test/nll"], truth[:3].mean(), atol=0.01)
    told = replace(LinearGaussian(), num_classes=10, likelihood=Gaussian(std=1.0))
    given = first(replace(subject, task=told))
    assert given == {
        "test/nll_given_class": few["test/nll"], "test/nll_given_class_draws": 4000
    }  # fmt: skip
    measurement.check(told, sets)
    with pytest.raises(SettingError, match="no multiple of at_once=3"):
        replace(measurement, at_once=3).check(told, sets)
    with pytest.raises(SettingError, match=r"a model with latent variables.*, not Classify"):
        measurement.check(Classify(nn.Dense(3)), sets)  # pyright: ignore[reportArgumentType]
    with pytest.raises(DataError, match="batch=0; use at least 1"):
        replace(measurement, batch=0)(subject)
    with pytest.raises(SettingError, match="no split 'train' to measure: data have test"):
        replace(measurement, split="train").check(told, sets)
