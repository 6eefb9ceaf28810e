"""What a number and a function may be is said where the field is declared, and held to."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol, get_args, get_origin

import pytest

from opsin.commands.evaluating import known_measurements
from opsin.config import catalogue, hints
from opsin.config.names import named
from opsin.config.shelves import SHELVES, found
from opsin.config.tree import check, hinted, override, rebuild, resolve
from opsin.data import sources
from opsin.data.folder import folder
from opsin.data.mask_folder import mask_folder
from opsin.data.shapes import shapes
from opsin.data.tfds_source import tfds
from opsin.errors import ConfigError
from opsin.experiments.classification import digits_lenet
from opsin.losses.classification import cross_entropy_loss, focal_loss
from opsin.ranges import (
    BelowOne,
    Bytes,
    Count,
    Label,
    NonNegative,
    Part,
    Positive,
    Probability,
    Seed,
    SetSize,
    Share,
    Unbounded,
)
from opsin.train.experiment import Experiment

BAD = (-1, -0.5, math.inf, -math.inf, math.nan, 1e300, 10**9, 10**30, 2**70, 10**400)
NOT_FINITE = (math.inf, -math.inf)
ANY_SIGN = ("data.mean", "real_label", "fake_label", "target", "bias", "ignore_label")
"""Numbers that may be negative, by their field."""
INFINITE = ("churn_max",)
ALL_LEFT = ("parallel.data", "parallel.fsdp")
"""-1 is a word: all devices that are left."""
LARGE = (
    *("seed", "min_shard_size", "resident_megabytes", "steps", "warmup_steps", "sgd_epochs"),
    *("source.n", "synthetic.n", "shapes.n", "cells.n", "images", "max_steps", "limit_bytes"),
    "ignore_label",
)
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
    if bad in (math.inf, 1e300):
        return field in INFINITE
    if bad == -1 and path in ALL_LEFT:
        return True
    if bad < 0:
        return bad not in NOT_FINITE and _in(ANY_SIGN, path)
    return bad == 10**9 and _in(LARGE, path)


def _in(names: tuple[str, ...], path: str) -> bool:
    return any(f".{name}." in f".{path}." for name in names)


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
                message = f"^{path} takes .*, not {re.escape(str(bad))}"
                with pytest.raises(ConfigError, match=message) as told:
                    override(tree, {path: bad})
                assert "\n" not in str(told.value)
    assert len(tried) > 120


def on_shelves() -> Iterator[Any]:
    """All that can be named in an override, and what the short forms of data call."""
    yield from (sources.digits, sources.synthetic, shapes, tfds, folder, mask_folder)
    for kind in SHELVES.keys() - {"measurements"}:
        yield from (x for x in map(named, found(kind)) if not isinstance(x, str))
    yield from known_measurements().values()


def options(node: Any) -> Iterator[tuple[str, Any]]:
    """Path and hint of each option, also of functions within, and of those that are not given."""
    while isinstance(node, partial):
        node = node.func
    name = getattr(node, "__name__", type(node).__name__)
    if dataclasses.is_dataclass(node) and not isinstance(node, type):  # a pair of losses
        for part in filter(callable, vars(node).values()):
            yield from options(part)
        return
    for option, parameter in hints.parameters(node).items():
        if isinstance(node, type) or parameter.kind is parameter.KEYWORD_ONLY:
            yield f"{name}.{option}", hints.option_hint(node, option)


def numbers(hint: Any) -> Iterator[Any]:
    """The hints of numbers in a hint, however deep."""
    if hints.plain(hint) in (int, float):
        yield hint
    elif get_origin(hint) is not Callable:
        for argument in get_args(hint):
            yield from numbers(argument)


def test_every_number_of_all_that_can_be_named_has_a_range():
    every = {
        (path, number)
        for node in on_shelves()
        for path, hint in options(node)
        for number in numbers(hint)
    }
    taken = {
        (path, bad)
        for path, number in every
        for bad in BAD
        if type(bad) is hints.plain(number) and not may_be(path, bad) and hints.fits(bad, number)
    }
    assert taken == set()
    assert len(every) > 200


@pytest.mark.parametrize(
    ("hint", "inside", "outside"),
    [
        (Positive, (1e-30, 1e30), (0.0, 1e-300, 1e300, -1.0, math.inf, math.nan)),
        (NonNegative, (0.0, 1e-300, 1e30), (1e300, -1e-9, math.inf, math.nan)),
        (Part, (0.1, 0.9), (0.0, 1.0)),
        (Bytes, (0, 8 * 10**9), (-1, 2**60)),
        (SetSize, (1, 1_281_167), (0, 2**31)),
        (Label, (-1, 255, -(2**31)), (2**31, -1.0)),
        (Unbounded, (0.0, math.inf), (-1e-9, math.nan)),
        (Probability, (0.0, 1.0), (-1e-9, 1.1)),
        (BelowOne, (0.0, 0.999), (1.0, -1e-9)),
        (Count, (1, 10**6), (0, 10**6 + 1, True)),
        (Seed, (0, 2**32 - 1), (-1, 2**32)),
        (float, (-1e30, 1e30), (1e31, -1e31, math.inf, -math.inf, math.nan)),
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
        (Positive, "float from 1e-30 to 1e+30"),
        (Share, "float above 0 to 1"),
        (Unbounded, "float of at least 0"),
        (BelowOne, "float from 0 to below 1"),
        (Probability | None, "float from 0 to 1 | None"),
    ],
)
def test_a_range_is_said_in_words(hint, words):
    assert hints.in_words(hint) == words


def test_a_tree_is_checked_whole_and_a_stored_one_too():
    """What an experiment was written with in Python, or a ``config.json`` by hand."""
    message = r"learning_rate takes float from 0 to 1e\+30, not -1\.0"
    wrong = override(digits_lenet.config(), {})
    object.__setattr__(wrong.optimizer, "learning_rate", -1.0)
    with pytest.raises(ConfigError, match=rf"^optimizer.{message}"):
        check(wrong)
    with pytest.raises(ConfigError, match=message):
        rebuild(resolve(wrong))


def no_seed(labels: Any) -> Any:
    return labels


def of_text(name: str) -> dict[str, str]:
    return {name: name}


class Readable(Protocol):
    text: str


def readable(split: str) -> Readable: ...


def test_a_function_that_returns_a_protocol_with_fields_is_taken():
    """Nobody can tell what else that is."""
    changed = override(digits_lenet.config(), {"data.source": readable})
    assert changed.data.source is readable


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
    with pytest.raises(ConfigError, match=r"gamma takes float from 0 to 1e\+30, not -2.0"):
        override(digits_lenet.config(), given | {"task.loss_function.gamma": -2.0})
