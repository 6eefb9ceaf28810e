"""Overrides reach every field, and nothing else; a resolved tree is JSON, its hash the run's id."""

import dataclasses
import inspect
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsin.config import catalogue
from opsin.config.identity import identity
from opsin.config.names import allowed_code
from opsin.config.table import Arm
from opsin.config.tree import names_in, override, parse, parse_all, paths, rebuild, resolve
from opsin.data.geometry import random_crop, random_flip
from opsin.errors import ConfigError
from opsin.losses.classification import cross_entropy_loss, focal_loss
from opsin.losses.likelihoods import Bernoulli, Gaussian
from opsin.models.classification.lenet import LeNet5
from opsin.models.classification.resnet import (
    BasicBlock,
    BottleneckBlock,
    ResNet18Cifar,
    cifar_resnet,
)
from opsin.models.layers import batch_norm
from opsin.ops.diffusion.samplers import Ancestral, DpmSolver2M
from opsin.train.experiment import Data, Experiment
from opsin.train.methods import Lookahead, adamw, sgd
from opsin.train.optim import Optimizer
from opsin.train.tasks.classify import Classify
from opsin.train.weights import Weights


def another(*values: Any, option: float = 0.0, **others: Any) -> None:
    """A function by another name, for the property test."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A field of each type that is treated in a way of its own."""

    integer: int = 1
    real: float = 1.0
    switch: bool = False
    text: str = "x"
    maybe: float | None = None
    reals: tuple[float, ...] = (1.0, 2.0)
    pairs: tuple[tuple[str, tuple[float, ...]], ...] = (("a", (1.0,)),)
    names: tuple[str, ...] = ()
    kind: Literal["one", "two"] = "one"
    table: dict[str, float] = dataclasses.field(default_factory=lambda: {"a": 1.0})
    positive: float = 1.0
    anything: Any = None

    def __post_init__(self) -> None:
        if self.positive <= 0:
            raise ValueError("positive must be")

    def method(self) -> float:
        return self.real


@pytest.fixture
def experiment() -> Experiment:
    return Experiment(
        task=Classify(model=LeNet5(), loss_function=partial(focal_loss, gamma=1.0)),
        data=Data(augment=(partial(random_crop, padding=1), random_flip), mean=(0.5, 0.5)),
        optimizer=Optimizer(method=sgd),
    )


def value_at(tree: Any, path: str) -> Any:
    """What stands at a path, found independently of the code that is tested."""
    for name in path.split("."):
        if isinstance(tree, dict):
            tree = tree[name]
        elif isinstance(tree, tuple):
            tree = tree[int(name)]
        elif isinstance(tree, partial):
            default = inspect.signature(tree.func).parameters[name].default
            tree = tree.keywords.get(name, default)
        elif dataclasses.is_dataclass(tree):
            tree = getattr(tree, name)
        else:
            tree = inspect.signature(tree).parameters[name].default
    return tree


# What an override reaches.


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", 7),  # a dataclass field
        ("data.batch", 32),  # one further down
        ("task.model.num_classes", 3),  # a field of a Flax module
        ("task.loss_function.gamma", 3.0),  # a keyword of a partial
        ("task.loss_function.ignore_label", 255),  # one that the partial does not set
        ("optimizer.method.momentum", 0.5),  # a keyword of a plain function
        ("data.eval_splits.test", "train"),  # a key of a dict
        ("data.mean.1", 0.25),  # a position of a tuple
        ("data.augment.1", random_crop),
        ("data.augment.0.padding", 3),  # all of them in one path
        ("data.augment.1.probability", 0.25),
        ("task.model", LeNet5(num_classes=2)),  # a whole subtree
        ("data.select", None),
    ],
)
def test_an_override_changes_its_path_and_nothing_else(experiment, path, value):
    before = resolve(experiment)
    changed = override(experiment, {path: value})
    assert value_at(changed, path) == value
    assert resolve(experiment) == before  # the original stays as it was
    restored = override(changed, {path: value_at(experiment, path)})
    assert resolve(restored) == before  # and nothing beside the path was touched


def test_overrides_are_applied_in_order():
    changed = override(
        Experiment(task=Classify(model=LeNet5())),
        {"task.model": LeNet5(num_classes=2), "task.model.num_classes": 3},
    )
    assert changed.task.model.num_classes == 3


def test_a_later_override_may_take_away_what_an_earlier_one_changed():
    """As those that are typed do with those of an arm."""
    crop = partial(random_crop, padding=4)
    tree = Experiment(task=Classify(model=LeNet5()), data=Data(augment=(crop,)))
    changed = override(tree, {"data.augment.0.padding": 2, "data.augment": ()})
    assert changed.data.augment == ()
    changed = override(tree, {"data.augment.0.padding": 2, "data.augment.0": random_flip})
    assert changed.data.augment == (random_flip,)


def test_a_changed_function_still_works_and_keeps_its_other_keywords(experiment):
    changed = override(experiment, {"task.loss_function.ignore_label": 1})
    logits, labels = np.array([[2.0, 0.0], [0.0, 1.0]], np.float32), np.array([0, 1])
    expected = jax.jit(partial(focal_loss, gamma=1.0, ignore_label=1))(logits, labels)
    found = jax.jit(changed.task.loss_function)(logits, labels)
    np.testing.assert_array_equal(found, expected)


def test_a_changed_module_still_works(key):
    model = override(Classify(model=LeNet5()), {"model.num_classes": 3}).model
    shapes = jax.eval_shape(model.init, key, jnp.zeros((1, 32, 32, 1)))
    assert shapes["params"]["head"]["bias"].shape == (3,)


def test_positional_arguments_and_unlisted_keywords_of_a_partial_survive():
    tree = {"f": partial(another, 1, 2), "norm": partial(batch_norm, name="n")}
    changed = override(tree, {"f.option": 0.5, "norm.name": "m"})
    assert changed["f"].args == (1, 2)
    assert changed["f"].keywords == {"option": 0.5}
    assert changed["norm"].keywords == {"name": "m"}  # through **options


def test_one_field_makes_a_dataclass_where_there_is_none_if_it_is_all_that_it_needs(experiment):
    changed = override(experiment, {"weights.path": "a", "weights.part": "head"})
    assert changed.weights == Weights("a", part="head")
    for path, value, message in (
        ("weights.part", "head", "there is no 'weights.part' to override"),
        ("weights.paths", "a", "there is no 'weights.paths' to override"),
        ("weights.path", 3, "weights.path takes str, not 3"),
    ):
        with pytest.raises(ConfigError, match=message):
            override(experiment, {path: value})


@dataclasses.dataclass(frozen=True)
class Scaled:
    """Its objects are functions; so are those of ``Unscaled``, which lacks a number."""

    by: float = 2.0

    def __call__(self, x: int) -> float:
        return self.by * x


@dataclasses.dataclass(frozen=True)
class Unscaled(Scaled):
    base: float = dataclasses.field(kw_only=True)


@dataclasses.dataclass(frozen=True)
class Applied:
    function: Callable[[int], float] = abs
    makes: Callable[[float], Scaled] = Scaled


def test_a_class_whose_objects_are_functions_is_made_where_a_function_is_asked_for():
    found = override(Applied(), {"function": Scaled, "function.by": 3.0})
    assert found.function == Scaled(3.0)
    assert override(Applied(), {"function": partial(Scaled, 5.0)}).function == Scaled(5.0)
    assert override(Applied(), {"makes": Scaled}).makes is Scaled  # it is called as it says
    with pytest.raises(ConfigError, match=r"cannot be made of its defaults.*name a partial"):
        override(Applied(), {"function": Unscaled})
    with pytest.raises(ConfigError, match="returns Data, not float"):
        override(Applied(), {"function": Data})


def test_keys_that_are_not_strings_are_replaced_not_added():
    assert override({1: "a", 2: "b"}, {"2": "c"}) == {1: "a", 2: "c"}


def test_the_fields_that_linen_adds_are_not_settings():
    found = set(paths({"model": LeNet5(), "variant": ResNet18Cifar}))
    assert "model.num_classes" in found
    assert "variant.stem" in found
    assert not {p for p in found if p.endswith((".parent", ".name"))}


# Types.


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("integer", 1.5, "integer takes int, not 1.5; it is 1 by default"),
        ("integer", "3", "integer takes int, not '3'; it is 1 by default"),
        ("integer", True, "integer takes int, not True; it is 1 by default"),
        ("real", False, "real takes float, not False; it is 1.0 by default"),
        ("real", "fast", "real takes float, not 'fast'; it is 1.0 by default"),
        ("switch", 1, "switch takes bool, not 1; it is False by default"),
        ("switch", "true", "switch takes bool, not 'true'; it is False by default"),
        ("text", 5, "text takes str, not 5; it is 'x' by default"),
        ("maybe", "x", "maybe takes float | None, not 'x'; it is None by default"),
        ("maybe", True, "maybe takes float | None, not True; it is None by default"),
        ("reals", 1.0, "reals takes tuple[float, ...], not 1.0; it is (1.0, 2.0) by default"),
        ("reals", (1.0, True), "reals takes tuple[float, ...], not (1.0, True)"),
        ("reals.0", "x", "reals.0 takes float, not 'x'; it is 1.0 by default"),
        ("names", "bias", "names takes tuple[str, ...], not 'bias'; it is () by default"),
        ("kind", "three", "kind takes Literal['one', 'two'], not 'three'"),
        ("table.a", "x", "table.a takes float, not 'x'; it is 1.0 by default"),
        ("positive", -1.0, "positive=-1.0: positive must be"),
    ],
)
def test_a_wrong_type_is_named_with_its_path_and_the_default(path, value, message):
    with pytest.raises(ConfigError) as caught:
        override(Leaf(), {path: value})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "data.augment.1",
            "flip",
            "data.augment.1 takes a function, not 'flip'; it is data.geometry:random_flip by",
        ),
        (
            "task.model",
            3,
            "task.model takes Module, not 3; it is models.classification.lenet:LeNet5 by",
        ),
        ("data.batch", 6.4e1, "data.batch takes int from 1 to 1,000,000, not 64.0; it is"),
        ("loop.duration", 5, "loop.duration takes str, not 5; it is '10 epochs' by default"),
        (
            "data.augment.0.padding",
            "1",
            "data.augment.0.padding takes int from 0 to 1,000",
        ),
        (
            "task.model.num_classes",
            "ten",
            "task.model.num_classes takes int from 1 to 1,000,0",
        ),
    ],
)
def test_hints_are_read_from_dataclasses_modules_and_signatures(experiment, path, value, message):
    with pytest.raises(ConfigError) as caught:
        override(experiment, {path: value})
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("path", "given", "meant"),
    [
        ("real", 1, 1.0),
        ("maybe", 2, 2.0),
        ("reals", [1, 2], (1.0, 2.0)),
        ("reals", (1, 2), (1.0, 2.0)),
        ("reals.1", 2, 2.0),
        ("names", ["a"], ("a",)),
        ("pairs", [["a", [1]]], (("a", (1.0,)),)),
        ("table.a", 1, 1.0),
        ("table", {"a": 1}, {"a": 1.0}),
    ],
)
def test_integers_become_reals_and_lists_tuples_so_that_the_hash_is_the_same(path, given, meant):
    changed, straight = override(Leaf(), {path: given}), override(Leaf(), {path: meant})
    assert repr(changed) == repr(straight)  # 1 == 1.0, but their texts differ
    assert identity(changed) == identity(straight)


def test_an_integer_stays_one_where_either_would_do():
    @dataclasses.dataclass(frozen=True)
    class Either:
        value: int | float = 0

    assert repr(override(Either(), {"value": 3}).value) == "3"
    assert repr(override(Either(), {"value": 3.0}).value) == "3.0"


# Unknown paths.


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("sead", "seed"),
        ("learning_rate", "optimizer.learning_rate"),
        ("lr", "optimizer.learning_rate"),
        ("optimizer.lr", "optimizer.learning_rate"),
        ("optimizer.wd", "optimizer.weight_decay"),
        ("optimizer.x", "optimizer"),
        ("batch_size", "data.batch"),
        ("model.num_classes", "task.model.num_classes"),
        ("task.model.num_class", "task.model.num_classes"),
        ("optimizer.momentum", "optimizer.method.momentum"),
        ("data.agument.0.padding", "data.augment.0.padding"),
        ("data.augment.7.padding", "data.augment.0.padding"),
        ("data.augment.-1", "data.augment.1"),
        ("data.eval_splits.tset", "data.eval_splits.test"),
        ("seed.x", "seed"),  # below a leaf
        ("task.loss_function.gama", "task.loss_function.gamma"),
    ],
)
def test_an_unknown_path_names_the_nearest(experiment, wrong, right):
    with pytest.raises(ConfigError) as caught:
        override(experiment, {wrong: 1})
    assert str(caught.value) == f"there is no {wrong!r} to override: did you mean {right!r}?"


def test_a_text_for_a_function_lists_the_functions_like_the_present_one(experiment):
    with pytest.raises(ConfigError) as caught:
        override(experiment, {"optimizer.method": "sgd"})
    text = str(caught.value)
    assert "; like it are train.methods:sgd, train.methods:" in text
    assert {"adamw", "lion", "lamb", "lars"} <= set(re.findall(r"train\.methods:(\w+)", text))
    assert "\n" not in text


# The command line's notation.


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.b=1", 1),
        ("a.b=-1", -1),
        ("a.b=1e-3", 1e-3),
        ("a.b=True", True),
        ("a.b=None", None),
        ("a.b=(1, 2)", (1, 2)),
        ("a.b=[1, 2]", [1, 2]),
        ("a.b={'test': 'test'}", {"test": "test"}),
        ("a.b='1'", "1"),
        ("a.b=", ""),
        ("a.b=20 epochs", "20 epochs"),
        ("a.b=train[:80%]", "train[:80%]"),
        ("a.b=x=y", "x=y"),
        ("a.b={[1]: 2}", "{[1]: 2}"),  # a list cannot be a key
        ("a.b=jit", "jit"),
        ("a.b=tfds:mnist", "tfds:mnist"),
        ("a.b=tfds:mnist:3.0.1", "tfds:mnist:3.0.1"),
        ("a.b=folder:/data/cats", "folder:/data/cats"),
        ("a.b=folder:photos", "folder:photos"),
        ("a.b=train.no_such_module:name", "train.no_such_module:name"),
        ("a.b=jax.numpy:bfloat16", jnp.bfloat16),
        ("a.b=data.geometry:random_flip", random_flip),
        ("a.b=models.classification.lenet:LeNet5", LeNet5),
    ],
)
def test_parse_reads_literals_names_and_strings(text, value):
    path, parsed = parse(text)
    assert path == "a.b"
    assert type(parsed) is type(value)
    assert parsed == value


@pytest.mark.parametrize("text", ["seed", "=3", "", "--seed 3"])
def test_parse_asks_for_path_and_value(text):
    with pytest.raises(ConfigError, match="write path=value, as in seed=1"):
        parse(text)


def test_a_name_that_its_module_lacks_is_named():
    with pytest.raises(ConfigError, match=r"task.x: module data.augment has no 'random_flop'"):
        parse("task.x=data.augment:random_flop")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("def loss(:", r"SyntaxError: .*line 1"),
        ("raise SystemExit(0)", "SystemExit: 0"),
    ],
)
def test_a_module_that_cannot_be_imported_is_not_taken_for_a_string(
    tmp_path, monkeypatch, text, complaint
):
    (tmp_path / "my_loss_of_test_config.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=f"cannot import my_loss_of_test_config: {complaint}"):
        parse("task.loss_function=my_loss_of_test_config:loss")


def test_a_file_that_is_called_as_a_room_is_told_by_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "losses.py").write_text("def my_loss(): ...\n")
    with pytest.raises(
        ConfigError, match=r"that is opsin's module, yours is \./losses\.py:my_loss"
    ):
        parse("task.loss_function=losses:my_loss")


def test_a_directory_called_tfds_does_not_hide_the_data_set(tmp_path, monkeypatch):
    (tmp_path / "tfds" / "mnist").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    assert parse("data.source=tfds:mnist") == ("data.source", "tfds:mnist")


def test_a_dtype_reaches_the_model(experiment):
    changed = override(experiment, parse_all(["task.model.dtype=jax.numpy:bfloat16"]))
    assert changed.task.model.dtype == jnp.bfloat16
    assert resolve(changed)["task"]["model"]["dtype"] == "jax.numpy:bfloat16"


def test_a_path_may_come_once():
    assert parse_all(["seed=1", "data.batch=2"]) == {"seed": 1, "data.batch": 2}
    with pytest.raises(ConfigError, match="seed is overridden twice"):
        parse_all(["seed=1", "data.batch=2", "seed=3"])


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=6,
    )
)  # fmt: skip
def test_any_literal_survives_parse_and_resolve(value):
    parsed = parse(f"anything={value!r}")[1]
    assert parsed == value
    assert json.loads(json.dumps(resolve(parsed))) == value


# The resolved tree and its name.

ALL = sorted(catalogue.experiments())
REQUIRED = ".norm.train"  # an option without a default: the model gives it in its call


@pytest.mark.parametrize("name", ALL)
def test_resolve_is_json_and_contains_every_path(name):
    experiment = catalogue.find(name).config()
    resolved = json.loads(json.dumps(resolve(experiment), allow_nan=False))
    assert resolved == resolve(experiment)
    for path in (path for path in paths(experiment) if not path.endswith(REQUIRED)):
        node = resolved
        for part in path.split("."):
            node = node[int(part)] if isinstance(node, list) else node[part]
    assert "._" not in json.dumps(resolved)  # names that another version of a library knows too


def test_resolve_in_full():
    tree = {
        "module": cifar_resnet(8, norm=partial(batch_norm, momentum=0.5)),
        "function": partial(adamw, b1=0.5),
        "plain": jnp.tanh,
        "library": optax.adamw,
        "positional": partial(another, 1, option=2.0),
        "numbers": (1, 2.5, None, True, float("inf")),
    }
    resolved = resolve(tree)
    module = resolved["module"]
    assert module["type"] == "models.classification.resnet:ResNet"
    assert module["stage_sizes"] == [1, 1, 1]
    assert module["block"] == "models.classification.resnet:BasicBlock"
    assert module["norm"]["call"] == "models.layers:batch_norm"
    assert module["norm"]["momentum"] == 0.5
    assert module["norm"]["epsilon"] == 1e-5  # a default
    assert "train" not in module["norm"]  # no default: the caller gives it
    assert resolved["function"] == {
        "call": "train.methods:adamw",
        "b1": 0.5,
        "b2": 0.999,
        "eps": 1e-8,
    }
    assert resolved["plain"] == "jax.numpy:tanh"
    assert resolved["library"]["call"] == "optax:adamw"
    assert resolved["positional"] == {"call": f"{__name__}:another", "args": [1], "option": 2.0}
    assert resolved["numbers"] == [1, 2.5, None, True, "inf"]


SCRIPT = """
from opsin.config import catalogue
from opsin.config.identity import identity
print({name: identity(catalogue.find(name).config()) for name in sorted(catalogue.experiments())})
"""


@pytest.fixture(scope="module")
def here() -> dict[str, str]:
    """The identity of every experiment, in this process."""
    return {name: identity(catalogue.find(name).config()) for name in ALL}


@pytest.mark.proofs  # ten are also held to what another process recorded: see test_identity
def test_the_identity_is_the_same_in_another_process(here):
    env = {**os.environ, "PYTHONHASHSEED": "12345"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == repr(here)


def test_experiments_that_train_the_same_have_one_identity_and_others_their_own(here):
    by_id = {name: {n for n, other in here.items() if other == name} for name in here.values()}
    assert sorted(map(sorted, (names for names in by_id.values() if len(names) > 1))) == [
        # One training each, of which several experiments ask other questions.
        ["cifar10_simclr_augmentations", "cifar10_simclr_head"],
        ["isbi_losses", "isbi_skip_connections"],
        ["mnist_ddpm_samplers", "mnist_guidance", "mnist_inpainting"],
    ]
    assert all(len(name) == 12 for name in here.values())


def different(value: Any) -> list[Any]:
    """Values unlike this one, of which a path of the same type takes at least one."""
    match value:
        case bool():
            return [not value]
        case int():
            return [value + 1]
        case float():
            return [value + 0.5, value / 2, 0.5] if math.isfinite(value) else [0.5]
        case str():
            return [value + "x"]
        case None:
            return [True, 0.5, 3, "x", "time", (0.5,), (1,), another, Weights("x"), Lookahead()]
        case dict() if not value:
            return [{"test": "test"}]
        case tuple() if not value:
            return [("x",), (1,), (("x", 0.5),), (("x", (1,)),), (another,)]
        case type():
            kinds = (jnp.bfloat16, jnp.float32, BottleneckBlock, BasicBlock)
            return [kind for kind in kinds if kind is not value]
        case Bernoulli():
            return [Gaussian()]
        case DpmSolver2M():
            return [Ancestral()]
        case _ if callable(value):
            return [another]
    return []


FREE = (
    "loop.log_every",
    "loop.evaluate_every",
    "loop.checkpoint_every",
    "loop.steps_per_dispatch",
    "loop.previews",
    "data.eval_splits",
    "data.eval_batch",
    "data.resident_megabytes",
    "parallel",
    "task.groups",
    "task.more_metrics",
    "task.sampling",
    "task.observer",
    "task.boundary_tolerance",
    "task.rand",
)
"""What changes no trained number."""


FEW = ("cifar10_simclr_finetune", "digits_lenet")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FEW else pytest.mark.proofs) for n in ALL]
)
def test_every_leaf_that_trains_and_no_other_is_part_of_the_identity(name):
    # Of what is measured an id says nothing.
    experiment = override(catalogue.find(name).config(), {"measurements": ()})
    own = identity(experiment)
    identities, free = {own}, 0
    every = [path for path in paths(experiment) if not path.endswith((REQUIRED, "measurements"))]
    leaves = [path for path in every if not any(other.startswith(f"{path}.") for other in every)]
    for path in leaves:
        value = value_at(experiment, path)
        assert identity(override(experiment, {path: value})) == own
        apart = any(f"{path}.".startswith(f"{prefix}.") for prefix in FREE)
        apart = apart or path.endswith(".remat")
        if path == "weights.path":
            apart = experiment.weights.sha256 is not None  # of no published name, but a file's
        free += apart
        others = different(value)
        for other in others:
            try:
                changed = override(experiment, {path: other})
            except ConfigError as refusal:
                # A Literal's refusal names what it takes.
                if named := re.search(r"takes Literal\[(.*?)\]", str(refusal)):
                    names = re.findall(r"'([^']*)'", named[1])
                    others += [name for name in names if name not in (value, *others)]
                continue
            assert (identity(changed) == own) == apart, path
            identities.add(identity(changed))
            break
        else:
            assert path.endswith(".where"), f"nothing to change {path} to"  # an array, by its type
            identities.add(path)
    assert len(identities) == 1 + len(leaves) - free  # each gave an identity of its own


def test_an_option_set_to_its_default_is_the_same_run():
    explicit = partial(cross_entropy_loss, smoothing=0.0)
    assert identity(explicit) == identity(cross_entropy_loss) == identity(partial(explicit))
    assert identity(partial(explicit, smoothing=0.1)) != identity(explicit)


def test_the_order_of_keys_does_not_matter():
    assert identity({"a": 1, "b": 2}) == identity({"b": 2, "a": 1})
    assert identity({"a": 1}) != identity({"a": 1.0}) != identity({"a": True})


def closure():
    def inner() -> None: ...

    return inner


@pytest.mark.parametrize(
    "nameless",
    [lambda x: x, closure(), Leaf().method, object(), {1, 2}, b"x", partial(lambda x: x)],
    ids=["lambda", "closure", "method", "object", "set", "bytes", "partial"],
)
def test_what_has_no_name_is_refused_in_one_line(nameless):
    with pytest.raises(ConfigError, match="has no name to find it by") as caught:
        identity(override(Leaf(), {"anything": nameless}))
    assert "\n" not in str(caught.value)


def test_an_arm_without_overrides_changes_nothing():
    assert override(Leaf(), Arm("baseline").overrides) == Leaf()


@pytest.mark.parametrize("name", sorted(catalogue.experiments()))
def test_a_tree_is_rebuilt_from_what_it_resolves_to(name):
    module = catalogue.find(name)
    for arm in catalogue.arms(module):
        experiment = override(module.config(), arm.overrides)
        resolved = resolve(experiment)
        again = rebuild(json.loads(json.dumps(resolved)))
        assert type(again) is Experiment
        assert type(again.task) is type(experiment.task)
        for name, value in vars(experiment.task).items():
            if isinstance(value, nn.Module):  # partials are never equal
                assert type(getattr(again.task, name)) is type(value)
        assert resolve(again) == resolved


def test_a_rebuilt_function_computes_the_same():
    loss = partial(focal_loss, gamma=0.5, alpha=(0.2, 0.8))
    logits, labels = np.array([[1.0, -1.0], [0.5, 0.0]], np.float32), np.array([1, 0])
    again = rebuild(resolve(loss))
    np.testing.assert_array_equal(jax.jit(again)(logits, labels), jax.jit(loss)(logits, labels))
    assert rebuild(resolve({"a": float("inf"), "b": "tfds:mnist", "c": (1, (2.0,))})) == {
        "a": float("inf"),
        "b": "tfds:mnist",
        "c": (1, (2.0,)),
    }


@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
def test_a_text_stays_one_where_text_is_asked_for(text):
    data = Data(train_split=text, eval_splits={text: text}, source=text)
    assert rebuild(json.loads(json.dumps(resolve(data)))) == data
    leaf = json.loads(json.dumps(resolve(Leaf(text=text, names=(text,)))))
    assert rebuild(leaf, names_in(leaf)) == Leaf(text=text, names=(text,))
    assert rebuild([text]) != [text]  # nobody says what it is: a number


@pytest.mark.parametrize(
    ("resolved", "message"),
    [
        ({"type": "train.experiment:Daata"}, "train.experiment:Daata is not there any more"),
        ({"type": "train.experiment:Data", "bach": 3}, "train.experiment:Data: .*bach"),
        ({"type": "losses.classification:focal_loss"}, "focal_loss is no dataclass"),
        ({"call": "losses.classification:no_loss", "gamma": 2.0}, "no_loss is not there any more"),
        ({"call": "losses.nowhere:f", "x": 1}, "^losses.nowhere:f is not there any more"),
        ({"call": "tfds:f", "x": 1}, "^tfds:f is no function of this code"),
        ({"call": 3}, "^3 is no function of this code"),
        (
            "nowhere.module:f",
            "^nowhere.module:f: it is no code of opsin, .* by --allow nowhere.module$",
        ),
        ("losses.classification:no_loss", "no_loss is not there any more"),
        ({"type": "train.optim:Optimizer", "schedule": "digits"}, "schedule takes a function"),
        ({"type": "train.experiment:Data", "batch": "many"}, "batch takes int .* not 'many'"),
    ],
)
def test_what_is_not_there_any_more_is_named(resolved, message):
    with pytest.raises(ConfigError, match=message):
        rebuild(resolved)


# What the config of a stranger may name.

EVIL = """
from pathlib import Path
Path({marker!r}).touch()

def f(*values, **options): ...
"""


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A folder with a file that leaves a marker when it is executed, and is a module too."""
    marker = tmp_path / "executed"
    (tmp_path / "evil_of_a_test.py").write_text(EVIL.format(marker=str(marker)))
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses" / "__init__.py").touch()
    (tmp_path / "losses" / "evil.py").write_text(EVIL.format(marker=str(marker)))
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    assert not marker.exists()
    for name in ("evil_of_a_test", "own_files_evil_of_a_test", "losses", "losses.evil"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("optimizer.schedule", "{folder}/evil_of_a_test.py:f", "by --allow {folder}/evil_of_a"),
        ("optimizer.schedule", "./evil_of_a_test.py:f", r"by --allow \./evil_of_a_test.py$"),
        ("optimizer.schedule", "evil_of_a_test:f", "by --allow evil_of_a_test$"),
        ("optimizer.schedule", {"call": "evil_of_a_test:f"}, "by --allow evil_of_a_test$"),
        ("optimizer.schedule", {"type": "evil_of_a_test:F"}, "by --allow evil_of_a_test$"),
        ("optimizer.schedule", {"call": "timeit:timeit", "args": ["1"]}, "by --allow timeit$"),
        ("optimizer.schedule", {"call": "subprocess:Popen", "args": ["ls"]}, "--allow subprocess"),
        ("optimizer.schedule", {"call": "losses.reduction:f", "args": ["os:system"]}, "not there"),
        ("optimizer.schedule", {"call": "optax:chain", "args": ["os:system"]}, "by --allow os$"),
        (
            "optimizer.schedule",
            {"call": "train.schedules:cosine", "end": "os:abort"},
            "takes float",
        ),
        ("optimizer.lr_scale", [["a", "os:system"]], "by --allow os$"),
        ("optimizer.schedule", "builtins:exec", "by --allow builtins$"),
        ("optimizer.schedule", "losses.evil:f", "not there any more"),  # of the working directory
        ("optimizer.schedule", "opsin.losses.evil:f", "not there any more"),
        ("optimizer.schedule", "losses.evil:full_name", "config.names:full_name, which is nothing"),
        ("optimizer.schedule", "losses.evil:_untrusted", "not there any more"),
        ("optimizer.schedule", "config.names:named", "nothing that a config holds"),
        ("optimizer.schedule", "config.own_files:load", "nothing that a config holds"),
        ("optimizer.schedule", "commands.main:main", "nothing that a config holds"),
        ("optimizer.schedule", "train.checkpoint:Checkpoints", "nothing that a config holds"),
        ("optimizer.schedule", "data.files:replace_text", "nothing that a config holds"),
        ("optimizer.schedule", "losses.classification:replace_text", "nothing that a config holds"),
        ("optimizer.schedule", "data.files:Path", "not there any more"),
        ("optimizer.schedule", "data.pipeline:partial", "not there any more"),
        ("optimizer.schedule", "losses.classification:jnp", "not there any more"),
        ("optimizer.schedule", "flax.linen.linear:lax", "no function or class that"),
        ("optimizer.schedule", "experiments.extractors:LENET", "LENET is no function or class"),
        ("optimizer.schedule", "jax.numpy:load", "by --allow jax.numpy$"),
        ("optimizer.schedule", "jax.numpy:save", "by --allow jax.numpy$"),
        ("optimizer.schedule", "jax.profiler:start_trace", "by --allow jax.profiler$"),
        ("optimizer.schedule", "jax:pure_callback", "by --allow jax$"),
        ("optimizer.schedule", "flax.training.checkpoints:save_checkpoint", "by --allow flax."),
        ("data.source", "os:system", "os:system: .* by --allow os$"),
        ("data.source", "__main__:f", "by --allow __main__$"),
    ],
)
def test_what_a_stranger_names_is_not_executed(experiment, evil, path, value, complaint):
    config = resolve(experiment)
    owner, field = path.split(".")
    config[owner][field] = value.format(folder=evil) if isinstance(value, str) else value
    with pytest.raises(ConfigError, match=complaint.format(folder=evil)) as told:
        rebuild(config)
    assert "\n" not in str(told.value)


def test_a_data_set_is_no_module(experiment, evil, monkeypatch):
    monkeypatch.chdir(evil)
    for kind in ("folder", "masks", "tfds"):
        (evil / f"{kind}.py").write_text(EVIL.format(marker=str(evil / "executed")))
        assert parse(f"data.source={kind}:f") == ("data.source", f"{kind}:f")
        config = resolve(experiment)
        config["data"]["source"] = f"{kind}:f"
        assert rebuild(config, names_in(config)).data.source == f"{kind}:f"
        assert kind not in sys.modules


def test_text_and_numbers_are_not_looked_up(experiment, evil):
    config = resolve(experiment)
    config["data"]["train_split"] = f"{evil}/evil_of_a_test.py:f"
    assert rebuild(config).data.train_split == f"{evil}/evil_of_a_test.py:f"
    config["seed"] = f"{evil}/evil_of_a_test.py:f"
    with pytest.raises(ConfigError, match=r"seed takes int .* not '.*evil_of_a_test.py"):
        rebuild(config)


def test_a_file_that_is_allowed_is_executed_and_nothing_else_that_it_holds(tmp_path):
    file = tmp_path / "allowed_of_a_test.py"
    file.write_text("from os import system\ndef f(x): return x + 1\nclass G: ...")
    with pytest.raises(ConfigError, match="by --allow"):
        rebuild({"a": f"{file}:f"})
    assert allowed_code([str(file)]) == ()
    assert rebuild({"a": f"{file}:f"})["a"](2) == 3
    # A run that was trained elsewhere names it there; what lies there is not read.
    assert rebuild({"a": "/of/a/stranger/allowed_of_a_test.py:f"})["a"](2) == 3
    with pytest.raises(ConfigError, match=r":system is posix:system: .* --allow posix$"):
        rebuild({"a": f"{file}:system"})
    del sys.modules["own_files_allowed_of_a_test"]


def test_a_module_that_is_allowed_is_executed_with_all_below_it(tmp_path, monkeypatch):
    (tmp_path / "allowed_package").mkdir()
    (tmp_path / "allowed_package" / "__init__.py").write_text("from subprocess import Popen")
    (tmp_path / "allowed_package" / "below.py").write_text("def f(x): return x + 1")
    (tmp_path / "allowed_package_too.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    name = "allowed_package.below:f"
    for allowed in (["allowed_package"], ["allowed_package.below"], [name]):
        assert rebuild({"a": name}, allowed=allowed)["a"](2) == 3
    for refused in ("allowed_package_too:f", "allowed_package:Popen", "os:system"):
        with pytest.raises(ConfigError, match="by --allow"):
            rebuild({"a": refused}, allowed=["allowed_package"])
    for module in ("allowed_package", "allowed_package.below"):
        sys.modules.pop(module, None)


def test_what_is_neither_a_module_nor_a_file_cannot_be_allowed():
    with pytest.raises(ConfigError, match=r"^--allow all!: name a module or a file, such as \./my"):
        allowed_code(["all!"])
    with pytest.raises(ConfigError, match=r"nowhere\.py is not there"):
        allowed_code(["./nowhere.py"])
