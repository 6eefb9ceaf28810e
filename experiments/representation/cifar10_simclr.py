"""Are features that were learned without labels worth more than random ones, and than pixels?

Chen et al., 2020, arXiv:2002.05709, appendix B.9: on CIFAR-10 a linear classifier reads 94.0 % off
the frozen features of SimCLR, where the same network trained with labels has 95.1 %.

Ours, three seeds: 54.4 ± 0.3 % off features of SimCLR, 35.9 ± 0.3 % off those of the same network
with random weights, 41.4 % off the pixels (no part of which is random: the seeds agree), and
74.2 ± 0.4 % off those of the network trained with labels. Nearest neighbours say the same but for
the pixels, which they do not find useful.

In small: images of 16×16 pixels (each the mean of 2×2), ResNet-8 with 308 thousand parameters
instead of ResNet-50, batches of 128 instead of 1,024, 3,000 steps (7.7 epochs) instead of 1,000
epochs; crops of 0.2 of the image and more instead of 0.08, AdamW instead of LARS. The supervised
network sees as many images, with padded crops and flips. Twelve minutes a run of SimCLR, on one of
the two cores of an AMD EPYC, with other work beside it.

    opsin sweep cifar10_simclr
    opsin report cifar10_simclr
"""

from collections.abc import Iterator
from functools import partial

from opsin.analysis.probes import Probe
from opsin.config.table import Arm, Table
from opsin.config.tree import override
from opsin.data.color import color_distortion
from opsin.data.geometry import random_crop, random_flip, random_resized_crop
from opsin.data.sources import shrunk, synthetic
from opsin.losses.contrastive import nt_xent_loss
from opsin.models.classification.linear import Linear
from opsin.models.classification.resnet import BasicBlock, ResNet
from opsin.models.representation.simclr import ProjectionHead, SimCLR
from opsin.train.experiment import Data, Experiment, Loop
from opsin.train.methods import adamw
from opsin.train.optim import Optimizer
from opsin.train.schedules import cosine
from opsin.train.tasks.classify import Classify
from opsin.train.tasks.contrast import Contrast

CROP = partial(random_resized_crop, scale=(0.2, 1.0))
COLOR = partial(color_distortion, strength=0.5)
# Appendix B.9: no blur on small images, and colours of half the strength.
VIEWS = (CROP, random_flip, COLOR)
WIDTH, SMALL = 32, 16
PROBE = Probe(sgd_epochs=30)

SMOKE = {
    "data.source.source": partial(synthetic, n=64),
    "data.batch": 16,
    "data.eval_batch": 32,
    "task.model.backbone.width": 8,
    "measurements.0.neighbours": 5,
    "measurements.0.validation": 0.25,
    "loop.duration": "2 steps",
    "optimizer.warmup": "0 steps",
}
SMOKE_IN_SMALL = {**SMOKE, "task.views": (random_flip,), "data.train_split": "train"}

TABLE = Table(
    title="Frozen features on CIFAR-10 at 16x16: what a linear classifier reads off them",
    metrics={
        "test/linear_accuracy": ".2%",
        "test/knn_accuracy": ".2%",
        "test/sgd_accuracy": ".2%",
    },
    details={"test/feature_rank": ".1f", "test/feature_std": ".3f"},
    references=("random", "pixels", "supervised"),
    baseline="random",
    paper={
        ("simclr", "test/linear_accuracy"): "94.0 (Chen et al., 2020, B.9; ResNet-50, batch 1024)",
        ("supervised", "test/linear_accuracy"): "95.1 (Chen et al., 2020, B.9; the whole network)",
    },
    seeds=3,
)


def classifier(width: int) -> ResNet:
    """The smallest residual network of three stages: 8 layers, 4 · width features."""
    return ResNet(
        stage_sizes=(1, 1, 1), block=BasicBlock, width=width, stem="cifar", num_classes=10
    )


def config() -> Experiment:
    """SimCLR."""
    return Experiment(
        task=Contrast(
            model=SimCLR(backbone=classifier(WIDTH).without_head(), head=ProjectionHead()),
            views=VIEWS,
            loss_function=partial(nt_xent_loss, temperature=0.5),
        ),
        data=Data(source=partial(shrunk, source="tfds:cifar10", factor=2), batch=128),
        optimizer=Optimizer(
            method=adamw,
            learning_rate=2e-3,
            schedule=cosine,
            warmup="200 steps",
            weight_decay=1e-4,
        ),
        loop=Loop(
            duration="3000 steps",
            log_every="50 steps",
            evaluate_every="1000 steps",
            checkpoint_every="500 steps",
            previews=10,
        ),
        measurements=(PROBE,),
    )


def in_small() -> Experiment:
    """For ablations: half the width, and a fifth of the training images."""
    changes = {
        "task.model.backbone": classifier(SMALL).without_head(),
        "measurements": (Probe(),),
        "data.train_split": "train[:10000]",
        "loop.duration": "1000 steps",
        "loop.evaluate_every": "1000 steps",
    }
    return override(config(), changes)


def references(width: int) -> Iterator[Arm]:
    """What every table of frozen features is read against: random weights, and labels.

    The features of the untrained network are those after 100 batches, which give its norms their
    statistics; of its embeddings (alignment and the like) the norms are as they begin.

    Args:
        width: of the backbone.
    """
    untrained = {"loop.duration": "0 steps", "measurements.0.statistics_batches": 100}
    yield Arm("random", untrained)
    augment = (partial(random_crop, padding=2), random_flip)
    supervised = Classify(model=classifier(width))
    yield Arm("supervised", {"task": supervised, "data.augment": augment})


def sweep() -> Iterator[Arm]:
    """Random, raw, supervised and self-supervised features."""
    random, supervised = references(WIDTH)
    yield random
    yield Arm("pixels", {"loop.duration": "0 steps", "task": Classify(model=Linear())})
    yield supervised
    yield Arm("simclr")
