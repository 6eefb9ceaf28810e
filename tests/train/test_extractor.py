"""What is saved is what is read, bit for bit, and nothing else is read."""

import hashlib
import json
import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from opsin.data.files import WriteError
from opsin.models.classification.lenet import LeNet5, LeNet5Original
from opsin.models.classification.resnet import cifar_resnet
from opsin.models.classification.vgg import VGG
from opsin.models.classification.vit import ViT
from opsin.train.extractor import Extractor
from opsin.train.paths import unflatten
from opsin.train.settings import SettingError
from opsin.train.weights import Weights, WeightsError, save_weights
from tests.train.conftest import Tiny, assert_trees_equal

IMAGE = (28, 28, 1)
FACTS = {"mean": (0.1307,), "std": (0.3081,), "classes": 10}
ORIGIN = {"run": "mnist_lenet/0123456789ab", "test/accuracy": 0.993}


def random_variables(model: nn.Module, image: tuple[int, int, int], seed: int = 0):
    """Drawn in NumPy: compiling an initialiser takes longer than the test. Variances positive."""
    rng = np.random.default_rng(seed)
    images = jax.ShapeDtypeStruct((1, *image), jnp.float32)
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)

    def draw(leaf):
        if leaf.ndim == 1:
            return rng.uniform(0.1, 0.5, leaf.shape).astype(leaf.dtype)
        return rng.normal(0, (leaf.size / leaf.shape[-1]) ** -0.5, leaf.shape).astype(leaf.dtype)

    return jax.tree.map(draw, shapes)


VARIABLES = random_variables(LeNet5(), IMAGE)


def save_extractor(path: Path, name: str, variables, **described) -> str:
    return save_weights(path, variables, {"network": name, **described})


def save_lenet(path: Path, variables=VARIABLES, **changed) -> str:
    return save_extractor(
        path, "lenet", variables, image=IMAGE, **{**FACTS, "origin": ORIGIN, **changed}
    )


@pytest.fixture(scope="module")
def lenet(tmp_path_factory: pytest.TempPathFactory) -> Extractor:
    path = tmp_path_factory.mktemp("extractors") / "new" / "lenet.safetensors"
    sha256 = save_lenet(path)
    return Extractor(name="lenet", model=LeNet5(), path=str(path), sha256=sha256, batch=8)


@pytest.fixture(scope="module")
def extract(lenet: Extractor):
    return lenet.load()


def digits(number: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (number, *IMAGE), np.uint8)


def test_arrays_come_back_bit_for_bit(lenet: Extractor):
    arrays = load_file(lenet.path)
    assert_trees_equal(unflatten(arrays), VARIABLES)
    assert {str(array.dtype) for array in arrays.values()} == {"float32"}
    assert "params/c1/kernel" in arrays


def test_batch_statistics_and_any_layout_of_memory_come_back(tmp_path: Path):
    variables = random_variables(Tiny(), (8, 8, 1))
    turned = jax.tree.map(np.asfortranarray, variables)
    assert not turned["params"]["conv"]["kernel"].flags.c_contiguous
    save = partial(save_extractor, name="tiny", image=(8, 8, 1), origin={}, **FACTS)
    for path, tree in ((tmp_path / "a", turned), (tmp_path / "b", variables)):
        save(path, variables=jax.tree.map(jnp.asarray, tree) if tree is variables else tree)
        assert_trees_equal(unflatten(load_file(path)), variables)
    assert "batch_stats/norm/mean" in load_file(tmp_path / "a")


def test_the_header_says_what_it_is(lenet: Extractor):
    with safe_open(lenet.path, framework="numpy") as file:
        described = json.loads(file.metadata()["extractor"])
    assert described == {
        "network": "lenet",
        "mean": [0.1307],
        "std": [0.3081],
        "image": [28, 28, 1],
        "classes": 10,
        "origin": ORIGIN,
    }


def test_the_same_network_is_the_same_file(lenet: Extractor, tmp_path: Path):
    for name in ("a", "b", "c"):
        assert save_lenet(tmp_path / name) == lenet.sha256
        content = (tmp_path / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == lenet.sha256
    backwards = {name: VARIABLES["params"][name] for name in reversed(VARIABLES["params"])}
    assert save_lenet(tmp_path / "a", {"params": backwards}) == lenet.sha256
    assert save_lenet(tmp_path / "a", origin=dict(reversed(ORIGIN.items()))) == lenet.sha256
    assert save_lenet(tmp_path / "a", mean=(0.13,)) != lenet.sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]  # no parts left


def test_features_are_what_goes_into_the_last_layer(extract):
    images = digits(5)
    features, probabilities = extract(images)
    assert (features.shape, probabilities.shape) == ((5, 84), (5, 10))
    assert features.dtype == probabilities.dtype == np.float32
    head = VARIABLES["params"]["head"]
    shares = jax.nn.softmax(features @ head["kernel"] + head["bias"])
    np.testing.assert_allclose(probabilities, shares, rtol=1e-4, atol=1e-6)
    normalised = (images.astype(np.float32) / 255 - 0.1307) / 0.3081
    logits, seen = jax.jit(partial(LeNet5().apply, capture_intermediates=True, mutable=True))(
        VARIABLES, normalised
    )
    np.testing.assert_allclose(probabilities, jax.nn.softmax(logits), rtol=1e-4, atol=1e-6)
    f6 = seen["intermediates"]["f6"]["__call__"][0]
    np.testing.assert_allclose(features, np.maximum(f6, 0), rtol=1e-4, atol=1e-5)
    assert (features > 0).any()


def test_an_image_gives_the_same_however_many_there_are(lenet: Extractor, extract):
    images = digits(21)
    features, probabilities = extract(images)
    for number in (1, 7, 8, 9, 16):
        some = extract(images[:number])
        np.testing.assert_array_equal(some[0], features[:number])
        np.testing.assert_array_equal(some[1], probabilities[:number])
    at_once = replace(lenet, batch=32).load()(images)
    np.testing.assert_allclose(at_once[0], features, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(at_once[1], probabilities, rtol=1e-5, atol=1e-6)


def test_bytes_and_floats_are_the_same_images(extract):
    images = digits(5)
    expected = extract(images)
    same = (jnp.asarray(images), images.astype(np.float32) / np.float32(255))
    for found in map(extract, same):
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])
    for floats in (images / 255, jnp.asarray(images / 255, jnp.bfloat16)):
        features, _ = extract(floats)
        assert features.dtype == np.float32
        np.testing.assert_allclose(features, expected[0], atol=0.05)


@pytest.mark.parametrize(
    ("model", "image", "width"),
    [
        (Tiny(), (8, 8, 1), 16),
        (cifar_resnet(8, num_classes=4), (8, 8, 3), 64),
        (ViT(depth=1, width=8, mlp_width=8, heads=2, patch=4, num_classes=4), (8, 8, 3), 8),
        (VGG(stage_sizes=(1,), width=4, hidden=12, num_classes=4), (8, 8, 3), 12),
    ],
)
def test_any_network_with_a_head(tmp_path: Path, model: nn.Module, image, width: int):
    path = tmp_path / "x.safetensors"
    facts = {"mean": (0.5,) * image[2], "std": (0.25,) * image[2], "classes": 4}
    save_extractor(path, "x", random_variables(model, image), image=image, origin={}, **facts)
    extractor = Extractor(name="x", model=model, path=str(path), batch=4)
    images = np.random.default_rng(0).random((3, *image), np.float32)
    features, probabilities = extractor.load()(images)
    assert (features.shape, probabilities.shape) == ((3, width), (3, 4))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def one_line(caught: pytest.ExceptionInfo[WeightsError]) -> str:
    (line,) = str(caught.value).splitlines()
    return line


def test_a_missing_file_is_told_with_the_command_that_makes_it(lenet: Extractor, tmp_path: Path):
    path = tmp_path / "none.safetensors"
    with pytest.raises(WeightsError, match="there is no") as caught:
        replace(lenet, path=str(path)).load()
    assert f"`opsin export RUN {path}`" in one_line(caught)
    with pytest.raises(WeightsError, match="is a directory") as caught:
        replace(lenet, path=str(tmp_path)).load()
    assert f"`opsin export {tmp_path} FILE`" in one_line(caught)


def test_other_weights_are_told_by_their_hash(lenet: Extractor, tmp_path: Path):
    path = tmp_path / "lenet.safetensors"
    other = save_lenet(path, random_variables(LeNet5(), IMAGE, seed=1))
    with pytest.raises(WeightsError, match=f"has sha256 {other}, not {lenet.sha256}") as caught:
        replace(lenet, path=str(path)).load()
    one_line(caught)
    replace(lenet, path=str(path), sha256=None).load()
    content = bytearray(Path(lenet.path).read_bytes())
    content[-1] ^= 1  # one bit of one weight
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="these are other weights"):
        replace(lenet, path=str(path)).load()


def test_a_batch_of_no_images_is_told(lenet: Extractor):
    with pytest.raises(WeightsError, match="batch is at least 1, got 0"):
        replace(lenet, batch=0)


@pytest.mark.parametrize("damage", ["empty", "short", "cut", "text"])
def test_a_damaged_file_is_told_in_one_line(lenet: Extractor, tmp_path: Path, damage: str):
    content = Path(lenet.path).read_bytes()
    damaged = {"empty": b"", "short": content[:5], "cut": content[:-8], "text": b"hello\n" * 99}
    path = tmp_path / "lenet.safetensors"
    path.write_bytes(damaged[damage])
    with pytest.raises(WeightsError, match="damaged, or no safetensors file") as caught:
        replace(lenet, path=str(path), sha256=None).load()
    assert f"`opsin export RUN {path}`" in one_line(caught)


class Trap:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_a_pickle_is_never_read(lenet: Extractor, tmp_path: Path):
    trace, path = tmp_path / "trace", tmp_path / "lenet.safetensors"
    path.write_bytes(pickle.dumps(Trap(trace)))
    with pytest.raises(WeightsError, match="no safetensors file") as caught:
        replace(lenet, path=str(path), sha256=None).load()
    one_line(caught)
    assert not trace.exists()
    pickle.loads(path.read_bytes())
    assert trace.exists()  # the trap works


def test_arrays_of_another_network_are_told_by_the_first_that_differs(
    lenet: Extractor, tmp_path: Path
):
    path = tmp_path / "lenet.safetensors"
    for model, words in (
        (
            LeNet5(num_classes=7),
            r"params/head/bias is float32\[10\] there and float32\[7\] in this one",
        ),
        (
            LeNet5Original(),
            r"params/c3/kernel is float32\[5, 5, 6, 16\] there and float32\[5, 5, 60\]",
        ),
        (Tiny(), r"batch_stats/norm/mean is absent there and float32\[8\] in this one"),
    ):
        with pytest.raises(WeightsError, match=words) as caught:
            replace(lenet, model=model).load()
        one_line(caught)
    more = {**VARIABLES, "batch_stats": {"x": np.ones(3, np.float32)}}
    half = jax.tree.map(lambda leaf: leaf.astype(np.float16), VARIABLES)
    for variables, words in (
        (more, r"batch_stats/x is float32\[3\] there and absent in this one"),
        (half, r"params/c1/bias is float16\[6\] there and float32\[6\] in this one"),
    ):
        save_lenet(path, variables)
        with pytest.raises(WeightsError, match=words):
            replace(lenet, path=str(path), sha256=None).load()


def test_a_network_of_another_name_or_none_is_told(lenet: Extractor, tmp_path: Path):
    with pytest.raises(WeightsError, match="holds 'lenet', not 'resnet'"):
        replace(lenet, name="resnet").load()
    path = tmp_path / "bare.safetensors"
    save_file({"x": np.ones(3)}, path)
    with pytest.raises(WeightsError, match="does not say what network it holds") as caught:
        replace(lenet, path=str(path), sha256=None).load()
    one_line(caught)


def test_a_size_that_the_network_does_not_take_is_told(lenet: Extractor, tmp_path: Path):
    path = tmp_path / "lenet.safetensors"
    save_extractor(path, "lenet", VARIABLES, image=(40, 40, 1), origin={}, **FACTS)
    with pytest.raises(WeightsError, match=r"of another network: LeNet-5 takes") as caught:
        replace(lenet, path=str(path), sha256=None).load()
    one_line(caught)


class Headless(nn.Module):
    """A network whose last layer has another name."""

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        return nn.Dense(4, name="logits")(x.reshape(len(x), -1))


def test_a_network_without_a_head_is_told_when_it_is_loaded(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    variables = random_variables(Headless(), IMAGE)
    save_extractor(path, "x", variables, image=IMAGE, origin={}, **FACTS)
    with pytest.raises(SettingError, match="Headless has no layer called head"):
        Extractor(name="x", model=Headless(), path=str(path)).load()


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (
            np.zeros((2, 32, 32, 1), np.uint8),
            r"takes images \[n, 28, 28, 1\], got \[2, 32, 32, 1\]",
        ),
        (np.zeros((2, 28, 28, 3), np.uint8), r"got \[2, 28, 28, 3\]"),
        (np.zeros((28, 28, 1), np.uint8), r"got \[28, 28, 1\]"),
        (np.zeros((0, 28, 28, 1), np.uint8), r"got \[0, 28, 28, 1\]"),
        (np.full((2, 28, 28, 1), -0.5), r"floats in \[0, 1\]"),
        (np.full((2, 28, 28, 1), 255.0), r"floats in \[0, 1\]"),
        (np.full((2, 28, 28, 1), np.nan), "not finite: the generator or its sampler gave them"),
        (np.full((2, 28, 28, 1), np.inf), "not finite: the generator or its sampler gave them"),
        (np.zeros((2, 28, 28, 1), np.int32), r"of type uint8, or floats"),
    ],
)
def test_wrong_images_are_told_in_one_line(extract, images, words):
    with pytest.raises(WeightsError, match=words) as caught:
        extract(images)
    one_line(caught)


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"cannot write to .*lenet \(File exists\)") as caught:
        save_lenet(tmp_path / "file" / "lenet")
    one_line(caught)


def test_a_save_that_fails_leaves_the_file_that_was_there(tmp_path: Path, monkeypatch):
    path = tmp_path / "lenet.safetensors"
    save_lenet(path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(WriteError, match="No space left on device"):
        save_lenet(path, random_variables(LeNet5(), IMAGE, seed=1))
    assert path.read_bytes() == before


def test_weights_are_those_of_the_network_or_are_refused(lenet: Extractor):
    images = jax.ShapeDtypeStruct((1, *IMAGE), jnp.float32)
    weights = Weights(lenet.path, lenet.sha256)
    assert_trees_equal(weights.load(LeNet5().init, jax.random.key(0), images), VARIABLES)
    with pytest.raises(WeightsError, match=r"of another network: params/.* is "):
        weights.load(LeNet5(num_classes=7).init, jax.random.key(0), images)
    with pytest.raises(WeightsError, match="these are other weights"):
        Weights(lenet.path, "0" * 64).read()
