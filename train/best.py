"""The best state of a run by a metric of its validation split: ``loop.keep_best``.

It is kept beside the newest one, which training goes on from. Meanwhile no other split is
evaluated; once training has ended, all are evaluated at the best state, and measurements are made
of it. So nobody selects on the split that is reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from opsin.train.checkpoint import Checkpoints
from opsin.train.settings import SettingError
from opsin.train.state import State

BEST = "best"
"""The directory of its checkpoint, in that of a run."""

HIGHER = (
    *("accuracy", "top5", "f1_macro", "f1_micro", "precision_macro", "recall_macro"),
    *("auroc", "average_precision", "miou", "dice", "boundary_f1", "rand"),
)
"""Metrics whose highest value is the best; of any other a sign says so, ``+`` or ``-``."""


def choosing_split(keep_best: str) -> str:
    """The split that ``"val/accuracy"``, ``"-val/nll"`` or ``"val_ema/accuracy"`` is of."""
    return _named(keep_best).partition("/")[0].removesuffix("_ema")


def _named(keep_best: str) -> str:
    """The metric, without the sign that says which way is better."""
    return keep_best[1:] if keep_best.startswith(("+", "-")) else keep_best


def _is_test(split: str) -> bool:
    """Whether a split is ``"test"``, or has a part of it, as ``"train+test[:50%]"``."""
    return any(part.partition("[")[0].strip() == "test" for part in split.split("+"))


def check_keep_best(keep_best: str, splits: Mapping[str, str]) -> None:
    """Raises SettingError unless it is a metric of a split that only chooses.

    Args:
        keep_best: of the loop.
        splits: name in the log → split of the data, of those that are evaluated.
    """
    name, split = _named(keep_best), choosing_split(keep_best)
    metric = name.partition("/")[2]
    if split not in splits or not metric:
        raise SettingError(
            f"loop.keep_best={keep_best!r} is no metric of a split that is evaluated "
            f"({', '.join(splits)}): add one to data.eval_splits, and write val/accuracy"
        )
    reported = {other for name, other in splits.items() if name != split}
    if split == "test" or _is_test(splits[split]) or splits[split] in reported:
        raise SettingError(
            f"loop.keep_best={keep_best!r} would select on what is reported: hold out a split "
            "val, as in data.source=data.validation:with_validation"
        )
    if metric not in HIGHER and name == keep_best:
        raise SettingError(
            f"loop.keep_best={keep_best!r} does not say which is best: write -{name} for the "
            f"lowest, or +{name} for the highest"
        )


def keep_if_best(
    keep_best: str | None,
    directory: Path,
    state: State,
    numbers: Mapping[str, float],
    metadata: Callable[[], dict[str, Any]],
) -> None:
    """Saves a state that is better than all before it; the first of equal ones stays.

    Args:
        keep_best: a metric of ``numbers``; the lowest is best behind a minus, else the highest.
        directory: of the run.
        state: that was evaluated.
        numbers: of the evaluation.
        metadata: of a checkpoint.

    Raises:
        SettingError: if there is no such metric.
    """
    if keep_best is None:
        return
    name = _named(keep_best)
    if name not in numbers:
        raise SettingError(f"loop.keep_best: there is no {name}, but {', '.join(sorted(numbers))}")
    value = -numbers[name] if keep_best.startswith("-") else numbers[name]
    with Checkpoints(directory / BEST) as checkpoints:
        saved = {} if checkpoints.latest() is None else checkpoints.metadata()
        if value > saved.get("best", -math.inf):
            checkpoints.save(state, metadata() | {"best": value})


def best_state(
    directory: Path,
    last: State,
    abstract: State,
    config: dict[str, Any],
) -> State:
    """The best state, which says its own step; the last one if no evaluation gave a number.

    What ``config`` may differ in was compared when the run was opened.
    """
    with Checkpoints(directory / BEST) as checkpoints:
        if checkpoints.latest() is None:
            return last
        return checkpoints.restore(abstract, config, lambda config: None)[0]
