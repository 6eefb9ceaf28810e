"""Pictures of a run: curves, a confusion matrix, images with their classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from train.logging import read_lines

# Okabe & Ito, 2008: eight colours that the colour-blind can tell apart.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, its directory included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(path)


def training_curve(metrics: Path) -> Figure:
    """Loss and accuracy against the step, from ``metrics.jsonl``."""
    lines = read_lines(metrics)
    names = sorted({name for line in lines for name in line})
    figure = Figure(figsize=(9, 3.6), dpi=120, layout="constrained")
    for axes, kinds in zip(figure.subplots(1, 2), (("loss", "nll"), ("accuracy",)), strict=True):
        colours = iter((BLUE, ORANGE, GREEN, RED) * 4)
        for name in names:
            if name.count("/") != 1 or name.rpartition("/")[2] not in kinds:
                continue
            points = [(x["step"], x[name]) for x in lines if x.get(name) is not None]
            evaluated = not name.startswith("train/")
            axes.plot(
                *zip(*points, strict=True),
                label=name,
                color=next(colours),
                marker="o" if evaluated else None,
                linewidth=1.8 if evaluated else 1.0,
                markersize=3,
            )
        axes.set_xlabel("step")
        axes.set_ylabel(" / ".join(kinds))
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(frameon=False)
        if kinds[0] == "loss":
            axes.set_yscale("log")
    return figure


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
    class_names = class_names or [str(index) for index in range(classes)]
    if classes <= 25:
        axes.set_xticks(range(classes), class_names, rotation=45, ha="right")
        axes.set_yticks(range(classes), class_names)
        for row, column in np.ndindex(classes, classes):
            if counts[row, column]:
                colour = "white" if share[row, column] > 0.5 else "black"
                axes.text(
                    column, row, str(counts[row, column]), ha="center", va="center",
                    color=colour, fontsize=7,
                )  # fmt: skip
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(title)
    return figure


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
    figure.suptitle(title)
    for index, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if index >= count:
            continue
        image = np.clip(images[index], 0, 1)
        grey = image.shape[-1] == 1
        axes.imshow(image[..., 0] if grey else image, cmap="gray" if grey else None, vmin=0, vmax=1)
        if labels is None:
            continue
        caption, colour = class_caption(labels[index], class_names), "black"
        if predictions is not None and predictions[index] != labels[index]:
            caption += f" → {class_caption(predictions[index], class_names)}"
            colour = RED
        axes.set_title(caption, fontsize=7, color=colour)
    return figure


def class_caption(label: np.ndarray, class_names: Sequence[str]) -> str:
    """The name of a class, or the shares of a soft label: ``cat 0.7 dog 0.3``."""
    if np.ndim(label) == 0:
        return class_names[int(label)] if class_names else str(label)
    class_names = class_names or [str(index) for index in range(len(label))]
    parts = [(share, name) for share, name in zip(label, class_names, strict=True) if share > 0.005]
    if len(parts) == 1:
        return parts[0][1]
    return " ".join(f"{name} {share:.2f}" for share, name in sorted(parts, reverse=True)[:2])
