from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from opsin.models.classification.airbench import Airbench, fan_in_uniform, partial_identity
from tests.drawn import normal
from tests.models import plain

SMALL = Airbench(widths=(3, 5), num_classes=4)
IMAGES = normal(2, 11, 8, 3)


def abstract(model, *shape):
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(model.init_with_output, jax.random.key(0), images)


def test_parameter_counts():
    params = abstract(Airbench(), 1, 32, 32, 3)[1]["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 1_972_792
    fixed = [params["backbone"]["whiten"]["kernel"]]
    fixed += [x["scale"] for name, x in params["backbone"].items() if "norm" in name]
    assert 1_972_792 - sum(leaf.size for leaf in fixed) == 1_971_352


def test_features_by_stride():
    shapes = {s: f.shape[1:] for s, f in abstract(SMALL.without_head(), 1, 32, 13, 3)[0].items()}
    assert shapes == {2: (15, 6, 3), 4: (7, 3, 5)}


def gelu(x):
    return x / 2 * (1 + erf(x / np.sqrt(2)))


def test_it_equals_numpy(randomise):
    variables = randomise(SMALL, IMAGES)
    params, statistics = variables["params"], variables["batch_stats"]["backbone"]
    part, x = params["backbone"], IMAGES[0]
    x = gelu(plain.conv(x, part["whiten"]))
    for group in (1, 2):
        for layer in (1, 2):
            x = plain.conv(x, part[f"group{group}_conv{layer}"], padding=1)
            x = plain.pool(x, 2, 2) if layer == 1 else x
            name = f"group{group}_norm{layer}"
            x = gelu(plain.batch_norm(x, part[name], statistics[name]))
    expected = x.max((0, 1)) @ params["head"]["kernel"] / 9
    logits = jax.jit(SMALL.apply)(variables, IMAGES)
    np.testing.assert_allclose(logits[0], expected, rtol=1e-4, atol=1e-5)
    assert logits.dtype == jnp.float32
    assert params["head"].keys() == {"kernel"}


def test_convolutions_begin_as_the_identity_where_there_are_channels_for_it(key):
    wide, narrow = (partial_identity(key, (3, 3, 2, n), jnp.float32) for n in (5, 1))
    x = normal(1, 6, 5, 2)
    for kernel in (wide, narrow):
        y = plain.conv(x[0], {"kernel": np.asarray(kernel)}, padding=1)
        np.testing.assert_allclose(y[..., :2], x[0][..., : y.shape[-1]], rtol=1e-6)
    random = fan_in_uniform(key, (3, 3, 2, 5), jnp.float32)
    np.testing.assert_array_equal(wide[..., 2:], random[..., 2:])
    assert np.abs(random).max() == pytest.approx(1 / np.sqrt(18), rel=0.1)


@pytest.mark.parametrize("shape", [(9, 8, 3), (1, 4, 8, 3), (1, 8, 4, 3)])
def test_bad_input_is_named(shape):
    with pytest.raises(ValueError, match="sides of at least 5; got"):
        abstract(SMALL, *shape)


def test_training_normalises_by_the_batch_and_moves_its_statistics(randomise):
    variables = randomise(SMALL, IMAGES)
    run = jax.jit(partial(SMALL.apply, train=True, mutable=["batch_stats"]))
    logits, updated = run(variables, IMAGES)
    assert not np.allclose(logits, jax.jit(SMALL.apply)(variables, IMAGES))
    old = variables["batch_stats"]["backbone"]["group1_norm1"]["mean"]
    new = updated["batch_stats"]["backbone"]["group1_norm1"]["mean"]
    x = gelu(plain.conv(IMAGES[0], variables["params"]["backbone"]["whiten"]))
    others = gelu(plain.conv(IMAGES[1], variables["params"]["backbone"]["whiten"]))
    kernel = variables["params"]["backbone"]["group1_conv1"]
    means = [plain.pool(plain.conv(y, kernel, padding=1), 2, 2).mean((0, 1)) for y in (x, others)]
    np.testing.assert_allclose(new, 0.4 * old + 0.6 * np.mean(means, axis=0), rtol=1e-4, atol=1e-5)
