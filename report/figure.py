"""The figure of a report: the same rows give the same bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from opsin.config.table import Report, Table
from opsin.data.files import replacing
from opsin.pictures.palette import LINES
from opsin.report.statistics import estimate

if TYPE_CHECKING:  # matplotlib takes a second to import; only `draw` pays for it
    from matplotlib.axes import Axes

MARKERS = ("o", "s", "^", "D", "v", "P", "X")

Values = Mapping[str, Mapping[int, float]]  # arm -> seed -> value


def draw(
    path: Path, report: Report, values: Mapping[str, Values], labels: Sequence[str], note: str
) -> None:
    """Draws mean ± sample standard deviation and a dot for each seed, a panel for each metric.

    Args:
        path: the PNG file to write.
        report: its table decides between arms below each other and curves over x.
        values: metric -> arm -> seed -> value.
        labels: what to call each arm of ``report``, in order.
        note: a line below the title.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    from opsin.pictures.text import as_written

    table = report.table
    curves = table.lines is not None
    along = {x for _, x in (table.lines or {}).values()}  # a metric has no panel over itself
    drawn = {metric: form for metric, form in table.metrics.items() if metric not in along}
    panels = len(drawn)
    rows = math.ceil(panels / 3)  # more side by side are too small on a page
    columns = math.ceil(panels / rows)
    height = 3.8 if curves else 1.4 + 0.4 * len(report.arms)
    with matplotlib.style.context("default"):  # whatever the user's own matplotlibrc says
        figure = Figure(figsize=(1.8 + 3.4 * columns, height * rows), layout="constrained")
        figure.suptitle(as_written(f"{table.title}\n{note}"), fontsize=10, wrap=True)
        axes = figure.subplots(rows, columns, sharey=not curves, squeeze=False).flat
        for axis in axes[panels:]:
            axis.remove()
        for axis, (metric, form) in zip(axes[:panels], drawn.items(), strict=True):
            scale = 100 if form.endswith("%") else 1
            shown = {
                arm: {seed: scale * value for seed, value in seeds.items()}
                for arm, seeds in values[metric].items()
            }
            axis.grid(color="0.9")
            axis.set_axisbelow(True)
            if curves:
                _draw_curves(axis, report, shown, _places(table, values))
                axis.set_ylabel(as_written(table.header(metric)))
                if metric in table.log_metrics:
                    axis.set_yscale("log")
                    axis.yaxis.set_major_formatter("{x:g}")
            else:
                _draw_arms(axis, report, shown, labels)
                axis.set_xlabel(as_written(table.header(metric)))
        # The default metadata names the matplotlib version.
        with replacing(path) as file:
            figure.savefig(file, format="png", dpi=150, metadata={"Software": None})


def _draw_arms(axis: Axes, report: Report, values: Values, labels: Sequence[str]) -> None:
    """One arm below the other: dots on an axis cut to the data, as a bar would need its zero."""
    from opsin.pictures.text import all_written

    for place, arm in enumerate(report.arms):
        seeds = list(values[arm].values())
        result = estimate(seeds)
        if result.mean is not None:
            colour = LINES[1] if arm == report.table.baseline else LINES[0]
            axis.errorbar(result.mean, place, xerr=result.std, fmt="o", color=colour, capsize=3)
            axis.plot(seeds, [place + 0.22] * len(seeds), "o", color="0.35", markersize=2.5)
    axis.locator_params(axis="x", nbins=4)  # more would run into each other
    axis.set_yticks(range(len(labels)), labels=all_written(labels))
    axis.set_ylim(len(labels) - 0.5, -0.5)


def _places(table: Table, values: Mapping[str, Values]) -> dict[str, float]:
    """The x of each arm; of those over a metric, the mean, where there is one."""
    places = {}
    for arm, (_, x) in (table.lines or {}).items():
        place = estimate(list(values[x][arm].values())).mean if isinstance(x, str) else x
        if place is not None:
            places[arm] = place
    return places


def apart(ticks: Sequence[float], *, log: bool) -> list[float]:
    """Ticks whose labels do not run into each other, from the greatest down."""
    kept: list[float] = []
    ends = [math.log(x) if log else x for x in (ticks[0], ticks[-1])]
    for x in reversed(ticks):
        gap = (math.log(kept[-1] / x) if log else kept[-1] - x) if kept else math.inf
        if gap > 0.05 * (ends[1] - ends[0]):
            kept.append(x)
    return kept[::-1]


def _draw_curves(axis: Axes, report: Report, values: Values, places: Mapping[str, float]) -> None:
    from matplotlib.transforms import ScaledTranslation

    from opsin.pictures.text import all_written, as_written, legend

    table = report.table
    assert table.lines is not None
    beside = axis.transData + ScaledTranslation(1 / 12, 0, axis.figure.dpi_scale_trans)  # inches
    names, handles = list(dict.fromkeys(table.lines[arm][0] for arm in report.arms)), []
    for number, name in enumerate(names):
        colour, marker = (style[number % len(style)] for style in (LINES, MARKERS))
        points = sorted(
            (places[arm], list(values[arm].values()))
            for arm in report.arms
            if table.lines[arm][0] == name and values[arm] and arm in places
        )
        results = [estimate(seeds) for _, seeds in points]
        line = axis.errorbar(
            [x for x, _ in points],
            [result.mean for result in results if result.mean is not None],
            yerr=[result.std or 0.0 for result in results],
            color=colour,
            marker=marker,
            markersize=5,
            capsize=3,
        )
        handles.append(line)
        for x, seeds in points:
            axis.plot([x] * len(seeds), seeds, "o", color=colour, markersize=2.5, transform=beside)
    axis.set_xscale(table.x_scale)
    axis.minorticks_off()
    if not any(isinstance(x, str) for _, x in table.lines.values()):
        ticks = apart(sorted(set(places.values())), log=table.x_scale == "log")
        axis.set_xticks(ticks, labels=all_written(f"{x:g}" for x in ticks))
    axis.set_xlabel(as_written(table.x_label))
    legend(axis, handles, names)
