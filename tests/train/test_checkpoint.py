"""Checkpoints move between device counts, and say what is wrong with them."""

from pathlib import Path

import jax
import pytest

from opsin.config.tree import override, resolve
from opsin.train.checkpoint import CheckpointError, Checkpoints
from opsin.train.state import State
from tests.train.conftest import assert_trees_equal, make_tiny
from tests.train.test_step import lay_out

EIGHT = {"parallel.data": 1, "parallel.fsdp": 8, "parallel.min_shard_size": 8}
RECORD = {"config": {"a": 1, "deep": {"b": [1, 2]}}, "position": {"next_index": 3}}


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


@pytest.mark.parametrize("victim", ["state", "metadata"])
def test_a_truncated_checkpoint_is_named_with_the_way_out(tmp_path: Path, victim: str):
    experiment = override(make_tiny(), {"parallel.data": 1})
    program = lay_out(experiment)[1]
    state, directory = program.init(), tmp_path / "checkpoints"
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(state, {"config": resolve(experiment)})
        checkpoints.save(state.replace(step=state.step + 4), {"config": resolve(experiment)})
    files = [f for f in (directory / "4" / victim).rglob("*") if f.is_file()]
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with (
        Checkpoints(directory) as checkpoints,
        pytest.raises(
            CheckpointError, match=r"4 cannot be read .*move it away to resume from step 0"
        ) as caught,
    ):
        checkpoints.restore(program.state, resolve(experiment))
    assert len(str(caught.value).splitlines()) == 1


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write checkpoints to"):
        Checkpoints(tmp_path / "file" / "checkpoints")
