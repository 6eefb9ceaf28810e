"""Weights of files enter a state after its initialisation: all or a part, strictly, sharded."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import save, save_file

from opsin.config.sweep import identities, pinned
from opsin.config.tree import override, resolve
from opsin.experiments.extractors import LENET
from opsin.models.classification.resnet import BasicBlock, ResNet
from opsin.models.segmentation.fcn import FCN
from opsin.train.checkpoint import Checkpoints
from opsin.train.experiment import Data, Experiment
from opsin.train.loop import fit
from opsin.train.paths import flatten, unflatten
from opsin.train.preprocessing import Preprocessing
from opsin.train.resume import first_state
from opsin.train.sets import open_sets
from opsin.train.sharding import Parallel, make_mesh, replicated
from opsin.train.state import State
from opsin.train.tasks.classify import Classify
from opsin.train.tasks.diffuse import Diffuse
from opsin.train.tensors import fingerprint
from opsin.train.weights import (
    HEADER,
    Weights,
    WeightsError,
    save_weights,
    start_from,
)
from tests.train.conftest import Tiny, assert_trees_equal, make_tiny
from tests.train.test_step import lay_out

NETWORK = ResNet(stage_sizes=(1,), block=BasicBlock, width=4, stem="cifar", num_classes=3)
IMAGES = Preprocessing((0.5,), (0.25,), (8, 8, 3))
SCALE = {"mean": [0.5], "std": [0.25], "image": [8, 8, 3]}
EIGHT = {"parallel": Parallel(data=2, fsdp=4, min_shard_size=16)}


def drawn(model: nn.Module, seed: int):
    """Variables of a network, drawn in NumPy: nothing is compiled."""
    rng = np.random.default_rng(seed)
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)


def state_of(variables, *, ema: bool = False) -> State:
    variables = jax.device_put(dict(variables), replicated(make_mesh(Parallel(data=1))))
    params = variables.pop("params")
    average = jax.tree.map(jnp.copy, {"params": params, "mutable": variables})
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        mutable=variables,
        opt_state=(),
        ema=average if ema else None,
        key=jax.random.key(0),
    )


def names_of(state: State) -> dict[str, np.ndarray]:
    return flatten(jax.device_get({"params": state.params, **state.mutable}))


def saved(path: Path, variables, **described) -> Weights:
    sha256 = save_weights(path, variables, {"network": "x", **SCALE, **described})
    return Weights(str(path), sha256)


@pytest.fixture(scope="module")
def variables():
    """Of a classifier, as a file holds them."""
    return drawn(NETWORK, 7)


@pytest.fixture(scope="module")
def whole(variables, tmp_path_factory) -> Weights:
    return saved(tmp_path_factory.mktemp("weights") / "whole.safetensors", variables)


def one_line(caught) -> None:
    assert "\n" not in str(caught.value)


# What goes where.


def test_all_of_a_file_replaces_all_variables_and_their_average(whole, variables):
    random = state_of(drawn(NETWORK, 1), ema=True)
    state = start_from(whole, random, IMAGES)
    assert_trees_equal({"params": state.params, **state.mutable}, variables)
    assert_trees_equal(state.ema, {"params": state.params, "mutable": state.mutable})
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((state.params, state.mutable))]
    averages = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state.ema)]
    assert not set(pointers) & set(averages)  # a step donates both
    assert start_from(None, random, IMAGES) is random


def test_a_part_is_replaced_with_its_statistics_and_the_rest_is_not(whole, variables):
    random = drawn(NETWORK.clone(num_classes=5), 1)  # with a head of another size
    state = start_from(replace(whole, part="backbone"), state_of(random, ema=True), IMAGES)
    found, before, file = names_of(state), flatten(random), flatten(variables)
    backbone = {name for name in found if name.split("/")[1] == "backbone"}
    assert {name.split("/")[0] for name in backbone} == {"params", "batch_stats"}
    assert found.keys() - backbone == {"params/head/kernel", "params/head/bias"}
    for name, value in found.items():
        assert (value == (file if name in backbone else before)[name]).all()
    assert_trees_equal(state.ema, {"params": state.params, "mutable": state.mutable})


def test_the_backbone_of_a_classifier_serves_a_segmenter(whole, variables):
    segmenter = FCN(num_classes=2, backbone=NETWORK.without_head(), width=4)
    state = start_from(replace(whole, part="backbone"), state_of(drawn(segmenter, 1)), IMAGES)
    found, file = names_of(state), flatten(variables)
    backbone = {name for name in file if name.split("/")[1] == "backbone"}
    assert backbone < found.keys()
    assert all((found[name] == file[name]).all() for name in backbone)


def test_a_part_may_go_to_another_place_and_several_files_into_one_network(whole, variables):
    """As of tasks with several players: each collection has an entry for each."""
    both = {
        name: {"critic": values, "encoder": {"body": values}}
        for name, values in drawn(NETWORK, 1).items()
    }
    weights = (
        replace(whole, into="critic"),
        replace(whole, part="backbone", into="encoder/body/backbone"),
    )
    found = names_of(start_from(weights, state_of(both), IMAGES))
    for name, value in flatten(variables).items():
        collection, _, path = name.partition("/")
        assert (found[f"{collection}/critic/{path}"] == value).all()
        same = (found[f"{collection}/encoder/body/{path}"] == value).all()
        assert same == path.startswith("backbone/")
    clash = (weights[0], replace(whole, part="head", into="critic/head"))
    with pytest.raises(WeightsError, match=r"are both for 'critic/head': set weights\.0\.") as e:
        start_from(clash, state_of(both), IMAGES)
    one_line(e)


# What does not fit.


@pytest.mark.parametrize(
    ("part", "model", "message"),
    [
        ("", NETWORK.clone(num_classes=5), r"params/head/bias is float32\[3\] there and float32\[5"
         r"\] in this one, and 1 more differ; give the model that was saved, or take a part"),
        ("backbone", NETWORK.clone(stage_sizes=(2,)), r"batch_stats/backbone/stage1_block2/norm1/"
         r"mean is absent there and float32\[4\] in this one, and \d+ more differ"),
        ("backbone", NETWORK.clone(norm=None), "unused"),
        ("spine", NETWORK, "the file has no part called 'spine': set weights.part to one of"
         " backbone, head"),
    ],
)  # fmt: skip
def test_what_is_missing_left_over_or_of_another_shape_is_one_line(whole, part, model, message):
    if message == "unused":  # left over: a network without statistics
        random = {"params": drawn(NETWORK, 1)["params"]}
        message = r"batch_stats/backbone/\S+ is float32\[4\] there and absent in this one"
    else:
        random = drawn(model, 1)
    with pytest.raises(WeightsError, match=message) as caught:
        start_from(replace(whole, part=part), state_of(random), IMAGES)
    one_line(caught)


def test_other_types_and_places_that_are_not_there_are_refused(whole, variables):
    halves = jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables)
    with pytest.raises(WeightsError, match=r"is float32\[4\] there and bfloat16\[4\] in this"):
        start_from(replace(whole, part="backbone"), state_of(halves), IMAGES)
    with pytest.raises(WeightsError, match=r"the network has no part called 'neck': set weights\."):
        start_from(replace(whole, into="neck"), state_of(variables), IMAGES)


def test_other_shapes_come_with_the_sizes_of_images_where_these_differ(whole):
    random = state_of(drawn(NETWORK.clone(width=8), 1))
    larger = replace(IMAGES, image=(16, 16, 3))
    with pytest.raises(WeightsError, match=r"it saw images \[8, 8, 3\], here they are \[16, 16"):
        start_from(whole, random, larger)
    with pytest.raises(WeightsError) as caught:
        start_from(whole, random, IMAGES)
    assert "it saw" not in str(caught.value)


# The scale of images.


def test_images_on_another_scale_are_refused_and_the_line_says_what_to_set(
    whole, variables, tmp_path
):
    state = state_of(variables)
    start_from(whole, state, replace(IMAGES, mean=(0.5, 0.5, 0.5)))  # one for all channels
    start_from(whole, state, replace(IMAGES, image=(16, 16, 3)))  # of no account to a convolution
    with pytest.raises(
        WeightsError, match=r"set data\.mean=\(0\.5,\) data\.std=\(0\.25,\)$"
    ) as caught:
        start_from(whole, state, Preprocessing((0.0,), (1.0,), (8, 8, 3)))
    one_line(caught)
    # From [−1, 1], as generators see images, it is a mean and a std of one half.
    signed = saved(tmp_path / "signed", variables, mean=[0.0], std=[1.0], range=[-1.0, 1.0])
    start_from(signed, state, Preprocessing((0.5,), (0.5,), (8, 8, 3)))
    start_from(signed, state, Preprocessing((0.0,), (1.0,), (8, 8, 3), (-1.0, 1.0)))
    with pytest.raises(WeightsError, match=r"set data\.mean=\(0\.5,\) data\.std=\(0\.5,\)$"):
        start_from(signed, state, Preprocessing((0.0,), (1.0,), (8, 8, 3)))
    path = tmp_path / "silent"
    save_weights(path, variables, {"mean": [0.5]})
    with pytest.raises(WeightsError, match="does not say the std of its images"):
        start_from(Weights(str(path)), state, IMAGES)


@pytest.mark.parametrize("span", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
def test_the_scale_of_a_preprocessing_does_both_of_its_steps_at_once(span):
    pixels = np.linspace(0, 1, 12).reshape(4, 3)
    seen = Preprocessing((0.1, 0.2, 0.3), (0.5, 0.6, 0.7), (8, 8, 3), span)
    mean, std = seen.scale()
    twice = (pixels - seen.mean) / seen.std * (span[1] - span[0]) + span[0]
    np.testing.assert_allclose((pixels - mean) / std, twice, rtol=1e-12)


def test_a_task_that_maps_images_itself_says_so():
    data = Data(mean=(0.5,))
    assert Experiment(Classify(NETWORK), data=data).preprocessing((8, 8, 3)) == Preprocessing(
        (0.5,), (1.0,), (8, 8, 3), (0.0, 1.0)
    )
    assert Experiment(Diffuse(NETWORK)).preprocessing((8, 8, 1)).range == (-1.0, 1.0)


# In a run.


def tiny_file(path: Path) -> tuple[Weights, dict]:
    images = np.zeros((1, 8, 8, 1), np.float32)
    random = jax.jit(Tiny().init)(jax.random.key(5), images)
    variables = jax.tree.map(lambda x: np.asarray(x) + np.float32(0.25), random)
    described = {"mean": [0.0], "std": [1.0], "image": [8, 8, 1]}
    return saved(path, variables, **described), variables


def test_weights_lie_as_the_state_does_and_train_as_if_they_had_been_drawn(tmp_path):
    weights, variables = tiny_file(tmp_path / "tiny.safetensors")
    experiment = override(make_tiny(), EIGHT)
    feed, program = lay_out(experiment)
    seen = experiment.preprocessing((8, 8, 1))
    state = start_from(weights, program.init(), seen)
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(
        lambda x: x.sharding, program.state
    )
    kernel = state.params["hidden"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (32, 16)  # a quarter
    assert_trees_equal({"params": state.params, **state.mutable}, variables)
    # The same state in buffers of its own.
    random = program.init()
    params, mutable = variables["params"], {"batch_stats": variables["batch_stats"]}
    values = replace(random, params=params, mutable=mutable)
    values = replace(values, ema={"params": params, "mutable": mutable})
    places = jax.tree.map(lambda like: like.sharding, random)
    other = jax.jit(partial(jax.tree.map, jnp.copy), out_shardings=places)(values)
    store, dispatch = feed.store(), program.compile()
    for _ in range(2):  # donates the first state
        items = feed.take(1, 1)
        state, _ = dispatch(state, store, items, np.int32(1))
        other, _ = dispatch(other, store, items, np.int32(1))
    assert_trees_equal(state, other)


def test_no_program_holds_an_array_of_the_file(tmp_path):
    """The text of the program is that of a run that begins at random."""
    weights, _ = tiny_file(tmp_path / "tiny.safetensors")
    one = override(make_tiny(), {"parallel.data": 1})

    def text(experiment: Experiment) -> str:
        init = lay_out(experiment)[1].init
        assert isinstance(init, partial)
        return init.func.lower(*init.args).as_text()

    began = text(replace(one, weights=weights))
    assert began == text(one)
    constants = [line for line in began.splitlines() if "stablehlo.constant" in line]
    assert max(map(len, constants)) < 500  # a kernel of 2,048 numbers, written out, has more


def anchored(learning_rate, weight_decay, mask) -> optax.GradientTransformation:
    """A method of one's own that keeps the first parameters, and pulls towards them."""

    def init(params):
        return jax.tree.map(jnp.copy, params)

    def update(updates, state, params=None):
        return jax.tree.map(lambda first, now: 0.5 * (first - now), state, params), state

    return optax.GradientTransformation(init, update)


@pytest.mark.parametrize("devices", [EIGHT, {"parallel.data": 1}])
def test_what_an_optimizer_keeps_of_the_first_parameters_is_of_the_file(tmp_path, devices):
    """In their shardings, and in buffers of its own: a step donates both."""
    weights, variables = tiny_file(tmp_path / "tiny.safetensors")
    tiny = override(make_tiny(), {**devices, "optimizer.method": anchored})
    experiment = override(replace(tiny, weights=weights), {"optimizer.freeze": ("conv",)})
    feed, program = lay_out(experiment)
    sets = open_sets(experiment)
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        state, _ = first_state(experiment, program, feed, sets, checkpoints, {}, lambda x: x)
    (kept,) = (x for x in state.opt_state if x)  # of the method, in a chain of one
    trained = {name: x for name, x in variables["params"].items() if name != "conv"}
    assert_trees_equal(kept, trained)
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(
        lambda x: x.sharding, program.state
    )
    store, dispatch = feed.store(), program.compile()
    state, _ = dispatch(state, store, feed.take(1, 1), np.int32(1))
    assert_trees_equal(jax.device_get(state.params), variables["params"])  # nothing pulls


@pytest.mark.usefixtures("training_alone")
def test_a_run_begins_with_its_weights_and_goes_on_without_their_file(tmp_path):
    path = tmp_path / "tiny.safetensors"
    weights, variables = tiny_file(path)
    changes = {
        "optimizer.learning_rate": 0.0,
        "loop.duration": "2 steps",
        "data.eval_splits": {},
        "parallel.data": 1,
    }
    experiment = replace(override(make_tiny(), changes), weights=weights)
    config, directory = resolve(experiment), tmp_path / "run"

    def train(stop: bool):
        return fit(experiment, directory, config=config, progress=False, stop=lambda: stop)

    assert train(stop=True).step == 1
    path.unlink()
    assert train(stop=False).finished  # from its checkpoint
    with Checkpoints(directory / "checkpoints") as checkpoints:
        state, _ = checkpoints.restore(lay_out(experiment)[1].state, config)
    assert_trees_equal(state.params, variables["params"])
    with pytest.raises(WeightsError, match="there is no"):
        fit(experiment, tmp_path / "anew", config=config, progress=False)


def test_fingerprints_tell_variables_apart():
    tree = {"params": {"a": jnp.ones((2, 3)), "b": jnp.zeros(2)}}
    assert fingerprint(tree) == fingerprint({"params": dict(reversed(tree["params"].items()))})
    others = (
        {"params": {**tree["params"], "b": jnp.full(2, 1e-7)}},
        {"params": {**tree["params"], "a": jnp.ones((3, 2))}},
        {"params": {"a": tree["params"]["a"], "c": tree["params"]["b"]}},
    )
    assert len({fingerprint(x) for x in (tree, *others)}) == 4


def test_scalars_have_their_place_too(tmp_path):
    described = json.dumps({"network": "x", **SCALE})
    save_file({"params/a/scale": np.array(3.0, np.float32)}, tmp_path / "f", {HEADER: described})
    random = state_of(unflatten({"params/a/scale": np.zeros((), np.float32)}))
    state = start_from(Weights(str(tmp_path / "f")), random, IMAGES)
    assert float(state.params["a"]["scale"]) == 3


# Which file it is, and where.


def test_a_file_is_known_by_its_sha256_wherever_it_lies(whole, tmp_path):
    """Without one it is that of the file when the run begins: other bytes are another run."""
    elsewhere = tmp_path / "x.safetensors"
    elsewhere.write_bytes(Path(whole.path).read_bytes())
    unnamed = Weights(str(elsewhere))
    start = partial(replace, make_tiny())

    def of(weights):
        return identities(start(weights=weights))[0]

    assert unnamed.known() == replace(whole, path=str(elsewhere))
    assert of(unnamed) == of(whole) == of((whole, unnamed)[1]) != of(None)
    assert of((whole, unnamed)) == of((unnamed, whole))
    assert of(replace(whole, part="backbone")) != of(whole)
    assert pinned(start(weights=(unnamed, whole))).weights[0].sha256 == whole.sha256
    before = of(unnamed)
    elsewhere.write_bytes(elsewhere.read_bytes()[:-4] + bytes(4))
    assert of(unnamed) != before
    elsewhere.unlink()
    with pytest.raises(WeightsError, match="there is no"):
        of(unnamed)
    assert of(replace(whole, path=str(elsewhere))) == of(whole)  # its bytes are known


def test_a_relative_path_begins_here_or_else_at_the_root_of_opsin(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.safetensors").write_bytes(Path(whole.path).read_bytes())
    assert Weights("mine.safetensors").known().sha256 == whole.sha256
    assert LENET.path == "results/extractors/lenet.safetensors"
    assert Weights(LENET.path).known().sha256 == LENET.sha256
    Path("results/extractors").mkdir(parents=True)
    Path("mine.safetensors").rename(LENET.path)
    assert Weights(LENET.path).known().sha256 == whole.sha256
    with pytest.raises(WeightsError, match=f"there is no {tmp_path}/gone.*export RUN {tmp_path}/g"):
        Weights("gone.safetensors").read()


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        ("not json", "does not say what network it holds"),
        ("[1", "does not say what network it holds"),
        ("[1]", "does not say what network it holds"),
        (json.dumps(SCALE | {"mean": 0.5}), "does not say the mean of its images"),
        (json.dumps(SCALE | {"std": ["a"]}), "does not say the std of its images"),
        (json.dumps(SCALE | {"range": [1]}), "does not say the range of its images"),
        (json.dumps(SCALE | {"mean": []}), "does not say the mean of its images"),
        (json.dumps(SCALE | {"mean": [10**400]}), "does not say the mean of its images"),
        (json.dumps(SCALE | {"mean": [True]}), "does not say the mean of its images"),
        (json.dumps(SCALE | {"std": [0]}), "says it saw images of .*, std .0. and range"),
        (json.dumps(SCALE | {"image": [-1, 2, 3]}), "says it saw images of .-1, 2, 3., std"),
        (json.dumps(SCALE | {"image": [2**40, 2, 3]}), "says it saw images of .1099511627776, 2"),
        (json.dumps(SCALE | {"range": [1, 0]}), "says it saw images of .* range .1, 0."),
    ],
)
def test_a_damaged_header_is_one_line(variables, tmp_path, header, complaint):
    path = tmp_path / "f.safetensors"
    path.write_bytes(save(flatten(variables), metadata={HEADER: header}))
    with pytest.raises(WeightsError, match=complaint) as caught:
        start_from(Weights(str(path)), state_of(variables), IMAGES)
    one_line(caught)
