from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.models.classification.googlenet import (
    TABLE_1,
    AuxiliaryClassifier,
    GoogLeNet,
    GoogLeNetBackbone,
    GoogLeNetBatchNorm,
    Inception,
)
from opsin.models.layers import adaptive_average_pool, batch_norm
from opsin.ops.mapped import REPLICAS
from opsin.train.host.accounting import model_flops
from tests.drawn import normal
from tests.models import plain


def abstract(model, *shape):
    """Shapes of the output and of the variables."""
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(model.init_with_output, jax.random.key(0), images)


def count(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize(
    ("make", "whole", "total"),
    [(GoogLeNet, 13_378_280, 6_998_552), (GoogLeNetBatchNorm, 13_004_888, 6_624_904)],
)
def test_parameter_counts_with_and_without_auxiliary_heads(make, whole, total):
    logits, variables = abstract(make(), 1, 224, 224, 3)
    assert count(variables) == whole
    params = variables["params"]
    assert params.keys() == {"backbone", "head", "auxiliary4a", "auxiliary4d"}
    assert count({"params": {name: params[name] for name in ("backbone", "head")}}) == total
    assert logits.shape == (1, 1000)


def test_reductions_make_a_module_narrower_smaller_and_cheaper():
    """Module 3a: naive it has 416 channels out of 192, and pooling can only add to them."""
    widths = TABLE_1[0][0]
    naive = (widths[0], 0, widths[2], 0, widths[4], 0)
    work = {}
    for kind, channels, total in ((naive, 416, 387_296), (widths, 256, 163_696)):
        module = Inception(kind)
        features, variables = abstract(module, 1, 28, 28, 192)
        assert features.shape == (1, 28, 28, channels)
        assert count(variables) == total
        images = jax.ShapeDtypeStruct((1, 28, 28, 192), jnp.float32)
        work[total] = model_flops(module.apply, variables, images).total()
        # A product and a sum for each weight at each pixel, and none for a bias.
        assert work[total] == 2 * 28**2 * (total - sum(p.size for p in biases(variables)))
    assert work[163_696] < 0.43 * work[387_296]


def biases(variables):
    return [leaf for leaf in jax.tree.leaves(variables) if leaf.ndim == 1]


@pytest.mark.parametrize("name", ["paper", "torchvision"])
def test_features_by_stride(name):
    backbone = NETWORKS[name].without_head()
    shapes = {s: f.shape[1:] for s, f in abstract(backbone, 1, 97, 224, 3)[0].items()}
    # An odd side of n after the first is (n - 1) / 2, by PyTorch's `ceil_mode`.
    assert shapes == {
        2: (49, 112, 3),
        4: (24, 56, 4),
        8: (12, 28, 9),
        16: (6, 14, 9),
        32: (3, 7, 9),
    }


# Small networks, step by step. All branches are of different widths.

MODULE = (1, 2, 3, 2, 2, 3)
SMALL_FIELDS = {
    "stem": (3, 2, 4),
    "stages": ((MODULE,), (MODULE,), (MODULE,)),
    "num_classes": 5,
    "auxiliary": ("3a", "4a"),
    "auxiliary_hidden": 6,
    "auxiliary_dropout": 0.0,
    "dropout": 0.0,
}
NETWORKS = {"paper": GoogLeNet(**SMALL_FIELDS), "torchvision": GoogLeNetBatchNorm(**SMALL_FIELDS)}
IMAGES = 100 * normal(2, 43, 50, 3)  # large, so that neighbours matter to the response norm


@pytest.fixture(scope="module")
def variables(randomise):
    return {name: randomise(model, IMAGES) for name, model in NETWORKS.items()}


def run(model, variables, train):
    """Logits, and what is sown and updated; "intermediates" are the features of the backbone."""

    @jax.jit
    def apply(variables, images):
        mutable = ["batch_stats", "auxiliary", "intermediates"]
        seen = lambda module, method: isinstance(module, GoogLeNetBackbone)  # noqa: E731
        return model.apply(
            variables, images, train=train, mutable=mutable, capture_intermediates=seen
        )

    logits, after = jax.device_get(apply(variables, IMAGES))
    features = after.pop("intermediates")["backbone"]["outputs"][0]
    return logits, features, after


@pytest.fixture(scope="module")
def results(variables):
    """Of the paper's network in training, which is the same as evaluation without dropout."""
    return {
        name: run(model, variables[name], train=name == "paper") for name, model in NETWORKS.items()
    }


def unit(x, params, statistics, stride=1):
    """Convolution, norm and ReLU."""
    x = plain.conv(x, params["conv"], stride, params["conv"]["kernel"].shape[0] // 2)
    if "norm" in params:
        x = plain.batch_norm(x, params["norm"], statistics["norm"], epsilon=1e-3)
    return np.maximum(x, 0)


def inception(x, params, statistics):
    def apply(x, *names):
        for name in names:
            if name in params:
                x = unit(x, params[name], statistics.get(name))
        return x

    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    branches = [
        apply(x, "branch1"),
        apply(x, "branch2_reduce", "branch2"),
        apply(x, "branch3_reduce", "branch3"),
        apply(plain.pool(padded, 3, 1), "branch4"),
    ]
    return np.concatenate(branches, axis=-1)


@pytest.mark.parametrize("name", NETWORKS)
def test_it_equals_numpy(name, variables, results):
    params = variables[name]["params"]
    statistics = variables[name].get("batch_stats", {}).get("backbone", {})
    layers = params["backbone"]
    normed = plain.response_norm if name == "paper" else lambda x: x
    halved = partial(plain.pool, stride=2, ceil=True)

    def layer(x, name, make=unit, **options):
        return make(x, layers[name], statistics.get(name, {}), **options)

    expected = {}
    x = expected["conv1"] = layer(IMAGES[0], "conv1", stride=2)
    x = expected["conv3"] = layer(layer(normed(halved(x, 3)), "conv2"), "conv3")
    x = expected["3a"] = layer(halved(normed(x), 3), "inception3a", inception)
    x = expected["4a"] = layer(halved(x, 3), "inception4a", inception)
    side = 3 if name == "paper" else 2
    x = expected["5a"] = layer(halved(x, side), "inception5a", inception)
    logits, features, _ = results[name]
    assert features.keys() == expected.keys()
    for place, feature in features.items():
        assert feature[0].shape == expected[place].shape
        tolerance = 1e-5 * np.abs(expected[place]).max()
        np.testing.assert_allclose(feature[0], expected[place], atol=tolerance)
    expected_logits = plain.dense(x.mean((0, 1)), params["head"])
    np.testing.assert_allclose(logits[0], expected_logits, rtol=1e-4, atol=1e-4)
    names = ("branch1", "branch2_reduce", "branch2", "branch3_reduce", "branch3", "branch4")
    kernels = [layers["inception3a"][name]["conv"]["kernel"].shape[0] for name in names]
    assert kernels == [1, 1, 3, 1, 5 if name == "paper" else 3, 1]


def test_the_features_of_a_stride_are_its_last_whatever_the_order_of_a_dict():
    """A sharded step maps over what each module returns, and jax sorts dicts by their keys."""

    def sort(method, args, options, context):
        return jax.tree.map(lambda x: x, method(*args, **options))

    modules = [(width, 0, 1, 0, 1, 0) for width in (5, 6, 7)]
    fields = {"stem": (1, 2, 3), "stages": (modules[:2], modules[2:]), "auxiliary": ("3a",)}
    model = GoogLeNet(**fields, num_classes=2)
    with nn.intercept_methods(sort):
        features, _ = abstract(model.without_head(), 1, 16, 16, 3)
        _, variables = abstract(model, 1, 16, 16, 3)
    channels = {stride: feature.shape[-1] for stride, feature in features.items()}
    # 3a has 5 + 1 + 1 and the 3 of the stem, 3b 6 + 1 + 1 and those, 4a 7 + 1 + 1 and those.
    assert list(channels.items()) == [(2, 1), (4, 3), (8, 18), (16, 27)]
    assert variables["params"]["head"]["kernel"].shape == (27, 2)
    assert variables["params"]["auxiliary3a"]["conv"]["conv"]["kernel"].shape[2] == 10


def test_a_naive_module_equals_numpy(randomise):
    x = normal(1, 5, 7, 3)
    module = Inception((2, 0, 3, 0, 1, 0))
    variables = randomise(module, x)
    assert variables["params"].keys() == {"branch1", "branch2", "branch3"}
    expected = inception(x[0], variables["params"], {})
    assert expected.shape == (5, 7, 9)
    np.testing.assert_allclose(jax.jit(module.apply)(variables, x)[0], expected, atol=1e-5)


def test_auxiliary_logits_are_sown_in_training_only(variables, results):
    params = variables["paper"]["params"]
    assert params.keys() == {"backbone", "head", "auxiliary3a", "auxiliary4a"}
    logits, features, after = results["paper"]
    assert after.keys() == {"auxiliary"}
    pool = jax.jit(partial(adaptive_average_pool, size=(4, 4)))
    for found, place in zip(after["auxiliary"]["logits"], ("3a", "4a"), strict=True):
        head = params[f"auxiliary{place}"]
        x = unit(np.asarray(pool(features[place]))[0], head["conv"], {})
        hidden = np.maximum(plain.dense(x, head["fc1"]), 0)
        expected = plain.dense(hidden, head["fc2"])
        np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-4)
        assert found.shape == logits.shape == (2, 5)
        assert found.dtype == logits.dtype == jnp.float32
    assert "auxiliary" not in results["torchvision"][2]  # that is evaluation
    assert "auxiliary" not in abstract(NETWORKS["paper"], 1, 64, 64, 3)[1]
    alone = NETWORKS["paper"].clone(auxiliary=())
    assert abstract(alone, 1, 64, 64, 3)[1]["params"].keys() == {"backbone", "head"}


def test_training_updates_all_statistics(randomise):
    x = normal(2, 5, 7, 3)
    module = Inception(MODULE, norm=batch_norm)
    variables = randomise(module, x)
    train = partial(module.apply, train=True, mutable=["batch_stats"])
    features, after = jax.jit(train)(variables, x)
    changed = jax.tree.map(
        lambda a, b: bool(np.all(a != b)), after["batch_stats"], variables["batch_stats"]
    )
    assert all(jax.tree.leaves(changed))
    assert len(jax.tree.leaves(changed)) == 12
    assert not np.allclose(features, jax.jit(module.apply)(variables, x))


@pytest.mark.proofs
def test_an_auxiliary_loss_trains_the_layers_below_it_alone(variables):
    model = NETWORKS["torchvision"]

    @jax.jit
    @jax.grad
    def slope(params):
        _, after = model.apply(
            variables["torchvision"] | {"params": params},
            IMAGES / 100,
            train=True,
            mutable=["batch_stats", "auxiliary"],
        )
        return jnp.sum(after["auxiliary"]["logits"][0] ** 2)

    moved = jax.tree.map(lambda g: bool(np.any(g)), slope(variables["torchvision"]["params"]))
    parts = {name for name, part in moved.items() if any(jax.tree.leaves(part))}
    assert parts == {"backbone", "auxiliary3a"}
    assert all(jax.tree.leaves(moved["auxiliary3a"]))
    below = {name for name, part in moved["backbone"].items() if any(jax.tree.leaves(part))}
    assert below == {"conv1", "conv2", "conv3", "inception3a"}


def test_dropout_acts_in_training_only():
    model = AuxiliaryClassifier(num_classes=3, width=2, hidden=64)
    x = np.ones((4, 5, 5, 2), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    run = jax.jit(partial(model.apply, train=True))
    one, other = (run(ones, x, rngs={"dropout": jax.random.key(key)}) for key in (0, 1))
    assert not np.allclose(one, other)
    # Kept are three in ten of the hidden layer, each 1 / 0.3 times as large.
    whole = np.asarray(jax.jit(model.apply)(ones, x)) - 1
    kept = (np.asarray(one) - 1) / whole * 0.3
    np.testing.assert_allclose(kept * 64, np.round(kept * 64), atol=1e-3)
    assert 0.15 < kept.mean() < 0.45


@pytest.mark.proofs
def test_statistics_are_those_of_all_replicas(variables):
    model = NETWORKS["torchvision"]
    whole, _, after = run(model, variables["torchvision"], train=True)
    apply = partial(model.apply, train=True, mutable=["batch_stats"])
    split = jax.vmap(apply, in_axes=(None, 0), axis_name=REPLICAS)
    halves, synchronised = jax.jit(split)(variables["torchvision"], IMAGES[:, None])
    np.testing.assert_allclose(halves[:, 0], whole, rtol=1e-3, atol=1e-3)
    jax.tree.map(
        lambda one, two: np.testing.assert_allclose(two[1], one, rtol=1e-4, atol=1e-4),
        after["batch_stats"],
        synchronised["batch_stats"],
    )


def test_half_precision_keeps_parameters_and_logits_in_single():
    half = NETWORKS["torchvision"].clone(dtype=jnp.bfloat16)
    leaves = jax.tree.leaves(abstract(half, 1, 32, 32, 3))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    logits, _ = abstract(AuxiliaryClassifier(3, norm=batch_norm, dtype=jnp.bfloat16), 1, 5, 5, 2)
    features, _ = abstract(Inception(MODULE, norm=batch_norm, dtype=jnp.bfloat16), 1, 5, 5, 2)
    assert (logits.dtype, features.dtype) == (jnp.float32, jnp.bfloat16)


def test_bad_options_are_named():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"\[batch, height, width, channels\]; got \(43, 50, 3\)"):
        GoogLeNet().init(key, IMAGES[0])
    with pytest.raises(ValueError, match=r"some of \['3a', '4a', '5a'\]; got \('4f',\)"):
        jax.eval_shape(NETWORKS["paper"].clone(auxiliary=("4f",)).init, key, IMAGES)
    for widths in ((1, 2, 3), (1, 2, 0, 2, 2, 3)):
        with pytest.raises(ValueError, match="only the reductions and the pool may be 0"):
            Inception(widths).init(key, IMAGES)
