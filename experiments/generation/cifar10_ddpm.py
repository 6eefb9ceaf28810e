"""The diffusion model of Ho et al. for CIFAR-10, as the paper trains it: planned, not run here.

Ho et al., 2020, arXiv:2006.11239, section 4 and appendix B: 35.7 million parameters, 1,000 steps of
noise, 800,000 steps of 128 images at a rate of 2e-4 with horizontal flips, a moving average of
decay 0.9999; FID 3.17 and at most 3.75 bits a dimension (both Table 1).

Not run: there is no accelerator here. ``--smoke`` runs a small form of it, and ``results/plans``
says what four chips would take.

    opsin plan cifar10_ddpm --topology v5e:2x2
    opsin run cifar10_ddpm
"""

from functools import partial
from typing import Any

from opsin.analysis.diffusion import VariationalBound
from opsin.data.geometry import random_flip
from opsin.data.sources import blank, synthetic
from opsin.models.generative.diffusion_unet import DiffusionUNet
from opsin.models.layers import group_norm
from opsin.ops.diffusion.samplers import Ancestral
from opsin.ops.diffusion.sampling import Sampling
from opsin.train.experiment import Data, Experiment, Loop
from opsin.train.methods import adamw
from opsin.train.optim import Optimizer
from opsin.train.schedules import constant
from opsin.train.tasks.diffuse import Diffuse

PLAN = blank(50_000, image=(32, 32, 3))

SMOKE: dict[str, Any] = {
    "task.model.width": 8,
    "task.model.multiples": (1, 2),
    "task.model.blocks": 1,
    "task.model.norm": partial(group_norm, groups=8),
    "task.process.steps": 40,
    "task.sampling.steps": 2,
    "measurements": (VariationalBound(images=8, batch=8),),
    "data.source": partial(synthetic, n=32, size=32),
    "data.batch": 8,
    "data.eval_batch": 16,
    "loop.duration": "2 steps",
    "optimizer.warmup": "0 steps",
}


def config() -> Experiment:
    """The recipe of the paper."""
    return Experiment(
        task=Diffuse(
            model=DiffusionUNet(),
            sampling=Sampling(Ancestral(variance="large"), steps=1000),
        ),
        data=Data(source="tfds:cifar10", batch=128, augment=(random_flip,)),
        optimizer=Optimizer(
            method=adamw,
            learning_rate=2e-4,
            schedule=constant,
            warmup="5000 steps",
            weight_decay=0.0,
            clip_norm=1.0,
        ),
        loop=Loop(
            duration="800000 steps",
            log_every="100 steps",
            evaluate_every="20000 steps",
            checkpoint_every="5000 steps",
            ema_decay=0.9999,
        ),
        measurements=(VariationalBound(),),
    )
