"""The types of numbers that a safetensors file may hold here."""

from __future__ import annotations

from typing import Any

from safetensors import SafetensorError

TYPES = {"F64", "F32", "F16", "BF16", "C64", "BOOL"}
TYPES |= {f"{sign}{bits}" for sign in "IU" for bits in (8, 16, 32, 64)}


def check_types(file: Any) -> None:
    """Raises SafetensorError for an open file with numbers that NumPy lacks, such as float8."""
    for name in file.keys():  # noqa: SIM118
        if (kind := file.get_slice(name).get_dtype()) not in TYPES:
            raise SafetensorError(f"{name} is {kind}, which NumPy lacks: save it as F32 or BF16")
