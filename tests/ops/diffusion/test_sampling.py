from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from opsin.ops.diffusion.langevin import AnnealedLangevin, PredictorCorrector
from opsin.ops.diffusion.process import Denoiser, Point
from opsin.ops.diffusion.samplers import Ancestral, Ddim, DpmSolver2M, Heun
from opsin.ops.diffusion.sampling import classifier_free_guidance, prior_noise, sample, sample_path
from opsin.ops.diffusion.schedules import Discrete
from opsin.ops.diffusion.sde import VarianceExploding, VariancePreserving
from tests.ops.mixture import Mixture, two_in_plane

PRESERVING, EXPLODING = VariancePreserving(), VarianceExploding(sigma_max=10.0)


TARGETS = ("epsilon", "v", "x0", "score")


noise = jax.jit(prior_noise, static_argnums=(1, 2))


def keys_of(number):
    return jax.random.split(jax.random.key(0), number)


EVERY = [
    Ancestral(),
    Ddim(eta=0.7),
    DpmSolver2M(),
    Heun(churn=3.0),
    AnnealedLangevin(corrections=2),
    PredictorCorrector(),
]


@pytest.mark.parametrize(
    "sampler",
    [
        pytest.param(s, marks=() if type(s) in (Heun, DpmSolver2M) else pytest.mark.proofs)
        for s in EVERY
    ],
    ids=lambda s: type(s).__name__,
)
def test_an_image_does_not_depend_on_the_batch(sampler):
    model, times = two_in_plane(EXPLODING), EXPLODING.karras_times(6)
    keys = keys_of(8)
    run = jax.jit(partial(sample, model.denoiser, EXPLODING, sampler, times=times))
    x, few = (np.asarray(noise(k, (2,), EXPLODING)) for k in (keys, keys[3:5]))
    np.testing.assert_array_equal(few, x[3:5])
    together = np.asarray(run(keys, x))
    np.testing.assert_allclose(run(keys[3:5], few), together[3:5], rtol=1e-5, atol=1e-6)
    assert len(np.unique(together)) == together.size
    if not isinstance(sampler, DpmSolver2M):  # the key tells what is drawn
        assert not np.allclose(run(keys[::-1], x), together, atol=1e-3)


def test_an_image_does_not_depend_on_the_number_of_devices():
    model, times, keys = two_in_plane(EXPLODING), EXPLODING.karras_times(6), keys_of(8)
    x = noise(keys, (2,), EXPLODING)
    run = jax.jit(partial(sample, model.denoiser, EXPLODING, PredictorCorrector(), times=times))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.NamedSharding(mesh, PartitionSpec("data"))
    found = run(*jax.device_put((keys, x), spread))
    assert found.sharding.is_equivalent_to(spread, ndim=2)
    np.testing.assert_allclose(found, run(keys, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sampler", EVERY, ids=lambda s: type(s).__name__)
def test_the_model_is_compiled_once_however_many_steps(sampler):
    process = EXPLODING if isinstance(sampler, AnnealedLangevin) else PRESERVING
    model, traced = Mixture(process), []

    def counted(x, t):
        traced.append(t)
        return model(x, t)

    def count(steps):
        traced.clear()
        times, x = process.times(steps), np.zeros((2, 1), np.float32)
        denoiser = Denoiser(counted, "epsilon")
        run = partial(sample, denoiser, process, sampler, times=times)
        jax.jit(run).lower(keys_of(2), x)
        return len(traced)

    assert count(3) == count(300) <= 2


@pytest.mark.parametrize(
    ("sampler", "evaluations"),
    [
        (Ancestral(), 5),
        (Ddim(), 5),
        (DpmSolver2M(), 5),
        (Heun(), 9),
        (PredictorCorrector(corrections=2), 15),
        (AnnealedLangevin(corrections=3), 16),
    ],
    ids=lambda value: type(value).__name__,
)
def test_evaluations(sampler, evaluations):
    process = EXPLODING if isinstance(sampler, AnnealedLangevin) else PRESERVING
    asked, model = [], Mixture(process)

    def counted(x, t):
        jax.debug.callback(lambda t: asked.append(float(t[0])), t)
        return model(x, t)

    times = process.times(5)
    run = jax.jit(partial(sample, Denoiser(counted, "epsilon"), process, sampler, times=times))
    run(keys_of(2), np.zeros((2, 1), np.float32)).block_until_ready()
    jax.effects_barrier()
    assert len(asked) == evaluations
    assert min(asked) == pytest.approx(times[-2])  # never at the last time


def test_path_leads_to_the_sample():
    model, times = two_in_plane(PRESERVING), PRESERVING.times(10)
    point = Point(times[4], PRESERVING.levels(times[4]))

    @jax.jit
    def run(keys):
        x = prior_noise(keys, (2,), PRESERVING)
        arguments = (model.denoiser, PRESERVING, Ddim(), keys, x)
        path = sample_path(*arguments, times=times)
        said = model.denoiser(path.x[3], point).x0
        return path.x, path.x0, sample(*arguments, times=times), said

    x, x0, ended, said = map(np.asarray, run(keys_of(3)))
    assert x.shape == x0.shape == (10, 3, 2)
    np.testing.assert_array_equal(x[-1], ended)
    np.testing.assert_allclose(x0[-1], x[-1], rtol=1e-5)
    np.testing.assert_allclose(x0[4], said, rtol=1e-4)


def test_guidance_is_equation_6():
    """(1 + w) ε_c − w ε_u, for any target, in one evaluation of twice the batch."""
    x = np.random.default_rng(1).standard_normal((3, 1), np.float32)
    t, labels = np.float32([0.2, 0.5, 0.9]), np.array([0, 1, 0])
    parts = [Mixture(PRESERVING, means=((m,),)) for m in (-1.0, 1.0, 0.0)]

    def conditional(x, t, labels, target="epsilon"):
        assert x.shape == (6, 1)
        every = jnp.stack([replace(p, target=target)(x, t) for p in parts])
        return every[labels, jnp.arange(len(labels))]

    def guided(scale, target="epsilon"):
        model = partial(conditional, target=target)
        return classifier_free_guidance(model, labels, no_label=2, scale=scale)

    @jax.jit
    def run(x, t):
        chosen = jnp.stack([parts[c](x, t)[i] for i, c in enumerate(labels)])
        point = Point(t, PRESERVING.levels(t))
        return (
            (chosen, parts[2](x, t)),
            [guided(scale)(x, t) for scale in (0.0, 1.0, 3.0)],
            [Denoiser(guided(3.0, target), target)(x, point).x0 for target in TARGETS],
        )

    (chosen, without), found, estimates = jax.tree.map(np.asarray, run(x, t))
    for scale, value in zip((0.0, 1.0, 3.0), found, strict=True):
        expected = scale * chosen - (scale - 1) * without
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)
    for other in estimates[1:]:
        np.testing.assert_allclose(other, estimates[0], rtol=1e-3, atol=1e-3)


def test_estimates_are_clipped_on_the_way():
    schedule = Discrete()
    model = Mixture(schedule, means=((3.0,),), std=0.1)
    denoiser = replace(model.denoiser, clip=1.0)

    @jax.jit
    def run(keys):
        x = prior_noise(keys, (1,), schedule)
        return sample_path(denoiser, schedule, Ddim(), keys, x, times=schedule.times(5))

    path = run(keys_of(5))
    assert np.abs(path.x0).max() == 1.0
    np.testing.assert_allclose(np.asarray(path.x)[-1], 1.0)


def test_mistakes():
    model, keys, x = Mixture(PRESERVING), keys_of(2), jnp.zeros((2, 1))
    for times in (np.array([0.0, 1.0]), np.array([1.0]), np.array([1.0, 1.0, 0.0])):
        with pytest.raises(ValueError, match="must fall"):
            sample(model.denoiser, PRESERVING, Ddim(), keys, x, times=times)
    with pytest.raises(ValueError, match="eta must lie"):
        Ddim(eta=1.5)
