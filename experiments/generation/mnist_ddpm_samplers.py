"""How many times must a network be asked for a good sample, by each sampler?

One trained model, that of `mnist_ddpm`, and five ways from noise to images: Ho et al., 2020
(ancestral); Song et al., 2021, arXiv:2010.02502 (DDIM); Lu et al., 2022, arXiv:2211.01095
(DPM-Solver++ of second order); Karras et al., 2022, arXiv:2206.00364 (Heun); Song et al., 2021,
arXiv:2011.13456 (predictor and corrector). The last two ask twice a step.

Small: 2,000 samples without guidance against as many test images; the three seeds are of the
samples, the weights are the same (`opsin export`).

    opsin sweep mnist_ddpm_samplers
    opsin report mnist_ddpm_samplers
"""

from collections.abc import Iterator

from experiments.config import override
from experiments.extractors import LENET, MNIST_DDPM
from experiments.generation import mnist_ddpm
from experiments.table import Arm, Table
from ops.diffusion_samplers import (
    Ancestral,
    Ddim,
    DpmSolver2M,
    Heun,
    PredictorCorrector,
    Sampler,
)
from train.experiment import Experiment
from train.final_metrics import SampleQuality
from train.tasks.diffuse import Sampling

SMOKE = mnist_ddpm.SMOKE | {
    "task.final": (SampleQuality(extractor=LENET, samples=32),),
    "task.weights": None,
}

SAMPLERS: dict[str, tuple[Sampler, int]] = {  # with the evaluations of a step
    "ancestral": (Ancestral(), 1),
    "ddim": (Ddim(), 1),
    "dpm++2m": (DpmSolver2M(), 1),
    "heun": (Heun(), 2),
    "predictor-corrector": (PredictorCorrector(), 2),
}
EVALUATIONS = (4, 10, 20, 50)

TABLE = Table(
    title="Fréchet distance by evaluations of the network, MNIST",
    metrics={"test/fd_lenet": ".1f", "test/precision": ".3f", "test/recall": ".3f"},
    details={"test/floor_fd_lenet": ".2f", "test/samples": ".0f"},
    lower_is_better=("test/fd_lenet", "test/floor_fd_lenet"),
    baseline={
        f"{name}@{n}": f"ancestral@{n}"
        for name in SAMPLERS
        for n in EVALUATIONS
        if name != "ancestral"
    },
    seeds=3,
    lines={f"{name}@{n}": (name, n) for name in SAMPLERS for n in EVALUATIONS},
    x_label="evaluations of the network",
    x_scale="log",
)


def config() -> Experiment:
    """The weights of `mnist_ddpm`; one step at a learning rate of 0 leaves them as they are."""
    changes = {
        "task.weights": MNIST_DDPM,
        "task.sampling": Sampling(Ancestral(), steps=10),
        "task.final": (SampleQuality(extractor=LENET, source="tfds:mnist", samples=2000),),
        "optimizer.learning_rate": 0.0,
        "loop.duration": "1 steps",
        "loop.ema_decay": None,
    }
    return override(mnist_ddpm.config(), changes)


def sweep() -> Iterator[Arm]:
    """Every sampler with as many steps as give these evaluations."""
    for name, (sampler, cost) in SAMPLERS.items():
        for evaluations in EVALUATIONS:
            changes = {
                "task.sampling.sampler": sampler,
                "task.sampling.steps": evaluations // cost,
                "task.sampling.spacing": "noise" if name == "heun" else "time",
            }
            yield Arm(f"{name}@{evaluations}", changes, seeded=("task.final.0.seed",))
