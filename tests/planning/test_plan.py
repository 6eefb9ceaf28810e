"""A plan against what is live and what is known: bytes, operations, collectives, the roofline."""

from collections import Counter
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from opsin.data.sources import blank
from opsin.models.classification.lenet import LeNet5
from opsin.models.classification.vit import ViT
from opsin.planning.chips import CHIPS, Topology
from opsin.planning.plan import Cost, Exchange, Plan, bytes_per_device, memory_asked, plan, predict
from opsin.train.experiment import Experiment
from opsin.train.feed import FeedSpec
from opsin.train.host.accounting import model_flops
from opsin.train.program import build
from opsin.train.settings import SettingError
from opsin.train.sharding import DeviceError, Layout, Parallel, make_mesh
from opsin.train.tasks.classify import Classify

EIGHT = Topology.parse("cpu:8")
IMAGES = blank(40, image=(8, 8, 1))
WIDTH, MLP, TOKENS, DEPTH, CLASSES = 16, 32, 16, 2, 4


def tiny_vit(**options: Any) -> ViT:
    """Patches of 2 pixels: 16 tokens of an 8×8 image."""
    fields = {"depth": DEPTH, "width": WIDTH, "mlp_width": MLP, "heads": 2, "patch": 2}
    return ViT(**fields, pool="gap", num_classes=CLASSES, **options)


def vit_experiment(tiny: Experiment, **options: Any) -> Experiment:
    return replace(tiny, task=Classify(model=tiny_vit(**options)))


@pytest.fixture(scope="module")
def planned() -> dict[str, Plan]:
    """Compiled once for all tests: by name."""
    return {}


def plan_of(planned: dict[str, Plan], name: str, experiment: Experiment, **options: Any) -> Plan:
    if name not in planned:
        planned[name] = plan(experiment, IMAGES, EIGHT, **options)
    return planned[name]


def live_bytes(tree: Any) -> int:
    """Bytes of the buffers that the first device holds."""
    first = jax.devices()[0]
    shards = [s for leaf in jax.tree.leaves(tree) for s in leaf.addressable_shards]
    return sum(shard.data.nbytes for shard in shards if shard.device == first)


def sliced(tiny: Experiment) -> Experiment:
    return replace(tiny, parallel=Parallel(data=1, fsdp=8, min_shard_size=1))


def test_bytes_are_those_of_the_live_state_when_parameters_are_in_slices(tiny, planned):
    experiment = sliced(tiny)
    memory = plan_of(planned, "sliced", experiment).memory
    batch = {
        "image": jax.ShapeDtypeStruct((16, 8, 8, 1), np.uint8),
        "label": jax.ShapeDtypeStruct((16,), np.int32),
    }
    state = build(experiment, FeedSpec(make_mesh(experiment.parallel), batch, examples=40)).init()
    assert memory.parameters == live_bytes(state.params)
    assert memory.statistics == live_bytes(state.mutable)
    assert memory.optimizer == live_bytes(state.opt_state)
    assert memory.average == live_bytes(state.ema)
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    assert memory.parameters < whole / 4  # small vectors do not divide
    assert memory.needed > memory.parameters + memory.optimizer + memory.average
    assert memory.fits  # of a CPU, nobody knows the memory


def test_data_parallel_gradients_are_all_that_is_reduced(tiny, planned):
    found = plan_of(planned, "whole", replace(tiny, parallel=Parallel(data=8)))
    assert found.cost is not None
    (reduced,) = found.cost.exchanges
    gradients = found.parameters * 4
    statistics = found.memory.statistics
    assert found.memory.parameters == gradients  # whole on every device, float32
    assert reduced.kind == "all-reduce"
    # Beside gradients: sums of batch norm, forward and backward, and a few numbers for the log.
    assert gradients <= reduced.bytes <= gradients + 3 * statistics + 128
    assert reduced.sent == pytest.approx(reduced.bytes * 2 * 7 / 8)


def test_slices_of_parameters_are_gathered_and_images_stay_where_they_are(tiny, planned):
    found = plan_of(planned, "sliced", sliced(tiny))
    assert found.cost is not None
    kinds = {exchange.kind: exchange for exchange in found.cost.exchanges}
    # Forward and backward at most; were activations gathered, there would be more.
    assert kinds["all-gather"].bytes <= 2 * found.parameters * 4
    assert "all-to-all" not in kinds


def test_outputs_of_modules_are_held_to_the_batch_axes(tiny):
    (player,) = tiny.task.players()
    batch = {
        "image": jax.ShapeDtypeStruct((16, 8, 8, 1), np.float32),
        "label": jax.ShapeDtypeStruct((16,), np.int32),
    }
    variables = jax.eval_shape(lambda: tiny.task.init(jax.random.key(0), _zeros(batch)))
    params, mutable = variables["params"], {"batch_stats": variables["batch_stats"]}

    def constraints(parallel: Parallel) -> Counter[str]:
        layout = Layout(make_mesh(parallel), parallel.min_shard_size)

        def loss(params: Any, mutable: Any, batch: Any) -> Any:
            with layout.activations(batch):
                return player.loss(params, mutable, batch, jax.random.key(0), 0)[0]

        traced = jax.make_jaxpr(loss)
        equations = traced(params, mutable, batch).jaxpr.eqns
        found = [e for e in equations if e.primitive.name == "sharding_constraint"]
        return Counter(str(e.params["sharding"].spec[0]) for e in found)

    # Convolution, norm, two dense layers, dropout and the whole network; the sown do not count.
    assert constraints(Parallel(data=2, fsdp=4)) == {"('data', 'fsdp')": 6}
    assert constraints(Parallel(data=1)) == {}


def _zeros(batch: Any) -> Any:
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), batch)


def vit_flops() -> tuple[int, int]:
    """Of one training image, by the formula: without recomputation, and what is computed again."""
    embed = 2 * TOKENS * (2 * 2) * WIDTH
    maps = 2 * TOKENS * 4 * WIDTH**2 + 2 * TOKENS * WIDTH * MLP  # attention, first of the MLP
    scores = 2 * 2 * TOKENS**2 * WIDTH
    last = 2 * TOKENS * MLP * WIDTH
    head = 2 * WIDTH * CLASSES
    # Twice as much backward, but nobody asks for the gradient of the image. What leaves a block is
    # an input of the next, so that its last product is not needed again.
    whole = 2 * embed + 3 * (DEPTH * (maps + scores + last) + head)
    return whole, DEPTH * (maps + scores)


@pytest.mark.proofs
def test_operations_of_a_vit_are_the_formula_and_recomputing_is_told_apart(tiny, planned):
    plain = vit_experiment(replace(tiny, parallel=Parallel(data=8)))
    again = vit_experiment(replace(tiny, parallel=Parallel(data=8)), remat=True)
    found = plan_of(planned, "vit", again, plain=plain)
    assert found.cost is not None
    whole, recomputed = vit_flops()
    assert found.cost.model_flops * 8 == 16 * whole
    assert found.cost.flops * 8 == 16 * (whole + recomputed)


def test_operations_of_lenet_are_those_of_its_step_on_one_device(tiny):
    experiment = replace(tiny, task=Classify(model=LeNet5(num_classes=CLASSES)))
    batch = {
        "image": jax.ShapeDtypeStruct((16, 8, 8, 1), np.uint8),
        "label": jax.ShapeDtypeStruct((16,), np.int32),
    }

    def counted(parallel: Parallel) -> int:
        shaped = replace(experiment, parallel=parallel)
        return build(shaped, FeedSpec(make_mesh(parallel), batch, examples=40)).flops().total()

    images = np.zeros((16, 8, 8, 1), np.float32)
    model = LeNet5(num_classes=CLASSES)
    params = jax.eval_shape(model.init, jax.random.key(0), images)
    gradient = jax.grad(lambda params: model.apply(params, images).sum())
    expected = model_flops(gradient, params).total()
    assert counted(Parallel(data=8)) == counted(Parallel(data=2, fsdp=4)) == expected


# The roofline.

WORK = Cost(
    model_flops=150e12,
    flops=197e12,
    compiler_flops=0.0,
    compiler_bytes=0.0,
    bytes_accessed=819 * 10**8,
    exchanges=(
        Exchange("all-reduce", count=1, asynchronous=0, bytes=10**9, sent=8e9),
        Exchange("all-gather", count=2, asynchronous=2, bytes=10**9, sent=2e9),
    ),
)


def test_the_roofline_by_hand():
    found = predict(WORK, CHIPS["v5e"], batch=512)
    assert found.compute == pytest.approx(1.0)
    assert found.memory == pytest.approx(0.1)
    assert found.interconnect == pytest.approx(0.05)
    assert (found.seconds, found.limit) == (found.compute, "compute")
    assert found.seconds_without_overlap == pytest.approx(1.15)
    assert found.utilization == pytest.approx(150 / 197)
    assert found.images_per_second == pytest.approx(512)


@pytest.mark.parametrize(
    ("change", "limit", "seconds"),
    [
        ({"bytes_accessed": 819 * 2 * 10**9}, "memory", 2.0),
        ({"exchanges": (Exchange("all-gather", 1, 0, 1, sent=800e9),)}, "interconnect", 4.0),
    ],
)
def test_the_slowest_of_the_three_limits(change, limit, seconds):
    found = predict(replace(WORK, **change), CHIPS["v5e"], batch=512)
    assert (found.limit, found.seconds) == (limit, pytest.approx(seconds))
    assert found.utilization == pytest.approx(150 / 197 / seconds)


def test_a_chip_without_numbers_is_not_predicted(tiny, planned):
    assert plan_of(planned, "sliced", sliced(tiny)).prediction is None
    with pytest.raises(ValueError, match="no published numbers for cpu"):
        predict(WORK, CHIPS["cpu"], batch=512)


# Memory that is not there, and settings that cannot be.


def test_a_step_that_is_larger_than_a_chip_does_not_fit(tiny, planned):
    memory = plan_of(planned, "sliced", sliced(tiny)).memory
    assert replace(memory, available=memory.needed).fits
    assert not replace(memory, available=memory.needed - 1).fits
    assert not replace(memory, temporaries=None).fits  # the compiler gave up


@pytest.mark.parametrize(
    ("message", "counts"),
    [
        ("Ran out of memory in memory space hbm. Used 17.35G of 15.75G hbm.", (17.35, 15.75)),
        ("RESOURCE_EXHAUSTED: … Used 471.14G of 15.75G hbm. Exceeded", (471.14, 15.75)),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (335.42G) exceeds available HBM (15.75G).",
            (335.42, 15.75),
        ),
        ("Used 900.5M of 0.5G hbm.", (900.5 / 1024, 0.5)),
    ],
)
def test_what_the_compiler_asked_for_is_read(message, counts):
    assert memory_asked(message) == tuple(int(count * 2**30) for count in counts)


def test_a_message_without_a_figure_is_passed_on():
    with pytest.raises(DeviceError, match="the step does not fit: RESOURCE_EXHAUSTED: scratch"):
        memory_asked("RESOURCE_EXHAUSTED: scratch\nmore")


def test_bytes_of_a_device_follow_the_sharding():
    mesh = make_mesh(Parallel(data=2, fsdp=4))
    spec = jax.sharding.PartitionSpec("fsdp")
    sharding = jax.sharding.NamedSharding(mesh, spec)
    assert bytes_per_device([jax.ShapeDtypeStruct((8, 3), np.float32, sharding=sharding)]) == 24


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        (Parallel(data=2, fsdp=2), r"takes 2 x 2 x 1 = 4 of the 8 devices of cpu:8: set parallel"),
        (Parallel(data=4, fsdp=4), "there are 8"),
        (Parallel(fsdp=3), "parallel.fsdp=3 does not divide the 8 devices"),
    ],
)
def test_a_mesh_that_does_not_multiply_to_the_devices(tiny, parallel, message):
    with pytest.raises(DeviceError, match=message):
        plan(replace(tiny, parallel=parallel), IMAGES, EIGHT)


def test_a_batch_that_does_not_divide(tiny):
    odd = replace(tiny, data=replace(tiny.data, batch=12))
    with pytest.raises(DeviceError, match=r"data.batch=12 does not divide by 8 devices"):
        plan(odd, IMAGES, EIGHT)


def test_pmap_has_no_program_to_plan(tiny):
    mapped = replace(tiny, loop=replace(tiny.loop, strategy="pmap"))
    with pytest.raises(SettingError, match=r"plan it with loop\.strategy='jit'"):
        plan(mapped, IMAGES, EIGHT)
