"""Contrastive learning: views of one image attract, views of different images repel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import ClassVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from opsin.data.augment import Augmentation, apply, one_by_one
from opsin.losses.contrastive import nt_xent_loss
from opsin.metrics.representation import alignment, spread, uniformity
from opsin.metrics.state import Mean, Metric
from opsin.ops import mapped
from opsin.ops.keys import row_keys
from opsin.pictures.kinds import Panels
from opsin.ranges import Depth
from opsin.train.heads import around_head
from opsin.train.settings import SettingError
from opsin.train.tasks.checks import check_range, in_range, require_entry
from opsin.train.tasks.task import Aux, Batch, Look, Task

NT_XENT = partial(nt_xent_loss, temperature=0.5)

COLLAPSED = 0.1
"""Deviation of the embeddings, 1 of those that lie all over the sphere, below which they count as
one point."""
ON_A_LINE = 2.0
"""Effective rank below which they count as lying on a line."""


@dataclass(frozen=True)
class Contrast(Task):
    """Learns embeddings in which views of one image are close.

    Chen et al., 2020, arXiv:2002.05709. Views are drawn on the device, from images in [0, 1] that
    are not normalised; all other images of the global batch are negatives, and none is there twice:
    of each epoch of n images, what is no whole batch is left out. Durations in epochs count n.

    Attributes:
        model: ``model(images, train=…) -> embeddings [batch, output]``, as ``SimCLR``.
        views: augmentations that make a view, drawn anew for each.
        count: views of an image.
        loss_function: ``embeddings [views, batch, output] -> [views, batch]``:
            NT-Xent, DCL or the supervised one of ``losses.contrastive``.
        labelled: whether the loss takes the labels too, after the embeddings, as
            ``supervised_contrastive_loss``.
    """

    model: nn.Module
    views: tuple[Augmentation, ...]
    count: Depth = 2
    loss_function: (
        Callable[[Array], Float[Array, "views batch"]]
        | Callable[[Array, Array], Float[Array, "views batch"]]
    ) = NT_XENT
    labelled: bool = False

    distinct_rows: ClassVar = True

    def check(self, class_names: Sequence[str], look: Look) -> None:
        """Raises SettingError for fewer than two views, and for images outside of [0, 1]."""
        if self.count < 2:
            raise SettingError(f"task.count={self.count} views of an image: at least 2 are alike")
        for split, batch in look().items():
            check_range(np.asarray(batch["image"]), split)

    def check_loop(self, *, accumulate: int, pmap: bool, steps: int, epoch: Fraction) -> None:
        """Raises SettingError for microbatches, or a batch that holds an image several times.

        Microbatches would lose negatives, and a copy of an image is not a negative of it.
        """
        if epoch < 1:
            raise SettingError(
                f"data.batch is {float(1 / epoch):.3g} times the training set, and the task takes "
                "its rows for different images: set a data.batch of at most their number"
            )
        if accumulate > 1:
            raise SettingError(
                f"loop.accumulate={accumulate} would leave the negatives of other parts out: set "
                "loop.accumulate=1, and chunk=… of task.loss_function to save memory"
            )

    def init(self, key: Key[Array, ""], batch: Batch) -> PyTree:
        """All variables of the model.

        Raises:
            SettingError: if the model gives no vectors, or a loss of classes has no labels.
        """
        if self.labelled:
            require_entry(batch, "label", 'such as "digits" or "folder:PATH"')
        variables = self.model.init(key, batch["image"], train=False)
        around_head(self.model, variables, batch["image"])
        return variables

    def loss(
        self,
        params: PyTree,
        mutable: PyTree,
        batch: Batch,
        key: Key[Array, ""],
        step: Int[Array, ""] | int,
    ) -> tuple[Float[Array, ""], Aux]:
        """The contrastive loss, a mean over all views.

        Raises:
            SettingError: for a batch of one image.
        """
        images = len(batch["image"])
        if images * mapped.size() < 2:
            raise SettingError(
                "a batch of one image has no other to be unlike: set data.batch=2 or more"
            )
        key_views, key_dropout = jax.random.split(key)
        # The views of an image are neighbours: the device that holds the image draws them all.
        views = jnp.stack(self._draw(key_views, batch), axis=1)
        embeddings, mutable = self.model.apply(
            {"params": params, **mutable},
            views.reshape(-1, *views.shape[2:]),
            train=True,
            rngs={"dropout": key_dropout},
            mutable=list(mutable),
        )
        vectors = cast(Array, embeddings)
        by_view = vectors.reshape(images, self.count, -1).swapaxes(0, 1)
        labels = (batch["label"],) if self.labelled else ()
        values = self.loss_function(by_view, *labels)
        # Views may be clipped: what was out of range is known by the images alone.
        fit = jnp.isfinite(in_range(batch["image"])).all(axis=(1, 2, 3))
        loss = jnp.where(fit, jnp.mean(values, axis=0), jnp.nan)
        return jnp.mean(loss), Aux(mutable, {"loss": Mean.from_values(loss)})

    def evaluate(
        self, params: PyTree, mutable: PyTree, batch: Batch, keys: Key[Array, " batch"]
    ) -> dict[str, Metric]:
        """How near two views of held-out images are, and how embeddings spread (unit length).

        ``uniformity`` is over pairs within a batch, and depends, a little, on ``data.eval_batch``,
        which is rounded up to the number of devices.
        """
        first, second, *_ = (
            cast(Array, self.model.apply({"params": params, **mutable}, view, train=False))
            for view in one_by_one(self._draw, keys, batch)
        )
        valid = batch["valid"]
        return {
            "alignment": alignment(first, second, valid),
            "uniformity": uniformity(first, valid),
            "spread": spread(first, valid),
        }

    def diagnose(self, numbers: Mapping[str, float]) -> Iterator[str]:
        """Warns of embeddings that are not finite or have collapsed."""
        for name, value in numbers.items():
            split, _, metric = name.partition("/")
            if metric not in ("embedding_std", "embedding_rank"):
                continue
            if not np.isfinite(value):
                yield f"{name} is {value}: embeddings of {split} are not finite"
            elif metric == "embedding_std" and value < COLLAPSED:
                yield (
                    f"{name} is {value:.3f}, 1 if spread evenly: all images come to nearly one "
                    "point (collapse)"
                )
            elif metric == "embedding_rank" and value < ON_A_LINE:
                yield f"{name} is {value:.2f}: embeddings lie nearly on a line (collapse)"

    def preview(
        self, params: PyTree, mutable: PyTree, batch: Batch, key: Key[Array, ""]
    ) -> dict[str, Panels]:
        """Images and their views."""
        shown = {name: x[:10] for name, x in batch.items()}
        keys = row_keys(key, len(shown["image"]))
        rows = jnp.stack([shown["image"], *one_by_one(self._draw, keys, shown)])
        names = ("image", *(f"view {i + 1}" for i in range(self.count)))
        return {"views": Panels(jnp.clip(rows, 0, 1), names)}

    def _draw(self, key: Array, batch: Batch) -> list[Array]:
        """The images of each view, drawn by independent keys."""
        return [
            apply(jax.random.fold_in(key, view), batch, self.views)["image"]
            for view in range(self.count)
        ]
