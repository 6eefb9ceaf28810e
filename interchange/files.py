"""Weights that others saved: safetensors, and PyTorch's own files by PyTorch's own careful reader.

Nothing that a file holds is run: a ``.pth`` is a pickle, which ``torch.load`` reads with
``weights_only=True``, and nobody else does.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from opsin.train.weights import WeightsError

PICKLES = (".pth", ".pt", ".bin", ".tar")
WRAPPED = ("state_dict", "model")
"""Where checkpoints of training programs hold a ``state_dict`` among other things."""


def read(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """The arrays of a file by their names, and the sha256 of the file.

    Raises:
        WeightsError: it is missing, damaged, of another kind, or needs PyTorch, which is not there.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}") from error
    arrays = _pickled(path) if path.suffix in PICKLES else _safetensors(path)
    if not arrays:
        raise WeightsError(f"{path} holds no arrays")
    return arrays, digest


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, TypeError) as error:
        raise WeightsError(
            f"{path} is damaged, or no safetensors file ({error}): fetch it again; a PyTorch file "
            f"ends in {', '.join(PICKLES)}"
        ) from error


def _pickled(path: Path) -> dict[str, np.ndarray]:
    if importlib.util.find_spec("torch") is None:
        raise WeightsError(
            f"{path} is a pickle, which only PyTorch reads without running what is in it: "
            "pip install 'opsin[torch]', or save it as safetensors"
        )
    torch: Any = importlib.import_module("torch")
    try:
        held: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds; the first line says what it is
        why = str(error).partition("\n")[0]
        raise WeightsError(f"PyTorch does not read {path} as weights alone: {why}") from error
    for name in WRAPPED:
        if isinstance(held, Mapping) and isinstance(held.get(name), Mapping):
            held = held[name]
    if not isinstance(held, Mapping):
        raise WeightsError(f"{path} holds no state_dict, which is a mapping from names to tensors")
    tensors = {str(name): x for name, x in held.items() if isinstance(x, torch.Tensor)}
    try:
        return {name: x.detach().float().numpy() for name, x in tensors.items()}
    except (RuntimeError, TypeError) as error:  # sparse or quantised ones
        why = str(error).partition("\n")[0]
        raise WeightsError(f"{path} holds tensors that are no plain arrays: {why}") from error
