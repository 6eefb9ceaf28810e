"""One network of scores, two ways to samples: annealed Langevin dynamics and the VE equation.

Song & Ermon, 2019, arXiv:1907.05600, sample by Langevin steps at ten levels of noise; Song et al.,
2021, arXiv:2011.13456, go down the noise in continuous time, by its reverse equation with a corrector
or by its probability flow. All three ask the same network, trained by denoising at all levels.

Small: the network of `mnist_ddpm` without classes, 2,000 steps of 64 images, and 2,000 samples.

    opsin sweep mnist_ncsn
    opsin report mnist_ncsn
"""

from collections.abc import Iterator

from experiments.config import Arm, override
from experiments.extractors import LENET
from experiments.generation import mnist_ddpm
from experiments.table import Table
from models.generative.diffusion_unet import ScoreUNet
from ops.diffusion_samplers import AnnealedLangevin, Heun, PredictorCorrector
from ops.sde import VarianceExploding
from train.experiment import Experiment
from train.final_metrics import SampleQuality
from train.tasks.diffuse import Sampling
