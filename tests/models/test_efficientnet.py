from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.models.classification import efficientnet
from opsin.models.classification.efficientnet import (
    EfficientNetB0,
    EfficientNetB5,
    EfficientNetLite0,
    EfficientNetLite2,
    compound_scaling,
)
from opsin.models.inverted import InvertedResidual
from tests.drawn import normal
from tests.models import plain
from tests.models.plain_inverted import Written, relu6, silu, train_twice


def abstract(model, height=64, width=64):
    images = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
    return jax.eval_shape(model.init_with_output, jax.random.key(0), images)


def size(tree):
    return sum(p.size for p in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("B0", 5_288_548),
        pytest.param("B1", 7_794_184, marks=pytest.mark.proofs),
        pytest.param("B2", 9_109_994, marks=pytest.mark.proofs),
        pytest.param("B3", 12_233_232, marks=pytest.mark.proofs),
        pytest.param("B4", 19_341_616, marks=pytest.mark.proofs),
        pytest.param("B5", 30_389_784, marks=pytest.mark.proofs),
        pytest.param("B6", 43_040_704, marks=pytest.mark.proofs),
        pytest.param("B7", 66_347_960, marks=pytest.mark.proofs),
        pytest.param("Lite1", 5_416_680, marks=pytest.mark.proofs),
    ],
)
def test_parameter_counts(name, total):
    _, variables = abstract(getattr(efficientnet, f"EfficientNet{name}")())
    assert size(variables["params"]) == total


def test_published_factors_are_those_of_the_formula_rounded():
    assert compound_scaling(0) == (1, 1, 1)
    depth, width, size = compound_scaling(1)
    assert depth * width**2 * size**2 == pytest.approx(1.92, abs=5e-4)  # multiplications double
    np.testing.assert_allclose(compound_scaling(2.5), np.power(compound_scaling(1), 2.5))
    steps = {1: 0.5, 2: 1, 3: 2, 4: 3.5, 5: 5, 6: 6, 7: 7}
    sides = dict(enumerate((224, 240, 260, 300, 380, 456, 528, 600)))
    for variant, phi in steps.items():
        published = getattr(efficientnet, f"EfficientNetB{variant}").keywords
        depth, width, size = compound_scaling(phi)
        assert published["width"] == pytest.approx(width, abs=0.052)
        assert sides[variant] == pytest.approx(224 * size, rel=0.042)
        assert published["depth"] <= round(depth, 1)
        assert published["depth"] == pytest.approx(depth, abs=0.1 if variant <= 4 else 0.5)


def test_features_by_stride():
    features, _ = abstract(EfficientNetB0(depth=0.1).without_head(), 65, 34)
    assert {stride: feature.shape for stride, feature in features.items()} == {
        2: (2, 33, 17, 16),
        4: (2, 17, 9, 24),
        8: (2, 9, 5, 40),
        16: (2, 5, 3, 112),
        32: (2, 3, 2, 1280),
    }


def blocks_of(model):
    """Of each stage, while the shapes of the network are found."""
    found = {}

    def record(next_function, args, kwargs, context):
        module = context.module
        if isinstance(module, InvertedResidual) and context.method_name == "__call__":
            found.setdefault(module.name.partition("_")[0], []).append((args[0].shape[-1], module))
        return next_function(*args, **kwargs)

    with nn.intercept_methods(record):
        _, variables = abstract(model)
    return found, variables["params"]


def test_lite_scales_neither_ends_nor_gates_anything():
    stages, params = blocks_of(EfficientNetLite2())
    assert size(params) == 6_092_072
    params = params["backbone"]
    assert [len(stage) for stage in stages.values()] == [1, 3, 3, 4, 4, 5, 1]
    assert params["stem_conv"]["kernel"].shape[-1] == 32
    assert params["top_conv"]["kernel"].shape[-2:] == (352, 1280)
    for _, block in (pair for stage in stages.values() for pair in stage):
        assert (block.reduced, block.padding, block.activation) == (0, "same", nn.relu6)


@pytest.mark.proofs
def test_all_else_is_scaled_and_gates_are_a_quarter_of_what_enters():
    stages, params = blocks_of(efficientnet.EfficientNetB2())
    params = params["backbone"]
    assert [len(stage) for stage in stages.values()] == [2, 3, 3, 4, 4, 5, 2]
    assert params["stem_conv"]["kernel"].shape[-1] == 32
    assert params["top_conv"]["kernel"].shape[-2:] == (352, 1408)
    pairs = [pair for stage in stages.values() for pair in stage]
    for channels, block in pairs:
        assert block.reduced == channels // 4
        assert (block.padding, block.activation) == ("symmetric", nn.silu)
    np.testing.assert_allclose([b.drop for _, b in pairs], 0.2 * np.arange(23) / 23)


def test_arrays_of_lite0_are_those_of_the_published_weights():
    """296 in PyTorch's file, 49 of them counters of batches, one for each batch norm."""
    _, variables = abstract(EfficientNetLite0())
    assert size(variables["params"]) == 4_652_008
    names = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(variables)]
    assert len(names) == 296 - 49
    assert sum("_conv'" in name for name in names) == 49
    assert sum("'mean'" in name for name in names) == 49


# Small networks of two stages, against NumPy.

STAGES = ((1, 3, 1, 8, 1), (2, 5, 2, 8, 1))
SMALL = {
    "B0": (EfficientNetB0, silu, 1e-5),
    "B5": (EfficientNetB5, silu, 1e-3),
    "Lite0": (EfficientNetLite0, relu6, 1e-3),
}


@pytest.mark.parametrize("name", SMALL)
def test_it_equals_numpy(name, randomise):
    """Of small variances, so that the epsilon of batch norm is seen."""
    variant, activation, epsilon = SMALL[name]
    model = variant(stages=STAGES, width=0.5, depth=1.2, num_classes=3)
    images = normal(1, 10, 7, 3)
    variables = randomise(model, images)
    for norm in jax.tree.leaves(variables["batch_stats"], is_leaf=lambda tree: "var" in tree):
        norm["var"] = norm["var"] / 20
    part = {kind: tree["backbone"] for kind, tree in variables.items()}
    both = jax.jit(lambda v, p, x: (model.without_head().apply(p, x), model.apply(v, x)))
    features, logits = both(variables, part, images)
    expected = Written(model, part, activation, epsilon).features(images[0])
    assert ("stage2_block2" in part["params"]) == (name != "Lite0")  # 1.2 times one block
    assert list(features) == list(expected) == [2, 4]
    for stride, feature in features.items():
        tolerance = 2e-5 * np.abs(expected[stride]).max()
        np.testing.assert_allclose(feature[0], expected[stride], atol=tolerance)
    pooled = expected[4].mean((0, 1))
    expected = plain.dense(pooled, variables["params"]["head"])
    np.testing.assert_allclose(logits[0], expected, atol=2e-5 * np.abs(expected).max())


def test_in_training_blocks_are_dropped_and_statistics_move_slowly(randomise):
    fields = {"stages": ((1, 3, 1, 8, 2),), "width": 0.25, "num_classes": 2}
    model = EfficientNetB5(**fields, depth=1.0, stochastic_depth=0.6, dropout=0.0)
    images = normal(8, 4, 4, 3)
    variables = randomise(model, images)
    one, other, after, gradients = train_twice(model, variables, images)
    assert not np.allclose(one, other)
    finite = jax.tree.map(lambda g: np.isfinite(g).all() and np.any(g != 0), gradients)
    assert all(jax.tree.leaves(finite))
    # By a hundredth of the mean of the batch.
    mean = variables["batch_stats"]["backbone"]["stem_norm"]["mean"]
    moved = after["backbone"]["stem_norm"]["mean"] - 0.99 * mean
    conv = variables["params"]["backbone"]["stem_conv"]
    stem = np.mean([plain.conv(image, conv, 2, 1) for image in images], (0, 1, 2))
    np.testing.assert_allclose(moved, 0.01 * stem, atol=1e-5)


def test_bad_input_is_named():
    model = partial(EfficientNetB0, stages=STAGES)
    with pytest.raises(
        ValueError, match=r"takes \[batch, height, width, channels\]; got \(8, 8, 3"
    ):
        model().init(jax.random.key(0), normal(8, 8, 3))
    with pytest.raises(ValueError, match='padding is "symmetric" or "same"; got \'full\''):
        model(padding="full").init(jax.random.key(0), normal(1, 8, 8, 3))
