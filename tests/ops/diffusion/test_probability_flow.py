from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.ops.diffusion.probability_flow import log_likelihood, solve
from opsin.ops.diffusion.process import Denoiser
from opsin.ops.diffusion.sampling import prior_noise
from opsin.ops.diffusion.schedules import LogSnr
from opsin.ops.diffusion.sde import SubVariancePreserving, VarianceExploding, VariancePreserving
from tests.ops.mixture import Mixture, two_in_plane

PROCESSES = (
    VariancePreserving(),
    VarianceExploding(sigma_max=10.0),
    SubVariancePreserving(),
    LogSnr(),
)


def keys_of(number, seed=0):
    return jax.random.split(jax.random.key(seed), number)


each_process = pytest.mark.parametrize(
    "process",
    [PROCESSES[0], *(pytest.param(process, marks=pytest.mark.proofs) for process in PROCESSES[1:])],
    ids=lambda process: type(process).__name__,
)


@each_process
def test_normal_data_are_reached(process):
    """x_t = α m + √(α² s² + σ²) z for one z all along, within what the tolerance allows."""
    model, z = Mixture(process), np.linspace(-2, 2, 5)[:, None]
    ends = [model.at(t).mean() + model.at(t).std * z for t in (1.0, process.start)]
    run = jax.jit(partial(solve, model.denoiser, process), static_argnames=("reverse", "tolerance"))
    errors = [
        np.abs(run(jnp.asarray(ends[0], jnp.float32), tolerance=tolerance).x - ends[1]).max()
        for tolerance in (1e-2, 1e-5)
    ]
    assert errors[1] < 3e-4
    assert errors[1] < 0.3 * errors[0]
    forth = run(jnp.asarray(ends[1], jnp.float32), reverse=False)
    np.testing.assert_allclose(forth.x, ends[0], rtol=1e-3, atol=1e-3)


def test_samples_of_a_mixture():
    process = VariancePreserving()
    model, number = two_in_plane(process), 4000
    x = prior_noise(keys_of(number), (2,), process)
    found = jax.jit(partial(solve, model.denoiser, process, tolerance=1e-3))(x)
    covariance = model.covariance()
    error = 4 * np.sqrt(np.diag(covariance) / number)
    assert (np.abs(found.x.mean(axis=0) - model.mean()) < 0.01 + error).all()
    spread = 4 * np.sqrt(2 / number) * covariance.max()
    assert (np.abs(np.cov(np.asarray(found.x).T) - covariance) < 0.01 + spread).all()
    assert found.steps.min() >= 5
    assert found.steps.max() < 100


@each_process
def test_exact_likelihoods(process):
    """Of a mixture with the noise of `start`, but for the prior's own difference from p_1."""
    model = two_in_plane(process)
    x = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    found = jax.jit(partial(log_likelihood, model.denoiser, process, trace="exact"))(x, keys_of(6))
    latent = np.asarray(found.latent)
    prior = -0.5 * np.sum((latent / process.prior_std) ** 2, axis=-1)
    prior -= np.log(2 * np.pi * process.prior_std**2)
    mismatch = prior - model.at(1.0).log_prob(latent)
    expected = model.at(process.start).log_prob(x) + mismatch
    np.testing.assert_allclose(found.log_prob, expected, rtol=1e-3, atol=3e-3)
    assert np.abs(mismatch).max() < 0.1


def test_hutchinson_has_the_right_mean():
    process = VariancePreserving()
    model = two_in_plane(process)
    point = jnp.array([[0.2, -0.5]])
    run = partial(log_likelihood, model.denoiser, process, tolerance=1e-3)
    exact = run(point, keys_of(1), trace="exact").log_prob[0]
    number = 1000
    draws = np.asarray(
        jax.jit(partial(run, trace="hutchinson"))(
            jnp.broadcast_to(point, (number, 2)), keys_of(number)
        ).log_prob
    )
    assert draws.std() > 0.01
    assert abs(draws.mean() - exact) < 4 * draws.std() / np.sqrt(number) + 3e-3


def test_an_image_does_not_depend_on_the_batch_which_the_model_sees_whole():
    """Such as a model that is bound to the labels of its batch."""
    process = VariancePreserving()
    model, keys = two_in_plane(process), keys_of(5)
    x, shift = prior_noise(keys, (2,), process), jnp.linspace(0, 1, 5)[:, None]

    def denoiser(part):
        def labelled(x, t):
            assert x.shape == (len(shift[part]), 2)
            return model(x, t) + 0.1 * shift[part]

        return Denoiser(labelled, "epsilon")

    whole, part = slice(None), slice(2, 4)
    together, alone = (solve(denoiser(s), process, x[s]) for s in (whole, part))
    np.testing.assert_allclose(alone.x, together.x[part], atol=1e-4)
    assert len(np.unique(together.steps)) > 1  # each at its own pace
    likely = [log_likelihood(denoiser(s), process, x[s], keys[s]).log_prob for s in (whole, part)]
    np.testing.assert_allclose(likely[1], likely[0][part], atol=1e-3)


def test_failures():
    process = VariancePreserving()
    model, x = Mixture(process), jnp.ones((2, 1))
    assert jnp.isnan(solve(model.denoiser, process, x, max_steps=3).x).all()
    found = log_likelihood(model.denoiser, process, x, keys_of(2), max_steps=3)
    assert jnp.isnan(found.log_prob).all()
    with pytest.raises(ValueError, match="no likelihood"):
        log_likelihood(replace(model.denoiser, clip=1.0), process, x, keys_of(2))
