"""Arithmetic is counted as the field counts it: closed forms, and XLA's own count."""

from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from opsin.config.tree import override
from opsin.data.sources import synthetic
from opsin.models.classification.lenet import LeNet5
from opsin.models.classification.resnet import ResNet20, cifar_resnet
from opsin.models.classification.vit import ViT, ViTCifar
from opsin.train.experiment import Experiment
from opsin.train.host.accounting import Work, matmul_peak, measured_work, median_rates, model_flops
from opsin.train.tasks.classify import Classify
from tests.train.conftest import make_tiny
from tests.train.test_step import lay_out


def shape(*sizes: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


CONVOLUTIONS = {
    "same": ({"padding": "SAME"}, (2, 12, 10, 4), (3, 3, 4, 6), (12, 10)),
    "valid": ({"padding": "VALID"}, (2, 12, 10, 4), (5, 3, 4, 6), (8, 8)),
    "strided": ({"padding": ((1, 1), (1, 1)), "strides": 2}, (2, 12, 10, 4), (3, 3, 4, 6), (6, 5)),
    "patches": ({"padding": "VALID", "strides": 4}, (2, 12, 8, 4), (4, 4, 4, 6), (3, 2)),
    "1x1": ({"padding": "VALID", "strides": 2}, (2, 12, 10, 4), (1, 1, 4, 6), (6, 5)),
    "dilated": ({"padding": "SAME", "dilation": 2}, (2, 12, 10, 4), (3, 3, 4, 6), (12, 10)),
    "grouped": ({"padding": "SAME", "groups": 2}, (2, 12, 10, 4), (3, 3, 2, 6), (12, 10)),
    "depthwise": ({"padding": "SAME", "groups": 4}, (2, 12, 10, 4), (3, 3, 1, 8), (12, 10)),
    "whole image": ({"padding": "VALID"}, (2, 5, 5, 4), (5, 5, 4, 6), (1, 1)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_and_each_of_its_gradients_is_the_closed_form(name: str):
    options, image, kernel, (height, width) = CONVOLUTIONS[name]
    stride, dilation = options.get("strides", 1), options.get("dilation", 1)

    def convolve(x, k):
        return lax.conv_general_dilated(
            x,
            k,
            (stride, stride),
            options["padding"],
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=options.get("groups", 1),
        )

    args = shape(*image), shape(*kernel)
    rows, columns, inputs_of_a_group, outputs = kernel
    forward = 2 * 2 * height * width * rows * columns * inputs_of_a_group * outputs
    assert model_flops(convolve, *args) == {"float32": forward}
    for argument in (0, 1):
        value_and_one = jax.grad(lambda x, k: convolve(x, k).sum(), argnums=argument)
        assert model_flops(value_and_one, *args).total() == 2 * forward


def test_a_transposed_convolution_counts_the_pixels_that_are_there():
    model = nn.ConvTranspose(6, (2, 2), strides=(2, 2))
    x = shape(3, 5, 7, 4)
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    assert model_flops(model.apply, params, x).total() == 2 * 3 * 5 * 7 * (2 * 2) * 4 * 6


def test_a_kernel_on_one_pixel_is_one_product():
    x, k = shape(2, 1, 1, 4), shape(3, 3, 4, 6)
    convolve = partial(lax.conv, window_strides=(1, 1), padding="SAME")
    assert model_flops(
        lambda x, k: convolve(x.transpose(0, 3, 1, 2), k.transpose(3, 2, 0, 1)), x, k
    ).total() == (2 * 2 * 4 * 6)


def test_products_with_batch_axes_by_data_type():
    def function(a, b, c):
        return jnp.einsum("bhqd,bhkd->bhqk", a, a), c @ b

    counted = model_flops(
        function,
        shape(2, 3, 5, 7),
        shape(11, 13, dtype=jnp.bfloat16),
        shape(17, 11, dtype=jnp.bfloat16),
    )
    assert counted == {"float32": 2 * (2 * 3) * 5 * 5 * 7, "bfloat16": 2 * 17 * 11 * 13}


PRODUCT = 2 * 8**3


def product(x):
    return x @ x


@pytest.mark.parametrize(
    ("function", "products"),
    [
        (jax.jit(jax.jit(product)), 1),
        (lambda x: lax.scan(lambda c, _: (product(c), None), x, length=5)[0], 5),
        (lambda x: lax.fori_loop(0, 5, lambda _, c: product(c), x), 5),
        (lambda x: lax.fori_loop(0, x[0, 0].astype(int), lambda _, c: product(c), x), 1),
        (lambda x: lax.cond(x[0, 0] > 0, lambda: product(product(x)), lambda: product(x)), 2),
        (
            lambda x: lax.platform_dependent(x, cpu=lambda x: product(product(x)), default=product),
            1,
        ),
        (lambda x: lax.platform_dependent(x, cpu=product, tpu=lambda x: product(product(x))), 2),
        (jax.grad(lambda x: product(x).sum()), 3),
        (jax.grad(lambda x: jax.checkpoint(lambda x: jnp.sin(product(x)))(x).sum()), 4),
        (jax.vmap(product), 8),
    ],
    ids=[
        *("jit", "scan", "counted loop", "while loop", "cond", "platform", "platforms"),
        *("grad", "remat", "vmap"),
    ],
)
def test_parts_of_a_program_count_as_often_as_they_run(function, products: int):
    x = shape(8, 8, 8) if function.__name__ == "product" and products == 8 else shape(8, 8)
    assert model_flops(function, x).total() == products * PRODUCT


@jax.custom_jvp
def platform_product(x, k):
    """Another algorithm on the CPU, with a derivative of its own: as fast convolutions have."""
    return lax.platform_dependent(
        x, k, cpu=lambda x, k: x @ k @ jnp.eye(8), default=lambda x, k: x @ k
    )


@platform_product.defjvp
def _platform_product_jvp(primals, tangents):
    (x, k), (dx, dk) = primals, tangents
    return platform_product(x, k), platform_product(dx, k) + platform_product(x, dk)


def test_the_default_counts_in_gradients_too():
    gradients = jax.grad(lambda x, k: platform_product(x, k).sum(), argnums=(0, 1))
    assert model_flops(gradients, shape(8, 8), shape(8, 8)).total() == 3 * PRODUCT


def test_what_each_device_does_is_added_up():
    mesh = jax.make_mesh((4,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    shared = jax.shard_map(
        lambda x: x @ x.T, mesh=mesh, in_specs=P("devices"), out_specs=P("devices")
    )
    assert model_flops(shared, shape(8, 8)).total() == 4 * (2 * 2 * 2 * 8)


def test_scan_over_depth_and_none_are_the_same_work():
    options = {"depth": 3, "width": 16, "mlp_width": 32, "heads": 2, "patch": 4, "num_classes": 5}
    x = shape(2, 8, 8, 3)
    counted = []
    for scan in (True, False):
        model = ViT(**options, scan=scan)
        params = jax.eval_shape(model.init, jax.random.key(0), x)
        counted.append(
            model_flops(jax.grad(lambda p, m=model: m.apply(p, jnp.ones(x.shape)).sum()), params)
        )
    assert counted[0] == counted[1]


# Products and sums of one image, layer by layer, forward: height · width · kernel · in · out.
LENET = (
    28 * 28 * 5 * 5 * 3 * 6,
    10 * 10 * 5 * 5 * 6 * 16 + 5 * 5 * 16 * 120 + 120 * 84 + 84 * 10,
)
RESNET8, RESNET20 = (  # of so many blocks a stage, each of two convolutions
    (
        32 * 32 * 9 * 3 * 16,
        2 * blocks * (32 * 32 * 9 * 16 * 16)
        + (16 * 16 * 9 * 16 * 32 + (2 * blocks - 1) * 16 * 16 * 9 * 32 * 32)
        + (8 * 8 * 9 * 32 * 64 + (2 * blocks - 1) * 8 * 8 * 9 * 64 * 64)
        + 64 * 10,
    )
    for blocks in (1, 3)
)
VIT = (  # 65 tokens of 384 numbers: queries, keys, values and output; attention; the MLP
    64 * (4 * 4 * 3) * 384,
    7 * (4 * 65 * 384 * 384 + 2 * 65 * 65 * 384 + 2 * 65 * 384 * 384) + 384 * 10,
)


@pytest.mark.parametrize(
    ("model", "first", "rest"),
    [
        (LeNet5(), *LENET),
        (cifar_resnet(8), *RESNET8),
        pytest.param(ResNet20(), *RESNET20, marks=pytest.mark.proofs),
        (ViTCifar(), *VIT),
    ],
    ids=["LeNet-5", "ResNet-8", "ResNet-20", "ViT"],
)
def test_a_training_step_is_three_forward_passes_but_for_the_gradient_of_the_images(
    model, first: int, rest: int
):
    layout = {"parallel.data": 2, "data.batch": 8}
    source = partial(synthetic, n=16, size=32, channels=3, classes=10)
    experiment = override(
        replace(make_tiny(), task=Classify(model=model)), {**layout, "data.source": source}
    )
    assert step_flops(experiment) == 2 * 8 * (2 * first + 3 * rest)


@pytest.mark.parametrize(
    "layout",
    [
        {"loop.steps_per_dispatch": 4},
        {"loop.accumulate": 4},
        {"data.resident_megabytes": 0},
        {"parallel.data": 4, "parallel.fsdp": 2, "parallel.min_shard_size": 8},
        {"parallel.data": 8, "loop.strategy": "pmap", "loop.replicas": 8},
    ],
    ids=["dispatch", "microbatches", "streamed", "fsdp", "pmap"],
)
def test_a_step_is_the_same_work_however_it_is_laid_out(plainly, layout):
    assert step_flops(override(make_tiny(), {"parallel.data": 1} | layout)) == plainly


@pytest.fixture(scope="module")
def plainly() -> int:
    """On one device, the whole batch at once."""
    return step_flops(override(make_tiny(), {"parallel.data": 1}))


def step_flops(experiment: Experiment) -> int:
    return lay_out(experiment)[1].flops().total()


def test_xla_counts_the_same_where_it_counts_nothing_else():
    """VALID convolutions of stride one and products, with gradients: no padding, little else."""

    def loss(k, w, x):
        y = lax.conv_general_dilated(
            x, k, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.sum((y.reshape(len(y), -1) @ w) ** 2)

    args = shape(3, 3, 16, 16), shape(6 * 6 * 16, 32), shape(4, 8, 8, 16)
    for function in (loss, jax.grad(loss, argnums=(0, 1))):
        analysis = jax.jit(function).lower(*args).compile().cost_analysis()
        assert model_flops(function, *args).total() == pytest.approx(analysis["flops"], rel=0.03)


def test_rates_are_shares_of_what_is_possible():
    work = Work(images=64, flops=2_000, peak=10_000.0)
    assert work.rates(steps=10, seconds=4.0) == {
        "images_per_second": 160.0,
        "model_flops_per_second": 5_000.0,
        "utilization": 0.5,
    }


def test_the_speed_of_a_run_is_the_median_of_its_lines():
    lines = [{"step": 1, "train/utilization": x} for x in (0.1, 0.5, 0.4)] + [{"test/nll": 1.0}]
    assert median_rates(lines) == {"utilization": 0.4}
    assert median_rates([]) == {}


def test_the_peak_is_that_of_one_machine_and_of_the_prevailing_data_type(monkeypatch):
    asked = []

    def peak(dtype):
        asked.append(dtype)
        return 1e9

    monkeypatch.setattr("opsin.train.host.accounting.matmul_peak", peak)
    flops = model_flops(product, shape(8, 8, dtype=jnp.bfloat16)) + model_flops(
        product, shape(4, 4)
    )
    work = measured_work(16, flops, devices=8)
    assert asked == ["bfloat16"]
    assert work == Work(
        images=16, flops=PRODUCT + 2 * 4**3, peak=1e9
    )  # eight fake devices, one CPU
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert measured_work(16, flops, devices=8).peak == 8e9


def test_the_peak_is_measured():
    assert 1e8 < matmul_peak(size=128, runs=2) < 1e15
