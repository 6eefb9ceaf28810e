"""How well simple classifiers do on frozen features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from opsin.analysis.features import (
    LAYERS,
    Layer,
    check_features,
    extract_features,
    untrained_variables,
    with_statistics,
)
from opsin.analysis.linear_probe import linear_probe, sgd_probe
from opsin.analysis.sets import split_of
from opsin.data.examples import Examples, labels, materialize
from opsin.data.selection import drawn_places, select
from opsin.metrics.representation import knn_accuracy, spread
from opsin.ranges import CountOrZero, Part, Positive, Seed, SetSize, StepsOrZero
from opsin.train.measurements import Subject
from opsin.train.settings import SettingError

UNTRAINED_BATCHES = 100  # that give the norms of the untrained network their statistics


@dataclass(frozen=True)
class Probe:
    """Linear and nearest-neighbour classification of features that are extracted once.

    ``linear_accuracy`` is that of full-batch logistic regression, and ``linear_l2`` its penalty,
    chosen on held-out training images; ``knn_accuracy`` that of weighted nearest neighbours (Wu et
    al., 2018, arXiv:1805.01978, section 3.4, with τ = 0.1); ``sgd_accuracy`` that of SGD on the
    same features. ``feature_rank`` and ``feature_std`` say how test features spread (see
    ``metrics.representation.spread``). Numbers for the output of the head end in ``_head``. Images
    are not cropped, and are prepared as in evaluation.

    Attributes:
        layers: which features; see ``analysis.features``.
        penalties: candidates for l2.
        validation: share of the training images that is held out to choose l2.
        neighbours: k of the nearest neighbours, 0 for none.
        sgd_epochs: of the probe by SGD, 0 for none; the paper's are 90.
        images: of the training split, drawn at random; None takes all.
        statistics_batches: batches of 128 training images over which the statistics of norms are
            computed first, for an untrained network; 0 keeps those that it has.
        untrained: whether to probe the same network with random weights too, with norms that have
            the statistics of 100 batches; the names of these numbers begin with ``untrained_``.
        train_split: the probes learn from it.
        split: it is classified.
        seed: of all draws, of the order of SGD, and of random weights.
    """

    layers: tuple[Layer, ...] = ("features",)
    penalties: tuple[Positive, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
    validation: Part = 0.1
    neighbours: CountOrZero = 200
    sgd_epochs: StepsOrZero = 0
    images: SetSize | None = None
    statistics_batches: CountOrZero = 0
    untrained: bool = False
    train_split: str = "train"
    split: str = "test"
    seed: Seed = 0

    def check(self, task: Any, sets: Mapping[str, Examples]) -> None:
        """Looks at the network and at the labels.

        Raises:
            SettingError: for other layers, no penalties, no such split, or a network without
                features.
            DataError: if the images have no classes.
        """
        if not self.layers or not set(self.layers) <= set(LAYERS):
            raise SettingError(
                f"Probe: layers={self.layers} are not among {', '.join(map(repr, LAYERS))}"
            )
        if not self.penalties:
            raise SettingError("Probe: penalties is empty: set (1e-4, 1e-2), say")
        train, test = (split_of(sets, name) for name in (self.train_split, self.split))
        classes = labels(train)[self._drawn(train)]
        labels(test)
        aside = round(self.validation * len(classes))
        kinds = len(np.unique(classes))
        fewest = np.bincount(classes)[np.unique(classes)].min()
        if kinds < 2 or aside < kinds or len(classes) - aside < kinds or fewest < 2:
            raise SettingError(
                f"Probe: {len(classes)} images of {kinds} classes are too few to set "
                f"{self.validation:.0%} of them aside: give it more images or another validation"
            )
        if self.neighbours > len(classes):
            raise SettingError(
                f"Probe: neighbours={self.neighbours} of {len(classes)} images: set fewer"
            )
        check_features(task, np.shape(train.records[0]["image"]))

    def __call__(self, subject: Subject[Any]) -> dict[str, float]:
        """The numbers of all layers."""
        train = split_of(subject.sets, self.train_split)
        arrays = {
            self.train_split: materialize(select(train, self._drawn(train))),
            self.split: materialize(split_of(subject.sets, self.split)),
        }
        truth = {name: np.asarray(x["label"]) for name, x in arrays.items()}
        networks = {"": (subject, self.statistics_batches)}
        if self.untrained:
            image = np.shape(train.records[0]["image"])
            random = untrained_variables(subject.task, image, subject.prepare, self.seed)
            networks["untrained_"] = (replace(subject, variables=random), UNTRAINED_BATCHES)
        found: dict[str, float] = {}
        for front, (network, batches) in networks.items():
            seen = with_statistics(network, train, batches=batches, seed=self.seed)
            extracted = extract_features(seen, arrays)
            for layer in subject.track(self.layers, "probes"):
                end = "" if layer == "features" else f"_{layer}"
                numbers = self._probed(
                    extracted[self.train_split][layer],
                    truth[self.train_split],
                    extracted[self.split][layer],
                    truth[self.split],
                )
                found |= {f"{self.split}/{front}{n}{end}": x for n, x in numbers.items()}
        return found

    def _drawn(self, examples: Examples) -> np.ndarray:
        """Places of the images that the probe learns from, drawn: folders are ordered by class."""
        total = len(examples.records)
        count = total if self.images is None else self.images
        return drawn_places(count, total, seed=self.seed)

    def _probed(
        self, bank: np.ndarray, classes: np.ndarray, queries: np.ndarray, truth: np.ndarray
    ) -> dict[str, float]:
        from sklearn.model_selection import StratifiedShuffleSplit

        aside = StratifiedShuffleSplit(1, test_size=self.validation, random_state=self.seed)
        accuracy, l2 = linear_probe(
            bank, classes, queries, truth, penalties=self.penalties, splits=aside
        )
        numbers = {"linear_accuracy": accuracy, "linear_l2": l2}
        if self.sgd_epochs:
            numbers["sgd_accuracy"] = sgd_probe(
                bank, classes, queries, truth, epochs=self.sgd_epochs, seed=self.seed
            )
        if self.neighbours:
            count = int(max(classes.max(), truth.max())) + 1
            numbers["knn_accuracy"] = knn_accuracy(
                *map(jnp.asarray, (bank, classes, queries, truth)),
                k=self.neighbours,
                classes=count,
            )
        spreading = spread(jnp.asarray(queries)).compute()
        return numbers | {
            f"feature_{name.removeprefix('embedding_')}": value for name, value in spreading.items()
        }
