"""Squares of photographs: what is cut out, at which size, of which split."""

from functools import partial

import numpy as np
import pytest
from PIL import Image

from opsin.data.examples import Arrays, DataError, Examples, labels, stack
from opsin.data.folder import folder
from opsin.data.sources import blank
from opsin.data.squares import square, squared


def ramp(height: int, width: int) -> np.ndarray:
    """Red grows by 1 a column and green by 1 a row: colours are places."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns, rows, 0 * rows], axis=-1).astype(np.uint8)


def photographs(split: str) -> Examples:
    """Two images of different sizes, with labels that are read without them."""

    class Records:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> dict[str, np.ndarray]:
            image = (ramp(40, 80), ramp(90, 30))[index]
            return {"image": image, "label": np.int32(index)}

    return Examples(Records(), ("wide", "tall"), lambda: np.array([0, 1]))


@pytest.mark.parametrize("shape", [(64, 100), (100, 64), (64, 64)])
def test_the_centre_is_cut_out(shape):
    found = square(ramp(*shape), 64, 64)
    top, left = (shape[0] - 64) // 2, (shape[1] - 64) // 2
    assert (found == ramp(*shape)[top : top + 64, left : left + 64]).all()


def test_resize_then_crop_is_one_cut():
    """Half the size, then the inner 24 of 32 pixels: a ramp stays a ramp, twice as steep."""
    found = square(ramp(64, 128), 32, 24).astype(int)
    assert found.shape == (24, 24, 3)
    inner = slice(2, -2)  # antialiasing meets the border of what was cut
    expected = 32 + 8 + 2 * np.arange(24) + 0.5  # from column 32 + 8 on, in the middle of two
    assert np.abs(found[inner, inner, 0] - expected[inner]).max() <= 1
    assert np.abs(found[inner, inner, 1].T - (expected[inner] - 32)).max() <= 1


def test_images_of_a_set_are_interpolated_as_asked():
    noise = {"image": np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), np.uint8)}
    source = partial(squared, source=lambda split: Examples(Arrays(noise)), size=32)
    for name, examples in (
        ("bilinear", source("test")),
        ("bicubic", source("test", interpolation="bicubic")),
    ):
        expected = [square(image, 32, 32, interpolation=name) for image in noise["image"]]
        np.testing.assert_array_equal(stack(examples.records, [0, 1])["image"], expected)
    with pytest.raises(DataError, match="'bilinear' or 'bicubic'"):
        squared("test", source=photographs, size=32, interpolation="cubic")  # pyright: ignore


def test_training_keeps_the_whole_square_and_testing_its_centre():
    source = partial(squared, source=photographs, size=32, held_out=28)
    train, part, test = (source(split) for split in ("train", "train[:50%]", "validation"))
    assert stack(train.records, [0, 1])["image"].shape == (2, 32, 32, 3)
    assert train.records[0]["image"].shape == part.records[0]["image"].shape
    assert stack(test.records, [0, 1])["image"].shape == (2, 28, 28, 3)
    assert stack(test.records, [0, 1])["label"].tolist() == [0, 1]
    assert squared("test", source=photographs, size=32).records[0]["image"].shape == (32, 32, 3)


def test_names_and_labels_stay_and_it_says_that_sizes_were_changed():
    examples = squared("train", source=photographs, size=8)
    assert examples.class_names == ("wide", "tall")
    assert labels(examples).tolist() == [0, 1]
    assert examples.resized


def test_grey_images_keep_their_channel():
    grey = Examples(Arrays({"image": np.full((1, 9, 12, 1), 7, np.uint8)}))
    image = squared("train", source=lambda split: grey, size=4).records[0]["image"]
    assert image.shape == (4, 4, 1)
    assert (image == 7).all()


def test_sizes_that_cannot_be():
    with pytest.raises(DataError, match="take held_out <= size"):
        squared("train", source=photographs, size=32, held_out=33)


def test_blank_examples_have_the_shapes_and_take_no_memory():
    examples = blank(1_281_167, image=(256, 256, 3))
    assert len(examples.records) == 1_281_167
    record = examples.records[1_281_166]
    assert (record["image"].shape, record["image"].dtype) == ((256, 256, 3), np.uint8)
    assert (record["label"].shape, record["label"].dtype) == ((), np.int32)
    assert record["image"].nbytes == 256 * 256 * 3  # as large as any, for those who ask


@pytest.mark.parametrize("shape", [(64, 64), (40, 80), (90, 30)])
@pytest.mark.parametrize("sizes", [(32, 32), (32, 24), (64, 64), (100, 90)])
def test_masks_and_weights_move_with_their_image(shape, sizes):
    """Of an image whose red says its column, each label says the column that it was taken from."""
    image = ramp(*shape)
    example = {"image": image, "mask": image[..., 0], "weight": image[..., 1].astype(np.float32)}
    source = Examples(Arrays({name: array[None] for name, array in example.items()}))
    size, cropped = sizes
    found = squared("test", source=lambda _: source, size=size, held_out=cropped).records[0]
    assert found["mask"].shape == found["weight"].shape == (cropped, cropped)
    assert (found["mask"].dtype, found["weight"].dtype) == (np.uint8, np.float32)
    inner = slice(2, -2)  # antialiasing meets the border of what was cut
    for name, channel in (("mask", 0), ("weight", 1)):
        off = found[name].astype(float) - found["image"][..., channel]
        assert np.abs(off[inner, inner]).max() <= 0.5 * max(1, min(shape) / size) + 1
    assert set(np.unique(found["mask"])) <= set(np.unique(image[..., 0]))  # none is made up


@pytest.mark.parametrize("shape", [(64, 64), (300, 451), (451, 300), (427, 640), (97, 1001)])
@pytest.mark.parametrize("sizes", [(64, 56), (64, 64), (60, 53)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_it_is_resize_and_crop_at_whole_pixels(shape, sizes, interpolation):
    """As torchvision does it: ``Resize`` to int(size · long / short), ``CenterCrop`` by round."""
    size, cropped = sizes
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    height, width = (int(size * side / min(shape)) for side in shape)
    top, left = (round((side - cropped) / 2.0) for side in (height, width))
    whole = Image.fromarray(image).resize((width, height), Image.Resampling[interpolation.upper()])
    expected = np.asarray(whole)[top : top + cropped, left : left + cropped]
    off = np.abs(square(image, size, cropped, interpolation=interpolation).astype(int) - expected)
    assert off.max() <= 2  # Pillow sees the box in float32, which decides ties, in both directions
    assert off.mean() <= 0.06


def folder_of(place, side=40):
    for split in ("train", "test"):
        for number, name in enumerate(("wide", "tall")):
            (place / split / name).mkdir(parents=True)
            image = ramp(side, side + 20 * number)
            Image.fromarray(image).save(place / split / name / "x.png")
    return place


def test_photographs_of_a_folder_are_taken_as_they_are(tmp_path):
    examples = squared("train", source=f"folder:{folder_of(tmp_path)}", size=20)
    assert examples.class_names == ("tall", "wide")
    assert labels(examples).tolist() == [0, 1]
    for place, width in enumerate((60, 40)):
        expected = square(ramp(40, width), 20, 20)
        np.testing.assert_array_equal(examples.records[place]["image"], expected)


def test_photographs_with_masks_too(tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / "train" / kind).mkdir(parents=True)
    for number, shape in enumerate(((40, 60), (50, 30))):
        Image.fromarray(ramp(*shape)).save(tmp_path / "train" / "images" / f"{number}.png")
        mask = (ramp(*shape)[..., 0] > 20).astype(np.uint8)
        Image.fromarray(mask).save(tmp_path / "train" / "masks" / f"{number}.png")
    examples = squared("train", source=f"masks:{tmp_path}", size=10)
    for example in (examples.records[0], examples.records[1]):
        assert (example["image"].shape, example["mask"].shape) == ((10, 10, 3), (10, 10))


def test_what_was_resized_before_is_refused(tmp_path):
    place = folder_of(tmp_path)
    for before in (
        partial(folder, str(place)),
        partial(folder, str(place), size=64),
        partial(squared, source=photographs, size=64),
    ):
        with pytest.raises(DataError, match=r"its source did so before.*size=None"):
            squared("train", source=before, size=20)
    whole = squared("train", source=partial(folder, str(place), size=None), size=20)
    assert whole.records[0]["image"].shape == (20, 20, 3)
