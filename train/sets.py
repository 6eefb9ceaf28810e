"""The images of a run: its training set, and the sets that it is evaluated on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from opsin.data.augment import Batch
from opsin.data.checks import check_splits
from opsin.data.examples import (
    Examples,
    fits_in_memory,
    labels,
    materialize,
    stack,
)
from opsin.data.fingerprint import drawn_labels
from opsin.data.selection import drawn_places, select
from opsin.data.sources import open_source
from opsin.train.experiment import Data, Experiment
from opsin.train.preparation import augmented, prepared


@dataclass(frozen=True)
class Sets:
    """Sets of images by name.

    Attributes:
        all: the training set as ``"train"``, and the others by their name in the log.
        in_memory: the others, as arrays where they fit in memory.
        labels: what identifies those of the training set, if it is read from no files.
    """

    all: Mapping[str, Examples]
    in_memory: Mapping[str, Examples | dict[str, np.ndarray]]
    labels: str | None

    @property
    def train(self) -> Examples:
        """The training set."""
        return self.all["train"]

    def description(self) -> dict[str, Any]:
        """What is recorded of the data beside numbers and shapes, as JSON."""
        train = self.train
        names = list(train.class_names)
        files = {name: examples.files for name, examples in self.all.items() if examples.files}
        recorded = {"class_names": names, "resized": train.resized, "files": files}
        return recorded | {"labels": self.labels}


def open_sets(experiment: Experiment) -> Sets:
    """Opens the data of a run, and has the task check them.

    Raises:
        DataError: if they cannot be read.
        SettingError: if they do not fit the task.
    """
    data = experiment.data
    sets = {"train": open_training(experiment)}
    sets |= {name: open_source(data.source, split) for name, split in data.eval_splits.items()}
    check_splits(sets)
    experiment.task.check(sets["train"].class_names, partial(_look, sets, data))
    in_memory = {name: _in_memory(sets[name], data) for name in data.eval_splits}
    return Sets(sets, in_memory, drawn_labels(sets["train"]))


def open_training(experiment: Experiment) -> Examples:
    """The training images, narrowed by ``data.select``, which also draws by the run's seed."""
    data = experiment.data
    examples = open_source(data.source, data.train_split)
    if data.select is None:
        return examples
    return select(examples, data.select(labels(examples), seed=experiment.seed))


def _look(sets: Mapping[str, Examples], data: Data) -> dict[str, Batch]:
    """A few examples of each set as the model would see them."""
    few: dict[str, Batch] = {
        name: jax.device_put(stack(x.records, drawn_places(16, len(x.records))))
        for name, x in sets.items()
    }
    return {
        name: augmented(jax.random.key(0), batch, data=data)
        if name == "train"
        else prepared(batch, data=data)
        for name, batch in few.items()
    }


def _in_memory(examples: Examples, data: Data) -> Examples | dict[str, np.ndarray]:
    """A split to evaluate on, its images in memory if they fit."""
    fits = fits_in_memory(examples, data.resident_megabytes * 2**20)
    return materialize(examples) if fits else examples
