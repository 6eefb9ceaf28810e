"""The networks of torchvision and timm: logits of random weights, where PyTorch is there."""

import importlib.util
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.interchange.conversion import to_ours, to_theirs
from opsin.models.classification.alexnet import AlexNetOneWeirdTrick
from opsin.models.classification.convnext import ConvNeXtTiny
from opsin.models.classification.efficientnet import EfficientNetB0, EfficientNetLite0
from opsin.models.classification.googlenet import GoogLeNetBatchNorm
from opsin.models.classification.mobilenet import MobileNetV2
from opsin.models.classification.resnet import ResNet18, ResNet50, SEResNet50
from opsin.models.classification.vgg import VGG11BatchNorm
from opsin.models.classification.vit import ViT, ViTTi
from opsin.models.segmentation.deeplab import DeepLabv3ResNet50
from opsin.models.segmentation.fcn import FCNResNet50

pytestmark = pytest.mark.proofs

torch = pytest.importorskip("torch", reason="make parity installs it")


@pytest.fixture(scope="module")
def peers():
    """Both libraries; torchvision's compiled operators do not fit every build of PyTorch."""
    names = ("torchvision", "timm")
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        pytest.skip(f"needs {' and '.join(missing)}")
    real = torch.library.register_fake

    def registered(name, *arguments, **options):
        if str(name).startswith("torchvision::"):
            return lambda function: function
        return real(name, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.library, "register_fake", registered)
        return {name: importlib.import_module(name) for name in names}


def randomised(network):
    """Weights, scales and statistics of which none is zero or one."""
    generator = torch.Generator().manual_seed(0)
    for name, array in network.state_dict().items():
        if name.endswith("running_var"):
            array.copy_(0.5 + torch.rand(array.shape, generator=generator))
        elif array.dtype == torch.float32 and array.ndim == 1:
            scale = 1.0 if name.endswith("weight") else 0.0
            array.copy_(scale + 0.1 * torch.randn(array.shape, generator=generator))
        elif array.dtype == torch.float32:
            deviation = (2 / np.prod(array.shape[1:])) ** 0.5
            array.copy_(deviation * torch.randn(array.shape, generator=generator))
    return network.eval()


def vision(name, **options):
    return lambda peers: getattr(peers["torchvision"].models, name)(**options)


def timm(name, **options):
    return lambda peers: peers["timm"].create_model(name, **options)


def segmenting(name):
    options = {"weights": None, "weights_backbone": None, "num_classes": 7, "aux_loss": True}
    return lambda peers: getattr(peers["torchvision"].models.segmentation, name)(**options)


TINY = {"image_size": 32, "patch_size": 16, "num_layers": 2, "num_heads": 3}
TINY |= {"hidden_dim": 48, "mlp_dim": 64}
AUXILIARY = {"aux_logits": True, "init_weights": False}
CASES = {
    "alexnet": (vision("alexnet"), AlexNetOneWeirdTrick(), 64),
    "vgg11_bn": (vision("vgg11_bn"), VGG11BatchNorm(), 32),
    "googlenet": (vision("googlenet", **AUXILIARY), GoogLeNetBatchNorm(), 65),
    "resnet18": (vision("resnet18"), ResNet18(), 65),
    "resnet50": (vision("resnet50"), ResNet50(), 65),
    "timm resnet50": (timm("resnet50"), ResNet50(), 64),
    "timm seresnet50": (timm("seresnet50"), SEResNet50(), 64),
    "mobilenet_v2": (vision("mobilenet_v2"), MobileNetV2(), 65),
    "timm mobilenetv2": (timm("mobilenetv2_100"), MobileNetV2(), 64),
    "efficientnet_b0": (vision("efficientnet_b0"), EfficientNetB0(), 65),
    "timm efficientnet_b0": (timm("efficientnet_b0"), EfficientNetB0(), 64),
    "timm lite0": (timm("tf_efficientnet_lite0"), EfficientNetLite0(), 65),
    "convnext_tiny": (vision("convnext_tiny"), ConvNeXtTiny(), 65),
    "timm convnext": (timm("convnext_tiny"), ConvNeXtTiny(), 64),
    "vit": (vision("VisionTransformer", **TINY), ViT(2, 48, 64, 3), 32),
    "timm deit": (
        timm("deit_tiny_patch16_224", img_size=32, depth=2),
        ViTTi(depth=2, scan=False),
        32,
    ),
    "deeplabv3": (segmenting("deeplabv3_resnet50"), DeepLabv3ResNet50(num_classes=7), 33),
    "fcn": (segmenting("fcn_resnet50"), FCNResNet50(num_classes=7), 33),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_and_input_gradients_are_theirs(peers, case):
    made, model, side = CASES[case]
    size = (side, side + 32) if model.__class__.__name__ != "ViT" else (side, side)
    with torch.no_grad():
        theirs = randomised(made(peers))
    arrays = {name: x.numpy() for name, x in theirs.state_dict().items()}
    converted = to_ours(arrays, model, (*size, 3))
    images = np.random.default_rng(0).normal(size=(1, *size, 3)).astype(np.float32)

    seen = torch.tensor(images.transpose(0, 3, 1, 2), dtype=torch.float64, requires_grad=True)
    result = theirs.double()(seen)
    logits = result["out"] if isinstance(result, dict) else result
    directions = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).double()
    (logits * directions).sum().backward()
    last = (0, *range(2, logits.ndim), 1)
    expected = logits.detach().numpy().transpose(last)

    wide = converted.model.clone(dtype=jnp.float64)
    if hasattr(wide, "backbone"):
        wide = wide.clone(backbone=wide.backbone.clone(dtype=jnp.float64))

    def both(variables, images, directions):
        narrow = converted.model.apply(variables, images.astype(jnp.float32))
        double = jax.tree.map(lambda x: x.astype(jnp.float64), variables)
        logits, pullback = jax.vjp(partial(wide.apply, double), images)
        return narrow, logits, pullback(directions.astype(logits.dtype))[0]

    # In float64 no ReLU decides otherwise by rounding, as some in a deep network do.
    with jax.enable_x64(True):
        narrow, ours, gradient = jax.jit(both)(
            converted.variables, images.astype(np.float64), directions.numpy().transpose(last)
        )
    assert_close(narrow, expected)
    assert_close(ours, expected)
    assert_close(gradient, seen.grad.numpy().transpose(0, 2, 3, 1))

    back = to_theirs(converted.variables, converted.model, converted.dialect)
    assert back.keys() == arrays.keys()
    for name, array in back.items():
        if "num_batches_tracked" not in name:
            np.testing.assert_array_equal(array, arrays[name])


def assert_close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def test_positions_are_resized_as_timm_resizes_them(peers):
    layers = importlib.import_module("timm.layers")
    with torch.no_grad():
        theirs = randomised(peers["timm"].create_model("deit_tiny_patch16_224", depth=1))
    arrays = {name: x.numpy() for name, x in theirs.state_dict().items()}
    converted = to_ours(arrays, ViTTi(depth=1), (160, 160, 3))
    expected = layers.resample_abs_pos_embed(theirs.pos_embed, [10, 10], num_prefix_tokens=1)
    found = converted.variables["params"]["backbone"]["positions"]
    np.testing.assert_allclose(found, expected.detach().numpy()[0], rtol=0, atol=1e-6)
