"""Seven networks that cost the same to train."""

import jax
import jax.numpy as jnp
import pytest

from opsin.config.tree import override
from opsin.experiments.classification.cifar10_zoo import BUDGET, NETWORKS, config, sweep
from opsin.train.host.accounting import model_flops


@pytest.mark.proofs
@pytest.mark.parametrize("name", NETWORKS)
def test_each_network_of_the_zoo_trains_for_its_share_of_operations(name):
    arms = {arm.name: override(config(), arm.overrides) for arm in sweep()}
    experiment = arms[name]
    model, batch = experiment.task.model, experiment.data.batch
    images = jax.ShapeDtypeStruct((batch, 32, 32, 3), jnp.float32)
    variables = dict(jax.eval_shape(model.init, jax.random.key(0), images))
    params = variables.pop("params")

    def total(params, mutable, images):
        given = {"params": params, **mutable}
        return model.apply(given, images, train=True, mutable=list(mutable))[0].sum()

    step = model_flops(jax.grad(total), params, variables, images).total()
    amount, _ = experiment.loop.duration.split()
    assert step * int(amount) == pytest.approx(BUDGET, rel=0.002)
