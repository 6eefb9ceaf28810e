"""The VQ-VAE: the counts of its example, both codebooks, restarts, and one device against eight."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from opsin.models.generative.vqvae import VQVAE, VectorQuantizer
from opsin.ops.mapped import REPLICAS
from opsin.ops.quantization import EmaCodebook, ema_update, nearest_codes

Small = partial(
    VQVAE, outputs=2, width=4, halvings=1, residual_layers=1, residual_width=3, code_size=3
)
small = Small(num_codes=6, decay=0.5)


def parameters(model: VQVAE, channels: int = 3) -> int:
    images = jax.ShapeDtypeStruct((1, 32, 32, channels), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_parameters():
    assert parameters(VQVAE()) == 662_723
    assert parameters(VQVAE(update="gradient")) == 662_723 + 512 * 64 == 695_491

    def conv(taps, inputs, outputs):
        return taps * inputs * outputs + outputs

    # A small one for MNIST, of other widths, whose images are halved three times.
    blocks = 3 * (conv(9, 32, 8) + conv(1, 8, 32))
    down = conv(16, 1, 16) + conv(16, 16, 32) + conv(16, 32, 32) + conv(9, 32, 32)
    up = conv(9, 16, 32) + conv(16, 32, 32) + conv(16, 32, 16) + conv(16, 16, 1)
    model = VQVAE(
        outputs=1, width=32, halvings=3, residual_layers=3, residual_width=8, code_size=16
    )
    assert parameters(model, 1) == down + blocks + conv(1, 32, 16) + up + blocks


@pytest.mark.parametrize(("size", "halvings"), [((2, 6), 1), ((12, 4), 2), ((8, 24), 3)])
def test_sizes_are_halved_and_restored(size, halvings):
    model = Small(halvings=halvings)
    out = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x)[0], jnp.zeros((2, *size, 1))
    )
    rows, columns = (side // 2**halvings for side in size)
    assert out.outputs.shape == (2, *size, 2)
    assert out.z_e.shape == out.codes.shape == (2, rows, columns, 3)
    assert (out.indices.shape, out.indices.dtype) == ((2, rows, columns), jnp.int32)


def test_what_does_not_fit_is_named():
    def init(model, *size):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(size))

    with pytest.raises(ValueError, match=r"2 times takes sides that 4 divides; got \(32, 30\)"):
        init(VQVAE(), 1, 32, 30, 3)
    with pytest.raises(ValueError, match='update is "ema" or "gradient"'):
        init(Small(update="sgd"), 1, 4, 4, 1)  # pyright: ignore
    with pytest.raises(ValueError, match='codes restart with update="ema" only'):
        init(Small(update="gradient", restart=0.1), 1, 4, 4, 1)
    with pytest.raises(ValueError, match="codes of size 3 for vectors of size 4"):
        init(VectorQuantizer(code_size=3), 2, 4)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).uniform(size=(8, 8, 4, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def variables(images, randomise):
    """Those of the small model; code 5 is far from everything."""
    drawn = randomise(small, images)
    book = drawn["codebook"]["quantizer"]
    codes = book["embedding"].copy()
    codes[5] = 100.0
    book |= {"embedding": codes, "sums": codes * book["counts"][:, None]}
    return {"params": drawn["params"], "codebook": {"quantizer": book}}


def train(model, variables, images, key=0):
    """What the model says in training, and its codebook afterwards."""
    out, changed = model.apply(
        variables, images, train=True, mutable=["codebook"], rngs={"codes": jax.random.key(key)}
    )
    return out, changed["codebook"]["quantizer"]


@pytest.fixture(scope="module")
def trained(variables, images):
    return jax.tree.map(np.asarray, jax.jit(partial(train, small))(variables, images))


def book_of(codebook) -> EmaCodebook:
    return EmaCodebook(codebook["embedding"], codebook["counts"], codebook["sums"])


def test_a_new_codebook_is_uniform_and_the_mean_of_one_vector_each():
    quantizer = VectorQuantizer(num_codes=400, code_size=5, decay=0.5)
    # Not even training changes it while it is made.
    init = jax.jit(partial(quantizer.init, train=True))
    variables = init(jax.random.key(0), np.ones((9, 5), np.float32))
    codes, counts, sums = map(np.asarray, book_of(variables["codebook"]))
    np.testing.assert_array_equal(sums, codes)
    np.testing.assert_array_equal(counts, np.ones(400))
    assert np.abs(codes).max() <= (3 / 5) ** 0.5
    np.testing.assert_allclose(np.var(codes), 1 / 5, rtol=0.1)


def test_the_parts_are_the_whole(variables, images, trained):
    out, _ = trained
    encode, quantize, decode = (
        jax.jit(partial(small.apply, method=method)) for method in ("encode", "quantize", "decode")
    )
    z_e = encode(variables, images)
    z_q, codes, indices = map(np.asarray, quantize(variables, z_e))
    np.testing.assert_allclose(out.z_e, z_e, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(out.indices, indices)
    np.testing.assert_array_equal(z_q, codes)
    embedding = variables["codebook"]["quantizer"]["embedding"]
    np.testing.assert_array_equal(codes, embedding[indices])
    np.testing.assert_array_equal(indices, jax.jit(nearest_codes)(z_e, embedding))
    assert len(np.unique(indices)) > 1
    np.testing.assert_allclose(decode(variables, codes), out.outputs, rtol=1e-4, atol=1e-5)


def test_a_codebook_learns_in_training_and_not_otherwise(variables, images, trained):
    out, codebook = trained
    before = book_of(variables["codebook"]["quantizer"])
    expected = jax.jit(partial(ema_update, decay=0.5))(before, out.z_e, out.indices)
    for got, leaf, old in zip(book_of(codebook), expected, before, strict=True):
        np.testing.assert_allclose(got, leaf, rtol=1e-5, atol=1e-6)
        assert not np.array_equal(got, old)
    # Images are coded by the book as it was, in training as in evaluation.
    np.testing.assert_array_equal(out.codes, before.codes[out.indices])
    evaluate = jax.jit(partial(small.apply, mutable=["codebook"]))
    evaluated, kept = evaluate(variables, images)
    jax.tree.map(np.testing.assert_array_equal, kept["codebook"], variables["codebook"])
    np.testing.assert_array_equal(evaluated.indices, out.indices)
    # Where nothing is mutable, no key is needed.
    frozen = jax.jit(partial(small.apply, train=True))(variables, images)
    np.testing.assert_array_equal(frozen.indices, out.indices)


def test_the_gradient_passes_the_codes_as_if_they_were_not_there(variables, images):
    z_e, cotangent = np.random.default_rng(2).normal(size=(2, 2, 4, 2, 3)).astype(np.float32)

    @jax.jit
    def pulled(variables, z_e, cotangent):
        _, pull = jax.vjp(lambda z: small.apply(variables, z, method="quantize")[0], z_e)
        return pull(cotangent)[0]

    np.testing.assert_array_equal(pulled(variables, z_e, cotangent), cotangent)

    def total(params, variables, images):
        out = small.apply({**variables, "params": params}, images)
        return jnp.sum(out.outputs**2)

    grads = jax.jit(jax.grad(total))(variables["params"], variables, images)
    assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads["encoder"]))


def test_a_codebook_by_gradient_has_that_of_its_loss_and_no_other(variables, images):
    model = Small(num_codes=6, update="gradient")
    embedding = variables["codebook"]["quantizer"]["embedding"]
    params = {**variables["params"], "quantizer": {"codebook": embedding}}

    def losses(params):
        out = model.apply({"params": params}, images, train=True)
        codebook_loss = jnp.sum(jnp.square(jax.lax.stop_gradient(out.z_e) - out.codes))
        return codebook_loss, jnp.sum(out.outputs**2), out

    @jax.jit
    def gradients(params):
        by_codes = jax.grad(lambda p: losses(p)[0])(params)
        by_outputs = jax.grad(lambda p: losses(p)[1])(params)
        return by_codes, by_outputs, losses(params)[2]

    by_codes, by_outputs, out = jax.tree.map(np.asarray, gradients(params))
    expected = np.zeros((6, 3))
    for z, index in zip(np.reshape(out.z_e, (-1, 3)), np.ravel(out.indices), strict=True):
        expected[index] += 2 * (np.asarray(embedding[index]) - z)
    np.testing.assert_allclose(by_codes["quantizer"]["codebook"], expected, rtol=1e-4, atol=1e-4)
    assert np.abs(expected[:5]).max() > 0.1
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(by_codes["encoder"]))
    np.testing.assert_array_equal(by_outputs["quantizer"]["codebook"], np.zeros((6, 3)))


def test_a_dead_code_restarts_if_asked_and_the_others_do_not_notice(variables, images, trained):
    out, plain = trained
    threshold = 0.75
    dead = np.flatnonzero(np.asarray(plain["counts"]) < threshold)
    assert 5 in dead
    assert len(dead) < 6
    step = jax.jit(partial(train, small.clone(restart=threshold)))
    _, got = jax.tree.map(np.asarray, step(variables, images))
    live = np.setdiff1d(np.arange(6), dead)
    for name in ("embedding", "counts", "sums"):
        np.testing.assert_allclose(got[name][live], plain[name][live], rtol=1e-5, atol=1e-6)
    vectors = np.reshape(out.z_e, (-1, 3))
    for code in np.asarray(got["embedding"])[dead]:
        assert np.abs(vectors - code).max(axis=1).min() < 1e-5
    np.testing.assert_array_equal(got["counts"][dead], np.ones(len(dead)))
    assert np.abs(plain["embedding"][5]).max() > 50  # and without being asked it stays


def test_eight_devices_learn_what_one_does(variables, images):
    model = small.clone(restart=0.75)
    step = jax.jit(partial(train, model))
    out, codebook = step(variables, images)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
    mapped = jax.pmap(partial(train, model), REPLICAS, in_axes=(None, 0, 0))
    # Each device has its own key: that of the first one counts.
    shares, copies = mapped(variables, images[:, None], np.arange(8))
    for got, books in [
        (step(variables, sharded), 1),
        ((jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), shares), copies), 8),
    ]:
        np.testing.assert_array_equal(got[0].indices, out.indices)
        np.testing.assert_allclose(got[0].outputs, out.outputs, rtol=1e-4, atol=1e-5)
        for name, leaf in codebook.items():
            expected = leaf if books == 1 else np.broadcast_to(leaf, (8, *leaf.shape))
            np.testing.assert_allclose(got[1][name], expected, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_for_the_networks_and_not_for_the_codes(variables, images, trained):
    half, codebook = jax.jit(partial(train, small.clone(dtype=jnp.bfloat16)))(variables, images)
    for leaf in (half.outputs, half.z_e, half.codes, *codebook.values()):
        assert leaf.dtype == jnp.float32
    assert not np.array_equal(half.z_e, trained[0].z_e)
    embedding = variables["codebook"]["quantizer"]["embedding"]
    half = jax.tree.map(np.asarray, half)
    np.testing.assert_array_equal(half.indices, jax.jit(nearest_codes)(half.z_e, embedding))
    np.testing.assert_array_equal(half.codes, embedding[half.indices])
