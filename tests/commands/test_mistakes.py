"""One line, exit code 2, for every mistake that a person can make with data and configuration."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opsin.config.tree import override
from opsin.models.classification.lenet import LeNet5
from opsin.models.classification.vit import ViT
from opsin.train.host import capacity
from tests.commands import tiny


def folder_of_images(root: Path, classes: int = 2, count: int = 3) -> Path:
    for label in range(classes):
        directory = root / "train" / f"class{label}"
        directory.mkdir(parents=True)
        for index in range(count):
            pixels = np.full((8, 8, 3), 40 * label + index, np.uint8)
            Image.fromarray(pixels).save(directory / f"{index}.png")
    return root


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("run digits_lent", "there is no experiment 'digits_lent': did you mean 'digits_lenet'?"),
        ("sweep mnist_lenett", "did you mean 'mnist_lenet'?"),
        ("inspect mnist_lent", "did you mean 'mnist_lenet'?"),
        ("report mnist_lente", "did you mean 'mnist_lenet'?"),
        ("run tiny data.bach=64", "there is no 'data.bach' to override: did you mean 'data.batch'"),
        ("run tiny data.batch=big", "data.batch takes int from 1 to 1,000,000, not 'big'"),
        ("run tiny seed", "'seed' is not an override: write path=value, as in seed=1"),
        ("run tiny seed=1 --quiet seed=2", "seed is overridden twice"),
        ("run tiny task.loss_function=losses.classification:fokal", "has no 'fokal'"),
        (
            "run tiny task.loss_function=losses.classification:focal_los",
            "has no 'focal_los': did you mean 'focal_loss'?",
        ),
        (
            "run tiny task.model=not_installed:Small",
            "Python finds no module not_installed: put its folder on PYTHONPATH, or name its file, "
            "./not_installed.py",
        ),
        ("run tiny loop.duration=10", "loop.duration takes str, not 10; it is '3 steps'"),
        ("run tiny loop.duration=ten", "duration 'ten': write '20 epochs' or '500 steps'"),
        ("run tiny loop.log_every=1.5steps", "duration '1.5steps': write"),
        ("run tiny optimizer.warmup=0.5_steps", "duration '0.5 steps': steps are whole"),
        ("run tiny data.batch=20", "data.batch=20 does not divide by 8 devices: try data.batch=16"),
        ("run tiny parallel.data=64", "64 x 1 x 1 = 64 devices, there are 8: make its sizes"),
        ("run tiny parallel.fsdp=3", "parallel.fsdp=3 does not divide the 8 devices here"),
        ("run tiny loop.ema_decay=2", "loop.ema_decay takes float from 0 to below 1 | None, not 2"),
        ("run tiny loop.duration=٣_steps", "duration '٣ steps': write"),
        ("run tiny loop.strategy=xmap", "loop.strategy takes Literal['jit', 'pmap'], not 'xmap'"),
        ("run tiny data.source=tfds:mnist", 'no data set "mnist" in'),
        ("run tiny data.source=mnist", 'did you mean "tfds:mnist"?'),
        ("run tiny data.source=folder:nowhere", "no folder nowhere"),
        ("run tiny data.train_split=dev", 'has no split "dev"'),
        ("run tiny data.eval_splits.test=dev", 'has no split "dev"'),
        ("run tiny task.model.num_classes=5", "set task.model.num_classes=4"),
        ("report mnist_lenet extra", "unrecognized arguments: extra"),
        ("run tiny --profile 1:9", "--profile 1:9: this run takes the steps 1 to 3"),
        ("sweep tiny --index 2 --of 2", "--index 2 --of 2: the index counts from 0 to 1"),
        ("sweep tiny seed=4", "slow with seed 1 and slow with seed 0 are one and the same run"),
        ("report tiny", "tiny has no TABLE to report: opsin run tiny prints its numbers"),
        ("report mnist_lenet", "no run of the sweep has ended in runs/mnist_lenet"),
        ("report", "no tables in results/: run it in the house, or name --results"),
        ("report --check", "no tables in results/: run it in the house, or name --results"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(opsin, monkeypatch, tmp_path, arguments, complaint):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nowhere"))
    words = [word.replace("_steps", " steps") for word in arguments.split()]
    result = opsin(*words)
    assert result.code == 2
    assert complaint in result.complaint()
    assert not list(tmp_path.rglob("DONE"))


def test_a_run_that_does_not_fit_into_memory_is_told_before_it_begins(opsin, monkeypatch):
    for there, remedy in ((5000, "a smaller model"), (300, "a smaller data.eval_batch")):
        monkeypatch.setattr(capacity, "memory_of", lambda device, there=there: there)
        result = opsin("run", "tiny", "--quiet")
        assert result.code == 2
        assert f"that a device has: ask for {remedy}" in result.complaint()


@pytest.mark.parametrize(
    ("mistake", "complaint"),
    [
        ("empty", "has no images: add some, for classes in two or more sub-folders"),
        ("one class", 'needs two or more sub-folders of images, one a class; has only "class0"'),
        ("class without images", "class1 has no images"),
        ("truncated", "cannot read image"),
        ("text", "cannot read image"),
        ("three classes", "task.model.num_classes"),
    ],
)
def test_a_folder_of_images_that_will_not_do(opsin, tmp_path, mistake, complaint):
    classes = {"empty": 0, "one class": 1, "three classes": 3}.get(mistake, 2)
    root = tmp_path / "photos"
    root.mkdir()
    folder_of_images(root, classes)
    named = root / "train" / "class1" / "1.png"
    if mistake == "class without images":
        for file in named.parent.iterdir():
            file.unlink()
    elif mistake == "truncated":
        named.write_bytes(named.read_bytes()[:50])
    elif mistake == "text":
        named.write_text("a note")
    result = opsin("run", "tiny", "--quiet", f"data.source=folder:{root}", "data.batch=8",
                   "data.eval_splits.test=train", "task.model.num_classes=2")  # fmt: skip
    assert result.code == 2
    assert complaint in result.complaint()
    if mistake in ("truncated", "text"):
        assert str(named) in result.err


@pytest.mark.parametrize("content", [None, "{", '{"name": "mnist"}'])
def test_a_damaged_tfds_set_is_named(opsin, monkeypatch, tmp_path, content):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    version = tmp_path / "mnist" / "3.0.1"
    version.mkdir(parents=True)
    if content is not None:
        (version / "dataset_info.json").write_text(content)
        (version / "features.json").write_text(content)
    result = opsin("run", "tiny", "--quiet", "data.source=tfds:mnist")
    assert result.code == 2
    assert f'data set "mnist" in {tmp_path}' in result.complaint()
    assert "tfds build mnist" in result.err  # the way out


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (
            ViT(depth=1, width=8, mlp_width=8, heads=1, patch=4, num_classes=4),
            "sides that the patch size 4 divides; got (1, 6, 6, 3)",
        ),
        (LeNet5(num_classes=4), "divides 32; got (1, 6, 6, 3)"),
    ],
    ids=["vit", "lenet"],
)  # fmt: skip
def test_a_model_that_cannot_take_the_images_says_which_it_takes(
    opsin, monkeypatch, model, complaint
):
    changed = override(tiny.config(), {"task.model": model})
    monkeypatch.setattr(tiny, "config", lambda: changed)
    result = opsin("run", "tiny", "--quiet")
    assert result.code == 2
    assert complaint in result.complaint()
