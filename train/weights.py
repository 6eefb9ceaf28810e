"""Weights of trained networks in safetensors files, known by their sha256.

A file holds the variables by ``/``-joined path and, as one JSON text in its header, what they are.
It is never a pickle: reading it runs no code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from errors import UserError
from train.logging import replace_bytes
from train.paths import flatten, unflatten

HEADER = "extractor"
ROOT = Path(__file__).parent.parent


class WeightsError(UserError):
    """Weights that cannot be written, read or used: the cause, and the way out."""


def save_weights(path: str | Path, variables: PyTree, described: Mapping[str, Any]) -> str:
    """Writes variables, whole or not at all; the same ones always as the same bytes.

    Args:
        path: of the file; its directory is made.
        variables: ``{"params": …}``, with other collections if there are.
        described: what they are, for people and for ``read``: JSON.

    Returns:
        The sha256 of the file, 64 hexadecimal digits.

    Raises:
        WeightsError: if the file cannot be written.
    """
    path = Path(path)
    # In one entry: safetensors writes several in any order.
    metadata = {HEADER: json.dumps(dict(described), sort_keys=True)}
    content = save(_arrays(variables), metadata=metadata)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(path, content)
    except OSError as error:
        raise WeightsError(f"cannot write {path}: {error.strerror}") from error
    return hashlib.sha256(content).hexdigest()


def fingerprint(variables: PyTree) -> str:
    """The sha256 of variables: paths, types, shapes and values."""
    return hashlib.sha256(save(_arrays(variables))).hexdigest()


@dataclass(frozen=True)
class Weights:
    """A file of ``save_weights``.

    Attributes:
        path: a relative one is below the root of this project, wherever it is run from.
        sha256: of the file, so that a run says which weights it began with; None takes any.
    """

    path: str
    sha256: str | None = None

    def load(self, init: Callable[..., PyTree], *arguments: Any) -> PyTree:
        """The variables, if they are those that ``init`` gives, in all but their values.

        Args:
            init: the initialiser of a network.
            arguments: of it, arrays or their shapes.

        Raises:
            WeightsError: as ``read``, or for variables of another network.
        """
        arrays, _ = self.read()
        try:
            expected = flatten(jax.eval_shape(init, *arguments))
        except ValueError as error:
            raise WeightsError(f"{self.path} is of another network: {error}") from error
        self._compare(arrays, expected)
        return unflatten(arrays)

    def load_part(self, variables: PyTree, part: str) -> PyTree:
        """Variables with those of one part, such as the backbone, taken from the file.

        Args:
            variables: ``{collection: {part: …}}`` of another network with that part.
            part: its name; what the file has besides is left out.

        Raises:
            WeightsError: as ``read``, or if a part is missing, or differs in more than values.
        """

        def of_part(leaves: Mapping[str, Any]) -> dict[str, Any]:
            return {name: leaf for name, leaf in leaves.items() if name.split("/")[1:2] == [part]}

        whole = flatten(variables)
        arrays = of_part(self.read()[0])
        if not arrays:
            raise WeightsError(f"{self.path} has no part called {part!r}: give another file")
        self._compare(arrays, of_part(whole))
        return unflatten(whole | arrays)

    def _compare(self, arrays: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
        for name in sorted(arrays.keys() | expected.keys()):
            there, here = (_kind(leaves.get(name)) for leaves in (arrays, expected))
            if there != here:
                raise WeightsError(
                    f"{self.path} is of another network: {name} is {there} there and {here} in "
                    "this one; give the model that was saved"
                )

    def read(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The arrays by path, and what they were saved with.

        Raises:
            WeightsError: if the file is missing, damaged, no safetensors file, or not the one with
                this sha256.
        """
        path = ROOT / self.path
        again = f"make it of a finished run with `opsin export RUN {path}`"
        if not path.is_file():
            raise WeightsError(f"there is no {path}: {again}")
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            with safe_open(path, framework="numpy") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                header = (file.metadata() or {}).get(HEADER, "null")
        except OSError as error:
            raise WeightsError(f"cannot read {path}: {error.strerror}") from error
        except SafetensorError as error:
            raise WeightsError(
                f"{path} is damaged, or no safetensors file ({error}): {again}"
            ) from error
        if self.sha256 not in (None, found):
            raise WeightsError(
                f"{path} has sha256 {found}, not {self.sha256}: these are other weights, by which "
                "results do not compare; restore that file, or set sha256 to go by this one"
            )
        described = json.loads(header)
        if described is None:
            raise WeightsError(f"{path} does not say what network it holds: {again}")
        return arrays, described


def _arrays(variables: PyTree) -> dict[str, np.ndarray]:
    # safetensors takes the memory as it lies there, whatever the order of the axes.
    leaves = flatten(jax.device_get(variables))
    return {name: np.asarray(leaf, order="C") for name, leaf in leaves.items()}


def _kind(leaf: Any) -> str:
    return "absent" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}"
