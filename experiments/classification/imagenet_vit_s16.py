"""A plain ViT-S/16 on ImageNet in 90 epochs, without tricks: planned, not run here.

Beyer, Zhai and Kolesnikov, 2022, "Better plain ViT baselines for ImageNet-1k", arXiv:2205.01580:
1,024 images a step, Adam at 1e-3 with 10,000 steps of warm-up and a cosine, decay 1e-4 a step
(which is 0.1 times the rate, as here), gradients clipped to 1, mixup of 0.2, RandAugment of two
layers at 10, their fixed sin-cos positions and mean pooling; 76.5 % after 90 epochs, 80.0 % after
300. Here GELU is exact, where theirs is its tanh approximation, and RandAugment's strengths go both
ways, so that level 10 also inverts images and takes their colour away, where theirs go one way.
Compute is bfloat16. Random crops are of squares of 256 pixels that the host cuts out, not of the
whole photograph.

Not run: there is no accelerator here. ``results/plans`` says what 256 chips would take.

    opsin plan imagenet_vit_s16 --topology v5e:16x16
    opsin run imagenet_vit_s16
"""

from functools import partial
from typing import Any

import jax.numpy as jnp

from opsin.data.geometry import random_flip, random_resized_crop
from opsin.data.mixing import mixup
from opsin.data.randaugment import rand_augment
from opsin.data.sources import blank, synthetic
from opsin.data.squares import squared
from opsin.models.classification.vit import ViTS
from opsin.train.experiment import Data, Experiment, Loop
from opsin.train.methods import adamw
from opsin.train.optim import Optimizer
from opsin.train.schedules import cosine
from opsin.train.tasks.classify import Classify

PLAN = blank(1_281_167, image=(256, 256, 3))

SMOKE: dict[str, Any] = {
    "task.model.depth": 1,
    "task.model.width": 48,
    "task.model.mlp_width": 96,
    "task.model.heads": 2,
    "task.model.patch": 8,
    "task.model.num_classes": 10,
    "data.source": partial(synthetic, n=16, size=16),
    "data.eval_splits.test": "test",
    "data.augment": (random_flip, partial(mixup, alpha=0.2, num_classes=10)),
    "data.batch": 8,
    "data.eval_batch": 16,
    "loop.duration": "2 steps",
    "optimizer.warmup": "1 step",
}


def config() -> Experiment:
    """The recipe of the paper."""
    return Experiment(
        task=Classify(model=ViTS(pool="gap", positions="beyer", dtype=jnp.bfloat16)),
        data=Data(
            source=partial(squared, source="tfds:imagenet2012", size=256, held_out=224),
            eval_splits={"test": "validation"},
            batch=1024,
            eval_batch=1024,
            augment=(
                partial(random_resized_crop, size=224, scale=(0.05, 1.0)),
                random_flip,
                partial(rand_augment, layers=2, magnitude=10.0),
                partial(mixup, alpha=0.2, num_classes=1000),
            ),
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        ),
        optimizer=Optimizer(
            method=adamw,
            learning_rate=1e-3,
            schedule=cosine,
            warmup="10000 steps",
            weight_decay=0.1,
            clip_norm=1.0,
        ),
        loop=Loop(
            duration="90 epochs",
            log_every="100 steps",
            evaluate_every="5 epochs",
            checkpoint_every="1 epoch",
        ),
    )
