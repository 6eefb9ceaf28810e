"""SimCLR's own recipe, ResNet-50 on ImageNet with 4,096 images a step: planned, not run here.

Chen et al., 2020, arXiv:2002.05709, section 2.2 and appendix B: LARS at 0.3 for 256 images, linear
in the batch, ten epochs of warm-up and half a cosine, weight decay of 1e-6 that leaves biases and
norms alone, as does the trust ratio; the head has two layers and 128 outputs, τ = 0.1, and the
negatives of a view are the 8,190 views of all other images on all devices. It trains for 100
epochs, as most of their ablations; after 1,000 a linear classifier of its features has 69.3 %.
Crops are of squares of 256 pixels that the host cuts out. Compute is bfloat16.

Not run: there is no accelerator here. ``results/plans`` says what 64 chips would take.

    opsin plan imagenet_simclr --topology v5e:8x8
    opsin run imagenet_simclr
"""

from functools import partial
from typing import Any

import jax.numpy as jnp

from opsin.data.color import color_distortion, gaussian_blur
from opsin.data.geometry import random_flip, random_resized_crop
from opsin.data.sources import blank, synthetic
from opsin.data.squares import squared
from opsin.losses.contrastive import nt_xent_loss
from opsin.models.classification.resnet import ResNet50
from opsin.models.layers import batch_norm
from opsin.models.representation.simclr import ProjectionHead, SimCLR
from opsin.train.experiment import Data, Experiment, Loop
from opsin.train.methods import lars
from opsin.train.optim import Optimizer
from opsin.train.schedules import cosine
from opsin.train.tasks.contrast import Contrast

PLAN = blank(1_281_167, image=(256, 256, 3))

SMOKE: dict[str, Any] = {
    "task.model.backbone.stage_sizes": (1, 1),
    "task.model.backbone.width": 16,
    "task.views.0.size": 16,
    "data.source": partial(synthetic, n=16, size=24),
    "data.eval_splits.test": "test",
    "data.batch": 8,
    "data.eval_batch": 16,
    "loop.duration": "2 steps",
    "loop.previews": 0,
    "optimizer.warmup": "1 step",
}


def config() -> Experiment:
    """The recipe for 4,096 images a step, and 100 epochs."""
    backbone = ResNet50(zero_init_last_norm=True, dtype=jnp.bfloat16).without_head()
    return Experiment(
        task=Contrast(
            model=SimCLR(backbone=backbone, head=ProjectionHead(norm=batch_norm)),
            views=(
                partial(random_resized_crop, size=224),
                random_flip,
                partial(color_distortion, strength=1.0),
                gaussian_blur,
            ),
            loss_function=partial(nt_xent_loss, temperature=0.1),
        ),
        data=Data(
            source=partial(squared, source="tfds:imagenet2012", size=256),
            eval_splits={"test": "validation"},
            batch=4096,
            eval_batch=1024,
        ),
        optimizer=Optimizer(
            method=lars,
            learning_rate=0.3,
            reference_batch=256,
            schedule=cosine,
            warmup="10 epochs",
            weight_decay=1e-6,
        ),
        loop=Loop(
            duration="100 epochs",
            log_every="100 steps",
            evaluate_every="10 epochs",
            checkpoint_every="1 epoch",
        ),
    )
