"""The key of a row is that of its place, whatever other rows there are."""

import jax
import numpy as np

from opsin.ops.keys import keys_at, row_keys


def test_a_key_depends_on_its_place_alone():
    key = jax.random.key(3)
    one_by_one = [jax.random.key_data(jax.random.fold_in(key, place)) for place in range(7)]
    places = np.array([5, 0, 5, 2], np.int32)
    found = jax.random.key_data(keys_at(key, places))
    np.testing.assert_array_equal(found, [one_by_one[place] for place in places])
    rows = jax.random.key_data(row_keys(key, 4, first=3))
    np.testing.assert_array_equal(rows, one_by_one[3:])
