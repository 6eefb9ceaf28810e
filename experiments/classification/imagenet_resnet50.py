"""ResNet-50 on ImageNet in 90 epochs, the field's yardstick: planned, not run here.

He et al., 2015, arXiv:1512.03385, with the batch, warm-up and initialisation of Goyal et al., 2017,
arXiv:1706.02677: 1,024 images a step at a rate of 0.4, linear in the batch, five epochs of warm-up,
the scale of the last norm of each block starting at zero. Goyal et al. report 23.6 % error (Table
1, their baseline of 256 images a step; 23.7 % with 8,192). Here statistics of norms are of all
1,024 images, theirs of 32; the rate falls as half a cosine, labels are smoothed (0.1), and compute
is bfloat16. Random crops are of squares of 256 pixels that the host cuts out, not of the whole
photograph.

Not run: there is no accelerator here. ``results/plans`` says what 16 chips would take.

    opsin plan imagenet_resnet50 --topology v5e:4x4
    opsin run imagenet_resnet50
"""

from functools import partial
from typing import Any

import jax.numpy as jnp

from opsin.data.geometry import random_flip, random_resized_crop
from opsin.data.sources import blank, synthetic
from opsin.data.squares import squared
from opsin.losses.classification import cross_entropy_loss
from opsin.models.classification.resnet import ResNet50
from opsin.train.experiment import Data, Experiment, Loop
from opsin.train.methods import sgd
from opsin.train.optim import Optimizer
from opsin.train.schedules import cosine
from opsin.train.tasks.classify import Classify

PLAN = blank(1_281_167, image=(256, 256, 3))

SMOKE: dict[str, Any] = {
    "task.model.stage_sizes": (1, 1),
    "task.model.width": 16,
    "task.model.num_classes": 10,
    "data.source": partial(synthetic, n=16, size=24),
    "data.eval_splits.test": "test",
    "data.augment.0.size": 16,
    "data.batch": 8,
    "data.eval_batch": 16,
    "loop.duration": "2 steps",
    "optimizer.warmup": "1 step",
}


def config() -> Experiment:
    """The recipe for 1,024 images a step."""
    return Experiment(
        task=Classify(
            model=ResNet50(zero_init_last_norm=True, dtype=jnp.bfloat16),
            loss_function=partial(cross_entropy_loss, smoothing=0.1),
        ),
        data=Data(
            source=partial(squared, source="tfds:imagenet2012", size=256, held_out=224),
            eval_splits={"test": "validation"},
            batch=1024,
            eval_batch=1024,
            augment=(partial(random_resized_crop, size=224), random_flip),
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
        optimizer=Optimizer(
            method=sgd, learning_rate=0.4, schedule=cosine, warmup="5 epochs", weight_decay=1e-4
        ),
        loop=Loop(
            duration="90 epochs",
            log_every="100 steps",
            evaluate_every="5 epochs",
            checkpoint_every="1 epoch",
        ),
    )
