from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.models.inverted import DepthwiseSeparable, InvertedResidual, round_channels
from opsin.models.layers import Conv, batch_norm
from tests.drawn import normal
from tests.models.plain_inverted import Written, relu6, silu


def count(module, channels):
    images = jax.ShapeDtypeStruct((1, 8, 8, channels), jnp.float32)
    params = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
    return sum(p.size for p in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("wanted", "rounded"),
    [
        (1, 8),
        (11.2, 16),  # 8 would be less than 90 %
        (12, 16),
        (17.6, 16),
        (19.9, 24),  # so would 16
        (22.4, 24),
        (26.4, 24),
        (35.2, 32),
        (352, 352),
        (2048, 2048),
    ],
)
def test_channels_are_the_authors(wanted, rounded):
    assert round_channels(wanted) == rounded


def test_channels_are_multiples_of_eight_near_the_number():
    for wanted in np.arange(0.5, 400, 0.25):
        rounded = round_channels(wanted)
        assert rounded % 8 == 0
        assert rounded >= 0.9 * wanted
        assert abs(rounded - wanted) <= 4 or rounded == 8 or rounded - 8 < 0.9 * wanted


# A depthwise separable layer.


def test_separable_parameters_against_those_of_a_full_convolution():
    plain = {"norm": None, "activation": lambda x: x}
    assert count(DepthwiseSeparable(features=128, **plain), 64) == 8_960
    assert count(Conv(128, (3, 3)), 64) == 73_856
    for side, channels, features in ((3, 5, 7), (5, 2, 9), (1, 4, 4)):
        layer = DepthwiseSeparable(features=features, kernel_size=side, **plain)
        kernels = side**2 * channels + channels * features
        assert count(layer, channels) == kernels + channels + features
        assert count(layer.clone(norm=batch_norm), channels) == kernels + 2 * (channels + features)


@pytest.mark.parametrize("padding", ["symmetric", "same"])
def test_without_activation_it_is_a_convolution_whose_kernel_is_the_product(padding, randomise):
    x = normal(2, 7, 8, 3)
    layer = DepthwiseSeparable(
        features=4, stride=2, padding=padding, norm=None, activation=lambda x: x
    )
    variables = randomise(layer, x)
    depthwise, project = (variables["params"][f"{name}_conv"] for name in ("depthwise", "project"))
    full = {
        "kernel": np.einsum("klic,icf->klcf", depthwise["kernel"], project["kernel"][0]),
        "bias": depthwise["bias"] @ project["kernel"][0, 0] + project["bias"],
    }
    conv = Conv(4, (3, 3), strides=2, padding=1 if padding == "symmetric" else "SAME")
    both = jax.jit(lambda v, f, x: (layer.apply(v, x), conv.apply({"params": f}, x)))
    np.testing.assert_allclose(*both(variables, full, x), rtol=1e-5, atol=1e-5)


# A block, against NumPy.

BLOCKS = {
    "strided": {"features": 4, "stride": 2},
    "residual": {"features": 3},
    "wider": {"features": 5},
    "narrow": {"features": 3, "expansion": 1, "kernel_size": 5},
    "gates": {"features": 3, "reduced": 2, "activation": nn.silu, "kernel_size": 5},
    "tensorflow": {"features": 4, "stride": 2, "padding": "same"},
    "tensorflow5": {"features": 4, "stride": 2, "padding": "same", "kernel_size": 5},
    "blurred": {"features": 4, "stride": 2, "blur_taps": 3, "reduced": 2},
    "blurred residual": {"features": 3, "blur_taps": 3},
}


@pytest.mark.parametrize("kind", BLOCKS)
def test_block_equals_numpy(kind, randomise):
    """Of even height, where both paddings differ, and odd width, where they do not."""
    fields = {"expansion": 2, **BLOCKS[kind]}
    block = InvertedResidual(**fields, norm=partial(batch_norm, epsilon=0.1))
    x = 3 * normal(1, 6, 7, 3)
    variables = randomise(block, x)
    written = Written(block, variables, silu if "activation" in fields else relu6, epsilon=0.1)
    expected = written.block(x[0], block.stride)
    assert expected.shape == (*((3, 4) if block.stride == 2 else (6, 7)), block.features)
    np.testing.assert_allclose(
        jax.jit(block.apply)(variables, x)[0], expected, atol=1e-5 * np.abs(expected).max()
    )


def test_paddings_differ_on_even_sides_alone(randomise):
    block = InvertedResidual(features=4, stride=2)
    variables = randomise(block, normal(1, 6, 6, 3))
    same = block.clone(padding="same")
    both = jax.jit(lambda v, x: (block.apply(v, x), same.apply(v, x)))
    for side, equal in ((6, False), (7, True)):
        ours, theirs = map(np.asarray, both(variables, normal(1, side, side, 3)))
        assert ours.shape == theirs.shape
        assert np.allclose(ours, theirs, atol=1e-5) == equal


def test_the_branch_alone_is_dropped_and_a_block_without_shortcut_never(randomise):
    x = normal(64, 2, 2, 3)
    block = InvertedResidual(features=3, expansion=1, drop=0.5)
    variables = randomise(block, x)
    wide = block.clone(features=4)
    wide_variables = randomise(wide, x)
    key = {"dropout": jax.random.key(0)}
    train = {"train": True, "rngs": key, "mutable": ["batch_stats"]}

    @jax.jit
    def run(variables, wide_variables, x):
        dropped, _ = block.apply(variables, x, **train)
        whole, _ = block.clone(drop=0.0).apply(variables, x, **train)
        wides = [wide.clone(drop=p).apply(wide_variables, x, **train)[0] for p in (0.0, 0.5)]
        return dropped, whole, wides

    dropped, whole, wides = jax.tree.map(np.asarray, run(variables, wide_variables, x))
    np.testing.assert_array_equal(*wides)
    gone = (dropped == x).all((1, 2, 3))
    assert 16 < gone.sum() < 48
    np.testing.assert_allclose(dropped[~gone], (x + 2 * (whole - x))[~gone], atol=1e-5)


def test_unknown_padding_is_named():
    with pytest.raises(ValueError, match='padding is "symmetric" or "same"; got \'valid\''):
        InvertedResidual(features=3, padding="valid").init(jax.random.key(0), normal(1, 4, 4, 3))
