"""Checkpoints move between device counts, and say what is wrong with them."""

import json
import os
import random
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from opsin.config.tree import override
from opsin.data.checks import check_examples
from opsin.data.examples import Arrays, Examples, materialize, stack
from opsin.train.checkpoint import CheckpointError, Checkpoints, SaveError
from opsin.train.digests import digests
from opsin.train.feed import Feed
from opsin.train.sharding import Parallel, make_mesh
from opsin.train.state import State
from tests.train.conftest import assert_trees_equal, make_tiny
from tests.train.test_step import lay_out

EIGHT = {"parallel.data": 1, "parallel.fsdp": 8, "parallel.min_shard_size": 8}
RECORD = {
    "config": {"a": 1, "deep": {"b": [1, 2]}},
    "position": {"next_index": 3},
    "window": None,
    "seconds": 0.5,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, State]:
    """A checkpoint of step 0, sharded over eight devices."""
    directory = tmp_path_factory.mktemp("run") / "checkpoints"
    state = lay_out(override(make_tiny(), EIGHT))[1].init()
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(state, RECORD)
    return directory, jax.device_get(state)


@pytest.mark.parametrize("layout", [{"parallel.data": 1}, {"parallel.data": 4}, EIGHT])
def test_saved_on_eight_devices_restores_on_any_number(saved, layout, tmp_path: Path):
    directory, state = saved
    abstract = lay_out(override(make_tiny(), layout))[1].state
    with Checkpoints(directory) as checkpoints:
        restored, record = checkpoints.restore(abstract, RECORD["config"])
    assert record["position"] == {"next_index": 3}
    assert_trees_equal(restored, state)
    for leaf, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(abstract), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
    if layout != EIGHT:  # and on from there: 8 → 4 → 1
        with Checkpoints(tmp_path / "again") as checkpoints:
            checkpoints.save(restored, RECORD)
            once_more = checkpoints.restore(
                lay_out(override(make_tiny(), {"parallel.data": 1}))[1].state, RECORD["config"]
            )[0]
        assert_trees_equal(once_more, state)


def test_another_config_is_told_by_the_fields_that_differ(saved):
    with Checkpoints(saved[0]) as checkpoints, pytest.raises(CheckpointError) as caught:
        checkpoints.restore(saved[1], {"a": 1, "deep": {"b": [1, 5]}})
    assert "another config: deep.b.1 is 2 there and 5 here" in str(caught.value)


def test_another_model_is_told_by_the_shapes_that_differ(saved):
    wider = override(make_tiny(), {"task.model.num_classes": 7})
    abstract = lay_out(wider)[1].state
    with Checkpoints(saved[0]) as checkpoints, pytest.raises(CheckpointError) as caught:
        checkpoints.restore(abstract, RECORD["config"])
    text = str(caught.value)
    assert "another model" in text
    assert "params/head/kernel is float32[16, 4] there and float32[16, 7] here" in text


class Two(NamedTuple):
    directory: Path
    abstract: State
    newest: State

    def copied(self, place: Path) -> Path:
        return Path(shutil.copytree(self.directory, place / "checkpoints"))

    def restored(self, directory: Path, *, create: bool = True) -> State:
        with Checkpoints(directory, create=create) as checkpoints:
            return checkpoints.restore(self.abstract, RECORD["config"])[0]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Two:
    """Checkpoints of steps 0 and 4 on one device."""
    directory = tmp_path_factory.mktemp("two") / "checkpoints"
    program = lay_out(override(make_tiny(), {"parallel.data": 1}))[1]
    state = program.init()
    with Checkpoints(directory) as checkpoints:
        for step in (0, 4):
            saved = state.replace(step=state.step + step)
            checkpoints.save(saved, RECORD)
    return Two(directory, program.state, jax.device_get(saved))


def cut(directory: Path, pattern: str) -> None:
    files = [file for file in directory.glob(pattern) if file.is_file()]
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("victim", ["state", "metadata"])
def test_an_older_checkpoint_is_taken_where_the_newest_is_truncated(
    two: Two, tmp_path: Path, victim: str, capsys: pytest.CaptureFixture[str]
):
    directory = two.copied(tmp_path)
    cut(directory, f"4/{victim}/**/*")
    assert int(two.restored(directory, create=False).step) == 0  # of predict, which writes nothing
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"checkpoint {directory / '4'} cannot be read (")
    assert said.endswith("): taking an older one")
    assert sorted(path.name for path in directory.iterdir()) == ["0", "4"]

    restored = two.restored(directory)
    assert_trees_equal(restored, two.newest.replace(step=np.int32(0)))
    assert capsys.readouterr().err.endswith(": taking an older one; it is kept as 4.damaged\n")
    with Checkpoints(directory) as checkpoints:  # the run goes on, and saves the same step again
        checkpoints.save(restored.replace(step=restored.step + 4), RECORD)
    assert_trees_equal(two.restored(directory), two.newest)
    assert sorted(path.name for path in directory.iterdir()) == ["0", "4", "4.damaged"]

    cut(directory, f"[04]/{victim}/**/*")
    with pytest.raises(CheckpointError, match=r"0 cannot be read .*from the beginning$") as caught:
        two.restored(directory)
    assert len(str(caught.value).splitlines()) == 1


def test_reads_that_go_on_when_one_has_failed_print_nothing(
    two: Two, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    """tensorstore would print a trace for each, and no Python sees it."""
    directory = two.copied(tmp_path)
    for file in (directory / "4" / "state").rglob("d/*"):
        content = bytearray(file.read_bytes())
        content[::50] = bytes(0xFF ^ byte for byte in content[::50])
        file.write_bytes(content)
    for _ in range(3):
        assert int(two.restored(directory, create=False).step) == 0
    time.sleep(0.2)
    assert len(capfd.readouterr().err.splitlines()) == 3


def flipped(two: Two, directory: Path, file: Path, drawn: random.Random) -> bool:
    """Whether a bit that flips in a file is noticed; if it is not, it must change nothing."""
    content = file.read_bytes()
    place, bit = drawn.randrange(len(content)), drawn.randrange(8)
    changed = bytearray(content)
    changed[place] ^= 1 << bit
    file.write_bytes(changed)
    try:
        assert_trees_equal(two.restored(directory, create=False), two.newest)
        with Checkpoints(directory, create=False) as checkpoints:
            assert RECORD.items() <= checkpoints.metadata().items()
    except CheckpointError:
        return True
    finally:
        file.write_bytes(content)
    return False


@pytest.mark.parametrize("flips", [12, pytest.param(150, marks=pytest.mark.proofs)])
def test_a_bit_that_flips_is_noticed_or_changes_nothing(two: Two, tmp_path: Path, flips: int):
    directory, drawn = two.copied(tmp_path), random.Random(flips)
    shutil.rmtree(directory / "0")
    files = sorted(path for path in (directory / "4").rglob("*") if path.is_file())
    arrays = max(files, key=lambda path: path.stat().st_size)
    noticed = [flipped(two, directory, arrays, drawn) for _ in range(flips)]
    assert sum(noticed) > flips / 2
    for file in files[:: 2 if flips < 100 else 1]:
        flipped(two, directory, file, drawn)


def rewritten(directory: Path, changes: dict[str, Any]) -> None:
    """Metadata of step 4 as somebody else could have written them: without their sha256."""
    path = directory / "4" / "metadata" / "metadata"
    there = json.loads(path.read_text())
    kept = {name: x for name, x in (there | changes).items() if name != "sha256"}
    path.write_text(json.dumps({name: x for name, x in kept.items() if x != "left out"}))


DESCRIBED = {"arrays": {}, "examples": 3, "class_names": [], "resized": False}


@pytest.mark.parametrize(
    "changes",
    [
        *({name: "left out"} for name in ("config", "position", "window", "seconds")),
        {"position": {}},
        {"position": {"next_index": "3"}},
        {"best": "high"},
        {"data": DESCRIBED | {"files": ["train"]}},
        {"data": DESCRIBED | {"labels": ["64 of digest 0"]}},
        {"data": DESCRIBED | {"arrays": {"image": [[2, 2, 1], "complex64"]}}},
        {"data": DESCRIBED | {"arrays": {"image": [[2, -2, 1], "uint8"]}}},
        {"data": DESCRIBED | {"arrays": {"image": [[2, 0, 1], "uint8"]}}},
        {"data": DESCRIBED | {"arrays": {"image": [[2**30, 2, 1], "uint8"]}}},
        {"data": DESCRIBED | {"arrays": {"image": [[2**20, 2**20, 1], "uint8"]}}},
        {"data": DESCRIBED | {"examples": 0}},
        {"data": DESCRIBED | {"examples": 2**63}},
        {"position": {"next_index": -1}},
        {"position": {"next_index": 2**63}},
        {"seconds": -1.0},
    ],
)
def test_what_a_reader_needs_is_there_or_the_checkpoint_is_damaged(two: Two, tmp_path, changes):
    directory = two.copied(tmp_path)
    rewritten(directory, {"data": DESCRIBED | {"files": {"train": "3 of 9 bytes"}}, "best": 1})
    assert int(two.restored(directory).step) == 4
    rewritten(directory, changes)
    assert int(two.restored(directory).step) == 0
    assert (directory / "4.damaged").exists()


def test_every_type_that_a_source_may_give_is_recorded_and_read_again(two: Two, tmp_path: Path):
    given = [f"{kind}{size}" for kind in ("int", "uint") for size in (8, 16, 32, 64)]
    given += ["bool", "float16", "float32", "float64", "longdouble", ">i4", ">f8"]
    arrays = {"image": np.zeros((2, 4, 4, 1), np.uint8)}
    arrays |= {name: np.array([0, 1], name) for name in given}
    examples = check_examples(Examples(Arrays(arrays)), "mine")
    experiment = override(make_tiny(), {"data.batch": 2})
    feed = Feed(experiment, make_mesh(Parallel(data=1)), examples)
    data = feed.description() | {"class_names": [], "resized": False}
    directory = tmp_path / "checkpoints"
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(two.restored(two.directory), RECORD | {"data": data})
    with Checkpoints(directory) as checkpoints:
        read = checkpoints.metadata()["data"]["arrays"]
    recorded = {name: kind for name, (_, kind) in read.items()}
    assert recorded.keys() == arrays.keys()
    for found in (stack(examples.records, [0, 1]), materialize(examples)):
        assert {name: x.dtype.name for name, x in jax.device_put(found).items()} == recorded
        np.testing.assert_array_equal([found[name] for name in given], [[0, 1]] * len(given))


def test_digests_are_those_of_before_for_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch):
    tree = {
        "a": jnp.arange(50_000, dtype=jnp.uint16),
        "b": jnp.ones((3, 7)),
        "c": jnp.zeros((2, 0)),
    }
    for block in (2**14, 3, 10**6):
        monkeypatch.setattr("opsin.train.digests.BLOCK", block)
        assert [*digests(tree).values()] == ["d98d66a8285d9c0c", "f6500b591f800000", "0" * 16]


def test_digests_know_the_place_of_a_word_and_not_its_device():
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    whole = np.random.default_rng(0).standard_normal((16, 8, 3)).astype(np.float32)

    def digest(array: np.ndarray, *axes: Any) -> str:
        placed = jax.device_put(array, NamedSharding(mesh, PartitionSpec(*axes)))
        return digests({"x": placed})["x"]

    layouts = [(), ("a",), ("a", "b"), (None, ("a", "b")), ("b", "a")]
    (one,) = {digest(whole, *axes) for axes in layouts}
    others = [-whole, whole[::-1], whole[:, ::-1], np.where(whole == whole[0, 0, 0], 0, whole)]
    signs = np.copy(whole)
    signs[3:5] *= -1
    assert len({one, *(digest(other) for other in [*others, signs])}) == 6
    small = {"a": jnp.ones((3,), jnp.bfloat16), "b": jnp.array([True]), "c": jax.random.key(1)}
    assert len({*digests(small).values()}) == 3


def test_what_is_left_of_a_save_that_was_cut_off_is_removed_by_its_run_alone(
    two: Two, tmp_path: Path
):
    directory = two.copied(tmp_path)
    (directory / "8.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    for own, left in ((False, True), (True, False)):
        assert int(two.restored(directory, create=own).step) == 4
        assert (directory / "8.orbax-checkpoint-tmp").exists() == left


def test_a_folder_that_cannot_be_made_leaves_nobody_waiting(two: Two, tmp_path: Path):
    directory = two.copied(tmp_path)
    state = two.restored(directory)
    later, before = state.replace(step=state.step + 5), {*threading.enumerate()}
    with Checkpoints(directory) as checkpoints, suppress(SaveError):
        shutil.rmtree(directory)
        directory.write_text("a file is in the place of the folder")
        checkpoints.save(later, RECORD)
        pytest.fail("nothing was raised")
    pools = ("metadata_store", "asyncio")  # idle, and gone with the process
    waiting = [x for x in threading.enumerate() if x not in before and not x.daemon]
    assert [x.name for x in waiting if not x.name.startswith(pools)] == []


def test_what_may_not_be_read_is_not_taken_for_damaged(two: Two, tmp_path: Path, monkeypatch):
    directory = two.copied(tmp_path)
    forbidden = directory / "4" / "metadata" / "metadata"
    forbidden.write_text("")  # what root would read all the same
    monkeypatch.setattr(os, "access", lambda path, mode: path != forbidden)
    with pytest.raises(CheckpointError, match=f"{forbidden} may not be read: make it readable"):
        two.restored(directory)
    assert (directory / "4").exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write checkpoints to"):
        Checkpoints(tmp_path / "file" / "checkpoints")
