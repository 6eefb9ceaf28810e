"""Likelihoods p(x|z) of images in [0, 1]: what a decoder's outputs say of an image.

Outputs are raw, [..., height, width, outputs]: logits, means and log-scales, all computed with in
float32. Axes before height broadcast: outputs of k draws and a batch [k, batch, h, w, o] with
images [batch, h, w, c] give [k, batch].

Log-scales are held in [−7, 7], beyond which their gradient is 0. Without a floor a density has no
bound where pixels do not vary (Salimans et al. take −7 too: for images in [−1, 1], as theirs, a
tenth of the distance between two bytes); the other end keeps draws finite.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jax.scipy.stats import norm
from jaxtyping import Array, Float, Key

from opsin.losses.classification import finite
from opsin.ranges import Count, Positive

Support = Literal["binary", "bytes", "real"]
"""What images in [0, 1] may hold: 0 or 1, multiples of 1/255, or any number."""

_PIXELS = (-3, -2, -1)
_LOG_SCALES = (-7.0, 7.0)


@runtime_checkable
class Likelihood(Protocol):
    """A family of distributions over images whose pixels are independent, given the outputs."""

    @property
    def support(self) -> Support:
        """What the images must hold."""
        ...

    def outputs(self, channels: int) -> int:
        """Channels that a decoder must give for images of so many."""
        ...

    def log_prob(
        self, outputs: Float[Array, "*#batch h w o"], images: Float[Array, "*#batch h w c"]
    ) -> Float[Array, "*batch"]:
        """log p(image) in nats, summed over pixels and channels.

        Raises:
            ValueError: shapes that do not fit.
        """
        ...

    def mean(self, outputs: Float[Array, "*batch h w o"]) -> Float[Array, "*batch h w c"]:
        """The mean image, in [0, 1]."""
        ...

    def sample(
        self, key: Key[Array, ""], outputs: Float[Array, "*batch h w o"]
    ) -> Float[Array, "*batch h w c"]:
        """Images drawn at random."""
        ...


@dataclass(frozen=True)
class Bernoulli:
    """Pixels that are 0 or 1; the outputs are logits of 1.

    Of grey images it gives a cross-entropy that is no log-likelihood: binarise them first.
    """

    @property
    def support(self) -> Support:
        """0 or 1."""
        return "binary"

    def outputs(self, channels: int) -> int:
        """A logit for each channel."""
        return channels

    def log_prob(
        self, outputs: Float[Array, "*#batch h w o"], images: Float[Array, "*#batch h w c"]
    ) -> Float[Array, "*batch"]:
        """See ``Likelihood``."""
        logits, images = _checked(self, outputs, images)
        nats = optax.losses.sigmoid_binary_cross_entropy(finite(logits), images)
        return -jnp.sum(nats, axis=_PIXELS)

    def mean(self, outputs: Float[Array, "*batch h w o"]) -> Float[Array, "*batch h w c"]:
        """The probability of 1."""
        return jax.nn.sigmoid(outputs.astype(jnp.float32))

    def sample(
        self, key: Key[Array, ""], outputs: Float[Array, "*batch h w o"]
    ) -> Float[Array, "*batch h w c"]:
        """Images of 0 and 1."""
        return jax.random.bernoulli(key, self.mean(outputs)).astype(jnp.float32)


@dataclass(frozen=True)
class Gaussian:
    """A density of pixels: normal about a mean, with one deviation for all or one for each.

    Of bytes that were not dequantised (``data.binarize.dequantize``) a density can be had as high
    as the floor of the log-scales lets it be.

    Attributes:
        std: deviation of every pixel; if None, the outputs are the means of all channels and then
            their log-deviations.

    Raises:
        ValueError: ``std`` not above 0.
    """

    std: Positive | None = None

    def __post_init__(self):
        if self.std is not None and self.std <= 0.0:
            raise ValueError(f"std must be above 0, not {self.std}")

    @property
    def support(self) -> Support:
        """Any number."""
        return "real"

    def outputs(self, channels: int) -> int:
        """A mean for each channel, and a log-deviation if it is not fixed."""
        return channels if self.std is not None else 2 * channels

    def log_prob(
        self, outputs: Float[Array, "*#batch h w o"], images: Float[Array, "*#batch h w c"]
    ) -> Float[Array, "*batch"]:
        """See ``Likelihood``."""
        outputs, images = _checked(self, outputs, images)
        mean, log_std = self._parts(outputs)
        standardised = (images - mean) * jnp.exp(-log_std)
        return jnp.sum(norm.logpdf(standardised) - log_std, axis=_PIXELS)

    def mean(self, outputs: Float[Array, "*batch h w o"]) -> Float[Array, "*batch h w c"]:
        """The means, clipped to [0, 1]."""
        return jnp.clip(self._parts(outputs)[0], 0.0, 1.0)

    def sample(
        self, key: Key[Array, ""], outputs: Float[Array, "*batch h w o"]
    ) -> Float[Array, "*batch h w c"]:
        """Images with noise, which are not confined to [0, 1]."""
        mean, log_std = self._parts(outputs)
        return mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)

    def _parts(self, outputs: Array) -> tuple[Array, Array]:
        """Means and log-deviations, of one shape."""
        outputs = outputs.astype(jnp.float32)
        if self.std is not None:
            return outputs, jnp.full(outputs.shape, jnp.log(self.std))
        if outputs.shape[-1] % 2:
            raise ValueError(f"outputs {outputs.shape} are not means and as many log-deviations")
        mean, log_std = jnp.split(outputs, 2, axis=-1)
        return mean, jnp.clip(log_std, *_LOG_SCALES)


@dataclass(frozen=True)
class DiscretizedLogistic:
    """Probabilities of bytes: of each of 256 bins, under a mixture of logistic distributions.

    Salimans et al., 2017, arXiv:1701.05517, eqs. 1 and 2, with one choice of the component for all
    channels of a pixel as there, but without their dependence of a channel on those before it. The
    lowest and the highest bin have no outer edge, so that the probabilities sum to 1.

    Each pixel has, for each component, a logit of its weight, the means of the channels and their
    log-scales, in units in which bytes run from −1 to 1. The one logit of one component is idle.

    Attributes:
        mixtures: components of the mixture.

    Raises:
        ValueError: fewer than one component.
    """

    mixtures: Count = 1

    def __post_init__(self):
        if self.mixtures < 1:
            raise ValueError(f"mixtures must be at least 1, not {self.mixtures}")

    @property
    def support(self) -> Support:
        """Multiples of 1/255."""
        return "bytes"

    def outputs(self, channels: int) -> int:
        """Of each component a logit, and for each channel a mean and a log-scale."""
        return self.mixtures * (1 + 2 * channels)

    def log_prob(
        self, outputs: Float[Array, "*#batch h w o"], images: Float[Array, "*#batch h w c"]
    ) -> Float[Array, "*batch"]:
        """See ``Likelihood``. Images count as the nearest bytes."""
        outputs, images = _checked(self, outputs, images)
        log_weights, means, log_scales = self._parts(outputs)
        levels = jnp.round(255.0 * images)[..., None, :]  # [..., h, w, 1, c]
        centred = levels * (2.0 / 255.0) - 1.0 - means
        rates = jnp.exp(-log_scales)
        upper, lower = ((centred + half) * rates for half in (1.0 / 255.0, -1.0 / 255.0))
        below, above = jax.nn.log_sigmoid(upper), jax.nn.log_sigmoid(-lower)
        # F(u) − F(l) = F(u) F(−l) (1 − exp(l − u)), in which nothing cancels.
        inner = below + above + jax.nn.log1mexp((2.0 / 255.0) * rates)
        log_p = jnp.where(levels == 0.0, below, jnp.where(levels == 255.0, above, inner))
        mixed = jax.nn.logsumexp(log_weights + jnp.sum(log_p, axis=-1), axis=-1)
        return jnp.sum(mixed, axis=(-2, -1))

    def mean(self, outputs: Float[Array, "*batch h w o"]) -> Float[Array, "*batch h w c"]:
        """The weighted mean of the components' means, each clipped to [0, 1]."""
        log_weights, means, _ = self._parts(outputs)
        levels = jnp.clip(0.5 * (means + 1.0), 0.0, 1.0)
        return jnp.sum(jnp.exp(log_weights)[..., None] * levels, axis=-2)

    def sample(
        self, key: Key[Array, ""], outputs: Float[Array, "*batch h w o"]
    ) -> Float[Array, "*batch h w c"]:
        """Images of bytes, divided by 255."""
        log_weights, means, log_scales = self._parts(outputs)
        key_component, key_value = jax.random.split(key)
        component = jax.random.categorical(key_component, log_weights)
        chosen = jax.nn.one_hot(component, self.mixtures)[..., None]  # [..., h, w, M, 1]
        mean, scale = (jnp.sum(chosen * x, axis=-2) for x in (means, jnp.exp(log_scales)))
        values = mean + scale * jax.random.logistic(key_value, mean.shape)
        return jnp.round(127.5 * (jnp.clip(values, -1.0, 1.0) + 1.0)) / 255.0

    def _parts(self, outputs: Array) -> tuple[Array, Array, Array]:
        """Log-weights [..., h, w, M], means and log-scales [..., h, w, M, c]."""
        channels = (outputs.shape[-1] // self.mixtures - 1) // 2
        if channels < 1 or self.outputs(channels) != outputs.shape[-1]:
            raise ValueError(f"outputs {outputs.shape} are not of {self.mixtures} components")
        outputs = outputs.astype(jnp.float32)
        outputs = outputs.reshape(*outputs.shape[:-1], self.mixtures, 1 + 2 * channels)
        logits, means, log_scales = jnp.split(outputs, (1, 1 + channels), axis=-1)
        log_weights = jax.nn.log_softmax(logits[..., 0])
        return log_weights, means, jnp.clip(log_scales, *_LOG_SCALES)


def _checked(likelihood: Likelihood, outputs: Array, images: Array) -> tuple[Array, Array]:
    """Both in float32; nothing but the axes before height is broadcast."""
    *sides, channels = images.shape[-3:]
    wanted = (*sides, likelihood.outputs(channels))
    if images.ndim < 3 or outputs.shape[-3:] != wanted:
        raise ValueError(
            f"{likelihood} of images {images.shape} takes outputs [..., "
            f"{', '.join(map(str, wanted))}], not {outputs.shape}"
        )
    return outputs.astype(jnp.float32), images.astype(jnp.float32)
