"""Image files of all kinds: each is read rightly, or refused in one line that names it."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from opsin.data.examples import DataError
from opsin.data.folder import folder
from opsin.data.images import opened, read_image
from opsin.data.mask_folder import mask_folder
from tests.data.wild import WILD, Right


@pytest.fixture(scope="module")
def wild(tmp_path_factory):
    """All files of the table, each in a folder of its own."""
    place = tmp_path_factory.mktemp("wild")
    for name, (content, _) in WILD.items():
        (place / name).mkdir()
        (place / name / name).write_bytes(content)
    return place


def refused(name: str, right: Right | str, *, deep: bool) -> str | None:
    """What the refusal says, if it is right to refuse."""
    if isinstance(right, str):
        return right
    return f"more than 8 bits a channel .{right.bits}." if right.bits > 8 and not deep else None


@pytest.mark.parametrize("name", WILD)
def test_every_file_is_read_rightly_or_refused_in_one_line(wild, name):
    file, right = wild / name / name, WILD[name][1]
    for deep in (False, True):
        if message := refused(name, right, deep=deep):
            with pytest.raises(DataError, match=message) as caught:
                read_image(file, 3, deep=deep)
            assert str(caught.value).startswith(f"cannot read image {file}: ")
            assert "\n" not in str(caught.value)
            continue
        assert isinstance(right, Right)
        colour, light = (np.asarray(read_image(file, n, deep=deep)) for n in (3, 1))
        assert colour.shape == (right.height, right.width, 3)
        assert (colour.dtype, light.dtype) == (np.uint8, np.uint8)
        np.testing.assert_allclose(colour[0, 0].astype(int), right.first, atol=right.near)
        luma = np.dot(right.first, (0.299, 0.587, 0.114))  # ITU-R BT.601
        assert abs(float(light[0, 0]) - luma) <= right.near + 0.51


@pytest.mark.parametrize("name", WILD)
def test_a_folder_has_the_same_pixels_or_the_same_line(wild, tmp_path, name):
    for split in ("train", "test"):
        (tmp_path / split / "other").mkdir(parents=True)
        Image.new("L", (2, 2)).save(tmp_path / split / "other" / "x.png")
    (tmp_path / "train" / "class").symlink_to(wild / name)
    if message := refused(name, WILD[name][1], deep=False):
        with pytest.raises(DataError, match=message) as caught:
            folder(tmp_path, "train")
        assert str(tmp_path / "train" / "class" / name) in str(caught.value)
        return
    stored = np.asarray(read_image(wild / name / name, 3))
    np.testing.assert_array_equal(folder(tmp_path, "train", size=None).records[0]["image"], stored)
    assert folder(tmp_path, "train", size=4).records[0]["image"].shape == (4, 4, 3)


@pytest.mark.parametrize("name", WILD)
def test_the_image_of_a_mask_likewise(wild, tmp_path, name):
    right = WILD[name][1]
    (tmp_path / "masks").mkdir()
    (tmp_path / "images").symlink_to(wild / name)
    (tmp_path / "classes.txt").write_text("a\nb")
    width, height = (right.width, right.height) if isinstance(right, Right) else (6, 4)
    mask = np.zeros((height, width), np.uint8)
    mask[0, 0] = 1
    stem = os.path.splitext(name)[0]
    Image.fromarray(mask).save(tmp_path / "masks" / f"{stem}.png")
    message = refused(name, right, deep=False)
    if name in ("turned-2.png", "turned-3.png", "turned-4.png"):
        message = "differ in their EXIF orientation"
    splits = ("train", "test")
    opened, told = [], []
    for split in splits:  # one image is in one of them
        try:
            opened.append(mask_folder(tmp_path, split).records[0])
        except DataError as error:
            told.append(str(error))
    (told,) = [x for x in told if "has no images" not in x] or [""]
    if message:
        with pytest.raises(DataError, match=message):
            raise DataError(told)
        assert str(tmp_path / "images" / name) in told
        return
    (example,) = opened
    stored = np.asarray(read_image(wild / name / name, 3))
    np.testing.assert_array_equal(example["image"], stored)
    np.testing.assert_array_equal(example["mask"], mask)


def test_no_other_program_is_started(wild, monkeypatch):
    def start(*words, **options):
        raise AssertionError(f"{words} was started")

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", start)
    with pytest.raises(DataError, match=r"program\.png: it is no PNG"):
        read_image(wild / "program.png" / "program.png", 3)


def test_what_may_never_end_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", Path("/dev/zero")):
        with pytest.raises(DataError, match="no image but a device or a pipe"), opened(path):
            pass


def test_what_is_not_there_or_a_folder(tmp_path):
    for path in (tmp_path / "nowhere.png", tmp_path):
        with pytest.raises(DataError, match="there is no image"):
            read_image(path, 3)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match="there is no image"):
        read_image(tmp_path / "gone.png", 3)
