"""Prediction: any image, whole and in its own size, by the run as it was trained."""

import csv
import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from opsin.commands.prediction import Predictor, load, predict, segment
from opsin.commands.runs import Options, RunError, execute
from opsin.commands.trained import open_run
from opsin.config.tree import override, resolve
from opsin.data.shapes import shapes
from opsin.data.sources import digits, synthetic
from opsin.models.classification.lenet import LeNet5
from opsin.models.segmentation.unet import UNet, valid_margin
from opsin.pictures.palette import AREAS
from opsin.train.checkpoint import CheckpointError
from opsin.train.experiment import Data, Experiment, Loop
from opsin.train.methods import adamw
from opsin.train.optim import Optimizer
from opsin.train.tasks.classify import Classify
from opsin.train.tasks.segment import Segment
from tests.commands.tiny import Small


def segmentation(**task) -> Experiment:
    return Experiment(
        task=Segment(**{"model": UNet(num_classes=4, width=8, depth=2, padding="same"), **task}),
        data=Data(source=partial(shapes, n=64, size=32), batch=16, eval_batch=32, mean=(0.5,)),
        optimizer=Optimizer(method=adamw, learning_rate=3e-3),
        loop=Loop(
            duration="30 epochs",
            evaluate_every="30 epochs",
            checkpoint_every="30 epochs",
            previews=0,
            ema_decay=0.9,
        ),
    )


def run(experiment: Experiment, directory: Path, **changes: str) -> Path:
    short = {f"loop.{name}": value for name, value in changes.items()}
    experiment = override(experiment, {"parallel.data": 1, **short})
    return execute("trained", "arm", experiment, Options(directory, progress=False)).directory


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> Path:
    """A run that knows shapes."""
    return run(segmentation(), tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def segmented(tmp_path_factory) -> Path:
    """A run that has learned nothing: its masks are as good as others to be cut into tiles."""
    small = segmentation(model=UNet(num_classes=4, width=4, depth=1, padding="same"))
    return run(small, tmp_path_factory.mktemp("runs"), duration="0 steps")


@pytest.fixture(scope="module")
def segmenter(segmented) -> Predictor:
    return load(segmented)


@pytest.fixture(scope="module")
def classified(tmp_path_factory) -> Path:
    """A run that knows some digits."""
    experiment = Experiment(
        task=Classify(model=Small(num_classes=10)),
        data=Data(source="digits", batch=64),
        optimizer=Optimizer(method=adamw, learning_rate=1e-2),
        loop=Loop(
            duration="5 epochs",
            evaluate_every="5 epochs",
            checkpoint_every="5 epochs",
            previews=0,
        ),
    )
    return run(experiment, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def classifier(classified) -> Predictor:
    return load(classified)


@pytest.mark.proofs
def test_masks_have_the_size_of_their_image_and_are_those_of_evaluation(learned, tmp_path):
    examples = shapes("test", n=64, size=32)
    first, second = examples.records[0], examples.records[1]
    Image.fromarray(first["image"]).save(tmp_path / "one.png")
    # Two images side by side: larger than what the network was trained on.
    wide = np.concatenate([first["image"], second["image"]], axis=1)
    Image.fromarray(wide).save(tmp_path / "two.png")
    paths = [tmp_path / "one.png", tmp_path / "two.png"]
    lines = list(predict(load(learned), paths, tmp_path / "out"))
    assert len(lines) == 2
    assert lines[0].startswith(str(paths[0]))
    mask = np.asarray(Image.open(tmp_path / "out" / "one_mask.png"))
    assert mask.shape == (32, 32)
    direct = load(learned).probabilities(first["image"][None])[0].argmax(-1)
    np.testing.assert_array_equal(mask, direct)
    assert len(np.unique(mask)) > 1  # it learned something: the rest means something
    both = Image.open(tmp_path / "out" / "two_mask.png")
    assert both.mode == "P"
    colour = both.convert("RGB").getpixel((0, 0))
    assert colour == tuple(bytes.fromhex(AREAS[np.asarray(both)[0, 0]][1:]))
    assert np.asarray(both).shape == (32, 64)
    truth = np.concatenate([first["mask"], second["mask"]], axis=1)
    background = (truth == 0).mean()
    assert (np.asarray(both) == truth).mean() > max(background, 0.8)
    blended = np.asarray(Image.open(tmp_path / "out" / "two_blended.png"))
    assert blended.shape == (32, 64, 3)
    tint = np.array(bytearray.fromhex(AREAS[np.asarray(both)[5, 9]][1:]), float)
    grey = wide[5, 9] @ (0.299, 0.587, 0.114)
    np.testing.assert_allclose(blended[5, 9], (grey + tint) / 2, atol=1)
    assert (tmp_path / "out" / "two_legend.png").stat().st_size > 1000


def test_an_image_of_the_training_size_is_evaluated_whole(segmenter):
    image = shapes("test", n=4, size=32).records[2]["image"]
    expected = segmenter.probabilities(image[None])[0].argmax(-1)
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(segment(segmenter, Image.fromarray(image)), expected)


@pytest.mark.parametrize("size", [(1, 1), (5, 90), (33, 32)])
def test_any_size_will_do(segmenter, size):
    image = Image.new("RGB", size[::-1])
    assert segment(segmenter, image).shape == size


def test_an_image_is_resized_as_the_training_images_were(segmenter):
    large = Image.fromarray(shapes("test", n=4, size=96).records[2]["image"][:64])
    mask = segment(replace(segmenter, resized=True), large)
    assert mask.shape == (64, 96)
    seen = large.resize((32, 32), Image.Resampling.BILINEAR)
    expected = np.kron(segment(segmenter, seen), np.ones((2, 3), np.uint8))
    np.testing.assert_array_equal(mask, expected)


def test_a_network_without_padding_labels_to_the_border(tmp_path):
    model = UNet(num_classes=4, width=4, depth=1)
    size, margin = 20, valid_margin(1)
    small = {"data.source": partial(shapes, n=8, size=size), "loop.duration": "0 steps"}
    experiment = override(segmentation(model=model, margin=margin // 2, mirror=margin // 2), small)
    trained = load(run(experiment, tmp_path))
    assert (trained.tile, trained.result[:2]) == ((size + margin,) * 2, (size, size))
    image = np.random.default_rng(0).integers(0, 256, (41, 27, 3), np.uint8)
    mask = segment(trained, Image.fromarray(image))
    # One tile of the mirrored image gives the same: no seam, whatever the size.
    padded = np.pad(image, ((8, 15), (8, 29), (0, 0)), "reflect")
    whole = trained.probabilities(padded[None, :64, :64])[0].argmax(-1)
    assert len(np.unique(mask)) > 1
    np.testing.assert_array_equal(mask, whole[:41, :27])


def read_labels(directory: Path) -> list[dict[str, str]]:
    with (directory / "labels.csv").open() as file:
        return list(csv.DictReader(file))


def test_classes_are_those_of_evaluation(classifier, tmp_path):
    examples = digits("test")
    paths = []
    for index in range(4):
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(examples.records[index]["image"][..., 0]).save(paths[-1])
    lines = list(predict(classifier, paths, tmp_path / "out"))
    rows = read_labels(tmp_path / "out")
    right = [int(row["label"]) == examples.records[i]["label"] for i, row in enumerate(rows)]
    assert sum(right) >= 3
    assert [row["file"] for row in rows] == [str(path) for path in paths]
    assert all(0 < float(row["probability"]) <= 1 for row in rows)
    assert all(row["class"] in line for row, line in zip(rows, lines, strict=True))
    assert len(list((tmp_path / "out").glob("*_label.png"))) == 4


def saved(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


def test_every_mode_of_one_picture_gets_the_same_label(classifier, tmp_path):
    grey = digits("test").records[0]["image"][..., 0]
    image = Image.fromarray(grey)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = image.transpose(Image.Transpose.ROTATE_90)
    paths = [
        saved(image, tmp_path / "grey.png"),
        saved(image.convert("RGB"), tmp_path / "rgb.png"),
        saved(image.convert("P"), tmp_path / "palette.png"),
        saved(image.convert("LA"), tmp_path / "alpha.png"),
        saved(image.convert("RGBA"), tmp_path / "rgba.png"),
        saved(Image.fromarray(grey.astype(np.uint16) * 257), tmp_path / "deep.png"),
        saved(turned, tmp_path / "turned.png", exif=exif),
    ]
    list(predict(classifier, paths, tmp_path / "out"))
    rows = read_labels(tmp_path / "out")
    assert len({(row["label"], row["probability"]) for row in rows}) == 1


def test_two_images_of_one_name_do_not_overwrite_each_other(classifier, tmp_path):
    paths = [tmp_path / "a" / "x.png", tmp_path / "b" / "x.png", tmp_path / "b" / "x-2.png"]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        saved(Image.new("L", (8, 8)), path)
    list(predict(classifier, paths, tmp_path / "out"))
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "labels.csv", "x_label.png", "x-2_label.png", "x-2-2_label.png",
    }  # fmt: skip


def test_a_name_without_room_for_more_is_cut(classifier, tmp_path):
    image = Image.fromarray(np.zeros((8, 8), np.uint8))
    paths = [tmp_path / f"{'é' * 125}{letter}.png" for letter in "ab"]  # 251 and 4 bytes
    for path in paths:
        image.save(path)
    assert len(list(predict(classifier, paths, tmp_path / "out"))) == 2
    written = {f"{'é' * 100}{more}_label.png" for more in ("", "-2")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"labels.csv", *written}


def test_what_is_no_run_is_one_line(classified, tmp_path):
    with pytest.raises(RunError, match="no directory of a run"):
        load(tmp_path)
    changed = tmp_path / "changed"
    shutil.copytree(classified, changed)
    config = json.loads((changed / "config.json").read_text())
    del config["task"]["l2"]  # as if the field had come later
    config["optimizer"]["method"]["call"] = "train.optimizers:adamw"  # and this had moved
    config["loop"]["checkpoint_every"] = "7 steps"
    (changed / "config.json").write_text(json.dumps(config))
    opened = open_run(changed).experiment
    assert (opened.task.l2, opened.optimizer.method.func) == (0.0, adamw)
    assert opened.loop.checkpoint_every == "7 steps"
    config["task"]["l2"] = 0.5
    (changed / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"task\.l2 is 0\.0 there and 0\.5 here"):
        load(changed)
    config["task"]["type"] = "train.tasks.classify:Klassify"
    (changed / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match=r"other code: .*Klassify"):
        load(changed)
    untrained = tmp_path / "untrained"
    untrained.mkdir()
    experiment = Experiment(task=Classify(model=LeNet5()), data=Data(source=synthetic))
    (untrained / "config.json").write_text(json.dumps(resolve(experiment)))
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load(untrained)
    assert not (untrained / "checkpoints").exists()  # looking leaves nothing behind
    assert jax.device_count() == 8  # a run of one device is asked on one
