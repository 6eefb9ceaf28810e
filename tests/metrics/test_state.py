from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.metrics.classification import ConfusionMatrix
from opsin.metrics.latent import code_usage
from opsin.metrics.representation import uniformity
from opsin.metrics.segmentation import segmentation_matrix
from opsin.metrics.state import (
    Collected,
    Mean,
    Merging,
    Metric,
    check_sums,
    compute_all,
    to_host,
)


def mean(total, count):
    return Mean(total=jnp.asarray(total), count=jnp.asarray(count))


def test_mean_counts_valid_entries_only():
    values = jnp.array([[1.0, jnp.nan], [2.5, 7.0]])
    state = Mean.from_values(values, jnp.array([[True, False], [True, False]]))
    assert state.total.dtype == jnp.float32
    assert state.count.dtype == jnp.int32
    assert state.compute() == {"": 1.75}


@pytest.mark.parametrize("dtype", [bool, jnp.int32, jnp.uint8])
def test_counts_stay_integers(dtype):
    state = Mean.from_values(jnp.ones(300, dtype))
    assert state.total.dtype == jnp.int32
    assert int(state.total) == 300


def test_small_floats_are_summed_in_float32():
    state = Mean.from_values(jnp.ones(1001, jnp.bfloat16))  # which bfloat16 rounds to 1000
    assert state.compute() == {"": 1.0}


def test_mean_of_nothing_is_nan_and_neutral():
    empty = Mean.from_values(jnp.ones(3), jnp.zeros(3, bool))
    assert np.isnan(empty.compute()[""])
    assert empty.merge(mean(3.0, 2)).compute() == {"": 1.5}


def test_merge_is_addition_on_device_on_host_and_over_an_axis():
    """What the loop does three ways: jit, NumPy, and psum over devices."""
    states = [mean(1.0, 2), mean(0.5, 3), mean(4.0, 5)]
    expected = {"": 5.5 / 10}
    on_device = jax.jit(lambda a, b, c: a.merge(b).merge(c))(*states)
    assert on_device.compute() == expected
    on_host = to_host(states[0]).merge(to_host(states[2])).merge(to_host(states[1]))
    assert on_host.compute() == expected
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    summed = jax.vmap(lambda s: jax.lax.psum(s, "i"), axis_name="i")(stacked)
    assert jax.tree.map(lambda leaf: leaf[0], summed).compute() == expected


def test_host_states_are_wide():
    """Beyond 2³¹ counts and 24 bits of a float32 sum nothing is lost."""
    batch = mean(jnp.float32(2**24), jnp.int32(2**31 - 1))
    one = mean(jnp.float32(1.0), jnp.int32(1))
    total = to_host(batch).merge(to_host(one))
    assert total.total.dtype == np.float64
    assert total.count.dtype == np.int64
    assert (float(total.total), int(total.count)) == (2**24 + 1, 2**31)
    assert total.compute() == {"": (2**24 + 1) / 2**31}


def test_compute_all_gives_flat_names():
    metrics = {
        "accuracy": mean(3, 4),
        "nll": mean(1.0, 4),
        "confusion": ConfusionMatrix(jnp.array([[3, 0], [1, 0]])),
    }
    assert compute_all(metrics) == {
        "accuracy": 0.75,
        "nll": 0.25,
        "precision_macro": 0.375,
        "recall_macro": 0.5,
        "f1_macro": pytest.approx(3 / 7),
        "f1_micro": 0.75,
        "precision/0": 0.75,
        "precision/1": 0.0,
        "recall/0": 1.0,
        "recall/1": 0.0,
        "f1/0": pytest.approx(6 / 7),
        "f1/1": 0.0,
    }
    assert all(type(value) is float for value in compute_all(metrics).values())
    assert compute_all({}) == {}


def test_two_metrics_of_one_name_raise():
    clash = {"a": ConfusionMatrix(jnp.eye(2)), "b": ConfusionMatrix(jnp.eye(2))}
    with pytest.raises(ValueError, match=r"'precision_macro'.*'b'"):
        compute_all(clash)


def test_mask_of_another_shape_raises():
    with pytest.raises(ValueError, match="one entry per example"):
        Mean.from_values(jnp.ones((4, 2)), jnp.ones(4, bool))


def test_base_metric_has_no_numbers():
    with pytest.raises(NotImplementedError):
        Metric().compute()


def test_sums_are_added_and_examples_strung_together():
    """What evaluation does, whichever kind a metric is."""
    batches = [
        {"mean": mean(1.0, 2), "rows": Collected(valid=jnp.array([True, False]))},
        {"mean": mean(0.5, 3), "rows": Collected(valid=jnp.array([True, True]))},
    ]
    merged = Merging(batches).result()
    assert merged["mean"].compute() == {"": 1.5 / 5}
    assert merged["rows"].valid.tolist() == [True, True, True]
    # One batch late, as the loop does it: what is merged is merged again.
    assert Merging([merged, batches[1]]).result()["rows"].valid.tolist() == [True] * 5
    assert Merging([merged, batches[1]]).result()["mean"].compute() == {"": 2.0 / 8}


def test_collected_examples_are_copied_once_and_sums_kept_as_one(monkeypatch: pytest.MonkeyPatch):
    """Joined batch by batch, a set of a thousand batches would be copied five hundred times."""
    copied, concatenate = [], np.concatenate
    monkeypatch.setattr(
        np, "concatenate", lambda rows: copied.append(sum(map(len, rows))) or concatenate(rows)
    )
    merging = Merging()
    for batch in range(20):
        valid = jnp.arange(4) < (1 if batch == 19 else 4)
        merging.add({"rows": Collected(valid), "mean": mean(1.0, batch)})
    assert len(merging._parts["mean"]) == 1
    found = merging.result()
    assert found["rows"].valid.shape == (77,)  # without the padding of the last batch
    assert copied == [77]
    assert found["mean"].compute() == {"": 20 / 190}


def test_training_takes_sums_only():
    check_sums({"loss": mean(1.0, 2)})
    with pytest.raises(ValueError, match="'rows' collects examples, and training adds states up"):
        check_sums({"loss": mean(1.0, 2), "rows": Collected(valid=jnp.ones(2, bool))})


def shape_of(metric, *shapes):
    """Traced alone: such arrays fit into no memory."""
    return jax.eval_shape(metric, *(jax.ShapeDtypeStruct(s, t) for s, t in shapes))


@pytest.mark.parametrize(
    ("metric", "fits", "too_many"),
    [
        (Mean.from_values, [((2**31 - 1,), bool)], [((2**31,), bool)]),
        (
            segmentation_matrix,
            [((1023, 2048, 1024, 2), np.float32), ((1023, 2048, 1024), np.uint8)],
            [((1100, 2048, 1024, 2), np.float32), ((1100, 2048, 1024), np.uint8)],
        ),
        (partial(code_usage, codes=8), [((2**20, 2047), int)], [((2**20, 2048), int)]),
        (uniformity, [((65_536, 2), np.float32)], [((65_537, 2), np.float32)]),
    ],
)
def test_more_entries_than_a_count_holds_are_refused_by_their_shape(metric, fits, too_many):
    shape_of(metric, *fits)
    with pytest.raises(ValueError, match=r"in one batch are more than int32 counts.*eval_batch"):
        shape_of(metric, *too_many)
