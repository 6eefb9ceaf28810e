"""Masks are checked as they are read; what the sets' labels mean is looked up in the sets."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from opsin.data.examples import Arrays, DataError, Examples, materialize
from opsin.data.masks import IGNORE, TFDS_LABELS, CheckedMasks
from opsin.data.selection import select
from opsin.data.sources import open_source

_IMAGE = np.zeros((3, 4, 5, 3), np.uint8)
_MASK = np.full((3, 4, 5), 2, np.uint8)


def checked(mask, num_classes=3):
    records = Arrays({"image": _IMAGE, "mask": mask})
    return CheckedMasks(records, lambda index: f"mask {index}.png", num_classes)


def test_good_masks_pass_untouched():
    mask = _MASK.copy()
    mask[0, :3] = IGNORE
    arrays = materialize(Examples(checked(mask)))
    np.testing.assert_array_equal(arrays["mask"], mask)
    np.testing.assert_array_equal(arrays["image"], _IMAGE)
    assert len(checked(mask)) == 3


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (_MASK[:, :, :4], r"has the shape \(4, 4\) and its image \(4, 5\) pixels"),
        (np.full_like(_MASK, IGNORE), "no pixel that counts: all are 255.*ignored"),
        (_MASK + 1, r"the label 3, and the classes are 0 to 2 \(255 means ignored\)"),
        (_MASK + 252, "the label 254, and the classes are 0 to 2"),
    ],
)
def test_a_wrong_mask_is_named(mask, message):
    records = select(Examples(checked(mask)), np.array([1, 2])).records
    with pytest.raises(DataError, match=f"^mask 2.png .*{message}") as caught:
        records[1]
    assert "\n" not in str(caught.value)


def test_labels_are_compared_to_classes_only_where_these_are_known():
    assert checked(_MASK + 252, None)[0]["mask"].max() == 254
    with pytest.raises(DataError, match="no pixel that counts"):
        checked(np.full_like(_MASK, IGNORE), None)[0]


def test_void_is_the_label_after_the_classes():
    assert TFDS_LABELS["camvid"].void == len(TFDS_LABELS["camvid"].class_names) == 11
    assert TFDS_LABELS["isbi2012"].void is None


@dataclass(frozen=True)
class Places:
    """Where the pixels of each class lie, on average, and their share of all."""

    row: dict[str, float]
    column: dict[str, float]
    share: dict[str, float]


def real(name, split):
    directory = os.environ.get("TFDS_DATA_DIR")
    if not directory or not (Path(directory) / name).is_dir():
        pytest.skip(f"no {name}: point TFDS_DATA_DIR at a directory that holds it")
    return open_source(f"tfds:{name}", split)


def places(masks, names):
    rows, columns, shares = {}, {}, {}
    for label, name in enumerate(names):
        _, y, x = np.nonzero(masks == label)
        rows[name], columns[name] = y.mean() / masks.shape[1], x.mean() / masks.shape[2]
        shares[name] = len(y) / np.sum(masks != IGNORE)
    return Places(rows, columns, shares)


@pytest.mark.slow
@pytest.mark.parametrize(("split", "count"), [("train", 367), ("validation", 101), ("test", 233)])
def test_the_classes_of_camvid_lie_where_their_names_say(split, count):
    examples = real("camvid", split)
    arrays = materialize(examples)
    assert arrays["image"].shape == (count, 180, 240, 3)
    assert arrays["mask"].shape == (count, 180, 240)
    assert arrays["mask"].dtype == np.uint8
    where = places(arrays["mask"], examples.class_names)
    assert 0.01 < np.mean(arrays["mask"] == IGNORE) < 0.05
    assert max(where.share, key=where.share.get) == "road"
    order = ["sky", "building", "car", "pavement", "road"]  # from above
    assert sorted(order, key=where.row.get) == order
    assert where.row["sky"] < 0.2 < where.row["tree"] < 0.4 < 0.75 < where.row["road"]
    for thin in ("pole", "sign symbol", "fence", "pedestrian", "bicyclist"):
        assert 0.001 < where.share[thin] < 0.04 < where.share["tree"]
    # The sky is the brightest class and hardly coloured; trees are dark.
    colour = {
        name: arrays["image"][arrays["mask"] == label].mean(axis=0)
        for label, name in enumerate(examples.class_names)
    }
    assert max(colour, key=lambda name: colour[name].mean()) == "sky"
    assert colour["tree"].mean() < colour["sky"].mean() / 2


@pytest.mark.slow
@pytest.mark.parametrize(("split", "count"), [("train", 24), ("test", 6)])
def test_the_membranes_of_isbi_are_dark_and_thin(split, count):
    examples = real("isbi2012", split)
    arrays = materialize(examples)
    assert arrays["image"].shape == (count, 512, 512, 1)
    assert examples.class_names == ("membrane", "cell")
    membrane = arrays["mask"] == 0
    np.testing.assert_array_equal(np.unique(arrays["mask"]), [0, 1])
    assert 0.15 < membrane.mean() < 0.3
    image = arrays["image"][..., 0]
    assert image[membrane].mean() < image[~membrane].mean() - 20
