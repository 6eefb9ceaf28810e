"""Every task takes the same steps under ``pmap`` as under ``jit``, randomness included.

A device draws as one of as many microbatches does, if it has the same images: those of eight
devices stand in blocks, those of microbatches take turns. What synchronises statistics of a batch
(batch norm, codebooks) has no equal in microbatches, and is compared without randomness beside the
task itself (``test_step``, ``test_segment``, ``test_autoencode``).
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.config.tree import override
from opsin.data.sources import synthetic
from opsin.losses.adversarial import NON_SATURATING
from opsin.losses.likelihoods import Gaussian
from opsin.models.generative.autoencoder import Autoencoder, DenseDecoder, DenseEncoder
from opsin.models.generative.pix2pix import PatchGAN
from opsin.models.generative.vae import MLP, VAE
from opsin.models.layers import group_norm
from opsin.models.segmentation.unet import UNet
from opsin.ops.diffusion.schedules import Discrete
from opsin.train.experiment import Data, Experiment, Loop
from opsin.train.methods import sgd
from opsin.train.optim import Optimizer
from opsin.train.schedules import constant
from opsin.train.state import State
from opsin.train.tasks.adversarial import Adversarial
from opsin.train.tasks.autoencode import Autoencode
from opsin.train.tasks.classify import Classify
from opsin.train.tasks.diffuse import Diffuse
from opsin.train.tasks.segment import Segment
from opsin.train.tasks.translate import Translate
from opsin.train.tasks.variational import Variational
from tests.train.conftest import Tiny, TinyDenoiser, assert_trees_close
from tests.train.test_step import lay_out
from tests.train.test_translate import halves

BATCH = 16
IMAGE = (8, 8, 1)
DENSE: dict[str, Any] = {
    "encoder": partial(DenseEncoder, widths=(8,)),
    "decoder": partial(DenseDecoder, widths=(8,)),
}


class Generator(nn.Module):
    """One dense layer without batch norm."""

    image: tuple[int, int, int] = IMAGE
    latent: int = 3

    @nn.compact
    def __call__(self, z: Any, *, labels: Any = None, train: bool = False) -> Any:
        return nn.Dense(64)(z).reshape(-1, *self.image)


class Discriminator(nn.Module):
    """Two dense layers."""

    @nn.compact
    def __call__(self, x: Any, *, labels: Any = None, train: bool = False) -> Any:
        return nn.Dense(1)(nn.tanh(nn.Dense(8)(x.reshape(len(x), -1))))[:, 0]


class Denoiser(TinyDenoiser):
    """For images of 8 x 8."""

    @nn.compact
    def __call__(self, x: Any, noise: Any, labels: Any = None, *, train: bool = False) -> Any:
        x = nn.Dense(64)(jnp.concatenate([x.reshape(len(x), -1), noise[:, None] / 50], axis=-1))
        return nn.Dropout(0.5, deterministic=not train)(x).reshape(len(x), *IMAGE)


PLAIN = Optimizer(method=partial(sgd, nesterov=False), learning_rate=1e-3, schedule=constant)
IMAGES = partial(synthetic, n=40, size=8, channels=1, classes=4)
UNET = UNet(num_classes=2, width=4, depth=1, padding="same", dropout=0.5)
TASKS: dict[str, tuple[Any, Any]] = {
    "classify": (Classify(Tiny(norm=partial(group_norm, groups=2), dropout=0.5)), IMAGES),
    "segment": (Segment(UNET), halves),
    "autoencode": (Autoencode(Autoencoder(image=IMAGE, latent=4, **DENSE)), IMAGES),
    "variational": (
        Variational(
            VAE(
                image=IMAGE,
                latents=(3, 2),
                between=(partial(MLP, widths=(8,)),),
                **DENSE,
            ),
            likelihood=Gaussian(std=1.0),  # of greys
        ),
        IMAGES,
    ),
    "adversarial": (
        Adversarial(Generator(), Discriminator(), NON_SATURATING, optimizer=PLAIN, turns=2),
        IMAGES,
    ),
    "translate": (
        Translate(
            UNET.clone(num_classes=1),
            PatchGAN(width=4, strided=1, norm=None),
            optimizer=PLAIN,
            l1=10.0,
        ),
        halves,
    ),
    "diffuse": (Diffuse(Denoiser(), image=IMAGE, process=Discrete(steps=50)), IMAGES),
}


def two_steps(experiment: Experiment, order: np.ndarray) -> tuple[State, dict[str, float]]:
    """The state after two steps on batches in an order, and the metrics of both together."""
    feed, program = lay_out(experiment)
    store, dispatch = feed.store(), program.compile()
    state, means = program.init(), {}
    for _ in range(2):
        items = feed.take(1, 1)
        items = jax.device_put(np.asarray(items)[:, order], items.sharding)
        state, metrics = dispatch(state, store, items, np.int32(1))
        for name, metric in metrics.items():
            if hasattr(metric, "total") and not name.startswith("discriminator_auc"):
                mean = np.asarray(metric.total, np.float64) / np.asarray(metric.count)
                means[name] = means.get(name, 0.0) + float(mean.sum())
    return jax.device_get(state), means


def experiment_of(name: str, **loop: Any) -> Experiment:
    """One of the tasks, with more about its loop."""
    task, source = TASKS[name]
    return Experiment(
        task=task,
        data=Data(source=source, batch=BATCH, eval_batch=BATCH),
        optimizer=PLAIN,
        loop=Loop(duration="6 steps", ema_decay=0.9, previews=0, **loop),
    )


def on_devices(name: str, devices: int) -> tuple[State, dict[str, float]]:
    """Two steps under ``pmap`` on the images that as many microbatches have."""
    experiment = experiment_of(name, strategy="pmap", replicas=devices)
    # Row j of device d is row ((j // turns) · devices + d) · turns + j % turns of the batch.
    turns = getattr(experiment.task, "turns", 1)
    device, row = np.divmod(np.arange(BATCH), BATCH // devices)
    order = (row // turns * devices + device) * turns + row % turns
    return two_steps(override(experiment, {"parallel.data": devices}), order)


@pytest.mark.proofs
@pytest.mark.parametrize(
    ("name", "devices"),
    [("diffuse", 2), *((name, 4) for name in TASKS)],
)
def test_devices_step_as_microbatches_do(name: str, devices: int):
    found, means_found = on_devices(name, devices)
    jitted = override(experiment_of(name, accumulate=devices), {"parallel.data": 1})
    expected, means = two_steps(jitted, np.arange(BATCH))
    assert means_found.keys() == means.keys()
    for metric, value in means.items():
        np.testing.assert_allclose(means_found[metric], value, rtol=1e-4, err_msg=metric)
    for part in ("params", "opt_state", "ema"):
        assert_trees_close(getattr(found, part), getattr(expected, part), rtol=1e-4, atol=1e-6)


@pytest.mark.proofs
def test_each_device_draws_of_its_own(monkeypatch: pytest.MonkeyPatch):
    """The test above would notice if all drew alike."""
    own = on_devices("diffuse", 2)[1]
    monkeypatch.setattr("jax.lax.axis_index", lambda name: 0)
    alike = on_devices("diffuse", 2)[1]
    assert abs(own["loss"] - alike["loss"]) > 1e-3 * own["loss"]
