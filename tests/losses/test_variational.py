"""A linear-Gaussian model, in which all is known: z ~ N(0, I), x = W z + b + σ ε."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from opsin.losses.variational import (
    bits_per_dim,
    codebook_loss,
    commitment_loss,
    doubly_reparameterized_bound,
    elbo,
    free_bits,
    full_normal_kl,
    importance_bound,
    linear_warmup,
)
from opsin.ops.gaussian import Normal, normal_kl, normal_log_prob, normal_sample, standard_normal

W = np.array([[1.0, 0.5], [-0.4, 0.8], [0.3, 0.9]])
B = np.array([0.2, -0.1, 0.4])
SIGMA = 0.7
X = np.array([0.9, -0.3, 1.5])
PRIOR = Normal(*np.zeros((2, 2), np.float32))
WRONG = Normal(np.float32([0.3, 0.5]), np.float32([-0.4, -0.7]))


def log_evidence(w=W):
    return stats.multivariate_normal(B, w @ w.T + SIGMA**2 * np.eye(3)).logpdf(X)


def posterior(w=W):
    """Mean and covariance of p(z|x)."""
    covariance = np.linalg.inv(np.eye(2) + w.T @ w / SIGMA**2)
    return covariance @ w.T @ (X - B) / SIGMA**2, covariance


def orthogonal():
    """A W with orthogonal columns, and the posterior, which then has independent dimensions."""
    w = np.linalg.qr(W)[0] * [1.5, 0.6]
    mean, covariance = posterior(w)
    deviations = np.sqrt(np.diagonal(covariance))
    np.testing.assert_allclose(covariance, np.diag(deviations**2), atol=1e-12)
    return w, Normal(np.float32(mean), np.float32(np.log(deviations)))


def log_joint(z, w=W):
    likelihood = Normal(z @ jnp.asarray(w, jnp.float32).T + B, jnp.full(3, np.log(SIGMA)))
    return normal_log_prob(z, PRIOR) + normal_log_prob(jnp.asarray(X), likelihood)


@partial(jax.jit, static_argnums=2)
def draw_log_weights(key, q, shape, w):
    z = normal_sample(key, q, shape=(*shape, 2))
    return log_joint(z, w) - normal_log_prob(z, q)


bound_of = jax.jit(importance_bound, static_argnames="axis")


@pytest.mark.parametrize("k", [1, 2, 50])
def test_bounds_are_exact_with_the_exact_posterior(k):
    w, exact = orthogonal()
    bound = bound_of(draw_log_weights(jax.random.key(0), exact, (k, 8), np.float32(w)))
    np.testing.assert_allclose(bound, log_evidence(w), rtol=1e-5)


def test_elbo_falls_short_by_the_divergence_from_the_posterior():
    mean, deviation = WRONG.mean, np.exp(WRONG.log_std)
    squares = np.sum((X - B - W @ mean) ** 2) + np.sum((W * deviation) ** 2)
    likelihood = -0.5 * (3 * np.log(2 * np.pi * SIGMA**2) + squares / SIGMA**2)

    @jax.jit
    def run(likelihood):
        bound = elbo(likelihood, jnp.sum(normal_kl(WRONG, PRIOR)))
        covariances = np.diag(deviation**2), np.float32(posterior()[1])
        gap = full_normal_kl(mean, covariances[0], np.float32(posterior()[0]), covariances[1])
        return bound, gap

    bound, gap = run(np.float32(likelihood))
    assert gap > 0.1
    np.testing.assert_allclose(bound, log_evidence() - gap, rtol=1e-5)
    draws = np.asarray(draw_log_weights(jax.random.key(1), WRONG, (1, 20_000), np.float32(W)))
    mean_bound = np.asarray(bound_of(draws)).mean()
    assert abs(mean_bound - bound) < 4 * draws.std() / np.sqrt(20_000) < 0.03


def test_the_bound_rises_with_k_to_the_evidence():
    """Of the same draws in larger and larger groups, so that it must (Burda et al., theorem 1)."""
    draws = np.asarray(draw_log_weights(jax.random.key(2), WRONG, (256, 64), np.float32(W)))
    bounds = [np.asarray(bound_of(draws.reshape(k, 256 // k, 64))).mean() for k in (1, 4, 16, 256)]
    assert np.all(np.diff(bounds) > 0)
    assert abs(bounds[-1] - log_evidence()) < 0.01 < 0.1 < log_evidence() - bounds[0]


def test_weights_of_any_size():
    values = np.random.default_rng(0).normal(size=(3, 5)) * 1e4

    @jax.jit
    def run(values):
        slope = jax.grad(lambda v: importance_bound(v).sum())(values)
        return importance_bound(values), importance_bound(values, axis=1), slope

    bound, across, slope = run(np.float32(values))
    expected = special.logsumexp(values, axis=0) - np.log(3)
    np.testing.assert_allclose(bound, expected, rtol=1e-6)
    np.testing.assert_allclose(across, special.logsumexp(values, axis=1) - np.log(5), rtol=1e-6)
    np.testing.assert_allclose(slope, special.softmax(values, axis=0), atol=1e-6)
    assert bound_of(np.ones((2, 1), jnp.bfloat16)).dtype == jnp.float32


def test_impossible_draws_weigh_nothing():
    impossible = -np.inf
    weights = np.float32([[0.0, impossible], [impossible, impossible]])

    def doubly(scale):
        latents = scale * jnp.ones((2, 2, 1))
        return doubly_reparameterized_bound(latents, lambda z: weights + z[..., 0]).sum()

    @jax.jit
    def run(weights):
        bound, back = jax.vjp(importance_bound, weights)
        return bound, back(jnp.ones(2))[0], jax.grad(doubly)(1.0)

    bound, slope, of_scale = run(weights)
    np.testing.assert_allclose(bound, [-np.log(2), -np.inf], rtol=1e-6)
    np.testing.assert_array_equal(slope, [[1.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(of_scale, 1.0)  # share 1 of one draw of one example


# The doubly reparameterised gradient. φ are the parameters of q, θ is W.


def plain_bound(phi, theta, key, k):
    z = normal_sample(key, phi, shape=(k, 1, 2))
    return importance_bound(log_joint(z, theta) - normal_log_prob(z, phi))[0]


def doubly_bound(phi, theta, key, k):
    z = normal_sample(key, phi, shape=(k, 1, 2))
    stopped = jax.lax.stop_gradient(phi)
    return doubly_reparameterized_bound(
        z, lambda z: log_joint(z, theta) - normal_log_prob(z, stopped)
    )[0]


def gradients(bound, arguments, draws, *options):
    """Of the bound by its first two arguments, for each of the draws: [draws, parameters]."""

    def one(key):
        slopes = jax.grad(bound, (0, 1))(*arguments, key, *options)
        return tuple(jnp.concatenate([x.ravel() for x in jax.tree.leaves(s)]) for s in slopes)

    return [
        np.asarray(s) for s in jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(3), draws))
    ]


def assert_one_mean(some, others, largest_error):
    difference = some - others
    error = difference.std(axis=0) / np.sqrt(len(difference))
    assert (error < largest_error).all()
    assert (np.abs(difference.mean(axis=0)) < 4.5 * error).all()


@pytest.mark.proofs
@pytest.mark.parametrize("k", [1, 5])
def test_doubly_reparameterised_gradients_have_the_expectation_of_the_plain_ones(k):
    arguments = (WRONG, np.float32(W))
    plain_phi, plain_theta = gradients(plain_bound, arguments, 40_000, k)
    phi, theta = gradients(doubly_bound, arguments, 40_000, k)
    np.testing.assert_allclose(theta, plain_theta, rtol=1e-4, atol=1e-5)  # draw by draw
    assert_one_mean(phi, plain_phi, 0.02)
    assert np.abs(phi.mean(axis=0)).max() > 0.1  # not both zero
    if k > 1:  # less noise, which is what they are for
        assert (phi.var(axis=0) < 0.7 * plain_phi.var(axis=0)).all()
    bounds = (doubly_bound, plain_bound)
    both = jax.jit(lambda key: [bound(*arguments, key, k) for bound in bounds])
    np.testing.assert_allclose(*both(jax.random.key(0)), rtol=1e-6)


def test_nothing_moves_an_exact_encoder():
    w, exact = orthogonal()
    arguments = (exact, np.float32(w))
    phi, _ = gradients(doubly_bound, arguments, 100, 5)
    np.testing.assert_allclose(phi, 0.0, atol=1e-5)
    plain, _ = gradients(plain_bound, arguments, 100, 5)
    assert plain.std() > 0.1


def test_doubly_reparameterised_gradients_of_two_layers():
    """z₂ ~ N(0, 1), z₁ ~ N(θ z₂, 1), x ~ N(z₁, ½); q(z₂|z₁) depends on z₁ and on φ."""

    def log_weights(z, q_of_z1, phi, theta):
        z1, z2 = z
        log_p = (
            normal_log_prob(z2, standard_normal((1,)))
            + normal_log_prob(z1, Normal(theta * z2, jnp.zeros(1)))
            + normal_log_prob(jnp.ones(1), Normal(z1, jnp.full(1, np.log(0.5))))
        )
        return log_p - normal_log_prob(z1, q_of_z1) - normal_log_prob(z2, upper(z1, phi))

    def lower(phi):
        return Normal(phi[:1], jnp.full(1, -0.5))

    def upper(z1, phi):
        return Normal(phi[1] * z1 + 0.2, phi[2:])

    def bound(phi, theta, key, doubly):
        keys = jax.random.split(key)
        z1 = normal_sample(keys[0], lower(phi), shape=(4, 1, 1))
        z = (z1, normal_sample(keys[1], upper(z1, phi)))
        if not doubly:
            return importance_bound(log_weights(z, lower(phi), phi, theta))[0]
        stopped = jax.lax.stop_gradient(phi)
        return doubly_reparameterized_bound(
            z, lambda z: log_weights(z, lower(stopped), stopped, theta)
        )[0]

    arguments = (np.float32([0.4, 0.8, -0.2]), np.float32(0.9))
    plain = gradients(bound, arguments, 40_000, False)
    doubly = gradients(bound, arguments, 40_000, True)
    assert_one_mean(doubly[0], plain[0], 0.02)
    assert np.abs(doubly[0].mean(axis=0)).min() > 0.05
    np.testing.assert_allclose(doubly[1], plain[1], rtol=1e-4, atol=1e-5)


def test_the_compiler_merges_the_two_passes():
    weights = np.ones((32, 32), np.float32)

    def decode(z, weights):
        return jnp.sum(jnp.tanh(jnp.tanh(z @ weights) @ weights), axis=-1)

    def cost(bound):
        latents = np.ones((8, 16, 32), np.float32)
        lowered = jax.jit(jax.grad(bound, (0, 1))).lower(latents, weights)
        return lowered.compile().cost_analysis()["flops"]

    doubly = cost(lambda z, w: doubly_reparameterized_bound(z, lambda z: decode(z, w)).sum())
    assert doubly < 1.1 * cost(lambda z, w: importance_bound(decode(z, w)).sum())


# The parts.


def test_full_covariances():
    rng = np.random.default_rng(1)
    mean_q, mean_p = rng.normal(size=(2, 3))
    cov_q, cov_p = (a @ a.T + np.eye(3) for a in rng.normal(size=(2, 3, 3)))
    inverse = np.linalg.inv(cov_p)
    shift = mean_p - mean_q
    expected = 0.5 * (
        np.trace(inverse @ cov_q)
        + shift @ inverse @ shift
        - 3
        + np.log(np.linalg.det(cov_p) / np.linalg.det(cov_q))
    )
    arguments = [np.float32(a) for a in (mean_q, cov_q, mean_p, cov_p)]
    divergence = jax.jit(full_normal_kl)
    np.testing.assert_allclose(divergence(*arguments), expected, rtol=1e-5)
    q, p = stats.multivariate_normal(mean_q, cov_q), stats.multivariate_normal(mean_p, cov_p)
    x = q.rvs(100_000, random_state=2)
    ratios = q.logpdf(x) - p.logpdf(x)
    assert abs(ratios.mean() - expected) < 4 * ratios.std() / np.sqrt(len(x))
    np.testing.assert_allclose(divergence(*arguments[:2], *arguments[:2]), 0.0, atol=1e-6)


def test_full_is_diagonal_where_dimensions_are_independent():
    rng = np.random.default_rng(3)
    q, p = (Normal(*rng.normal(size=(2, 4)).astype(np.float32)) for _ in range(2))

    @jax.jit
    def both(q, p):
        covariances = [jnp.diag(jnp.exp(2 * n.log_std)) for n in (q, p)]
        full = full_normal_kl(q.mean, covariances[0], p.mean, covariances[1])
        return full, normal_kl(q, p).sum()

    np.testing.assert_allclose(*both(q, p), rtol=1e-5)


def test_beta_weighs_the_divergence():
    likelihood, kl = np.float32([-80.0, -90.0]), np.float32([20.0, 10.0])

    @jax.jit
    def run(likelihood, kl):
        every = ({}, {"beta": 4.0}, {"beta": linear_warmup(1, 2)})
        return [elbo(likelihood, kl, **options) for options in every]

    plain, heavy, half = run(likelihood, kl)
    np.testing.assert_array_equal(plain, [-100.0, -100.0])
    np.testing.assert_array_equal(heavy, [-160.0, -130.0])
    np.testing.assert_array_equal(half, [-90.0, -95.0])
    with pytest.raises(ValueError, match="must have the shape"):
        elbo(likelihood, kl[:, None])


def test_warmup_is_a_ramp():
    ramp = jax.jit(linear_warmup, static_argnums=1)
    np.testing.assert_allclose([ramp(s, 4) for s in (0, 1, 4, 9)], [0.0, 0.25, 1.0, 1.0])
    assert linear_warmup(0, 0) == 1.0
    with pytest.raises(ValueError, match="at least 0"):
        linear_warmup(0, -1)


def test_free_bits_are_equation_15():
    """In value and in gradient, though each example has an entry of its own."""
    kl = np.float32([[0.1, 0.1, 3.0], [0.2, 1.2, 4.0]])  # means 0.15, 0.65 and 3.5

    def ours(kl):
        return jnp.mean(jnp.sum(free_bits(kl, nats=0.5), axis=-1))

    def equation(kl):
        return jnp.sum(jnp.maximum(0.5, jnp.mean(kl, axis=0)))

    both = jax.jit(lambda kl: [jax.value_and_grad(f)(kl) for f in (ours, equation)])
    (value, slope), (wanted, its_slope) = both(kl)
    np.testing.assert_allclose(value, 0.5 + 0.65 + 3.5, rtol=1e-6)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    np.testing.assert_allclose(slope, its_slope)
    np.testing.assert_array_equal(jax.jit(partial(free_bits, nats=0.0))(kl), kl)
    with pytest.raises(ValueError, match="free bits"):
        free_bits(kl, nats=-1.0)
    with pytest.raises(ValueError, match="free bits"):
        free_bits(kl[0], nats=1.0)


def test_bits_per_dim_of_uniform_bytes():
    nats = 784 * np.log(256)
    np.testing.assert_allclose(bits_per_dim(jnp.float32(nats), 784), 8.0, rtol=1e-6)
    with pytest.raises(ValueError, match="at least 1"):
        bits_per_dim(jnp.float32(nats), 0)


def test_codebook_and_commitment_move_one_side_each():
    z, codes = np.random.default_rng(4).standard_normal((2, 3, 5, 4), np.float32)
    expected = np.mean((z - codes) ** 2, axis=-1)

    @partial(jax.jit, static_argnums=0)
    def both(loss, z, codes):
        return loss(z, codes), jax.grad(lambda *pair: loss(*pair).sum(), (0, 1))(z, codes)

    for loss, moved in ((codebook_loss, 1), (commitment_loss, 0)):
        values, slopes = both(loss, z, codes)
        np.testing.assert_allclose(values, expected, rtol=1e-6)
        np.testing.assert_array_equal(slopes[1 - moved], 0.0)
        away = (codes - z, z - codes)[1 - moved]
        np.testing.assert_allclose(slopes[moved], 2 * away / 4, rtol=1e-5)
        with pytest.raises(ValueError, match="must have the shape"):
            loss(z, codes[..., :1])
