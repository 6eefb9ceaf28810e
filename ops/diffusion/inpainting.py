"""Parts of an image that are known: sampling of the rest by a model that knows nothing of it."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Key

from opsin.ops.diffusion.process import (
    Denoiser,
    Levels,
    Point,
    Process,
    between,
    diffuse,
    transition_variance,
)
from opsin.ops.diffusion.samplers import Sampler, State, fold_keys, keyed_normal
from opsin.ranges import Depth


class _Plan(NamedTuple):
    inner: Any
    next: Levels
    back: Any
    back_std: Any
    goes_on: Any


@dataclass(frozen=True)
class Inpaint:
    """A sampler that puts the known pixels back, with their noise, after each step.

    Replacement alone (Song et al., 2021, arXiv:2011.13456, appendix I.2) gives a rest that fits the
    known pixels too little: the step did not know them. With resamplings each step is taken back by
    new noise and done again: RePaint, Lugmayr et al., 2022, arXiv:2201.09865, algorithm 1, with
    jumps of one step.

    Attributes:
        known: images in the space of the model, [batch, ...]; of these the known pixels are used.
        mask: where they are known, a shape that broadcasts to that of ``known``.
        sampler: of the steps; one that does not remember the step before.
        resamplings: how often each step is done, at least 1.

    Raises:
        ValueError: a number of resamplings below 1, or a sampler that remembers.
    """

    known: Float[Array, "..."]
    mask: Bool[Array, "..."]
    sampler: Sampler
    resamplings: Depth = 1

    def __post_init__(self):
        if self.resamplings < 1:
            raise ValueError(f"a step is done at least once, not {self.resamplings} times")
        if self.sampler.remembers:
            raise ValueError(
                "inpainting repeats steps, which this sampler cannot: choose ddim or ancestral"
            )

    @property
    def remembers(self) -> bool:
        """See ``ops.diffusion.samplers.Sampler``."""
        return False

    def plan(self, process: Process, grid: Point) -> _Plan:
        """See ``ops.diffusion.samplers.Sampler``."""
        now, before = between(grid.levels)
        back = now.alpha / before.alpha
        std = np.sqrt(np.maximum(transition_variance(before, now), 0.0))
        return _Plan(self.sampler.plan(process, grid), before, back, std, before.sigma > 0)

    def step(
        self, denoise: Denoiser, state: State, point: Point, plan: _Plan, keys: Key[Array, "batch"]
    ) -> State:
        """See ``ops.diffusion.samplers.Sampler``."""

        def once(keys: Array, state: State) -> State:
            made = self.sampler.step(denoise, state, point, plan.inner, fold_keys(keys, 0))
            noise = keyed_normal(fold_keys(keys, 1), made.x.shape)
            x = jnp.where(self.mask, diffuse(self.known, noise, plan.next), made.x)
            return State(x, jnp.where(self.mask, self.known, made.x0))

        def again(i: Array, state: State) -> State:
            keys_again = fold_keys(keys, i)
            noise = keyed_normal(fold_keys(keys_again, 2), state.x.shape)
            back = plan.back * state.x + plan.back_std * noise
            return once(keys_again, state._replace(x=jnp.where(i == 0, state.x, back)))

        # The last step ends in the data, which no noise need be added to.
        return lax.fori_loop(0, jnp.where(plan.goes_on, self.resamplings, 1), again, state)
