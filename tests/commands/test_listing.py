"""``opsin list --runs``: a line for each run, whatever became of it."""

import shutil
from collections.abc import Callable
from pathlib import Path


def test_each_run_is_a_line(opsin: Callable, trained: Path):
    parent = trained.parent
    for name in ("failed", "begun", "stopped", "damaged", "unplaced"):
        shutil.copytree(trained, parent / name)
    for name in ("failed", "begun", "stopped"):
        (parent / name / "DONE").unlink()
    (parent / "failed" / "FAILED").write_text("NonFiniteError: loss is nan\nmore\n")
    shutil.rmtree(parent / "begun" / "checkpoints")
    (parent / "damaged" / "summary.json").write_text("[")
    (parent / "unplaced" / "arm.json").unlink()
    (parent / "no run").mkdir()
    shutil.move(parent / "unplaced", "runs/a_name_of_nothing/unplaced")
    listed = opsin("list", "--runs")
    assert (listed.code, listed.err) == (0, "")
    lines = dict(line.split("  ", 1) for line in listed.out.splitlines())
    told = {Path(run).name: text.strip() for run, text in lines.items()}
    numbers = told.pop("unplaced")
    assert numbers.startswith("trained for 3 steps, test/")
    assert told.pop("damaged").startswith(f"{parent}/damaged/summary.json cannot be read")
    assert told == {
        trained.name: f"slow, seed 0: {numbers}",
        "failed": "slow, seed 0: failed: NonFiniteError: loss is nan",
        "begun": "slow, seed 0: not finished, nothing saved",
        "stopped": "slow, seed 0: not finished, saved at step 3",
    }
    assert opsin("list", "--runs", "--workdir", "away").out == "no runs in away\n"
