"""Sizes, counts and hand-made results of convolution and pooling, as courses and papers print them.

Where a figure in circulation is wrong, the right one stands here.
"""

import itertools
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.models.classification.vgg import VGG16
from opsin.models.layers import Conv, max_pool
from opsin.ops.convolution.dispatch import convolve
from tests.drawn import normal

NHWC = ("NHWC", "HWIO", "NHWC")
ROWS = np.arange(1.0, 5)[:, None] * np.ones(4)
RGB = np.stack([np.ones((4, 4)), np.full((4, 4), 2.0), ROWS], axis=-1)[None]
"""Red is 1, green is 2, blue is the number of the row: [1, 4, 4, 3]."""
ONES = np.ones((3, 3, 3, 1))


def conv(image, kernel, padding=0, stride=1, dilation=1):
    result = convolve(
        jnp.asarray(image, jnp.float32),
        jnp.asarray(kernel, jnp.float32),
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=NHWC,
    )
    return np.asarray(result)


def parameters(module: nn.Module, shape: tuple[int, ...]) -> int:
    init = partial(module.init, jax.random.key(0))
    return sum(x.size for x in jax.tree.leaves(jax.eval_shape(init, jnp.zeros(shape))["params"]))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [[45, 45], [54, 54]]),
        (  # the last row is not 24 36 36 24: of the blue channel alone it is 14 21 21 14
            {"padding": 1},
            [[18, 27, 27, 18], [30, 45, 45, 30], [36, 54, 54, 36], [26, 39, 39, 26]],
        ),
        ({"padding": 1, "dilation": 2}, [[24, 24], [20, 20]]),
        ({"padding": 2, "dilation": 2}, [[value] * 4 for value in (20, 24, 20, 24)]),
    ],
)
def test_the_channels_of_a_small_image_are_summed_by_hand(options, expected):
    np.testing.assert_array_equal(conv(RGB, ONES, **options)[0, ..., 0], expected)


def test_holes_that_reach_beyond_an_image_leave_nothing():
    assert conv(RGB, ONES, dilation=2).shape == (1, 0, 0, 1)


@pytest.mark.parametrize(
    ("size", "kernel", "padding", "stride", "dilation", "expected"),
    [
        (128, 3, 0, 1, 1, 126),
        (128, 3, 0, 2, 1, 63),  # 64 only with a padding of 1
        (128, 3, 1, 2, 1, 64),
        (227, 11, 0, 4, 1, 55),
        (32, 5, 2, 1, 1, 32),  # "same": (K - 1) / 2, of odd kernels at stride 1
        (32, 5, 4, 1, 1, 36),  # "full": K - 1
        (32, 3, 0, 1, 4, 24),  # dilated, a kernel is D (K - 1) + 1 wide
    ],
)
def test_the_size_of_a_result(size, kernel, padding, stride, dilation, expected):
    assert expected == (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    image, filters = jnp.zeros((1, size, size, 3)), jnp.zeros((kernel, kernel, 3, 16))
    run = partial(
        convolve,
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=NHWC,
    )
    assert jax.eval_shape(run, image, filters).shape == (1, expected, expected, 16)


def test_the_parameters_of_layers():
    assert parameters(Conv(128, (3, 3)), (1, 8, 8, 64)) == 128 * 64 * 9 + 128 == 73_856
    separable = nn.Sequential([Conv(64, (3, 3), feature_group_count=64), Conv(128, (1, 1))])
    assert parameters(separable, (1, 8, 8, 64)) == 64 * 9 + 64 + 64 * 128 + 128 == 8_960
    # A bias is one for each output, not one for all. Shapes alone: the kernel would take 34 GB.
    dense = parameters(nn.Dense(128 * 32 * 32), (1, 64 * 32 * 32))
    assert dense == (64 * 32 * 32 + 1) * 128 * 32 * 32 == 8_590_065_664
    for channels in (1, 8):  # two 3x3 see what one 5x5 sees, with fewer parameters
        two = nn.Sequential([Conv(channels, (3, 3), use_bias=False) for _ in range(2)])
        one = Conv(channels, (5, 5), use_bias=False)
        counts = [parameters(each, (1, 8, 8, channels)) for each in (two, one)]
        assert counts == [18 * channels**2, 25 * channels**2]


def seen(network, size: int) -> int:
    """Pixels of a row that a value in the middle of the result depends on."""

    def middle(image):
        result = network(image)
        return result[0, result.shape[1] // 2, result.shape[2] // 2, 0]

    gradient = np.asarray(jax.grad(middle)(normal(1, size, size, 1)))
    return int((np.abs(gradient[0]).max(axis=(1, 2)) > 0).sum())


def positive(size: int) -> np.ndarray:
    return np.linspace(0.1, 1, size * size).reshape(size, size, 1, 1)


def layer(size: int):
    kernel = jnp.asarray(positive(size), jnp.float32)
    return partial(
        convolve, kernel=kernel, window_strides=(1, 1), padding="VALID", dimension_numbers=NHWC
    )


def averaged(x):
    return nn.avg_pool(x, (2, 2), (2, 2))


def test_the_receptive_field_is_where_the_gradient_is():
    three, five = layer(3), layer(5)
    assert seen(five, 16) == seen(lambda x: three(three(x)), 16) == 5
    assert seen(lambda x: averaged(five(x)), 17) == 6
    assert seen(lambda x: three(averaged(five(x))), 20) == 10  # 5, 6, and 2 · (3 - 1) more


def circular(image, kernel):
    around = np.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="wrap")
    return conv(around, kernel)


def test_convolution_moves_with_its_image_on_a_torus_and_away_from_borders():
    image, kernel = np.asarray(normal(1, 8, 8, 1)), positive(3)
    moved = np.roll(image, 1, axis=2)
    np.testing.assert_allclose(
        circular(moved, kernel), np.roll(circular(image, kernel), 1, axis=2), atol=1e-5
    )
    padded, still = conv(moved, kernel, 1), np.roll(conv(image, kernel, 1), 1, axis=2)
    np.testing.assert_allclose(padded[:, :, 2:-1], still[:, :, 2:-1], atol=1e-5)
    assert np.abs(padded - still)[:, :, :2].max() > 0.1  # at the border zeros moved in
    halves = conv(np.roll(image, 2, axis=2), kernel, 1, 2)
    np.testing.assert_allclose(
        halves[:, :, 2:-1], np.roll(conv(image, kernel, 1, 2), 1, axis=2)[:, :, 2:-1], atol=1e-5
    )
    odd = conv(moved, kernel, 1, 2)
    assert np.abs(odd[:, :, 1:] - conv(image, kernel, 1, 2)[:, :, 1:]).max() > 0.1


def test_max_pooling_does_not_move_with_its_image():
    """Nor is it invariant; its result changes less than its image does, and not always."""

    def pooled(*row):
        return max_pool(jnp.asarray(row, jnp.float32).reshape(1, 1, 4, 1), (1, 2), (1, 2)).ravel()

    np.testing.assert_array_equal(pooled(1, 3, 2, 4), [3, 4])
    np.testing.assert_array_equal(pooled(0, 1, 3, 2), [1, 3])


def test_a_filter_is_an_inner_product_and_is_not_turned_over():
    patch, kernel = normal(1, 3, 3, 2), normal(3, 3, 2, 1)
    value = conv(patch, kernel)[0, 0, 0, 0]
    np.testing.assert_allclose(value, np.vdot(patch[0], kernel[..., 0]), rtol=1e-5)
    turned = conv(patch, np.asarray(kernel)[::-1, ::-1])[0, 0, 0, 0]
    assert abs(turned - value) > 0.1


def test_a_vgg_has_its_activations_early_and_its_parameters_late():
    """Half of the side and twice the channels are half of the activations, not as many."""
    model = VGG16(num_classes=1000)
    variables = jax.eval_shape(partial(model.init, jax.random.key(0)), jnp.zeros((1, 224, 224, 3)))
    sizes = [x.size for x in jax.tree.leaves(variables["params"])]
    assert sum(sizes) == 138_357_544
    assert max(sizes) + 4096 == 102_764_544  # its first dense layer, of 7 · 7 · 512 inputs
    sides, channels = (224, 112, 56, 28, 14), (64, 128, 256, 512, 512)
    activations = [side**2 * width for side, width in zip(sides, channels, strict=True)]
    assert activations[0] == 3_211_264
    assert [a / b for a, b in itertools.pairwise(activations)] == [2, 2, 2, 4]
