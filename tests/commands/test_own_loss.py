"""A loss in a file of the user: a run with it, and what can be done with that run later."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

LOSS = """
import optax

def doubled(logits, labels, *, factor=2.0):
    return factor * optax.softmax_cross_entropy_with_integer_labels(logits, labels)
"""
RUN = ("run", "tiny", "--quiet", "task.loss_function=./loss_of_a_user.py:doubled")


def forget() -> None:
    """As a process does that ends."""
    sys.modules.pop("own_files_loss_of_a_user", None)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "loss_of_a_user.py"
    path.write_text(LOSS)
    yield path
    forget()


def test_a_run_by_an_own_loss_goes_on_and_is_asked_from_elsewhere(
    opsin: Callable, file: Path, monkeypatch: pytest.MonkeyPatch
):
    assert opsin(*RUN).code == 0
    (run,) = file.parent.glob("runs/tiny/*")
    saved = json.loads((run / "config.json").read_text())
    assert saved["task"]["loss_function"]["call"] == f"{file}:doubled"
    first = (run / "summary.json").read_text()

    # It goes on from its second step as if it had been interrupted there.
    shutil.rmtree(run / "checkpoints" / "3")
    for name in ("DONE", "summary.json"):
        (run / name).unlink()
    forget()
    assert opsin(*RUN).code == 0
    again = json.loads((run / "summary.json").read_text())
    assert again["test/nll"] == json.loads(first)["test/nll"]
    assert [start["step"] for start in json.loads((run / "env.json").read_text())] == [0, 2]

    away = file.parent / "away"
    away.mkdir()
    monkeypatch.chdir(away)
    Image.fromarray(np.full((6, 6, 3), 90, np.uint8)).save(away / "image.png")
    forget()
    refused = opsin("predict", str(run), "image.png")
    assert refused.code == 2
    assert f"{file}:doubled: it is no code of opsin" in refused.complaint()
    assert refused.complaint().endswith(f"by --allow {file}")
    asked = opsin("predict", str(run), "image.png", "--allow", str(file))
    assert (asked.code, asked.err) == (0, "")
    assert asked.out.strip().startswith("image.png")

    file.unlink()
    forget()
    gone = opsin("predict", str(run), "image.png", "--allow", str(file))
    assert gone.code == 2
    assert f"{file} is not there any more: put it back" in gone.complaint()


def test_a_file_may_move_and_another_of_its_name_is_told(opsin: Callable, file: Path):
    assert opsin(*RUN).code == 0
    forget()
    moved = file.parent / "moved" / file.name
    moved.parent.mkdir()
    file.rename(moved)
    again = (*RUN[:-1], f"task.loss_function=./moved/{file.name}:doubled")
    assert "already trained, so only read" in opsin(*again).out

    forget()
    before = moved.read_text()
    moved.write_text(
        LOSS.replace("return factor", "return 3 * factor")
    )  # the run is not trained again, and says so
    changed = opsin(*again[:2], *again[3:])
    assert "trained with another doubled than there is now" in changed.err
    forget()
    moved.write_text(before + "\n# A comment changes no number.\n")
    assert "another doubled" not in opsin(*again[:2], *again[3:]).err

    forget()
    file.write_text(LOSS.replace("2.0", "2.0 + 0.0"))
    told = opsin(*again)
    assert told.code == 2
    assert f"{moved} and {file} have the same name and differ: rename one" in told.complaint()
    assert "rm -r" not in told.err
    forget()
    file.unlink()
    assert opsin(*again).code == 0
