"""Slow: real images, real training. Skipped where the data is not."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opsin.commands.prediction import load, segment
from opsin.commands.runs import Options, execute
from opsin.config.catalogue import find
from opsin.config.tree import override, resolve
from opsin.data.examples import labels
from opsin.data.files import read_lines
from opsin.data.selection import long_tail
from opsin.data.sources import open_source
from opsin.train.loop import fit

pytestmark = pytest.mark.slow


def needs(name: str) -> None:
    directory = os.environ.get("TFDS_DATA_DIR")
    if not directory or not (Path(directory) / name).is_dir():
        pytest.skip(f"no {name}: point TFDS_DATA_DIR at a directory that holds it")


def test_make_run_reads_ninety_eight_per_cent_of_the_digits(tmp_path: Path):
    outcome = execute(
        "digits_lenet",
        "default",
        find("digits_lenet").config(),
        Options(workdir=tmp_path, progress=False),
    )
    assert outcome.metrics["test/accuracy"] >= 0.98
    for picture in ("curve.png", "confusion_test.png", "previews/test_predictions.png"):
        assert (outcome.directory / picture).stat().st_size > 5_000


@pytest.mark.parametrize(
    ("name", "sizes", "shape", "per_class"),
    [
        ("mnist", (60_000, 10_000), (28, 28, 1), {0: 5923, 1: 6742, 5: 5421}),
        ("cifar10", (50_000, 10_000), (32, 32, 3), dict.fromkeys(range(10), 5000)),
    ],
)
def test_real_sets_have_their_known_sizes(name, sizes, shape, per_class):
    needs(name)

    train, test = (open_source(f"tfds:{name}", split) for split in ("train", "test"))
    assert (len(train.records), len(test.records)) == sizes
    assert train.records[0]["image"].shape == shape
    counts = np.bincount(labels(train), minlength=10)
    assert {c: int(counts[c]) for c in per_class} == per_class


def test_the_long_tail_of_mnist_has_the_size_that_its_experiment_states():
    needs("mnist")
    kept = long_tail(labels(open_source("tfds:mnist", "train")), imbalance=100)
    module = find("mnist_focal_longtail")
    assert f"{len(kept):,} images" in (module.__doc__ or "")


def test_lenet_learns_mnist_in_one_epoch(tmp_path: Path):
    needs("mnist")
    # Its warm-up is a whole epoch, after which the last bits of the first steps show.
    short = {"loop.duration": "1 epoch", "optimizer.warmup": "0 steps"}
    experiment = override(find("mnist_lenet").config(), short)
    result = fit(experiment, tmp_path, config=resolve(experiment), progress=False)
    assert result.metrics["test/accuracy"] >= 0.97


def test_streamed_cifar_trains_as_the_resident_one(tmp_path: Path):
    needs("cifar10")
    module = find("cifar10_plain_vs_residual")
    losses = []
    for megabytes in (0, 1024):
        experiment = override(
            module.config(),
            {
                "data.source": "tfds:cifar10",
                "data.eval_splits": {"test": "test[:500]"},
                "data.resident_megabytes": megabytes,
                "loop.duration": "3 steps",
                "optimizer.warmup": "0 steps",
                "loop.log_every": "1 step",
                "data.batch": 16,
            },
        )
        directory = tmp_path / str(megabytes)
        fit(experiment, directory, config=resolve(experiment), progress=False)
        lines = read_lines(directory / "metrics.jsonl")
        losses.append([line["train/loss"] for line in lines if "train/loss" in line])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    assert len(losses[0]) == 3


def test_a_small_unet_outlines_membranes_in_eighty_steps_and_predicts_them(tmp_path: Path):
    needs("isbi2012")
    experiment = override(
        find("isbi_losses").config(),
        {
            "loop.duration": "80 steps",
            "loop.evaluate_every": "80 steps",
            "loop.checkpoint_every": "80 steps",
            "loop.previews": 0,
            "parallel.data": 1,
        },
    )
    outcome = execute("isbi", "arm", experiment, Options(workdir=tmp_path, progress=False))
    # To call everything a cell gives 0.39.
    assert outcome.metrics["test/miou"] >= 0.65
    example = open_source("tfds:isbi2012", "test").records[0]
    part = Image.fromarray(example["image"][100:400, 50:450, 0])
    mask = segment(load(outcome.directory), part)
    truth = example["mask"][100:400, 50:450]
    assert mask.shape == truth.shape
    assert (mask == truth).mean() > 0.8
