"""Sets prepared by TensorFlow Datasets, read without TensorFlow."""

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from opsin.data.enclosure import component
from opsin.data.examples import DataError, Examples, Records, read_several
from opsin.data.fingerprint import identified
from opsin.data.masks import IGNORE, TFDS_LABELS, CheckedMasks, Labels
from opsin.data.records import bounded

_OWN = "tensorflow_datasets.core.features."
_CHUNK = 1000  # labels read in one call: four times as fast as one by one, and little memory


def tfds(
    name: str,
    split: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    labels: Labels | None = None,
) -> Examples:
    """Opens a prepared TFDS set, without TensorFlow and without a network.

    Every numeric feature is kept, nested ones under flat names such as "objects/bbox", and 64-bit
    integers become int32, the width that JAX computes with. Text, such as an "id", is dropped.
    Class names are those of the feature "label", if there is one.

    A feature "segmentation_mask" becomes ``mask``, uint8 [height, width], and is checked when it is
    read (``data.masks.CheckedMasks``). Where ``labels`` or ``data.masks.TFDS_LABELS`` say what its
    labels mean, class names are those found there, labels are compared to them, and void pixels
    become ``IGNORE``. A "label" that is -1 in the first and in the last example is none.

    Args:
        name: as TFDS has it: "mnist", "mnist:3.0.1" or "set/config".
        split: as TFDS has it: "train", "train[:80%]", "train+test".
        data_dir: where sets are prepared, on this machine; by default $TFDS_DATA_DIR, or else
            ~/tensorflow_datasets.
        labels: what the labels of the masks mean; None looks the set up in
            ``data.masks.TFDS_LABELS``.

    Raises:
        DataError: if the set is missing, incomplete or damaged, or has no such split. Files other
            than the first and the last of a split are opened only when they are read; damage there
            raises then, and so does a wrong mask.
    """
    # Imported where it is used: it takes half a second, and other sources do not need it.
    import tensorflow_datasets

    _check_name(name)
    root = _local(_root_of(data_dir))
    build = (
        f"pip install -e '.[prepare]' && tfds build {name} "
        f"--file_format=array_record --data_dir={root}"
    )
    if not (root / name.partition(":")[0]).is_dir():
        held = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
        raise DataError(
            f'no data set "{name}" in {root}, which holds {", ".join(held) or "none"}; '
            f"set TFDS_DATA_DIR to the directory that holds it, or prepare it with: {build}"
        )
    where = f'data set "{name}" in {root}'
    again = f"prepare it again with: {build} --overwrite"
    with _named(f"cannot open {where}", again):
        _check_features(Path(root, re.split("[/:]", name)[0]))
        builder: Any = tensorflow_datasets.builder(name, data_dir=os.fspath(root))
        splits, features = builder.info.splits, builder.info.features
    if not splits or not isinstance(features, tensorflow_datasets.features.FeaturesDict):
        raise DataError(f"{where} is not complete: no splits or features; {again}")
    try:
        count = splits[split].num_examples
    except (KeyError, ValueError) as error:
        raise DataError(
            f'{where} has no split "{split}"; it has {", ".join(splits)}, and slices of them '
            f'such as "{next(iter(splits))}[:80%]"'
        ) from error
    if count == 0:
        raise DataError(f'split "{split}" of {where} is empty; take a larger slice')
    with _named(f'cannot read split "{split}" of {where}', again):
        records = _Records(builder.as_data_source(split), f"{where} is damaged", again)
    with _without_decoder_advice():  # a cut file shows at one of its ends
        ends = records[0], records[count - 1]

    def read_labels() -> Int[np.ndarray, " n"]:
        decoders = {
            key: tensorflow_datasets.decode.SkipDecoding()
            for key, feature in features.items()
            if isinstance(feature, tensorflow_datasets.features.Image)
        }
        found = []
        with _named(f"cannot read the labels of {where}", again):
            source = builder.as_data_source(split, decoders=decoders)
            for start in range(0, count, _CHUNK):
                indices = list(range(start, min(start + _CHUNK, count)))
                found += [example["label"] for example in source.__getitems__(indices)]
        return np.array(found, np.int32)

    kinds: dict[str, Any] = dict(features.items())
    label = kinds.get("label")
    is_class = isinstance(label, tensorflow_datasets.features.ClassLabel)
    class_names = tuple(label.names) if is_class else ()
    unlabelled = is_class and all(end["label"] == -1 for end in ends)
    if unlabelled:
        records, class_names = _Unlabelled(records), ()
    if "segmentation_mask" in kinds:
        mask = kinds["segmentation_mask"]
        if mask.shape[2:] != (1,) or mask.np_dtype != np.uint8:
            raise DataError(f"the masks of {where} do not have one 8-bit channel; convert them")
        meaning = labels or TFDS_LABELS.get(builder.name)
        records = CheckedMasks(
            _Masked(records, meaning.void if meaning else None),
            lambda index: f'the mask of example {index} in split "{split}" of {where}',
            len(meaning.class_names) if meaning else None,
        )
        class_names = meaning.class_names if meaning else class_names
    labels_of = read_labels if is_class and not unlabelled else None
    return Examples(records, class_names, labels_of, files=set_fingerprint(name, root))


def set_fingerprint(name: str, data_dir: str | os.PathLike[str] | None = None) -> str:
    """What identifies the files of a prepared set, of all splits; empty if it is not there.

    It is as of ``data.fingerprint.source_fingerprint``, of the files that hold the examples.

    Args:
        name: as for ``tfds``; without a version that is the newest, as TFDS takes it.
        data_dir: as for ``tfds``.
    """
    path, _, version = name.partition(":")
    wanted = re.escape(version).replace(r"\*", r"\d+") if version else r"\d+\.\d+\.\d+"
    root = Path(_root_of(data_dir))
    home = root / path
    there = [each for each in home.glob("*") if re.fullmatch(wanted, each.name)]
    newest = max(there, key=lambda each: [int(part) for part in each.name.split(".")], default=None)
    return identified(sorted(newest.glob("[!.]*-of-*")) if newest else [], root)


def _root_of(data_dir: str | os.PathLike[str] | None) -> str:
    """Where sets are prepared."""
    return os.path.expanduser(  # of a text: a path would make gs:/sets of gs://sets
        data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    )


def _check_name(name: str) -> None:
    """Raises DataError for what is no set on the disk: TFDS would ask the network, or leave it.

    TFDS takes ``MySet`` for ``my_set``, and ``set/config=x`` for ``set``: it would open another
    directory than the one whose features are looked at before.
    """
    for part in name.partition(":")[0].split("/"):
        component("data set", part)
    if not re.fullmatch(r"[a-z][a-z0-9_]*(/[A-Za-z0-9_][\w+.-]*)?(:[0-9.*]+)?", name, re.ASCII):
        raise DataError(
            f'data set "{name}": write set, set/config or set/config:1.0.0, with a set in small '
            "letters, such as my_set"
        )


def _local(text: str) -> Path:
    """A directory that TFDS reads where ``_check_features`` does: to it, /gs/x is gs://x."""
    import tensorflow_datasets

    if "://" in text or "://" in os.fspath(tensorflow_datasets.core.Path(text)):
        raise DataError(f"{text} is not on this machine: copy its sets into a directory here")
    return Path(text)


def _check_features(home: Path) -> None:
    """Raises DataError where a set has features of other code, which TFDS would import."""
    files = [*home.glob("*/features.json"), *home.glob("*/*/features.json")]
    if not files:
        raise DataError(f"{home} has no features.json")
    for file in files:
        for name in _classes(json.loads(bounded(file))):
            if not name.startswith(_OWN):
                raise DataError(f"{file} names {name}, which is no feature of TFDS")


def _classes(content: Any) -> Iterator[str]:
    """The classes that a ``features.json`` names, also inside texts that are JSON themselves."""
    if isinstance(content, str):
        with suppress(ValueError):
            inside = json.loads(content)
            yield from _classes(inside if isinstance(inside, dict | list) else None)
    if isinstance(content, dict):
        named = (content.get(key) for key in ("pythonClassName", "python_class_name", "type"))
        yield from (name for name in named if isinstance(name, str))
    for each in content.values() if isinstance(content, dict) else ():
        yield from _classes(each)
    for each in content if isinstance(content, list) else ():
        yield from _classes(each)


@dataclass(frozen=True)
class _Records:
    source: Any
    damaged: str
    remedy: str

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, np.ndarray]]:
        every = range(len(self))
        places = [every[index] for index in indices]  # an IndexError is the caller's, not damage
        with _named(self.damaged, self.remedy):
            return [dict(_numeric(example)) for example in self.source.__getitems__(places)]


@dataclass(frozen=True)
class _Masked:
    """Records with TFDS's ``segmentation_mask`` [height, width, 1] as ``mask`` [height, width]."""

    records: Records
    void: int | None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        example = self.records[index]
        mask = example.pop("segmentation_mask")[..., 0]
        if self.void is not None:
            mask = np.where(mask == self.void, np.uint8(IGNORE), mask)
        return example | {"mask": mask}


@dataclass(frozen=True)
class _Unlabelled:
    """Records whose ``label`` is always -1, which is how TFDS says that there is none."""

    records: Records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, np.ndarray]]:
        read = read_several(self.records, indices)
        return [{name: x for name, x in example.items() if name != "label"} for example in read]


def _numeric(example: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    for name, value in example.items():
        if isinstance(value, Mapping):
            yield from _numeric(value, f"{prefix}{name}/")
            continue
        array = np.asarray(value)
        if array.dtype.kind in "biuf":
            narrow = array.astype(np.int32) if array.dtype == np.int64 else array
            yield prefix + name, narrow[()]


@contextmanager
def _named(what: str, remedy: str) -> Iterator[None]:
    """Turns any failure into one line: TFDS, array_record and Pillow raise many kinds."""
    try:
        yield
    except Exception as error:
        cause = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{what}: {cause}; {remedy}") from error


@contextmanager
def _without_decoder_advice() -> Iterator[None]:
    """Drops the advice to install OpenCV, which TFDS logs once, as it decodes its first image."""

    def keep(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("OpenCV is not installed")

    logger = logging.getLogger("absl")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
