"""Dice, Tversky, focal, cross-entropy: which finds thin membranes, and what do alpha and beta do?

The losses that papers on medical images compare (Salehi et al., 2017, arXiv:1706.05721; Abraham and
Khan, 2018, arXiv:1810.07842; Berman et al., 2018, arXiv:1705.08790; Lin et al., 2017,
arXiv:1708.02002; Ronneberger et al., 2015, arXiv:1505.04597, eq. 2), on the same network, images
and steps. The foreground of the region losses is the membrane (class 0), a fifth of the pixels:
alpha weighs its false positives, beta its false negatives.

Small: a U-Net of width 8, crops of 128×128 pixels, 400 steps of four crops, six held-out slices.

Ours, three seeds, 45 seconds a run on two cores of an AMD EPYC that a test run shared: alpha and
beta do what they say: precision 0.84 and recall 0.72 of the membrane at (0.7, 0.3), 0.69 and 0.88
at (0.3, 0.7), 0.52 and 0.95 at (0.1, 0.9). Dice and Lovász balance them best and have the best IoU
of the membrane (0.657 and 0.659; cross-entropy 0.649, focal 0.634). The Rand score ranks the
losses the other way round: it wants closed membranes and minds thick ones little, so that U-Net's
border weights, with the second worst IoU (0.594), have by far the best (0.929; cross-entropy
0.651). The metric decides which loss is best.

    opsin sweep isbi_losses
    opsin report isbi_losses
"""

from collections.abc import Iterator
from functools import partial

from opsin.config.table import Arm, Table
from opsin.data.border_weights import border_weighted
from opsin.data.geometry import random_crop, random_flip, random_quarter_turn
from opsin.experiments.segmentation import isbi_unet
from opsin.losses.classification import cross_entropy_loss, focal_loss
from opsin.losses.lovasz import lovasz_softmax_loss
from opsin.losses.segmentation import dice_loss, focal_tversky_loss, tversky_loss
from opsin.models.layers import batch_norm
from opsin.models.segmentation.unet import UNet
from opsin.train.experiment import Data, Experiment, Loop
from opsin.train.methods import adamw
from opsin.train.optim import Optimizer
from opsin.train.schedules import cosine
from opsin.train.tasks.segment import Segment

MEMBRANE = (0,)
PAIRS = ((0.3, 0.7), (0.7, 0.3), (0.1, 0.9))

SMOKE = isbi_unet.SMOKE

TABLE = Table(
    title="Losses on ISBI 2012: U-Net of width 8, 400 steps",
    metrics={
        "test/iou/0": ".4f",
        "test/precision/0": ".4f",
        "test/recall/0": ".4f",
        "test/miou": ".4f",
        "test/rand": ".4f",
    },
    baseline="cross-entropy",
    seeds=3,
)


def config() -> Experiment:
    """Plain cross-entropy."""
    return Experiment(
        task=Segment(
            model=UNet(num_classes=2, width=8, padding="same", norm=batch_norm), rand=True
        ),
        data=Data(
            source="tfds:isbi2012",
            batch=4,
            eval_batch=2,
            augment=(partial(random_crop, size=128), random_quarter_turn, random_flip),
            mean=(0.49,),
            std=(0.17,),
        ),
        optimizer=Optimizer(
            method=adamw, learning_rate=3e-3, schedule=cosine, warmup="50 steps", weight_decay=1e-4
        ),
        loop=Loop(
            duration="400 steps",
            evaluate_every="400 steps",
            checkpoint_every="200 steps",
            previews=3,
        ),
    )


def sweep() -> Iterator[Arm]:
    """The loss is all that changes; the border weights come with the data."""
    yield Arm("cross-entropy")
    balanced = partial(cross_entropy_loss, class_weights=(2.5, 0.625))
    yield Arm("class-weighted", {"task.loss_function": balanced})
    yield Arm("border-weighted", {"data.source": partial(border_weighted, source="tfds:isbi2012")})
    yield Arm("focal", {"task.loss_function": partial(focal_loss, gamma=2.0)})
    yield Arm("dice", {"task.loss_function": partial(dice_loss, classes=MEMBRANE)})
    for alpha, beta in PAIRS:
        loss = partial(tversky_loss, alpha=alpha, beta=beta, classes=MEMBRANE)
        yield Arm(f"tversky-{alpha:g}-{beta:g}", {"task.loss_function": loss})
    focal_tversky = partial(focal_tversky_loss, alpha=0.3, beta=0.7, classes=MEMBRANE)
    yield Arm("focal-tversky-0.3-0.7", {"task.loss_function": focal_tversky})
    lovasz = partial(lovasz_softmax_loss, classes=MEMBRANE)
    yield Arm("lovasz", {"task.loss_function": lovasz})
