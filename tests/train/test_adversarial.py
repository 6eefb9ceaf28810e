"""Two players in one step: whose parameters move, on which images, and in which order."""

from dataclasses import replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data.examples import Arrays, Examples
from experiments.config import override
from losses.adversarial import HINGE, RELATIVISTIC, WASSERSTEIN, r1_penalty
from metrics.state import compute_all
from models.layers import batch_norm
from tests.train.conftest import assert_trees_close
from tests.train.test_step import lay_out
from train.experiment import Data, Experiment, Loop
from train.loop import fit
from train.optim import Optimizer, constant, sgd
from train.sampling import sample_images
from train.state import stream
from train.tasks.adversarial import Adversarial
from train.tasks.task import Generative, SettingError

IMAGE = (4, 4, 1)


class TinyGenerator(nn.Module):
    """One dense layer, with batch norm."""

    image: tuple[int, int, int] = IMAGE
    latent: int = 3
    num_classes: int | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, z: Any, *, labels: Any = None, train: bool = False) -> Any:
        if labels is not None:
            z = jnp.concatenate([z, jax.nn.one_hot(labels, self.num_classes)], axis=-1)
        z = nn.Dense(8, name="hidden")(z)
        z = nn.relu(batch_norm(train=train, axis_name=self.axis_name, name="norm")(z))
        return nn.Dense(16, name="head")(z).reshape(-1, *self.image)


class TinyDiscriminator(nn.Module):
    """Two dense layers, the features between them sown."""

    num_classes: int | None = None

    @nn.compact
    def __call__(self, x: Any, *, labels: Any = None, train: bool = False) -> Any:
        x = nn.leaky_relu(nn.Dense(8, name="hidden")(x.reshape(len(x), -1)))
        if labels is not None:
            x = jnp.concatenate([x, jax.nn.one_hot(labels, self.num_classes)], axis=-1)
        self.sow("intermediates", "features", x)
        return nn.Dense(1, name="head")(x)[:, 0]


def bright(split: str) -> Examples:
    """Images about a brightness of 0.8."""
    rng = np.random.default_rng([3, split == "test"])
    image = np.round(255 * np.clip(rng.normal(0.8, 0.05, (48, *IMAGE)), 0, 1)).astype(np.uint8)
    label = np.arange(48, dtype=np.int32) % 2
    return Examples(Arrays({"image": image, "label": label}), ("even", "odd"))


def made(**task: Any) -> Experiment:
    plain = Optimizer(method=partial(sgd, momentum=0.0), learning_rate=0.1, schedule=constant)
    options = {"generator": TinyGenerator(), "discriminator": TinyDiscriminator(), **task}
    return Experiment(
        task=Adversarial(optimizer=replace(plain, learning_rate=0.05), **options),
        data=Data(source=bright, batch=16, eval_batch=16),
        optimizer=plain,
        loop=Loop(duration="6 steps", evaluate_every="6 steps", checkpoint_every="3 steps"),
    )


@pytest.mark.parametrize("turns", [1, 2])
def test_a_step_is_that_of_the_discriminator_and_then_that_of_the_generator(turns):
    """Against updates written out: gradients of one player alone, on its part of the batch."""
    experiment = override(made(turns=turns), {"parallel.data": 1, "task.losses": RELATIVISTIC})
    feed, program = lay_out(experiment)
    state = jax.device_get(program.init())
    store = feed.store(program.mesh)
    items = feed.take(1, 1, program.mesh)
    batch = feed.fetch(store, jax.tree.map(lambda x: x[0], items))
    batch = {"image": batch["image"] / 255, "label": batch["label"]}
    task: Any = experiment.task

    params, mutable = state.params, state.mutable
    key = stream(state.key, 0, "discriminator")
    for index in range(turns):
        part = jax.tree.map(lambda x, i=index: x[i::turns], batch)
        drawn = key if turns == 1 else jax.random.fold_in(key, index)
        grads, aux = jax.grad(task.discriminator_loss, has_aux=True)(
            params, mutable, part, drawn, 0
        )
        moved = optax.apply_updates(
            params["discriminator"], jax.tree.map(lambda g: -0.05 * g, grads["discriminator"])
        )
        params, mutable = {**params, "discriminator": moved}, aux.mutable
    last = jax.tree.map(lambda x: x[turns - 1 :: turns], batch)
    key = stream(state.key, 0, "generator")
    grads, aux = jax.grad(task.generator_loss, has_aux=True)(params, mutable, last, key, 0)
    moved = optax.apply_updates(
        params["generator"], jax.tree.map(lambda g: -0.1 * g, grads["generator"])
    )
    params, mutable = {**params, "generator": moved}, aux.mutable

    dispatch = program.compile(store, feed.abstract_items(1, program.mesh))
    after, metrics = dispatch(program.init(), store, items, np.int32(1))
    assert_trees_close(jax.device_get(after.params), params, rtol=1e-4, atol=1e-6)
    assert_trees_close(jax.device_get(after.mutable), mutable, rtol=1e-4, atol=1e-6)
    rates = {name: float(m.total[0] / m.count[0]) for name, m in metrics.items() if "rate" in name}
    assert rates == {
        "learning_rate_discriminator": pytest.approx(0.05),
        "learning_rate_generator": pytest.approx(0.1),
    }


def run_players(experiment: Experiment) -> Any:
    """The state after four steps."""
    feed, program = lay_out(experiment)
    length = experiment.loop.steps_per_dispatch
    store = feed.store(program.mesh)
    dispatch = program.compile(store, feed.abstract_items(length, program.mesh))
    state, step = program.init(), 0
    while step < 4:
        count = min(length, 4 - step)
        state, _ = dispatch(state, store, feed.take(count, length, program.mesh), np.int32(count))
        step += count
    return jax.device_get(state)


@pytest.mark.parametrize(
    "layout",
    [
        {"parallel.data": 8},
        {"parallel.data": 2, "parallel.fsdp": 4, "parallel.min_shard_size": 8},
        {"parallel.data": 1, "loop.steps_per_dispatch": 2},
    ],
    ids=["data-8", "data-2-fsdp-4", "two-a-dispatch"],
)
def test_every_layout_plays_the_same_game(layout):
    experiment = made(turns=2, losses=HINGE, penalty=r1_penalty, penalty_weight=0.5)
    experiment = override(experiment, {"loop.ema_decay": 0.9})
    one = run_players(override(experiment, {"parallel.data": 1}))
    other = run_players(override(experiment, layout))
    for name in ("params", "mutable", "ema"):
        assert_trees_close(getattr(other, name), getattr(one, name), rtol=1e-4, atol=1e-6)


def test_a_stopped_game_goes_on_as_if_it_had_not(tmp_path):
    experiment = override(made(turns=2), {"parallel.data": 1, "loop.previews": 0})
    straight = fit(experiment, tmp_path / "a", config={}, progress=False)
    calls = iter(range(100))
    stopped = fit(
        experiment, tmp_path / "b", config={}, progress=False, stop=lambda: next(calls) == 2
    )
    assert (stopped.finished, stopped.step) == (False, 3)
    resumed = fit(experiment, tmp_path / "b", config={}, progress=False)
    timed = ("seconds", "images_per_second", "model_flops_per_second", "utilization")
    for name, value in straight.metrics.items():
        assert name in timed or resumed.metrics[name] == value, name


def test_a_generator_learns_what_images_look_like(tmp_path):
    """Its first images are grey, about 0.5; real ones are about 0.8."""
    changes = {"parallel.data": 1, "loop.duration": "300 steps", "loop.evaluate_every": "300 steps"}
    experiment = override(made(final=(brightness,)), changes)
    result = fit(experiment, tmp_path, config={}, progress=False)
    assert result.finished
    assert isinstance(experiment.task, Generative)
    assert result.metrics["test/brightness"] == pytest.approx(0.8, abs=0.1)
    drawn = {path.stem for path in (tmp_path / "previews").glob("*.png")}
    assert drawn == {"test_samples", "test_interpolation", "test_arithmetic"}
    assert {"test/real_logit", "test/fake_logit"} <= result.metrics.keys()


def brightness(task: Any, params: Any, mutable: Any, sets: Any, track: Any) -> dict[str, float]:
    images = sample_images(task, params, mutable, 64)
    return {"test/brightness": float(images.mean())}


def test_one_draw_a_key_and_the_class_that_is_asked_for():
    task = Adversarial(TinyGenerator(num_classes=2), TinyDiscriminator(num_classes=2))
    batch = {"image": jnp.zeros((2, *IMAGE)), "label": jnp.array([0, 1])}
    variables = task.init(jax.random.key(0), batch)
    params = variables["params"]
    mutable = {name: value for name, value in variables.items() if name != "params"}
    assert params.keys() == {"generator", "discriminator"}
    assert mutable.keys() == {"batch_stats"}
    zeros, ones = (
        sample_images(task, params, mutable, 3, labels=np.full(3, label)) for label in (0, 1)
    )
    assert zeros.shape == (3, *IMAGE)
    assert not np.allclose(zeros, ones)
    few = sample_images(task, params, mutable, 1, labels=np.zeros(1, int))
    np.testing.assert_array_equal(few, zeros[:1])


def test_feature_matching_and_penalties_are_added_with_their_weights():
    batch = {"image": jax.random.uniform(jax.random.key(1), (6, *IMAGE))}
    task = Adversarial(
        TinyGenerator(),
        TinyDiscriminator(),
        losses=WASSERSTEIN,
        penalty=r1_penalty,
        penalty_weight=3.0,
        feature_matching=2.0,
    )
    variables = task.init(jax.random.key(0), batch)
    params, mutable = variables["params"], {"batch_stats": variables["batch_stats"]}
    key = jax.random.key(2)

    def terms(task: Adversarial, player: str) -> tuple[float, dict[str, float]]:
        value, aux = getattr(task, f"{player}_loss")(params, mutable, batch, key, 0)
        return float(value), compute_all(aux.metrics)

    plain = replace(task, penalty=None, penalty_weight=0.0, feature_matching=0.0)
    (value, found), (alone, _) = (terms(t, "discriminator") for t in (task, plain))
    assert value == pytest.approx(alone + 3 * found["penalty"], rel=1e-5)
    (value, found), (alone, _) = (terms(t, "generator") for t in (task, plain))
    assert found["feature_distance"] > 0
    assert value == pytest.approx(alone + 2 * found["feature_distance"], rel=1e-5)


def test_a_discriminator_that_has_won_and_a_generator_that_has_collapsed_are_told():
    task = Adversarial(TinyGenerator(), TinyDiscriminator())
    healthy = {"test/discriminator_accuracy": 0.8, "test/class_perplexity": 9.0}
    assert task.watch(healthy) == []
    won = task.watch(healthy | {"test_ema/discriminator_accuracy": 0.995})
    assert len(won) == 1
    assert "saturated" in won[0]
    (collapsed,) = task.watch(healthy | {"test/class_perplexity": 1.4})
    assert "collapsed" in collapsed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"turns": 0}, "set at least 1"),
        ({"penalty": r1_penalty}, "go together"),
        ({"penalty_weight": 1.0}, "go together"),
        ({"discriminator": TinyDiscriminator(num_classes=2)}, "differ"),
        ({"generator": TinyGenerator(num_classes=3)}, "num_classes=2"),
    ],
)
def test_options_that_contradict_are_told(changes, message):
    task = replace(Adversarial(TinyGenerator(), TinyDiscriminator()), **changes)
    with pytest.raises(SettingError, match=message):
        task.check(("even", "odd"), dict)


def test_an_image_that_the_generator_does_not_make_is_told():
    with pytest.raises(SettingError, match=r"set task\.generator\.image=\(5, 5, 1\)"):
        made().task.init(jax.random.key(0), {"image": jnp.zeros((2, 5, 5, 1))})
