"""How good generated images are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Interval

from opsin.analysis.checks import check_task
from opsin.analysis.sampling import sample_images
from opsin.analysis.sets import Choice, some_examples, split_of
from opsin.data.examples import Examples
from opsin.data.sources import open_source
from opsin.metrics.generative import FEWEST, generator_metrics
from opsin.ranges import Positive, Seed
from opsin.train.extractor import Extractor
from opsin.train.measurements import Subject
from opsin.train.settings import SettingError
from opsin.train.tasks.generative import Generative


@dataclass(frozen=True)
class SampleQuality:
    """How close samples are to real images, by the features of a network.

    ``fd_<net>``, ``kd_<net>``, ``is_<net>``, precision, recall, density and coverage of as many
    samples as real images (see ``metrics.generative``). The same numbers of real images from
    ``floor_split``, called ``floor_…``, say what a perfect generator would reach. A conditional
    model samples all classes in turn, and ``sample_accuracy`` is the share of samples in which the
    network sees the requested class.

    Attributes:
        extractor: the network.
        samples: number of samples, and of real images, if there are as many.
        choice: which real images, if there are more; see ``analysis.sets.Choice``.
        source: of the real images, as for ``data.source``; None takes those of the run.
        split: that samples are compared to.
        floor_split: that gives the floor.
        diverged_above: the Fréchet distance above which a run counts as ``diverged``, 1 or 0, whose
            mean in a table is the share of such runs; None leaves that out.
        seed: of the samples.
    """

    extractor: Extractor
    samples: Annotated[int, Interval(ge=FEWEST, le=1_000_000)] = 10_000
    choice: Choice = "drawn"
    source: str | Callable[[str], Examples] | None = None
    split: str = "test"
    floor_split: str = "train"
    diverged_above: Positive | None = None
    seed: Seed = 0

    def check(self, task: Generative, sets: Mapping[str, Examples]) -> None:
        """Looks at what will be read.

        Raises:
            SettingError: if the task makes no images, there is no such split, images are too few to
                have neighbours, or the network is for other images.
            WeightsError: if the network cannot be read.
        """
        check_task(self, task, Generative, "a model that makes images")
        *_, image = self.extractor.open()
        read = [(split, self._open(sets, split)) for split in (self.split, self.floor_split)]
        for split, examples in read:
            if len(examples.records) < FEWEST:
                raise SettingError(
                    f"SampleQuality: {split!r} has {len(examples.records)} images, and at least "
                    f"{FEWEST} are needed: choose another split or source"
                )
        # Those that are made are as large as those that are trained on.
        for split, examples in (*read, *sets.items()):
            found = np.shape(examples.records[0]["image"])
            if found != image:
                raise SettingError(
                    f"SampleQuality: the extractor {self.extractor.name} is for images "
                    f"{list(image)}, and those of {split!r} are {list(found)}: leave it out "
                    "(measurements=()), or give it an extractor of such images (opsin export)"
                )

    def __call__(self, subject: Subject[Generative]) -> dict[str, float]:
        """Raises WeightsError if the network cannot be read, or is for other images."""
        extract = self.extractor.load()
        classes = subject.task.num_classes
        asked = None if classes is None else np.arange(self.samples) % classes
        real, _ = extract(self._images(subject.sets, self.split))
        other, other_probabilities = extract(self._images(subject.sets, self.floor_split))
        images = sample_images(
            subject.task,
            *subject.variables,
            self.samples,
            seed=self.seed,
            labels=asked,
            track=subject.track,
        )
        made, probabilities = extract(images)
        name = self.extractor.name
        found = generator_metrics(name, real, made, probabilities)
        floors = generator_metrics(name, real, other, other_probabilities)
        found |= {f"floor_{metric}": value for metric, value in floors.items()}
        if asked is not None:
            found["sample_accuracy"] = float(np.mean(probabilities.argmax(axis=-1) == asked))
        if self.diverged_above is not None:
            found["diverged"] = float(found[f"fd_{name}"] > self.diverged_above)
        return {f"{self.split}/{metric}": value for metric, value in found.items()}

    def _open(self, sets: Mapping[str, Examples], split: str) -> Examples:
        return split_of(sets, split) if self.source is None else open_source(self.source, split)

    def _images(self, sets: Mapping[str, Examples], split: str) -> np.ndarray:
        return some_examples(self._open(sets, split), self.samples, self.choice)["image"]
