import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from opsin.data.examples import Arrays, DataError, Examples, labels, materialize
from opsin.data.sources import digits, open_source, shrunk, synthetic


def test_digits_are_scikit_learns_each_once():
    train, test = materialize(digits("train")), materialize(digits("test"))
    assert train["image"].shape == (1437, 8, 8, 1)
    assert test["image"].shape == (360, 8, 8, 1)
    assert train["image"].dtype == np.uint8
    assert train["label"].dtype == np.int32
    flat, target = load_digits(return_X_y=True)
    theirs = np.column_stack([np.round(flat * 255 / 16), target])
    ours = np.column_stack(
        [
            np.concatenate([part["image"].reshape(-1, 64) for part in (train, test)]),
            np.concatenate([part["label"] for part in (train, test)]),
        ]
    )
    np.testing.assert_array_equal(np.unique(ours, axis=0), np.unique(theirs, axis=0))
    np.testing.assert_array_equal(ours.sum(axis=0), theirs.sum(axis=0))


def test_digits_are_split_as_documented():
    flat, target = load_digits(return_X_y=True)
    order = sorted(range(1797), key=lambda index: (target[index], index))
    chosen = sorted(order[::5])
    test = materialize(digits("test"))
    np.testing.assert_array_equal(test["image"].reshape(-1, 64), np.round(flat[chosen] * 255 / 16))
    np.testing.assert_array_equal(test["label"], target[chosen])
    share = np.bincount(test["label"]) / np.bincount(target)
    np.testing.assert_allclose(share, 0.2, atol=0.005)
    assert digits("test").class_names == tuple("0123456789")


def test_synthetic_repeats_and_does_not_depend_on_its_length():
    few, many = (materialize(synthetic("train", n=n, size=8)) for n in (20, 50))
    for name in few:
        np.testing.assert_array_equal(few[name], many[name][:20])
    assert few["image"].shape == (20, 8, 8, 3)
    assert few["image"].dtype == np.uint8
    for other in (synthetic("test", n=20, size=8), synthetic("train", n=20, size=8, seed=1)):
        assert np.mean(materialize(other)["image"] != few["image"]) > 0.9


@pytest.mark.parametrize(("channels", "classes", "size"), [(3, 10, 32), (1, 10, 32), (1, 4, 8)])
def test_synthetic_can_be_learned(channels, classes, size):
    options = {"n": 400, "size": size, "channels": channels, "classes": classes}
    train, test = (materialize(synthetic(split, **options)) for split in ("train", "test"))
    np.testing.assert_array_equal(np.bincount(train["label"]), 400 // classes)
    means = np.stack(
        [train["image"][train["label"] == c].mean(axis=0).ravel() for c in range(classes)]
    )
    distance = np.sum((test["image"].reshape(400, 1, -1) - means) ** 2, axis=-1)
    assert np.mean(distance.argmin(axis=1) == test["label"]) > 0.95


@pytest.mark.parametrize("source", [digits, synthetic])
def test_embedded_sources_name_their_splits(source):
    with pytest.raises(DataError, match='no split "validation"; use "train" or "test"'):
        source("validation")


def test_open_source_takes_names_and_functions():
    assert len(open_source("digits", "test").records) == 360
    assert len(open_source("synthetic", "train").records) == 1024
    mine = Examples(Arrays({"image": np.zeros((3, 2, 2, 1), np.uint8)}))
    assert open_source(lambda split: {"train": mine}[split], "train") is mine


def test_open_source_passes_the_name_and_the_path_on(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(DataError, match=f'no data set "mnist:3.0.1" in {tmp_path}'):
        open_source("tfds:mnist:3.0.1", "train")
    with pytest.raises(DataError, match=f"no folder {tmp_path}/a:b"):
        open_source(f"folder:{tmp_path}/a:b", "train")


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("digit", "digits"),
        ("digits:8", "digits"),
        ("sinthetic", "synthetic"),
        ("mnist", "tfds:mnist"),
        ("tfds", "tfds:NAME"),
        ("tfds:", "tfds:NAME"),
        ("folders:/a", "folder:PATH"),
        ("mysrc:my_set", "./mysrc.py:my_set"),
        ("mine.sources:my_set", "./mine/sources.py:my_set"),
        ("mnist:3.0.1", "tfds:mnist:3.0.1"),
    ],
)
def test_open_source_names_the_nearest(wrong, nearest):
    with pytest.raises(DataError, match=f'"{wrong}", did you mean "{nearest}"') as caught:
        open_source(wrong, "train")
    assert "\n" not in str(caught.value)


def test_importing_sources_imports_nothing_slow():
    slow = "{'tensorflow_datasets', 'tensorflow', 'sklearn', 'jax'}"
    code = f"import sys, opsin.data.sources; print({slow} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


def test_shrinking_moves_masks_too_and_keeps_what_is_known():
    image = np.arange(6 * 9, dtype=np.uint8).reshape(1, 6, 9, 1)
    arrays = {"image": image, "mask": image[..., 0], "weight": image[..., 0] / 2}
    names = tuple(map(str, range(54)))
    of = Examples(Arrays(arrays), names, lambda: np.array([1]), resized=True)
    small = shrunk("test", source=lambda _: of, factor=3)
    found = small.records[0]
    # The mean of a block of a ramp is its middle, which is also its nearest pixel.
    np.testing.assert_array_equal(found["image"][..., 0], [[10, 13, 16], [37, 40, 43]])
    np.testing.assert_array_equal(found["mask"], found["image"][..., 0])
    np.testing.assert_array_equal(found["weight"], found["mask"] / 2)
    assert (small.class_names, small.resized) == (of.class_names, True)
    np.testing.assert_array_equal(labels(small), [1])
