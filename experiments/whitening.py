"""Writes ``results/extractors/cifar10_whitening.safetensors`` from CIFAR-10's training images.

    TFDS_DATA_DIR=… python -m opsin.experiments.whitening

A test on the real data finds the committed filters again.
"""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float

from opsin.data.examples import materialize
from opsin.data.selection import select
from opsin.data.sources import open_source
from opsin.ops.whitening import whitening_filters
from opsin.train.weights import save_weights

IMAGES = 5000
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Of CIFAR-10's training images in [0, 1]."""


def cifar10_filters() -> Float[np.ndarray, "2 2 3 24"]:
    """Of the first ``IMAGES`` training images, as many as in the paper's code.

    In double precision: two of the eigenvalues are nearly alike, and the last bits of sums of five
    million products would turn their filters.
    """
    examples = select(open_source("tfds:cifar10", "train"), np.arange(IMAGES))
    images = (materialize(examples)["image"] / 255 - np.array(MEAN)) / np.array(STD)
    with jax.enable_x64(True):
        return np.asarray(jax.jit(whitening_filters)(images), np.float32)


def main() -> None:
    """Writes the file, and prints its sha256."""
    path = Path("results/extractors/cifar10_whitening.safetensors")
    variables = {"params": {"backbone": {"whiten": {"kernel": cifar10_filters()}}}}
    described = {"network": "Airbench", "mean": MEAN, "std": STD, "range": (0.0, 1.0)}
    print(save_weights(path, variables, described | {"image": (32, 32, 3)}))


if __name__ == "__main__":
    main()
