"""The sets of a run before it trains: what they have in common, and which images are shown."""

import itertools
import shutil
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from opsin.commands.finished import files_of
from opsin.config.tree import override
from opsin.data.examples import Arrays, DataError, Examples
from opsin.data.fingerprint import drawn_labels
from opsin.data.selection import select
from opsin.train.evaluate import draw
from opsin.train.experiment import Data
from opsin.train.loop import fit
from opsin.train.sets import open_sets
from opsin.train.settings import SettingError
from opsin.train.sharding import Parallel, make_mesh
from opsin.train.tasks.classify import Classify
from tests.commands import tiny


def images(count: int, size: int, channels: int = 3) -> np.ndarray:
    """Of each the first pixel says its place."""
    made = np.zeros((count, size, size, channels), np.uint8)
    made[:, 0, 0, 0] = np.arange(count)
    return made


def source(split, *, size=6, names=("a", "b", "c", "d"), channels=3):
    """In the order of its classes, as a folder is; "test" may be different."""
    other = split == "test"
    arrays = {
        "image": images(200, size if other else 6, channels if other else 3),
        "label": np.repeat(np.arange(4, dtype=np.int32), 50),
    }
    return Examples(Arrays(arrays), names if other else ("a", "b", "c", "d"))


def experiment(**options):
    return override(tiny.config(), {"data.source": partial(source, **options), "parallel.data": 1})


@pytest.mark.parametrize("options", [{"size": 8}, {"channels": 1}])
def test_a_network_that_cannot_take_a_split_is_told_before_it_trains(tmp_path, options):
    message = r"images of 'test' are .*, those of training .*6, 6, 3"
    with pytest.raises(SettingError, match=message) as told:
        fit(experiment(**options), tmp_path, config={}, progress=False)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "checkpoints").exists()


def test_other_class_names_in_a_split_are_refused():
    with pytest.raises(DataError, match="split 'test' has the classes a, b, d, c, and training a,"):
        open_sets(experiment(names=("a", "b", "d", "c")))


def test_what_a_task_looks_at_and_what_is_previewed_has_all_classes(tmp_path, monkeypatch):
    looks, batches = [], []
    monkeypatch.setattr(Classify, "check", lambda self, names, look: looks.append(look()))
    sets = open_sets(experiment())
    for split in ("train", "test"):
        assert set(np.asarray(looks[0][split]["label"])) == {0, 1, 2, 3}
    monkeypatch.setattr(Classify, "charts", lambda self, states: {})
    asked = override(experiment(), {"loop.previews": 20})
    state = SimpleNamespace(params={}, mutable={}, ema=None, step=np.int32(3))

    def preview(params, mutable, batch):
        batches.append({name: np.asarray(x) for name, x in batch.items()})
        return {}

    program = SimpleNamespace(mesh=make_mesh(Parallel(data=1)), preview=preview)
    for _ in range(2):
        draw(asked, program, state, sets.train, {"test": {}}, tmp_path, "test")  # pyright: ignore
    first, second = batches
    places = first["image"][:, 0, 0, 0]
    assert len(set(places)) == 20
    assert set(first["label"][:10]) == {0, 1, 2, 3}  # a task may draw the first of these
    np.testing.assert_array_equal(places, second["image"][:, 0, 0, 0])  # comparable over time
    assert first["valid"].all()


def test_an_empty_split_and_one_without_labels_have_no_digest_of_them():
    arrays = {"image": np.zeros((3, 2, 2, 1), np.uint8)}
    labelled = Examples(Arrays(arrays | {"label": np.array([0, 1, 1], np.int32)}))
    assert drawn_labels(Examples(Arrays(arrays))) is None
    assert drawn_labels(Examples([])) is None
    assert drawn_labels(replace(labelled, files="3 of 9 bytes")) is None
    found = drawn_labels(labelled)
    assert found == drawn_labels(Examples([labelled.records[i] for i in range(3)]))
    assert found != drawn_labels(select(labelled, np.array([1, 0, 2])))


def test_a_split_that_is_gone_hides_no_other(tmp_path):
    for place in itertools.product(("train", "test", "extra"), "ab"):
        tmp_path.joinpath(*place).mkdir(parents=True)
        tmp_path.joinpath(*place, "1.png").write_bytes(b"9")
    data = Data(f"folder:{tmp_path}", eval_splits={"test": "test", "extra": "extra"})
    before = files_of(data)
    assert list(before) == ["train", "test", "extra"]
    shutil.rmtree(tmp_path / "test")
    assert files_of(data) == {name: before[name] for name in ("train", "extra")}
