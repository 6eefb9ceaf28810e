"""What a scheduler does to a run: SIGTERM, and the same command again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HOUSE = Path(__file__).parents[2]
TINY = """
import importlib
from opsin.commands.main import main
from opsin.config import catalogue

catalogue.find = lambda name: importlib.import_module("tests.commands.tiny")
main()
"""


def test_sigterm_saves_and_exits_0_and_the_same_command_goes_on(tmp_path: Path):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    command = [
        *(sys.executable, "-c", TINY, "run", "tiny", "--quiet", f"--workdir={tmp_path}"),
        *("loop.duration=100000 steps", "loop.checkpoint_every=50000 steps"),
    ]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, cwd=HOUSE, env=environment, stdout=subprocess.PIPE, text=True
        )

    def steps_logged() -> int:
        return sum(len(f.read_text().splitlines()) for f in tmp_path.glob("*/*/metrics.jsonl"))

    saved = []
    for _ in range(2):
        process, before = start(), steps_logged()
        while steps_logged() < before + 5:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert "saved; the same command resumes from there" in output
        (directory,) = (tmp_path / "tiny").iterdir()
        assert output.splitlines()[-1] == str(directory)
        assert not (directory / "DONE").exists()
        saved.append(max(int(p.name) for p in (directory / "checkpoints").glob("[0-9]*")))
        assert f"stopped at step {saved[-1]}" in output
    assert saved[1] > saved[0] >= 5
