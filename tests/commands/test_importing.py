"""``opsin import`` and ``opsin export --names``: weights in and out by other names."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from opsin.interchange.conversion import to_theirs
from opsin.models.classification.resnet import ResNet20
from opsin.train.weights import Weights
from tests import drawn

MODEL = ResNet20(num_classes=4)
NAME = "models.classification.resnet:ResNet20"
IMAGES = np.zeros((1, 32, 32, 3), np.float32)


@pytest.fixture(scope="module")
def variables():
    return drawn.variables(MODEL.init, IMAGES)


@pytest.fixture
def file(variables, tmp_path):
    path = tmp_path / "theirs.safetensors"
    save_file(to_theirs(variables, MODEL, "torchvision"), path)
    return path


def test_a_file_of_torchvisions_names_becomes_one_of_ours(opsin, file, variables):
    options = ["--model", NAME, "--size", "32", "--mean", "0.5,0.4,0.3", "--licence", "MIT"]
    done = opsin("import", str(file), "ours.safetensors", *options)
    assert done.code == 0, done.err
    first, scale, digest, path = done.out.splitlines()
    assert scale.startswith("of images with mean (0.5, 0.4, 0.3) and std (0.229, 0.224, 0.225);")
    assert first == (
        "116 arrays by torchvision's names: 269,332 parameters, 4 classes; 19 say nothing here "
        "(num_batches_tracked)"
    )
    assert path == "ours.safetensors"
    weights = Weights(path, digest.removeprefix("sha256 "))
    jax.tree.map(
        np.testing.assert_array_equal,
        weights.load(MODEL.init, jax.random.key(0), IMAGES),
        variables,
    )
    _, described = weights.read()
    seen = {"mean": [0.5, 0.4, 0.3], "std": [0.229, 0.224, 0.225], "image": [32, 32, 3]}
    assert described.items() >= (seen | {"classes": 4, "licence": "MIT", "resize": None}).items()
    assert described["origin"].keys() == {"file", "sha256", "names"}
    again = opsin("import", str(file), "ours.safetensors", *options)
    assert again.code == 2
    assert "ours.safetensors is there" in again.complaint()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--model", "models.classification.resnet:ResNet"], "needs options"),
        (
            ["--model", "models.classification.resnet:ResNet56"],
            "arrays are missing, first layer1.3",
        ),
        (["--model", "models.classification.lenet:LeNet5"], "LeNet5 is not known"),
        (["--model", "models.classification.resnet:ResNet21"], "has no 'ResNet21'"),
        (["--model", "nonsense"], "there is no model 'nonsense'"),
        (["--model", "losses.classification:focal_loss"], "needs options"),
        (["--model", NAME, "--mean", "0.5;0.4"], "is not numbers"),
        (["--model", NAME, "--size", "0"], "--size"),
        (["--model", NAME, "--std", "0.2,0.2"], "--mean has 3 numbers and --std 2"),
        (["--model", NAME, "--std", "0.2,0,0.2"], "--std above 0"),
        (["--model", NAME, "--mean", "0,0,1e999"], "are finite"),
        (["--model", "models.classification.vit:ViTS", "--size", "225"], "do not fit the model"),
        (["--model", "models.classification.resnet:ResNetBackbone"], "needs options"),
        (["--model", "models.classification.googlenet:GoogLeNetBackbone"], "is not known"),
        ([], "--model"),
    ],
)
def test_a_mistake_is_one_line(opsin, file, options, told):
    done = opsin("import", str(file), "ours.safetensors", *options)
    assert done.code == 2
    assert told in done.complaint()


def test_a_foreign_file_is_not_taken_for_one_of_ours(opsin, file):
    done = opsin("run", "tiny", f"weights.path={file}", "--quiet")
    assert done.code == 2
    assert "bring another library's weights in with `opsin import`" in done.complaint()


def test_a_run_goes_out_by_names_that_torchvision_reads(opsin):
    small = ["task.model.stage_sizes=(1,)", "task.model.width=4", "loop.duration=0 steps"]
    chosen = "task.model=models.classification.resnet:ResNet20"
    done = opsin("run", "tiny", chosen, *small, "--quiet")
    assert done.code == 0, done.err
    run = done.out.splitlines()[-1]
    assert opsin("export", run, "ours.safetensors").code == 0
    done = opsin("export", run, "theirs.safetensors", "--names", "torchvision")
    assert done.code == 0, done.err
    ours, theirs = (load_file(f"{name}.safetensors") for name in ("ours", "theirs"))
    assert len(ours) == 17
    assert len(theirs) == 17 + 3  # counters of the norms' steps
    done = opsin("run", "tiny", "weights.path=theirs.safetensors", "weights.part=backbone")
    assert done.code == 2
    assert "opsin import" in done.complaint()
    kernel = ours["params/backbone/stage1_block1/conv2/kernel"]
    np.testing.assert_array_equal(theirs["layer1.0.conv2.weight"], kernel.transpose(3, 2, 0, 1))
    done = opsin("export", run, "others.safetensors", "--names", "torch")
    assert done.code == 2
    assert "torchvision" in done.complaint()
