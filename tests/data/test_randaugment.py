"""RandAugment: each operation against Pillow, and which operations are drawn."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from opsin.data.randaugment import OPERATIONS, rand_augment

HEIGHT, WIDTH = 20, 16
LEVELS = (0.0, -0.9, 0.9)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(30, 220, (HEIGHT, WIDTH, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def every_operation():
    """`(images [n, H, W, C], levels [m]) -> [operation, n, m, H, W, C]`, in one program."""

    def run(image, level):
        return jnp.stack([operation(image, level, 0.5) for operation in OPERATIONS.values()])

    over_levels = jax.vmap(run, (None, 0), 1)
    return jax.jit(jax.vmap(over_levels, (0, None), 1))


@pytest.fixture(scope="module")
def outputs(every_operation, pixels) -> dict[tuple[str, float], np.ndarray]:
    stacked = np.asarray(every_operation(pixels[None] / np.float32(255), np.float32(LEVELS)))
    return {
        (name, level): stacked[i, 0, j]
        for i, name in enumerate(OPERATIONS)
        for j, level in enumerate(LEVELS)
    }


def test_the_fourteen_operations_of_the_paper():
    assert set(OPERATIONS) == {
        *("identity", "autocontrast", "equalize", "rotate", "solarize", "color", "posterize"),
        *("contrast", "brightness", "sharpness", "shear_x", "shear_y"),
        *("translate_x", "translate_y"),
    }


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"autocontrast", "equalize"}))
def test_level_zero_is_the_identity_and_no_other_level_is(outputs, pixels, name):
    image = pixels / np.float32(255)
    np.testing.assert_allclose(outputs[name, 0.0], image, atol=1e-6)
    for level in (-0.9, 0.9):
        assert (np.abs(outputs[name, level] - image).max() > 0.02) == (name != "identity")


# Pillow's pull map x' = a x + b y + c, y' = d x + e y + f.
AFFINE = {
    "shear_x": lambda level: (1, 0.3 * level, 0, 0, 1, 0),
    "shear_y": lambda level: (1, 0, 0, 0.3 * level, 1, 0),
    "translate_x": lambda level: (1, 0, level * WIDTH * 150 / 331, 0, 1, 0),
    "translate_y": lambda level: (1, 0, 0, 0, 1, level * HEIGHT * 150 / 331),
}


@pytest.mark.parametrize("level", [-0.9, 0.9])
@pytest.mark.parametrize("name", [*AFFINE, "rotate"])
def test_geometry_follows_pillow(outputs, pixels, name, level):
    image = Image.fromarray(pixels)
    if name == "rotate":
        moved = image.rotate(30 * level, fillcolor=(128, 128, 128))
    else:
        moved = image.transform(
            image.size, Image.Transform.AFFINE, AFFINE[name](level), fillcolor=(128, 128, 128)
        )
    # Fill is 127.5 here and 128 there. A pixel halfway between two may fall to either side.
    wrong = np.abs(outputs[name, level] * 255 - np.asarray(moved)).max(-1) > 0.6
    assert wrong.mean() <= 0.01


@pytest.mark.parametrize(
    ("layers", "rows"), [(1, 128), pytest.param(2, 32, marks=pytest.mark.proofs)]
)
def test_every_output_is_a_chain_of_operations(every_operation, pixels, layers, rows):
    start = pixels[None] / np.float32(255)
    chains = start
    for _ in range(layers):
        chains = np.asarray(every_operation(chains, np.float32(LEVELS))).reshape(-1, *pixels.shape)
    batch = {"image": np.repeat(start, rows, 0), "label": np.arange(rows)}
    augmented = jax.jit(partial(rand_augment, layers=layers))(jax.random.key(1), batch)
    np.testing.assert_array_equal(augmented["label"], batch["label"])

    images = np.asarray(augmented["image"])
    error = np.stack([np.abs(chains - image).mean((1, 2, 3)) for image in images])
    # The last bit of a value may differ between two programs, and so a level of a few pixels.
    assert error.min(-1).max() < 1e-3
    if layers == 1:  # every operation is drawn; chance would miss one with p = 0.001
        assert set(error.argmin(-1) // len(LEVELS)) == set(range(len(OPERATIONS)))


def test_grey_images_stay_in_range_at_full_magnitude():
    images = np.random.default_rng(0).random((16, 8, 8, 1), np.float32)
    augment = jax.jit(partial(rand_augment, magnitude=10.0))
    augmented = np.asarray(augment(jax.random.key(1), {"image": images})["image"])
    assert augmented.shape == images.shape
    assert augmented.dtype == images.dtype
    assert ((augmented >= 0) & (augmented <= 1)).all()
