"""What a function of the user's own gives is looked at: one line, and never our own trace."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

CODE = """
import flax.linen as nn
import numpy as np
from opsin.data.examples import Arrays, Examples

def nothing(*arguments, **options):
    return None

def text(*arguments, **options):
    return "text"

def unlabelled(key, batch):
    return {"label": batch["label"]}

def halved(key, batch):
    return {name: x[::2] for name, x in batch.items()}

class Seven(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=False):
        return nn.Dense(7)(x.reshape(len(x), -1))

def untold(split):
    images = np.zeros((20, 8, 8, 1), np.uint8)
    label = {"label": np.arange(20, dtype=np.int32) % 10} if split == "train" else {}
    return Examples(Arrays({"image": images, **label}), tuple("abcdefghij"))

def mask(labels, *, seed):
    return labels > 1

def parts(labels, *, seed):
    return np.array([0.5, 1.5])

def constant(peak, steps, warmup):
    return 3.0
"""


@pytest.fixture
def file(tmp_path: Path) -> Iterator[None]:
    (tmp_path / "gives.py").write_text(CODE)
    yield
    sys.modules.pop("own_files_gives", None)


@pytest.mark.usefixtures("file")
@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ("task.loss_function=./gives.py:nothing", "the training step cannot be traced: Attribute"),
        ("task.loss_function=./gives.py:text", "the training step"),
        ("data.augment=(./gives.py:nothing,)", "data.augment takes"),
        ("data.augment.0=./gives.py:nothing", "the training step cannot be traced: AttributeErr"),
        ("data.augment.0=./gives.py:text", "the training step"),
        ("data.augment.0=./gives.py:unlabelled", "KeyError: 'image'"),
        ("data.augment.0=./gives.py:halved", "data.augment.0 gives image [32, 8, 8, 1] for 64 exa"),
        ("task.model=./gives.py:Seven", "task.model gives 7 outputs, the data have 10 classes"),
        ("data.source=./gives.py:untold", "'test' has no 'label', which the training images hav"),
        ("data.select=./gives.py:mask", "a selection is whole numbers [kept], the places of"),
        ("data.select=./gives.py:parts", "not float64 [2]: np.flatnonzero gives those of a mask"),
        ("optimizer.schedule=./gives.py:constant", "'float' object is not callable"),
        ("optimizer.schedule=./gives.py:nothing", "is not callable"),
        ("optimizer.method=./gives.py:nothing", "the optimizer cannot be traced: AttributeError"),
        ("optimizer.method=optax:sgd", "and would take weight_decay for its momentum"),
        ("optimizer.method=optax:adam", "and would take weight_decay for its b1"),
        ("optimizer.schedule=optax:cosine_decay_schedule", "would take warmup for its alpha"),
        ("seed=" + "-" * 3000 + "1", "seed takes int"),
        ("data.source=folder:/" + "x" * 300, "File name too long"),
        ("data.source=tfds:EvilSet", "with a set in small letters"),
        ("data.source=tfds:evil_set/config=..", "write set, set/config"),
    ],
)
def test_what_a_function_gives_is_one_line(opsin: Callable, changed: str, told: str):
    short = ("loop.duration=2 steps", "optimizer.warmup=0 steps")
    done = opsin("run", "digits_lenet", "--quiet", *short, changed)
    assert done.code == 2
    *before, last = done.err.splitlines()
    assert last.startswith("opsin: ")
    assert told in last
    assert all(line.startswith("task.model is ") for line in before)
