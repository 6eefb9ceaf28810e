"""Several processes are one run: its numbers, its files, and its end when one of them is gone."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from opsin.commands.runtime import given
from opsin.config.tree import override, parse_all, resolve
from opsin.data.files import read_lines
from opsin.errors import ConfigError
from opsin.experiments.classification import digits_lenet
from opsin.train.checkpoint import Checkpoints, saved_step
from opsin.train.experiment import Experiment
from opsin.train.host import processes
from opsin.train.host.processes import Group, ProcessError, joined
from opsin.train.loop import fit
from opsin.train.state import State
from tests.train.conftest import assert_trees_close, assert_trees_equal
from tests.train.test_step import lay_out

HOUSE = Path(__file__).parents[2]
STEPS = 80
# 1,437 images in batches of 16, 360 in batches of 37: nothing divides. A small learning rate, so
# that rounding does not grow.
OVERRIDES = [
    *("data.batch=16", "data.eval_batch=37", "data.augment=()", "optimizer.learning_rate=1e-4"),
    "optimizer.warmup=40 steps",
    *("loop.log_every=1 step", "loop.previews=4", f"loop.duration={STEPS} steps"),
    *(f"loop.evaluate_every={STEPS} steps", "loop.checkpoint_every=10 steps", "seed=3"),
]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def listening(port: int) -> set[str]:
    """The addresses of this machine at which somebody listens on a port, as Linux writes them."""
    tables = (Path(f"/proc/net/{kind}").read_text() for kind in ("tcp", "tcp6"))
    rows = [line.split() for table in tables for line in table.splitlines()[1:]]
    ends = (local.partition(":") for _, local, _, state, *_ in rows if state == "0A")  # LISTEN
    return {address for address, _, end in ends if int(end, 16) == port}


@dataclass
class Company:
    """Processes of one run, each with CPU devices of its own."""

    workdir: Path
    arguments: Sequence[str] = ("digits_lenet", *OVERRIDES)
    by_slurm: bool = False  # they find one another by its variables
    members: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(
        self, count: int, devices: int, *, timeout: int = 60, own: Sequence[str] = ()
    ) -> None:
        """``own`` are more arguments of each."""
        port = free_port()
        for index in range(count):
            self.start_one(port, count, index, devices, timeout, own[index : index + 1])

    def start_one(
        self, port: int, count: int, index: int, devices: int, timeout: int, own: Sequence[str] = ()
    ) -> None:
        changed = {text.partition("=")[0] for text in own}
        shared = [text for text in self.arguments if text.partition("=")[0] not in changed]
        command = [
            *(sys.executable, "-m", "opsin", "run", *shared, "--quiet"),
            *("--devices", str(devices), "--workdir", str(self.workdir), *own),
        ]
        if count > 1 and not self.by_slurm:
            command += ["--coordinator", f"127.0.0.1:{port}", "--timeout", str(timeout)]
            command += ["--processes", str(count), "--process", str(index)]
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(self.workdir.parent / "compiled"),
        }
        if self.by_slurm:
            environment |= {"SLURM_JOB_ID": str(port), "SLURM_STEP_NODELIST": "localhost"}
            names = ("SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"), ("SLURM_PROCID", "SLURM_LOCALID")
            environment |= dict.fromkeys(names[0], str(count)) | dict.fromkeys(names[1], str(index))
        self.members.append(
            subprocess.Popen(
                command,
                cwd=HOUSE,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )

    def end(self, within: float = 480.0) -> list[tuple[int, str, str]]:
        """Code, output and errors of each, once all have ended."""
        ended = []
        for member in self.members:
            output, errors = member.communicate(timeout=within)
            ended.append((member.returncode, output, errors))
        self.members.clear()
        return ended

    @property
    def directory(self) -> Path:
        (directory,) = (self.workdir / self.arguments[0]).iterdir()
        return directory

    def wait_for_step(self, step: int) -> None:
        while not any(
            line["step"] >= step
            for file in self.workdir.glob("*/*/metrics.jsonl")
            for line in read_lines(file)
        ):
            assert all(member.poll() is None for member in self.members), self.end()
            time.sleep(0.02)


@pytest.fixture
def company(tmp_path: Path) -> Iterator[Company]:
    made = Company(tmp_path / "runs")
    yield made
    for member in made.members:
        member.kill()
        member.communicate()


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return override(digits_lenet.config(), parse_all(OVERRIDES))


@pytest.fixture(scope="module")
def alone(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run by one process with four devices."""
    directory = tmp_path_factory.mktemp("alone")
    fit(override(experiment, {"parallel.data": 4}), directory, config={}, progress=False)
    return directory


def final_state(directory: Path, experiment: Experiment, config: dict[str, Any]) -> State:
    abstract = lay_out(override(experiment, {"parallel.data": 1}))[1].state
    with Checkpoints(directory / "checkpoints") as checkpoints:
        assert checkpoints.latest() == STEPS
        return checkpoints.restore(abstract, config)[0]


def numbers(directory: Path) -> list[dict[str, float]]:
    """The log without what depends on the clock."""
    times = ("second", "utilization")
    return [
        {name: value for name, value in line.items() if not any(t in name for t in times)}
        for line in read_lines(directory / "metrics.jsonl")
    ]


def assert_same_numbers(one: Path, other: Path) -> None:
    for a, b in zip(numbers(one), numbers(other), strict=True):
        assert a.keys() == b.keys()
        np.testing.assert_allclose([a[n] for n in a], [b[n] for n in a], rtol=2e-4, atol=1e-6)


@pytest.mark.proofs
def test_two_processes_are_one(company: Company, alone: Path, experiment: Experiment):
    company.start(2, 2)
    first, second = company.end()
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert first[1].splitlines()[-1] == str(company.directory)
    assert second[1].replace("[Gloo]", "").count("opsin") == 0  # one speaks for both
    assert json.loads((company.directory / "env.json").read_text())[-1]["processes"] == 2
    assert json.loads((company.directory / "summary.json").read_text())["steps"] == STEPS
    assert (company.directory / "DONE").exists()
    two = final_state(company.directory, experiment, resolve(experiment))
    one = final_state(alone, experiment, {})
    assert_trees_close(two.params, one.params, rtol=1e-4, atol=1e-6)
    assert_same_numbers(company.directory, alone)


@pytest.mark.proofs
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_one_stops_both_and_they_go_on_bit_for_bit(
    company: Company, experiment: Experiment, killed: int
):
    config = resolve(experiment)
    company.start(2, 2, timeout=10)
    company.wait_for_step(12)  # past the checkpoint of step 10
    since = time.monotonic()
    company.members[killed].kill()
    code, _, errors = company.end()[1 - killed]
    assert time.monotonic() - since < 30  # the silence that jax allows, and what a busy host adds
    assert code != 0
    assert "another task died" in errors or "Gloo" in errors
    assert not (company.directory / "DONE").exists()

    company.start(2, 2)
    first, second = company.end()
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    resumed = final_state(company.directory, experiment, config)
    straight = Company(company.workdir.parent / "straight")
    straight.start(2, 2)
    assert [code for code, *_ in straight.end()] == [0, 0]
    assert_trees_equal(final_state(straight.directory, experiment, config), resumed)
    assert numbers(company.directory) == numbers(straight.directory)  # no line twice


@pytest.mark.proofs
@pytest.mark.parametrize("by_slurm", [False, True])
def test_processes_that_were_started_differently_name_both(company: Company, by_slurm: bool):
    company.by_slurm = by_slurm
    company.start(2, 1, own=["optimizer.weight_decay=0.1", "optimizer.weight_decay=0.2"])
    for code, _, errors in company.end():
        assert code == 2
        assert (
            "opsin: processes 0 and 1 were started differently: optimizer.weight_decay is 0.1 in "
            "process 0 and 0.2 in process 1"
        ) in errors
    assert not company.workdir.exists()  # nothing was written before


def test_a_port_that_is_taken_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        message = f"process 0 cannot listen at {address}.*choose another --coordinator"
        with pytest.raises(ProcessError, match=message), joined(Group(address, 2, 0)):
            pass
    assert not jax.distributed.is_initialized()


@pytest.mark.parametrize(
    ("typed", "bind", "refused"),
    [
        ("node0", None, True),
        ("node0", "node0", True),
        ("node0", "127.0.0.1", False),
        ("127.0.0.1", None, False),
        ("localhost", None, False),
        ("node1", None, False),
    ],
)
def test_process_0_does_not_listen_at_a_loopback_that_nobody_typed(
    monkeypatch, typed, bind, refused
):
    """Debian's /etc/hosts gives a machine's own name 127.0.1.1."""
    port, look_up = free_port(), socket.getaddrinfo
    means = {"node0": "127.0.1.1", "node1": "0.0.0.0"}  # of this machine, and of others
    monkeypatch.setattr(socket, "getaddrinfo", lambda x, *y, **z: look_up(means.get(x, x), *y, **z))
    monkeypatch.setattr(processes, "_meet", lambda group: 1 / 0)
    if bind:
        monkeypatch.setenv(processes.BIND, f"{bind}:{port}")
    message = f"listen at 127.0.1.1, which node0 means .* or set {processes.BIND} to that$"
    kind, said = (ProcessError, message) if refused else (ZeroDivisionError, "by zero")
    with pytest.raises(kind, match=said) as told, joined(Group(f"{typed}:{port}", 2, 0)):
        pass
    assert "\n" not in str(told.value)


def test_who_waits_in_vain_says_so_in_one_line(company: Company):
    company.start_one(port := free_port(), 3, 0, 1, 2)
    heard: set[str] = set()
    while company.members[0].poll() is None:
        heard |= listening(port)
        time.sleep(0.05)
    assert heard
    assert all(address.endswith("0100007F") for address in heard)  # 127.0.0.1, and no other
    ((code, _, errors),) = company.end()
    assert code == 2
    assert errors.splitlines()[-1] == (
        f"opsin: process 0 of 3 does not meet the others at 127.0.0.1:{port} (not all came in "
        "2 s): start all 3 with the same --coordinator, or give them longer with --timeout"
    )
    assert "Check failure" not in errors


@pytest.mark.proofs
def test_two_of_three_do_not_begin(company: Company):
    port = free_port()
    for index in (1, 2):
        company.start_one(port, 3, index, 1, 4)
    for code, _, errors in company.end():
        assert code == 2
        assert f"of 3 does not meet the others at 127.0.0.1:{port} (not all came in 4 s)" in errors
        assert "Check failure" not in errors


def test_where_processes_come_from(monkeypatch: pytest.MonkeyPatch):
    for name in ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    assert given(None, 1, None) is None
    assert given("10.0.0.1:7777", 4, 3) == ("10.0.0.1:7777", 4, 3)
    assert given(None, None, None) == (None, None, None)  # --processes auto
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "here")
    assert given(None, 1, None) is None
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "here,there")
    assert given(None, 1, None) == (None, None, None)
    monkeypatch.delenv("TPU_WORKER_HOSTNAMES")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert given(None, 1, None) is None  # not by srun
    monkeypatch.setenv("SLURM_PROCID", "2")
    assert given(None, 1, None) == (None, None, None)


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (("here:1", 2, None), "go together"),
        ((None, 2, 1), "go together"),
        (("here:1", None, 1), "go together"),
        (("here:1", 2, 2), "--process 2 is not one of 2"),
    ],
)
def test_half_of_what_it_takes_is_refused(asked, text: str):
    with pytest.raises(ConfigError, match=text):
        given(*asked)


@pytest.mark.proofs
def test_four_processes_save_once_on_sigterm_and_two_go_on(
    company: Company, alone: Path, experiment: Experiment
):
    company.start(4, 1)
    company.wait_for_step(5)
    company.members[2].send_signal(signal.SIGTERM)  # any of them
    ended = company.end()
    assert [code for code, *_ in ended] == [0, 0, 0, 0]
    saved = max(int(path.name) for path in (company.directory / "checkpoints").glob("[0-9]*"))
    assert 5 <= saved < STEPS
    assert f"stopped at step {saved}, saved" in ended[0][1]

    company.start(2, 2)
    assert [code for code, *_ in company.end()] == [0, 0]
    found = final_state(company.directory, experiment, resolve(experiment))
    one = final_state(alone, experiment, {})
    assert_trees_close(found.params, one.params, rtol=1e-4, atol=1e-6)
    assert_same_numbers(company.directory, alone)


@pytest.mark.proofs
def test_the_best_state_of_two_processes_is_that_of_one(tmp_path: Path):
    """A learning rate that is far too high, so that it is not the last."""
    choosing = [
        *("data.source=data.validation:with_validation", "loop.keep_best=val/accuracy"),
        *("data.eval_splits={'val':'val','test':'test'}", "loop.duration=6 steps"),
        *("loop.evaluate_every=1 step", "loop.previews=0", "optimizer.warmup=0 steps"),
        *("optimizer.learning_rate=3.0", "data.batch=16", "data.augment=()"),
    ]
    found = []
    for count in (1, 2):
        company = Company(tmp_path / str(count), ("digits_lenet", *choosing))
        for _ in range(count):  # two begin their end again, as if they had been killed
            company.start(count, 4 // count)
            assert [code for code, *_ in company.end()] == [0] * count
            (company.directory / "DONE").unlink()
        summary = json.loads((company.directory / "summary.json").read_text())
        assert saved_step(company.directory / "best") == summary["best_step"] < 6
        found.append({name: summary[name] for name in ("best_step", "val/nll", "test/nll")})
        chosen = [line["step"] for line in numbers(company.directory) if "val/accuracy" in line]
        assert chosen == [1, 2, 3, 4, 5, 6]
    assert found[1] == pytest.approx(found[0], rel=1e-3)


@pytest.mark.proofs
def test_what_is_measured_in_the_end_is_that_of_one_process(tmp_path: Path):
    """The likelihood of a variational autoencoder, which each process computes by itself."""
    found = []
    for count in (1, 2):
        company = Company(tmp_path / str(count), ("mnist_vae", "--smoke"))
        company.start(count, 4 // count)
        assert [code for code, *_ in company.end()] == [0] * count
        files = (company.directory / "evaluations").glob("*.json")
        measured = [json.loads(file.read_text())["metrics"] for file in files]
        found.append({name: value for each in measured for name, value in each.items()})
    final = [name for name in found[0] if name.endswith("/nll")]
    assert final
    for name in final:
        assert found[1][name] == pytest.approx(found[0][name], rel=1e-4)
