"""The mesh, the rules from paths to its axes, and that no layout changes what is computed.

The records in ``golden`` hold how each parameter of four networks is cut on a mesh of 2 x 2 x 2. To
record anew, on purpose:

    python -m tests.train.test_sharding
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from opsin.config.tree import override
from opsin.data.sources import synthetic
from opsin.experiments.generation import cifar10_ddpm
from opsin.models.classification.resnet import ResNet50
from opsin.models.classification.vit import ViT, ViTS
from opsin.models.layers import Conv, batch_norm
from opsin.models.segmentation.unet import UNet
from opsin.train.checks import check_batch
from opsin.train.experiment import Experiment
from opsin.train.paths import flatten
from opsin.train.placement import process_share
from opsin.train.sharding import (
    DeviceError,
    Layout,
    Parallel,
    make_mesh,
    parameter_spec,
)
from opsin.train.state import State
from opsin.train.tasks.classify import Classify
from tests.train.conftest import assert_trees_close, make_tiny
from tests.train.test_step import lay_out, run

GOLDEN = Path(__file__).parent / "golden"
NETWORKS: dict[str, tuple[nn.Module, tuple[Any, ...]]] = {
    "resnet": (ResNet50(), (jnp.zeros((1, 224, 224, 3)),)),
    "unet": (UNet(), (jnp.zeros((1, 572, 572, 1)),)),
    "vit": (ViTS(), (jnp.zeros((1, 224, 224, 3)),)),
    "ddpm": (cifar10_ddpm.config().task.model, (jnp.zeros((1, 32, 32, 3)), jnp.zeros(1), None)),
}
CUBE = {"data": 2, "fsdp": 2, "tensor": 2}


def sharding_table(network: str) -> str:
    """One line a parameter: path, shape, and the axis of the mesh for each of its own."""
    module, inputs = NETWORKS[network]
    shapes = jax.eval_shape(partial(module.init, train=False), jax.random.key(0), *inputs)
    lines = [
        (path, str(list(leaf.shape)), str(tuple(parameter_spec(path, leaf.shape, CUBE, 2**14))))
        for path, leaf in sorted(flatten(shapes["params"]).items())
    ]
    widths = [max(len(line[column]) for line in lines) for column in (0, 1)]
    return "".join(f"{p:<{widths[0]}}  {s:<{widths[1]}}  {spec}\n" for p, s, spec in lines)


@pytest.mark.parametrize(
    "network", [pytest.param(n, marks=pytest.mark.proofs if n == "ddpm" else ()) for n in NETWORKS]
)
def test_every_parameter_is_cut_as_recorded(network: str):
    assert sharding_table(network) == (GOLDEN / f"sharding-{network}.txt").read_text()


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((3, 3, 256, 512), P(None, None, None, "fsdp")),  # the largest axis
        ((512, 512), P(None, "fsdp")),  # of equal ones the last
        ((1024, 510), P("fsdp")),  # 510 does not divide by 8
        ((1001, 1003), P()),  # nothing divides
        ((64,), P()),  # small
        ((), P()),
    ],
)
def test_fsdp_shards_the_largest_axis_that_divides_and_leaves_small_arrays_whole(shape, spec):
    sizes = {"data": 1, "fsdp": 8, "tensor": 1}
    assert parameter_spec("somewhere", shape, sizes, 2**14) == spec
    assert parameter_spec("somewhere", shape, dict.fromkeys(sizes, 1), 0) == P()


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("attention/query/kernel", (64, 4, 16), P("fsdp", "tensor")),  # heads
        ("attention/query/kernel", (64, 3, 16), P("fsdp")),  # three heads do not divide
        ("attention/out/kernel", (4, 16, 64), P("tensor", None, "fsdp")),
        ("mlp1/kernel", (64, 256), P("fsdp", "tensor")),
        ("mlp2/kernel", (256, 64), P("tensor", "fsdp")),
        ("blocks/mlp2/kernel", (8, 256, 64), P(None, "tensor", "fsdp")),  # of layers, never cut
        ("blocks/attention/value/kernel", (8, 64, 4, 16), P(None, "fsdp", "tensor")),
        ("blocks/norm1/scale", (512, 64), P()),  # a layer of it is small
        ("conv1/kernel", (3, 3, 64, 256), P(None, None, "fsdp", "tensor")),  # wide
        ("conv1/kernel", (3, 3, 64, 128), P(None, None, None, "fsdp")),  # not so wide
        ("head/kernel", (512, 1000), P(None, "fsdp")),  # no rule
    ],
)
def test_tensor_parallelism_goes_by_path(path, shape, spec):
    assert parameter_spec(path, shape, CUBE, 2**9) == spec


def test_the_mesh_takes_all_devices_or_those_asked_for():
    assert dict(make_mesh(Parallel()).shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert dict(make_mesh(Parallel(fsdp=4)).shape) == {"data": 2, "fsdp": 4, "tensor": 1}
    assert dict(make_mesh(Parallel(fsdp=2, tensor=2)).shape) == CUBE
    assert dict(make_mesh(Parallel(data=2, fsdp=-1)).shape) == {"data": 2, "fsdp": 4, "tensor": 1}
    assert make_mesh(Parallel(data=1)).size == 1


def test_moments_and_averages_follow_the_parameter_that_their_path_ends_in():
    """Two parameters of one shape that are cut in two ways, so that the shape does not tell."""
    mesh = make_mesh(Parallel(data=1, fsdp=2, tensor=4))
    square = jnp.zeros((64, 64))
    params = {"mlp1": {"kernel": square}, "mlp2": {"kernel": square}, "kernel": jnp.zeros(2)}
    state = State(
        step=jnp.int32(0),
        params=params,
        mutable={"batch_stats": {"mean": jnp.zeros(64)}},
        opt_state=({"moment": params}, {"mlp1": {"kernel": jnp.zeros((64, 1))}}),
        ema={"params": params},
        key=jax.random.key(0),
    )
    laid_out = jax.tree.map(lambda leaf: leaf.sharding, Layout(mesh, 2**10).state(state))
    for copy in (laid_out.params, laid_out.opt_state[0]["moment"], laid_out.ema["params"]):
        assert copy["mlp1"]["kernel"].spec == P("fsdp", "tensor")
        assert copy["mlp2"]["kernel"].spec == P("tensor", "fsdp")
    assert laid_out.opt_state[1]["mlp1"]["kernel"].spec == P()  # of another shape: factored
    assert laid_out.step.spec == laid_out.key.spec == P()


class Wide(nn.Module):
    """A convolution of 256 channels between two small ones."""

    num_classes: int = 4

    @nn.compact
    def __call__(self, x: Any, *, train: bool = False) -> Any:
        x = Conv(8, (3, 3), strides=2, name="stem")(x)
        x = nn.relu(batch_norm(train=train, name="norm1")(x))
        x = Conv(256, (3, 3), strides=2, name="wide")(x)
        x = nn.relu(batch_norm(train=train, name="norm2")(x))
        return nn.Dense(self.num_classes, name="head")(x.mean(axis=(1, 2)))


SMALL = {
    "cnn": Wide(),
    "vit": ViT(depth=1, width=16, mlp_width=64, heads=8, patch=4, num_classes=4, pool="gap"),
}


def small(network: str, **parallel: int) -> Experiment:
    """One of two small networks, of which nearly all parameters are cut."""
    experiment = replace(make_tiny(), task=Classify(model=SMALL[network]))
    layout = {"data": 1, "min_shard_size": 128} | parallel
    return override(experiment, {f"parallel.{name}": n for name, n in layout.items()})


@pytest.fixture(scope="module", params=["vit", pytest.param("cnn", marks=pytest.mark.proofs)])
def alone(request):
    """A network, and its first step on one device."""
    return request.param, run(small(request.param), steps=1)


@pytest.mark.proofs
@pytest.mark.parametrize(
    "mesh",
    [
        (2, 2, 2),
        (8, 1, 1),
        (1, 8, 1),
        (1, 1, 8),
    ],
    ids=lambda mesh: "x".join(map(str, mesh)),
)
def test_value_and_gradient_are_those_of_one_device(alone, mesh):
    """The momentum after the first step is the gradient, with its decay."""
    network, (expected, history) = alone
    states, found = run(small(network, **dict(zip(CUBE, mesh, strict=True))), steps=1)
    np.testing.assert_allclose(found["loss"], history["loss"], rtol=1e-6)
    np.testing.assert_allclose(found["gradient_norm"], history["gradient_norm"], rtol=1e-5)
    for name in ("params", "mutable", "opt_state", "ema"):
        both = (getattr(states[-1], name) for states in (states, expected))
        assert_trees_close(*both, rtol=1e-5, atol=1e-6)


def bytes_by_device(tree: Any) -> dict[Any, int]:
    """What each device holds of the arrays of a tree."""
    held: dict[Any, int] = {}
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
    return held


class Big(nn.Module):
    """Nearly all of it is one kernel."""

    num_classes: int = 4

    @nn.compact
    def __call__(self, x: Any, *, train: bool = False) -> Any:
        x = nn.relu(nn.Dense(1024, name="hidden")(x.reshape(len(x), -1)))
        return nn.Dense(self.num_classes, name="head")(x)


def big(**parallel: int) -> Experiment:
    return replace(small("vit", **parallel), task=Classify(model=Big()))


def test_fsdp_holds_an_eighth_and_never_more_on_a_device():
    """Parameters, momenta and averages, in live buffers; and while they are born."""
    program = lay_out(big(fsdp=8))[1]
    before = {id(array) for array in jax.live_arrays()}
    state = program.init()
    total = sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, state.opt_state, state.ema)))
    new = [array for array in jax.live_arrays() if id(array) not in before]
    held = bytes_by_device([array for array in new if isinstance(array.sharding, NamedSharding)])
    assert len(held) == 8
    assert total / 8 <= max(held.values()) < 1.02 * total / 8  # the bias is whole
    memory = program.init.func.lower(*program.init.args).compile().memory_analysis()
    assert memory.output_size_in_bytes + memory.temp_size_in_bytes < total / 4


def step_memory(experiment: Experiment) -> int:
    """Bytes of temporaries of the compiled step, on one device."""
    compiled: Any = lay_out(experiment)[1].compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.proofs
def test_activations_stay_with_their_images():
    """Many images of few parameters: temporaries are activations, an eighth of them a device.

    Without the constraint XLA cuts them as the kernels are, and a device holds three quarters.
    """
    source = partial(synthetic, n=64, size=32, channels=1, classes=4)
    shared = {"data.source": source, "data.batch": 64, "loop.ema_decay": None}
    one, eight = (step_memory(override(small("vit", fsdp=n), shared)) for n in (1, 8))
    assert eight < 0.2 * one


@pytest.mark.parametrize(
    ("parallel", "text"),
    [
        (Parallel(data=16), "asks for 16 x 1 x 1 = 16 devices, there are 8"),
        (Parallel(data=2, fsdp=4, tensor=2), "there are 8: make its sizes smaller"),
        (Parallel(fsdp=3), "does not divide the 8 devices"),
        (Parallel(tensor=3), "does not divide the 8 devices"),
        (Parallel(data=0), "at least 1"),
        (Parallel(fsdp=0), "at least 1"),
        (Parallel(tensor=-1), "at least 1"),
        (Parallel(data=-1, fsdp=-1), "one of the first two"),
    ],
)
def test_impossible_meshes_name_the_field(parallel: Parallel, text: str):
    with pytest.raises(DeviceError, match=text) as told:
        make_mesh(parallel, jax.devices())
    assert str(told.value).count("(") == str(told.value).count(")")


def grid(shape: tuple[int, int, int], processes: int) -> Any:
    """A mesh of devices that are shared out to processes in order."""
    count = int(np.prod(shape))
    devices = [SimpleNamespace(process_index=n * processes // count) for n in range(count)]
    return SimpleNamespace(
        shape=dict(zip(CUBE, shape, strict=True)), devices=np.array(devices).reshape(shape)
    )


@pytest.mark.parametrize(
    ("shape", "shares"),
    [
        ((8, 1, 1), [(0, 2), (1, 2)]),
        ((1, 8, 1), [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ((2, 2, 2), [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ((1, 1, 8), [(0, 1), (0, 1)]),  # all work on the same images
        ((2, 1, 4), [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ((4, 1, 1), [(0, 1)]),
    ],
)
def test_processes_read_what_their_devices_work_on(shape, shares):
    mesh = grid(shape, len(shares))
    assert [process_share(mesh, process) for process in range(len(shares))] == shares


def test_devices_that_make_no_part_of_a_batch_are_named():
    with pytest.raises(DeviceError, match=r"process 1 hold the parts \[1, 2\] of 4"):
        process_share(grid((4, 1, 3), 3), 1)


def test_a_process_without_devices_is_named():
    devices = [SimpleNamespace(process_index=index // 4) for index in range(8)]
    with pytest.raises(DeviceError, match=r"4 of 8 devices, and process 1 has none"):
        make_mesh(Parallel(data=4), devices)


def test_a_batch_that_does_not_divide_names_one_that_does():
    mesh = make_mesh(Parallel())
    with pytest.raises(DeviceError, match=r"data.batch=60 .* 8 devices: try data.batch=56"):
        check_batch(60, mesh)
    with pytest.raises(DeviceError, match=r"try data.batch=16"):
        check_batch(8, mesh, parts=2)
    check_batch(64, mesh, parts=4)


if __name__ == "__main__":
    for name in NETWORKS:
        (GOLDEN / f"sharding-{name}.txt").write_text(sharding_table(name))
