"""Batches of any size, padding and device count give what scikit-learn gives on the whole set."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from sklearn import metrics as sklearn_metrics

from opsin.metrics.classification import (
    ConfusionMatrix,
    Ranking,
    accuracy,
    auroc,
    average_precision,
    calibration,
    confusion_matrix,
    negative_log_likelihood,
    ranking,
    top_k_accuracy,
)
from opsin.metrics.state import Merging, Metric, compute_all, to_host

CLASSES = 6
BATCH = 8


def states(logits, labels, valid=None) -> dict[str, Metric]:
    return {
        "accuracy": accuracy(logits, labels, valid),
        "top3": top_k_accuracy(logits, labels, valid, k=3),
        "nll": negative_log_likelihood(logits, labels, valid),
        "ece": calibration(logits, labels, valid),
        "confusion": confusion_matrix(logits, labels, CLASSES, valid),
    }


compiled_states = jax.jit(states)  # one shape, [BATCH, CLASSES], for the whole file


def evaluate(logits, labels, padding):
    """Merges batches of BATCH rows; at least `padding[i]` rows of batch i are NaN and not valid."""
    total, start, batch = None, 0, 0
    while start < len(labels) or batch < len(padding):
        take = min(BATCH - (padding[batch] if batch < len(padding) else 0), len(labels) - start)
        rows = slice(start, start + take)
        batch_logits = np.full((BATCH, CLASSES), np.nan, np.float32)
        batch_labels = np.full(BATCH, 255, np.int32)
        valid = np.zeros(BATCH, bool)
        batch_logits[:take], batch_labels[:take], valid[:take] = logits[rows], labels[rows], True
        state = {
            k: to_host(m) for k, m in compiled_states(batch_logits, batch_labels, valid).items()
        }
        total = state if total is None else {k: total[k].merge(m) for k, m in state.items()}
        start, batch = start + take, batch + 1
    return compute_all(total)


def draw(seed, examples, present=CLASSES):
    """Logits with a signal, and labels of the first `present` classes only."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, present, examples).astype(np.int32)
    logits = rng.normal(size=(examples, CLASSES)) + 1.5 * np.eye(CLASSES)[labels]
    return logits.astype(np.float32), labels


def reference(logits, labels):
    """The same numbers from scikit-learn; the calibration error from its definition."""
    z = logits.astype(np.float64)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    predictions = logits.argmax(axis=1)
    present = np.union1d(labels, predictions)
    score = functools.partial(
        sklearn_metrics.precision_recall_fscore_support,
        labels,
        predictions,
        labels=present,
        zero_division=0,
    )
    precision, recall, f1, _ = score(average=None)
    expected = dict(
        zip(["precision_macro", "recall_macro", "f1_macro"], score(average="macro"), strict=False)
    )
    for name, values in [("precision", precision), ("recall", recall), ("f1", f1)]:
        expected |= {f"{name}/{c}": v for c, v in zip(present, values, strict=True)}
    expected["f1_micro"] = score(average="micro")[2]
    expected["accuracy"] = sklearn_metrics.accuracy_score(labels, predictions)
    every = range(CLASSES)
    expected["top3"] = sklearn_metrics.top_k_accuracy_score(labels, logits, k=3, labels=every)
    expected["nll"] = sklearn_metrics.log_loss(labels, p, labels=every)
    confidence, right, error = p.max(axis=1), predictions == labels, 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    expected["ece"] = error
    return expected


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    examples=st.integers(1, 37),
    present=st.integers(1, CLASSES),
    padding=st.lists(st.integers(0, BATCH), max_size=6),
)
def test_any_split_and_padding_is_scikit_learn_on_the_whole_set(seed, examples, present, padding):
    logits, labels = draw(seed, examples, present)
    assert evaluate(logits, labels, padding) == pytest.approx(reference(logits, labels), abs=2e-6)


def test_counts_are_those_of_scikit_learn():
    logits, labels = draw(0, BATCH)
    counts = compiled_states(logits, labels, np.ones(BATCH, bool))["confusion"].counts
    expected = sklearn_metrics.confusion_matrix(labels, logits.argmax(1), labels=range(CLASSES))
    np.testing.assert_array_equal(counts, expected)
    matrix = jax.jit(confusion_matrix, static_argnums=2)
    from_classes = matrix(logits.argmax(1), labels, CLASSES)
    np.testing.assert_array_equal(from_classes.counts, expected)


def test_nothing_valid_is_nan_everywhere():
    logits, labels = draw(0, BATCH)
    numbers = compute_all(compiled_states(logits, labels, np.zeros(BATCH, bool)))
    expected = {"accuracy", "top3", "nll", "ece", "f1_micro"}
    assert set(numbers) == expected | {f"{k}_macro" for k in ("precision", "recall", "f1")}
    assert np.isnan(list(numbers.values())).all()


def test_eight_devices_give_the_states_of_one():
    """Counts exactly, sums to rounding: one global batch under jit, sharded or not."""
    logits, labels = draw(3, BATCH)
    valid = np.arange(BATCH) < 5
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    sharded = compiled_states(*jax.device_put((logits, labels, valid), sharding))
    single = compiled_states(logits, labels, valid)
    assert len(sharded["nll"].total.sharding.device_set) == 8
    for a, b in zip(jax.tree.leaves(sharded), jax.tree.leaves(single), strict=True):
        if jnp.issubdtype(b.dtype, jnp.integer):
            np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_pixels_are_entries():
    """[batch, height, width, classes] is the same as one long list, without the ignored label."""
    logits, labels = draw(4, 2 * BATCH)
    labels[[1, 5, 6]] = 255
    image, mask = logits.reshape(2, 4, 2, CLASSES), labels.reshape(2, 4, 2)
    numbers = compute_all(jax.jit(states)(image, mask, mask != 255))
    keep = labels != 255
    assert numbers == pytest.approx(reference(logits[keep], labels[keep]), abs=2e-6)
    byte = jax.jit(states)(image, mask.astype(np.uint8), mask != 255)
    assert compute_all(byte) == numbers


def test_soft_labels_stand_for_their_most_probable_class():
    logits, labels = draw(5, BATCH)
    other = np.eye(CLASSES)[(labels + 1) % CLASSES]
    mixed = (0.7 * np.eye(CLASSES)[labels] + 0.3 * other).astype(np.float32)

    @jax.jit
    def both(labels):
        return accuracy(logits, labels), top_k_accuracy(logits, labels, k=2)

    for soft, hard in zip(both(mixed), both(labels), strict=True):
        assert soft.compute() == hard.compute()


def test_equal_logits_rank_by_class():
    """A collapsed network scores k of CLASSES, as a guess does; ties go as in jax.lax.top_k."""
    labels = np.arange(BATCH, dtype=np.int32) % CLASSES
    once = np.arange(BATCH) < CLASSES
    collapsed = np.zeros((BATCH, CLASSES), np.float32)
    ties = np.random.default_rng(6).integers(0, 3, (BATCH, CLASSES)).astype(np.float32)
    every = range(1, CLASSES + 1)

    @jax.jit
    def run():
        equal = [top_k_accuracy(collapsed, labels, once, k=k) for k in every]
        tied = [top_k_accuracy(ties, labels, k=k) for k in every]
        return equal, tied, [jax.lax.top_k(ties, k)[1] for k in every]

    for k, equal, tied, best in zip(every, *run(), strict=True):
        assert equal.compute() == {"": k / CLASSES}
        assert int(tied.total) == (np.asarray(best) == labels[:, None]).any(axis=1).sum()


@pytest.mark.parametrize("columns", [2, slice(None)])
def test_nan_logits_are_never_right(columns):
    """One NaN anywhere, or nothing but NaN: wrong for every class, for every k."""
    labels = np.arange(BATCH, dtype=np.int32) % CLASSES
    logits = np.eye(CLASSES, dtype=np.float32)[labels]
    logits[:, columns] = np.nan
    top = jax.jit(functools.partial(top_k_accuracy, k=CLASSES))
    assert int(top(logits, labels).total) == 0
    numbers = compute_all(compiled_states(logits, labels, np.ones(BATCH, bool)))
    wrong = ("accuracy", "top3", "f1_micro", "recall_macro", "precision_macro")
    assert [numbers[name] for name in wrong] == [0.0] * 5
    assert np.isnan([numbers["nll"], numbers["ece"]]).all()


def test_labels_out_of_range_are_not_taken_for_other_classes():
    """−1 would count from the end and 255 from nowhere."""
    outside = np.array([-1, 255] * 4, np.int32)
    logits = np.eye(CLASSES, dtype=np.float32)[[-1, 0] * 4]
    numbers = compiled_states(logits, outside, np.ones(BATCH, bool))
    assert numbers["accuracy"].compute() == {"": 0.0}
    assert int(numbers["confusion"].counts.sum()) == 0
    matrix = jax.jit(confusion_matrix, static_argnums=2)
    predicted = matrix(outside, np.zeros(BATCH, np.int32), CLASSES)
    assert int(predicted.counts.sum()) == 0


def test_zero_over_zero_and_absent_classes():
    """Class 1 is never predicted (precision 0), 2 is never true (recall 0), 3 is neither."""
    counts = np.zeros((4, 4), np.int32)
    counts[0, 0], counts[1, 2] = 2, 1
    matrix = ConfusionMatrix(counts)
    numbers = matrix.compute()
    assert numbers["precision/1"] == numbers["recall/2"] == numbers["f1/1"] == numbers["f1/2"] == 0
    assert "recall/3" not in numbers
    assert numbers["recall_macro"] == numbers["precision_macro"] == pytest.approx(1 / 3)
    assert np.isnan(matrix.per_class()["f1"][3])


def test_calibration_closed_forms():
    """Always 0.75 sure: error 0 if three of four are right, 0.75 if none is. Bins are (a, b]."""
    logits = np.log(np.array([[0.75] + [0.05] * 5] * BATCH, np.float32))
    every = np.ones(BATCH, bool)
    for wrong, error in [(BATCH // 4, 0.0), (BATCH, 0.75)]:
        labels = (np.arange(BATCH) < wrong).astype(np.int32)
        state = compiled_states(logits, labels, every)["ece"]
        assert state.compute()[""] == pytest.approx(error, abs=1e-6)
    edges = np.full((BATCH, CLASSES), -1e4, np.float32)
    edges[:, 0] = 0.0
    edges[:3, 1] = 0.0  # three are half sure, five wholly
    halves = jax.jit(functools.partial(calibration, bins=2))(edges, labels)
    np.testing.assert_array_equal(halves.count, [3, 5])
    np.testing.assert_array_equal(halves.confidence, [1.5, 5.0])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_small_floats(dtype):
    """Equal to float32 on the rounded logits: nothing more is lost."""
    logits, labels = draw(7, BATCH)
    small = logits.astype(dtype)
    expected = compute_all(compiled_states(small.astype(np.float32), labels, np.ones(BATCH, bool)))
    actual = jax.jit(states)(small, labels)
    assert actual["nll"].total.dtype == actual["ece"].confidence.dtype == jnp.float32
    assert compute_all(actual) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("metric", "logits", "labels"),
    [
        (accuracy, np.zeros((4, 3)), np.zeros((4, 1), int)),
        (accuracy, np.zeros((4, 3)), np.zeros((4, 2))),
        (negative_log_likelihood, np.zeros((4, 3)), np.zeros((4, 1), int)),
        (calibration, np.zeros((4, 3)), np.zeros(3, int)),
        (functools.partial(confusion_matrix, num_classes=3), np.zeros((4, 3)), np.zeros(3, int)),
        (functools.partial(confusion_matrix, num_classes=3), np.zeros(4, int), np.zeros(3, int)),
    ],
)
def test_labels_that_do_not_fit_raise(metric, logits, labels):
    with pytest.raises(ValueError, match="do not fit"):
        jax.eval_shape(metric, logits, labels)


def test_other_shapes_that_do_not_fit_raise():
    logits, labels = np.zeros((4, 3)), np.zeros(4, int)
    with pytest.raises(ValueError, match="do not have 5 classes"):
        confusion_matrix(logits, labels, 5)
    for metric in (accuracy, negative_log_likelihood, calibration):
        with pytest.raises(ValueError, match="one entry per example"):
            jax.eval_shape(metric, logits, labels, np.ones((4, 1), bool))


# Areas under curves, which are no sums.

# Few distinct scores: ties are the rule.
scored = st.lists(st.tuples(st.integers(-2, 2), st.booleans()), min_size=1, max_size=40)


@settings(max_examples=50)
@given(scored)
def test_areas_are_those_of_scikit_learn_ties_included(pairs):
    scores = np.array([score / 4 for score, _ in pairs], np.float32)
    positive = np.array([sign for _, sign in pairs])
    if not positive.any():
        assert np.isnan(average_precision(scores, positive))
    else:
        expected = sklearn_metrics.average_precision_score(positive, scores)
        np.testing.assert_allclose(average_precision(scores, positive), expected, rtol=1e-12)
    if positive.all() or not positive.any():
        assert np.isnan(auroc(scores, positive))
    else:
        expected = sklearn_metrics.roc_auc_score(positive, scores)
        np.testing.assert_allclose(auroc(scores, positive), expected, rtol=1e-12)


def test_areas_of_an_order_have_their_closed_forms():
    scores, positive = np.arange(6.0), np.array([0, 1, 0, 1, 1, 0], bool)
    # Down from the highest: miss, hit, hit, miss, hit, miss.
    assert auroc(scores, positive) == 1 - (3 + 1) / 9
    assert average_precision(scores, positive) == pytest.approx((1 / 2 + 2 / 3 + 3 / 5) / 3)
    assert auroc(np.zeros(6), positive) == 0.5
    assert average_precision(np.zeros(6), positive) == 0.5  # the share of positives
    broken = np.array([np.nan, *scores[1:]])
    assert np.isnan([auroc(broken, positive), average_precision(broken, positive)]).all()
    with pytest.raises(ValueError, match="do not fit"):
        auroc(scores, positive[1:])


compiled_ranking = jax.jit(ranking)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10), st.lists(st.integers(0, BATCH), max_size=6))
def test_a_ranking_does_not_depend_on_batches_or_padding(seed, padding):
    """Rows that are padded are NaN: one that counted would show."""
    rng = np.random.default_rng(seed)
    logits = np.round(rng.normal(size=(30, CLASSES)) * 2).astype(np.float32)
    labels = rng.integers(0, CLASSES, 30).astype(np.int32)
    parts, start, batch = [], 0, 0
    while start < len(labels):
        empty = padding[batch] if batch < len(padding) else 0
        rows = slice(start, start + BATCH - empty)
        taken = len(labels[rows])
        some = np.full((BATCH, CLASSES), np.nan, np.float32)
        true, valid = np.full(BATCH, 255, np.int32), np.zeros(BATCH, bool)
        some[:taken], true[:taken], valid[:taken] = logits[rows], labels[rows], True
        parts.append({"ranking": compiled_ranking(some, true, valid)})
        start, batch = start + taken, batch + 1
    state = Merging(parts).result()["ranking"]
    assert state.valid.all()
    np.testing.assert_array_equal(state.labels, labels)
    options = {"multi_class": "ovr", "labels": range(CLASSES)}
    numbers = state.compute()
    one_hot = labels[:, None] == np.arange(CLASSES)
    expected = [sklearn_metrics.roc_auc_score(one_hot[:, c], state.scores[:, c]) for c in range(6)]
    assert numbers["auroc"] == pytest.approx(np.mean(expected), rel=1e-12)
    expected = sklearn_metrics.average_precision_score(one_hot, state.scores, average="macro")
    assert numbers["average_precision"] == pytest.approx(expected, rel=1e-12)
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(state.scores, np.log(p / (1 - p)), rtol=1e-4, atol=1e-5)
    by_probability = sklearn_metrics.roc_auc_score(labels, p, average="macro", **options)
    assert numbers["auroc"] == pytest.approx(by_probability, abs=5e-3)  # rounding makes other ties


def test_of_two_classes_the_second_is_the_positive_one():
    rng = np.random.default_rng(3)
    logits, labels = rng.normal(size=(200, 2)).astype(np.float32), rng.integers(0, 2, 200)
    numbers = to_host(compiled_ranking(logits, labels)).compute()
    apart = logits[:, 1] - logits[:, 0]
    assert numbers["auroc"] == pytest.approx(sklearn_metrics.roc_auc_score(labels, apart))
    expected = sklearn_metrics.average_precision_score(labels, apart)
    assert numbers["average_precision"] == pytest.approx(expected)


def test_the_sure_are_told_apart_and_classes_that_are_not_there_left_out():
    logits = np.float32([[0, 40, 0], [0, 50, 0], [0, 60, 0], [9, 0, 0]])
    state = to_host(compiled_ranking(logits, np.array([0, 1, 1, 0])))
    assert state.scores[0, 1] < state.scores[1, 1] < state.scores[2, 1]  # p is 1 in all of them
    assert state.compute()["auroc"] == 1.0  # of classes 0 and 1: nothing is of class 2
    alone = to_host(compiled_ranking(logits, np.array([1, 1, 1, 1]))).compute()
    assert np.isnan(alone["auroc"])
    assert alone["average_precision"] == 1.0
    with pytest.raises(ValueError, match="at least two classes"):
        jax.eval_shape(ranking, np.zeros((3, 1)), np.zeros(3, int))


def test_a_ranking_on_eight_devices_is_that_on_one():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(16, CLASSES)).astype(np.float32)
    labels, valid = rng.integers(0, CLASSES, 16), np.arange(16) < 13
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    shared = jax.jit(ranking, out_shardings=whole)(*jax.device_put((logits, labels, valid), rows))
    one = compiled_ranking(logits[:13], labels[:13])
    assert to_host(shared).compute() == pytest.approx(to_host(one).compute(), rel=1e-12)
    np.testing.assert_array_equal(to_host(shared).labels, labels[:13])


def test_a_ranking_of_nothing_is_nan_and_neutral():
    nobody = np.zeros(2, int), np.zeros(2, bool)
    none = to_host(compiled_ranking(np.zeros((2, 3), np.float32), *nobody))
    some = Ranking(
        valid=np.ones(2, bool), scores=np.eye(2, dtype=np.float32), labels=np.array([1, 0])
    )
    assert np.isnan(list(none.compute().values())).all()
    two = to_host(compiled_ranking(np.zeros((2, 2), np.float32), *nobody))
    assert two.merge(some).compute() == some.compute() == {"auroc": 0.0, "average_precision": 0.5}


compiled_likelihood = jax.jit(negative_log_likelihood)


@pytest.mark.parametrize("label", [-1, -3, 3, 255])
def test_the_likelihood_of_a_label_that_is_no_class_is_not_a_number(label):
    """An index below 0 would count from the end."""
    logits, labels = np.float32([[0, 0, 5], [0, 0, 5]]), np.array([label, 2])
    assert np.isnan(compiled_likelihood(logits, labels).compute()[""])
    valid = compiled_likelihood(logits, labels, np.array([False, True]))
    np.testing.assert_allclose(valid.compute()[""], np.log1p(2 * np.exp(-5)), rtol=1e-4)
