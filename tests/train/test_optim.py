"""Schedules, masks and scales in closed form."""

from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from opsin.models.classification.vit import ViT
from opsin.train.durations import DurationError, in_steps
from opsin.train.methods import Lookahead, adamw, lamb, lars, lion, sgd
from opsin.train.optim import Optimizer
from opsin.train.paths import flatten
from opsin.train.schedules import Schedule, constant, cosine, linear, staircase
from opsin.train.state import ema_update

PARAMS = {
    "layer": {"kernel": np.full((3, 4), 2.0, np.float32), "bias": np.full(4, 2.0, np.float32)},
    "norm": {"scale": np.full(4, 2.0, np.float32)},
    "head": {"kernel": np.full((4, 2), 2.0, np.float32)},
}


def first_updates(optimizer: Optimizer, gradient: float) -> Any:
    """Of the parameters above, in one program, for a gradient that is the same everywhere."""
    transform, _ = optimizer.build(10, Fraction(1), 128)

    @jax.jit
    def update(gradients, params):
        return transform.update(gradients, transform.init(params), params)[0]

    return update(jax.tree.map(lambda x: np.full_like(x, gradient), PARAMS), PARAMS)


@pytest.mark.parametrize(
    ("text", "steps"),
    [("500 steps", 500), ("1 step", 1), ("2 epochs", 5), ("0.5 epochs", 2), ("1 epoch", 3)],
)
def test_durations_are_converted_with_every_started_step_counted(text: str, steps: int):
    assert in_steps(text, Fraction(40, 16)) == steps


@pytest.mark.parametrize("text", ["", "5", "5 hours", "1.5 steps", "-1 epochs", "5epochs"])
def test_a_duration_that_cannot_be_read_shows_how_to_write_one(text: str):
    with pytest.raises(DurationError, match=r"duration '.*': "):
        in_steps(text, Fraction(5, 2))


def test_epochs_are_exact_where_floats_would_round_up():
    assert in_steps("30 epochs", Fraction(50_000, 96)) == 15_625
    assert in_steps("15 epochs", Fraction(1000, 30)) == 500


def rates(schedule: Schedule, *steps: int) -> np.ndarray:
    """Learning rates after so many steps."""
    return np.asarray(jax.jit(jax.vmap(schedule))(np.array(steps)))


def test_constant_warms_up_linearly():
    schedule = constant(0.4, 100, 4)
    assert rates(schedule, 0, 1, 2, 4, 99) == pytest.approx([0, 0.1, 0.2, 0.4, 0.4])


def test_cosine_starts_at_the_peak_after_the_warmup_and_ends_at_its_end():
    schedule = cosine(2.0, 110, 10, end=0.1)
    # Half way, the mean of 1 and 0.1.
    assert rates(schedule, 10, 60, 110) == pytest.approx([2.0, 2.0 * 0.55, 0.2])


def test_linear_rises_from_its_start_and_falls_to_its_end():
    schedule = linear(2.0, 110, 10, start=0.2, end=0.1)
    found = [float(schedule(step)) for step in (0, 5, 10, 60, 110)]
    np.testing.assert_allclose(found, [0.4, 1.2, 2.0, 1.1, 0.2], rtol=1e-6)
    assert float(linear(2.0, 10, 0)(0)) == 2.0


def test_staircase_drops_at_its_boundaries_counted_from_the_first_step():
    schedule = staircase(1.0, 100, 10, boundaries=(0.5, 0.75), factor=0.1)
    assert rates(schedule, 10, 49, 50, 74, 75) == pytest.approx([1, 1, 0.1, 0.1, 0.01])


@pytest.mark.parametrize("method", [sgd, adamw, lion, lamb, lars])
def test_weight_decay_leaves_biases_norms_and_excluded_paths_alone(method):
    optimizer = Optimizer(
        method=method, learning_rate=0.1, schedule=constant, weight_decay=0.5, no_decay=("head",)
    )
    updates = jax.device_get(first_updates(optimizer, 0.0))
    assert (updates["layer"]["kernel"] < 0).all()
    for untouched in (
        updates["layer"]["bias"],
        updates["norm"]["scale"],
        updates["head"]["kernel"],
    ):
        assert (untouched == 0).all()


def test_weight_decay_knows_kernels_by_name_in_layers_stacked_by_a_scan():
    """There biases and scales have two axes; and positions have two anyway."""
    model = ViT(depth=2, width=8, mlp_width=8, heads=2, patch=4, num_classes=3)
    images = jnp.zeros((1, 8, 8, 1))
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), images))["params"]
    mask = flatten(Optimizer().decay_mask(params))
    assert {path.rpartition("/")[2] for path, decays in mask.items() if decays} == {"kernel"}
    kept = {path.rpartition("/")[2] for path, decays in mask.items() if not decays}
    assert kept == {"bias", "scale", "class_token", "positions"}


def test_sgd_decay_is_l2_and_adamw_decay_is_decoupled():
    for method, expected in (
        (sgd, -0.1 * 1.9 * (1 + 0.5 * 2.0)),  # Nesterov's first step: 1 + momentum
        (adamw, -0.1 * (1.0 + 0.5 * 2.0)),  # Adam's first step is ±1
    ):
        optimizer = Optimizer(method=method, learning_rate=0.1, schedule=constant, weight_decay=0.5)
        updates = first_updates(optimizer, 1.0)
        np.testing.assert_allclose(updates["layer"]["kernel"], expected, rtol=1e-5)


def test_lars_trusts_kernels_by_their_norm_and_leaves_the_rest_to_momentum():
    params = {
        "layer": {"kernel": np.float32([[3.0], [4.0]]), "bias": np.float32([10.0])},
        "norm": {"scale": np.float32([7.0])},
        "head": {"kernel": np.float32([[5.0]])},
    }
    gradients = {
        "layer": {"kernel": np.float32([[1.5], [2.0]]), "bias": np.float32([2.0])},
        "norm": {"scale": np.float32([-3.0])},
        "head": {"kernel": np.float32([[4.0]])},
    }
    optimizer = Optimizer(
        method=partial(lars, momentum=0.9, trust_coefficient=0.01),
        learning_rate=0.1,
        schedule=constant,
        weight_decay=0.5,
        no_decay=("head",),
    )
    transform, _ = optimizer.build(10, Fraction(1), 128)
    state, update = transform.init(params), jax.jit(transform.update)
    # g + 0.5 w = (3, 4), so |w| / |g + 0.5 w| = 5 / 5; a second step adds 0.9 of the first.
    kernel = -0.1 * 0.01 * np.array([[3.0], [4.0]])
    for velocity in (1.0, 1.9):
        updates, state = update(gradients, state, params)
        np.testing.assert_allclose(updates["layer"]["kernel"], velocity * kernel, rtol=1e-6)
        np.testing.assert_allclose(updates["layer"]["bias"], [-0.1 * velocity * 2], rtol=1e-6)
        np.testing.assert_allclose(updates["norm"]["scale"], [0.1 * velocity * 3], rtol=1e-6)
        np.testing.assert_allclose(updates["head"]["kernel"], [[-0.1 * velocity * 4]], rtol=1e-6)


def test_lamb_trusts_kernels_by_their_norm_and_moves_biases_that_start_at_zero():
    """Adam's ratio of one and the same gradient is its sign, at each step."""
    gradient = {
        "kernel": np.float32([[3.0], [-4.0]]),
        "bias": np.float32([0.1, -0.2, 0.3, 0.4]),
    }
    optimizer = Optimizer(method=lamb, learning_rate=0.01, schedule=constant, weight_decay=0.5)
    transform, _ = optimizer.build(10, Fraction(1), 128)

    @jax.jit
    def step(params, state):
        updates, state = transform.update(gradient, state, params)
        return updates, optax.apply_updates(params, updates), state

    params = {"kernel": np.float32([[1.0], [2.0]]), "bias": np.zeros(4, np.float32)}
    state = transform.init(params)
    for _ in range(3):
        kernel = np.asarray(params["kernel"])
        updates, params, state = step(params, state)
        np.testing.assert_allclose(updates["bias"], [-0.01, 0.01, -0.01, -0.01], rtol=1e-4)
        decayed = np.sign(gradient["kernel"]) + 0.5 * kernel
        trusted = -0.01 * np.linalg.norm(kernel) / np.linalg.norm(decayed) * decayed
        np.testing.assert_allclose(updates["kernel"], trusted, rtol=1e-4, atol=1e-6)


def test_clipping_bounds_the_global_norm():
    optimizer = Optimizer(
        method=sgd, learning_rate=1.0, schedule=constant, clip_norm=0.5, weight_decay=0.0
    )
    updates = jax.tree.leaves(first_updates(optimizer, 100.0))
    norm = np.sqrt(sum(np.sum(np.square(update)) for update in updates))
    assert norm == pytest.approx(1.9 * 0.5, rel=1e-5)


def test_learning_rates_scale_by_path_and_along_stacked_layers():
    optimizer = Optimizer(
        method=sgd,
        learning_rate=1.0,
        schedule=constant,
        lr_scale=(("layer/kernel", (1.0, 0.5, 0.25)), ("layer", 0.1), ("head", 0.0)),
    )
    updates = jax.device_get(first_updates(optimizer, 1.0))
    np.testing.assert_allclose(updates["layer"]["kernel"][:, 0], [-1.9, -0.95, -0.475], rtol=1e-6)
    np.testing.assert_allclose(updates["layer"]["bias"], -0.19, rtol=1e-6)
    np.testing.assert_allclose(updates["norm"]["scale"], -1.9, rtol=1e-6)
    assert (updates["head"]["kernel"] == 0).all()


def test_what_is_unfrozen_later_goes_on_as_if_its_moments_had_seen_all():
    """By the first pattern; decay does not move it either; the same updates as ever after it."""
    plain = Optimizer(method=adamw, learning_rate=0.1, schedule=constant, weight_decay=0.5)
    later = replace(plain, unfreeze=(("layer/bias", 0.26), ("layer", 0.5), ("norm", 1.0)))
    begins = {"layer/bias": 3, "layer/kernel": 5, "norm/scale": 10, "head/kernel": 0}
    both = []
    for optimizer in (plain, later):
        transform, _ = optimizer.build(10, Fraction(1), 128)
        state, update, found = transform.init(PARAMS), jax.jit(transform.update), []
        for step in range(10):
            gradients = jax.tree.map(lambda x, step=step: np.full_like(x, step - 4.5), PARAMS)
            updates, state = update(gradients, state, PARAMS)
            found.append(flatten(jax.device_get(updates)))
        both.append(found)
    for step, (before, now) in enumerate(zip(*both, strict=True)):
        for path, first in begins.items():
            assert (before[path] != 0).all()
            np.testing.assert_array_equal(now[path], before[path] * (step >= first))


def test_lookahead_goes_on_from_slow_weights_and_ends_with_them():
    """Against the algorithm, step by step, with gradients that depend on the weights."""
    steps, rate = 7, 0.3
    optimizer = Optimizer(
        method=partial(sgd, momentum=0.0),
        learning_rate=rate,
        schedule=constant,
        lookahead=Lookahead(every=3, decay=0.8, power=2.0),
    )
    transform, _ = optimizer.build(steps, Fraction(1), 8)
    params = {"kernel": jnp.array([1.0, -2.0])}
    state = transform.init(params)
    update = jax.jit(transform.update)
    fast = slow = np.array([1.0, -2.0])
    for step in range(1, steps + 1):
        updates, state = update(jax.tree.map(jnp.sin, params), state, params)
        params = optax.apply_updates(params, updates)
        fast = fast - rate * np.sin(fast)
        if step % 3 == 0:
            decay = 0.8 * (step / steps) ** 2
            fast = slow = decay * slow + (1 - decay) * fast
        if step == steps:
            fast = slow
        np.testing.assert_allclose(params["kernel"], fast, rtol=1e-5)


def test_the_learning_rate_grows_with_the_batch_that_it_is_not_for():
    optimizer = Optimizer(learning_rate=0.3, reference_batch=256, schedule=constant)
    for batch, rate in ((256, 0.3), (4096, 4.8), (64, 0.075)):
        _, schedule = optimizer.build(10, Fraction(1), batch)
        assert schedule(5) == pytest.approx(rate)
    _, schedule = replace(optimizer, reference_batch=None).build(10, Fraction(1), 4096)
    assert schedule(5) == 0.3


def test_a_warmup_that_the_run_does_not_reach_the_end_of_is_told():
    for warmup in ("20 epochs", "101 steps"):
        with pytest.raises(
            DurationError, match=rf"{warmup}.* is \d+ steps, and the run has 100"
        ) as told:
            Optimizer(warmup=warmup, schedule=cosine).build(100, Fraction(10), 128)
        assert "\n" not in str(told.value)
    _, schedule = Optimizer(warmup="10 epochs", schedule=constant).build(100, Fraction(10), 128)
    assert schedule(100) == pytest.approx(1e-3)  # at the very end
    Optimizer(warmup="2 epochs").build(0, Fraction(10), 128)  # a run that is only measured


def test_averages_keep_their_type():
    """Half precision times a float32 decay would be float32, and another state than before."""
    halves = {"x": jnp.ones(3, jnp.bfloat16)}
    again = ema_update(halves, halves, jnp.float32(0.9))
    assert again["x"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(again["x"], halves["x"])
