"""A run goes out as a program that answers as the run does, without the code that made it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

import opsin as house
from opsin.train.settings import SettingError
from opsin.train.tasks.classify import Classify

ALONE = """
import sys
sys.modules["opsin"] = sys.modules["flax"] = None
from pathlib import Path
import jax, numpy
program = jax.export.deserialize(Path("net.stablehlo").read_bytes())
numpy.save("answers.npy", program.call(numpy.load("images.npy")))
"""


def test_a_program_answers_as_the_run_where_opsin_is_not(opsin: Callable, trained: Path):
    done = opsin("export", str(trained), "net.stablehlo")
    assert done.code == 0, done.err
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 6, 3), np.uint8)
    np.save("images.npy", images)
    subprocess.run([sys.executable, "-c", ALONE], check=True)
    expected = house.load(trained).predict(images)
    np.testing.assert_allclose(np.load("answers.npy"), expected, rtol=1e-5, atol=1e-6)
    program = jax.export.deserialize(bytearray(Path("net.stablehlo").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    one = program.call(images[:1])
    np.testing.assert_allclose(one, np.asarray(expected)[:1], rtol=1e-5, atol=1e-6)
    assert opsin("export", str(trained), "net.stablehlo").code == 2  # it is there already


def test_a_model_of_onnx_answers_as_the_run(opsin: Callable, trained: Path):
    pytest.importorskip("jax2onnx")
    runtime = pytest.importorskip("onnxruntime")
    done = opsin("export", str(trained), "net.onnx")
    assert done.code == 0, done.err
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 6, 3), np.uint8)
    (found,) = runtime.InferenceSession("net.onnx").run(None, {"images": images})
    np.testing.assert_allclose(found, house.load(trained).predict(images), rtol=1e-4, atol=1e-5)


def test_what_is_no_program_is_one_line(opsin: Callable, trained: Path, monkeypatch):
    for name in ("net.stablehlo", "net.onnx"):
        done = opsin("export", str(trained), name, "--names", "torchvision")
        assert done.code == 2
        assert "--names is for files of weights" in done.complaint()

    def refuse(*arguments):
        raise SettingError("predict is for classification and segmentation")

    monkeypatch.setattr(Classify, "predict", refuse)
    done = opsin("export", str(trained), "net.stablehlo")
    assert done.code == 2
    assert done.complaint().endswith(": predict is for classification and segmentation")
    assert not Path("net.stablehlo").exists()
