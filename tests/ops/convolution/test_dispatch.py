"""The convolution equals lax's in every derivative, and is lax's own on accelerators."""

import importlib.util
import math
import os
import platform
import re
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from functools import partial, reduce
from itertools import accumulate
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import PartitionSpec as P

from opsin.models.classification.resnet import ResNet20
from opsin.ops.convolution import dispatch
from opsin.ops.convolution.dispatch import convolve
from opsin.ops.convolution.forms import WINOGRAD_CHANNELS, fast_on_cpu, form, native
from opsin.ops.convolution.geometry import NHWC, OPERANDS, Geometry
from opsin.ops.convolution.winograd import minimal_filtering
from opsin.train.compiler import compiler_options
from opsin.train.host.accounting import model_flops

SWITCHED = os.environ.get("OPSIN_NATIVE_CONV") == "1"
"""Whether these tests run under the switch to XLA's own convolution."""


def draw(*shapes, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape, np.float32).astype(dtype) for shape in shapes]


def assert_close(ours, theirs, factor=1.0):
    """Equal to float32 rounding: relative to the largest value of each array."""
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        scale = np.abs(y).max() or 1.0
        np.testing.assert_allclose(x, y, rtol=0, atol=factor * 4e-6 * scale)


def value_and_gradients(convolution, image, kernel, cotangent):
    value, pullback = jax.vjp(convolution, image, kernel)
    return value, *pullback(cotangent.reshape(value.shape))


def assert_equals_lax(image_shape, kernel_shape, **options):
    """Value and both gradients of ours and of lax's, in one program."""
    ours = partial(convolve, dimension_numbers=NHWC, **options)
    theirs = partial(lax.conv_general_dilated, dimension_numbers=NHWC, **options)
    image, kernel = draw(image_shape, kernel_shape)
    (cotangent,) = draw(jax.eval_shape(theirs, image, kernel).shape)
    both = jax.jit(lambda *x: [value_and_gradients(f, *x) for f in (ours, theirs)])
    # In which order a host's kernels add up thousands of products, the last bits tell.
    assert_close(*both(image, kernel, cotangent), factor=3)


sizes = st.integers(1, 9)
margins = st.tuples(st.integers(0, 4), st.integers(0, 4))


@settings(
    max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(
    sides=st.tuples(sizes, sizes),
    taps=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    channels=st.sampled_from([1, 3, 16]),
    features=st.sampled_from([1, 4, 18]),
    groups=st.sampled_from([1, 1, 2, "depthwise"]),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.sampled_from([(1, 1), (1, 1), (2, 1), (2, 3)]),
    padding=st.one_of(
        st.sampled_from(["SAME", "VALID", "SAME_LOWER"]), st.tuples(margins, margins)
    ),
)
def test_it_equals_laxs_in_value_and_gradients(
    sides, taps, channels, features, groups, strides, dilation, padding
):
    groups = channels if groups == "depthwise" else groups
    kernel = (*taps, channels // groups, features - features % groups or groups)
    assume(channels % groups == 0)
    options = {
        "window_strides": strides,
        "padding": padding,
        "rhs_dilation": dilation,
        "feature_group_count": groups,
    }
    image, weights = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, *sides, channels), kernel))
    theirs = partial(lax.conv_general_dilated, dimension_numbers=NHWC, **options)
    assume(0 not in jax.eval_shape(theirs, image, weights).shape)
    assert_equals_lax(image.shape, kernel, **options)


WIDE = WINOGRAD_CHANNELS


@pytest.mark.parametrize(
    ("image", "kernel", "strides", "padding", "forms"),
    [
        ((2, 8, 8, WIDE), (3, 3, WIDE, WIDE), 1, "SAME", "winograd winograd winograd"),
        ((8, 9, 7, 40), (3, 3, 40, WIDE), 1, ((0, 2), (1, 1)), "winograd winograd winograd"),
        ((40, 6, 5, WIDE), (3, 3, WIDE, 40), 1, "VALID", "winograd winograd winograd"),
        ((16, 40, 40, 40), (3, 3, 40, WIDE), 1, "SAME", "winograd winograd winograd"),  # two blocks
        ((1, 4, 7, 64), (3, 3, 64, WIDE), 1, "SAME", "native native exchanged"),  # few places
        ((1, 3, 5, 128), (3, 3, 128, 130), 1, ((1, 0), (2, 1)), "native turned exchanged"),
        ((1, 7, 6, WIDE), (3, 3, WIDE, WIDE), 1, "VALID", "native native exchanged"),
        ((1, 7, 7, WIDE), (3, 3, WIDE, WIDE), 1, "SAME", "winograd native winograd"),
        ((2, 8, 8, WIDE), (3, 3, WIDE, WIDE - 1), 1, "SAME", "native native exchanged"),
        ((2, 8, 8, 3), (4, 4, 3, 8), 4, "VALID", "tiles tiles tiles"),
        ((2, 8, 8, 20), (1, 1, 20, 8), 1, "SAME", "tiles tiles tiles"),
        ((2, 5, 5, 16), (5, 5, 16, 12), 1, "VALID", "tiles tiles tiles"),
        ((2, 9, 8, 1), (5, 5, 1, 6), 1, "SAME", "banded banded banded"),
        ((2, 9, 8, 6), (5, 5, 6, 16), 1, "VALID", "banded banded exchanged"),
        ((2, 8, 8, 3), (3, 3, 3, 16), 2, "SAME", "banded banded banded"),
        ((2, 16, 15, 3), (7, 7, 3, 64), 2, "SAME", "native banded exchanged"),
        ((2, 9, 8, 16), (3, 3, 16, 3), 1, ((0, 2), (1, 1)), "mirrored mirrored mirrored"),
        ((2, 9, 8, 64), (5, 5, 64, 1), 1, "VALID", "mirrored mirrored mirrored"),
        ((2, 9, 8, 16), (3, 3, 16, 3), 1, ((0, 3), (1, 1)), "native native exchanged"),
        ((2, 8, 8, 16), (3, 3, 16, 16), 2, "SAME", "native native exchanged"),
        ((3, 16, 5, 8), (3, 3, 8, 16), 1, "VALID", "native native exchanged"),  # odd columns
        ((3, 7, 8, 8), (3, 3, 8, 16), 1, "SAME", "widened widened exchanged"),
        ((3, 7, 8, 20), (5, 3, 20, 16), 1, ((1, 3), (2, 0)), "widened native exchanged"),
        ((3, 7, 8, 12), (3, 2, 12, 24), 1, "VALID", "native widened exchanged"),
        ((3, 17, 5, 8), (3, 3, 8, 20), 1, ((2, 0), (0, 1)), "native native taps"),
        ((5, 64, 64, 8), (3, 3, 8, 32), 1, "SAME", "native native taps"),  # in five blocks
    ],
)
def test_each_form_is_chosen_for_its_shapes_and_equals_laxs(image, kernel, strides, padding, forms):
    strides = (strides, strides)
    if isinstance(padding, str):
        pads = lax.padtype_to_pads(image[1:3], kernel[:2], strides, padding)
    else:
        pads = padding
    geometry = Geometry(image, kernel, strides, tuple(pads), (1, 1), 1, None)
    chosen = [form(part, geometry).__name__ for part in ("result", "image", "kernel")]
    assert all(want in name for want, name in zip(forms.split(), chosen, strict=True)), chosen
    assert_equals_lax(image, kernel, window_strides=strides, padding=padding)


@pytest.mark.parametrize(
    ("image", "kernel", "strides", "dilation", "named"),
    [
        ((3, 9, 8, 40), (3, 3, 1, 40), (1, 1), (1, 1), "depthwise"),
        ((34, 7, 6, 4), (5, 3, 1, 4), (2, 3), (1, 1), "depthwise"),  # in blocks of images
        ((2, 8, 8, 3), (3, 3, 1, 6), (2, 1), (1, 2), "depthwise"),  # two features a channel
        ((2, 7, 7, 5), (1, 1, 1, 5), (3, 3), (1, 1), "depthwise"),  # not every pixel is touched
        ((2, 8, 8, 64), (3, 3, 4, 64), (1, 1), (1, 1), "by_groups"),  # eight of them together
        ((2, 8, 8, 12), (3, 3, 4, 6), (2, 2), (1, 1), "by_groups"),  # all of them together
        ((2, 9, 9, 80), (3, 3, 40, 64), (1, 1), (1, 1), "by_groups"),  # each alone
    ],
)
def test_each_form_of_groups_equals_laxs(image, kernel, strides, dilation, named):
    groups = image[3] // kernel[2]
    pads = lax.padtype_to_pads(image[1:3], kernel[:2], strides, "SAME")
    geometry = Geometry(image, kernel, strides, tuple(pads), dilation, groups, None)
    for part in ("result", "image", "kernel"):
        assert form(part, geometry).__name__.strip("_") == named
    assert_equals_lax(
        *(image, kernel),
        window_strides=strides,
        padding=pads,
        rhs_dilation=dilation,
        feature_group_count=groups,
    )


def test_minimal_filtering_is_exact_but_for_rounding():
    matrices = minimal_filtering()
    image, kernel = np.random.default_rng(0).standard_normal((2, 6))
    products = (matrices["kernel"] @ kernel[:3]) * (matrices["image"] @ image)
    expected = [kernel[:3] @ image[row : row + 3] for row in range(4)]
    np.testing.assert_allclose(matrices["result"] @ products, expected, rtol=1e-13)
    # What is zero must be so exactly: it is left out.
    counts = [np.count_nonzero(matrices[part]) for part in ("image", "kernel", "result")]
    assert counts == [22, 14, 18]


def test_every_entry_of_minimal_filtering_is_the_nearest_float():
    """The formula of Toom and Cook in whole numbers a + b √2, over common denominators."""

    def times(x, y):
        return x[0] * y[0] + 2 * x[1] * y[1], x[0] * y[1] + x[1] * y[0]

    half = Fraction(1, 2)
    points = [(0, 0), (0, half), (0, -half), (0, 1), (0, -1)]

    def polynomial(roots):
        coefficients = [(1, 0)]
        for a, b in roots:
            shifted, scaled = [(0, 0), *coefficients], [times((-a, -b), c) for c in coefficients]
            scaled.append((0, 0))
            coefficients = [
                (u[0] + v[0], u[1] + v[1]) for u, v in zip(shifted, scaled, strict=True)
            ]
        return coefficients

    def number(x):
        assert 0 in x  # so that one rounding is all there is, and that of √2
        return float(x[0]) if x[1] == 0 else float(x[1] * Fraction(math.sqrt(2)))

    def powers(point, count):
        return list(accumulate([(1, 0), *[point] * (count - 1)], times))

    image, kernel, result = [], [], []
    for point in points:
        others = [other for other in points if other != point]
        image.append([*polynomial(others), (0, 0)])
        slope = reduce(times, [(point[0] - a, point[1] - b) for a, b in others])
        assert slope[1] == 0
        kernel.append(
            [(a / Fraction(slope[0]), b / Fraction(slope[0])) for a, b in powers(point, 3)]
        )
        result.append(powers(point, 4))
    image.append(polynomial(points))
    expected = {"image": image, "kernel": kernel, "result": result}
    for name, rows in expected.items():
        found = minimal_filtering()[name]
        found = (found.T if name == "result" else found)[: len(rows)]
        # One unit in the last place at most: √2 over 6 is divided after it is rounded.
        np.testing.assert_array_max_ulp(
            found, np.array([[number(x) for x in row] for row in rows]), 1
        )
        np.testing.assert_array_equal(found == 0, [[x == (0, 0) for x in row] for row in rows])


def has_avx512() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "avx512f" in cpuinfo.read_text()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="these kernels are of x86-64")
@pytest.mark.parametrize(
    "kind",
    [
        "Nehalem",
        pytest.param("Haswell", marks=pytest.mark.proofs),
        pytest.param(
            "SkylakeX",
            marks=[
                pytest.mark.proofs,
                pytest.mark.skipif(not has_avx512(), reason="this processor has no AVX-512"),
            ],
        ),
    ],
)
def test_minimal_filtering_is_the_same_whatever_kernel_blas_picks(kind):
    script = (
        "from opsin.ops.convolution.winograd import minimal_filtering\n"
        "print({name: x.tobytes().hex() for name, x in minimal_filtering().items()})"
    )
    here = {name: x.tobytes().hex() for name, x in minimal_filtering().items()}
    told = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "OPENBLAS_CORETYPE": kind},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == str(here)


@pytest.mark.parametrize("wanted", ["result", "image", "kernel"])
def test_fewer_products_round_little_more_than_laxs(wanted):
    sides = ((1, 1), (1, 1))
    geometry = Geometry((12, 16, 16, 256), (3, 3, 256, 256), (1, 1), sides, (1, 1), 1, None)
    shapes = {"image": geometry.image, "kernel": geometry.kernel, "result": geometry.result}
    first, second = draw(*(shapes[name] for name in OPERANDS[wanted]))
    assert "winograd" in form(wanted, geometry).__name__

    def contracted(contraction, dtype):
        contract = partial(contraction, wanted=wanted, geometry=geometry)
        return np.asarray(jax.jit(contract)(first.astype(dtype), second.astype(dtype)))

    with jax.enable_x64(True):
        truth = contracted(native, jnp.float64)
    ours, theirs = (
        np.sqrt(np.mean((contracted(f, jnp.float32) - truth) ** 2)) for f in (fast_on_cpu, native)
    )
    assert ours < 3 * theirs
    # What sums of so many products round to in the worst order: hosts have orders of their own.
    terms = 3 * 3 * 256 if wanted != "kernel" else 12 * 16 * 16
    assert ours < 2.0**-24 * math.sqrt(terms) * truth.std()


@pytest.mark.parametrize("wanted", ["result", "image", "kernel"])
def test_a_wide_image_makes_no_larger_program(wanted):
    lengths = []
    for width in (16, 65):
        geometry = Geometry(
            (1, 9, width, 3), (3, 3, 3, 64), (1, 1), ((1, 1), (1, 1)), (1, 1), 1, None
        )
        assert form(wanted, geometry).__name__ == "banded"
        shapes = {"image": geometry.image, "kernel": geometry.kernel, "result": geometry.result}
        operands = (jax.ShapeDtypeStruct(shapes[name], jnp.float32) for name in OPERANDS[wanted])
        contract = partial(fast_on_cpu, wanted=wanted, geometry=geometry)
        lengths.append(len(jax.make_jaxpr(contract)(*operands).eqns))
    assert abs(lengths[0] - lengths[1]) <= 2  # odd columns are filled up


def test_the_three_contractions_are_one_trilinear_form():
    # <result, f(image, kernel)> is the same number from whichever side it is computed.
    geometry = Geometry((2, 6, 6, 3), (3, 3, 3, 4), (1, 1), ((1, 1), (1, 1)), (1, 1), 1, None)
    shapes = {"image": geometry.image, "kernel": geometry.kernel, "result": geometry.result}
    values = dict(zip(shapes, draw(*shapes.values()), strict=True))

    @partial(jax.jit, static_argnums=0)
    def numbers(contraction, values):
        contract = partial(contraction, geometry=geometry)
        return jnp.stack(
            [
                jnp.vdot(values[wanted], contract(*(values[x] for x in names), wanted=wanted))
                for wanted, names in OPERANDS.items()
            ]
        )

    for contraction in (native, fast_on_cpu):
        found = np.asarray(numbers(contraction, values))
        np.testing.assert_allclose(found, [found[0]] * 3, rtol=1e-5)


SAME = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": NHWC}


def test_forward_mode_second_derivatives_and_vmap():
    image, kernel, tangent, direction = draw((2, 4, 4, 2), (3, 3, 2, 3), (2, 4, 4, 2), (3, 3, 2, 3))

    def energy(convolution, image, kernel):
        return jnp.sum(jnp.sin(convolution(image, kernel, **SAME)))

    def derivatives(convolution):
        f = partial(energy, convolution)
        hessian_product = jax.jvp(jax.grad(f, (0, 1)), (image, kernel), (tangent, direction))
        # The penalty of a Wasserstein GAN: a gradient by the kernel of one by the image.
        penalty = jax.grad(lambda w: jnp.sum(jax.grad(f)(image, w) ** 2))(kernel)
        kernels = jnp.stack([kernel, 2 * kernel])
        each = jax.vmap(jax.grad(f, (0, 1)), in_axes=(None, 0))(image, kernels)
        per_image = jax.vmap(jax.grad(f, 1), in_axes=(0, None))(image[:, None], kernel)
        return (*jax.jvp(f, (image, kernel), (tangent, direction)), hessian_product), (
            penalty,
            each,
            per_image,
        )

    both = jax.jit(lambda: [derivatives(f) for f in (convolve, lax.conv_general_dilated)])
    assert_close(*both(), factor=3)


def test_half_precision_and_remat_keep_their_meaning():
    image, kernel = draw((1, 4, 4, 2), (3, 3, 2, 3), dtype=jnp.bfloat16)

    def loss(kernel):
        return jnp.sum(convolve(image, kernel, **SAME).astype(jnp.float32) ** 2)

    @jax.jit
    def both(kernel):
        values = [f(image, kernel, **SAME) for f in (convolve, lax.conv_general_dilated)]
        return values, [jax.grad(f)(kernel) for f in (jax.checkpoint(loss), loss)]

    (ours, theirs), (recomputed, kept) = both(kernel)
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(recomputed, kept)


@pytest.mark.parametrize(
    "options",
    [
        {"lhs_dilation": (2, 2), "window_strides": (1, 1), "padding": ((1, 1), (1, 1))},
        {
            "window_strides": (1, 1),
            "padding": "SAME",
            "dimension_numbers": ("NCHW", "HWIO", "NCHW"),
        },
    ],
)
def test_what_is_not_ordinary_is_laxs_own(options):
    image, kernel = draw((1, 4, 4, 4), (3, 3, 4, 3))
    options = {"dimension_numbers": NHWC, **options}
    jaxprs = [
        str(jax.make_jaxpr(partial(f, **options))(image, kernel))
        for f in (convolve, lax.conv_general_dilated)
    ]
    assert jaxprs[0] == jaxprs[1]


@pytest.mark.parametrize(
    "shapes", [((1, 4, 4, 3), (3, 3, 2, 4)), ((1, 4, 4, 3), (3, 3, 3)), ((4, 4, 3), (3, 3, 3, 4))]
)
def test_its_errors_are_laxs(shapes):
    image, kernel = (jnp.zeros(shape) for shape in shapes)
    messages = []
    for f in (convolve, lax.conv_general_dilated):
        with pytest.raises((TypeError, ValueError, IndexError)) as error:
            f(image, kernel, **SAME)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("platform", ["cuda", "tpu", "cpu"])
def test_a_training_step_runs_native_convolutions_on_accelerators(platform):
    model = ResNet20(stage_sizes=(1,), width=4)
    images = jnp.zeros((2, 8, 8, 3))
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)

    def loss(params, images):
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape), variables["batch_stats"])
        logits, _ = model.apply(
            {"params": params, "batch_stats": zeros}, images, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(logits**2)

    traced = jax.jit(jax.grad(loss)).trace(variables["params"], images)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    # A stem and a block of two: three forward, two gradients of the image, three of the kernel.
    on_cpu = 8 if SWITCHED else 2  # the kernels of four channels; bands elsewhere
    expected = {"cuda": 8, "tpu": 8, "cpu": on_cpu}
    assert text.count("stablehlo.convolution") == expected[platform]


# Winograd's F(4, 3) is one convolution along the width for each of the six rows that it makes.
switches = pytest.mark.parametrize(("switch", "convolutions"), [("", 6), ("1", 1)])


@pytest.mark.proofs
@switches
def test_a_program_that_starts_under_the_switch_has_xlas_own_in_its_layers(switch, convolutions):
    script = (
        "import jax, jax.numpy as jnp\n"
        "from opsin.models.layers import Conv\n"
        "x, layer = jnp.zeros((8, 16, 16, 32)), Conv(32, (3, 3), use_bias=False)\n"
        "weights = jax.eval_shape(layer.init, jax.random.key(0), x)\n"
        "print(jax.jit(layer.apply).lower(weights, x).as_text())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "OPSIN_NATIVE_CONV": switch},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.count("stablehlo.convolution") == convolutions


@switches
def test_a_switch_takes_xlas_own_convolution_on_a_cpu_too(switch, convolutions, monkeypatch):
    monkeypatch.setenv("OPSIN_NATIVE_CONV", switch)  # which is read when the module is
    spec = importlib.util.spec_from_file_location("opsin.ops.convolution.again", dispatch.__file__)
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    shapes = (jax.ShapeDtypeStruct(x, jnp.float32) for x in ((8, 16, 16, 32), (3, 3, 32, 32)))
    text = jax.jit(partial(again.convolve, **SAME)).lower(*shapes).as_text()
    assert text.count("stablehlo.convolution") == convolutions


def test_options_may_be_lists():
    image, kernel = draw((2, 6, 5, 3), (3, 3, 3, 4))
    options: dict = {
        "window_strides": [2, 1],
        "padding": [[1, 0], [2, 1]],
        "rhs_dilation": [1, 1],
        "dimension_numbers": list(NHWC),
        "precision": ["highest", "highest"],
    }
    ours, theirs = (
        jax.jit(partial(f, **options))(image, kernel) for f in (convolve, lax.conv_general_dilated)
    )
    assert_close(ours, theirs)


def test_linen_takes_it_and_its_flops_are_counted_once():
    image = np.zeros((2, 8, 8, 16), np.float32)
    layers = [
        nn.Conv(16, (3, 3), conv_general_dilated=f) for f in (convolve, lax.conv_general_dilated)
    ]
    params = jax.eval_shape(layers[0].init, jax.random.key(0), image)
    counts = [
        model_flops(jax.grad(lambda p, f=f: jnp.sum(f.apply(p, image) ** 2)), params)
        for f in layers
    ]
    assert counts[0] == counts[1]
    assert counts[0].total() == 2 * (2 * 2 * 8 * 8 * 9 * 16 * 16)


def test_negative_padding_crops():
    image, kernel = draw((2, 9, 8, 3), (3, 3, 3, 20))
    padding = ((0, -1), (-2, 1))
    options = {"window_strides": (1, 1), "dimension_numbers": NHWC}

    def cropped(image, kernel):
        inside = ((0, 0), (0, 1))
        return lax.conv_general_dilated(image[:, :-1, 2:], kernel, padding=inside, **options)

    @partial(jax.jit, static_argnums=0)
    def value_and_slopes(convolution, image, kernel):
        value, pullback = jax.vjp(convolution, image, kernel)
        return value, *pullback(jnp.cos(value))

    ours = partial(convolve, padding=padding, **options)
    assert_close(*(value_and_slopes(f, image, kernel) for f in (ours, cropped)))


def proved(*shapes):
    return pytest.param(shapes, marks=pytest.mark.proofs)


@pytest.mark.parametrize(
    "shapes",
    [
        ((8, 4, 4, 2), (3, 3, 2, 3)),  # banded
        ((8, 4, 4, 32), (3, 3, 32, 32)),  # Winograd's
        proved((8, 4, 4, 16), (3, 3, 16, 2)),  # mirrored
        proved((8, 4, 4, 8), (3, 3, 8, 16)),  # widened
        proved((8, 17, 4, 8), (3, 3, 8, 20)),  # by taps
        proved((8, 2, 2, 128), (3, 3, 128, 128)),  # turned before
        proved((16, 128, 128, 8), (3, 3, 8, 8)),  # by taps, in blocks
    ],
)
def test_without_jit_and_over_a_shard_map(shapes):
    image, kernel = draw(*shapes)

    def loss(kernel, image):
        return jnp.sum(convolve(image, kernel, **SAME) ** 2)

    whole, of_image = jax.jit(jax.grad(loss, (0, 1)))(kernel, image)
    with jax.disable_jit():
        for ours, theirs in zip(
            jax.grad(loss, (0, 1))(kernel, image), (whole, of_image), strict=True
        ):
            assert_close(ours, theirs)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = {"in_specs": (P(), P("data")), "out_specs": (P(), P("data"))}

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, **specs)
    def gradients(kernel, image):
        return jax.grad(lambda k, x: lax.psum(loss(k, x), "data"), (0, 1))(kernel, image)

    for ours, theirs in zip(gradients(kernel, image), (whole, of_image), strict=True):
        assert_close(ours, theirs, factor=2)


@pytest.mark.parametrize(("size", "channels", "groups"), [(32, 64, 1), (16, 1, 64)])
def test_devices_that_share_a_batch_exchange_the_kernels_gradient_alone(size, channels, groups):
    sides = ((1, 1), (1, 1))
    kernel = (3, 3, channels, 64)
    geometry = Geometry((64, size, size, 64), kernel, (1, 1), sides, (1, 1), groups, None)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    shared = jax.sharding.NamedSharding(mesh, P("data"))
    operands = (jax.ShapeDtypeStruct(geometry.image, jnp.float32, sharding=shared),) * 2
    contract = jax.jit(partial(fast_on_cpu, wanted="kernel", geometry=geometry))
    text = contract.lower(*operands).compile().as_text()
    assert " while(" in text  # in blocks
    collectives = re.findall(r" (all-[a-z]+|collective-[a-z]+)(?:-start)?\(", text)
    assert set(collectives) == {"all-reduce"}
    assert not re.search(rf"f32\[[\d,]*{size},{size},64[\d,]*\]\S* all-reduce", text)


def test_the_precision_of_the_scope_is_kept():
    image, kernel = draw((1, 4, 4, 2), (3, 3, 2, 3))

    def scoped(image):
        with jax.default_matmul_precision("highest"):
            return convolve(image, kernel, **SAME)

    for convolution, expected in ((partial(convolve, kernel=kernel, **SAME), 0), (scoped, 2)):
        traced = jax.jit(convolution).trace(image)  # of one shape, without the scope and within
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
        assert text.count("HIGHEST") == expected
    geometry = Geometry((8, 8, 8, 64), (3, 3, 64, 64), (1, 1), ((1, 1),) * 2, (1, 1), 1, None)
    highest = replace(geometry, precision=(lax.Precision.HIGHEST,) * 2)
    for part in ("result", "image", "kernel"):
        assert "winograd" in form(part, geometry).__name__
        assert "winograd" not in form(part, highest).__name__


def test_barriers_outlast_the_options_of_a_run():
    # Without them XLA fuses what comes before a convolution into the work inside it.
    image, kernel = draw((1, 4, 4, 16), (3, 3, 16, 16))
    lowered = jax.jit(lambda x: convolve(jnp.sin(x), kernel, **SAME)).lower(image)
    text = lowered.compile(compiler_options=compiler_options("cpu")).as_text()
    assert text.count("opt-barrier") == 0 if SWITCHED else text.count("opt-barrier") >= 2
