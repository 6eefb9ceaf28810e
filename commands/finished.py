"""Whether the data of a finished run are still those that it was trained on."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from opsin.data.examples import DataError, check_same_data
from opsin.data.fingerprint import source_fingerprint
from opsin.train.checkpoint import Checkpoints, saved_step
from opsin.train.experiment import Data


def files_of(data: Data) -> dict[str, str]:
    """``Examples.files`` of each set that is there, without opening one; others are left out."""
    found: dict[str, str | None] = {}
    for name, split in {"train": data.train_split, **data.eval_splits}.items():
        with suppress(DataError):
            found[name] = source_fingerprint(data.source, split)
    return {name: text for name, text in found.items() if text}


def check_files(checkpoints: Path, data: Data) -> None:
    """Compares the files of a finished run's data, unopened, to those that it was trained on.

    Raises:
        DataError: if they are others now. A split that is gone is not compared, and nothing where
            the checkpoint is.
    """
    files = files_of(data)
    if files and saved_step(checkpoints) is not None:
        with Checkpoints(checkpoints, create=False) as opened:
            check_same_data(opened.metadata().get("data", {}), {"files": files})
