"""A classifier that begins with the backbone of another network."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.classification.resnet import BasicBlock, ResNet
from models.representation.simclr import ProjectionHead, SimCLR
from train.paths import flatten
from train.tasks.classify import Classify
from train.weights import Weights, WeightsError, fingerprint, save_weights

NETWORK = ResNet(stage_sizes=(1,), block=BasicBlock, width=4, stem="cifar", num_classes=3)
BATCH = {"image": jnp.zeros((1, 8, 8, 3)), "label": jnp.zeros(1, jnp.int32)}
DESCRIBED = {"network": "simclr"}


def begun(seed: int, weights: Weights | None) -> dict:
    """The variables of a classifier before training, by path."""
    init = jax.jit(Classify(model=NETWORK, weights=weights).init)
    return flatten(init(jax.random.key(seed), BATCH))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model = SimCLR(NETWORK.without_head(), ProjectionHead(output=5))
    variables = jax.jit(model.init)(jax.random.key(7), BATCH["image"])
    # Statistics that no initialisation has.
    variables = jax.tree.map(lambda x: x + 0.25, variables)
    path = tmp_path_factory.mktemp("weights") / "simclr.safetensors"
    sha256 = save_weights(path, variables, DESCRIBED)
    return Weights(str(path), sha256), flatten(variables)


def test_the_backbone_and_its_statistics_are_those_of_the_file_and_the_head_is_random(saved):
    weights, variables = saved
    one, other, anew = begun(0, weights), begun(1, weights), begun(0, None)
    assert one.keys() == anew.keys()
    backbone = {name for name in one if name.split("/")[1] == "backbone"}
    assert {name.split("/")[0] for name in backbone} == {"params", "batch_stats"}
    for name in backbone:
        np.testing.assert_array_equal(one[name], variables[name])
        np.testing.assert_array_equal(other[name], variables[name])
    heads = one.keys() - backbone
    assert heads == {"params/head/kernel", "params/head/bias"}
    np.testing.assert_array_equal(one["params/head/kernel"], anew["params/head/kernel"])
    assert (one["params/head/kernel"] != other["params/head/kernel"]).any()


def test_another_backbone_is_told(saved, tmp_path):
    weights, _ = saved
    with pytest.raises(WeightsError, match=r"is of another network: .* give the model that was"):
        replace(Classify(NETWORK.clone(width=8)), weights=weights).init(jax.random.key(0), BATCH)
    deeper = NETWORK.clone(stage_sizes=(2,))  # more than the file has
    with pytest.raises(WeightsError, match=r"block2.* is absent there"):
        Classify(deeper, weights=weights).init(jax.random.key(0), BATCH)
    headed = {"params": {"head": {"kernel": jnp.ones((2, 2))}}}
    save_weights(tmp_path / "head.safetensors", headed, DESCRIBED)
    with pytest.raises(WeightsError, match="has no part called 'backbone'"):
        begun(0, Weights(str(tmp_path / "head.safetensors")))


def test_fingerprints_tell_variables_apart():
    tree = {"params": {"a": jnp.ones((2, 3)), "b": jnp.zeros(2)}}
    assert fingerprint(tree) == fingerprint({"params": dict(reversed(tree["params"].items()))})
    others = (
        {"params": {**tree["params"], "b": jnp.full(2, 1e-7)}},
        {"params": {**tree["params"], "a": jnp.ones((3, 2))}},
        {"params": {"a": tree["params"]["a"], "c": tree["params"]["b"]}},
    )
    assert len({fingerprint(x) for x in (tree, *others)}) == 4
