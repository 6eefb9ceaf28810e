"""The rows of an ablation and what their table shows, fixed in its file before anything runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from opsin.errors import UserError


class ReportError(UserError):
    """A report that cannot be written as requested: one line, the cause and the way out."""


class Key(NamedTuple):
    """What tells a row of a table from all others.

    Attributes:
        run: its id, the name of its directory.
        measurement: the ids of what is measured of it, joined by "+"; None for nothing.
        evaluation: the id of how, see ``identity.evaluation_id``; None if that is not known.
    """

    run: str
    measurement: str | None = None
    evaluation: str | None = None


@dataclass(frozen=True)
class Arm:
    """One row of an ablation: a name, and what it changes.

    Attributes:
        name: of the row.
        overrides: what it changes.
        seeded: paths that take the seed of a run besides ``seed`` itself, such as
            ``measurements.0.seed``, the seed of samples in arms that only measure.
    """

    name: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    seeded: tuple[str, ...] = ()

    def under(self, seed: int) -> dict[str, Any]:
        """The overrides of its run with this seed."""
        return {**self.overrides, **dict.fromkeys(("seed", *self.seeded), seed)}


@dataclass(frozen=True, kw_only=True)
class Table:
    """Columns, baseline and figure of one experiment's report.

    A long-tail ablation compares arms side by side:

        TABLE = Table(
            title="Focal loss on long-tailed MNIST",
            metrics={"test/accuracy": ".2%", "test/recall_tail": ".1%", "test/nll": ".3f"},
            lower_is_better=("test/nll",),
            baseline="cross-entropy",
            paper={("focal-2", "test/accuracy"): "98.10 (Author et al. 2020, Table 3)"},
        )

    A learning curve sets its arms on lines, each point against the other model at the same size:

        TABLE = Table(
            title="ViT and CNN on few digits",
            metrics={"test/accuracy": ".1%"},
            baseline={f"vit@{n}": f"cnn@{n}" for n in SIZES},
            lines={f"{model}@{n}": (model, n) for model in ("cnn", "vit") for n in SIZES},
            x_label="training images",
            x_scale="log",
        )

    Attributes:
        title: one line over the table and the figure.
        metrics: metric name -> how to show it, a Python format such as ".3f" or, for a share,
            ".2%". The first one is the headline.
        details: more of them, such as the recall of each class: a table of their own without
            differences, and not in the figure. An arm may lack some.
        failed_as: metric -> the value of a run that failed by numbers that are not finite, such as
            1 for the share that diverged. It has no value for other metrics, and one that failed
            otherwise has none at all.
        lower_is_better: the metrics for which lower is better.
        baseline: the arm that all others are compared to, or arm -> the arm that it is compared
            to, or None for no comparison.
        references: arms that others are read against, such as an upper bound: in the table, but
            never the best arm that the README names.
        paper: (arm, metric) -> the published figure and its source. It is shown, never used.
        seeds: how many seeds are planned; they are 0 … seeds - 1.
        lines: None draws the arms below each other; arm -> (line, x) draws curves over x, which is
            a number, or the metric whose mean it is.
        x_label: what x is.
        x_scale: scale of the x axis.
        log_metrics: metrics whose curves are drawn on a logarithmic axis.
    """

    title: str
    metrics: Mapping[str, str]
    details: Mapping[str, str] = field(default_factory=dict)
    failed_as: Mapping[str, float] = field(default_factory=dict)
    lower_is_better: Sequence[str] = ()
    baseline: str | Mapping[str, str] | None = None
    references: Sequence[str] = ()
    paper: Mapping[tuple[str, str], str] = field(default_factory=dict)
    seeds: int = 3
    lines: Mapping[str, tuple[str, float | str]] | None = None
    x_label: str = ""
    x_scale: Literal["linear", "log"] = "linear"
    log_metrics: Sequence[str] = ()

    def all_metrics(self) -> dict[str, str]:
        """``metrics``, then ``details``."""
        return {**self.metrics, **self.details}

    def baseline_of(self, arm: str) -> str | None:
        """The arm that ``arm`` is compared to; None if it is not compared."""
        if isinstance(self.baseline, Mapping):
            return self.baseline.get(arm)
        return self.baseline if arm != self.baseline else None

    def header(self, metric: str) -> str:
        """The metric's name with its unit and the direction that is better."""
        unit = " (%)" if self.all_metrics()[metric].endswith("%") else ""
        return f"{metric}{unit} {'↓' if metric in self.lower_is_better else '↑'}"


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything but the rows that an experiment's result files are derived from.

    Attributes:
        name: the experiment's name, and that of its files.
        claim: the first line of its docstring.
        arms: the arms of its sweep, in order: the rows that must be there, run or not.
        table: its ``TABLE``.
        typed: what commands know it by; its name if not given.

    Raises:
        ReportError: ``table`` names an arm or a metric that is not there.
    """

    name: str
    claim: str
    arms: Sequence[str]
    table: Table
    typed: str = ""

    def __post_init__(self):
        table = self.table
        if not table.metrics:
            raise ReportError(f"TABLE of {self.name} names no metric")
        named = {*table.lower_is_better, *table.failed_as}
        named |= {metric for _, metric in table.paper}
        named |= {x for _, x in (table.lines or {}).values() if isinstance(x, str)}
        if unknown := sorted(named - table.all_metrics().keys()):
            raise ReportError(
                f"TABLE of {self.name} uses {unknown[0]!r}, which is not among its metrics: "
                + ", ".join(table.metrics)
            )
        named = {arm for arm, _ in table.paper} | {*table.references, *(table.lines or ())}
        if isinstance(table.baseline, Mapping):
            named |= {*table.baseline, *table.baseline.values()}
        elif table.baseline is not None:
            named.add(table.baseline)
        if unknown := sorted(named - set(self.arms)):
            raise ReportError(
                f"TABLE of {self.name} names the arm {unknown[0]!r}; its sweep has: "
                + ", ".join(self.arms)
            )
        if table.lines is not None and (left_out := [a for a in self.arms if a not in table.lines]):
            raise ReportError(
                f"TABLE of {self.name} gives no line and x for the arm {left_out[0]!r}"
            )
