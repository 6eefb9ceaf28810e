from functools import partial

import numpy as np
import pytest
from scipy import ndimage

from opsin.data.border_weights import border_weighted, border_weights
from opsin.data.examples import DataError
from opsin.data.masks import IGNORE
from opsin.data.shapes import cells
from opsin.data.sources import open_source


def random_cells(shape, *, seed=0):
    """Blobs of label 1 on a background of 0."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2.0)
    return (noise > 0.0).astype(np.uint8)


def by_definition(mask, w0, sigma):
    """The border term, pixel by pixel and cell by cell."""
    inside = np.pad(mask == 1, 1, mode="edge")
    numbers, count = ndimage.label(mask == 1)
    near = [np.roll(inside, s, a)[1:-1, 1:-1] for s in (1, -1) for a in (0, 1)]
    on_border = (mask == 1) & ~np.logical_and.reduce(near)
    result = np.zeros(mask.shape)
    for y, x in np.ndindex(mask.shape):
        distances = []
        for number in range(1, count + 1):
            rows, columns = np.nonzero(on_border & (numbers == number))
            distances.append(np.min(np.hypot(rows - y, columns - x)))
        d1, d2 = sorted(distances)[:2]
        result[y, x] = w0 * np.exp(-((d1 + d2) ** 2) / (2 * sigma**2))
    return result


@pytest.mark.parametrize(("w0", "sigma"), [(10.0, 5.0), (3.0, 1.0)])
def test_border_term_is_the_definition(w0, sigma):
    mask = random_cells((40, 48))
    assert ndimage.label(mask)[1] > 4
    actual = border_weights(mask, w0=w0, sigma=sigma, class_weights=(0.0, 0.0))
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, by_definition(mask, w0, sigma), rtol=1e-4, atol=4e-6 * w0)


def test_a_gap_by_hand():
    """Two half planes, four pixels between them: d1 + d2 is 5 in the gap, and more in the cells."""
    mask = np.ones((3, 10), np.uint8)
    mask[:, 3:7] = 0
    actual = border_weights(mask, w0=10.0, sigma=5.0, class_weights=(1.0, 2.0))
    sums = np.array([9, 7, 5, 5, 5, 5, 5, 5, 7, 9])
    classes = np.where(mask == 1, 2.0, 1.0)
    np.testing.assert_allclose(actual, classes + 10.0 * np.exp(-(sums**2) / 50.0), rtol=1e-6)


def test_class_weights_balance_the_labels():
    mask = np.zeros((10, 10), np.uint8)
    mask[2:5, 2:6] = 1  # one cell: no border term
    mask[8:, :] = 4
    mask[0, :3] = IGNORE
    actual = border_weights(mask)
    totals = [actual[mask == label].sum() for label in (0, 1, 4)]
    np.testing.assert_allclose(totals, 97 / 3, rtol=1e-5)
    np.testing.assert_allclose(actual[mask != IGNORE].mean(), 1.0, rtol=1e-5)
    assert (actual[mask == IGNORE] == 0).all()


def test_foreground_is_the_label_of_the_cells():
    mask = random_cells((40, 48))
    weights = border_weights(mask, foreground=0, class_weights=(3.0, 1.0))
    other = border_weights(1 - mask, foreground=1, class_weights=(1.0, 3.0))
    np.testing.assert_array_equal(weights, other)


@pytest.mark.parametrize("label", [0, 1, 2, IGNORE])
def test_masks_of_one_label(label):
    mask = np.full((6, 7), label, np.uint8)
    expected = 0.0 if label == IGNORE else 1.0
    np.testing.assert_array_equal(border_weights(mask), expected)


def test_a_large_mask_needs_no_distances_over_the_whole_image(monkeypatch):
    """A cell's distances are computed around it only: else they would be cells times pixels."""
    mask = np.zeros((512, 512), np.uint8)
    mask.reshape(16, 32, 16, 32)[:12, :28, :, :28] = 1
    computed = []
    exact = ndimage.distance_transform_edt

    def counted(array):
        computed.append(array.size)
        return exact(array)

    monkeypatch.setattr(ndimage, "distance_transform_edt", counted)
    weights = border_weights(mask)
    assert len(computed) == 12 * 16
    assert max(computed) <= (28 + 2 * 25) ** 2
    gap = weights[100, 28:32] - weights[500, 500]  # far from all cells: w_c alone
    np.testing.assert_allclose(gap, 10.0 * np.exp(-(5.0**2) / 50.0), rtol=1e-3)


@pytest.mark.parametrize(
    ("mask", "options", "message"),
    [
        (np.array([[0, 2]]), {"class_weights": (1.0, 1.0)}, "label 2 has no class weight"),
        (np.array([[0, -1]]), {}, "labels from -1 to 0"),
        (np.array([[0, 256]]), {}, "labels from 0 to 256"),
    ],
)
def test_bad_input_raises(mask, options, message):
    with pytest.raises(DataError, match=message):
        border_weights(mask, **options)


def test_a_weighted_set_has_the_weights_of_its_masks():
    examples = border_weighted("test", source=partial(cells, n=3, size=24), w0=4.0)
    plain = cells("test", n=3, size=24)
    assert examples.class_names == plain.class_names
    for index in range(3):
        example, expected = examples.records[index], plain.records[index]
        np.testing.assert_array_equal(example["image"], expected["image"])
        weights = border_weights(expected["mask"], w0=4.0)
        np.testing.assert_array_equal(example["weight"], weights)
        assert example["weight"].dtype == np.float32
    with pytest.raises(DataError, match='no "mask" to weigh'):
        open_source(partial(border_weighted, source="digits"), "test")
