"""U-Net: the paper's counts and sizes, what its pixels depend on, and what its options change."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.models.layers import batch_norm
from opsin.models.segmentation.unet import UNet, valid_margin, valid_size
from opsin.train.compiler import compiler_options
from tests.drawn import normal

Small = partial(UNet, width=4, depth=2)


def count(model: UNet, channels: int = 1) -> int:
    size = valid_size(1, model.depth)
    images = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    ("model", "channels", "parameters"),
    [
        (UNet(), 1, 31_030_658),  # the paper's: 1 channel, 2 classes
        (UNet(num_classes=1), 3, 31_031_745),
        pytest.param(UNet(num_classes=1), 1, 31_030_593, marks=pytest.mark.proofs),
        pytest.param(UNet(), 3, 31_031_810, marks=pytest.mark.proofs),
        pytest.param(UNet(num_classes=1, width=32), 1, 7_759_521, marks=pytest.mark.proofs),
        (UNet(num_classes=1, width=16), 1, 1_940_817),
        # Conv, norm, ReLU twice a level, without biases in these convolutions.
        (UNet(norm=batch_norm, padding="same"), 3, 31_037_698),
    ],
)
def test_parameters(model, channels, parameters):
    assert count(model, channels) == parameters


def test_a_convolution_after_resizing_has_nine_taps_in_place_of_four():
    # depth 2, width 4: up-convolutions 16→8 and 8→4
    difference = 5 * (16 * 8 + 8 * 4)
    assert count(Small(upsampling="resize")) - count(Small()) == difference


def test_without_skips_the_expanding_blocks_see_half_the_channels():
    assert count(Small()) - count(Small(skips=False)) == 9 * (8 * 8 + 4 * 4)


def test_the_paper_maps_572_pixels_to_388():
    out = jax.eval_shape(
        lambda x: UNet().init_with_output(jax.random.key(0), x)[0],
        jax.ShapeDtypeStruct((1, 572, 572, 1), jnp.float32),
    )
    assert (out.shape, out.dtype) == ((1, 388, 388, 2), jnp.float32)
    assert valid_size(572) == 572
    assert valid_margin() == 572 - 388


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_valid_sizes_are_exactly_those_that_halve_without_a_rest(depth):
    def fits(side: int) -> bool:
        for _ in range(depth):
            side -= 4
            if side % 2 or side <= 0:
                return False
            side //= 2
        side -= 4
        for _ in range(depth):
            if side <= 0:
                return False
            side = 2 * side - 4
        return side > 0

    sides = range(1, 140)
    given = {valid_size(side, depth) for side in sides}
    assert [side for side in sides if fits(side)] == sorted(given & set(sides))
    assert all(valid_size(s, depth) >= s for s in sides)


@pytest.fixture(scope="module")
def valid(randomise):
    """A small valid U-Net of depth 2 with its parameters, and images that it takes."""
    model = Small()
    images = normal(2, 52, 56, 1)
    return model, randomise(model, images), images


def test_pixels_depend_on_those_within_the_margin_and_no_others(valid):
    model, variables, images = valid

    # Of pixels that share their way through the poolings.
    def block(variables, images: jax.Array) -> jax.Array:
        return model.apply(variables, images)[0, 4:8, 8:12, 0].sum()  # pyright: ignore

    moved = np.abs(jax.jit(jax.grad(block, argnums=1))(variables, images))[..., 0]
    assert (moved[1] == 0).all()
    rows, columns = np.nonzero(moved[0])
    assert (rows.min(), rows.max()) == (4, 7 + valid_margin(2))
    assert (columns.min(), columns.max()) == (8, 11 + valid_margin(2))


def test_valid_convolutions_do_not_know_where_they_are(valid):
    model, variables, images = valid
    # Moved by a multiple of the network's stride, the result moves by as much.
    apply = jax.jit(model.apply)
    whole = apply(variables, images)
    part = apply(variables, images[:, 8:, 4:])
    np.testing.assert_allclose(part, np.asarray(whole)[:, 8:, 4:], atol=1e-5)


@pytest.mark.parametrize("upsampling", ["transposed", "resize"])
def test_padded_convolutions_take_any_size_and_keep_it(upsampling):
    model = Small(padding="same", upsampling=upsampling, num_classes=3)
    for size in [(1, 1), (5, 9), (16, 13)]:
        image = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
        out = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x)[0], image)
        assert out.shape == (2, *size, 3)


def gradients_of(model: UNet):
    """A compiled function of parameters, all variables and images."""

    def loss(params, variables, images):
        variables = {**variables, "params": params}
        out, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return jnp.mean(jnp.square(out))

    return jax.jit(jax.grad(loss))


@pytest.mark.proofs
def test_remat_computes_the_same_gradients_again(randomise):
    plain = UNet(width=2, depth=1, padding="same", norm=batch_norm)
    images = normal(2, 8, 8, 1)
    variables = randomise(plain, images)
    inputs = variables["params"], variables, images
    traced = [gradients_of(model).trace(*inputs) for model in (plain, plain.clone(remat=True))]
    texts = [str(each.jaxpr) for each in traced]
    assert ["checkpoint" in text or "remat" in text for text in texts] == [False, True]
    gradients = [each.lower().compile()(*inputs) for each in traced]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), *gradients)


@pytest.mark.proofs
def test_remat_saves_a_fifth_of_the_memory(randomise):
    plain = Small(padding="same", norm=batch_norm)
    images = normal(2, 32, 32, 1)
    variables = randomise(plain, images)
    inputs = variables["params"], variables, images
    memory = []
    for model in (plain, plain.clone(remat=True)):
        lowered = gradients_of(model).lower(*inputs)
        compiled = lowered.compile(compiler_options=compiler_options("cpu"))
        memory.append(compiled.memory_analysis().temp_size_in_bytes)
    assert memory[1] < 0.8 * memory[0], memory


def test_dropout_is_at_the_end_of_the_contracting_path_and_in_training_only(randomise):
    images = normal(1, 8, 8, 1)
    model = UNet(width=4, depth=1, padding="same", dropout=0.5)
    variables = randomise(model, images)

    @partial(jax.jit, static_argnames="train")
    def run(train: bool, key: int):
        rngs = {"dropout": jax.random.key(key)}
        return model.apply(variables, images, train=train, rngs=rngs)

    np.testing.assert_array_equal(run(False, 1), run(False, 2))
    assert not np.array_equal(run(True, 1), run(True, 2))  # pyright: ignore


def test_sizes_and_options_that_cannot_be_are_named():
    def init(model: UNet, *size: int):
        images = jax.ShapeDtypeStruct(size, jnp.float32)
        return jax.eval_shape(model.init, jax.random.key(0), images)

    with pytest.raises(ValueError, match="no side of 570 pixels; the nearest are 556 and 572"):
        init(UNet(), 1, 572, 570, 1)
    with pytest.raises(ValueError, match="no side of 64 pixels; the smallest is 92"):
        init(UNet(depth=3), 1, 64, 64, 1)
    with pytest.raises(ValueError, match="batch, height"):
        init(UNet(), 16, 16, 1)
    with pytest.raises(ValueError, match='"valid" or "same"'):
        init(UNet(padding="full"), 1, 16, 16, 1)  # pyright: ignore
    with pytest.raises(ValueError, match='"transposed" or "resize"'):
        init(UNet(upsampling="bilinear"), 1, 16, 16, 1)  # pyright: ignore
