"""Features of images: the input of a network's head, or its output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import FlaxError
from jaxtyping import Array, Float, PyTree

from opsin.analysis.batches import over_batches
from opsin.data.examples import Examples
from opsin.data.pipeline import train_batches
from opsin.ranges import Seed
from opsin.train.compiler import jit_here
from opsin.train.heads import around_head
from opsin.train.measurements import Prepare, Subject, TaskT
from opsin.train.placement import put_with
from opsin.train.settings import SettingError
from opsin.train.state import stream
from opsin.train.tasks.task import Batch

Layer = Literal["features", "head"]
"""``"features"`` are the input of the layer of a network that is called ``head``, ``"head"`` its
output: logits, or the embedding that a contrastive loss sees."""

LAYERS: tuple[Layer, ...] = ("features", "head")
BATCH = 512  # images in one call of the network
STATISTICS_BATCH = 128  # images in one of the batches that norms take their statistics from


def check_features(task: Any, image: tuple[int, ...]) -> None:
    """Traces a task's network once, nothing is computed.

    Args:
        task: with a ``model``.
        image: height, width and channels.

    Raises:
        SettingError: if the network has no features to extract.
    """
    model = _model(task)
    shape = jax.ShapeDtypeStruct((1, *image), jnp.float32)

    def trace(images: Array) -> Any:
        variables = model.init(jax.random.key(0), images, train=False)
        return around_head(model, variables, images)

    try:
        jax.eval_shape(trace, shape)
    except SettingError:
        raise
    # What a model says of its images and options, and flax of random numbers that it lacks.
    except (TypeError, ValueError, FlaxError) as error:
        said = f"{type(model).__name__} gives no features: {' '.join(str(error).split())}"
        raise SettingError(f"{said}; take a classifier or SimCLR") from error


def extract_features(
    subject: Subject[Any], sets: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, dict[Layer, Float[np.ndarray, "images numbers"]]]:
    """Features of whole images, from frozen weights, each image once.

    Args:
        subject: of a task with a ``model``; its mutable variables are the same afterwards, which is
            checked.
        sets: name → arrays, ``image`` uint8 [images, height, width, channels].

    Returns:
        For each set and layer float32 [images, numbers].

    Raises:
        SettingError: if the network has no features, they are not finite, or it changes its
            statistics while features are extracted.
    """
    model = _model(subject.task)

    def both(
        params: PyTree, mutable: PyTree, batch: Batch, indices: Array
    ) -> tuple[Array, Array, Array]:
        del indices
        images = subject.prepare(batch)["image"]
        variables = {"params": params, **mutable}
        features, (output, after) = around_head(model, variables, images, mutable=list(mutable))
        same = jax.tree.map(partial(jnp.array_equal, equal_nan=True), mutable, dict(after))
        changed = ~jnp.all(jnp.asarray(jax.tree.leaves(same), bool))
        return (
            features.astype(jnp.float32),
            cast(Array, output).astype(jnp.float32),
            jnp.broadcast_to(changed, len(images)),
        )

    found = {}
    for name, arrays in sets.items():
        *layers, changed = over_batches(
            both,
            subject,
            {"image": arrays["image"]},
            batch=BATCH,
            what=f"features of {name}",
        )
        if changed.any():
            raise SettingError(
                f"{type(model).__name__} changes its statistics while features are extracted: "
                "with train=False its norms must use those of training"
            )
        if not all(np.isfinite(x).all() for x in layers):
            raise SettingError(
                f"features of {name!r} are not finite: training went wrong before it ended; see "
                "its metrics.jsonl, and lower the learning rate"
            )
        found[name] = dict(zip(LAYERS, layers, strict=True))
    return found


def untrained_variables(
    task: Any, image: tuple[int, ...], prepare: Prepare, seed: int
) -> tuple[PyTree, PyTree]:
    """Random parameters of a task's network, as a run with this seed starts, and other variables.

    Args:
        task: with a ``model``.
        image: height, width and channels.
        prepare: from a batch to what the model sees.
        seed: of the parameters.
    """
    model = _model(task)

    @jit_here
    def init(key: Array, images: Array) -> Any:
        seen = prepare({"image": images})["image"]
        return model.init(stream(key, 0, "init"), seen, train=False)

    variables = dict(init(jax.random.key(seed), jnp.zeros((1, *image), jnp.uint8)))
    return variables.pop("params"), variables


def with_statistics(
    subject: Subject[TaskT], examples: Examples, *, batches: int, seed: Seed
) -> Subject[TaskT]:
    """The subject after some training batches, which give its norms their statistics.

    An untrained network has no statistics. Nothing but mutable variables changes.

    Args:
        subject: of a task with a ``model``.
        examples: the training set.
        batches: how many, of 128 images each, prepared as in evaluation.
        seed: of their order.
    """
    model = _model(subject.task)
    params, mutable = subject.variables
    if not mutable or not batches:
        return subject

    @jit_here
    def see(params: PyTree, mutable: PyTree, images: Array, key: Array) -> Any:
        seen = subject.prepare({"image": images})["image"]
        variables, rngs = {"params": params, **mutable}, {"dropout": key}
        return model.apply(variables, seen, train=True, rngs=rngs, mutable=list(mutable))[1]

    drawn = iter(train_batches(examples, batch=STATISTICS_BATCH, seed=seed))
    for index in subject.track(range(batches), "statistics of norms"):
        images = put_with(params, next(drawn)["image"])
        mutable = dict(see(params, mutable, images, jax.random.key(index)))
    return replace(subject, variables=(params, mutable))


def _model(task: Any) -> nn.Module:
    model = task.feature_model()
    if model is None:
        raise SettingError(
            f"{type(task).__name__} has no task.model to take features from: give a run of a "
            "classifier or of SimCLR"
        )
    return model
