"""Sampling of diffusion models: from noise to data along a grid of times, in one scan."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key, Num

from opsin.ops.diffusion.process import Denoiser, Levels, Model, Point, Process, between
from opsin.ops.diffusion.samplers import DpmSolver2M, Heun, Sampler, State, fold_keys, keyed_normal
from opsin.ranges import Count, CountOrZero, NonNegative, Positive, Steps


@dataclass(frozen=True)
class Sampling:
    """How images are made of noise.

    Attributes:
        sampler: how a step goes from a time to the next; see ``ops.diffusion.samplers``.
        steps: number of them.
        spacing: "time", even in time, or "noise", after Karras et al., 2022, eq. 5; None is "noise"
            for ``Heun``, which is made for it, and "time" for all others.
        guidance: scale for a class-conditional model: 1 is no guidance, 0 ignores the class, and
            more than 1 strengthens it (Ho & Salimans, 2022, arXiv:2207.12598; their w is this less
            1). Other than 0 and 1, each step evaluates the network twice.
        clip: estimates of the image are held in [−clip, clip]; the images are in [−1, 1].
    """

    sampler: Sampler = field(default_factory=DpmSolver2M)
    steps: Steps = 20
    spacing: Literal["time", "noise"] | None = None
    guidance: NonNegative = 1.0
    clip: Positive | None = 1.0

    def times(self, process: Process) -> np.ndarray:
        """The times of the steps.

        Raises:
            ValueError: an unknown spacing, one that the process cannot have, or more steps than it
                has.
        """
        spacing = self.spacing or ("noise" if isinstance(self.sampler, Heun) else "time")
        if spacing not in ("time", "noise"):
            raise ValueError(f'spacing is "time" or "noise", not {spacing!r}')
        return (process.times if spacing == "time" else process.karras_times)(self.steps)

    def check(self, process: Process) -> None:
        """Raises ValueError for steps that this process does not have, or this sampler not take."""
        if isinstance(self.sampler, str | type):
            raise ValueError(
                f"sampler must be an object such as Heun(), not {self.sampler!r}; by name there "
                "are ops.diffusion.samplers:ANCESTRAL, DDIM, DPM_SOLVER and HEUN, and "
                "ops.diffusion.langevin:LANGEVIN and PREDICTOR_CORRECTOR"
            )
        if not np.isfinite(self.guidance):
            raise ValueError(f"guidance must be a number, not {self.guidance}")
        times = self.times(process)
        levels = process.levels(times)
        levels = Levels(np.append(levels.alpha[:-1], 1.0), np.append(levels.sigma[:-1], 0.0))
        self.sampler.plan(process, Point(times, levels))


def prior_noise(
    keys: Key[Array, "batch"], shape: tuple[int, ...], process: Process
) -> Float[Array, "batch ..."]:
    """x_T for each key, of this shape without the batch: N(0, prior_std² I)."""
    return process.prior_std * keyed_normal(fold_keys(keys, 0), (len(keys), *shape))


def sample(
    denoiser: Denoiser,
    process: Process,
    sampler: Sampler,
    keys: Key[Array, "batch"],
    x: Float[Array, "batch ..."],
    *,
    times: Num[np.ndarray, "points"],
    denoise_last: bool = True,
) -> Float[Array, "batch ..."]:
    """Data, from x at the first of the times.

    Args:
        denoiser: evaluated once a step, unless the sampler says otherwise. It is not evaluated at
            the last time, except by the correction of ``Heun`` if there is noise at that time and
            ``denoise_last`` is False.
        process: that its model was trained on.
        sampler: see ``ops.diffusion.samplers``.
        keys: one for each image; those of ``prior_noise`` serve again.
        x: ``prior_noise``, or anything with as much noise as the process has at the first time.
        times: falling, of ``process.times`` or ``process.karras_times``.
        denoise_last: whether the last step goes to the estimate of x_0, free of whatever noise the
            process has at the last time.

    Raises:
        ValueError: times that do not fall, or no signal at the first of them where the model
            predicts "epsilon" or "score".
    """
    final, _ = _run(denoiser, process, sampler, keys, x, times, denoise_last, keep=False)
    return final.x


def sample_path(
    denoiser: Denoiser,
    process: Process,
    sampler: Sampler,
    keys: Key[Array, "batch"],
    x: Float[Array, "batch ..."],
    *,
    times: Num[np.ndarray, "points"],
    denoise_last: bool = True,
) -> State:
    """``sample`` with its whole path: x and x_0 after each step, [steps, batch, ...]."""
    return _run(denoiser, process, sampler, keys, x, times, denoise_last, keep=True)[1]


def classifier_free_guidance(
    model: Callable[[Array, Array, Int[Array, "batch"]], Array],
    labels: Int[Array, "batch"],
    *,
    no_label: CountOrZero,
    scale: float | Float[Array, ""],
    channels: Count | None = None,
) -> Model:
    """A model of the class, pushed away from that of no class: u + scale (c − u).

    Ho & Salimans, 2022, arXiv:2207.12598, eq. 6, with scale = 1 + w: 0 is without the class, 1
    without guidance. It is the same for all targets. The model is called once, on twice the batch.

    Args:
        model: of x, times and labels.
        labels: one for each image.
        no_label: what stands for "no class" in training.
        scale: of the guidance.
        channels: how many channels of the prediction are guided, from the first; the others, such
            as a variance, are those of the conditional prediction. None guides all.
    """

    def guided(x: Array, t: Array) -> Array:
        both = jnp.concatenate([labels, jnp.full_like(labels, no_label)])
        prediction = model(jnp.concatenate([x, x]), jnp.concatenate([t, t]), both)
        conditional, unconditional = jnp.split(prediction, 2)
        guided = conditional.shape[-1] if channels is None else channels
        pushed = unconditional + scale * (conditional - unconditional)
        return jnp.concatenate([pushed[..., :guided], conditional[..., guided:]], axis=-1)

    return guided


def _run(
    denoiser: Denoiser,
    process: Process,
    sampler: Sampler,
    keys: Key[Array, "batch"],
    x: Array,
    times: np.ndarray,
    denoise_last: bool,
    *,
    keep: bool,
) -> tuple[State, Any]:
    times = np.asarray(times)
    if len(times) < 2 or np.any(np.diff(times) >= 0):
        raise ValueError("times must fall from noise to data")
    levels = process.levels(times)
    if denoise_last:
        levels = Levels(np.append(levels.alpha[:-1], 1.0), np.append(levels.sigma[:-1], 0.0))
    if levels.alpha[0] == 0 and denoiser.target in ("epsilon", "score"):
        raise ValueError(
            f"at time {times[0]} there is no signal, and a prediction of {denoiser.target} does "
            'not determine the data: predict "v" or "x0"'
        )
    plan = sampler.plan(process, Point(times, levels))

    def step(state: State, step: Any) -> tuple[State, State | None]:
        n, point, plan = step
        state = sampler.step(denoiser, state, point, plan, fold_keys(keys, n))
        return state, state if keep else None

    numbers = np.arange(1, len(times), dtype=np.int32)  # 0 is that of the prior
    steps = (numbers, Point(times[:-1], between(levels)[0]), plan)
    x = x.astype(jnp.float32)
    return lax.scan(step, State(x, jnp.zeros_like(x)), jax.tree.map(jnp.asarray, steps))
