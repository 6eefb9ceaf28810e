from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.models.classification import wide_resnet
from opsin.models.classification.wide_resnet import PreActivationBlock, WideResNet
from opsin.models.layers import Conv, batch_norm, group_norm
from opsin.ops.mapped import REPLICAS
from tests.drawn import normal
from tests.models import plain


def abstract(model, *shape):
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(model.init_with_output, jax.random.key(0), images)


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("WRN16x4", 2_748_890),
        ("WRN28x2", 1_467_610),
        ("WRN28x10", 36_479_194),
        pytest.param("WRN40x4", 8_949_210, marks=pytest.mark.proofs),
        pytest.param("WRN16x8", 10_961_370, marks=pytest.mark.proofs),
    ],
)
def test_parameter_counts(name, total):
    params = abstract(getattr(wide_resnet, name)(), 1, 32, 32, 3)[1]["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == total
    # The name counts all convolutions, those of the three shortcuts too.
    convolutions = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 4]
    assert len(convolutions) == int(name[3:5])


def test_features_by_stride():
    backbone = SMALL.without_head()
    for height, width in ((32, 24), (33, 13)):
        shapes = {s: f.shape[1:] for s, f in abstract(backbone, 1, height, width, 3)[0].items()}
        assert shapes == {
            s: (-(-height // s), -(-width // s), channels)
            for s, channels in ((1, 6), (2, 12), (4, 24))
        }


# One small network on an image of odd sides, step by step.

SMALL = WideResNet(stage_sizes=(1, 2, 1), widening=3, width=2, num_classes=4, dropout=0.3)
IMAGES = normal(4, 9, 6, 3)


@pytest.fixture(scope="module")
def variables(randomise):
    return randomise(SMALL, IMAGES)


@pytest.fixture(scope="module")
def evaluated(variables):
    """Features and logits."""
    part = {name: tree["backbone"] for name, tree in variables.items()}
    both = jax.jit(lambda v, p, x: (SMALL.without_head().apply(p, x), SMALL.apply(v, x)))
    return both(variables, part, IMAGES)


def test_it_equals_numpy(variables, evaluated):
    params, statistics = (variables[kind]["backbone"] for kind in ("params", "batch_stats"))

    def active(x, norm, of):
        layers, running = (params[of], statistics[of]) if of else (params, statistics)
        return np.maximum(plain.batch_norm(x, layers[norm], running[norm]), 0)

    x = plain.conv(IMAGES[0], params["stem_conv"], padding=1)
    expected = {}
    for stage, blocks in ((1, 1), (2, 2), (3, 1)):
        for index in range(1, blocks + 1):
            name = f"stage{stage}_block{index}"
            block, stride = params[name], 2 if stage > 1 and index == 1 else 1
            before = active(x, "norm1", name)
            y = active(plain.conv(before, block["conv1"], stride, 1), "norm2", name)
            y = plain.conv(y, block["conv2"], padding=1)
            first = index == 1
            assert ("shortcut_conv" in block) == first
            x = y + (plain.conv(before, block["shortcut_conv"], stride) if first else x)
        expected[2 ** (stage - 1)] = x
    x = expected[4] = active(x, "norm", "")
    features, logits = evaluated
    assert list(features) == [1, 2, 4]
    for stride, feature in features.items():
        np.testing.assert_allclose(feature[0], expected[stride], rtol=1e-4, atol=1e-4)
    head = variables["params"]["head"]
    assert variables["params"].keys() == {"backbone", "head"}
    np.testing.assert_allclose(logits[0], plain.dense(x.mean((0, 1)), head), rtol=1e-4, atol=1e-4)


def block(**fields):
    conv = partial(Conv, use_bias=False)
    return PreActivationBlock(
        **({"channels": 4, "stride": 1, "conv": conv, "norm": batch_norm} | fields)
    )


def test_a_block_without_weights_is_the_identity_of_negative_numbers_too(randomise):
    """Unlike one whose ReLU comes after the addition."""
    x = normal(2, 5, 5, 4)
    variables = randomise(block(), x)
    assert variables["params"].keys() == {"norm1", "conv1", "norm2", "conv2"}
    params = variables["params"] | {"conv2": {"kernel": np.zeros((3, 3, 4, 4), np.float32)}}
    apply = block().apply
    np.testing.assert_array_equal(jax.jit(apply)(variables | {"params": params}, x), x)
    assert str(jax.make_jaxpr(apply)(variables, x)).count("materialized") == 1


def test_dropout_is_between_the_convolutions_in_training_only(variables, evaluated, randomise):
    run = jax.jit(partial(SMALL.apply, train=True, mutable=["batch_stats"]))
    one, same, other = (
        run(variables, IMAGES, rngs={"dropout": jax.random.key(key)})[0] for key in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)
    np.testing.assert_array_equal(jax.jit(SMALL.apply)(variables, IMAGES), evaluated[1])
    # A second convolution that passes on its input shows what reached it: some numbers are zero,
    # the others 1 / (1 - p) times as large.
    norm = partial(batch_norm, frozen_statistics=True)
    with_dropout, without = block(dropout=0.5, norm=norm), block(norm=norm)
    x = normal(2, 5, 5, 4)
    drawn = randomise(without, x)
    kernel = np.zeros((3, 3, 4, 4), np.float32)
    kernel[1, 1] = np.eye(4)
    drawn = drawn | {"params": drawn["params"] | {"conv2": {"kernel": kernel}}}
    train = partial(with_dropout.apply, train=True, rngs={"dropout": jax.random.key(0)})
    branch, whole = (np.asarray(jax.jit(f)(drawn, x)) - x for f in (train, without.apply))
    active = np.abs(whole) > 1e-3
    ratio = branch[active] / whole[active]
    np.testing.assert_allclose(ratio * (ratio - 2), 0, atol=1e-2)
    assert 0.3 < (ratio < 1).mean() < 0.7


def test_replicas_share_their_statistics(variables):
    model = SMALL.clone(dropout=0.0)
    apply = partial(model.apply, train=True, mutable=["batch_stats"])
    split = jax.vmap(apply, in_axes=(None, 0), axis_name=REPLICAS)

    @jax.jit
    def both(variables, images):
        return apply(variables, images), split(variables, images.reshape(2, 2, *images.shape[1:]))

    (whole, after), (halves, synchronised) = both(variables, IMAGES)
    np.testing.assert_allclose(np.reshape(halves, whole.shape), whole, atol=1e-4)
    jax.tree.map(
        lambda one, two, old: (
            np.testing.assert_allclose(two[1], one, atol=1e-5),
            np.testing.assert_array_less(0, np.abs(np.asarray(one) - old)),
        ),
        after["batch_stats"],
        synchronised["batch_stats"],
        variables["batch_stats"],
    )


def test_half_precision_keeps_parameters_statistics_and_logits_in_single():
    half = SMALL.clone(dtype=jnp.bfloat16)
    leaves = jax.tree.leaves(abstract(half, 1, 8, 8, 3))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    features = abstract(half.without_head(), 1, 8, 8, 3)[0].values()
    assert {feature.dtype for feature in features} == {jnp.dtype("bfloat16")}
    groups = SMALL.clone(norm=partial(group_norm, groups=2))
    assert abstract(groups, 1, 8, 8, 3)[1].keys() == {"params"}


def test_bad_options_are_named():
    with pytest.raises(ValueError, match=r"\[batch, height, width, channels\]; got \(9, 6, 3\)"):
        SMALL.init(jax.random.key(0), IMAGES[0])
    for depth in (4, 18):
        with pytest.raises(ValueError, match=f"6n \\+ 4 layers .* got {depth}"):
            wide_resnet.wide_resnet(depth, 2)
