"""Closed forms in NumPy, parity with optax, exact gradients, masks, saturated logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from opsin.losses import classification
from opsin.losses.reduction import weighted_mean

GAMMAS = [0.5, 2.0, *(pytest.param(gamma, marks=pytest.mark.proofs) for gamma in (0.0, 1.0, 5.0))]
CLASSES = 5

# Compiled, which takes less time here than to run operation by operation.
cross_entropy_loss = jax.jit(
    classification.cross_entropy_loss,
    static_argnames=("smoothing", "class_weights", "ignore_label"),
)
focal_loss = jax.jit(classification.focal_loss, static_argnames=("gamma", "alpha", "ignore_label"))
binary_cross_entropy_loss = jax.jit(classification.binary_cross_entropy_loss)
sigmoid_focal_loss = jax.jit(classification.sigmoid_focal_loss, static_argnames=("gamma", "alpha"))
SOFTMAX_LOSSES = [cross_entropy_loss, focal_loss]
SIGMOID_LOSSES = [binary_cross_entropy_loss, sigmoid_focal_loss]


@pytest.fixture(scope="module")
def logits():
    return 3 * np.random.default_rng(1).standard_normal((2, 3, 4, CLASSES), np.float32)


@pytest.fixture(scope="module")
def labels():
    return np.random.default_rng(2).integers(0, CLASSES, (2, 3, 4), np.int32)


@pytest.fixture(scope="module")
def soft_labels():
    return np.random.default_rng(3).dirichlet(np.ones(CLASSES), (2, 3, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def binary_labels():
    return np.random.default_rng(4).random((2, 3, 4, CLASSES)) < 0.5


def log_softmax(logits):
    """float64 reference."""
    z = np.asarray(logits, np.float64)
    return z - np.log(np.sum(np.exp(z), axis=-1, keepdims=True))


@functools.partial(jax.jit, static_argnums=0, static_argnames=("gamma", "ignore_label"))
def both(loss, logits, labels, **options):
    """Values, and the gradient of their sum, in one program."""
    values, pull = jax.vjp(lambda z: loss(z, labels, **options), logits)
    return values, pull(jnp.ones_like(values))[0]


def gradient(*arguments, **options):
    return np.asarray(both(*arguments, **options)[1])


@pytest.mark.parametrize("kind", ["labels", "soft_labels"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, (0.5, 2.0, 1.0, 0.0, 3.0)])
def test_cross_entropy_closed_form(request, logits, kind, smoothing, weights):
    given = request.getfixturevalue(kind)
    t = np.eye(CLASSES)[given] if kind == "labels" else np.float64(given)
    t = (1 - smoothing) * t + smoothing / CLASSES
    expected = -np.sum(np.asarray(weights or 1.0) * t * log_softmax(logits), axis=-1)
    actual = cross_entropy_loss(logits, given, smoothing=smoothing, class_weights=weights)
    assert actual.shape == logits.shape[:-1]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_cross_entropy_is_optax_without_options(logits, labels, soft_labels):
    hard = jax.jit(optax.softmax_cross_entropy_with_integer_labels)(logits, labels)
    np.testing.assert_allclose(cross_entropy_loss(logits, labels), hard, rtol=1e-5, atol=1e-6)
    soft = jax.jit(optax.softmax_cross_entropy)(logits, soft_labels)
    np.testing.assert_allclose(cross_entropy_loss(logits, soft_labels), soft, rtol=1e-6)


def test_cross_entropy_gradient_is_p_minus_t(logits, labels, soft_labels):
    p = np.exp(log_softmax(logits))
    one_hot = np.eye(CLASSES)[labels]
    for given, t in [(labels, one_hot), (soft_labels, soft_labels)]:
        np.testing.assert_allclose(gradient(cross_entropy_loss, logits, given), p - t, atol=1e-6)


def test_cross_entropy_is_entropy_plus_divergence_and_shift_invariant(logits, soft_labels):
    t = np.asarray(soft_labels, np.float64)
    entropy = -np.sum(t * np.log(t), axis=-1)
    divergence = jax.jit(optax.kl_divergence)(np.float32(log_softmax(logits)), soft_labels)
    loss = cross_entropy_loss(logits, soft_labels)
    np.testing.assert_allclose(loss, entropy + np.asarray(divergence), rtol=1e-5)
    shifted = cross_entropy_loss(logits + 1024.0, soft_labels)
    np.testing.assert_allclose(loss, shifted, atol=2e-3)  # float32 has steps of 1e-4 at 1024


def test_uniform_logits_cost_log_classes(logits, labels):
    loss = cross_entropy_loss(np.zeros_like(logits), labels)
    np.testing.assert_allclose(loss, np.log(CLASSES), rtol=1e-6)


def test_minus_infinity_takes_a_class_out(logits, labels):
    labels = np.minimum(labels, CLASSES - 2)
    masked = logits.copy()
    masked[..., -1] = -np.inf
    expected = cross_entropy_loss(logits[..., :-1], labels)
    np.testing.assert_allclose(cross_entropy_loss(masked, labels), expected, rtol=1e-6)
    slope = gradient(cross_entropy_loss, masked, labels)
    assert np.isfinite(slope).all()
    assert (slope[..., -1] == 0).all()


@pytest.mark.parametrize("gamma", GAMMAS)
def test_focal_closed_form_and_gradient(logits, labels, soft_labels, gamma):
    """Integer label, q = 1 − p_y: the gradient is (γ p_y q^(γ−1) log p_y − q^γ) (one_hot − p)."""
    log_p = log_softmax(logits)
    p = np.exp(log_p)
    values, actual = both(focal_loss, logits, labels, gamma=gamma)
    soft = focal_loss(logits, soft_labels, gamma=gamma)
    for found, t in [(values, np.eye(CLASSES)[labels]), (soft, soft_labels)]:
        expected = -np.sum(np.asarray(t, np.float64) * (1 - p) ** gamma * log_p, axis=-1)
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)
    one_hot = np.eye(CLASSES)[labels]
    own = np.sum(one_hot * p, axis=-1, keepdims=True)
    slope = gamma * own * (1 - own) ** (gamma - 1) * np.log(own) - (1 - own) ** gamma
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
    easy = np.float32(np.log(np.where(labels[..., None] == np.arange(CLASSES), 0.9, 0.025)))
    ratio = np.asarray(focal_loss(easy, labels)) / cross_entropy_loss(easy, labels)
    np.testing.assert_allclose(ratio, 0.01, rtol=1e-5)


@pytest.mark.parametrize("alpha", [None, 0.25])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_sigmoid_focal_closed_form(logits, binary_labels, gamma, alpha):
    y = binary_labels
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
        values, slope = both(binary_cross_entropy_loss, logits, given)
        np.testing.assert_allclose(values, expected, rtol=1e-5)
        np.testing.assert_allclose(slope, p - y, atol=1e-6)


def test_binary_cross_entropy_is_cross_entropy_of_two_classes(logits, binary_labels):
    pair = np.stack([np.zeros_like(logits), logits], axis=-1)
    two = cross_entropy_loss(pair, binary_labels.astype(np.int32))
    one = binary_cross_entropy_loss(logits, binary_labels)
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def test_a_confidently_wrong_unit_learns_from_cross_entropy_not_from_squared_error():
    z, y = np.float32(-6), np.float32(1)
    np.testing.assert_allclose(gradient(binary_cross_entropy_loss, z, y), -0.99753, atol=5e-6)
    squared = jax.jit(jax.grad(lambda z: (jax.nn.sigmoid(z) - y) ** 2))(z)
    np.testing.assert_allclose(squared, -0.00492, atol=5e-6)


def extreme_logits():
    """Patterns of 0, ±1e4 and values where float32 rounds p to 1, for three classes; 7³ of them."""
    values = np.array([0.0, 1e4, -1e4, 16.0, 17.0, 90.0, -90.0], np.float32)
    return np.stack(np.meshgrid(values, values, values), axis=-1).reshape(-1, 3)


def assert_finite(loss, logits, labels):
    value, slope = map(np.asarray, both(loss, logits, labels))
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
    given = np.where(mask, np.int32(ignored), labels)
    broken = np.where(mask[..., None], np.float32(np.nan), logits)
    assert mask.any()
    plain = map(np.asarray, both(loss, logits, labels))
    masked = map(np.asarray, both(loss, broken, given, ignore_label=ignored))
    for actual, expected in zip(masked, plain, strict=True):
        assert (actual[mask] == 0).all()
        np.testing.assert_array_equal(actual[~mask], expected[~mask])


@pytest.mark.proofs
@pytest.mark.parametrize("loss", [classification.cross_entropy_loss, classification.focal_loss])
def test_masks_leave_no_nan_on_the_way(loss, logits, labels, soft_labels):
    """Else `jax_debug_nans` would stop at an ignored pixel."""
    keep = labels != 2

    def slope(labels, **options):  # not compiled: of a program only the results are looked at
        return jax.grad(lambda z: jnp.sum(loss(z, labels, **options)))(logits)

    with jax.debug_nans(True):
        ignored = slope(np.where(keep, labels, np.int32(255)), ignore_label=255)
        broken = np.where(keep[..., None], soft_labels, np.float32(np.inf))
        masked = slope(broken, where=keep)
    assert np.isfinite(ignored).all()
    assert np.isfinite(masked).all()


@pytest.mark.parametrize("loss", SOFTMAX_LOSSES)
def test_bytes_as_labels(loss, logits, labels):
    """Masks are stored as uint8; −1 and 300 classes do not fit a byte and must work."""
    expected, _ = both(loss, logits, labels)
    actual = loss(logits, labels.astype(np.uint8), ignore_label=-1)
    np.testing.assert_array_equal(actual, expected)
    wide = jax.eval_shape(loss, np.zeros((2, 300)), np.zeros(2, np.uint8))
    assert wide.shape == (2,)


@pytest.mark.parametrize("loss", SOFTMAX_LOSSES + SIGMOID_LOSSES)
@pytest.mark.parametrize("kind", ["integer", "soft"])
def test_where_masks_value_and_gradient(loss, kind, logits, labels, soft_labels, binary_labels):
    if loss in SOFTMAX_LOSSES:
        given = labels if kind == "integer" else soft_labels
        keep = labels != 2
        broken = np.where(keep[..., None], logits, np.float32(np.nan))
    else:
        given = binary_labels if kind == "integer" else soft_labels
        keep = logits < 1.0
        broken = np.where(keep, logits, np.float32(np.nan))
    plain = map(np.asarray, both(loss, logits, given))
    masked = map(np.asarray, both(loss, broken, given, where=keep))
    for actual, expected in zip(masked, plain, strict=True):
        assert (actual[~keep] == 0).all()
        np.testing.assert_array_equal(actual[keep], expected[keep])


@pytest.mark.parametrize("loss", SOFTMAX_LOSSES)
def test_integer_labels_are_one_hot_labels(loss, logits, labels):
    one_hot = np.eye(CLASSES, dtype=np.float32)[labels]
    integer, soft = (both(loss, logits, given)[0] for given in (labels, one_hot))
    np.testing.assert_array_equal(integer, soft)


@pytest.mark.parametrize("loss", SOFTMAX_LOSSES)
@pytest.mark.parametrize("label", [-1, CLASSES, 255])
def test_a_label_that_is_no_class_gives_nan(loss, label, logits, labels):
    labels = labels.copy()
    labels[0, 0, 0] = label
    actual = np.asarray(both(loss, logits, labels)[0])
    assert np.isnan(actual[0, 0, 0])
    assert np.isfinite(actual.ravel()[1:]).all()


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("loss", SOFTMAX_LOSSES + SIGMOID_LOSSES)
def test_small_floats_are_computed_in_float32(loss, dtype, logits, labels, binary_labels):
    given = labels if loss in SOFTMAX_LOSSES else binary_labels
    small = logits.astype(dtype)
    actual, slope = both(loss, small, given)
    assert actual.dtype == jnp.float32
    np.testing.assert_array_equal(actual, both(loss, small.astype(np.float32), given)[0])
    assert slope.dtype == dtype


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
    plain = getattr(classification, loss.__name__)(logits, given, **options)
    np.testing.assert_allclose(loss(logits, given, **options), plain, rtol=1e-5, atol=1e-7)


def test_weighted_mean_of_torch(logits, labels):
    """Σ w_y nll / Σ w_y is one reduction of the same losses, Σ w_y nll / m the other."""
    weights = (0.5, 2.0, 1.0, 0.0, 3.0)
    nll = -np.take_along_axis(log_softmax(logits), labels[..., None], axis=-1)[..., 0]
    w = np.float32(weights)[labels]
    by_weight = jax.jit(weighted_mean)(cross_entropy_loss(logits, labels), w)
    np.testing.assert_allclose(by_weight, np.sum(w * nll) / np.sum(w), rtol=1e-5)
    by_count = np.asarray(cross_entropy_loss(logits, labels, class_weights=weights)).mean()
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
    @jax.jit
    @jax.value_and_grad
    def loss(logits):
        return focal_loss(logits, np.array([0]), gamma=gamma)[0]

    value, gradient = loss(np.float32([[1.0, 2.0, -np.inf]]))
    expected, theirs = loss(np.float32([[1.0, 2.0]]))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(value, {0.0: 1.3133, 0.5: 1.1229, 2.0: 0.7019}[gamma], atol=1e-4)
    np.testing.assert_allclose(gradient, [[*np.asarray(theirs)[0], 0.0]], rtol=1e-6)
