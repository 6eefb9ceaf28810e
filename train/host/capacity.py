"""Whether a run fits into the memory of its devices, asked before anything is allocated."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from opsin.train.sharding import DeviceError


def memory_of(device: Any) -> int | None:
    """The bytes that a device has, or None if it does not say.

    A CPU has those of its machine, or of the container; all fake devices share them.
    """
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(file).read_text()))
        except (OSError, ValueError):  # a system of another kind, or one that says "max"
            continue
    return min(limits) // jax.local_device_count()


def check_state(state: PyTree) -> None:
    """Raises DeviceError if a state, of which these are shapes and shardings, does not fit."""
    size = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(state)
    )
    what = "parameters, their moments and averages"
    _check_fits(size, what, "a smaller model, or parallel.fsdp=N to share them")


def check_images(
    batch: Mapping[str, jax.ShapeDtypeStruct], images: int, shards: int, field: str
) -> None:
    """Raises DeviceError if a device's share of so many images, as in a batch, does not fit."""
    image = sum(math.prod(x.shape[1:]) * x.dtype.itemsize for x in batch.values())
    size = image * images // shards
    _check_fits(size, "one batch of images", f"a smaller {field}")


def check_step(dispatch: Any) -> None:
    """Raises DeviceError if a compiled step needs more memory than there is, before it runs."""
    analysis = getattr(dispatch, "memory_analysis", lambda: None)()
    if analysis is not None:  # pmap and some platforms have none
        size = analysis.temp_size_in_bytes + analysis.argument_size_in_bytes
        remedy = "a smaller data.batch, smaller images, or loop.accumulate=N"
        _check_fits(size, "a training step", remedy)


def _check_fits(size: int, what: str, remedy: str) -> None:
    there = memory_of(jax.local_devices()[0])
    if there is not None and size > there:
        raise DeviceError(
            f"{what} would take {size / 1e9:,.3g} GB of the {there / 1e9:,.3g} GB that a device "
            f"has: ask for {remedy}"
        )
