"""Killed at random moments, again and again: what is left in the end is what it would have been."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = 100


@pytest.mark.proofs
def test_kills_at_random_moments_change_nothing(tmp_path: Path):
    """Of training, saving, evaluating, drawing and measuring; two recipes and an evaluation."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.commands.killed_anywhere", str(tmp_path), str(KILLS)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    hit = json.loads(done.stdout.splitlines()[-1])
    assert sum(hit.values()) >= KILLS
    assert hit.keys() >= {"training", "saving", "evaluating", "drawing", "measuring", "evaluation"}
