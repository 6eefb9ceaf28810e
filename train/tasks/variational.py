"""Variational autoencoders: images explained by latent variables, with a bound on log p(x)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar, Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from opsin.data.augment import one_by_one
from opsin.losses.likelihoods import Bernoulli, Likelihood
from opsin.losses.variational import (
    bits_per_dim,
    doubly_reparameterized_bound,
    elbo,
    free_bits,
    importance_bound,
    linear_warmup,
)
from opsin.metrics.latent import active_units
from opsin.metrics.state import Mean, Metric
from opsin.ops.gaussian import Normal, normal_kl, normal_log_ratio
from opsin.pictures.kinds import Curve, Panels
from opsin.ranges import Count, NonNegative, StepsOrZero
from opsin.train.durations import check_ends
from opsin.train.settings import SettingError
from opsin.train.tasks.checks import (
    check_decoder,
    check_outputs,
    check_support,
    require_entry,
    supported,
)
from opsin.train.tasks.generative import Generative
from opsin.train.tasks.latent_pictures import (
    latent_grid,
    latent_pictures,
    reconstructions,
    square,
)
from opsin.train.tasks.task import Aux, Batch, Look


@dataclass(frozen=True)
class Variational(Generative):
    """Learns a model of the images themselves by a lower bound on their likelihood.

    Kingma & Welling, 2014, arXiv:1312.6114; Burda et al., 2016, arXiv:1509.00519. Bounds are in
    nats: sums over pixels, means over images.

    Attributes:
        model: with ``encode``, ``decode`` and ``generate``, as in ``models.generative.vae``.
        likelihood: of an image given what the decoder puts out.
        objective: ``"elbo"``, or ``"importance"``: the bound by importance weights (IWAE).
        samples: latent draws for each image in training. ELBOs are averaged over them.
        gradient: of the importance bound; ``"doubly_reparameterized"`` has less variance for the
            encoder (Tucker et al., 2018, arXiv:1810.04152).
        beta: weight of the rate in the ELBO (Higgins et al., 2017).
        warmup_steps: steps over which beta rises from 0.
        free_nats: nats of each latent dimension that the ELBO does not charge for.
    """

    model: nn.Module
    likelihood: Likelihood = field(default_factory=Bernoulli)
    objective: Literal["elbo", "importance"] = "elbo"
    samples: Count = 1
    gradient: Literal["reparameterized", "doubly_reparameterized"] = "reparameterized"
    beta: NonNegative = 1.0
    warmup_steps: StepsOrZero = 0
    free_nats: NonNegative = 0.0

    curves: ClassVar = (
        Curve(("loss", "nll"), logarithmic=True),
        Curve(("rate", "distortion"), logarithmic=True),
    )

    @property
    def num_classes(self) -> int | None:
        """Classes that the model is conditioned on; None if it is not."""
        return getattr(self.model, "num_classes", None)

    def check(self, class_names: Sequence[str], look: Look) -> None:
        """Raises SettingError for options that contradict, and images the likelihood is not for."""
        check_outputs(self.model, class_names)
        if self.samples < 1:
            raise SettingError("task.samples is at least 1")
        plain = self.beta == 1 and not self.warmup_steps and not self.free_nats
        if self.objective == "importance" and not plain:
            raise SettingError(
                "task.beta, task.warmup_steps and task.free_nats change the ELBO alone: "
                "set task.objective=elbo, or leave them as they are"
            )
        if self.objective == "elbo" and self.gradient != "reparameterized":
            raise SettingError(
                "task.gradient=doubly_reparameterized needs the importance bound: "
                "set task.objective=importance"
            )
        if self.gradient != "reparameterized" and len(self._levels) > 1:
            raise SettingError(
                "task.gradient=doubly_reparameterized is for a model of one stochastic layer: "
                "set task.gradient=reparameterized"
            )
        for split, batch in look().items():
            check_support(self.likelihood, np.asarray(batch["image"]), split)

    def check_loop(self, *, accumulate: int, pmap: bool, steps: int, epoch: Fraction) -> None:
        """Raises SettingError for a loop that would make another objective of this one.

        Raises DurationError for a warm-up that is longer than the run.
        """
        if self.free_nats and (accumulate > 1 or pmap):
            raise SettingError(
                "task.free_nats needs the mean over the whole batch, which microbatches do not "
                "know: set loop.accumulate=1 loop.strategy=jit"
            )
        check_ends("task.warmup_steps", self.warmup_steps, self.warmup_steps, steps, "beta")

    def init(self, key: Key[Array, ""], batch: Batch) -> PyTree:
        """All variables of the model.

        Raises:
            SettingError: if the decoder puts out another number than the likelihood takes, or the
                data have no labels for a conditional model.
        """
        check_decoder(self.model, self.likelihood, batch)
        if self.num_classes is not None:
            require_entry(batch, "label", 'such as "digits" or "folder:PATH"')
        key_params, key_latent = jax.random.split(key)
        rngs = {"params": key_params, "latent": key_latent}
        return self.model.init(rngs, batch["image"], labels=self._labels(batch), train=False)

    def loss(
        self,
        params: PyTree,
        mutable: PyTree,
        batch: Batch,
        key: Key[Array, ""],
        step: Int[Array, ""] | int,
    ) -> tuple[Float[Array, ""], Aux]:
        """The negative bound in nats, a mean over the batch."""
        images, labels = batch["image"], self._labels(batch)

        def bound(model: Any) -> tuple[Array, dict[str, Metric]]:
            latents, posteriors = model.encode(
                images, samples=self.samples, labels=labels, train=True
            )

            def weigh(latents: Sequence[Array], posteriors: Sequence[Normal]) -> _Weighed:
                return self._weigh(model, latents, posteriors, images, labels, train=True)

            weighed = weigh(latents, posteriors)
            metrics: dict[str, Metric] = {
                "distortion": Mean.from_values(-jnp.mean(weighed.log_likelihood, axis=0)),
                "rate": Mean.from_values(jnp.sum(weighed.rates, axis=-1)),
            }
            if self.objective == "elbo":
                charged = weighed.rates
                if self.free_nats:  # a rate below the top may be below 0, which is no bit for free
                    charged = free_bits(charged, nats=self.free_nats)
                charged = jnp.sum(charged, axis=-1)
                beta = self.beta * linear_warmup(step, self.warmup_steps)
                return elbo(jnp.mean(weighed.log_likelihood, axis=0), charged, beta=beta), metrics
            if self.gradient == "reparameterized":
                return importance_bound(weighed.log_weights), metrics
            fixed = jax.lax.stop_gradient(posteriors)
            return doubly_reparameterized_bound(
                latents, lambda scaled: weigh(scaled, fixed).log_weights
            ), metrics

        (bounds, metrics), mutable = self.model.apply(
            {"params": params, **mutable},
            method=bound,
            rngs={"latent": key, "dropout": jax.random.fold_in(key, 1)},
            mutable=list(mutable),
        )
        metrics["loss"] = Mean.from_values(-bounds)
        return -jnp.mean(bounds), Aux(mutable, metrics)

    def evaluate(
        self, params: PyTree, mutable: PyTree, batch: Batch, keys: Key[Array, " batch"]
    ) -> dict[str, Metric]:
        """ELBO with one draw, its two terms, and active units of the level above the image.

        Bits a dimension are of likelihoods of bytes or binary pixels: a density on [0, 1] says
        nothing of them before its data were dequantised.
        """

        def weighed(key: Array, single: Batch) -> tuple[Array, Array, Array]:
            found, posteriors = self._weighed(params, mutable, single, key, samples=1)
            # Means of levels above depend on draws of the first, whose noise would count.
            return found.log_likelihood[0], jnp.sum(found.rates, axis=-1), posteriors[0].mean[0]

        log_likelihood, rate, mean = one_by_one(weighed, keys, batch)
        bound, valid = elbo(log_likelihood, rate), batch["valid"]
        metrics: dict[str, Metric] = {
            "elbo": Mean.from_values(bound, valid),
            "rate": Mean.from_values(rate, valid),
            "distortion": Mean.from_values(-log_likelihood, valid),
            "active_units": active_units(mean, valid),
        }
        if self.likelihood.support != "real":
            bits = bits_per_dim(-bound, batch["image"][0].size)
            metrics["bits_per_dim"] = Mean.from_values(bits, valid)
        return metrics

    def preview(
        self, params: PyTree, mutable: PyTree, batch: Batch, key: Key[Array, ""]
    ) -> dict[str, Panels]:
        """Reconstructions, samples, and what lies between latents."""
        labels = self._labels(batch)
        latents = self.latents(params, mutable, batch)

        def decode(latents: Array, labels: Array | None) -> Array:
            return self._generate(params, mutable, latents, labels, key)

        count = 64
        asked = None if self.num_classes is None else jnp.arange(count) % self.num_classes
        keys = jax.random.split(key, count)
        pictures = {
            "reconstructions": reconstructions(batch["image"], decode(latents, labels)),
            "samples": square(self.sample(params, mutable, keys, asked)),
            **latent_pictures(decode, batch["image"], latents, labels),
        }
        if latents.shape[-1] == 2:
            pictures["latent_grid"] = latent_grid(decode, None if labels is None else labels[0])
        return pictures

    def sample(
        self,
        params: PyTree,
        mutable: PyTree,
        keys: Key[Array, " n"],
        labels: Int[Array, " n"] | None,
    ) -> Float[Array, "n height width channels"]:
        """The mean of p(x | z) for z from the prior, which is what papers show as samples."""

        def one(key: Array, label: Array | None) -> Array:
            key_top, key = jax.random.split(key)
            latents = jax.random.normal(key_top, (1, self._levels[-1]))
            label = None if label is None else label[None]
            return self._generate(params, mutable, latents, label, key)[0]

        return jax.vmap(one)(keys, labels)

    def log_weights(
        self, params: PyTree, mutable: PyTree, batch: Batch, key: Key[Array, ""], samples: int
    ) -> Float[Array, "samples batch"]:
        """log p(x, z) − log q(z | x) of draws z from q: their mean weight estimates p(x)."""
        return self._weighed(params, mutable, batch, key, samples)[0].log_weights

    def latents(
        self, params: PyTree, mutable: PyTree, batch: Batch
    ) -> Float[Array, "batch latent"]:
        """The posterior mean of the top level, given draws of those below from a fixed key."""

        def encode(model: Any) -> Array:
            return model.encode(batch["image"], labels=self._labels(batch))[1][-1].mean[0]

        rngs = {"latent": jax.random.key(0)}
        return cast(
            Array, self.model.apply({"params": params, **mutable}, method=encode, rngs=rngs)
        )

    def _weighed(
        self, params: PyTree, mutable: PyTree, batch: Batch, key: Array, samples: int
    ) -> tuple[_Weighed, Sequence[Normal]]:
        images, labels = batch["image"], self._labels(batch)

        def weighed(model: Any) -> tuple[_Weighed, Sequence[Normal]]:
            latents, posteriors = model.encode(images, samples=samples, labels=labels)
            return self._weigh(model, latents, posteriors, images, labels), posteriors

        found: Any = self.model.apply(
            {"params": params, **mutable}, method=weighed, rngs={"latent": key}
        )
        return found

    def _weigh(
        self,
        model: Any,
        latents: Sequence[Array],
        posteriors: Sequence[Normal],
        images: Array,
        labels: Array | None,
        train: bool = False,
    ) -> _Weighed:
        priors, outputs = model.decode(latents, labels=labels, train=train)
        log_likelihood = self.likelihood.log_prob(outputs, supported(self.likelihood, images))
        levels = list(zip(latents, posteriors, priors, strict=True))
        ratios = [normal_log_ratio(z, q, p) for z, q, p in levels]
        # The closed form is of the top alone: below it the prior depends on a draw from above,
        # which came from this level's own.
        top = normal_kl(posteriors[-1], priors[-1])
        rates = [jnp.mean(rate, axis=0) for rate in (*ratios[:-1], top)]
        log_ratio = sum(jnp.sum(ratio, axis=-1) for ratio in ratios)
        return _Weighed(log_likelihood, jnp.concatenate(rates, axis=-1), log_likelihood - log_ratio)

    def _generate(
        self,
        params: PyTree,
        mutable: PyTree,
        latents: Float[Array, "batch latent"],
        labels: Int[Array, " batch"] | None,
        key: Key[Array, ""],
    ) -> Float[Array, "batch height width channels"]:
        outputs = self.model.apply(
            {"params": params, **mutable},
            latents,
            labels=labels,
            method="generate",
            rngs={"latent": key},
        )
        return self.likelihood.mean(cast(Array, outputs))

    @property
    def _levels(self) -> tuple[int, ...]:
        return self.model.latents  # pyright: ignore[reportAttributeAccessIssue]

    def _labels(self, batch: Batch) -> Int[Array, " batch"] | None:
        return None if self.num_classes is None else batch["label"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Weighed:
    """Log-probabilities of draws from the posterior, in nats.

    Attributes:
        log_likelihood: log p(x | z), [samples, batch].
        rates: of each latent dimension of all levels, [batch, dimensions], a mean over draws: KL of
            the top level, log q(z | …) − log p(z | …) of the draws themselves below it.
        log_weights: log p(x, z) − log q(z | x), [samples, batch].
    """

    log_likelihood: Float[Array, "samples batch"]
    rates: Float[Array, "batch dimensions"]
    log_weights: Float[Array, "samples batch"]
