import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from opsin.ops import gaussian
from opsin.ops.gaussian import Normal, standard_normal

# Compiled, which takes less time here than to run operation by operation.
normal_kl = jax.jit(gaussian.normal_kl)
normal_log_prob = jax.jit(gaussian.normal_log_prob)
normal_log_ratio = jax.jit(gaussian.normal_log_ratio)
normal_sample = jax.jit(gaussian.normal_sample, static_argnames="shape")


def draw(seed, shape=(4, 3)):
    mean, log_std = np.random.default_rng(seed).standard_normal((2, *shape), np.float32)
    return Normal(mean, log_std / 2)


def test_densities_are_those_of_scipy():
    normal, x = draw(0), draw(1, (5, 4, 3)).mean
    expected = stats.norm.logpdf(x, normal.mean, np.exp(normal.log_std)).sum(axis=-1)
    np.testing.assert_allclose(normal_log_prob(x, normal), expected, rtol=1e-5)


def test_divergence_is_its_integral():
    q, p = draw(2, (3,)), draw(3, (3,))
    q_scipy, p_scipy = (stats.norm(n.mean, np.exp(n.log_std)) for n in (q, p))
    expected, _ = integrate.quad_vec(
        lambda x: q_scipy.pdf(x) * (q_scipy.logpdf(x) - p_scipy.logpdf(x)), -30, 30
    )
    np.testing.assert_allclose(normal_kl(q, p), expected, rtol=1e-5)


def test_divergence_is_the_mean_of_log_ratios():
    q, p = draw(4, (2,)), draw(5, (2,))
    x = np.asarray(normal_sample(jax.random.key(6), q, shape=(100_000, 2)))
    ratios = np.asarray(normal_log_ratio(x, q, p)).sum(axis=-1)
    wanted = np.asarray(normal_log_prob(x[:9], q)) - normal_log_prob(x[:9], p)
    np.testing.assert_allclose(ratios[:9], wanted, rtol=1e-4, atol=1e-5)
    error = ratios.std() / np.sqrt(len(ratios))
    assert abs(ratios.mean() - np.asarray(normal_kl(q, p)).sum()) < 4 * error < 0.1


def test_divergence_from_the_standard_normal():
    """Kingma & Welling, appendix B, with its sign: -½ (1 + log σ² - μ² - σ²)."""
    q = draw(7)
    mean, variance = np.asarray(q.mean), np.exp(2 * np.asarray(q.log_std))
    expected = -0.5 * (1 + np.log(variance) - mean**2 - variance)
    actual = normal_kl(q, standard_normal((3,)))  # which broadcasts
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_divergence_near_zero():
    """It is ε² for a ratio of deviations of e^ε, of which 1e-7 roundings leave nothing."""
    p = draw(8)
    np.testing.assert_array_equal(normal_kl(p, p), 0.0)
    small = np.linspace(5e-4, 1e-3, 16, dtype=np.float32)
    q = Normal(np.zeros_like(small), small)
    np.testing.assert_allclose(normal_kl(q, standard_normal((16,))), small**2, rtol=2e-3)


def test_draws_have_the_distribution_and_its_gradient():
    normal = draw(9, (2,))
    key = jax.random.key(10)
    x = np.asarray(normal_sample(key, normal, shape=(20_000, 2)))
    for axis in range(2):
        reference = stats.norm(normal.mean[axis], np.exp(normal.log_std[axis]))
        assert stats.kstest(x[:, axis], reference.cdf).pvalue > 0.01
    slope = jax.jit(jax.jacobian(lambda n: normal_sample(key, n)))(normal)
    noise = np.asarray(normal_sample(key, normal)) - normal.mean
    np.testing.assert_allclose(slope.mean, np.eye(2))
    np.testing.assert_allclose(slope.log_std, np.diag(noise), rtol=1e-5)


def test_draws_differ_by_key_and_take_the_shape_that_is_asked_for():
    normal = draw(11, (1, 4, 3))
    first, second = (np.asarray(normal_sample(jax.random.key(k), normal)) for k in (0, 1))
    assert first.shape == (1, 4, 3)
    assert (first != second).all()
    several = np.asarray(normal_sample(jax.random.key(0), normal, shape=(5, 4, 3)))
    assert several.shape == (5, 4, 3)
    assert len(np.unique(several)) == several.size


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_small_floats_are_computed_in_float32(dtype):
    small = jax.tree.map(lambda x: x.astype(dtype), draw(12))
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), small)
    x, key = np.ones((4, 3), dtype), jax.random.key(0)

    @jax.jit
    def every(n):
        return normal_log_prob(x, n), normal_kl(n, draw(13)), normal_sample(key, n)

    for one, other in zip(every(small), every(wide), strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_array_equal(one, other)


def test_a_distribution_goes_through_jit_and_vmap():
    normal = draw(14)
    mapped = jax.jit(jax.vmap(gaussian.normal_log_prob))(normal.mean, normal)
    plain = gaussian.normal_log_prob(normal.mean, normal)
    np.testing.assert_allclose(mapped, plain, rtol=1e-6)
