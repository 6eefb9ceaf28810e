"""Inverted residual blocks and networks of them in NumPy for one image, and their training."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import correlate
from scipy.special import expit

from opsin.models.inverted import InvertedOptions, InvertedResidual
from tests.models import plain

Array = np.ndarray


def relu6(x: Array) -> Array:
    """min(max(x, 0), 6)."""
    return np.clip(x, 0, 6)


def silu(x: Array) -> Array:
    """x times its sigmoid."""
    return x * expit(x)


class Written:
    """The layers of a module of ``models.inverted``, from its fields and its variables.

    Attributes:
        activation: what its activation is in NumPy.
        epsilon: that of its batch norm.
    """

    def __init__(
        self,
        module: InvertedOptions | InvertedResidual,
        variables: Any,
        activation: Callable[[Array], Array],
        epsilon: float = 1e-5,
    ):
        self.module, self.activation, self.epsilon = module, activation, epsilon
        self.params, self.statistics = variables["params"], variables["batch_stats"]

    def layer(self, x: Array, name: str, stride: int = 1, groups: int = 1) -> Array:
        """Convolution and norm."""
        side = self.params[f"{name}_conv"]["kernel"].shape[0]
        symmetric = ((side - 1) // 2,) * 2
        # TensorFlow: as few rows as give every place its window, the odd one of them below.
        missing = [max(0, (-(-n // stride) - 1) * stride + side - n) for n in x.shape[:2]]
        same = [(n // 2, n - n // 2) for n in missing]
        margins = [symmetric] * 2 if self.module.padding == "symmetric" else same
        x = plain.conv(
            np.pad(x, (*margins, (0, 0))), self.params[f"{name}_conv"], stride, 0, groups
        )
        norm, statistics = self.params[f"{name}_norm"], self.statistics[f"{name}_norm"]
        return plain.batch_norm(x, norm, statistics, self.epsilon)

    def block(self, x: Array, stride: int) -> Array:
        """The block that this is."""
        y = x
        if "expand_conv" in self.params:
            y = self.activation(self.layer(y, "expand"))
        blurred = stride > 1 and self.module.blur_taps
        y = self.layer(y, "depthwise", 1 if blurred else stride, y.shape[-1])
        y = self.activation(y)
        if blurred:
            assert blurred == 3
            row = np.array([1, 2, 1]) / 4
            blur = np.outer(row, row)[..., None]
            y = correlate(y, blur, mode="mirror")[::stride, ::stride]
        if "squeeze_excite" in self.params:
            gates = self.params["squeeze_excite"]
            hidden = y.mean((0, 1)) @ gates["reduce"]["kernel"][0, 0] + gates["reduce"]["bias"]
            hidden = self.activation(hidden) @ gates["expand"]["kernel"][0, 0]
            y = y * expit(hidden + gates["expand"]["bias"])
        y = self.layer(y, "project")
        return x + y if stride == 1 and x.shape == y.shape else y

    def features(self, x: Array) -> dict[int, Array]:
        """Those of a network, by stride."""
        x, level, found = self.activation(self.layer(x, "stem", 2)), 2, {}
        for number, (_, _, stride, _, _) in enumerate(self.module.stages, start=1):
            blocks = [name for name in self.params if name.startswith(f"stage{number}_")]
            for index in range(len(blocks)):
                name = f"stage{number}_block{index + 1}"
                part = {"params": self.params[name], "batch_stats": self.statistics[name]}
                block = Written(self.module, part, self.activation, self.epsilon)
                x = block.block(x, stride if index == 0 else 1)
            level *= stride
            found[level] = x
        return found | {level: self.activation(self.layer(x, "top"))}


def train_twice(model, variables, images):
    """Logits of training under two keys; statistics after, and gradients, under the first."""

    def loss(params, key):
        logits, after = model.apply(
            {**variables, "params": params},
            images,
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        return jnp.sum(jnp.cos(logits)), (logits, after["batch_stats"])

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    keys = jax.random.key(0), jax.random.key(1)
    ((_, (one, after)), gradients), ((_, (other, _)), _) = (
        jax.tree.map(np.asarray, run(variables["params"], key)) for key in keys
    )
    return one, other, after, gradients
