"""Deformable convolution against the ordinary one, a plain loop and finite differences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.models.deformable import DeformableConv
from opsin.models.layers import Conv
from opsin.ops.convolution.deformable import deformable_convolution, sample_bilinear
from opsin.ops.convolution.dispatch import convolve

NHWC = ("NHWC", "HWIO", "NHWC")
GEOMETRY = {"strides": (2, 1), "padding": ((1, 2), (0, 3)), "dilation": (1, 2)}


@pytest.fixture(scope="module")
def inputs():
    """Image, kernel, and a zero offset and a one as mask for each output and tap."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 7, 6, 4)).astype(np.float32)
    kernel = rng.normal(size=(3, 2, 4, 6)).astype(np.float32)
    return x, kernel, np.zeros((2, 4, 7, 6, 2), np.float32), np.ones((2, 4, 7, 6), np.float32)


@partial(jax.jit, static_argnames="groups")
def ordinary(x, kernel, groups=1):
    return convolve(
        x,
        kernel,
        GEOMETRY["strides"],
        GEOMETRY["padding"],
        rhs_dilation=GEOMETRY["dilation"],
        dimension_numbers=NHWC,
        feature_group_count=groups,
    )


deformable = jax.jit(partial(deformable_convolution, **GEOMETRY), static_argnames="groups")


def pixel(image, y, x):
    inside = 0 <= y < image.shape[0] and 0 <= x < image.shape[1]
    return image[y, x].astype(float) if inside else np.zeros(image.shape[2])


def bilinear_numpy(image, y, x):
    """Dai et al., 2017, eq. 3: the sum over all near pixels q of G(q, p) x(q)."""
    top, left = int(np.floor(y)), int(np.floor(x))
    return sum(
        max(0, 1 - abs(i - y)) * max(0, 1 - abs(j - x)) * pixel(image, i, j)
        for i in (top, top + 1)
        for j in (left, left + 1)
    )


def deformable_numpy(x, kernel, offsets, mask):
    """Zhu et al., 2018, eq. 1, one sample at a time."""
    batch, rows, columns = offsets.shape[:3]
    y = np.zeros((batch, rows, columns, kernel.shape[3]))
    for b, i, j, k, m in np.ndindex(*offsets.shape[:3], *kernel.shape[:2]):
        tap = k * kernel.shape[1] + m
        down, right = offsets[b, i, j, tap]
        row = GEOMETRY["strides"][0] * i - GEOMETRY["padding"][0][0] + k * GEOMETRY["dilation"][0]
        column = (
            GEOMETRY["strides"][1] * j - GEOMETRY["padding"][1][0] + m * GEOMETRY["dilation"][1]
        )
        sample = bilinear_numpy(x[b], row + down, column + right)
        y[b, i, j] += mask[b, i, j, tap] * sample @ kernel[k, m]
    return y


def test_zero_offsets_and_a_mask_of_ones_are_the_ordinary_convolution(inputs):
    x, kernel, offsets, mask = inputs
    expected = ordinary(x, kernel)
    for result in (deformable(x, kernel, offsets, mask), deformable(x, kernel, offsets)):
        np.testing.assert_allclose(result, expected, atol=1e-5)
    grouped = deformable(x, kernel[:, :, :2], offsets, groups=2)
    np.testing.assert_allclose(grouped, ordinary(x, kernel[:, :, :2], groups=2), atol=1e-5)


def test_it_equals_a_loop_over_samples(inputs):
    x, kernel, offsets, mask = inputs
    rng = np.random.default_rng(1)
    offsets = rng.normal(0, 2.5, offsets.shape).astype(np.float32)  # some far outside
    mask = rng.uniform(size=mask.shape).astype(np.float32)
    expected = deformable_numpy(x, kernel, offsets, mask)
    np.testing.assert_allclose(deformable(x, kernel, offsets, mask), expected, atol=1e-5)


def test_a_constant_whole_offset_is_a_shifted_image(inputs):
    x, kernel, offsets, _ = inputs
    shifted = np.zeros_like(x)
    shifted[:, :-2, 1:] = x[:, 2:, :-1]
    moved = deformable(x, kernel, offsets + np.float32([2, -1]))
    # Outside the shifted image there are zeros, where the sampled one still has pixels.
    np.testing.assert_allclose(moved[:, 1:, 1:3], ordinary(shifted, kernel)[:, 1:, 1:3], atol=1e-5)


def test_half_a_pixel_is_the_mean_of_neighbours_and_outside_is_zero(inputs):
    image = inputs[0][:1]
    places = [[2, 3.5], [2.5, 3], [2.5, 3.5], [-0.5, 2], [6.5, 5.5], [-1, 2], [3, 99]]
    (found,) = np.asarray(jax.jit(sample_bilinear)(image, np.float32([places])))
    one = image[0]
    expected = [
        (one[2, 3] + one[2, 4]) / 2,
        (one[2, 3] + one[3, 3]) / 2,
        (one[2, 3] + one[2, 4] + one[3, 3] + one[3, 4]) / 4,
        one[0, 2] / 2,
        one[6, 5] / 4,
        0 * one[0, 0],
        0 * one[0, 0],
    ]
    np.testing.assert_allclose(found, np.stack(expected), atol=1e-6)


def test_gradients_are_those_of_finite_differences(inputs):
    x, kernel, offsets, mask = inputs
    rng = np.random.default_rng(2)
    # Away from whole numbers, where the derivative by an offset jumps.
    offsets = rng.integers(-2, 3, offsets.shape) + rng.uniform(0.2, 0.8, offsets.shape)
    values = [x, kernel, offsets.astype(np.float32), rng.uniform(size=mask.shape)]
    cotangent = rng.normal(size=(2, 4, 7, 6))

    def loss(*values):
        return jnp.vdot(cotangent, deformable_convolution(*values, **GEOMETRY))

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(*values)
    for index, gradient in enumerate(gradients):
        step = 0.1 * rng.uniform(-1, 1, values[index].shape)

        def moved(sign, index=index, step=step):
            changed = list(values)
            changed[index] = changed[index] + sign * step
            return np.vdot(cotangent, deformable_numpy(*changed))

        # Exact but for rounding: the loss is linear in image, kernel and mask, and along a line
        # a polynomial of degree two in (y, x), whose central difference has no error.
        difference = (moved(1) - moved(-1)) / 2
        np.testing.assert_allclose(np.vdot(gradient, step), difference, rtol=1e-4)


def test_vmap_and_half_precision(inputs):
    x, kernel, offsets, mask = inputs
    offsets = offsets + np.float32([0.25, -0.5])
    mapped = jax.vmap(lambda x, o, m: deformable(x[None], kernel, o[None], m[None])[0])
    each = jax.jit(mapped)(x, offsets, mask)
    np.testing.assert_allclose(each, deformable(x, kernel, offsets, mask), atol=1e-5)
    half = deformable(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16), offsets)
    assert half.dtype == jnp.bfloat16
    plain = deformable(x, kernel, offsets)
    np.testing.assert_allclose(np.asarray(half, np.float32), plain, atol=0.3)
    # Coordinates are not rounded: bfloat16 has no 300.5.
    row = (np.arange(400) % 2).reshape(1, 1, 400, 1)
    halves = np.tile([0, 0.5], (1, 1, 400, 1, 1))
    arguments = (a.astype(jnp.bfloat16) for a in (row, np.ones((1, 1, 1, 1)), halves))
    between = np.asarray(jax.jit(deformable_convolution)(*arguments), np.float32)
    np.testing.assert_array_equal(between[0, 0, :-1], 0.5)


def test_shapes_that_do_not_fit_are_refused(inputs):
    x, kernel, offsets, mask = inputs
    with pytest.raises(ValueError, match=r"\(2, 4, 7, 6, 2\) here.*got \[\(2, 4, 6, 6, 2\)\]"):
        deformable(x, kernel, offsets[:, :, 1:])
    with pytest.raises(ValueError, match=r"a mask \(2, 4, 7, 6\); got .*\(2, 4, 7, 5\)"):
        deformable(x, kernel, offsets, mask[..., 1:])


# The layer.

FIELDS = {"strides": 2, "padding": 2, "kernel_dilation": 2}


@pytest.mark.parametrize("modulated", [False, True])
def test_a_new_layer_is_the_plain_convolution_or_half_of_it(modulated, inputs, key):
    x = inputs[0]
    layer = DeformableConv(5, (3, 3), modulated=modulated, **FIELDS)
    variables = jax.jit(layer.init)(key, x)
    plain = Conv(5, (3, 3), **FIELDS)
    weights = {name: np.asarray(variables["params"][name]) + 0.5 for name in ("kernel", "bias")}
    expected = jax.jit(plain.apply)({"params": weights | {"bias": np.zeros(5)}}, x)
    expected = (expected / 2 if modulated else np.asarray(expected)) + weights["bias"]
    result = jax.jit(layer.apply)({"params": variables["params"] | weights}, x)
    np.testing.assert_allclose(result, expected, atol=1e-5)
    offsets = variables["params"]["offsets"]["kernel"]
    assert offsets.shape == (3, 3, 4, 27 if modulated else 18)


def test_the_layer_predicts_offsets_and_weights_and_learns_them(inputs, key):
    x = inputs[0]
    layer = DeformableConv(5, (3, 3), use_bias=False, **FIELDS)
    rng = np.random.default_rng(3)
    shapes = jax.eval_shape(layer.init, key, x)["params"]
    params = jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype(s.dtype), shapes)
    assert params.keys() == {"kernel", "offsets"}

    @jax.jit
    def by_hand(params):
        predicted = Conv(27, (3, 3), **FIELDS).apply({"params": params["offsets"]}, x)
        return deformable_convolution(
            x,
            params["kernel"],
            predicted[..., :18].reshape(*predicted.shape[:3], 9, 2),
            1 / (1 + jnp.exp(-predicted[..., 18:])),
            strides=(2, 2),
            padding=((2, 2), (2, 2)),
            dilation=(2, 2),
        )

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def slopes(params):
        result = layer.apply({"params": params}, x)
        return jnp.sum(result**2), result

    gradients, result = slopes(params)
    np.testing.assert_allclose(result, by_hand(params), atol=1e-5)
    for gradient in map(np.asarray, (gradients["kernel"], gradients["offsets"]["kernel"])):
        assert np.any(gradient != 0, axis=(0, 1, 2)).all()
