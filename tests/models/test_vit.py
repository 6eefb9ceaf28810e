import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, softmax

from opsin.models.classification.vit import (
    EncoderBlock,
    ViT,
    ViTB,
    ViTCifar,
    ViTH,
    ViTL,
    ViTS,
    ViTTi,
    beyer_positions,
    sincos_positions,
)
from opsin.train.compiler import compiler_options
from opsin.train.host.accounting import model_flops

tiny = partial(ViT, depth=2, width=8, mlp_width=12, heads=2, patch=4, num_classes=5)


@pytest.mark.parametrize(
    ("model", "size", "total"),
    [
        (ViTTi(), 224, 5_717_416),
        (ViTS(), 224, 22_050_664),
        (ViTS(pool="gap", positions="sincos"), 224, 21_974_632),
        (ViTB(), 224, 86_567_656),
        (ViTB(patch=32), 224, 88_224_232),
        (ViTL(), 224, 304_326_632),
        (ViTL(patch=32), 224, 306_535_400),
        (ViTH(), 224, 632_045_800),
        (ViTCifar(), 32, 6_268_810),
    ],
)
def test_parameter_counts(model, size, total):
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    assert sum(p.size for p in jax.tree.leaves(params)) == total


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).normal(size=(2, 8, 12, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def params(images, randomise):
    return randomise(tiny(), images)


def layer_norm(x, params):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * params["scale"] + params["bias"]


def test_block_equals_numpy(randomise):
    x = np.random.default_rng(1).normal(size=(2, 5, 8)).astype(np.float32)
    block = EncoderBlock(heads=2, mlp_width=12)
    variables = randomise(block, x)
    p = variables["params"]

    y, attention = layer_norm(x, p["norm1"]), p["attention"]
    query, key, value = (
        np.einsum("btd,dhk->bhtk", y, attention[name]["kernel"]) + attention[name]["bias"][:, None]
        for name in ("query", "key", "value")
    )
    weights = softmax(query @ key.swapaxes(-1, -2) / np.sqrt(8 / 2), axis=-1)
    out = attention["out"]
    y = x + np.einsum("bhtk,hkd->btd", weights @ value, out["kernel"]) + out["bias"]
    z = layer_norm(y, p["norm2"]) @ p["mlp1"]["kernel"] + p["mlp1"]["bias"]
    z = z * (1 + erf(z / np.sqrt(2))) / 2
    expected = y + z @ p["mlp2"]["kernel"] + p["mlp2"]["bias"]
    np.testing.assert_allclose(jax.jit(block.apply)(variables, x), expected, atol=1e-4)


def test_embedding_is_a_product_with_each_patch_row_by_row(images, randomise):
    model = tiny(depth=0, scan=False).without_head()
    variables = randomise(model, images)
    p = variables["params"]
    patches = images.reshape(2, 2, 4, 3, 4, 3)
    patches = np.einsum("brycxi,yxio->brco", patches, p["embed"]["kernel"])
    patches = patches.reshape(2, 6, 8) + p["embed"]["bias"]
    token = np.broadcast_to(p["class_token"], (2, 1, 8))
    x = np.concatenate([token, patches], axis=1) + p["positions"]
    expected = layer_norm(x, p["encoder"]["norm"])
    tokens = jax.jit(partial(model.apply, method="tokens"))(variables, images)
    np.testing.assert_allclose(tokens, expected, atol=1e-4)
    features = jax.jit(model.apply)(variables, images)
    assert features.keys() == {4}
    np.testing.assert_allclose(features[4], expected[:, 1:].reshape(2, 2, 3, 8), atol=1e-4)


def only_positions(params):
    """Of a network without blocks: zeros, and a norm that changes neither scale nor mean."""
    norm = {"scale": np.ones(8, np.float32), "bias": np.zeros(8, np.float32)}
    return {"params": jax.tree.map(np.zeros_like, params) | {"encoder": {"norm": norm}}}, norm


def test_class_token_has_no_fixed_position(images, randomise):
    model = tiny(depth=0, scan=False, positions="sincos").without_head()
    variables = randomise(model, images)
    blank, norm = only_positions(variables["params"])
    tokens = np.asarray(jax.jit(partial(model.apply, method="tokens"))(blank, images))
    np.testing.assert_array_equal(tokens[:, 0], np.zeros((2, 8)))
    expected = layer_norm(np.asarray(sincos_positions(2, 3, 8)), norm)
    np.testing.assert_allclose(tokens[0, 1:], expected, atol=1e-5)


def test_sincos_closed_form():
    positions = sincos_positions(3, 4, 16)
    for y, x, k in [(0, 0, 0), (2, 1, 0), (1, 3, 2), (2, 3, 3)]:
        w = 10_000 ** (-k / 4)
        expected = [np.sin(w * y), np.cos(w * y), np.sin(w * x), np.cos(w * x)]
        np.testing.assert_allclose(positions[4 * y + x].reshape(4, 4)[:, k], expected, atol=1e-6)
    with pytest.raises(ValueError, match="4 divides; got 18"):
        sincos_positions(3, 4, 18)


def test_beyers_positions_are_those_of_the_papers_code():
    """``posemb_sincos_2d`` of big_vision, in NumPy: x first, and one frequency fewer below."""
    rows, columns, width = 3, 4, 16
    y, x = np.mgrid[:rows, :columns]
    omega = 1.0 / 10_000.0 ** (np.arange(width // 4) / (width // 4 - 1))
    y, x = (np.einsum("m,d->md", z.flatten(), omega) for z in (y, x))
    expected = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
    np.testing.assert_allclose(beyer_positions(rows, columns, width), expected, atol=1e-6)
    for wrong in (4, 18):
        with pytest.raises(ValueError, match=f"8 or more that 4 divides; got {wrong}"):
            beyer_positions(rows, columns, wrong)


@pytest.mark.parametrize(
    ("name", "positions"), [("sincos", sincos_positions), ("beyer", beyer_positions)]
)
def test_fixed_positions_are_added_to_the_patches(images, name, positions, randomise):
    model = tiny(depth=0, scan=False, pool="gap", positions=name).without_head()
    blank, norm = only_positions(randomise(model, images)["params"])
    expected = layer_norm(np.asarray(positions(2, 3, 8)), norm)
    tokens = np.asarray(jax.jit(partial(model.apply, method="tokens"))(blank, images))
    np.testing.assert_allclose(tokens[0], expected, atol=1e-5)


def test_without_positions_patches_are_a_set(images, randomise):
    model = tiny(pool="gap")
    variables = randomise(model, images)
    backbone = variables["params"]["backbone"]
    blind = backbone | {"positions": np.zeros_like(backbone["positions"])}
    blind = {"params": variables["params"] | {"backbone": blind}}
    grid = images.reshape(2, 2, 4, 3, 4, 3)
    swapped = grid[:, ::-1, :, [2, 0, 1]].reshape(images.shape)
    run = jax.jit(model.apply)
    np.testing.assert_allclose(run(blind, images), run(blind, swapped), atol=1e-4)
    assert np.abs(np.subtract(run(variables, images), run(variables, swapped))).max() > 1e-2


def unrolled(variables, depth):
    """The parameters of a scanned ViT under the names of an unrolled one."""
    encoder = dict(variables["params"]["backbone"]["encoder"])
    blocks = encoder.pop("blocks")
    for index in range(depth):
        encoder[f"block{index + 1}"] = jax.tree.map(lambda p, i=index: p[i], blocks)
    backbone = variables["params"]["backbone"] | {"encoder": encoder}
    return {"params": variables["params"] | {"backbone": backbone}}


@pytest.mark.proofs
def test_scan_and_remat_change_neither_value_nor_gradient(params, images):
    def run(variables, **fields):
        def loss(variables):
            return jnp.sum(tiny(**fields).apply(variables, images) ** 2)

        traced = jax.jit(jax.value_and_grad(loss)).trace(variables)
        text = str(traced.jaxpr)
        assert ("checkpoint" in text or "remat" in text) == fields["remat"]
        assert ("scan[" in text) == fields["scan"]
        return jax.tree.map(np.asarray, traced.lower().compile()(variables))

    value, gradient = run(params, scan=True, remat=False)
    gradient = unrolled(gradient, 2)
    for scan, remat in [(True, True), (False, True)]:
        if scan:
            other, slope = run(params, scan=scan, remat=remat)
            slope = unrolled(slope, 2)
        else:
            other, slope = run(unrolled(params, 2), scan=scan, remat=remat)
        np.testing.assert_allclose(other, value, rtol=1e-5)
        close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
        jax.tree.map(close, slope, gradient)


def test_blocks_start_differently_and_the_head_at_zero(images):
    logits, variables = jax.jit(tiny().init_with_output)(jax.random.key(0), images)
    kernel = variables["params"]["backbone"]["encoder"]["blocks"]["mlp1"]["kernel"]
    assert kernel.shape == (2, 8, 12)
    assert not np.array_equal(*np.asarray(kernel))
    np.testing.assert_array_equal(logits, np.zeros((2, 5)))


@pytest.mark.parametrize("remat", [False, True])
def test_dropout_draws_from_its_key_in_training_only(remat, params, images):
    model = tiny(dropout=0.3, remat=remat)
    train = jax.jit(lambda key: model.apply(params, images, train=True, rngs={"dropout": key}))
    one, again, two = train(jax.random.key(1)), train(jax.random.key(1)), train(jax.random.key(2))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, two)
    evaluated = jax.jit(model.apply)(params, images)
    np.testing.assert_allclose(evaluated, jax.jit(tiny().apply)(params, images), rtol=1e-5)


def test_bfloat16_keeps_parameters_and_logits_in_float32(params, images):
    model = tiny(dtype=jnp.bfloat16)
    traced = jax.jit(model.apply).trace(params, images)
    exponentials = re.findall(r":(\w+)\[\S* = exp ", str(traced.jaxpr))
    logits = traced.lower().compile()(params, images)
    full = jax.jit(tiny().apply)(params, images)
    assert exponentials == ["f32"]  # the softmax, in the one block of the scan
    assert logits.dtype == jnp.float32
    assert not np.array_equal(logits, full)
    np.testing.assert_allclose(logits, full, rtol=0.1, atol=0.2)
    init = model.without_head().init_with_output
    features, variables = jax.eval_shape(init, jax.random.key(0), images)
    assert features[4].dtype == jnp.bfloat16
    assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_bad_options_are_named(images):
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"patch size 5 divides; got \(2, 8, 12, 3\)"):
        tiny(patch=5).init(key, images)
    with pytest.raises(ValueError, match=r"got \(8, 12, 3\)"):
        tiny().init(key, images[0])
    with pytest.raises(ValueError, match='"cls" or "gap"; got \'mean\''):
        tiny(pool="mean").init(key, images)
    with pytest.raises(ValueError, match='"learned", "sincos" or "beyer"; got \'rotary\''):
        tiny(positions="rotary").init(key, images)


def test_images_of_another_size_than_the_positions_are_told(images):
    model = tiny()
    known = jax.eval_shape(model.init, jax.random.key(0), images)
    with pytest.raises(ValueError, match=r"learned 7 positions, .* 2 x 2 patches need 5: .*resize"):
        jax.eval_shape(model.apply, known, images[:, :8, :8])


@pytest.mark.proofs
def test_remat_of_vit_b_saves_two_fifths_of_the_memory_for_a_third_more_work():
    images = jax.ShapeDtypeStruct((4, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(ViTB().init, jax.random.key(0), images)
    temporary, flops = [], []
    for remat in (False, True):
        model = ViTB(remat=remat)
        gradient = jax.jit(
            jax.grad(lambda v, x, model=model: jnp.sum(model.apply(v, x, train=True) ** 2))
        )
        flops.append(model_flops(gradient, variables, images).total())
        lowered = gradient.lower(variables, images)
        compiled = lowered.compile(compiler_options=compiler_options("cpu"))
        temporary.append(compiled.memory_analysis().temp_size_in_bytes)
    assert temporary[1] <= 0.6 * temporary[0]
    assert 1.2 * flops[0] < flops[1] <= 1.4 * flops[0]
