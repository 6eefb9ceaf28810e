from functools import partial

import jax
import numpy as np
import pytest

from opsin.ops.diffusion.schedules import Discrete, LogSnr
from opsin.ops.diffusion.sde import (
    SubVariancePreserving,
    VarianceExploding,
    VariancePreserving,
    probability_flow,
    rates,
)
from tests.ops.mixture import two_in_plane

T = np.linspace(0.02, 1.0, 13)
BETA = 0.1 + 19.9 * T
INTEGRAL = 0.1 * T + 19.9 * T**2 / 2
EQUATIONS = [  # f and g² of Song et al., section 3.4
    (VarianceExploding(), 0 * T, (0.01 * 5000**T) ** 2 * 2 * np.log(5000)),
    (VariancePreserving(), -BETA / 2, BETA),
    (SubVariancePreserving(), -BETA / 2, BETA * (1 - np.exp(-2 * INTEGRAL))),
]


@pytest.mark.parametrize(
    ("process", "drift", "square"), EQUATIONS, ids=lambda v: getattr(type(v), "__name__", "")
)
def test_rates_are_the_papers(process, drift, square):
    found = jax.jit(partial(rates, process))(np.float32(T))
    np.testing.assert_allclose(found.drift, drift, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found.square, square, rtol=1e-4)


@pytest.mark.parametrize(
    ("process", "drift", "square"), EQUATIONS, ids=lambda v: getattr(type(v), "__name__", "")
)
def test_marginals_are_those_of_the_equation(process, drift, square):
    """By Euler and Maruyama from time 0, where VE has noise already."""
    del drift, square
    number, steps = 5000, 1000
    t = np.arange(steps) / steps + 0.5 / steps
    f, g2 = map(np.asarray, jax.jit(partial(rates, process))(np.float32(t)))
    rng = np.random.default_rng(0)
    first = process.levels(np.array(0.0))
    x = 1.5 * first.alpha + first.sigma * rng.normal(size=number)
    for step in range(steps):
        x = x + f[step] * x / steps + np.sqrt(g2[step] / steps) * rng.normal(size=number)
        if step + 1 in (200, 1000):
            levels = process.levels(np.array((step + 1) / steps))
            error = levels.sigma / np.sqrt(number)
            assert abs(x.mean() - 1.5 * levels.alpha) < 4 * error + 0.005
            assert abs(x.std() / levels.sigma - 1) < 4 / np.sqrt(2 * number) + 0.005


def test_vp_is_the_limit_of_ddpm():
    """By as much as the steps are shorter, but for the first ones."""
    errors = []
    for steps in (1000, 4000):
        t = np.array([0.1, 0.5, 1.0])
        discrete = Discrete(steps=steps).levels((steps * t).astype(int))
        continuous = VariancePreserving().levels(t)
        errors.append(
            [discrete.alpha / continuous.alpha - 1, discrete.sigma / continuous.sigma - 1]
        )
    assert np.abs(errors[1]).max() < 0.01
    np.testing.assert_allclose(errors[0], 4 * np.asarray(errors[1]), rtol=0.1, atol=1e-6)


def test_processes_at_their_ends():
    exploding = VarianceExploding(sigma_min=0.02, sigma_max=30.0)
    levels = exploding.levels(np.array([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(levels.sigma, [0.02, np.sqrt(0.6), 30.0])
    np.testing.assert_array_equal(levels.alpha, 1.0)
    assert exploding.prior_std == 30.0
    preserving, less = (p.levels(T) for p in (VariancePreserving(), SubVariancePreserving()))
    np.testing.assert_allclose(preserving.alpha**2 + preserving.sigma**2, 1.0)
    np.testing.assert_allclose(less.alpha, preserving.alpha)
    np.testing.assert_allclose(less.sigma, preserving.sigma**2)
    assert VariancePreserving().prior_std == SubVariancePreserving().prior_std == 1.0


@pytest.mark.parametrize(
    "process", [*(e[0] for e in EQUATIONS), LogSnr()], ids=lambda p: type(p).__name__
)
def test_flow_carries_the_marginals(process):
    """The continuity equation, ∂p/∂t = −∇·(p v), by differences of the density of a mixture."""
    model = two_in_plane(process)
    t, h = 0.4, 1e-3
    scale = float(model.at(t).std)
    x = scale * np.random.default_rng(1).normal(size=(6, 2)) + model.at(t).mean()

    flow = jax.jit(partial(probability_flow, model.denoiser, process))

    def flux(x):
        velocity = flow(np.float32(x), np.full(len(x), t, np.float32))
        return np.exp(model.at(t).log_prob(x))[:, None] * np.asarray(velocity)

    change = np.exp(model.at(t + h).log_prob(x)) - np.exp(model.at(t - h).log_prob(x))
    step = 1e-2 * scale
    divergence = sum(
        (flux(x + step * e)[:, i] - flux(x - step * e)[:, i]) / (2 * step)
        for i, e in enumerate(np.eye(2))
    )
    size = np.abs(change / (2 * h)).max()
    np.testing.assert_allclose(change / (2 * h), -divergence, rtol=0.02, atol=0.01 * size)
