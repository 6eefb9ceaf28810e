"""Heads that only train: their losses are added to that of a classifier, and to nothing else."""

from dataclasses import replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from opsin.config.identity import identity
from opsin.metrics.state import compute_all
from opsin.models.classification.googlenet import GoogLeNet
from opsin.models.layers import batch_norm, sow_auxiliary
from opsin.train.tasks.classify import Classify
from tests.drawn import normal
from tests.train.conftest import Tiny
from tests.train.drawn import drawn_variables


class TwoHeads(nn.Module):
    """A norm and three linear layers, of which two are auxiliary."""

    num_classes: int = 3
    heads: int = 2

    @nn.compact
    def __call__(self, x: Any, *, train: bool = False) -> Any:
        x = batch_norm(train=train, name="norm")(x).reshape(len(x), -1)
        if train or self.is_initializing():
            for index in range(self.heads):
                sow_auxiliary(self, nn.Dense(self.num_classes, name=f"auxiliary{index}")(x))
        return nn.Dense(self.num_classes, name="head")(x)


BATCH = {
    "image": normal(6, 4, 4, 1),
    "label": np.array([0, 1, 2, 1, 0, 2]),
    "valid": np.ones(6, bool),
}


@pytest.fixture(scope="module")
def trained():
    return drawn_variables(Classify(TwoHeads()), BATCH)


def loss_of(task: Classify, params: Any, mutable: Any) -> Any:
    """Total, metrics by name, what is mutable, and the gradient."""
    derived = jax.jit(jax.value_and_grad(task.loss, has_aux=True))
    (total, aux), slope = derived(params, mutable, BATCH, jax.random.key(0), 0)
    return total, compute_all(jax.device_get(aux.metrics)), aux.mutable, slope


def test_the_loss_is_the_main_one_and_three_tenths_of_the_others(trained):
    params, mutable = trained
    assert mutable.keys() == {"batch_stats"}
    x = BATCH["image"]
    norm = params["norm"]
    x = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * norm["scale"] + norm["bias"]
    losses = {}
    for name in ("head", "auxiliary0", "auxiliary1"):
        logits = x.reshape(6, -1) @ params[name]["kernel"] + params[name]["bias"]
        log_p = special.log_softmax(logits, axis=-1)
        losses[name] = -np.take_along_axis(log_p, BATCH["label"][:, None], 1).mean()
    others = losses["auxiliary0"] + losses["auxiliary1"]
    total, logged, after, _ = loss_of(Classify(TwoHeads()), *trained)
    assert float(total) == pytest.approx(losses["head"] + 0.3 * others, rel=1e-5)
    assert logged["loss"] == pytest.approx(float(total), rel=1e-6)
    assert logged["main_loss"] == pytest.approx(losses["head"], rel=1e-5)
    assert logged["auxiliary_loss"] == pytest.approx(others, rel=1e-5)
    assert after.keys() == {"batch_stats"}
    half, *_ = loss_of(Classify(TwoHeads(), auxiliary_weight=0.5), *trained)
    assert float(half) == pytest.approx(losses["head"] + 0.5 * others, rel=1e-5)


def test_each_head_has_a_gradient_and_a_weight_of_zero_none(trained):
    *_, slope = loss_of(Classify(TwoHeads()), *trained)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(slope))
    *_, slope = loss_of(Classify(TwoHeads(), auxiliary_weight=0.0), *trained)
    assert not any(np.any(slope[f"auxiliary{index}"]["kernel"]) for index in (0, 1))
    assert np.any(slope["head"]["kernel"])


def test_no_evaluation_knows_them(trained):
    task = Classify(TwoHeads())
    params, mutable = trained
    headless = {name: part for name, part in params.items() if "auxiliary" not in name}
    evaluate = jax.jit(task.evaluate)
    keys = jax.random.split(jax.random.key(0), 6)
    found = compute_all(jax.device_get(evaluate(params, mutable, BATCH, keys)))
    expected = compute_all(jax.device_get(evaluate(headless, mutable, BATCH, keys)))
    assert found == expected
    assert "auxiliary_loss" not in found


def test_a_network_without_them_is_trained_by_the_same_program():
    tasks = [Classify(Tiny(), auxiliary_weight=weight) for weight in (0.3, 0.7)]
    batch = {"image": np.ones((4, 8, 8, 1), np.float32), "label": np.arange(4)}
    params, mutable = drawn_variables(tasks[0], batch)
    programs = [
        str(jax.make_jaxpr(task.loss)(params, mutable, batch, jax.random.key(0), 0))
        for task in tasks
    ]
    assert programs[0] == programs[1]
    _, aux = jax.eval_shape(tasks[0].loss, params, mutable, batch, jax.random.key(0), 0)
    assert aux.metrics.keys() == {"accuracy", "loss"}
    default = replace(tasks[0], auxiliary_weight=0.3)
    assert identity(default) == identity(Classify(Tiny()))
    assert identity(tasks[1]) != identity(default)


def test_the_initial_variables_hold_no_logits():
    class Careless(nn.Module):
        num_classes: int = 3

        @nn.compact
        def __call__(self, x, *, train=False):
            x = nn.Dense(3, name="head")(x.reshape(len(x), -1))
            self.sow("auxiliary", "logits", x)
            return x

    found = jax.eval_shape(partial(Classify(Careless()).init, batch=BATCH), jax.random.key(0))
    assert found.keys() == {"params"}


def test_googlenet_trains_with_its_two():
    module = (1, 1, 1, 1, 1, 1)
    model = GoogLeNet(
        stem=(2, 2, 2),
        stages=((module,), (module,) * 4, (module,)),
        num_classes=3,
        auxiliary_hidden=4,
    )
    batch = {"image": jax.ShapeDtypeStruct((6, 32, 32, 3), jnp.float32), "label": BATCH["label"]}
    task = Classify(model)
    variables = jax.eval_shape(task.init, jax.random.key(0), batch)
    key = jax.random.key(0)
    total, aux = jax.eval_shape(task.loss, variables.pop("params"), variables, batch, key, 0)
    assert total.shape == ()
    assert aux.metrics.keys() == {"accuracy", "loss", "main_loss", "auxiliary_loss"}
