"""Seven networks that cost the same to train."""

import pytest

from opsin.config.tree import override
from opsin.experiments.classification.cifar10_zoo import BUDGET, NETWORKS, config, sweep
from tests.experiments.costs import cost


@pytest.mark.proofs
@pytest.mark.parametrize("name", NETWORKS)
def test_each_network_of_the_zoo_trains_for_its_share_of_operations(name):
    arms = {arm.name: override(config(), arm.overrides) for arm in sweep()}
    experiment = arms[name]
    _, step = cost(experiment.task.model, experiment.data.batch, 32, 32, 3)
    amount, _ = experiment.loop.duration.split()
    assert step * int(amount) == pytest.approx(BUDGET, rel=0.002)
