"""The step is one function, however it is laid out: devices, strategy, microbatches, dispatch."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from opsin.config.tree import override
from opsin.data.geometry import random_crop
from opsin.errors import ConfigError
from opsin.losses.classification import cross_entropy_loss
from opsin.models.layers import batch_norm
from opsin.train.checks import traced
from opsin.train.experiment import Experiment
from opsin.train.feed import Feed
from opsin.train.methods import Lookahead, sgd
from opsin.train.paths import flatten
from opsin.train.program import Program, build
from opsin.train.sets import open_training
from opsin.train.settings import SettingError
from opsin.train.sharding import make_mesh
from opsin.train.state import State
from opsin.train.tasks.classify import Classify
from tests.train.conftest import Tiny, assert_trees_close, assert_trees_equal


def lay_out(experiment: Experiment) -> tuple[Feed, Program]:
    """Images and program; nothing is compiled."""
    mesh = make_mesh(experiment.parallel)
    examples = open_training(experiment)
    feed = Feed(experiment, mesh, examples)
    return feed, build(experiment, feed.spec)


def run(
    experiment: Experiment, steps: int = 3, *, same_images: bool = False
) -> tuple[list[State], dict[str, list[float]]]:
    """States before the first step and after each dispatch; losses and gradient norms.

    All dispatches may see the images of the first.
    """
    length = experiment.loop.steps_per_dispatch
    feed, program = lay_out(experiment)
    store, dispatch = feed.store(), program.compile()
    state, history = program.init(), {"loss": [], "gradient_norm": []}
    states, step, items = [jax.device_get(state)], 0, None
    while step < steps:
        count = min(length, steps - step)
        if items is None or not same_images:
            items = feed.take(count, length)
        state, metrics = dispatch(state, store, items, np.int32(count))
        states.append(jax.device_get(state))
        step += count
        for name, values in history.items():
            metric = jax.device_get(metrics[name])
            values.extend(float(x) for x in metric.total[:count] / metric.count[:count])
    return states, history


@pytest.fixture(scope="module")
def reference(tiny_one_device: Experiment):
    return run(tiny_one_device)


@pytest.fixture(scope="module")
def tiny_one_device() -> Experiment:
    from tests.train.conftest import make_tiny

    return override(make_tiny(), {"parallel.data": 1})


def assert_same_run(a, b) -> None:
    """Losses, gradient norms, parameters, batch statistics, momentum and moving averages."""
    np.testing.assert_allclose(a[1]["loss"], b[1]["loss"], rtol=1e-5)
    np.testing.assert_allclose(a[1]["gradient_norm"], b[1]["gradient_norm"], rtol=1e-4)
    for name in ("params", "mutable", "opt_state", "ema"):
        final = (getattr(states[-1], name) for states, _ in (a, b))
        assert_trees_close(*final, rtol=1e-4, atol=3e-6)


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param({"parallel.data": 8}, marks=pytest.mark.proofs),
        pytest.param(
            {"parallel.data": 1, "parallel.fsdp": 8, "parallel.min_shard_size": 8},
            marks=pytest.mark.proofs,
        ),
        {"parallel.data": 2, "parallel.fsdp": 2, "parallel.min_shard_size": 8},
        {"parallel.data": 8, "loop.strategy": "pmap", "loop.replicas": 8},
        {"loop.steps_per_dispatch": 2, "data.resident_megabytes": 0},
        pytest.param({"loop.steps_per_dispatch": 2}, marks=pytest.mark.proofs),
        pytest.param({"data.resident_megabytes": 0}, marks=pytest.mark.proofs),
    ],
    ids=[
        *("data-8", "fsdp-8", "data-2-fsdp-2", "pmap-8"),
        *("streamed-two-a-dispatch", "two-a-dispatch", "streamed"),
    ],
)
def test_every_layout_takes_the_same_steps(tiny_one_device: Experiment, reference, layout):
    """Batch norm included: its statistics are those of the global batch everywhere."""
    assert_same_run(run(override(tiny_one_device, layout)), reference)


@pytest.mark.proofs
def test_the_pmap_test_would_notice_statistics_of_one_replica(
    tiny_one_device, reference, monkeypatch
):
    alone = SimpleNamespace(mean=lambda moments: moments)  # batch norm that knows no replicas
    monkeypatch.setattr("opsin.models.layers.mapped", alone)
    experiment = override(
        tiny_one_device, {"parallel.data": 8, "loop.strategy": "pmap", "loop.replicas": 8}
    )
    losses = run(experiment)[1]["loss"]
    assert not np.allclose(losses, reference[1]["loss"], rtol=1e-3)


def without_batch_norm(experiment: Experiment) -> Experiment:
    from opsin.models.layers import group_norm

    return replace(experiment, task=Classify(model=Tiny(norm=partial(group_norm, groups=2))))


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.proofs), 2])
def test_four_microbatches_are_one_batch(tiny_one_device: Experiment, devices: int):
    """Without batch norm, whose statistics are those of a microbatch."""
    experiment = without_batch_norm(tiny_one_device)
    microbatches = {"loop.accumulate": 4, "parallel.data": devices}
    whole = run(experiment, steps=2)
    assert_same_run(run(override(experiment, microbatches), steps=2), whole)


def test_an_evaluation_of_images_of_another_size_is_refused_in_one_line(tiny_one_device):
    _, program = lay_out(tiny_one_device)
    images = jax.ShapeDtypeStruct((16, 12, 12, 1), jnp.uint8)
    batch = {"image": images, "label": jnp.zeros(16, jnp.int32), "valid": jnp.ones(16, bool)}
    state = program.state
    with pytest.raises(SettingError, match=r"the evaluation cannot be traced: .*hidden") as caught:
        program.evaluate.lower(state.params, state.mutable, batch, np.int32(0))
    assert "\n" not in str(caught.value)


def test_a_mistake_of_the_user_is_told_as_it_is():
    """It is no failure of a trace, although it comes up in one."""
    with pytest.raises(ConfigError, match=r"^a warm-up is longer$"), traced("the step"):
        raise ConfigError("a warm-up is longer")


def test_what_an_augmentation_says_of_its_options_is_one_line(tiny_one_device: Experiment):
    crop = partial(random_crop, padding=-1)
    _, program = lay_out(override(tiny_one_device, {"data.augment": (crop,)}))
    with pytest.raises(SettingError, match=r"the training step cannot be traced: .*padding"):
        program.compile()


def test_frozen_parameters_stay_and_cost_no_backward_work(tiny_one_device: Experiment):
    def flops(experiment: Experiment) -> float:
        compiled = lay_out(experiment)[1].compile()
        return compiled.cost_analysis()["flops"]  # pyright: ignore[reportFunctionMemberAccess]

    frozen = override(tiny_one_device, {"optimizer.freeze": ("conv", "norm", "hidden")})
    states, _ = run(frozen)
    first, after = states[0], states[-1]
    for name in ("conv", "norm", "hidden"):
        assert_trees_equal(first.params[name], after.params[name])
    assert not np.array_equal(first.params["head"]["kernel"], after.params["head"]["kernel"])
    assert_trees_equal(first.mutable, after.mutable)  # nor do running statistics move
    momenta = [x for x in jax.tree.leaves(after.opt_state) if x.ndim > 1]
    assert [x.shape for x in momenta] == [(16, 4)]  # no optimiser state but the head's
    # Forward work stays; the backward pass ends at the head.
    assert flops(frozen) < 0.55 * flops(tiny_one_device)


def test_what_trains_later_is_bit_equal_until_then(tiny_one_device: Experiment):
    """Fine-tuning in steps: the head, then what is below it, then all, at rates of their own."""
    norm = partial(batch_norm, frozen_statistics=True)
    in_steps = {
        "task.model.norm": norm,
        "optimizer.unfreeze": (("hidden", 2 / 6), ("conv|norm", 4 / 6)),
        "optimizer.lr_scale": (("conv|norm", 0.1),),
    }
    states, _ = run(override(tiny_one_device, in_steps), steps=6)
    assert_trees_equal([state.mutable for state in states], [states[0].mutable] * 7)
    begins = {"head": 1, "hidden": 3, "conv": 5, "norm": 5}
    for module, first in begins.items():
        for step in range(1, 7):
            before, after = (flatten(states[n].params[module]) for n in (step - 1, step))
            for name, array in after.items():
                moved = not np.array_equal(array, before[name])
                assert moved == (step >= first), (module, name, step)


@pytest.mark.proofs
@pytest.mark.parametrize(
    "layout",
    [
        {"parallel.data": 2, "parallel.fsdp": 2, "parallel.min_shard_size": 8},
        {"parallel.data": 8, "loop.strategy": "pmap", "loop.replicas": 8},
        {"loop.accumulate": 4},
    ],
    ids=("data-2-fsdp-2", "pmap-8", "microbatches"),
)
def test_what_trains_later_does_so_in_every_layout(tiny_one_device: Experiment, layout):
    """With slow weights around it, which wrap the count of steps too."""
    held = {
        "optimizer.unfreeze": (("hidden", 1 / 3), ("conv|norm", 2 / 3)),
        "optimizer.lookahead": Lookahead(every=2),
        "loop.duration": "3 steps",
        "optimizer.warmup": "0 steps",
    }
    experiment = override(without_batch_norm(tiny_one_device), held)
    assert_same_run(run(override(experiment, layout)), run(experiment))


def test_the_moving_average_follows_every_step(reference):
    """Recomputed on the host from the parameters after each step: e ← d e + (1 − d) p."""
    states, _ = reference
    average = states[0].params["head"]["kernel"]
    for n, state in enumerate(states[1:]):
        decay = min(0.9, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * state.params["head"]["kernel"]
        np.testing.assert_allclose(
            state.ema["params"]["head"]["kernel"], average, rtol=1e-5, atol=1e-7
        )


def test_dropout_draws_anew_each_step_and_the_same_on_two_devices(tiny_one_device):
    """The same images and weights in every step, so that only dropout differs."""
    task = Classify(model=Tiny(dropout=0.5))
    # The rate is 0, so that the momentum tells the gradients: nearly the last one alone, for a sum
    # of three would hold the rounding of three.
    changes = {"optimizer.learning_rate": 0.0, "optimizer.method": partial(sgd, momentum=0.1)}
    experiment = override(replace(tiny_one_device, task=task), {**changes, "data.batch": 40})
    one = run(experiment, same_images=True)
    assert_same_run(one, run(override(experiment, {"parallel.data": 2}), same_images=True))
    assert len(set(one[1]["loss"])) == 3


def test_bfloat16_computes_in_half_and_keeps_float32(tiny_one_device, reference):
    task = Classify(model=Tiny(dtype=jnp.bfloat16))
    states, history = run(replace(tiny_one_device, task=task))
    kept = (states[-1].params, states[-1].mutable, states[-1].ema)
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {np.dtype("float32")}
    assert history["loss"] != reference[1]["loss"]
    np.testing.assert_allclose(history["loss"], reference[1]["loss"], rtol=5e-2)


def test_l2_is_a_named_term_of_the_loss():
    task = Classify(model=Tiny(), loss_function=partial(cross_entropy_loss, smoothing=0.1), l2=0.01)
    batch = {"image": np.ones((4, 8, 8, 1), np.float32), "label": np.arange(4)}

    @jax.jit
    def begin(key):
        mutable = dict(task.init(key, batch))
        params = mutable.pop("params")
        return params, task.loss(params, mutable, batch, key, 0)

    params, (loss, aux) = jax.device_get(begin(jax.random.key(0)))
    means = {name: float(m.total / m.count) for name, m in aux.metrics.items()}
    squares = sum(float(np.sum(leaf**2)) for leaf in jax.tree.leaves(params) if leaf.ndim > 1)
    assert means["l2_loss"] == pytest.approx(squares / 2, rel=1e-5)
    assert float(loss) == pytest.approx(means["data_loss"] + 0.01 * squares / 2, rel=1e-5)
    assert means["loss"] == pytest.approx(float(loss), rel=1e-6)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"loop.strategy": "pmap", "loop.steps_per_dispatch": 2}, "loop.steps_per_dispatch=1"),
        ({"loop.strategy": "pmap", "parallel.fsdp": 2}, "parallel.fsdp=1"),
        ({"loop.strategy": "pmap", "parallel.tensor": 2}, "parallel.tensor=1"),
        (
            {"loop.strategy": "pmap", "parallel.data": 8},
            r"loop.replicas=1 is part of .*'pmap' has 8 here: set loop.replicas=8",
        ),
        ({"loop.replicas": 8}, "'jit' has 1 here: set loop.replicas=1"),
        ({"data.eval_splits": {"train": "train"}}, "'train' is also the name of other metrics"),
        ({"data.eval_splits": {"a": "test", "a_ema": "test"}}, "'a_ema' is also"),
        ({"data.mean": (0.1, 0.2)}, "mean has 2 numbers, images 1 channels"),
        ({"optimizer.freeze": ("bakbone",)}, "no parameter has 'bakbone' in its path"),
        ({"optimizer.lr_scale": (("headd", 0.1),)}, "there is 'head/"),
        ({"optimizer.unfreeze": (("headd", 0.1),)}, "optimizer.unfreeze: .* there is 'head/"),
        (
            {"optimizer.unfreeze": (("", 0.5), ("head", 0.1))},
            "all that 'head' finds is frozen, or found by an earlier pattern",
        ),
        (
            {"optimizer.unfreeze": (("head", 0.5),), "optimizer.freeze": ("head",)},
            "all that 'head' finds is frozen",
        ),
        (
            {"optimizer.unfreeze": (("head", 0.5),), "optimizer.clip_norm": 1.0},
            "clip_norm would count the gradients of what optimizer.unfreeze holds",
        ),
        ({"optimizer.no_decay": ("(",)}, "'\\(' is no pattern"),
    ],
)
def test_settings_that_do_not_fit_are_named(tiny_one_device: Experiment, overrides, text: str):
    with pytest.raises(SettingError, match=text):
        lay_out(override(tiny_one_device, overrides))


def mean_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean(cross_entropy_loss(logits, labels))


def test_a_loss_that_gives_its_mean_is_told(tiny_one_device: Experiment):
    program = lay_out(override(tiny_one_device, {"task.loss_function": mean_loss}))[1]
    with pytest.raises(SettingError, match=r"task\.loss_function gives \[\] for \d+ images"):
        program.compile()


def test_the_state_is_donated_whole(tiny_one_device: Experiment):
    program = lay_out(tiny_one_device)[1]
    compiled = program.compile()
    state = program.init()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    memory = compiled.memory_analysis()  # pyright: ignore[reportFunctionMemberAccess]
    assert memory.alias_size_in_bytes == size


@pytest.mark.parametrize("length", [1, 2])
def test_nothing_moves_between_host_and_device_within_a_step(tiny_one_device, length: int):
    experiment = override(tiny_one_device, {"loop.steps_per_dispatch": length})
    feed, program = lay_out(experiment)
    store, dispatch = feed.store(), program.compile()
    state = program.init()
    items = feed.take(length, length)
    count = jax.device_put(np.int32(length), NamedSharding(program.mesh, PartitionSpec()))
    with jax.transfer_guard("disallow"):
        state, metrics = dispatch(state, store, items, count)
        jax.block_until_ready((state, metrics))
        with pytest.raises(Exception, match=r"[Dd]isallowed"):
            dispatch(state, store, jax.device_get(items), count)  # the guard would notice
    assert int(state.step) == length


def test_parameters_in_which_updates_are_lost_are_refused(tiny):
    """1 − 1e-4 is 1 in bfloat16. What is frozen may be so: nothing is added to it."""
    half = override(tiny, {"task.model": Half()})
    with pytest.raises(
        SettingError, match=r"'head/(bias|kernel)' is bfloat16.*task\.model\.dtype="
    ):
        lay_out(half)
    lay_out(override(half, {"optimizer.freeze": ("^head",)}))


class Half(nn.Module):
    """A trained layer in float32 before a head in bfloat16."""

    num_classes: int = 4

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.Dense(4, name="first")(x.reshape(len(x), -1))
        return nn.Dense(self.num_classes, param_dtype=jnp.bfloat16, name="head")(x)
