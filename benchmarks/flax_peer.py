"""Plain Flax: the same networks with linen's own layers, in a loop as Flax's examples write it.

The loop follows flax/examples/imagenet/train.py (Flax 0.12): a ``TrainState``, ``value_and_grad``,
metrics of each batch, ``apply_gradients``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training import train_state

from opsin.benchmarks.cases import ALPHA, CASES, SIGMA, Case
from opsin.benchmarks.opsin_peer import inference, variables_of
from opsin.benchmarks.worker import Prepared
from opsin.models.layers import GroupNorm, batch_norm, max_pool
from opsin.models.upsampling import ConvTranspose


class TrainState(train_state.TrainState):
    """Parameters, optimiser state and the running statistics of batch norm."""

    batch_stats: Any


def prepare(name: str, phase: str) -> Prepared:
    """A case of ``CASES`` in ``"training"`` or ``"inference"``."""
    case = plain(CASES[name])
    variables, about = variables_of(case)
    start = training if phase == "training" else inference
    return Prepared(start(case, stock_apply(case.model), variables), about)


def training(case: Case, apply: Callable[..., Any], variables: Any) -> Callable[[int], None]:
    """``run(steps)`` of the examples' training step on one batch."""
    transform, _ = case.optimizer.build(1, Fraction(1), case.batch)
    state = TrainState.create(
        apply_fn=apply,
        params=variables["params"],
        tx=transform,
        batch_stats=variables.get("batch_stats", {}),
    )
    batch = jax.device_put(dict(zip(("image", "label"), case.batch_on_host(), strict=True)))
    if case.denoises:
        return denoising(state, batch["image"])

    @jax.jit
    def train_step(state: TrainState, batch: dict[str, jax.Array]):
        def loss_fn(params: Any):
            logits, updated = state.apply_fn(
                {"params": params, "batch_stats": state.batch_stats},
                batch["image"],
                train=True,
                mutable=["batch_stats"],
            )
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
            return loss, (logits, updated)

        (loss, (logits, updated)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        accuracy = jnp.mean(jnp.argmax(logits, -1) == batch["label"])
        state = state.apply_gradients(grads=grads, batch_stats=updated.get("batch_stats", {}))
        return state, {"loss": loss, "accuracy": accuracy}

    def run(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            state, _ = train_step(state, batch)
        jax.block_until_ready(state)

    run(1)
    return run


def denoising(state: TrainState, images: jax.Array) -> Callable[[int], None]:
    """``run(steps)`` of a step that adds noise of a time drawn for each image, and learns it."""

    @jax.jit
    def train_step(state: TrainState, images: jax.Array, key: jax.Array):
        key_time, key_noise = jax.random.split(key)
        times = jax.random.randint(key_time, (len(images),), 1, ALPHA.size)
        noise = jax.random.normal(key_noise, images.shape)
        alpha, sigma = (jnp.asarray(level)[times, None, None, None] for level in (ALPHA, SIGMA))
        noisy = alpha * (2 * images - 1) + sigma * noise

        def loss_fn(params: Any):
            found = state.apply_fn({"params": params}, noisy, times, train=True)
            return jnp.mean(jnp.square(found - noise))

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        return state.apply_gradients(grads=grads), {"loss": loss}

    count = 0

    def run(steps: int) -> None:
        nonlocal state, count
        for _ in range(steps):
            count += 1
            state, _ = train_step(state, images, jax.random.fold_in(jax.random.key(0), count))
        jax.block_until_ready(state)

    run(1)
    return run


def plain(case: Case) -> Case:
    """The case as an example would have it: blocks in a Python loop, linen's pooling and norm."""
    fields: dict[str, Any] = {}
    if hasattr(case.model, "scan"):
        fields["scan"] = False
    if getattr(case.model, "pool", None) is max_pool:
        fields["pool"] = nn.max_pool
    if getattr(case.model, "norm", None) is batch_norm:
        fields["norm"] = stock_batch_norm
    return replace(case, model=case.model.clone(**fields))


def stock_batch_norm(*, train: bool, **options: Any) -> nn.BatchNorm:
    """``models.layers.batch_norm`` by linen's module."""
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, **options)


def stock_apply(model: nn.Module) -> Callable[..., Any]:
    """``model.apply`` with linen's convolution in every ``nn.Conv``, and its ``nn.GroupNorm``."""

    def apply(*args: Any, **options: Any) -> Any:
        with nn.intercept_methods(_with_stock_layers):
            return model.apply(*args, **options)

    return apply


def _with_stock_layers(
    call: Callable[..., Any], args: Any, options: Any, context: nn.module.InterceptorContext
) -> Any:
    module = context.module
    if isinstance(module, ConvTranspose):
        stock = nn.ConvTranspose(module.features, module.kernel_size, module.strides, "VALID")
        # Linen's correlates where PyTorch's, and ours, adds up kernels.
        params: Any = module.variables["params"]
        turned = {**params, "kernel": params["kernel"][::-1, ::-1]}
        return stock.apply({"params": turned}, *args, **options)
    if isinstance(module, GroupNorm):
        stock = nn.GroupNorm(module.groups, epsilon=module.epsilon, dtype=module.dtype)
        return stock.apply(module.variables, *args, **options)
    if not isinstance(module, nn.Conv) or module.conv_general_dilated is None:
        return call(*args, **options)
    stock = module.clone(parent=None, conv_general_dilated=None)
    return stock.apply(module.variables, *args, **options)
