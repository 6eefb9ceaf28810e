"""Upsampling against numpy, closed forms and the convolutions whose gradients it is."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from opsin.ops import upsampling
from opsin.ops.convolution.dispatch import convolve
from opsin.ops.upsampling import bilinear_kernel

NHWC = ("NHWC", "HWIO", "NHWC")

# Compiled, which takes less time here than to run operation by operation.
transposed_convolution = jax.jit(
    upsampling.transposed_convolution, static_argnames=("strides", "padding", "output_padding")
)
bed_of_nails = jax.jit(upsampling.bed_of_nails, static_argnames="factor")
upsample_nearest = jax.jit(upsampling.upsample_nearest, static_argnames="factor")
upsample_bilinear = jax.jit(upsampling.upsample_bilinear, static_argnames="size")
max_pool_with_positions = jax.jit(upsampling.max_pool_with_positions, static_argnames="window")
max_unpool = jax.jit(upsampling.max_unpool, static_argnames=("window", "size"))


def draw(*shapes):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def transposed_numpy(x, kernel, strides, padding, output_padding):
    """Each pixel's kernel added where it belongs, on a canvas that is cut afterwards."""
    x, kernel = np.asarray(x), np.asarray(kernel)
    batch, height, width, _ = x.shape
    rows, columns, _, features = kernel.shape
    out = [
        (side - 1) * stride - 2 * pad + taps + more
        for side, stride, pad, taps, more in zip(
            (height, width), strides, padding, (rows, columns), output_padding, strict=True
        )
    ]
    canvas = np.zeros((batch, out[0] + 2 * padding[0], out[1] + 2 * padding[1], features))
    for i in range(height):
        for j in range(width):
            top, left = i * strides[0], j * strides[1]
            place = canvas[:, top : top + rows, left : left + columns]
            place += np.einsum("bc,hwcf->bhwf", x[:, i, j], kernel)
    return canvas[:, padding[0] :, padding[1] :][:, : out[0], : out[1]]


@pytest.mark.parametrize(
    ("taps", "strides", "padding", "output_padding"),
    [
        ((2, 2), (2, 2), (0, 0), (0, 0)),
        ((4, 4), (2, 2), (1, 1), (0, 0)),
        ((3, 5), (2, 3), (1, 0), (1, 2)),
        ((3, 3), (1, 1), (1, 2), (0, 0)),
        ((1, 2), (3, 2), (0, 1), (2, 1)),
    ],
)
def test_transposed_convolution_equals_numpy(taps, strides, padding, output_padding):
    x, kernel = draw((2, 3, 4, 3), (*taps, 3, 2))
    ours = transposed_convolution(
        x, kernel, strides=strides, padding=padding, output_padding=output_padding
    )
    expected = transposed_numpy(x, kernel, strides, padding, output_padding)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_it_is_the_adjoint_of_the_convolution_and_so_are_its_gradients():
    # <convolve(image, w), x> = <image, transposed(x, w)>: one trilinear form, seen from each side.
    image, x, kernel = draw((2, 8, 7, 2), (2, 4, 3, 5), (3, 3, 5, 2))
    options = {"strides": (2, 3), "padding": (1, 1), "output_padding": (1, 0)}

    @jax.jit
    def numbers(image, x, kernel):
        forward = convolve(
            image, kernel.swapaxes(2, 3), (2, 3), ((1, 1), (1, 1)), dimension_numbers=NHWC
        )
        value, pullback = jax.vjp(partial(transposed_convolution, **options), x, kernel)
        of_x, of_kernel = pullback(image)
        pairs = ((forward, x), (image, value), (of_x, x), (of_kernel, kernel))
        return jnp.stack([jnp.vdot(*pair) for pair in pairs])

    expected, *others = np.asarray(numbers(image, x, kernel))
    np.testing.assert_allclose(others, [expected] * 3, rtol=1e-5)


def test_transposed_convolution_under_vmap():
    x, kernel = draw((3, 3, 4, 3), (4, 4, 3, 2))
    enlarge = partial(transposed_convolution, strides=2, padding=1)
    each = jax.jit(jax.vmap(enlarge, in_axes=(0, None)))(x[:, None], kernel)
    np.testing.assert_allclose(np.asarray(each)[:, 0], enlarge(x, kernel), atol=1e-5)


def test_it_is_one_native_convolution_on_accelerators():
    x, kernel = draw((1, 3, 4, 3), (4, 4, 3, 2))
    traced = jax.jit(partial(transposed_convolution, strides=2, padding=1)).trace(x, kernel)
    for platform in ("cuda", "tpu"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.convolution") == 1


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_a_bilinear_kernel_interpolates_inside(factor):
    (x,) = draw((1, 5, 6, 2))
    size = 2 * factor - factor % 2
    learned = transposed_convolution(
        x, bilinear_kernel(size, 2), strides=factor, padding=factor // 2
    )
    exact = upsample_bilinear(x, (5 * factor, 6 * factor))
    assert learned.shape == exact.shape
    inside = (slice(None), slice(factor, -factor), slice(factor, -factor))
    learned, exact = map(np.asarray, (learned, exact))
    np.testing.assert_allclose(learned[inside], exact[inside], atol=1e-5)


def test_bilinear_kernel_is_that_of_the_paper():
    tent = np.array([0.25, 0.75, 0.75, 0.25])
    kernel = bilinear_kernel(4, 3)
    np.testing.assert_array_equal(kernel[:, :, 1, 1], np.outer(tent, tent))
    np.testing.assert_array_equal(kernel[:, :, 0, 1], np.zeros((4, 4)))
    np.testing.assert_allclose(bilinear_kernel((1, 3), 1)[..., 0, 0], [[0.5, 1, 0.5]])


@pytest.mark.parametrize("size", [(10, 12), (13, 31), (5, 6), (3, 4), (1, 1)])
def test_bilinear_upsampling_equals_numpy(size):
    (x,) = draw((2, 5, 6, 3))
    expected = x
    for axis, count in enumerate(size, start=1):
        side = expected.shape[axis]
        places = np.clip((np.arange(count) + 0.5) * side / count - 0.5, 0, side - 1)
        interpolate = partial(np.interp, places, np.arange(side))
        expected = np.apply_along_axis(interpolate, axis, expected)
    np.testing.assert_allclose(upsample_bilinear(x, size), expected, atol=1e-5)


def test_a_constant_stays_constant():
    x = np.full((1, 3, 4, 2), 0.3, np.float32)
    large = np.full((1, 7, 11, 2), 0.3, np.float32)
    np.testing.assert_allclose(upsample_bilinear(x, (7, 11)), large, 1e-6)
    np.testing.assert_array_equal(upsample_nearest(x, (2, 3)), large[:, :6, :1].repeat(12, axis=2))


def test_nearest_and_bed_of_nails():
    (x,) = draw((2, 3, 4, 3))
    repeated = np.repeat(np.repeat(x, 2, axis=1), 3, axis=2)
    np.testing.assert_array_equal(upsample_nearest(x, (2, 3)), repeated)
    nails = np.zeros_like(repeated)
    nails[:, ::2, ::3] = x
    np.testing.assert_array_equal(bed_of_nails(x, (2, 3)), nails)


# Pooling that remembers.


@pytest.mark.parametrize(("size", "window"), [((4, 6), 2), ((6, 8), (3, 2)), ((5, 7), (2, 3))])
def test_unpooling_keeps_the_maxima_in_their_places(size, window):
    (x,) = draw((2, *size, 3))
    values, positions = map(np.asarray, max_pool_with_positions(x, window))
    rows, columns = window if isinstance(window, tuple) else (window, window)
    expected = np.zeros_like(x)
    for i in range(0, size[0], rows):
        for j in range(0, size[1], columns):
            part = x[:, i : i + rows, j : j + columns]
            largest = part.max((1, 2), keepdims=True)
            expected[:, i : i + rows, j : j + columns] = np.where(part == largest, part, 0)
            np.testing.assert_array_equal(values[:, i // rows, j // columns], largest[:, 0, 0])
    np.testing.assert_array_equal(max_unpool(values, positions, window, size), expected)
    unpooled = np.asarray(max_unpool(values, positions, window))
    again, _ = max_pool_with_positions(np.maximum(unpooled, 0), window)
    np.testing.assert_array_equal(again, np.maximum(values, 0))


def test_the_first_of_equal_pixels_is_taken_with_the_whole_gradient():
    x = np.float32([[1, 3, 0], [3, 2, 0]])[None, :, :, None]

    @jax.jit
    def run(x):
        values, positions = max_pool_with_positions(x, 2)
        gradient = jax.grad(lambda x: max_pool_with_positions(x, 2)[0].sum())(x)
        back = jax.grad(lambda v: (max_unpool(v, positions, 2, (2, 3)) * x).sum())(values)
        return values, positions, gradient, back

    values, positions, gradient, back = map(np.asarray, run(x))
    np.testing.assert_array_equal(values[0, ..., 0], [[3, 0]])
    np.testing.assert_array_equal(positions[0, ..., 0], [[1, 0]])
    np.testing.assert_array_equal(gradient[0, ..., 0], [[0, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(back, values)


def test_pooling_hides_no_nan_and_no_infinity():
    x = np.float32([[np.nan, 1], [2, 3]])[None, :, :, None]
    assert np.isnan(max_pool_with_positions(x, 2)[0]).all()
    values, _ = max_pool_with_positions(np.full((1, 3, 3, 1), -np.inf, np.float32), 2)
    np.testing.assert_array_equal(values, np.full((1, 2, 2, 1), -np.inf))


X, KERNEL = np.zeros((1, 3, 3, 2), np.float32), np.zeros((2, 2, 2, 4), np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: transposed_convolution(X[0], KERNEL, strides=2), r"got \(3, 3, 2\) and"),
        (lambda: transposed_convolution(X[..., :1], KERNEL, strides=2), r"got \(1, 3, 3, 1\) and"),
        (lambda: transposed_convolution(X, KERNEL, strides=0), "strides is a number of at least 1"),
        (lambda: transposed_convolution(X, KERNEL, strides=2, padding=-1), "padding .* got -1"),
        (lambda: transposed_convolution(X, KERNEL, strides=2, padding=3), "leaves nothing"),
        (
            lambda: transposed_convolution(X, KERNEL, strides=2, output_padding=(0, 2)),
            r"output_padding \(0, 2\) must be below the strides \(2, 2\)",
        ),
        (lambda: bilinear_kernel((0, 2), 1), r"size .* got \(0, 2\)"),
        (lambda: max_pool_with_positions(X, (2, 2, 2)), "window .* or a pair"),
        (lambda: max_unpool(X, X[:, :1], 2), r"got \(1, 3, 3, 2\) and \(1, 1, 3, 2\)"),
        (lambda: max_unpool(X, X, 2, (7, 6)), r"size \(7, 6\) is not \(3, 3\) windows"),
        (lambda: bed_of_nails(X, 0), "factor .* got 0"),
        (lambda: upsample_nearest(X, (1, -1)), r"factor .* got \(1, -1\)"),
        (lambda: upsample_bilinear(X, (0, 4)), r"no size \(0, 4\)"),
        (lambda: upsample_bilinear(X[:, :0], (4, 4)), r"image of \(1, 0, 3, 2\)"),
    ],
)
def test_bad_arguments_are_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_transposed_convolution_under_shard_map():
    x, kernel = draw((8, 3, 4, 3), (4, 4, 3, 2))
    enlarge = partial(transposed_convolution, strides=2, padding=1)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = {"in_specs": (P("data"), P()), "out_specs": P("data")}
    sharded = jax.jit(jax.shard_map(enlarge, mesh=mesh, **specs))
    np.testing.assert_allclose(sharded(x, kernel), enlarge(x, kernel), atol=1e-5)
