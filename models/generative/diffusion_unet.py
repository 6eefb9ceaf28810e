"""The U-Net of diffusion models, and the network of scores that is made of it.

Ho, Jain and Abbeel, 2020, "Denoising diffusion probabilistic models", arXiv:2006.11239, appendix B.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Num

from opsin.models.layers import Conv, Norm, group_norm
from opsin.ops.diffusion.process import Conditioning
from opsin.ops.labels import or_nan
from opsin.ranges import BelowOne, Count, Depth


def sinusoids(values: Num[Array, " batch"], width: int) -> Float[Array, "batch {width}"]:
    """Sines, then cosines, of values times frequencies from 1 down to 1/10000.

    The positions of Vaswani et al., 2017, arXiv:1706.03762, section 3.5, with the ends that Ho et
    al. give the frequencies. They are made for values from 0 to 1000.

    Raises:
        ValueError: a width that is odd or below 4.
    """
    if width < 4 or width % 2:
        raise ValueError(f"sinusoids need an even width of at least 4; got {width}")
    frequencies = 10_000.0 ** -np.linspace(0, 1, width // 2, dtype=np.float32)
    angles = values.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


class ResidualBlock(nn.Module):
    """Two convolutions of 3×3 behind norm and swish; the embedding is added between them.

    The second starts at zero, so that the block starts as its shortcut: the identity, or a linear
    map where the channels change.
    """

    features: Count
    norm: Norm
    dropout: BelowOne = 0.0
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width in"],
        embedding: Float[Array, "batch embedded"],
        *,
        train: bool = False,
    ) -> Float[Array, "batch height width features"]:
        """Features of the same size."""
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        norm = partial(self.norm, train=train, **types)
        dense = partial(nn.Dense, self.features, **types)
        y = nn.swish(norm(name="norm1")(x))
        y = Conv(self.features, (3, 3), name="conv1", **types)(y)
        y = y + dense(name="embed")(nn.swish(embedding))[:, None, None]
        y = nn.swish(norm(name="norm2")(y))
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        zeros = nn.initializers.zeros
        y = Conv(self.features, (3, 3), kernel_init=zeros, name="conv2", **types)(y)
        return y + (x if x.shape[-1] == self.features else dense(name="shortcut")(x))


class AttentionBlock(nn.Module):
    """Every pixel looks at all others, then at tokens of a context if there is one.

    Both start at zero, so that the block starts as the identity. Softmax is float32.
    """

    heads: Count
    norm: Norm
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        context: Float[Array, "batch tokens embedded"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "batch height width channels"]:
        """Features of the same shape. Raises ValueError unless the heads divide the channels."""
        channels = x.shape[-1]
        if channels % self.heads:
            raise ValueError(f"{self.heads} heads do not divide {channels} channels")
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        attention = partial(
            nn.MultiHeadDotProductAttention,
            self.heads,
            qkv_features=channels,
            out_features=channels,
            out_kernel_init=nn.initializers.zeros,
            force_fp32_for_softmax=True,
            **types,
        )

        def pixels(name: str, x: Array) -> Array:
            y = self.norm(train=train, name=name, **types)(x)
            return y.reshape(len(x), -1, channels)

        y = attention(name="attention")(pixels("norm", x))
        x = x + y.reshape(x.shape)
        if context is None:
            return x
        y = attention(name="cross_attention")(pixels("cross_norm", x), context)
        return x + y.reshape(x.shape)


class DiffusionUNet(nn.Module):
    """Noisy images, how noisy they are, and what they should show, to a prediction of each pixel.

    With the defaults it is the network of Ho et al. for CIFAR-10, of 35,746,307 parameters, but for
    their initialiser of the other weights (uniform over fan-in and fan-out).

    Attributes:
        outputs: channels of the prediction; twice those of the image if the variance is learned.
        width: channels of the first level.
        multiples: channels of each level over ``width``; each level has half the size of that
            before.
        blocks: residual blocks of a level going down; going up there is one more.
        attention: heights of the features that have attention behind every block; the deepest has
            it once in any case.
        heads: of attention.
        dropout: rate, between the convolutions of every block.
        resample: "conv", a convolution of stride 2 down and one behind the repeated pixels up, or
            "resize", means of 2×2 pixels down and repeated pixels up.
        num_classes: if the images have classes; the label ``num_classes`` stands for none.
        norm: behind which every convolution is.
    """

    outputs: Count = 3
    width: Count = 128
    multiples: tuple[Count, ...] = (1, 2, 2, 2)
    blocks: Depth = 2
    attention: tuple[Count, ...] = (16,)
    heads: Count = 1
    dropout: BelowOne = 0.1
    resample: Literal["conv", "resize"] = "conv"
    num_classes: Count | None = None
    norm: Norm = partial(group_norm, epsilon=1e-6)
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    conditioning: ClassVar[Conditioning] = "time"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        noise: Num[Array, " batch"],
        labels: Int[Array, " batch"] | None = None,
        *,
        context: Float[Array, "batch tokens embedded"] | None = None,
        train: bool = False,
    ) -> Float[Array, "batch height width outputs"]:
        """The prediction, float32.

        Args:
            x: images with noise.
            noise: how noisy they are, such as the step of a discrete process: of the order of 1 to
                1000.
            labels: what they show, 0 to ``num_classes``; None is ``num_classes``, of all of them.
            context: tokens for the cross-attention of every attention block, which exists if they
                do.
            train: draw dropout, from the stream "dropout".

        Raises:
            ValueError: labels for a network without classes, an unknown option, or images whose
                size cannot be halved so often.
        """
        self._check(x, labels)
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        dense = partial(nn.Dense, 4 * self.width, **types)
        embedding = dense(name="embed1")(sinusoids(noise, self.width))
        embedding = dense(name="embed2")(nn.swish(embedding))
        if self.num_classes is not None:
            shown = jnp.full(len(x), self.num_classes) if labels is None else labels
            table = nn.Embed(self.num_classes + 1, 4 * self.width, name="classes", **types)
            embedding = embedding + or_nan(table(shown), shown, self.num_classes + 1)

        residual = partial(ResidualBlock, norm=self.norm, dropout=self.dropout, **types)
        attend = partial(AttentionBlock, self.heads, self.norm, **types)

        def block(x: Array, features: int, name: str) -> Array:
            x = residual(features, name=name)(x, embedding, train=train)
            if x.shape[1] in self.attention:
                x = attend(name=f"{name}_attention")(x, context, train=train)
            return x

        x = Conv(self.width, (3, 3), name="stem", **types)(x)
        passed, last = [x], len(self.multiples) - 1
        for level, multiple in enumerate(self.multiples):
            for index in range(self.blocks):
                x = block(x, self.width * multiple, f"down{level + 1}_{index + 1}")
                passed.append(x)
            if level < last:
                x = self._halved(x, f"halve{level + 1}", types)
                passed.append(x)
        for index in (1, 2):
            x = residual(x.shape[-1], name=f"middle{index}")(x, embedding, train=train)
            if index == 1:
                x = attend(name="middle_attention")(x, context, train=train)
        for level, multiple in reversed(list(enumerate(self.multiples))):
            for index in range(self.blocks + 1):
                x = jnp.concatenate([x, passed.pop()], axis=-1)
                x = block(x, self.width * multiple, f"up{level + 1}_{index + 1}")
            if level:
                x = self._doubled(x, f"double{level + 1}", types)
        x = nn.swish(self.norm(train=train, name="norm", **types)(x))
        types["dtype"] = jnp.float32
        zeros = nn.initializers.zeros
        return Conv(self.outputs, (3, 3), kernel_init=zeros, name="head", **types)(x)

    def _halved(self, x: Array, name: str, types: dict[str, Any]) -> Array:
        if self.resample == "resize":
            return nn.avg_pool(x, (2, 2), (2, 2))
        return Conv(x.shape[-1], (3, 3), strides=(2, 2), name=name, **types)(x)

    def _doubled(self, x: Array, name: str, types: dict[str, Any]) -> Array:
        x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        if self.resample == "resize":
            return x
        return Conv(x.shape[-1], (3, 3), name=name, **types)(x)

    def _check(self, x: Array, labels: Array | None) -> None:
        if labels is not None and self.num_classes is None:
            raise ValueError("the network knows no classes: give no labels, or set num_classes")
        if self.resample not in ("conv", "resize"):
            raise ValueError(f'resample must be "conv" or "resize", not {self.resample!r}')
        times = 2 ** (len(self.multiples) - 1)
        if x.ndim != 4 or x.shape[1] % times or x.shape[2] % times:
            raise ValueError(
                f"a network of {len(self.multiples)} levels takes images whose sides {times} "
                f"divides, [batch, height, width, channels]; got {list(x.shape)}: take fewer "
                "multiples, or images of another size"
            )
        heights = [x.shape[1] // 2**level for level in range(len(self.multiples))]
        if absent := set(self.attention) - set(heights):
            raise ValueError(
                f"attention={self.attention}: no features have the height {min(absent)}, they "
                f"have {', '.join(map(str, heights))}"
            )


class ScoreUNet(nn.Module):
    """The score of images with noise of deviation σ: a network of the form f(x, log σ) / σ.

    Song & Ermon, 2019, arXiv:1907.05600, and 2020, arXiv:2006.09011, section 3.3, with the U-Net of
    this file in place of theirs. The input is brought to the same deviation for all noise and σ
    enters by ln σ / 4 (Karras et al., 2022, arXiv:2206.00364, table 1).

    Attributes:
        network: of images, and values of the order of 1000, to as many channels.
    """

    network: nn.Module

    conditioning: ClassVar[Conditioning] = "sigma"

    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        noise: Float[Array, " batch"],
        labels: Int[Array, " batch"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "batch height width channels"]:
        """The score ∇ log p(x), float32. ``noise`` is σ; the rest is that of the network."""
        sigma = noise.astype(jnp.float32)
        per_image = sigma[:, None, None, None]
        network: Callable[..., Array] = self.network
        y = network(x / jnp.sqrt(1 + per_image**2), 250 * jnp.log(sigma), labels, train=train)
        return y / per_image

    @property
    def num_classes(self) -> int | None:
        """Of the network."""
        return self.network.num_classes  # pyright: ignore[reportAttributeAccessIssue]
