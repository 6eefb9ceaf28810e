"""Probes of frozen features: against scikit-learn, against features with known answers."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.preprocessing import StandardScaler

from opsin.analysis import probes
from opsin.analysis.features import extract_features, untrained_variables, with_statistics
from opsin.analysis.linear_probe import linear_probe, sgd_probe
from opsin.analysis.probes import Probe
from opsin.analysis.sampling import untracked
from opsin.data.augment import normalize, scale
from opsin.data.examples import Arrays, DataError, Examples
from opsin.data.selection import select
from opsin.models.classification.linear import Linear
from opsin.models.representation.simclr import SimCLR
from opsin.train.heads import around_head
from opsin.train.measurements import Subject
from opsin.train.settings import SettingError


@dataclass(frozen=True)
class Having:
    model: Any

    def feature_model(self) -> Any:
        return self.model


class Normed(nn.Module):
    """Flat pixels behind a batch norm, with a head."""

    forgetful: bool = False

    @nn.compact
    def __call__(self, x, *, train=False):
        frozen = not train and not self.forgetful
        x = nn.BatchNorm(use_running_average=frozen, name="norm")(x.reshape(len(x), -1))
        return nn.Dense(3, name="head")(x)


def images(count: int, seed: int, classes: int = 3) -> Examples:
    """Grey images, brighter by class, that a linear classifier tells apart."""
    rng = np.random.default_rng(seed)
    label = np.arange(count, dtype=np.int32) % classes
    image = 60 * label[:, None, None, None] + rng.integers(0, 40, (count, 2, 2, 1))
    return Examples(Arrays({"image": image.astype(np.uint8), "label": label}))


SETS = {"train": images(60, 0), "test": images(31, 1)}


def variables_of(model: nn.Module) -> tuple[Any, Any]:
    variables = dict(jax.jit(model.init)(jax.random.key(0), np.ones((1, 2, 2, 1), np.float32)))
    return variables.pop("params"), variables


def subject_of(model: nn.Module, variables: tuple[Any, Any], prepare: Any = scale) -> Subject:
    return Subject(Having(model), variables, SETS, prepare, untracked)


def test_features_are_what_goes_into_the_head_and_nothing_changes():
    model = Normed()
    params, mutable = variables_of(model)
    statistics = {"mean": np.arange(4, dtype=np.float32), "var": np.full(4, 4.0, np.float32)}
    mutable = {"batch_stats": {"norm": statistics}}
    arrays = {name: x.records.arrays for name, x in SETS.items()}

    def prepare(batch):
        return normalize(scale(batch), 0.5, 0.25)

    found = extract_features(subject_of(model, (params, mutable), prepare), arrays)
    for name, x in arrays.items():
        seen = (x["image"].reshape(len(x["image"]), -1) / 255 - 0.5) / 0.25
        features = (seen - np.arange(4)) / np.sqrt(4 + 1e-5)
        np.testing.assert_allclose(found[name]["features"], features, rtol=1e-4, atol=1e-5)
        head = features @ np.asarray(params["head"]["kernel"]) + np.asarray(params["head"]["bias"])
        np.testing.assert_allclose(found[name]["head"], head, rtol=1e-4, atol=1e-5)


def test_statistics_that_change_are_told():
    model = Normed(forgetful=True)
    params, mutable = variables_of(model)
    arrays = {"test": SETS["test"].records.arrays}
    with pytest.raises(SettingError, match="Normed changes its statistics while"):
        extract_features(subject_of(model, (params, mutable)), arrays)


def blobs(count: int, seed: int, *, noise: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three classes around corners of a triangle that overlap, and dimensions of noise alone."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, count)
    centres = 1.5 * np.array([[1.0, 0], [-0.5, 0.87], [-0.5, -0.87]])
    points = centres[label] + rng.normal(size=(count, 2))
    return np.hstack([points, rng.normal(size=(count, noise))]).astype(np.float32), label


def test_the_linear_probe_is_the_regression_that_the_part_set_aside_chose():
    (x, y), (held_out, truth) = blobs(400, 0, noise=150), blobs(500, 1, noise=150)
    aside = StratifiedShuffleSplit(1, test_size=0.25, random_state=3)
    penalties = (1e-5, 1e-1, 1.0, 1e3)
    accuracy, chosen = linear_probe(x, y, held_out, truth, penalties=penalties, splits=aside)

    ((inside, outside),) = aside.split(x, y)
    scores = {}
    for l2 in penalties:
        scaler = StandardScaler().fit(x[inside])
        model = LogisticRegression(C=1 / (l2 * len(x)), max_iter=500)
        model.fit(scaler.transform(x[inside]), y[inside])
        scores[l2] = model.score(scaler.transform(x[outside]), y[outside])
    assert scores[chosen] == max(scores.values())
    assert scores[1e-5] < scores[chosen] > scores[1e3]  # noise learned by heart, or nothing
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(C=1 / (chosen * len(x)), max_iter=500).fit(scaler.transform(x), y)
    assert accuracy == model.score(scaler.transform(held_out), truth)
    assert accuracy > 0.6


def test_sgd_comes_to_the_answers_of_the_exact_probe():
    (x, y), (held_out, truth) = blobs(600, 0), blobs(400, 1)
    exact, _ = linear_probe(x, y, held_out, truth, penalties=(1e-6,), splits=None)
    found = sgd_probe(x, y, held_out, truth, epochs=40, seed=0)
    assert abs(found - exact) < 0.015
    # Units of the features are nothing to either.
    assert sgd_probe(100 * x + 7, y, 100 * held_out + 7, truth, epochs=40, seed=0) == pytest.approx(
        found, abs=0.01
    )
    assert sgd_probe(x, y, held_out, truth, epochs=1, seed=0) == sgd_probe(
        x, y, held_out, truth, epochs=1, seed=0
    )


def test_features_that_are_not_finite_are_told():
    model = Normed()
    params, _ = variables_of(model)
    statistics = {"mean": np.full(4, np.nan, np.float32), "var": np.ones(4, np.float32)}
    broken = {"batch_stats": {"norm": statistics}}
    arrays = {"test": SETS["test"].records.arrays}
    with pytest.raises(SettingError, match="features of 'test' are not finite"):
        extract_features(subject_of(model, (params, broken)), arrays)


def test_the_images_that_teach_are_drawn_from_all_classes():
    by_class = np.argsort(SETS["train"].records.arrays["label"], kind="stable")
    ordered = {**SETS, "train": select(SETS["train"], by_class)}
    model = Linear(num_classes=3)
    params, mutable = variables_of(model)
    probe = Probe(images=30, neighbours=3, penalties=(1e-3,), validation=0.2)
    probe.check(Having(model), ordered)
    found = probe(Subject(Having(model), (params, mutable), ordered, scale, untracked))
    assert found["test/linear_accuracy"] > 0.9


def test_numbers_of_both_layers_have_names_of_their_own():
    model = Linear(num_classes=3)
    params, mutable = variables_of(model)
    probe = Probe(
        layers=("features", "head"), neighbours=5, sgd_epochs=20, validation=0.2, penalties=(1e-3,)
    )
    probe.check(Having(model), SETS)
    found = probe(Subject(Having(model), (params, mutable), SETS, scale, untracked))
    names = [
        "linear_accuracy",
        "linear_l2",
        "sgd_accuracy",
        "knn_accuracy",
        "feature_rank",
        "feature_std",
    ]
    assert found.keys() == {f"test/{name}{end}" for name in names for end in ("", "_head")}
    for name in ("linear_accuracy", "knn_accuracy", "linear_accuracy_head"):
        assert found[f"test/{name}"] > 0.6
    fewer = replace(probe, layers=("features",), sgd_epochs=0, neighbours=0)
    bare = fewer(Subject(Having(model), (params, mutable), SETS, scale, untracked))
    assert bare["test/linear_accuracy"] == found["test/linear_accuracy"]
    assert "test/knn_accuracy" not in bare


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": ("middle",)}, r"layers=\('middle',\) are not among 'features', 'head'"),
        ({"layers": ()}, "are not among"),
        ({"penalties": ()}, "penalties is empty"),
        ({"split": "val"}, "there is no split 'val'"),
        ({"images": 6}, "6 images of 3 classes are too few to set 10% of them aside"),
        ({"neighbours": 100}, "neighbours=100 of 60 images: set fewer"),
    ],
)
def test_a_probe_that_cannot_be_is_told_before_training(changes, message):
    probe = replace(Probe(neighbours=5), **changes)
    with pytest.raises(SettingError, match=message):
        probe.check(Having(Linear(3)), SETS)


def test_networks_and_data_without_what_is_probed_are_told():
    probe = Probe(neighbours=5)
    with pytest.raises(SettingError, match="Bare has no layer called head"):
        probe.check(Having(Bare()), SETS)
    with pytest.raises(SettingError, match="SimCLR gives no features: SimCLR needs features by"):
        probe.check(Having(SimCLR(Maps())), SETS)
    with pytest.raises(SettingError, match=r"Drawing gives no features: .*take a classifier"):
        probe.check(Having(Drawing()), SETS)
    with pytest.raises(SettingError, match=r"Having has no task\.model"):
        probe.check(Having(None), SETS)
    unlabelled = {"train": Examples(Arrays({"image": np.zeros((4, 2, 2, 1), np.uint8)}))}
    with pytest.raises(DataError, match='have no "label"'):
        probe.check(Having(Linear(3)), {**SETS, **unlabelled})


class Maps(nn.Module):
    """No pooled features."""

    @nn.compact
    def __call__(self, x, *, train=False):
        return nn.Conv(3, (1, 1))(x)


class Drawing(nn.Module):
    """Draws, as a VAE does."""

    @nn.compact
    def __call__(self, x, *, train=False):
        return nn.Dense(2, name="head")(x + jax.random.normal(self.make_rng("latent"), x.shape))


class Bare(nn.Module):
    """No head."""

    @nn.compact
    def __call__(self, x, *, train=False):
        return x.mean(axis=(1, 2))


def test_the_head_of_a_part_is_not_that_of_the_network():
    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x, *, train=False):
            x = Linear(5, name="inner")(x)
            return nn.Dense(2, name="head")(x)

    model = Outer()
    ones = np.ones((4, 2, 2, 1), np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), ones)
    features, output = jax.eval_shape(partial(around_head, model), variables, ones)
    assert features.shape == (4, 5)
    assert output.shape == (4, 2)


def test_norms_take_their_statistics_from_batches_of_the_training_set(monkeypatch):
    """Images that are all alike: every batch has the same mean, and a variance of 0."""
    monkeypatch.setattr("opsin.analysis.features.STATISTICS_BATCH", 8)
    model = Normed()
    params, mutable = variables_of(model)
    alike = Examples(Arrays({"image": np.full((5, 2, 2, 1), 51, np.uint8)}))
    options = {"batches": 3, "seed": 0}
    seen = with_statistics(subject_of(model, (params, mutable)), alike, **options)
    same, found = seen.variables
    assert same is params
    kept = 0.99**3  # of the mean 0 and the variance 1 that a norm begins with
    statistics = found["batch_stats"]["norm"]
    np.testing.assert_allclose(statistics["mean"], np.full(4, 0.2 * (1 - kept)), rtol=1e-5)
    np.testing.assert_allclose(statistics["var"], np.full(4, kept), rtol=1e-5)


def test_the_untrained_network_stands_beside_the_trained_one(monkeypatch):
    monkeypatch.setattr("opsin.analysis.features.STATISTICS_BATCH", 8)  # of 60 images
    assert probes.UNTRAINED_BATCHES == 100
    monkeypatch.setattr(probes, "UNTRAINED_BATCHES", 9)
    task, options = Having(Normed()), {"neighbours": 5, "penalties": (1e-3,), "validation": 0.2}
    params, mutable = variables_of(task.model)
    probe = Probe(untrained=True, **options)
    subject = Subject(task, (params, mutable), SETS, scale, untracked)
    both = probe(subject)
    own = replace(probe, untrained=False)(subject)
    random = untrained_variables(task, (2, 2, 1), scale, 0)
    probe = replace(probe, untrained=False, statistics_batches=9)
    beside = probe(replace(subject, variables=random))
    renamed = {name.replace("/", "/untrained_"): value for name, value in beside.items()}
    assert both == own | renamed
    assert beside["test/feature_std"] != own["test/feature_std"]  # whose norms have no statistics
