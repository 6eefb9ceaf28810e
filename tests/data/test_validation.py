"""A split for validation: a partition of the training images."""

from functools import partial

import numpy as np
import pytest
from PIL import Image

from opsin.data.examples import Arrays, DataError, Examples, materialize
from opsin.data.sources import digits, synthetic
from opsin.data.squares import squared
from opsin.data.validation import with_validation

SET = partial(synthetic, n=50, size=4, classes=5)


def rows(split: str, **options) -> set[bytes]:
    return {image.tobytes() for image in materialize(with_validation(split, **options))["image"]}


def test_train_and_val_are_a_partition_of_the_training_images():
    train, val = (rows(split, source=SET, share=0.3) for split in ("train", "val"))
    whole = {image.tobytes() for image in materialize(SET("train"))["image"]}
    assert (len(train), len(val)) == (35, 15)
    assert train | val == whole
    assert train & val == set()
    assert with_validation("val", source=SET).class_names == SET("val" and "train").class_names


def test_a_seed_draws_it():
    assert rows("val", source=SET) == rows("val", source=SET)
    assert rows("val", source=SET, seed=1) != rows("val", source=SET, seed=0)


def test_other_splits_are_as_they_are():
    found = materialize(with_validation("test"))
    np.testing.assert_array_equal(found["image"], materialize(digits("test"))["image"])


def photographs(split: str) -> Examples:
    """Of 12 pixels by 9 and up, whose first row of pixels says which it is."""
    image = np.zeros((20, 9, 12, 1), np.uint8) + np.arange(20, dtype=np.uint8)[:, None, None, None]
    return Examples(Arrays({"image": image, "label": np.arange(20) % 2}), ("a", "b"))


def test_val_is_cut_as_other_splits_that_are_not_trained_on():
    squares = partial(squared, source=photographs, size=8, held_out=6)
    sides, drawn = {}, {}
    for split in ("train", "val", "test"):
        image = materialize(with_validation(split, source=squares, share=0.25))["image"]
        sides[split], drawn[split] = image.shape[1:3], {int(x[0, 0, 0]) for x in image}
    assert sides == {"train": (8, 8), "val": (6, 6), "test": (6, 6)}
    assert drawn["train"] | drawn["val"] == set(range(20))
    inside = partial(with_validation, source=photographs, share=0.25)
    other = materialize(squared("val", source=inside, size=8, held_out=6))["image"]
    assert {int(x[0, 0, 0]) for x in other} == drawn["val"]
    assert other.shape == (5, 6, 6, 1)


def test_squares_are_cut_out_of_what_was_held_out_of_a_folder(tmp_path):
    for name in ("a", "b"):
        for index in range(8):
            path = tmp_path / "train" / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (50, 40)).save(path)
    held = partial(with_validation, source=f"folder:{tmp_path}", share=0.25)
    examples = squared("val", source=held, size=24, held_out=16)
    assert (len(examples.records), examples.records[0]["image"].shape) == (4, (16, 16, 3))


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 0.001, 0.999])
def test_a_share_that_is_none(share):
    with pytest.raises(DataError, match="of 50 training images leaves one side empty"):
        with_validation("train", source=SET, share=share)
