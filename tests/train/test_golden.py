"""The first step of two networks, number by number, against a recorded one.

The record holds the loss and, for every parameter, the norm of its value after initialisation and
of its gradient. Both ways: a parameter that the record lacks fails as much as one that the code
lacks.
To record anew, on purpose:

    python -m tests.train.test_golden
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.data.sources import synthetic
from opsin.models.classification.resnet import cifar_resnet
from opsin.models.classification.vit import ViT
from opsin.train.paths import flatten
from opsin.train.tasks.classify import Classify

GOLDEN = Path(__file__).parent / "golden"
NETWORKS = {
    "resnet-8": cifar_resnet(8, zero_init_last_norm=True),
    "vit": ViT(depth=2, width=16, mlp_width=32, heads=2, patch=4, num_classes=10),
}


def first_step(name: str) -> dict[str, list[float] | float]:
    """Loss and norms of the first step on eight fixed images."""
    task = Classify(model=NETWORKS[name])
    arrays = synthetic("train", n=8, size=16).records.arrays
    batch = {"image": jnp.asarray(arrays["image"]) / 255, "label": jnp.asarray(arrays["label"])}
    key = jax.random.key(0)
    variables = jax.jit(task.init)(key, batch)
    params = variables.pop("params")
    # The head of the ViT starts at zero, which would hide all gradients behind it.
    params["head"]["kernel"] = 0.1 * jax.random.normal(key, params["head"]["kernel"].shape)

    def loss(params):
        return task.loss(params, variables, batch, key, 0)

    (value, _), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    norms = {
        path: [float(np.linalg.norm(np.ravel(leaf))), float(np.linalg.norm(np.ravel(gradient)))]
        for (path, leaf), gradient in zip(
            flatten(jax.device_get(params)).items(),
            flatten(jax.device_get(gradients)).values(),
            strict=True,
        )
    }
    return {"loss": float(value), **norms}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_first_step_is_the_recorded_one(name: str):
    recorded = json.loads((GOLDEN / f"{name}.json").read_text())
    here = first_step(name)
    assert here.keys() == recorded.keys()
    for path, value in recorded.items():
        np.testing.assert_allclose(here[path], value, rtol=2e-3, atol=1e-5, err_msg=path)


if __name__ == "__main__":
    for network in NETWORKS:
        text = json.dumps(first_step(network), indent=1, sort_keys=True) + "\n"
        (GOLDEN / f"{network}.json").write_text(text)
