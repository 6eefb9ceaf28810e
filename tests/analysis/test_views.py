"""Means over views against NumPy, and Jensen's inequality."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from opsin.analysis.classifiers import mean_probabilities
from opsin.analysis.sampling import untracked
from opsin.analysis.views import (
    AveragedViews,
    Recoded,
    mirror_views,
    shift_views,
    ten_crops,
)
from opsin.data.augment import scale
from opsin.data.examples import Arrays, DataError, Examples
from opsin.data.images import recoded
from opsin.train.measurements import Subject
from opsin.train.settings import SettingError
from opsin.train.tasks.classify import Classify
from opsin.train.tasks.segment import Segment
from opsin.train.tasks.task import Task
from opsin.train.tasks.views import Views
from tests.drawn import normal

IMAGES = normal(2, 6, 5, 3)


def test_mirror_views():
    np.testing.assert_array_equal(mirror_views(IMAGES), [IMAGES, IMAGES[:, :, ::-1]])


def test_shift_views_reflect_what_they_do_not_have():
    views = np.asarray(shift_views(jnp.asarray(IMAGES), by=2))
    padded = np.pad(IMAGES, ((0, 0), (2, 2), (2, 2), (0, 0)), "reflect")
    np.testing.assert_array_equal(views[0], IMAGES)
    np.testing.assert_array_equal(views[2], padded[:, :6, :5])
    np.testing.assert_array_equal(views[4], padded[:, 4:, 4:])
    np.testing.assert_array_equal(views[1::2], views[::2, :, :, ::-1])
    upright = shift_views(jnp.asarray(IMAGES), by=2, mirrored=False)
    np.testing.assert_array_equal(upright, views[::2])


def test_ten_crops():
    crops = np.asarray(ten_crops(jnp.asarray(IMAGES), size=3))
    places = [(0, 0), (0, 2), (3, 0), (3, 2), (1, 1)]
    expected = [IMAGES[:, y : y + 3, x : x + 3] for y, x in places]
    np.testing.assert_array_equal(crops[::2], expected)
    np.testing.assert_array_equal(crops[1::2], np.asarray(expected)[:, :, :, ::-1])
    with pytest.raises(ValueError, match="size=6 does not fit images of 6x5"):
        ten_crops(jnp.asarray(IMAGES), size=6)


def test_mean_probabilities_stand_far_from_overflow():
    logits = 100 * normal(4, 3, 5)
    expected = special.logsumexp(special.log_softmax(logits.astype(float), -1), 0) - np.log(4)
    np.testing.assert_allclose(mean_probabilities(logits), expected, rtol=1e-5, atol=1e-4)


@pytest.fixture(scope="module")
def sets():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (30, 6, 5, 3), np.uint8)
    return {"test": Examples(Arrays({"image": image, "label": np.arange(30, dtype=np.int32) % 4}))}


@pytest.fixture(scope="module")
def subject(sets):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, *, train=False):
            return nn.Dense(4, name="head")(x.reshape(len(x), -1))

    params = {"head": {"kernel": normal(90, 4), "bias": normal(4)}}
    return Subject(Classify(Model()), (params, {}), sets, scale, untracked)


def logits_of(subject, images):
    head = subject.variables[0]["head"]
    return images.reshape(len(images), -1) / 255 @ head["kernel"] + head["bias"]


def test_the_mean_over_views_equals_numpys(subject, sets):
    found = AveragedViews(batch=7)(subject)
    arrays = sets["test"].records.arrays
    image, truth = arrays["image"].astype(np.float64), arrays["label"]
    views = [logits_of(subject, x) for x in (image, image[:, :, ::-1])]
    chances = np.mean(special.softmax(views, -1), axis=0)
    rows = np.arange(30)
    assert found.keys() == {
        f"test/{x}" for x in ("accuracy_tta", "nll_tta", "ece_tta", "nll_one_view")
    }
    assert found["test/accuracy_tta"] == pytest.approx(np.mean(chances.argmax(1) == truth))
    assert found["test/nll_tta"] == pytest.approx(-np.log(chances[rows, truth]).mean(), rel=1e-4)
    single = -special.log_softmax(views, -1)[:, rows, truth].mean()
    assert found["test/nll_one_view"] == pytest.approx(single, rel=1e-4)
    assert found["test/nll_tta"] < found["test/nll_one_view"]  # Jensen


def test_a_classifier_of_ones_own_is_one_too_and_a_segmenter_is_none(subject, sets):
    class Own(Task):
        def init(self, *arguments: Any) -> Any:
            raise NotImplementedError

        evaluate = preview = init

        def logits(self, params, mutable, images):
            return subject.task.logits(params, mutable, images)

    own = Own()
    AveragedViews(batch=7).check(own, sets)
    assert AveragedViews(batch=7)(replace(subject, task=own)) == AveragedViews(batch=7)(subject)
    assert own.feature_model() is None
    assert own.input_range == (0.0, 1.0)
    assert subject.task.feature_model() is subject.task.model
    with pytest.raises(SettingError, match="needs a classifier, not Segment"):
        Recoded().check(Segment(subject.task.model), sets)


def test_one_view_alone_is_the_evaluation(subject):
    alone = AveragedViews(views=partial(ten_crops, size=5), batch=30)
    with pytest.raises(SettingError, match="does not fit images of 6x5"):
        replace(alone, views=partial(ten_crops, size=9)).check(subject.task, subject.sets)
    found = AveragedViews(views=single_view, batch=30)(subject)
    assert found["test/nll_tta"] == pytest.approx(found["test/nll_one_view"], rel=1e-6)


def single_view(images):
    return images[None]


def test_recoded_images_are_pillows_and_flat_ones_keep_their_value(subject, sets):
    flat = np.full((16, 16, 3), 100, np.uint8)
    np.testing.assert_array_equal(recoded(flat, quality=75), flat)
    grey = np.full((8, 8, 1), 7, np.uint8)
    assert recoded(grey, quality=75).shape == (8, 8, 1)
    found = Recoded(qualities=(1, 95), batch=30)(subject)
    arrays = sets["test"].records.arrays
    for quality in (1, 95):
        images = np.stack([recoded(x, quality=quality) for x in arrays["image"]]).astype(float)
        expected = np.mean(logits_of(subject, images).argmax(1) == arrays["label"])
        assert found[f"test/accuracy_jpeg{quality}"] == pytest.approx(expected)
    errors = [
        np.abs(recoded(x, quality=q).astype(int) - x).mean()
        for q in (1, 95)
        for x in arrays["image"][:5]
    ]
    assert max(errors[5:]) < min(errors[:5])


def test_bad_settings_are_named(subject, sets):
    other = SimpleNamespace(as_kind=partial(Views.as_kind, object()))
    for measurement in (AveragedViews(), Recoded()):
        with pytest.raises(SettingError, match="needs a classifier, not SimpleNamespace"):
            measurement.check(other, sets)
        with pytest.raises(SettingError, match="no split 'x'"):
            replace(measurement, split="x").check(subject.task, sets)
        unlabelled = {"test": Examples(Arrays({"image": np.zeros((4, 8, 8, 3), np.uint8)}))}
        with pytest.raises(DataError, match='have no "label"'):
            measurement.check(subject.task, unlabelled)
    with pytest.raises(SettingError, match="from 1 to 95"):
        Recoded(qualities=(96,)).check(subject.task, sets)
    two = {"image": np.zeros((4, 8, 8, 2), np.uint8), "label": np.zeros(4, np.int32)}
    with pytest.raises(SettingError, match="images have 2"):
        Recoded().check(subject.task, {"test": Examples(Arrays(two))})
