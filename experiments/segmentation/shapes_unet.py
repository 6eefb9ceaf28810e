"""How exactly does a small U-Net outline discs, squares and triangles, trained for two minutes?

The masks of this synthetic set are exact to the pixel and it is made, not read: the place to begin
with segmentation. Seed 0 reaches a mean IoU of 0.91 in 100 seconds on two cores of an AMD EPYC.

    opsin run shapes_unet
"""

from functools import partial

from opsin.data.geometry import random_flip
from opsin.data.shapes import shapes
from opsin.models.layers import batch_norm
from opsin.models.segmentation.unet import UNet
from opsin.train.experiment import Data, Experiment, Loop
from opsin.train.methods import adamw
from opsin.train.optim import Optimizer
from opsin.train.schedules import cosine
from opsin.train.tasks.segment import Segment

SMOKE = {
    "task.model.depth": 1,
    "data.source": partial(shapes, n=16, size=32),
    "data.batch": 8,
    "data.eval_batch": 8,
    "loop.duration": "2 steps",
}


def config() -> Experiment:
    """256 images of 64×64 pixels, 40 epochs."""
    return Experiment(
        task=Segment(
            model=UNet(num_classes=4, width=16, depth=3, padding="same", norm=batch_norm),
            boundary_tolerance=1.0,
        ),
        data=Data(
            source="shapes",
            batch=16,
            eval_batch=64,
            augment=(random_flip, partial(random_flip, vertical=True)),
            mean=(0.5,),
            std=(0.25,),
        ),
        optimizer=Optimizer(
            method=adamw, learning_rate=5e-3, schedule=cosine, warmup="1 epoch", weight_decay=1e-4
        ),
        loop=Loop(duration="40 epochs", evaluate_every="10 epochs", checkpoint_every="10 epochs"),
    )
