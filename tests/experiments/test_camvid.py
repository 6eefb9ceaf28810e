"""What the experiments on CamVid say of themselves: equal parameters, equal cost."""

import pytest

from opsin.experiments.segmentation.camvid_models import networks
from opsin.experiments.segmentation.camvid_output_stride import WIDTHS, network
from tests.experiments.costs import cost


def measured(model) -> tuple[int, float]:
    """Parameters, and GFLOP of a training step on one image of 180×240."""
    parameters, flops = cost(model, 1, 180, 240, 3)
    return parameters, flops / 1e9


@pytest.mark.proofs
@pytest.mark.parametrize("name", networks())
def test_the_three_networks_have_equal_parameters(name):
    assert measured(networks()[name])[0] == pytest.approx(1_943_000, rel=0.003)


@pytest.mark.proofs
@pytest.mark.parametrize("stride", WIDTHS)
def test_each_output_stride_costs_the_same(stride):
    assert measured(network(stride))[1] == pytest.approx(5.0, rel=0.011)
