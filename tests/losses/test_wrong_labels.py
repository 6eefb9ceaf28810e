"""A label that is no class shows, wherever labels choose something: none is read from the end."""

from functools import partial

import jax
import numpy as np
import pytest

from opsin.data.mixing import cutmix, mixup
from opsin.losses import classification, lovasz, segmentation
from opsin.metrics import classification as metrics
from opsin.models.generative.diffusion_unet import DiffusionUNet
from opsin.models.generative.inputs import one_hot_condition
from opsin.models.layers import group_norm
from tests import drawn

CLASSES = 3
WRONG = np.int32([-1, -2, -CLASSES, CLASSES, 255, -(2**31)])

PIXELS = {
    "cross_entropy": classification.cross_entropy_loss,
    "smoothed": partial(classification.cross_entropy_loss, smoothing=0.1),
    "focal": classification.focal_loss,
    "tversky": partial(segmentation.tversky_loss, alpha=0.3, beta=0.7, smooth=1.0),
    "dice": segmentation.dice_loss,
    "squared_dice": partial(segmentation.dice_loss, squared=True),
    "jaccard": segmentation.jaccard_loss,
    "focal_tversky": partial(segmentation.focal_tversky_loss, alpha=0.3, beta=0.7),
    "generalized_dice": segmentation.generalized_dice_loss,
    "lovasz_softmax": lovasz.lovasz_softmax_loss,
    "lovasz_hinge": lambda z, y: lovasz.lovasz_hinge_loss(z[..., :1], y),
}


def test_a_wrong_label_makes_the_loss_of_its_entry_nan_and_no_other():
    """One program: image i has the wrong label i in a corner, the last one has none."""
    labels = np.tile(np.int32([[0, 1], [1, 1]]), (len(WRONG) + 1, 1, 1))
    labels[:-1, 0, 0] = WRONG
    logits = drawn.normal(*labels.shape, CLASSES)

    @jax.jit
    def losses(logits, labels):
        return {name: loss(logits, labels) for name, loss in PIXELS.items()}

    for name, values in jax.device_get(losses(logits, labels)).items():
        if values.ndim == 3:
            assert np.isfinite(values[labels < 2][labels[labels < 2] >= 0]).all(), name
            values = values.mean((1, 2))
        expected = [True] * len(WRONG) + [False]
        np.testing.assert_array_equal(np.isnan(values), expected, err_msg=name)


def test_metrics_and_networks_do_not_look_wrong_labels_up():
    labels = np.append(WRONG, 1).astype(np.int32)
    logits = drawn.normal(len(labels), CLASSES)
    images = np.zeros((len(labels), 2, 2, 1), np.float32)
    batch = {"image": images, "label": labels}

    @jax.jit
    def found(key):
        return {
            "nll": metrics.negative_log_likelihood(logits[:1], labels[:1]).total,
            "right": metrics.top_k_accuracy(logits, labels, k=CLASSES + 2).total,
            "scores": metrics.ranking(logits, labels).scores,
            "one-hot": one_hot_condition(labels, CLASSES),
            "mixup": mixup(key, batch, alpha=1.0, num_classes=CLASSES)["label"][1:-1],
            "cutmix": cutmix(key, batch, alpha=1.0, num_classes=CLASSES)["label"][1:-1],
        }

    values = jax.device_get(found(jax.random.key(0)))
    assert np.isnan(values["nll"])
    assert values["right"] == 1
    for name in ("scores", "one-hot"):
        wrong = np.isnan(values[name].reshape(len(labels), -1)).all(1)
        np.testing.assert_array_equal(wrong, labels != 1, err_msg=name)
    assert np.isnan(values["mixup"]).all()
    assert np.isnan(values["cutmix"]).all()


@pytest.mark.proofs
def test_a_denoiser_does_not_look_wrong_labels_up():
    labels = np.append(WRONG, 1).astype(np.int32)
    labels[labels == CLASSES] += 1  # which stands for none
    norm = partial(group_norm, groups=2)
    unet = DiffusionUNet(1, 4, (1,), blocks=1, attention=(), num_classes=CLASSES, norm=norm)
    images, times = np.zeros((len(labels), 4, 4, 1), np.float32), np.zeros(len(labels), np.float32)
    variables = drawn.variables(unet.init, images, times)
    denoised = np.asarray(jax.jit(unet.apply)(variables, images, times, labels))
    wrong = np.isnan(denoised.reshape(len(labels), -1)).all(1)
    np.testing.assert_array_equal(wrong, labels != 1)
