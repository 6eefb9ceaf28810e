"""The contract of a classifier: a backbone of features by stride, and a head; others reuse it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.models.classification.alexnet import AlexNet, ZFNet
from opsin.models.classification.googlenet import GoogLeNet
from opsin.models.classification.nin import NIN
from opsin.models.classification.resnet import SEResNet18
from opsin.models.classification.small_cnn import SmallCNN
from opsin.models.classification.wide_resnet import WideResNet
from opsin.models.segmentation.fcn import FCN

MODULE = (1, 1, 1, 1, 1, 1)
CLASSIFIERS = {
    "AlexNet": AlexNet(widths=(4,) * 5, hidden=3),
    "ZFNet": ZFNet(widths=(4,) * 5, hidden=3),
    "GoogLeNet": GoogLeNet(
        stem=(2, 2, 2), stages=((MODULE,),) * 3, auxiliary=("4a",), auxiliary_hidden=3
    ),
    "NIN": NIN(widths=((3, 4), (2, 3), (3,))),
    "SEResNet": SEResNet18(width=4, stage_sizes=(1, 1, 1, 1), se_reduction=2),
    "SmallCNN": SmallCNN(widths=(2, 3), hidden_width=3),
    "WideResNet": WideResNet(stage_sizes=(1, 1, 1), widening=2, width=2),
}
IMAGES = jax.ShapeDtypeStruct((2, 75, 98, 3), jnp.float32)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_segmenter_stands_on_the_backbone_of_a_classifier(name):
    classifier = CLASSIFIERS[name]
    key = jax.random.key(0)
    logits, whole = jax.eval_shape(classifier.init_with_output, key, IMAGES)
    assert (logits.shape, logits.dtype) == ((2, classifier.num_classes), jnp.float32)
    features, alone = jax.eval_shape(classifier.without_head().init_with_output, key, IMAGES)
    assert jax.tree.structure(alone) == jax.tree.structure(
        {kind: tree["backbone"] for kind, tree in whole.items() if "backbone" in tree}
    )
    strides = np.array(list(features))
    assert (strides[1:] == 2 * strides[:-1]).all()  # finest first, and none is left out
    for stride, feature in features.items():
        exact = np.divide(IMAGES.shape[1:3], stride)
        assert (np.abs(feature.shape[1:3] - exact) < 3).all()  # some lose a border
    segmenter = FCN(classifier.without_head(), num_classes=3, width=2)
    logits, variables = jax.eval_shape(segmenter.init_with_output, key, IMAGES)
    assert logits.shape == (2, 75, 98, 3)
    assert jax.tree.structure(variables["params"]["backbone"]) == jax.tree.structure(
        whole["params"]["backbone"]
    )
