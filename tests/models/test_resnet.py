from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.models.classification import resnet
from opsin.models.classification.resnet import (
    BasicBlock,
    BottleneckBlock,
    ResNet18,
    ResNet50,
    ResNetBackbone,
    cifar_resnet,
)
from opsin.models.layers import Conv, batch_norm, group_norm
from opsin.ops.mapped import REPLICAS
from opsin.train.paths import flatten
from tests.drawn import normal
from tests.models import plain


def abstract_params(model, size):
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)["params"]


def count(model, size=32):
    return sum(p.size for p in jax.tree.leaves(abstract_params(model, size)))


@pytest.mark.parametrize(
    ("depth", "total"),
    [
        (18, 11_689_512),
        (34, 21_797_672),
        (50, 25_557_032),
        pytest.param(101, 44_549_160, marks=pytest.mark.proofs),
        pytest.param(152, 60_192_808, marks=pytest.mark.proofs),
    ],
)
def test_imagenet_parameter_counts(depth, total):
    assert count(getattr(resnet, f"ResNet{depth}")(), 224) == total


@pytest.mark.parametrize(
    ("depth", "total"),
    [
        (20, 269_722),
        (32, 464_154),
        pytest.param(44, 658_586, marks=pytest.mark.proofs),
        pytest.param(56, 853_018, marks=pytest.mark.proofs),
        pytest.param(110, 1_727_962, marks=pytest.mark.proofs),
    ],
)
def test_cifar_parameter_counts(depth, total):
    assert count(getattr(resnet, f"ResNet{depth}")()) == total


@pytest.mark.parametrize(
    ("model", "total"),
    [
        (resnet.ResNet20(shortcut="projection"), 272_474),
        (resnet.ResNet18Cifar(), 11_173_962),
        (resnet.SEResNet18(), 11_778_592),
        (resnet.SEResNet50(), 28_088_024),
        (resnet.SEResNet18Cifar(), 11_263_042),
        pytest.param(resnet.SEResNet101(), 49_326_872, marks=pytest.mark.proofs),
        pytest.param(resnet.ResNet50Cifar(), 23_520_842, marks=pytest.mark.proofs),
    ],
)
def test_parameter_counts_of_other_forms(model, total):
    assert count(model) == total


def test_plain_twin_has_the_parameters_of_option_a():
    plain = abstract_params(cifar_resnet(14, residual=False), 32)
    residual = abstract_params(cifar_resnet(14), 32)
    assert plain == residual


def feature_shapes(model, height, width):
    images = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
    features, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    return {stride: feature.shape for stride, feature in features.items()}


def test_features_by_stride():
    short = {"width": 8, "stage_sizes": (1, 1, 1, 1)}
    assert feature_shapes(ResNet50(**short).without_head(), 64, 96) == {
        4: (2, 16, 24, 32),
        8: (2, 8, 12, 64),
        16: (2, 4, 6, 128),
        32: (2, 2, 3, 256),
    }
    assert feature_shapes(ResNet18(**short).without_head(), 65, 33) == {
        4: (2, 17, 9, 8),
        8: (2, 9, 5, 16),
        16: (2, 5, 3, 32),
        32: (2, 3, 2, 64),
    }
    assert feature_shapes(cifar_resnet(8).without_head(), 32, 32) == {
        1: (2, 32, 32, 16),
        2: (2, 16, 16, 32),
        4: (2, 8, 8, 64),
    }


# Dilation and deformable convolution in place of strides and plain convolution.


@pytest.mark.parametrize("variant", [ResNet18, pytest.param(ResNet50, marks=pytest.mark.proofs)])
def test_a_dilated_network_has_the_values_of_the_strided_one_and_those_between(variant, randomise):
    # Two blocks where there is dilation: the first keeps that of the stage before.
    strided = variant(width=4, stage_sizes=(1, 1, 2, 2)).without_head()
    dilated = strided.clone(output_stride=8)
    images = normal(1, 40, 72, 3)
    variables = randomise(strided, images)
    both = jax.jit(lambda v, x: [network.apply(v, x) for network in (strided, dilated)])
    coarse, fine = jax.tree.map(np.asarray, both(variables, images))
    sizes = {level: feature.shape[1:3] for level, feature in fine.items()}
    assert sizes == {4: (10, 18), 8: (5, 9), 16: (5, 9), 32: (5, 9)}
    for level, feature in coarse.items():
        step = max(1, level // 8)
        scale = np.abs(feature).max()
        np.testing.assert_allclose(fine[level][:, ::step, ::step], feature, atol=1e-5 * scale)


def test_output_stride_keeps_parameters_and_bounds_the_size():
    stages = {"width": 8, "stage_sizes": (1, 1, 1)}
    for model, stride in ((ResNet18(**stages), 4), (ResNet50(**stages), 4), (cifar_resnet(8), 1)):
        whole = abstract_params(model, 32)
        assert abstract_params(model.clone(output_stride=stride), 32) == whole
    for stride in (4, 8, 16, 32):
        backbone = ResNet18(width=8, stage_sizes=(1, 1, 1, 1), output_stride=stride)
        shapes = feature_shapes(backbone.without_head(), 65, 96)
        sides = {level: -(-65 // min(level, stride)) for level in (4, 8, 16, 32)}
        assert {level: shape[1] for level, shape in shapes.items()} == sides
    option_a = cifar_resnet(8, output_stride=1).without_head()
    assert [shape[1] for shape in feature_shapes(option_a, 8, 8).values()] == [8, 8, 8]


@pytest.mark.parametrize("modulated", [False, True])
def test_deformable_stages_begin_as_plain_ones(modulated, randomise):
    plain = ResNet50(width=4, stage_sizes=(1, 1), output_stride=4).without_head()
    model = plain.clone(deformable_stages=(2,), modulated=modulated)
    images = normal(1, 24, 24, 3)
    variables = randomise(model, images)
    params = variables["params"]
    conv = params["stage2_block1"]["conv2"]
    assert conv["offsets"]["kernel"].shape == (3, 3, 8, 27 if modulated else 18)

    def with_conv2(conv):
        block = params["stage2_block1"] | {"conv2": conv}
        return variables | {"params": params | {"stage2_block1": block}}

    new = conv | {"offsets": jax.tree.map(np.zeros_like, conv["offsets"])}
    found = jax.jit(model.apply)(with_conv2(new), images)
    # Modulation halves what it weights, until it has learned.
    kernel = conv["kernel"] / 2 if modulated else conv["kernel"]
    expected = jax.jit(plain.apply)(with_conv2({"kernel": kernel}), images)
    np.testing.assert_array_equal(found[4], expected[4])
    np.testing.assert_allclose(found[8], expected[8], atol=1e-4)


# Blocks, against numpy.


def block(kind, **fields):
    conv = partial(Conv, use_bias=False, padding=0)
    layers = {"conv": conv, "spatial_conv": conv, "norm": batch_norm}
    return kind(**({"channels": 4, "stride": 1} | layers | fields))


@pytest.mark.parametrize(
    ("kind", "paddings", "strides"),
    [(BasicBlock, (1, 1), (2, 1)), (BottleneckBlock, (0, 1, 0), (1, 2, 1))],
)
def test_strided_projection_block_equals_numpy(kind, paddings, strides, randomise):
    x = normal(1, 6, 8, 3)
    model = block(kind, stride=2)
    variables = randomise(model, x)
    params, statistics = variables["params"], variables["batch_stats"]

    def layer(y, conv, norm, stride, padding):
        y = plain.conv(y, params[conv], stride, padding)
        return plain.batch_norm(y, params[norm], statistics[norm])

    y = x[0]
    for index, (padding, stride) in enumerate(zip(paddings, strides, strict=True), start=1):
        if index > 1:
            y = np.maximum(y, 0)
        y = layer(y, f"conv{index}", f"norm{index}", stride, padding)
    shortcut = layer(x[0], "shortcut_conv", "shortcut_norm", 2, 0)
    expected = np.maximum(y + shortcut, 0)
    np.testing.assert_allclose(jax.jit(model.apply)(variables, x)[0], expected, atol=1e-5)


@pytest.mark.parametrize("kind", [BasicBlock, BottleneckBlock])
def test_zero_block_is_the_identity_and_its_plain_twin_is_zero(kind, key):
    x = np.abs(normal(2, 5, 5, 4 * kind.expansion))
    model = block(kind, zero_init_last_norm=True)
    y, variables = jax.jit(model.init_with_output)(key, x)
    np.testing.assert_array_equal(y, x)
    plain = block(kind, zero_init_last_norm=True, residual=False)
    np.testing.assert_array_equal(jax.jit(plain.apply)(variables, x), np.zeros_like(x))
    # The sum is written once on a CPU: else every block of a stage adds up all blocks before it.
    sums = [
        str(jax.make_jaxpr(x.apply)(variables, y)).count("materialized") for x in (model, plain)
    ]
    assert sums == [1, 0]


def test_squeeze_and_excitation_gates_the_branch_before_the_addition(randomise):
    x = normal(1, 8, 8, 3)
    images = {"width": 4, "stage_sizes": (1,), "stem": "cifar", "shortcut": "projection"}
    plain_one = ResNet18(**images).without_head()
    model = ResNet18(**images, se_reduction=2).without_head()
    variables = randomise(model, x)
    block = variables["params"]["stage1_block1"]
    assert {path: leaf.shape for path, leaf in flatten(block["se"]).items()} == {
        "reduce/kernel": (1, 1, 4, 2),
        "reduce/bias": (2,),
        "expand/kernel": (1, 1, 2, 4),
        "expand/bias": (4,),
    }
    # Gates of sigmoid(-log 3) = 1/4 are a last norm of a quarter.
    quarter = {
        "reduce": block["se"]["reduce"],
        "expand": {"kernel": np.zeros((1, 1, 2, 4)), "bias": np.full(4, -np.log(3))},
    }
    norm = {name: leaf / 4 for name, leaf in block["norm2"].items()}
    without = {name: part for name, part in block.items() if name != "se"}

    def with_block(block):
        return variables | {"params": variables["params"] | {"stage1_block1": block}}

    found = jax.jit(model.apply)(with_block(block | {"se": quarter}), x)
    expected = jax.jit(plain_one.apply)(with_block(without | {"norm2": norm}), x)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-5)


def test_option_a_takes_every_second_pixel_and_adds_zero_channels(key):
    x = np.abs(normal(2, 5, 6, 3))
    model = block(BasicBlock, stride=2, shortcut="identity-pad", zero_init_last_norm=True)
    y, variables = jax.jit(model.init_with_output)(key, x)
    expected = np.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (0, 1)))
    np.testing.assert_array_equal(y, expected)
    assert "shortcut_conv" not in variables["params"]


def test_imagenet_stem_equals_numpy(randomise):
    x = normal(1, 13, 16, 3)
    stem = ResNetBackbone(stage_sizes=(0,), block=BasicBlock, width=2)
    variables = randomise(stem, x)
    features = jax.jit(stem.apply)(variables, x)
    y = plain.conv(x[0], variables["params"]["stem_conv"], 2, 3)
    params, statistics = (variables[kind]["stem_norm"] for kind in ("params", "batch_stats"))
    y = np.maximum(plain.batch_norm(y, params, statistics), 0)
    y = np.pad(y, ((1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    np.testing.assert_allclose(features[4][0], plain.pool(y, 3, 2), atol=1e-5)


# One small network, compiled once for each mode.


@pytest.fixture(scope="module")
def images():
    return normal(4, 8, 8, 3)


@pytest.fixture(scope="module")
def small(images, randomise):
    model = cifar_resnet(8, width=4)
    return model, randomise(model, images)


@pytest.fixture(scope="module")
def trained(small, images):
    """Logits and statistics of one forward pass in training."""
    model, variables = small
    return jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))(variables, images)


def test_training_updates_statistics_and_evaluation_does_not(small, trained, images):
    model, variables = small
    run = jax.jit(partial(model.apply, mutable=["batch_stats"]))
    logits, after = run(variables, images)
    jax.tree.map(np.testing.assert_array_equal, after["batch_stats"], variables["batch_stats"])
    others = np.concatenate([images[:1], 7 * images[1:]])
    same, _ = run(variables, others)
    np.testing.assert_allclose(np.asarray(same)[0], np.asarray(logits)[0], atol=1e-5)

    after = trained[1]
    changed = jax.tree.map(
        lambda a, b: np.all(np.asarray(a) != b), after["batch_stats"], variables["batch_stats"]
    )
    assert all(jax.tree.leaves(changed))
    assert {s.dtype for s in jax.tree.leaves(after)} == {jnp.dtype("float32")}


def test_classifier_is_backbone_mean_and_head(small, images):
    model, variables = small
    part = {name: tree["backbone"] for name, tree in variables.items()}
    both = jax.jit(lambda v, p, x: (model.apply(v, x), model.without_head().apply(p, x)[4]))
    logits, features = both(variables, part, images)
    head = variables["params"]["head"]
    expected = np.asarray(features).mean((1, 2)) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert variables["params"].keys() == {"backbone", "head"}


def test_bfloat16_keeps_parameters_statistics_and_logits_in_float32(small, trained, images):
    model, variables = small
    half = model.clone(dtype=jnp.bfloat16)
    run = jax.jit(partial(half.apply, train=True, mutable=["batch_stats"]))
    logits, after = run(variables, images)
    full, full_after = trained
    assert logits.dtype == jnp.float32
    assert not np.array_equal(logits, full)
    np.testing.assert_allclose(logits, full, atol=0.2)
    init = half.without_head().init_with_output
    features, initial = jax.eval_shape(init, jax.random.key(0), images)
    assert {f.dtype for f in features.values()} == {jnp.dtype("bfloat16")}
    assert {a.dtype for a in jax.tree.leaves((initial, after))} == {jnp.dtype("float32")}
    statistics = [tree["batch_stats"]["backbone"]["stem_norm"] for tree in (after, full_after)]
    np.testing.assert_allclose(statistics[0]["mean"], statistics[1]["mean"], atol=1e-3)


def test_group_norm_needs_no_statistics_and_mixes_no_images(images, randomise):
    model = cifar_resnet(8, width=4, norm=partial(group_norm, groups=2))
    run = jax.jit(partial(model.apply, train=True))
    variables = randomise(model, images)
    assert variables.keys() == {"params"}
    others = np.concatenate([images[:1], 7 * images[1:]])
    logits, same = run(variables, images), run(variables, others)
    np.testing.assert_allclose(np.asarray(same)[0], np.asarray(logits)[0], atol=1e-5)


def test_axis_name_synchronises_statistics(small, trained, images):
    model, variables = small
    both, after = trained
    apply = partial(model.apply, train=True, mutable=["batch_stats"])
    logits, synchronised = jax.jit(jax.vmap(apply, in_axes=(None, 0), axis_name=REPLICAS))(
        variables, images.reshape(2, 2, 8, 8, 3)
    )
    np.testing.assert_allclose(np.asarray(logits).reshape(both.shape), both, atol=1e-4)
    jax.tree.map(
        lambda one, two: np.testing.assert_allclose(np.asarray(two)[1], one, atol=1e-5),
        after,
        synchronised,
    )


def test_bad_options_are_named():
    images = np.zeros((1, 8, 8, 3), np.float32)
    with pytest.raises(ValueError, match=r"\[batch, height, width, channels\]; got \(8, 8, 3\)"):
        cifar_resnet(8).init(jax.random.key(0), images[0])
    with pytest.raises(ValueError, match='"imagenet" or "cifar"; got \'big\''):
        cifar_resnet(8, stem="big").init(jax.random.key(0), images)
    with pytest.raises(ValueError, match='"identity-pad" or "projection"; got \'C\''):
        cifar_resnet(8, shortcut="C").init(jax.random.key(0), images)
    with pytest.raises(ValueError, match=r"None or one of \[1, 2, 4\]; got 8"):
        cifar_resnet(8, output_stride=8).init(jax.random.key(0), images)
    with pytest.raises(ValueError, match=r"None or one of \[4, 8, 16, 32\]; got 2"):
        ResNet18(output_stride=2).init(jax.random.key(0), images)
    with pytest.raises(ValueError, match=r"among \[1, 2, 3\]; got \(0, 3\)"):
        cifar_resnet(8, deformable_stages=(0, 3)).init(jax.random.key(0), images)
    for depth in (2, 21):
        with pytest.raises(ValueError, match=f"6n \\+ 2 layers .* got {depth}"):
            cifar_resnet(depth)
