"""0 · log 0 and 0 · ∞ are 0: values and gradients at logits that are certain, or infinite."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.losses import classification as losses
from opsin.losses import lovasz, segmentation
from opsin.losses.likelihoods import Bernoulli

INF = np.inf
LABELS = np.int32([0, 2, 0, 0, 0])
LOGITS = np.float32([[1, 2, -INF], [-INF, -INF, 3], [200, -200, 0], [1e30, 0, -1e30], [0, -INF, 9]])
SOFT = np.float32([[0.5, 0.5, 0], [0, 0, 1], [1, 0, 0], [1, 0, 0], [0.5, 0, 0.5]])
CERTAIN = np.float32([INF, -INF, 200, -200, 1e30, -1e30, 0])
BINARY = np.float32([1, 0, 1, 0, 1, 0, 1])

CATEGORICAL = {
    "cross_entropy": losses.cross_entropy_loss,
    **{f"focal_{gamma}": partial(losses.focal_loss, gamma=gamma) for gamma in (0.0, 0.5, 1.0, 2.0)},
}
REGIONS = {
    "tversky": partial(segmentation.tversky_loss, alpha=0.3, beta=0.7),
    "squared_dice": partial(segmentation.dice_loss, squared=True),
    "focal_tversky": partial(segmentation.focal_tversky_loss, alpha=0.3, beta=0.7),
    "generalized_dice": segmentation.generalized_dice_loss,
    "lovasz_softmax": lovasz.lovasz_softmax_loss,
}
SIGMOID = {
    "binary": losses.binary_cross_entropy_loss,
    "bernoulli": lambda z, y: -Bernoulli().log_prob(*(x[:, None, None, None] for x in (z, y))),
    **{
        f"focal_{gamma}": partial(losses.sigmoid_focal_loss, gamma=gamma, alpha=None)
        for gamma in (0.0, 0.5, 2.0)
    },
}


def derived(family, logits, labels):
    """Value and gradient of each loss, in one program."""

    @jax.jit
    def all_of_them(logits):
        found = {}
        for name, loss in family.items():
            value, pull = jax.vjp(lambda z, loss=loss: loss(z, labels), logits)
            found[name] = value, pull(jnp.ones_like(value))[0]
        return found

    return jax.device_get(all_of_them(logits))


@pytest.mark.parametrize("labels", [LABELS, SOFT], ids=["hard", "soft"])
def test_a_class_that_is_taken_out_costs_what_the_others_leave(labels):
    found = derived(CATEGORICAL, LOGITS, labels)
    for name, (value, gradient) in found.items():
        assert np.isfinite(value).all(), name
        assert np.isfinite(gradient).all(), name
    first = {name: value[0] for name, (value, _) in found.items()}
    if labels is LABELS:
        assert first["focal_0.0"] == pytest.approx(np.log1p(np.e), rel=1e-6)  # 1.3133
        assert first["focal_2.0"] == pytest.approx(0.7019, abs=5e-5)


def test_regions_of_certain_pixels_have_gradients():
    for name, (value, gradient) in derived(REGIONS, LOGITS[None], LABELS[None]).items():
        assert np.isfinite(value).all(), name
        assert np.isfinite(gradient).all(), name


def test_certain_and_right_costs_nothing_and_certain_and_wrong_is_no_nan():
    for name, (value, gradient) in derived(SIGMOID, CERTAIN, BINARY).items():
        np.testing.assert_allclose(value[:-1], 0, atol=1e-12, err_msg=name)
        assert np.isfinite(gradient).all(), name
    for name, (value, gradient) in derived(SIGMOID, CERTAIN, 1 - BINARY).items():
        assert (value[:-1] > 100).all(), name
        assert not np.isnan(gradient).any(), name
    for value, _ in derived(SIGMOID, np.float32([np.nan]), BINARY[:1]).values():
        assert np.isnan(value).all()
