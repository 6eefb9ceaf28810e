from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.models.classification.mobilenet import MOBILENET_V2, MobileNetV2
from opsin.models.inverted import InvertedResidual
from opsin.models.layers import group_norm
from tests.drawn import normal
from tests.models import plain
from tests.models.plain_inverted import Written, relu6, train_twice


def abstract(model, height=64, width=64):
    images = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
    return jax.eval_shape(model.init_with_output, jax.random.key(0), images)


def count(model):
    return sum(p.size for p in jax.tree.leaves(abstract(model)[1]["params"]))


@pytest.mark.parametrize(
    ("width", "total"),
    [
        (1.0, 3_504_872),  # as torchvision publishes it; the others as its network has them
        pytest.param(1.4, 6_108_776, marks=pytest.mark.proofs),
        pytest.param(0.75, 2_636_424, marks=pytest.mark.proofs),
        pytest.param(0.5, 1_968_680, marks=pytest.mark.proofs),
        pytest.param(0.35, 1_677_128, marks=pytest.mark.proofs),
    ],
)
def test_parameter_counts(width, total):
    assert count(MobileNetV2(width=width)) == total


def test_features_by_stride():
    shallow = [(*row, 1) for *row, _ in MOBILENET_V2]
    features, _ = abstract(MobileNetV2(stages=shallow).without_head(), 65, 34)
    assert {stride: feature.shape for stride, feature in features.items()} == {
        2: (2, 33, 17, 16),
        4: (2, 17, 9, 24),
        8: (2, 9, 5, 32),
        16: (2, 5, 3, 96),
        32: (2, 3, 2, 1280),
    }
    assert list(features) == [2, 4, 8, 16, 32]


def test_width_leaves_the_last_convolution_unless_it_is_above_one():
    short = partial(MobileNetV2, stages=((1, 3, 1, 16, 1), (6, 3, 2, 24, 1)))
    shapes = {
        width: abstract(short(width=width).without_head())[0].values() for width in (0.5, 1.4)
    }
    assert {w: [f.shape[-1] for f in features] for w, features in shapes.items()} == {
        0.5: [8, 1280],
        1.4: [24, 1792],
    }


def test_blocks_are_those_of_the_table():
    blocks = []

    def record(next_function, args, kwargs, context):
        if isinstance(context.module, InvertedResidual) and context.method_name == "__call__":
            blocks.append(context.module)
        return next_function(*args, **kwargs)

    with nn.intercept_methods(record):
        abstract(MobileNetV2(stochastic_depth=0.34))
    assert [b.features for b in blocks] == [c for *_, c, n in MOBILENET_V2 for _ in range(n)]
    assert sum(b.stride == 2 for b in blocks) == 4  # and the stem
    assert [b.expansion for b in blocks] == [1] + [6] * 16
    np.testing.assert_allclose([b.drop for b in blocks], 0.02 * np.arange(17))


# One small network on an image of odd and even sides.


@pytest.fixture(scope="module")
def images():
    return normal(4, 9, 6, 3)


@pytest.fixture(scope="module")
def small(images, randomise):
    stages = ((1, 3, 1, 8, 1), (2, 3, 2, 8, 1))  # the first has a shortcut
    model = MobileNetV2(width=0.25, stages=stages, num_classes=5)
    return model, randomise(model, images)


@pytest.fixture(scope="module")
def evaluated(small, images):
    """Features by stride, and logits."""
    model, variables = small
    part = {name: tree["backbone"] for name, tree in variables.items()}
    both = jax.jit(lambda v, p, x: (model.without_head().apply(p, x), model.apply(v, x)))
    return both(variables, part, images)


def test_it_equals_numpy(small, evaluated, images):
    model, variables = small
    part = {name: tree["backbone"] for name, tree in variables.items()}
    expected = Written(model, part, relu6).features(images[0])
    features, logits = evaluated
    assert list(features) == list(expected) == [2, 4]
    for stride, feature in features.items():
        np.testing.assert_allclose(feature[0], expected[stride], atol=1e-4)
    assert variables["params"].keys() == {"backbone", "head"}
    pooled = expected[4].mean((0, 1))
    np.testing.assert_allclose(
        logits[0], plain.dense(pooled, variables["params"]["head"]), atol=1e-4
    )
    assert logits.dtype == jnp.float32


def test_in_training_dropout_and_statistics_act_and_gradients_are_finite(small, evaluated, images):
    model, variables = small
    one, other, after, gradients = train_twice(model, variables, images)
    assert not np.allclose(one, other)
    assert not np.allclose(one, evaluated[1])
    finite = jax.tree.map(lambda g: np.isfinite(g).all() and np.any(g != 0), gradients)
    assert all(jax.tree.leaves(finite))
    changed = jax.tree.map(lambda a, b: np.all(a != b), after, variables["batch_stats"])
    assert all(jax.tree.leaves(changed))


def test_other_forms_keep_the_parameters(small, images):
    model, variables = small
    shapes = jax.tree.map(np.shape, variables)
    for form in ({"blur_taps": 3}, {"padding": "same"}, {"dtype": jnp.bfloat16}):
        logits, initial = jax.eval_shape(
            model.clone(**form).init_with_output, jax.random.key(0), images
        )
        assert jax.tree.map(np.shape, initial) == shapes
        assert {a.dtype for a in jax.tree.leaves((logits, initial))} == {jnp.dtype("float32")}
    backbone = model.clone(dtype=jnp.bfloat16).without_head()
    features = jax.eval_shape(backbone.init_with_output, jax.random.key(0), images)[0]
    assert {f.dtype for f in features.values()} == {jnp.dtype("bfloat16")}
    grouped = model.clone(norm=partial(group_norm, groups=2))
    assert jax.eval_shape(grouped.init, jax.random.key(0), images).keys() == {"params"}


def test_bad_input_is_named(small, images):
    model, _ = small
    with pytest.raises(
        ValueError, match=r"takes \[batch, height, width, channels\]; got \(9, 6, 3"
    ):
        model.init(jax.random.key(0), images[0])
