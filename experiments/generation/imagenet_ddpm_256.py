"""A diffusion model of ImageNet at 256 pixels, asked for a class: planned, not run here.

After the largest network of Dhariwal and Nichol, 2021, arXiv:2105.05233, Table 11: width 256 times
1, 1, 2, 2, 4, 4, two blocks a level, attention at 32, 16 and 8, 1,000 linear steps of noise, a
variance that is learned by the hybrid loss, 256 images a step at 1e-4, moving average of 0.9999, of
1,980,000 steps; FID 10.94 (their Table 5, without guidance). The blocks here are those of Ho et
al., 2020: the embedding is added, not a scale and a shift, and sizes change by a convolution. Four
heads at each level are a quarter to a half of theirs. Compute is bfloat16, and parameters are in
slices (``parallel.fsdp``).

Not run: there is no accelerator here. ``results/plans`` says what 256 chips would take.

    opsin plan imagenet_ddpm_256 --topology v5e:16x16
    opsin run imagenet_ddpm_256
"""

from functools import partial
from typing import Any

import jax.numpy as jnp

from opsin.analysis.diffusion import VariationalBound
from opsin.data.geometry import random_flip
from opsin.data.sources import blank, synthetic
from opsin.data.squares import squared
from opsin.models.generative.diffusion_unet import DiffusionUNet
from opsin.models.layers import group_norm
from opsin.ops.diffusion.samplers import Ancestral
from opsin.ops.diffusion.sampling import Sampling
from opsin.train.experiment import Data, Experiment, Loop
from opsin.train.methods import adamw
from opsin.train.optim import Optimizer
from opsin.train.schedules import constant
from opsin.train.sharding import Parallel
from opsin.train.tasks.diffuse import Diffuse

PLAN = blank(1_281_167, image=(256, 256, 3))

SMOKE: dict[str, Any] = {
    "task.image": (16, 16, 3),
    "task.model.width": 8,
    "task.model.multiples": (1, 1),
    "task.model.blocks": 1,
    "task.model.attention": (8,),
    "task.model.heads": 2,
    "task.model.num_classes": 10,
    "task.model.norm": partial(group_norm, groups=8),
    "task.process.steps": 50,
    "task.sampling.steps": 2,
    "measurements": (),
    "data.source": partial(synthetic, n=16, size=16),
    "data.eval_splits.test": "test",
    "data.batch": 8,
    "data.eval_batch": 16,
    "loop.duration": "2 steps",
    "parallel.fsdp": 1,
}


def config() -> Experiment:
    """The recipe of the paper, with parameters in sixteen slices."""
    return Experiment(
        task=Diffuse(
            model=DiffusionUNet(
                outputs=6,
                width=256,
                multiples=(1, 1, 2, 2, 4, 4),
                attention=(32, 16, 8),
                heads=4,
                dropout=0.0,
                num_classes=1000,
                dtype=jnp.bfloat16,
            ),
            image=(256, 256, 3),
            learned_variance=True,
            label_dropout=0.0,
            sampling=Sampling(Ancestral(), steps=250),
        ),
        data=Data(
            source=partial(squared, source="tfds:imagenet2012", size=256),
            eval_splits={"test": "validation"},
            batch=256,
            eval_batch=256,
            augment=(random_flip,),
        ),
        optimizer=Optimizer(method=adamw, learning_rate=1e-4, schedule=constant, weight_decay=0.0),
        loop=Loop(
            duration="1980000 steps",
            log_every="100 steps",
            evaluate_every="50000 steps",
            checkpoint_every="5000 steps",
            ema_decay=0.9999,
        ),
        parallel=Parallel(fsdp=16),
        measurements=(VariationalBound(images=1000, batch=256),),
    )
