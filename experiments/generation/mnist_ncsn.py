"""One network of scores, three ways to samples: which comes nearest to the data?

Song & Ermon, 2019, arXiv:1907.05600, sample by Langevin dynamics at falling levels of noise; Song
et al., 2021, arXiv:2011.13456, follow an equation whose variance explodes, by a predictor and a
corrector; its probability flow is followed here by Heun's method (Karras et al., 2022,
arXiv:2206.00364). All three ask one network, trained by denoising at all levels.

Small: the network of `mnist_ddpm` without classes, 2,000 steps of 64 images, and 2,000 samples.

    opsin sweep mnist_ncsn
    opsin report mnist_ncsn
"""

from collections.abc import Iterator
from typing import Any

from experiments.config import override
from experiments.extractors import LENET
from experiments.generation import mnist_ddpm
from experiments.table import Arm, Table
from losses.diffusion import epsilon_weight
from models.generative.diffusion_unet import ScoreUNet
from ops.diffusion_samplers import AnnealedLangevin, Heun, PredictorCorrector
from ops.sde import VarianceExploding
from train.experiment import Experiment
from train.final_metrics import SampleQuality
from train.tasks.diffuse import Sampling

SMOKE = {
    name.replace("task.model.", "task.model.network."): value
    for name, value in mnist_ddpm.SMOKE.items()
    if name != "task.process.steps"
} | {"task.final": (SampleQuality(extractor=LENET, samples=32),)}

TABLE = Table(
    title="Samplers of one network of scores, MNIST, 2,000 steps",
    metrics={
        "test_ema/fd_lenet": ".1f",
        "test_ema/precision": ".3f",
        "test_ema/recall": ".3f",
        "test_ema/floor_fd_lenet": ".2f",
    },
    details={"test_ema/samples": ".0f"},
    lower_is_better=("test_ema/fd_lenet", "test_ema/floor_fd_lenet"),
    baseline="annealed langevin",
    seeds=3,
)


def config() -> Experiment:
    """Ten levels with four Langevin steps each."""
    base = mnist_ddpm.config()
    task: Any = base.task
    changes = {
        "task.model": ScoreUNet(network=task.model.clone(num_classes=None)),
        # The most noise is about the greatest distance of two digits (Song & Ermon, 2020).
        "task.process": VarianceExploding(sigma_max=28.0),
        "task.target": "score",
        "task.weighting": epsilon_weight,
        "task.sampling": Sampling(AnnealedLangevin(step_size=5e-5, corrections=4), steps=10),
        "task.final": (SampleQuality(extractor=LENET, source="tfds:mnist", samples=2000),),
        "loop.duration": "2000 steps",
        "loop.evaluate_every": "1000 steps",
        "loop.checkpoint_every": "500 steps",
        "loop.ema_decay": 0.99,
    }
    return override(base, changes)


def sweep() -> Iterator[Arm]:
    """Fifty evaluations by each, of networks that were trained alike."""
    yield Arm("annealed langevin")
    corrected = Sampling(PredictorCorrector(), steps=25)
    yield Arm("predictor-corrector", {"task.sampling": corrected})
    yield Arm("probability flow", {"task.sampling": Sampling(Heun(), steps=25, spacing="noise")})
