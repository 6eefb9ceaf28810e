"""The networks of torchvision and timm: logits of random weights, where PyTorch is there."""

import importlib.util
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.interchange.conversion import to_ours, to_theirs
from opsin.models.classification import resnet, vgg, vit
from opsin.models.segmentation import deeplab, fcn

pytestmark = pytest.mark.proofs

torch = pytest.importorskip("torch", reason="needs the extra bench")


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


TINY = {"image_size": 32, "patch_size": 16, "num_layers": 2, "num_heads": 3}
SEGMENTERS = {"weights": None, "weights_backbone": None, "num_classes": 7, "aux_loss": True}
CASES = {
    "resnet18": (lambda p: p["torchvision"].models.resnet18(), resnet.ResNet18(), (65, 96)),
    "resnet50": (lambda p: p["torchvision"].models.resnet50(), resnet.ResNet50(), (65, 96)),
    "timm resnet50": (lambda p: p["timm"].create_model("resnet50"), resnet.ResNet50(), (64, 64)),
    "vgg11": (lambda p: p["torchvision"].models.vgg11(), vgg.VGG11(), (64, 64)),
    "vgg11_bn": (lambda p: p["torchvision"].models.vgg11_bn(), vgg.VGG11BatchNorm(), (64, 64)),
    "vit": (
        lambda p: p["torchvision"].models.VisionTransformer(**TINY, hidden_dim=48, mlp_dim=64),
        vit.ViT(depth=2, width=48, mlp_width=64, heads=3),
        (32, 32),
    ),
    "timm deit": (
        lambda p: p["timm"].create_model("deit_tiny_patch16_224", img_size=32, depth=2),
        vit.ViTTi(depth=2, scan=False),
        (32, 32),
    ),
    "deeplabv3": (
        lambda p: p["torchvision"].models.segmentation.deeplabv3_resnet50(**SEGMENTERS),
        deeplab.DeepLabv3ResNet50(num_classes=7),
        (65, 65),
    ),
    "fcn": (
        lambda p: p["torchvision"].models.segmentation.fcn_resnet50(**SEGMENTERS),
        fcn.FCNResNet50(num_classes=7),
        (65, 65),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_and_input_gradients_are_theirs(peers, case):
    made, model, size = CASES[case]
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

    # In float64 no ReLU decides otherwise by rounding, as some in a deep network do.
    with jax.enable_x64(True):
        wide = converted.model.clone(dtype=jnp.float64)
        if hasattr(wide, "backbone"):
            wide = wide.clone(backbone=wide.backbone.clone(dtype=jnp.float64))
        apply = partial(wide.apply, converted.variables)
        ours, pullback = jax.vjp(jax.jit(apply), images.astype(np.float64))
        (gradient,) = pullback(jnp.asarray(directions.numpy().transpose(last), ours.dtype))
    assert_close(ours, expected)
    assert_close(gradient, seen.grad.numpy().transpose(0, 2, 3, 1))
    narrow = jax.jit(converted.model.apply)(converted.variables, images)
    assert_close(narrow, expected)

    back = to_theirs(converted.variables, converted.model, converted.dialect)
    assert back.keys() == {name for name in arrays if "num_batches_tracked" not in name}
    for name, array in back.items():
        np.testing.assert_array_equal(array, arrays[name])


def assert_close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def test_positions_are_resized_as_timm_resizes_them(peers):
    layers = importlib.import_module("timm.layers")
    with torch.no_grad():
        theirs = randomised(peers["timm"].create_model("deit_tiny_patch16_224", depth=1))
    arrays = {name: x.numpy() for name, x in theirs.state_dict().items()}
    converted = to_ours(arrays, vit.ViTTi(depth=1), (160, 160, 3))
    expected = layers.resample_abs_pos_embed(theirs.pos_embed, [10, 10], num_prefix_tokens=1)
    found = converted.variables["params"]["backbone"]["positions"]
    np.testing.assert_allclose(found, expected.detach().numpy()[0], rtol=0, atol=1e-6)
