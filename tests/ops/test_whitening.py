"""Whitened patches have the second moments of the identity."""

import jax
import numpy as np
import pytest

from opsin.experiments.extractors import CIFAR10_WHITENING
from opsin.experiments.whitening import cifar10_filters
from opsin.ops.whitening import whitening_filters
from tests.drawn import normal


def patches(images, size):
    windows = np.lib.stride_tricks.sliding_window_view(images, (size, size), axis=(1, 2))
    return windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, size * size * images.shape[3])


@pytest.mark.parametrize(("size", "channels"), [(2, 3), (3, 1)])
def test_what_they_give_is_white(size, channels):
    mix = normal(channels, channels)
    images = np.cumsum(normal(20, 12, 10, channels), axis=1) @ mix
    kernel = jax.jit(whitening_filters, static_argnames=("size", "epsilon"))(
        images, size=size, epsilon=0.0
    )
    count = size * size * channels
    assert kernel.shape == (size, size, channels, 2 * count)
    filters = np.asarray(kernel).reshape(count, -1)
    np.testing.assert_array_equal(filters[:, count:], -filters[:, :count])
    given = patches(images.astype(np.float64), size) @ filters[:, :count]
    np.testing.assert_allclose(given.T @ given / len(given), np.eye(count), atol=2e-3)


def test_epsilon_bounds_the_filters_of_what_hardly_varies():
    images = np.ones((2, 4, 4, 1), np.float32)  # one eigenvalue of 4, three of 0
    filters = np.asarray(jax.jit(whitening_filters)(images)).reshape(4, 8)[:, :4]
    np.testing.assert_allclose(np.linalg.norm(filters[:, :3], axis=0), 5e-4**-0.5, rtol=1e-3)
    assert np.linalg.norm(filters[:, 3]) == pytest.approx(0.5, rel=1e-3)


@pytest.mark.slow
def test_the_committed_filters_are_those_of_the_images():
    arrays, _ = CIFAR10_WHITENING.read()
    ours = arrays["params/backbone/whiten/kernel"].reshape(12, 24)[:, :12]
    found = cifar10_filters().reshape(12, 24)[:, :12]
    signs = np.sign(np.sum(ours * found, axis=0))  # of an eigenvector there are two
    np.testing.assert_allclose(found * signs, ours, rtol=1e-4, atol=1e-5)
