"""A network with all that can go wrong (batch statistics, biases), small enough to compile."""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.data.sources import synthetic
from opsin.models.layers import Norm, batch_norm
from opsin.train.experiment import Data, Experiment, Loop
from opsin.train.methods import sgd
from opsin.train.optim import Optimizer
from opsin.train.schedules import constant
from opsin.train.tasks.classify import Classify


class Tiny(nn.Module):
    """A convolution, batch norm and two dense layers."""

    num_classes: int = 4
    norm: Norm = batch_norm
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Any, *, train: bool = False) -> Any:
        norm = self.norm(train=train, dtype=self.dtype, name="norm")
        x = nn.Conv(8, (3, 3), strides=2, dtype=self.dtype, name="conv")(x)
        x = nn.relu(norm(x)).reshape(len(x), -1)
        x = nn.relu(nn.Dense(16, dtype=self.dtype, name="hidden")(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, name="head")(x)


class TinyDenoiser(nn.Module):
    """Two dense layers that see the pixels, the noise and the label."""

    outputs: int = 1
    num_classes: int | None = None
    dropout: float = 0.0

    @nn.compact
    def __call__(self, image: Any, noise: Any, labels: Any = None, *, train: bool = False) -> Any:
        parts = [image.reshape(len(image), -1), noise[:, None] / 1000]
        if self.num_classes is not None:
            known = jnp.full(len(image), self.num_classes) if labels is None else labels
            parts.append(jax.nn.one_hot(known, self.num_classes + 1))
        x = nn.tanh(nn.Dense(32)(jnp.concatenate(parts, axis=-1)))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        pixels = image.shape[1:3]
        x = nn.Dense(math.prod(pixels) * self.outputs)(x)
        return x.reshape(len(x), *pixels, self.outputs)


TINY_DATA = Data(
    source=partial(synthetic, n=40, size=8, channels=1, classes=4),
    batch=16,
    eval_batch=16,
)


def make_tiny() -> Experiment:
    """Six steps of SGD with momentum on 40 synthetic images: 2.5 steps an epoch."""
    return Experiment(
        task=Classify(model=Tiny()),
        data=TINY_DATA,
        optimizer=Optimizer(method=sgd, learning_rate=0.1, schedule=constant, weight_decay=1e-3),
        loop=Loop(
            duration="6 steps",
            log_every="2 steps",
            evaluate_every="3 steps",
            checkpoint_every="3 steps",
            ema_decay=0.9,
            previews=0,
        ),
    )


@pytest.fixture
def tiny() -> Experiment:
    """See ``make_tiny``."""
    return make_tiny()


def train_alone(patch: pytest.MonkeyPatch) -> None:
    """Runs draw nothing, which is half of their time here."""
    for name in ("draw", "training_curve", "save"):
        patch.setattr(f"opsin.pictures.figures.{name}", lambda *args: None)


@pytest.fixture(scope="module")
def training_alone() -> Iterator[None]:
    """See ``train_alone``."""
    with pytest.MonkeyPatch.context() as patch:
        train_alone(patch)
        yield


def assert_trees_equal(a: Any, b: Any) -> None:
    """Bit for bit, keys included."""
    assert jax.tree.structure(a) == jax.tree.structure(b)

    def plain(x: Any) -> Any:
        return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x

    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (jax.device_get(plain(x)) == jax.device_get(plain(y))).all()


def assert_trees_close(a: Any, b: Any, *, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """To float32 rounding."""
    jax.tree.map(
        lambda x, y: (
            np.allclose(x, y, rtol=rtol, atol=atol) or pytest.fail(f"{abs(x - y).max()} apart")
        ),
        jax.device_get(a),
        jax.device_get(b),
    )
