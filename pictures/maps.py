"""Maps: images as points in the plane, near where their features are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from opsin.pictures import palette
from opsin.pictures.text import as_written, class_name, legend


def scatter(
    rows: Mapping[str, Mapping[str, np.ndarray]],
    labels: np.ndarray | None,
    class_names: Sequence[str],
    title: str,
) -> Figure:
    """Images as points in the plane, coloured by class, one panel a map.

    Args:
        rows: what stands beside a row → what stands above a column, in all rows the same → [n, 2].
        labels: class of each point [n]; None draws all alike.
        class_names: by label.
        title: written above.
    """
    columns = next(iter(rows.values()))
    size = (5.2 * len(columns) + 1.6, 5.2 * len(rows))
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for axes, column in zip(grid[0], columns, strict=True):
        axes.set_title(as_written(column))
    count = len(next(iter(columns.values())))
    classes = np.zeros(count, int) if labels is None else labels
    found, handles = np.unique(classes), []
    for line, (row, maps) in zip(grid, rows.items(), strict=True):
        line[0].set_ylabel(as_written(row))
        for axes, points in zip(line, maps.values(), strict=True):
            handles = [
                axes.scatter(
                    *points[classes == label].T,
                    s=9,
                    alpha=0.7,
                    linewidths=0,
                    color=palette.AREAS[index % len(palette.AREAS)],
                )
                for index, label in enumerate(found)
            ]
            axes.set_xticks([])
            axes.set_yticks([])
    if labels is not None:
        shown = [class_name(int(label), class_names) for label in found]
        # Classes that do not fit into the legend are recognised by their place alone.
        place: Any = {"loc": "outside right center", "frameon": False, "markerscale": 2}
        legend(figure, handles[:25], shown[:25], **place)
    figure.suptitle(as_written(title))
    return figure
