from dataclasses import replace
from functools import partial

import jax
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
    run = jax.jit(partial(solve, model.denoiser, process), static_argnames="reverse")
    errors = [
        np.abs(run(np.float32(ends[0]), tolerance=tolerance).x - ends[1]).max()
        for tolerance in (1e-2, 1e-5)
    ]
    assert errors[1] < 3e-4
    assert errors[1] < 0.3 * errors[0]
    forth = run(np.float32(ends[1]), reverse=False)
    np.testing.assert_allclose(forth.x, ends[0], rtol=1e-3, atol=1e-3)


def test_samples_of_a_mixture():
    process = VariancePreserving()
    model, number = two_in_plane(process), 4000

    @jax.jit
    def run(keys):
        x = prior_noise(keys, (2,), process)
        return solve(model.denoiser, process, x, tolerance=1e-3)

    x, steps = map(np.asarray, run(keys_of(number)))
    covariance = model.covariance()
    error = 4 * np.sqrt(np.diag(covariance) / number)
    assert (np.abs(x.mean(axis=0) - model.mean()) < 0.01 + error).all()
    spread = 4 * np.sqrt(2 / number) * covariance.max()
    assert (np.abs(np.cov(x.T) - covariance) < 0.01 + spread).all()
    assert steps.min() >= 5
    assert steps.max() < 100


@partial(jax.jit, static_argnames=("process", "trace"))
def likelihood_of_mixture(process, x, keys, tolerance, trace):
    denoiser = two_in_plane(process).denoiser
    return log_likelihood(denoiser, process, x, keys, tolerance=tolerance, trace=trace)


@each_process
def test_exact_likelihoods(process):
    """Of a mixture with the noise of `start`, but for the prior's own difference from p_1."""
    model = two_in_plane(process)
    x = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    found = likelihood_of_mixture(process, x, keys_of(6), 1e-5, "exact")
    latent = np.asarray(found.latent)
    prior = -0.5 * np.sum((latent / process.prior_std) ** 2, axis=-1)
    prior -= np.log(2 * np.pi * process.prior_std**2)
    mismatch = prior - model.at(1.0).log_prob(latent)
    expected = model.at(process.start).log_prob(x) + mismatch
    np.testing.assert_allclose(found.log_prob, expected, rtol=1e-3, atol=3e-3)
    assert np.abs(mismatch).max() < 0.1


def test_hutchinson_has_the_right_mean():
    process, point = VariancePreserving(), np.float32([[0.2, -0.5]])

    def run(number, trace):
        x = np.repeat(point, number, axis=0)
        found = likelihood_of_mixture(process, x, keys_of(number), 1e-3, trace)
        return np.asarray(found.log_prob)

    number = 1000
    exact, draws = run(6, "exact")[0], run(number, "hutchinson")
    assert draws.std() > 0.01
    assert abs(draws.mean() - exact) < 4 * draws.std() / np.sqrt(number) + 3e-3


def likely(denoiser, process, x, keys, **options):
    found = log_likelihood(denoiser, process, x, keys, **options)
    return found.log_prob[:, None], found.steps


def solved(denoiser, process, x, keys, **options):
    del keys
    return solve(denoiser, process, x, **options)


each_run = pytest.mark.parametrize("run", [solved, pytest.param(likely, marks=pytest.mark.proofs)])


@pytest.mark.proofs
@pytest.mark.parametrize("run", [solved, likely])
def test_an_image_does_not_depend_on_the_batch_which_the_model_sees_whole(run):
    """Such as a model that is bound to the labels of its batch."""
    process = VariancePreserving()
    model, whole, part = two_in_plane(process), slice(None), slice(2, 4)
    shift = np.linspace(0, 1, 5, dtype=np.float32)[:, None]

    def denoiser(part):
        def labelled(x, t):
            assert x.shape == (len(shift[part]), 2)
            return model(x, t) + 0.1 * shift[part]

        return Denoiser(labelled, "epsilon")

    @jax.jit
    def both(keys):
        x = prior_noise(keys, (2,), process)
        return [run(denoiser(s), process, x[s], keys[s]) for s in (whole, part)]

    (together, steps), (alone, _) = jax.tree.map(np.asarray, both(keys_of(5)))
    np.testing.assert_allclose(alone, together[part], atol=1e-3 if run is likely else 1e-4)
    assert len(np.unique(steps)) > 1  # each at its own pace


@each_run
def test_what_takes_too_many_steps_is_given_up(run):
    process = VariancePreserving()
    short = jax.jit(partial(run, Mixture(process).denoiser, process, max_steps=3))
    found, _ = short(np.ones((2, 1), np.float32), keys_of(2))
    assert np.isnan(found).all()


@pytest.mark.proofs
@pytest.mark.parametrize("trace", ["hutchinson", "exact"])
def test_parameters_and_labels_may_be_traced(trace):
    """As in a program that takes them as arguments: the same as if they were constants of it."""

    def run(shift, label, x):
        denoiser = Denoiser(lambda x, t: 0.1 * x + shift * label[:, None], "epsilon")
        process, keys = VariancePreserving(), keys_of(2)
        found = log_likelihood(denoiser, process, x, keys, trace=trace, tolerance=1e-2)
        return [solve(denoiser, process, x, tolerance=1e-2).x, found.log_prob]

    shift, label = np.float32(0.3), np.array([1, 2])
    x = np.array([[0.5, 1.0], [-1.0, 2.0]], np.float32)
    compiled = jax.jit(run)
    traced = compiled(shift, label, x)
    constant = jax.jit(partial(run, shift, label))(x)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), traced, constant)
    for others in (compiled(shift, 0 * label, x), compiled(2 * shift, label, x)):
        for value, other in zip(traced, others, strict=True):
            assert np.abs(value - other).min() > 0.05


def test_a_model_that_clips_has_no_likelihood():
    process = VariancePreserving()
    clipped = replace(Mixture(process).denoiser, clip=1.0)
    with pytest.raises(ValueError, match="no likelihood"):
        log_likelihood(clipped, process, np.ones((2, 1), np.float32), keys_of(2))
