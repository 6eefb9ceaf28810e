import io
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets
from PIL import Image

from opsin.data.examples import DataError, labels, materialize
from opsin.data.fingerprint import source_fingerprint
from opsin.data.masks import IGNORE, Labels
from opsin.data.tfds_source import tfds

_IMAGES = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), np.uint8)
_REAL = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


class Tiny(tensorflow_datasets.core.GeneratorBasedBuilder, skip_registration=True):
    """Noise with labels, boxes and a name; incompressible, so that damage hits what is read."""

    VERSION = tensorflow_datasets.core.Version("1.0.0")

    def _info(self):
        features = tensorflow_datasets.features
        return tensorflow_datasets.core.DatasetInfo(
            builder=self,
            features=features.FeaturesDict(
                {
                    "id": features.Text(),
                    "image": features.Image(shape=(16, 16, 3)),
                    "label": features.ClassLabel(names=["cat", "dog", "owl"]),
                    "objects": features.Sequence({"bbox": features.BBoxFeature()}),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(24),
            "test": self._generate_examples(6),
            "more": self._generate_examples(3, unlabelled=True),
        }

    def _generate_examples(self, count, unlabelled=False):
        box = tensorflow_datasets.features.BBox(0.0, 0.25, 0.5, 1.0)
        for index in range(count):
            png = io.BytesIO()  # given an array, TFDS would call TensorFlow to encode it
            Image.fromarray(_IMAGES[index]).save(png, "PNG")
            png.seek(0)
            objects = [{"bbox": box}] * 2
            label = -1 if unlabelled else index % 3
            yield index, {"id": "x", "image": png, "label": label, "objects": objects}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    Tiny(data_dir=root, file_format="array_record").download_and_prepare()
    return root


def _masks(name):
    """A set of two images with masks, of labels 0 to 11 and 0 to 12, prepared under `name`."""
    features = tensorflow_datasets.features
    kinds = {
        "image": features.Image(shape=(3, 5, 3)),
        "label": features.ClassLabel(names=["cat", "dog"]),
        "segmentation_mask": features.Image(shape=(3, 5, 1)),
    }
    if name == "camvid":
        del kinds["label"]

    def info(self):
        return tensorflow_datasets.core.DatasetInfo(
            builder=self, features=features.FeaturesDict(kinds), disable_shuffling=True
        )

    def generate(self):
        for index in range(2):
            arrays = {
                "image": np.zeros((3, 5, 3), np.uint8),
                "segmentation_mask": np.arange(15, dtype=np.uint8).reshape(3, 5) % (12 + index),
            }
            files = {key: io.BytesIO() for key in arrays}
            for key, file in files.items():
                Image.fromarray(arrays[key]).save(file, "PNG")
                file.seek(0)
            yield index, {**{key: index for key in kinds if key == "label"}, **files}

    members = {
        "VERSION": tensorflow_datasets.core.Version("1.0.0"),
        "_info": info,
        "_split_generators": lambda self, dl_manager: {"train": generate(self)},
        "_generate_examples": generate,
    }
    base = tensorflow_datasets.core.GeneratorBasedBuilder
    return type(name.title(), (base,), members, skip_registration=True)


@pytest.fixture(scope="module")
def with_masks(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    for name in ("camvid", "pets"):
        _masks(name)(data_dir=root, file_format="array_record").download_and_prepare()
    return root


def test_reads_what_was_written(prepared):
    examples = tfds("tiny", "train", data_dir=prepared)
    arrays = materialize(examples)
    assert set(arrays) == {"image", "label", "objects/bbox"}  # text is dropped
    np.testing.assert_array_equal(arrays["image"], _IMAGES)
    np.testing.assert_array_equal(arrays["label"], np.arange(24) % 3)
    assert arrays["label"].dtype == np.int32
    assert arrays["objects/bbox"].dtype == np.float32
    np.testing.assert_array_equal(arrays["objects/bbox"][23], [[0.0, 0.25, 0.5, 1.0]] * 2)
    assert examples.class_names == ("cat", "dog", "owl")
    assert len(list(examples.records)) == 24  # iterates, and stops


def test_a_set_is_identified_by_its_files(prepared, tmp_path, monkeypatch):
    source = partial(tfds, "tiny", data_dir=prepared)
    found = source_fingerprint(source, "train")
    assert found == source("train").files == source("test").files
    assert re.fullmatch(r"\d+ of [\d,]+ bytes, digest [0-9a-f]{12}", found)
    monkeypatch.setenv("TFDS_DATA_DIR", str(shutil.copytree(prepared, tmp_path / "moved")))
    assert source_fingerprint("tfds:tiny:1.0.0", "train") == found
    assert source_fingerprint("tfds:tiny", "train") == found
    with next(tmp_path.glob("moved/tiny/1.0.0/*train*")).open("ab") as file:
        file.write(b"0")
    assert source_fingerprint("tfds:tiny", "train") != found
    assert source_fingerprint("tfds:tiny:9.0.0", "train") is None


def test_what_is_not_read_does_not_identify_a_set(prepared, tmp_path, monkeypatch):
    home = shutil.copytree(prepared, tmp_path / "sets") / "tiny"
    monkeypatch.setenv("TFDS_DATA_DIR", str(home.parent))
    found = source_fingerprint("tfds:tiny", "train")
    shutil.copytree(home / "1.0.0", home / "0.9.9")
    (home / "0.9.9" / "tiny-train.array_record-00000-of-00001").write_bytes(b"0")
    (home / "incomplete.1A_2.0.0").mkdir()
    (home / "1.0.0" / ".DS_Store").write_bytes(b"0")
    with (home / "1.0.0" / "dataset_info.json").open("a") as file:
        file.write("\n")
    (home / "1.0.0").rename(tmp_path / "elsewhere")
    (home / "1.0.0").symlink_to(tmp_path / "elsewhere")
    for name in ("tiny", "tiny:1.0.0", "tiny:1.*.*"):
        assert source_fingerprint(f"tfds:{name}", "train") == found
        assert tfds(name, "train").files == found
    assert source_fingerprint("tfds:tiny:0.9.9", "train") != found


def test_labels_of_minus_one_are_none(prepared):
    examples = tfds("tiny", "more", data_dir=prepared)
    assert examples.records[1].keys() == {"image", "objects/bbox"}
    assert examples.class_names == ()
    with pytest.raises(DataError, match='have no "label"'):
        labels(examples)


def test_masks_of_a_known_set_have_names_and_void_pixels(with_masks):
    examples = tfds("camvid", "train", data_dir=with_masks)
    assert examples.class_names[:2] == ("sky", "building")
    assert len(examples.class_names) == 11
    example = examples.records[0]
    assert set(example) == {"image", "mask"}
    assert example["mask"].dtype == np.uint8
    expected = [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, IGNORE, 0, 1, 2]]
    np.testing.assert_array_equal(example["mask"], expected)
    message = r'the mask of example 1 in split "train" of data set "camvid" .* has the label 12'
    with pytest.raises(DataError, match=message):
        materialize(examples)


def test_masks_of_another_set_stay_as_they_are(with_masks):
    examples = tfds("pets", "train", data_dir=with_masks)
    assert examples.class_names == ("cat", "dog")
    np.testing.assert_array_equal(labels(examples), [0, 1])
    arrays = materialize(examples)
    np.testing.assert_array_equal(arrays["mask"].max(axis=(1, 2)), [11, 12])
    assert set(arrays) == {"image", "label", "mask"}


def test_what_the_labels_of_masks_mean_can_be_said(with_masks):
    meant = Labels(tuple(f"part {part}" for part in range(12)), void=12)
    examples = tfds("pets", "train", data_dir=with_masks, labels=meant)
    assert examples.class_names == meant.class_names
    assert (materialize(examples)["mask"] == IGNORE).any()
    with pytest.raises(DataError, match="has the label 2, and the classes are 0 to 1"):
        materialize(tfds("pets", "train", data_dir=with_masks, labels=Labels(("a", "b"))))


def test_labels_are_read_without_images(prepared, monkeypatch):
    examples = tfds("tiny", "train", data_dir=prepared)

    def decode(*_):
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(tensorflow_datasets.features.Image, "decode_example_np", decode)
    np.testing.assert_array_equal(labels(examples), np.arange(24) % 3)


@pytest.mark.parametrize(
    ("split", "chosen"),
    [("train[:75%]", range(18)), ("train[-5:]", range(19, 24)), ("test+train[:1]", [*range(6), 0])],
)
def test_splits_have_tfds_syntax(prepared, split, chosen):
    arrays = materialize(tfds("tiny:1.0.0", split, data_dir=prepared))
    np.testing.assert_array_equal(arrays["image"], _IMAGES[list(chosen)])


def test_the_environment_is_read_when_called(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    assert len(tfds("tiny", "test").records) == 6
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(DataError, match=str(tmp_path)):
        tfds("tiny", "test")


def test_needs_no_tensorflow_and_keeps_the_console_clean(prepared):
    code = """
import sys
from opsin.data.sources import open_source
print(open_source("tfds:tiny", "train").records[0]["image"].shape, "tensorflow" in sys.modules)
"""
    environment = os.environ | {"TFDS_DATA_DIR": str(prepared)}
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert run.stdout == "(16, 16, 3) False\n"
    assert run.stderr == ""


def test_a_missing_set_says_where_it_was_looked_for_and_how_to_get_it(prepared, tmp_path):
    absent = tmp_path / "absent"
    for root, held in ((prepared, "tiny"), (absent, "none")):
        with pytest.raises(DataError) as caught:
            tfds("mnist", "train", data_dir=root)
        message = str(caught.value)
        assert f'no data set "mnist" in {root}, which holds' in message
        assert held in message
        assert "set TFDS_DATA_DIR" in message
        assert "pip install -e '.[prepare]' && tfds build mnist" in message
        assert f"--file_format=array_record --data_dir={root}" in message
        assert "\n" not in message


@pytest.mark.parametrize("split", ["validation", "train[:80%", "", "test+val"])
def test_an_unknown_split_names_the_known_ones(prepared, split):
    with pytest.raises(
        DataError, match=r"no split .*it has train, test, more, and slices"
    ) as caught:
        tfds("tiny", split, data_dir=prepared)
    assert "\n" not in str(caught.value)


def test_an_empty_slice_is_refused(prepared):
    with pytest.raises(DataError, match=r'"train\[:1%\]".*is empty'):
        tfds("tiny", "train[:1%]", data_dir=prepared)


def test_an_unknown_version_is_refused(prepared):
    with pytest.raises(DataError, match=r"tfds build tiny:9.0.0") as caught:
        tfds("tiny:9.0.0", "train", data_dir=prepared)
    assert "\n" not in str(caught.value)


_SHARD = "tiny-train.array_record-00000-of-00001"


def _cut(file, share):
    os.truncate(file, int(file.stat().st_size * share))


def _garble(file):
    data = bytearray(file.read_bytes())
    data[: len(data) // 2] = b"\xff" * (len(data) // 2)
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (_SHARD, Path.unlink),
        (_SHARD, lambda file: _cut(file, 0)),
        (_SHARD, lambda file: _cut(file, 0.5)),
        (_SHARD, lambda file: _cut(file, 0.99)),
        (_SHARD, _garble),
        ("dataset_info.json", Path.unlink),
        ("dataset_info.json", lambda file: _cut(file, 0.5)),
        ("features.json", Path.unlink),
        ("features.json", lambda file: _cut(file, 0.5)),
    ],
)
def test_damage_is_found_on_opening(prepared, tmp_path, name, damage):
    shutil.copytree(prepared / "tiny", tmp_path / "tiny")
    damage(tmp_path / "tiny" / "1.0.0" / name)
    with pytest.raises(DataError) as caught:
        tfds("tiny", "train", data_dir=tmp_path)
    message = str(caught.value)
    assert f'data set "tiny" in {tmp_path}' in message
    assert "prepare it again with: " in message
    assert message.endswith("--overwrite")
    assert "\n" not in message


def test_a_directory_without_data_is_refused(tmp_path):
    (tmp_path / "mnist").mkdir()  # TFDS has code for this name, and would go on to prepare it
    with pytest.raises(DataError, match=f'"mnist" in {tmp_path}.*tfds build mnist'):
        tfds("mnist", "train", data_dir=tmp_path)


@pytest.mark.skipif(not (_REAL / "cifar10").is_dir(), reason="CIFAR-10 is not prepared here")
def test_cifar10_has_its_published_size():
    assert len(tfds("cifar10", "train", data_dir=_REAL).records) == 50_000
    examples = tfds("cifar10", "test", data_dir=_REAL)
    np.testing.assert_array_equal(np.bincount(labels(examples)), 1000)
    assert examples.records[0]["image"].shape == (32, 32, 3)
    assert examples.class_names[0] == "airplane"


def named_by_strangers(kind: str) -> dict[str, object]:
    """Ways in which a ``features.json`` names code that TFDS imports."""
    inside = {"pythonClassName": f"{kind}.X", "tensor": {}}
    outer = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
    sequence = "tensorflow_datasets.core.features.sequence_feature.Sequence"
    legacy = {"type": f"{kind}.X", "content": {}}
    nested = {"pythonClassName": sequence, "jsonFeature": {"json": json.dumps({"feature": inside})}}
    return {
        "present": {"pythonClassName": f"{kind}.X"},
        "below": {"pythonClassName": outer, "featuresDict": {"features": {"image": inside}}},
        "legacy": {"type": outer, "content": {"image": legacy}},
        "as text": {"pythonClassName": outer, "featuresDict": {"features": {"image": nested}}},
    }


@pytest.mark.parametrize("way", named_by_strangers(""))
def test_features_of_other_code_are_not_imported(prepared, tmp_path, monkeypatch, way):
    shutil.copytree(prepared / "tiny", tmp_path / "tiny")
    (tmp_path / "evil_feature.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    content = json.dumps(named_by_strangers("evil_feature")[way])
    (tmp_path / "tiny" / "1.0.0" / "features.json").write_text(content)
    with pytest.raises(DataError, match=r"names evil_feature\.X, which is no feature of TFDS"):
        tfds("tiny", "train", data_dir=tmp_path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("far", ["gs://", "s3://", "az://", "hf://", "file://", "/gs/", "/gs/../"])
@pytest.mark.parametrize("given", ["option", "environment"])
def test_a_directory_elsewhere_is_refused_before_anything_is_read(monkeypatch, far, given):
    """What reads ``features.json`` there would import what that names."""
    opened = []
    reads = tensorflow_datasets.core.Path
    monkeypatch.setattr(reads, "is_dir", lambda path: opened.append(path) or True)
    monkeypatch.setattr(tensorflow_datasets, "builder", lambda *x, **y: opened.append(x))
    if given == "environment":
        monkeypatch.setenv("TFDS_DATA_DIR", f"{far}bucket/x")
    with pytest.raises(DataError, match=f"^{far}bucket/x is not on this machine: copy"):
        tfds("tiny", "train", data_dir=f"{far}bucket/x" if given == "option" else None)
    assert opened == []


def test_a_set_whose_features_are_not_found_is_not_opened(tmp_path, monkeypatch):
    (tmp_path / "tiny" / "1.0.0").mkdir(parents=True)
    monkeypatch.setattr(tensorflow_datasets, "builder", lambda *x, **y: pytest.fail("opened"))
    with pytest.raises(DataError, match=r"tiny has no features.json; prepare it again with"):
        tfds("tiny", "train", data_dir=tmp_path)


@pytest.mark.parametrize(
    "name", ["../tiny", "tiny/../tiny", "/etc", "", "tiny:", "tiny:../1.0.0", "kaggle:tiny", "a\\b"]
)
def test_the_name_of_a_set_stays_in_its_directory(prepared, name):
    with pytest.raises(DataError) as told:
        tfds(name, "train", data_dir=prepared / "tiny" if ".." in name else prepared)
    assert "\n" not in str(told.value)
