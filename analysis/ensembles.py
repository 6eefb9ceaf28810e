"""Several networks that were trained alike, as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from opsin.analysis.batches import over_batches
from opsin.analysis.classifiers import (
    Classifier,
    classification_numbers,
    labelled_split,
    mean_probabilities,
    predictor,
)
from opsin.analysis.sets import split_of
from opsin.data.examples import Examples, materialize
from opsin.ranges import Count
from opsin.train.measurements import Subject
from opsin.train.settings import SettingError
from opsin.train.weights import Weights


@dataclass(frozen=True)
class Ensemble:
    """Accuracy, NLL and ECE of a network together with others of its architecture.

    ``accuracy_ensemble``, ``nll_ensemble`` and ``ece_ensemble`` are of the mean of their
    probabilities (Lakshminarayanan et al., 2017, arXiv:1612.01474, section 2.4), ``…_soup`` of the
    one network whose parameters and statistics of norms are the means of theirs (Wortsman et al.,
    2022, arXiv:2203.05482, the uniform soup), which is worth something where all began with the
    same trained weights. ``…_member`` are the means over the single networks; ``nll_ensemble`` is
    never above ``nll_member`` (Jensen's inequality).

    Attributes:
        members: the other networks, files of ``opsin export``.
        sha256: of these files, in their order; None takes any, and those that it took are kept with
            what was measured.
        batch: images that are in memory together.
        split: of the data.
    """

    members: tuple[str, ...] = field(metadata={"known_by": "sha256"})
    sha256: tuple[str, ...] | None = None
    batch: Count = field(default=500, metadata={"identity": False})
    split: str = "test"

    def check(self, task: Any, sets: Mapping[str, Examples]) -> None:
        """Looks at the data and the files, but not at how their networks saw images.

        Raises:
            SettingError: for a task that is no classification, no such split, no members, or one
                that is named twice.
            DataError: if the images have no classes.
            WeightsError: if a file is missing, damaged or of another network.
        """
        examples = labelled_split(self, task, sets, self.split)
        if not self.members:
            raise SettingError(
                "Ensemble: members=() are no others: name files of opsin export, as in "
                "members=\"('seed1.safetensors',)\""
            )
        shape = (1, *np.shape(examples.records[0]["image"]))
        batch = {
            "image": jax.ShapeDtypeStruct(shape, jnp.float32),
            "label": jax.ShapeDtypeStruct((1,), jnp.int32),
        }
        for each in self._files():
            each.load(task.init, jax.random.key(0), batch)

    def __call__(self, subject: Subject[Classifier]) -> dict[str, float]:
        """The nine numbers.

        Raises:
            WeightsError: as ``check``.
            SettingError: a member saw images on another scale.
        """
        arrays = materialize(split_of(subject.sets, self.split))

        predictions = predictor(subject)

        def logits_of(variables: tuple[PyTree, PyTree], what: str) -> np.ndarray:
            each = replace(subject, variables=variables)
            return over_batches(predictions, each, arrays, batch=self.batch, what=what)

        total: PyTree = None
        every: list[np.ndarray] = []
        for variables in self._variables(subject, arrays["image"]):
            total = jax.tree.map(jnp.add, total, variables) if every else variables
            every.append(logits_of(variables, f"member {len(every)}"))
        soup = jax.tree.map(lambda x: (x / len(every)).astype(x.dtype), total)
        truth = arrays["label"]
        single = [classification_numbers(logits, truth) for logits in every]
        found = {
            "ensemble": classification_numbers(
                np.asarray(mean_probabilities(jnp.asarray(every))), truth
            ),
            "soup": classification_numbers(logits_of(soup, "soup"), truth),
            "member": {name: float(np.mean([x[name] for x in single])) for name in single[0]},
        }
        return {
            f"{self.split}/{name}_{kind}": value
            for kind, numbers in found.items()
            for name, value in numbers.items()
        }

    def _files(self) -> list[Weights]:
        digests = (None,) * len(self.members) if self.sha256 is None else self.sha256
        if len(digests) != len(self.members):
            raise SettingError(
                f"Ensemble: {len(digests)} sha256 for {len(self.members)} members: one for each"
            )
        if len(set(self.members)) < len(self.members):
            raise SettingError("Ensemble: a file stands twice in members: once is enough")
        return [Weights(path, sha256) for path, sha256 in zip(self.members, digests, strict=True)]

    def _variables(
        self, subject: Subject[Classifier], images: np.ndarray
    ) -> Iterator[tuple[PyTree, PyTree]]:
        """Those of the subject, and of one member after the other, on the same devices."""
        params, mutable = subject.variables
        yield params, mutable
        whole = {"params": params, **mutable}
        ends = (jnp.full((1, *images.shape[1:]), byte, jnp.uint8) for byte in (0, 255))
        seen = [np.asarray(subject.prepare({"image": image})["image"]) for image in ends]
        for each in self._files():
            mean, std = (saw := each.seen()).mean, saw.std
            theirs = [(x - np.asarray(mean)) / np.asarray(std) for x in (0, 1)]
            if not all(np.allclose(a, b, atol=1e-4) for a, b in zip(seen, theirs, strict=True)):
                raise SettingError(
                    f"Ensemble: {each.path} saw images of mean {mean} and std {std}, and the run "
                    "scales them otherwise: leave it out"
                )
            loaded = each.load(partial(dict, whole))
            placed = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), loaded, whole)
            yield placed.pop("params"), placed
