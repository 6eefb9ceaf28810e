"""The command line: what it does, and one line for every mistake that a person can make."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

import experiments.runs
from data.sources import synthetic
from experiments import catalogue, cli
from experiments.config import override
from experiments.identity import identity
from experiments.runs import directory_of
from experiments.table import Arm
from models.classification.lenet import LeNet5
from models.classification.vit import ViT
from train.experiment import Data, Experiment, Loop
from train.loop import Result as Stopped
from train.optim import Optimizer, constant, sgd
from train.tasks.classify import Classify

HOUSE = Path(__file__).parents[2]


class Small(nn.Module):
    """The smallest network: it compiles in a moment, and two layers can overflow."""

    num_classes: int = 4

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        x = nn.Dense(8, name="hidden")(x.reshape(len(x), -1))
        return nn.Dense(self.num_classes, name="head")(x)


def config() -> Experiment:
    return Experiment(
        task=Classify(model=Small()),
        data=Data(source=partial(synthetic, n=32, size=6, classes=4), batch=8, eval_batch=32),
        optimizer=Optimizer(method=sgd, schedule=constant, learning_rate=0.1),
        loop=Loop(duration="3 steps", log_every="1 step", checkpoint_every="1 step", previews=0),
    )


TINY = SimpleNamespace(
    config=config,
    sweep=lambda: [
        Arm("slow"),
        Arm("broken", {"optimizer.learning_rate": 1e30}),
        Arm("fast", {"optimizer.learning_rate": 0.2}),
    ],
    SMOKE={"loop.duration": "2 steps"},
)


class Result(NamedTuple):
    code: int
    out: str
    err: str

    def complaint(self) -> str:
        """The one line on standard error."""
        assert self.err.startswith("opsin: ")
        assert self.err.count("\n") == 1
        return self.err.strip()


@pytest.fixture
def opsin(monkeypatch, capsys, tmp_path) -> Iterator[Callable[..., Result]]:
    """Runs a command in an empty directory. ``tiny`` is an experiment there."""
    monkeypatch.setattr(cli, "set_up", lambda runtime: None)  # jax is imported by now
    monkeypatch.chdir(tmp_path)
    find = catalogue.find
    monkeypatch.setattr(catalogue, "find", lambda name: TINY if name == "tiny" else find(name))

    def run(*arguments: str) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exited:
            cli.main(arguments)
        captured = capsys.readouterr()
        return Result(exited.value.code, captured.out, captured.err)

    return run


def in_process(*arguments: str, cwd: Path) -> Result:
    done = subprocess.run(
        [sys.executable, "-m", "experiments", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(HOUSE)},
    )
    return Result(done.returncode, done.stdout, done.stderr)


# What is done.


def test_run_trains_and_names_its_directory_last(opsin):
    done = opsin("run", "tiny", "--quiet")
    assert (done.code, done.err) == (0, "")
    directory = Path(done.out.splitlines()[-1])
    assert directory == directory_of("tiny", config(), Path("runs"))
    summary = json.loads((directory / "summary.json").read_text())
    assert f"test/accuracy            {summary['test/accuracy']:.4f}" in done.out
    assert summary["steps"] == 3
    assert json.loads((directory / "arm.json").read_text()) == {
        "experiment": "tiny", "arm": "slow", "seed": 0,
    }  # fmt: skip


def test_a_finished_run_is_only_read(opsin, monkeypatch):
    first = opsin("run", "tiny", "--quiet")
    monkeypatch.setattr(experiments.runs, "fit", None)  # calling it would raise
    again = opsin("run", "tiny", "--quiet")
    directory = first.out.splitlines()[-1]
    said = f"trained before, by the code of then; to train it again: rm -r {directory}\n"
    assert again == (0, said + first.out, "")


def test_profile_names_the_trace_and_needs_steps_to_take(opsin):
    result = opsin("run", "tiny", "--quiet", "--profile", "2:3")
    assert result.code == 0
    assert re.fullmatch(
        r"trace of steps 2 to 3: (runs/tiny/.*\.trace\.json\.gz): open it in \S+\n", result.err
    )
    assert Path(re.findall(r": (runs/\S+):", result.err)[0]).exists()
    complaint = (again := opsin("run", "tiny", "--profile", "2:3")).complaint()
    assert again.code == 2
    assert "is trained, no step is left to profile" in complaint
    assert "--workdir" in complaint
    assert opsin("run", "tiny").code == 0  # what is finished stays so


def test_overrides_may_stand_anywhere(opsin):
    done = opsin("run", "tiny", "--quiet", "seed=3", "--workdir", "there", "data.batch=16")
    assert done.code == 0
    expected = override(config(), {"seed": 3, "data.batch": 16})
    assert Path(done.out.splitlines()[-1]) == directory_of("tiny", expected, Path("there"))
    resolved = json.loads(
        (directory_of("tiny", expected, Path("there")) / "config.json").read_text()
    )
    assert (resolved["seed"], resolved["data"]["batch"]) == (3, 16)


def test_an_experiment_without_smoke_overrides_says_so(opsin, monkeypatch):
    monkeypatch.delattr(TINY, "SMOKE")
    done = opsin("run", "tiny", "--smoke")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "tiny has no SMOKE" in done.err


def test_smoke_changes_what_it_says_and_overrides_win(opsin):
    done = opsin("run", "tiny", "--smoke", "--quiet", "data.batch=16")
    directory = Path(done.out.splitlines()[-1])
    resolved = json.loads((directory / "config.json").read_text())
    assert (resolved["loop"]["duration"], resolved["data"]["batch"]) == ("2 steps", 16)
    assert json.loads((directory / "arm.json").read_text())["arm"] == "custom"


def test_a_sweep_goes_on_after_a_failure_and_skips_what_is_done(opsin, monkeypatch):
    done = opsin("sweep", "tiny", "--quiet", "--seeds", "1")
    assert done.code == 1
    runs = {arm.name: override(config(), arm.overrides) for arm in TINY.sweep()}
    folders = {name: directory_of("tiny", run, Path("runs")) for name, run in runs.items()}
    ended = {
        name: [s for s in ("DONE", "FAILED") if (f / s).exists()] for name, f in folders.items()
    }
    assert ended == {"slow": ["DONE"], "broken": ["FAILED"], "fast": ["DONE"]}
    assert (folders["broken"] / "FAILED").read_text().startswith("NonFiniteError: train/")
    assert done.err.splitlines()[-1] == "opsin: 1 of 3 runs failed: broken (seed 0)"
    assert "Traceback" not in done.err

    trained, fit = [], experiments.runs.fit

    def counting(experiment, *arguments, **options):
        trained.append(identity(experiment))
        return fit(experiment, *arguments, **options)

    monkeypatch.setattr(experiments.runs, "fit", counting)
    again = opsin("sweep", "tiny", "--quiet", "--seeds", "1")
    assert again.code == 1
    assert trained == [identity(runs["broken"])]
    assert re.findall(r"\((DONE|FAILED|to do)\)", again.out) == ["DONE", "FAILED", "DONE"]


def test_a_dry_run_runs_nothing(opsin, monkeypatch, tmp_path):
    monkeypatch.setattr(experiments.runs, "fit", None)
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


def test_inspect_draws_augmented_batches(opsin):
    done = opsin("inspect", "digits_lenet", "--batches", "2", "--output", "deep/batch.png")
    assert (done.code, done.out, done.err) == (0, "deep/batch.png\n", "")
    with Image.open("deep/batch.png") as picture:
        assert picture.format == "PNG"
        assert np.asarray(picture.convert("L")).std() > 10  # something is drawn


def test_predict_writes_what_a_run_says_of_an_image(opsin, tmp_path):
    run = opsin("run", "tiny", "--quiet").out.splitlines()[-1]
    Image.fromarray(np.zeros((9, 5, 3), np.uint8)).save("night.png")
    said = opsin("predict", run, "night.png")
    assert (said.code, said.err) == (0, "")
    line, directory = said.out.splitlines()
    assert re.fullmatch(r"night\.png  stripes \d  \d+\.\d%", line)
    assert sorted(path.name for path in Path(directory).iterdir()) == [
        "labels.csv", "night_label.png",
    ]  # fmt: skip
    (tmp_path / "empty.png").touch()
    said = opsin("predict", run, "empty.png", "--output", "elsewhere")
    assert (said.code, said.out) == (2, "")
    assert re.fullmatch(r"opsin: cannot read image empty\.png: .*\n", said.err)
    assert not Path("elsewhere").exists()
    said = opsin("predict", "nowhere", "night.png")
    assert said.code == 2
    assert said.err.startswith("opsin: nowhere is no directory of a run")
    assert said.err.count("\n") == 1


def test_list_in_a_process_of_its_own(tmp_path):
    done = in_process("list", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in done.out.splitlines())
    assert lines.keys() == catalogue.experiments().keys()
    for name, claim in lines.items():
        assert (catalogue.find(name).__doc__ or "").startswith(claim)


# What goes wrong.


def folder_of_images(root: Path, classes: int = 2, count: int = 3) -> Path:
    for label in range(classes):
        directory = root / "train" / f"class{label}"
        directory.mkdir(parents=True)
        for index in range(count):
            pixels = np.full((8, 8, 3), 40 * label + index, np.uint8)
            Image.fromarray(pixels).save(directory / f"{index}.png")
    return root


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("run digits_lent", "there is no experiment 'digits_lent': did you mean 'digits_lenet'?"),
        ("sweep mnist_lenett", "did you mean 'mnist_lenet'?"),
        ("inspect mnist_lent", "did you mean 'mnist_lenet'?"),
        ("report mnist_lente", "did you mean 'mnist_lenet'?"),
        ("run tiny data.bach=64", "there is no 'data.bach' to override: did you mean 'data.batch'"),
        ("run tiny data.batch=big", "data.batch takes int, not 'big'; it is 8 by default"),
        ("run tiny seed", "'seed' is not an override: write path=value, as in seed=1"),
        ("run tiny seed=1 --quiet seed=2", "seed is overridden twice"),
        ("run tiny task.loss_function=losses.classification:fokal", "has no 'fokal'"),
        ("run tiny loop.duration=10", "loop.duration takes str, not 10; it is '3 steps'"),
        ("run tiny loop.duration=ten", "duration 'ten': write '20 epochs' or '500 steps'"),
        ("run tiny loop.log_every=1.5steps", "duration '1.5steps': write"),
        ("run tiny optimizer.warmup=0.5_steps", "duration '0.5 steps': steps are whole"),
        ("run tiny data.batch=20", "data.batch=20 does not divide by 8 devices: try data.batch=16"),
        ("run tiny parallel.data=64", "64 x 1 x 1 = 64 devices, there are 8: lower parallel.data"),
        ("run tiny parallel.fsdp=3", "parallel.fsdp=3 does not divide the 8 devices here"),
        ("run tiny loop.ema_decay=2", "loop.ema_decay=2.0 is not in [0, 1)"),
        ("run tiny loop.strategy=xmap", "loop.strategy takes Literal['jit', 'pmap'], not 'xmap'"),
        ("run tiny data.source=tfds:mnist", 'no data set "mnist" in'),
        ("run tiny data.source=mnist", 'did you mean "tfds:mnist"?'),
        ("run tiny data.source=folder:nowhere", "no folder nowhere"),
        ("run tiny data.train_split=dev", 'has no split "dev"'),
        ("run tiny data.eval_splits.test=dev", 'has no split "dev"'),
        ("run tiny task.model.num_classes=5", "set task.model.num_classes=4"),
        ("run tiny --profile 1:9", "--profile 1:9: this run takes the steps 1 to 3"),
        ("sweep tiny --index 2 --of 2", "--index 2 --of 2: the index counts from 0 to 1"),
        ("sweep tiny seed=4", "slow with seed 1 and slow with seed 0 are one and the same run"),
        ("report tiny", "tiny has no TABLE to report: opsin run tiny prints its numbers"),
        ("report mnist_lenet", "no run of the sweep has ended in runs/mnist_lenet"),
        ("report", "no README.md to put the results in"),
        # argparse speaks like the rest.
        ("", "the following arguments are required: COMMAND: see opsin --help"),
        ("train tiny", "invalid choice: 'train'"),
        ("run tiny --seed 3", "unrecognized arguments: --seed"),
        ("list tiny", "unrecognized arguments: tiny"),
        ("sweep tiny --seeds 0", "--seeds: '0' is not a whole number of at least 1"),
        ("sweep tiny --of many", "--of: 'many' is not a whole number of at least 1"),
        ("inspect tiny --batches -1", "--batches: '-1' is not a whole number of at least 1"),
        ("run tiny --profile 5", "--profile: '5' is not first:last, two steps counted from 1"),
        ("run tiny --profile 9:3", "--profile: '9:3' is not first:last"),
        ("run tiny --profile 0:2", "--profile: '0:2' is not first:last"),
        ("run tiny --profile -1:2", "argument --profile: expected one argument"),
        ("run tiny --memory-fraction 2", "--memory-fraction: '2' is not a share between 0 and 1"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(opsin, monkeypatch, tmp_path, arguments, complaint):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nowhere"))
    words = [word.replace("_steps", " steps") for word in arguments.split()]
    result = opsin(*words)
    assert result.code == 2
    assert complaint in result.complaint()
    assert not list(tmp_path.rglob("DONE"))


@pytest.mark.parametrize(
    ("mistake", "complaint"),
    [
        ("empty", "has no images: add some, for classes in two or more sub-folders"),
        ("one class", 'needs two or more sub-folders of images, one a class; has only "class0"'),
        ("class without images", "class1 has no images"),
        ("truncated", "cannot read image"),
        ("text", "cannot read image"),
        ("three classes", "task.model.num_classes"),
    ],
)
def test_a_folder_of_images_that_will_not_do(opsin, tmp_path, mistake, complaint):
    classes = {"empty": 0, "one class": 1, "three classes": 3}.get(mistake, 2)
    root = tmp_path / "photos"
    root.mkdir()
    folder_of_images(root, classes)
    named = root / "train" / "class1" / "1.png"
    if mistake == "class without images":
        for file in named.parent.iterdir():
            file.unlink()
    elif mistake == "truncated":
        named.write_bytes(named.read_bytes()[:50])
    elif mistake == "text":
        named.write_text("a note")
    result = opsin("run", "tiny", "--quiet", f"data.source=folder:{root}", "data.batch=8",
                   "data.eval_splits.test=train", "task.model.num_classes=2")  # fmt: skip
    assert result.code == 2
    assert complaint in result.complaint()
    if mistake in ("truncated", "text"):
        assert str(named) in result.err


@pytest.mark.parametrize("content", [None, "{", '{"name": "mnist"}'])
def test_a_damaged_tfds_set_is_named(opsin, monkeypatch, tmp_path, content):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    version = tmp_path / "mnist" / "3.0.1"
    version.mkdir(parents=True)
    if content is not None:
        (version / "dataset_info.json").write_text(content)
        (version / "features.json").write_text(content)
    result = opsin("run", "tiny", "--quiet", "data.source=tfds:mnist")
    assert result.code == 2
    assert f'data set "mnist" in {tmp_path}' in result.complaint()
    assert "tfds build mnist" in result.err  # the way out


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (
            ViT(depth=1, width=8, mlp_width=8, heads=1, patch=4, num_classes=4),
            "sides that the patch size 4 divides; got (1, 6, 6, 3)",
        ),
        (LeNet5(num_classes=4), "divides 32; got (1, 6, 6, 3)"),
    ],
    ids=["vit", "lenet"],
)  # fmt: skip
def test_a_model_that_cannot_take_the_images_says_which_it_takes(
    opsin, monkeypatch, model, complaint
):
    changed = override(config(), {"task.model": model})
    monkeypatch.setattr(TINY, "config", lambda: changed)
    result = opsin("run", "tiny", "--quiet")
    assert result.code == 2
    assert complaint in result.complaint()


@pytest.mark.parametrize(
    "arguments",
    ["run tiny --quiet --workdir taken/here", "inspect tiny --output taken/here.png"],
)
def test_a_place_that_cannot_be_written(opsin, arguments):
    Path("taken").write_text("a file")
    result = opsin(*arguments.split())
    assert result.code == 2
    assert re.search("cannot write (to )?taken/here.*: choose another place", result.complaint())
    assert Path("taken").read_text() == "a file"


HOLD = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_directory_takes_one_run_at_a_time(opsin):
    directory = directory_of("tiny", config(), Path("runs"))
    directory.mkdir(parents=True)
    command = [sys.executable, "-c", HOLD, str(directory / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        result = opsin("run", "tiny", "--quiet")
        assert result.code == 2
        assert f"another run is live in {directory}" in result.complaint()
        assert [file.name for file in directory.iterdir()] == [".lock"]
        other.communicate()
    assert opsin("run", "tiny", "--quiet").code == 0


def test_numbers_that_are_not_finite_stop_the_run(opsin):
    arguments = ("run", "tiny", "--quiet", "optimizer.learning_rate=1e30")
    result = opsin(*arguments)
    assert result.code == 1
    directory = directory_of(
        "tiny", override(config(), {"optimizer.learning_rate": 1e30}), Path("runs")
    )
    said = re.fullmatch(
        r"opsin: (train/\w+ is (?:inf|nan) at step 2: lower optimizer.learning_rate.*); "
        r"step 1 is saved in (\S+)",
        result.complaint(),
    )
    assert said
    assert Path(said[2]) == (directory / "checkpoints").absolute()
    assert [p.name for p in (directory / "checkpoints").iterdir()] == ["1"]
    assert (directory / "FAILED").read_text().startswith(f"NonFiniteError: {said[1]}")
    assert not (directory / "DONE").exists()
    assert opsin(*arguments) == result  # from step 1 on it goes wrong in the same way


def test_a_run_that_failed_may_be_repeated(opsin, monkeypatch):
    def full(*arguments, **options):
        raise RuntimeError("no more memory")

    with monkeypatch.context() as patch:
        patch.setattr(experiments.runs, "fit", full)
        # Not a user's mistake: it keeps its trace, and must not keep the directory locked with it.
        with pytest.raises(RuntimeError) as kept:
            cli.main(["run", "tiny", "--quiet"])
    directory = directory_of("tiny", config(), Path("runs"))
    assert (directory / "FAILED").read_text() == "RuntimeError: no more memory\n"
    assert opsin("run", "tiny", "--quiet").code == 0
    assert (directory / "DONE").exists()
    assert not (directory / "FAILED").exists()
    assert str(kept.value) == "no more memory"


@pytest.mark.parametrize("command", ["run tiny", "sweep tiny --seeds 1"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_run_that_was_stopped_is_not_done_and_ends_the_sweep(
    opsin, monkeypatch, command, number, code
):
    def stopped(experiment, directory, *, stop, **options):
        os.kill(os.getpid(), number)
        assert stop()
        return Stopped(False, 2, {})

    monkeypatch.setattr(experiments.runs, "fit", stopped)
    result = opsin(*command.split())
    assert (result.code, result.err) == (code, "")
    assert "stopped at step 2, saved; the same command goes on from there\n" in result.out
    (directory,) = Path("runs/tiny").iterdir()
    assert not (directory / "DONE").exists()
    assert not (directory / "summary.json").exists()


def test_a_platform_that_is_not_there(opsin, monkeypatch):
    def devices():
        raise RuntimeError("Unable to initialize backend 'tpu': no libtpu\nmore")

    monkeypatch.setattr(jax, "devices", devices)
    result = opsin("run", "tiny", "--platform", "tpu")
    assert result.code == 2
    assert "no tpu device here (Unable to initialize backend 'tpu'" in result.complaint()


def test_trace_shows_the_trace(opsin):
    result = opsin("run", "tiny", "data.bach=64", "--trace")
    assert result.code == 2
    *trace, complaint = result.err.splitlines()
    assert trace[0] == "Traceback (most recent call last):"
    assert "in override" in result.err
    assert complaint.startswith("opsin: there is no 'data.bach'")


def test_a_mistake_in_a_process_of_its_own(tmp_path):
    result = in_process("run", "digits_lenet", "seed=first", cwd=tmp_path)
    assert result.code == 2
    assert result.complaint() == "opsin: seed takes int, not 'first'; it is 0 by default"
    assert result.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_has_had_enough_is_no_error():
    command = [sys.executable, "-m", "experiments", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as listing:
        assert listing.stdout is not None
        assert listing.stderr is not None
        listing.stdout.close()
        assert listing.stderr.read() == b""
        assert listing.wait() == 1
