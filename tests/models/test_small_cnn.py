from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.models.classification.small_cnn import SmallCNN, SmallCNNBatchNorm
from opsin.models.layers import adaptive_average_pool
from tests.drawn import normal
from tests.models import plain

SMALL = SmallCNNBatchNorm(widths=(2, 3), hidden_width=5, num_classes=4)
IMAGES = normal(2, 13, 10, 3)


def abstract(model, *shape):
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(model.init_with_output, jax.random.key(0), images)


@pytest.mark.parametrize(("make", "total"), [(SmallCNN, 824_458), (SmallCNNBatchNorm, 824_650)])
def test_parameter_counts(make, total):
    for size in (28, 8, 64):  # of any image
        params = abstract(make(), 1, size, size, 1)[1]["params"]
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == total
        assert params["hidden"]["kernel"].shape == (3136, 256)


def test_features_by_stride():
    shapes = {s: f.shape[1:] for s, f in abstract(SMALL.without_head(), 1, 28, 13, 3)[0].items()}
    assert shapes == {1: (28, 13, 2), 2: (14, 6, 3), 4: (7, 3, 3)}


@pytest.mark.parametrize("norm", [True, False])
def test_it_equals_numpy(norm, randomise):
    model = SMALL if norm else SMALL.clone(norm=None)
    variables = randomise(model, IMAGES)
    params, statistics = variables["params"], variables.get("batch_stats", {})
    assert params.keys() == {"backbone", "hidden", "head"}
    x = IMAGES[0]
    for index in (1, 2):
        x = plain.conv(x, params["backbone"][f"conv{index}"], padding=1)
        if norm:
            name = f"norm{index}"
            x = plain.batch_norm(x, params["backbone"][name], statistics["backbone"][name])
        x = plain.pool(np.maximum(x, 0), 2, 2, reduce=np.mean)
    pool = jax.jit(partial(adaptive_average_pool, size=(7, 7)))
    x = np.asarray(pool(np.float32(x)[None])).reshape(-1)  # row by row, then by channel
    expected = plain.dense(np.maximum(plain.dense(x, params["hidden"]), 0), params["head"])
    logits = jax.jit(model.apply)(variables, IMAGES)
    np.testing.assert_allclose(logits[0], expected, rtol=1e-4, atol=1e-5)


def test_training_drops_and_updates_statistics(randomise):
    model = SMALL.clone(dropout=0.5)
    variables = randomise(model, IMAGES)
    run = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))
    one, other = (run(variables, IMAGES, rngs={"dropout": jax.random.key(key)}) for key in (0, 1))
    assert not np.allclose(one[0], other[0])
    jax.tree.map(np.testing.assert_array_equal, one[1], other[1])
    changed = jax.tree.map(
        lambda a, b: bool(np.all(a != b)), one[1]["batch_stats"], variables["batch_stats"]
    )
    assert all(jax.tree.leaves(changed))


def test_half_precision_keeps_parameters_and_logits_in_single():
    half = SMALL.clone(dtype=jnp.bfloat16)
    leaves = jax.tree.leaves(abstract(half, 1, 8, 8, 3))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    features = abstract(half.without_head(), 1, 8, 8, 3)[0].values()
    assert {feature.dtype for feature in features} == {jnp.dtype("bfloat16")}


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"\[batch, height, width, channels\]; got \(13, 10, 3\)"):
        SMALL.init(jax.random.key(0), IMAGES[0])
    with pytest.raises(ValueError, match="halves the size 2 times, and the images have 3x10"):
        SMALL.init(jax.random.key(0), IMAGES[:, :3])
