"""The flow of probability between noise and data, solved by diffrax; likelihoods by it.

Song et al., 2021, arXiv:2011.13456, section 4.3.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core as jax_core
from jax.scipy.stats import norm
from jaxtyping import Array, Float, Int, Key

from opsin.ops.diffusion.process import Denoiser
from opsin.ops.diffusion.schedules import Continuous
from opsin.ops.diffusion.sde import probability_flow
from opsin.ranges import NonNegative, Steps


class Solution(NamedTuple):
    """Where the flow leads from an image, and what it took.

    Attributes:
        x: NaN if it was not reached.
        steps: that were tried, of six evaluations of the model each; the batch waits for the
            slowest.
    """

    x: Float[Array, "batch ..."]
    steps: Int[Array, "batch"]


def solve(
    denoiser: Denoiser,
    process: Continuous,
    x: Float[Array, "batch ..."],
    *,
    reverse: bool = True,
    tolerance: NonNegative = 1e-5,
    max_steps: Steps = 1000,
) -> Solution:
    """The probability flow from noise at time 1 to data at ``process.start``; or the other way.

    By diffrax, with Dormand and Prince's method of order 5. Each image has steps of its own, so
    that it is the same in any batch, and the model is called once for the whole batch. Not for
    reverse-mode differentiation.

    Args:
        denoiser: of a model in continuous time.
        process: of the model.
        x: where the flow starts, such as ``ops.diffusion.sampling.prior_noise``.
        reverse: whether it goes from noise to data.
        tolerance: of the error of each step, relative and absolute.
        max_steps: after which an image is given up.
    """

    def slope(x: Array, t: Array) -> Array:
        return probability_flow(denoiser, process, x, t)

    ends = (1.0, process.start) if reverse else (process.start, 1.0)
    flow = _over_batch(slope, x, _times(x))
    x, steps = _integrate(lambda t, x, _: flow(x, t), ends, x, None, tolerance, max_steps)
    return Solution(x, steps)


class Likelihood(NamedTuple):
    """log p(x) in nats, and what it took.

    Attributes:
        log_prob: of the density of data with the noise of ``process.start``; NaN if it failed.
        latent: the noise at time 1 that the image is one-to-one with.
        steps: see ``Solution``.
    """

    log_prob: Float[Array, "batch"]
    latent: Float[Array, "batch ..."]
    steps: Int[Array, "batch"]


def log_likelihood(
    denoiser: Denoiser,
    process: Continuous,
    x: Float[Array, "batch ..."],
    keys: Key[Array, "batch"],
    *,
    trace: Literal["exact", "hutchinson"] = "hutchinson",
    tolerance: NonNegative = 1e-5,
    max_steps: Steps = 1000,
) -> Likelihood:
    """log p_0(x) = log p_1(x_1) + ∫ div dt along the probability flow.

    Args:
        denoiser: of a model in continuous time, without ``clip``, which has no density.
        process: of the model.
        x: images, dequantised.
        keys: of the estimates of the divergence, one for each image.
        trace: "exact" takes a pass for each dimension; "hutchinson" takes one with a random vector
            of ±1, the same all along, and has the right expectation (Grathwohl et al., 2019,
            arXiv:1810.01367).
        tolerance: see ``solve``.
        max_steps: see ``solve``.

    Raises:
        ValueError: a denoiser that clips.
    """
    if denoiser.clip is not None:
        raise ValueError("a model whose estimates are clipped has no likelihood by its flow")

    def slopes(x: Array, t: Array, probe: Array) -> tuple[Array, Array]:
        def slope(x: Array) -> Array:
            return probability_flow(denoiser, process, x, t)

        def along(direction: Array) -> tuple[Array, Array]:
            value, tangent = jax.jvp(slope, (x,), (direction,))
            return value, jnp.sum(direction * tangent, axis=tuple(range(1, x.ndim)))

        if trace == "hutchinson":
            return along(probe)
        basis = jnp.eye(x[0].size).reshape(-1, 1, *x.shape[1:])
        values, diagonal = lax.map(lambda e: along(jnp.broadcast_to(e, x.shape)), basis)
        return values[0], jnp.sum(diagonal, axis=0)

    probes = jax.vmap(lambda key: jax.random.rademacher(key, x.shape[1:], jnp.float32))(keys)
    flow = _over_batch(slopes, x, _times(x), probes)

    def extended(t: Array, state: tuple[Array, Array], probe: Array) -> tuple[Array, Array]:
        return flow(state[0], t, probe)

    ends, start = (process.start, 1.0), (x, jnp.zeros(len(x)))
    (latent, change), steps = _integrate(extended, ends, start, probes, tolerance, max_steps)
    prior = norm.logpdf(latent, scale=process.prior_std)
    return Likelihood(jnp.sum(prior, axis=tuple(range(1, x.ndim))) + change, latent, steps)


def _integrate(
    slope: Callable[[Any, Any, Any], Any],
    ends: tuple[float, float],
    start: Any,
    arguments: Any,
    tolerance: float,
    max_steps: int,
) -> tuple[Any, Int[Array, "batch"]]:
    """Where each of a batch ends, NaN if it does not, and the steps that were tried."""

    def one(start: Any, argument: Any) -> tuple[Any, Array]:
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(slope),
            diffrax.Dopri5(),
            t0=ends[0],
            t1=ends[1],
            dt0=None,
            y0=start,
            args=argument,
            stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
            adjoint=diffrax.ForwardMode(),
            max_steps=max_steps,
            throw=False,
        )
        reached = solution.result == diffrax.RESULTS.successful
        last = jax.tree.map(lambda y: jnp.where(reached, y[-1], jnp.nan), solution.ys)
        return last, solution.stats["num_steps"]

    return jax.vmap(one)(start, arguments)


def _times(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((len(x),), jnp.float32)


def _over_batch(function: Callable[..., Any], *shapes: Any) -> Callable[..., Any]:
    """A function of a batch as one of an image, which ``vmap`` turns back into that of the batch.

    So that a solver of one image's equation, mapped over images, asks the model for all of them at
    once, as it is; models may be bound to the labels of the batch. To be called under ``vmap``
    only.

    Args:
        function: of arrays [batch, ...]; what it closes over may be traced, such as parameters.
        shapes: arrays like its arguments.
    """
    # A custom rule must not close over what is traced, so that all of it is handed over.
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*shapes)
    tree, known = jax.tree.structure(shape), len(closed.consts)

    def evaluated(constants: Sequence[Array], every: Sequence[Array]) -> Any:
        whole = jax_core.jaxpr_as_fun(jax_core.ClosedJaxpr(closed.jaxpr, constants))
        return jax.tree.unflatten(tree, whole(*every))

    @jax.custom_batching.custom_vmap
    def of_one(*arguments: Array) -> Any:
        del arguments
        return jax.tree.map(lambda y: jnp.zeros(y.shape[1:], y.dtype), shape)  # types alone

    @of_one.def_vmap
    def _of_all(axis_size: int, mapped: list[bool], *arguments: Array) -> tuple[Any, Any]:
        if any(mapped[:known]):
            raise ValueError("a flow is solved for one model: vmap over its parameters outside")
        every = [
            a if has_axis else jnp.broadcast_to(a, (axis_size, *jnp.shape(a)))
            for a, has_axis in zip(arguments[known:], mapped[known:], strict=True)
        ]
        results = evaluated(arguments[:known], every)
        return results, jax.tree.map(lambda _: True, results)

    return partial(of_one, *closed.consts)
