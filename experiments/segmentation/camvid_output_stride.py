"""At equal cost, should a segmenter dilate a narrow network or downsample a wide one?

Yu et al., 2017, arXiv:1705.09914, and Chen et al., 2017, arXiv:1706.05587, keep features large by
dilation and find a smaller output stride better: there at four times the cost for each halving.
Here each arm costs the same 5.0 GFLOP an image and step: DeepLabv3+ on a ResNet-18 whose width pays
for its output stride: 18 channels at stride 8, 30 at 16, 38 at 32. The rates of the pyramid follow.

Small: CamVid at 180×240 pixels, random weights, 400 steps of eight images.

Ours, three seeds: at equal cost the stride hardly matters. Mean IoU is 0.343 ± 0.010 at stride 8,
0.355 ± 0.003 at 16 and 0.339 ± 0.020 at 32, and the intervals of the differences hold zero;
boundary F1 (0.215, 0.227, 0.208) says the same more clearly: 16 is best. What the papers gain by a
smaller stride they pay for. 2 to 3 minutes a run on two cores of an AMD EPYC, beside other work.

    opsin sweep camvid_output_stride
    opsin report camvid_output_stride
"""

from collections.abc import Iterator

from opsin.config.table import Arm, Table
from opsin.config.tree import override
from opsin.experiments.segmentation import camvid_models
from opsin.models.classification.resnet import ResNet18
from opsin.models.segmentation.deeplab import DeepLabv3, DeepLabv3Plus
from opsin.train.experiment import Experiment

WIDTHS = {8: 18, 16: 30, 32: 38}  # output stride -> channels of the backbone's first stage
RATES = {8: (3, 6, 9), 16: (2, 4, 6), 32: (1, 2, 3)}

SMOKE = camvid_models.SMOKE | {"task.model.backbone.stage_sizes": (1, 1, 1, 1)}

TABLE = Table(
    title="Output stride of DeepLabv3+ on CamVid at equal FLOPs, 400 steps",
    metrics={
        "test/miou": ".4f",
        "test/boundary_f1": ".4f",
        "test/accuracy": ".2%",
    },
    details={"parameters": ".0f", "model_flops_per_step": ".3g"},
    lower_is_better=("parameters", "model_flops_per_step"),
    baseline="stride-32",
    seeds=3,
)


def network(stride: int) -> DeepLabv3:
    """DeepLabv3+ with features so many times smaller than the image."""
    width = WIDTHS[stride]
    return DeepLabv3Plus(
        backbone=ResNet18(width=width, output_stride=stride).without_head(),
        rates=RATES[stride],
        width=2 * width,
        low_level_width=24,
        num_classes=camvid_models.CLASSES,
    )


def config() -> Experiment:
    """The images and the schedule of ``camvid_models``."""
    changes = {"task.model": network(32), "loop.duration": "400 steps"}
    return override(camvid_models.config(), changes)


def sweep() -> Iterator[Arm]:
    """Output stride, and the width that it leaves."""
    for stride in WIDTHS:
        yield Arm(f"stride-{stride}", {"task.model": network(stride)})
