"""What a number and a function may be is said where the field is declared, and held to."""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from opsin.config import catalogue, hints
from opsin.config.names import named
from opsin.config.tree import check, hinted, override, rebuild, resolve
from opsin.errors import ConfigError
from opsin.experiments.classification import digits_lenet
from opsin.losses.classification import cross_entropy_loss, focal_loss
from opsin.ranges import BelowOne, Count, Positive, Probability, Seed, Unbounded
from opsin.train.experiment import Experiment

BAD = (-1, -0.5, math.inf, -math.inf, math.nan, 10**9, 10**30, 2**70, 10**400)
NOT_FINITE = (math.inf, -math.inf)
ANY_SIGN = ("data.mean", "rotation", "shear", "real_label", "fake_label", "generator.target")
"""Numbers that may be negative, by their field: any that is finite."""
INFINITE = ("churn_max",)
ALL_LEFT = ("parallel.data", "parallel.fsdp")
"""-1 is a word: all devices that are left."""
LARGE = ("seed", "min_shard_size", "resident_megabytes", "steps", "warmup_steps", "sgd_epochs")
"""Counts of what does not lie in memory together, up to 2³¹ or 2³²."""


def trees() -> Iterator[Experiment]:
    for name in catalogue.experiments():
        module = catalogue.find(name)
        base = module.config()
        yield base
        yield from (override(base, arm.overrides) for arm in catalogue.arms(module))


def may_be(path: str, bad: float) -> bool:
    """Whether a number is right for this field, although it is wrong for most."""
    field = path.rpartition(".")[2]
    if bad == math.inf:
        return field in INFINITE
    if bad == -1 and path in ALL_LEFT:
        return True
    if bad < 0:
        return bad not in NOT_FINITE and any(f".{name}" in f".{path}" for name in ANY_SIGN)
    return bad == 10**9 and field in LARGE


def test_no_path_of_any_experiment_takes_a_number_out_of_range():
    """All paths of all arms; each declaration is tried once, and refused in one line."""
    tried = set()
    for tree in trees():
        check(tree)
        for path, value, hint in hinted(tree):
            declared = (path.rpartition(".")[2], str(hint))
            if not isinstance(value, int | float) or isinstance(value, bool) or declared in tried:
                continue
            tried.add(declared)
            kind = type(value)
            for bad in [bad for bad in BAD if type(bad) is kind or bad in NOT_FINITE or bad != bad]:
                if may_be(path, bad):
                    assert hints.fits(bad, hint), (path, bad)
                    continue
                with pytest.raises(ConfigError, match=rf"^{path} takes .*, not {bad}") as told:
                    override(tree, {path: bad})
                assert "\n" not in str(told.value)
    assert len(tried) > 120


@pytest.mark.parametrize(
    ("hint", "inside", "outside"),
    [
        (Positive, (1e-9, 1e9), (0.0, -1.0, math.inf, math.nan)),
        (Unbounded, (0.0, math.inf), (-1e-9, math.nan)),
        (Probability, (0.0, 1.0), (-1e-9, 1.1)),
        (BelowOne, (0.0, 0.999), (1.0, -1e-9)),
        (Count, (1, 10**6), (0, 10**6 + 1, True)),
        (Seed, (0, 2**32 - 1), (-1, 2**32)),
        (float, (-1e300, 1e300), (math.inf, -math.inf, math.nan)),
        (int | None, (None, -5), (math.inf,)),
        (Count | tuple[Count, Count], (3, (1, 2)), (0, (1, 0), (1, 2, 3))),
        (tuple[tuple[str, Positive], ...], ((("x", 1.0),),), ((("x", 0.0),),)),
        (dict[str, Probability], ({"x": 0.5},), ({"x": 2.0},)),
    ],
)
def test_a_number_fits_its_range_also_inside_of_others(hint, inside, outside):
    assert [value for value in inside if not hints.fits(value, hint)] == []
    assert [value for value in outside if hints.fits(value, hint)] == []


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (Count, "int from 1 to 1,000,000"),
        (Positive, "float above 0"),
        (Unbounded, "float of at least 0"),
        (BelowOne, "float from 0 to below 1"),
        (Probability | None, "float from 0 to 1 | None"),
    ],
)
def test_a_range_is_said_in_words(hint, words):
    assert hints.in_words(hint) == words


def test_a_tree_is_checked_whole_and_a_stored_one_too():
    """What an experiment was written with in Python, or a ``config.json`` by hand."""
    wrong = override(digits_lenet.config(), {})
    object.__setattr__(wrong.optimizer, "learning_rate", -1.0)
    with pytest.raises(ConfigError, match=r"^optimizer.learning_rate takes float of at least 0"):
        check(wrong)
    with pytest.raises(ConfigError, match=r"learning_rate takes float of .* not -1\.0"):
        rebuild(resolve(wrong))


def no_seed(labels: Any) -> Any:
    return labels


def of_text(name: str) -> dict[str, str]:
    return {name: name}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"optimizer.schedule": "train.methods:adamw"}, r"returns GradientTransformation, not"),
        (
            {"optimizer.method": "train.schedules:cosine"},
            "returns a function, not GradientTransformation",
        ),
        ({"optimizer.method": "losses.classification:focal_loss"}, r"is called with \(learning_"),
        ({"optimizer.method": "builtins:len"}, r"is called with \(learning_rate, "),
        ({"optimizer.schedule": "builtins:dict"}, "says nowhere what it takes"),
        ({"task.loss_function": "losses.diffusion:min_snr_weight"}, "is called with"),
        ({"task.loss_function": "builtins:int"}, "says nowhere what it takes|returns int, not"),
        ({"task.loss_function": "train.methods:sgd"}, "argument: 'mask'"),
        ({"data.select": no_seed}, r"is called with \(labels, seed=…\)"),
        ({"data.select": "data.selection:per_class"}, "argument: 'n'"),
        ({"data.source": "losses.classification:cross_entropy_loss"}, r"is called with \(str\)"),
        ({"data.source": of_text}, r"returns dict\[str, str\], not Examples"),
        ({"data.augment.0": "data.color:gaussian_noise"}, "argument: 'std'"),
        ({"task.more_metrics": (of_text,)}, r"more_metrics takes|is called with"),
        ({"task": "train.tasks.classify:Classify"}, "cannot be made of its defaults"),
        ({"task.model": "losses.classification:focal_loss"}, "task.model takes Module, not"),
    ],
)
def test_a_function_must_be_one_that_its_field_can_call(overrides, message):
    given = {x: named(y) if isinstance(y, str) else y for x, y in overrides.items()}
    with pytest.raises(ConfigError, match=message) as told:
        override(digits_lenet.config(), given)
    assert "\n" not in str(told.value)
    assert str(told.value).startswith(next(iter(overrides)))


def test_a_function_and_its_options_may_come_one_after_the_other():
    given = {
        "task.loss_function": partial(cross_entropy_loss),
        "task.loss_function.smoothing": 0.1,
    }
    assert override(digits_lenet.config(), given).task.loss_function.keywords == {"smoothing": 0.1}
    given = {"task.loss_function": focal_loss, "task.loss_function.gamma": 2.0}
    assert override(digits_lenet.config(), given).task.loss_function.keywords == {"gamma": 2.0}
    with pytest.raises(ConfigError, match=r"gamma takes float of at least 0, not -2.0"):
        override(digits_lenet.config(), given | {"task.loss_function.gamma": -2.0})
