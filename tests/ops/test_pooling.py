from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import correlate
from scipy.special import comb

from opsin.models.layers import max_pool
from opsin.ops.pooling import blur_pool
from tests.drawn import normal


def filter_of(taps):
    row = comb(taps - 1, np.arange(taps))
    return np.outer(row, row) / row.sum() ** 2


@pytest.mark.parametrize(
    ("taps", "stride", "size"),
    [
        (3, 2, (6, 7)),
        (3, 2, (5, 1)),
        (5, 3, (8, 7)),
        (4, 2, (6, 5)),
        (2, 2, (4, 5)),
        (1, 2, (5, 4)),
    ],
)
def test_it_equals_scipy_and_keeps_a_constant(taps, stride, size):
    x = normal(2, *size, 3)
    pool = jax.jit(partial(blur_pool, taps=taps, stride=stride))
    # Where scipy has the middle of an even filter, and ours.
    origin = (taps - 1) // 2 - taps // 2
    expected = [
        [
            correlate(channel, filter_of(taps), mode="mirror", origin=origin)[::stride, ::stride]
            for channel in np.moveaxis(image, -1, 0)
        ]
        for image in x
    ]
    np.testing.assert_allclose(pool(x), np.moveaxis(expected, 1, -1), atol=1e-6)
    constant = np.full_like(x, 3)
    np.testing.assert_array_equal(pool(constant), constant[:, ::stride, ::stride])


def test_an_impulse_shows_the_filter_and_the_highest_frequency_is_gone():
    x = np.zeros((1, 9, 9, 1), np.float32)
    x[0, 4, 4] = 16
    waves = np.broadcast_to((-1.0) ** np.arange(8), (1, 8, 8))[..., None].astype(np.float32)
    run = jax.jit(lambda x, waves: (blur_pool(x, stride=1), blur_pool(waves)))
    blurred, wave = map(np.asarray, run(x, waves))
    np.testing.assert_array_equal(blurred[0, 3:6, 3:6, 0], [[1, 2, 1], [2, 4, 2], [1, 2, 1]])
    assert blurred.sum() == 16  # the filter sums to 1, and nothing is elsewhere
    np.testing.assert_array_equal(wave, np.zeros_like(wave))


def test_a_shift_by_the_stride_is_a_shift_of_the_result():
    x = np.pad(normal(1, 5, 6, 2), ((0, 0), (4, 5), (4, 6), (0, 0)))
    pool = jax.jit(blur_pool)
    moved = pool(np.roll(x, (2, 4), (1, 2)))
    np.testing.assert_array_equal(moved, np.roll(pool(x), (1, 2), (1, 2)))


def test_a_shift_by_one_changes_less_than_with_a_max_pool():
    x = np.maximum(normal(1, 16, 16, 4), 0)

    @jax.jit
    def changes(x, moved):
        pools = (
            lambda x: max_pool(x, (2, 2), (2, 2)),
            lambda x: blur_pool(max_pool(x, (2, 2), (1, 1), "SAME")),
        )
        return [jnp.linalg.norm(pool(x) - pool(moved)) / jnp.linalg.norm(pool(x)) for pool in pools]

    strided, blurred = changes(x, np.roll(x, 1, 2))
    assert blurred < 0.7 * strided


def test_half_precision_stays_and_bad_options_are_named():
    x = jax.ShapeDtypeStruct((1, 4, 4, 2), jnp.bfloat16)
    assert jax.eval_shape(blur_pool, x).dtype == jnp.bfloat16
    for options in ({"taps": 0}, {"stride": 0}):
        with pytest.raises(ValueError, match="taps and stride are at least 1"):
            blur_pool(normal(1, 4, 4, 2), **options)
