"""Vision transformer.

Dosovitskiy et al., 2020, "An image is worth 16x16 words", arXiv:2010.11929; the plainer form with
mean pooling and fixed positions is Beyer, Zhai and Kolesnikov, 2022, arXiv:2205.01580.
"""

from dataclasses import field
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from opsin.models.layers import shared_fields
from opsin.ranges import BelowOne, Count, Depth


def sincos_positions(rows: int, columns: int, width: int) -> Float[Array, "{rows*columns} {width}"]:
    """Fixed two-dimensional positions (Chen, Xie and He, 2021, arXiv:2104.02057).

    Position (y, x) is [sin(w y), cos(w y), sin(w x), cos(w x)] with the width / 4 frequencies
    w_k = 10000^(-4k / width): the sines of Vaswani et al., 2017, arXiv:1706.03762, section 3.5,
    for each axis. Float32, row by row. Those of Beyer et al. are ``beyer_positions``.

    Raises:
        ValueError: if four does not divide ``width``.
    """
    if width % 4:
        raise ValueError(f"sin-cos positions need a width that 4 divides; got {width}")
    frequencies = 10_000.0 ** (-4 * jnp.arange(width // 4) / width)
    y, x = _angles(rows, columns, frequencies)
    return jnp.concatenate([jnp.sin(y), jnp.cos(y), jnp.sin(x), jnp.cos(x)], axis=1)


def beyer_positions(rows: int, columns: int, width: int) -> Float[Array, "{rows*columns} {width}"]:
    """Fixed two-dimensional positions of Beyer, Zhai and Kolesnikov, 2022, arXiv:2205.01580.

    Position (y, x) is [sin(w x), cos(w x), sin(w y), cos(w y)] with w_k = 10000^(-k / (K - 1)),
    k < K = width / 4, as ``posemb_sincos_2d`` in the code of the paper: the last frequency is 1e-4.
    Float32, row by row.

    Raises:
        ValueError: if four does not divide ``width``, or it is below 8.
    """
    if width % 4 or width < 8:
        raise ValueError(f"these positions need a width of 8 or more that 4 divides; got {width}")
    frequencies = 10_000.0 ** (-jnp.arange(width // 4) / (width // 4 - 1))
    y, x = _angles(rows, columns, frequencies)
    return jnp.concatenate([jnp.sin(x), jnp.cos(x), jnp.sin(y), jnp.cos(y)], axis=1)


def _angles(rows: int, columns: int, frequencies: Array) -> tuple[Array, Array]:
    """Of the row and of the column of each position, [rows * columns, frequencies]."""
    y = jnp.repeat(jnp.arange(rows), columns)[:, None] * frequencies
    x = jnp.tile(jnp.arange(columns), rows)[:, None] * frequencies
    return y, x


class EncoderBlock(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)); eq. 2 and 3.

    Softmax is float32. Dropout follows every linear map but those of queries, keys and values
    (appendix B.1).
    """

    heads: Count
    mlp_width: Count
    dropout: BelowOne = 0.0
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens width"], *, train: bool = False
    ) -> Float[Array, "batch tokens width"]:
        """Tokens of the same shape. Raises ValueError unless the heads divide the width."""
        if x.shape[-1] % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {x.shape[-1]}")
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        xavier = nn.initializers.xavier_uniform()
        drop = nn.Dropout(self.dropout, deterministic=not train)
        y = nn.LayerNorm(epsilon=1e-6, **types, name="norm1")(x)
        attention = nn.MultiHeadDotProductAttention(
            self.heads,
            kernel_init=xavier,
            force_fp32_for_softmax=True,
            **types,
            name="attention",
        )
        x = x + drop(attention(y))
        y = nn.LayerNorm(epsilon=1e-6, **types, name="norm2")(x)
        y = nn.Dense(self.mlp_width, kernel_init=xavier, **types, name="mlp1")(y)
        y = drop(nn.gelu(y, approximate=False))
        y = nn.Dense(x.shape[-1], kernel_init=xavier, **types, name="mlp2")(y)
        return x + drop(y)


class Encoder(nn.Module):
    """``depth`` blocks and a final norm.

    Attributes:
        scan: compile one block and loop over stacked parameters ``blocks``, [depth, …]; False
            unrolls the loop over ``block1``, ``block2``, … and computes the same.
        remat: keep only the input of each block for the backward pass and compute the rest again.
    """

    depth: Depth
    heads: Count
    mlp_width: Count
    dropout: BelowOne = 0.0
    scan: bool = True
    remat: bool = field(default=False, metadata={"identity": False})
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens width"], *, train: bool = False
    ) -> Float[Array, "batch tokens width"]:
        """Normalised tokens of the same shape."""

        def apply(block: EncoderBlock, x: Array) -> Array:
            return block(x, train=train)

        if self.remat:  # a scan keeps the recomputation from being merged away; a loop does not
            apply = nn.remat(apply, prevent_cse=not self.scan)
        make_block = partial(EncoderBlock, **shared_fields(self, EncoderBlock))
        if self.scan:
            layers = nn.scan(
                lambda block, x, _: (apply(block, x), None),
                variable_axes={"params": 0, "intermediates": 0},
                split_rngs={"params": True, "dropout": True},
                length=self.depth,
            )
            x, _ = layers(make_block(name="blocks"), x, None)
        else:
            for index in range(self.depth):
                x = apply(make_block(name=f"block{index + 1}"), x)
        return nn.LayerNorm(
            epsilon=1e-6, dtype=self.dtype, param_dtype=self.param_dtype, name="norm"
        )(x)


class ViTOptions(nn.Module):
    """The fields that a backbone and its classifier share; for scan and remat see ``Encoder``.

    Attributes:
        depth: number of blocks.
        width: channels of a token.
        mlp_width: channels inside the MLP.
        heads: attention heads; must divide ``width``.
        patch: side of a square patch in pixels; must divide height and width of the images.
        pool: "cls" adds a class token and classifies from it; "gap" averages the patches.
        positions: "learned", for one image size, or fixed: "sincos" as of MoCo v3, or "beyer" (see
            ``sincos_positions`` and ``beyer_positions``; the class token then has none).
        dropout: probability, in training only.
    """

    depth: Depth
    width: Count
    mlp_width: Count
    heads: Count
    patch: Count = 16
    pool: Literal["cls", "gap"] = "cls"
    positions: Literal["learned", "sincos", "beyer"] = "learned"
    dropout: BelowOne = 0.0
    scan: bool = True
    remat: bool = field(default=False, metadata={"identity": False})
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32


class ViTBackbone(ViTOptions):
    """Patch embedding and encoder. For the fields see ``ViTOptions``."""

    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> dict[int, Float[Array, "batch rows columns features"]]:
        """Patch tokens as one map of features, ``{patch: [batch, H / patch, W / patch, width]}``.

        Raises:
            ValueError: as ``tokens``.
        """
        tokens = self.tokens(x, train=train)
        rows, columns = x.shape[1] // self.patch, x.shape[2] // self.patch
        patches = tokens[:, tokens.shape[1] - rows * columns :]
        return {self.patch: patches.reshape(x.shape[0], rows, columns, self.width)}

    @nn.compact
    def tokens(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch tokens features"]:
        """Encoded tokens: the class token, where there is one, then the patches row by row.

        Raises:
            ValueError: if ``x`` is not a batch of images that patches divide, or has not the size
                that the positions were learned for, or a field holds an unknown name.
        """
        if x.ndim != 4 or x.shape[1] % self.patch or x.shape[2] % self.patch:
            raise ValueError(
                f"ViT takes [batch, height, width, channels] with sides that the patch size "
                f"{self.patch} divides; got {x.shape}"
            )
        if self.pool not in ("cls", "gap"):
            raise ValueError(f'pool is "cls" or "gap"; got {self.pool!r}')
        if self.positions not in ("learned", "sincos", "beyer"):
            raise ValueError(
                f'positions are "learned", "sincos" or "beyer"; got {self.positions!r}'
            )
        batch, rows, columns = x.shape[0], x.shape[1] // self.patch, x.shape[2] // self.patch
        x = x.reshape(batch, rows, self.patch, columns, self.patch, x.shape[3])
        # The strided convolution of the paper as one matrix product; the kernel has its shape.
        embed = nn.DenseGeneral(
            self.width,
            axis=(2, 4, 5),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="embed",
        )
        x = embed(x).reshape(batch, rows * columns, self.width)
        if self.pool == "cls":
            init = nn.initializers.zeros
            token = self.param("class_token", init, (1, 1, self.width), self.param_dtype)
            token = jnp.broadcast_to(token.astype(self.dtype), (batch, 1, self.width))
            x = jnp.concatenate([token, x], axis=1)
        if self.positions == "learned":
            learned = self.get_variable("params", "positions")
            if learned is not None and learned.shape[0] != x.shape[1]:
                raise ValueError(
                    f"the ViT has learned {learned.shape[0]} positions, and images of {rows} x "
                    f"{columns} patches need {x.shape[1]}: give images of the size that it was "
                    "trained on, or resize its positions"
                )
            init = nn.initializers.normal(0.02)
            positions = self.param("positions", init, x.shape[1:], self.param_dtype)
        else:
            fixed = beyer_positions if self.positions == "beyer" else sincos_positions
            positions = fixed(rows, columns, self.width)
            positions = jnp.pad(positions, ((x.shape[1] - rows * columns, 0), (0, 0)))
        x = x + positions.astype(self.dtype)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return Encoder(**shared_fields(self, Encoder), name="encoder")(x, train=train)


class ViT(ViTOptions):
    """Backbone and a linear head that starts at zero. For the other fields see ``ViTOptions``.

    Parameters are ``{"backbone": those of ViTBackbone, "head": …}``.
    """

    num_classes: Count = 1000

    @nn.nowrap
    def without_head(self, name: str | None = None) -> ViTBackbone:
        """The backbone of this classifier, for other tasks: ``ViTB(pool="gap").without_head()``."""
        return ViTBackbone(**shared_fields(self, ViTBackbone), name=name)

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Logits, float32. Raises ValueError as ``ViTBackbone.tokens`` does."""
        x = self.without_head(name="backbone").tokens(x, train=train).astype(jnp.float32)
        x = x[:, 0] if self.pool == "cls" else jnp.mean(x, axis=1)
        head = nn.Dense(
            self.num_classes,
            kernel_init=nn.initializers.zeros,
            dtype=jnp.float32,
            param_dtype=self.param_dtype,
            name="head",
        )
        return head(x)


# Base, Large, Huge: Table 1 of the paper; Tiny and Small: Touvron et al., 2020, arXiv:2012.12877,
# Table 1. Parameters at 224×224 and 1000 classes: Ti/16 5,717,416; S/16 22,050,664;
# B/16 86,567,656; L/16 304,326,632; H/14 632,045,800.
ViTTi = partial(ViT, depth=12, width=192, mlp_width=768, heads=3)
ViTS = partial(ViT, depth=12, width=384, mlp_width=1536, heads=6)
ViTB = partial(ViT, depth=12, width=768, mlp_width=3072, heads=12)
ViTL = partial(ViT, depth=24, width=1024, mlp_width=4096, heads=16)
ViTH = partial(ViT, depth=32, width=1280, mlp_width=5120, heads=16, patch=14)

# A common small one for 32×32 images: 6,268,810 parameters with its 10 classes.
ViTCifar = partial(ViT, depth=7, width=384, mlp_width=384, heads=12, patch=4, num_classes=10)
