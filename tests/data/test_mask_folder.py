import numpy as np
import pytest
from PIL import ExifTags, Image

from opsin.data.examples import DataError, materialize
from opsin.data.folder import is_test
from opsin.data.mask_folder import mask_folder
from opsin.data.masks import IGNORE
from opsin.data.pipeline import train_batches
from opsin.data.sources import open_source

_HEIGHT, _WIDTH = 6, 8


def _labels(index, height=_HEIGHT, width=_WIDTH):
    """0 and 1 in the left and the right half, one ignored row, and a 2 in a place of its own."""
    mask = np.zeros((height, width), np.uint8)
    mask[:, width // 2 :] = 1
    mask[-1] = IGNORE
    mask[0, index % width] = 2
    return mask


def _save(file, array, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(file, **options)


def _fill(home, count=3, suffix=".png", below="."):
    for index in range(count):
        image = np.full((_HEIGHT, _WIDTH, 3), 5 * index, np.uint8)
        _save(home / "images" / below / f"{index:03}{suffix}", image)
        _save(home / "masks" / below / f"{index:03}.png", _labels(index))
    return home


@pytest.fixture
def split_folder(tmp_path):
    _fill(tmp_path / "train")
    _fill(tmp_path / "test", count=2)
    return tmp_path


def _exif(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def test_reads_train_and_test_folders(split_folder):
    examples = mask_folder(split_folder, "train")
    arrays = materialize(examples)
    assert examples.class_names == ("0", "1", "2")
    assert arrays["image"].shape == (3, _HEIGHT, _WIDTH, 3)
    assert arrays["image"].dtype == arrays["mask"].dtype == np.uint8
    np.testing.assert_array_equal(arrays["image"][:, 0, 0, 0], [0, 5, 10])
    np.testing.assert_array_equal(arrays["mask"], [_labels(index) for index in range(3)])
    test = open_source(f"masks:{split_folder}", "test")
    assert len(test.records) == 2
    assert test.class_names == examples.class_names


def test_a_large_folder_reads_the_same(split_folder):
    at_once = materialize(mask_folder(split_folder, "train"))
    one_by_one = materialize(mask_folder(split_folder, "train", limit_bytes=0))
    for name, array in at_once.items():
        np.testing.assert_array_equal(one_by_one[name], array)
        assert one_by_one[name].dtype == array.dtype


def test_one_folder_is_split_by_name(tmp_path):
    _fill(tmp_path, count=40, suffix=".jpg", below="a/b")
    for file in (tmp_path / "images" / "Thumbs.db", tmp_path / "masks" / ".DS_Store"):
        file.write_bytes(b"x")
    sizes = {split: len(mask_folder(tmp_path, split).records) for split in ("train", "test")}
    names = [file.relative_to(tmp_path / "images") for file in tmp_path.glob("images/a/b/*")]
    assert sizes["test"] == sum(map(is_test, names)) > 0
    assert sizes["train"] + sizes["test"] == 40


def test_class_names_are_the_lines_of_a_file(split_folder):
    (split_folder / "classes.txt").write_bytes("\ufeffsky\r\nroad\r\ncafé\r\ncar\r\n".encode())
    names = mask_folder(split_folder, "train").class_names
    assert names == ("sky", "road", "café", "car")  # more than the masks have


@pytest.mark.parametrize("text", ["sky\n", "sky\n\nroad", "", "\n".join(map(str, range(256)))])
def test_a_wrong_list_of_classes_is_refused(split_folder, text):
    (split_folder / "classes.txt").write_text(text)
    with pytest.raises(DataError, match=r"classes.txt has \d+ lines, .*one class a line"):
        mask_folder(split_folder, "train")
    (split_folder / "classes.txt").write_bytes(b"sky\nr\xffad")
    with pytest.raises(DataError, match=r"cannot read .*classes.txt: .*UTF-8"):
        mask_folder(split_folder, "train")


def test_a_palette_counts_by_its_index_and_one_bit_by_its_value(split_folder):
    file = split_folder / "train" / "masks" / "000.png"
    palette = Image.fromarray(_labels(0), "P")
    palette.putpalette([value for index in range(256) for value in (7, 255 - index, index // 2)])
    palette.save(file, transparency=0)
    read = mask_folder(split_folder, "train").records[0]["mask"]
    np.testing.assert_array_equal(read, _labels(0))
    Image.fromarray(_labels(0) == 1).save(file)
    read = mask_folder(split_folder, "train").records[0]["mask"]
    np.testing.assert_array_equal(read, _labels(0) == 1)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_8_bit_image_becomes_grey_or_rgb(split_folder, mode, channels):
    white = Image.new("RGB", (_WIDTH, _HEIGHT), "white").convert(mode)
    white.save(split_folder / "train" / "images" / "000.png")
    image = mask_folder(split_folder, "train", channels=channels).records[0]["image"]
    np.testing.assert_array_equal(image, np.full((_HEIGHT, _WIDTH, channels), 255, np.uint8))


def test_size_resizes_images_smoothly_and_masks_to_the_nearest_pixel(split_folder):
    image = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    mask = np.random.default_rng(1).integers(0, 3, (9, 12)).astype(np.uint8)
    _save(split_folder / "train" / "images" / "000.png", image)
    _save(split_folder / "train" / "masks" / "000.png", mask)
    examples = mask_folder(split_folder, "train", size=(3, 4))
    assert materialize(examples)["mask"].shape == (3, 3, 4)
    small = examples.records[0]
    np.testing.assert_array_equal(small["mask"], mask[1::3, 1::3])  # centres of 3×3 pixels
    triangle = np.array([1, 2, 3, 2, 1]) / 9  # antialiased: three pixels to each side
    middle = np.einsum("y,x,yxc->c", triangle, triangle, image[2:7, 2:7].astype(float))
    np.testing.assert_allclose(small["image"][1, 1], middle, atol=2)
    large = mask_folder(split_folder, "train", size=(18, 24)).records[0]
    np.testing.assert_array_equal(large["mask"], mask.repeat(2, axis=0).repeat(2, axis=1))


def test_sizes_that_differ_ask_for_one(split_folder):
    _save(split_folder / "train" / "images" / "001.png", np.zeros((4, 5, 3), np.uint8))
    _save(split_folder / "train" / "masks" / "001.png", _labels(1, 4, 5))
    message = r"001.png has 4x5 pixels and .*000.png has 6x8; pass size=\(height, width\)"
    with pytest.raises(DataError, match=message):
        mask_folder(split_folder, "train")
    assert len(mask_folder(split_folder, "train", size=(6, 8)).records) == 3


# How images and masks lie.


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mask_is_turned", [True, False])
def test_a_turned_image_takes_a_mask_that_lies_as_it_does(
    split_folder, orientation, mask_is_turned
):
    """Stored alike, both are turned; a mask drawn on the upright image is taken if that shows."""
    image_file = split_folder / "train" / "images" / "000.png"
    mask_file = split_folder / "train" / "masks" / "000.png"
    back = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}[orientation]
    upright = np.stack([_labels(0)] * 3, axis=-1)

    def stored(array):
        transposed = Image.fromarray(array)
        for tag, method in (
            (2, Image.Transpose.FLIP_LEFT_RIGHT),
            (3, Image.Transpose.ROTATE_180),
            (4, Image.Transpose.FLIP_TOP_BOTTOM),
            (5, Image.Transpose.TRANSPOSE),
            (6, Image.Transpose.ROTATE_270),
            (7, Image.Transpose.TRANSVERSE),
            (8, Image.Transpose.ROTATE_90),
        ):
            if tag == back:
                transposed = transposed.transpose(method)
        return np.asarray(transposed)

    _save(image_file, stored(upright), exif=_exif(orientation))
    if mask_is_turned:
        _save(mask_file, stored(_labels(0)), exif=_exif(orientation))
    if mask_is_turned or orientation == 1 or orientation >= 5:
        read = mask_folder(split_folder, "train").records[0]
        np.testing.assert_array_equal(read["image"], upright)
        np.testing.assert_array_equal(read["mask"], _labels(0))
    else:
        with pytest.raises(DataError, match=r"images/000.png and mask .*differ in their EXIF"):
            mask_folder(split_folder, "train")


def test_a_mask_drawn_on_the_stored_image_is_refused(split_folder):
    """An image stored on its side, and a mask without a tag that lies on its side too."""
    turned = np.zeros((_WIDTH, _HEIGHT, 3), np.uint8)
    _save(split_folder / "train" / "images" / "000.png", turned, exif=_exif(6))
    _save(split_folder / "train" / "masks" / "000.png", _labels(0, _WIDTH, _HEIGHT))
    with pytest.raises(DataError, match=r"000.png has 8x6 .* has 6x8, upright \(EXIF\)"):
        mask_folder(split_folder, "train")


def test_a_square_image_does_not_tell_how_its_mask_lies(split_folder):
    square = np.zeros((8, 8, 3), np.uint8)
    _save(split_folder / "train" / "images" / "000.png", square, exif=_exif(6))
    _save(split_folder / "train" / "masks" / "000.png", _labels(0, 8, 8))
    with pytest.raises(DataError, match=r"mask lies on the image is unknown; save both"):
        mask_folder(split_folder, "train", size=(8, 8))


# Files that are wrong.


def _noise(file):
    _save(file, np.random.default_rng(0).integers(0, 2, (64, 64), np.uint8))


def _truncate(file):
    _noise(file)
    file.write_bytes(file.read_bytes()[:-60])


@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(b""), _truncate])
@pytest.mark.parametrize("kind", ["image", "mask"])
def test_damage_is_named_at_the_start_or_when_read(split_folder, kind, damage):
    (split_folder / "classes.txt").write_text("a\nb\nc")
    file = split_folder / "train" / f"{kind}s" / "001.png"
    damage(file)
    with pytest.raises(DataError, match=f"cannot read {kind} {file}: ") as caught:
        mask_folder(split_folder, "train")
    assert "\n" not in str(caught.value)
    examples = mask_folder(split_folder, "train", limit_bytes=0)  # as if the set were large
    with pytest.raises(DataError, match=f"cannot read {kind} {file}"):
        next(train_batches(examples, batch=3, seed=0))
    (split_folder / "classes.txt").unlink()
    with pytest.raises(DataError, match=f"cannot read {kind} {file}"):
        mask_folder(split_folder, "train")


def _array(*shape):
    return np.ones(shape, np.uint8)


@pytest.mark.parametrize(
    ("file", "array", "message"),
    [
        ("images/001.png", _array(6, 8).astype(np.uint16), "cannot read image .*8 bits a channel"),
        ("masks/001.png", _array(6, 8).astype(np.uint16), "mask .* more than 8 bits a pixel"),
        ("masks/001.png", _array(6, 8, 3), 'mask .*: it has colours .*mode "RGB".*of a palette'),
        ("masks/001.png", _array(6, 8, 4), 'mask .*: it has colours .*mode "RGBA"'),
        ("masks/001.png", _array(8, 6), "mask .*001.png has 8x6 pixels and image .* has 6x8"),
        ("masks/001.png", 9 * _array(6, 8), "mask .*001.png has the label 9, and the classes are"),
        ("masks/001.png", 255 * _array(6, 8), "mask .*001.png has no pixel that counts"),
        ("masks/more.png", _array(6, 8), "mask .*more.png has no image in .*images"),
        ("images/more.png", _array(6, 8), "image .*more.png has no mask .*masks/more.png"),
        ("images/001.jpg", _array(6, 8), r"001.jpg and .*001.png have one name"),
        ("masks/001.jpg", _array(6, 8), r"001.jpg and .*001.png have one name"),
        ("masks/other.jpg", _array(6, 8), "mask .*other.jpg is not a PNG file"),
    ],
)
def test_a_wrong_file_is_named(split_folder, file, array, message):
    (split_folder / "classes.txt").write_text("a\nb\nc")
    _save(split_folder / "train" / file, array)
    with pytest.raises(DataError, match=message) as caught:
        mask_folder(split_folder, "train")
    assert "\n" not in str(caught.value)


def test_a_test_mask_has_the_labels_of_training(split_folder):
    _save(split_folder / "test" / "masks" / "000.png", _labels(0) + (_labels(0) == 2))
    assert len(mask_folder(split_folder, "train").records) == 3
    with pytest.raises(DataError, match=r"test/masks/000.png has the label 3, .* 0 to 2"):
        mask_folder(split_folder, "test")


@pytest.mark.parametrize("classes", [None, "background\nobject"])
def test_a_foreground_of_255_is_explained(split_folder, classes):
    if classes:
        (split_folder / "classes.txt").write_text(classes)
    for index in range(3):
        mask = np.where(_labels(index) == 1, 255, 0).astype(np.uint8)
        _save(split_folder / "train" / "masks" / f"{index:03}.png", mask)
    with pytest.raises(DataError, match="255 means ignored; save the foreground as 1"):
        mask_folder(split_folder, "train")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda file: Image.new("L", (8, 6)).save(file, "JPEG"), "is a JPEG file by its content"),
        (lambda file: Image.new("1", (8, 6)).save(file, "TIFF"), "is a TIFF file by its content"),
        (lambda file: file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "it is no PNG, JPEG"),
        (lambda file: file.write_bytes(b""), "it is no PNG, JPEG"),
        (
            lambda file: Image.new("L", (8, 6)).save(
                file, save_all=True, append_images=[Image.new("L", (8, 6), 1)]
            ),
            "it has 2 pages",
        ),
        (lambda file: Image.new("I;16", (8, 6)).save(file), "more than 8 bits a pixel"),
        (lambda file: Image.new("LA", (8, 6)).save(file), "it has colours"),
    ],
)
def test_a_mask_that_is_no_mask_is_named(split_folder, write, message):
    file = split_folder / "train" / "masks" / "001.png"
    file.unlink()
    write(file)
    (split_folder / "classes.txt").write_text("a\nb\nc")
    with pytest.raises(DataError, match=f"cannot read mask {file}: .*{message}") as caught:
        mask_folder(split_folder, "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("orientation", [0, 9])
def test_an_orientation_that_there_is_not_is_upright(split_folder, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    home, arrays = split_folder / "train", materialize(mask_folder(split_folder, "train"))
    Image.fromarray(arrays["mask"][1]).save(home / "masks" / "001.png", exif=exif)
    again = materialize(mask_folder(split_folder, "train"))
    np.testing.assert_array_equal(again["mask"], arrays["mask"])


# Folders that are wrong.


@pytest.mark.parametrize(
    ("make", "split", "message"),
    [
        (lambda root: None, "train", "no images in .*; put them into .*images and their masks"),
        (_fill, "validation", 'no split "validation"; it has train, test'),
        (lambda root: _fill(root / "train"), "test", 'no split "test"; it has train'),
        (lambda root: (root / "images").mkdir(), "train", "has no images; make folders"),
        (lambda root: (root / "train" / "images").mkdir(parents=True), "train", "has no images"),
        (lambda root: _fill(root, count=1), "test", 'split "test" of .* has no images'),
    ],
)
def test_a_wrong_layout_is_explained(tmp_path, make, split, message):
    make(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        mask_folder(tmp_path, split)
    assert "\n" not in str(caught.value)


def test_wrong_options_are_refused(split_folder):
    with pytest.raises(DataError, match="images of 2 channels: use 1 or 3"):
        mask_folder(split_folder, "train", channels=2)
    with pytest.raises(DataError, match='"mask:/a", did you mean "masks:PATH"'):
        open_source("mask:/a", "train")
    with pytest.raises(DataError, match=r"no images in .*nowhere"):
        open_source(f"masks:{split_folder / 'nowhere'}", "train")
