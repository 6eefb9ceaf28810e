"""Metrics of segmentation against scikit-learn, scikit-image, brute force and closed forms."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from skimage.metrics import adapted_rand_error
from skimage.morphology import thin as skimage_thin

from opsin.imaging.components import components
from opsin.imaging.morphology import thin
from opsin.metrics.segmentation import boundary_f1, foreground_rand, segmentation_matrix
from opsin.metrics.state import Merging, compute_all

CLASSES = 5
BATCH, HEIGHT, WIDTH = 8, 20, 24
TOLERANCE = 1.5


def states(logits, labels, valid):
    predictions = jnp.argmax(logits, axis=-1)
    return {
        "confusion": segmentation_matrix(logits, labels, valid),
        "boundary": boundary_f1(
            predictions, labels, valid, num_classes=CLASSES, tolerance=TOLERANCE
        ),
        "rand": foreground_rand(predictions, labels, valid),
    }


compiled_states = jax.jit(states)  # one shape for the whole file


def draw(seed, present=CLASSES, blur=2.0):
    """Smooth label maps of the first classes, and logits that often agree with them."""
    rng = np.random.default_rng(seed)
    fields = rng.normal(size=(2, BATCH, HEIGHT, WIDTH, CLASSES))
    fields = scipy.ndimage.gaussian_filter(fields, (0, 0, blur, blur, 0))
    labels = fields[0, ..., :present].argmax(axis=-1).astype(np.int32)
    logits = fields[1] + 0.3 * fields.std() * np.eye(CLASSES)[labels]
    valid = rng.random(labels.shape) > 0.1
    return logits.astype(np.float32), labels, valid


@settings(max_examples=10, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), present=st.integers(1, CLASSES))
def test_counted_pixels_give_what_scikit_learn_gives(seed, present):
    logits, labels, valid = draw(seed, present)
    labels = np.where(valid, labels, 255)
    numbers = compiled_states(logits, labels, valid)["confusion"].compute()
    true, predicted = labels[valid], logits.argmax(axis=-1)[valid]
    classes = np.union1d(true, predicted)
    options = {"labels": classes, "average": None, "zero_division": 0}
    expected = {"accuracy": sklearn.metrics.accuracy_score(true, predicted)}
    for name, mean, score in (
        ("iou", "miou", sklearn.metrics.jaccard_score),
        ("dice", "dice", sklearn.metrics.f1_score),
        ("precision", "precision_macro", sklearn.metrics.precision_score),
        ("recall", "recall_macro", sklearn.metrics.recall_score),
    ):
        values = score(true, predicted, **options)
        expected[mean] = values.mean()
        expected |= {f"{name}/{c}": v for c, v in zip(classes, values, strict=True)}
    assert numbers == pytest.approx(expected, abs=1e-12)


def test_absent_classes_do_not_count_and_missed_ones_do():
    """Class 2 occurs nowhere; class 1 is true only, 3 predicted only: both 0 in every mean."""
    labels = np.array([[[0, 0, 1, 1]]])
    logits = np.eye(CLASSES, dtype=np.float32)[[[[0, 0, 0, 3]]]]
    numbers = jax.jit(segmentation_matrix)(logits, labels).compute()
    assert numbers["iou/0"] == pytest.approx(2 / 3)
    assert numbers["dice/0"] == pytest.approx(4 / 5)
    assert numbers["iou/1"] == numbers["iou/3"] == numbers["dice/3"] == 0
    assert numbers["miou"] == pytest.approx(2 / 9)
    assert {name for name in numbers if name.startswith("iou/")} == {"iou/0", "iou/1", "iou/3"}


def test_nan_logits_are_errors_wherever_they_fall():
    _, labels, valid = draw(0)
    logits = np.eye(CLASSES, dtype=np.float32)[labels]
    logits[:, ::2, :, 1] = np.nan
    numbers = compiled_states(logits, labels, valid)["confusion"].compute()
    right = np.broadcast_to(np.arange(HEIGHT)[:, None] % 2 == 1, labels.shape)
    assert numbers["accuracy"] == pytest.approx(right[valid].mean())


def test_batches_merge_to_the_whole_and_padding_takes_no_part():
    logits, labels, valid = draw(1)
    whole = compiled_states(logits, labels, valid)
    total = None
    for rows in (slice(0, 3), slice(3, 8)):
        inside = np.zeros(valid.shape, bool)
        inside[rows] = valid[rows]
        padded_logits, padded_labels = np.full_like(logits, np.nan), np.full_like(labels, 255)
        padded_logits[rows], padded_labels[rows] = logits[rows], labels[rows]
        part = compiled_states(padded_logits, padded_labels, inside)
        total = Merging([part] if total is None else [total, part]).result()
    assert compute_all(total) == pytest.approx(compute_all(whole), abs=1e-6)


def test_nothing_valid_is_nan_everywhere():
    logits, labels, _ = draw(2)
    numbers = compute_all(compiled_states(logits, labels, np.zeros(labels.shape, bool)))
    means = {"accuracy", "miou", "dice", "precision_macro", "recall_macro"}
    assert set(numbers) == means | {"boundary", "rand"}
    assert np.isnan(list(numbers.values())).all()


def test_eight_devices_give_the_states_of_one():
    arrays = draw(3)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    sharded = compiled_states(*jax.device_put(arrays, sharding))
    single = compiled_states(*arrays)
    assert len(sharded["rand"].both.sharding.device_set) == 8
    for a, b in zip(jax.tree.leaves(sharded), jax.tree.leaves(single), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


# Boundaries.


def brute_force_boundary_f1(predictions, labels, valid, tolerance):
    """The definition in the docstring, one pixel at a time."""
    height, width = labels.shape

    def boundary(classes, wanted):
        pixels = []
        for y, x in itertools.product(range(height), range(width)):
            if valid[y, x] and classes[y, x] == wanted:
                beside = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
                inside = [(v, u) for v, u in beside if 0 <= v < height and 0 <= u < width]
                if any(valid[p] and classes[p] != wanted for p in inside):
                    pixels.append((y, x))
        return np.array(pixels).reshape(-1, 2)

    scores = []
    for c in range(CLASSES):
        found, true = boundary(predictions, c), boundary(labels, c)
        if len(found) and len(true):
            distance = np.linalg.norm(found[:, None] - true[None], axis=-1)
            precision = np.mean(distance.min(axis=1) <= tolerance)
            recall = np.mean(distance.min(axis=0) <= tolerance)
            total = precision + recall
            scores.append(2 * precision * recall / total if total else 0.0)
        elif len(found) or len(true):
            scores.append(0.0)
    return np.mean(scores) if scores else np.nan


@pytest.mark.parametrize(("seed", "present"), [(0, CLASSES), (1, 3), (2, 2)])
def test_boundary_f1_is_its_definition(seed, present):
    logits, labels, valid = draw(seed, present)
    labels[0], logits[0] = 2, np.eye(CLASSES)[2]  # one image without a boundary
    state = compiled_states(logits, labels, valid)["boundary"]
    images = zip(logits.argmax(axis=-1), labels, valid, strict=True)
    expected = [brute_force_boundary_f1(*image, TOLERANCE) for image in images]
    assert np.isnan(expected[0])
    assert int(state.count) == BATCH - 1
    assert float(state.total) == pytest.approx(np.nansum(expected), rel=1e-5)


compiled_boundary = jax.jit(boundary_f1, static_argnames=("num_classes", "tolerance"))


@pytest.mark.parametrize(("shift", "tolerance", "score"), [(2, 2.0, 1), (2, 1.9, 0), (0, 0, 1)])
def test_a_shifted_edge_is_found_within_the_tolerance_only(shift, tolerance, score):
    columns = np.broadcast_to(np.arange(16), (1, 9, 16))
    labels, predictions = (columns >= 8).astype(int), (columns >= 8 + shift).astype(int)
    state = compiled_boundary(predictions, labels, num_classes=2, tolerance=tolerance)
    assert state.compute() == {"": score}


def test_ignored_pixels_make_no_boundary():
    """A strip of ignored pixels parts the classes, and no pixel that counts has an edge."""
    labels = np.repeat([0, 255, 1], 4)[None, None].repeat(6, axis=1)
    for valid, count in ((labels != 255, 0), (labels == labels, 1)):
        state = compiled_boundary(labels, labels, valid, num_classes=2, tolerance=1)
        assert int(state.count) == count


# The Rand score.


def cells(*rows):
    """A map from characters: a space is a membrane, all else is a cell."""
    return np.array([[character != " " for character in row] for row in rows], np.int32)[None]


compiled_rand = jax.jit(foreground_rand)


def score(predictions, labels, valid=None):
    return compiled_rand(predictions, labels, valid).compute()[""]


GRID = cells("aaa bbb", "aaa bbb", "aaa bbb", "       ", "ccc ddd", "ccc ddd", "ccc ddd")


def test_a_perfect_map_scores_one_whatever_the_width_of_its_membranes():
    assert score(GRID, GRID) == 1
    thick = np.repeat(np.repeat(GRID, 5, axis=1), 5, axis=2)
    assert score(thick, thick) == 1
    eroded = thick * scipy.ndimage.binary_erosion(thick, np.ones((1, 3, 3)), border_value=1)
    assert 0.95 < score(eroded, thick) < 1  # thinning gives the pixels back, but for rounded ends


def test_a_merged_and_a_split_pair_have_their_closed_forms():
    """Four cells of 9 pixels: Σp² = Σt² = 4·81; merged, Σs² = 18² + 2·81, and one way only."""
    merged = GRID.copy()
    merged[0, 1, 3] = 1
    assert score(merged, GRID) == pytest.approx(2 * 324 / (324 + 18**2 + 2 * 81))
    nothing = np.ones_like(GRID)
    assert score(nothing, GRID) == pytest.approx(2 * 324 / (324 + 36**2))
    # Split by a line through the middle of a cell: 3 + 3 pixels, and 3 on the line alone.
    split = GRID.copy()
    split[0, :3, 1] = 0
    pairs = 3 * 81 + 2 * 9 + 3
    assert score(split, GRID) == pytest.approx(2 * pairs / (pairs + 324))


def test_pairs_are_summed_over_images():
    both = np.concatenate([GRID, np.ones_like(GRID)])
    assert score(both, np.concatenate([GRID, GRID])) == pytest.approx(
        2 * 2 * 324 / (2 * 324 + 324 + 36**2)
    )


def test_pixels_that_are_not_valid_are_no_cells():
    valid = np.ones(GRID.shape, bool)
    valid[0, :, 4:] = False
    merged = GRID.copy()
    merged[0, 1, 3] = 1  # between a cell that counts and one that does not
    assert score(merged, GRID, valid) == 1
    assert np.isnan(score(GRID, np.zeros_like(GRID)))


@pytest.mark.parametrize("seed", [0, 1])
def test_rand_is_that_of_scikit_image(seed):
    """Given the thinned map with a cell of its own for each of its pixels."""
    rng = np.random.default_rng(seed)
    fields = scipy.ndimage.gaussian_filter(rng.normal(size=(2, 60, 60)), (0, 3, 3))
    labels = (abs(fields[0]) > 0.02).astype(np.int32)
    predictions = (abs(fields[0] + 0.5 * fields[1]) > 0.02).astype(np.int32)
    thinned = skimage_thin(np.pad(predictions == 0, 1, constant_values=True))[1:-1, 1:-1]
    found, last = scipy.ndimage.label(~thinned)
    found[thinned] = last + 1 + np.arange(thinned.sum())
    true = scipy.ndimage.label(labels)[0]
    error = adapted_rand_error(true, found, ignore_labels=(0,))[0]
    assert 0.05 < error < 0.95
    state = compiled_rand(predictions[None], labels[None])
    alone = labels.sum()  # scikit-image leaves out the pair of a pixel with itself
    pairs = float(state.true) + float(state.predicted) - 2 * alone
    assert 2 * (float(state.both) - alone) / pairs == pytest.approx(1 - error, abs=1e-6)


compiled_thin, compiled_components = jax.jit(thin), jax.jit(components)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), blur=st.floats(0, 3), share=st.floats(0, 1))
def test_thinning_and_components_are_those_of_scikit_image_and_scipy(seed, blur, share):
    noise = np.random.default_rng(seed).normal(size=(2, 32, 30))
    smooth = scipy.ndimage.gaussian_filter(noise, (0, blur, blur))
    image = smooth <= np.quantile(smooth, share)
    thinned = np.asarray(compiled_thin(image))
    np.testing.assert_array_equal(thinned, [skimage_thin(one) for one in image])
    for region, found in zip(image, np.asarray(compiled_components(image)), strict=True):
        labels = scipy.ndimage.label(region)[0].ravel()
        own = np.arange(labels.size)
        firsts = scipy.ndimage.minimum(own, labels, np.arange(labels.max() + 1))
        np.testing.assert_array_equal(found, np.where(labels > 0, firsts[labels], own))


def test_a_long_winding_component_is_one():
    """A spiral, in which labels have the longest way to go."""
    size, spiral = 31, np.zeros((35, 35), bool)  # with two pixels of border
    y, x, (down, right) = 2, 2, (0, 1)
    spiral[2, 2] = True
    for _ in range(size * size):
        ahead = (y + down, x + right)
        blocked = not (min(ahead) >= 2 and max(ahead) < 2 + size)
        if blocked or spiral[y + 2 * down, x + 2 * right]:
            down, right = right, -down
        else:
            y, x = ahead
            spiral[y, x] = True
    assert spiral.sum() > 400
    found = np.asarray(compiled_components(spiral[None]))[0]
    assert len(np.unique(found[spiral.ravel()])) == 1
    assert len(np.unique(found)) == 1 + np.sum(~spiral)


@pytest.mark.parametrize("metric", [boundary_f1, foreground_rand])
def test_maps_that_do_not_fit_raise(metric):
    if metric is boundary_f1:
        metric = functools.partial(metric, num_classes=2, tolerance=1)
    maps = np.zeros((2, 4, 4), int)
    for other in (np.zeros((2, 4, 5), int), np.zeros((2, 4, 4, 1), int)):
        with pytest.raises(ValueError, match="do not fit"):
            jax.eval_shape(metric, other, maps)
    with pytest.raises(ValueError, match="one entry per example"):
        jax.eval_shape(metric, maps, maps, np.ones((2, 4), bool))


def test_a_negative_tolerance_raises():
    maps = np.zeros((1, 4, 4), int)
    with pytest.raises(ValueError, match="tolerance must not be negative, got -1"):
        boundary_f1(maps, maps, num_classes=2, tolerance=-1)
