"""Restarts let a VQ-VAE use all 512 codes; moving averages learn them faster than gradients do.

van den Oord et al., 2017, arXiv:1711.00937: a codebook learns by the gradient of its own loss (eq.
3) or as moving averages of the vectors that chose each code (appendix A.1). Codes that nothing
chooses never move: restarting them from vectors of the batch is of Dhariwal et al., 2020,
arXiv:2005.00341.

Small: a network of 32 channels with codes of 16 dimensions, a map of 7×7 for each digit, 2,000
steps of 64 images (2 passes).

Ours, over three seeds and 42 to 83 seconds a run: of 512 codes the gradient uses 390 ± 61, moving
averages 370 ± 17 and restarts 512, and the error of a pixel falls from 0.0069 to 0.0045 and 0.0041.
With 64 codes all are used in any case, and moving averages still have two thirds of the error. All
arms share one learning rate, which bounds how far a gradient moves a code; it was not tuned.

    opsin sweep mnist_vqvae
    opsin report mnist_vqvae
"""

from collections.abc import Iterator
from functools import partial

from opsin.config.table import Arm, Table
from opsin.data.sources import synthetic
from opsin.models.generative.vqvae import VQVAE
from opsin.train.experiment import Data, Experiment, Loop
from opsin.train.methods import adamw
from opsin.train.optim import Optimizer
from opsin.train.tasks.quantize import Quantize

CODES = (64, 512)

SMOKE = {
    "data.source": partial(synthetic, n=64, size=8, channels=1),
    "data.batch": 16,
    "data.eval_batch": 32,
    "loop.duration": "2 steps",
}

TABLE = Table(
    title="VQ-VAE on MNIST: what the codebook does, 2,000 steps",
    metrics={"test/mse": ".5f", "test/perplexity": ".1f", "test/used_codes": ".1f"},
    lower_is_better=("test/mse",),
    baseline={f"{kind}-{n}": f"gradient-{n}" for kind in ("ema", "restart") for n in CODES},
    seeds=3,
)


def config() -> Experiment:
    """512 codes by moving averages."""
    model = VQVAE(outputs=1, width=32, residual_layers=1, residual_width=16, code_size=16)
    return Experiment(
        task=Quantize(model=model, variance=0.095),  # of MNIST's pixels in [0, 1]
        data=Data(source="tfds:mnist", batch=64),
        optimizer=Optimizer(method=adamw, learning_rate=1e-3, weight_decay=0.0),
        loop=Loop(
            duration="2000 steps",
            log_every="50 steps",
            evaluate_every="1000 steps",
            checkpoint_every="500 steps",
            previews=10,
        ),
    )


def sweep() -> Iterator[Arm]:
    """Size of the codebook and how it learns."""
    for codes in CODES:
        size = {"task.model.num_codes": codes}
        yield Arm(f"gradient-{codes}", size | {"task.model.update": "gradient"})
        yield Arm(f"ema-{codes}", size)
        yield Arm(f"restart-{codes}", size | {"task.model.restart": 0.1})
