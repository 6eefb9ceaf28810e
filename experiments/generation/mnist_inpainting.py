"""Does the lower half of a digit fit its upper half better when each step is done again?

Song et al., 2021, arXiv:2011.13456, appendix I.2, put the known pixels back after each step;
Lugmayr et al., 2022, arXiv:2201.09865 (RePaint), find that the rest then does not fit them, and
take each step back by new noise and do it again. The model is that of `mnist_ddpm` and is not told
the class; LeNet-5 reads what comes out.

Small: the first 512 test images, 100 steps of DDPM; the three seeds are of the samples, the weights
are the same (`opsin export`).

    opsin sweep mnist_inpainting
    opsin report mnist_inpainting
"""

from collections.abc import Iterator

from experiments.config import override
from experiments.extractors import LENET
from experiments.generation import mnist_ddpm_samplers
from experiments.table import Arm, Table
from ops.diffusion_samplers import Ancestral
from train.experiment import Experiment
from train.final_diffusion import Inpainting
from train.tasks.diffuse import Sampling

SMOKE = mnist_ddpm_samplers.SMOKE | {
    "task.final": (Inpainting(extractor=LENET, images=8, batch=8),),
    "task.sampling.steps": 2,
}

RESAMPLINGS = (1, 2, 5, 10)

TABLE = Table(
    title="Lower halves of digits, filled in with resampling",
    metrics={"test/inpainted_accuracy": ".1%", "test/inpainted_mse": ".4f"},
    details={"test/known_accuracy": ".2%"},
    lower_is_better=("test/inpainted_mse",),
    baseline="1",
    seeds=3,
    lines={f"{n}": ("upper half known", n) for n in RESAMPLINGS},
    x_label="times that each step is done",
    x_scale="log",
)


def config() -> Experiment:
    """Replacement alone."""
    changes = {
        "task.sampling": Sampling(Ancestral(), steps=100),
        "task.final": (Inpainting(extractor=LENET),),
    }
    return override(mnist_ddpm_samplers.config(), changes)


def sweep() -> Iterator[Arm]:
    """How often each step is done is all that changes."""
    for n in RESAMPLINGS:
        yield Arm(f"{n}", {"task.final.0.resamplings": n}, seeded=("task.final.0.seed",))
