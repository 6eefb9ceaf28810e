import time
from dataclasses import replace
from fractions import Fraction

import jax
import numpy as np
import optax
import pytest

from opsin.benchmarks.cases import CASES
from opsin.train.paths import flatten, unflatten

torch = pytest.importorskip("torch")

from opsin.benchmarks.torch_models import NETWORKS  # noqa: E402
from opsin.benchmarks.torch_peer import fastest, make_optimizer  # noqa: E402

NAMES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def shapes(case):
    images = jax.ShapeDtypeStruct((1, case.size, case.size, case.channels), np.float32)
    told = [jax.ShapeDtypeStruct((1,), np.float32)] * case.denoises
    return jax.eval_shape(case.model.init, jax.random.key(0), images, *told)


def draw(tree, seed=0):
    """Arrays that no initialiser would give: a head of zeros would hide everything else."""
    generator = np.random.default_rng(seed)
    return unflatten(
        {
            path: np.float32(
                generator.uniform(0.5, 2, leaf.shape)
                if path.endswith(("var", "scale"))
                else generator.normal(0, 0.1, leaf.shape)
            )
            for path, leaf in flatten(tree).items()
        }
    )


def tensor(name, array, transposed=False):
    if transposed:
        array = array.transpose(2, 3, 0, 1)
    elif name == "kernel":
        array = array.T if array.ndim == 2 else array.transpose(3, 2, 0, 1)
    return torch.from_numpy(np.array(array, order="C"))


def carried(collection):
    """Our params or statistics under the names and in the layout of the PyTorch network."""
    weights = {}
    for path, array in flatten(collection).items():
        *modules, name = path.removeprefix("backbone/").removeprefix("encoder/").split("/")
        if modules[-2:-1] == ["attention"] and modules[0].endswith("attention"):
            channels = array.shape[0 if modules[-1] != "out" or name == "bias" else -1]
            if name == "kernel":
                array = array.reshape(channels, channels)
            modules, array = [modules[0], modules[-1]], array.reshape(array.shape[0], -1).squeeze()
            weights[".".join([*modules, NAMES.get(name, name)])] = tensor(name, array)
            continue
        if modules[-1:] == ["shortcut"] and name == "kernel":
            array = array[None, None]  # a dense layer of ours, a 1×1 convolution there
        if modules[:1] != ["blocks"]:
            transposed = name == "kernel" and modules[0] in ("up1", "up2", "up3", "up4")
            weights[".".join([*modules, NAMES.get(name, name)])] = tensor(name, array, transposed)
            continue
        for index, block in enumerate(array):
            if modules[1] == "attention" and name == "kernel":
                block = block.reshape(384, 384)
            elif modules[1] == "attention":
                block = block.reshape(384)
            part = {"attention": modules[-1]}.get(modules[1], modules[1])
            weights[f"blocks.{index}.{part}.{NAMES.get(name, name)}"] = tensor(name, block)
    for path in [path for path in weights if ".query." in path]:
        parts = [weights.pop(path.replace("query", part)) for part in ("query", "key", "value")]
        weights[path.replace("query", "qkv")] = torch.cat(parts)
    return weights


@pytest.mark.parametrize("name", CASES)
def test_the_twin_is_the_same_network(name):
    case, network = CASES[name], NETWORKS[name]()
    variables = draw(shapes(case))
    ours = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert sum(parameter.numel() for parameter in network.parameters()) == ours

    weights = carried(variables["params"]) | carried(variables.get("batch_stats", {}))
    missing, unexpected = network.load_state_dict(weights, strict=False)
    assert unexpected == []
    assert all(name.endswith("num_batches_tracked") for name in missing)
    images = np.random.default_rng(1).random((2, case.size, case.size, case.channels), np.float32)
    told = [array[:2] for array in case.told()]
    expected = jax.jit(case.model.apply)(variables, images, *told)
    with torch.inference_mode():
        theirs = torch.from_numpy(images.transpose(0, 3, 1, 2))
        logits = network.eval()(theirs, *map(torch.from_numpy, told))
    if logits.ndim == 4:
        logits = logits.permute(0, 2, 3, 1)
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_every_case_has_a_twin():
    assert NETWORKS.keys() == CASES.keys()


@pytest.mark.parametrize("name", ["resnet20", "vit"])  # SGD and AdamW
def test_the_optimiser_takes_the_same_steps(name):
    case = replace(CASES[name], optimizer=replace(CASES[name].optimizer, learning_rate=0.1))
    template = shapes(case)["params"]
    params, network = draw(template), NETWORKS[name]()
    network.load_state_dict(carried(params), strict=False)
    optimizer = make_optimizer(case, network)
    transform, _ = case.optimizer.build(3, Fraction(1), case.batch)
    update, state = jax.jit(transform.update), transform.init(params)
    for seed in (1, 2, 3):
        grads = draw(template, seed)
        for name, grad in carried(grads).items():
            network.get_parameter(name).grad = grad
        optimizer.step()
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    for name, expected in carried(jax.tree.map(np.asarray, params)).items():
        torch.testing.assert_close(network.get_parameter(name).detach(), expected)


def test_the_faster_run_is_chosen_and_the_first_round_does_not_count():
    calls = dict.fromkeys(("slow", "fast"), 0)

    def run(name):
        calls[name] += 1
        time.sleep(0.02 if (name == "slow") != (calls[name] == 1) else 0.001)

    assert fastest({name: lambda steps, name=name: run(name) for name in calls}) == "fast"
    assert calls == {"slow": 8, "fast": 8}
