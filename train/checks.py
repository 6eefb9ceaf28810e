"""What an experiment asks for, compared to itself and to the parameters before anything runs."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import jax
import jax.numpy as jnp
from flax.errors import FlaxError
from jax.sharding import Mesh

from opsin.data.enclosure import component
from opsin.errors import UserError
from opsin.train.best import check_keep_best
from opsin.train.experiment import Experiment, Loop
from opsin.train.optim import Optimizer
from opsin.train.settings import SettingError
from opsin.train.sharding import DeviceError, batch_shards


def check_experiment(experiment: Experiment) -> None:
    """Raises SettingError for invalid or contradictory fields of data and loop."""
    data, loop, parallel = experiment.data, experiment.loop, experiment.parallel
    for split in data.eval_splits:
        component("data.eval_splits", split)
        if split == "train" or split.removesuffix("_ema") in data.eval_splits.keys() - {split}:
            raise SettingError(
                f"data.eval_splits: {split!r} is also the name of other metrics; choose another"
            )
    if loop.keep_best is not None:
        check_keep_best(loop.keep_best, data.eval_splits)
    pmap, whole = loop.strategy == "pmap", parallel.fsdp == parallel.tensor == 1
    if pmap and (loop.steps_per_dispatch > 1 or not whole):
        raise SettingError(
            "loop.strategy='pmap' runs one step a dispatch and keeps the state whole: set "
            "loop.steps_per_dispatch=1, parallel.fsdp=1 and parallel.tensor=1, or "
            "loop.strategy='jit'"
        )
    if pmap and jax.process_count() > 1:
        raise SettingError(
            "loop.strategy='pmap' is for the devices of one process: set loop.strategy='jit'"
        )


def check_replicas(loop: Loop, mesh: Mesh) -> None:
    """Raises SettingError unless ``loop.replicas``, part of a run's id, are those that run."""
    here = batch_shards(mesh) if loop.strategy == "pmap" else 1
    if loop.replicas != here:
        raise SettingError(
            f"loop.replicas={loop.replicas} is part of the run's id, and loop.strategy="
            f"{loop.strategy!r} has {here} here: set loop.replicas={here}"
        )


def check_optimizer(optimizer: Optimizer) -> None:
    """Raises SettingError for an invalid regular expression."""
    for field, pattern in _patterns(optimizer):
        try:
            re.compile(pattern)
        except re.error as error:
            raise SettingError(f"optimizer.{field}: {pattern!r} is no pattern: {error}") from error


def check_batch(batch: int, mesh: Mesh, parts: int = 1, what: str = "microbatches") -> None:
    """Raises DeviceError unless every device gets the same number of images in every part."""
    shards = batch_shards(mesh)
    if batch % (shards * parts):
        whole = f"{shards} devices" + (f" times {parts} {what}" if parts > 1 else "")
        nearest = batch // (shards * parts) * shards * parts or shards * parts
        raise DeviceError(
            f"data.batch={batch} does not divide by {whole}: try data.batch={nearest}"
        )


def check_precision(trained: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    """Raises SettingError for parameters in which updates would be lost by rounding.

    In bfloat16 1 − 1e-4 is 1: moments and averages in it would stand still too.
    """
    for path, leaf in trained.items():
        if jnp.issubdtype(leaf.dtype, jnp.floating) and jnp.finfo(leaf.dtype).bits < 32:
            raise SettingError(
                f"the parameter {path!r} is {leaf.dtype}, in which updates are lost by rounding: "
                "leave param_dtype as it is, float32, and compute in bfloat16 by "
                "task.model.dtype=jax.numpy:bfloat16"
            )


def check_found(optimizer: Optimizer, paths: list[str]) -> None:
    """Raises SettingError for a pattern that matches no path: it would silently do nothing.

    Nor may one of ``unfreeze`` find but what is frozen, or found by an earlier one.
    """
    for field, pattern in _patterns(optimizer):
        if not any(re.search(pattern, path) for path in paths):
            near = difflib.get_close_matches(pattern, paths, n=1, cutoff=0.0)[0]
            raise SettingError(
                f"optimizer.{field}: no parameter has {pattern!r} in its path; there is {near!r}"
            )
    if optimizer.unfreeze and optimizer.clip_norm is not None:
        raise SettingError(
            "optimizer.clip_norm would count the gradients of what optimizer.unfreeze holds: leave "
            "one of them out"
        )
    left = [path for path in paths if not any(re.search(x, path) for x in optimizer.freeze)]
    for pattern, _ in optimizer.unfreeze:
        found = {path for path in left if re.search(pattern, path)}
        if not found:
            raise SettingError(
                f"optimizer.unfreeze: all that {pattern!r} finds is frozen, or found by an earlier "
                "pattern: put the narrower one first"
            )
        left = [path for path in left if path not in found]


@contextmanager
def traced(what: str) -> Iterator[None]:
    """Turns an error of a model, a loss or an augmentation into one line for the user."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, FlaxError) as error:
        raise SettingError(f"{what} cannot be traced: {error} (--trace shows where)") from error
    except (TypeError, AttributeError, LookupError) as error:  # of what a function gave, or took
        told = f"{type(error).__name__}: {error}"
        raise SettingError(f"{what} cannot be traced: {told} (--trace shows where)") from error


def _patterns(optimizer: Optimizer) -> Iterator[tuple[str, str]]:
    """Field and pattern of everything in an optimizer that goes by path."""
    fields = {"freeze": optimizer.freeze, "no_decay": optimizer.no_decay}
    fields |= {"unfreeze": tuple(pattern for pattern, _ in optimizer.unfreeze)}
    fields |= {"lr_scale": tuple(pattern for pattern, _ in optimizer.lr_scale)}
    for field, patterns in fields.items():
        yield from ((field, pattern) for pattern in patterns)
