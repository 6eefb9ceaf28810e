import csv
import io
import json
import sys

import pytest

from opsin.benchmarks import __main__ as networks
from opsin.benchmarks.race import Ratio, take_turns
from opsin.benchmarks.worker import PeerError, Prepared, Worker, serve

PEER = """
from opsin.benchmarks.worker import Prepared

def prepare(case, phase):
    print("libraries print")
    if phase == "inference":
        raise ValueError("no such phase\\nand more")
    return Prepared(lambda steps: print(steps), {"parameters": len(case)})
"""


class FakeWorker:
    """Takes so many seconds a step, and writes down what it was asked."""

    def __init__(self, pace=0.01, log=None, fails=()):
        self.pace, self.fails = pace, fails
        self.log = [] if log is None else log

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def run(self, case, phase, steps):
        if phase in self.fails:
            raise PeerError("it cannot")
        self.log.append((self.pace, steps))
        return steps * self.pace, {"parameters": 61_706, "flops": 10**9}


def test_a_ratio_is_of_neighbours():
    # The machine was slow in the second pair and for the last run of the other.
    ratio = Ratio.of([1.0, 10.0, 1.0], [3.0, 20.0, 8.0])
    assert (ratio.median, ratio.low, ratio.high) == (3.0, 2.0, 8.0)


def test_workers_take_turns_in_runs_of_one_length():
    log = []
    slow, fast = FakeWorker(0.5, log), FakeWorker(0.01, log)
    times = take_turns([slow, fast], "lenet5", "training", runs=3, seconds=0.2)
    assert log == [(0.5, 1)] * 2 + [(0.01, 1)] * 2 + [(0.5, 1), (0.01, 20)] * 3
    assert [time.median for time in times] == pytest.approx([0.5, 0.01])


def test_a_worker_prepares_once_and_reports_errors():
    prepared = []

    def prepare(case, phase):
        prepared.append((case, phase))
        if phase == "inference":
            raise ValueError("no weights\nin detail")
        return Prepared(lambda steps: None, {"parameters": 5})

    requests = [
        json.dumps({"case": "a", "phase": phase, "steps": 3})
        for phase in ("training", "training", "inference")
    ]
    answers = io.StringIO()
    serve(prepare, requests, answers)
    first, second, third = map(json.loads, answers.getvalue().splitlines())
    assert first["about"] == second["about"] == {"parameters": 5}
    assert first["seconds"] >= 0
    assert third["error"] == "no weights"
    assert "in detail" in third["trace"]
    assert prepared == [("a", "training"), ("a", "inference")]


def test_a_process_answers_whatever_its_libraries_print(tmp_path, monkeypatch):
    (tmp_path / "chatty_peer.py").write_text(PEER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Worker("chatty_peer:prepare") as worker:
        seconds, about = worker.run("lenet5", "training", 2)
        assert 0 <= seconds < 10
        assert about == {"parameters": 6}
        with pytest.raises(PeerError) as caught:
            worker.run("lenet5", "inference", 2)
        assert str(caught.value) == "no such phase"
        assert "ValueError" in caught.value.__notes__[0]


def test_a_process_that_dies_is_named():
    with (
        Worker("json:there_is_no_such_function") as worker,
        pytest.raises(PeerError, match="ended"),
    ):
        worker.run("lenet5", "training", 1)


@pytest.fixture
def quick(monkeypatch):
    """Races without work: peer → its worker."""
    workers = {
        networks.OPSIN: FakeWorker(0.01),
        networks.FLAX["flax"]: FakeWorker(0.03),
        networks.TORCH["pytorch"]: FakeWorker(0.012),
        networks.TORCH["torch.compile"]: FakeWorker(fails=("training", "inference")),
    }
    monkeypatch.setattr(networks, "Worker", workers.__getitem__)
    monkeypatch.setattr(networks, "matmul_peak", lambda: 1e12)
    return workers


def read(directory):
    with (directory / "benchmarks.csv").open() as file:
        return list(csv.DictReader(file)), (directory / "benchmarks.md").read_text()


def test_without_pytorch_the_rest_runs_and_says_how_to_install_it(
    quick, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    networks.main(["--cases", "lenet5", "--runs", "2", "--output", str(tmp_path / "new")])
    said = [line for line in capsys.readouterr().out.splitlines() if "PyTorch" in line]
    assert len(said) == 1
    assert "pip install" in said[0]
    assert "[bench]" in said[0]
    rows, _ = read(tmp_path / "new")
    assert [(row["phase"], row["peer"]) for row in rows] == [
        (phase, peer) for phase in ("training", "inference") for peer in ("opsin", "flax")
    ]


def test_files_hold_what_was_measured(quick, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(networks.tables, "has_torch", lambda: True)
    networks.main(["--cases", "lenet5", "resnet18", "--runs", "3", "--output", str(tmp_path)])
    assert capsys.readouterr().out.count("left out: it cannot") == 4  # torch.compile
    rows, page = read(tmp_path)
    assert len(rows) == 2 * 2 * 3
    ours, flax, torch = rows[:3]
    assert (ours["ratio"], ours["runs"], flax["runs"]) == ("", "6", "3")
    assert float(flax["ratio"]) == pytest.approx(3)
    assert float(torch["milliseconds"]) == pytest.approx(12)
    assert float(torch["images_per_second"]) == pytest.approx(128 / 0.012)
    assert float(ours["gflops"]) == pytest.approx(100)
    assert float(ours["peak_fraction"]) == pytest.approx(0.1)
    # Asked for: 1.3 over PyTorch on LeNet-5; 2.2 over Flax and 0.8 over PyTorch on ResNet-18.
    assert page.count("1.30, missed") == page.count("2.20, met") == page.count("0.80, met") == 1
    assert "1.20 (1.20 to 1.20)" in page
    assert "--cases lenet5 resnet18 --runs 3" in page
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert len(table) == 2 + len(rows)
