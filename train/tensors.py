"""Variables as the arrays of a safetensors file, and the types of numbers that it may hold."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree
from safetensors import SafetensorError
from safetensors.numpy import save

from opsin.train.paths import flatten

TYPES = {"F64", "F32", "F16", "BF16", "C64", "BOOL"}
TYPES |= {f"{sign}{bits}" for sign in "IU" for bits in (8, 16, 32, 64)}


def arrays_of(variables: PyTree) -> dict[str, np.ndarray]:
    """Variables by path, on the host."""
    # safetensors takes the memory as it lies there, whatever the order of the axes.
    leaves = flatten(jax.device_get(variables))
    return {name: np.asarray(leaf, order="C") for name, leaf in leaves.items()}


def fingerprint(variables: PyTree) -> str:
    """The sha256 of variables: paths, types, shapes and values."""
    return hashlib.sha256(save(arrays_of(variables))).hexdigest()


def check_types(file: Any) -> None:
    """Raises SafetensorError for an open file with numbers that NumPy lacks, such as float8."""
    for name in file.keys():  # noqa: SIM118
        if (kind := file.get_slice(name).get_dtype()) not in TYPES:
            raise SafetensorError(f"{name} is {kind}, which NumPy lacks: save it as F32 or BF16")
