"""ViT-L/16 on ImageNet from scratch in 200 epochs, for a pod: planned, not run here.

He et al., 2022, "Masked autoencoders", arXiv:2111.06377, Table 11 (training a ViT-L from scratch):
4,096 images a step, AdamW of 1.6e-3 and b2 = 0.95, decay 0.3, 20 epochs of warm-up and a cosine,
RandAugment, mixup of 0.8, CutMix of 1, smoothed labels, moving average of 0.9999; 82.6 % (their
Table 3). Left out: stochastic depth, which the model does not have, and the noise on RandAugment's
magnitude. Mixup and CutMix are applied one after the other, not by turns. Positions are sines and
cosines of their frequencies 10000^(-4k / width), those of the row before those of the column, where
their code has them after. Compute is bfloat16, depth is a scan, and parameters are in slices
(``parallel.fsdp``).

Not run: there is no accelerator here. ``results/plans`` says what 256 chips would take.

    opsin plan imagenet_vit_l16 --topology v5e:16x16
    opsin run imagenet_vit_l16
"""

from functools import partial
from typing import Any

import jax.numpy as jnp

from opsin.data.geometry import random_flip, random_resized_crop
from opsin.data.mixing import cutmix, mixup
from opsin.data.randaugment import rand_augment
from opsin.data.sources import blank, synthetic
from opsin.data.squares import squared
from opsin.losses.classification import cross_entropy_loss
from opsin.models.classification.vit import ViTL
from opsin.train.experiment import Data, Experiment, Loop
from opsin.train.methods import adamw
from opsin.train.optim import Optimizer
from opsin.train.schedules import cosine
from opsin.train.sharding import Parallel
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
    "data.augment": (random_flip, partial(mixup, alpha=0.8, num_classes=10)),
    "data.batch": 8,
    "data.eval_batch": 16,
    "loop.duration": "2 steps",
    "optimizer.warmup": "1 step",
    "parallel.fsdp": 1,
}


def config() -> Experiment:
    """The recipe of the paper, with its parameters in sixteen slices."""
    return Experiment(
        task=Classify(
            model=ViTL(pool="gap", positions="sincos", remat=True, dtype=jnp.bfloat16),
            loss_function=partial(cross_entropy_loss, smoothing=0.1),
        ),
        data=Data(
            source=partial(squared, source="tfds:imagenet2012", size=256, held_out=224),
            eval_splits={"test": "validation"},
            batch=4096,
            eval_batch=4096,
            augment=(
                partial(random_resized_crop, size=224),
                random_flip,
                partial(rand_augment, layers=2, magnitude=9.0),
                partial(mixup, alpha=0.8, num_classes=1000),
                partial(cutmix, alpha=1.0, num_classes=1000),
            ),
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
        optimizer=Optimizer(
            method=partial(adamw, b2=0.95),
            learning_rate=1.6e-3,
            schedule=cosine,
            warmup="20 epochs",
            weight_decay=0.3,
        ),
        loop=Loop(
            duration="200 epochs",
            log_every="50 steps",
            evaluate_every="10 epochs",
            checkpoint_every="2 epochs",
            ema_decay=0.9999,
        ),
        parallel=Parallel(fsdp=16),
    )
