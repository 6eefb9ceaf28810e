"""How many times must a network be asked for a good sample, by each sampler?

One trained model, that of ``mnist_ddpm``, and five ways from noise to images: Ho et al., 2020
(ancestral); Song et al., 2021, arXiv:2010.02502 (DDIM); Lu et al., 2022, arXiv:2211.01095
(DPM-Solver++ of second order); Karras et al., 2022, arXiv:2206.00364 (Heun); Song et al., 2021,
arXiv:2011.13456 (predictor and corrector). The last two evaluate the network twice a step, Heun's
method except in the last step. Its steps are even in a power of the noise, those of the others in
time; DPM-Solver++ is shown with both.

Small: 512 samples without guidance against the first 512 test images; the three seeds are seeds of
sampling, the weights are the same (``opsin export``).

Ours: from eight evaluations on, what a sampler costs is variety more than distance. At eight
DPM-Solver++ even in noise has a recall of 0.90, in time 0.85, DDIM 0.81, DDPM 0.77; DDPM pays with
recall for precision (0.89 against 0.79 and 0.82), and at 32 all are near the floor of 512 images,
13.7. Heun's method needs 15 evaluations, and fails with three.

    opsin sweep mnist_ddpm_samplers
    opsin report mnist_ddpm_samplers
"""

from collections.abc import Iterator
from dataclasses import replace

from opsin.analysis.diffusion import SampledBy
from opsin.analysis.generators import SampleQuality
from opsin.config.table import Arm, Table
from opsin.config.tree import override
from opsin.experiments.extractors import LENET, MNIST_DDPM
from opsin.experiments.generation import mnist_ddpm
from opsin.ops.diffusion.langevin import PredictorCorrector
from opsin.ops.diffusion.samplers import Ancestral, Ddim, DpmSolver2M, Heun
from opsin.ops.diffusion.sampling import Sampling
from opsin.train.experiment import Experiment

SMOKE = mnist_ddpm.SMOKE | {
    "measurements": (
        SampledBy(Sampling(Ancestral(), steps=2), SampleQuality(extractor=LENET, samples=32)),
    ),
    "weights": None,
    "data.eval_splits": {"test": "test"},
    "loop.duration": "0 steps",
}

SAMPLERS: dict[str, Sampling] = {
    "ancestral": Sampling(Ancestral()),
    "ddim": Sampling(Ddim()),
    "dpm++2m": Sampling(DpmSolver2M()),
    "dpm++2m, noise": Sampling(DpmSolver2M(), spacing="noise"),
    "heun": Sampling(Heun()),
    "predictor-corrector": Sampling(PredictorCorrector()),
}
BUDGETS = (4, 8, 16, 32)


def evaluations(name: str, budget: int) -> tuple[int, int]:
    """Steps within a budget of evaluations, and how many they ask for."""
    if name == "heun":
        return budget // 2, 2 * (budget // 2) - 1
    if name == "predictor-corrector":
        return budget // 2, 2 * (budget // 2)
    return budget, budget


TABLE = Table(
    title="Fréchet distance by evaluations of the network, MNIST",
    metrics={"test/fd_lenet": ".1f", "test/precision": ".3f", "test/recall": ".3f"},
    details={"test/floor_fd_lenet": ".2f", "test/samples": ".0f"},
    lower_is_better=("test/fd_lenet", "test/floor_fd_lenet"),
    baseline={
        f"{name}@{budget}": f"ancestral@{budget}"
        for name in SAMPLERS
        for budget in BUDGETS
        if name != "ancestral"
    },
    seeds=3,
    lines={
        f"{name}@{budget}": (name, evaluations(name, budget)[1])
        for name in SAMPLERS
        for budget in BUDGETS
    },
    x_label="evaluations of the network",
    x_scale="log",
    log_metrics=("test/fd_lenet",),
)


def config() -> Experiment:
    """The weights of ``mnist_ddpm``, which are measured and not trained."""
    quality = SampleQuality(LENET, samples=512, choice="first", source="tfds:mnist")
    changes = {
        "weights": MNIST_DDPM,
        "measurements": (SampledBy(Sampling(Ancestral(), steps=10), quality),),
        "data.eval_splits": {},  # what is measured brings its own images
        "loop.duration": "0 steps",
        "loop.previews": 0,
        "loop.ema_decay": None,
    }
    return override(mnist_ddpm.config(), changes)


def sweep() -> Iterator[Arm]:
    """Every sampler with as many steps as each budget allows."""
    for name, sampling in SAMPLERS.items():
        for budget in BUDGETS:
            steps, _ = evaluations(name, budget)
            changes = {"measurements.0.sampling": replace(sampling, steps=steps)}
            yield Arm(f"{name}@{budget}", changes, seeded=("measurements.0.measurement.seed",))
