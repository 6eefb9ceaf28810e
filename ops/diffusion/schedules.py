"""Noise schedules of variance-preserving diffusion, in discrete and in continuous time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Num

from opsin.ops.diffusion.process import Levels, array_library, reverse_log_variances
from opsin.ranges import BelowOne, NonNegative, Positive, Steps

# Discrete time: β_1 … β_T, of q(x_t | x_{t-1}) = N(√(1 - β_t) x_{t-1}, β_t I).


def linear_betas(
    steps: int, *, first: BelowOne = 1e-4, last: BelowOne = 0.02
) -> Float[np.ndarray, "steps"]:
    """β from ``first`` to ``last``: Ho et al., 2020, arXiv:2006.11239, section 4.

    These are for 1000 steps; of another number, each takes 1000 / steps as much, so that the
    process ends in the same noise (so Nichol & Dhariwal).
    """
    return np.linspace(first, last, steps) * 1000 / steps


def cosine_betas(
    steps: int, *, offset: Positive = 0.008, largest: BelowOne = 0.999
) -> Float[np.ndarray, "steps"]:
    """ᾱ as a squared cosine: Nichol & Dhariwal, 2021, arXiv:2102.09672, eq. 17."""
    t = np.linspace(0, 1, steps + 1)
    return _betas(np.cos((t + offset) / (1 + offset) * np.pi / 2) ** 2, largest)


def sigmoid_betas(
    steps: int,
    *,
    start: float = -3.0,
    end: NonNegative = 3.0,
    tau: Positive = 1.0,
    largest: BelowOne = 0.999,
) -> Float[np.ndarray, "steps"]:
    """ᾱ as a sigmoid between two of its arguments: Chen, 2023, arXiv:2301.10972."""
    s = 1 / (1 + np.exp(-np.linspace(start, end, steps + 1) / tau))
    return _betas(s[-1] - s, largest)


def _betas(alpha_bar: np.ndarray, largest: float) -> np.ndarray:
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], largest)


def rescale_to_zero_snr(alpha: Float[np.ndarray, "steps"]) -> Float[np.ndarray, "steps"]:
    """α, shifted and scaled so that nothing is left of the data at the end; the first α stays.

    Lin et al., 2023, arXiv:2305.08891, algorithm 1.
    """
    return (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])


@dataclass(frozen=True)
class Discrete:
    """Time in steps 1 … T, variance-preserving; time 0 is the data, which no model sees.

    Attributes:
        betas: a function of T.
        steps: T.
        zero_terminal_snr: whether α_T is 0, see ``rescale_to_zero_snr``. At T the noise then tells
            nothing of the data: the network must predict "v" or "x0".

    Raises:
        ValueError: β outside of (0, 1], or fewer than 2 steps.
    """

    betas: Callable[[int], Float[np.ndarray, "steps"]] = linear_betas
    steps: Steps = 1000
    zero_terminal_snr: bool = False

    def __post_init__(self):
        if self.steps < 2:
            raise ValueError(f"steps must be at least 2, not {self.steps}")
        betas = self.betas(self.steps)
        if not np.all((betas > 0) & (betas <= 1)):
            raise ValueError(
                f"beta must lie in (0, 1]; of {self.steps} steps it goes from "
                f"{betas.min():.3g} to {betas.max():.3g}"
            )

    def _table(self) -> Levels:
        """α and σ at 0 … T."""
        alpha = np.sqrt(np.cumprod(1 - self.betas(self.steps)))
        if self.zero_terminal_snr:
            alpha = rescale_to_zero_snr(alpha)
        alpha = np.concatenate([[1.0], alpha])
        return Levels(alpha, np.sqrt(1 - alpha**2))

    @property
    def prior_std(self) -> float:
        """1."""
        return 1.0

    def levels(self, t: Any) -> Levels:
        """α and σ at steps t, integers in [0, T].

        Raises:
            TypeError: times that are not integers.
        """
        t = t if isinstance(t, jax.Array) else np.asarray(t)
        if not jnp.issubdtype(t.dtype, jnp.integer):
            raise TypeError(f"time is discrete: t must be integers, not {t.dtype}")
        library, table = array_library(t), self._table()
        return Levels(library.asarray(table.alpha)[t], library.asarray(table.sigma)[t])

    def conditioning(self, t: Num[Array, "*shape"]) -> Num[Array, "*shape"]:
        """The step, as if there were 1000."""
        return t * (1000 / self.steps)

    def times(self, steps: int) -> Int[np.ndarray, "{steps}+1"]:
        """See ``Process``; all steps of the schedule, or fewer."""
        if not 1 <= steps <= self.steps:
            raise ValueError(
                f"the schedule has {self.steps} steps: take 1 to {self.steps}, not {steps}"
            )
        return np.linspace(self.steps, 0, steps + 1).round().astype(np.int32)

    def karras_times(
        self, steps: int, rho: float = 7.0, high: float = 80.0
    ) -> Int[np.ndarray, "{steps}+1"]:
        """See ``Process``; the noise is the nearest that the schedule has."""
        self._require_signal()
        ends = self.levels(np.array([self.steps, 1]))
        grid = self.time_of(_karras_ratios(ends, steps, rho, high))
        if np.any(np.diff(grid) == 0):
            raise ValueError(
                f"{steps} steps of this spacing fall on {len(np.unique(grid))} of "
                f"{self.steps} times: take fewer"
            )
        return np.append(grid, np.int32(0))

    def time_of(self, ratio: Float[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
        """See ``Process``; among 1 … T, the nearest in log σ/α."""
        self._require_signal()
        table = self._table()
        known = np.log(table.sigma[1:] / table.alpha[1:])
        middles = (known[1:] + known[:-1]) / 2
        return 1 + np.searchsorted(middles, np.log(ratio)).astype(np.int32)

    def draw_times(self, keys: Key[Array, "batch"]) -> Int[Array, "batch"]:
        """See ``Process``; in 1 … T."""
        return jax.vmap(lambda key: jax.random.randint(key, (), 1, self.steps + 1))(keys)

    def log_variances(
        self, t: Int[Array, "batch"]
    ) -> tuple[Float[Array, "batch"], Float[Array, "batch"]]:
        """log β̃_t and log β_t of steps from t to t − 1, see ``reverse_log_variances``."""
        table = self._table()
        small, large = reverse_log_variances(Levels(table.alpha[::-1], table.sigma[::-1]))
        return jnp.asarray(small)[self.steps - t], jnp.asarray(large)[self.steps - t]

    def _require_signal(self) -> None:
        if self._table().alpha[-1] == 0:
            raise ValueError(
                "there is no signal at the last time, so steps cannot be even in the noise: use "
                "times, even in t"
            )


# Continuous time: t in [0, 1].


class Continuous:
    """What processes in continuous time share; they differ in their ``levels``.

    Attributes:
        start: the smallest time, above 0, that a model is trained and used at. Its levels are close
            to those of time 0, where a score may have no bound.
    """

    start: float

    @property
    def prior_std(self) -> float:
        """1."""
        return 1.0

    def levels(self, t: Any) -> Levels:
        """See ``Process``."""
        raise NotImplementedError

    def conditioning(self, t: Num[Array, "*shape"]) -> Num[Array, "*shape"]:
        """Up to 1000."""
        return 1000 * t

    def times(self, steps: int) -> Float[np.ndarray, "{steps}+1"]:
        """See ``Process``; the last but one is not below ``start``."""
        most = int(1 / self.start + 1e-6)
        if not 1 <= steps <= most:
            raise ValueError(
                f"steps must lie in 1 to {most}, or a time would be below start={self.start:g}; "
                f"got {steps}"
            )
        return np.linspace(1.0, 0.0, steps + 1)

    def karras_times(
        self, steps: int, rho: float = 7.0, high: float = 80.0
    ) -> Float[np.ndarray, "{steps}+1"]:
        """See ``Process``; the least noise is that of ``start``."""
        ends = self.levels(np.array([1.0, self.start]))
        ratios = _karras_ratios(ends, steps, rho, high * self.prior_std)
        return np.append(self.time_of(ratios), 0.0)

    def time_of(self, ratio: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """See ``Process``; by bisection."""
        low, high = np.zeros_like(ratio), np.ones_like(ratio)
        for _ in range(60):
            middle = (low + high) / 2
            levels = self.levels(middle)
            later = levels.sigma < ratio * levels.alpha
            low, high = np.where(later, middle, low), np.where(later, high, middle)
        return high

    def draw_times(self, keys: Key[Array, "batch"]) -> Float[Array, "batch"]:
        """See ``Process``; in [start, 1)."""
        return jax.vmap(lambda key: jax.random.uniform(key, minval=self.start))(keys)


def cosine_log_snr(t: Any, *, low: float = -15.0, high: float = 15.0) -> Any:
    """−2 log tan(a t + b), from ``high`` to ``low``: cos² without the offset.

    Hoogeboom et al., 2023, arXiv:2301.11093.
    """
    library = array_library(t)
    first, last = np.arctan(np.exp(-high / 2)), np.arctan(np.exp(-low / 2))
    return -2 * library.log(library.tan(first + (last - first) * t))


def linear_log_snr(t: Any, *, low: float = -10.0, high: float = 13.3) -> Any:
    """From ``high`` to ``low`` in a straight line: Kingma et al., 2021, arXiv:2107.00630.

    There the ends are learned, and ``low`` starts at −5; −10 leaves less of the data at the end.
    """
    return high + (low - high) * t


@dataclass(frozen=True)
class LogSnr(Continuous):
    """Variance-preserving, by log α²/σ² as a function of time.

    Attributes:
        log_snr: a falling function.
        start: see ``Continuous``.
    """

    log_snr: Callable[[Any], Any] = cosine_log_snr
    start: Positive = 1e-3

    def levels(self, t: Any) -> Levels:
        """α² = sigmoid(log SNR), σ² = 1 − α²."""
        library = array_library(t)
        odds = library.exp(self.log_snr(t))
        return Levels(library.sqrt(odds / (1 + odds)), library.sqrt(1 / (1 + odds)))


def _karras_ratios(ends: Levels, steps: int, rho: float, most: float) -> np.ndarray:
    """σ / α from the first of two ends, but not from above ``most``, to the last."""
    if steps < 2:
        raise ValueError(f"steps must be at least 2, not {steps}")
    high, low = np.minimum(ends.sigma / ends.alpha, most) ** (1 / rho)
    return np.linspace(high, low, steps) ** rho
