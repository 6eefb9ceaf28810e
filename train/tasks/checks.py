"""What tasks compare before anything runs: the model, the likelihood and the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from opsin.data.augment import Batch
from opsin.losses.likelihoods import Likelihood
from opsin.ops.diffusion.process import Conditioning, Process, Target
from opsin.ops.diffusion.schedules import Discrete
from opsin.ops.diffusion.sde import VarianceExploding
from opsin.train.settings import SettingError

ROUNDING = 1e-4
"""What augmentations may round an image out of its range by; a wrong range is further off."""


def check_outputs(model: nn.Module, class_names: Sequence[str], path: str = "task.model") -> None:
    """Raises SettingError unless a model with a field ``num_classes`` has one output a class."""
    outputs = getattr(model, "num_classes", None)
    if class_names and outputs not in (None, len(class_names)):
        raise SettingError(
            f"{path}.num_classes is {outputs}, the data have {len(class_names)} classes: "
            f"set {path}.num_classes={len(class_names)}"
        )


def check_logits(
    model: nn.Module, class_names: Sequence[str], images: Callable[[], Array], *, least: int = 0
) -> None:
    """Raises SettingError unless a model gives one logit a class, along the last axis.

    Args:
        model: with a field ``num_classes``, or one that is traced to see what it gives; one that
            cannot be traced is left to who traces it next.
        class_names: of the data, maybe none.
        images: a few of them, as the model sees them.
        least: outputs that are right too, as one for two classes.
    """
    said = getattr(model, "num_classes", None)
    if not class_names or said == least:
        return
    if said is not None:
        check_outputs(model, class_names)
        return
    try:
        traced = jax.eval_shape(
            partial(model.init_with_output, train=False), jax.random.key(0), images()
        )
        outputs = traced[0].shape[-1]
    except Exception:  # whatever a user's model raises: who traces it next says so
        return
    if outputs not in (least, len(class_names)):
        raise SettingError(
            f"task.model gives {outputs} outputs, the data have {len(class_names)} classes: give "
            f"it {len(class_names)}"
        )


def check_decoder(model: nn.Module, likelihood: Likelihood, batch: Batch) -> None:
    """Raises SettingError unless a decoder puts out as much for a pixel as the likelihood takes."""
    wanted = likelihood.outputs(batch["image"].shape[-1])
    outputs = getattr(model, "outputs", wanted)
    if outputs != wanted:
        raise SettingError(
            f"task.model.outputs is {outputs}, {likelihood} takes {wanted} for each pixel of these "
            f"images: set task.model.outputs={wanted}"
        )


def check_range(images: np.ndarray, split: str) -> None:
    """Raises SettingError for images, as the model sees them, outside of [0, 1]."""
    low, high = float(np.min(images)), float(np.max(images))
    if not (low >= -1e-6 and high <= 1 + 1e-6):  # written so that a NaN fails
        raise SettingError(
            f"images of {split!r} reach from {low:g} to {high:g}, and the task needs images in "
            "[0, 1]: set data.mean=(0.0,) data.std=(1.0,)"
        )


def in_range(images: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The images, but NaN where they are clearly outside of [0, 1].

    A check before training sees a few images of a set; this sees all of them. The loss then becomes
    NaN, which stops the run.
    """
    return jnp.where((images >= -ROUNDING) & (images <= 1 + ROUNDING), images, jnp.nan)


def supported(
    likelihood: Likelihood, images: Float[Array, "*shape"], *, greys: bool = False
) -> Float[Array, "*shape"]:
    """The images, but NaN where they have no likelihood under such a model.

    Args:
        likelihood: of images in [0, 1].
        images: as the model sees them.
        greys: as of ``check_support``.
    """
    images = in_range(images)
    if likelihood.support == "binary" and not greys:
        return jnp.where((images == 0) | (images == 1), images, jnp.nan)
    if likelihood.support == "bytes":
        off = jnp.abs(images * 255 - jnp.round(images * 255))
        return jnp.where(off <= 255 * ROUNDING, images, jnp.nan)
    return images


def check_support(
    likelihood: Likelihood, images: np.ndarray, split: str, *, greys: bool = False
) -> None:
    """Raises SettingError for images that have no likelihood under such a model.

    Args:
        likelihood: of images in [0, 1].
        images: a few of them, as the model sees them.
        split: where they are from.
        greys: whether grey values are allowed where the likelihood is that of binary pixels.
    """
    check_range(images, split)
    if likelihood.support == "binary" and not greys and not np.isin(images, (0, 1)).all():
        raise SettingError(
            f"images of {split!r} have greys, {likelihood} needs zeros and ones: binarize them "
            "with data.source=partial(data.binarize.binarized, source=…), for training also with "
            "data.augment=(data.binarize.random_binarize,), or choose another task.likelihood"
        )
    bytes_off = np.abs(images * 255 - np.round(images * 255)).max()
    if likelihood.support == "bytes" and bytes_off > 1e-3:
        raise SettingError(
            f"images of {split!r} have values between the 256 steps that {likelihood} needs: "
            "leave out augmentations that blend pixels, or choose another task.likelihood"
        )


def require_entry(batch: Batch, name: str, choices: str) -> None:
    """Raises SettingError for data without the targets that a task learns from."""
    if name not in batch:
        raise SettingError(
            f"the task needs a {name} for each image, and these data have only "
            f"{', '.join(sorted(batch))}: choose a data.source with {name}s, {choices}"
        )


def check_process(
    process: Process, model: nn.Module, target: Target, weighted: bool, learned_variance: bool
) -> None:
    """Raises SettingError for a diffusion process that the other options contradict.

    A network that says nothing of its ``conditioning`` takes the time.
    """
    given: Conditioning = "sigma" if isinstance(process, VarianceExploding) else "time"
    taken = getattr(model, "conditioning", "time")
    if taken != given:
        raise SettingError(
            f"{type(model).__name__} and {type(process).__name__} do not fit: the network takes "
            f"{taken}, and the process gives {given} (a network of your own says which it takes: "
            f'conditioning: ClassVar = "{given}")'
        )
    if learned_variance and not isinstance(process, Discrete):
        raise SettingError(
            "task.learned_variance needs discrete steps, and task.process has none: set "
            "task.process=Discrete(…), or learn no variance"
        )
    ends_in_noise = process.levels(process.times(1)[0]).alpha == 0
    if target in ("epsilon", "score") and ends_in_noise:
        raise SettingError(
            f'task.process ends in noise alone, where task.target="{target}" tells '
            'nothing of the image: predict "v" or "x0"'
        )
    if weighted and ends_in_noise:
        raise SettingError(
            "task.process ends in noise alone, where task.weighting is 0: leave it out"
        )


def check_guidance(guidance: float, num_classes: int | None, label_dropout: float) -> None:
    """Raises SettingError for guidance of a model that never saw classes, or never saw none."""
    if num_classes is None and guidance != 1.0:
        raise SettingError(
            f"guidance {guidance:g} is towards a class, and the model was trained without "
            "classes: leave it out, or set task.model.num_classes"
        )
    if guidance != 1.0 and label_dropout == 0:
        raise SettingError(
            f"guidance {guidance:g} is away from no class, which was never seen: leave it out, or "
            "set task.label_dropout=0.1"
        )
