"""What a long run meets: Ctrl-C twice, a directory turned read-only, a clock that goes back.

Each in a process of its own, as a user starts it; what is left in the end is what a run without
trouble leaves. That memory and open files stay as they are is shown over 3,000 steps.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.commands.conftest import CODE, HEARD, HOUSE, TINY
from tests.commands.remains import left, only

pytestmark = pytest.mark.proofs

STEPS = ("loop.duration=60 steps", "loop.checkpoint_every=20 steps")
SLOW_STEPS = """
import time
from opsin.train.host.profiling import Profiler
Profiler.before = lambda *arguments: time.sleep(0.05)
"""


def begun(
    workdir: Path,
    trouble: str = "",
    *,
    prefix: Sequence[str] = (),
    overrides: Sequence[str] = STEPS,
) -> subprocess.Popen[str]:
    workdir.mkdir(exist_ok=True)
    return subprocess.Popen(
        [
            *(*prefix, sys.executable, "-c", TINY.format(trouble=trouble, code=CODE)),
            *("run", "tiny", "--quiet", f"--workdir={workdir}", "parallel.data=1", *overrides),
        ],
        cwd=HOUSE,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(workdir.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status and what stands on standard error."""
    _, complaint = process.communicate(timeout=500)
    return process.returncode, complaint


def wait_for(there: Path, process: subprocess.Popen[str]) -> None:
    while not there.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adversity")


@pytest.fixture(scope="module")
def undisturbed(place: Path) -> Path:
    assert ended(begun(place / "undisturbed")) == (0, "")
    return only(place / "undisturbed" / "tiny")


ANSWER = "\nstopping as soon as what runs now is done\n"


def test_a_second_ctrl_c_ends_a_run_that_saves_and_frees_its_directory(
    place: Path, undisturbed: Path
):
    workdir = place / "twice"
    trouble = f"""
from opsin.train import loop
def save(*arguments, **options):
    open({str(place / "saving")!r}, "w").close()
    import time
    time.sleep(300)
loop.save = save
"""
    process = begun(workdir, trouble)
    wait_for(place / "saving", process)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):  # the first lets it save
        process.wait(1)
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert ended(process) == (130, f"{ANSWER}interrupted\n")
    assert time.monotonic() - asked < 20
    code, said = ended(begun(workdir))
    assert code == 0
    assert said.endswith(
        "has no checkpoint, so training begins anew: what was there of an earlier "
        "start is kept as metrics.jsonl.earlier\n"
    )
    assert left(only(workdir / "tiny")) == left(undisturbed)


STARTED = HEARD + "from opsin.commands.main import main; print(flush=True); main()"


@pytest.mark.parametrize("wait", [0.0, 0.3, 0.8, 1.3, 1.8, 2.5])
def test_ctrl_c_during_the_imports_is_one_line(place: Path, wait: float):
    process = subprocess.Popen(
        [sys.executable, "-c", STARTED, "run", "digits_lenet"],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(HOUSE)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.1 + wait)
    process.send_signal(signal.SIGINT)
    code, complaint = ended(process)
    assert code == 130
    # A quick machine trains by then, says when its first step was done, and resumes from there.
    lines = r"((ready in|resuming from step) .*\n)*"
    assert re.fullmatch(f"(interrupted\n)?|{lines}{ANSWER}{lines}", complaint)


def test_a_directory_that_turns_read_only_is_one_line_and_the_run_resumes(
    place: Path, undisturbed: Path
):
    prefix: tuple[str, ...] = ()
    if os.geteuid() == 0:  # root may write all the same, unless it gives that up
        if shutil.which("setpriv") is None:
            pytest.skip("needs setpriv to give up what root may")
        prefix = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
    workdir = place / "readonly"
    process = begun(workdir, SLOW_STEPS, prefix=prefix)
    wait_for(workdir / "tiny", process)
    run = only(workdir / "tiny")
    wait_for(run / "checkpoints" / "20", process)
    folders = [run, run / "checkpoints"]
    for folder in folders:
        folder.chmod(0o555)
    code, complaint = ended(process)
    for folder in folders:
        folder.chmod(0o755)
    assert code == 1
    assert complaint.startswith(f"opsin: cannot write to {run}")
    assert complaint.endswith("step 20; make room and run the same command again\n")
    assert complaint.count("\n") == 1
    assert ended(begun(workdir)) == (0, "")
    assert left(run) == left(undisturbed)


def test_a_clock_that_goes_back_changes_nothing(place: Path, undisturbed: Path):
    back = """
import time
began, real = {began}, time.time
time.time = lambda: 2 * began - real()
"""
    workdir, began = place / "clock", time.time()
    process = begun(workdir, back.format(began=began) + SLOW_STEPS)
    wait_for(workdir / "tiny", process)
    run = only(workdir / "tiny")
    wait_for(run / "checkpoints" / "20", process)
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (0, "")
    assert not (run / "DONE").exists()
    assert ended(begun(workdir, back.format(began=began - 7200))) == (0, "")
    assert (run / "DONE").exists()
    assert left(run) == left(undisturbed)


GROWTH = """
import os
import re
from pathlib import Path
from opsin.train.host.profiling import Profiler

def before(self, step, count, state):
    if step % 100 == 0:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        files = len(os.listdir("/proc/self/fd"))
        threads = len(os.listdir("/proc/self/task"))
        with open({path!r}, "a") as file:
            print(step, pages * os.sysconf("SC_PAGE_SIZE"), files, threads, file=file)

Profiler.before = before
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counts in /proc")
def test_memory_and_open_files_do_not_grow_over_3000_steps(place: Path):
    """In the second half, with 30 evaluations and checkpoints.

    What the allocator keeps wanders by some megabytes: 11 kB a step would show, or half a megabyte
    of each evaluation or checkpoint.
    """
    path = place / "growth.txt"
    cadence = {"log": 10, "evaluate": 50, "checkpoint": 50}
    overrides = [f"loop.{what}_every={steps} steps" for what, steps in cadence.items()]
    overrides += ["loop.duration=3000 steps"]
    process = begun(place / "growth", GROWTH.format(path=str(path)), overrides=overrides)
    assert ended(process) == (0, "")
    rows = np.loadtxt(path, int)
    assert rows[:, 0].tolist() == [*range(0, 3000, 100)]
    _, resident, files, threads = rows.T
    assert resident[15:].max() - resident[15] < 16 * 1024**2
    assert files.max() < 40  # a save in flight has some of its own
    assert threads[15:].max() <= threads[:15].max() + 4
