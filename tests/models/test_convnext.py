import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from opsin.models.classification import convnext
from opsin.models.classification.convnext import ConvNeXt, ConvNeXtBlock
from tests.drawn import normal
from tests.models import plain


def abstract(model, height=32, width=32):
    images = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
    return jax.eval_shape(model.init_with_output, jax.random.key(0), images)


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("Tiny", 28_589_128),
        pytest.param("Small", 50_223_688, marks=pytest.mark.proofs),
        pytest.param("Base", 88_591_464, marks=pytest.mark.proofs),
        pytest.param("Large", 197_767_336, marks=pytest.mark.proofs),
    ],
)
def test_parameter_counts(name, total):
    _, variables = abstract(getattr(convnext, f"ConvNeXt{name}")())
    assert sum(p.size for p in jax.tree.leaves(variables["params"])) == total


def test_features_by_stride_leave_out_what_no_stride_reaches():
    model = ConvNeXt(stage_sizes=(1, 1, 1, 1), width=4)
    features, _ = abstract(model.without_head(), 67, 56)
    assert {stride: feature.shape for stride, feature in features.items()} == {
        4: (2, 16, 14, 4),
        8: (2, 8, 7, 8),
        16: (2, 4, 3, 16),
        32: (2, 2, 1, 32),
    }


@pytest.mark.parametrize(("sizes", "rates"), [((1, 2, 1), [0, 0.2, 0.4, 0.6]), ((1,), [0])])
def test_stochastic_depth_grows_from_the_first_block_to_the_last(sizes, rates):
    drops = []

    def record(next_function, args, kwargs, context):
        if isinstance(context.module, ConvNeXtBlock) and context.method_name == "__call__":
            drops.append(context.module.drop)
        return next_function(*args, **kwargs)

    with nn.intercept_methods(record):
        abstract(ConvNeXt(stage_sizes=sizes, width=2, stochastic_depth=0.6))
    np.testing.assert_allclose(drops, rates)


# One small network, step by step.


@pytest.fixture(scope="module")
def images():
    return normal(4, 9, 18, 3)


@pytest.fixture(scope="module")
def small(images, randomise):
    model = ConvNeXt(stage_sizes=(2, 1), width=4, stochastic_depth=0.5, num_classes=5)
    return model, randomise(model, images)


@pytest.fixture(scope="module")
def evaluated(small, images):
    """Features by stride, and logits."""
    model, variables = small
    part = {"params": variables["params"]["backbone"]}
    both = jax.jit(lambda v, p, x: (model.without_head().apply(p, x), model.apply(v, x)))
    return both(variables, part, images)


def layer_norm(x, params):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * params["scale"] + params["bias"]


def block(x, params):
    y = layer_norm(plain.conv(x, params["depthwise_conv"], 1, 3, x.shape[-1]), params["norm"])
    y = y @ params["mlp1"]["kernel"] + params["mlp1"]["bias"]
    y = y / 2 * (1 + erf(y / np.sqrt(2)))
    y = y @ params["mlp2"]["kernel"] + params["mlp2"]["bias"]
    return x + y * params["layer_scale"]


def test_it_equals_numpy(small, evaluated, images):
    params = small[1]["params"]
    part = params["backbone"]
    x = layer_norm(plain.conv(images[0], part["stem_conv"], 4), part["stem_norm"])
    x = block(block(x, part["stage1_block1"]), part["stage1_block2"])
    expected = {4: x}
    x = plain.conv(layer_norm(x, part["stage2_norm"]), part["stage2_conv"], 2)
    expected[8] = x = block(x, part["stage2_block1"])
    features, logits = evaluated
    assert list(features) == [4, 8]
    for stride, feature in features.items():
        np.testing.assert_allclose(feature[0], expected[stride], atol=1e-4)
    pooled = layer_norm(x.mean((0, 1)), params["norm"])
    np.testing.assert_allclose(logits[0], plain.dense(pooled, params["head"]), atol=1e-4)
    assert params.keys() == {"backbone", "norm", "head"}
    assert logits.dtype == jnp.float32


def test_in_training_branches_are_dropped_and_gradients_are_finite(small, evaluated, images):
    model, variables = small

    def loss(params, key, drop):
        module = model.clone(stochastic_depth=drop)
        logits = module.apply({"params": params}, images, train=True, rngs={"dropout": key})
        return jnp.sum(jnp.cos(logits)), logits

    @jax.jit
    def run(params, key):
        derived = jax.value_and_grad(loss, has_aux=True)
        return derived(params, key, 0.3), loss(params, key, 0.0)

    ((_, one), gradients), (_, whole) = run(variables["params"], jax.random.key(0))
    other = run(variables["params"], jax.random.key(1))[0][0][1]
    assert not np.allclose(one, other)
    np.testing.assert_allclose(whole, evaluated[1], atol=1e-5)
    assert all(
        np.isfinite(g).all() and np.any(g != 0) for g in map(np.asarray, jax.tree.leaves(gradients))
    )


def test_a_new_block_is_nearly_the_identity_and_its_kernels_are_small(key):
    x = normal(1, 4, 4, 32)
    y, variables = jax.jit(ConvNeXtBlock().init_with_output)(key, x)
    params = jax.tree.map(np.asarray, variables["params"])
    np.testing.assert_array_equal(params["layer_scale"], np.full(32, 1e-6, np.float32))
    assert 0 < np.abs(y - x).max() < 1e-5
    assert np.std(params["mlp1"]["kernel"]) == pytest.approx(0.02, rel=0.05)
    assert np.std(params["depthwise_conv"]["kernel"]) == pytest.approx(0.02, rel=0.1)
    assert not np.any(params["mlp1"]["bias"])


def test_norms_keep_the_variance_of_numbers_far_from_zero(small, images):
    """As a bias of the stem makes them."""
    model, variables = small
    backbone = variables["params"]["backbone"]
    stem = backbone["stem_conv"] | {"bias": backbone["stem_conv"]["bias"] + 3000}
    moved = variables["params"] | {"backbone": backbone | {"stem_conv": stem}}
    both = jax.jit(lambda *params: [model.apply({"params": p}, images) for p in params])
    np.testing.assert_allclose(*both(variables["params"], moved), atol=0.01)


def test_bfloat16_keeps_parameters_and_logits_in_float32(small, images):
    half = small[0].clone(dtype=jnp.bfloat16)
    logits, variables = jax.eval_shape(half.init_with_output, jax.random.key(0), images)
    features = jax.eval_shape(half.without_head().init_with_output, jax.random.key(0), images)[0]
    assert logits.dtype == jnp.float32
    assert {f.dtype for f in features.values()} == {jnp.dtype("bfloat16")}
    assert {a.dtype for a in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("shape", [(9, 8, 3), (1, 7, 8, 3), (1, 8, 7, 3)])
def test_bad_input_is_named(small, shape):
    with pytest.raises(ValueError, match="with sides of at least 8; got"):
        small[0].init(jax.random.key(0), np.zeros(shape, np.float32))
