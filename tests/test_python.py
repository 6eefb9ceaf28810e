"""Opsin from Python: the names that are kept, and the scripts of its pages."""

import ast
import io
import re
import runpy
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

import opsin
from opsin.commands import prediction, python
from opsin.commands.prediction import Predictor
from opsin.commands.runs import RunError
from opsin.commands.trained import Trained
from opsin.data.examples import DataError, materialize
from opsin.data.sources import digits
from opsin.pictures import figures
from opsin.pictures.kinds import Masks
from opsin.train.settings import SettingError
from tests.commands import tiny

HOUSE = Path(__file__).parents[1]
PAGES = HOUSE / "docs" / "python"
SCRIPTS = sorted(PAGES.glob("*.py"))
KEPT = [
    *("Data", "Experiment", "Loaded", "Loop", "Optimizer", "Outcome"),
    *("RunFailed", "UserError", "fit", "load"),
]


def test_the_names_that_are_kept():
    assert opsin.__all__ == KEPT
    assert {name: callable(getattr(opsin, name)) for name in KEPT} == dict.fromkeys(KEPT, True)
    assert set(KEPT) <= set(dir(opsin))
    page = (PAGES / "index.md").read_text()
    assert [name for name in KEPT if not re.search(rf"\b{name}\b", page)] == []
    with pytest.raises(AttributeError, match="module 'opsin' has no attribute 'lode'"):
        opsin.lode  # noqa: B018


def test_types_are_declared_for_each_of_them():
    """What a type checker sees is what is imported when it is asked for."""
    (block,) = [x for x in ast.parse((HOUSE / "__init__.py").read_text()).body if type(x) is ast.If]
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(seen) == KEPT
    for name, module in seen.items():
        assert getattr(sys.modules[str(module)], name) is getattr(opsin, name)


def test_import_starts_no_jax():
    code = "import sys, opsin; opsin.UserError; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def run(name: str) -> tuple[dict[str, Any], str]:
    """What a script leaves behind, and prints, in the working directory."""
    said = io.StringIO()
    with redirect_stdout(said):
        return runpy.run_path(str(PAGES / f"{name}.py")), said.getvalue()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_has_a_page_and_is_run(script):
    assert f"{{literalinclude}} {script.name}\n" in script.with_suffix(".md").read_text()
    assert f"({script.name})" in (PAGES / "index.md").read_text()
    assert script.stem in {
        "own_loop",
        "metric",
        "sample",
        "train",
        "predict",
        "nnx",
    }  # each is run below


def test_metrics_of_padded_batches_are_those_of_the_set():
    found, said = run("metric")
    logits, labels = found["logits"], found["labels"]
    predicted = logits.argmax(-1)
    assert found["numbers"]["accuracy"] == np.mean(predicted == labels)
    counts = np.zeros((10, 10), np.int64)
    np.add.at(counts, (labels, predicted), 1)
    np.testing.assert_array_equal(found["whole"]["confusion"].counts, counts)
    f1 = 2 * np.diag(counts) / (counts.sum(0) + counts.sum(1))
    assert found["numbers"]["f1_macro"] == pytest.approx(f1.mean(), abs=1e-12)
    assert f"f1_macro {f1.mean():.4f}" in said


@pytest.mark.proofs
def test_a_model_in_nnx_is_the_same_function_and_its_weights_come_back():
    found, _ = run("nnx")
    apply = jax.jit(found["model"].apply)
    np.testing.assert_allclose(
        found["same"], apply(found["variables"], found["images"]), rtol=1e-6, atol=1e-7
    )
    assert found["losses"][-1] < 0.8 * found["losses"][0]
    moved = apply(found["trained"], found["images"])
    np.testing.assert_allclose(moved, found["bridged"](found["images"]), rtol=1e-5, atol=1e-6)
    assert np.abs(np.asarray(moved) - np.asarray(found["same"])).max() > 0.1


@pytest.mark.proofs
def test_samples_of_the_best_denoiser_are_images_that_it_knows():
    found, _ = run("sample")
    known = np.asarray(found["known"])
    for images in found["samples"].values():
        away = np.abs(np.asarray(images)[:, None] - known).mean(axis=(2, 3, 4))
        assert away.min(axis=1).max() < 0.01
        assert len(set(away.argmin(axis=1))) > 8  # and not one of them alone


@pytest.mark.proofs
def test_a_loop_of_ones_own_learns_digits():
    found, _ = run("own_loop")
    assert found["accuracy"] > 0.93


@pytest.mark.proofs
def test_an_experiment_is_trained_and_its_run_is_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained, _ = run("train")
    outcome = trained["outcome"]
    assert outcome.finished
    assert outcome.directory.parts[:2] == ("runs", "my_digits")
    assert outcome.metrics["test/accuracy"] > 0.9
    assert run("train")[0]["outcome"].trained_before
    asked, _ = run("predict")
    labels = asked["probabilities"].argmax(-1)
    assert np.mean(labels == materialize(digits("test"))["label"]) == pytest.approx(
        outcome.metrics["test/accuracy"], abs=0.003
    )


# ``opsin.load``: what the command says, of arrays.


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """The directory of a run of three steps, by ``fit``."""
    place = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        for chart in ("training_curve", "confusion_matrix"):  # drawn elsewhere
            patch.setattr(figures, chart, lambda *arguments: Figure(figsize=(1, 1)))
        outcome = opsin.fit(tiny.config(), "small", workdir=place, progress=False)
    assert outcome.directory.parent == place / "small"
    return outcome.directory


def test_a_loaded_run_is_its_network(small):
    loaded = opsin.load(small)
    assert loaded.class_names == tuple(f"stripes {index}" for index in range(4))
    assert loaded.step == 3
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 6, 3), np.uint8)
    logits = jax.jit(loaded.model.apply)(loaded.variables, loaded.prepare(images))
    expected = np.exp(logits - logits.max(-1, keepdims=True))
    expected /= expected.sum(-1, keepdims=True)
    np.testing.assert_allclose(loaded.predict(images), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(loaded.predict(images[0]), expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(loaded.predict(list(images)), expected, rtol=1e-5, atol=1e-6)
    grey = np.full((9, 4, 1), 70, np.uint8)
    colour = np.full((6, 6, 3), 70, np.uint8)
    same = (colour, grey[..., 0], jnp.asarray(grey), Image.fromarray(colour).convert("CMYK"))
    for image in same:
        np.testing.assert_allclose(loaded.predict(image), loaded.predict(grey), atol=1e-6)
        np.testing.assert_allclose(loaded.predict([image])[0], loaded.predict(grey), atol=1e-6)
    seven = loaded.predict(np.concatenate([images, images])[:7])  # in a batch of eight
    np.testing.assert_allclose(seven[:3], expected[:3], rtol=1e-5, atol=1e-6)
    assert len(seven) == 7
    assert len(repr(loaded)) < 3000
    assert len({loaded, opsin.load(small)}) == 2


def test_a_command_asks_what_python_asks(small, tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "any.png")
    predictor = prediction.load(small)
    (line,) = prediction.predict(predictor, [tmp_path / "any.png"], tmp_path / "out")
    assert f"{opsin.load(small).predict(pixels).max():.1%}" in line


def test_a_photograph_is_turned_as_its_file_says(small, tmp_path):
    """As ``opsin predict`` does: a telephone writes how it was held, not turned pixels."""
    pixels = np.random.default_rng(1).integers(0, 256, (20, 30, 3), np.uint8)
    held = Image.Exif()
    held[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=held)
    given = opsin.load(small).predict(Image.open(tmp_path / "turned.png"))
    np.testing.assert_array_equal(given, opsin.load(small).predict(np.rot90(pixels, -1)))


@pytest.mark.parametrize(
    ("images", "complaint"),
    [
        (np.zeros((6, 6, 3)), r"with 1 or 3 channels last, and not float64 \[6, 6, 3\]"),
        (np.zeros((6, 6, 4), np.uint8), r"not uint8 \[6, 6, 4\]"),
        ([np.zeros((6, 6, 1, 1), np.uint8)], r"not uint8 \[6, 6, 1, 1\]"),
        (Image.new("I;16", (6, 6)), r"not uint16 \[6, 6\]"),
        (Path("a.png"), "takes images as arrays, not PosixPath: a file is read by PIL.Image.open"),
        ("a.png", "takes images as arrays, not str"),
        (None, "takes images as arrays, not NoneType"),
        (np.zeros((0, 6, 3), np.uint8), "0x6 pixels has none"),
        ([], "there are no images"),
        (["a.png"], "an image is uint8"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_told(small, images, complaint):
    with pytest.raises(DataError, match=complaint):
        opsin.load(small).predict(images)


def test_mistakes_of_python_are_one_line(small, tmp_path):
    with pytest.raises(RunError, match="is no directory of a run"):
        opsin.load(tmp_path)
    with pytest.raises(RunError, match="fit takes an Experiment, not str"):
        opsin.fit("digits_lenet")  # pyright: ignore[reportArgumentType]
    for name in ("../out", "a/b", "", "a b", "."):
        with pytest.raises(opsin.UserError, match="is no name of an experiment"):
            opsin.fit(opsin.load(small).experiment, name)
    with pytest.raises(RunError, match="weights='emaa': give 'ema', 'raw' or None"):
        opsin.load(small, weights="emaa")  # pyright: ignore[reportArgumentType]
    with pytest.raises(opsin.UserError, match=r"my_losses\.py"):
        opsin.load(small, allow="my_losses.py")
    with pytest.raises(
        DataError, match=r"\[batch, height, width, channels\], not uint8 \[6, 6, 3\]"
    ):
        opsin.load(small).prepare(np.zeros((6, 6, 3), np.uint8))
    with pytest.raises(DataError, match="saw images of 3 channels, not of 1"):
        opsin.load(small).prepare(np.zeros((1, 6, 6, 1), np.uint8))
    with pytest.raises(DataError, match=r"not object \[\]"):
        opsin.load(small).prepare(None)  # pyright: ignore[reportArgumentType]


def test_a_generator_predicts_nothing(small, monkeypatch):
    def refuse(trained: Trained) -> Predictor:
        raise SettingError("it makes them")

    monkeypatch.setattr(python, "predictor_of", refuse)
    generator = opsin.load(small)
    with pytest.raises(SettingError, match="it makes them"):
        generator.predict(np.zeros((6, 6, 3), np.uint8))


def test_what_a_number_may_be_holds_in_python_too(tmp_path):
    base = tiny.config()
    for part, changes, told in (
        ("optimizer", {"learning_rate": -0.1}, "optimizer.learning_rate takes float from 0 to "),
        ("data", {"batch": 2.5}, "data.batch takes int from 1"),
        ("task", {"loss_function": "focal"}, "task.loss_function takes"),
    ):
        with pytest.raises(opsin.UserError, match=told):  # and nobody checks constructors within
            opsin.fit(
                replace(base, **{part: replace(getattr(base, part), **changes)}),
                workdir=tmp_path,
                progress=False,
            )
    assert list(tmp_path.iterdir()) == []


def test_masks_have_the_size_of_their_image(small, monkeypatch):
    """A segmenter that says of each pixel whether it is bright."""

    def probabilities(tiles: np.ndarray) -> np.ndarray:
        bright = tiles[..., 0] > 127
        return np.stack([~bright, bright], axis=-1).astype(np.float32)

    names, size = ("dark", "bright"), (8, 8)
    predictor = Predictor(Masks, names, (*size, 1), size, (*size, 2), False, probabilities)
    monkeypatch.setattr(python, "predictor_of", lambda trained: predictor)
    loaded = opsin.load(small)
    rng = np.random.default_rng(2)
    images = [rng.integers(0, 256, (h, w, 1), np.uint8) for h, w in ((8, 8), (30, 11))]
    masks = loaded.predict(images)
    for image, mask in zip(images, masks, strict=True):
        np.testing.assert_array_equal(mask, image[..., 0] > 127)
    assert loaded.predict(np.stack([images[0]] * 2)).shape == (2, 8, 8)
    assert loaded.predict(images[0]).shape == (8, 8)
