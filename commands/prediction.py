"""Predictions of a finished run for images: a class or a mask, and a picture of it."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from opsin.commands.runs import RunError
from opsin.commands.trained import open_run
from opsin.data.files import keep_inputs, replace_text, replacing, writing
from opsin.data.images import MODES, read_image
from opsin.imaging.tiles import over_tiles
from opsin.pictures import figures
from opsin.pictures.kinds import Labels, Masks, Prediction
from opsin.train.compiler import jit_here
from opsin.train.preparation import prepared
from opsin.train.settings import SettingError

LABELS = "labels.csv"
TILES = 8  # of a large image, in one call of the network


@dataclass(frozen=True)
class Predictor:
    """A trained network, ready to predict.

    Attributes:
        kind: of its predictions.
        class_names: one name a class.
        image: height, width and channels of what it was trained on.
        tile: height and width of what ``probabilities`` takes.
        result: shape of what it gives for one tile.
        resized: whether the training images were resized, from any size.
        probabilities: from images uint8 [batch, *tile, channels] to probabilities
            [batch, *result], with the moving average of the parameters if there is one.
    """

    kind: type[Prediction]
    class_names: tuple[str, ...]
    image: tuple[int, int, int]
    tile: tuple[int, int]
    result: tuple[int, ...]
    resized: bool
    probabilities: Callable[[np.ndarray], np.ndarray]


def load(run: Path, *, trust: bool = False) -> Predictor:
    """Opens the newest checkpoint of a run's directory; its data set is not needed.

    Args:
        run: the directory.
        trust: see ``reopen``.

    Raises:
        RunError: if this is no run, it has another kind of task, or this code would not make it.
        CheckpointError: if it has no checkpoint that can be read.
    """
    trained = open_run(run, trust=trust)
    task, data = trained.experiment.task, trained.experiment.data

    @jit_here
    def ask(params: Any, mutable: Any, images: jax.Array) -> Prediction:
        return task.predict(params, mutable, prepared({"image": images}, data=data)["image"])

    variables = trained.params, trained.mutable
    height, width, channels = trained.image
    tile = (height + 2 * task.context, width + 2 * task.context)
    images = jax.ShapeDtypeStruct((1, *tile, channels), np.uint8)
    try:
        answer = jax.eval_shape(ask, *variables, images)
    except SettingError as error:
        raise RunError(f"{run}: {error}") from error
    return Predictor(
        kind=type(answer),
        class_names=trained.class_names,
        image=trained.image,
        tile=tile,
        result=answer.probabilities.shape[1:],
        resized=trained.resized,
        probabilities=lambda images: np.asarray(ask(*variables, images).probabilities),
    )


def predict(predictor: Predictor, paths: Sequence[Path], output: Path) -> Iterator[str]:
    """Writes the prediction for each image, and yields a line about it.

    Classification writes ``labels.csv`` and ``NAME_label.png``; the image is cut to the largest
    centred rectangle of the training images' shape and resized to their size. Segmentation writes,
    in the image's own size, ``NAME_mask.png``, whose values are class indices, and
    ``NAME_blended.png``, the image tinted by them; and ``NAME_legend.png``, a page of both with a
    legend. It works in tiles of the training images' size; where the source resized those, the
    whole image is resized as they were, and the mask back.

    Args:
        predictor: from ``load``.
        paths: images that Pillow reads, of any mode; see ``data.images.read_image``.
        output: directory to write to; it is made.

    Raises:
        DataError: if a file is not an image, or is damaged.
        RunError: if the directory cannot be written.
    """
    channels = predictor.image[2]
    if channels not in MODES:
        raise RunError(f"the run was trained on images of {channels} channels, not of 1 or 3")
    named = list(_names(paths))
    for _, path in named:  # a mistake is reported before anything is written
        read_image(path, channels, deep=True)
    images = ((name, path, read_image(path, channels, deep=True)) for name, path in named)
    with writing(output, "choose another place with --output"):
        output.mkdir(parents=True, exist_ok=True)
        keep_inputs(paths, _written(output, [name for name, _ in named]))
        yield from WRITERS[predictor.kind](predictor, images, output)


def _written(output: Path, names: Sequence[str]) -> list[Path]:
    """All files that predictions of images with these names may be written to."""
    kinds = ("label", "mask", "blended", "legend")
    return [output / LABELS, *(output / f"{n}_{kind}.png" for n in names for kind in kinds)]


def _classify(
    predictor: Predictor, images: Iterable[tuple[str, Path, Image.Image]], output: Path
) -> Iterator[str]:
    height, width, _ = predictor.image
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["file", "label", "class", "probability"])
    for name, path, image in images:
        fitted = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
        pixels = _pixels(fitted)
        shares = predictor.probabilities(pixels[None])[0]
        label = int(shares.argmax())
        caption = figures.class_caption(np.asarray(label), predictor.class_names)
        writer.writerow([path, label, caption, f"{shares[label]:.4f}"])
        figure = figures.image_grid(
            pixels[None] / 255,
            labels=np.array([label]),
            class_names=predictor.class_names,
            title=f"{shares[label]:.1%}",
        )
        figures.save(figure, output / f"{name}_label.png")
        yield f"{path}  {caption}  {shares[label]:.1%}"
    replace_text(output / LABELS, table.getvalue())


def _segment(
    predictor: Predictor, images: Iterable[tuple[str, Path, Image.Image]], output: Path
) -> Iterator[str]:
    for name, path, image in images:
        mask = segment(predictor, image)
        pixels = _pixels(image) / 255
        with replacing(output / f"{name}_mask.png") as file:
            _palette_image(mask).save(file, "PNG")
        blended = np.round(255 * figures.blended(pixels, mask)).astype(np.uint8)
        with replacing(output / f"{name}_blended.png") as file:
            Image.fromarray(blended).save(file, "PNG")
        figure = figures.mask_grid(
            pixels[None],
            mask[None],
            class_names=predictor.class_names,
            title=path.name,
            mask_title="predicted",
        )
        figures.save(figure, output / f"{name}_legend.png")
        counts = np.bincount(mask.ravel())
        parts = [
            f"{figures.class_caption(label, predictor.class_names)} {counts[label] / mask.size:.1%}"
            for label in np.argsort(-counts, kind="stable")
            if counts[label]
        ]
        yield f"{path}  {', '.join(parts)}"


WRITERS = {Labels: _classify, Masks: _segment}


def segment(predictor: Predictor, image: Image.Image) -> UInt8[np.ndarray, "height width"]:
    """The class of each pixel of an image of any size."""
    asked = image
    if predictor.resized:
        asked = image.resize((predictor.image[1], predictor.image[0]), Image.Resampling.BILINEAR)
    height, width, _ = predictor.result

    def classes(tiles: np.ndarray) -> np.ndarray:
        return predictor.probabilities(tiles).argmax(axis=-1).astype(np.uint8)[..., None]

    mask = over_tiles(
        classes,
        _pixels(asked),
        tile=predictor.tile,
        result=(height, width),
        overlap=min(height, width) // 8,
        batch=1 if asked.width <= width and asked.height <= height else TILES,
    )[..., 0]
    if asked is image:
        return mask
    return np.asarray(Image.fromarray(mask).resize(image.size, Image.Resampling.NEAREST))


def _pixels(image: Image.Image) -> UInt8[np.ndarray, "height width channels"]:
    return np.asarray(image).reshape(image.height, image.width, -1)


def _palette_image(mask: np.ndarray) -> Image.Image:
    image = Image.fromarray(mask)
    colours = np.round(255 * figures.class_colours(np.arange(256)))
    image.putpalette(colours.astype(np.uint8).tobytes())
    return image


def _names(paths: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """A name for each image's files: its own, numbered where several would have it."""
    used: set[str] = set()
    for path in paths:
        numbered = (f"{path.stem}-{number}" for number in itertools.count(2))
        name = next(name for name in itertools.chain([path.stem], numbered) if name not in used)
        used.add(name)
        yield name, path
