"""Configs of earlier code: three that it wrote itself, and each thing that has changed since."""

import json
from pathlib import Path

import pytest

from opsin.config import catalogue
from opsin.config.earlier import modernized
from opsin.config.identity import identity
from opsin.config.tree import override, rebuild, resolve
from opsin.errors import ConfigError

OLD = Path(__file__).parent / "old"
"""``config.json`` of three runs, written by the code of commit ebeb425."""


def present(name, arm):
    """The experiment of an arm as its recipe stands now."""
    module = catalogue.find(name)
    if arm is None:
        return module.config()
    (found,) = [each for each in module.sweep() if each.name == arm]
    return override(module.config(), found.overrides)


def old(name):
    return json.loads((OLD / f"{name}.json").read_text())


@pytest.mark.parametrize(
    ("name", "arm"),
    [
        ("digits_lenet", None),
        ("mnist_ddpm", None),
        ("cifar10_simclr_finetune", "simclr, 1 %"),
    ],
)
def test_a_run_of_earlier_code_is_the_run_of_its_arm_now(name, arm):
    now = present(name, arm)
    assert identity(rebuild(old(name))) == identity(now)
    longer = override(now, {"loop.duration": "1 epoch"})
    assert identity(longer) != identity(now)  # else any two would be the same


def test_these_files_hold_every_field_that_is_read_in_another_way_now():
    finetune, ddpm = old("cifar10_simclr_finetune"), old("mnist_ddpm")
    assert finetune["task"]["weights"]["path"]
    assert ddpm["task"]["weights"] is None
    assert len(ddpm["task"]["final"]) == 2
    assert finetune["task"]["model"]["norm"]["axis_name"] is None


@pytest.mark.parametrize(("task", "part"), [("Classify", "backbone"), ("Diffuse", "")])
def test_weights_of_a_task_become_those_of_the_experiment(task, part):
    kind = f"train.tasks.{task.lower()}:{task}"
    weights = {"type": "train.weights:Weights", "path": "a.safetensors", "sha256": "ab"}
    earlier = {"type": "E", "task": {"type": kind, "weights": weights, "l2": 0.1}, "seed": 1}
    assert modernized(earlier) == {
        "type": "E",
        "task": {"type": kind, "l2": 0.1},
        "seed": 1,
        "weights": {**weights, "part": part},
    }
    earlier["task"]["weights"] = None
    assert modernized(earlier) == {"type": "E", "task": {"type": kind, "l2": 0.1}, "seed": 1}


@pytest.mark.parametrize(("name", "arm"), [("cifar10_simclr_finetune", "simclr, 1 %")])
def test_a_config_of_the_present_code_stays_as_it_is(name, arm):
    resolved = resolve(present(name, arm))
    assert modernized(resolved) == resolved
    assert resolved["weights"]["part"] == "backbone"


def test_an_axis_that_was_set_is_refused():
    """It changed numbers: only the absence of one is left out."""
    config = resolve(present("digits_lenet", None))
    config["task"]["model"]["axis_name"] = "data"
    with pytest.raises(ConfigError, match="LeNet5: it takes no 'axis_name'"):
        rebuild(config)
