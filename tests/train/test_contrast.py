"""Contrastive learning as a task: its views, its loss over devices, and what it tells of."""

from dataclasses import replace
from fractions import Fraction
from functools import partial
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.config.tree import override
from opsin.data.augment import apply
from opsin.data.color import gaussian_noise
from opsin.data.geometry import random_flip
from opsin.losses.contrastive import nt_xent_loss, supervised_contrastive_loss
from opsin.metrics.state import compute_all
from opsin.models.layers import batch_norm
from opsin.models.representation.simclr import ProjectionHead, SimCLR
from opsin.ops.keys import row_keys
from opsin.train.experiment import Experiment, Loop
from opsin.train.methods import sgd
from opsin.train.optim import Optimizer
from opsin.train.schedules import constant
from opsin.train.settings import SettingError
from opsin.train.tasks.contrast import Contrast
from tests.train.conftest import TINY_DATA
from tests.train.drawn import drawn_variables
from tests.train.test_step import assert_same_run, lay_out, run


class Backbone(nn.Module):
    """A convolution and batch norm."""

    @nn.compact
    def __call__(self, x, *, train=False):
        # No bias before a norm: its gradient is zero but for rounding.
        x = nn.Conv(8, (3, 3), strides=2, use_bias=False, name="conv")(x)
        norm = batch_norm(train=train, name="norm")
        return {2: nn.relu(norm(x))}


HEAD = ProjectionHead(layers=2, output=6, norm=batch_norm)
TASK = Contrast(model=SimCLR(Backbone(), HEAD), views=(partial(gaussian_noise, std=0.1),))


def batch_of(images=6):
    image = np.random.default_rng(5).random((images, 8, 8, 1), np.float32)
    return {
        "image": image,
        "label": np.arange(images, dtype=np.int32) // 2,
        "valid": np.ones(images, bool),
    }


@pytest.fixture(scope="module")
def state():
    """Parameters and mutable variables."""
    return drawn_variables(TASK, batch_of())


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.proofs)])
def test_the_loss_is_that_of_views_from_keys_of_their_own(state, count):
    task, batch, key = replace(TASK, count=count), batch_of(), jax.random.key(3)

    @jax.jit
    def by_hand(params, mutable):
        drawing = jax.random.split(key)[0]
        views = [
            apply(jax.random.fold_in(drawing, v), batch, task.views)["image"] for v in range(count)
        ]
        whole, stats = task.model.apply(
            {"params": params, **mutable},
            jnp.concatenate(views),
            train=True,
            mutable=["batch_stats"],
        )
        expected = nt_xent_loss(whole.reshape(count, 6, -1), temperature=0.5).mean()
        return views, expected, stats, task.loss(params, mutable, batch, key, 0)

    views, expected, stats, (value, aux) = jax.device_get(by_hand(*state))
    assert all((views[0] != other).any() for other in views[1:])
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(compute_all(aux.metrics)["loss"], value, rtol=1e-6)
    # One batch norm sees all views.
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), aux.mutable, stats)


def test_a_loss_of_classes_gets_the_labels(state):
    task = replace(
        TASK,
        views=(),
        labelled=True,
        loss_function=partial(supervised_contrastive_loss, temperature=1),
    )
    batch = batch_of()

    @jax.jit
    def both(params, mutable):
        value, _ = task.loss(params, mutable, batch, jax.random.key(0), 0)
        twice = jnp.concatenate([batch["image"]] * 2)
        z, _ = task.model.apply(
            {"params": params, **mutable}, twice, train=True, mutable=["batch_stats"]
        )
        views = z.reshape(2, 6, -1)
        return value, supervised_contrastive_loss(views, batch["label"], temperature=1).mean()

    value, expected = both(*state)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    bare = {"image": batch["image"]}
    with pytest.raises(SettingError, match="the task needs a label for each image"):
        task.init(jax.random.key(0), bare)


def made() -> Experiment:
    """Views without chance: a device of pmap draws from a key of its own."""
    return Experiment(
        task=replace(TASK, views=()),
        data=TINY_DATA,
        optimizer=Optimizer(method=sgd, learning_rate=0.05, schedule=constant),
        loop=Loop(duration="3 steps", ema_decay=0.9, previews=0),
    )


@pytest.mark.parametrize("megabytes", [0, 1])
def test_no_batch_holds_an_image_twice(megabytes):
    experiment = override(made(), {"parallel.data": 1, "data.resident_megabytes": megabytes})
    feed, _ = lay_out(experiment)
    assert (feed.spec.examples, feed.spec.batch_size) == (40, 16)
    for _ in range(10):
        images = feed.batch_on_host()["image"]
        assert len(np.unique(images.reshape(16, -1), axis=0)) == 16


@pytest.mark.proofs
def test_negatives_are_global_on_every_layout(monkeypatch: pytest.MonkeyPatch):
    one = run(override(made(), {"parallel.data": 1}))
    assert_same_run(run(override(made(), {"parallel.data": 8})), one)
    mapped = override(made(), {"parallel.data": 8, "loop.strategy": "pmap", "loop.replicas": 8})
    assert_same_run(run(mapped), one)
    # A loss that only knows the images of its own device is another.
    alone = SimpleNamespace(size=lambda: 1, index=lambda: 0, gather=lambda x, axis=0: x)
    monkeypatch.setattr("opsin.losses.contrastive.mapped", alone)
    _, history = run(mapped)
    assert abs(history["loss"][0] - one[1]["loss"][0]) > 0.5


def test_a_few_images_are_told_apart():
    changes = {
        "parallel.data": 1,
        "task.views": (random_flip,),
        "task.loss_function": partial(nt_xent_loss, temperature=0.1),
        "data.source": partial(TINY_DATA.source.func, n=8, size=8, channels=1, classes=4),
        "data.batch": 8,
        "optimizer.learning_rate": 0.2,
        "loop.duration": "20 steps",
    }
    _, history = run(override(made(), changes), steps=20)
    assert history["loss"][0] > 1.0
    assert np.mean(history["loss"][-5:]) < 0.5 * history["loss"][0]


def test_evaluation_leaves_padding_out(state):
    batch, task = batch_of(), replace(TASK, views=())
    padded = {name: np.concatenate([x, x[:2]]) for name, x in batch.items()}
    padded["valid"] = np.arange(8) < 6

    @jax.jit
    def evaluated(*state):
        return [
            task.evaluate(*state, x, row_keys(jax.random.key(0), count))
            for x, count in ((batch, 6), (padded, 8))
        ]

    few, more = map(compute_all, evaluated(*state))
    assert few.keys() == {"alignment", "uniformity", "embedding_rank", "embedding_std"}
    assert few["alignment"] == 0  # the views are the same
    for name, value in few.items():
        np.testing.assert_allclose(more[name], value, rtol=1e-3, atol=1e-6)


def test_pictures_are_of_the_images_and_their_views(state):
    panels = jax.jit(TASK.preview)(*state, batch_of(), jax.random.key(0))["views"]
    assert panels.rows == ("image", "view 1", "view 2")
    np.testing.assert_array_equal(panels.images[0], batch_of()["image"])
    assert (panels.images[1] != panels.images[2]).any()


def test_collapse_is_told():
    fine = {"test/embedding_std": 0.9, "test/embedding_rank": 30.0, "test/alignment": 0.1}
    assert list(TASK.diagnose(fine)) == []
    (point,) = TASK.diagnose({"test/embedding_std": 0.01})
    assert "test/embedding_std is 0.010" in point
    assert "one point (collapse)" in point
    (line,) = TASK.diagnose({"test_ema/embedding_rank": 1.3})
    assert "nearly on a line" in line
    (broken,) = TASK.diagnose({"test/embedding_std": float("nan")})
    assert "embeddings of test are not finite" in broken


def test_what_cannot_be_is_told(state):
    with pytest.raises(SettingError, match=r"task\.count=1 views of an image"):
        replace(TASK, count=1).check((), dict)
    signed = {"train": {"image": batch_of()["image"] - 0.5}}
    with pytest.raises(SettingError, match=r"data\.mean=\(0\.0,\) data\.std=\(1\.0,\)"):
        TASK.check((), lambda: signed)
    TASK.check_loop(accumulate=1, pmap=True, steps=1, epoch=Fraction(1))
    with pytest.raises(SettingError, match=r"loop\.accumulate=2 would leave the negatives"):
        TASK.check_loop(accumulate=2, pmap=False, steps=1, epoch=Fraction(1))
    with pytest.raises(SettingError, match=r"data\.batch is 1\.6 times the training set"):
        TASK.check_loop(accumulate=1, pmap=False, steps=1, epoch=Fraction(40, 64))
    with pytest.raises(SettingError, match=r"set data\.batch=2 or more"):
        jax.eval_shape(TASK.loss, *state, batch_of(1), jax.random.key(0), 0)
    with pytest.raises(SettingError, match="Maps has no layer called head that takes one vector"):
        jax.eval_shape(replace(TASK, model=Maps()).init, jax.random.key(0), batch_of())


class Maps(nn.Module):
    """A head that takes a map."""

    @nn.compact
    def __call__(self, x, *, train=False):
        return nn.Conv(3, (1, 1), name="head")(x)


def test_an_image_out_of_range_that_no_check_saw_has_a_loss_that_is_no_number(state):
    loss, batch = jax.jit(TASK.loss), batch_of()
    for pixel, finite in ((0.5, True), (-0.5, False)):
        batch["image"][-1, 0, 0, 0] = pixel
        value, _ = loss(*state, batch, jax.random.key(0), 0)
        assert np.isfinite(value) == finite
