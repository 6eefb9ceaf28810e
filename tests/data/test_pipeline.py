import json
from collections.abc import Mapping
from itertools import islice

import numpy as np
import pytest

from opsin.data.examples import DataError, Examples, materialize
from opsin.data.pipeline import eval_batches, train_batches, train_indices
from opsin.data.selection import select
from opsin.data.sources import digits


def _as_read(examples):
    """The same examples from records that are read one by one, as from files."""
    return Examples([examples.records[index] for index in range(len(examples.records))])


def _few():
    """Sixty digits: more epochs of fewer batches."""
    return select(digits("test"), np.arange(60))


def _take(iterator, count):
    return np.stack(list(islice(iterator, count)))


@pytest.mark.parametrize(("n", "batch"), [(1, 1), (2, 3), (7, 4), (10, 16), (60, 12), (97, 8)])
def test_every_epoch_visits_every_example_once(n, batch):
    order = _take(train_indices(n, batch=batch, seed=0), -(-5 * n // batch)).ravel()
    for epoch in order[: 5 * n].reshape(5, n):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(n))
    assert order.dtype == np.int32


@pytest.mark.parametrize(("n", "batch"), [(1, 1), (7, 4), (8, 4), (13, 4), (10, 9)])
def test_distinct_examples_are_those_of_the_order_without_what_is_no_whole_batch(n, batch):
    used, epochs = n - n % batch, 6
    order = _take(train_indices(n, batch=n, seed=3), epochs)  # an epoch a row
    distinct = _take(train_indices(n, batch=batch, seed=3, distinct=True), epochs * used // batch)
    np.testing.assert_array_equal(distinct.ravel(), order[:, :used].ravel())
    assert all(len(np.unique(row)) == batch for row in distinct)
    across = _take(train_indices(n, batch=batch, seed=3), epochs * n // batch)
    assert any(len(np.unique(row)) < batch for row in across) == (n % batch > 0)


def test_distinct_examples_are_read_and_shared_among_processes_in_the_same_order():
    options = {"batch": 8, "seed": 1, "distinct": True}
    alone = _take(train_indices(60, **options), 9)
    parts = [
        _take(train_indices(60, **options, process_index=i, process_count=2), 9) for i in (0, 1)
    ]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), alone)
    batches, images = train_batches(_as_read(_few()), **options), materialize(_few())["image"]
    for indices in alone:
        np.testing.assert_array_equal(next(batches)["image"], images[indices])
    batches.close()


def test_epochs_and_seeds_differ_and_do_not_repeat_each_other():
    def epochs(seed):
        return _take(train_indices(20, batch=20, seed=seed), 4)

    orders = np.concatenate([epochs(0), epochs(1), epochs(2)])
    assert len(np.unique(orders, axis=0)) == 12
    np.testing.assert_array_equal(epochs(1), orders[4:8])


def test_shuffling_leaves_no_trend():
    first = _take(train_indices(1000, batch=1000, seed=0), 1)[0]
    assert abs(np.corrcoef(first, np.arange(1000))[0, 1]) < 0.1  # 3 standard deviations
    assert np.mean(np.abs(np.diff(first)) == 1) < 0.01


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("n", [9, 24])
def test_processes_share_one_order(n, count):
    alone = _take(train_indices(n, batch=8, seed=5), 5)
    parts = [
        _take(train_indices(n, batch=8, seed=5, process_index=i, process_count=count), 5)
        for i in range(count)
    ]
    assert parts[0].shape == (5, 8 // count)
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), alone)


@pytest.mark.parametrize("make", [_few, lambda: _as_read(_few())])
def test_batches_are_the_examples_at_the_indices(make):
    examples = make()
    arrays = materialize(_few())
    options = {"batch": 16, "seed": 1}
    batches = train_batches(examples, **options)
    for indices in islice(train_indices(60, **options), 8):  # over two ends of epochs
        batch = next(batches)
        assert set(batch) == {"image", "label"}
        for name, array in arrays.items():
            np.testing.assert_array_equal(batch[name], array[indices])
            assert batch[name].dtype == array.dtype
    batches.close()


@pytest.mark.parametrize(
    "start",
    [
        lambda **options: train_indices(60, **options),
        lambda **options: train_indices(60, distinct=True, **options),
        lambda **options: train_batches(_as_read(_few()), **options),
        lambda **options: train_batches(_as_read(_few()), distinct=True, **options),
    ],
)
@pytest.mark.parametrize("process_count", [1, 2])
def test_a_state_continues_exactly(start, process_count):
    options = {"batch": 8, "seed": 2}
    straight = start(**options, process_index=process_count - 1, process_count=process_count)
    for _ in range(9):  # past the end of an epoch
        next(straight)
    state = json.loads(json.dumps(straight.get_state()))
    resumed = start(**options, process_index=process_count - 1, process_count=process_count)
    next(resumed)
    resumed.set_state(state)
    for _ in range(9):
        ours, theirs = next(resumed), next(straight)
        if not isinstance(ours, Mapping):
            ours, theirs = {"indices": ours}, {"indices": theirs}
        for name in theirs:
            np.testing.assert_array_equal(ours[name], theirs[name])
    straight.close()
    resumed.close()


def test_a_state_does_not_depend_on_the_number_of_processes():
    one = train_indices(30, batch=8, seed=0)
    for _ in range(5):
        next(one)
    two = [train_indices(30, batch=8, seed=0, process_index=i, process_count=2) for i in (0, 1)]
    for part in two:
        part.set_state(one.get_state())
    np.testing.assert_array_equal(np.concatenate([next(part) for part in two]), next(one))


@pytest.mark.parametrize("batch", [1, 7, 100, 120, 360, 500])
@pytest.mark.parametrize("held", [True, False])
def test_evaluation_sees_every_example_once_in_order(batch, held):
    examples, arrays = digits("test"), materialize(digits("test"))
    batches = list(eval_batches(arrays if held else _as_read(examples), batch=batch))
    assert len(batches) == -(-360 // batch)
    for one in batches:
        assert one["valid"].dtype == bool
        assert {name: len(array) for name, array in one.items()} == dict.fromkeys(one, batch)
    joined = {name: np.concatenate([one[name] for one in batches]) for name in batches[0]}
    assert joined["valid"].sum() == 360
    for name, array in arrays.items():
        np.testing.assert_array_equal(joined[name][joined["valid"]], array)
        padding = joined[name][~joined["valid"]]
        np.testing.assert_array_equal(padding, np.broadcast_to(array[0], padding.shape))
        assert joined[name].dtype == array.dtype


@pytest.mark.parametrize("count", [2, 4])
def test_evaluation_is_shared_among_processes(count):
    alone = list(eval_batches(digits("test"), batch=112))  # the last one is mostly padding
    parts = [
        list(eval_batches(digits("test"), batch=112, process_index=i, process_count=count))
        for i in range(count)
    ]
    assert {len(part) for part in parts} == {len(alone)}
    for step, whole in enumerate(alone):
        for name, array in whole.items():
            slices = np.concatenate([part[step][name] for part in parts])
            np.testing.assert_array_equal(slices, array)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch=0; use at least 1"),
        ({"batch": 6, "process_count": 4}, "does not divide among 4 processes; use 8"),
        ({"batch": 8, "process_index": 2, "process_count": 2}, "not one of 2 processes"),
    ],
)
def test_impossible_batches_are_refused_at_once(options, message):
    for start in (
        lambda: train_indices(10, seed=0, **options),
        lambda: train_batches(digits("test"), seed=0, **options),
        lambda: eval_batches(digits("test"), **options),
    ):
        with pytest.raises(DataError, match=message):
            start()


def test_more_distinct_examples_than_there_are_are_refused_at_once():
    with pytest.raises(DataError, match=r"batch=11 of 10 examples .* to 10 or less"):
        train_indices(10, batch=11, seed=0, distinct=True)


def test_an_empty_split_is_refused_at_once():
    with pytest.raises(DataError, match="no examples"):
        train_indices(0, batch=1, seed=0)
    with pytest.raises(DataError, match="no examples"):
        eval_batches(Examples([]), batch=1)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_named(seed):
    with pytest.raises(DataError, match=f"seed={seed}; use 0 to 4294967295"):
        train_indices(10, batch=2, seed=seed)
