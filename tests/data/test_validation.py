"""A split for validation: a partition of the training images."""

from functools import partial

import numpy as np
import pytest

from opsin.data.examples import DataError, materialize
from opsin.data.sources import digits, synthetic
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


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 0.001, 0.999, float("nan")])
def test_a_share_that_is_none(share):
    with pytest.raises(DataError, match="of 50 training images leaves one side empty"):
        with_validation("train", source=SET, share=share)
