import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.models.classification import drn
from opsin.models.classification.drn import DRN, DRNC26, DRND22
from opsin.models.classification.resnet import BasicBlock, BottleneckBlock


def abstract_params(model):
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)["params"]


@pytest.mark.parametrize(
    ("variant", "total"),
    [
        ("A18", 11_689_512),
        pytest.param("A34", 21_797_672, marks=pytest.mark.proofs),
        pytest.param("A50", 25_557_032, marks=pytest.mark.proofs),
        ("C26", 21_126_584),
        pytest.param("C42", 31_234_744, marks=pytest.mark.proofs),
        ("C58", 41_591_608 - 1_049_600),  # less the projection that the authors never apply
        ("D22", 16_393_752),
        pytest.param("D38", 26_501_912, marks=pytest.mark.proofs),
        pytest.param("D54", 35_809_176, marks=pytest.mark.proofs),
        pytest.param("D105", 54_801_304, marks=pytest.mark.proofs),
    ],
)
def test_parameter_counts(variant, total):
    params = abstract_params(getattr(drn, f"DRN{variant}")())
    assert sum(p.size for p in jax.tree.leaves(params)) == total


def test_type_c_ends_without_shortcuts_and_type_d_without_blocks():
    short = {"width": 2, "level_sizes": (1,) * 8}
    params = abstract_params(drn.DRNC58(**short))["backbone"]
    assert "shortcut_conv" in params["level2_block1"]
    assert "shortcut_conv" in params["level6_block1"]
    assert "conv3" not in params["level7_block1"]  # basic, whatever the middle is made of
    assert "shortcut_conv" not in params["level7_block1"]
    plain = abstract_params(drn.DRND54(**short))["backbone"]
    assert plain["level7_conv1"]["kernel"].shape == (3, 3, 256, 64)
    assert not {"level1_block1", "level2_block1", "level7_block1", "level8_block1"} & plain.keys()


@pytest.mark.parametrize(("variant", "expansion"), [(drn.DRNC26, 1), (drn.DRND54, 4)])
def test_features_by_level(variant, expansion):
    backbone = variant(width=2, level_sizes=(1,) * 8).without_head()
    images = jax.ShapeDtypeStruct((2, 33, 48, 3), jnp.float32)
    features, _ = jax.eval_shape(backbone.init_with_output, jax.random.key(0), images)
    assert {level: feature.shape for level, feature in features.items()} == {
        1: (2, 33, 48, 2),
        2: (2, 17, 24, 4),
        4: (2, 9, 12, 8 * expansion),
        8: (2, 5, 6, 16 * expansion),
        16: (2, 5, 6, 32 * expansion),
        32: (2, 5, 6, 64),
    }


@pytest.mark.proofs
@pytest.mark.parametrize(
    ("ends", "seen"),
    [
        # 1 pixel and, for each convolution, its (taps - 1) · dilation · stride so far.
        ("plain", 1 + 6 + 2 + 2 + (4 + 8) + (8 + 16) + 2 * 32 + 4 * 64 + 32 + 2 * 16),
        (
            "residual",
            1 + 6 + 4 + (2 + 4) + (4 + 8) + (8 + 16) + 2 * 32 + 4 * 64 + 2 * 32 + 4 * 16,
        ),
    ],
)
def test_strides_and_dilations_give_the_receptive_field(ends, seen):
    sizes = (1, 1, 1, 1, 1, 2, 1, 2)
    model = DRN(level_sizes=sizes, block=BasicBlock, ends=ends, width=1).without_head()
    row = np.ones((1, 1, 640, 1), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), row)
    # Positive weights and no ReLU at work: what an output sees is where its gradient is not zero.
    variables = jax.tree.map(
        lambda s: np.full(s.shape, 0.1 if len(s.shape) == 4 else 1, s.dtype), shapes
    )
    slope = jax.grad(lambda x, variables: model.apply(variables, x)[32][0, 0, 40].sum())
    gradient = jax.jit(slope)(row, variables)
    places = np.flatnonzero(gradient)
    assert places[-1] - places[0] + 1 == seen
    # The stem and the first levels leave no holes, for all the dilation behind them.
    assert len(places) == seen


def test_classifier_is_backbone_mean_and_head(randomise):
    model = DRND22(width=2, num_classes=5, level_sizes=(1,) * 8)
    images = np.random.default_rng(1).normal(size=(2, 16, 16, 3)).astype(np.float32)
    variables = randomise(model, images)
    assert variables["params"].keys() == {"backbone", "head"}
    part = {name: tree["backbone"] for name, tree in variables.items()}
    head = variables["params"]["head"]
    both = jax.jit(lambda v, p, x: (model.apply(v, x), model.without_head().apply(p, x)[32]))
    logits, features = both(variables, part, images)
    expected = np.asarray(features).mean((1, 2)) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(logits, expected, atol=1e-4)

    half = model.clone(dtype=jnp.bfloat16)
    shapes = jax.eval_shape(
        lambda v, x: half.apply(v, x, train=True, mutable=True), variables, images
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


def test_bad_options_are_named(key):
    images = jnp.zeros((1, 8, 8, 3))
    with pytest.raises(ValueError, match=r"\[batch, height, width, channels\]; got \(8, 8, 3\)"):
        DRNC26().init(key, images[0])
    with pytest.raises(ValueError, match='"residual" or "plain"; got \'D\''):
        DRNC26(ends="D").init(key, images)
    with pytest.raises(ValueError, match=r"eight levels; got level_sizes \(2, 2\)"):
        DRN(level_sizes=(2, 2), block=BottleneckBlock, ends="plain").init(key, images)
