"""Variational autoencoders: of one stochastic layer or several, dense or convolutional.

Kingma and Welling, 2014, "Auto-encoding variational Bayes", arXiv:1312.6114; the networks are those
of Burda, Grosse and Salakhutdinov, 2016, "Importance weighted autoencoders", arXiv:1509.00519,
section 5. Conditional on a class: Sohn, Lee and Yan, 2015, "Learning structured output
representation using deep conditional generative models", NeurIPS 28.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from opsin.models.generative.autoencoder import (
    MLP,
    ConvDecoder,
    ConvEncoder,
    DenseDecoder,
    DenseEncoder,
)
from opsin.models.generative.inputs import check_image, check_latent, join, one_hot_condition
from opsin.ops.gaussian import Normal, normal_sample, standard_normal
from opsin.ranges import Count


class NormalHead(nn.Module):
    """Linear layers for mean and log standard deviation of a normal distribution."""

    size: Count
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch in"]) -> Normal:
        """A distribution of [*batch, size], float32."""
        dense = partial(
            nn.Dense,
            self.size,
            kernel_init=nn.initializers.xavier_uniform(),
            dtype=jnp.float32,
            param_dtype=self.param_dtype,
        )
        return Normal(mean=dense(name="mean")(x), log_std=dense(name="log_std")(x))


class VAE(nn.Module):
    """A chain of latents: q(z_0 | x) q(z_1 | z_0) … and p(x | z_0) p(z_0 | z_1) … N(0, I).

    Level 0 is the one next to the image. With the defaults it is the network of Burda et al. with
    one stochastic layer, 784-200-200-50 and its mirror, of 425,284 parameters. Draws take the
    stream "latent". Labels, in a model that has classes, are read by every network, as one-hot.

    Attributes:
        image: height, width and channels.
        outputs: channels that the decoder gives for each pixel; the likelihood says how many.
        latents: dimensions of each level.
        encoder: from images to what q(z_0 | x) is read off; see ``models.generative.autoencoder``.
        decoder: from z_0 to the outputs of each pixel.
        between: for each level above 0, what makes the network from the level below to it and the
            one back; called with ``dtype`` and ``param_dtype``.
        num_classes: of the labels that the model is conditional on; None if it is not.
    """

    image: tuple[Count, Count, Count] = (28, 28, 1)
    outputs: Count = 1
    latents: tuple[Count, ...] = (50,)
    encoder: Callable[..., nn.Module] = partial(DenseEncoder, widths=(200, 200), activation=nn.tanh)
    decoder: Callable[..., nn.Module] = partial(DenseDecoder, widths=(200, 200), activation=nn.tanh)
    between: tuple[Callable[..., nn.Module], ...] = ()
    num_classes: Count | None = None
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        """Makes the networks. Raises ValueError unless those between levels fit their number."""
        if len(self.between) != len(self.latents) - 1:
            raise ValueError(
                f"{len(self.latents)} levels of latents have {len(self.latents) - 1} networks "
                f"between them; got {len(self.between)}"
            )
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        pixels = self.decoder(image=self.image, outputs=self.outputs, **types)
        head = partial(NormalHead, param_dtype=self.param_dtype)
        self.encoders = [self.encoder(**types), *(make(**types) for make in self.between)]
        self.posteriors = [head(size) for size in self.latents]
        self.decoders = [pixels, *(make(**types) for make in self.between)]
        self.priors = [head(size) for size in self.latents[:-1]]

    def encode(
        self,
        x: Float[Array, "batch height width channels"],
        *,
        samples: int = 1,
        labels: Int[Array, " batch"] | None = None,
        train: bool = False,
    ) -> tuple[tuple[Float[Array, "samples batch _"], ...], tuple[Normal, ...]]:
        """Draws of each level, [samples, batch, d], and what they were drawn from.

        The posterior of level 0 has a leading axis of 1. Those above have one for each draw of the
        level below, and are drawn from once.

        Raises:
            ValueError: for an image of another shape than ``image``, or labels that are missing or
                given to a model without classes.
        """
        del train  # the same computation in training and in evaluation
        check_image(x, self.image)
        condition = self._condition(labels)
        features = self.encoders[0](x, condition)[None]
        latents, posteriors = [], []
        for level, head in enumerate(self.posteriors):
            if level > 0:
                features = self.encoders[level](join(latents[-1], condition))
            posterior = head(features)
            shape = (samples, *posterior.mean.shape[1:])
            latents.append(normal_sample(self.make_rng("latent"), posterior, shape=shape))
            posteriors.append(posterior)
        return tuple(latents), tuple(posteriors)

    def decode(
        self,
        latents: Sequence[Float[Array, "samples batch _"]],
        *,
        labels: Int[Array, " batch"] | None = None,
        train: bool = False,
    ) -> tuple[tuple[Normal, ...], Float[Array, "samples batch height width {self.outputs}"]]:
        """What the model expects of each level, given the one above, and of the image.

        The prior of the top level is N(0, I), of its shape. Outputs are linear, float32: the
        likelihood says what they mean.

        Raises:
            ValueError: for latents of other sizes or number than the model's, or labels that are
                missing or given to a model without classes.
        """
        del train
        if len(latents) != len(self.latents):
            raise ValueError(f"the model has {len(self.latents)} latents; got {len(latents)}")
        for z, size in zip(latents, self.latents, strict=True):
            check_latent(z, size)
        condition = self._condition(labels)
        priors = [self._prior(i, z, condition) for i, z in enumerate(latents[1:])]
        top = standard_normal(latents[-1].shape)
        return (*priors, top), self.decoders[0](join(latents[0], condition))

    def generate(
        self,
        top: Float[Array, "*samples batch d"],
        *,
        labels: Int[Array, " batch"] | None = None,
        train: bool = False,
    ) -> Float[Array, "*samples batch height width {self.outputs}"]:
        """Outputs for latents of the top level; levels below are drawn.

        Raises:
            ValueError: for a latent of another size than the model's, or labels that are missing or
                given to a model without classes.
        """
        del train
        check_latent(top, self.latents[-1])
        condition = self._condition(labels)
        z = top
        for level in reversed(range(len(self.latents) - 1)):
            z = normal_sample(self.make_rng("latent"), self._prior(level, z, condition))
        return self.decoders[0](join(z, condition))

    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        *,
        samples: int = 1,
        labels: Int[Array, " batch"] | None = None,
        train: bool = False,
    ) -> tuple[
        tuple[Float[Array, "samples batch _"], ...],
        tuple[Normal, ...],
        tuple[Normal, ...],
        Float[Array, "samples batch height width {self.outputs}"],
    ]:
        """``encode`` and then ``decode``: latents, posteriors, priors and outputs."""
        latents, posteriors = self.encode(x, samples=samples, labels=labels, train=train)
        priors, outputs = self.decode(latents, labels=labels, train=train)
        return latents, posteriors, priors, outputs

    def _prior(self, level: int, above: Array, condition: Array | None) -> Normal:
        return self.priors[level](self.decoders[level + 1](join(above, condition)))

    def _condition(self, labels: Array | None) -> Array | None:
        return one_hot_condition(labels, self.num_classes)


# Burda et al. with two stochastic layers: 784-200-200-100, 100-100-100-50; 521,084 parameters.
TwoLevelVAE = partial(
    VAE,
    latents=(100, 50),
    between=(partial(MLP, widths=(100, 100), activation=nn.tanh),),
)

# 540,325 parameters for MNIST.
ConvVAE = partial(VAE, encoder=ConvEncoder, decoder=ConvDecoder)
