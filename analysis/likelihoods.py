"""Likelihoods of held-out images under a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from opsin.analysis.batches import over_batches
from opsin.analysis.checks import check_task
from opsin.analysis.sets import Choice, some_examples, split_of
from opsin.data.examples import Examples
from opsin.losses.likelihoods import Likelihood
from opsin.losses.variational import bits_per_dim
from opsin.ranges import Count, SetSize
from opsin.train.measurements import Subject
from opsin.train.settings import SettingError
from opsin.train.tasks.task import Batch


@runtime_checkable
class LatentVariableTask(Protocol):
    """A task whose latent draws estimate the likelihood of an image."""

    @property
    def num_classes(self) -> int | None:
        """The number of classes of a conditional model; None if it is unconditional."""
        ...

    @property
    def likelihood(self) -> Likelihood:
        """The likelihood of an image given its latents."""
        ...

    def log_weights(
        self, params: PyTree, mutable: PyTree, batch: Batch, key: Key[Array, ""], samples: int
    ) -> Float[Array, "samples batch"]:
        """log p(x, z) − log q(z | x) for the given number of draws z."""
        ...


@dataclass(frozen=True)
class ImportanceNLL:
    """−log p(x) by importance sampling: ``nll`` in nats, and for bytes ``nll_bits_per_dim``.

    Burda et al., 2016, arXiv:1509.00519, section 5: the bound with 5,000 samples, close to the
    likelihood itself. Each image draws from its own key, which depends on its place in the set.

    Attributes:
        samples: draws for each image; a multiple of ``at_once``.
        at_once: draws that are in memory together.
        images: of the split; None takes all.
        choice: of so many images; see ``analysis.sets.Choice``.
        batch: images that are in memory together.
        split: of the data.
    """

    samples: Count = 5000
    at_once: Count = 250
    images: SetSize | None = None
    choice: Choice = "drawn"
    batch: Count = field(default=32, metadata={"identity": False})
    split: str = "test"

    def check(self, task: LatentVariableTask, sets: Mapping[str, Examples]) -> None:
        """Raises SettingError for another task, samples that do not divide, or no such split."""
        check_task(self, task, LatentVariableTask, "a model with latent variables, such as a VAE")
        if self.samples % self.at_once:
            raise SettingError(
                f"ImportanceNLL: samples={self.samples} is no multiple of at_once={self.at_once}"
            )
        split_of(sets, self.split)

    def __call__(self, subject: Subject[LatentVariableTask]) -> dict[str, float]:
        """The estimate; of a conditional model it is, and is called, that of log p(x | class)."""
        task = subject.task
        arrays = some_examples(split_of(subject.sets, self.split), self.images, self.choice)

        def likelihoods(params: PyTree, mutable: PyTree, batch: Batch, indices: Array) -> Array:
            def one(image: Batch, index: Array) -> Array:
                single = jax.tree.map(lambda x: x[None], image)
                key = jax.random.fold_in(jax.random.key(0), index)

                def add(total: Array, part: Array) -> tuple[Array, None]:
                    key_part = jax.random.fold_in(key, part)
                    weights = task.log_weights(params, mutable, single, key_part, self.at_once)
                    return jnp.logaddexp(total, jax.nn.logsumexp(weights)), None

                parts = jnp.arange(self.samples // self.at_once)
                total, _ = jax.lax.scan(add, jnp.float32(-jnp.inf), parts)
                return total - jnp.log(self.samples)

            return jax.vmap(one)(subject.prepare(batch), indices)

        found = over_batches(
            likelihoods,
            subject,
            arrays,
            batch=self.batch,
            what=f"likelihood, {self.samples} draws",
        )
        nll = -np.mean(found, dtype=np.float64)
        bits = bits_per_dim(jnp.asarray(nll), arrays["image"][0].size)
        name = f"{self.split}/{'nll' if task.num_classes is None else 'nll_given_class'}"
        numbers = {name: float(nll), f"{name}_draws": float(self.samples)}
        if task.likelihood.support != "real":  # a density says nothing of the bytes
            numbers[f"{name}_bits_per_dim"] = float(bits)
        return numbers
