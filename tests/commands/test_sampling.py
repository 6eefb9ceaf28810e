"""What a finished run makes, and what it can be made into."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opsin.commands import groups
from opsin.commands.exporting import export
from opsin.commands.groups import Images
from opsin.commands.prediction import load
from opsin.commands.runs import Options, RunError, execute
from opsin.commands.sampling import SAMPLERS, inpaint, sample
from opsin.commands.trained import open_run
from opsin.config.tree import override
from opsin.data.files import WriteError
from opsin.data.sources import digits
from opsin.experiments.extractors import LENET
from opsin.losses.likelihoods import Gaussian
from opsin.models.generative.autoencoder import DenseDecoder, DenseEncoder
from opsin.models.generative.vae import VAE
from opsin.ops.diffusion.sampling import Sampling
from opsin.ops.diffusion.schedules import Discrete, cosine_betas
from opsin.train.experiment import Data, Experiment, Loop
from opsin.train.extractor import Extractor
from opsin.train.settings import SettingError
from opsin.train.tasks.classify import Classify
from opsin.train.tasks.diffuse import Diffuse
from opsin.train.tasks.variational import Variational
from opsin.train.weights import Weights
from tests.commands.tiny import Small
from tests.train.conftest import TinyDenoiser

PIXELS = Path("digits_lenet_batch.png")  # is not read


def run(task, directory: Path, **changes) -> Path:
    experiment = Experiment(
        task=task,
        data=Data(source="digits", batch=64, eval_splits={}),
        loop=Loop(duration="2 steps", previews=0, ema_decay=0.9),
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
    """A run without classes and without a moving average."""
    return run(generator(None), tmp_path_factory.mktemp("runs"), **{"loop.ema_decay": None})


@pytest.fixture(scope="module")
def conditional(tmp_path_factory) -> Path:
    return run(generator(10), tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    return run(Classify(model=Small(num_classes=10)), tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory) -> Path:
    model = TinyDenoiser(num_classes=10)
    process = Discrete(cosine_betas, steps=20)
    task = Diffuse(model, (8, 8, 1), process, target="v", sampling=Sampling(steps=5))
    return run(task, tmp_path_factory.mktemp("runs"))


def test_an_image_of_a_seed_is_the_same_however_many_are_made(plain, tmp_path):
    picture, arrays = sample(plain, 10, Images(seed=3), path=False, output=tmp_path / "ten")
    ten = np.load(arrays)
    assert ten["image"].shape == (10, 8, 8, 1)
    assert ten["image"].dtype == np.uint8
    assert (int(ten["seed"]), int(ten["step"])) == (3, 2)
    assert json.loads(str(ten["made"])) == {"run": str(plain), "weights": "default"}
    assert "label" not in ten
    _, arrays = sample(plain, 2, Images(seed=3), path=False, output=tmp_path / "two")
    np.testing.assert_array_equal(np.load(arrays)["image"], ten["image"][:2])
    with Image.open(picture) as image:
        assert image.size[0] > 4 * 8


def test_classes_come_in_turn_or_as_asked(conditional, tmp_path):
    _, arrays = sample(conditional, 12, Images(), path=False, output=tmp_path)
    np.testing.assert_array_equal(np.load(arrays)["label"], np.arange(12) % 10)
    turns = np.load(arrays)["image"]
    _, arrays = sample(conditional, 4, Images(label=2), path=False, output=tmp_path / "two")
    np.testing.assert_array_equal(np.load(arrays)["label"], [2] * 4)
    np.testing.assert_array_equal(np.load(arrays)["image"][2], turns[2])
    with pytest.raises(SettingError, match="class 10 is not one of 0 to 9"):
        sample(conditional, 4, Images(label=10), path=False, output=tmp_path / "ten")
    with pytest.raises(WriteError, match=r"samples.png is there already: move it away, or"):
        sample(conditional, 4, Images(), path=False, output=tmp_path)


@pytest.mark.parametrize(
    ("asked", "path", "message"),
    [
        (Images(label=0), False, "trained without classes"),
        (Images(), True, "--path is for diffusion models, not Variational"),
        (Images(sampler="ddim", steps=3), False, "--steps, --sampler is for diffusion models"),
    ],
)
def test_what_a_model_cannot_make_is_told(plain, tmp_path, asked, path, message):
    with pytest.raises((RunError, SettingError), match=message):
        sample(plain, 4, asked, path=path, output=tmp_path)


def test_what_cannot_be_asked_is_told(plain, classifier, tmp_path):
    with pytest.raises(RunError, match="no images to make with Classify"):
        sample(classifier, 4, Images(), path=False, output=tmp_path)
    with pytest.raises(RunError, match="inpaint is for diffusion models, not Variational"):
        inpaint(plain, PIXELS, PIXELS, 1, Images(), resamplings=1, output=tmp_path)
    with pytest.raises(RunError, match="predict is for classification and segmentation"):
        load(plain)
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="choose another directory with --output"):
        sample(plain, 1, Images(), path=False, output=tmp_path / "file")


def test_a_diffusion_model_draws_as_it_is_asked(diffusion, tmp_path):
    pictures = {}
    for name, asked in {
        "as configured": Images(),
        "raw": Images(weights="raw"),
        "guided": Images(guidance=3.0),
        "ancestral": Images(sampler="ancestral", steps=7),
    }.items():
        written = sample(diffusion, 3, asked, path=name == "raw", output=tmp_path / name)
        pictures[name] = np.load(written[1])["image"]
    for name in pictures.keys() - {"as configured"}:
        assert not np.array_equal(pictures[name], pictures["as configured"]), name
    with np.load(tmp_path / "ancestral" / "samples.npz") as arrays:
        made = json.loads(str(arrays["made"]))["sampling"]
    assert (made["sampler"]["type"].partition(":")[2], made["steps"]) == ("Ancestral", 7)
    with Image.open(tmp_path / "raw" / "path.gif") as animation:
        assert getattr(animation, "n_frames", 1) == 5
        animation.seek(4)
        last = np.asarray(animation.convert("L"))
    # The first image, three pixels by three, behind a line.
    np.testing.assert_allclose(last[3:27:3, 3:27:3], pictures["raw"][0, ..., 0], atol=1)


def test_a_diffusion_model_fills_in(diffusion, tmp_path):
    image, mask = tmp_path / "image.png", tmp_path / "mask.png"
    known = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    unknown = np.arange(8) >= 4
    Image.fromarray(known).save(image)
    Image.fromarray(np.where(unknown, 255, 0).astype(np.uint8) + np.zeros((8, 1), np.uint8)).save(
        mask
    )
    options = {"resamplings": 2, "output": tmp_path / "out"}
    picture, arrays = inpaint(diffusion, image, mask, 3, Images(sampler="ddim"), **options)
    made = np.load(arrays)["image"]
    options["output"] = tmp_path / "more"
    assert made.shape == (3, 8, 8, 1)
    np.testing.assert_array_equal(made[:, :, ~unknown, 0], np.broadcast_to(known[:, :4], (3, 8, 4)))
    assert made[:, :, unknown].std() > 0
    assert picture.exists()
    Image.fromarray(known[:4]).save(tmp_path / "half.png")
    Image.fromarray(known * 0).save(tmp_path / "black.png")
    clear = Image.fromarray(np.full((8, 8, 4), 255, np.uint8))
    clear.putpixel((1, 1), (255, 255, 255, 0))
    clear.save(tmp_path / "clear.png")
    for image_file, mask_file, message in (
        (tmp_path / "clear.png", mask, r"clear\.png has transparent parts"),
        (image, tmp_path / "clear.png", r"clear\.png has transparent parts"),
        (tmp_path / "half.png", mask, r"half\.png has 8x4 pixels, the run makes 8x8"),
        (image, tmp_path / "black.png", "asks for nothing to be filled in"),
    ):
        with pytest.raises(RunError, match=message):
            inpaint(diffusion, image_file, mask_file, 1, Images(sampler="ddim"), **options)
    options["output"] = tmp_path
    Image.fromarray(known).save(tmp_path / "inpainted.png")
    with pytest.raises(
        WriteError, match=r"inpainted\.png is there already: move it away, or choose another"
    ):
        inpaint(diffusion, tmp_path / "inpainted.png", mask, 1, Images(sampler="ddim"), **options)
    options["output"] = tmp_path / "more"
    with pytest.raises(RunError, match="choose ddim or ancestral"):
        inpaint(diffusion, image, mask, 1, Images(sampler="dpm++2m"), **options)
    with pytest.raises(RunError, match="give one with --class"):
        inpaint(diffusion, image, mask, 1, Images(guidance=2.0), **options)
    # The run is configured with a sampler that takes no step back: DDPM stands in.
    _, arrays = inpaint(diffusion, image, mask, 2, Images(steps=6), **options)
    assert np.load(arrays)["image"].shape == (2, 8, 8, 1)
    options["output"] = tmp_path / "most"
    assert inpaint(diffusion, image, mask, 1, Images(), **options)  # its schedule has 20 steps


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Images(steps=21), "the schedule has 20 steps: take 1 to 20, not 21"),
        (Images(label=10), "class 10 is not one of 0 to 9"),
        (Images(sampler="langevin"), "does not scale the data"),
        (Images(guidance=float("nan")), "guidance must be a number"),
    ],
)
def test_what_diffusion_cannot_do_is_told(diffusion, tmp_path, asked, message):
    with pytest.raises(SettingError, match=message):
        sample(diffusion, 2, asked, path=False, output=tmp_path)


def test_every_sampler_that_can_be_typed_is_one():
    assert tuple(SAMPLERS) == groups.SAMPLERS


def test_a_run_without_a_moving_average_has_none(plain, tmp_path):
    with pytest.raises(RunError, match=r"kept no moving average.*loop\.ema_decay=0\.999"):
        sample(plain, 2, Images(weights="ema"), path=False, output=tmp_path)


def test_a_classifier_becomes_an_extractor(classifier, tmp_path):
    path = tmp_path / "small.safetensors"
    sha256 = export(classifier, path)
    extractor = Extractor("small", Small(num_classes=10), str(path), sha256)
    pixels = digits("test").records.arrays["image"][:7]  # pyright: ignore
    features, probabilities = extractor.load()(pixels)
    assert features.shape == (7, 8)
    weights = Weights(str(path), sha256)
    seen = open_run(classifier).experiment.preprocessing((8, 8, 1))
    assert weights.preprocessing(weights.read()[1]) == seen
    expected = load(classifier).probabilities(pixels)  # the moving average, in both
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    (classifier / "DONE").rename(classifier / "UNDONE")
    with pytest.raises(RunError, match="is not finished: run it again"):
        export(classifier, tmp_path / "again.safetensors")
    (classifier / "UNDONE").rename(classifier / "DONE")
    with pytest.raises(WriteError, match="cannot write"):
        export(classifier, path / "below")


def test_the_extractor_of_the_house_is_there_and_reads_digits():
    """Its file is committed: results by other weights would not compare."""
    assert LENET.sha256 is not None
    features, probabilities = LENET.load()(np.zeros((3, 28, 28, 1), np.uint8))
    assert features.shape == (3, 84)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
