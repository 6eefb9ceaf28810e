"""Two passes hold every image and every mirror image."""

from functools import partial

import numpy as np

from opsin.data.examples import Arrays, Examples, labels, materialize
from opsin.data.mirrored import with_mirror_images
from opsin.data.pipeline import train_indices
from opsin.data.selection import select

RNG = np.random.default_rng(0)
SET = {
    "image": RNG.integers(0, 256, (40, 3, 5, 1), np.uint8),
    "mask": RNG.integers(0, 3, (40, 3, 5), np.uint8),
    "label": np.arange(40, dtype=np.int32) % 4,
}


def source(split):
    return Examples(Arrays(SET), ("a", "b", "c", "d"), lambda: SET["label"])


def test_every_image_is_mirrored_in_one_of_two_passes():
    examples = with_mirror_images("train", source=source)
    arrays = materialize(examples)
    first, second = ({name: x[i : i + 40] for name, x in arrays.items()} for i in (0, 40))
    for name in ("image", "mask"):
        np.testing.assert_array_equal(first[name], second[name][:, :, ::-1])
        kept = (first[name] == SET[name]).reshape(40, -1).all(1)
        np.testing.assert_array_equal(first[name][~kept], SET[name][~kept][:, :, ::-1])
        assert 10 < kept.sum() < 30
    np.testing.assert_array_equal(labels(examples), np.tile(SET["label"], 2))
    np.testing.assert_array_equal(arrays["label"], np.tile(SET["label"], 2))
    other = materialize(with_mirror_images("train", source=source, seed=1))["image"]
    assert not np.array_equal(other, arrays["image"])


def test_other_splits_are_those_of_the_source():
    np.testing.assert_array_equal(
        materialize(with_mirror_images("test", source=source))["image"], SET["image"]
    )


def test_each_pass_visits_every_image_once_and_the_next_its_mirror_image():
    examples = with_mirror_images("train", source=source)
    order = train_indices(80, batch=7, seed=0, passes=examples.records.passes)
    drawn = np.concatenate([next(order) for _ in range(46)])[:320].reshape(8, 40)
    for turn, epoch in enumerate(drawn):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(40) + turn % 2 * 40)
    assert len({tuple(epoch % 40) for epoch in drawn}) == 8
    alone = train_indices(40, batch=40, seed=0)
    np.testing.assert_array_equal(drawn % 40, [next(alone) for _ in range(8)])


def test_distinct_rows_leave_out_the_rest_of_each_pass():
    order = train_indices(80, batch=12, seed=0, passes=2, distinct=True)
    drawn = np.stack([next(order) for _ in range(6)])
    assert (drawn[:3] < 40).all()
    assert (drawn[3:] >= 40).all()
    assert len(np.unique(drawn)) == drawn.size


def test_a_feed_takes_passes_from_the_records_and_a_selection_mixes_them():
    examples = with_mirror_images("train", source=partial(source))
    assert not hasattr(select(examples, np.arange(60)).records, "passes")
