"""Weights of trained networks in safetensors files, known by their sha256.

A file holds the variables by ``/``-joined path and, as one JSON text in its header, what they are.
It is never a pickle: reading it runs no code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from opsin.data.files import at_home, in_shell, save_bytes
from opsin.data.records import open_regular, parse
from opsin.errors import UserError
from opsin.train.paths import flatten, unflatten
from opsin.train.preprocessing import Preprocessing, preprocessing_of
from opsin.train.state import State
from opsin.train.tensors import arrays_of, check_types

HEADER = "extractor"
ROOT = Path(__file__).parent.parent
AGAIN = "make it of a finished run with `opsin export RUN"


class WeightsError(UserError):
    """Weights that cannot be written, read or used."""


def save_weights(
    path: str | Path, variables: PyTree, described: Mapping[str, Any], header: str = HEADER
) -> str:
    """Writes variables, whole or not at all; the same ones always as the same bytes.

    Args:
        path: of the file; its directory is made.
        variables: ``{"params": …}``, with other collections if there are.
        described: what they are, for people and for ``read``: JSON.
        header: where that stands; elsewhere ``read`` refuses the file, as that of others.

    Returns:
        The sha256 of the file, 64 hexadecimal digits.

    Raises:
        WriteError: if the file cannot be written.
    """
    # In one entry: safetensors writes several in any order.
    metadata = {header: json.dumps(dict(described), sort_keys=True)}
    return save_bytes(at_home(path), save(arrays_of(variables), metadata=metadata))


@dataclass(frozen=True)
class Weights:
    """A file of ``save_weights``, or a part of it, that a network begins with.

    Attributes:
        path: a relative one begins in the working directory, or else, for the files in
            ``results/extractors``, at the root of this project.
        sha256: of the file, which identifies it, wherever it lies; None takes any file, and the run
            records the sha256 that it has when it begins.
        part: what is taken of the file: a path of modules, such as ``"backbone"`` or
            ``"generator"``; ``""`` is all of it, with its head.
        into: the path in the network that it is for; None is ``part``.
    """

    path: str = field(metadata={"known_by": "sha256"})
    sha256: str | None = None
    part: str = ""
    into: str | None = None

    @property
    def target(self) -> str:
        """The path in the network."""
        return self.part if self.into is None else self.into

    def fills(self, name: str) -> bool:
        """Whether a variable of the network, ``collection/path``, comes from this file."""
        return _within(name, self.target)

    def known(self) -> Weights:
        """The same with the sha256 of the file, if it had none.

        Raises:
            WeightsError: if the file is missing or cannot be read.
        """
        return self if self.sha256 else replace(self, sha256=digest_of(self.file()))

    def load(self, init: Callable[..., PyTree], *arguments: Any) -> PyTree:
        """All variables of the file, if they have the names, shapes and types of ``init``'s.

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
        self._compare(arrays, expected, "")
        return unflatten(arrays)

    def read(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The arrays by path, and what they were saved with.

        Raises:
            WeightsError: if the file is missing, damaged, no safetensors file, or not the one with
                this sha256.
        """
        with self._opened() as (file, described):
            return {name: file.get_tensor(name) for name in file.keys()}, described  # noqa: SIM118

    def seen(self) -> Preprocessing:
        """How images reached the network of the file; raises WeightsError as ``read``."""
        with self._opened() as (_, described):
            return self.preprocessing(described)

    def replace_in(self, state: State, run: Preprocessing) -> State:
        """A state with its part of the parameters, other variables and averages from the file.

        The arrays are read one by one and go straight into the shardings of those they replace: no
        device holds more than its slice, and no program has them as constants.

        Args:
            state: before the first step, laid out on its devices.
            run: how images reach the network in this run.

        Raises:
            WeightsError: as ``read``, or if an array is missing, left over or of another shape or
                type, or the network of the file saw images on another scale.
        """
        variables = flatten({"params": state.params, **state.mutable})
        with self._opened() as (file, described):
            sources = self._sources(file, described, variables, run)

            def read() -> dict[str, jax.Array]:
                return {
                    name: _placed(file.get_tensor(source), variables[name])
                    for name, source in sources.items()
                }

            new = _replaced(state.params, state.mutable, read())
            # Read again, for donated buffers must not be shared.
            ema = None if state.ema is None else _replaced(**state.ema, leaves=read())
        return replace(state, **new, ema=ema)

    def _sources(
        self,
        file: Any,
        described: Mapping[str, Any],
        variables: Mapping[str, Any],
        run: Preprocessing,
    ) -> dict[str, str]:
        """Name in the network → name in the file of all that is taken, once everything fits."""
        theirs = self.preprocessing(described, run.range)
        expected = {name: leaf for name, leaf in variables.items() if self.fills(name)}
        everything = list(file.keys())
        sources = {
            _moved(name, self.part, self.target): name
            for name in everything
            if _within(name, self.part)
        }
        if not sources:
            self._refuse_part("the file", self.part, everything, "weights.part")
        if not expected:
            self._refuse_part("the network", self.target, variables, "weights.into")
        found = {name: _spec(file, source) for name, source in sources.items()}
        seen = f"; it saw images {list(theirs.image)}, here they are {list(run.image)}"
        self._compare(found, expected, seen if theirs.image != run.image else "")
        self._check_scale(theirs, run)
        return sources

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        """The open file, once it is known to be the right one, and its header."""
        path = self.file()
        again = f"{AGAIN} {in_shell(path)}`"
        if self.sha256 is not None:
            self._check_digest(path)
        try:
            with safe_open(path, framework="numpy") as file:
                check_types(file)
                described = _header(file)
                if not described:
                    raise WeightsError(
                        f"{path} does not say what network it holds: {again}, or bring another "
                        "library's weights in with `opsin import`"
                    )
                yield file, described
        except OSError as error:
            raise WeightsError(f"cannot read {path}: {error.strerror}") from error
        except SafetensorError as error:
            raise WeightsError(
                f"{path} is damaged, or no safetensors file ({error}): {again}"
            ) from error

    def file(self) -> Path:
        """Where the file is: seen from the working directory, or else from the root of opsin."""
        here = at_home(self.path).absolute()
        for path in (here, ROOT / self.path):
            if path.is_file():
                return path
        if here.is_dir():
            raise WeightsError(
                f"{here} is a directory: of a run, `opsin export {in_shell(here)} FILE` makes one"
            )
        raise WeightsError(f"there is no {here}: {AGAIN} {in_shell(here)}`")

    def _check_digest(self, path: Path) -> None:
        if (found := digest_of(path)) != self.sha256:
            raise WeightsError(
                f"{path} has sha256 {found}, not {self.sha256}: these are other weights, and "
                "results would not compare; restore that file, or set sha256 to this one"
            )

    def _compare(self, found: Mapping[str, Any], expected: Mapping[str, Any], about: str) -> None:
        """Raises WeightsError for the first name that only one has, or both in another kind."""
        kinds = [
            (name, _kind(found.get(name)), _kind(expected.get(name)))
            for name in sorted(found.keys() | expected.keys())
        ]
        wrong = [kind for kind in kinds if kind[1] != kind[2]]
        if not wrong:
            return
        name, there, here = wrong[0]
        more = f", and {len(wrong) - 1} more differ" if len(wrong) > 1 else ""
        raise WeightsError(
            f"{self.path} is of another network: {name} is {there} there and {here} in this "
            f"one{more}{about}; give the model that was saved, or take a part that fits"
        )

    def _refuse_part(self, where: str, part: str, names: Iterable[str], option: str) -> None:
        parts = ", ".join(
            sorted({name.partition("/")[2].partition("/")[0] or name for name in names})
        )
        raise WeightsError(
            f"{self.path}: {where} has no part called {part!r}: set {option} to one of {parts}, "
            "or to a part of those"
        )

    def preprocessing(
        self, described: Mapping[str, Any], range: tuple[float, float] = (0.0, 1.0)
    ) -> Preprocessing:
        """How images reached the network of a file with this header.

        Args:
            described: the header, see ``read``.
            range: of files that do not say it.

        Raises:
            WeightsError: if the header does not say the mean, the std or the size of images.
        """
        try:
            return preprocessing_of({"range": range, **described})
        except ValueError as error:
            raise WeightsError(f"{self.path} {error}: make it again with `opsin export`") from error

    def _check_scale(self, theirs: Preprocessing, run: Preprocessing) -> None:
        """Raises WeightsError if images come on another scale than the network was trained on."""
        (mean, std), own = theirs.scale(), run.scale()
        if _alike(mean, own[0]) and _alike(std, own[1]):
            return
        low, high = run.range
        mean, std = (
            tuple(float(f"{x:.6g}") for x in values)
            for values in (np.add(mean, low * np.asarray(std)), np.multiply(std, high - low))
        )
        raise WeightsError(
            f"{self.path} was trained on images of another scale than data.mean={run.mean} and "
            f"data.std={run.std} give: set data.mean={_written(mean)} data.std={_written(std)}"
        )


def start_from(
    weights: Weights | tuple[Weights, ...] | None, state: State, run: Preprocessing
) -> State:
    """A state before the first step that begins with weights of files instead of random ones.

    Its ``opt_state`` is still of the random ones: ``Program.init_optimizers`` makes it anew.

    Args:
        weights: of one file or several, or None, which changes nothing.
        state: laid out on its devices.
        run: how images reach the network in this run.

    Raises:
        WeightsError: as ``Weights.replace_in``, or if two files are for one part.
    """
    chosen = weights if isinstance(weights, tuple) else () if weights is None else (weights,)
    for one, other in combinations(chosen, 2):
        if any(_below(a.target, b.target) for a, b in ((one, other), (other, one))):
            raise WeightsError(
                f"{one.path} and {other.path} are both for {other.target or 'all'!r}: set "
                "weights.0.into and weights.1.into to parts of their own"
            )
    for one in chosen:
        state = one.replace_in(state, run)
    return state


def digest_of(path: Path) -> str:
    """The sha256 of a file. Raises WeightsError if it cannot be read."""
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}") from error


def _header(file: Any) -> dict[str, Any]:
    """The header of a file, empty if there is none that can be read."""
    with suppress(ValueError):
        return parse((file.metadata() or {}).get(HEADER, "null"), dict[str, Any])
    return {}


def _below(path: str, part: str) -> bool:
    return part in ("", path) or path.startswith(f"{part}/")


def _within(name: str, part: str) -> bool:
    """Whether a variable, ``collection/path``, belongs to a part of the network."""
    return _below(name.partition("/")[2], part)


def _moved(name: str, part: str, target: str) -> str:
    """The name of a variable of a part, where that is called ``target``."""
    collection, _, path = name.partition("/")
    rest = path.removeprefix(part).lstrip("/")
    return "/".join(filter(None, (collection, target, rest)))


def _spec(file: Any, name: str) -> jax.ShapeDtypeStruct:
    """Shape and type of an array, without reading it."""
    part = file.get_slice(name)
    none = part[0:0] if part.get_shape() else file.get_tensor(name)
    return jax.ShapeDtypeStruct(tuple(part.get_shape()), none.dtype)


def _placed(array: np.ndarray, like: jax.Array) -> jax.Array:
    """An array of the host as another one lives on the devices: each process gives its slices."""
    return jax.make_array_from_callback(
        array.shape, like.sharding, lambda index: np.asarray(array[index])
    )


def _replaced(params: PyTree, mutable: PyTree, leaves: Mapping[str, Any]) -> dict[str, PyTree]:
    """``params`` and ``mutable`` with new leaves, by name, in place of their own."""

    def leaf(path: Any, present: Any) -> Any:
        return leaves.get(jax.tree_util.keystr(path, simple=True, separator="/"), present)

    variables = jax.tree_util.tree_map_with_path(leaf, {"params": params, **mutable})
    return {"params": variables.pop("params"), "mutable": variables}


def _alike(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether numbers of channels are the same; a single one is that of all channels."""
    short, long = sorted((one, other), key=len)
    return len(short) in (1, len(long)) and np.allclose(short, long, rtol=1e-6, atol=1e-9)


def _written(values: tuple[float, ...]) -> str:
    """As an override is typed: without spaces."""
    return f"({','.join(map(str, values))},)"


def _kind(leaf: Any) -> str:
    return "absent" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}"
