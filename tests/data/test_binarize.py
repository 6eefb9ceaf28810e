from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from opsin.data.augment import apply, scale
from opsin.data.binarize import binarized, dequantize, random_binarize
from opsin.data.examples import Arrays, DataError, Examples, labels, materialize, stack
from opsin.data.selection import select
from opsin.data.sources import digits, synthetic

AUGMENTATIONS = [random_binarize, dequantize]


def images(rows, size=4):
    """Images of bytes, with pixels of 0 and of 1."""
    x = np.random.default_rng(7).integers(0, 256, (rows, size, size, 1)) / np.float32(255)
    x[:, 0], x[:, 1] = 0.0, 1.0
    return x.astype(np.float32)


def run(augmentation, rows, seed=0):
    batch = {"image": images(8)[:rows], "label": np.arange(rows)}
    return jax.device_get(jax.jit(augmentation)(jax.random.key(seed), batch))


# On the device.


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_draws_depend_on_the_key_and_the_row_alone(augmentation):
    few, many = run(augmentation, 3), run(augmentation, 8)
    np.testing.assert_array_equal(few["image"], many["image"][:3])
    np.testing.assert_array_equal(few["label"], np.arange(3))
    other = run(augmentation, 3, seed=1)
    assert (few["image"] != other["image"]).any()
    same = {"image": np.full((3, 4, 4, 1), 0.5, np.float32), "label": np.arange(3)}
    first, second, _ = jax.device_get(jax.jit(augmentation)(jax.random.key(0), same))["image"]
    assert (first != second).any()


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_jit_is_no_jit(augmentation):
    batch = {"image": images(8)}
    eager = augmentation(jax.random.key(0), batch)["image"]
    compiled = run(augmentation, 8)["image"]
    assert eager.dtype == compiled.dtype == jnp.float32
    np.testing.assert_allclose(eager, compiled, rtol=1e-6)


def test_binary_pixels_have_the_mean_of_the_intensities():
    x = images(1)[0]
    batch = {"image": np.tile(x, (4000, 1, 1, 1))}
    drawn = np.asarray(jax.jit(random_binarize)(jax.random.key(3), batch)["image"])
    assert set(np.unique(drawn)) == {0.0, 1.0}
    error = np.sqrt(x * (1 - x) / 4000)
    assert (np.abs(drawn.mean(axis=0) - x) <= 4.5 * error).all()  # black and white exactly


def test_dequantised_bytes_fill_their_bins_evenly():
    levels = np.float32([0, 1, 128, 255])
    batch = {"image": np.broadcast_to(levels / 255, (4000, 1, 1, 4))}
    drawn = np.asarray(jax.jit(dequantize)(jax.random.key(4), batch)["image"])[:, 0, 0]
    for column, level in zip(drawn.T, levels, strict=True):
        assert stats.kstest(256 * column - level, "uniform").pvalue > 0.01


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_images_of_bytes_are_refused(augmentation):
    with pytest.raises(ValueError, match="see scale"):
        augmentation(jax.random.key(0), {"image": jnp.zeros((2, 4, 4, 1), jnp.uint8)})


# As a source.

fixed = partial(binarized, source="digits")


def test_a_fixed_draw_has_the_mean_of_the_intensities():
    grey = materialize(digits("test"))["image"] / 255
    drawn = np.stack([materialize(fixed("test", seed=s))["image"] for s in range(16)])
    assert drawn.dtype == np.uint8
    assert set(np.unique(drawn)) == {0, 255}
    np.testing.assert_array_equal(drawn[:, grey == 0], 0)
    np.testing.assert_array_equal(drawn[:, grey == 1], 255)
    for level in np.unique(grey)[1:-1]:
        ones = drawn[:, grey == level] / 255
        assert abs(ones.mean() - level) < 4.5 * np.sqrt(level * (1 - level) / ones.size)


def test_the_draw_is_that_of_the_index_however_it_is_read():
    examples = fixed("train")
    whole = materialize(examples)["image"]
    order = np.random.default_rng(0).permutation(len(whole))[:50]
    np.testing.assert_array_equal(stack(examples.records, order)["image"], whole[order])
    np.testing.assert_array_equal(examples.records[7]["image"], whole[7])
    np.testing.assert_array_equal(examples.records[-1]["image"], whole[-1])
    np.testing.assert_array_equal(materialize(select(examples, order))["image"], whole[order])
    np.testing.assert_array_equal(materialize(fixed("train"))["image"], whole)
    some, many = (
        materialize(binarized("train", source=partial(synthetic, n=n, size=4)))["image"]
        for n in (5, 9)
    )
    np.testing.assert_array_equal(some, many[:5])
    with pytest.raises(IndexError):
        examples.records[len(whole)]


def grey(split):
    """The same images in every split, 200 times mid-grey."""
    del split
    image = np.full((200, 4, 4, 1), 128, np.uint8)
    return Examples(Arrays({"image": image, "label": np.arange(200, dtype=np.int32)}))


def test_draws_differ_between_examples_splits_slices_and_seeds():
    def draw(split, seed=0):
        return materialize(binarized(split, source=grey, seed=seed))["image"]

    draws = [draw("train"), draw("test"), draw("train[:50%]"), draw("train", seed=1)]
    for i, one in enumerate(draws):
        assert len(np.unique(one, axis=0)) > 195
        for other in draws[:i]:
            # Independent halves agree in half of 3200 pixels.
            assert abs(np.mean(one == other) - 0.5) < 4.5 * 0.5 / np.sqrt(one.size)


def test_other_splits_pass_as_they_are():
    drawn = binarized("test", source="digits", splits=("test",))
    assert set(np.unique(materialize(drawn)["image"])) == {0, 255}
    passed = binarized("train", source="digits", splits=("test",))
    np.testing.assert_array_equal(
        materialize(passed)["image"], materialize(digits("train"))["image"]
    )


@pytest.mark.parametrize("split", ["train[:80%]", "train[20:]", "train[:5]+train[9:]"])
def test_slices_go_by_the_name_of_their_split(split):
    passed = binarized(split, source=grey, splits=("test",))
    assert (materialize(passed)["image"] == 128).all()
    drawn = binarized(split, source=grey, splits=("train",))
    assert set(np.unique(materialize(drawn)["image"])) == {0, 255}


def test_labels_and_names_stay_and_need_no_images(monkeypatch):
    examples = fixed("train")
    assert examples.class_names == digits("train").class_names
    expected = labels(digits("train"))
    np.testing.assert_array_equal(materialize(examples)["label"], expected)

    def draw(*_):
        raise AssertionError("an image was drawn")

    monkeypatch.setattr(np.random, "default_rng", draw)
    np.testing.assert_array_equal(labels(examples), expected)
    names = tuple(map(str, range(200)))
    quick = Examples(grey("").records, names, lambda: np.full(200, 3, np.int32), resized=True)
    wrapped = binarized("train", source=lambda _: quick)
    np.testing.assert_array_equal(labels(wrapped), 3)
    assert (wrapped.class_names, wrapped.resized) == (names, True)


def test_a_batch_of_it_is_binary_after_scale():
    batch = scale(stack(fixed("test").records, range(4)))
    assert set(np.unique(batch["image"])) == {0.0, 1.0}
    again = jax.jit(partial(apply, augmentations=[random_binarize]))(jax.random.key(0), batch)
    np.testing.assert_array_equal(again["image"], batch["image"])


def test_mistakes_are_one_line():
    floats = Examples(Arrays({"image": np.zeros((2, 2, 2, 1), np.float32)}))
    for wrong, message in [
        (lambda: fixed("train", splits="train"), r'such as \("train",\)'),
        (lambda: fixed("validation"), "no split"),
        (lambda: binarized("train+test", source=grey, splits=("test",)), "parts"),
        (lambda: binarized("train", source=lambda _: floats).records[0], "this one is float32"),
    ]:
        with pytest.raises(DataError, match=message) as caught:
            wrong()
        assert "\n" not in str(caught.value)
