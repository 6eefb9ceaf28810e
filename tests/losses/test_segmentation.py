"""Closed forms in NumPy, the Lovász extension as an integral, masks, empty and saturated input."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy.ndimage import distance_transform_edt

from opsin.losses.classification import cross_entropy_loss, focal_loss
from opsin.losses.lovasz import lovasz_hinge_loss, lovasz_softmax_loss
from opsin.losses.segmentation import (
    boundary_loss,
    combined_loss,
    dice_loss,
    focal_tversky_loss,
    generalized_dice_loss,
    jaccard_loss,
    tversky_loss,
)

BATCH, HEIGHT, WIDTH, CLASSES = 8, 5, 6, 4
EVERY = np.ones((BATCH, HEIGHT, WIDTH), bool)


def tversky(alpha, beta, **options):
    return functools.partial(tversky_loss, alpha=alpha, beta=beta, **options)


def focal(gamma):
    return functools.partial(focal_tversky_loss, alpha=0.3, beta=0.7, gamma=gamma)


BOUNDED = {
    "tversky": tversky(0.3, 0.7),
    "tversky, smooth": tversky(1.5, 0.2, smooth=1.0),
    "dice": dice_loss,
    "dice, squared": functools.partial(dice_loss, squared=True),
    "jaccard": jaccard_loss,
    "focal tversky": focal(3.0),
    "generalized dice": generalized_dice_loss,
    "lovász softmax": lovasz_softmax_loss,
}
"""Losses with values in [0, 1]."""
LOSSES = BOUNDED | {"boundary": boundary_loss}
HINGE = {"lovász hinge": lovasz_hinge_loss}


@jax.jit
def run_on_device(logits, labels, where):
    """{name: (values [batch], gradient of their sum)} of all losses that take such logits."""

    def one(loss):
        value, pull = jax.vjp(lambda z: loss(z, labels, where=where), logits)
        return value, pull(jnp.ones_like(value))[0]

    losses = LOSSES | HINGE if logits.shape[-1] == 1 else LOSSES
    return {name: one(loss) for name, loss in losses.items()}


def run(logits, labels, where):
    return jax.tree.map(np.asarray, run_on_device(logits, labels, where))


def values(losses, logits, labels, **options):
    """Of several losses in one program, [losses, batch]."""
    every = jax.jit(lambda z, y: jnp.stack([f(z, y, **options) for f in losses]))
    return np.asarray(every(logits, labels))


@pytest.fixture(scope="module")
def logits():
    rng = np.random.default_rng(1)
    return 2 * rng.standard_normal((BATCH, HEIGHT, WIDTH, CLASSES), np.float32)


@pytest.fixture(scope="module")
def labels():
    """The second image has no class 3."""
    labels = np.random.default_rng(2).integers(0, CLASSES, (BATCH, HEIGHT, WIDTH), np.int32)
    labels[1] = np.minimum(labels[1], 2)
    return labels


def changed(x, *changes):
    """A copy with other values at some places: (place, value) each."""
    x = np.array(x)
    for place, value in changes:
        x[place] = value
    return x


def softmax(logits):
    z = np.exp(np.asarray(logits, np.float64) - np.max(logits, axis=-1, keepdims=True))
    return z / z.sum(-1, keepdims=True)


def probabilities(logits, labels):
    return softmax(logits), np.eye(logits.shape[-1])[np.asarray(labels)]


def counts(logits, labels):
    """TP, FP, FN and the volume, [batch, classes]."""
    p, t = probabilities(logits, labels)
    return [np.sum(x, axis=(1, 2)) for x in (p * t, p * (1 - t), (1 - p) * t, t)]


def mean_of_present(losses, volume):
    return np.sum(np.where(volume > 0, losses, 0.0), -1) / np.sum(volume > 0, -1)


def hard(prediction, classes=1):
    """Logits that are certain: of one class, its sigmoid is the prediction."""
    prediction = np.asarray(prediction)
    where = prediction[..., None] == (1 if classes == 1 else np.arange(classes))
    return np.float32(np.where(where, 1e4, -1e4))


def test_where_everything_counts_where_changes_nothing(logits, labels):
    plain = values(LOSSES.values(), logits, labels)
    everywhere = run(logits, labels, EVERY)
    for name, value in zip(LOSSES, plain, strict=True):
        np.testing.assert_allclose(value, everywhere[name][0], rtol=1e-5, err_msg=name)


def test_tversky_closed_form(logits, labels):
    tp, fp, fn, volume = counts(logits, labels)
    assert (volume == 0).sum() == 1
    weights = [(0.3, 0.7), (2.0, 0.1)]
    actual = values([tversky(*w) for w in weights], logits, labels)
    smoothed = values([tversky(*w, smooth=2.0) for w in weights], logits, labels)
    for i, (alpha, beta) in enumerate(weights):
        losses = 1 - tp / (tp + alpha * fp + beta * fn)
        np.testing.assert_allclose(actual[i], mean_of_present(losses, volume), rtol=1e-5)
        losses = 1 - (tp + 2.0) / (tp + alpha * fp + beta * fn + 2.0)  # now all classes count
        np.testing.assert_allclose(smoothed[i], losses.mean(-1), rtol=1e-5)


def test_dice_and_jaccard_closed_form(logits, labels):
    p, t = probabilities(logits, labels)
    volume = t.sum((1, 2))
    overlap = (p * t).sum((1, 2))
    dice = 2 * overlap / (p.sum((1, 2)) + volume)
    jaccard = overlap / (p.sum((1, 2)) + volume - overlap)
    squared = 2 * overlap / ((p**2).sum((1, 2)) + volume)
    forms = [
        (dice_loss, dice),
        (tversky(0.5, 0.5), dice),
        (functools.partial(dice_loss, squared=True), squared),
        (jaccard_loss, jaccard),
        (tversky(1.0, 1.0), jaccard),
    ]
    actual = values([loss for loss, _ in forms], logits, labels)
    for value, (_, index) in zip(actual, forms, strict=True):
        np.testing.assert_allclose(value, mean_of_present(1 - index, volume), rtol=1e-5)


def test_jaccard_and_dice_of_one_class_determine_each_other(logits, labels):
    for k in (0, 2):
        dice, jaccard = 1.0 - values([dice_loss, jaccard_loss], logits, labels, classes=(k,))
        np.testing.assert_allclose(jaccard, dice / (2.0 - dice), rtol=1e-5)


def test_tversky_and_dice_by_optax(logits, labels):
    """Which counts absent classes and smooths by 1."""
    one_hot = np.eye(CLASSES, dtype=np.float32)[labels]
    peer = optax.losses.dice_loss
    expected = jax.jit(lambda z, t: [peer(z, t, alpha=0.3, beta=0.7), peer(z, t)])(logits, one_hot)
    actual = values([tversky(0.3, 0.7), dice_loss], logits, labels, smooth=1.0)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_by_hand():
    """Two pixels found, two invented, one missed: TP = 2, FP = 2, FN = 1."""
    truth = np.array([[[1, 1, 0], [0, 1, 0]]])
    forms = [
        (tversky(0.25, 1.5), 1 - 2 / 4),
        (tversky(1.5, 0.25), 1 - 2 / 5.25),
        (tversky(0.5, 1.0, smooth=4.0), 2 / 8),
        (dice_loss, 1 - 4 / 7),
        (functools.partial(dice_loss, smooth=2.0), 1 - 8 / 11),
        (functools.partial(dice_loss, squared=True), 1 - 4 / 7),
        (functools.partial(dice_loss, squared=True, smooth=2.0), 1 - 8 / 11),
        (jaccard_loss, 1 - 2 / 5),
        (functools.partial(focal_tversky_loss, alpha=0.25, beta=1.5, gamma=2.0), 0.5**0.5),
        (generalized_dice_loss, 1 - 4 / 7),
        (lovasz_softmax_loss, 1 - 2 / 5),
    ]
    actual = values([loss for loss, _ in forms], hard([[[1, 1, 1], [1, 0, 0]]]), truth)
    np.testing.assert_allclose(actual[:, 0], [expected for _, expected in forms], rtol=1e-6)


def test_alpha_weighs_false_positives_and_beta_false_negatives():
    truth = np.array([[[1, 1, 0, 0]], [[1, 1, 0, 0]]])
    prediction = hard([[[1, 1, 1, 0]], [[1, 0, 0, 0]]])  # one invented; one missed
    weights = [(0.1, 0.2), (0.1, 5.0), (3.0, 0.2), (3.0, 5.0)]
    actual = values([tversky(*w) for w in weights], prediction, truth)
    alpha, beta = np.transpose(weights)
    np.testing.assert_allclose(actual[:, 0], alpha / (2 + alpha), rtol=1e-6)
    np.testing.assert_allclose(actual[:, 1], beta / (1 + beta), rtol=1e-6)


def test_weights_of_zero_are_precision_and_recall():
    truth, prediction = np.array([[[1, 1, 1, 0, 0]]]), hard([[[1, 1, 0, 1, 1]]])
    actual = values([tversky(1.0, 0.0), tversky(0.0, 1.0)], prediction, truth)
    np.testing.assert_allclose(actual[:, 0], [1 - 2 / 4, 1 - 2 / 3], rtol=1e-6)
    # Hardly anything is predicted, and at last nothing: there is no precision, and no slope.
    slope = jax.jit(jax.value_and_grad(lambda x: tversky(1.0, 0.0)(x, truth)[0]))
    for scale, expected in ((1.0, 2 / 5), (20.0, 2 / 5), (40.0, 0.0), (1e3, 0.0)):
        logits = np.full((1, 1, 5, 1), -scale, np.float32)
        value, gradient = slope(logits)
        assert np.isfinite(gradient).all(), scale
        np.testing.assert_allclose(value, expected, atol=1e-4)
    np.testing.assert_allclose(values([tversky(0.0, 1.0)], logits, truth), 1)


def test_over_both_of_two_classes_alpha_and_beta_cannot_be_told_apart():
    """FP of one class is FN of the other: with equal TP, exchanging α and β changes nothing."""
    truth = np.array([[[0, 0, 1, 1, 1]]])
    prediction = hard([[[0, 0, 0, 1, 1]]], classes=2)  # TP = 2 of each, one of class 1 is missed
    losses = [tversky(0.2, 0.8), tversky(0.8, 0.2)]
    both = values(losses, prediction, truth)
    np.testing.assert_allclose(both[0], both[1], rtol=1e-6)
    foreground = values(losses, prediction, truth, classes=(1,))
    np.testing.assert_allclose(foreground, [[0.8 / 2.8], [0.2 / 2.2]], rtol=1e-6)


def test_focal_tversky_closed_form(logits, labels):
    tp, fp, fn, volume = counts(logits, labels)
    index = tp / (tp + 0.3 * fp + 0.7 * fn)
    gammas = [0.5, 1.0, 4 / 3, 3.0]
    actual = values([focal(gamma) for gamma in gammas], logits, labels)
    for value, gamma in zip(actual, gammas, strict=True):
        expected = mean_of_present((1 - index) ** (1 / gamma), volume)
        np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_generalized_dice_closed_form(logits, labels):
    p, t = probabilities(logits, labels)
    for classes in (None, (1, 3)):
        expected = []
        for image in range(BATCH):
            above = below = 0.0
            for k in classes or range(CLASSES):
                if volume := t[image, ..., k].sum():
                    above += (p * t)[image, ..., k].sum() / volume**2
                    below += (p + t)[image, ..., k].sum() / volume**2
            expected.append(1 - 2 * above / below)
        actual = values([generalized_dice_loss], logits, labels, classes=classes)
        np.testing.assert_allclose(actual[0], expected, rtol=1e-5)


def jaccard_of_errors(wrong, truth):
    """The Jaccard loss if exactly the pixels `wrong` are: Berman et al., eq. 6."""
    union = np.sum(truth | wrong)
    return np.sum(wrong) / union if union else 0.0


def choquet(errors, truth):
    """The Lovász extension as an integral: of the loss of {errors ≥ level} over the levels."""
    levels = np.unique(np.append(errors, 0.0))
    return sum(
        (high - low) * jaccard_of_errors(errors >= high, truth)
        for low, high in itertools.pairwise(levels)
    )


def test_lovasz_softmax_is_the_extension(logits, labels):
    p, t = probabilities(logits, labels)
    errors, truth = np.abs(p - t), t == 1
    expected = [
        [choquet(errors[i, ..., k], truth[i, ..., k]) for k in range(CLASSES)] for i in range(BATCH)
    ]
    actual, _ = run(logits, labels, EVERY)["lovász softmax"]
    np.testing.assert_allclose(actual, mean_of_present(expected, t.sum((1, 2))), rtol=1e-5)


def test_lovasz_hinge_is_the_extension(logits, labels):
    """Over the pixels that count; with an empty mask it is the largest error."""
    keep = labels != 2
    truth = changed(labels == 1, (2, False))
    z = np.asarray(logits[..., 0], np.float64)
    errors = np.maximum(1 - np.where(truth, z, -z), 0)
    expected = [choquet(errors[i][on], truth[i][on]) for i, on in enumerate(keep)]
    np.testing.assert_allclose(expected[2], errors[2][keep[2]].max())
    actual, _ = run(logits[..., :1], truth.astype(np.int32), keep)["lovász hinge"]
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_lovasz_and_jaccard_agree_on_hard_predictions(logits, labels):
    results = run(hard(np.argmax(logits, axis=-1), CLASSES), labels, EVERY)
    assert (results["jaccard"][0] > 0.1).all()
    np.testing.assert_allclose(results["lovász softmax"][0], results["jaccard"][0], rtol=1e-6)


def test_lovasz_does_not_depend_on_the_order_of_ties(logits, labels):
    """Logits of three values over 30 pixels, and the pixels the other way round."""
    z = np.round(np.clip(logits[..., :1], -1.0, 1.0))
    there, back = run(z, labels % 2, EVERY), run(z[:, ::-1, ::-1], labels[:, ::-1, ::-1] % 2, EVERY)
    for name in ("lovász softmax", "lovász hinge"):
        np.testing.assert_allclose(there[name][0], back[name][0], rtol=1e-6)


def signed_distance(region):
    return distance_transform_edt(~region) - distance_transform_edt(region)


def test_boundary_closed_form(logits, labels):
    p, t = probabilities(logits, labels)
    expected = [
        np.mean(
            [
                np.mean(signed_distance(t[i, ..., k] == 1) * p[i, ..., k])
                for k in range(CLASSES)
                if t[i, ..., k].any()
            ]
        )
        for i in range(BATCH)
    ]
    actual, _ = run(logits, labels, EVERY)["boundary"]
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_boundary_rewards_the_truth_and_charges_by_distance():
    truth = np.repeat(np.int32([[1, 1, 0, 0, 0, 0]]), HEIGHT, axis=0)
    predictions = np.stack([truth, changed(truth, ((0, 2), 1)), changed(truth, ((0, 5), 1))])
    (value,) = values([boundary_loss], hard(predictions), np.stack([truth] * 3))
    assert value[0] < 0
    np.testing.assert_allclose(value[1:] - value[0], [1 / 30, 4 / 30], rtol=1e-5)


def test_boundary_of_both_of_two_classes_has_the_gradient_of_one(logits, labels):
    @jax.jit
    def slopes(z, y):
        both, one = (functools.partial(boundary_loss, classes=c) for c in (None, (1,)))
        return [jax.grad(lambda z, loss=loss: jnp.sum(loss(z, y)))(z) for loss in (both, one)]

    both, one = slopes(logits[..., :2], (labels == 1).astype(np.int32))
    assert np.abs(one).max() > 1e-3
    np.testing.assert_allclose(both, one, atol=1e-7)


def test_a_class_without_a_boundary_is_skipped(logits, labels):
    value, slope = run(logits, changed(labels, (0, 3)), EVERY)["boundary"]
    assert value[0] == 0
    np.testing.assert_array_equal(slope[0], 0)
    assert (value[1:] != 0).all()


def test_classes_are_averaged_each_on_its_own(logits, labels):
    losses = [LOSSES[name] for name in ("tversky", "dice, squared", "lovász softmax", "boundary")]
    pair, *each = (values(losses, logits, labels, classes=c) for c in ((2, 0), (2,), (0,)))
    np.testing.assert_allclose(pair, np.mean(each, axis=0), rtol=1e-5)


def test_renaming_classes_and_moving_pixels_change_nothing(logits, labels):
    order = np.array([2, 0, 3, 1])
    renamed = run(logits[..., order], np.argsort(order).astype(np.int32)[labels], EVERY)
    flipped = run(logits[:, ::-1, ::-1], labels[:, ::-1, ::-1], EVERY)
    for name, (value, slope) in run(logits, labels, EVERY).items():
        np.testing.assert_allclose(renamed[name][0], value, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(renamed[name][1], slope[..., order], atol=1e-6, err_msg=name)
        np.testing.assert_allclose(flipped[name][0], value, rtol=1e-5, err_msg=name)


def test_one_logit_is_the_foreground_of_two(logits, labels):
    z, y = logits[..., :1], (labels == 1).astype(np.int32)
    pair = np.concatenate([np.zeros_like(z), z], axis=-1)
    two = values(LOSSES.values(), pair, y, classes=(1,))
    one = run(z, y, EVERY)
    for name, expected in zip(LOSSES, two, strict=True):
        np.testing.assert_allclose(one[name][0], expected, rtol=1e-5, atol=1e-7, err_msg=name)


def test_ignored_pixels_might_as_well_be_cropped_away(logits, labels):
    """Value and gradient are those of the crop, whatever the rest holds."""
    keep = changed(EVERY, (np.s_[:, :, 4:], False))
    broken = np.where(keep[..., None], logits, np.float32(np.nan))
    masked = run(broken, np.where(keep, labels, np.int32(255)), keep)
    cropped = run(logits[:, :, :4], labels[:, :, :4], EVERY[:, :, :4])
    for name, (value, slope) in cropped.items():
        np.testing.assert_allclose(masked[name][0], value, rtol=1e-5, atol=1e-7, err_msg=name)
        inner = masked[name][1][:, :, :4]
        np.testing.assert_allclose(inner, slope, rtol=1e-4, atol=1e-7, err_msg=name)
        np.testing.assert_array_equal(masked[name][1][:, :, 4:], 0, err_msg=name)
        assert np.abs(slope).max() > 1e-4, name


@pytest.mark.parametrize("number", [CLASSES, 1])
def test_an_image_without_counted_pixels_costs_nothing(number, logits, labels):
    keep = changed(EVERY, (0, False))
    z = changed(logits[..., :number], (0, np.nan))
    y = changed(labels % max(number, 2), (0, 255))
    for name, (value, slope) in run(z, y, keep).items():
        assert value[0] == 0, name
        np.testing.assert_array_equal(slope[0], 0, err_msg=name)
        assert (value[1:] != 0).all(), name
        assert np.isfinite(slope).all(), name


def test_empty_masks_teach_a_foreground_loss_only_with_smoothing():
    """α FP / (α FP + s), whose gradient takes false positives down."""
    z = np.zeros((BATCH, HEIGHT, WIDTH, 1), np.float32)  # FP = 15
    for name, (value, slope) in run(z, np.zeros_like(EVERY, np.int32), EVERY).items():
        if name == "tversky, smooth":
            np.testing.assert_allclose(value, 22.5 / 23.5, rtol=1e-6)
            assert (slope > 0).all()
        elif name == "lovász hinge":
            assert (value == 1).all()
            assert (slope.sum((1, 2, 3)) > 0).all()
        else:
            assert (value == 0).all(), name
            assert (slope == 0).all(), name


EXTREMES = [0.0, 1e4, -1e4, 17.0, -17.0, 90.0, -90.0]


@pytest.mark.parametrize("number", [CLASSES, 1])
def test_values_and_gradients_are_finite_at_saturated_logits(number):
    """Of logits of all magnitudes, of perfect and of wholly wrong ones, with classes absent."""
    rng = np.random.default_rng(0)
    for _ in range(10):
        y = rng.integers(0, max(number, 2), EVERY.shape) * rng.integers(0, 2, (BATCH, 1, 1))
        keep = rng.random(EVERY.shape) < rng.uniform(0.05, 1.0, (BATCH, 1, 1))
        perfect = np.asarray(hard(y, number))
        for z in (rng.choice(EXTREMES, perfect.shape), perfect, -perfect):
            for name, (value, slope) in run(z.astype(np.float32), y, keep).items():
                assert np.isfinite(value).all(), name
                assert np.isfinite(slope).all(), name
                if name in BOUNDED:
                    assert (value >= 0).all(), name
                    assert (value <= 1 + 1e-6).all(), name
                if z is perfect:
                    assert (value <= 0).all(), name  # exactly 0, or below: a boundary loss


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_losses_lie_between_0_and_1(data):
    values = st.floats(-1e4, 1e4, width=32)
    few = data.draw(hnp.arrays(np.float32, (5, CLASSES), elements=values))
    y, keep, which = (
        data.draw(hnp.arrays(np.int32, EVERY.shape, elements=st.integers(0, top), fill=st.just(0)))
        for top in (CLASSES - 1, 1, 4)
    )
    keep = keep == 0
    for name, (value, slope) in run(few[which], np.where(keep, y, 255), keep).items():
        assert np.isfinite(value).all(), name
        assert np.isfinite(slope).all(), name
        if name in BOUNDED:
            assert (value >= 0).all(), name
            assert (value <= 1 + 1e-6).all(), name


@pytest.mark.parametrize("number", [CLASSES, 1])
def test_gradients_by_differences(number, logits, labels):
    z, y = logits[..., :number], labels % max(number, 2)
    direction = np.random.default_rng(4).standard_normal(z.shape, np.float32)
    steps = np.float32([1e-3, -1e-3])
    ahead, behind = (run(z + step * direction, y, EVERY) for step in steps)
    for name, (_, slope) in run(z, y, EVERY).items():
        expected = (ahead[name][0] - behind[name][0]) / 2e-3  # few errors change places
        actual = np.sum(slope * direction, axis=(1, 2, 3))
        np.testing.assert_allclose(actual, expected, rtol=2e-2, atol=2e-3, err_msg=name)


@pytest.mark.parametrize("number", [CLASSES, 1])
@pytest.mark.parametrize("label", [-1, 255])
def test_a_label_that_is_no_class_gives_nan(number, label, logits, labels):
    """In its image, even if it is the only label there."""
    y = changed(labels % max(number, 2), (0, label), ((1, 0, 0), label))
    for name, (value, _) in run(logits[..., :number], y, EVERY).items():
        assert np.isnan(value[:2]).all(), name
        assert np.isfinite(value[2:]).all(), name


def test_small_floats_and_bytes_are_computed_in_float32(logits, labels):
    small = logits.astype(jnp.bfloat16)
    single = run(small.astype(np.float32), labels, EVERY)
    for name, (value, slope) in run(small, labels.astype(np.uint8), EVERY).items():
        assert value.dtype == jnp.float32, name
        np.testing.assert_allclose(value, single[name][0], rtol=1e-6, err_msg=name)
        assert slope.dtype == jnp.bfloat16, name


def test_volumes_too(logits, labels):
    shape = (BATCH, HEIGHT, 2, 3)
    volumes = values(BOUNDED.values(), logits.reshape(*shape, CLASSES), labels.reshape(shape))
    flat = run(logits, labels, EVERY)
    for name, value in zip(BOUNDED, volumes, strict=True):
        np.testing.assert_allclose(value, flat[name][0], rtol=1e-5, err_msg=name)


@pytest.mark.proofs
def test_eight_devices_are_one(logits, labels):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    keep = labels != 1
    spread = run_on_device(*jax.device_put((logits, labels, keep), sharding))
    for name, (value, slope) in run(logits, labels, keep).items():
        assert spread[name][0].sharding.is_equivalent_to(sharding, 1), name
        np.testing.assert_allclose(spread[name][0], value, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(spread[name][1], slope, atol=1e-6, err_msg=name)


def test_combined_loss_is_the_weighted_sum(logits, labels):
    keep = changed(labels != 2, (2, False))
    pixels = keep.sum((1, 2))
    assert pixels[0] != pixels[1]
    terms = ((0.5, cross_entropy_loss), (2.0, dice_loss), (1.0, focal_loss))
    combined = functools.partial(combined_loss, terms=terms)
    (actual,) = values([combined], logits, np.where(keep, labels, np.int32(255)), where=keep)
    expected = 2.0 * run(logits, labels, keep)["dice"][0]
    entropy, focused = values([cross_entropy_loss, focal_loss], logits, labels)
    for weight, of_pixels in ((0.5, entropy), (1.0, focused)):
        sums = np.sum(np.where(keep, of_pixels, 0.0), axis=(1, 2))
        expected += weight * sums / np.maximum(pixels, 1)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    assert actual[2] == 0
    alone = functools.partial(combined_loss, terms=((1.0, cross_entropy_loss),))
    (plain,) = values([alone], logits, labels)
    np.testing.assert_allclose(plain, entropy.mean((1, 2)), rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        (tversky_loss, {"alpha": -0.1, "beta": 0.5}, "alpha and beta must be at least 0, and one"),
        (tversky_loss, {"alpha": 0.5, "beta": -0.1}, "alpha and beta must be at least 0, and one"),
        (tversky_loss, {"alpha": 0.0, "beta": 0.0}, "alpha and beta must be at least 0, and one"),
        (tversky(0.5, 0.5), {"smooth": -1.0}, "smooth"),
        (tversky(0.5, 0.5), {"classes": ()}, "each once"),
        (tversky(0.5, 0.5), {"classes": (0, 4)}, "some of the 4"),
        (tversky(0.5, 0.5), {"classes": (-1,)}, "some of the 4"),
        (tversky(0.5, 0.5), {"classes": (1, 1)}, "each once"),
        (tversky(0.5, 0.5), {"where": np.ones((2, 3), bool)}, "where"),
        (dice_loss, {"squared": True, "smooth": -1.0}, "smooth"),
        (focal_tversky_loss, {"alpha": 0.5, "beta": 0.5, "gamma": 0.0}, "gamma"),
        (lovasz_hinge_loss, {}, "one logit per pixel, not 4"),
        (combined_loss, {"terms": ()}, "at least one"),
        (combined_loss, {"terms": ((1.0, lambda z, y, where: z),)}, "gives"),
    ],
)
def test_bad_options_raise(loss, options, message):
    images, masks = np.zeros((2, 3, 3, 4)), np.zeros((2, 3, 3), int)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(functools.partial(loss, **options), images, masks)


@pytest.mark.parametrize(
    ("loss", "images", "masks"),
    [
        (dice_loss, np.zeros((2, 3, 3, 4)), np.zeros((2, 3, 1), int)),
        (dice_loss, np.zeros((2, 3, 3, 4)), np.zeros((2, 3, 3))),
        (lovasz_softmax_loss, np.zeros((2, 3, 3, 4)), np.zeros((2, 3, 3, 4), int)),
        (boundary_loss, np.zeros((2, 9, 4)), np.zeros((2, 9), int)),
    ],
)
def test_bad_shapes_raise(loss, images, masks):
    with pytest.raises(ValueError, match=r"do not fit logits|needs logits"):
        jax.eval_shape(loss, images, masks)
