"""Two players in one step: whose parameters move, on which images, and in which order."""

import json
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.metrics import roc_auc_score

from opsin.analysis.sampling import sample_images
from opsin.config.tree import override
from opsin.data.examples import Arrays, Examples
from opsin.experiments.extractors import LENET
from opsin.losses.adversarial import HINGE, RELATIVISTIC, WASSERSTEIN, r1_penalty
from opsin.metrics.state import Merging, compute_all, to_host
from opsin.models.layers import batch_norm
from opsin.models.spectral import SpectralDense
from opsin.ops.keys import row_keys
from opsin.ops.mapped import REPLICAS
from opsin.train.checkpoint import Checkpoints
from opsin.train.experiment import Data, Experiment, Loop
from opsin.train.loop import fit
from opsin.train.measurements import Subject
from opsin.train.methods import adamw, sgd
from opsin.train.optim import Optimizer
from opsin.train.schedules import constant, cosine
from opsin.train.settings import SettingError
from opsin.train.state import stream
from opsin.train.tasks.adversarial import Adversarial
from opsin.train.tasks.generative import Generative
from opsin.train.tasks.players import pair_scores, pairwise_auc
from opsin.train.tasks.task import Aux, Player, Task
from tests.train.conftest import assert_trees_close, assert_trees_equal
from tests.train.drawn import drawn_variables
from tests.train.test_step import lay_out

IMAGE = (4, 4, 1)


class TinyGenerator(nn.Module):
    """One dense layer, with batch norm."""

    image: tuple[int, int, int] = IMAGE
    latent: int = 3
    num_classes: int | None = None

    @nn.compact
    def __call__(self, z: Any, *, labels: Any = None, train: bool = False) -> Any:
        if labels is not None:
            z = jnp.concatenate([z, jax.nn.one_hot(labels, self.num_classes)], axis=-1)
        z = nn.Dense(8, name="hidden")(z)
        z = nn.relu(batch_norm(train=train, name="norm")(z))
        return nn.Dense(16, name="head")(z).reshape(-1, *self.image)


class TinyDiscriminator(nn.Module):
    """Two dense layers, the features between them sown; the first may be spectral, or have norm."""

    num_classes: int | None = None
    spectral: bool = False
    norm: bool = False

    @nn.compact
    def __call__(self, x: Any, *, labels: Any = None, train: bool = False) -> Any:
        x = x.reshape(len(x), -1)
        if self.spectral:
            x = SpectralDense(8, train=train, name="hidden")(x)
        else:
            x = nn.Dense(8, name="hidden")(x)
        if self.norm:
            x = batch_norm(train=train, name="norm")(x)
        x = nn.leaky_relu(x)
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


@pytest.mark.parametrize("turns", [pytest.param(1, marks=pytest.mark.proofs), 2])
def test_a_step_is_that_of_the_discriminator_and_then_that_of_the_generator(turns):
    """Against updates written out: gradients of one player alone, on its part of the batch."""
    experiment = override(made(turns=turns), {"parallel.data": 1, "task.losses": RELATIVISTIC})
    feed, program = lay_out(experiment)
    task: Any = experiment.task

    @jax.jit
    def by_hand(state: Any, store: Any, items: Any) -> tuple[Any, Any]:
        batch = feed.spec.fetch(store, jax.tree.map(lambda x: x[0], items))
        batch = {"image": batch["image"] / 255, "label": batch["label"]}
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
        return {**params, "generator": moved}, aux.mutable

    state, store, items = program.init(), feed.store(), feed.take(1, 1)
    params, mutable = by_hand(state, store, items)  # before its buffers are donated
    dispatch = program.compile()
    after, metrics = dispatch(state, store, items, np.int32(1))
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
    store = feed.store()
    dispatch = program.compile()
    state, step = program.init(), 0
    while step < 4:
        count = min(length, 4 - step)
        state, _ = dispatch(state, store, feed.take(count, length), np.int32(count))
        step += count
    return jax.device_get(state)


def game(method: Any) -> Experiment:
    """With all that two players add to a state: moments of each, a spectral vector, an average."""
    slow, fast = (
        Optimizer(method=method, learning_rate=rate, schedule=cosine) for rate in (0.02, 0.05)
    )
    task = Adversarial(
        TinyGenerator(),
        TinyDiscriminator(spectral=True),
        losses=HINGE,
        optimizer=fast,
        turns=2,
        penalty=r1_penalty,
        penalty_weight=0.5,
    )
    loop = {"loop.ema_decay": 0.9, "loop.previews": 0, "parallel.data": 1}
    return override(replace(made(), task=task, optimizer=slow), loop)


@pytest.mark.proofs
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
    one = run_players(game(sgd))
    assert set(one.mutable) == {"batch_stats", "spectral"}
    assert set(one.opt_state) == {"generator", "discriminator"}
    other = run_players(override(game(sgd), layout))
    for name in ("params", "mutable", "ema", "opt_state"):
        assert_trees_close(getattr(other, name), getattr(one, name), rtol=1e-4, atol=1e-6)


@pytest.mark.proofs
def test_a_stopped_game_goes_on_as_if_it_had_not(tmp_path):
    """Bit for bit: both players' moments, the spectral vector and the average."""
    experiment = game(adamw)
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
    _, program = lay_out(experiment)
    states = []
    for directory in (tmp_path / "a", tmp_path / "b"):
        with Checkpoints(directory / "checkpoints") as checkpoints:
            states.append(checkpoints.restore(program.state, {})[0])
    assert_trees_equal(*states)


def test_a_clipped_critic_stays_within_its_bounds():
    experiment = made(losses=WASSERSTEIN, clip=0.02, turns=2)
    params = run_players(override(experiment, {"parallel.data": 1})).params
    reach = {
        name: max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(params[name]))
        for name in params
    }
    assert reach["discriminator"] <= np.float32(0.02)
    assert reach["generator"] > 0.1


def test_players_with_fewer_turns_take_the_last_parts():
    """Three, two and one turns of a sum: what each saw is what its parameter moved by."""

    @dataclass(frozen=True)
    class Counting(Task):
        def init(self, key: Any, batch: Any) -> Any:
            return {"params": {name: {"x": jnp.zeros(())} for name in "abc"}}

        def players(self) -> tuple[Player, ...]:
            def loss(name: str, params: Any, mutable: Any, batch: Any, key: Any, step: Any) -> Any:
                seen = params[name]["x"] * jnp.mean(batch["image"][:, 0, 0, 0])
                return -seen, Aux(mutable, {})

            return tuple(
                Player(partial(loss, name), name, turns=turns)
                for name, turns in zip("abc", (3, 2, 1), strict=True)
            )

        def evaluate(self, params: Any, mutable: Any, batch: Any, key: Any) -> Any:
            return {}

        def preview(self, params: Any, mutable: Any, batch: Any, key: Any) -> Any:
            return {}

    def source(split: str) -> Examples:
        image = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1) * 51
        return Examples(Arrays({"image": image}))

    rate = Optimizer(method=partial(sgd, momentum=0.0), learning_rate=1.0, schedule=constant)
    experiment = Experiment(
        task=Counting(),
        data=Data(source=source, batch=6, eval_batch=6),
        optimizer=rate,
        loop=Loop(duration="1 steps"),
    )
    feed, program = lay_out(override(experiment, {"parallel.data": 1}))
    store, items = feed.store(), feed.take(1, 1)
    batch = feed.spec.fetch(store, jax.tree.map(lambda x: x[0], items))
    parts = np.asarray(batch["image"], np.float32).reshape(2, 3).mean(axis=0) / 255
    dispatch = program.compile()
    state, _ = dispatch(program.init(), store, items, np.int32(1))
    for name, turns in zip("abc", (3, 2, 1), strict=True):
        assert float(state.params[name]["x"]) == pytest.approx(parts[-turns:].sum(), rel=1e-5)


@pytest.mark.proofs
def test_a_generator_learns_what_images_look_like(tmp_path):
    """Its first images are grey, about 0.5; real ones are about 0.8."""
    changes = {"parallel.data": 1, "loop.duration": "300 steps", "loop.evaluate_every": "300 steps"}
    experiment = override(made(), changes | {"measurements": (brightness,)})
    result = fit(experiment, tmp_path, config={}, progress=False)
    assert result.finished
    assert isinstance(experiment.task, Generative)
    assert result.measured[0].metrics["test/brightness"] == pytest.approx(0.8, abs=0.1)
    drawn = {path.stem for path in (tmp_path / "previews").glob("*.png")}
    assert drawn == {"test_samples", "test_interpolation", "test_arithmetic"}
    assert {"test/real_logit", "test/fake_logit"} <= result.metrics.keys()


def test_pictures_between_latents_are_of_latents_as_long_as_those_of_training():
    """And each row is of one class, of which the brightness tells here."""

    class Length(TinyGenerator):
        """Zero before tanh, and so grey, for class 0 on the shell."""

        @nn.compact
        def __call__(self, z: Any, *, labels: Any = None, train: bool = False) -> Any:
            value = jnp.mean(jnp.square(z), axis=1) - 1 + labels
            return jnp.broadcast_to(value[:, None, None, None], (len(z), *IMAGE))

    task = Adversarial(Length(num_classes=2), TinyDiscriminator(num_classes=2))
    params = {"generator": {}, "discriminator": {}}
    pictures = jax.jit(task.preview)(params, {}, {}, jax.random.key(0))
    for name in ("interpolation", "arithmetic"):
        rows = np.asarray(pictures[name].images)
        wanted = (np.tanh(np.arange(len(rows)) % 2) + 1) / 2
        np.testing.assert_allclose(rows, np.broadcast_to(wanted, rows.T.shape).T, atol=1e-5)


def brightness(subject: Subject[Any]) -> dict[str, float]:
    images = sample_images(subject.task, *subject.variables, 64)
    return {"test/brightness": float(images.mean())}


def test_one_draw_a_key_and_the_class_that_is_asked_for():
    task = Adversarial(TinyGenerator(num_classes=2), TinyDiscriminator(num_classes=2))
    batch = {"image": np.zeros((2, *IMAGE), np.float32), "label": np.array([0, 1])}
    params, mutable = drawn_variables(task, batch)
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
    batch = {"image": np.random.default_rng(1).random((6, *IMAGE), np.float32)}
    task = Adversarial(
        TinyGenerator(),
        TinyDiscriminator(),
        losses=WASSERSTEIN,
        penalty=r1_penalty,
        penalty_weight=3.0,
        feature_matching=2.0,
    )
    plain = replace(task, penalty=None, penalty_weight=0.0, feature_matching=0.0)

    @jax.jit
    def terms(*given: Any) -> dict[str, Any]:
        found = {}
        for player in ("discriminator", "generator"):
            losses = [getattr(t, f"{player}_loss") for t in (task, plain)]
            (value, aux), (alone, _) = (loss(*given, jax.random.key(2), 0) for loss in losses)
            found[player] = value, alone, aux.metrics
        return found

    found = terms(*drawn_variables(task, batch), batch)
    value, alone, metrics = found["discriminator"]
    penalty = compute_all(metrics)["penalty"]
    assert penalty > 0
    assert float(value) == pytest.approx(float(alone) + 3 * penalty, rel=1e-5)
    value, alone, metrics = found["generator"]
    distance = compute_all(metrics)["feature_distance"]
    assert distance > 0
    assert float(value) == pytest.approx(float(alone) + 2 * distance, rel=1e-5)


def test_a_discriminator_that_has_won_and_a_generator_that_has_collapsed_are_told():
    task = Adversarial(TinyGenerator(), TinyDiscriminator(), observer=LENET)
    healthy = {"test/discriminator_auc": 0.8, "test/class_perplexity": 9.0}
    assert task.diagnose(healthy) == []
    (won,) = task.diagnose(healthy | {"test/discriminator_auc": 0.995})
    assert "saturated" in won
    assert task.diagnose(healthy | {"test_ema/discriminator_auc": 0.995}) == []
    (collapsed,) = task.diagnose(healthy | {"test/class_perplexity": 5.0})  # five of ten digits
    assert "is 5.0 of 10: the generator has collapsed" in collapsed


def test_what_is_told_stands_in_the_log(tmp_path, training_alone):
    """A critic that is far ahead from the start: real images are bright, made ones are grey."""

    class Brightness(TinyDiscriminator):
        @nn.compact
        def __call__(self, x: Any, *, labels: Any = None, train: bool = False) -> Any:
            return self.param("slope", nn.initializers.ones, ()) * jnp.mean(x, axis=(1, 2, 3))

    changes = {"parallel.data": 1, "loop.previews": 0, "loop.duration": "0 steps"}
    critical = override(made(discriminator=Brightness()), changes)
    fit(critical, tmp_path, config={}, progress=False)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    (note,) = [line["note"] for line in lines if "note" in line]
    assert note.startswith("test/discriminator_auc is 1.000: the discriminator is saturated")


def test_the_auc_of_pairs_is_the_area_under_the_curve_for_any_threshold():
    rng = np.random.default_rng(0)
    real, fake = rng.normal(0.5, 1, (60, 2, 2)), rng.normal(0, 1, (60, 2, 2))
    truth = roc_auc_score(
        [1] * 60 + [0] * 60, np.concatenate([real.mean((1, 2)), fake.mean((1, 2))])
    )
    real, fake = real.astype(np.float32), fake.astype(np.float32)
    auc = jax.jit(pairwise_auc)
    for shift in (0, 7):
        found = auc(real + shift, fake + shift).compute()[""]
        assert found == pytest.approx(truth, abs=1e-5)
    assert auc(np.ones(3), np.ones(3)).compute()[""] == 0.5


def test_the_auc_of_an_evaluation_is_over_all_pairs_of_the_set():
    """However the set is cut into batches, with padding at their ends."""
    rng = np.random.default_rng(0)
    real, fake = (rng.normal(x, 1, (60, 2, 2)).astype(np.float32) for x in (0.5, 0))
    whole = compute_all({"auc": to_host(pair_scores(real, fake, np.ones(60, bool)))})["auc"]
    assert whole == pytest.approx(float(pairwise_auc(real, fake).compute()[""]), abs=1e-6)
    for size in (7, 16):
        merging = Merging()
        for start in range(0, 60, size):
            rows = np.arange(start, start + size)
            some, valid = rows % 60, rows < 60  # padded with what would count
            merging.add({"auc": pair_scores(real[some], fake[some], valid)})
        assert compute_all(merging.result())["auc"] == whole
    few = pair_scores(np.array([1.0, 3, -9]), np.array([2.0, 0, 9]), np.arange(3) < 2)
    assert to_host(few).compute()[""] == 0.75


def test_the_observer_counts_the_classes_that_are_made():
    """Of black images LeNet says one thing: one class, of perplexity 1."""

    class Black(TinyGenerator):
        @nn.compact
        def __call__(self, z: Any, *, labels: Any = None, train: bool = False) -> Any:
            batch_norm(train=train, name="norm")(z)
            return jnp.full((len(z), 28, 28, 1), -20.0)

    task = Adversarial(Black(image=(28, 28, 1)), TinyDiscriminator(), observer=LENET)
    batch = {"image": np.zeros((5, 28, 28, 1), np.float32), "valid": np.arange(5) < 4}
    params, mutable = drawn_variables(task, batch)
    keys = row_keys(jax.random.key(0), 5)
    # The file is read once; its weights are an argument of the program, and no constants of it.
    arguments = params, mutable | task.fixed(), batch, keys
    lowered = jax.jit(task.evaluate).lower(*arguments)
    constants = [line for line in lowered.as_text().splitlines() if "stablehlo.constant" in line]
    assert all(len(line) < 1000 for line in constants)
    found = lowered.compile()(*arguments)
    numbers = compute_all(found)
    assert (numbers["classes_made"], numbers["class_perplexity"]) == (1, 1)
    assert int(np.sum(found["classes"].counts)) == 4
    task.check((), dict)
    with pytest.raises(SettingError, match=r"is for images \[28, 28, 1\], the generator makes"):
        replace(task, generator=TinyGenerator()).check((), dict)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"turns": 0}, "set at least 1"),
        ({"penalty": r1_penalty}, "go together"),
        ({"penalty_weight": 1.0}, "go together"),
        ({"penalty": r1_penalty, "penalty_weight": -1.0}, "the weight above 0"),
        ({"feature_matching": -1.0}, "at least 0"),
        ({"clip": 0.0}, "above 0 or None"),
        ({"discriminator": TinyDiscriminator(num_classes=2)}, "differ"),
        ({"losses": WASSERSTEIN}, "has no bound by itself"),
        ({"generator": TinyGenerator(num_classes=3)}, r"set task\.generator\.num_classes=2"),
    ],
)
def test_options_that_contradict_are_told(changes, message):
    task = replace(Adversarial(TinyGenerator(), TinyDiscriminator()), **changes)
    with pytest.raises(SettingError, match=message):
        task.check(("even", "odd"), dict)


def test_an_image_that_the_generator_does_not_make_is_told():
    with pytest.raises(SettingError, match=r"set task\.generator\.image=\(5, 5, 1\)"):
        made().task.init(jax.random.key(0), {"image": np.zeros((2, 5, 5, 1))})


def test_data_that_the_networks_cannot_take_are_told():
    two = {"generator": TinyGenerator(num_classes=2), "discriminator": TinyDiscriminator(2)}
    task = Adversarial(**two)
    looks = {
        r"reach from -1 to 1": {"image": np.array([-1.0, 1.0])},
        r"labels of 'train' reach from 0 to 2, and the networks know 0 to 1": {
            "image": np.zeros(3),
            "label": np.arange(3),
        },
    }
    for message, batch in looks.items():
        with pytest.raises(SettingError, match=message):
            task.check((), lambda batch=batch: {"train": batch})


def test_a_slope_at_one_image_and_the_norm_of_a_batch_are_refused_together():
    task = Adversarial(
        TinyGenerator(), TinyDiscriminator(norm=True), penalty=r1_penalty, penalty_weight=1.0
    )
    with pytest.raises(SettingError, match=r"set task\.discriminator\.norm=None"):
        jax.eval_shape(task.init, jax.random.key(0), {"image": np.zeros((2, *IMAGE))})


@pytest.mark.parametrize("option", [{"losses": RELATIVISTIC}, {"feature_matching": 1.0}])
def test_means_of_a_batch_are_not_those_of_its_parts(option):
    how = {"pmap": False, "steps": 10, "epoch": Fraction(4)}
    made(**option).task.check_loop(accumulate=1, **how)  # pyright: ignore
    made().task.check_loop(accumulate=2, **how)  # pyright: ignore
    with pytest.raises(SettingError, match=r"loop\.accumulate=1"):
        made(**option).task.check_loop(accumulate=2, **how)  # pyright: ignore


def test_features_are_matched_over_all_devices():
    """Under pmap each device would match the mean of its own images."""
    task = Adversarial(TinyGenerator(), TinyDiscriminator(), feature_matching=1.0)
    image = np.random.default_rng(1).random((4, 2, *IMAGE), np.float32)
    variables = drawn_variables(task, {"image": image[0]})

    def distance(part: Any) -> Any:
        _, aux = task.generator_loss(*variables, {"image": part}, jax.random.key(2), 0)
        return aux.metrics["feature_distance"].total

    found = jax.jit(jax.vmap(distance, axis_name=REPLICAS))(image)
    assert found[0] > 0
    np.testing.assert_allclose(found, found[0], rtol=1e-5)
