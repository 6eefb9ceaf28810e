"""Images as they are met in the commands that take some, and what happens to the files there."""

import csv
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from opsin.commands import prediction
from opsin.commands.prediction import Predictor, predict
from opsin.commands.runs import RunError
from opsin.commands.sampling import read_masked
from opsin.data.examples import DataError
from opsin.data.files import WriteError
from opsin.data.images import read_image
from opsin.pictures import figures
from opsin.pictures.kinds import Labels, Masks
from tests.data.wild import WILD, Right

TRANSPARENT = ("RGBA.webp", "RGBA.tif", "PA.tif", "transparent.gif", "P-opacities.png")


def predictor(kind: type, asked: list[np.ndarray]) -> Predictor:
    """What keeps the images that it is asked about, and says class 1 of all."""
    result = (2,) if kind is Labels else (4, 6, 2)

    def probabilities(images: np.ndarray) -> np.ndarray:
        asked.append(images)
        return np.broadcast_to(np.float32([0.25, 0.75]), (len(images), *result))

    return Predictor(kind, ("a_$1$", "_b"), (4, 6, 3), (4, 6), result, False, probabilities)


@pytest.fixture
def undrawn(monkeypatch):
    """Pages with a caption, which take most of the time, are empty files."""
    monkeypatch.setattr(figures, "image_grid", lambda *images, **options: Figure())
    monkeypatch.setattr(figures, "mask_grid", lambda *images, **options: Figure())
    monkeypatch.setattr(figures, "save", lambda figure, path: path.touch())


@pytest.fixture(scope="module")
def wild(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("wild")
    for name, (content, _) in WILD.items():
        (place / name).write_bytes(content)
    return place


@pytest.mark.parametrize("kind", [Labels, Masks])
def test_predict_takes_every_file_that_is_an_image(wild, tmp_path, undrawn, kind):
    asked = []
    good = [name for name, (_, right) in WILD.items() if isinstance(right, Right)]
    lines = list(predict(predictor(kind, asked), [wild / name for name in good], tmp_path / "out"))
    assert len(lines) == len(good)
    whole = np.concatenate(asked)
    assert whole.shape[1:] == (4, 6, 3)
    if kind is Masks:
        for name in good:
            found = tmp_path / "out" / f"{Path(name).stem}_mask.png"
            if sum(Path(other).stem == Path(name).stem for other in good) > 1:
                continue  # numbered
            right = WILD[name][1]
            mask = np.asarray(Image.open(found))
            assert mask.shape == (right.height, right.width)
            assert (mask == 1).all()
        return
    for name, image in zip(good, whole, strict=True):
        right = WILD[name][1]
        if (right.height, right.width) == (4, 6):  # nothing was resized
            np.testing.assert_array_equal(image, read_image(wild / name, 3, deep=True))
    with (tmp_path / "out" / "labels.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["_b"] * len(good)
    assert rows[good.index("caf\udce9.png")]["file"] == f"{wild}/caf\\xe9.png"
    "\n".join(lines).encode()  # can be printed


def test_predict_asks_as_it_is_told_and_says_so_many_classes(tmp_path, undrawn):
    asked = []
    corner = replace(
        predictor(Labels, asked),
        told=2,
        shown=lambda image: np.asarray(image)[:4, :6],
        resized=True,
    )
    path = saved(tmp_path / "a.png")
    (line,) = predict(corner, [path], tmp_path / "out")
    assert line == f"{path}  _b  75.0%, a_$1$  25.0%"
    np.testing.assert_array_equal(asked[0][0], np.asarray(read_image(path, 3))[:4, :6])


@pytest.mark.parametrize("name", [n for n, (_, right) in WILD.items() if isinstance(right, str)])
def test_predict_refuses_the_others_before_it_writes(wild, tmp_path, name):
    paths = [wild / "RGB.png", wild / name]
    with pytest.raises(DataError, match=f"cannot read image .*: .*({WILD[name][1]})") as caught:
        list(predict(predictor(Labels, []), paths, tmp_path / "out"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_all_files_that_cannot_be_read_are_named_at_once(tmp_path, undrawn):
    paths = [saved(tmp_path / f"{name}.png") for name in "abcd"]
    for path in paths[1:3]:
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(
        DataError, match=r"^2 of 4 files: cannot read image \S*b.png: .*; cannot \S* .*c.png"
    ):
        list(predict(predictor(Labels, []), paths, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", WILD)
def test_inpaint_takes_what_is_opaque_and_of_the_size(wild, tmp_path, name):
    hole = np.zeros((4, 6), np.uint8)
    hole[1, 1] = 255
    Image.fromarray(hole).save(tmp_path / "mask.png")
    right, files = WILD[name][1], (wild / name, tmp_path / "mask.png")
    if isinstance(right, str) or right.bits > 8:
        message = right if isinstance(right, str) else "more than 8 bits"
        if "16" in name and "A" in name:
            message = "more than 8 bits|transparent parts"
        with pytest.raises((DataError, RunError), match=message) as caught:
            read_masked(*files, (4, 6, 3))
    elif (right.height, right.width) != (4, 6):
        with pytest.raises(
            RunError, match=f"has {right.width}x{right.height} pixels, the"
        ) as caught:
            read_masked(*files, (4, 6, 3))
    elif "transparent" in name or name in TRANSPARENT or name in ("LA.png", "RGBA.png"):
        with pytest.raises(RunError, match="has transparent parts") as caught:
            read_masked(*files, (4, 6, 3))
    else:
        known, unknown = read_masked(*files, (4, 6, 3))
        np.testing.assert_allclose(known[0, 0] * 255, right.first, atol=right.near + 1e-4)
        np.testing.assert_array_equal(unknown, hole > 0)
        return
    assert "\n" not in str(caught.value)


def saved(path: Path, value: int = 7) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (6, 4), value).save(path)
    return path


def test_a_folder_stands_for_its_images(tmp_path, undrawn, caplog):
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    for number, name in enumerate(("b.png", "a.PNG", "deep/c.png", ".hidden.png", "Thumbs.db")):
        saved(tmp_path / "x.png", number).rename(tmp_path / "photos" / name)
    (tmp_path / "photos" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    paths = [tmp_path / "photos", saved(tmp_path / "d.png")]
    lines = list(predict(predictor(Labels, []), paths, tmp_path / "out"))
    found = [line.split("  ")[0].removeprefix(f"{tmp_path}/") for line in lines]
    assert found == ["photos/a.PNG", "photos/b.png", "photos/deep/c.png", "d.png"]
    assert "gone.png: it is a link to" in caplog.text
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty has no images"):
        list(predict(predictor(Labels, []), [tmp_path / "empty"], tmp_path / "more"))


@pytest.mark.parametrize(
    ("kind", "there"),
    [
        (Labels, "labels.csv"),
        (Labels, "x_label.png"),
        (Masks, "x_mask.png"),
        (Masks, "x_blended.png"),
        (Masks, "x_legend.png"),
    ],
)
def test_no_file_is_replaced(tmp_path, undrawn, kind, there):
    image, other = saved(tmp_path / "x.png"), tmp_path / there
    other.write_bytes(image.read_bytes())
    paths = [image, other] if there.endswith(".png") else [image]  # maybe an input too
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(WriteError, match=f"{there} is there already: .* --output") as caught:
        list(predict(predictor(kind, []), paths, tmp_path))
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_tall_image_makes_no_tall_page(tmp_path, monkeypatch):
    sizes, limit = [], prediction.DRAWN
    monkeypatch.setattr(figures, "save", lambda figure, path: sizes.append(figure))
    asked = saved(tmp_path / "cost_$1$.png")
    Image.new("L", (1, 10_000)).save(asked)
    list(predict(predictor(Masks, []), [asked], tmp_path / "out"))
    width, height = sizes[0].get_size_inches() * sizes[0].dpi
    assert max(width, height) < 2_000  # 22.8 GiB were asked for
    drawn = sizes[0].axes[0].images[0].get_array()
    assert max(drawn.shape) <= limit
    with Image.open(tmp_path / "out" / "cost_$1$_mask.png") as mask:
        assert mask.size == (1, 10_000)


def test_a_run_is_not_that_of_other_files(opsin):
    """A folder is compared when a run is resumed, and when a finished one is asked for again."""
    for split in ("train", "test"):
        for value, name in enumerate(("ant", "bee")):
            for index in range(4):
                saved(Path("photos") / split / name / f"{index}.png", 100 * value + index)
    asked = ("run", "tiny", "data.source=folder:photos", "task.model.num_classes=2", "--quiet")
    first = opsin(*asked)
    assert (first.code, first.err) == (0, "")
    (done,) = Path("runs/tiny").iterdir()

    def told(of: str) -> str:
        finished = opsin(*asked)
        (done / "DONE").unlink()
        resumed = opsin(*asked)
        (done / "DONE").touch()
        assert (finished.code, resumed.code) == (2, 2)
        for said in (finished.complaint(), resumed.complaint()):
            assert re.search(rf"the checkpoint was trained on {of}", said)
            assert "give the data that it was trained on, or move the run away" in said
        return resumed.complaint()

    assert opsin(*asked).code == 0  # nothing changed
    file = Path("photos/test/ant/0.png")
    content = file.read_bytes()
    Image.new("RGB", (50, 50)).save(file)
    told("files of 'test': '8 of .*, digest .*', and the data have '8 of .*, digest ")
    file.write_bytes(content)
    saved(Path("photos/train/ant/new.png"))
    told("")
    Path("photos/train/ant/new.png").unlink()
    for split in ("train", "test"):
        (Path("photos") / split / "ant").rename(Path("photos") / split / "red_ant")
    assert "'ant', and the data have 'bee'" in told("")  # labels would be swapped
    Path("photos").rename("gone")
    assert opsin(*asked).code == 0  # a result that is there needs no data
