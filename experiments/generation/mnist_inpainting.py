"""Does the lower half of a digit fit its upper half better when each step is done again?

Song et al., 2021, arXiv:2011.13456, appendix I.2, put the known pixels back after each step;
Lugmayr et al., 2022, arXiv:2201.09865 (RePaint), find that the rest then does not fit them, and
undo each step with new noise and repeat it. The model is that of ``mnist_ddpm``, used without the
class; LeNet-5 reads the result. Repeating a step costs as much as another step: 25 steps, each done
n times, are compared to n times as many steps.

Small: the first 256 test images, DDPM; the three seeds are seeds of sampling, the weights are the
same (``opsin export``).

Ours: LeNet-5 sees the true digit in 53.8 ± 1.6 % after 25 steps and no more after 100 (55.3 ± 4.3),
but in 64.3 ± 1.6 % if each of 25 is done four times. Other fillings may be as true: two upper
halves may be of one digit or of another.

    opsin sweep mnist_inpainting
    opsin report mnist_inpainting
"""

from collections.abc import Iterator

from opsin.analysis.diffusion import Inpainting, SampledBy
from opsin.config.table import Arm, Table
from opsin.config.tree import override
from opsin.experiments.extractors import LENET
from opsin.experiments.generation import mnist_ddpm_samplers
from opsin.ops.diffusion.samplers import Ancestral
from opsin.ops.diffusion.sampling import Sampling
from opsin.train.experiment import Experiment

SMOKE = mnist_ddpm_samplers.SMOKE | {
    "measurements": (
        SampledBy(Sampling(Ancestral(), steps=2), Inpainting(LENET, images=8, batch=8)),
    ),
}

TIMES = (1, 2, 4)
SEEDED = ("measurements.0.measurement.seed",)

TABLE = Table(
    title="Lower halves of digits, filled in with resampling or with more steps",
    metrics={"test/inpainted_accuracy": ".1%"},
    # Of two fillings that are as likely, the blurred one has the lower error.
    details={"test/inpainted_mse": ".4f", "test/known_accuracy": ".2%"},
    lower_is_better=("test/inpainted_mse",),
    baseline="steps@25",
    seeds=3,
    lines={f"steps@{25 * n}": ("more steps", 25 * n) for n in TIMES}
    | {f"resampled@{25 * n}": ("resampling", 25 * n) for n in TIMES[1:]},
    x_label="evaluations of the network",
    x_scale="log",
)


def config() -> Experiment:
    """Replacement alone."""
    changes = {
        "measurements": (
            SampledBy(
                Sampling(Ancestral(), steps=25), Inpainting(LENET, images=256, choice="first")
            ),
        ),
        "data.eval_splits": {"test": "test"},
    }
    return override(mnist_ddpm_samplers.config(), changes)


def sweep() -> Iterator[Arm]:
    """More steps, or each of 25 steps more often."""
    for n in TIMES:
        steps = {"measurements.0.sampling.steps": 25 * n}
        yield Arm(f"steps@{25 * n}", steps, seeded=SEEDED)
    for n in TIMES[1:]:
        again = {"measurements.0.measurement.resamplings": n}
        yield Arm(f"resampled@{25 * n}", again, seeded=SEEDED)
