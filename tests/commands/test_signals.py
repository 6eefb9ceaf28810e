"""What a scheduler does to a run: SIGTERM, and the same command again."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from opsin.commands import runs
from opsin.commands.endings import stop_signals
from opsin.train.conclusion import Result as Ended
from opsin.train.loop import fit
from tests.commands.conftest import CODE, HOUSE, TINY, Result


def steps_logged(workdir: Path) -> int:
    return sum(len(f.read_text().splitlines()) for f in workdir.glob("*/*/metrics.jsonl"))


@pytest.fixture
def closable() -> Iterator[None]:
    """SIGHUP is not ignored, as it is below ``nohup``."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("closable")
def test_sigterm_saves_and_exits_0_and_the_same_command_goes_on(
    tmp_path: Path, opsin: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    command = [
        *("run", "tiny", "--quiet", f"--workdir={tmp_path}", "parallel.data=1"),
        *("loop.duration=100000 steps", "loop.checkpoint_every=50000 steps"),
    ]

    def checked(output: str) -> int:
        """The step that is saved."""
        assert "saved; the same command resumes from there" in output
        (directory,) = (tmp_path / "tiny").iterdir()
        assert output.splitlines()[-1] == str(directory)
        assert not (directory / "DONE").exists()
        saved = max(int(p.name) for p in (directory / "checkpoints").glob("[0-9]*"))
        assert f"stopped at step {saved}" in output
        return saved

    process = subprocess.Popen(
        [sys.executable, "-c", TINY.format(trouble="", code=CODE), *command],
        cwd=HOUSE,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    while steps_logged(tmp_path) < 5:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    first = checked(output)
    assert first >= 5

    before = steps_logged(tmp_path)

    def stopped_later(*arguments: Any, stop: Callable[[], bool], **options: Any) -> Ended:
        def ask() -> bool:
            if steps_logged(tmp_path) >= before + 5:
                assert signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL
                os.kill(os.getpid(), signal.SIGHUP)  # a terminal is closed
            return stop()

        return fit(*arguments, stop=ask, **options)

    monkeypatch.setattr(runs, "fit", stopped_later)
    again = opsin(*command)
    assert (again.code, again.err) == (0, "")
    assert checked(again.out) > first

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        monkeypatch.setattr(runs, "fit", lambda *a, **b: Ended(False, signal.getsignal(1).value))
        assert "stopped at step 1" in opsin(*command).out
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_ctrl_c_is_answered_while_no_handler_can_run(capfd: pytest.CaptureFixture[str]):
    """As in the compilation of a program: one long call, of no Python."""
    answered: list[bool] = []
    before = signal.getsignal(signal.SIGINT)
    with stop_signals() as received:

        def press() -> None:
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
            told = "stopping as soon as what runs now is done" in capfd.readouterr().err
            answered.append(told and not received)

        person = threading.Thread(target=press)
        person.start()
        while not received:
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000)
        person.join()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (answered, received) == ([True], [signal.SIGINT])
    assert signal.getsignal(signal.SIGINT) is before
    assert capfd.readouterr().err == ""  # once


FORKED = """
import os, signal, time
from opsin.commands.endings import stop_signals
with stop_signals() as received:
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    signal.raise_signal(signal.SIGTERM)
    began = time.monotonic()
print(time.monotonic() - began < 0.9, received == [signal.SIGTERM])
os.kill(child, signal.SIGKILL)
"""


def test_a_process_that_was_forked_meanwhile_holds_nobody_up():
    """It has the pipe open, as the workers of a source have. A scheduler's signal has no answer."""
    command = [sys.executable, "-W", "ignore", "-c", FORKED]
    done = subprocess.run(command, cwd=HOUSE, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("True True\n", "")
