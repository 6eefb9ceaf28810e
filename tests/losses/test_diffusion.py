import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from opsin.losses.diffusion import (
    bound_loss,
    denoising_loss,
    denoising_score_loss,
    epsilon_weight,
    hybrid_loss,
    min_snr_weight,
    p2_weight,
    prior_loss,
    sliced_score_loss,
    target_weight,
    variational_bound,
)
from opsin.losses.variational import bits_per_dim
from opsin.ops.diffusion.process import (
    Denoiser,
    Levels,
    between,
    convert,
    diffuse,
    posterior,
    reverse_log_variances,
    target_value,
)
from opsin.ops.diffusion.schedules import Discrete
from opsin.ops.diffusion.sde import VarianceExploding, VariancePreserving
from tests.ops.mixture import Mixture

TARGETS = ("epsilon", "x0", "v", "score")
WEIGHTS = (epsilon_weight, min_snr_weight, partial(min_snr_weight, gamma=1.0), p2_weight)


def draw(seed, shape=(6, 3, 2)):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


# Errors and weights.


def test_simple_is_equation_14():
    x0, noise, prediction = draw(0), draw(1), draw(2)
    simple = partial(denoising_loss, levels=Levels(0.6, 0.8), target="epsilon")
    loss = jax.jit(simple)(prediction, x0, noise)
    np.testing.assert_allclose(loss, np.mean((noise - prediction) ** 2, axis=(1, 2)), rtol=1e-5)
    with pytest.raises(ValueError, match="shape"):
        simple(prediction[..., :1], x0, noise)


@pytest.mark.parametrize("process", [VariancePreserving(), VarianceExploding(0.1, 5.0)])
@pytest.mark.parametrize("weighting", WEIGHTS)
def test_a_weighted_loss_is_one_number_for_all_targets(process, weighting):
    """What one network says of x_0, said of the other targets, costs as much."""
    x0, noise = draw(3), draw(4)
    said = x0 + np.float32(0.3) * draw(5)

    @jax.jit
    def run(t):
        levels = process.levels(t)
        x_t = diffuse(x0, noise, levels)
        losses = [
            denoising_loss(
                convert(said, x_t, levels, source="x0", target=target),
                x0,
                noise,
                levels,
                target=target,
                weighting=weighting,
            )
            for target in TARGETS
        ]
        return weighting(levels), losses

    weights, losses = run(np.linspace(0.05, 0.9, 6, dtype=np.float32))
    expected = np.asarray(weights) * np.mean((said - x0) ** 2, axis=(1, 2))
    for loss in losses:
        np.testing.assert_allclose(loss, expected, rtol=2e-3)


def test_weights_of_each_target_are_the_papers():
    @jax.jit
    def run(t):
        levels = VariancePreserving().levels(t)
        weights = {target: target_weight(levels, target) for target in TARGETS}
        return levels.snr, weights, min_snr_weight(levels), p2_weight(levels, gamma=0.5, k=2.0)

    times = np.linspace(0.01, 1.0, 20, dtype=np.float32)
    snr, weight, min_snr, p2 = jax.tree.map(np.asarray, run(times))
    np.testing.assert_allclose(weight["epsilon"], snr, rtol=1e-5)
    np.testing.assert_allclose(weight["v"], snr + 1, rtol=1e-4)
    np.testing.assert_array_equal(weight["x0"], 1.0)
    clipped = np.minimum(snr, 5.0)
    found = {t: min_snr / weight[t] for t in TARGETS}
    np.testing.assert_allclose(found["epsilon"], np.minimum(5.0 / snr, 1.0), rtol=1e-5)
    np.testing.assert_allclose(found["v"], clipped / (snr + 1), rtol=1e-4)
    np.testing.assert_allclose(found["x0"], clipped, rtol=1e-5)
    np.testing.assert_allclose(p2 / weight["epsilon"], 1 / np.sqrt(2.0 + snr), rtol=1e-5)


def test_weights_without_signal_are_limits():
    @jax.jit
    def run(t, prediction):
        levels = Discrete(zero_terminal_snr=True).levels(t)
        weights = (min_snr_weight(levels), p2_weight(levels, k=4.0), epsilon_weight(levels))
        loss = partial(denoising_loss, x0=draw(0, (1, 3)), noise=draw(1, (1, 3)), levels=levels)
        slopes = [
            jax.grad(lambda p, t=target: loss(p, target=t, weighting=p2_weight)[0])(prediction)
            for target in ("v", "x0", "epsilon")
        ]
        epsilon = target_weight(levels, "epsilon")
        return levels.alpha, [weight / epsilon for weight in weights], slopes

    alpha, (min_snr, p2, epsilon), slopes = run(np.array([1000]), draw(2, (1, 3)))
    assert np.all(alpha == 0)
    np.testing.assert_allclose(min_snr, 1.0)
    np.testing.assert_allclose(p2, 0.25)
    np.testing.assert_allclose(epsilon, 1.0)
    assert np.isfinite(slopes).all()


# The bound.


def test_prior_is_a_divergence():
    x0, levels = draw(0), Levels(np.full(6, 0.3), np.full(6, 0.9))
    mean = 0.3 * x0
    for std in (1.0, 4.0):
        expected = np.log(std / 0.9) + (0.9**2 + mean**2) / (2 * std**2) - 0.5
        found = jax.jit(partial(prior_loss, prior_std=std))(x0, levels)
        np.testing.assert_allclose(found, expected.sum(axis=(1, 2)), rtol=1e-5)


def test_terms_are_divergences_of_normals():
    schedule = Discrete(steps=100)
    x0, noise, said = draw(0), draw(1), draw(2)

    @jax.jit
    def run(t):
        now, before = schedule.levels(t), schedule.levels(t - 1)
        x_t, variances = diffuse(x0, noise, now), schedule.log_variances(t)
        losses = [bound_loss(said, x_t, x0, before, now, variance) for variance in variances]
        exact = bound_loss(x0, x_t, x0, before, now, variances[0])
        return posterior(before, now), variances, losses, exact

    found = jax.tree.map(np.asarray, run(np.array([2, 7, 40, 77, 99, 100])))
    q, variances, losses, exact = found
    shift = q.x0[:, None, None] * (x0 - said)
    for log_variance, loss in zip(variances, losses, strict=True):
        ratio = np.exp(variances[0] - log_variance)[:, None, None]
        kl = 0.5 * (ratio - 1 - np.log(ratio)) + shift**2 / 2 / np.exp(log_variance)[:, None, None]
        np.testing.assert_allclose(loss, kl.sum(axis=(1, 2)), rtol=1e-3)
    np.testing.assert_allclose(exact, 0.0, atol=1e-4)


@partial(jax.jit, static_argnames="bins")
def last_step(x0, said, log_variance, bins):
    """−log p(x_0|x_1), which is of x̂_0 and of the variance alone."""
    schedule, ones = Discrete(), jnp.ones(len(x0), jnp.int32)
    before, now = schedule.levels(0 * ones), schedule.levels(ones)
    x0 = x0.astype(jnp.float32)[:, None]
    said, log_variance = jnp.full_like(x0, said), jnp.full(len(x0), log_variance)
    return bound_loss(said, 0.3 * x0, x0, before, now, log_variance, bins=bins)


@pytest.mark.parametrize("bins", [2, 256])
def test_the_last_step_is_a_distribution_over_bins(bins):
    values = np.linspace(-1, 1, bins)
    edges = np.concatenate([[-np.inf], (values[1:] + values[:-1]) / 2, [np.inf]])
    for said, std in ((0.1, 0.3), (-1.0, 0.01), (3.0, 1.0)):
        found = last_step(values, said, 2 * np.log(std), bins)
        np.testing.assert_allclose(np.exp(-np.asarray(found, np.float64)).sum(), 1.0, rtol=1e-4)
        # Each bin from the tail that it is in: far out a difference of the other one is 0.
        low, high = (t(edges) for t in (stats.norm(said, std).logcdf, stats.norm(said, std).logsf))
        with np.errstate(divide="ignore"):
            from_below = low[1:] + np.log(-np.expm1(low[:-1] - low[1:]))
            from_above = high[:-1] + np.log(-np.expm1(high[1:] - high[:-1]))
        logs = np.where(values > said, from_above, from_below)
        np.testing.assert_allclose(found, -logs, rtol=2e-3, atol=1e-4)


def test_the_last_step_as_a_density():
    values = np.linspace(-1.5, 2.0, 9)
    expected = -stats.norm(0.2, 0.4).logpdf(values)
    found = last_step(values, 0.2, 2 * np.log(0.4), None)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bins", [256, None])
def test_gradients_are_finite_in_every_step(bins):
    schedule, t = Discrete(), np.array([1, 1, 1, 2, 1000, 1])
    x0 = np.clip(np.round(draw(0) * 127.5) / 127.5, -1, 1)

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1))
    def loss(said, log_variance, t):
        now, before = schedule.levels(t), schedule.levels(t - 1)
        x_t = diffuse(x0, draw(1), now)
        return bound_loss(said, x_t, x0, before, now, log_variance, bins=bins).sum()

    for said, log_variance in itertools.product((x0, 50 * draw(2)), (-16.0, 0.0)):
        value, slopes = loss(said, np.full(6, log_variance), t)
        assert all(np.isfinite(v).all() for v in (value, *slopes))
        assert (np.asarray(slopes[1]) != 0).all()


def normal_model(schedule, mean=0.4, std=0.2):
    """Normal data, their perfect model with the variance of p(x_s|x_t), and its logarithm."""
    data = Mixture(schedule, means=((mean,),), std=std)
    now, before = between(schedule.levels(schedule.times(schedule.steps)))
    small, large = reverse_log_variances(schedule.levels(schedule.times(schedule.steps)))
    q = posterior(before, now)
    left = std**2 * now.sigma**2 / (now.alpha**2 * std**2 + now.sigma**2)  # of x_0, given x_t
    true = np.log(q.variance + q.x0**2 * left)
    fraction = np.float32(((true - small) / (large - small))[::-1])

    def learned(x, t):
        return jnp.concatenate([data(x, t), jnp.asarray(fraction)[t - 1][:, None]], axis=-1)

    return data, Denoiser(learned, "epsilon", learned_variance=True), true


def test_the_bound_of_normal_data_is_their_likelihood():
    """The reverse of a normal chain is normal: with its mean and variance nothing is lost.

    With the mean and another variance it is Σ ½ (r − 1 − log r), for their ratios r, over the data.
    """
    schedule, number = Discrete(steps=50), 12_000
    data, perfect, true = normal_model(schedule)
    x0 = stats.norm.ppf((np.arange(number) + 0.5) / number, 0.4, 0.2)[:, None]
    exact = -data.log_prob(x0)
    grid = schedule.levels(schedule.times(50))
    small, large = reverse_log_variances(grid)
    gaps = {}
    for variance, logs in (("learned", true), ("small", small), ("large", large)):
        learned = variance == "learned"
        run = partial(
            variational_bound,
            perfect if learned else data.denoiser,
            schedule,
            times=schedule.times(50),
            bins=None,
            **({} if learned else {"variance": variance}),
        )
        bound = jax.jit(run)(np.float32(x0), jax.random.split(jax.random.key(0), number))
        assert bound.steps.shape == (50, number)
        gaps[variance] = gap = np.asarray(bound.total) - exact
        ratio = np.exp(true - logs)
        lost = 0.5 * np.sum(ratio - 1 - np.log(ratio))
        # What q(x_T) differs from the prior by is of this order.
        slack = grid.alpha[0] ** 2
        error = gap.std() / np.sqrt(number)
        assert error < 0.03
        assert abs(gap.mean() - lost) < 4 * error + slack
        assert lost == 0 if learned else lost > 0.1
    for third in np.split(gaps["learned"], 3):  # for each image, not in the mean alone
        assert abs(third.mean()) < 4 * third.std() / np.sqrt(len(third)) + slack


def test_the_bound_needs_data_without_noise():
    process = VarianceExploding()
    model = Mixture(process)
    with pytest.raises(ValueError, match="noise is left"):
        variational_bound(
            model.denoiser,
            process,
            np.zeros((1, 1), np.float32),
            jax.random.split(jax.random.key(0), 1),
            times=process.times(5),
        )


def test_an_image_does_not_depend_on_the_batch():
    schedule = Discrete(steps=20)
    _, perfect, _ = normal_model(schedule)
    keys, x0 = jax.random.split(jax.random.key(1), 4), draw(0, (4, 1))
    run = jax.jit(partial(variational_bound, perfect, schedule, times=schedule.times(20)))
    together, alone = run(x0, keys), run(x0[1:3], keys[1:3])
    np.testing.assert_allclose(alone.total, np.asarray(together.total)[1:3], rtol=1e-4)


def test_hybrid_is_equation_16():
    """A draw of one of T terms, in bits for each dimension, times T."""
    simple, bound = np.float32([0.3, 0.1]), np.float32([2.0, 5.0])

    @jax.jit
    def both(simple, bound):
        expected = simple + 0.001 * 1000 * bits_per_dim(bound, 12)
        return hybrid_loss(simple, bound, steps=1000, dimensions=12), expected

    np.testing.assert_allclose(*both(simple, bound))
    schedule = Discrete(steps=50)
    x0, noise = draw(0, (2, 4)), draw(1, (2, 4))

    @jax.jit
    @partial(jax.grad, argnums=(0, 1))
    def slopes_of(said, fraction, t):
        now, before = schedule.levels(t), schedule.levels(t - 1)
        small, large = schedule.log_variances(t)
        log_variance = small + fraction * (large - small)
        x_t = diffuse(x0, noise, now)
        stopped = jax.lax.stop_gradient(said)
        bound = bound_loss(stopped, x_t, x0, before, now, log_variance, bins=None)
        plain = denoising_loss(said, x0, noise, now, target="x0")
        return hybrid_loss(plain, bound, steps=50, dimensions=4).sum()

    said = x0 + np.float32(0.1)
    slopes = slopes_of(said, np.float32([0.5, 0.5]), np.array([1, 30]))
    np.testing.assert_allclose(slopes[0], 2 * (said - x0) / 4, rtol=1e-3)
    assert (np.asarray(slopes[1]) != 0).all()


# Scores.


def test_denoising_score_matching_is_of_the_noise():
    x0, noise, score = draw(1), draw(0), draw(2)

    @jax.jit
    def run(t):
        levels = VarianceExploding().levels(t)
        perfect = target_value(x0, noise, levels, "score")
        losses = [denoising_score_loss(x, noise, levels.sigma) for x in (perfect, score)]
        return levels.sigma, losses

    sigma, (zero, loss) = run(np.linspace(0.1, 1.0, 6, dtype=np.float32))
    np.testing.assert_allclose(zero, 0, atol=1e-10)
    sigma = np.asarray(sigma)[:, None, None]
    expected = np.sum(sigma**2 / 2 * (score + noise / sigma) ** 2, axis=(1, 2))
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


@pytest.mark.parametrize("exact_norm", [True, False])
def test_sliced_score_matching_finds_the_score(exact_norm):
    """Of normal data: −C⁻¹ x is where the loss is least, and there it is −½ tr C⁻¹."""
    mixing = np.float32([[1.0, 0.4, 0.0], [0.0, 0.8, -0.3], [0.0, 0.0, 0.6]])
    x = draw(0, (500, 3)) @ mixing
    precision = np.linalg.inv(x.T @ x / 500)
    directions = np.float32(list(itertools.product((-1.0, 1.0), repeat=3)))  # E[v vᵀ] = I
    projections = np.broadcast_to(directions[:, None], (8, *x.shape))

    @jax.jit
    @jax.value_and_grad
    def loss(matrix):
        return sliced_score_loss(
            lambda x: -x @ matrix, x, projections, exact_norm=exact_norm
        ).mean()

    value, slope = loss(precision)
    np.testing.assert_allclose(value, -np.trace(precision) / 2, rtol=1e-4)
    np.testing.assert_allclose(slope, 0.0, atol=1e-4)
    _, elsewhere = loss(precision + np.float32(0.1) * np.eye(3, dtype=np.float32))
    assert np.abs(elsewhere).max() > 0.01


def test_sliced_score_of_a_nonlinear_score_is_its_trace():
    def score(x):
        return jnp.sin(x) * jnp.sum(x, axis=-1, keepdims=True)

    x = draw(0, (4, 3))
    directions = np.float32(list(itertools.product((-1.0, 1.0), repeat=3)))
    projections = np.broadcast_to(directions[:, None], (8, 4, 3))

    @jax.jit
    def both(x):
        jacobians = jax.vmap(jax.jacobian(lambda x: score(x[None])[0]))(x)
        expected = jnp.trace(jacobians, axis1=1, axis2=2) + 0.5 * jnp.sum(score(x) ** 2, axis=-1)
        return sliced_score_loss(score, x, projections), expected

    np.testing.assert_allclose(*both(x), rtol=1e-4)
