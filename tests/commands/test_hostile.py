"""Run folders of strangers, before every command that reads one: a file that must not exist.

Whatever they hold, nothing in them is executed, and nothing is written outside them.
"""

import json
import os
import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from opsin.commands.python import load
from opsin.commands.runs import state_of
from opsin.config.table import Key
from opsin.data.enclosure import component
from opsin.data.examples import DataError
from opsin.errors import UserError
from opsin.report import evaluations
from opsin.report.rows import collect
from tests.commands import tiny

EVIL = "open({marker!r}, 'w').close()\ndef f(*values, **options): ...\nclass F: ...\n"

READERS = {
    "predict": "predict RUN night.png",
    "sample": "sample RUN --n 1",
    "inpaint": "inpaint RUN night.png night.png",
    "embed": "embed RUN --n 4",
    "export": "export RUN weights.safetensors",
    "evaluate": "evaluate RUN",
    "run": "run tiny --quiet",
    "sweep": "sweep tiny --seeds 1 --quiet --index 0 --of 3",
}
"""Every command that opens a run by its config; RUN is its folder. ``report`` calls ``collect``,
``list --runs`` is below, and ``reproduce`` runs as ``run`` does."""

FIELDS = ("optimizer.schedule", "optimizer.method", "task.loss_function", "task.model")
FIELDS += ("data.source", "data.select", "data.augment.0", "measurements.0", "optimizer.lr_scale.0")


def values(marker: str) -> list[Any]:
    """What would leave the marker: by being imported, by being called, or by being written to."""
    touch = ["touch", marker]
    return [
        *("./evil.py:f", "{here}/evil.py:f", "{run}/evil.py:f", "evil:f", "folder:f"),
        *({"call": "evil:f"}, {"type": "evil:F"}, "losses.evil:f", "opsin.losses.evil:f"),
        {"call": "subprocess:Popen", "args": [touch]},
        {"call": "subprocess:run", "args": [touch]},
        {"call": "os:system", "args": [" ".join(touch)]},
        {"call": "builtins:exec", "args": [f"open({marker!r}, 'w')"]},
        {"call": "timeit:timeit", "args": [f"open({marker!r}, 'w')"]},
        {"call": "pathlib:Path.touch", "args": [marker]},
        {"call": "numpy:save", "args": [marker]},
        {"call": "jax.numpy:save", "args": [marker]},
        {"call": "jax.profiler:start_trace", "args": [marker]},
        {"call": "flax.training.checkpoints:save_checkpoint", "args": [marker]},
        {"call": "data.files:replace_text", "args": [{"type": "pathlib:Path"}]},
        {"call": "optax:chain", "args": [{"call": "os:system", "args": [" ".join(touch)]}]},
        {"call": "functools:partial", "args": ["os:system", " ".join(touch)]},
        {"call": "commands.main:main", "args": [["inspect", "tiny", "--output", marker]]},
        {"call": "config.own_files:load", "args": ["./evil.py", "f"]},
        {"call": "config.names:named", "args": ["evil:f"]},
        {"call": "train.weights:save_weights", "path": marker},
        {"type": "train.checkpoint:Checkpoints", "directory": marker},
    ]


@pytest.fixture
def place(opsin, trained, tmp_path, monkeypatch) -> Iterator[Path]:
    """The working directory, which holds the run: its modules can be imported, and must not be."""
    outside = tmp_path / "outside"
    outside.mkdir()
    text = EVIL.format(marker=str(outside / "executed"))
    for name in ("evil.py", "folder.py", "losses/evil.py", "losses/__init__.py"):
        for home in (tmp_path, trained.absolute()):
            (home / name).parent.mkdir(exist_ok=True)
            (home / name).write_text("" if name.endswith("__init__.py") else text)
    monkeypatch.syspath_prepend(tmp_path)
    Image.fromarray(np.zeros((6, 6, 3), np.uint8)).save("night.png")
    before = set(sys.modules)
    yield outside
    assert list(outside.iterdir()) == []
    new = set(sys.modules) - before
    assert not {"evil", "folder", "losses", "own_files_evil"} & new


def with_value(config: Any, path: str, value: Any) -> Any:
    """A resolved config with a value in a field; ``data.augment.0`` is a list of that one."""
    name, _, rest = path.partition(".")
    if rest == "0":
        return config | {name: [value]}
    return config | {name: with_value(config[name], rest, value) if rest else value}


def hostile(config: Any, outside: Path, run: Path) -> Iterator[Any]:
    """Configs with each value in one field, and in each field one value."""
    every = values(str(outside / "executed"))
    named = json.dumps(every).replace("{here}", str(Path.cwd())).replace("{run}", str(run))
    for value in json.loads(named):
        for field in FIELDS:
            yield with_value(config, field, value)


def ask(opsin: Callable, reader: str, run: Path) -> Any:
    """What a command says of a run: that it cannot be, without a trace."""
    told = opsin(*READERS[reader].replace("RUN", str(run)).split())
    assert told.code == (1 if reader == "sweep" and told.out else 2), told.out
    assert "Traceback" not in told.err
    return told


def with_each(config: Any, outside: Path, run: Path, share: int) -> list[Any]:
    return list(hostile(config, outside, run))[2::share]


FEW = [True, pytest.param(False, marks=pytest.mark.proofs)]


@pytest.mark.parametrize("share", [101, pytest.param(8, marks=pytest.mark.proofs)])
@pytest.mark.parametrize("reader", READERS)
def test_a_config_executes_nothing(
    opsin: Callable, trained: Path, place: Path, reader: str, share: int
):
    file = trained / "config.json"
    for config in with_each(json.loads(file.read_text()), place, trained.absolute(), share):
        file.write_text(json.dumps(config))
        ask(opsin, reader, trained)
        assert list(place.iterdir()) == [], config


@pytest.mark.parametrize("share", [4, pytest.param(1, marks=pytest.mark.proofs)])
def test_every_value_in_every_field_executes_nothing(
    opsin: Callable, trained: Path, place: Path, share: int
):
    """From Python, as ``opsin.load``; what is not opened by a config says so."""
    file, told = trained / "config.json", 0
    for config in with_each(json.loads(file.read_text()), place, trained.absolute(), share):
        file.write_text(json.dumps(config))
        with pytest.raises(UserError) as refused:
            load(trained)
        told += "names" in str(refused.value)
        assert "\n" not in str(refused.value)
    assert told > 100 / share
    assert opsin("list", "--runs").code == 0
    with suppress(UserError):
        collect(trained.parent, ["slow"], lambda arm, seed: Key(trained.name))


@pytest.mark.parametrize("share", [101, pytest.param(8, marks=pytest.mark.proofs)])
@pytest.mark.parametrize("reader", ["predict", "run"])
def test_the_config_in_a_checkpoint_executes_nothing(
    opsin: Callable, trained: Path, place: Path, reader: str, share: int
):
    (trained / "DONE").unlink()  # so that it resumes
    file = trained / "checkpoints" / "3" / "metadata" / "metadata"
    saved = json.loads(file.read_text())
    del saved["sha256"]  # whoever writes a config can write its digest, or none
    for config in with_each(saved["config"], place, trained.absolute(), share):
        file.write_text(json.dumps(saved | {"config": config}))
        ask(opsin, reader, trained)
        assert list(place.iterdir()) == [], config


def test_the_name_of_an_experiment_executes_nothing(opsin: Callable, trained: Path, place: Path):
    for name in ("./evil.py", "evil"):
        (trained / "arm.json").write_text(json.dumps({"experiment": name, "arm": "a", "seed": 0}))
        assert "there is no measurement" in opsin("evaluate", str(trained), "None").complaint()


class Touch:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize(
    "name", ["config.json", "checkpoints/3/_CHECKPOINT_METADATA", "checkpoints/3/metadata/metadata",
             "checkpoints/3/state/_METADATA", "checkpoints/3/state/manifest.ocdbt",
             "checkpoints/3/state/checkpoint", "checkpoints/3/state/_sharding"],
)  # fmt: skip
def test_nothing_is_unpickled(opsin: Callable, trained: Path, place: Path, name: str):
    (trained / name).write_bytes(pickle.dumps(Touch(place / "executed")))
    told = opsin("predict", str(trained), "night.png")
    assert told.code in (0, 2)
    assert told.code == 0 or told.complaint()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        *((name, "run tiny --quiet weights.path=NAME")
          for name in ("e.safetensors", "e.npz", "e.pt", "e.pkl")),
        *((name, "import NAME out.safetensors --model resnet18 --size 32")
          for name in ("e.safetensors", "e.pth", "e.pt", "e.pkl")),
        ("e.safetensors", "evaluate RUN SampleQuality extractor.path=NAME"),
        ("e.safetensors", "predict NAME night.png"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("zipped", [False, True])
def test_weights_are_not_unpickled(
    opsin: Callable, trained: Path, place: Path, name: str, words: str, zipped: bool
):
    evil = pickle.dumps(Touch(place / "executed"))
    if zipped:  # as torch.save has it
        with zipfile.ZipFile(name, "w") as archive:
            archive.writestr("archive/data.pkl", evil)
            archive.writestr("archive/version", "3\n")
    else:
        Path(name).write_bytes(evil)
    told = opsin(*words.replace("NAME", name).replace("RUN", str(trained)).split())
    assert told.code == 2
    assert told.complaint()
    assert not Path("out.safetensors").exists()


LINKS = ["config.json", "arm.json", ".lock", "metrics.jsonl", "summary.json", "checkpoints"]
LINKS += ["checkpoints/3", "previews", "evaluations", "embedding", "curve.png", "a/b/c"]


@pytest.mark.parametrize("few", FEW)
@pytest.mark.parametrize("reader", READERS)
def test_links_that_lead_out_are_refused(
    opsin: Callable, trained: Path, place: Path, tmp_path: Path, reader: str, few: bool
):
    victims = tmp_path / "victims"
    victims.mkdir()
    for name in LINKS[2:6:3] if few else LINKS:
        run, there, victim = trained / name, victims / name, f"{trained}/{name} is a link to "
        kept = run.with_name("kept")
        shutil.rmtree(victims)
        there.parent.mkdir(parents=True)
        if run.exists():
            (shutil.copytree if run.is_dir() else shutil.copy)(run, there)
            run.rename(kept)
        run.parent.mkdir(parents=True, exist_ok=True)
        run.symlink_to(os.path.relpath(there, run.parent))  # else to nowhere: writing would make it
        before = sorted((x, x.is_file() and x.read_bytes()) for x in victims.rglob("*"))
        told = ask(opsin, reader, trained)
        assert victim in told.err
        assert "outside the folder of the run" in told.err
        assert sorted((x, x.is_file() and x.read_bytes()) for x in victims.rglob("*")) == before
        run.unlink()
        if kept.exists():
            kept.rename(run)


def test_a_report_follows_no_link_that_leads_out(trained: Path, tmp_path: Path, monkeypatch: Any):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "victim").write_text("{}")
    (trained / "summary.json").unlink()
    (trained / "summary.json").symlink_to(tmp_path / "victim")
    with pytest.raises(DataError, match=r"summary\.json is a link to .*/victim, outside the"):
        collect(trained.parent, ["slow"], lambda arm, seed: Key(trained.name))
    with pytest.raises(DataError, match="outside the folder"):
        state_of(trained, tiny.config())


def test_links_within_a_run_and_to_the_whole_of_it_are_followed(
    opsin: Callable, trained: Path, place: Path
):
    (trained / "checkpoints").rename(trained / "really")
    (trained / "checkpoints").symlink_to("really")
    Path("linked").symlink_to(trained)
    assert opsin("predict", "linked", "night.png").code == 0


def test_what_never_ends_is_not_read(opsin: Callable, trained: Path, place: Path):
    for name in ("config.json", "metrics.jsonl", "checkpoints/3/metadata/metadata"):
        file = trained / name
        kept = file.read_bytes()
        file.unlink()
        os.mkfifo(file)
        told = opsin("predict", str(trained), "night.png").complaint()
        assert f"{name} is neither a file nor a folder" in told
        file.unlink()
        with file.open("wb") as opened:
            opened.truncate(2**40)  # of zeros, which take no room
        told = opsin("predict", str(trained), "night.png").complaint()
        assert f"{name} has {2**40} bytes, and no run writes more" in told
        file.write_bytes(kept)
    assert opsin("predict", str(trained), "night.png").code == 0


BAD = ["", ".", "..", "../../x", "a/b", "/x", "a\\b", ".hidden", "-rf", "a\0b", "a\nb", "\ud800"]
BAD += ["x" * 201, "é" * 101]


@pytest.mark.parametrize("name", BAD)
def test_a_name_that_leaves_its_folder_becomes_no_file(name: str):
    with pytest.raises(DataError, match="cannot be part of the name of a file") as told:
        component("split", name)
    assert "\n" not in str(told.value)
    with pytest.raises(DataError):
        evaluations.path_of(Path("run"), name)


@pytest.mark.parametrize("name", ["test", "train[:10%]", "naïve 2", "x" * 200, "a.b", "$HOME", "_"])
def test_other_names_stay_as_they_are(name: str):
    assert component("split", name) == name


def test_a_split_cannot_be_called_so_that_it_writes_elsewhere(opsin: Callable, place: Path):
    told = opsin("run", "tiny", "--quiet", "data.eval_splits={'../../../outside/x': 'test'}")
    assert told.code == 2
    assert "data.eval_splits: '../../../outside/x' cannot be part" in told.complaint()
