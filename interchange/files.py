"""Weights that others saved: safetensors, and PyTorch's own files.

Nothing that a file holds is run. A ``.pth`` is a pickle: where PyTorch is installed, ``torch.load``
reads it with ``weights_only=True``; elsewhere ``tensor_pickle`` reads those of the old format.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from opsin.interchange import tensor_pickle
from opsin.train.tensors import check_types
from opsin.train.weights import WeightsError, digest_of

PICKLES = (".pth", ".pt", ".bin", ".tar")
WRAPPED = ("state_dict", "model")
"""Where checkpoints of training programs hold a ``state_dict`` among other things."""


def read(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """The arrays of a file by their names, and the sha256 of the file.

    Raises:
        WeightsError: it is missing, damaged, of another kind, or needs PyTorch, which is not there.
    """
    digest = digest_of(path)
    arrays = _pickled(path) if path.suffix in PICKLES else _safetensors(path)
    if not arrays:
        raise WeightsError(f"{path} holds no arrays")
    return arrays, digest


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, framework="numpy") as file:
            check_types(file)
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, TypeError) as error:
        raise WeightsError(
            f"{path} is damaged, or no safetensors file ({error}): fetch it again; a PyTorch file "
            f"ends in {', '.join(PICKLES)}"
        ) from error


def _pickled(path: Path) -> dict[str, np.ndarray]:
    by_torch = importlib.util.find_spec("torch") is not None
    held, kind = _by_torch(path) if by_torch else (tensor_pickle.read(path), tensor_pickle.Tensor)
    for name in WRAPPED:
        if isinstance(held, Mapping) and isinstance(held.get(name), Mapping):
            held = held[name]
    if not isinstance(held, Mapping):
        raise WeightsError(f"{path} holds no state_dict, which is a mapping from names to tensors")
    tensors = {str(name): x for name, x in held.items() if isinstance(x, kind)}
    if not by_torch:
        return {name: x.array() for name, x in tensors.items()}
    try:
        return {name: x.detach().float().numpy() for name, x in tensors.items()}
    except (RuntimeError, TypeError) as error:  # sparse or quantised ones
        why = str(error).partition("\n")[0]
        raise WeightsError(f"{path} holds tensors that are no plain arrays: {why}") from error


def _by_torch(path: Path) -> tuple[Any, Any]:
    """What PyTorch reads without running anything, and the type of its tensors."""
    torch: Any = importlib.import_module("torch")
    try:
        return torch.load(path, map_location="cpu", weights_only=True), torch.Tensor
    except Exception as error:  # of many kinds; the first line says what it is
        why = str(error).partition("\n")[0]
        raise WeightsError(f"PyTorch does not read {path} as weights alone: {why}") from error
