"""The house as a user installs it: a wheel in an environment of its own, in empty directories."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

HOUSE = Path(__file__).parents[1]

LOSSES = """
import jax
import jax.numpy as jnp
import optax

def poly1_loss(logits, labels, *, epsilon=1.0):
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    right = jnp.take_along_axis(jax.nn.softmax(logits), labels[..., None], axis=-1)
    return cross_entropy + epsilon * (1 - right[..., 0])
"""
SOURCE = """
from opsin.data.sources import synthetic

def small(split):
    return synthetic(split, n=64, size=28, channels=1)
"""
# The smallest diffusion model that can be asked for on the command line.
DIFFUSION = """
data.source=./sources.py:small data.batch=32 task.model.width=8 task.model.multiples=(1,2)
task.model.attention=() task.process.steps=40 task.sampling.steps=2 measurements=()
loop.previews=0
"""

pytestmark = pytest.mark.proofs


def python(*words: str | Path) -> None:
    subprocess.run([sys.executable, "-m", *words], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, for a build leaves files behind that the next one would pack."""
    place = tmp_path_factory.mktemp("wheel")
    left_out = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "runs", "shared")
    shutil.copytree(HOUSE, place / "house", ignore=left_out)
    python(
        *("pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"),
        *("--wheel-dir", place, place / "house"),
    )
    (built,) = place.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Runs a command of the wheel, whose dependencies are those of this environment."""
    venv = tmp_path_factory.mktemp("installed") / "venv"
    python("venv", "--without-pip", venv)
    (packages,) = venv.glob("lib/*/site-packages")
    python(
        *("pip", "--python", venv / "bin" / "python", "install", "--quiet", "--no-index"),
        *("--no-deps", "--no-compile", wheel),
    )
    # As paths alone: the .pth files in them, such as that of an editable install, are not read.
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "libraries.pth").write_text("\n".join(libraries))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"TFDS_DATA_DIR": str(venv / "none"), "JAX_PLATFORMS": "cpu"}
    environment |= {"HOME": str(venv.parent)}

    def run(*words: str | Path, cwd: Path, code: int = 0) -> str:
        done = subprocess.run(
            [venv / "bin" / "opsin", *words],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout if code == 0 else done.stderr

    return run


def test_it_holds_the_packages_and_what_they_read_and_no_more(wheel: Path):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    rooms = {path.parent for path in HOUSE.glob("*/__init__.py")}
    code = {path for room in rooms for path in room.rglob("*.py")} | set(HOUSE.glob("*.py"))
    weights = set(HOUSE.glob("results/extractors/*.safetensors"))
    rows = {*HOUSE.glob("results/*.jsonl"), HOUSE / "py.typed"}
    rows.add(HOUSE / "data" / "imagenet_classes.txt")
    assert held == {f"opsin/{path.relative_to(HOUSE)}" for path in code | weights | rows}


def test_every_command_from_an_empty_directory(installed: Callable[..., str], tmp_path: Path):
    here, away = tmp_path / "here", tmp_path / "away"
    here.mkdir()
    away.mkdir()
    assert "digits_lenet" in installed("list", cwd=away)
    assert installed("inspect", "digits_lenet", cwd=away) == "digits_lenet_batch.png\n"
    assert installed("sweep", "digits_lenet", "--dry-run", cwd=away).count("(to do)") == 3
    assert "usage: opsin run" in installed("run", "--help", cwd=away)
    complaint = installed("report", cwd=away, code=2)
    assert complaint == "opsin: no tables in results/: run it in the house, or name --results\n"
    assert [path.name for path in away.iterdir()] == ["digits_lenet_batch.png"]

    # A loss of the user, in a repository of the user, in which the environment may lie as well.
    (here / "my_losses.py").write_text(LOSSES)
    words = ["run", "digits_lenet", "task.loss_function=./my_losses.py:poly1_loss", "--quiet"]
    words += ["loop.duration=2 steps", "optimizer.warmup=0 steps", "data.eval_batch=360"]
    installed(*words, cwd=here)
    (run,) = here.glob("runs/digits_lenet/*")
    saved = json.loads((run / "config.json").read_text())
    assert saved["task"]["loss_function"]["call"] == f"{here / 'my_losses.py'}:poly1_loss"
    (start,) = json.loads((run / "env.json").read_text())
    assert (start["commit"], start["dirty"]) == (None, None)

    # Asked from elsewhere.
    Image.fromarray(np.full((8, 8), 200, np.uint8)).save(away / "digit.png")
    allow = ("--allow", "../here/my_losses.py")
    assert "digit.png" in installed("predict", run, "digit.png", *allow, cwd=away)
    assert "test/accuracy" in installed("evaluate", run, *allow, cwd=away)
    assert "map" in installed("embed", run, "--n", "20", "--output", "map", *allow, cwd=away)
    assert "sha256" in installed("export", run, "lenet.safetensors", *allow, cwd=away)
    found = {path.name for path in away.iterdir()}
    made = {"digits_lenet_batch.png", "predictions", "map", "lenet.safetensors"}
    assert found == {"digit.png", *made}
    (here / "my_losses.py").unlink()
    assert "by --allow" in installed("predict", run, "digit.png", cwd=away, code=2)
    gone = installed("predict", run, "digit.png", *allow, cwd=away, code=2)
    assert "../here/my_losses.py is not there" in gone


def test_a_plan_and_a_table_from_an_empty_directory(installed: Callable[..., str], tmp_path: Path):
    planned = installed("plan", "digits_lenet", "--topology", "cpu:2", cwd=tmp_path)
    assert "61,706 parameters" in planned
    complaint = installed("report", "digits_lenet", cwd=tmp_path, code=2)
    assert "no run of the sweep has ended in runs/digits_lenet" in complaint
    rows = HOUSE / "results" / "digits_lenet.jsonl"
    (tmp_path / "results").mkdir()
    shutil.copy(rows, tmp_path / "results")
    (tmp_path / "README.md").write_text("<!-- results -->\n<!-- /results -->\n")
    assert "wrote the tables of 1 experiments" in installed("report", cwd=tmp_path)
    for suffix in ("csv", "md"):
        written = (tmp_path / "results" / f"digits_lenet.{suffix}").read_text()
        assert written == rows.with_suffix(f".{suffix}").read_text()
    assert installed("report", "--check", cwd=tmp_path) == ""


def test_samples_from_an_empty_directory(installed: Callable[..., str], tmp_path: Path):
    (tmp_path / "sources.py").write_text(SOURCE)
    words = ["run", "mnist_ddpm", "--quiet", "loop.duration=1 steps", "optimizer.warmup=0 steps"]
    words += DIFFUSION.split()
    installed(*words, cwd=tmp_path)
    (run,) = tmp_path.glob("runs/mnist_ddpm/*")
    allow = ("--allow", "./sources.py")
    assert "samples" in installed("sample", run, "--n", "4", *allow, cwd=tmp_path)
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(tmp_path / "image.png")
    half = np.repeat(np.uint8([[0, 255]]), 14, axis=1).repeat(28, axis=0)
    Image.fromarray(half).save(tmp_path / "mask.png")
    words = ["inpaint", run, "image.png", "mask.png", "--n", "1", "--resamplings", "1", *allow]
    assert "inpainted" in installed(*words, cwd=tmp_path)
    # The weights of the house come with the wheel.
    measured = installed(
        "evaluate",
        run,
        "SampleQuality",
        "samples=32",
        "extractor=experiments.extractors:LENET",
        *allow,
        cwd=tmp_path,
    )
    assert "fd_lenet" in measured
