"""A few images that stand for a set."""

import numpy as np
import pytest

from opsin.analysis.sets import some_examples
from opsin.data.examples import Arrays, Examples
from opsin.data.selection import drawn_places

BY_CLASS = Examples(Arrays({"label": np.repeat(np.arange(4), 50).astype(np.int32)}))


def test_images_are_drawn_from_all_of_a_set_in_the_order_of_its_classes():
    drawn = some_examples(BY_CLASS, 40, "drawn")["label"]
    assert len(drawn) == 40
    assert (np.bincount(drawn, minlength=4) > 2).all()  # ten are expected
    assert (np.diff(drawn) >= 0).all()  # in the order of the set
    np.testing.assert_array_equal(drawn, some_examples(BY_CLASS, 40, "drawn")["label"])
    assert set(some_examples(BY_CLASS, 40, "first")["label"]) == {0}


@pytest.mark.parametrize("count", [None, 200, 201])
@pytest.mark.parametrize("choice", ["drawn", "first"])
def test_all_are_taken_where_there_are_no_more(count, choice):
    found = some_examples(BY_CLASS, count, choice)["label"]
    np.testing.assert_array_equal(found, np.repeat(np.arange(4), 50))


def test_no_image_is_drawn_twice_and_another_seed_draws_others():
    places = drawn_places(50, 100)
    assert len(set(places)) == 50
    assert 0 <= places.min() < places.max() < 100
    assert not np.array_equal(places, drawn_places(50, 100, seed=1))
