"""What a finished run makes, and what it can be made into."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.sources import digits
from experiments.config import override
from experiments.exporting import export
from experiments.extractors import LENET
from experiments.prediction import load
from experiments.runs import Options, RunError, execute
from experiments.sampling import sample
from losses.likelihoods import Gaussian
from models.classification.lenet import LeNet5
from models.generative.autoencoder import DenseDecoder, DenseEncoder
from models.generative.vae import VAE
from train.experiment import Data, Experiment, Loop
from train.extractor import Extractor, ExtractorError
from train.tasks.classify import Classify
from train.tasks.task import SettingError
from train.tasks.variational import Variational


def run(task, directory: Path, **changes) -> Path:
    experiment = Experiment(
        task=task,
        data=Data(source="digits", batch=64),
        loop=Loop(duration="20 steps", evaluate_every="20 steps", previews=0, ema_decay=0.9),
    )
    experiment = override(experiment, {"parallel.data": 1, **changes})
    return execute("made", "arm", experiment, Options(directory, progress=False)).directory


def generator(num_classes: int | None) -> Variational:
    model = VAE(
        image=(8, 8, 1),
        latents=(2,),
        num_classes=num_classes,
        encoder=partial(DenseEncoder, widths=(8,)),
        decoder=partial(DenseDecoder, widths=(8,)),
    )
    return Variational(model=model, likelihood=Gaussian(std=0.2))


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return run(generator(None), tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def conditional(tmp_path_factory) -> Path:
    return run(generator(10), tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    return run(Classify(model=LeNet5(num_classes=10)), tmp_path_factory.mktemp("runs"))


def test_an_image_of_a_seed_is_the_same_however_many_are_made(plain, tmp_path):
    picture, arrays = sample(plain, 10, label=None, seed=3, output=tmp_path / "ten")
    ten = np.load(arrays)
    assert ten["image"].shape == (10, 8, 8, 1)
    assert ten["image"].dtype == np.uint8
    assert (int(ten["seed"]), int(ten["step"])) == (3, 20)
    assert "label" not in ten
    _, arrays = sample(plain, 2, label=None, seed=3, output=tmp_path / "two")
    np.testing.assert_array_equal(np.load(arrays)["image"], ten["image"][:2])
    with Image.open(picture) as image:
        assert image.size[0] > 4 * 8


def test_classes_come_in_turn_or_as_asked(conditional, tmp_path):
    _, arrays = sample(conditional, 12, label=None, seed=0, output=tmp_path)
    np.testing.assert_array_equal(np.load(arrays)["label"], np.arange(12) % 10)
    turns = np.load(arrays)["image"]
    _, arrays = sample(conditional, 4, label=2, seed=0, output=tmp_path)
    np.testing.assert_array_equal(np.load(arrays)["label"], [2] * 4)
    np.testing.assert_array_equal(np.load(arrays)["image"][2], turns[2])
    with pytest.raises(SettingError, match="class 10 is not one of 0 to 9"):
        sample(conditional, 4, label=10, seed=0, output=tmp_path)


def test_what_cannot_be_asked_is_told(plain, classifier, tmp_path):
    with pytest.raises(SettingError, match="trained without classes"):
        sample(plain, 4, label=0, seed=0, output=tmp_path)
    with pytest.raises(RunError, match="sample is for models that make images, not Classify"):
        sample(classifier, 4, label=None, seed=0, output=tmp_path)
    with pytest.raises(RunError, match="predict is for classification and segmentation"):
        load(plain)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="choose another place with --output"):
        sample(plain, 1, label=None, seed=0, output=tmp_path / "file")


def test_a_classifier_becomes_an_extractor(classifier, plain, tmp_path):
    path = tmp_path / "lenet.safetensors"
    sha256 = export(classifier, path)
    extractor = Extractor("lenet", LeNet5(num_classes=10), str(path), sha256)
    pixels = digits("test").records.arrays["image"][:7]  # pyright: ignore
    features, probabilities = extractor.load()(pixels)
    assert features.shape == (7, 84)
    expected = load(classifier).probabilities(pixels)  # the moving average, in both
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    with pytest.raises(RunError, match="an extractor is a classifier, not Variational"):
        export(plain, path)
    (classifier / "DONE").rename(classifier / "UNDONE")
    with pytest.raises(RunError, match="not trained to its end"):
        export(classifier, path)
    (classifier / "UNDONE").rename(classifier / "DONE")
    with pytest.raises(ExtractorError, match="cannot write"):
        export(classifier, path / "below")


def test_the_extractor_of_the_house_is_there_and_reads_digits():
    """Its file is committed: results by other weights would not compare."""
    assert LENET.sha256 is not None
    features, probabilities = LENET.load()(np.zeros((3, 28, 28, 1), np.uint8))
    assert features.shape == (3, 84)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
