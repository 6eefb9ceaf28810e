"""Names of the Vision Transformer's arrays in torchvision and in timm."""

from __future__ import annotations

import math
import re

import jax
import numpy as np

from opsin.interchange.layouts import Key, Rules
from opsin.models.classification.vit import ViT


def torchvision(model: ViT) -> Rules:
    """Of ``vit_b_16`` to ``vit_h_14``."""
    rules: Rules = {
        "backbone/embed": "conv_proj",
        "backbone/class_token": "class_token",
        "backbone/positions": Key("encoder.pos_embedding", expanded=(0,), adapted=resized),
        "backbone/encoder/norm": "encoder.ln",
        "head": "heads.head",
    }
    names = {
        "norm1": "ln_1",
        "norm2": "ln_2",
        "mlp1": "mlp.0",
        "mlp2": "mlp.3",
        "attention": "self_attention.in_proj_*",
        "attention/out": "self_attention.out_proj",
    }
    return rules | _blocks(model, "encoder.layers.encoder_layer_{}.", names)


def timm(model: ViT) -> Rules:
    """Of ``vit_…_patch…`` and ``deit_…_patch…`` without distillation."""
    rules: Rules = {
        "backbone/embed": "patch_embed.proj",
        "backbone/class_token": "cls_token",
        "backbone/positions": Key("pos_embed", expanded=(0,), adapted=resized),
        "backbone/encoder/norm": "norm",
        "head": "head",
    }
    names = {
        "norm1": "norm1",
        "norm2": "norm2",
        "mlp1": "mlp.fc1",
        "mlp2": "mlp.fc2",
        "attention": "attn.qkv",
        "attention/out": "attn.proj",
    }
    return rules | _blocks(model, "blocks.{}.", names)


def resized(positions: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Learned positions for another number of patches: cubic and antialiased, as timm resizes them.

    Args:
        positions: [1, tokens, width] of a square of patches, behind a class token if there is one.
        shape: (tokens, width) of the other square.

    Raises:
        ValueError: these are no squares with as many tokens before them.
    """
    if positions.ndim != 3 or positions.shape[1] == shape[0]:
        return positions  # whose shape is checked after
    tokens, width = positions.shape[1], positions.shape[2]
    old, new = math.isqrt(tokens), math.isqrt(shape[0])
    front = tokens - old**2
    if front != shape[0] - new**2 or front > 1:
        raise ValueError(f"{tokens} positions cannot be resized to {shape[0]}: no squares")
    grid = positions[0, front:].reshape(old, old, width)
    grid = np.asarray(jax.image.resize(grid, (new, new, width), "cubic", antialias=True))
    return np.concatenate([positions[:, :front], grid.reshape(1, new**2, width)], axis=1)


def _blocks(model: ViT, theirs: str, names: dict[str, str]) -> Rules:
    """Of the encoder, whose blocks are stacked or counted from one."""

    def front(found: re.Match[str]) -> str:
        return theirs if model.scan else theirs.format(int(found[1]) - 1)

    def module(found: re.Match[str]) -> str:
        return front(found) + names[found[2]]

    def together(found: re.Match[str]) -> Key:
        return Key(front(found) + names["attention/out"], inputs=2)

    def separate(found: re.Match[str]) -> Key:
        index = ("query", "key", "value").index(found[2])
        return Key(front(found) + names["attention"], part=(index, 3))

    block = "backbone/encoder/block" + ("(s)/" if model.scan else r"(\d+)/")
    return {
        block + "(norm1|norm2|mlp1|mlp2)": module,
        block + "attention/out": together,
        block + "attention/(query|key|value)": separate,
    }
