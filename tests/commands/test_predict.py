"""``opsin predict``."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


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


def test_it_takes_a_run_and_an_image(opsin):
    assert "name at least one image" in opsin("predict", "nowhere").complaint()
    said = opsin("predict", "nowhere", "night.png")
    assert said.code == 2
    assert said.complaint().startswith("opsin: nowhere is no directory of a run")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"seed": "{here}/evil.py:f"}, "Expected `int`, got `str` - at `$.seed`"),
        ({"measurements": ["{here}/evil.py:f"]}, "evil.py:f is no code of opsin"),
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
