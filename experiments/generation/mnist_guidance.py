"""How much guidance draws the right digit, and what does it cost in variety?

Ho & Salimans, 2022, arXiv:2207.12598, Fig. 4: guidance trades the Fréchet distance for the
Inception Score; more of it makes samples that are sure of their class and like each other. Here the
model is that of ``mnist_ddpm``, the class is read by LeNet-5, and variety is recall. Their w is our
guidance less 1.

Small: 512 samples, each with 20 steps of DPM-Solver++(2M); the three seeds are seeds of sampling,
the weights are the same (``opsin export``).

Ours: without guidance LeNet-5 reads the right digit in 96.2 ± 0.7 % at a recall of 0.88, with 1.5
in 99.8 ± 0.2 % at 0.79, with 5 in all at 0.39. Precision is best at 2 and 3, where it is 0.91.

    opsin sweep mnist_guidance
    opsin report mnist_guidance
"""

from collections.abc import Iterator

from opsin.config.table import Arm, Table
from opsin.config.tree import override
from opsin.experiments.generation import mnist_ddpm_samplers
from opsin.ops.diffusion.sampling import Sampling
from opsin.train.experiment import Experiment

SMOKE = mnist_ddpm_samplers.SMOKE

SCALES = (1.0, 1.5, 2.0, 3.0, 5.0)

TABLE = Table(
    title="Guidance on MNIST: accuracy against recall",
    metrics={
        "test/fd_lenet": ".1f",
        "test/sample_accuracy": ".2%",
        "test/recall": ".3f",
        "test/precision": ".3f",
    },
    details={"test/floor_fd_lenet": ".2f", "test/samples": ".0f"},
    lower_is_better=("test/fd_lenet", "test/floor_fd_lenet"),
    baseline="1",
    seeds=3,
    lines={f"{scale:g}": ("guidance 1 to 5", "test/recall") for scale in SCALES},
    x_label="test/recall",
)


def config() -> Experiment:
    """The weights of ``mnist_ddpm``, 20 steps, without guidance."""
    return override(mnist_ddpm_samplers.config(), {"measurements.0.sampling": Sampling()})


def sweep() -> Iterator[Arm]:
    """The scale is all that changes."""
    for scale in SCALES:
        changes = {"measurements.0.sampling.guidance": scale}
        yield Arm(f"{scale:g}", changes, seeded=("measurements.0.measurement.seed",))
