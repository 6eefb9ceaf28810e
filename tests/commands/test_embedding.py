"""Features of finished runs: written and drawn."""

import importlib
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image
from threadpoolctl import threadpool_limits

from opsin.analysis.sampling import untracked
from opsin.commands import runtime
from opsin.commands.embedding import embed
from opsin.commands.main import main
from opsin.commands.runs import Options, RunError, execute
from opsin.commands.trained import open_run
from opsin.config.tree import override
from opsin.data.augment import normalize, scale
from opsin.data.files import WriteError
from opsin.data.geometry import random_flip
from opsin.data.selection import per_class
from opsin.data.sources import digits
from opsin.models.classification.resnet import BasicBlock, ResNet
from opsin.models.representation.simclr import ProjectionHead, SimCLR
from opsin.train.experiment import Data, Experiment, Loop
from opsin.train.tasks.classify import Classify
from opsin.train.tasks.contrast import Contrast
from tests.commands.tiny import Small


def run(task, directory: Path, **changes) -> Path:
    experiment = Experiment(
        task=task,
        data=Data(source="digits", batch=64, select=partial(per_class, n=40)),
        loop=Loop(duration="3 steps", evaluate_every="3 steps", previews=0),
    )
    experiment = override(experiment, {"parallel.data": 1, **changes})
    return execute("embedded", "arm", experiment, Options(directory, progress=False)).directory


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """In maps of few points, threads wait for one another longer than they work."""
    importlib.import_module("sklearn.manifold")  # only what is there can be limited
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    changes = {"data.mean": (0.3,), "data.std": (0.5,)}
    return run(Classify(Small(num_classes=10)), tmp_path_factory.mktemp("runs"), **changes)


def features_of(directory: Path, images: np.ndarray) -> np.ndarray:
    """By the network's own first layers, written out."""
    trained = open_run(directory)
    batch = normalize(scale({"image": jax.numpy.asarray(images)}), (0.3,), (0.5,))
    seen = []

    def watch(method, args, kwargs, context):
        if context.module.name == "head":
            seen.append(args[0])
        return method(*args, **kwargs)

    with nn.intercept_methods(watch):
        trained.experiment.task.model.apply({"params": trained.params}, batch["image"])
    return np.asarray(seen[0])


def test_embeddings_are_features_with_ids_and_a_map(classifier, tmp_path):
    options = {"split": "test", "layer": "features", "seed": 1, "track": untracked}
    picture, file = embed(classifier, None, count=50, output=tmp_path, **options)
    with Image.open(picture) as image:
        assert image.width > 500
    with np.load(file) as arrays:
        assert arrays["features"].shape == (50, 8)
        ids = arrays["id"]
        assert (np.diff(ids) > 0).all()
        test = digits("test").records.arrays
        np.testing.assert_array_equal(arrays["label"], test["label"][ids])
        expected = features_of(classifier, test["image"][ids])
        np.testing.assert_allclose(arrays["features"], expected, rtol=1e-4, atol=1e-5)
        assert arrays["pca"].shape == arrays["tsne"].shape == (50, 2)
        made = json.loads(str(arrays["made"]))
    assert made["layer"] == "features"
    assert made["normalization"] == {"mean": [0.3], "std": [0.5]}
    assert len(made["checkpoint"]["sha256"]) == 64


def test_images_of_ones_own_need_no_classes(classifier, tmp_path):
    for index in range(30):
        pixels = np.full((20, 20, 3), 8 * index, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    own = partial(embed, classifier, layer="head", seed=0, track=untracked)
    options = {"split": "train", "count": 20, "output": tmp_path / "out"}
    _, file = own(f"folder:{tmp_path}", **options)  # brought to 8x8 pixels, and to grey
    with pytest.raises(WriteError, match=r"embedding.png is there already: move it away, or"):
        own(f"folder:{tmp_path}", **options)
    options["output"] = tmp_path / "elsewhere"
    with np.load(file) as arrays:
        assert arrays["features"].shape == (20, 10)
        assert "label" not in arrays
    with pytest.raises(RunError, match=r"was trained on images \[8, 8, 1\], and these are"):
        own("synthetic", **options)
    with pytest.raises(RunError, match=r"a map of 2 images shows nothing: .* --n 3 or more"):
        own(None, **{**options, "count": 2})
    blocked = tmp_path / "0.png" / "out"
    with pytest.raises(WriteError, match="choose another directory with --output"):
        own(None, **{**options, "output": blocked})


@pytest.mark.proofs
def test_simclr_is_embedded_behind_its_head(tmp_path):
    backbone = ResNet(stage_sizes=(1,), block=BasicBlock, width=4, stem="cifar").without_head()
    model = SimCLR(backbone, ProjectionHead(layers=1, output=6))
    directory = run(Contrast(model, (random_flip,)), tmp_path, **{"loop.duration": "2 steps"})
    _, arrays = embed(
        directory, None, split="test", count=20, layer="head", seed=0, output=tmp_path / "out",
        track=untracked,
    )  # fmt: skip
    with np.load(arrays) as found:
        assert found["features"].shape == (20, 6)


def test_the_command_line(classifier, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runtime, "set_up", lambda asked: None)  # jax is imported by now

    def opsin(*arguments: str) -> int:
        with pytest.raises(SystemExit) as end:
            main(arguments)
        return int(end.value.code or 0)

    assert opsin("embed", str(classifier), "digits", "--n", "20") == 0
    assert (classifier / "embedding" / "embedding.npz").exists()
    capsys.readouterr()
    assert opsin("embed", str(classifier)) == 2
    assert "embedding.png is there already" in capsys.readouterr().err
    assert opsin("embed", str(classifier), "--split", "val", "--output", "val") == 2
    assert 'has no split "val"' in capsys.readouterr().err
    assert opsin("embed", str(classifier), "--layer", "middle") == 2
    assert "invalid choice 'middle' for argument '--layer'" in capsys.readouterr().err
    assert opsin("embed", str(tmp_path)) == 2
    assert "is no directory of a run" in capsys.readouterr().err
