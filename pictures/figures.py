"""Pictures of a run: curves, a confusion matrix, images with their classes or masks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import singledispatch
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib import artist, rc_context
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Text

from opsin.data.files import read_lines, replacing
from opsin.data.masks import IGNORE
from opsin.pictures import palette
from opsin.pictures.fonts import print_png
from opsin.pictures.kinds import (
    Chart,
    Confusion,
    Curve,
    MaskPreview,
    Panels,
    Picture,
    Preview,
    Usage,
)
from opsin.pictures.text import all_written, as_written, class_caption, class_name, fitted, legend


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, its directory included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A matplotlibrc that lies about could start LaTeX.
    with rc_context({"text.usetex": False}), replacing(path) as file:
        artist.setp(figure.findobj(Text), usetex=False)  # pyright: ignore[reportArgumentType]
        print_png(figure, file)


def training_curve(metrics: Path, curves: Sequence[Curve]) -> Figure:
    """Metrics against the step, from ``metrics.jsonl``: a panel for each curve that is in it."""
    lines = read_lines(metrics)
    names = sorted({name for line in lines for name in line})
    panels = [
        (drawn, kinds, logarithmic)
        for kinds, logarithmic in curves
        if (drawn := [n for n in names if n.count("/") == 1 and n.rpartition("/")[2] in kinds])
    ]
    figure = Figure(figsize=(4.5 * max(len(panels), 1), 3.6), dpi=120, layout="constrained")
    row = figure.subplots(1, max(len(panels), 1), squeeze=False)[0]
    for axes, (drawn, kinds, logarithmic) in zip(row, panels, strict=False):
        colours = itertools.cycle(palette.LINES)
        handles = []
        for name in drawn:
            points = [(x["step"], x[name]) for x in lines if x.get(name) is not None]
            evaluated = not name.startswith("train/")
            handles += axes.plot(
                *zip(*points, strict=True),
                color=next(colours),
                marker="o" if evaluated else None,
                linewidth=1.8 if evaluated else 1.0,
                markersize=3,
            )
        axes.set_xlabel("step")
        measured = [kind for kind in kinds if any(n.endswith(kind) for n in drawn)]
        axes.set_ylabel(as_written(" / ".join(measured)))
        axes.grid(alpha=0.3)
        legend(axes, handles, [_averaged(name, lines) for name in drawn], frameon=False)
        if logarithmic and all(min(line.get_ydata()) > 0 for line in axes.lines):
            axes.set_yscale("log")  # a density can be above 1, and its loss below 0
    return figure


def _averaged(name: str, lines: Sequence[Mapping[str, Any]]) -> str:
    """A metric as the legend calls it: of training, a point is a mean over the steps before it."""
    steps = [0, *(line["step"] for line in lines if line.get(name) is not None)]
    apart = int(np.median(np.diff(steps)))
    smoothed = name.startswith("train/") and apart > 1
    return f"{name} (mean of {apart} steps)" if smoothed else name


def confusion_matrix(counts: np.ndarray, class_names: Sequence[str], title: str) -> Figure:
    """Rows are true classes, columns predicted; shaded by the share of the row, labelled by count.

    Args:
        counts: [classes, classes] integers.
        class_names: one name a class.
        title: written above.
    """
    classes = len(counts)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 2.2 + 0.42 * min(classes, 40)
    figure = Figure(figsize=(side + 0.8, side), dpi=120, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    names = [class_name(label, class_names) for label in range(classes)]
    if classes <= 25:
        axes.set_xticks(range(classes), all_written(names), rotation=45, ha="right")
        axes.set_yticks(range(classes), all_written(names))
        for row, column in np.ndindex(classes, classes):
            if counts[row, column]:
                colour = "white" if share[row, column] > 0.5 else "black"
                count, look = str(counts[row, column]), {"color": colour, "fontsize": 7}
                middle: Any = {"ha": "center", "va": "center", **look}
                axes.text(column, row, as_written(count), **middle)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(as_written(title))
    return figure


@singledispatch
def draw(picture: Picture | Chart, class_names: Sequence[str], title: str) -> Figure:
    """What a task shows of a batch, or of the counts of an evaluation."""
    raise TypeError(f"{type(picture).__name__} is no picture")


@draw.register
def _(picture: Preview, class_names: Sequence[str], title: str) -> Figure:
    images, labels, predictions = jax.device_get(
        (picture.images, picture.labels, picture.predictions)
    )
    if labels is None or predictions is None:
        return image_grid(images, labels=labels, class_names=class_names, title=title)
    wrong = predictions != labels
    order = np.argsort(~wrong, kind="stable")  # what is wrong is what one looks for
    return image_grid(
        images[order],
        labels=labels[order],
        predictions=predictions[order],
        class_names=class_names,
        title=f"{title}\n{np.sum(wrong)} of {len(wrong)} wrong: true → predicted",
    )


@draw.register
def _(picture: MaskPreview, class_names: Sequence[str], title: str) -> Figure:
    images, masks, predictions = jax.device_get(
        (picture.images, picture.masks, picture.predictions)
    )
    wrong = np.sum((predictions != masks) & (masks != IGNORE), axis=(1, 2))
    order = np.argsort(-wrong, kind="stable")
    shown: Any = {"predictions": predictions[order], "class_names": class_names}
    return mask_grid(images[order], masks[order], title=f"{title}\nworst first", **shown)


@draw.register
def _(picture: Panels, class_names: Sequence[str], title: str) -> Figure:
    images = jax.device_get(picture.images)
    return panels(images, rows=picture.rows, columns=picture.columns, title=title)


@draw.register
def _(picture: Confusion, class_names: Sequence[str], title: str) -> Figure:
    return confusion_matrix(picture.counts, class_names, title)


@draw.register
def _(picture: Usage, class_names: Sequence[str], title: str) -> Figure:
    return usage(picture.counts, picture.what, title)


def image_grid(
    images: np.ndarray,
    *,
    labels: np.ndarray | None = None,
    predictions: np.ndarray | None = None,
    class_names: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Images side by side; above each its class, and in red what it was taken for instead.

    Args:
        images: [n, H, W, C] in [0, 1]; values outside are clipped.
        labels: true classes [n], or soft labels [n, classes], or None.
        predictions: predicted classes [n], or None.
        class_names: one name a class.
        title: written above all.
    """
    count = len(images)
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(1.35 * columns, 1.55 * rows + 0.4), dpi=110, layout="constrained")
    figure.suptitle(as_written(title))
    for index, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if index >= count:
            continue
        axes.imshow(_rgb(images[index]))
        if labels is None:
            continue
        caption, colour = class_caption(labels[index], class_names), "black"
        if predictions is not None and predictions[index] != labels[index]:
            caption += f" → {class_caption(predictions[index], class_names)}"
            colour = palette.RED
        axes.set_title(fitted(caption), fontsize=7, color=colour)
    return figure


def panels(
    images: np.ndarray,
    *,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Images in rows, edge to edge but for a thin line between them.

    Args:
        images: [rows, columns, H, W, C] in [0, 1]; values outside are clipped.
        rows: what stands to the left of each row, or nothing.
        columns: what stands above each column, or nothing.
        title: written above all.
    """
    page, (height, width) = tiled(images), images.shape[2:4]
    across, down = images.shape[1], images.shape[0]
    inch = 0.8 if across <= 12 else 9.6 / across
    figure = Figure(
        figsize=(inch * across + (1.2 if rows else 0.3), inch * down * height / width + 0.7),
        dpi=110,
        layout="constrained",
    )
    figure.suptitle(as_written(title))
    axes = figure.subplots()
    axes.imshow(page, interpolation="nearest")
    above, beside = (np.arange(len(names)) + 0.5 for names in (columns, rows))
    axes.set_xticks((width + 1) * above, all_written(columns), fontsize=8)
    axes.set_yticks((height + 1) * beside, all_written(rows), fontsize=8)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def tiled(images: np.ndarray) -> np.ndarray:
    """One image of many, a white line of a pixel around each.

    Args:
        images: [rows, columns, H, W, C] in [0, 1]; values outside are clipped.

    Returns:
        RGB in [0, 1].
    """
    rows, _, height, _, channels = images.shape
    space = ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0))
    page = np.pad(np.clip(images, 0, 1), space, constant_values=1.0)
    page = page.transpose(0, 2, 1, 3, 4).reshape(rows * (height + 1), -1, channels)
    return _rgb(np.pad(page, ((1, 0), (1, 0), (0, 0)), constant_values=1.0))


def usage(counts: np.ndarray, what: str, title: str) -> Figure:
    """How often each code of a codebook, or each class, is used, the most used first.

    Args:
        counts: [codes] integers.
        what: is counted, such as "code".
        title: written above.
    """
    share = np.sort(counts)[::-1] / max(int(counts.sum()), 1)
    figure = Figure(figsize=(6, 3), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.bar(np.arange(len(share)), share, width=1.0, color=palette.LINES[0])
    alike = axes.axhline(1 / len(share), color="0.5", linewidth=1, linestyle="--")
    axes.set_xlabel(as_written(f"{what} ({np.count_nonzero(counts)} of {len(counts)} used)"))
    axes.set_ylabel("share of positions")
    axes.set_title(as_written(title))
    legend(axes, [alike], ["all alike"], frameon=False)
    return figure


def mask_grid(
    images: np.ndarray,
    masks: np.ndarray,
    *,
    predictions: np.ndarray | None = None,
    class_names: Sequence[str] = (),
    title: str = "",
    mask_title: str = "mask",
    rows: int = 6,
) -> Figure:
    """A row for each image: itself, its mask, and what was predicted and where that is wrong.

    Args:
        images: [n, H, W, C] in [0, 1]; values outside are clipped.
        masks: true classes [n, H, W], ``data.masks.IGNORE`` where there is none.
        predictions: predicted classes [n, H, W], or None.
        class_names: one name a class.
        title: written above all.
        mask_title: written above the masks.
        rows: at most so many images are drawn.
    """
    count = min(len(images), rows)
    names = ["image", mask_title, *(() if predictions is None else ("predicted", "error"))]
    height = min(2.6 * images.shape[1] / images.shape[2], 13.0)  # inches, however tall an image is
    figure = Figure(figsize=(2.6 * len(names), height * count + 0.9), dpi=110, layout="constrained")
    figure.suptitle(as_written(title))
    for index, row in enumerate(figure.subplots(count, len(names), squeeze=False)):
        image, mask = images[index], masks[index]
        pictures = [_rgb(image), blended(image, mask)]
        if predictions is not None:
            wrong = (predictions[index] != mask) & (mask != IGNORE)
            pictures += [blended(image, predictions[index]), _marked(image, wrong)]
        for axes, picture, name in zip(row, pictures, names, strict=True):
            axes.imshow(picture)
            axes.set_axis_off()
            if index == 0:
                axes.set_title(as_written(name), fontsize=8)
    shown = masks[:count] if predictions is None else [masks[:count], predictions[:count]]
    found = [int(c) for c in np.unique(shown) if c != IGNORE]
    entries = list(enumerate(class_names)) or [(c, str(c)) for c in found]
    patches = [Patch(color=tuple(class_colours(c))) for c, _ in entries]
    names = [name for _, name in entries]
    if predictions is not None:
        patches.append(Patch(color=palette.RED))
        names.append("error")
    place: Any = {"loc": "outside lower center", "ncols": 6, "fontsize": 7, "frameon": False}
    legend(figure, patches, names, **place)
    return figure


def class_colours(classes: np.ndarray | int) -> np.ndarray:
    """The colour of each class, RGB in [0, 1] [..., 3].

    ``data.masks.IGNORE`` is white. Beyond the colours of the palette they come again, lighter.
    """
    table = np.array([to_rgb(colour) for colour in palette.AREAS])
    cycle, place = np.divmod(np.asarray(classes), len(table))
    colours = 1 - (1 - table[place]) * 0.6 ** cycle[..., None]
    ignored = np.asarray(classes)[..., None] == IGNORE
    return np.where(ignored, to_rgb(palette.IGNORED), colours)


def blended(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image [H, W, C] in [0, 1], tinted by the class [H, W] of each pixel: RGB in [0, 1].

    It is grey (ITU-R BT.601) below the tint: colours of its own would contradict the legend.
    """
    return 0.5 * (_rgb(image) @ (0.299, 0.587, 0.114))[..., None] + 0.5 * class_colours(mask)


def _marked(image: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """The image, paler, with the wrong pixels in red."""
    pale = 0.5 + 0.5 * _rgb(image)
    return np.where(wrong[..., None], to_rgb(palette.RED), pale)


def _rgb(image: np.ndarray) -> np.ndarray:
    """[H, W, 3] in [0, 1] of a grey or coloured image."""
    return np.broadcast_to(np.clip(image, 0, 1), (*image.shape[:2], 3))
