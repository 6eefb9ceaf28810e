"""Metrics over batches of one's own, the last of which is padded."""

import jax
import numpy as np

from opsin.metrics.classification import accuracy, calibration, confusion_matrix
from opsin.metrics.state import Merging, compute_all

rng = np.random.default_rng(0)
logits = rng.normal(size=(1000, 10)).astype(np.float32)  # of a model of yours
labels = rng.integers(10, size=1000)


@jax.jit
def states(logits, labels, valid):
    return {
        "accuracy": accuracy(logits, labels, valid),
        "ece": calibration(logits, labels, valid=valid),
        "confusion": confusion_matrix(logits, labels, 10, valid),
    }


merging = Merging()  # adds the states of all batches on the host, in 64 bits
for first in range(0, 1000, 128):
    part = slice(first, first + 128)
    missing = 128 - len(labels[part])
    padded = np.pad(logits[part], ((0, missing), (0, 0))), np.pad(labels[part], (0, missing))
    merging.add(states(*padded, np.arange(128) < 128 - missing))

whole = merging.result()
numbers = compute_all(whole)
for name in ("accuracy", "ece", "f1_macro"):
    print(f"{name} {numbers[name]:.4f}")
print(np.asarray(whole["confusion"].counts))
