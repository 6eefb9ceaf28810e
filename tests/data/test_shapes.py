import numpy as np
import pytest
import scipy.ndimage

from opsin.data.examples import DataError, materialize
from opsin.data.shapes import cells, shapes
from opsin.data.sources import open_source


def test_shapes_repeat_and_do_not_depend_on_their_number():
    few, many = (materialize(shapes("train", n=n, size=24)) for n in (5, 9))
    for name in few:
        np.testing.assert_array_equal(few[name], many[name][:5])
    assert few["image"].shape == (5, 24, 24, 3)
    assert few["mask"].shape == (5, 24, 24)
    assert few["image"].dtype == few["mask"].dtype == np.uint8
    for other in (shapes("test", n=5, size=24), shapes("train", n=5, size=24, seed=1)):
        assert np.mean(materialize(other)["image"] != few["image"]) > 0.9


def test_all_classes_occur_and_the_mask_lies_on_the_image():
    examples = shapes("train", n=400)
    arrays = materialize(examples)
    assert examples.class_names == ("background", "disc", "square", "triangle")
    share = np.bincount(arrays["mask"].ravel()) / arrays["mask"].size
    assert 0.6 < share[0] < 0.9
    np.testing.assert_allclose(share[1:], (1 - share[0]) / 3, rtol=0.1)
    bright = arrays["image"].mean(axis=-1) > 127
    assert np.mean(bright == (arrays["mask"] > 0)) > 0.97
    colour = [arrays["image"][arrays["mask"] == label].mean(axis=0) for label in (1, 2, 3)]
    np.testing.assert_allclose(colour, np.full((3, 3), np.mean(colour)), atol=8)


def test_forms_are_those_of_their_names():
    """A²/(2πI), with I the polar moment of area: disc 1, square 3/π, triangle 3√3/(2π)."""
    found = {1: [], 2: [], 3: []}
    for mask in materialize(shapes("train", n=40, size=128))["mask"]:
        regions, count = scipy.ndimage.label(mask)  # shapes that touch are one, and left out
        for region in range(1, count + 1):
            y, x = np.nonzero(regions == region)
            if min(y.min(), x.min()) > 0 and max(y.max(), x.max()) < 127:
                labels = np.unique(mask[y, x])
                if len(labels) == 1:
                    inertia = len(y) * (y.var() + x.var() + 1 / 6)  # 1/6: that of a pixel
                    found[labels[0]].append(len(y) ** 2 / (2 * np.pi * inertia))
    expected = {1: 1, 2: 3 / np.pi, 3: 3 * np.sqrt(3) / (2 * np.pi)}
    for label, ratios in found.items():
        assert len(ratios) >= 8
        assert np.median(ratios) == pytest.approx(expected[label], abs=0.005)


def test_cells_are_the_shapes_in_grey():
    examples = cells("train", n=4, size=16)
    grey, coloured = materialize(examples), materialize(shapes("train", n=4, size=16))
    assert examples.class_names == ("membrane", "cell")
    assert grey["image"].shape == (4, 16, 16, 1)
    assert grey["image"].dtype == grey["mask"].dtype == np.uint8
    np.testing.assert_allclose(grey["image"][..., 0], coloured["image"].mean(axis=-1), atol=0.51)
    np.testing.assert_array_equal(grey["mask"], coloured["mask"] > 0)


def test_shapes_are_a_source_with_two_splits():
    assert len(open_source("shapes", "test").records) == 256
    with pytest.raises(DataError, match='"shapes" has no split "validation"; use "train" or'):
        shapes("validation")
    with pytest.raises(DataError, match='"shape", did you mean "shapes"'):
        open_source("shape", "train")
