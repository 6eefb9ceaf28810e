"""A model is swapped as a loss is, and ``num_classes`` follows other data unless it is typed."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from opsin.config import catalogue
from opsin.config.classes import classes_of_data
from opsin.config.identity import identity
from opsin.config.tree import override, parse_all
from opsin.data import folder
from opsin.data.images import read_image
from opsin.data.sources import synthetic
from opsin.data.validation import with_validation
from opsin.errors import ConfigError
from opsin.losses.likelihoods import Bernoulli
from opsin.models.classification.lenet import LeNet5
from opsin.models.classification.resnet import ResNet18, ResNet20, ResNet34
from opsin.models.classification.vit import ViTS, ViTTi
from opsin.models.segmentation.unet import UNet
from opsin.train.experiment import Data, Experiment
from opsin.train.tasks.classify import Classify
from opsin.train.tasks.segment import Segment

SEVEN = Experiment(task=Classify(model=LeNet5(num_classes=7)))


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("models.classification.resnet:ResNet18", ResNet18(num_classes=7)),  # a partial of a class
        ("models.classification.resnet:ResNet20", ResNet20(num_classes=7)),  # of a function
        ("models.classification.vit:ViTS", ViTS(num_classes=7)),
        ("models.classification.lenet:LeNet5", LeNet5(num_classes=7)),  # a class
        ("models.segmentation.unet:UNet", UNet(num_classes=7)),
    ],
)
def test_a_class_is_made_in_the_place_of_a_model(name: str, made: object):
    changed = override(SEVEN, parse_all([f"task.model={name}"]))
    assert changed.task.model == made
    assert identity(changed) == identity(Experiment(task=Classify(model=made)))  # as in a file


def test_its_fields_are_reached_behind_it():
    words = ["task.model=models.classification.vit:ViTTi", "task.model.depth=2"]
    assert override(SEVEN, parse_all(words)).task.model == ViTTi(num_classes=7, depth=2)


def test_only_num_classes_follows():
    wide = Experiment(task=Classify(model=ResNet18(num_classes=7, width=16)))
    changed = override(wide, {"task.model": ResNet34})
    assert changed.task.model == ResNet34(num_classes=7)
    assert changed.task.model.width == ResNet34().width != 16


def test_every_object_is_made_so():
    vae = catalogue.find("mnist_vae").config()
    assert override(vae, {"task.likelihood": Bernoulli}).task.likelihood == Bernoulli()


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("task.model", "losses.classification:focal_loss", "task.model takes"),
        ("task.model", "train.tasks.classify:Classify", "cannot be made of its defaults"),
        ("task.model", "models.segmentation.deeplab:DeepLabv3", "cannot be made of its defaults"),
        ("task.model", "models.classification.vit:ViT", "missing 4 required"),
        ("task.model", "models.classification.resnet:cifar_resnet", "missing 1 required"),
        ("task.model", "losses.likelihoods:Bernoulli", "task.model takes"),
        ("task.model", "builtins:dict", "task.model takes"),
        ("seed", "models.classification.lenet:LeNet5", "seed takes int"),
    ],
)
def test_what_is_no_model_is_told(path: str, value: str, complaint: str):
    with pytest.raises(ConfigError, match=complaint) as told:
        override(SEVEN, parse_all([f"{path}={value}"]))
    assert "\n" not in str(told.value)


# ``num_classes``.

FIVE = partial(synthetic, n=16, size=8, classes=5)


@pytest.mark.parametrize(
    ("overrides", "followed"),
    [
        ({"data.source": FIVE}, {"task.model.num_classes": 5}),
        ({"data": Data(source=FIVE)}, {"task.model.num_classes": 5}),
        ({"data.source": FIVE, "task.model": ResNet18}, {"task.model.num_classes": 5}),
        ({"data.source": FIVE, "task.model.num_classes": 9}, {}),  # typed
        ({"data.source": "synthetic", "task.model.num_classes": 7}, {}),
        ({"data.batch": 8}, {}),  # the experiment's own data
        ({}, {}),
        ({"data.source": partial(synthetic, n=16, classes=7)}, {}),  # it has as many
    ],
)
def test_it_follows_other_data_unless_it_is_typed(overrides: dict, followed: dict):
    assert classes_of_data(SEVEN, overrides) == followed


def test_a_run_of_it_is_that_of_the_number_typed():
    typed = {"data.source": FIVE, "task.model.num_classes": 5}
    found = {"data.source": FIVE} | classes_of_data(SEVEN, {"data.source": FIVE})
    assert identity(override(SEVEN, found)) == identity(override(SEVEN, typed))


@pytest.mark.parametrize(
    ("name", "changes", "paths"),
    [
        ("mnist_cgan", {}, {"task.generator.num_classes", "task.discriminator.num_classes"}),
        ("mnist_dcgan_losses", {}, set()),  # without classes
        ("mnist_ddpm", {}, {"task.model.num_classes"}),
        ("mnist_ddpm", {"task.model.num_classes": None}, set()),
        ("mnist_vae", {}, set()),
        ("shapes_unet", {}, {"task.model.num_classes"}),
        ("isbi_pix2pix", {}, set()),  # channels of an image
        ("cifar10_simclr", {}, set()),
    ],
)
def test_every_task_says_which_networks_have_classes(name: str, changes: dict, paths: set):
    experiment = override(catalogue.find(name).config(), changes)
    assert classes_of_data(experiment, {"data.source": FIVE}).keys() == paths


def test_one_logit_stays_one():
    binary = Experiment(task=Segment(model=UNet(num_classes=1)))
    assert classes_of_data(binary, {"data.source": FIVE}) == {}


def test_data_without_classes_ask_for_nothing():
    def nameless(split: str):
        from dataclasses import replace

        return replace(FIVE(split), class_names=())

    assert classes_of_data(SEVEN, {"data.source": nameless}) == {}


def test_a_folder_is_not_read_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """But for the first and the last image, by which its examples are checked."""
    for index in range(30):
        path = tmp_path / "train" / f"class {index % 3}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    read = []
    monkeypatch.setattr(folder, "read_image", lambda *x: read.append(x) or read_image(*x))
    for source in (f"folder:{tmp_path}", partial(with_validation, source=f"folder:{tmp_path}")):
        assert classes_of_data(SEVEN, {"data.source": source}) == {"task.model.num_classes": 3}
        assert len(read) <= 4
        read.clear()


def test_the_command_line_says_what_it_made(opsin: Callable, untrained: list):
    said = opsin("run", "tiny", "--quiet", "task.model=models.classification.lenet:LeNet5")
    assert said.code == 0
    assert said.err.startswith("task.model is LeNet5(num_classes=4)\n")
    assert said.err.count("\n") == 1
    assert untrained[-1].task.model == LeNet5(num_classes=4)
    said = opsin("run", "tiny", "--quiet", "data.source=digits", "data.mean=(0.5,)")
    assert (said.code, said.err) == (0, "task.model.num_classes=10, as the data have\n")
    assert untrained[-1].task.model.num_classes == 10
    assert opsin("sweep", "tiny", "--quiet", "--seeds", "1", "data.source=digits").code == 0
    assert {x.task.model.num_classes for x in untrained} == {4, 10}
    assert {x.task.model.num_classes for x in untrained[2:]} == {10}
