"""What is measured after the last step, against exact likelihoods and sets with known answers."""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis.generators import SampleQuality
from analysis.latents import LatentClassifier
from analysis.likelihoods import ImportanceNLL
from analysis.sampling import untracked
from data.augment import scale
from data.examples import Arrays, DataError, Examples
from experiments.extractors import LENET
from losses.likelihoods import Bernoulli, Gaussian
from train.extractor import Extractor
from train.tasks.task import SettingError

PIXELS = 6


@dataclass(frozen=True)
class LinearGaussian:
    """z ~ N(0, 1), x = z w + N(0, 1), and a posterior that is too wide: log p(x) is known."""

    num_classes: int | None = None
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
    final = ImportanceNLL(samples=4000, at_once=500, batch=4)
    found = final(LinearGaussian(), jnp.asarray(w), {}, sets, scale, untracked)
    truth = exact_nll(images.reshape(10, -1) / 255, w)
    np.testing.assert_allclose(found["test/nll"], truth.mean(), atol=0.01)
    np.testing.assert_allclose(
        found["test/nll_bits_per_dim"], found["test/nll"] / PIXELS / np.log(2), rtol=1e-6
    )
    assert found["test/nll_draws"] == 4000
    other = replace(final, batch=10)(LinearGaussian(), jnp.asarray(w), {}, sets, scale, untracked)
    np.testing.assert_allclose(other["test/nll"], found["test/nll"], rtol=1e-6)
    few = replace(final, images=3)(LinearGaussian(), jnp.asarray(w), {}, sets, scale, untracked)
    np.testing.assert_allclose(few["test/nll"], truth[:3].mean(), atol=0.01)
    told = replace(LinearGaussian(), num_classes=10, likelihood=Gaussian(std=1.0))
    given = replace(final, images=3)(told, jnp.asarray(w), {}, sets, scale, untracked)
    assert given == {
        "test/nll_given_class": few["test/nll"], "test/nll_given_class_draws": 4000
    }  # fmt: skip
    final.check(told, sets)
    for at_once in (3, 0):
        with pytest.raises(SettingError, match=f"no multiple of at_once={at_once}"):
            replace(final, at_once=at_once).check(told, sets)
    with pytest.raises(SettingError, match="no split 'train' to measure: data have test"):
        replace(final, split="train").check(told, sets)


@dataclass(frozen=True)
class Fake:
    """Gives the images of its parameters in their order of brightness, whatever the key is."""

    num_classes: int | None = None

    def sample(self, params: Any, mutable: Any, keys: Any, labels: Any) -> Any:
        if labels is not None:
            return params[labels]
        order = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(params)))(keys)
        return params[order]


class FakeExtractor(Extractor):
    """Pixels are features, and the brightest of the first four is the class."""

    def load(self) -> Any:
        def extract(images: np.ndarray) -> Any:
            pixels = images.reshape(len(images), -1) / (255 if images.dtype == np.uint8 else 1)
            return pixels, jax.nn.softmax(100 * pixels[:, :4])

        return extract


EXTRACTOR = FakeExtractor(name="pixels", model=None, path="")  # pyright: ignore


def noise(n: int, seed: int, offset: int = 0) -> Examples:
    image = np.random.default_rng(seed).integers(0, 200, (n, 2, 3, 1), np.uint8) + np.uint8(offset)
    return Examples(Arrays({"image": image, "label": np.zeros(n, np.int32)}))


def test_the_quality_of_samples_stands_beside_its_floor():
    sets = {"train": noise(300, 0), "test": noise(200, 1)}
    final = SampleQuality(extractor=EXTRACTOR, samples=200)
    like = jnp.asarray(noise(1000, 2).records.arrays["image"] / 255)  # pyright: ignore
    good = final(Fake(), like, {}, sets, scale, untracked)
    bad = final(Fake(), like / 2, {}, sets, scale, untracked)
    assert good["test/fd_pixels"] < 5 * good["test/floor_fd_pixels"]
    assert bad["test/fd_pixels"] > 5 * good["test/fd_pixels"]
    assert bad["test/recall"] < good["test/recall"]
    assert good["test/samples"] == 200
    assert good["test/floor_fd_pixels"] == bad["test/floor_fd_pixels"] > 0
    assert good["test/floor_samples"] == 200
    assert good["test/floor_recall"] > bad["test/recall"]
    assert "test/sample_accuracy" not in good
    for above, diverged in ((bad["test/fd_pixels"] - 0.1, 1), (bad["test/fd_pixels"] + 0.1, 0)):
        counted = replace(final, diverged_above=above)(Fake(), like / 2, {}, sets, scale, untracked)
        assert counted["test/diverged"] == diverged
    with pytest.raises(SettingError, match=r"is for images \[28, 28, 1\], and those of 'test' are"):
        replace(final, extractor=LENET).check(Fake(), sets)
    elsewhere = replace(final, source=lambda split: noise(200, 5, offset=50))
    assert (
        elsewhere(Fake(), like, {}, {}, scale, untracked)["test/fd_pixels"] > good["test/fd_pixels"]
    )


def test_a_network_reads_the_class_that_was_asked_for():
    wrong = np.eye(6, dtype=np.float32)[[0, 1, 3, 3]].reshape(4, 2, 3, 1)  # class 2 looks like 3
    sets = {"train": noise(40, 0), "test": noise(40, 1)}
    final = SampleQuality(extractor=EXTRACTOR, samples=40)
    found = final(Fake(num_classes=4), jnp.asarray(wrong), {}, sets, scale, untracked)
    assert found["test/sample_accuracy"] == 0.75


@dataclass(frozen=True)
class Knowing:
    """Its latents say the class, which is hidden in one pixel among noise."""

    def latents(self, params: Any, mutable: Any, batch: Any) -> Any:
        return jax.nn.one_hot(jnp.round(batch["image"][:, 0, 0, 0] * 255).astype(int), 3)


def hidden(n: int, seed: int) -> Examples:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (n, 5, 5, 1), np.uint8)
    label = np.arange(n, dtype=np.int32) % 3
    image[:, 0, 0, 0] = label
    return Examples(Arrays({"image": image, "label": label}), ("a", "b", "c"))


def test_few_labels_teach_a_classifier_of_good_latents():
    sets = {"train": hidden(60, 0), "test": hidden(90, 1)}
    final = LatentClassifier(labels_per_class=(2, 5), repeats=2)
    found = final(Knowing(), jnp.zeros(1), {}, sets, scale, untracked)
    assert found["test/latent_accuracy_2"] == found["test/latent_accuracy_5"] == 1.0
    assert 1 / 3 - 0.15 < found["test/pixel_accuracy_2"] < 0.95
    final.check(Knowing(), sets)
    with pytest.raises(DataError, match="ask for at most that"):
        replace(final, labels_per_class=(21,)).check(Knowing(), sets)
    with pytest.raises(SettingError, match="no split"):
        replace(final, split="x").check(Knowing(), sets)
    with pytest.raises(SettingError, match="its latents would tell it again"):
        final.check(Fake(num_classes=3), sets)
