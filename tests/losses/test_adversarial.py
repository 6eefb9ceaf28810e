"""Games between a table of logits and a distribution over a few atoms, in which all is known."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import jensenshannon

from opsin.config.tree import named, override, rebuild, resolve
from opsin.errors import ConfigError
from opsin.losses.adversarial import (
    HINGE,
    LEAST_SQUARES,
    MINIMAX,
    NON_SATURATING,
    RELATIVISTIC,
    WASSERSTEIN,
    AdversarialLoss,
    clip_weights,
    feature_matching_loss,
    gradient_penalty,
    least_squares_discriminator_loss,
    least_squares_generator_loss,
    r1_penalty,
    r2_penalty,
)
from opsin.models.layers import Conv
from opsin.ops.mapped import REPLICAS

LOSSES = {
    "MINIMAX": MINIMAX,
    "NON_SATURATING": NON_SATURATING,
    "LEAST_SQUARES": LEAST_SQUARES,
    "HINGE": HINGE,
    "WASSERSTEIN": WASSERSTEIN,
    "RELATIVISTIC": RELATIVISTIC,
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)

# Distributions over four atoms, in tenths: batches of ten hold them exactly.
DATA, MODEL = np.array([4, 3, 2, 1]), np.array([1, 2, 3, 4])
PLACES = np.array([0.0, 0.5, 2.0, 3.0])  # of the atoms, for distances between distributions
SIGNED = AdversarialLoss(
    partial(least_squares_discriminator_loss, fake_label=-1.0),
    partial(least_squares_generator_loss, target=0.0),
)


def chi_squared(p, q):
    """Pearson's, of 2q from p + q."""
    return np.sum((2 * q - (p + q)) ** 2 / (p + q))


def total_variation(p, q):
    return 0.5 * np.sum(np.abs(p - q))


def potential(p, q):
    """Of slope ±1 on the way from atom to atom, falling where the data's mass lies before."""
    falls = np.sign(np.cumsum(p - q))[:-1] * np.diff(PLACES)
    return -np.concatenate([[0.0], np.cumsum(falls)])


@dataclass(frozen=True)
class Optimum:
    """The best table of logits for distributions (p, q), and the discriminator's loss there."""

    loss: AdversarialLoss
    table: Callable[[Any, Any], Any]
    value: Callable[[Any, Any], Any]


OPTIMA = {
    "logistic": Optimum(
        NON_SATURATING,
        lambda p, q: np.log(p / q),
        lambda p, q: np.log(4) - 2 * jensenshannon(p, q) ** 2,
    ),
    "least squares, 0 and 1": Optimum(
        LEAST_SQUARES, lambda p, q: p / (p + q), lambda p, q: 1 / 4 - chi_squared(p, q) / 8
    ),
    "least squares, -1 and 1": Optimum(
        SIGNED, lambda p, q: (p - q) / (p + q), lambda p, q: 1 - chi_squared(p, q) / 2
    ),
    "hinge": Optimum(
        HINGE, lambda p, q: np.sign(p - q), lambda p, q: 2 - 2 * total_variation(p, q)
    ),
    "wasserstein": Optimum(
        WASSERSTEIN, potential, lambda p, q: -stats.wasserstein_distance(PLACES, PLACES, p, q)
    ),
}


def normal(seed, shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def expected(loss, tables, real=DATA, fake=MODEL):
    """The discriminator's loss for tables of logits, with so many images of each atom."""
    atoms = np.arange(len(real))

    def one(table):
        logits = [table[np.repeat(atoms, counts)] for counts in (real, fake)]
        return jnp.mean(loss.discriminator(*logits))

    return np.asarray(jax.jit(jax.vmap(one))(np.float32(tables)))


def other_tables(name, best):
    """A thousand tables near the best and far from it; Lipschitz ones where that is asked for."""
    rng = np.random.default_rng(0)
    if name == "wasserstein":
        steps = rng.uniform(-1, 1, (1000, len(best) - 1)) * np.diff(PLACES)
        return np.pad(np.cumsum(steps, axis=1), [(0, 0), (1, 0)])
    scales = np.geomspace(0.01, 3, 1000)[:, None]
    return best + scales * rng.normal(size=(1000, len(best)))


@pytest.mark.parametrize("name", OPTIMA)
@pytest.mark.parametrize("fake", [MODEL, DATA], ids=["apart", "alike"])
def test_the_best_discriminator_is_worth_the_divergence(name, fake):
    optimum, p, q = OPTIMA[name], DATA / 10, fake / 10
    best = optimum.table(p, q)
    value, *others = expected(optimum.loss, [best, *other_tables(name, best)], fake=fake)
    np.testing.assert_allclose(value, optimum.value(p, q), rtol=1e-5, atol=1e-6)
    assert (others >= value - 1e-6).all()


def test_with_signed_labels_the_generator_is_charged_pearsons_divergence():
    p, q = DATA / 10, MODEL / 10
    table = OPTIMA["least squares, -1 and 1"].table(p, q)
    costs = np.asarray(generated(SIGNED, np.float32(table), None))
    np.testing.assert_allclose((p + q) @ costs, chi_squared(p, q) / 2, rtol=1e-5)
    plain = generated(LEAST_SQUARES, np.float32([0.0, 1.0, 3.0]), None)
    np.testing.assert_array_equal(plain, [0.5, 0.0, 2.0])  # whose target is the label of real ones


def test_the_best_relativistic_discriminator():
    """Of (2, 1) against (1, 2) thirds: e^(c/3) is the root of t³ = 3t + 4, by Cardano."""
    counts = np.array([2, 1]), np.array([1, 2])
    t = np.cbrt(2 + np.sqrt(3)) + np.cbrt(2 - np.sqrt(3))
    best = np.array([3 * np.log(t), 0.0])
    tables = [best, best + 7.0, *other_tables("relativistic", best)]
    value, shifted, *others = expected(RELATIVISTIC, tables, *counts)
    np.testing.assert_allclose(value, 4 / 3 * np.log1p(t**-2) + 2 / 3 * np.log1p(t), rtol=1e-6)
    np.testing.assert_allclose(shifted, value, rtol=1e-5)
    assert (others >= value - 1e-6).all()
    others = expected(RELATIVISTIC, other_tables("relativistic", np.zeros(4)), DATA, DATA)
    assert (others >= np.log(4) - 1e-6).all()


# The generator, given the best discriminator.


@partial(jax.jit, static_argnums=0)
def generated(loss, fake, real):
    return loss.generator(fake, real)


def slope(of, q):
    """The gradient by the logits of q of `of(q)`."""
    return jax.jit(jax.grad(lambda logits: of(jax.nn.softmax(logits))))(np.float32(np.log(q)))


def jnp_jsd(p, q):
    middle = (p + q) / 2
    return 0.5 * jnp.sum(p * jnp.log(p / middle) + q * jnp.log(q / middle))


DESCENDED = {
    "minimax": (MINIMAX, "logistic", lambda p, q: 2 * jnp_jsd(p, q)),
    # Arjovsky & Bottou, 2017, arXiv:1701.04862: it pulls the two apart in the second term.
    "non-saturating": (
        NON_SATURATING,
        "logistic",
        lambda p, q: jnp.sum(q * jnp.log(q / p)) - 2 * jnp_jsd(p, q),
    ),
    "hinge": (HINGE, "hinge", lambda p, q: jnp.sum(jnp.abs(p - q))),
    "wasserstein": (
        WASSERSTEIN,
        "wasserstein",
        lambda p, q: jnp.sum(jnp.abs(jnp.cumsum(p - q))[:-1] * np.diff(PLACES)),
    ),
}


@pytest.mark.parametrize("name", DESCENDED)
def test_the_generator_descends_a_divergence(name):
    loss, optimum, divergence = DESCENDED[name]
    p, q = DATA / 10, MODEL / 10
    table = np.float32(OPTIMA[optimum].table(p, q))
    wanted = slope(partial(divergence, np.float32(p)), q)
    assert np.abs(wanted).max() > 0.05
    pull = slope(lambda q: q @ loss.generator(table, None), q)
    np.testing.assert_allclose(pull, wanted, rtol=1e-4, atol=1e-6)


@every_loss
def test_nothing_moves_a_generator_that_has_the_distribution_of_the_data(loss):
    """The best table is flat there, by the tests above, and so is the cost of each atom."""
    tables = np.float32([[0, 0, 0, 0], [0, 1, 2, 3]])  # flat and tilted

    @jax.jit
    @partial(jax.vmap, in_axes=(None, 0))
    def slopes(logits, table):
        return jax.grad(lambda x: jax.nn.softmax(x) @ loss.generator(table, table))(logits)

    flat, tilted = np.asarray(slopes(np.float32(np.log(DATA / 10)), tables))
    np.testing.assert_allclose(flat, 0.0, atol=1e-7)
    assert np.abs(tilted).max() > 0.01


def test_the_minimax_slope_vanishes_where_the_non_saturating_one_does_not():
    """At an image whose logit falls by `sharpness` for each unit that it is moved away."""

    @jax.jit
    @jax.vmap
    def pulls(sharpness):
        def loss_of(loss):
            return lambda away: loss.generator(-sharpness * away[None], None)[0]

        return [jax.grad(loss_of(loss))(1.0) for loss in (MINIMAX, NON_SATURATING)]

    minimax, other = pulls(np.float32([1.0, 5.0, 20.0, 80.0]))
    np.testing.assert_allclose(minimax, [0.268941, 0.0334643, 4.12231e-8, 1.44388e-33], rtol=1e-4)
    np.testing.assert_allclose(other, [0.731059, 4.96654, 20.0, 80.0], rtol=1e-5)


# What holds for all of them.


@every_loss
def test_a_batch_is_its_examples_and_a_map_the_mean_over_its_places(loss):
    real, fake = normal(1, (2, 5, 3, 2))

    @partial(jax.jit, static_argnums=0)
    def run(player, one, other):
        # The places have the same means.
        places = player(one.reshape(-1), other.reshape(-1)).reshape(5, -1)
        return player(one, other), places, player(one[:1], other[:1])

    for player, (one, other) in (
        (loss.discriminator, (real, fake)),
        (loss.generator, (fake, real)),
    ):
        whole, places, alone = map(np.asarray, run(player, one, other))
        assert whole.shape == (5,)
        np.testing.assert_allclose(whole, places.mean(axis=1), rtol=1e-5, atol=1e-6)
        assert np.allclose(alone, whole[:1], atol=1e-6) != loss.relative


@every_loss
def test_small_floats_are_computed_in_float32(loss):
    small = normal(2, (2, 4)).astype(jnp.bfloat16)

    @jax.jit
    def both(real, fake):
        return loss.discriminator(real, fake), loss.generator(real, fake)

    for one, other in zip(both(*small), both(*small.astype(np.float32)), strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_array_equal(one, other)


@every_loss
def test_values_and_slopes_are_finite_at_any_logits(loss):
    ends = np.array([-1e4, 0.0, 1e4])
    logits = [np.float32(x) for x in (np.repeat(ends, 3), np.tile(ends, 3))]

    @jax.jit
    def values_and_slopes(real, fake):
        found = []
        for player in (loss.discriminator, loss.generator):
            values, back = jax.vjp(player, real, fake)
            found += [values, *back(jnp.ones(9))]
        return found

    assert all(np.isfinite(x).all() for x in values_and_slopes(*logits))


@every_loss
def test_logits_that_differ_in_shape_are_named(loss):
    with pytest.raises(ValueError, match=r"\(3, 1\) must have the shape of real \(3,\)"):
        loss.discriminator(np.zeros(3), np.zeros((3, 1)))


def test_a_relativistic_generator_is_the_discriminator_of_the_exchanged_sides():
    real, fake = normal(3, (2, 6))
    players = (RELATIVISTIC.generator, RELATIVISTIC.discriminator)
    made, judged = jax.jit(lambda fake, real: [f(fake, real) for f in players])(fake, real)
    np.testing.assert_array_equal(made, judged)
    with pytest.raises(ValueError, match="needs the logits of real images"):
        RELATIVISTIC.generator(fake, None)


def test_eight_devices_take_the_means_of_one():
    """Under pmap, in value and in gradient: of the relativistic loss and of matched features."""
    real, fake = normal(4, (2, 16, 3)) + np.float32([[[0.5]], [[0.0]]])
    weights = np.float32([1.0, -2.0, 0.5])

    def total(weights, real, fake):
        features = jnp.tanh(real * weights), jnp.tanh(fake * weights)
        logits = [jnp.sum(x, axis=-1) for x in features]
        losses = RELATIVISTIC.discriminator(*logits)
        losses += 3.0 * RELATIVISTIC.generator(*logits[::-1])
        return jnp.mean(losses) + feature_matching_loss(*features)

    whole = jax.jit(jax.value_and_grad(total))(weights, real, fake)

    def mapped(weights, real, fake):
        return jax.lax.pmean(jax.value_and_grad(total)(weights, real, fake), REPLICAS)

    shards = (x.reshape(8, 2, 3) for x in (real, fake))
    parts = jax.pmap(mapped, axis_name=REPLICAS, in_axes=(None, 0, 0))(weights, *shards)
    for one, all_devices in zip(whole, parts, strict=True):
        np.testing.assert_allclose(all_devices, np.stack([one] * 8), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_configs_can_name_a_loss_and_change_its_options(name):
    loss = named(f"losses.adversarial:{name}")
    assert loss is LOSSES[name]
    assert rebuild(json.loads(json.dumps(resolve(loss)))) == loss
    change = {"discriminator.fake_label": -1.0}
    if loss is not LEAST_SQUARES:
        with pytest.raises(ConfigError, match="fake_label"):
            override(loss, change)
        return
    signed = override(loss, {**change, "generator.target": 0.0})
    logits = np.float32([0.3, -2.0])
    for ours, theirs in (
        (signed.discriminator, SIGNED.discriminator),
        (signed.generator, SIGNED.generator),
    ):
        both = jax.jit(lambda x, pair=(ours, theirs): [player(x, x[::-1]) for player in pair])
        np.testing.assert_array_equal(*both(logits))


# Penalties.


def images(seed, batch=4, size=(3, 2, 2)):
    return normal(seed, (2, batch, *size))


def flat(x):
    return np.asarray(x).reshape(len(x), -1)


def test_penalties_of_a_linear_critic(key):
    """Its slope is the same everywhere; with a bias it is still linear."""
    real, fake = images(5)

    @jax.jit
    def penalties(size):
        def critic(x):
            return jnp.sum(x * size / np.sqrt(12), axis=(1, 2, 3)) + 5.0

        return [p(key, critic, real, fake) for p in (gradient_penalty, r1_penalty, r2_penalty)]

    for size in (1.0, 0.25, 3.0):
        one, *zero_centred = penalties(size)
        np.testing.assert_allclose(one, np.full(4, (size - 1) ** 2), atol=1e-5)
        np.testing.assert_allclose(zero_centred, np.full((2, 4), size**2 / 2), rtol=1e-5)


@pytest.mark.parametrize("distance", [0.5, 2.0])
def test_a_held_critic_has_its_optimum_in_closed_form(distance, key):
    """All data at 0, all images at a distance, and a linear critic D(x) = −s x."""
    real = np.zeros((4, 1, 1, 1), np.float32)
    fake = real + np.float32(distance)

    @partial(jax.jit, static_argnums=1)
    @jax.grad
    def slope(slope, penalty, weight):
        def critic(x):
            return -slope * jnp.sum(x, axis=(1, 2, 3))

        bare = WASSERSTEIN.discriminator(critic(real), critic(fake))
        return jnp.mean(bare + weight * penalty(key, critic, real, fake))

    # −s d + λ (s − 1)², Gulrajani et al.: the slope is more than 1 by what the loss pulls.
    # −s d + γ s² / 2, Mescheder et al.
    for penalty, weight, best in (
        (gradient_penalty, 10.0, 1 + distance / (2 * 10.0)),
        (r1_penalty, 5.0, distance / 5.0),
        (r2_penalty, 5.0, distance / 5.0),
    ):
        assert abs(slope(best, penalty, weight)) < 1e-5
        assert slope(best - 0.01, penalty, weight) < 0 < slope(best + 0.01, penalty, weight)
    # Clipped: the loss falls with s alone, down to the bound.
    params = {"s": np.float32(0.0)}

    @jax.jit
    def step(params):
        pull = slope(params["s"], r1_penalty, 0.0)
        return clip_weights({"s": params["s"] - 0.1 * pull}, limit=0.3)

    for _ in range(10):
        params = step(params)
    assert float(params["s"]) == pytest.approx(0.3)


def quadratic(x):
    """Its slope at an image is the image."""
    return 0.5 * jnp.sum(jnp.square(x), axis=(1, 2, 3))


@partial(jax.jit, static_argnums=(0, 1))
def charged(penalty, critic, key, real, fake):
    return penalty(key, critic, real, fake)


def test_r1_is_of_real_and_r2_of_generated_images(key):
    real, fake = images(6)
    for penalty, at in ((r1_penalty, real), (r2_penalty, fake)):
        halves = 0.5 * np.sum(flat(at) ** 2, axis=1)
        found = charged(penalty, quadratic, key, real, fake)
        np.testing.assert_allclose(found, halves, rtol=1e-5)


def draws(key, batch):
    """The shares of real images, read off the penalty: that of u times a unit vector is 1 - u."""
    real = np.full((batch, 2, 2, 1), 0.5, np.float32)
    return 1.0 - np.sqrt(charged(gradient_penalty, quadratic, key, real, np.zeros_like(real)))


def test_interpolates_lie_anywhere_between_real_and_generated_images(key):
    shares = np.asarray(draws(key, 1000))
    assert stats.kstest(shares, stats.uniform.cdf).pvalue > 0.01
    own = [jax.random.uniform(jax.random.fold_in(key, row)) for row in range(4)]
    np.testing.assert_allclose(shares[:4], own, rtol=1e-5)  # whatever the batch
    real, fake = images(7)
    between = shares[:4, None] * flat(real) + (1 - shares[:4, None]) * flat(fake)
    wanted = (np.linalg.norm(between, axis=1) - 1) ** 2
    found = charged(gradient_penalty, quadratic, key, real, fake)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


@pytest.mark.parametrize("penalty", [gradient_penalty, r1_penalty, r2_penalty])
def test_penalties_are_of_each_example_and_of_the_mean_of_its_map(key, penalty):
    real, fake = images(8)

    def patches(x):
        return jnp.sin(3.0 * x[..., 0]) * x[..., 1]  # [batch, 3, 2]

    def means(x):
        return jnp.mean(patches(x), axis=(1, 2))

    @jax.jit
    def run(real, fake):
        return [penalty(key, critic, real, fake) for critic in (patches, means)]

    whole, of_means = map(np.asarray, run(real, fake))
    assert whole.shape == (4,)
    np.testing.assert_allclose(whole, of_means, rtol=1e-5)
    factors = np.float32([1, 2, 2, 2]).reshape(4, 1, 1, 1)
    changed, _ = map(np.asarray, run(factors * real, factors * fake))
    np.testing.assert_allclose(changed[0], whole[0], rtol=1e-5)
    assert not np.allclose(changed[1:], whole[1:])
    small = [x.astype(jnp.bfloat16) for x in (real, fake)]
    assert jax.eval_shape(run, *small)[0].dtype == jnp.float32


def test_a_flat_critic_is_charged_one_and_its_gradient_is_zero(key):
    real, fake = images(9)

    def charge(size):
        return jnp.sum(gradient_penalty(key, lambda x: size * quadratic(x), real, fake))

    value, slope = jax.jit(jax.value_and_grad(charge))(0.0)
    assert (value, slope) == (4.0, 0.0)


def test_images_that_differ_in_shape_are_named(key):
    real, fake = images(10)
    with pytest.raises(ValueError, match="must have the shape of real"):
        gradient_penalty(key, quadratic, real, fake[:1])


class SmoothCritic(nn.Module):
    conv: Any = Conv

    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(self.conv(3, (4, 4), strides=2, name="first")(x))
        x = jnp.tanh(self.conv(4, (3, 3), name="second")(x))
        return self.conv(1, (1, 1), name="last")(x)[..., 0]


def test_gradients_of_penalties_go_through_the_convolutions_of_the_house(key):
    """By finite differences, and as through linen's own convolution."""
    real, fake = images(11, batch=2, size=(6, 6, 2))
    params = jax.jit(SmoothCritic().init)(key, real)

    def charge(params, conv: Any = Conv):
        critic: Any = partial(SmoothCritic(conv).apply, params)
        penalties = [p(key, critic, real, fake) for p in (gradient_penalty, r1_penalty)]
        return jnp.mean(sum(penalties))

    ours_at, theirs_at = (
        jax.jit(jax.value_and_grad(partial(charge, conv=conv))) for conv in (Conv, nn.Conv)
    )
    ours, theirs = (jax.tree.map(np.asarray, at(params)[1]) for at in (ours_at, theirs_at))
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    rng = np.random.default_rng(12)
    # Uphill in every number, so that none hides another.
    step = jax.tree.map(lambda g: 0.003 * np.sign(g) * rng.random(g.shape, np.float32), ours)
    ahead, behind = (
        ours_at(jax.tree.map(lambda x, s, sign=sign: np.asarray(x) + sign * s, params, step))[0]
        for sign in (1, -1)
    )
    along = sum(map(np.vdot, jax.tree.leaves(ours), jax.tree.leaves(step)))
    np.testing.assert_allclose(along, (float(ahead) - float(behind)) / 2, rtol=1e-2)
    kernel = ours["params"]["first"]["kernel"]
    assert np.abs(kernel).max() > 0.01


def test_clipped_weights():
    kernel = np.float32([[-3.0, 0.2], [0.1, 0.5]])
    params = {"kernel": kernel, "scale": np.ones(2, jnp.bfloat16)}
    clipped = jax.jit(partial(clip_weights, limit=0.25))(params)
    np.testing.assert_array_equal(clipped["kernel"], np.float32([[-0.25, 0.2], [0.1, 0.25]]))
    np.testing.assert_array_equal(clipped["scale"], [0.25, 0.25])
    assert clipped["scale"].dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="above 0, not 0"):
        clip_weights(params, limit=0.0)


def test_matched_features_are_means_over_the_batch():
    real, fake = normal(12, (6, 2, 3)), normal(13, (4, 2, 3))
    distance = real.mean(axis=0) - fake.mean(axis=0)

    @jax.jit
    def run(real, fake):
        value, back = jax.vjp(feature_matching_loss, real, fake)
        return value, back(jnp.ones(()))[1]

    value, slope = run(real, fake)
    np.testing.assert_allclose(value, np.mean(distance**2), rtol=1e-5)
    np.testing.assert_allclose(np.asarray(slope)[0], -2 * distance / (4 * 6), rtol=1e-4)
    moved = fake + distance  # other images of the same mean
    np.testing.assert_allclose(run(real, moved)[0], 0.0, atol=1e-12)
    small = jax.eval_shape(feature_matching_loss, real, fake.astype(jnp.bfloat16))
    assert small.dtype == jnp.float32
    with pytest.raises(ValueError, match="differ"):
        feature_matching_loss(real, fake[:, :1])
