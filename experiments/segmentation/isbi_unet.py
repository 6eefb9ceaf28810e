"""Does a U-Net with a sixteenth of the paper's parameters find membranes in held-out slices?

Ronneberger et al., 2015, arXiv:1505.04597, Table 1, on the ISBI 2012 challenge of segmenting
neurons in electron micrographs: 30 slices of 512×512 pixels; the last six are held out here (the
challenge's own test labels are not public). The paper reports errors of the challenge's server,
warping 0.000353 and Rand 0.0382, for seven rotated versions averaged. ``test/rand`` here is the
foreground-restricted Rand score (higher is better) of one prediction, without a search for the best
threshold.

Small: 16 channels instead of 64, padded convolutions, batch norm, crops of 192×192 pixels, 500
steps of four crops. Elastic deformation, flips and quarter turns are the paper's augmentation in
kind.

Ours, three seeds, three to four minutes a run on two cores of an AMD EPYC: mean IoU 0.781 ± 0.002,
Rand score 0.742 ± 0.030. A gap of a few pixels in a membrane merges two cells, which the Rand score
counts and IoU hardly sees: hence their different spread over seeds.

    opsin sweep isbi_unet
    opsin report isbi_unet
"""

from functools import partial

from opsin.config.table import Table
from opsin.data.geometry import random_crop, random_elastic, random_flip, random_quarter_turn
from opsin.data.shapes import cells
from opsin.models.layers import batch_norm
from opsin.models.segmentation.unet import UNet
from opsin.train.experiment import Data, Experiment, Loop
from opsin.train.methods import adamw
from opsin.train.optim import Optimizer
from opsin.train.schedules import cosine
from opsin.train.tasks.segment import Segment

SMOKE = {
    "task.model.depth": 2,
    "data.source": partial(cells, n=8, size=32),
    "data.augment.0.size": 24,
    "data.eval_batch": 2,
    "loop.duration": "2 steps",
    "optimizer.warmup": "0 steps",
}

TABLE = Table(
    title="U-Net of width 16 on ISBI 2012, six held-out slices",
    metrics={
        "test/miou": ".4f",
        "test/rand": ".4f",
        "test/boundary_f1": ".4f",
        "test/dice": ".4f",
        "test/accuracy": ".2%",
    },
    details={f"test/{name}/{c}": ".4f" for name in ("iou", "precision", "recall") for c in (0, 1)},
    seeds=3,
)


def config() -> Experiment:
    """Membrane (class 0) against cell (class 1)."""
    return Experiment(
        task=Segment(
            model=UNet(num_classes=2, width=16, padding="same", norm=batch_norm),
            boundary_tolerance=2.0,
            rand=True,
        ),
        data=Data(
            source="tfds:isbi2012",
            batch=4,
            eval_batch=2,
            augment=(
                partial(random_crop, size=192),
                random_quarter_turn,
                random_flip,
                partial(random_elastic, grid=3, sigma=8.0),
            ),
            mean=(0.49,),
            std=(0.17,),
        ),
        optimizer=Optimizer(
            method=adamw, learning_rate=2e-3, schedule=cosine, warmup="50 steps", weight_decay=1e-4
        ),
        loop=Loop(
            duration="500 steps",
            evaluate_every="250 steps",
            checkpoint_every="100 steps",
            previews=3,
        ),
    )
