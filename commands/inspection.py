"""Training batches as the model sees them, for people to look at."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from opsin.data import augment
from opsin.data.files import writing
from opsin.pictures.figures import image_grid, mask_grid, save
from opsin.train.experiment import Experiment
from opsin.train.feed import Feed
from opsin.train.sets import open_training
from opsin.train.sharding import Parallel, make_mesh
from opsin.train.state import stream


def draw_batches(experiment: Experiment, batches: int, path: Path, *, images: int = 36) -> None:
    """Draws the first images of the first training batches, augmented, with their labels.

    Args:
        experiment: whose data and seed.
        batches: how many batches; each gives an equal share of the images.
        path: PNG to write.
        images: most images to draw.

    Raises:
        WriteError: if the picture cannot be written.
        DataError: if the data cannot be read.
    """
    data = experiment.data
    examples = open_training(experiment)
    mesh = make_mesh(Parallel(data=1))
    feed = Feed(experiment, mesh, examples)
    key = jax.random.key(experiment.seed)
    images = (
        images // 6 if "mask" in feed.spec.batch else images
    )  # an image and its mask take a row
    share = max(1, min(images // batches, data.batch))
    shown = []
    for step in range(batches):
        batch = augment.scale(feed.batch_on_host())
        batch = augment.apply(stream(key, step, "augment"), batch, data.augment)
        shown.append(jax.tree.map(lambda x: np.asarray(x[:share]), batch))
    joined = jax.tree.map(lambda *x: np.concatenate(x), *shown)
    title = (
        f"{len(examples.records)} training images; batch of {data.batch}, seed {experiment.seed}"
    )
    names = examples.class_names
    if "mask" in joined:
        grid = mask_grid(
            joined["image"],
            joined["mask"],
            class_names=names,
            title=title,
            rows=len(joined["image"]),
        )
    else:
        labels = joined.get("label")
        grid = image_grid(joined["image"], labels=labels, class_names=names, title=title)
    with writing(path, "choose another place with --output"):
        save(grid, path)
