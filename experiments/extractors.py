"""Trained networks in ``results/extractors/``: to judge generators, or to start other runs."""

from opsin.models.classification.lenet import LeNet5
from opsin.train.extractor import Extractor
from opsin.train.weights import Weights

# Made by `opsin run mnist_lenet`, then `opsin export RUN results/extractors/lenet.safetensors`.
LENET = Extractor(
    name="lenet",
    model=LeNet5(num_classes=10),
    path="results/extractors/lenet.safetensors",
    sha256="33bb84d537538419e3f943decebf965427d6c1c5c0863a599ba157a61cc181ac",
)
"""LeNet-5 of ``mnist_lenet``, seed 0: 99.31 % of MNIST's test images; features [n, 84]."""

# Made by `opsin run mnist_ddpm`, then `opsin export RUN results/extractors/mnist_ddpm.safetensors`.
MNIST_DDPM = Weights(
    path="results/extractors/mnist_ddpm.safetensors",
    sha256="a336ec14ee7e7b4b9a9acd962602b3ad4047dcf39933c333841817a402a5b097",
)
"""The moving average of ``mnist_ddpm``, seed 0."""

# Made by `opsin run cifar10_simclr`, then `opsin export RUN
# results/extractors/cifar10_simclr.safetensors`.
CIFAR10_SIMCLR = Weights(
    path="results/extractors/cifar10_simclr.safetensors",
    sha256="213c04ec56154502d6dc63e61e4d4dd349f29add00d3e21fa89402c9a77f9287",
    part="backbone",
)
"""The backbone of ``cifar10_simclr``, seed 0: a linear classifier of its features [n, 128] reaches
54.77 %."""

# Made by `python -m opsin.experiments.whitening`.
CIFAR10_WHITENING = Weights(
    path="results/extractors/cifar10_whitening.safetensors",
    sha256="b6f83712924b7f8f440841db7dff91e7f6b2f0b9f0ed0127a6536cecf72ce91c",
    part="backbone/whiten/kernel",
)
"""Filters that whiten patches of 2x2 pixels of CIFAR-10's first 5,000 training images."""
