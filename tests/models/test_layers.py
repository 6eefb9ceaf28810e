from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from opsin.models.layers import (
    Conv,
    SqueezeExcite,
    adaptive_average_pool,
    batch_norm,
    ceil_margins,
    group_norm,
    max_pool,
    pooled_logits,
    shared_fields,
)
from opsin.ops.mapped import REPLICAS
from opsin.planning.hlo import collectives, parse
from tests.drawn import normal


@pytest.fixture
def x():
    return 3 + 2 * normal(4, 5, 5, 6)


def test_batch_norm_follows_torch_and_numpy(x):
    norm = batch_norm(train=True)

    @jax.jit
    def first_step(key, x):
        return norm.apply(norm.init(key, x), x, mutable=["batch_stats"])

    y, updated = first_step(jax.random.key(1), x)
    mean, var = np.mean(x, (0, 1, 2)), np.var(x, (0, 1, 2))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), atol=1e-5)
    statistics = updated["batch_stats"]
    np.testing.assert_allclose(statistics["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * var, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "bias"), [(jnp.float32, True), (jnp.bfloat16, False)])
def test_batch_norm_is_linens_in_value_statistics_and_gradients(x, randomise, dtype, bias):
    options = {"epsilon": 1e-4, "use_bias": bias, "dtype": dtype}
    ours = batch_norm(train=True, momentum=0.8, **options)
    theirs = nn.BatchNorm(False, momentum=0.8, axis_name=REPLICAS, **options)
    variables = randomise(theirs, x)
    variables["batch_stats"]["var"] = np.exp(variables["batch_stats"]["var"])

    def derived(norm, variables, x):
        def apply(params, x):
            variables_ = {**variables, "params": params}
            half = partial(norm.apply, mutable=["batch_stats"])
            # Two halves of the batch, which normalise with the statistics of both.
            return jax.vmap(half, in_axes=(None, 0), axis_name=REPLICAS)(variables_, x)

        halves = x.reshape(2, 2, *x.shape[1:]).astype(dtype)
        value, pullback, updated = jax.vjp(apply, variables["params"], halves, has_aux=True)
        return value, pullback(jnp.cos(value)), updated

    @jax.jit
    def both(variables, x):
        evaluate = batch_norm(train=False, **options), nn.BatchNorm(True, **options)
        return (
            [derived(norm, variables, x) for norm in (ours, theirs)],
            [norm.apply(variables, x) for norm in evaluate],
        )

    tolerance = 2e-5 if dtype == jnp.float32 else 3e-2
    results, evaluated = jax.tree.map(np.asarray, both(variables, x))
    (*mine, statistics), (*linens, expected) = results
    for a, b in zip(*map(jax.tree.leaves, (mine, linens)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())
    for a, b in zip(*map(jax.tree.leaves, (statistics, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)  # float32 whatever the dtype
    initial = jax.eval_shape(ours.init, jax.random.key(0), x)
    assert jax.tree.structure(initial) == jax.tree.structure(variables)
    np.testing.assert_allclose(*evaluated, rtol=0, atol=tolerance * np.abs(evaluated[1]).max())


def test_norms_keep_the_variance_of_numbers_far_from_zero(x):
    """Where linen's E[x²] − E[x]² leaves rounding errors alone, for any mean of training so far."""
    few = np.float32([2999, 3000, 3001, 3002])
    far = 3000 + (x - 3)

    @jax.jit
    def apply(few, far):
        train = partial(batch_norm(train=True).apply, mutable=["batch_stats"])
        statistics = {"mean": jnp.full(6, -50.0), "var": jnp.ones(6)}
        scales = {"scale": jnp.ones(6), "bias": jnp.zeros(6)}
        y, updated = train({"params": scales, "batch_stats": statistics}, far)
        one = {"params": {"scale": jnp.ones(1), "bias": jnp.zeros(1)}}
        fresh = {"mean": jnp.zeros(1), "var": jnp.ones(1)}
        return (
            train({**one, "batch_stats": fresh}, few[:, None])[0],
            group_norm(train=True, groups=1).apply(one, few.reshape(1, 2, 2, 1)),
            y,
            group_norm(train=True, groups=2).apply({"params": scales}, far),
            updated["batch_stats"],
        )

    *fews, batch, group, statistics = apply(few, far)
    for y in fews:
        np.testing.assert_allclose(np.ravel(y), [-1.34163, -0.44721, 0.44721, 1.34163], atol=1e-3)
    exact = np.asarray(far, np.float64)
    mean, var = exact.mean((0, 1, 2)), exact.var((0, 1, 2))
    np.testing.assert_allclose(batch, (exact - mean) / np.sqrt(var + 1e-5), atol=1e-3)
    np.testing.assert_allclose(statistics["mean"], 0.9 * -50 + 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * var, rtol=1e-4)
    groups = exact.reshape(4, 25, 2, 3)
    mean, var = groups.mean((1, 3), keepdims=True), groups.var((1, 3), keepdims=True)
    expected = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
    np.testing.assert_allclose(group, expected, atol=1e-3)


def test_batch_norm_of_several_devices_is_two_sums_and_that_of_one(x):
    """One for the centre, of a number a channel, and one for the moments about it."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    sharded = NamedSharding(mesh, PartitionSpec("data"))
    far = 3000 + (x - 3)
    variables = {
        "params": {"scale": np.ones(6, np.float32), "bias": np.zeros(6, np.float32)},
        "batch_stats": {"mean": np.zeros(6, np.float32), "var": np.ones(6, np.float32)},
    }
    train = partial(batch_norm(train=True).apply, mutable=["batch_stats"])
    program = jax.jit(train, in_shardings=(None, sharded)).lower(variables, far).compile()
    sums = [(each.kind, each.bytes) for each in collectives(parse(program.as_text()))]
    assert sorted(sums) == [("all-reduce", 6 * 4), ("all-reduce", 2 * 6 * 4)]
    exact = np.asarray(far, np.float64)
    mean, var = exact.mean((0, 1, 2)), exact.var((0, 1, 2))
    y, _ = program(variables, jax.device_put(far, sharded))
    np.testing.assert_allclose(y, (exact - mean) / np.sqrt(var + 1e-5), atol=1e-3)


def test_frozen_statistics_train_as_they_evaluate(x):
    evaluate, frozen = batch_norm(train=False), batch_norm(train=True, frozen_statistics=True)

    @jax.jit
    def both(key, x):
        variables = evaluate.init(key, x)
        return evaluate.apply(variables, x), frozen.apply(variables, x, mutable=["batch_stats"])

    expected, (y, updated) = both(jax.random.key(1), x)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(updated["batch_stats"]["mean"], np.zeros(6))


def test_group_norm_gives_each_image_its_own_statistics(x):
    norm = group_norm(train=True, groups=2)
    y, variables = jax.jit(norm.init_with_output)(jax.random.key(1), x)
    assert variables.keys() == {"params"}
    groups = x.reshape(4, 25, 2, 3)
    mean, var = groups.mean((1, 3), keepdims=True), groups.var((1, 3), keepdims=True)
    expected = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
    np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize(("dtype", "bias"), [(jnp.float32, True), (jnp.bfloat16, False)])
def test_group_norm_is_linens_in_value_and_gradients(x, randomise, dtype, bias):
    ours = group_norm(train=True, groups=3, epsilon=1e-6, use_bias=bias, dtype=dtype)
    theirs = nn.GroupNorm(3, epsilon=1e-6, use_bias=bias, dtype=dtype)
    variables = randomise(theirs, x)

    def derived(norm, variables, x):
        value, pullback = jax.vjp(norm.apply, variables, x.astype(dtype))
        return value, pullback(jnp.cos(value))

    both = jax.jit(lambda *inputs: [derived(norm, *inputs) for norm in (ours, theirs)])
    results = jax.tree.map(np.asarray, both(variables, x))
    for mine, linens in zip(*map(jax.tree.leaves, results), strict=True):
        assert mine.dtype == linens.dtype
        tolerance = 2e-5 if dtype == jnp.float32 else 3e-2
        scale = np.abs(linens).max()
        np.testing.assert_allclose(mine, linens, rtol=0, atol=tolerance * scale)


def test_group_norm_refuses_groups_that_do_not_divide(x):
    with pytest.raises(ValueError, match="4 groups do not divide 6 channels"):
        group_norm(train=True, groups=4).init(jax.random.key(0), x)


def test_conv_is_linens(x, randomise):
    ours, theirs = (make(7, (3, 3), strides=2, padding=1) for make in (Conv, nn.Conv))
    variables = randomise(theirs, x)
    # Which kernel XLA's runtime picks depends on the host: the last bits are not the same.
    mine, linens = (jax.jit(conv.apply)(variables, x) for conv in (ours, theirs))
    np.testing.assert_allclose(mine, linens, rtol=1e-5, atol=1e-5)


def test_shared_fields_are_those_of_both():
    dense = nn.Dense(3, use_bias=False, dtype=jnp.bfloat16)
    fields = shared_fields(dense, nn.Conv)
    assert fields["features"] == 3
    assert fields["dtype"] == jnp.bfloat16
    assert fields["use_bias"] is False
    assert not fields.keys() & {"parent", "name", "kernel_size"}


@pytest.mark.parametrize(
    ("shape", "window", "strides", "padding"),
    [
        ((2, 4, 6, 3), (2, 2), (2, 2), "VALID"),
        ((2, 6, 6, 3), (3, 2), (3, 2), "VALID"),
        ((2, 5, 6, 3), (2, 2), (2, 2), "VALID"),
        ((2, 4, 6, 3), (3, 3), (2, 2), "SAME"),
        ((2, 4, 6, 3), (2, 2), None, "VALID"),
    ],
)
def test_max_pool_is_linens_in_value_and_gradient(shape, window, strides, padding):
    def derived(pool, x):
        value, pullback = jax.vjp(lambda x: pool(x, window, strides, padding), x)
        return value, *pullback(jnp.cos(value))

    both = jax.jit(lambda x: [derived(pool, x) for pool in (max_pool, nn.max_pool)])
    for ours, theirs in zip(*both(normal(*shape)), strict=True):  # no ties
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("shape", "window", "strides"),
    [
        ((3, 8, 8, 5), (2, 2), (2, 2)),
        ((3, 6, 8, 5), (3, 4), (3, 4)),
        ((3, 7, 8, 5), (2, 2), (2, 2)),  # an odd side
        ((3, 7, 9, 5), (3, 3), (2, 2)),  # windows that overlap
    ],
)
def test_the_first_of_ties_takes_the_gradient_in_every_form(shape, window, strides):
    """Of few values, so that most windows have several largest; against a loop over windows."""
    x = np.random.default_rng(0).integers(0, 3, shape).astype(np.float32)

    @jax.jit
    def derived(x):
        value, pullback = jax.vjp(lambda x: max_pool(x, window, strides), x)
        cotangent = jnp.cos(jnp.arange(value.size, dtype=jnp.float32)).reshape(value.shape)
        return cotangent, *pullback(cotangent)

    cotangent, gradient = map(np.asarray, derived(x))
    expected = np.zeros(shape, np.float32)
    for image, row, column, channel in np.ndindex(cotangent.shape):
        top, left = row * strides[0], column * strides[1]
        part = x[image, top : top + window[0], left : left + window[1], channel]
        down, right = np.unravel_index(part.argmax(), window)
        expected[image, top + down, left + right, channel] += cotangent[image, row, column, channel]
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-6)


def test_max_pool_in_forward_mode_and_twice():
    x, tangent = normal(2, 2, 4, 6, 3)

    @jax.jit
    def derived(x, tangent):
        ours, theirs = (partial(pool, window_shape=(2, 2), strides=(2, 2)) for pool in pools)
        tangents = [jax.jvp(pool, (x,), (tangent,))[1] for pool in (ours, theirs)]
        slope = jax.grad(lambda x: jnp.sum(ours(x) ** 3))
        return tangents, ours(x), jax.jvp(slope, (x,), (tangent,))[1]

    pools = max_pool, nn.max_pool
    tangents, largest, product = derived(x, tangent)
    np.testing.assert_array_equal(*tangents)
    # Of the sum of cubes: twice the largest three times, in their places.
    highest = np.asarray(largest).repeat(2, axis=1).repeat(2, axis=2)
    expected = np.where(x == highest, 6 * x * tangent, 0)
    np.testing.assert_allclose(product, expected, rtol=1e-5)


def test_max_pool_does_not_hide_what_is_not_a_number():
    x = np.array([1.0, np.nan, 2.0, 3.0], np.float32).reshape(1, 2, 2, 1)
    run = jax.jit(jax.value_and_grad(lambda x: max_pool(x, (2, 2), (2, 2)).sum()))
    value, gradient = map(np.asarray, run(x))
    assert np.isnan(value)
    assert gradient.sum() == 1


@pytest.mark.proofs
def test_max_pool_has_a_gradient_of_one_among_many_ties_in_half_precision():
    zeros = np.zeros((1, 1, 512, 1), jnp.bfloat16)  # which cannot count above 256
    gradient = jax.jit(jax.grad(lambda x: max_pool(x, (1, 512), (1, 512)).sum()))(zeros)
    assert np.asarray(gradient, np.float32).sum() == 1


@pytest.mark.parametrize("size", [(7, 7), (14, 21), (10, 15), (3, 1), (8, 7)])
def test_adaptive_pooling_equals_numpy(size):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    edges = [
        [(int(np.floor(i * n / 7)), int(np.ceil((i + 1) * n / 7))) for i in range(7)] for n in size
    ]
    expected = [[x[:, a:b, c:d].mean((1, 2)) for c, d in edges[1]] for a, b in edges[0]]
    ours = jax.jit(partial(adaptive_average_pool, size=(7, 7)))(x)
    np.testing.assert_allclose(ours, np.stack([np.stack(row, 1) for row in expected], 1), atol=1e-6)


@pytest.mark.parametrize(
    ("sides", "window", "stride", "counts"),
    [
        ((112, 56), 3, 2, (56, 28)),  # the poolings of GoogLeNet, as printed in its Table 1
        ((28, 14), 3, 2, (14, 7)),
        ((9, 7), 2, 2, (5, 4)),
        ((9, 7), 3, 2, (4, 3)),
        ((10, 8), 4, 3, (3, 3)),
        ((2, 1), 3, 2, (1, 1)),
    ],
)
def test_the_last_windows_of_a_pooling_may_reach_beyond_the_image(sides, window, stride, counts):
    """PyTorch's ``ceil_mode``: such a window is as large as its part of the image."""
    x = normal(1, *sides, 3)
    shape, strides = (window, window), (stride, stride)

    @jax.jit
    def derived(x):
        pool = partial(max_pool, window_shape=shape, strides=strides, padding="CEIL")
        value, pullback = jax.vjp(pool, x)
        return value, *pullback(jnp.ones_like(value))

    value, slope = map(np.asarray, derived(x))
    parts = [
        [
            x[:, i * stride :, j * stride :][:, :window, :window].max((1, 2))
            for j in range(counts[1])
        ]
        for i in range(counts[0])
    ]
    assert value.shape[1:3] == counts
    np.testing.assert_array_equal(value, np.stack([np.stack(row, 1) for row in parts], 1))
    assert slope.sum() == value.size  # no window's gradient is lost in what was added
    margins = ceil_margins(sides, shape, strides)
    covered = [(n - 1) * stride + window for n in counts]
    assert [side + after for side, (_, after) in zip(sides, margins, strict=True)] == [
        max(pair) for pair in zip(sides, covered, strict=True)
    ]


# Squeeze and excitation.


@pytest.mark.parametrize(
    ("activation", "gate"), [(nn.relu, nn.sigmoid), (nn.silu, nn.hard_sigmoid)]
)
def test_squeeze_excite_gates_channels_as_numpy_does(x, randomise, activation, gate):
    model = SqueezeExcite(4, activation=activation, gate=gate)
    variables = randomise(model, x)
    reduce, expand = (variables["params"][name] for name in ("reduce", "expand"))
    y = x.mean((1, 2)) @ reduce["kernel"][0, 0] + reduce["bias"]
    y = np.maximum(y, 0) if activation is nn.relu else y / (1 + np.exp(-y))
    y = y @ expand["kernel"][0, 0] + expand["bias"]
    gates = 1 / (1 + np.exp(-y)) if gate is nn.sigmoid else np.clip(y / 6 + 0.5, 0, 1)
    expected = x * gates[:, None, None]
    found = jax.jit(model.apply)(variables, x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    half = jax.eval_shape(SqueezeExcite(4, dtype=jnp.bfloat16).apply, variables, jnp.bfloat16(x))
    assert half.dtype == jnp.bfloat16


@pytest.mark.parametrize("channels", [64, 256])
def test_squeeze_excite_has_two_layers_with_biases(channels):
    images = jax.ShapeDtypeStruct((1, 7, 7, channels), jnp.float32)
    shapes = jax.eval_shape(SqueezeExcite(channels // 16).init, jax.random.key(0), images)
    total = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert total == 2 * channels**2 // 16 + channels + channels // 16


def test_squeeze_excite_begins_at_half_where_its_second_layer_is_zero(x, randomise):
    model = SqueezeExcite(2)
    params = randomise(model, x)["params"]
    zero = params | {"expand": jax.tree.map(np.zeros_like, params["expand"])}
    np.testing.assert_array_equal(jax.jit(model.apply)({"params": zero}, x), x / 2)


class Pooled(nn.Module):
    dropout: float

    @nn.compact
    def __call__(self, x, *, train=False):
        return pooled_logits(x, 3, jnp.float32, dropout=self.dropout, train=train)


def test_dropout_is_between_pooling_and_head_in_training_only(x, randomise):
    model = Pooled(0.5)
    variables = randomise(model, x)
    head = variables["params"]["head"]
    assert variables["params"].keys() == {"head"}
    both = jax.jit(
        lambda v, x, key: (
            model.apply(v, x),
            model.apply(v, x, train=True, rngs={"dropout": key}),
        )
    )
    evaluated, trained = both(variables, x, jax.random.key(2))
    means = x.mean((1, 2))
    np.testing.assert_allclose(evaluated, means @ head["kernel"] + head["bias"], atol=1e-5)
    # What reaches the head is 0 or twice the mean: one of 2⁶ choices for each image.
    choices = np.array(list(np.ndindex(*(2,) * 6))) * 2
    for logits, mean in zip(np.asarray(trained), means, strict=True):
        errors = np.abs((choices * mean) @ head["kernel"] + head["bias"] - logits).max(1)
        assert errors.min() < 1e-4
    assert not np.allclose(evaluated, trained)
