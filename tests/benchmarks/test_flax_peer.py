from dataclasses import replace

import flax.linen as nn
import jax
import numpy as np
import pytest

from opsin.benchmarks.cases import CASES
from opsin.benchmarks.flax_peer import plain, stock_apply
from opsin.benchmarks.opsin_peer import flops
from opsin.models.layers import BatchNorm, GroupNorm
from tests.drawn import variables

KEY = jax.random.key(0)


def drawn(case):
    """Variables and inputs of a case's network, which no compiled initialiser has to make."""
    rng = np.random.default_rng(0)
    images = rng.random((case.batch, case.size, case.size, case.channels), np.float32)
    inputs = images, *case.told()
    return variables(case.model.init, *inputs), *inputs


@pytest.fixture(scope="module")
def lenet():
    case = replace(CASES["lenet5"], batch=4)
    return case, *drawn(case)


def test_the_stock_twin_has_the_same_logits(lenet):
    case, variables, images = lenet
    ours = jax.jit(case.model.apply)(variables, images)
    stock = jax.jit(stock_apply(plain(case).model))(variables, images)
    np.testing.assert_allclose(stock, ours, atol=1e-4)


def test_the_stock_twin_runs_native_convolutions(lenet):
    case, variables, images = lenet
    apply = stock_apply(case.model)
    gradient = jax.jit(jax.grad(lambda variables: apply(variables, images).sum()))
    # Forward and weight gradient of three, input gradient of the last two.
    assert gradient.lower(variables).as_text().count("stablehlo.convolution") == 8


def test_the_stock_twin_never_calls_the_convolution_of_a_module():
    def refuse(*args, **options):
        raise AssertionError("the module's own convolution ran")

    ours = nn.Sequential([nn.Conv(3, (3, 3), conv_general_dilated=refuse), nn.Dense(2)])
    stock = nn.Sequential([nn.Conv(3, (3, 3)), nn.Dense(2)])
    images = np.ones((1, 5, 5, 1), np.float32)
    variables = jax.jit(stock.init)(KEY, images)
    with pytest.raises(AssertionError, match="own convolution"):
        ours.apply(variables, images)
    np.testing.assert_array_equal(
        jax.jit(stock_apply(ours))(variables, images), jax.jit(stock.apply)(variables, images)
    )


def test_the_stock_unet_has_the_same_logits_and_no_convolution_of_ours():
    model = CASES["unet"].model.clone(width=2, depth=1)
    case = replace(CASES["unet"], model=model, size=16, batch=2)
    variables, images = drawn(case)
    ours, stock = (
        jax.jit(apply).trace(variables, images) for apply in (model.apply, stock_apply(model))
    )
    logits, expected = (
        np.asarray(traced.lower().compile()(variables, images)) for traced in (stock, ours)
    )
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert "conv_general_dilated" in str(stock.jaxpr)
    assert " convolution[" not in str(stock.jaxpr)
    assert " convolution[" in str(ours.jaxpr)


def test_the_plain_vit_is_the_same_network_without_a_scan():
    case = CASES["vit"]
    assert case.model.scan
    assert not plain(case).model.scan
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    counts = [
        sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(model.init, KEY, images)))
        for model in (case.model, plain(case).model)
    ]
    assert counts == [6_268_810] * 2


def test_flops_are_those_of_the_layers():
    case = CASES["lenet5"]
    convolutions = [28**2 * 25 * 6, 10**2 * 25 * 6 * 16, 25 * 16 * 120]
    dense = [120 * 84, 84 * 10]
    forward = 2 * case.batch * sum(convolutions + dense)
    first = 2 * case.batch * convolutions[0]  # needs no gradient of its input
    assert flops(case, "inference") == forward
    assert flops(case, "training") == 3 * forward - first


@pytest.mark.parametrize("name", ["unet", pytest.param("ddpm", marks=pytest.mark.proofs)])
def test_the_stock_twin_has_no_norm_of_ours(name, monkeypatch):
    case = CASES[name]
    small = {"width": 2, "depth": 1} if name == "unet" else {"width": 32, "multiples": (1,)}
    case = replace(case, model=case.model.clone(**small), size=16, batch=2)
    inputs = drawn(case)
    twin = plain(case).model

    def outputs(apply):
        return lambda *inputs: jax.tree.leaves(apply(*inputs, train=True, mutable=["batch_stats"]))

    ours = jax.jit(outputs(case.model.apply))(*inputs)
    stock = jax.jit(outputs(stock_apply(twin)))(*inputs)
    for one, other in zip(ours, stock, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)

    def refuse(*args):
        raise AssertionError("a norm of the module's own ran")

    for norm in (BatchNorm, GroupNorm):
        monkeypatch.setattr(norm, "parameters", refuse)
    jax.eval_shape(outputs(stock_apply(twin)), *inputs)
    with pytest.raises(AssertionError, match="own ran"):
        jax.eval_shape(outputs(case.model.apply), *inputs)
