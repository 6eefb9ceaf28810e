"""``num_classes`` of a network: that of the data that were typed, unless it was typed too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opsin.config.tree import children, override
from opsin.data.sources import open_source
from opsin.train.experiment import Experiment


def classes_of_data(experiment: Experiment, overrides: Mapping[str, Any]) -> dict[str, int]:
    """Overrides that give the networks of a task one output a class of other data.

    They are part of the configuration from then on, as if they had been typed: the id of a run
    and all that opens it later know a number. What an experiment says of its own data stays.

    Args:
        experiment: what the overrides change.
        overrides: all that were typed. Unless one of them replaces the data there is nothing to do.

    Raises:
        ConfigError: as ``override``.
        DataError: if the data cannot be opened.
    """
    if not any(path == "data" or path.startswith("data.source") for path in overrides):
        return {}
    changed = override(experiment, overrides)
    below = children(changed.task)
    networks = {f"task.{name}.num_classes": below.get(name) for name in changed.task.by_class}
    outputs = {path: getattr(network, "num_classes", None) for path, network in networks.items()}
    # None is a network without classes, and 1 logit tells two of them apart.
    asked = {path for path, n in outputs.items() if n not in (None, 1)} - overrides.keys()
    if not asked:
        return {}
    # As stored: a folder of images is not read for it.
    examples = open_source(changed.data.source, changed.data.train_split, as_stored=True)
    count = len(examples.class_names)
    return {path: count for path in sorted(asked) if count and outputs[path] != count}
