"""Importance weights gain more from the same draws than an ELBO does, early in training too.

Burda et al., 2016, arXiv:1509.00519, Table 1: with k = 1, 5 and 50 draws a VAE with one stochastic
layer reaches 86.76, 86.47 and 86.35 nats, an IWAE 86.76, 85.54 and 84.78, and uses more latents.
With k = 1 the two are one.

Ours, three seeds: 127.6 ± 1.1 nats with k = 1; 122.1 and 119.7 with 5 and 50 draws of the ELBO,
119.7 and 115.8 with as many importance weights, 118.2 with 5 and the doubly reparameterised
gradient. The order is that of the paper; after a thousandth of its passes the differences are ten
times its own, and nearly all 50 units are still active, so that their number says nothing yet. 68
to 91 seconds a run with k = 1 and 5, 337 and 493 with 50, with another run beside it.

Small: 4,000 steps of 50 images (3 passes; theirs are 3,280 of batches of 20), and the NLL by 1,000
draws on the first 2,000 test images.

    opsin sweep mnist_iwae
    opsin report mnist_iwae
"""

from collections.abc import Iterator

from opsin.analysis.likelihoods import ImportanceNLL
from opsin.config.table import Arm, Table
from opsin.config.tree import override
from opsin.experiments.generation import mnist_vae
from opsin.train.experiment import Experiment

SMOKE = mnist_vae.SMOKE

PAPER = {  # nats, and active units
    "vae-1": ("86.76", 19),
    "vae-5": ("86.47", 20),
    "vae-50": ("86.35", 20),
    "iwae-5": ("85.54", 22),
    "iwae-50": ("84.78", 25),
}

TABLE = Table(
    title="VAE and IWAE on binarised MNIST, 4,000 steps",
    metrics={
        "test/nll": ".2f",
        "test/active_units": ".1f",
        "test/elbo": ".2f",
        "test/rate": ".2f",
    },
    lower_is_better=("test/nll",),
    baseline="vae-1",
    paper={
        (arm, f"test/{metric}"): f"{value} (Burda et al., 2016, Table 1)"
        for arm, found in PAPER.items()
        for metric, value in zip(("nll", "active_units"), found, strict=True)
    },
    seeds=3,
)


def config() -> Experiment:
    """One draw; more of them are all that the arms change."""
    changes = {
        "measurements": (ImportanceNLL(samples=1000, images=2000, choice="first"),),
        "task.warmup_steps": 0,
        "data.batch": 50,
        "optimizer.learning_rate": 1e-3,
        "loop.duration": "4000 steps",
        "loop.evaluate_every": "2000 steps",
        "loop.checkpoint_every": "1000 steps",
    }
    return override(mnist_vae.config(), changes)


def sweep() -> Iterator[Arm]:
    """The number of draws, averaged as ELBOs or as weights."""
    yield Arm("vae-1")
    for draws in (5, 50):
        yield Arm(f"vae-{draws}", {"task.samples": draws})
    for draws in (5, 50):
        yield Arm(f"iwae-{draws}", {"task.samples": draws, "task.objective": "importance"})
    doubly = {"task.objective": "importance", "task.gradient": "doubly_reparameterized"}
    yield Arm("iwae-5-doubly", {"task.samples": 5, **doubly})
