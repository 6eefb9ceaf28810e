"""VAEs: the counts of the paper, what each level depends on, draws, labels, and bad input."""

from functools import partial
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.models.generative.autoencoder import (
    MLP,
    ConvDecoder,
    ConvEncoder,
    DenseDecoder,
    DenseEncoder,
)
from opsin.models.generative.vae import VAE, ConvVAE, TwoLevelVAE

IMAGE = (4, 6, 1)
Dense = partial(
    VAE,
    image=IMAGE,
    latents=(3,),
    encoder=partial(DenseEncoder, widths=(7,), activation=nn.tanh),
    decoder=partial(DenseDecoder, widths=(7,), activation=nn.tanh),
)
Levels = partial(Dense, latents=(3, 2), between=(partial(MLP, widths=(5,)),))
Convolutional = partial(
    VAE,
    image=IMAGE,
    latents=(3,),
    encoder=partial(ConvEncoder, channels=(4,)),
    decoder=partial(ConvDecoder, channels=(4,)),
)
MODELS = {"dense": Dense(), "levels": Levels(), "conv": Convolutional()}


def linear(inputs: int, *widths: int) -> int:
    """Parameters of dense layers, one behind the other."""
    return sum(a * b + b for a, b in zip((inputs, *widths), widths, strict=False))


def parameters(model: VAE) -> int:
    images = jax.ShapeDtypeStruct((1, *model.image), jnp.float32)
    labels = None if model.num_classes is None else np.zeros(1, np.int32)
    shapes = jax.eval_shape(partial(model.init, labels=labels), jax.random.key(0), images)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


@pytest.mark.parametrize(
    ("model", "total", "derived"),
    [
        (
            VAE(),
            425_284,
            linear(784, 200, 200) + 2 * linear(200, 50) + linear(50, 200, 200, 784),
        ),
        (
            TwoLevelVAE(),
            521_084,
            (linear(784, 200, 200) + 2 * linear(200, 100))  # q(z_0 | x)
            + (linear(100, 100, 100) + 2 * linear(100, 50))  # q(z_1 | z_0)
            + (linear(50, 100, 100) + 2 * linear(100, 100))  # p(z_0 | z_1)
            + linear(100, 200, 200, 784),  # p(x | z_0)
        ),
        (
            ConvVAE(),
            540_325,
            (16 * (32 + 32 * 64) + 96 + 2 * linear(3136, 50))
            + (linear(50, 3136) + 16 * (64 * 32 + 32) + 33),
        ),
        (VAE(outputs=2), 425_284 + 784 * 201, None),
        # Ten more inputs of each network.
        (VAE(num_classes=10), 425_284 + 10 * (200 + 200), None),
        (TwoLevelVAE(num_classes=10), 521_084 + 10 * (200 + 100 + 100 + 200), None),
        (ConvVAE(num_classes=10), 540_325 + 10 * (16 * 32 + 3136), None),
    ],
)
def test_parameters(model, total, derived):
    assert parameters(model) == total
    assert derived in (None, total)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).uniform(size=(4, *IMAGE)).astype(np.float32)


@pytest.fixture(scope="module")
def variables(images, randomise):
    """Those of each of the small models."""
    return {name: randomise(model, images) for name, model in MODELS.items()}


@partial(jax.jit, static_argnames=("model", "method", "samples", "train"))
def compiled(model, variables, method, *args, key, **options):
    rngs = {"latent": jax.random.key(key)}
    return model.apply(variables, *args, method=method, rngs=rngs, **options)


def run(model, variables, method, *args, key=0, **options):
    """What a method says, in NumPy's arrays."""
    return jax.tree.map(np.asarray, compiled(model, variables, method, *args, key=key, **options))


@pytest.mark.parametrize("name", MODELS)
def test_each_level_has_draws_a_posterior_and_a_prior(name, variables, images):
    model = MODELS[name].clone(outputs=2)
    shapes = partial(jax.eval_shape, partial(model.init_with_output, samples=5))
    latents, posteriors, priors, outputs = shapes(jax.random.key(0), images)[0]
    sizes = model.latents
    assert [z.shape for z in latents] == [(5, 4, size) for size in sizes]
    leading = [1] + [5] * (len(sizes) - 1)
    assert [q.mean.shape for q in posteriors] == [
        (n, 4, size) for n, size in zip(leading, sizes, strict=True)
    ]
    assert [p.log_std.shape for p in priors] == [(5, 4, size) for size in sizes]
    assert outputs.shape == (5, 4, 4, 6, 2)
    for leaf in jax.tree.leaves((latents, posteriors, priors, outputs)):
        assert leaf.dtype == jnp.float32


def test_the_dense_one_equals_numpy(variables, images):
    p = variables["dense"]["params"]

    def affine(x, layer):
        return x @ layer["kernel"] + layer["bias"]

    latents, (posterior,), (prior,), outputs = run(
        MODELS["dense"], variables["dense"], "__call__", images, samples=2
    )
    x = np.tanh(affine(np.reshape(images, (4, -1)), p["encoders_0"]["layers"]["dense1"]))
    for part in ("mean", "log_std"):
        expected = affine(x, p["posteriors_0"][part])
        np.testing.assert_allclose(getattr(posterior, part)[0], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(getattr(prior, part), np.zeros((2, 4, 3)))
    h = np.tanh(affine(np.asarray(latents[0]), p["decoders_0"]["layers"]["dense1"]))
    expected = affine(h, p["decoders_0"]["head"]).reshape(2, 4, *IMAGE)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


def test_draws_are_those_of_the_posteriors(variables, images):
    encode = partial(run, MODELS["levels"], variables["levels"], "encode", images, samples=5_000)
    latents, posteriors = encode()
    for z, q in zip(latents, posteriors, strict=True):
        noise = (z - q.mean) / np.exp(q.log_std)
        # 5 standard errors of 5,000 draws
        np.testing.assert_allclose(noise.mean(0), np.zeros(z.shape[1:]), atol=5 / 5_000**0.5)
        np.testing.assert_allclose(noise.std(0), np.ones(z.shape[1:]), atol=5 / 10_000**0.5)
        np.testing.assert_allclose((noise[:, 1:] * noise[:, :-1]).mean(0), 0, atol=0.08)
    assert not np.allclose(latents[0][..., :2], latents[1])
    again, other = encode()[0], encode(key=1)[0]
    for z, same, different in zip(latents, again, other, strict=True):
        np.testing.assert_array_equal(z, same)
        assert not np.array_equal(z, different)


def test_a_level_is_expected_from_the_one_above_and_the_image_from_the_lowest(variables):
    z0, z1 = np.ones((2, 4, 3), np.float32), np.ones((2, 4, 2), np.float32)

    def reads(pick):
        """Whether the result depends on (z_0, z_1)."""

        def total(*latents):
            results = MODELS["levels"].apply(variables["levels"], latents, method="decode")
            return jnp.sum(pick(*results))

        gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(z0, z1)
        return [bool(np.asarray(g).any()) for g in gradients]

    assert reads(lambda priors, _: priors[0].mean + priors[0].log_std) == [False, True]
    assert reads(lambda priors, _: priors[1].mean) == [False, False]
    assert reads(lambda _, outputs: outputs) == [True, False]


@pytest.mark.parametrize("name", MODELS)
def test_images_and_draws_do_not_see_one_another_nor_training(name, variables, images):
    model, of = MODELS[name], variables[name]
    latents, posteriors = run(model, of, "encode", images, samples=3)
    _, outputs = run(model, of, "decode", latents)
    decode = partial(run, model, of, "decode", train=True)
    for s, i in [(0, 0), (1, 3), (2, 1)]:
        _, alone = decode([z[s : s + 1, i : i + 1] for z in latents])
        np.testing.assert_allclose(alone[0, 0], outputs[s, i], rtol=1e-4, atol=1e-5)
    trained = run(model, of, "encode", images[1:2], samples=3, train=True)[1]
    np.testing.assert_allclose(
        trained[0].mean[:, 0], posteriors[0].mean[:, 1], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", ["dense", "conv"])
def test_with_one_level_to_generate_is_to_decode(name, variables):
    top = np.random.default_rng(2).normal(size=(2, 3, 3)).astype(np.float32)
    model, of = MODELS[name], variables[name]
    _, outputs = run(model, of, "decode", (top,))
    generate = jax.jit(partial(model.apply, method="generate"))
    np.testing.assert_array_equal(generate(of, top), outputs)  # no key
    one = run(model, of, "generate", top[0])
    np.testing.assert_allclose(one, outputs[0], rtol=1e-4, atol=1e-5)


def test_with_several_levels_the_lower_ones_are_drawn(variables):
    model, of = MODELS["levels"], variables["levels"]
    top = np.random.default_rng(2).normal(size=(2, 3, 2)).astype(np.float32)
    one, same, other = (run(model, of, "generate", top, key=key) for key in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    # Of no spread, the draw is the mean.
    params = dict(of["params"])
    head = jax.tree.map(np.zeros_like, params["priors_0"]["log_std"])
    params["priors_0"] = params["priors_0"] | {"log_std": head | {"bias": head["bias"] - 30}}
    certain = {"params": params}
    priors, _ = run(model, certain, "decode", (np.zeros((2, 3, 3), np.float32), top))
    _, expected = run(model, certain, "decode", (priors[0].mean, top))
    got = run(model, certain, "generate", top)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [Levels, Convolutional])
def test_every_network_reads_the_labels(make, images, randomise):
    model = make(num_classes=5)
    labels = np.asarray([0, 1, 2, 4], np.int32)
    of = randomise(SimpleNamespace(init=partial(model.init, labels=labels)), images)
    latents, posteriors, priors, outputs = run(model, of, "__call__", images, labels=labels)
    changed = labels + np.asarray([0, 0, 1, 0], np.int32)

    def rows(one, other):
        """Images in which two results, [samples, batch, …], differ."""
        return sorted(set(np.nonzero(one != other)[1]))

    _, others = run(model, of, "encode", images, labels=changed)
    for q, other in zip(posteriors, others, strict=True):
        assert rows(q.mean, other.mean) == [2]
    other_priors, other_outputs = run(model, of, "decode", latents, labels=changed)
    for p, other in zip(priors[:-1], other_priors[:-1], strict=True):
        assert rows(p.mean, other.mean) == [2]
    assert rows(outputs, other_outputs) == [2]
    top = latents[-1]
    one, other = (run(model, of, "generate", top, labels=y) for y in (labels, changed))
    assert rows(one, other) == [2]


def test_bfloat16_is_for_the_inside_only(variables, images):
    half = MODELS["levels"].clone(dtype=jnp.bfloat16)
    results = run(half, variables["levels"], "__call__", images)
    assert {leaf.dtype for leaf in jax.tree.leaves(results)} == {jnp.dtype(jnp.float32)}
    full = run(MODELS["levels"], variables["levels"], "__call__", images)
    assert not np.array_equal(results[-1], full[-1])


def test_what_does_not_fit_is_named(variables, images):
    model, of = MODELS["levels"], variables["levels"]
    labels = np.zeros(4, np.int32)
    z0, z1 = np.zeros((1, 4, 3), np.float32), np.zeros((1, 4, 2), np.float32)
    with pytest.raises(ValueError, match=r"takes images \[batch, 4, 6, 1\]; got \[4, 6, 4, 1\]"):
        run(model, of, "encode", images.swapaxes(1, 2))
    with pytest.raises(ValueError, match=r"latents \[..., batch, 2\]; got \[1, 4, 3\]"):
        run(model, of, "decode", (z0, z0))
    with pytest.raises(ValueError, match="has 2 latents; got 1"):
        run(model, of, "decode", (z0,))
    with pytest.raises(ValueError, match=r"latents \[..., batch, 2\]; got \[2\]"):
        run(model, of, "generate", np.zeros(2, np.float32))
    for method, given in [("encode", images), ("decode", (z0, z1)), ("generate", z1)]:
        with pytest.raises(ValueError, match="not conditional: give no labels"):
            run(model, of, method, given, labels=labels)
        with pytest.raises(ValueError, match="conditional on 5 classes: give labels"):
            run(model.clone(num_classes=5), of, method, given)
    with pytest.raises(ValueError, match="2 levels of latents have 1 networks between them; got 0"):
        parameters(VAE(latents=(3, 2)))
    with pytest.raises(ValueError, match="3 times takes sides that 8 divides"):
        parameters(ConvVAE(encoder=partial(ConvEncoder, channels=(1, 2, 3))))
