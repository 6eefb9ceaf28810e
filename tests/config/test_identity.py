"""An id is made of what changes a trained number; files, defaults and measurements are free.

``golden/ids.json`` holds ten ids and ``golden/defaults.json`` the defaults of all that an
experiment may hold of this house. Where they change, so do runs: if that is meant, record them with

    python -m tests.config.test_identity
"""

import ast
import dataclasses
import importlib
import inspect
import json
import sys
import textwrap
import types
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import pytest

from opsin.analysis.diffusion import Inpainting, VariationalBound
from opsin.analysis.ensembles import Ensemble
from opsin.analysis.generators import SampleQuality
from opsin.analysis.likelihoods import ImportanceNLL
from opsin.analysis.views import AveragedViews, Recoded
from opsin.commands.evaluating import known_measurements
from opsin.config import catalogue, names, shelves
from opsin.config.identity import defaults, essence, identity
from opsin.config.shelves import SHELVES
from opsin.config.tree import children, override, paths, rebuild, resolve
from opsin.errors import ConfigError
from opsin.experiments.extractors import LENET
from opsin.losses.classification import focal_loss
from opsin.models.classification.lenet import LeNet5
from opsin.train.experiment import Experiment
from opsin.train.extractor import Extractor
from opsin.train.tasks import (
    adversarial,
    autoencode,
    classify,
    contrast,
    diffuse,
    quantize,
    segment,
    translate,
    variational,
)

GOLDEN = Path(__file__).parent / "golden"
AGAIN = "if this is meant, record it again: python -m tests.config.test_identity"
TEN = (
    "camvid_models",
    "cifar10_simclr",
    "digits_lenet",
    "mnist_cgan",
    "mnist_ddpm",
    "mnist_lenet",
    "mnist_ncsn",
    "mnist_vae",
    "mnist_vqvae",
    "shapes_unet",
)


def every_arm() -> Iterator[Experiment]:
    for name in sorted(catalogue.experiments()):
        module = catalogue.find(name)
        for arm in catalogue.arms(module):
            yield override(module.config(), arm.overrides)


def ids() -> dict[str, str]:
    return {name: identity(catalogue.find(name).config()) for name in TEN}


def offered() -> Iterator[Any]:
    """What ``opsin list`` lists, and every public dataclass that a config may hold."""
    yield from known_measurements().values()
    for kind in SHELVES:
        for name in shelves.found(kind):
            if (thing := names.named(name)) is not name:  # else a form, such as tfds:NAME
                yield thing
    for file in names.house_files():
        module = ".".join(file.relative_to(names.HOUSE).with_suffix("").parts)
        if not any(f"{module}:".startswith(x) or x.startswith(f"{module}:") for x in names.HELD):
            continue
        for name, thing in vars(importlib.import_module(names.OWN + module)).items():
            held = f"{module}:{name}".startswith(names.HELD) and name not in NOT_IN_A_CONFIG
            here = getattr(thing, "__module__", None) == names.OWN + module
            if here and held and isinstance(thing, type) and dataclasses.is_dataclass(thing):
                yield thing


def all_defaults() -> dict[str, Any]:
    """Name → its defaults, of what is offered, and of all that it and the recipes reach."""
    recorded: dict[str, Any] = {}

    def walk(node: Any) -> None:
        owner = node.func if isinstance(node, partial) else node
        if dataclasses.is_dataclass(node) and not isinstance(node, type):
            owner = type(node)
        if isinstance(owner, type | types.FunctionType) and names.in_house(owner.__module__):
            name = names.lasting_name(owner)
            if name not in recorded:
                linens = ("parent", "name") if _is_network(owner) else ()
                nameable = {k: v for k, v in defaults(owner).items() if k not in linens}
                recorded[name] = {option: _recorded(value) for option, value in nameable.items()}
                for value in nameable.values():
                    walk(value)
        for value in children(node).values():
            walk(value)

    for thing in (*every_arm(), *offered()):
        walk(thing)
    return {name: recorded[name] for name in sorted(recorded) if recorded[name]}


def _recorded(value: Any) -> Any:
    """The essence; of what no config can hold, such as an initialiser that linen made, its kind."""
    try:
        return essence(value)
    except ConfigError:
        return {"unnamed": getattr(value, "__qualname__", type(value).__qualname__)}


def _is_network(owner: Any) -> bool:
    return isinstance(owner, type) and issubclass(owner, nn.Module)


# What is recorded.


def test_an_id_evaluates_no_type_hints(monkeypatch: pytest.MonkeyPatch):
    """It asks each option of each node, and to evaluate as many hints took most of its time."""
    experiment = catalogue.find("mnist_vae").config()
    expected = identity(experiment)

    def evaluated(*arguments: Any) -> Any:
        raise AssertionError("a hint was evaluated")

    monkeypatch.setattr("opsin.config.hints.evaluated", evaluated)
    assert identity(experiment) == expected
    assert "optimizer.learning_rate" in paths(experiment)
    with pytest.raises(AssertionError, match="a hint was evaluated"):
        override(experiment, {"seed": 1})


def test_ten_ids_stay():
    assert ids() == json.loads((GOLDEN / "ids.json").read_text()), AGAIN


@pytest.fixture(scope="module")
def here() -> dict[str, Any]:
    return all_defaults()


def test_no_default_changes_unseen(here):
    """An id leaves defaults out: whoever changes one changes every run that relied on it."""
    recorded = json.loads((GOLDEN / "defaults.json").read_text())
    different = {
        f"{name}.{option}"
        for name in recorded.keys() | here.keys()
        for option in recorded.get(name, {}).keys() | here.get(name, {}).keys()
        if recorded.get(name, {}).get(option, "-") != here.get(name, {}).get(option, "-")
    }
    assert not different, f"defaults of {', '.join(sorted(different))} changed: {AGAIN}"


def test_the_defaults_of_all_that_is_offered_are_recorded():
    """Whether or not a recipe uses it."""
    recorded = json.loads((GOLDEN / "defaults.json").read_text())
    assert len(recorded) > 200
    missing = {
        f"{names.lasting_name(owner)}.{option}"
        for thing in offered()
        for owner in [thing.func if isinstance(thing, partial) else thing]
        if isinstance(owner, type | types.FunctionType)
        for option in defaults(owner)
        if option not in recorded.get(names.lasting_name(owner), {})
        if not (_is_network(owner) and option in ("parent", "name"))
    }
    assert missing == set()
    assert recorded["ConvNeXt"]["stochastic_depth"] == 0.0
    assert {"huber_loss", "lion", "cutout", "WideResNet", "DiscretizedLogistic"} <= recorded.keys()
    assert "name" in recorded["SampledBy"]
    assert {"name", "parent"} & recorded["ResNet"].keys() == set()


# Names.

FRAMEWORK = (
    "commands",
    "config",
    "pages",
    "planning",
    "report",
)  # no config holds what is in these rooms

NOT_IN_A_CONFIG = {
    "Labels": "of masks, and a picture",
    "Likelihood": "a protocol in losses, a result in ops",
    "State": "arrays on the way: of a sampler, of training",
    "ResidualBlock": "a part that its network makes, in two files",
    "config": "of each experiment",
    "sweep": "of each experiment",
    "confusion_matrix": "counts, and their picture",
    "ema_update": "called by a step, in two rooms",
    "check_labels": "called by tasks",
    "square": "arithmetic on the way",
    "save": "writes a picture, or a checkpoint",
    "draw": "draws a picture, or all of an evaluation",
    "timm": "how its weights are named, in a file each network",
    "torchvision": "likewise",
    "read": "called by commands, for each kind of file",
    "scale": "of an augmentation, and what an importer asks of a network",
}


def test_a_public_name_is_that_of_one_thing(here):
    found: Counter[str] = Counter()
    for file in names.house_files():
        if file.relative_to(names.HOUSE).parts[0] in FRAMEWORK:
            continue
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                found[node.name] += 1
    twice = {name for name, count in found.items() if count > 1}
    assert twice == NOT_IN_A_CONFIG.keys(), "rename one, unless no config can hold it"
    assert not twice & here.keys()


def test_objects_of_others_go_by_library_and_of_a_user_by_file(tmp_path, monkeypatch):
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "my_losses_of_identity.py").write_text("def focal_loss(): ...\n")
    monkeypatch.syspath_prepend(tmp_path / "lab")
    own = names.named("my_losses_of_identity:focal_loss")
    assert names.lasting_name(own) == "my_losses_of_identity:focal_loss"
    assert names.lasting_name(focal_loss) == "focal_loss"
    assert names.lasting_name(jnp.bfloat16) == "jax:bfloat16"
    assert names.lasting_name(jnp.tanh) == "jax:tanh"
    assert names.lasting_name(nn.Dense) == "flax:Dense"
    assert names.lasting_name(dataclasses.replace) == "dataclasses:replace"
    assert identity("focal_loss") != identity(focal_loss)  # nor is a text taken for a function


HOME = """
import dataclasses

@dataclasses.dataclass(frozen=True)
class Moving:
    width: int = 8
    pads: tuple[int, ...] = (1,)

def moving_loss(x, *, scale=1.0):
    return scale * x
"""
LATER = HOME.replace("width: int = 8", "width: int = 8\n    new: int = 3").replace(
    "scale=1.0", "scale=1.0, fresh=None"
)


@pytest.fixture
def moved(tmp_path, monkeypatch):
    """A tree of objects in ``old_room``, the config of then, and the tree after the move."""
    monkeypatch.setattr(names, "HOUSE", tmp_path)
    monkeypatch.setattr(names, "OWN", "")
    monkeypatch.setattr(names, "HELD", ("room_of_identity.",))
    monkeypatch.syspath_prepend(tmp_path)
    for room in ("room_of_identity", "room_of_identity/deep"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text("")
    first = tmp_path / "room_of_identity" / "first.py"
    second = tmp_path / "room_of_identity" / "deep" / "second.py"

    def tree(module: str) -> dict[str, Any]:
        kind, loss = (names.named(f"{module}:{name}") for name in ("Moving", "moving_loss"))
        return {"kind": kind, "one": kind(width=4), "loss": partial(loss, scale=2.0), "plain": loss}

    first.write_text(HOME)
    before = tree("room_of_identity.first")
    then = resolve(before), identity(before)
    first.unlink()
    second.write_text(LATER)
    del sys.modules["room_of_identity.first"]
    yield *then, tree("room_of_identity.deep.second")
    for name in [name for name in sys.modules if name.startswith("room_of_identity")]:
        del sys.modules[name]


def test_a_move_and_a_new_option_leave_the_id(moved):
    _, before, tree = moved
    assert identity(tree) == before
    other = dataclasses.replace(tree["one"], new=4)
    assert identity(tree | {"one": other}) != before
    assert identity(tree | {"loss": partial(tree["loss"], fresh=0)}) != before


def test_a_config_of_then_is_rebuilt_after_the_move(moved):
    resolved, before, tree = moved
    again = rebuild(json.loads(json.dumps(resolved)))
    assert again["one"] == tree["one"]
    assert again["kind"] is tree["kind"]
    assert again["loss"](3.0) == 6.0
    assert essence(again) == essence(tree)
    assert identity(again) == before
    with pytest.raises(ConfigError, match=r"Moving: it takes no 'height' any more"):
        rebuild({"type": "room_of_identity.first:Moving", "height": 3})
    older = {"type": "room_of_identity.first:Moving", "axis_name": None}
    assert rebuild(older) == type(tree["one"])()
    assert rebuild("tfds:Moving") == "tfds:Moving"  # of no room
    (names.HOUSE / "room_of_identity" / "third.py").write_text(HOME)  # which of the two?
    with pytest.raises(ConfigError, match=r"^room_of_identity\.first:Moving is not there any more"):
        rebuild("room_of_identity.first:Moving")


# Options.


def test_what_is_empty_is_told_from_a_default():
    @dataclasses.dataclass(frozen=True)
    class Options:
        names: tuple[str, ...] = ("a",)
        table: dict[str, int] = dataclasses.field(default_factory=lambda: {"a": 1})

    Options.__qualname__ = "Options"
    assert essence(Options()) == {"type": "Options"}
    assert essence(Options(("a",), {"a": 1})) == {"type": "Options"}
    assert essence(Options(())) == {"type": "Options", "names": []}
    assert essence(Options(table={})) == {"type": "Options", "table": {}}


def test_a_partial_with_defaults_is_the_bare_function():
    assert essence(partial(focal_loss, gamma=2.0)) == essence(focal_loss) == {"call": "focal_loss"}
    assert essence(partial(LeNet5, num_classes=10)) == essence(LeNet5)
    assert essence(partial(LeNet5, num_classes=3)) == {"call": "LeNet5", "num_classes": 3}
    assert essence(partial(focal_loss, gamma=2)) != essence(focal_loss)  # an integer is another


TASKS = (
    adversarial.Adversarial,
    autoencode.Autoencode,
    classify.Classify,
    contrast.Contrast,
    diffuse.Diffuse,
    quantize.Quantize,
    segment.Segment,
    translate.Translate,
    variational.Variational,
)
TRAINING = {"init", "loss", "players"}


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)
def test_training_reads_no_field_that_only_measures(task):
    """Neither by itself nor by the methods that it calls."""
    apart = {f.name for f in dataclasses.fields(task) if not f.metadata.get("identity", True)}
    tree = ast.parse(textwrap.dedent(inspect.getsource(task)))
    reads = {
        method.name: {
            node.attr
            for node in ast.walk(method)
            if isinstance(node, ast.Attribute)
            if isinstance(node.value, ast.Name) and node.value.id == "self"
        }
        for method in ast.walk(tree)
        if isinstance(method, ast.FunctionDef)
    }
    reached = TRAINING & reads.keys()
    assert len(reached) >= 2
    while more := {name for method in reached for name in reads[method] & reads.keys()} - reached:
        reached |= more
    assert not apart & {name for method in reached for name in reads[method]}


BATCHED = (
    VariationalBound(),
    Inpainting(LENET),
    ImportanceNLL(),
    AveragedViews(),
    Recoded(),
    Ensemble(("a",)),
    SampleQuality(LENET),
)


@pytest.mark.parametrize("measurement", BATCHED, ids=lambda each: type(each).__name__)
def test_no_size_of_a_batch_tells_measurements_apart(measurement):
    """What is in memory together is a matter of the machine, also that of an extractor."""
    sizes = [path for path in paths(measurement) if path.rpartition(".")[2] == "batch"]
    assert sizes
    other = override(measurement, dict.fromkeys(sizes, 3))
    assert other != measurement
    assert identity(other) == identity(measurement)


def test_where_a_file_lies_tells_extractors_apart_only_if_its_sha256_is_not_known():
    elsewhere, unknown = ({**vars(LENET), "path": "b"} | x for x in ({}, {"sha256": None}))
    assert identity(Extractor(**elsewhere)) == identity(LENET)
    assert identity(Extractor(**unknown)) != identity(Extractor(**(unknown | {"path": "c"})))
    assert identity(dataclasses.replace(LENET, sha256="0" * 64)) != identity(LENET)


def record() -> None:
    """Writes the golden files."""
    GOLDEN.mkdir(exist_ok=True)
    for name, content in (("ids", ids()), ("defaults", all_defaults())):
        (GOLDEN / f"{name}.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    record()
