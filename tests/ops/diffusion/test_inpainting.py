"""Inpainting of a Gaussian, whose conditional distribution is known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.ops.diffusion.inpainting import Inpaint
from opsin.ops.diffusion.process import Denoiser
from opsin.ops.diffusion.samplers import Ancestral, Ddim
from opsin.ops.diffusion.sampling import prior_noise, sample
from opsin.ops.diffusion.schedules import Discrete, cosine_betas

PROCESS = Discrete(cosine_betas, steps=100)
CORRELATION = 0.9
COVARIANCE = np.float32([[1.0, CORRELATION], [CORRELATION, 1.0]])
ANCESTRAL = Ancestral()
MASK = np.array([True, False])


def perfect(x, t):
    """E[x_0 | x_t] of N(0, COVARIANCE)."""
    levels = PROCESS.levels(t)

    def one(x, alpha, sigma):
        spread = alpha**2 * COVARIANCE + sigma**2 * jnp.eye(2)
        return alpha * COVARIANCE @ jnp.linalg.solve(spread, x)

    return jax.vmap(one)(x, levels.alpha, levels.sigma)


@partial(jax.jit, static_argnames=("resamplings", "count", "sampler"))
def painted(resamplings: int, known: float, count: int = 3000, sampler=ANCESTRAL):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(3), jnp.arange(count))
    image = jnp.broadcast_to(jnp.array([known, -7.0]), (count, 2))  # of which -7 is not looked at
    return sample(
        Denoiser(perfect, "x0"),
        PROCESS,
        Inpaint(image, MASK, sampler, resamplings),
        keys,
        prior_noise(keys, (2,), PROCESS),
        times=PROCESS.times(100),
    )


@pytest.mark.proofs
def test_resampling_draws_from_the_conditional_distribution():
    """x_2 given x_1 = 1.5 is N(0.9 · 1.5, 1 − 0.9²); replacement alone falls short of it."""
    alone, repeated = (np.asarray(painted(n, 1.5)) for n in (1, 20))
    for made in (alone, repeated):
        np.testing.assert_array_equal(made[:, 0], 1.5)
    wanted = CORRELATION * 1.5
    assert alone[:, 1].mean() < wanted - 0.1
    np.testing.assert_allclose(repeated[:, 1].mean(), wanted, atol=0.05)
    np.testing.assert_allclose(repeated[:, 1].std(), np.sqrt(1 - CORRELATION**2), atol=0.05)


def test_an_image_is_the_same_in_any_batch():
    many, few = (np.asarray(painted(3, 0.5, n, Ddim(eta=1.0))) for n in (8, 5))
    np.testing.assert_allclose(few, many[:5], rtol=1e-5)


def test_nothing_known_is_sampling():
    @jax.jit
    def both(keys):
        x = prior_noise(keys, (2,), PROCESS)
        run = partial(sample, Denoiser(perfect, "x0"), PROCESS, times=PROCESS.times(10))
        blank = Inpaint(jnp.zeros((6, 2)), np.array([False, False]), Ddim())
        return [run(sampler, keys, x) for sampler in (blank, Ddim())]

    painted, plain = both(jax.random.split(jax.random.key(0), 6))
    np.testing.assert_allclose(painted, plain, rtol=1e-6)


def test_no_resampling_at_all_is_refused():
    with pytest.raises(ValueError, match="at least once, not 0"):
        Inpaint(jnp.zeros((1, 2)), MASK, Ddim(), 0)
