import json
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from opsin.data.binarize import binarized
from opsin.data.checks import check_examples
from opsin.data.examples import (
    Arrays,
    DataError,
    Examples,
    check_same_data,
    fits_in_memory,
    labels,
    materialize,
    stack,
)
from opsin.data.mirrored import with_mirror_images
from opsin.data.selection import select
from opsin.data.squares import squared
from opsin.data.validation import with_validation


@dataclass(frozen=True)
class Listed:
    """Records that are made when read, as those of a file are."""

    sizes: list[int]

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        size = self.sizes[index]
        return {"image": np.full((size, size, 1), index % 256, np.uint8), "label": np.int32(index)}


def test_materialize_keeps_every_example_in_order():
    arrays = materialize(Examples(Listed([2] * 1000)))  # several chunks, the last one short
    assert arrays["image"].shape == (1000, 2, 2, 1)
    assert arrays["image"].dtype == np.uint8
    assert arrays["label"].dtype == np.int32
    np.testing.assert_array_equal(arrays["label"], np.arange(1000))
    np.testing.assert_array_equal(arrays["image"][:, 1, 1, 0], np.arange(1000) % 256)


def test_stack_gives_the_same_rows_from_memory_and_from_records():
    read = Listed([3] * 10)
    held = Arrays(materialize(Examples(read)))
    indices = [4, 4, 0, 9]
    for records in (read, held):
        rows = stack(records, indices)
        np.testing.assert_array_equal(rows["label"], indices)
        np.testing.assert_array_equal(rows["image"][:, 0, 0, 0], indices)


class Several:
    """Records that read several at a time, and count how many."""

    def __init__(self):
        self.calls: list[int] = []

    def __len__(self):
        return 300

    def __getitem__(self, index):
        return self.__getitems__([index])[0]

    def __getitems__(self, indices):
        self.calls.append(len(indices))
        return [{"image": np.full((2, 2, 1), index % 256, np.uint8)} for index in indices]


SETS: dict[str, tuple[Callable[[Several], Examples], int]] = {
    "binarized": (lambda records: binarized("train", source=lambda _: Examples(records)), 300),
    "mirrored": (
        lambda records: with_mirror_images("train", source=lambda _: Examples(records)),
        600,
    ),
    "squared": (
        lambda records: squared("train", source=lambda _: Examples(records), size=2),
        300,
    ),
    "selected": (lambda records: select(Examples(records), np.arange(20, 280)), 260),
    "held out": (
        lambda records: with_validation("train", source=lambda _: Examples(records)),
        270,
    ),
}


@pytest.mark.parametrize("name", SETS)
def test_sets_over_records_that_read_several_at_a_time_do_so_too(name: str):
    """One by one, CIFAR-10 takes three times as long."""
    made, count = SETS[name]
    records = Several()
    examples = made(records)
    records.calls.clear()
    image = materialize(examples)["image"]
    assert sum(records.calls) == len(image) == count
    assert len(records.calls) == -(-count // 256)
    for place in (0, 7, count - 1):
        np.testing.assert_array_equal(examples.records[place]["image"], image[place])
    with pytest.raises(DataError, match='no "label"'):
        labels(examples)


def test_black_and_white_stay_so_where_several_are_binarised_at_a_time():
    image = materialize(SETS["binarized"][0](Several()))["image"]
    np.testing.assert_array_equal(image[[0, 255]].reshape(2, 4), [[0] * 4, [255] * 4])


def test_numbers_of_python_are_read_as_arrays_are():
    records = [
        {"image": np.zeros((2, 2, 1), np.uint8), "label": i, "price": i / 2} for i in range(3)
    ]
    examples = check_examples(Examples(records, ("a", "b", "c")), "mine")
    assert fits_in_memory(examples, 1000)
    for rows in (stack(records, [0, 2]), materialize(examples)):
        np.testing.assert_array_equal(rows["label"][[0, -1]], [0, 2])
        np.testing.assert_array_equal(rows["price"][[0, -1]], [0, 1])


@pytest.mark.parametrize("sizes", [[2, 3], [2] * 900 + [3] * 900])  # within a chunk and between
def test_materialize_refuses_different_shapes(sizes):
    with pytest.raises(DataError, match=r'"image".*\(2, 2, 1\) and \(3, 3, 1\); resize, crop'):
        materialize(Examples(Listed(sizes)))


def test_materialize_refuses_an_empty_split():
    with pytest.raises(DataError, match="no examples"):
        materialize(Examples(Listed([])))


def test_numbers_of_python_are_read_as_arrays():
    records = [{"image": np.zeros((2, 2, 1), np.uint8), "label": n, "at": n / 2} for n in (7, 8)]
    assert fits_in_memory(Examples(records), 2 * (4 + 4 + 4))
    rows = stack(records, [1, 0])
    assert [rows[name].dtype.name for name in ("label", "at")] == ["int32", "float32"]
    np.testing.assert_array_equal(rows["label"], [8, 7])


def test_fits_in_memory_counts_every_array_of_every_example():
    examples = Examples(Listed([3] * 10))  # 9 bytes of image and 4 of label each
    assert fits_in_memory(examples, 130)
    assert not fits_in_memory(examples, 129)
    assert fits_in_memory(Examples(Listed([])), 0)


def test_labels_uses_the_fast_way_if_there_is_one():
    slow = Examples(Listed([2] * 5))
    np.testing.assert_array_equal(labels(slow), np.arange(5))
    fast = Examples(Listed([2] * 5), read_labels=lambda: np.full(5, 7))
    np.testing.assert_array_equal(labels(fast), np.full(5, 7))
    assert labels(slow).dtype == labels(fast).dtype == np.int32


def test_labels_says_that_there_are_none():
    with pytest.raises(DataError, match='no "label"'):
        labels(Examples(Arrays({"image": np.zeros((2, 1, 1, 1), np.uint8)})))


RECORDED = {
    "class_names": ["apple", "banana"],
    "examples": 40,
    "arrays": {"image": [[8, 8, 3], "uint8"], "label": [[], "int32"]},
}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"class_names": ["banana", "red_apple"]},
            "a class called 'apple', and the data have 'banana'",
        ),
        ({"class_names": ["apple", "banana", "cat"]}, "classes .* have .'apple', 'banana', 'cat'."),
        ({"examples": 41}, "examples 40, and the data have 41"),
        (
            {"arrays": {"image": [[9, 8, 3], "uint8"], "label": [[], "int32"]}},
            "arrays .*8, 8.*9, 8",
        ),
    ],
)
def test_data_that_are_not_those_that_were_recorded_are_told(changes, told):
    check_same_data(json.loads(json.dumps(RECORDED)), RECORDED)
    check_same_data({}, RECORDED)  # of a checkpoint from before they were recorded
    with pytest.raises(DataError, match=told) as caught:
        check_same_data(RECORDED, RECORDED | changes)
    assert "\n" not in str(caught.value)


def _one_other(place: int, **other):
    """Three examples that are read one by one, of which one is another."""
    image = np.zeros((2, 2, 1), np.uint8)
    rows = [{"image": image, "label": np.int32(n)} for n in range(3)]
    rows[place] = {name: x for name, x in {**rows[place], **other}.items() if x is not None}
    return rows


@pytest.mark.parametrize("read", [materialize, lambda e: stack(e.records, [0, 1, 2])])
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (_one_other(1, label=None), "example 1 has image, and example 0 image, label: give all"),
        (_one_other(2, label=np.float32(1)), "'label' of example 2 is float32, and of example 0"),
        ([*_one_other(0)[:2], None], "example 2 has NoneType"),
    ],
)
def test_examples_that_differ_are_named(read, rows, message):
    examples = Examples(rows, ("a", "b", "c"))
    with pytest.raises(DataError, match=message):
        read(examples)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_in_the_middle_of_a_set_that_is_no_class_is_named(label):
    examples = Examples(_one_other(1, label=np.int32(label)), ("a", "b", "c"))
    with pytest.raises(DataError, match=f"example 1 has the label {label}, and the 3 classes are"):
        materialize(examples)
    materialize(replace(examples, class_names=()))  # numbers of something else
