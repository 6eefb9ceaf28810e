"""U-Net, with the valid convolutions of the paper or padded ones.

Ronneberger, Fischer and Brox, 2015, "U-Net: convolutional networks for biomedical image
segmentation", arXiv:1505.04597, Fig. 1.
"""

from collections.abc import Callable
from dataclasses import field
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from opsin.imaging.warp import centre_crop
from opsin.models.layers import Conv, Norm, max_pool
from opsin.models.upsampling import ConvTranspose
from opsin.ops.upsampling import upsample_bilinear
from opsin.ranges import BelowOne, Count, Depth


class TwoConvolutions(nn.Module):
    """Two 3×3 convolutions, each with its norm, if there is one, and ReLU."""

    features: Count
    conv: Callable[..., Callable[[Array], Array]]
    norm: Norm | None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width in"], train: bool
    ) -> Float[Array, "batch height_out width_out out"]:
        """Features of the same size, or 4 pixels smaller without padding."""
        # `train` is positional for nn.remat, which takes it as static by its position.
        for index in (1, 2):
            x = self.conv(self.features, (3, 3), name=f"conv{index}")(x)
            if self.norm is not None:
                x = self.norm(train=train, name=f"norm{index}")(x)
            x = nn.relu(x)
        return x


class UNet(nn.Module):
    """The contracting and the expanding path, joined by skips.

    With the defaults, one channel and two classes it is the network of the paper, of 31,030,658
    parameters: 572×572 pixels give 388×388. Weights start as in its section 3.

    Attributes:
        num_classes: outputs of each pixel.
        width: channels of the first level; each level below has twice as many.
        depth: how often the size is halved.
        padding: "valid" as in the paper, where an image must have ``valid_size``, or "same", where
            it may have any size and keeps it.
        upsampling: "transposed", the up-convolution 2×2 of the paper, or "resize", bilinear and
            then a convolution 3×3 (Odena et al., 2016, doi:10.23915/distill.00003).
        skips: whether features of the contracting path are joined to the expanding path.
        norm: after each convolution, which has no bias then; None as in the paper.
        dropout: rate at the end of the contracting path.
        remat: compute each level's activations again in the backward pass instead of keeping them.
    """

    num_classes: Count = 2
    width: Count = 64
    depth: Depth = 4
    padding: Literal["valid", "same"] = "valid"
    upsampling: Literal["transposed", "resize"] = "transposed"
    skips: bool = True
    norm: Norm | None = None
    dropout: BelowOne = 0.0
    remat: bool = field(default=False, metadata={"identity": False})
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> Float[Array, "batch rows columns classes"]:
        """Logits, float32, of the image's pixels, or of its centre without padding.

        Raises:
            ValueError: if ``x`` is not a batch of images, an option is unknown, or the image has a
                size that valid convolutions cannot take.
        """
        self._check(x)
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        start = nn.initializers.he_normal()
        # Of the four taps of an up-convolution, each pixel sees one.
        sparse = nn.initializers.variance_scaling(4 * 2.0, "fan_in", "truncated_normal")
        conv = partial(Conv, padding=self.padding.upper(), kernel_init=start, **types)
        norm = self.norm and partial(self.norm, **types)
        level = nn.remat(TwoConvolutions, static_argnums=(2,)) if self.remat else TwoConvolutions
        block = partial(level, conv=partial(conv, use_bias=norm is None), norm=norm)

        passed = []
        for depth in range(self.depth):
            x = block(self.width * 2**depth, name=f"down{depth + 1}")(x, train)
            passed.append(x)
            # An odd side is rounded up: the last row is repeated, which no maximum sees.
            x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)), "edge")
            x = max_pool(x, (2, 2), (2, 2))
        x = block(self.width * 2**self.depth, name="bottom")(x, train)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        for depth in reversed(range(self.depth)):
            features = self.width * 2**depth
            if self.upsampling == "transposed":
                up = ConvTranspose(features, kernel_init=sparse, name=f"up{depth + 1}", **types)
                x = up(x)
            else:
                x = upsample_bilinear(x, (2 * x.shape[1], 2 * x.shape[2]))
                x = conv(features, (3, 3), padding="SAME", name=f"up{depth + 1}")(x)
            skip = passed.pop()
            if self.padding == "same":
                x = x[:, : skip.shape[1], : skip.shape[2]]
            if self.skips:
                x = jnp.concatenate([centre_crop(skip, x.shape[1:3]), x], axis=-1)
            x = block(features, name=f"expand{depth + 1}")(x, train)
        head = Conv(
            self.num_classes, (1, 1), dtype=jnp.float32, param_dtype=self.param_dtype, name="head"
        )
        return head(x)

    def _check(self, x: Array) -> None:
        if x.ndim != 4:
            raise ValueError(f"U-Net takes [batch, height, width, channels]; got {x.shape}")
        if self.padding not in ("valid", "same"):
            raise ValueError(f'padding is "valid" or "same"; got {self.padding!r}')
        if self.upsampling not in ("transposed", "resize"):
            raise ValueError(f'upsampling is "transposed" or "resize"; got {self.upsampling!r}')
        for side in x.shape[1:3]:
            above = valid_size(side, self.depth)
            if self.padding == "valid" and side != above:
                below = valid_size(side - 2**self.depth, self.depth)
                which = f"the nearest are {below} and" if below < side else "the smallest is"
                raise ValueError(
                    f"U-Net of depth {self.depth} with valid convolutions takes no side of {side} "
                    f"pixels; {which} {above}"
                )


def valid_size(size: int, depth: int = 4) -> int:
    """The smallest side of at least ``size`` pixels that valid convolutions can take.

    It is 2**depth · b + 4 (2**depth - 1), so that every level halves without a rest; b, the side
    that the lowest level sees, must leave some pixels. The result is ``valid_margin`` smaller.

    >>> valid_size(570), valid_size(570) - valid_margin()
    (572, 388)
    """
    step = 2**depth
    fixed = 4 * (step - 1)
    least = -(-(valid_margin(depth) + 1 - fixed) // step)
    return step * max(least, -(-(size - fixed) // step)) + fixed


def valid_margin(depth: int = 4) -> int:
    """How many pixels of a side are lost to valid convolutions; half of it to each end."""
    return 12 * 2**depth - 8
