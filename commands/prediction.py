"""Predictions of a finished run for images: a class or a mask, and a picture of it."""

from __future__ import annotations

import csv
import io
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from opsin.commands.runs import RunError
from opsin.commands.trained import Trained, open_run
from opsin.data.examples import DataError
from opsin.data.files import check_new, readable, replace_text, replacing, writing
from opsin.data.folder import visible_files
from opsin.data.images import MODES, read_image
from opsin.data.squares import square
from opsin.imaging.tiles import over_tiles
from opsin.interchange.pretrained import NETWORKS, Pretrained
from opsin.pictures import figures
from opsin.pictures.kinds import Labels, Masks, Prediction
from opsin.pictures.text import class_caption
from opsin.train.compiler import jit_here
from opsin.train.experiment import Data
from opsin.train.preparation import prepared
from opsin.train.settings import SettingError

LABELS = "labels.csv"
LONGEST = 200  # bytes of a name that more is added to; a file system takes 255
TILES = 8  # of a large image, in one call of the network
STRIP = 2**22  # pixels that are blended at once
DRAWN = 2000  # pixels along a side that a page with a legend is drawn from, at most


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
        shown: an image of any size as a classifier takes it, where that is not its centre in the
            size of the training images.
        told: how many of the likeliest classes are said of an image.
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
    shown: Callable[[Image.Image], np.ndarray] | None = None
    told: int = 1


def load(run: Path, *, allow: Sequence[str] = ()) -> Predictor:
    """Opens the newest checkpoint of a run's directory; its data set is not needed.

    Args:
        run: the directory; or the name of a published network, where nothing is called so.
        allow: see ``reopen``.

    Raises:
        RunError: if this is no run, it has another kind of task, or this code would not make it.
        CheckpointError: if it has no checkpoint that can be read.
        WeightsError: if the weights of the published network are not installed.
    """
    if str(run) in NETWORKS and not run.exists():
        return published(Pretrained(str(run), part=""))
    try:
        return predictor_of(open_run(run, allow=allow))
    except SettingError as error:
        raise RunError(f"{run}: {error}") from error


def prediction_of(
    trained: Trained,
) -> tuple[Callable[[Any, Any, jax.Array], Prediction], tuple[int, int]]:
    """``(params, mutable, images uint8) -> prediction``, and height and width of these images."""
    task, data = trained.experiment.task, trained.experiment.data

    def predicted(params: Any, mutable: Any, images: jax.Array) -> Prediction:
        return task.predict(params, mutable, prepared({"image": images}, data=data)["image"])

    height, width, _ = trained.image
    return predicted, (height + 2 * task.context, width + 2 * task.context)


def predictor_of(trained: Trained) -> Predictor:
    """What predicts with the weights of a run.

    Raises:
        SettingError: if its task says nothing of single images.
    """
    (predicted, tile), variables = prediction_of(trained), (trained.params, trained.mutable)
    ask = jit_here(predicted)
    images = jax.ShapeDtypeStruct((1, *tile, trained.image[2]), np.uint8)
    answer = jax.eval_shape(ask, *variables, images)
    outputs, names = answer.probabilities.shape[-1], len(trained.class_names)
    if names not in (0, outputs):
        raise SettingError(f"its checkpoint names {names} classes, and its network tells {outputs}")
    return Predictor(
        kind=type(answer),
        class_names=trained.class_names,
        image=trained.image,
        tile=tile,
        result=answer.probabilities.shape[1:],
        resized=trained.resized,
        probabilities=lambda images: np.asarray(ask(*variables, images).probabilities),
    )


def published(weights: Pretrained) -> Predictor:
    """What predicts with a published network, which sees images as it did when it was trained.

    Raises:
        WeightsError: if its weights are not installed.
    """
    network, model = weights.network, weights.network.model()
    size, resize = network.seen.size, network.seen.resize or network.seen.size
    mean, std = network.seen.scale(model)
    data = Data(mean=mean, std=std)
    image = (size, size, len(mean))
    shape = jax.ShapeDtypeStruct((1, *image), np.float32)
    variables = weights.load(model.init, jax.random.key(0), shape)

    @jit_here
    def ask(variables: Any, images: jax.Array) -> jax.Array:
        logits: Any = model.apply(variables, prepared({"image": images}, data=data)["image"])
        return jax.nn.softmax(logits)

    return Predictor(
        kind=Labels,
        class_names=network.class_names(),
        image=image,
        tile=(size, size),
        result=(len(network.class_names()),),
        resized=True,
        probabilities=lambda images: np.asarray(ask(variables, images)),
        shown=lambda image: square(
            _pixels(image), resize, size, interpolation=network.seen.interpolation
        ),
        told=5,
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
        paths: images of any mode, see ``data.images.read_image``, and folders of them.
        output: directory to write to; it is made.

    Raises:
        DataError: if a file is not an image, or is damaged.
        WriteError: if the directory cannot be written, or has a file already that would be written.
    """
    channels = predictor.image[2]
    if channels not in MODES:
        raise RunError(f"the run was trained on images of {channels} channels, not of 1 or 3")
    named = list(_names(list(_files(paths))))
    complaints: list[str] = []
    for name, path in named:  # mistakes are reported before anything is written
        check_new(output / f"{name}_{end}.png" for end in WRITTEN[predictor.kind])
        try:
            read_image(path, channels, deep=True)
        except DataError as error:
            complaints.append(str(error))
    if complaints:
        several = f"{len(complaints)} of {len(named)} files: " if len(complaints) > 1 else ""
        raise DataError(several + "; ".join(complaints[:5]))
    check_new([output / LABELS] if predictor.kind is Labels else [])
    images = ((name, path, read_image(path, channels, deep=True)) for name, path in named)
    with writing(output, "choose another place with --output"):
        output.mkdir(parents=True, exist_ok=True)
        yield from WRITERS[predictor.kind](predictor, images, output)


def _classify(
    predictor: Predictor, images: Iterable[tuple[str, Path, Image.Image]], output: Path
) -> Iterator[str]:
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["file", "label", "class", "probability"])
    try:
        for name, path, image in images:
            pixels = fitted(predictor, image)
            shares = predictor.probabilities(pixels[None])[0]
            label = int(shares.argmax())
            caption = class_caption(np.asarray(label), predictor.class_names)
            writer.writerow([readable(path), label, caption, f"{shares[label]:.4f}"])
            figure = figures.image_grid(
                pixels[None] / 255,
                labels=np.array([label]),
                class_names=predictor.class_names,
                title=f"{shares[label]:.1%}",
            )
            figures.save(figure, output / f"{name}_label.png")
            likeliest = np.argsort(-shares, kind="stable")[: predictor.told]
            told = [
                f"{class_caption(each, predictor.class_names)}  {shares[each]:.1%}"
                for each in likeliest
            ]
            yield f"{readable(path)}  {', '.join(told)}"
    finally:  # of an interrupted command there is a table too
        replace_text(output / LABELS, table.getvalue())


def _segment(
    predictor: Predictor, images: Iterable[tuple[str, Path, Image.Image]], output: Path
) -> Iterator[str]:
    for name, path, image in images:
        mask = segment(predictor, image)
        pixels = _pixels(image)
        with replacing(output / f"{name}_mask.png") as file:
            _palette_image(mask).save(file, "PNG")
        rows = np.array_split(np.arange(len(mask)), max(1, mask.size // STRIP))
        strips = [_bytes(figures.blended(pixels[row] / 255, mask[row])) for row in rows if len(row)]
        with replacing(output / f"{name}_blended.png") as file:
            Image.fromarray(np.concatenate(strips)).save(file, "PNG")
        step = -(-max(mask.shape) // DRAWN)
        figure = figures.mask_grid(
            pixels[None, ::step, ::step] / 255,
            mask[None, ::step, ::step],
            class_names=predictor.class_names,
            title=readable(path.name),
            mask_title="predicted",
        )
        figures.save(figure, output / f"{name}_legend.png")
        counts = np.bincount(mask.ravel())
        parts = [
            f"{class_caption(label, predictor.class_names)} {counts[label] / mask.size:.1%}"
            for label in np.argsort(-counts, kind="stable")
            if counts[label]
        ]
        yield f"{readable(path)}  {', '.join(parts)}"


WRITERS = {Labels: _classify, Masks: _segment}
WRITTEN = {Labels: ("label",), Masks: ("mask", "blended", "legend")}


def fitted(predictor: Predictor, image: Image.Image) -> UInt8[np.ndarray, "height width channels"]:
    """An image of any size as a classifier takes it: its centre, in the size of training images."""
    if predictor.shown is not None:
        return predictor.shown(image)
    height, width, _ = predictor.image
    return _pixels(ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR))


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


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.round(255 * values).astype(np.uint8)


def _palette_image(mask: np.ndarray) -> Image.Image:
    image = Image.fromarray(mask)
    image.putpalette(_bytes(figures.class_colours(np.arange(256))).tobytes())
    return image


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    """The paths, with all files of a folder in its place."""
    for path in paths:
        files = visible_files(path) if path.is_dir() else [path]
        if not files:
            raise DataError(f"{path} has no images: name a folder that has some")
        yield from files


def _names(paths: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """A name for each image's files: its own, numbered where several would have it."""
    used: set[str] = set()
    for path in paths:
        stem = path.stem
        while len(os.fsencode(stem)) > LONGEST:
            stem = stem[:-1]
        numbered = (f"{stem}-{number}" for number in itertools.count(2))
        name = next(name for name in itertools.chain([stem], numbered) if name not in used)
        used.add(name)
        yield name, path
