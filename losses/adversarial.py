"""The losses of two players, a generator and its discriminator, and what keeps the latter in check.

Logits are what a discriminator puts out, before any sigmoid: high where it takes an image for real.
They are [batch], or a map for each example, [batch, ...], as of the patches of a PatchGAN. All
losses are computed in float32 and are [batch]: that of a map is the mean over its places. Both
players minimise. Images and logits of the two sides have the same shape.

A pair of losses is an ``AdversarialLoss``, such as ``HINGE``; a penalty is added to the loss of the
discriminator.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from opsin.ops import mapped
from opsin.ops.keys import row_keys
from opsin.ranges import Positive

Critic = Callable[[Float[Array, "batch ..."]], Float[Array, "batch ..."]]
"""A discriminator with its parameters: from images to logits."""


@dataclass(frozen=True)
class AdversarialLoss:
    """What the two players of a game minimise.

    Attributes:
        discriminator: ``(real, fake) -> [batch]`` of the logits of real and of generated images.
        generator: ``(fake, real) -> [batch]``; ``real`` may be None unless the loss is relative.
        relative: whether logits count by their distance from the mean of the other side. The
            generator then needs those of real images, and microbatches do not add up to the batch.
    """

    discriminator: Callable[..., Array]
    generator: Callable[..., Array]
    relative: bool = False


@runtime_checkable
class Penalty(Protocol):
    """Holds down the slope of a discriminator, as a function of the image.

    Of each example alone: where batch norm takes its statistics from the batch, the slope at one
    image holds the effects on the logits of all others, and is not what is meant. Take another norm
    or none. Slopes are those of images in the range in which the discriminator gets them: in [0, 1]
    they are twice those in [-1, 1].
    """

    def __call__(
        self,
        key: Key[Array, ""],
        critic: Critic,
        real: Float[Array, "batch *image"],
        fake: Float[Array, "batch *image"],
    ) -> Float[Array, " batch"]:
        """The penalty of each example, float32."""
        ...


def logistic_discriminator_loss(
    real: Float[Array, "batch *places"], fake: Float[Array, "batch *places"]
) -> Float[Array, " batch"]:
    """−log D(real) − log(1 − D(fake)), where D is the sigmoid of the logit.

    Goodfellow et al., 2014, arXiv:1406.2661, eq. 1, with its sign turned. At the best D, which is
    p / (p + q) for densities p of the data and q of the generator, it is log 4 − 2 JSD(p, q).

    Raises:
        ValueError: shapes that differ.
    """
    real, fake = _pair(real, fake)
    return _by_example(-jax.nn.log_sigmoid(real) - jax.nn.log_sigmoid(-fake))


def minimax_generator_loss(
    fake: Float[Array, "batch *places"], real: Float[Array, "batch *places"] | None = None
) -> Float[Array, " batch"]:
    """log(1 − D(fake)), the generator's side of the same game; ``real`` does not matter.

    Goodfellow et al., 2014, eq. 1. Its slope is −D(fake), which vanishes where the discriminator is
    sure that an image is generated: when the generator has most to learn.
    """
    del real
    return _by_example(jax.nn.log_sigmoid(-fake.astype(jnp.float32)))


def non_saturating_generator_loss(
    fake: Float[Array, "batch *places"], real: Float[Array, "batch *places"] | None = None
) -> Float[Array, " batch"]:
    """−log D(fake); ``real`` does not matter.

    Goodfellow et al., 2014, section 3. Its slope, D(fake) − 1, vanishes where the discriminator is
    deceived.
    """
    del real
    return _by_example(-jax.nn.log_sigmoid(fake.astype(jnp.float32)))


def least_squares_discriminator_loss(
    real: Float[Array, "batch *places"],
    fake: Float[Array, "batch *places"],
    *,
    real_label: float = 1.0,
    fake_label: float = 0.0,
) -> Float[Array, " batch"]:
    """½ (real − b)² + ½ (fake − a)². Mao et al., 2017, arXiv:1611.04076.

    Args:
        real: logits of real images.
        fake: logits of generated ones.
        real_label: b.
        fake_label: a. With −1 here and 0 as the generator's target, what is played for is the
            Pearson χ² between p + q and 2q. By default labels are 0 and 1, and the target is 1.

    Raises:
        ValueError: shapes that differ.
    """
    real, fake = _pair(real, fake)
    return _by_example(
        optax.losses.l2_loss(real - real_label) + optax.losses.l2_loss(fake - fake_label)
    )


def least_squares_generator_loss(
    fake: Float[Array, "batch *places"],
    real: Float[Array, "batch *places"] | None = None,
    *,
    target: float = 1.0,
) -> Float[Array, " batch"]:
    """½ (fake − c)², where c is ``target``; ``real`` does not matter. Mao et al., 2017."""
    del real
    return _by_example(optax.losses.l2_loss(fake.astype(jnp.float32) - target))


def hinge_discriminator_loss(
    real: Float[Array, "batch *places"], fake: Float[Array, "batch *places"]
) -> Float[Array, " batch"]:
    """max(0, 1 − real) + max(0, 1 + fake).

    Lim & Ye, 2017, arXiv:1705.02894; Miyato et al., 2018, arXiv:1802.05957. At its least it is
    2 − 2 TV(p, q), twice one minus the total variation.

    Raises:
        ValueError: shapes that differ.
    """
    real, fake = _pair(real, fake)
    return _by_example(optax.losses.hinge_loss(real, 1.0) + optax.losses.hinge_loss(fake, -1.0))


def wasserstein_discriminator_loss(
    real: Float[Array, "batch *places"], fake: Float[Array, "batch *places"]
) -> Float[Array, " batch"]:
    """fake − real. Arjovsky et al., 2017, arXiv:1701.07875.

    At the best critic of Lipschitz constant 1 it is minus the distance W₁(p, q). It has no bound
    without such a constant: see ``gradient_penalty`` and ``clip_weights``.

    Raises:
        ValueError: shapes that differ.
    """
    real, fake = _pair(real, fake)
    return _by_example(fake - real)


def linear_generator_loss(
    fake: Float[Array, "batch *places"], real: Float[Array, "batch *places"] | None = None
) -> Float[Array, " batch"]:
    """−fake, the generator's side of the hinge and the Wasserstein loss; ``real`` is unused."""
    del real
    return _by_example(-fake.astype(jnp.float32))


def relativistic_discriminator_loss(
    real: Float[Array, "batch *places"],
    fake: Float[Array, "batch *places"],
) -> Float[Array, " batch"]:
    """The logistic loss of real − mean(fake) and fake − mean(real): is it more real than those?

    Jolicoeur-Martineau, 2019, arXiv:1807.00734, "RaSGAN". Means go over the batch and the places of
    maps, so that the loss of an example depends on all.

    Args:
        real: logits of real images.
        fake: logits of generated ones.

    Raises:
        ValueError: shapes that differ.
    """
    real, fake = _pair(real, fake)
    means = mapped.mean((jnp.mean(real), jnp.mean(fake)))
    return logistic_discriminator_loss(real - means[1], fake - means[0])


def relativistic_generator_loss(
    fake: Float[Array, "batch *places"],
    real: Float[Array, "batch *places"] | None,
) -> Float[Array, " batch"]:
    """``relativistic_discriminator_loss`` with the two sides exchanged.

    Raises:
        ValueError: shapes that differ, or no logits of real images.
    """
    if real is None:
        raise ValueError("a relativistic generator needs the logits of real images as well")
    return relativistic_discriminator_loss(fake, real)


MINIMAX = AdversarialLoss(logistic_discriminator_loss, minimax_generator_loss)
NON_SATURATING = AdversarialLoss(logistic_discriminator_loss, non_saturating_generator_loss)
LEAST_SQUARES = AdversarialLoss(least_squares_discriminator_loss, least_squares_generator_loss)
HINGE = AdversarialLoss(hinge_discriminator_loss, linear_generator_loss)
WASSERSTEIN = AdversarialLoss(wasserstein_discriminator_loss, linear_generator_loss)
RELATIVISTIC = AdversarialLoss(
    relativistic_discriminator_loss, relativistic_generator_loss, relative=True
)


def gradient_penalty(
    key: Key[Array, ""],
    critic: Critic,
    real: Float[Array, "batch *image"],
    fake: Float[Array, "batch *image"],
) -> Float[Array, " batch"]:
    """(‖∇D(x)‖ − 1)² at x = u real + (1 − u) fake, with u uniform in [0, 1]: a ``Penalty``.

    Gulrajani et al., 2017, arXiv:1704.00028, eq. 3, without its weight λ = 10. Image i takes its u
    from ``fold_in(key, i)``. Where the slope is 0 the penalty is 1 and its gradient 0.

    Args:
        key: of the draws.
        critic: from images to logits, in which examples are independent of each other.
        real: images.
        fake: images, each paired with the real one in its row.

    Raises:
        ValueError: shapes that differ.
    """
    real, fake = _pair(real, fake)
    keys = row_keys(key, len(real))
    shares = jax.vmap(jax.random.uniform)(keys).reshape(-1, *[1] * (real.ndim - 1))
    slopes = _slopes(critic, shares * real + (1.0 - shares) * fake)
    return jnp.square(optax.safe_norm(slopes, 0.0, axis=1) - 1.0)


def r1_penalty(
    key: Key[Array, ""],
    critic: Critic,
    real: Float[Array, "batch *image"],
    fake: Float[Array, "batch *image"],
) -> Float[Array, " batch"]:
    """½ ‖∇D(real)‖², whose weight is γ: a ``Penalty`` that neither draws nor looks at ``fake``.

    Mescheder et al., 2018, arXiv:1801.04406, R₁.

    Args:
        key: not used.
        critic: from images to logits, in which examples are independent of each other.
        real: images.
        fake: not used.
    """
    del key, fake
    return _half_squared_slope(critic, real)


def r2_penalty(
    key: Key[Array, ""],
    critic: Critic,
    real: Float[Array, "batch *image"],
    fake: Float[Array, "batch *image"],
) -> Float[Array, " batch"]:
    """½ ‖∇D(fake)‖²: R₂ of Mescheder et al., 2018; as ``r1_penalty``, but of generated images."""
    del key, real
    return _half_squared_slope(critic, fake)


def clip_weights(
    params: PyTree[Float[Array, "..."]], *, limit: Positive = 0.01
) -> PyTree[Float[Array, "..."]]:
    """The parameters, all of them, clipped to [−limit, limit] after a step of the critic.

    Arjovsky et al., 2017, algorithm 1. The Lipschitz constant of the critic is bounded by it, but
    not by a number that is known.

    Raises:
        ValueError: ``limit`` not above 0.
    """
    if limit <= 0.0:
        raise ValueError(f"limit must be above 0, not {limit}")
    return optax.tree.clip(params, -limit, limit)


def feature_matching_loss(
    real: Float[Array, "reals *features"],
    fake: Float[Array, "fakes *features"],
) -> Float[Array, ""]:
    """(E f(real) − E f(fake))², a loss of the generator; means over the batch, then the features.

    Salimans et al., 2016, arXiv:1606.03498, section 3.1, where it is the sum over the features f of
    a layer of the discriminator; the mean does not grow with their number. One number for the
    batch, because it compares means: microbatches do not add up to the batch.

    Args:
        real: features of real images; they may be more or fewer than the others.
        fake: features of generated ones.

    Raises:
        ValueError: features of shapes that differ.
    """
    if real.shape[1:] != fake.shape[1:]:
        raise ValueError(f"features {fake.shape} of fakes and {real.shape} of real images differ")
    distance = jnp.mean(real, axis=0, dtype=jnp.float32) - jnp.mean(fake, axis=0, dtype=jnp.float32)
    return jnp.mean(jnp.square(mapped.mean(distance)))


def _pair(real: Array, fake: Array) -> tuple[Array, Array]:
    """Both in float32, and of one shape: nothing is broadcast."""
    if real.shape != fake.shape:
        raise ValueError(f"fake {fake.shape} must have the shape of real {real.shape}")
    return real.astype(jnp.float32), fake.astype(jnp.float32)


def _by_example(values: Array) -> Array:
    """Means over all axes but the first, float32."""
    return jnp.mean(values, axis=tuple(range(1, values.ndim)), dtype=jnp.float32)


def _slopes(critic: Critic, images: Array) -> Array:
    """∇D at each image, a row each; of a map, that of its mean."""
    slopes = jax.grad(lambda x: jnp.sum(_by_example(critic(x))))(images.astype(jnp.float32))
    return slopes.reshape(len(slopes), -1)


def _half_squared_slope(critic: Critic, images: Array) -> Array:
    return 0.5 * jnp.sum(jnp.square(_slopes(critic, images)), axis=1)
