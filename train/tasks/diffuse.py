"""Diffusion models: a network learns to remove noise, step by step, until an image is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Self, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from opsin.losses.diffusion import (
    Weighting,
    bound_loss,
    denoising_loss,
    hybrid_loss,
    variational_bound,
)
from opsin.metrics.state import Mean, Metric
from opsin.ops.diffusion.inpainting import Inpaint
from opsin.ops.diffusion.process import (
    Denoiser,
    Model,
    Process,
    Target,
    convert,
    diffuse,
    interpolated_log_variance,
    over,
)
from opsin.ops.diffusion.samplers import ANCESTRAL, Sampler, fold_keys, keyed_normal
from opsin.ops.diffusion.sampling import (
    Sampling,
    classifier_free_guidance,
    prior_noise,
    sample,
    sample_path,
)
from opsin.ops.diffusion.schedules import Discrete
from opsin.ops.keys import row_keys
from opsin.pictures.kinds import Panels
from opsin.ranges import Count, Probability
from opsin.train.settings import SettingError
from opsin.train.tasks.checks import (
    check_guidance,
    check_outputs,
    check_process,
    check_range,
    require_entry,
)
from opsin.train.tasks.generative import Generative
from opsin.train.tasks.latent_pictures import square
from opsin.train.tasks.players import SIGNED, signed, unsigned
from opsin.train.tasks.task import Aux, Batch, Look


@dataclass(frozen=True)
class Diffuse(Generative):
    """Learns to predict images from images with noise of every strength.

    Ho et al., 2020, arXiv:2006.11239, and with scores as targets Song & Ermon, 2019,
    arXiv:1907.05600. The network sees images in [−1, 1].

    Attributes:
        model: ``(x, noise, labels, train=…) -> prediction``, as in
            ``models.generative.diffusion_unet``.
        image: height, width and channels of what is made.
        process: from images to noise.
        target: what the network predicts.
        weighting: of times; None weighs errors of the target alike, see ``losses.diffusion``.
        learned_variance: whether the network predicts the variance of a step too, with twice the
            outputs; the loss is then that of Nichol & Dhariwal, 2021, arXiv:2102.09672, eq. 16.
            Only of discrete processes.
        label_dropout: share of the images whose class is hidden from the network in training, for
            classifier-free guidance; without effect on a network without classes.
        sampling: how images are made, in previews and in the end.
    """

    input_range: ClassVar[tuple[float, float]] = SIGNED

    model: nn.Module
    image: tuple[Count, Count, Count] = (32, 32, 3)
    process: Process = field(default_factory=Discrete)
    target: Target = "epsilon"
    weighting: Weighting | None = None
    learned_variance: bool = False
    label_dropout: Probability = 0.1
    sampling: Sampling = field(default_factory=Sampling, metadata={"identity": "evaluation"})

    @property
    def num_classes(self) -> int | None:
        """Classes that images are conditioned on, or None."""
        return getattr(self.model, "num_classes", None)

    def check(self, class_names: Sequence[str], look: Look) -> None:
        """Raises SettingError for options that contradict, and for images outside of [0, 1]."""
        check_outputs(self.model, class_names)
        self.check_sampling()
        if not 0.0 <= self.label_dropout < 1.0:
            raise SettingError(f"task.label_dropout={self.label_dropout} must lie in [0, 1)")
        check_process(
            self.process, self.model, self.target, self.weighting is not None, self.learned_variance
        )
        for split, batch in look().items():
            check_range(np.asarray(batch["image"]), split)

    def check_sampling(self) -> None:
        """Raises SettingError for a way to make images that the model does not allow."""
        try:
            self.sampling.check(self.process)
        except ValueError as error:
            raise SettingError(f"task.sampling: {error}") from error
        check_guidance(self.sampling.guidance, self.num_classes, self.label_dropout)

    def with_sampling(self, **changes: Any) -> Self:
        """The task with other fields of ``sampling``; raises SettingError as ``check_sampling``."""
        task = replace(self, sampling=replace(self.sampling, **changes))
        task.check_sampling()
        return task

    def inpainter(
        self, resamplings: int, *, steps: int | None, keep_sampler: bool, any_class: bool
    ) -> Diffuse:
        """See ``Generative.inpainter``."""
        changes: dict[str, Any] = {}
        if not keep_sampler and self.sampling.sampler.remembers:
            # Most are trained with a fast sampler, which cannot take a step back.
            most = self.process.steps if isinstance(self.process, Discrete) else 100
            changes = {"sampler": ANCESTRAL, "steps": steps or min(most, 100), "spacing": None}
        if any_class and self.num_classes is not None and self.label_dropout == 0:
            raise SettingError(
                "it never saw an image without its class (task.label_dropout=0): ask for one with "
                "--class"
            )
        if any_class:
            changes["guidance"] = 1.0
        task = self.with_sampling(**changes)
        task.check_inpainting(resamplings)
        return task

    def check_inpainting(self, resamplings: int) -> None:
        """Raises SettingError for a sampler that remembers the step before, or no resamplings."""
        try:
            Inpaint(jnp.zeros(()), jnp.zeros((), bool), self.sampling.sampler, resamplings)
        except ValueError as error:
            raise SettingError(str(error)) from error

    def bound_times(self, steps: int | None) -> np.ndarray:
        """The times of a variational bound; None takes all steps of a discrete process.

        Raises:
            SettingError: for a process that ends in noise, or has no such steps.
        """
        name = type(self.process).__name__
        if steps is None and not isinstance(self.process, Discrete):
            raise SettingError(f"{name} has no steps of its own: set VariationalBound(steps=1000)")
        try:
            times = self.process.times(steps or cast(Discrete, self.process).steps)
        except ValueError as error:
            raise SettingError(f"VariationalBound: {error}") from error
        if self.process.levels(times[-1:]).sigma[0] != 0:
            raise SettingError(f"{name} ends with noise left, and the bound is of the data")
        return times

    def init(self, key: Key[Array, ""], batch: Batch) -> PyTree:
        """All variables of the model.

        Raises:
            SettingError: if the images have another shape than ``image``, the network other outputs
                than are predicted, or the data no labels for a network that takes them.
        """
        if self.num_classes is not None:
            require_entry(batch, "label", 'such as "digits" or "folder:PATH"')
        images, labels = batch["image"], self._labels(batch)
        if tuple(self.image) != images.shape[1:]:
            raise SettingError(
                f"task.image is {tuple(self.image)}, the data have {images.shape[1:]}: set "
                f"task.image={images.shape[1:]}"
            )
        noise = jnp.ones(len(images))
        prediction, variables = self.model.init_with_output(key, images, noise, labels)
        wanted = images.shape[-1] * (2 if self.learned_variance else 1)
        if prediction.shape[-1] != wanted:
            raise SettingError(
                f"the network puts out {prediction.shape[-1]} numbers for each pixel, the task "
                f"takes {wanted}: set task.model.outputs={wanted}"
            )
        return variables

    def loss(
        self,
        params: PyTree,
        mutable: PyTree,
        batch: Batch,
        key: Key[Array, ""],
        step: Int[Array, ""] | int,
    ) -> tuple[Float[Array, ""], Aux]:
        """The weighted squared error of the prediction, at a time drawn for each image."""
        key, key_dropout, key_hide = jax.random.split(key, 3)
        keys = row_keys(key, len(batch["image"]))
        labels = self._labels(batch)
        if labels is not None and self.label_dropout:
            shares = jax.vmap(jax.random.uniform)(row_keys(key_hide, len(labels)))
            labels = jnp.where(shares < self.label_dropout, self._nothing, labels)
        options = {"train": True, "rngs": {"dropout": key_dropout}}
        losses, _ = self._errors(params, mutable, batch, keys, labels, **options)
        return jnp.mean(losses), Aux(mutable, {"loss": Mean.from_values(losses)})

    def evaluate(
        self, params: PyTree, mutable: PyTree, batch: Batch, keys: Key[Array, " batch"]
    ) -> dict[str, Metric]:
        """The loss, and the squared error of the noise in thirds of the time, the last near noise.

        With the target "x0" it is the error of the image times SNR: its first third depends on a
        few early times.
        """
        valid = batch["valid"]
        losses, (error, third) = self._errors(params, mutable, batch, keys, self._labels(batch))
        metrics: dict[str, Metric] = {"loss": Mean.from_values(losses, valid)}
        for index, name in enumerate(("early", "middle", "late")):
            within = valid & (third == index)
            metrics[f"noise_error_{name}"] = Mean.from_values(error, within)
        return metrics

    def preview(
        self, params: PyTree, mutable: PyTree, batch: Batch, key: Key[Array, ""]
    ) -> dict[str, Panels]:
        """Samples of one fixed seed, and the sampling path of some of them."""
        count, shown, frames = 64, 4, 10
        keys = row_keys(jax.random.key(0), count)
        asked = None if self.num_classes is None else jnp.arange(count) % self.num_classes
        samples = self.sample(params, mutable, keys, asked)
        # Of a few: all steps of 64 colour images, a thousand of them, would take gigabytes.
        few = None if asked is None else asked[:shown]
        x, estimates = self.path(params, mutable, keys[:shown], few)
        some = np.linspace(0, len(x) - 1, min(frames, len(x))).round().astype(int)
        both = jnp.stack([x[some], estimates[some]])  # [2, frames, shown, …]
        rows = jnp.moveaxis(both, 2, 0).reshape(2 * shown, len(some), *self.image)
        times = tuple(f"t = {t:.4g}" for t in self._times()[1:][some])  # after each step
        return {
            "samples": square(jnp.clip(samples, 0, 1)),
            "path": Panels(rows, rows=("x", "estimate") * shown, columns=times),
        }

    def sample(
        self,
        params: PyTree,
        mutable: PyTree,
        keys: Key[Array, " n"],
        labels: Int[Array, " n"] | None,
    ) -> Float[Array, "n height width channels"]:
        """Images out of noise, by ``sampling``."""
        return unsigned(sample(*self._start(params, mutable, keys, labels), times=self._times()))

    def path(
        self,
        params: PyTree,
        mutable: PyTree,
        keys: Key[Array, " n"],
        labels: Int[Array, " n"] | None,
    ) -> tuple[Float[Array, "steps n ..."], Float[Array, "steps n ..."]]:
        """``sample`` with all that it passes: images with noise, and the estimates of them."""
        passed = sample_path(*self._start(params, mutable, keys, labels), times=self._times())
        return jnp.clip(unsigned(passed.x), 0, 1), jnp.clip(unsigned(passed.x0), 0, 1)

    def inpaint(
        self,
        params: PyTree,
        mutable: PyTree,
        keys: Key[Array, " n"],
        labels: Int[Array, " n"] | None,
        known: Float[Array, "n ..."],
        mask: Bool[Array, ...],
        resamplings: int,
    ) -> Float[Array, "n ..."]:
        """Images that are ``known`` where the mask is true, of any class without ``labels``.

        Raises:
            SettingError: as ``check_inpainting``.
        """
        self.check_inpainting(resamplings)
        if labels is None and self.num_classes is not None:
            labels = jnp.full(len(keys), self._nothing)
        denoiser, process, sampler, keys, x = self._start(params, mutable, keys, labels)
        painting = Inpaint(signed(known), mask, sampler, resamplings)
        return unsigned(sample(denoiser, process, painting, keys, x, times=self._times()))

    def bound(
        self,
        params: PyTree,
        mutable: PyTree,
        batch: Batch,
        keys: Key[Array, " batch"],
        steps: int | None,
    ) -> Float[Array, " batch"]:
        """The variational bound of −log p(x) in nats, with one draw for each step.

        Args:
            params: of the model.
            mutable: its other variables.
            batch: images of 256 values.
            keys: one for each.
            steps: of the bound; None takes all of a discrete process.

        Raises:
            SettingError: as ``bound_times``.
        """
        times = self.bound_times(steps)
        denoiser = self._denoiser(params, mutable, self._labels(batch), guidance=1.0)
        images = signed(batch["image"])
        return variational_bound(denoiser, self.process, images, keys, times=times).total

    def _errors(
        self,
        params: PyTree,
        mutable: PyTree,
        batch: Batch,
        keys: Array,
        labels: Array | None,
        **options: Any,
    ) -> tuple[Array, tuple[Array, Array]]:
        """Losses; and errors of the noise, with the third of the time that they are of."""
        x0 = signed(batch["image"])
        t = self.process.draw_times(fold_keys(keys, 0))
        noise = keyed_normal(fold_keys(keys, 1), x0.shape)
        now = self.process.levels(t)
        x = diffuse(x0, noise, now)
        found = self._apply(params, mutable, x, t, labels, **options)
        fraction = None
        if self.learned_variance:
            found, fraction = jnp.split(found, 2, axis=-1)
        target, weighting = self.target, self.weighting
        losses = denoising_loss(found, x0, noise, now, target=target, weighting=weighting)
        if fraction is not None:
            process = cast(Discrete, self.process)
            fixed = jax.lax.stop_gradient(found)
            estimate = convert(fixed, x, now, source=target, target="x0")
            small, large = (over(log, x) for log in process.log_variances(t))
            log_variance = interpolated_log_variance(fraction, small, large)
            before = process.levels(t - 1)
            bounds = bound_loss(estimate, x, x0, before, now, log_variance)
            losses = hybrid_loss(losses, bounds, steps=process.steps, dimensions=x0[0].size)
        guess = convert(found, x, now, source=target, target="epsilon")
        error = jnp.mean(jnp.square(guess - noise), axis=(1, 2, 3))
        third = jnp.ceil(3 * t / self.process.times(1)[0]) - 1
        return losses, (error, third)

    def _apply(
        self,
        params: PyTree,
        mutable: PyTree,
        x: Array,
        t: Array,
        labels: Array | None,
        **options: Any,
    ) -> Array:
        noise = self.process.conditioning(t)
        found = self.model.apply({"params": params, **mutable}, x, noise, labels, **options)
        return cast(Array, found)

    def _denoiser(
        self, params: PyTree, mutable: PyTree, labels: Array | None, guidance: float
    ) -> Denoiser:
        def model(x: Array, t: Array, labels: Array | None) -> Array:
            return self._apply(params, mutable, x, t, labels)

        if labels is not None and guidance == 0.0:  # the class has no say
            labels = jnp.full_like(labels, self._nothing)

        asked: Model = partial(model, labels=labels)
        if labels is not None and guidance not in (0.0, 1.0):
            asked = classifier_free_guidance(
                model, labels, no_label=self._nothing, scale=guidance, channels=self.image[-1]
            )
        return Denoiser(asked, self.target, self.sampling.clip, self.learned_variance)

    def _start(
        self, params: PyTree, mutable: PyTree, keys: Array, labels: Array | None
    ) -> tuple[Denoiser, Process, Sampler, Array, Array]:
        denoiser = self._denoiser(params, mutable, labels, self.sampling.guidance)
        noise = prior_noise(keys, self.image, self.process)
        return denoiser, self.process, self.sampling.sampler, keys, noise

    def _times(self) -> np.ndarray:
        return self.sampling.times(self.process)

    @property
    def _nothing(self) -> int:
        """The label of no class."""
        return cast(int, self.num_classes)

    def _labels(self, batch: Batch) -> Int[Array, " batch"] | None:
        return None if self.num_classes is None else batch["label"]
