"""From runs that ended to ``results/NAME.{jsonl,csv,md,png}`` and the tables of all experiments.

``NAME.jsonl`` is the raw data, one line a run. The other three are functions of it and of the
experiment's ``TABLE``, which ``check`` verifies. ``results/README.md`` has a row for each of them,
and the README those that it names. Nothing here trains or imports JAX.
"""

import csv
import difflib
import io
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from opsin.config.table import Report, ReportError
from opsin.data.examples import DataError
from opsin.data.files import holds, replace_text
from opsin.data.records import bounded, cause
from opsin.report.figure import draw
from opsin.report.rows import Row, in_order, read_rows, write_rows
from opsin.report.statistics import Estimate, estimate, paired_differences

HEADER = "arm,metric,n,mean,std,ci_low,ci_high,delta,delta_ci_low,delta_ci_high,seconds"
MEAN_LEGEND = "Mean ± sample standard deviation over n seeds."
DELTA_LEGEND = (
    "Δ: mean difference to the baseline, paired by seed, with the 95 % percentile bootstrap "
    "interval of that mean (for two or three pairs, their range)."
)
README_START, README_END = re.compile(r"<!-- results(?:: ([\w ]+))? -->"), "<!-- /results -->"
OVERVIEW = """# Results

Mean ± standard deviation over seeds, for the best arm of each experiment. The page of an experiment
has all arms, confidence intervals, differences to the baseline, times and hardware; its file says
what was made smaller than in the paper. `opsin sweep NAME && opsin report NAME && opsin report`
makes them from runs, and CI checks that they follow from the `.jsonl` files.

{table}
"""


def write(rows: Sequence[Row], report: Report, results: Path) -> None:
    """Writes the four files of ``report`` into the folder ``results``.

    Raises:
        ReportError: as ``derive``; no file is written then.
    """
    _validate(rows, report)
    results.mkdir(parents=True, exist_ok=True)
    write_rows(results / f"{report.name}.jsonl", in_order(rows, report.arms))
    derive(report, results)


def derive(report: Report, results: Path) -> None:
    """Writes the csv, md and png from the jsonl that is in the folder ``results``.

    Raises:
        ReportError: the jsonl is missing or broken, has an arm that the sweep lacks, or has a run
            that lacks a metric of the table.
    """
    rows = read_rows(results / f"{report.name}.jsonl")
    _validate(rows, report)
    for suffix, text in ((".csv", _csv(rows, report)), (".md", _markdown(rows, report))):
        replace_text(results / f"{report.name}{suffix}", text)
    planned = sum(len(_seeds(rows, report, arm)) for arm in report.arms)
    draw(
        results / f"{report.name}.png",
        report,
        {
            metric: {arm: _values(rows, report, arm, metric) for arm in report.arms}
            for metric in report.table.metrics
        },
        labels=[_label(rows, report, arm) for arm in report.arms],
        note=f"mean ± std; small dots: seeds; {len(_done(rows))} of {planned} runs",
    )


def check(report: Report, results: Path) -> list[str]:
    """Names the files of ``report`` that do not follow from the jsonl in ``results``.

    Text is compared by its bytes, the figure by its pixels.

    Raises:
        ReportError: as ``derive``.
    """
    with tempfile.TemporaryDirectory() as folder:
        again = Path(folder)
        write(read_rows(results / f"{report.name}.jsonl"), report, again)
        names = [f"{report.name}{suffix}" for suffix in (".jsonl", ".csv", ".md", ".png")]
        return [name for name in names if not _same(again / name, results / name)]


def best_arms(reports: Iterable[Report], results: Path, *, folder: str) -> str:
    """A Markdown table with a line for each report: its best arm, and the baseline or next best.

    Args:
        reports: of the experiments, in order.
        results: the folder of their ``.jsonl`` files.
        folder: what links to their pages begin with, such as ``"results/"``.

    Raises:
        ReportError: as ``derive``.
    """
    lines = [
        ["experiment", "metric", "best arm", "baseline or second", "n", "paper, of the best arm"]
    ]
    for report in reports:
        rows = read_rows(results / f"{report.name}.jsonl")
        _validate(rows, report)
        table = report.table
        metric, form = next(iter(table.metrics.items()))
        found = {
            arm: estimate(list(_values(rows, report, arm, metric).values())) for arm in report.arms
        }
        sign = -1 if metric in table.lower_is_better else 1
        means = {
            arm: sign * x.mean
            for arm, x in found.items()
            if x.mean is not None and arm not in table.references
        }
        ranked = sorted(means, key=lambda arm: means[arm], reverse=True)
        best = ranked[0] if ranked else report.arms[0]
        second = ranked[1] if len(ranked) > 1 else None
        lines.append(
            [
                f"[{report.name}]({folder}{report.name}.md)",
                table.header(metric),
                *(
                    "" if arm is None else _named(report, arm, _mean_and_std(found[arm], form))
                    for arm in (best, table.baseline_of(best) or second)
                ),
                _count(rows, report, best),
                table.paper.get((best, metric), ""),
            ]
        )
    return markdown_table(lines)


def _named(report: Report, arm: str, number: str) -> str:
    return number if len(report.arms) == 1 else f"`{arm}` {number}"


def overviews(reports: Sequence[Report], results: Path, readme: Path) -> dict[Path, str]:
    """The files that show several experiments, and what they should hold.

    ``results/README.md`` has a line for each report. The README has, between
    ``<!-- results: NAME NAME -->`` and ``<!-- /results -->``, one for each that is named, or for
    all if none is.

    Raises:
        ReportError: as ``derive``; the README is missing, lacks that pair of lines, or names an
            experiment without results.
    """
    if not readme.exists():
        raise ReportError(f"no {readme} to put the results in")
    try:
        text = bounded(readme).decode()
    except (OSError, ValueError) as error:
        raise ReportError(f"{readme} cannot be read ({cause(error)}): put it back") from error
    start = README_START.search(text)
    if start is None or README_END not in text[start.end() :]:
        raise ReportError(f"{readme} lacks the line <!-- results -->, followed by {README_END}")
    known = {report.name: report for report in reports}
    chosen = (start[1] or " ".join(known)).split()
    if unknown := [name for name in chosen if name not in known]:
        raise ReportError(f"{readme} names {unknown[0]}, of which {results}/ has no results")
    table = best_arms([known[name] for name in chosen], results, folder=f"{results.name}/")
    after = text[start.end() :].partition(README_END)[2]
    return {
        readme: f"{text[: start.end()]}\n{table}\n{README_END}{after}",
        results / "README.md": OVERVIEW.format(table=best_arms(reports, results, folder="")),
    }


def _validate(rows: Sequence[Row], report: Report) -> None:
    for row in rows:
        if row.arm not in report.arms:
            raise ReportError(
                f"{report.name}.jsonl has the arm {row.arm!r}, which its sweep lacks: write it "
                f"again with opsin report {report.name}"
            )
        for metric in report.table.all_metrics():
            lacks = row.status == "done" and metric not in row.metrics
            if lacks and (metric in report.table.metrics or not _anywhere(rows, metric)):
                near = difflib.get_close_matches(
                    metric, row.metrics, n=max(1, len(row.metrics)), cutoff=0.0
                )
                raise ReportError(
                    f"TABLE of {report.name} names the metric {metric!r}, which run {row.id} "
                    f"lacks; nearest first, it has: {', '.join(near) or 'none'}"
                )


def _done(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.status == "done"]


def _anywhere(rows: Sequence[Row], metric: str) -> bool:
    return any(metric in row.metrics for row in rows)


def _values(rows: Sequence[Row], report: Report, arm: str, metric: str) -> dict[int, float]:
    """Seed -> value, over the runs that have one: those that are done, or diverged."""
    counts = report.table.failed_as
    values = {row.seed: counts.get(metric) for row in rows if row.arm == arm and row.diverged()}
    values |= {row.seed: row.metrics.get(metric) for row in _done(rows) if row.arm == arm}
    return {seed: value for seed, value in values.items() if value is not None}


def _delta(rows: Sequence[Row], report: Report, arm: str, metric: str) -> Estimate | None:
    """The arm's difference to its baseline; None if it has none."""
    baseline = report.table.baseline_of(arm)
    if baseline is None:
        return None
    pairs = paired_differences(
        _values(rows, report, arm, metric), _values(rows, report, baseline, metric)
    )
    return estimate(list(pairs.values()))


def _seeds(rows: Sequence[Row], report: Report, arm: str) -> list[int]:
    """The planned seeds and those that ran beyond the plan."""
    return sorted({*range(report.table.seeds), *(row.seed for row in rows if row.arm == arm)})


def _count(rows: Sequence[Row], report: Report, arm: str) -> str:
    """How many seeds are done, and of how many if that is not all."""
    done = sum(row.arm == arm for row in _done(rows))
    planned = len(_seeds(rows, report, arm))
    return str(done) if done == planned else f"{done} of {planned}"


def _label(rows: Sequence[Row], report: Report, arm: str) -> str:
    """The arm's name in the figure, with what a reader must not miss."""
    count = _count(rows, report, arm)
    baseline = "\nbaseline" if arm == report.table.baseline else ""
    return f"{arm}{baseline}" + (f"\nn = {count}" if "of" in count else "")


def _csv(rows: Sequence[Row], report: Report) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER.split(","))
    for arm in report.arms:
        seconds = _seconds(rows, arm)
        for metric in report.table.all_metrics():
            result = estimate(list(_values(rows, report, arm, metric).values()))
            delta = _delta(rows, report, arm, metric) or Estimate(n=0)
            numbers = (result.mean, result.std, result.low, result.high)
            numbers += (delta.mean, delta.low, delta.high, seconds)
            writer.writerow([arm, metric, result.n, *map(_number, numbers)])
    return text.getvalue()


def _number(value: float | None) -> str:
    """Six digits. Below 1e-12 a difference of metrics is rounding, and 0."""
    return "" if value is None else f"{round(value, 12) + 0.0:.6g}"


def _seconds(rows: Sequence[Row], arm: str) -> float | None:
    seconds = [row.seconds for row in _done(rows) if row.arm == arm and row.seconds is not None]
    return estimate(seconds).mean


def _markdown(rows: Sequence[Row], report: Report) -> str:
    table = report.table
    fixed = isinstance(table.baseline, str)
    header = ["arm", "n"]
    for metric in table.metrics:
        header.append(table.header(metric))
        if table.baseline is not None:
            header.append(f"Δ to `{table.baseline}`" if fixed else "Δ")
        if any(name == metric for _, name in table.paper):
            header.append("paper")
    lines = [[*header, "seconds a run"]]
    for arm in report.arms:
        cells = [f"`{arm}`", _count(rows, report, arm)]
        for metric, form in table.metrics.items():
            cells.append(
                _mean_and_std(estimate(list(_values(rows, report, arm, metric).values())), form)
            )
            if table.baseline is not None:
                delta = _delta_text(_delta(rows, report, arm, metric), form)
                named = bool(delta) and not fixed
                cells.append(f"{delta} to `{table.baseline_of(arm)}`" if named else delta)
            if any(name == metric for _, name in table.paper):
                cells.append(table.paper.get((arm, metric), ""))
        seconds = _seconds(rows, arm)
        lines.append([*cells, "" if seconds is None else f"{seconds:.1f}"])
    legend = MEAN_LEGEND if table.baseline is None else f"{MEAN_LEGEND} {DELTA_LEGEND}"
    parts = [f"# {table.title}", report.claim, markdown_table(lines), legend]
    if table.details:
        parts.append(markdown_table(_details(rows, report)))
    if gaps := _gaps(rows, report):
        parts.append("Incomplete:\n\n" + "\n".join(gaps))
    if mixed := [row for row in rows if row.commits]:
        parts.append("By the code of several commits:\n\n" + "\n".join(map(_mixed, mixed)))
    if best := sorted(row.metrics["best_step"] for row in rows if "best_step" in row.metrics):
        steps = f"steps {best[0]:,.0f} to {best[-1]:,.0f}"
        parts.append(f"Of {len(best)} runs the state that was best by validation ({steps}).")
    parts.append(f"![{table.title}]({report.name}.png)")
    parts.append(
        f"```\nopsin sweep {report.typed or report.name} --seeds {table.seeds}\n"
        f"opsin report {report.typed or report.name}\n```"
    )
    parts.append("\n".join(_origins(rows)))
    return "\n\n".join(parts) + "\n"


def _details(rows: Sequence[Row], report: Report) -> list[list[str]]:
    """Header and rows of the second table: an arm a row, mean ± std of each detail."""
    details = report.table.details
    lines = [["arm", *map(report.table.header, details)]]
    for arm in report.arms:
        results = {
            name: estimate(list(_values(rows, report, arm, name).values())) for name in details
        }
        cells = [_mean_and_std(result, details[name]) for name, result in results.items()]
        lines.append([f"`{arm}`", *cells])
    return lines


def _gaps(rows: Sequence[Row], report: Report) -> list[str]:
    """A line for each arm with a seed that failed or has not ended."""
    lines = []
    for arm in report.arms:
        ended = {row.seed: row for row in rows if row.arm == arm}
        reasons = []
        for seed in _seeds(rows, report, arm):
            if seed not in ended:
                reasons.append(f"missing seed {seed}")
            elif (error := ended[seed].error) is not None:
                reasons.append(f"failed seed {seed}: `{error.replace('`', chr(39))}`")
        if reasons:
            lines.append(f"- `{arm}`: {'; '.join(reasons)}")
    return lines


def _mixed(row: Row) -> str:
    """A line for a run that resumed, or was measured, under other code."""
    after = " and then ".join(f"`{commit[:10]}`" for commit in row.commits or ())
    return f"- `{row.arm}`, seed {row.seed}: {after}"


def _origins(rows: Sequence[Row]) -> list[str]:
    """A line for each commit, hardware and set of versions, with the number of its runs."""
    origins = Counter(
        f"commit `{row.commit[:10]}`{' with uncommitted changes' if row.dirty else ''}, "
        + " + ".join(f"{n} {kind}" for kind, n in Counter(row.devices).items())
        + f" ({row.hardware})"
        + "".join(f", {library} {version}" for library, version in row.versions.items())
        for row in rows
    )
    return [f"- {n} run{'s' if n > 1 else ''}: {origin}" for origin, n in origins.items()]


def _mean_and_std(result: Estimate, form: str) -> str:
    if result.mean is None:
        return "-"
    mean = format(result.mean, form).rstrip("%")
    return mean if result.std is None else f"{mean} ± {format(result.std, form).rstrip('%')}"


def _delta_text(delta: Estimate | None, form: str) -> str:
    if delta is None:
        return ""
    if delta.mean is None:
        return "-"
    mean, low, high = (
        "" if value is None else format(value, f"+{form}").rstrip("%")
        for value in (delta.mean, delta.low, delta.high)
    )
    return f"{mean} [{low}, {high}]" if low else mean


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first line is the header."""
    header, *body = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([header, "|---" * len(lines[0]) + "|", *body])


def _same(one: Path, other: Path) -> bool:
    if one.suffix != ".png":
        return holds(other, one.read_bytes())
    import numpy as np

    from opsin.data.images import opened

    try:
        with opened(one) as first, opened(other) as second:
            return np.array_equal(np.asarray(first), np.asarray(second))
    except DataError:  # missing, or no picture
        return False
