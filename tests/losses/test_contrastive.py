"""Loops over pairs in float64, closed forms, and the same numbers on any devices."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend import core
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from opsin.losses.contrastive import (
    clip_loss,
    decoupled_contrastive_loss,
    info_nce_loss,
    nt_xent_loss,
    siglip_loss,
    supervised_contrastive_loss,
)
from opsin.ops.mapped import REPLICAS

VIEWS, BATCH, WIDTH = 3, 16, 6
TEMPERATURE, BIAS = 0.2, -2.0


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


LABELS = np.arange(BATCH) % 5
QUEUE = draw(7, WIDTH, seed=9)


def nt_xent_in_chunks(z, labels, temperature, **axis):
    chunk = z.shape[1] // 2
    return nt_xent_loss(z, temperature=temperature, chunk=chunk, **axis)


# Of embeddings [VIEWS, batch, WIDTH], where pairs are the first two views, labels and temperature.
LOSSES = {
    "nt_xent": lambda z, labels, t, **axis: nt_xent_loss(z, temperature=t, **axis),
    "nt_xent in chunks": nt_xent_in_chunks,
    "decoupled": lambda z, labels, t, **axis: decoupled_contrastive_loss(z, temperature=t, **axis),
    "supervised": lambda z, labels, t, **axis: supervised_contrastive_loss(
        z, labels, temperature=t, **axis
    ),
    "info_nce": lambda z, labels, t, **axis: info_nce_loss(z[0], z[1], temperature=t, **axis),
    "info_nce of a queue": lambda z, labels, t, **axis: info_nce_loss(
        z[0], z[1], temperature=t, negatives=QUEUE, **axis
    ),
    "clip": lambda z, labels, t, **axis: clip_loss(z[0], z[1], scale=1 / t, **axis),
    "siglip": lambda z, labels, t, **axis: siglip_loss(z[0], z[1], scale=1 / t, bias=BIAS, **axis),
}


def by_loop(name, z, labels):
    """The definitions, pair by pair."""
    z = unit(z)
    views, batch, _ = z.shape
    every = [(v, i) for v in range(views) for i in range(batch)]

    def factor(a, b):
        return np.exp(z[a] @ z[b] / TEMPERATURE)

    def mean_log(anchor, positives, denominator):
        return np.mean([np.log(denominator(p) / factor(anchor, p)) for p in positives])

    def of_anchor(a):
        negatives = sum(factor(a, n) for n in every if n[1] != a[1])
        others = [p for p in every if p[1] == a[1] and p != a]
        match name:
            case "nt_xent" | "nt_xent in chunks":
                return mean_log(a, others, lambda p: factor(a, p) + negatives)
            case "decoupled":
                return mean_log(a, others, lambda p: negatives)
            case _:  # supervised
                rest = sum(factor(a, x) for x in every if x != a)
                alike = [p for p in every if labels[p[1]] == labels[a[1]] and p != a]
                return mean_log(a, alike, lambda p: rest)

    def of_pair(i):
        queries = [sum(factor((0, i), (1, j)) for j in range(batch))]
        keys = [sum(factor((0, j), (1, i)) for j in range(batch))]
        own = factor((0, i), (1, i))
        match name:
            case "info_nce":
                return np.log(queries[0] / own)
            case "info_nce of a queue":
                queue = np.exp(unit(QUEUE) @ z[0, i] / TEMPERATURE)
                return np.log((own + queue.sum()) / own)
            case "clip":
                return (np.log(queries[0] / own) + np.log(keys[0] / own)) / 2
            case _:  # siglip
                logits = z[1] @ z[0, i] / TEMPERATURE + BIAS
                signs = np.where(np.arange(batch) == i, 1, -1)
                return np.sum(np.log1p(np.exp(-signs * logits)))

    if name in ("nt_xent", "nt_xent in chunks", "decoupled", "supervised"):
        return np.reshape([of_anchor(a) for a in every], (views, batch))
    return np.array([of_pair(i) for i in range(batch)])


@jax.jit
def all_losses(z, labels, temperature):
    return {name: loss(z, labels, temperature) for name, loss in LOSSES.items()}


@pytest.fixture(scope="module")
def found():
    z = 3.0 * draw(VIEWS, BATCH, WIDTH)
    return z, jax.tree.map(np.asarray, all_losses(z, LABELS, TEMPERATURE))


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_those_of_loops_over_pairs(name, found):
    z, losses = found
    assert losses[name].dtype == jnp.float32
    np.testing.assert_allclose(losses[name], by_loop(name, z, LABELS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("views", [pytest.param(2, marks=pytest.mark.proofs), 3])
def test_nt_xent_is_that_of_optax_in_value_and_gradient(views):
    z = draw(views, 6, 4)

    def ours(z):
        return jnp.mean(nt_xent_loss(z, temperature=TEMPERATURE))

    def peer(z):
        labels = jnp.tile(jnp.arange(6), views)
        return optax.losses.ntxent(z.reshape(-1, 4), labels, TEMPERATURE)

    both = jax.jit(lambda z: [jax.value_and_grad(f)(z) for f in (ours, peer)])
    for one, other in zip(*both(z), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


# Closed forms.


def test_one_pair_is_told_apart_from_nothing():
    pair = draw(2, 1, 4)

    def total(pair):
        losses = [
            nt_xent_loss(pair, temperature=0.1),
            nt_xent_loss(pair, temperature=0.1, chunk=1),
            supervised_contrastive_loss(pair, jnp.array([3]), temperature=0.1),
            info_nce_loss(pair[0], pair[1], temperature=0.1),
            clip_loss(pair[0], pair[1], scale=10.0),
        ]
        return jnp.stack([jnp.sum(x) for x in losses])

    values, slopes = jax.jit(lambda pair: (total(pair), jax.jacrev(total)(pair)))(pair)
    np.testing.assert_array_equal(values, np.zeros(5))
    np.testing.assert_array_equal(slopes, np.zeros((5, 2, 1, 4)))
    with pytest.raises(ValueError, match="take two images or more"):
        jax.eval_shape(partial(decoupled_contrastive_loss, temperature=0.1), pair)


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
def test_orthogonal_images_with_equal_views(temperature):
    """The cosine of a positive is 1 and all others are 0."""
    n = 6
    axes = np.eye(n, WIDTH, dtype=np.float32)
    labels = np.arange(n) % 2  # n - 1 positives of an anchor, of which one is near
    found = all_losses(np.stack([2.0 * axes, 0.3 * axes]), labels, temperature)
    positive, negatives = np.exp(1 / temperature), 2 * n - 2
    matching = -np.log(positive / (positive + n - 1))
    wanted = {
        "nt_xent": -np.log(positive / (positive + negatives)),
        "decoupled": np.log(negatives) - 1 / temperature,
        "supervised": np.log(positive + negatives) - 1 / temperature / (n - 1),
        "info_nce": matching,
        "clip": matching,
        "siglip": np.log1p(np.exp(-1 / temperature - BIAS)) + (n - 1) * np.log1p(np.exp(BIAS)),
    }
    for name, value in wanted.items():
        shape = (n,) if name in ("info_nce", "clip", "siglip") else (2, n)
        # The rest of a logit of 1 / temperature, rounded, and of its square root in the length.
        atol = 2e-7 / temperature
        np.testing.assert_allclose(found[name], np.full(shape, value), 1e-5, atol, err_msg=name)


def test_siglip_in_its_limits():
    """So sure that all match, or that none does, that each wrong pair costs its logit."""
    axes = np.eye(8, dtype=np.float32)
    loss = jax.jit(partial(siglip_loss, scale=1e-6))
    np.testing.assert_allclose(loss(axes, axes, bias=1e4), np.full(8, 7e4))
    np.testing.assert_allclose(loss(axes, axes, bias=-1e4), np.full(8, 1e4))
    np.testing.assert_allclose(loss(axes, axes, bias=0.0), np.full(8, 8 * np.log(2)), rtol=1e-6)


def test_supervised_of_labels_that_differ_is_nt_xent_and_of_one_label_has_all_alike():
    z = draw(2, 6, WIDTH)
    losses = all_losses(z, np.arange(6) + 3, TEMPERATURE)
    np.testing.assert_allclose(losses["supervised"], losses["nt_xent"], rtol=1e-5)
    losses = all_losses(np.ones_like(z), np.zeros(6, int), TEMPERATURE)
    np.testing.assert_allclose(losses["supervised"], np.full((2, 6), np.log(11)), rtol=1e-5)


def test_symmetries(found):
    """Of the views, of the two sides of CLIP, and of the lengths of embeddings."""
    z, losses = found
    lengths = np.linspace(0.1, 100.0, BATCH, dtype=np.float32)[:, None]
    scaled, swapped = (
        jax.tree.map(np.asarray, all_losses(x, LABELS, TEMPERATURE))
        for x in (z * lengths, z[[1, 0, 2]])
    )
    for name in LOSSES:
        np.testing.assert_allclose(scaled[name], losses[name], rtol=1e-5, atol=1e-5)
    for name in ("nt_xent", "decoupled", "supervised"):
        np.testing.assert_allclose(swapped[name][1], losses[name][0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(swapped["clip"], losses["clip"], rtol=1e-5, atol=1e-5)


def test_decoupled_keeps_its_slope_where_nt_xent_loses_it():
    """By one factor for all of an anchor: the probability that is not its positive's."""
    z = draw(2, 2, 4) + 10 * np.eye(2, 4, dtype=np.float32)

    @jax.jit
    def slopes(z):
        return [
            jax.grad(lambda z, f=loss: f(z, temperature=0.05).sum())(z)
            for loss in (nt_xent_loss, decoupled_contrastive_loss)
        ]

    coupled, decoupled = (np.linalg.norm(np.asarray(slope)) for slope in slopes(z))
    assert 0.0 < coupled < 1e-4 * decoupled


# Numbers at the edge.


def test_zero_vectors_and_low_temperatures_leave_all_finite():
    z = draw(VIEWS, 6, WIDTH)
    z[:, 2], z[0, 3], z[:, 4] = 0.0, 0.0, -z[:, 5]

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def slopes(copies, temperature):
        """Of all losses at once, each from embeddings of its own."""
        losses = [
            jnp.sum(loss(own, jnp.arange(6) % 3, temperature))
            for own, loss in zip(copies, LOSSES.values(), strict=True)
        ]
        return sum(losses), jnp.stack(losses)

    for temperature in (0.01, 1.0):
        (_, values), found = slopes([z] * len(LOSSES), temperature)
        assert np.isfinite(values).all()
        for name, slope in zip(LOSSES, map(np.asarray, found), strict=True):
            assert np.isfinite(slope).all(), name
            assert np.abs(slope).max() > 0.0, name
            np.testing.assert_array_equal(slope[:, 2], np.zeros((VIEWS, WIDTH)), name)


def test_small_floats_are_computed_in_float32():
    z = draw(2, 6, WIDTH).astype(jnp.bfloat16)
    small = all_losses(z, np.arange(6), TEMPERATURE)
    wide = all_losses(z.astype(np.float32), np.arange(6), TEMPERATURE)
    for name in LOSSES:
        assert small[name].dtype == jnp.float32
        np.testing.assert_allclose(small[name], wide[name], rtol=1e-6, atol=1e-6)


# Chunks.


def mean_of(chunk=None):
    def mean(z):
        # Weights that differ: an anchor in the wrong place would show.
        losses = nt_xent_loss(z, temperature=TEMPERATURE, chunk=chunk)
        return jnp.mean(losses * jnp.arange(losses.size).reshape(losses.shape))

    return jax.value_and_grad(mean)


def test_chunks_are_the_whole_in_value_and_gradient():
    z = draw(VIEWS, 12, WIDTH)
    sizes = (None, 1, 4, 12)
    whole, *parts = jax.jit(lambda z: [mean_of(chunk)(z) for chunk in sizes])(z)
    for part in parts:
        for one, other in zip(part, whole, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def largest(jaxpr: core.Jaxpr) -> int:
    """Numbers in the largest array that is made, in loops and all."""
    sizes = [out.aval.size for eqn in jaxpr.eqns for out in eqn.outvars]  # pyright: ignore
    parts = [part for eqn in jaxpr.eqns for part in core.jaxprs_in_params(eqn.params)]
    return max([*sizes, *map(largest, parts)])


def test_memory_of_chunks_is_linear_in_the_batch():
    def most(batch, chunk):
        z = jax.ShapeDtypeStruct((2, batch, 8), jnp.float32)
        return largest(jax.make_jaxpr(mean_of(chunk))(z).jaxpr)

    assert most(512, None) == (2 * 512) ** 2
    assert most(512, 16) == (2 * 16) * (2 * 512)
    assert most(2048, 16) == (2 * 16) * (2 * 2048)


# Devices.


def means(copies, x, labels, **axis):
    """Of each loss, for what a layer of its own makes of images."""
    return jnp.stack(
        [
            jnp.mean(loss(jnp.tanh(x @ weights), labels, TEMPERATURE, **axis))
            for loss, weights in zip(LOSSES.values(), copies, strict=True)
        ]
    )


def values_and_gradients(weights, x, labels, *, mean=lambda values: values, **axis):
    def total(copies):
        values = mean(means(copies, x, labels, **axis))
        return jnp.sum(values), values

    return jax.grad(total, has_aux=True)([weights] * len(LOSSES))[::-1]


@pytest.fixture(scope="module")
def layer():
    return draw(5, WIDTH, seed=1), draw(VIEWS, BATCH, 5, seed=2)


@pytest.fixture(scope="module")
def one_device(layer):
    return jax.tree.map(np.asarray, jax.jit(values_and_gradients)(*layer, LABELS))


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))


def assert_same(ours, one_device):
    for mine, wanted in zip(jax.tree.map(np.asarray, ours), one_device, strict=True):
        for name, a, b in zip(LOSSES, mine, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6, err_msg=name)


@pytest.mark.proofs
def test_jit_over_a_mesh_is_one_device(layer, mesh, one_device):
    weights, x = layer
    x = jax.device_put(x, NamedSharding(mesh, P(None, "data")))
    labels = jax.device_put(LABELS, NamedSharding(mesh, P("data")))
    assert_same(jax.jit(values_and_gradients)(weights, x, labels), one_device)


def test_devices_share_the_work_of_each_chunk(mesh):
    """None makes more than an eighth of its products, as XLA partitions them."""
    batch, chunk = 128, 32
    sharding = NamedSharding(mesh, P(None, "data"))
    z = jax.ShapeDtypeStruct((2, batch, 4), jnp.float32, sharding=sharding)
    text = jax.jit(mean_of(chunk)).lower(z).compile().as_text() or ""
    shapes = re.findall(r"= f32\[([\d,]+)\]\S* dot\(", text)
    most = max(np.prod([int(n) for n in shape.split(",")]) for shape in shapes)
    assert most == (2 * chunk) * (2 * batch) / 8


@pytest.mark.proofs
def test_pmap_with_gradients_averaged_is_one_device(layer, one_device):
    """As the training step has it: gradients of each device's own mean, then their mean."""

    def mapped(weights, x, labels):
        return jax.lax.pmean(values_and_gradients(weights, x, labels), REPLICAS)

    weights, x = layer
    x = x.reshape(VIEWS, 8, -1, 5).swapaxes(0, 1)
    ours = jax.pmap(mapped, axis_name=REPLICAS, in_axes=(None, 0, 0))(
        weights, x, LABELS.reshape(8, -1)
    )
    ours = jax.tree.map(np.asarray, ours)
    for device in (0, 7):
        assert_same(jax.tree.map(lambda leaf, d=device: leaf[d], ours), one_device)


@pytest.mark.proofs
def test_shard_map_with_the_loss_averaged_is_one_device(layer, one_device):
    mesh = jax.make_mesh((8,), (REPLICAS,), axis_types=(AxisType.Auto,))
    specs = {"in_specs": (P(), P(None, REPLICAS), P(REPLICAS)), "out_specs": P()}

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, **specs)
    def mapped(weights, x, labels):
        mean = partial(jax.lax.pmean, axis_name=REPLICAS)
        return values_and_gradients(weights, x, labels, mean=mean)

    assert_same(mapped(*layer, LABELS), one_device)


@pytest.mark.proofs
def test_without_the_axis_a_device_knows_its_own_images_only(layer, one_device):
    """That the tests above would notice."""
    weights, x = layer
    x = x.reshape(VIEWS, 8, -1, 5).swapaxes(0, 1)
    copies = [weights] * len(LOSSES)
    parts = jax.jit(jax.vmap(means, (None, 0, 0)))(copies, x, LABELS.reshape(8, -1))
    means_of_parts = np.asarray(parts).mean(axis=0)
    for name, part, wanted in zip(LOSSES, means_of_parts, one_device[0], strict=True):
        if name != "info_nce of a queue":
            assert abs(part - wanted) > 0.1 * abs(wanted), name


# What a user may get wrong.


@pytest.mark.parametrize(("chunk", "way_out"), [(4, 3), (5, 3), (7, 6), (0, 1), (-2, 1)])
def test_a_chunk_that_does_not_divide_the_batch_is_named(chunk, way_out):
    for loss in (nt_xent_loss, decoupled_contrastive_loss):
        with pytest.raises(ValueError, match=f"chunk={chunk} .* batch of 6: take chunk={way_out}$"):
            loss(draw(2, 6, 4), temperature=0.1, chunk=chunk)


@pytest.mark.parametrize("value", [0, 0.0, -0.1, float("nan")])
def test_a_temperature_or_scale_that_is_not_positive_is_named(value):
    z = draw(2, 6, 4)
    message = f"must be above 0, not {value}"
    for loss in (
        nt_xent_loss,
        decoupled_contrastive_loss,
        partial(supervised_contrastive_loss, labels=np.arange(6)),
    ):
        with pytest.raises(ValueError, match=f"temperature {message}"):
            loss(z, temperature=value)
    with pytest.raises(ValueError, match=f"temperature {message}"):
        info_nce_loss(*z, temperature=value)
    with pytest.raises(ValueError, match=f"scale {message}"):
        clip_loss(*z, scale=value)
    with pytest.raises(ValueError, match=f"scale {message}"):
        siglip_loss(*z, scale=value, bias=-10.0)


def test_shapes_that_do_not_fit_are_named():
    z = draw(2, 6, 4)
    for wrong in (z[:1], z[0]):
        with pytest.raises(ValueError, match="two views or more"):
            nt_xent_loss(wrong, temperature=0.1)
    with pytest.raises(ValueError, match=r"labels \(5,\) must be one for each image"):
        supervised_contrastive_loss(z, np.arange(5), temperature=0.1)
    for loss in (
        partial(info_nce_loss, temperature=0.1),
        partial(clip_loss, scale=1.0),
        partial(siglip_loss, scale=1.0, bias=0.0),
    ):
        with pytest.raises(ValueError, match=r"\(6, 4\) and \(5, 4\) must both be"):
            loss(z[0], z[1, :5])
    with pytest.raises(ValueError, match=r"negatives \(6, 3\)"):
        info_nce_loss(*z, temperature=0.1, negatives=z[0, :, :3])
