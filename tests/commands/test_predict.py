"""``opsin predict``."""

import re
from pathlib import Path

import numpy as np
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
