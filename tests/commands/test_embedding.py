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
from opsin.commands import embedding, runtime
from opsin.commands.embedding import embed
from opsin.commands.exporting import export
from opsin.commands.main import main
from opsin.commands.runs import Options, RunError, execute
from opsin.commands.trained import open_run
from opsin.config.tree import override
from opsin.data.augment import normalize, scale
from opsin.data.examples import materialize
from opsin.data.files import WriteError
from opsin.data.geometry import random_flip
from opsin.data.selection import per_class
from opsin.data.sources import digits
from opsin.models.classification.resnet import BasicBlock, ResNet
from opsin.models.representation.simclr import ProjectionHead, SimCLR
from opsin.pictures.maps import scatter
from opsin.train.experiment import Data, Experiment, Loop
from opsin.train.tasks.classify import Classify
from opsin.train.tasks.contrast import Contrast
from opsin.train.weights import Weights, WeightsError
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


def embedded(directory: Path, output: Path, *, count: int = 40, **options) -> dict[str, np.ndarray]:
    """The arrays of some test images."""
    settings = {"split": "test", "layer": "features", "seed": 3, "track": untracked, **options}
    _, file = embed(directory, None, count=count, output=output, **settings)
    with np.load(file) as arrays:
        return dict(arrays)


def voted(features: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy of 10 neighbours with weights e^{10 cosine}, one image after the other."""
    halves = np.array_split(np.random.default_rng(3).permutation(len(labels)), 2)
    unit = features.astype(np.float64) / np.linalg.norm(features, axis=1, keepdims=True)
    right = 0
    for bank, queries in (halves, halves[::-1]):
        for query in queries:
            cosines = unit[bank] @ unit[query]
            nearest = np.argsort(-cosines)[:10]
            votes = np.zeros(10)
            np.add.at(votes, labels[bank[nearest]], np.exp(10 * cosines[nearest]))
            right += votes.argmax() == labels[query]
    return right / len(labels)


@pytest.fixture(scope="module")
def compared(classifier, tmp_path_factory) -> tuple[dict[str, np.ndarray], dict]:
    """The arrays before and after training, and the rows of the picture."""
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding, "scatter", lambda *args: drawn.append(args[0]) or scatter(*args))
        return embedded(classifier, tmp_path_factory.mktemp("both"), before=True), *drawn


def test_before_is_what_training_began_with_bit_for_bit(compared, tmp_path):
    both, _ = compared
    task, changes = Classify(Small(num_classes=10)), {"data.mean": (0.3,), "data.std": (0.5,)}
    untrained = run(task, tmp_path, **changes, **{"loop.duration": "0 steps"})
    start = embedded(untrained, tmp_path / "start")
    for name in ("features", "pca", "tsne"):
        np.testing.assert_array_equal(both[f"before_{name}"], start[name])
    assert (both["features"] != start["features"]).any()
    assert both.keys() - start.keys() == {"before_features", "before_pca", "before_tsne"}
    made, said = (json.loads(str(arrays["made"])) for arrays in (both, start))
    assert made["before_checkpoint"] == said["checkpoint"]
    assert made["before_knn_accuracy"] == said["knn_accuracy"]
    assert (said["checkpoint"]["step"], made["checkpoint"]["step"]) == (0, 3)


def test_each_row_of_maps_has_the_accuracy_of_its_nearest_neighbours(compared):
    arrays, rows = compared
    made = json.loads(str(arrays["made"]))
    for (name, drawn), (when, front) in zip(
        rows.items(), {"before": "before_", "after": ""}.items(), strict=True
    ):
        accuracy = made[f"{front}knn_accuracy"]
        assert accuracy == pytest.approx(voted(arrays[f"{front}features"], arrays["label"]))
        assert name == f"{when}: accuracy of 10 neighbours {accuracy:.1%}"
        assert list(drawn) == ["PCA", "t-SNE, perplexity 13, seed 3"]
        for points, array in zip(drawn.values(), ("pca", "tsne"), strict=True):
            np.testing.assert_array_equal(points, arrays[f"{front}{array}"])


def test_before_is_the_weights_that_a_run_took(classifier, compared, tmp_path):
    file = tmp_path / "net.safetensors"
    export(classifier, file)
    changes = {"data.mean": (0.3,), "data.std": (0.5,), "weights": Weights(str(file)), "seed": 1}
    task = Classify(Small(num_classes=10))
    tuned = run(task, tmp_path, **changes, **{"loop.ema_decay": 0.9})
    found = embedded(tuned, tmp_path / "out", before=True)
    np.testing.assert_array_equal(found["before_features"], compared[0]["features"])
    assert (found["features"] != found["before_features"]).any()
    file.unlink()
    with pytest.raises(WeightsError, match=r"there is no .*net.safetensors: make it of a finished"):
        embedded(tuned, tmp_path / "gone", before=True)
    assert not (tmp_path / "gone").exists()


def test_images_without_a_class_have_no_accuracy(classifier, tmp_path, monkeypatch):
    def unlabelled(examples):
        images = materialize(examples)
        return images | {"label": np.where(np.arange(12) == 5, -1, images["label"])}

    monkeypatch.setattr(embedding, "materialize", unlabelled)
    arrays = embedded(classifier, tmp_path, count=12)
    assert "knn_accuracy" not in json.loads(str(arrays["made"]))
    assert arrays["label"].min() == -1


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
        assert "knn_accuracy" not in json.loads(str(arrays["made"]))
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
    found = embedded(directory, tmp_path / "out", count=20, layer="head", before=True)
    assert found["features"].shape == (20, 6)
    untrained = run(Contrast(model, (random_flip,)), tmp_path, **{"loop.duration": "0 steps"})
    start = embedded(untrained, tmp_path / "start", count=20, layer="head")
    np.testing.assert_array_equal(found["before_features"], start["features"])


def test_the_command_line(classifier, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runtime, "set_up", lambda asked: None)  # jax is imported by now

    def opsin(*arguments: str) -> int:
        with pytest.raises(SystemExit) as end:
            main(arguments)
        return int(end.value.code or 0)

    assert opsin("embed", str(classifier), "digits", "--n", "20", "--before") == 0
    with np.load(classifier / "embedding" / "embedding.npz") as arrays:
        assert arrays["before_features"].shape == (20, 8)
    capsys.readouterr()
    assert opsin("embed", str(classifier)) == 2
    assert "embedding.png is there already" in capsys.readouterr().err
    assert opsin("embed", str(classifier), "--split", "val", "--output", "val") == 2
    assert 'has no split "val"' in capsys.readouterr().err
    assert opsin("embed", str(classifier), "--layer", "middle") == 2
    assert "invalid choice 'middle' for argument '--layer'" in capsys.readouterr().err
    assert opsin("embed", str(tmp_path)) == 2
    assert "is no directory of a run" in capsys.readouterr().err
