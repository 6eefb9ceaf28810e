"""Checkpoints: orbax behind one small surface."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, NotRequired, TypedDict, TypeVar

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from msgspec import Meta

from opsin.data.files import aside, in_shell
from opsin.data.records import LARGEST, cause, conform
from opsin.errors import RunFailed, UserError
from opsin.train.digests import digests
from opsin.train.host.loops import patient_loops
from opsin.train.logging import NonFiniteError
from opsin.train.paths import json_leaves
from opsin.train.state import State

# The disk is full, over quota or read-only; or the file is too large, or not ours; or a folder is
# where a file should be, or a file where a folder should be.
UNWRITABLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES),
    *(errno.EEXIST, errno.EISDIR, errno.ENOTDIR),
)


class CheckpointError(UserError):
    """A checkpoint that cannot be read, or a directory that cannot be written."""


class _DamagedError(CheckpointError):
    """A checkpoint that is not as it was saved: an older one may be."""


class SaveError(RunFailed):
    """A checkpoint could not be written; the message names the last good one."""


Read = TypeVar("Read")
Integer = Literal["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]
LARGEST_EXAMPLE = 2**30
"""Numbers in an array of an example, such as an image of 18,000 x 18,000 pixels."""
Number = Integer | Literal["bool", "float16", "float32", "float64"]
"""What arrays of examples are; 64 bits only where earlier code recorded what a source gave."""


Shape = Annotated[list[Annotated[int, Meta(ge=1, le=2**24)]], Meta(max_length=8)]


class Description(TypedDict):
    """What the training data were like: shape and type of each array of an example, for one."""

    arrays: dict[str, tuple[Shape, Number]]
    examples: Annotated[int, Meta(ge=1, le=2**62)]
    class_names: list[str]
    resized: bool
    files: NotRequired[dict[str, str]]
    labels: NotRequired[str | None]


class Position(TypedDict):
    """Batches that were taken."""

    next_index: Annotated[int, Meta(ge=0, le=2**62)]


class Metadata(TypedDict):
    """What a checkpoint says beside its arrays, of which it has shapes and digests.

    ``sha256`` is that of all the rest. Earlier code left out both digests. ``best`` is the number
    that ``loop.keep_best`` kept it for.
    """

    config: dict[str, Any]
    shapes: dict[str, str]
    position: Position
    window: list[Any] | None
    seconds: Annotated[float, Meta(ge=0)]
    data: NotRequired[Description]
    best: NotRequired[float]
    digests: NotRequired[dict[str, str]]
    sha256: NotRequired[str]


class Checkpoints:
    """The checkpoints of one run, newest last. A context manager: leaving it waits for the writer.

    Saving is asynchronous and atomic: a checkpoint appears under its name once it is complete. The
    two newest are kept, so that one good one survives whatever happens to the other: if the newest
    is damaged, the other is taken, and a line says so. Several processes, which must take the same
    one, stop there: each sees its own arrays alone. What was left of saves that were cut off is
    removed.

    Args:
        directory: of the checkpoints.
        create: whether this is the run itself, which holds its directory: then it is made, cleaned,
            and a damaged checkpoint is put aside. Without it nothing is written.
    """

    def __init__(self, directory: Path, *, create: bool = True):
        self.directory = directory.absolute()  # orbax fails late on relative paths
        self._own, self._left_out = create, set[int]()
        if not create and not directory.is_dir():
            raise CheckpointError(f"there is no checkpoint in {self.directory}")
        try:
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=2,
                    create=create,
                    cleanup_tmp_directories=create,
                    # Else other threads wait for a folder that cannot be made, for 300 seconds.
                    async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
                ),
                item_names=("state", "metadata"),
            )
        except OSError as error:
            raise CheckpointError(
                f"cannot write checkpoints to {self.directory}: {error}"
            ) from error

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.wait()
        finally:
            # Closing reports a failed save once more; ``save`` or ``wait`` has raised it already.
            with suppress(Exception):
                self._manager.close()

    def latest(self) -> int | None:
        """The newest step that is saved completely, or None."""
        return self._manager.latest_step()

    def save(self, state: State, metadata: dict[str, Any]) -> None:
        """Starts to save the state under its step; ``metadata`` is JSON.

        The arrays are copied before this returns: the caller may donate them.

        Raises:
            SaveError: if this save cannot start, or the one before failed.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        metadata = metadata | {"shapes": _shapes(state), "digests": digests(state)}
        metadata |= {"sha256": _sha256(metadata)}
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),  # pyright: ignore[reportCallIssue]
                    metadata=ocp.args.JsonSave(metadata),  # pyright: ignore[reportCallIssue]
                ),
            )
        except Exception as error:  # orbax, tensorstore and the file system each raise their own
            raise self.save_error(error) from error

    def wait(self) -> None:
        """Returns once everything is on the disk.

        Raises:
            SaveError: if a save failed, naming the last good checkpoint.
        """
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise self.save_error(error) from error

    def metadata(self) -> dict[str, Any]:
        """What the newest checkpoint that is whole was saved with, without its arrays.

        Raises:
            CheckpointError: if there is none.
        """
        return self._newest_whole(self._metadata)

    def _metadata(self, step: int) -> dict[str, Any]:
        path = self.directory / str(step)
        try:
            if sum(file.stat().st_size for file in (path / "metadata").rglob("*")) > LARGEST:
                raise ValueError(f"metadata of more than {LARGEST} bytes")
            metadata: Any = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    metadata=ocp.args.JsonRestore()  # pyright: ignore[reportCallIssue]
                ),
            )["metadata"]
            conform(metadata, Metadata)
            _check_sizes(metadata.get("data", {"arrays": {}})["arrays"])
            if metadata.get("sha256", told := _sha256(metadata)) != told:
                raise ValueError("its metadata are not those that were saved")
        except Exception as error:
            raise self._damaged(step, error) from error
        return metadata

    def _newest_whole(self, read: Callable[[int], Read]) -> Read:
        """What is read of the newest checkpoint that is not damaged."""
        while steps := sorted({*self._manager.all_steps()} - self._left_out):
            try:
                return read(steps[-1])
            except _DamagedError as error:
                if len(steps) == 1 or jax.process_count() > 1:  # processes must take the same one
                    raise
                self._leave_out(steps[-1], error)
        raise CheckpointError(f"there is no checkpoint in {self.directory}")

    def _leave_out(self, step: int, error: _DamagedError) -> None:
        """Goes on without a damaged checkpoint, which is kept under another name."""
        self._left_out.add(step)
        kept = ""
        if self._own:
            path = self.directory / str(step)
            new = aside(path)
            path.rename(new)
            self._manager.reload()
            self._left_out.remove(step)
            kept = f"; it is kept as {new.name}"
        told = str(error).partition(": move it away")[0]
        print(f"{told}: taking an older one{kept}", file=sys.stderr)

    def restore(
        self,
        state: State,
        config: dict[str, Any],
        essence: Callable[[dict[str, Any]], Any] = lambda config: config,
    ) -> tuple[State, dict[str, Any]]:
        """The newest checkpoint that is whole, on the present devices.

        Args:
            state: abstract state, ``jax.ShapeDtypeStruct`` leaves with their shardings.
            config: resolved config of this run, compared to the one that was saved.
            essence: what of a config must be the same; all of it if not given.

        Returns:
            The state and the metadata it was saved with.

        Raises:
            CheckpointError: if all are damaged, or it is of another model or config: says what
                differs.
        """

        def read(step: int) -> tuple[State, dict[str, Any]]:
            metadata = self._metadata(step)
            path, saved = self.directory / str(step), metadata["config"]
            there, here = (json_leaves(essence(each)) for each in (saved, config))
            # What differs is shown with the values of defaults, which an essence leaves out.
            self._check(path, "config", there, here, (json_leaves(saved), json_leaves(config)))
            self._check(path, "model", metadata["shapes"], _shapes(state))
            return self._arrays(step, state, metadata.get("digests", {})), metadata

        return self._newest_whole(read)

    def _arrays(self, step: int, state: State, expected: dict[str, str]) -> State:
        """The arrays of a checkpoint, if they are those that were saved."""
        try:
            with patient_loops():
                restored = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(state)  # pyright: ignore[reportCallIssue]
                    ),
                )["state"]
            found = digests(restored) if expected else {}
            if wrong := [name for name in expected if found.get(name) != expected[name]]:
                raise ValueError(f"{wrong[0]} is not what was saved")
        except Exception as error:
            raise self._damaged(step, error) from error
        return restored

    def _check(
        self,
        path: Path,
        what: str,
        saved: dict[str, Any],
        here: dict[str, Any],
        shown: tuple[dict[str, Any], dict[str, Any]] = ({}, {}),
    ) -> None:
        """Raises CheckpointError if two differ; ``shown`` has their values, where it has them."""
        there_and_here = saved | shown[0], here | shown[1]
        different = [
            "{} is {} there and {} here".format(
                name, *(x.get(name, "absent") for x in there_and_here)
            )
            for name in sorted(saved.keys() | here.keys())
            if saved.get(name) != here.get(name)
        ]
        if different:
            more = f" (and {len(different) - 2} more)" if len(different) > 2 else ""
            raise CheckpointError(
                f"checkpoint {path} is of another {what}: {'; '.join(different[:2])}{more}. "
                "Move it away to start from the beginning"
            )

    def _damaged(self, step: int, error: Exception) -> CheckpointError:
        path = self.directory / str(step)
        if hidden := [each for each in path.rglob("*") if not os.access(each, os.R_OK)]:
            way_out = f"make it readable for you, as by chmod -R u+r {in_shell(path)}"
            return CheckpointError(f"{hidden[0]} may not be read: {way_out}")
        older = [other for other in self._manager.all_steps() if other < step]
        way_out = f"to resume from step {max(older)}" if older else "to start from the beginning"
        return _DamagedError(
            f"checkpoint {path} cannot be read ({cause(error)}): move it away {way_out}"
        )

    @contextmanager
    def named_in_errors(self) -> Iterator[None]:
        """Errors of a run say which checkpoint is the last good one."""
        try:
            yield
        except NonFiniteError as error:
            self.wait()
            good = self.latest()
            kept = "there is no checkpoint before it" if good is None else f"step {good} is saved"
            raise NonFiniteError(f"{error}; {kept} in {self.directory}") from None
        except OSError as error:  # a full disk shows first wherever it is written to first
            if error.errno not in UNWRITABLE:
                raise
            raise self.save_error(error) from error

    def save_error(self, error: Exception) -> SaveError:
        """What to raise when something of the run could not be written."""
        step = saved_step(self.directory)
        good = "there is no earlier one" if step is None else f"the last good one is step {step}"
        return SaveError(
            f"cannot write to {self.directory.parent} ({cause(error)}): {good}; "
            "make room and run the same command again"
        )


def saved_step(directory: Path) -> int | None:
    """The newest step that is saved in a directory of checkpoints, by the names in it."""
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=None)


def _check_sizes(arrays: Mapping[str, Any]) -> None:
    """Raises ValueError for an example that is larger than any: a network is made for it."""
    for name, (shape, _) in arrays.items():
        if math.prod(shape) > LARGEST_EXAMPLE:
            raise ValueError(f"its examples have a {name!r} of {shape}")


def _sha256(metadata: dict[str, Any]) -> str:
    rest = {name: value for name, value in metadata.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _shapes(state: PyTree) -> dict[str, str]:
    """Path → ``float32[3, 3]`` of every array of the state."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
