"""Metrics as states: sums and counts, made on the device, that become numbers on the host.

Because every leaf is a sum over examples, batches, devices and processes merge in any order:
addition under ``jit``, ``jax.lax.psum`` under ``pmap``. Counts are integers, so they come out the
same on any number of devices. On the device they are int32: bring the state of each batch to the
host (``to_host``: int64 and float64) and merge it there.

What is no sum, such as an area under a curve, keeps its examples: ``Collected``. Training, where
states are summed over microbatches and steps, takes sums only (``check_sums``); evaluation takes
both.
"""

import math
import operator
from collections.abc import Iterable, Mapping
from functools import partial, reduce
from typing import Any, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Num

MOST = 2**31 - 1
"""Entries that a state of one batch can count."""

Sum = jax.Array | np.ndarray | np.number  # of examples: on the device, later on the host
Rows = jax.Array | np.ndarray  # one row an example: on the device, later on the host
AnyMetric = TypeVar("AnyMetric", bound="Metric")
AnyCollected = TypeVar("AnyCollected", bound="Collected")


@flax.struct.dataclass
class Metric:
    """Additive arrays. A subclass names them and says in ``compute`` what they amount to."""

    def merge(self: AnyMetric, *others: AnyMetric) -> AnyMetric:
        """Leaf-wise sum: the state of all these sets of examples together."""
        return reduce(partial(jax.tree.map, operator.add), others, self)

    def to_host(self: AnyMetric) -> AnyMetric:
        """See the function ``to_host``."""

        def widen(leaf: np.ndarray) -> np.ndarray:
            integer = np.issubdtype(leaf.dtype, np.integer)
            return np.asarray(leaf, np.int64 if integer else np.float64)

        return jax.tree.map(widen, jax.device_get(self))

    def compute(self) -> dict[str, float]:
        """The numbers, on the host: ``{"": value}``, or by name, ``{"f1_macro": value, …}``."""
        raise NotImplementedError


@flax.struct.dataclass
class Mean(Metric):
    """Mean of one number per example."""

    total: Sum  # [], int32 for counts, else float32
    count: Sum  # [], int32

    @classmethod
    def from_values(
        cls,
        values: Num[Array, "*batch"] | Bool[Array, "*batch"],
        valid: Bool[Array, "*batch"] | None = None,
    ) -> "Mean":
        """Sums ``values``; entries that are not ``valid`` take no part, not even a NaN."""
        valid = valid_or_all(valid, values.shape)
        # Without a dtype a sum of bfloat16 stays bfloat16.
        real = jnp.issubdtype(values.dtype, jnp.floating)
        total = jnp.sum(jnp.where(valid, values, 0), dtype=jnp.float32 if real else jnp.int32)
        return cls(total=total, count=jnp.sum(valid, dtype=jnp.int32))

    def compute(self) -> dict[str, float]:
        """The mean; NaN without examples."""
        count = int(self.count)
        return {"": float(self.total) / count if count else float("nan")}


@flax.struct.dataclass
class Collected(Metric):
    """Arrays with one row an example, for numbers that are no sums.

    A subclass names more arrays. On the device a state holds one batch, padding included; on the
    host the valid rows of all batches, in their order. It must fit into the host's memory.
    """

    valid: Rows  # [examples], bool

    def merge(self: AnyMetric, *others: AnyMetric) -> AnyMetric:
        """The rows of all, of states on the host. Each merge copies them: give all at once."""
        return jax.tree.map(lambda *rows: np.concatenate(rows), self, *others)

    def to_host(self: AnyCollected) -> AnyCollected:
        """The valid rows, in NumPy, with their types."""
        rows = jax.device_get(self)
        return jax.tree.map(lambda leaf: leaf[rows.valid], rows)


def to_host(metric: AnyMetric) -> AnyMetric:
    """The same state in NumPy, fit to be merged with others exactly.

    Sums become int64 and float64, collected examples lose their padding.
    """
    return metric.to_host()


class Merging:
    """One state a name from several of the same names, such as those of the batches of a set.

    They come to the host one late: the device is busy meanwhile, and holds no more than two. Sums
    are kept as one, collected examples in parts, which are joined once.
    """

    def __init__(self, states: Iterable[Mapping[str, Metric]] = ()) -> None:
        self._parts: dict[str, list[Any]] = {}
        self._newest: Mapping[str, Metric] = {}
        for state in states:
            self.add(state)

    def add(self, state: Mapping[str, Metric]) -> None:
        """Takes a state, and brings the one before to the host."""
        for name, metric in self._newest.items():
            parts = self._parts.setdefault(name, [])
            parts.append(to_host(metric))
            if not isinstance(metric, Collected):
                parts[:] = [parts[0].merge(*parts[1:])]
        self._newest = state

    def result(self) -> dict[str, Any]:
        """One state a name, of all that came."""
        self.add({})
        return {name: parts[0].merge(*parts[1:]) for name, parts in self._parts.items()}


def check_sums(metrics: Mapping[str, Metric]) -> None:
    """Raises ValueError unless all states are sums, as training needs them."""
    for name, metric in metrics.items():
        if isinstance(metric, Collected):
            raise ValueError(
                f"the metric {name!r} collects examples, and training adds states up: return it "
                "from evaluate, not from the loss"
            )


def compute_all(metrics: Mapping[str, Metric]) -> dict[str, float]:
    """One flat dictionary of numbers.

    A metric of one number goes by its key, one of several by the names that it gives.
    ``{"accuracy": Mean, "confusion": ConfusionMatrix}`` becomes
    ``{"accuracy": …, "f1_macro": …, …}``.

    Raises:
        ValueError: two metrics give the same name.
    """
    numbers: dict[str, float] = {}
    for key, metric in metrics.items():
        for name, value in metric.compute().items():
            name = name or key
            if name in numbers:
                raise ValueError(f"two metrics are called {name!r}; the second comes from {key!r}")
            numbers[name] = value
    return numbers


def check_countable(shape: tuple[int, ...]) -> None:
    """Raises ValueError for entries of a batch whose int32 count would wrap around."""
    if math.prod(shape) > MOST:
        raise ValueError(
            f"{math.prod(shape)} entries {list(shape)} in one batch are more than int32 counts, "
            f"{MOST}: set a smaller data.eval_batch (data.batch in training)"
        )


def valid_or_all(
    valid: Bool[Array, "*batch"] | None, shape: tuple[int, ...]
) -> Bool[Array, "*batch"]:
    """The mask of entries that count: all of them if None.

    Raises:
        ValueError: a mask of another shape, or more entries than int32 can count.
    """
    check_countable(shape)
    if valid is None:
        return jnp.ones(shape, bool)
    if valid.shape != shape:
        raise ValueError(f"valid {valid.shape} must have one entry per example, {shape}")
    return valid
