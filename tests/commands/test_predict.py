"""``opsin predict``."""

import json
import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from skimage.data import coffee

from opsin.interchange.pretrained import NETWORKS, efficientnet_lite0

NAME = "efficientnet_lite0"


def test_it_writes_what_a_run_says_of_an_image(opsin, trained, tmp_path):
    Image.fromarray(np.zeros((9, 5, 3), np.uint8)).save("night.png")
    said = opsin("predict", str(trained), "night.png")
    assert (said.code, said.err) == (0, "")
    line, directory = said.out.splitlines()
    assert re.fullmatch(r"night\.png  stripes \d  \d+\.\d%", line)
    assert sorted(path.name for path in Path(directory).iterdir()) == [
        "labels.csv", "night_label.png",
    ]  # fmt: skip
    (tmp_path / "empty.png").touch()
    said = opsin("predict", str(trained), "empty.png", "--output", "elsewhere")
    assert (said.code, said.out) == (2, "")
    assert re.fullmatch(r"opsin: cannot read image empty\.png: .*\n", said.err)
    assert not Path("elsewhere").exists()


def test_names_of_a_stranger_are_in_one_line_and_of_the_classes_that_there_are(opsin, trained):
    """Without the digest of what holds them: whoever writes names can write that too, or none."""
    Image.fromarray(np.zeros((6, 6, 3), np.uint8)).save("night\n.png")
    for step in ("2", "3"):
        file = trained / "checkpoints" / step / "metadata" / "metadata"
        saved = json.loads(file.read_text())
        del saved["sha256"]
        saved["data"]["class_names"] = [f"\x1b[31m{label}\nx\ty" for label in "abcd"]
        file.write_text(json.dumps(saved))
    said = opsin("predict", str(trained), "night\n.png")
    assert (said.code, said.err) == (0, "")
    line, directory = said.out.splitlines()
    assert re.fullmatch(r"night\\n\.png  \\x1b\[31m[abcd]\\nx\\ty  \d+\.\d%", line)
    table = Path(directory, "labels.csv").read_text()
    assert table.count("\n") == 2
    assert "\x1b" not in table
    saved["data"]["class_names"] = ["one", "two"]
    file.write_text(json.dumps(saved))
    told = opsin("predict", str(trained), "night\n.png").complaint()
    assert "its checkpoint names 2 classes, and its network tells 4" in told


def test_it_takes_a_run_and_an_image(opsin):
    assert "name at least one image" in opsin("predict", "nowhere").complaint()
    said = opsin("predict", "nowhere", "night.png")
    assert said.code == 2
    assert said.complaint().startswith("opsin: nowhere is no directory of a run")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"seed": "{here}/evil.py:f"}, "Expected `int`, got `str` - at `$.seed`"),
        ({"measurements": ["{here}/evil.py:f"]}, "evil.py:f: it is no code of opsin"),
        (None, "config.json cannot be read (Expected `object`, got `array`)"),
    ],
)
def test_a_run_of_a_stranger_executes_nothing(opsin, trained, changes, complaint):
    here = Path.cwd()
    (here / "evil.py").write_text("open('executed', 'w').close()\ndef f(): ...")
    config = json.loads((trained / "config.json").read_text())
    named = json.dumps(config | changes).replace("{here}", str(here)) if changes else "[1]"
    (trained / "config.json").write_text(named)
    told = opsin("predict", str(trained), "image.png")
    assert told.code == 2
    assert complaint in told.complaint()
    assert not (here / "executed").exists()


def test_a_published_network_is_asked_by_its_name(opsin, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(NETWORKS, NAME, replace(NETWORKS[NAME], package="no_package"))
    Image.fromarray(np.zeros((9, 5, 3), np.uint8)).save("night.png")
    said = opsin("predict", NAME, "night.png")
    told = "opsin: no_package is not installed: pip install 'opsin[pretrained]'"
    assert (said.code, said.complaint()) == (2, told)
    Path(NAME).mkdir()  # a run of that name comes first
    assert "is no directory of a run" in opsin("predict", NAME, "night.png").complaint()


@pytest.mark.proofs
def test_a_published_network_says_what_is_on_a_photograph(opsin, monkeypatch, tmp_path):
    if find_spec(NETWORKS[NAME].package) is None:
        pytest.skip("needs the extra pretrained")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Image.fromarray(coffee()).save("coffee.png")
    said = opsin("predict", NAME, "coffee.png")
    assert (said.code, said.err) == (0, "")
    line, directory = said.out.splitlines()
    assert re.fullmatch(r"coffee\.png  espresso  9\d\.\d%(, [a-z ]+  \d\.\d%){4}", line)
    assert sorted(path.name for path in Path(directory).iterdir()) == [
        "coffee_label.png", "labels.csv",
    ]  # fmt: skip
    assert (
        (Path(directory) / "labels.csv")
        .read_text()
        .splitlines()[1]
        .startswith("coffee.png,967,espresso,0.9")
    )


@pytest.mark.proofs
def test_a_run_begins_with_a_published_backbone(opsin, monkeypatch, tmp_path):
    """Of other classes; and it opens again, from its config alone."""
    if find_spec(NETWORKS[NAME].package) is None:
        pytest.skip("needs the extra pretrained")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = ["tiny", "task.model=models.classification.efficientnet:EfficientNetLite0"]
    words += [f"weights=pretrained:{NAME}", "loop.duration=0 steps"]
    told = opsin("run", *words, "--quiet").err.strip()
    mean, std = re.search(r"set (data\.mean=\S+) (data\.std=\S+)$", told).groups()
    done = opsin("run", *words, mean, std)
    assert done.code == 0, done.err
    run = done.out.splitlines()[-1]
    assert re.search(r"weights: \d+ arrays of 'backbone' from efficientnet_lite0 ", done.err)
    assert opsin("export", run, "ours.safetensors").code == 0
    ours = load_file("ours.safetensors")
    theirs, _ = efficientnet_lite0.read()
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        if "/head/" not in name:
            np.testing.assert_array_equal(array, theirs[name])
    assert ours["params/head/bias"].shape != theirs["params/head/bias"].shape
    Image.fromarray(np.zeros((9, 5, 3), np.uint8)).save("night.png")
    assert opsin("predict", run, "night.png").code == 0
