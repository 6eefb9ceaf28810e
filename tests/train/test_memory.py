import ctypes
import subprocess
import sys

import pytest

from experiments.classification import digits_lenet
from experiments.config import override
from train import loop
from train.memory import set_holes_aside

FRAGMENTED = """
import ctypes, mmap
from train.memory import keep_freed_memory, set_holes_aside
keep_freed_memory()
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
blocks = {libc.malloc(size): size for size in range(20_000, 52_000, 16)}
for block, size in blocks.items():
    ctypes.memset(block, 1, size)
for block in list(blocks)[::2]:
    libc.free(block)
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * mmap.PAGESIZE
before = resident()
first = set_holes_aside()
print(first, before - resident(), set_holes_aside(), libc.malloc(20_000) > max(blocks))
"""


def glibc() -> bool:
    try:
        return hasattr(ctypes.CDLL("libc.so.6"), "mallinfo2")
    except OSError:
        return False


@pytest.mark.skipif(not glibc(), reason="no glibc 2.33 or later")
def test_holes_are_found_once_and_what_comes_next_lies_behind_them():
    out = subprocess.run(
        [sys.executable, "-c", FRAGMENTED], capture_output=True, text=True, check=True
    ).stdout
    first, given_back, again, behind = out.split()
    holes = sum(range(20_000, 52_000, 32))
    assert int(first) > 0.7 * holes
    assert int(given_back) > 0.4 * holes  # whole pages
    assert int(again) < 0.05 * holes
    assert behind == "True"


def test_without_glibc_nothing_is_done(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert set_holes_aside() == 0


@pytest.mark.parametrize(("variable", "times"), [("UNRELATED", 2), ("MALLOC_ARENA_MAX", 0)])
def test_a_run_sets_them_aside_after_its_first_step_and_its_first_evaluation(
    tmp_path, monkeypatch, variable, times
):
    monkeypatch.setenv(variable, "2")
    calls = []
    monkeypatch.setattr(loop, "set_holes_aside", lambda: calls.append(1))
    experiment = override(
        digits_lenet.config(),
        {"loop.duration": "6 steps", "loop.evaluate_every": "2 steps", "data.batch": 16},
    )
    loop.fit(experiment, tmp_path, config={}, progress=False)
    assert len(calls) == times
