import numpy as np
import pytest

from opsin.data.examples import Arrays, DataError, Examples, labels, materialize
from opsin.data.selection import long_tail, per_class, select

_CIFAR_LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 5000))


@pytest.mark.parametrize(
    ("imbalance", "sizes"),
    [  # Cui et al., 2019, figure 1 and the counts that later papers give for CIFAR-10-LT
        (100, [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]),
        (10, [5000, 3871, 2997, 2320, 1796, 1391, 1077, 834, 645, 500]),
        (1, [5000] * 10),
    ],
)
def test_long_tail_has_the_published_sizes(imbalance, sizes):
    kept = long_tail(_CIFAR_LABELS, imbalance=imbalance)
    np.testing.assert_array_equal(np.bincount(_CIFAR_LABELS[kept]), sizes)
    assert np.all(np.diff(kept) > 0)


def test_long_tail_keeps_its_shape_where_classes_differ():
    uneven = np.repeat([0, 1, 2], [40, 100, 30])  # the first class limits the head
    sizes = np.bincount(uneven[long_tail(uneven, imbalance=4)])
    np.testing.assert_array_equal(sizes, [40, 20, 10])
    scarce = np.repeat([0, 1, 2], [400, 10, 400])  # the second class limits it, to 10 * sqrt(4)
    sizes = np.bincount(scarce[long_tail(scarce, imbalance=4)])
    np.testing.assert_array_equal(sizes, [20, 10, 5])
    exact = np.repeat([0, 1], [98, 98])  # 98 * 49 ** -1.0 is below 2 in floating point
    np.testing.assert_array_equal(np.bincount(exact[long_tail(exact, imbalance=49)]), [98, 2])
    tiny = np.repeat([0, 1], [5, 5])
    np.testing.assert_array_equal(np.bincount(tiny[long_tail(tiny, imbalance=1000)]), [5, 1])


def test_per_class_is_balanced_and_nested():
    small, large = (per_class(_CIFAR_LABELS, n=n, seed=3) for n in (4, 25))
    np.testing.assert_array_equal(np.bincount(_CIFAR_LABELS[small]), 4)
    np.testing.assert_array_equal(np.bincount(_CIFAR_LABELS[large]), 25)
    assert set(small) < set(large)
    assert np.all(np.diff(large) > 0)


@pytest.mark.parametrize("options", [{"n": 20}, {"imbalance": 100}])
def test_the_seed_alone_decides(options):
    choose = per_class if "n" in options else long_tail
    first = choose(_CIFAR_LABELS, seed=0, **options)
    np.testing.assert_array_equal(first, choose(_CIFAR_LABELS, seed=0, **options))
    other = choose(_CIFAR_LABELS, seed=1, **options)
    assert len(other) == len(first)
    assert len(np.intersect1d(first, other)) < 0.7 * len(first)


def test_all_of_a_class_may_be_asked_for_but_no_more():
    uneven = np.array([0, 0, 0, 1, 1])
    assert len(per_class(uneven, n=2)) == 4
    with pytest.raises(DataError, match=r"n=3 .*class 1 has 2; ask for at most that"):
        per_class(uneven, n=3)


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (lambda: long_tail(np.zeros(5, np.int32), imbalance=10), "two or more classes"),
        (lambda: long_tail(np.zeros(0, np.int32), imbalance=10), "two or more classes"),
    ],
)
def test_impossible_selections_are_refused(choose, message):
    with pytest.raises(DataError, match=message):
        choose()


def _examples(**options):
    image = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1)
    label = np.array([0, 1, 0, 1, 0, 1], np.int32)
    return Examples(Arrays({"image": image, "label": label}), ("even", "odd"), **options)


def test_select_gives_the_examples_asked_for():
    chosen = select(_examples(), np.array([5, 0, 2]))
    arrays = materialize(chosen)
    np.testing.assert_array_equal(arrays["image"].ravel(), [5, 0, 2])
    np.testing.assert_array_equal(arrays["label"], [1, 0, 0])
    np.testing.assert_array_equal(labels(chosen), [1, 0, 0])
    assert chosen.class_names == ("even", "odd")
    assert len(list(chosen.records)) == 3


def test_select_keeps_the_fast_way_to_labels():
    chosen = select(_examples(read_labels=lambda: np.arange(6) + 10), np.array([4, 1]))
    np.testing.assert_array_equal(labels(chosen), [14, 11])


@pytest.mark.parametrize(
    ("indices", "message"),
    [([], "selection is empty"), ([0, 6], "from 0 to 6.*has 6"), ([-1, 2], "from -1 to 2")],
)
def test_select_refuses_what_is_not_there(indices, message):
    with pytest.raises(DataError, match=message):
        select(_examples(), np.array(indices, np.int64))


def test_select_keeps_all_else_that_is_known():
    of = Examples(Arrays({"label": np.arange(4)}), ("a", "b"), lambda: np.arange(4), resized=True)
    some = select(of, np.array([3, 1]))
    assert (some.class_names, some.resized) == (of.class_names, True)
    np.testing.assert_array_equal(labels(some), [3, 1])
