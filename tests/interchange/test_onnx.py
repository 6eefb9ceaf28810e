"""A network as a model of ONNX: onnxruntime answers as the network does, for any batch."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from opsin.interchange import onnx
from opsin.models.classification.mobilenet import MobileNetV2
from opsin.models.classification.resnet import ResNet20
from opsin.models.classification.vit import ViT
from opsin.models.segmentation.unet import UNet
from opsin.train.settings import SettingError
from tests.drawn import variables

onnxruntime: Any = pytest.importorskip("onnxruntime")
pytest.importorskip("jax2onnx")


def run(model: bytes, images: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of each shape that is left open
    session = onnxruntime.InferenceSession(model, options)
    (result,) = session.run(None, {"images": images})
    return result


def pixels(batch: int, *image: int) -> np.ndarray:
    return np.random.default_rng(batch).integers(0, 256, (batch, *image), np.uint8)


def answers(
    answer: Callable[[Any], Any], image: tuple[int, int, int]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of one and of three images: what onnxruntime says, and what the function does."""
    model, mapped = onnx.model_of(answer, image), jax.jit(jax.vmap(answer))
    for batch in (1, 3):
        images = pixels(batch, *image)
        yield run(model, images), np.asarray(mapped(images))


def test_what_jax2onnx_does_not_take_is_written_otherwise():
    """Padding of any sign where the batch has any size, and kernels with swapped channels."""
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 2)).astype(np.float32)

    def answer(image: jax.Array) -> jax.Array:
        x = image[None].astype(jnp.float32) / 255
        x = lax.pad(x, 0.5, [(0, 0, 0), (2, -1, 0), (-1, 0, 0), (0, 1, 0)])
        return lax.conv_transpose(x, kernel, (2, 2), "SAME", transpose_kernel=True)[0]

    for found, wanted in answers(answer, (5, 6, 1)):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


NETWORKS: dict[str, tuple[nn.Module, tuple[int, int, int]]] = {
    "resnet": (ResNet20(num_classes=10), (16, 16, 3)),
    "vit": (ViT(2, 32, 64, 4, patch=4, num_classes=10), (16, 16, 3)),
    "unet": (UNet(num_classes=2, width=4, padding="same"), (32, 32, 1)),
    "mobilenet": (MobileNetV2(num_classes=10), (32, 32, 3)),
}


@pytest.mark.proofs
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_answer_as_here(name: str):
    model, image = NETWORKS[name]
    drawn = variables(model.init, jnp.zeros((1, *image)))

    def answer(image: jax.Array) -> Any:
        return model.apply(drawn, image[None].astype(jnp.float32) / 255)[0]

    for found, wanted in answers(answer, image):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_model_that_says_something_else_is_not_written(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(onnx, "_convolved", lambda x, kernel, **params: x)

    def answer(image: jax.Array) -> jax.Array:
        kernel = np.full((1, 1, 1, 1), 0.5, np.float32)
        return lax.conv_transpose(image[None] / 255, kernel, (1, 1), "SAME")[0]

    with pytest.raises(SettingError, match="takes this network for another"):
        onnx.model_of(answer, (3, 3, 1))


def test_what_it_does_not_know_is_one_line(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(SettingError, match="does not know a part of this network") as told:
        onnx.model_of(lambda image: lax.linalg.eigh(jnp.eye(3) * image[0, 0, 0])[0], (2, 2, 1))
    assert "\n" not in str(told.value)
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(SettingError, match="needs jax2onnx: pip install --no-deps jax2onnx onnx"):
        onnx.model_of(lambda image: image, (2, 2, 1))
