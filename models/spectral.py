"""Layers with spectral normalisation: Miyato et al., 2018, arXiv:1802.05957."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from opsin.models.layers import Conv
from opsin.ops.spectral_norm import spectral_norm


class SpectralLayer(nn.Module):
    """A layer whose parameter ``kernel`` is divided by its largest singular value, as a matrix.

    To be mixed into a linen layer. The singular vector is the variable "u" in the collection
    "spectral". Each call takes one step of the power iteration from it, and in training keeps the
    result, if that is mutable. A kernel of zeros stays as it is.

    Attributes:
        train: keep the singular vector.
    """

    train: bool = False

    @nn.nowrap
    def param(self, name: str, init_fn: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """As ``nn.Module.param``, but divides the kernel, whatever layer asks for it."""
        value = super().param(name, init_fn, *args, **options)
        if name != "kernel":
            return value

        def start() -> Array:
            return jax.random.normal(self.make_rng("params"), value.shape[-1:])

        u = self.variable("spectral", "u", start)
        sigma, closer = spectral_norm(value, u.value, iterations=1)
        keep = self.train and self.is_mutable_collection("spectral")
        if keep and not self.is_initializing():
            u.value = closer
        return value / jnp.where(sigma > 0, sigma, 1)


class SpectralDense(SpectralLayer, nn.Dense):
    """``nn.Dense`` with spectral normalisation."""


class _SpectralConv(SpectralLayer, nn.Conv):
    """``Conv`` with spectral normalisation, with the options of the house below."""


SpectralConv = partial(_SpectralConv, **Conv.keywords)
