"""Closed forms in NumPy, parity with optax, exact gradients, masks, saturated logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from opsin.losses.classification import (
    binary_cross_entropy_loss,
    cross_entropy_loss,
    focal_loss,
    sigmoid_focal_loss,
)
from opsin.losses.reduction import weighted_mean

GAMMAS = [0.0, 0.5, 1.0, 2.0, 5.0]
CLASSES = 5
SOFTMAX_LOSSES = [cross_entropy_loss, focal_loss]
SIGMOID_LOSSES = [binary_cross_entropy_loss, sigmoid_focal_loss]


@pytest.fixture(scope="module")
def logits():
    return 3.0 * jax.random.normal(jax.random.key(1), (2, 3, 4, CLASSES))


@pytest.fixture(scope="module")
def labels():
    return jax.random.randint(jax.random.key(2), (2, 3, 4), 0, CLASSES)


@pytest.fixture(scope="module")
def soft_labels():
    return jax.random.dirichlet(jax.random.key(3), jnp.ones(CLASSES), (2, 3, 4))


@pytest.fixture(scope="module")
def binary_labels():
    return jax.random.bernoulli(jax.random.key(4), 0.5, (2, 3, 4, CLASSES))


def log_softmax(logits):
    """float64 reference."""
    z = np.asarray(logits, np.float64)
    return z - np.log(np.sum(np.exp(z), axis=-1, keepdims=True))


def gradient(loss, logits, labels, **options):
    return jax.grad(lambda z: jnp.sum(loss(z, labels, **options)))(logits)


@pytest.mark.parametrize("kind", ["labels", "soft_labels"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, (0.5, 2.0, 1.0, 0.0, 3.0)])
def test_cross_entropy_closed_form(request, logits, kind, smoothing, weights):
    given = request.getfixturevalue(kind)
    t = np.eye(CLASSES)[np.asarray(given)] if kind == "labels" else np.asarray(given, np.float64)
    t = (1 - smoothing) * t + smoothing / CLASSES
    expected = -np.sum(np.asarray(weights or 1.0) * t * log_softmax(logits), axis=-1)
    actual = cross_entropy_loss(logits, given, smoothing=smoothing, class_weights=weights)
    assert actual.shape == logits.shape[:-1]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_cross_entropy_is_optax_without_options(logits, labels, soft_labels):
    hard = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    np.testing.assert_allclose(cross_entropy_loss(logits, labels), hard, rtol=1e-5, atol=1e-6)
    soft = optax.softmax_cross_entropy(logits, soft_labels)
    np.testing.assert_allclose(cross_entropy_loss(logits, soft_labels), soft, rtol=1e-6)


def test_cross_entropy_gradient_is_p_minus_t(logits, labels, soft_labels):
    p = np.exp(log_softmax(logits))
    one_hot = np.eye(CLASSES)[np.asarray(labels)]
    for given, t in [(labels, one_hot), (soft_labels, soft_labels)]:
        np.testing.assert_allclose(gradient(cross_entropy_loss, logits, given), p - t, atol=1e-6)


def test_cross_entropy_is_entropy_plus_divergence_and_shift_invariant(logits, soft_labels):
    t = np.asarray(soft_labels, np.float64)
    entropy = -np.sum(t * np.log(t), axis=-1)
    divergence = optax.kl_divergence(jax.nn.log_softmax(logits), soft_labels)
    loss = cross_entropy_loss(logits, soft_labels)
    np.testing.assert_allclose(loss, entropy + divergence, rtol=1e-5)
    shifted = cross_entropy_loss(logits + 1024.0, soft_labels)
    np.testing.assert_allclose(loss, shifted, atol=2e-3)  # float32 has steps of 1e-4 at 1024


def test_uniform_logits_cost_log_classes(logits, labels):
    loss = cross_entropy_loss(jnp.zeros_like(logits), labels)
    np.testing.assert_allclose(loss, np.log(CLASSES), rtol=1e-6)


def test_minus_infinity_takes_a_class_out(logits, labels):
    labels = jnp.minimum(labels, CLASSES - 2)
    masked = logits.at[..., -1].set(-jnp.inf)
    expected = cross_entropy_loss(logits[..., :-1], labels)
    np.testing.assert_allclose(cross_entropy_loss(masked, labels), expected, rtol=1e-6)
    slope = gradient(cross_entropy_loss, masked, labels)
    assert jnp.isfinite(slope).all()
    assert (slope[..., -1] == 0).all()


@pytest.mark.parametrize("gamma", GAMMAS)
def test_focal_closed_form_and_gradient(logits, labels, soft_labels, gamma):
    """Integer label, q = 1 − p_y: the gradient is (γ p_y q^(γ−1) log p_y − q^γ) (one_hot − p)."""
    log_p = log_softmax(logits)
    p = np.exp(log_p)
    for given, t in [(labels, np.eye(CLASSES)[np.asarray(labels)]), (soft_labels, soft_labels)]:
        expected = -np.sum(np.asarray(t, np.float64) * (1 - p) ** gamma * log_p, axis=-1)
        actual = focal_loss(logits, given, gamma=gamma)
        np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-6)
    one_hot = np.eye(CLASSES)[np.asarray(labels)]
    own = np.sum(one_hot * p, axis=-1, keepdims=True)
    slope = gamma * own * (1 - own) ** (gamma - 1) * np.log(own) - (1 - own) ** gamma
    actual = gradient(focal_loss, logits, labels, gamma=gamma)
    np.testing.assert_allclose(actual, slope * (one_hot - p), rtol=1e-4, atol=2e-6)


def test_focal_loss_without_focus_is_cross_entropy(logits, labels, binary_labels):
    weights = (0.5, 2.0, 1.0, 0.0, 3.0)
    focal = focal_loss(logits, labels, gamma=0.0, alpha=weights)
    plain = cross_entropy_loss(logits, labels, class_weights=weights)
    np.testing.assert_allclose(focal, plain, rtol=1e-6)
    focal = sigmoid_focal_loss(logits, binary_labels, gamma=0.0, alpha=None)
    np.testing.assert_allclose(focal, binary_cross_entropy_loss(logits, binary_labels), rtol=1e-6)


def test_focal_loss_discounts_easy_examples(labels):
    """At p = 0.9, γ = 2 makes it a hundred times less (Lin et al., 2017, section 3.2)."""
    easy = jnp.log(jnp.where(labels[..., None] == jnp.arange(CLASSES), 0.9, 0.025))
    ratio = focal_loss(easy, labels) / cross_entropy_loss(easy, labels)
    np.testing.assert_allclose(ratio, 0.01, rtol=1e-5)


@pytest.mark.parametrize("alpha", [None, 0.25])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_sigmoid_focal_closed_form(logits, binary_labels, gamma, alpha):
    y = np.asarray(binary_labels)
    p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    p_t = np.where(y, p, 1 - p)
    alpha_t = 1.0 if alpha is None else np.where(y, alpha, 1 - alpha)
    expected = -alpha_t * (1 - p_t) ** gamma * np.log(p_t)
    actual = sigmoid_focal_loss(logits, binary_labels, gamma=gamma, alpha=alpha)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-7)


def test_binary_cross_entropy_closed_form_and_gradient(logits, binary_labels, soft_labels):
    p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    for given in (binary_labels, soft_labels):
        y = np.asarray(given, np.float64)
        expected = -y * np.log(p) - (1 - y) * np.log(1 - p)
        np.testing.assert_allclose(binary_cross_entropy_loss(logits, given), expected, rtol=1e-5)
        slope = gradient(binary_cross_entropy_loss, logits, given)
        np.testing.assert_allclose(slope, p - y, atol=1e-6)


def test_binary_cross_entropy_is_cross_entropy_of_two_classes(logits, binary_labels):
    pair = jnp.stack([jnp.zeros_like(logits), logits], axis=-1)
    two = cross_entropy_loss(pair, binary_labels.astype(jnp.int32))
    one = binary_cross_entropy_loss(logits, binary_labels)
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def test_a_confidently_wrong_unit_learns_from_cross_entropy_not_from_squared_error():
    z, y = jnp.array(-6.0), jnp.array(1.0)
    np.testing.assert_allclose(gradient(binary_cross_entropy_loss, z, y), -0.99753, atol=5e-6)
    squared = jax.grad(lambda z: (jax.nn.sigmoid(z) - y) ** 2)(z)
    np.testing.assert_allclose(squared, -0.00492, atol=5e-6)


def extreme_logits():
    """Patterns of 0, ±1e4 and values where float32 rounds p to 1, for three classes; 7³ of them."""
    values = np.array([0.0, 1e4, -1e4, 16.0, 17.0, 90.0, -90.0], np.float32)
    return np.stack(np.meshgrid(values, values, values), axis=-1).reshape(-1, 3)


def assert_finite(loss, logits, labels):
    @jax.jit
    def both(z):
        value, pull = jax.vjp(lambda z: loss(z, labels), z)
        return value, pull(jnp.ones_like(value))[0]

    value, slope = map(np.asarray, both(logits))
    assert np.isfinite(value).all()
    assert (value >= 0).all()
    assert np.isfinite(slope).all()
    assert np.abs(slope).max() <= 4.0


@pytest.mark.parametrize("gamma", [None, *GAMMAS])
def test_softmax_losses_are_finite_at_saturated_logits(gamma):
    loss = cross_entropy_loss if gamma is None else functools.partial(focal_loss, gamma=gamma)
    logits = extreme_logits()
    assert_finite(loss, logits, np.arange(len(logits)) % 3)
    assert_finite(loss, logits, np.full(logits.shape, 1 / 3, np.float32))


@pytest.mark.parametrize("gamma", [None, *GAMMAS])
def test_sigmoid_losses_are_finite_at_saturated_logits(gamma):
    loss = binary_cross_entropy_loss
    if gamma is not None:
        loss = functools.partial(sigmoid_focal_loss, gamma=gamma)
    z = np.array([0.0, 1e4, -1e4, 17.0, -17.0, 90.0, -90.0], np.float32)
    assert_finite(loss, *np.meshgrid(z, np.array([0.0, 0.3, 1.0], np.float32)))


@pytest.mark.parametrize("loss", SOFTMAX_LOSSES)
@pytest.mark.parametrize("ignored", [255, -1, 2])
def test_ignored_labels_change_nothing(loss, logits, labels, ignored):
    """Value and gradient of ignored entries are exactly 0, even of NaN; the others stay."""
    mask = labels == 2
    given = jnp.where(mask, ignored, labels)
    broken = jnp.where(mask[..., None], jnp.nan, logits)
    actual = loss(broken, given, ignore_label=ignored)
    assert mask.any()
    assert (actual[mask] == 0).all()
    np.testing.assert_array_equal(actual[~mask], loss(logits, labels)[~mask])
    slope = gradient(loss, broken, given, ignore_label=ignored)
    assert (slope[mask] == 0).all()
    np.testing.assert_array_equal(slope[~mask], gradient(loss, logits, labels)[~mask])


@pytest.mark.parametrize("loss", SOFTMAX_LOSSES)
def test_masks_leave_no_nan_on_the_way(loss, logits, labels, soft_labels):
    """Else `jax_debug_nans` would stop at an ignored pixel."""
    keep = labels != 2
    with jax.debug_nans(True):
        ignored = gradient(loss, logits, jnp.where(keep, labels, 255), ignore_label=255)
        broken = jnp.where(keep[..., None], soft_labels, jnp.inf)
        masked = gradient(loss, logits, broken, where=keep)
    assert np.isfinite(ignored).all()
    assert np.isfinite(masked).all()


@pytest.mark.parametrize("loss", SOFTMAX_LOSSES)
def test_bytes_as_labels(loss, logits, labels):
    """Masks are stored as uint8; −1 and 300 classes do not fit a byte and must work."""
    expected = loss(logits, labels)
    actual = loss(logits, labels.astype(jnp.uint8), ignore_label=-1)
    np.testing.assert_array_equal(actual, expected)
    wide = jax.eval_shape(loss, np.zeros((2, 300)), np.zeros(2, np.uint8))
    assert wide.shape == (2,)


@pytest.mark.parametrize("loss", SOFTMAX_LOSSES + SIGMOID_LOSSES)
@pytest.mark.parametrize("kind", ["integer", "soft"])
def test_where_masks_value_and_gradient(loss, kind, logits, labels, soft_labels, binary_labels):
    if loss in SOFTMAX_LOSSES:
        given = labels if kind == "integer" else soft_labels
        keep = labels != 2
        broken = jnp.where(keep[..., None], logits, jnp.nan)
    else:
        given = binary_labels if kind == "integer" else soft_labels
        keep = logits < 1.0
        broken = jnp.where(keep, logits, jnp.nan)
    actual = loss(broken, given, where=keep)
    assert (actual[~keep] == 0).all()
    np.testing.assert_array_equal(actual[keep], loss(logits, given)[keep])
    slope = gradient(loss, broken, given, where=keep)
    assert (slope[~keep] == 0).all()
    np.testing.assert_array_equal(slope[keep], gradient(loss, logits, given)[keep])


@pytest.mark.parametrize("loss", SOFTMAX_LOSSES)
def test_integer_labels_are_one_hot_labels(loss, logits, labels):
    one_hot = jax.nn.one_hot(labels, CLASSES)
    np.testing.assert_array_equal(loss(logits, labels), loss(logits, one_hot))


@pytest.mark.parametrize("loss", SOFTMAX_LOSSES)
@pytest.mark.parametrize("label", [-1, CLASSES, 255])
def test_a_label_that_is_no_class_gives_nan(loss, label, logits, labels):
    actual = np.asarray(loss(logits, labels.at[0, 0, 0].set(label)))
    assert np.isnan(actual[0, 0, 0])
    assert np.isfinite(actual.ravel()[1:]).all()


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("loss", SOFTMAX_LOSSES + SIGMOID_LOSSES)
def test_small_floats_are_computed_in_float32(loss, dtype, logits, labels, binary_labels):
    given = labels if loss in SOFTMAX_LOSSES else binary_labels
    small = logits.astype(dtype)
    actual = loss(small, given)
    assert actual.dtype == jnp.float32
    np.testing.assert_array_equal(actual, loss(small.astype(jnp.float32), given))
    assert gradient(loss, small, given).dtype == dtype


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        (cross_entropy_loss, {"smoothing": 0.1, "class_weights": (1.0, 2.0, 3.0, 4.0, 5.0)}),
        (cross_entropy_loss, {"ignore_label": 2}),
        (focal_loss, {"gamma": 0.5, "alpha": (1.0, 2.0, 3.0, 4.0, 5.0), "ignore_label": 2}),
        (binary_cross_entropy_loss, {}),
        (sigmoid_focal_loss, {"gamma": 0.5}),
    ],
)
def test_jit_changes_nothing(loss, options, logits, labels, binary_labels):
    given = labels if loss in SOFTMAX_LOSSES else binary_labels
    compiled = jax.jit(functools.partial(loss, **options))(logits, given)
    np.testing.assert_allclose(compiled, loss(logits, given, **options), rtol=1e-5, atol=1e-7)


def test_weighted_mean_of_torch(logits, labels):
    """Σ w_y nll / Σ w_y is one reduction of the same losses, Σ w_y nll / m the other."""
    weights = jnp.array([0.5, 2.0, 1.0, 0.0, 3.0])
    y = np.asarray(labels)
    nll = -np.take_along_axis(log_softmax(logits), y[..., None], axis=-1)[..., 0]
    w = np.asarray(weights)[y]
    by_weight = weighted_mean(cross_entropy_loss(logits, labels), weights[labels])
    np.testing.assert_allclose(by_weight, np.sum(w * nll) / np.sum(w), rtol=1e-5)
    by_count = jnp.mean(cross_entropy_loss(logits, labels, class_weights=weights))
    np.testing.assert_allclose(by_count, np.sum(w * nll) / nll.size, rtol=1e-5)


@pytest.mark.parametrize(
    ("loss", "labels", "options", "message"),
    [
        (cross_entropy_loss, np.zeros((4, 1), int), {}, "do not fit logits"),
        (cross_entropy_loss, np.zeros((4, 5), int), {}, "do not fit logits"),
        (cross_entropy_loss, np.zeros(4), {}, "do not fit logits"),
        (cross_entropy_loss, np.zeros((4, 5)), {"ignore_label": 255}, "where with soft labels"),
        (cross_entropy_loss, np.zeros(4, int), {"smoothing": 1.5}, "smoothing"),
        (cross_entropy_loss, np.zeros(4, int), {"class_weights": (1.0,)}, "each of 5"),
        (cross_entropy_loss, np.zeros(4, int), {"where": np.ones((4, 1), bool)}, "where"),
        (focal_loss, np.zeros(4, int), {"gamma": -1.0}, "gamma"),
        (focal_loss, np.zeros(4, int), {"alpha": 0.25}, "each of 5"),
        (focal_loss, np.zeros((4, 1), int), {}, "do not fit logits"),
        (binary_cross_entropy_loss, np.zeros((4, 1)), {}, "shape of logits"),
        (binary_cross_entropy_loss, np.zeros((4, 5)), {"where": np.ones(4, bool)}, "where"),
        (sigmoid_focal_loss, np.zeros(5), {}, "shape of logits"),
        (sigmoid_focal_loss, np.zeros((4, 5)), {"gamma": -0.1}, "gamma"),
    ],
)
def test_bad_input_raises(loss, labels, options, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(functools.partial(loss, **options), np.zeros((4, 5)), labels)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_of_a_class_that_is_taken_out_is_that_of_the_others(gamma):
    def loss(logits):
        return focal_loss(logits, jnp.array([0]), gamma=gamma)[0]

    value, gradient = jax.value_and_grad(loss)(jnp.array([[1.0, 2.0, -jnp.inf]]))
    expected, theirs = jax.value_and_grad(loss)(jnp.array([[1.0, 2.0]]))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(value, {0.0: 1.3133, 0.5: 1.1229, 2.0: 0.7019}[gamma], atol=1e-4)
    np.testing.assert_allclose(gradient, [[*theirs[0], 0.0]], rtol=1e-6)
