import os
import re
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from opsin.data.examples import DataError, labels, materialize
from opsin.data.fingerprint import source_fingerprint
from opsin.data.folder import folder, folder_files
from opsin.data.images import read_image
from opsin.data.pipeline import train_batches
from opsin.data.sources import blank, open_source
from opsin.data.squares import squared
from opsin.data.validation import with_validation

_CLASSES = ("ant", "bee")


def _save(file, value, shape=(6, 6, 3)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(shape, value, np.uint8)).save(file)


def _fill(root, classes=_CLASSES, count=20):
    for place, name in enumerate(classes):
        for index in range(count):
            _save(root / name / f"{index:03}.png", 100 * place + index)


@pytest.fixture
def split_folder(tmp_path):
    _fill(tmp_path / "train", count=3)
    _fill(tmp_path / "test", count=2)
    return tmp_path


def test_reads_train_and_test_folders(split_folder):
    examples = folder(split_folder, "train", size=6)
    arrays = materialize(examples)
    assert examples.class_names == _CLASSES
    assert arrays["image"].shape == (6, 6, 6, 3)
    assert arrays["image"].dtype == np.uint8
    assert arrays["label"].dtype == np.int32
    np.testing.assert_array_equal(arrays["image"][:, 0, 0, 0], [0, 1, 2, 100, 101, 102])
    np.testing.assert_array_equal(arrays["label"], [0, 0, 0, 1, 1, 1])
    assert len(folder(split_folder, "test").records) == 4


def test_labels_are_those_of_train_where_test_lacks_a_class(split_folder):
    for file in (split_folder / "test" / "ant").iterdir():
        file.unlink()
    (split_folder / "test" / "ant").rmdir()
    examples = folder(split_folder, "test")
    assert examples.class_names == _CLASSES
    np.testing.assert_array_equal(labels(examples), [1, 1])


def test_one_folder_is_split_by_name_and_stays_so(tmp_path):
    _fill(tmp_path, count=100)

    def values(split):
        return set(materialize(folder(tmp_path, split, size=6))["image"][:, 0, 0, 0].tolist())

    train, test = values("train"), values("test")
    assert train | test == {100 * place + index for place in (0, 1) for index in range(100)}
    assert not train & test
    assert 25 <= len(test) <= 55  # binomial, 200 at 0.2, within 2.7 standard deviations
    _save(tmp_path / "ant" / "new.png", 250)
    assert values("train") - {250} == train
    assert values("test") - {250} == test


def test_a_class_may_be_called_train(tmp_path):
    _fill(tmp_path, classes=("bus", "train"))
    assert folder(tmp_path, "train").class_names == ("bus", "train")


def test_finds_deeper_images_and_ignores_what_desktops_leave(split_folder):
    _save(split_folder / "train" / "ant" / "more" / "deep.png", 50)
    for name in (".DS_Store", "Thumbs.db", "more/.hidden", ".cache/notes.txt"):
        file = split_folder / "train" / "ant" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"x")
    (split_folder / "train" / ".git").mkdir()
    values = materialize(folder(split_folder, "train", size=6))["image"][:, 0, 0, 0]
    np.testing.assert_array_equal(values, [0, 1, 2, 50, 100, 101, 102])


@pytest.mark.parametrize(("height", "width"), [(8, 20), (20, 8), (8, 8)])
def test_the_centre_square_is_kept(split_folder, height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(image).save(split_folder / "train" / "ant" / "000.png")
    top, left = (height - 8) // 2, (width - 8) // 2
    kept = folder(split_folder, "train", size=8).records[0]["image"]
    np.testing.assert_array_equal(kept, image[top : top + 8, left : left + 8])


def test_resizing_is_bilinear_and_antialiased(split_folder):
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(image).save(split_folder / "train" / "ant" / "000.png")
    triangle = 1 - np.abs(np.arange(8) - 3.5) / 8  # as wide as eight pixels to each side
    weights = np.outer(triangle, triangle) / triangle.sum() ** 2
    one = folder(split_folder, "train", size=1).records[0]["image"]
    np.testing.assert_allclose(one[0, 0], np.tensordot(weights, image, 2), atol=1.5)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_8_bit_mode_becomes_grey_or_rgb(split_folder, mode, channels):
    file = split_folder / "train" / "ant" / "000.png"
    file.unlink()
    file = file.with_suffix(".tif") if mode == "CMYK" else file
    Image.new("RGB", (6, 6), "white").convert(mode).save(file)
    image = folder(split_folder, "train", size=4, channels=channels).records[0]["image"]
    np.testing.assert_array_equal(image, np.full((4, 4, channels), 255, np.uint8))


def test_a_transparent_palette_gives_its_colour_without_a_warning(split_folder):
    image = Image.new("P", (6, 6), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(split_folder / "train" / "ant" / "000.png", transparency=b"\xff\x80")
    read = folder(split_folder, "train").records[0]["image"]
    np.testing.assert_array_equal(read[0, 0], [10, 20, 30])


def test_an_image_is_turned_upright(split_folder):
    upright = np.zeros((6, 6, 3), np.uint8)
    upright[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # orientation: stored upside down
    stored = Image.fromarray(upright[::-1])
    stored.save(split_folder / "train" / "ant" / "000.png", exif=exif)
    read = folder(split_folder, "train", size=6).records[0]["image"]
    np.testing.assert_array_equal(read, upright)


def _truncated(file: Path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _deep(file: Path):
    Image.fromarray(np.full((6, 6), 4096, np.uint16)).save(file)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("notes.png", lambda file: file.write_text("not an image")),
        ("empty.png", lambda file: file.write_bytes(b"")),
        ("cut.png", _truncated),
        ("cut.jpg", _truncated),
        ("deep.png", _deep),
    ],
)
def test_a_bad_file_is_named_at_the_start_or_when_read(split_folder, name, write):
    bad = split_folder / "train" / "bee" / name
    write(bad)
    with pytest.raises(DataError, match=f"cannot read image {bad}") as caught:
        folder(split_folder, "train")
    assert "\n" not in str(caught.value)
    examples = folder(split_folder, "train", limit_bytes=0)  # as if the set were large
    np.testing.assert_array_equal(labels(examples), [0, 0, 0, 1, 1, 1, 1])  # reads no image
    with pytest.raises(DataError, match=f"cannot read image {bad}"):
        next(train_batches(examples, batch=7, seed=0))


def test_notes_beside_images_are_left_out_with_one_warning(split_folder, caplog):
    before = folder(split_folder, "train")
    for name in ("bee/labels.csv", "bee/NOTES.TXT", "bee/more/x.xml"):
        path = split_folder / "train" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("no image")
    with caplog.at_level("WARNING"):
        after = folder(split_folder, "train")
    np.testing.assert_array_equal(labels(after), labels(before))
    (line,) = {record.getMessage() for record in caplog.records}
    assert line.endswith("bee/NOTES.TXT: it is no image by its name, as 2 more are")


def test_a_large_folder_reads_the_same(split_folder):
    at_once = materialize(folder(split_folder, "train"))
    one_by_one = materialize(folder(split_folder, "train", limit_bytes=0))
    for name, array in at_once.items():
        np.testing.assert_array_equal(one_by_one[name], array)
        assert one_by_one[name].dtype == array.dtype


def _no_classes(root):
    _save(root / "000.png", 0)


def _one_class(root):
    _fill(root, classes=("ant",))


def _class_without_images(root):
    _fill(root)
    (root / "cat").mkdir()


def _test_with_a_class_of_its_own(root):
    _fill(root / "train", count=1)
    _fill(root / "test", classes=("cow",), count=1)


@pytest.mark.parametrize(
    ("make", "split", "message"),
    [
        (lambda root: None, "train", "has no images: add some, for classes in two or more sub-"),
        (_no_classes, "validation", 'no split "validation"; it has train, test'),
        (_one_class, "train", 'two or more sub-folders.*has only "ant"'),
        (_class_without_images, "train", "class folder .*cat has no images"),
        (_test_with_a_class_of_its_own, "test", "test/cow is not a class of .*train"),
        (_fill, "validation", 'no split "validation"; it has train, test'),
        (lambda root: _fill(root / "train"), "test", 'no split "test"; it has train'),
        (lambda root: (root / "test").mkdir() or _fill(root / "train"), "test", "has no images"),
        (lambda root: _fill(root, count=1), "test", "has no images; make folders .*train and"),
    ],
)
def test_a_wrong_layout_is_explained(tmp_path, make, split, message):
    make(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        folder(tmp_path, split)
    assert "\n" not in str(caught.value)


def test_images_without_folders_are_a_set_without_classes(tmp_path):
    for index in range(20):
        _save(tmp_path / f"{index:03}.png", index)
    splits = {split: folder(tmp_path, split, size=8) for split in ("train", "test")}
    assert sum(len(examples.records) for examples in splits.values()) == 20
    for split, examples in splits.items():
        assert examples.class_names == ()
        arrays = materialize(examples)
        assert arrays.keys() == {"image"}
        lazily = folder(tmp_path, split, size=8, limit_bytes=0)
        np.testing.assert_array_equal(materialize(lazily)["image"], arrays["image"])
        with pytest.raises(DataError, match='have no "label"'):
            labels(examples)


def test_a_missing_folder_and_wrong_options_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no folder .*nowhere"):
        folder(tmp_path / "nowhere", "train")
    with pytest.raises(DataError, match="images of 2 channels: use 1 or 3"):
        folder(tmp_path, "train", channels=2)


def test_links_are_followed_and_what_leads_nowhere_is_told(tmp_path, caplog):
    root, elsewhere = tmp_path / "set", tmp_path / "elsewhere"
    _fill(root / "train", count=3)
    _fill(elsewhere, classes=("more",), count=5)
    ant = root / "train" / "ant"
    (ant / "linked").symlink_to(elsewhere / "more")
    (ant / "000_linked.png").symlink_to(elsewhere / "more" / "000.png")
    assert len(labels(folder(root, "train"))) == 3 + 5 + 1 + 3
    assert not caplog.messages  # a link to elsewhere is no cause for one
    (ant / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (ant / "round").symlink_to(root / "train")
    (root / "train" / "cat").symlink_to(tmp_path / "no_cat")
    os.mkfifo(ant / "pipe")
    (ant / "itself.png").symlink_to(ant / "itself.png")
    again = folder(root, "train")
    assert (len(again.records), again.class_names) == (12, _CLASSES)
    told = "\n".join(caplog.messages)
    assert len(caplog.messages) == 5
    for place, why in {
        ant / "gone.png": f"is a link to {tmp_path / 'nowhere.png'}, which is not there",
        ant / "round": "links back to a folder above it",
        root / "train" / "cat": "which is not there",
        ant / "itself.png": "which is not there",
        ant / "pipe": "neither a file nor a folder",
    }.items():
        assert f"left out {place}: it" in told
        assert why in told


def test_a_folder_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    _fill(tmp_path / "train", count=2)
    shut, real = tmp_path / "train" / "ant" / "shut", os.scandir
    shut.mkdir()

    def scandir(path):
        if path == shut:
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)  # root may read everything
    with pytest.raises(DataError, match=f"cannot read the folder {shut} .Permission denied.: "):
        folder(tmp_path, "train")


def test_files_are_listed_and_not_looked_up_one_by_one(tmp_path, monkeypatch):
    for name in ("ant", "bee"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for index in range(50):
            (tmp_path / "train" / name / f"{index}.png").touch()
    looked, real = [], Path.stat
    monkeypatch.setattr(Path, "stat", lambda path, **x: looked.append(path) or real(path, **x))
    _, files = folder_files(tmp_path, "train")
    assert len(files) == 100
    assert [path for path in looked if path.suffix == ".png"] == []


def test_names_that_are_no_utf8(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    for index in range(10):
        _save(tmp_path / name / f"{name}{index}.png", index)
        _save(tmp_path / "bar" / f"{index}.png", index)
    train, test = (folder(tmp_path, split) for split in ("train", "test"))
    assert len(train.records) + len(test.records) == 20
    assert train.class_names == ("bar", "caf\\xe9")
    train.class_names[1].encode()  # text that can be printed and drawn


@pytest.mark.parametrize("height", [16, 160, 161])
@pytest.mark.parametrize("suffix", ["png", "tiff", "bmp", "ppm"])
def test_sides_with_a_sixteen_are_no_depth(tmp_path, height, suffix):
    file = tmp_path / f"16.{suffix}"
    _save(file, 7, (height, 216, 3))
    image = read_image(file, 3)
    assert (image.size, image.getpixel((0, 0))) == ((216, height), (7, 7, 7))


def test_colours_of_sixteen_bits_are_still_refused(tmp_path):
    # A PNG of 1x1 pixel with 16 bits a channel: Pillow does not write one.
    def chunk(kind, content):
        check = zlib.crc32(kind + content).to_bytes(4)
        return len(content).to_bytes(4) + kind + content + check

    header = chunk(b"IHDR", (1).to_bytes(4) * 2 + bytes([16, 2, 0, 0, 0]))
    pixels = chunk(b"IDAT", zlib.compress(bytes(7)))
    (tmp_path / "deep.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")
    )
    with pytest.raises(DataError, match="more than 8 bits a channel"):
        read_image(tmp_path / "deep.png", 3)


def _pages(file, first, *others, **options):
    first, *others = (Image.fromarray(np.full((8, 8, 3), x, np.uint8)) for x in (first, *others))
    first.save(file, save_all=True, append_images=others, **options)


def test_previews_are_no_pages(tmp_path):
    _pages(tmp_path / "camera.jpg", 200, 10, format="MPO")
    assert read_image(tmp_path / "camera.jpg", 1).getpixel((0, 0)) == 200
    _pages(tmp_path / "pages.tiff", 200, 10)
    with pytest.raises(DataError, match="2 pages"):
        read_image(tmp_path / "pages.tiff", 1)
    large, small = (Image.new("L", (side, side), side) for side in (64, 8))
    with TiffImagePlugin.AppendingTiffWriter(str(tmp_path / "pyramid.tiff"), True) as file:
        large.save(file, format="TIFF")
        file.newFrame()
        small.save(file, format="TIFF", tiffinfo={254: 1})
    assert read_image(tmp_path / "pyramid.tiff", 1).size == (64, 64)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("cost_$1_$2", "cost_$1_$2"),
        ("_background_", "_background_"),
        ("two words", "two words"),
        (" lead", " lead"),
        ("naïve", "naïve"),
        (os.fsdecode(b"caf\xe9"), "caf\\xe9"),
        ("UPPER.PNG", "UPPER.PNG"),
        ("-n", "-n"),
        ("a:b", "a:b"),
        ("train", "train"),
        ("0", "0"),
    ],
)
def test_a_class_has_the_name_of_its_folder(tmp_path, name, written):
    for split in ("train", "test"):
        for place, each in enumerate((name, "zebra")):
            _save(tmp_path / split / each / "x.png", place)
    for split in ("train", "test"):
        examples = folder(tmp_path, split, size=6)
        assert examples.class_names == (written, "zebra")
        assert [int(x["image"][0, 0, 0]) for x in map(examples.records.__getitem__, (0, 1))] == [
            0,
            1,
        ]
        examples.class_names[0].encode()  # text that can be printed and drawn


def test_files_beside_the_classes_are_told_once_a_split(tmp_path, caplog):
    _fill(tmp_path / "train", count=2)
    for name in ("README.txt", "stray.png", "Thumbs.db", ".hidden"):
        (tmp_path / "train" / name).write_bytes(b"x")
    assert len(folder(tmp_path, "train").records) == 4
    (told,) = caplog.messages
    assert told == (
        f"left out {tmp_path / 'train' / 'README.txt'}: it lies beside the folders of the classes "
        "and 1 more"
    )


def test_what_identifies_files_is_their_names_sizes_and_classes(tmp_path):
    root = tmp_path / "set"
    _fill(root / "train", count=3)
    _fill(root / "test", count=1)
    source = f"folder:{root}"
    before = source_fingerprint(source, "train")
    assert before == folder(root, "train").files
    assert re.fullmatch(r"6 of [\d,]+ bytes, digest [0-9a-f]{12}", before)
    for same in (partial(folder, str(root), size=8), partial(squared, source=source, size=4)):
        assert source_fingerprint(same, "train") == before
        assert open_source(same, "train").files == before
    assert source_fingerprint(source, "test") != before
    for inner in (source, partial(squared, source=source, size=4)):
        held_out = partial(with_validation, source=inner, share=0.5)
        for split in ("train", "val", "test"):
            assert source_fingerprint(held_out, split) == open_source(held_out, split).files
        assert source_fingerprint(held_out, "val") == before
    for other in ("digits", "synthetic", "tfds:no_set", lambda split: None, partial(blank, 3)):
        assert source_fingerprint(other, "train") is None
    (tmp_path / "moved").mkdir()
    root = root.rename(tmp_path / "moved" / "set")
    assert source_fingerprint(f"folder:{root}", "train") == before
    found = {before}
    for change in (
        lambda home: _save(home / "ant" / "000.png", 9, (7, 7, 3)),  # other content
        lambda home: (home / "ant" / "000.png").rename(home / "ant" / "9.png"),
        lambda home: (home / "ant" / "9.png").rename(home / "bee" / "9.png"),
        lambda home: (home / "bee" / "9.png").unlink(),
        lambda home: (home / "bee").rename(home / "wasp"),
    ):
        change(root / "train")
        found.add(source_fingerprint(f"folder:{root}", "train"))
    assert len(found) == 6
