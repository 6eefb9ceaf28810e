"""``opsin list --models …``: each name can be typed, and nothing of its kind is missing."""

import ast
import inspect
import subprocess
import sys
from functools import partial

import flax.linen as nn
import pytest

from opsin.commands.evaluating import known_measurements
from opsin.commands.listing import listing
from opsin.config.shelves import HOUSE, SHELVES, found
from opsin.config.tree import named
from opsin.data.sources import open_source
from opsin.losses.adversarial import AdversarialLoss


@pytest.mark.parametrize("kind", SHELVES)
def test_every_name_is_there_and_says_what_it_is(kind):
    names = found(kind)
    assert len(names) >= 2
    assert {name: says for name, says in names.items() if not says} == {}
    if kind in ("data", "measurements"):
        return
    for name in names:
        assert named(name) is not name, name


def test_models_are_networks_and_no_variant_of_one_is_missing():
    names = found("models")
    for name in names:
        kind = named(name)
        while isinstance(kind, partial):
            kind = kind.func
        made = inspect.get_annotations(kind, eval_str=True).get("return", kind)
        assert issubclass(made, nn.Module), name
    here = {name.partition(":")[2] for name in names}
    assert {"ResNet18", "LeNet5", "ViT", "UNet", "DiffusionUNet", "VAE", "SimCLR"} <= here
    parts = {"BasicBlock", "BottleneckBlock", "ResNetBackbone", "ResNetOptions", "ConvEncoder"}
    assert here & parts == set()
    for path in HOUSE.glob("models/*/*.py"):
        variants = {
            node.targets[0].id
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and isinstance(node.value, ast.Call)
            and ast.unparse(node.value.func) == "partial"
        }
        assert variants <= here


def test_losses_are_functions_or_pairs_of_them():
    names = found("losses")
    for name in names:
        assert inspect.isfunction(named(name)) or isinstance(named(name), AdversarialLoss), name
        assert not name.partition(":")[2].startswith("_")
    assert "losses.classification:focal_loss" in names
    assert "losses.adversarial:HINGE" in names


def test_data_open(tmp_path):
    names = found("data")
    assert list(names)[:6] == [
        *("digits", "synthetic", "shapes", "tfds:NAME", "folder:PATH", "masks:PATH")
    ]
    for name in ("digits", "synthetic", "shapes", "data.shapes:cells"):
        assert len(open_source(named(name), "test").records) > 0


def test_augmentations_take_a_key_and_a_batch():
    names = found("augmentations")
    for name in names:
        assert list(inspect.signature(named(name)).parameters)[:2] == ["key", "batch"]
    assert {"data.geometry:random_crop", "data.mixing:mixup"} <= names.keys()


def test_measurements_are_those_that_evaluate_knows():
    assert found("measurements").keys() == known_measurements().keys()


def test_the_command_prints_them_under_how_they_are_typed(capsys):
    assert listing(optimizers=True, schedules=True) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "optimizers: optimizer.method=NAME"
    assert lines[1].split()[0] == "train.methods:sgd"
    assert "schedules: optimizer.schedule=NAME" in lines


def test_nothing_is_imported_to_list_them():
    code = (
        "import sys; from opsin.commands.listing import listing; "
        "listing(models=True, losses=True, data=True, measurements=True); "
        "print(sorted({'jax', 'flax', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
