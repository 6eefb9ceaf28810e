"""How often one class is taken for another."""

from dataclasses import dataclass

import jax
import numpy as np

from opsin.data.examples import materialize


@dataclass(frozen=True)
class Confused:
    """The share of the images of one class that are taken for another one."""

    true: int = 3
    other: int = 8
    split: str = "test"

    def __call__(self, subject):
        """The share, by its name."""
        arrays = materialize(subject.sets[self.split])
        images = arrays["image"][arrays["label"] == self.true]
        params, mutable = subject.variables
        prepared = subject.prepare({"image": images})["image"]
        logits = jax.jit(subject.task.logits)(params, mutable, prepared)
        share = np.mean(np.argmax(logits, axis=-1) == self.other)
        return {f"{self.split}/confused_{self.true}_{self.other}": share}
