"""What the experiments on CamVid say of themselves: equal parameters, equal cost."""

import jax
import jax.numpy as jnp
import pytest

from opsin.experiments.segmentation.camvid_models import networks
from opsin.experiments.segmentation.camvid_output_stride import WIDTHS, network
from opsin.train.host.accounting import model_flops


def measured(model) -> tuple[int, float]:
    """Parameters, and GFLOP of a training step on one image of 180×240."""
    images = jax.ShapeDtypeStruct((1, 180, 240, 3), jnp.float32)
    key = jax.random.key(0)
    variables = jax.eval_shape(model.init, key, images)

    def total(params, mutable, images):
        options = {"train": True, "mutable": ["batch_stats"], "rngs": {"dropout": key}}
        return model.apply({"params": params, **mutable}, images, **options)[0].sum()

    mutable = {"batch_stats": variables["batch_stats"]}
    flops = model_flops(jax.grad(total), variables["params"], mutable, images).total()
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"])), flops / 1e9


@pytest.mark.proofs
@pytest.mark.parametrize("name", networks())
def test_the_three_networks_have_equal_parameters(name):
    assert measured(networks()[name])[0] == pytest.approx(1_943_000, rel=0.003)


@pytest.mark.proofs
@pytest.mark.parametrize("stride", WIDTHS)
def test_each_output_stride_costs_the_same(stride):
    assert measured(network(stride))[1] == pytest.approx(5.0, rel=0.011)
