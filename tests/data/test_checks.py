"""What a source may return: everything else is one line, before anything is made of it."""

from functools import partial

import numpy as np
import pytest

from opsin.data.checks import check_splits
from opsin.data.examples import Arrays, DataError, Examples, materialize
from opsin.data.masks import IGNORE
from opsin.data.pipeline import eval_batches, train_batches
from opsin.data.sources import open_source, shrunk

NAMES = ("cat", "dog")
IMAGE = np.zeros((4, 6, 8, 3), np.uint8)
LABEL = np.array([0, 1, 1, 0], np.int32)
MASK = np.zeros((4, 6, 8), np.uint8)


class Listed:
    """Records that are not in memory."""

    def __init__(self, *examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index]


def memory(names=NAMES, **arrays):
    return Examples(Arrays({"image": IMAGE, "label": LABEL} | arrays), names)


def one(**arrays):
    good = {"image": IMAGE[0], "label": np.int32(0)}
    return Examples(Listed(good, good | arrays), NAMES)


def mine(split, returned):
    del split
    return returned


BAD = {
    "a list": ([IMAGE, LABEL], "returned a list: a source returns Examples"),
    "nothing": (None, "returned a NoneType"),
    "a dict": ({"image": IMAGE}, "returned a dict"),
    "a dict as records": (Examples({"image": IMAGE}, NAMES), "its records are a dict"),
    "a number as records": (Examples(3, NAMES), "its records are a int"),
    "one name": (memory("cat"), "class_names is a tuple of texts, not 'cat'"),
    "one name twice": (memory(("cat", "cat")), "2 classes are called 'cat': name each otherwise"),
    "numbers as names": (memory((0, 1)), "class_names is a tuple of texts"),
    "uneven": (memory(label=LABEL[:3]), "there are 4 of 'image', 3 of 'label'"),
    "a list of labels": (memory(label=[0, 1, 1, 0]), "'label' is a list: make it a NumPy array"),
    "no image": (Examples(Arrays({"label": LABEL})), "has no 'image' but 'label'"),
    "float images": (memory(image=IMAGE / np.float32(255)), "uint8, .* this one is float32"),
    "wide integers": (memory(image=IMAGE.astype(np.int64)), "uint8, .* this one is int64"),
    "without channels": (memory(image=IMAGE[..., 0]), r"add an axis, as by image\[..., None\]"),
    "a batch": (memory(image=IMAGE[None].repeat(4, 0)), r"and this one is \[4, 6, 8, 3\]"),
    "no pixels": (memory(image=IMAGE[:, :0]), r"this one is \[0, 8, 3\]"),
    "texts": (memory(label=np.array(["cat", "dog", "dog", "cat"])), "'label' holds no numbers"),
    "objects": (memory(note=np.array([None] * 4)), "'note' holds no numbers"),
    "float labels": (memory(label=LABEL / 2), r"a whole one, and these are float64 \[\]"),
    "one-hot labels": (memory(label=np.eye(2, dtype=np.int32)[LABEL]), r"are int32 \[2\]"),
    "a label of -1": (memory(label=LABEL - 1), "example 0: label -1 is none of the 2 classes"),
    "a label too large": (memory(label=LABEL + 1), "example 1: label 2 is none of the 2 classes"),
    "a wide mask": (memory(mask=MASK.astype(np.int32)), "masks are uint8, and these are int32"),
    "a small mask": (memory(mask=MASK[:, :5]), r"'mask' is \[5, 8\] and its image \[6, 8, 3\]"),
    "a mask of others": (memory(mask=MASK + np.uint8(2)), "a mask has the label 2"),
    "a small weight": (memory(weight=MASK[..., :5]), r"'weight' is \[6, 5\]"),
    "a float at the end": (one(image=IMAGE[0] / 255), "example 1: images are uint8"),
    "-1 at the end": (one(label=np.int32(-1)), "example 1: label -1 is none of the 2 classes"),
    "a text at the end": (one(label="dog"), "example 1: 'label' holds no numbers"),
    "a tuple": (
        Examples(Listed((IMAGE[0], 0)), NAMES),
        "example 0 has no 'image' but <class 'tuple'>",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_set_of_images_is_one_line(name):
    returned, message = BAD[name]
    for source in (partial(mine, returned=returned), lambda split: returned):
        with pytest.raises(DataError, match=message) as caught:
            open_source(source, "train")
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=message):  # a source that is made of it says the same
        open_source(partial(shrunk, source=lambda split: returned, factor=2), "train")
    with pytest.raises(DataError, match=r"^mine"):
        open_source(partial(mine, returned=returned), "train")


@pytest.mark.parametrize(
    "returned",
    [
        memory(),
        memory(()),
        memory((), label=LABEL - 1),  # what labels mean without names, the task knows
        memory(mask=MASK + np.uint8(IGNORE), weight=np.ones((4, 6, 8), np.float32)),
        memory(**{"objects/bbox": np.zeros((4, 2, 4), np.float32)}),
        one(label=np.int64(1)),
        Examples(Arrays({"image": IMAGE[:0], "label": LABEL[:0]}), NAMES),
    ],
)
def test_what_is_one_passes_as_it_is(returned):
    assert open_source(lambda split: returned, "train") is returned


def test_a_label_means_the_same_class_in_every_split():
    check_splits({"train": memory(), "test": memory(list(NAMES)), "more": memory(())})
    check_splits({"train": memory(()), "test": memory()})
    for other in (("dog", "cat"), ("cat", "dog", "owl"), ("cat",)):
        with pytest.raises(DataError, match=f"'test' has the classes {', '.join(other)}, and "):
            check_splits({"train": memory(), "test": memory(other)})


def test_every_split_has_the_targets_of_training():
    bare = Examples(Arrays({"image": IMAGE}), NAMES)
    check_splits({"train": bare, "test": memory()})
    with pytest.raises(DataError, match="'test' has no 'label', which the training images have"):
        check_splits({"train": memory(), "test": bare})
    with pytest.raises(DataError, match="'val' has no 'mask'"):
        check_splits({"train": memory(mask=MASK), "test": memory(mask=MASK), "val": memory()})


@pytest.mark.parametrize("wrong", [-1, 2])
def test_labels_are_looked_at_wherever_examples_are_read(wrong):
    good = {"image": IMAGE[0], "label": np.int32(0)}
    odd = Examples(Listed(good, good, good | {"label": np.int32(wrong)}, good), NAMES)
    readers = (
        materialize,
        lambda examples: list(eval_batches(examples, batch=2)),
        lambda examples: next(train_batches(examples, batch=4, seed=0)),
    )
    for read in readers:
        with pytest.raises(DataError, match=f"example 2 has the label {wrong}, and the 2 classes"):
            read(odd)
