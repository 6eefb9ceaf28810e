"""Weights go out by another library's names and come back the same; nothing is left or missing."""

import json
import struct
from functools import partial

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from opsin.interchange import files
from opsin.interchange.conversion import rules_of, to_ours, to_theirs
from opsin.models.classification.alexnet import AlexNetOneWeirdTrick
from opsin.models.classification.convnext import ConvNeXt
from opsin.models.classification.efficientnet import EfficientNet, EfficientNetLite0
from opsin.models.classification.googlenet import GoogLeNetBatchNorm
from opsin.models.classification.lenet import LeNet5
from opsin.models.classification.mobilenet import MobileNetV2
from opsin.models.classification.resnet import BottleneckBlock, ResNet, ResNet18
from opsin.models.classification.vgg import VGG
from opsin.models.classification.vit import ViT
from opsin.models.layers import batch_norm
from opsin.models.segmentation.deeplab import DeepLabv3
from opsin.models.segmentation.fcn import FCN
from opsin.train.weights import WeightsError
from tests import drawn

SMALL = partial(ResNet, stage_sizes=(1, 2), block=BottleneckBlock, width=4)
TINY_VIT = partial(ViT, depth=2, width=12, mlp_width=8, heads=3, patch=16)
BACKBONE = SMALL().without_head()
STAGES = ((1, 3, 1, 8, 1), (2, 3, 2, 8, 2))
MODULE = (1, 1, 1, 1, 1, 1)
MODELS = {
    "bottlenecks": SMALL(num_classes=3),
    "alexnet": AlexNetOneWeirdTrick(num_classes=3, widths=(2,) * 5, hidden=3),
    "googlenet": GoogLeNetBatchNorm(
        num_classes=3, stem=(2, 2, 2), stages=((MODULE,),) * 3, auxiliary=("4a",)
    ),
    "mobilenet": MobileNetV2(num_classes=3, width=0.25, stages=STAGES),
    "efficientnet": EfficientNet(num_classes=3, width=0.25, stages=STAGES),
    "efficientnet without gates": EfficientNetLite0(num_classes=3, stages=STAGES),
    "efficientnet as TensorFlow pads": EfficientNet(
        num_classes=3, width=0.25, depth=1.5, padding="same", stages=STAGES
    ),
    "convnext": ConvNeXt((1, 1), width=4, num_classes=3),
    "vgg": VGG((1, 2), width=2, num_classes=3, hidden=5),
    "vgg with norms": VGG((1, 2), width=2, num_classes=3, hidden=5, norm=batch_norm),
    "vit": TINY_VIT(num_classes=3),
    "vit, not stacked": TINY_VIT(num_classes=3, scan=False),
    "vit without class token": TINY_VIT(num_classes=3, pool="gap"),
    "deeplab": DeepLabv3(
        num_classes=3, backbone=BACKBONE, rates=(1, 2, 3), width=4, auxiliary=True
    ),
    "fcn": FCN(num_classes=3, backbone=BACKBONE, auxiliary=True),
}
IMAGE = (64, 64, 3)
IMAGES = np.zeros((1, *IMAGE), np.float32)


def variables_of(model):
    variables = drawn.variables(model.init, IMAGES)
    return {name: variables[name] for name in ("params", "batch_stats") if name in variables}


CASES = [(name, dialect) for name, model in MODELS.items() for dialect in rules_of(model)]


@pytest.mark.parametrize(("name", "dialect"), CASES)
def test_what_goes_out_comes_back(name, dialect):
    model = MODELS[name]
    variables = variables_of(model)
    arrays = to_theirs(variables, model, dialect)
    counters = {name for name in arrays if "num_batches_tracked" in name}
    numbers = sum(x.size for name, x in arrays.items() if name not in counters)
    assert numbers == sum(x.size for x in jax.tree.leaves(variables))
    converted = to_ours(arrays, model.clone(num_classes=5), IMAGE)
    assert converted.model == model  # with the classes of the file
    assert set(converted.unused) == counters
    jax.tree.map(np.testing.assert_array_equal, converted.variables, variables)


def test_names_are_torchvisions():
    arrays = to_theirs(variables_of(SMALL()), SMALL(), "torchvision")
    assert arrays.keys() >= {
        *("conv1.weight", "bn1.running_var", "layer1.0.conv3.weight", "layer2.1.bn2.bias"),
        *("layer2.0.downsample.0.weight", "layer2.0.downsample.1.running_mean", "fc.bias"),
    }
    shapes = jax.eval_shape(ResNet18().init, jax.random.key(0), IMAGES)
    zeros = jax.tree.map(lambda x: np.zeros((), x.dtype) + np.zeros(x.shape, x.dtype), shapes)
    assert len(to_theirs(zeros, ResNet18(), "torchvision")) == 122  # as torchvision's state_dict
    vit = to_theirs(variables_of(TINY_VIT()), TINY_VIT(), "torchvision")
    assert vit["encoder.layers.encoder_layer_1.self_attention.in_proj_weight"].shape == (36, 12)


def arrays_of_small():
    return to_theirs(variables_of(SMALL(num_classes=3)), SMALL(num_classes=3), "torchvision")


def without(arrays):
    del arrays["layer1.0.bn1.bias"], arrays["layer2.0.conv1.weight"]


def with_more(arrays):
    arrays["fc_norm.weight"] = np.zeros(3)


def infinite(arrays):
    arrays["bn1.weight"] = np.full(4, 1e300)


def misshapen(arrays):
    arrays["conv1.weight"] = arrays["conv1.weight"][:, :, :5]


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (without, "weights of torchvision's ResNet: 2 arrays are missing, first layer1.0.bn1.bias"),
        (with_more, "1 arrays are left over, first fc_norm.weight"),
        (infinite, "bn1.weight holds numbers that are not finite in float32"),
        (misshapen, "conv1.weight does not fit params/backbone/stem_conv/kernel: "),
    ],
)
def test_every_array_is_accounted_for(damage, told):
    arrays = arrays_of_small()
    damage(arrays)
    with pytest.raises(WeightsError, match=told) as error:
        to_ours(arrays, SMALL(), IMAGE)
    assert "\n" not in str(error.value)


def test_models_without_names_elsewhere_say_so():
    with pytest.raises(WeightsError, match="arrays of LeNet5 is not known"):
        to_ours({}, LeNet5(), IMAGE)
    variables = {"params": {}, "cache": {}}
    with pytest.raises(WeightsError, match=r"no name for the variables \['cache'\]"):
        to_theirs(variables, SMALL(), "timm")
    with pytest.raises(WeightsError, match="DeepLabv3 are known of torchvision alone"):
        to_theirs({}, MODELS["deeplab"], "timm")
    option = {"params": {"backbone": {"gate": {"kernel": np.zeros((2, 2))}}}}
    with pytest.raises(WeightsError, match="no name for params/backbone/gate/kernel of ResNet"):
        to_theirs(option, SMALL(), "timm")


def test_learned_positions_are_resized_to_other_images():
    """A plane stays a plane where the cubic kernel does not reach over the edge; see the proofs."""
    arrays = to_theirs(variables_of(TINY_VIT()), TINY_VIT(), "timm")
    rows, columns = np.mgrid[:4, :4].reshape(2, 16, 1)
    plane = 1 + rows * 0.5 + columns * np.arange(12) * 0.1
    arrays["pos_embed"] = np.concatenate([np.full((1, 12), 9.0), plane])[None].astype(np.float32)
    converted = to_ours(arrays, TINY_VIT(), (128, 128, 3))
    found = converted.variables["params"]["backbone"]["positions"]
    np.testing.assert_array_equal(found[0], 9.0)
    rows, columns = (np.mgrid[:8, :8] + 0.5) / 2 - 0.5
    inside = np.s_[3:5, 3:5]
    expected = 1 + rows[..., None] * 0.5 + columns[..., None] * np.arange(12) * 0.1
    np.testing.assert_allclose(
        found[1:].reshape(8, 8, 12)[inside], expected[inside], rtol=1e-5, atol=1e-6
    )
    arrays["pos_embed"] = np.zeros((1, 15, 12), np.float32)
    with pytest.raises(WeightsError, match="15 positions cannot be resized to 65: no squares"):
        to_ours(arrays, TINY_VIT(), (128, 128, 3))


def test_half_precision_is_read_as_it_is(tmp_path):
    array = np.linspace(-2, 2, 9, dtype=np.float16)
    save_file({"a": array}, tmp_path / "half.safetensors")
    arrays, digest = files.read(tmp_path / "half.safetensors")
    np.testing.assert_array_equal(arrays["a"], array)
    assert len(digest) == 64


def tensor(kind: str) -> bytes:
    """A file of four numbers of a type, of one byte each."""
    header = {"a": {"dtype": kind, "shape": [4], "data_offsets": [0, 4]}}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(4)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("gone.safetensors", None, "cannot read .*: No such file"),
        ("a.safetensors", b"", "is damaged, or no safetensors file"),
        ("f.safetensors", tensor("F8_E4M3"), "a is F8_E4M3, which NumPy lacks: save it as F32"),
        ("b.safetensors", b"\x80\x04K\x01.", "is damaged, or no safetensors file"),
        ("c.safetensors", b"\xff" * 8 + b"{}", "is damaged, or no safetensors file"),
        ("d.safetensors", b"\x02" + b"\0" * 7 + b"{}", "holds no arrays"),
        ("e.pth", b"\x80\x04K\x01.", "PyTorch"),
    ],
)
def test_what_is_no_file_of_weights_is_one_line(tmp_path, name, content, told):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=told) as error:
        files.read(tmp_path / name)
    assert "\n" not in str(error.value)
