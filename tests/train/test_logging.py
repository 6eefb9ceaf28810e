"""What is logged where."""

import fcntl
import io
import json
import os
import re
import struct
import termios
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from opsin.data.files import from_json, read_lines, read_log, replace_text, to_json
from opsin.metrics.state import Mean
from opsin.train.host.accounting import Work
from opsin.train.logging import (
    Console,
    JsonLines,
    LoggingError,
    MetricsLog,
    TensorBoard,
    WeightsAndBiases,
    open_writers,
)

FOUR_IMAGES = Work(images=4, flops=1000, peak=1e12)


class Memory:
    """A writer that keeps what it is given."""

    def __init__(self):
        self.lines = []

    def write(self, step, metrics):
        self.lines.append((step, dict(metrics)))

    def note(self, step, text):
        self.lines.append((step, text))

    def close(self):
        pass


def stacked(*values: float) -> dict[str, Mean]:
    """Metrics of a dispatch of several steps, four images each."""
    totals = np.float32(values) * 4
    return {"loss": Mean(total=totals, count=np.full(len(values), 4, np.int32))}


def test_a_line_is_the_mean_over_its_window_and_comes_one_dispatch_late():
    memory = Memory()
    log = MetricsLog([memory], FOUR_IMAGES)
    log.push(2, 2, stacked(1.0, 2.0), flush=False)
    log.push(4, 2, stacked(3.0, 6.0), flush=True)
    assert memory.lines == []  # the device may still be at work on it
    log.push(6, 2, stacked(5.0, 5.0), flush=False)
    (step, numbers), *rest = memory.lines
    assert (step, numbers["train/loss"], rest) == (4, 3.0, [])
    images_per_second = numbers["train/images_per_second"]
    assert images_per_second > 0
    assert numbers["train/model_flops_per_second"] == pytest.approx(images_per_second * 1000 / 4)
    assert numbers["train/utilization"] == pytest.approx(images_per_second * 1000 / 4 / 1e12)
    log.drain()
    assert log.window() == [40.0, 8]  # still open: it belongs to the next line


def test_the_dispatch_just_sent_is_never_waited_for():
    class Unfinished:
        """A result that the device still works on: to read it would wait."""

        def __array__(self, *args, **options):
            raise AssertionError("read too early")

    log = MetricsLog([Memory()], FOUR_IMAGES)
    log.push(1, 1, stacked(1.0), flush=True)
    log.push(2, 1, {"loss": Mean(total=Unfinished(), count=Unfinished())}, flush=True)
    with pytest.raises(AssertionError, match="read too early"):
        log.drain()


def test_a_pause_does_not_count_as_training(monkeypatch):
    memory, now = Memory(), [100.0]
    monkeypatch.setattr("opsin.train.logging.time.monotonic", lambda: now[0])
    log = MetricsLog([memory], FOUR_IMAGES)
    log.push(1, 1, stacked(1.0), flush=False)
    log.drain()
    now[0] = 1000.0  # evaluation, a checkpoint, pictures
    log.start_clock()
    log.push(2, 1, stacked(1.0), flush=True)
    now[0] = 1002.0
    log.drain()
    assert memory.lines[0][1]["train/images_per_second"] == 2.0
    assert memory.lines[0][1]["train/model_flops_per_second"] == 500.0


def test_rows_of_a_dispatch_beyond_its_count_are_not_read():
    memory = Memory()
    log = MetricsLog([memory], FOUR_IMAGES)
    log.push(1, 1, stacked(1.0, float("nan")), flush=True)
    log.drain()
    assert memory.lines[0][1]["train/loss"] == 1.0


class Closing(Memory):
    """A writer that says whether it is closed."""

    closed = 0

    def close(self):
        self.closed += 1


def test_every_writer_is_closed_once_also_if_another_cannot_be_opened():
    first, second = Closing(), Closing()

    def writers():
        yield first
        yield second
        raise LoggingError("no key")

    with pytest.raises(LoggingError), ExitStack() as closing:
        open_writers(writers(), closing)
    assert (first.closed, second.closed) == (1, 1)


def test_tensorboard_events_hold_the_numbers(tmp_path: Path):
    from tensorboardX.proto.event_pb2 import Event

    writer = TensorBoard(tmp_path)
    writer.write(3, {"test/accuracy": 0.5})
    writer.close()
    (file,) = tmp_path.iterdir()
    data, found = file.read_bytes(), {}
    while data:  # records: length, crc, event, crc
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        found |= {value.tag: (event.step, value.simple_value) for value in event.summary.value}
        data = data[16 + length :]
    assert found == {"test/accuracy": (3, 0.5)}


@pytest.mark.proofs  # it starts a service, which takes as long as thirty other tests
def test_weights_and_biases_is_offline_unless_told_otherwise(tmp_path, monkeypatch, capsys):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    writer = WeightsAndBiases(tmp_path, "digits_lenet-abc", {"seed": 0})
    writer.write(1, {"train/loss": 2.0})
    writer.close()
    (recorded,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    (line,) = capsys.readouterr().err.splitlines()
    assert f"wandb sync {recorded.parent}" in line
    give_up = time.monotonic() + 30  # its own process writes the file, and closing may not wait
    while b"train/loss" not in recorded.read_bytes() and time.monotonic() < give_up:
        time.sleep(0.1)
    assert b"train/loss" in recorded.read_bytes()


def test_without_a_key_the_error_says_what_to_do(tmp_path: Path, monkeypatch):
    wandb = pytest.importorskip("wandb")

    modes = []

    def init(**options):
        modes.append(options["mode"])
        raise wandb.Error("No API key configured.")

    monkeypatch.setattr(wandb, "init", init)
    for mode in ("", "online"):
        monkeypatch.setenv("WANDB_MODE", mode) if mode else monkeypatch.delenv("WANDB_MODE", False)
        with pytest.raises(LoggingError, match=r"No API key.* WANDB_MODE=offline"):
            WeightsAndBiases(tmp_path, "digits_lenet-abc", {})
    assert modes == ["offline", "online"]


def test_without_the_extra_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(LoggingError, match=r"pip install"):
        WeightsAndBiases(tmp_path, "name", {})


SPEED = {"train/images_per_second": 12345.0, "train/utilization": 0.256}
EVALUATED = {"test/accuracy": 0.9, "test/nll": 0.3}


def test_the_bar_shows_loss_accuracy_and_speed_in_80_columns(monkeypatch):
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    monkeypatch.setattr("sys.stderr", terminal := os.fdopen(theirs, "w"))
    console = Console(total=1000, step=0, enabled=True)
    console.write(500, {"train/loss": 0.5, "train/accuracy": 0.75, **SPEED})
    console.write(500, EVALUATED | {"test/rather_long": 1.0, "test/longer": 123.0})
    console.close()
    terminal.flush()
    lines = re.split(r"[\r\n]+", os.read(ours, 100_000).decode())
    terminal.close()
    os.close(ours)
    assert max(map(len, lines)) <= 80
    assert any("500/1000" in x and "loss 0.500 accuracy 0.750 12345 img/s" in x for x in lines)
    assert any("26% of peak FLOP/s" in x for x in lines)
    assert "step 500: test/accuracy 0.9000  test/nll 0.3000  test/rather_long 1.0000" in lines


def test_without_a_terminal_there_is_a_line_every_some_seconds_and_no_carriage_return(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("sys.stderr", lines := io.StringIO())
    monkeypatch.setattr("opsin.train.logging.time.monotonic", lambda: now[0])
    console = Console(total=100, step=0, enabled=True)
    for step in range(1, 101):
        console.write(step, {"train/loss": 0.5, **SPEED})
        now[0] += 1
    console.write(100, EVALUATED)
    for _ in console.track(range(25), "measuring"):
        now[0] += 1
    console.close()
    text = lines.getvalue()
    assert "\r" not in text
    steps = [*range(1, 100, 10), 100]
    assert text.splitlines() == [
        *(f"step {s} of 100: loss 0.500 12345 img/s 26% of peak FLOP/s" for s in steps),
        "step 100: test/accuracy 0.9000  test/nll 0.3000",
        "measuring: 10 of 25",
        "measuring: 20 of 25",
    ]


def test_a_note_is_no_progress(capsys, monkeypatch):
    """``--quiet`` leaves the bar and its lines out, not what a user has to know."""
    console = Console(total=10, step=5, enabled=False)
    console.write(6, {"train/loss": 0.5, **EVALUATED})
    console.note(0, "another batch than the set has")
    monkeypatch.setattr("opsin.train.logging.is_first", lambda: False)
    console.note(0, "once is enough")
    console.close()
    assert capsys.readouterr().err == "step 0: another batch than the set has\n"


def test_only_a_run_with_steps_to_go_resumes(capsys):
    for step in (0, 4, 10):
        Console(total=10, step=step, enabled=True).close()
    assert capsys.readouterr().err.count("resuming from step") == 1


def test_reopening_drops_what_came_after_the_checkpoint(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 1}\n{"step": 2, "a": 2}\n{"step": 3, "a": 3}\n{"step": 4')
    log = JsonLines(path, 2)
    log.write(3, {"a": 30.0})
    log.close()
    assert read_lines(path) == [{"step": 1, "a": 1}, {"step": 2, "a": 2}, {"step": 3, "a": 30.0}]


@pytest.mark.parametrize(("tail", "damaged"), [(b"*", [3]), (b"", []), (b"\n", [])])
def test_a_last_line_whose_end_is_damaged_is_told(tmp_path: Path, tail: bytes, damaged: list[int]):
    path, whole = tmp_path / "metrics.jsonl", [b'{"step": %d, "a": 1}' % step for step in (1, 2, 3)]
    path.write_bytes(b"\n".join(whole) + tail)
    assert read_log(path)[1] == damaged
    for length in range(1, len(whole[2])):  # killed while it wrote
        path.write_bytes(b"\n".join([*whole[:2], whole[2][:length]]))
        assert read_log(path)[1] == []


def test_a_file_is_replaced_whole(tmp_path: Path):
    path = tmp_path / "summary.json"
    replace_text(path, json.dumps({"a": 1}))
    replace_text(path, json.dumps({"a": 2}))
    assert json.loads(path.read_text()) == {"a": 2}
    assert list(tmp_path.iterdir()) == [path]


def test_numbers_that_are_not_finite_go_through_json(tmp_path: Path):
    numbers = {"a": float("nan"), "b": float("inf"), "c": 0.5, "steps": 3, "d": np.float64("-inf")}
    text = json.dumps(to_json(numbers), allow_nan=False)
    assert json.loads(text) == {"a": None, "b": None, "c": 0.5, "steps": 3, "d": None}
    back = from_json(json.loads(text))
    assert [name for name, value in back.items() if np.isnan(value)] == ["a", "b", "d"]
    assert (back["c"], back["steps"]) == (0.5, 3)


def test_two_processes_do_not_write_the_same_part(tmp_path: Path, monkeypatch):
    """The second begins and ends while the first has written and not yet replaced."""
    path, fsync = tmp_path / "summary.json", os.fsync

    def meanwhile(file):
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "getpid", lambda: -1)
        replace_text(path, "the second")

    monkeypatch.setattr(os, "fsync", meanwhile)
    replace_text(path, "the first, whole")
    assert path.read_text() == "the first, whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_stays_and_leaves_no_part(tmp_path: Path, monkeypatch):
    path = tmp_path / "summary.json"
    path.write_text("before")

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace_text(path, "after")
    assert [(x, x.read_text()) for x in tmp_path.iterdir()] == [(path, "before")]
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]
