"""``opsin sweep``: every arm, whatever becomes of the others."""

import re
from pathlib import Path

from opsin.commands import runs as running
from opsin.commands.runs import directory_of
from opsin.config import catalogue
from opsin.config.identity import identity
from opsin.config.tree import override
from opsin.train.logging import NonFiniteError
from tests.commands import tiny


def test_a_sweep_goes_on_after_a_failure_and_skips_what_is_done(opsin, untrained, monkeypatch):
    fit = running.fit

    def diverging(experiment, directory, **options):
        ended = fit(experiment, directory, **options)
        if experiment.optimizer.learning_rate > 1:
            raise NonFiniteError("train/loss is nan at step 2")
        return ended

    monkeypatch.setattr(running, "fit", diverging)
    done = opsin("sweep", "tiny", "--quiet", "--seeds", "1")
    assert done.code == 1
    runs = {arm.name: override(tiny.config(), arm.overrides) for arm in tiny.sweep()}
    folders = {name: directory_of("tiny", run, Path("runs")) for name, run in runs.items()}
    ended = {
        name: [s for s in ("DONE", "FAILED") if (f / s).exists()] for name, f in folders.items()
    }
    assert ended == {"slow": ["DONE"], "broken": ["FAILED"], "fast": ["DONE"]}
    assert (folders["broken"] / "FAILED").read_text().startswith("NonFiniteError: train/")
    assert done.err.splitlines()[-1] == "opsin: 1 of 3 runs failed: broken (seed 0)"
    assert "Traceback" not in done.err

    assert [identity(run) for run in untrained] == [identity(run) for run in runs.values()]
    untrained.clear()
    again = opsin("sweep", "tiny", "--quiet", "--seeds", "1")
    assert again.code == 1
    assert [identity(run) for run in untrained] == [identity(runs["broken"])]
    assert re.findall(r"\((DONE|FAILED|to do)\)", again.out) == ["DONE", "FAILED", "DONE"]


def test_a_bug_in_one_run_keeps_its_trace(opsin, monkeypatch):
    def broken(experiment, directory, **options):
        raise RuntimeError("a bug")

    monkeypatch.setattr(running, "fit", broken)
    done = opsin("sweep", "tiny", "--quiet", "--seeds", "1")
    assert done.code == 1
    assert done.err.count("Traceback") == done.err.count("  failed: a bug\n") == 3


def test_a_dry_run_runs_nothing(opsin, monkeypatch, tmp_path):
    monkeypatch.setattr(running, "fit", None)
    done = opsin("sweep", "tiny", "--dry-run", "--seeds", "2")
    assert (done.code, done.err) == (0, "")
    assert [line.split(":")[0] for line in done.out.splitlines()] == [
        f"[{number}/6] {arm}, seed {seed}"
        for number, (seed, arm) in enumerate(
            [(seed, arm) for seed in (0, 1) for arm in ("slow", "broken", "fast")], start=1
        )
    ]
    assert list(tmp_path.iterdir()) == []


def test_machines_share_a_sweep(opsin):
    def planned(*options: str) -> list[str]:
        lines = opsin("sweep", "tiny", "--dry-run", "--seeds", "2", *options).out.splitlines()
        return [line.partition("] ")[2] for line in lines]

    shares = [planned("--index", str(index), "--of", "4") for index in range(4)]
    assert [len(share) for share in shares] == [2, 2, 1, 1]
    assert sorted(run for share in shares for run in share) == sorted(planned())


def test_the_number_of_seeds_is_that_of_the_table(opsin):
    done = opsin("sweep", "mnist_lenet", "--dry-run")
    assert len(done.out.splitlines()) == catalogue.find("mnist_lenet").TABLE.seeds == 3
