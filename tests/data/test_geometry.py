"""Geometry: closed forms, distributions, and masks and weights that move with their image."""

from functools import partial

import jax
import numpy as np
import pytest
from scipy import ndimage, stats

from opsin.data import geometry
from opsin.data.masks import IGNORE


def images(rows: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(7).random((rows, height, width, channels), np.float32)


def run(function, batch, **options) -> dict[str, np.ndarray]:
    """The augmented batch, by the compiled function."""
    return run_all((partial(function, **options),), batch)[0]


def run_all(functions, batch) -> list[dict[str, np.ndarray]]:
    """The batch as each of these functions augments it, all in one program."""
    program = jax.jit(lambda key, batch: [function(key, batch) for function in functions])
    return jax.device_get(program(jax.random.key(0), batch))


def twice(move):
    """A move that is made again, with the same key."""
    return lambda key, batch: move(key, move(key, batch))


def test_flip_mirrors_left_and_right():
    batch = {"image": images(256, 3, 4)}
    original = batch["image"]
    mirrored = original[:, :, ::-1]
    quarter = partial(geometry.random_flip, probability=0.25)
    always, never, flipped, again = run_all(
        (
            partial(geometry.random_flip, probability=1.0),
            partial(geometry.random_flip, probability=0.0),
            quarter,
            twice(quarter),
        ),
        batch,
    )
    np.testing.assert_array_equal(always["image"], mirrored)
    np.testing.assert_array_equal(never["image"], original)
    is_flipped = (flipped["image"] == mirrored).all((1, 2, 3))
    np.testing.assert_array_equal(
        flipped["image"], np.where(is_flipped[:, None, None, None], mirrored, original)
    )
    assert 0.25 - 0.11 < is_flipped.mean() < 0.25 + 0.11  # four standard errors
    # The same key draws the same flips: twice is the identity.
    np.testing.assert_array_equal(again["image"], original)


@pytest.mark.parametrize(("mode", "padding"), [("constant", 1), ("reflect", 2)])
def test_crop_takes_each_slice_of_the_padded_image(mode, padding):
    batch = {"image": images(256, 5, 6)}
    cropped = run(geometry.random_crop, batch, padding=padding, mode=mode)["image"]
    width = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = np.pad(batch["image"], width, mode)
    offsets = [(y, x) for y in range(2 * padding + 1) for x in range(2 * padding + 1)]
    matches = np.stack(
        [(padded[:, y : y + 5, x : x + 6] == cropped).all((1, 2, 3)) for y, x in offsets]
    )
    np.testing.assert_array_equal(matches.sum(0), 1)
    assert matches.any(1).all()  # every offset is drawn; chance would miss one with p < 0.001


def crop_boxes(rows: int, side: int, **options) -> np.ndarray:
    """[rows, (top, left, height, width)], read off crops of a ramp, which bilinear sampling keeps.

    Crops are enlarged, so that only the pixels next to the border feel it; the middle does not.
    """
    y, x = np.mgrid[:side, :side] + 0.5
    ramp = np.broadcast_to(np.stack([y, x], -1).astype(np.float32), (rows, side, side, 2))
    size = 4 * side
    crops = run(geometry.random_resized_crop, {"image": ramp}, size=size, **options)["image"]
    low, high = 3 * size // 8, 5 * size // 8
    extent_y = 4 * (crops[:, high, low, 0] - crops[:, low, low, 0])
    extent_x = 4 * (crops[:, low, high, 1] - crops[:, low, low, 1])
    share = (low + 0.5) / size
    top = crops[:, low, low, 0] - share * extent_y
    left = crops[:, low, low, 1] - share * extent_x
    return np.stack([top, left, extent_y, extent_x], -1)


def test_resized_crop_draws_area_ratio_and_place_evenly():
    # With these options every draw fits, so the marginal distributions are exact.
    top, left, height, width = crop_boxes(512, 16, scale=(0.1, 0.5), ratio=(3 / 4, 4 / 3)).T
    draws = {
        "area": (height * width / 256 - 0.1) / 0.4,
        "ratio": np.log(width / height) / np.log(16 / 9) + 0.5,
        "top": top / (16 - height),
        "left": left / (16 - width),
    }
    for name, draw in draws.items():
        assert stats.kstest(draw, "uniform").pvalue > 0.01, name
    # Independent: a correlation of 512 pairs has a standard error of 0.044.
    assert np.abs(np.corrcoef(list(draws.values())) - np.eye(4)).max() < 0.18


def test_resized_crop_that_cannot_fit_keeps_its_ratio():
    _, left, height, width = crop_boxes(64, 16, scale=(1.0, 1.0), ratio=(0.5, 0.5)).T
    np.testing.assert_allclose(height, 16, atol=1e-3)
    np.testing.assert_allclose(width, 8, atol=1e-3)
    assert left.min() > -1e-3
    assert left.max() < 8 + 1e-3


def test_resized_crop_draws_again_where_a_box_does_not_fit():
    _, _, height, width = crop_boxes(256, 16, scale=(0.5, 1.0), ratio=(1 / 3, 3.0)).T
    # 28 % of the draws fit, so ten fail with p = 0.04; only then a side is that of the image.
    assert (np.maximum(height, width) > 16 - 1e-3).mean() < 0.1


def test_resized_crop_of_everything_is_the_identity():
    batch = {"image": images(4, 8, 6)}
    whole = run(geometry.random_resized_crop, batch, scale=(1.0, 1.0), ratio=(6 / 8, 6 / 8))
    np.testing.assert_allclose(whole["image"], batch["image"], atol=1e-5)


def blobs(rows: int, side: int) -> dict[str, np.ndarray]:
    """Smooth blobs of three grey levels far apart, their class as mask, and the class as weight."""
    noise = np.random.default_rng(3).standard_normal((rows, side, side))
    smooth = np.stack([ndimage.gaussian_filter(x, side / 16, mode="wrap") for x in noise])
    mask = np.digitize(smooth, np.quantile(smooth, [1 / 3, 2 / 3])).astype(np.uint8)
    grey = mask[..., None] / 2
    return {"image": grey.astype(np.float32), "mask": mask, "weight": mask.astype(np.float32)}


MOVES = [
    partial(geometry.random_crop, size=20),
    partial(geometry.random_crop, padding=5),
    geometry.random_flip,
    partial(geometry.random_flip, vertical=True),
    geometry.random_quarter_turn,
    partial(geometry.random_resized_crop, size=24, scale=(0.3, 0.6)),
    partial(geometry.random_affine, rotation=180, scale=(0.7, 1.4), shear=20, translation=0.2),
    partial(geometry.random_affine, rotation=30, mode="reflect"),
    partial(geometry.random_elastic, sigma=3.0),
]


@pytest.fixture(scope="module")
def moved_blobs() -> list[dict[str, np.ndarray]]:
    """Of every move, from one program."""
    return run_all(MOVES, blobs(4, 32))


@pytest.mark.parametrize("index", range(len(MOVES)))
def test_masks_and_weights_move_with_their_image(moved_blobs, index):
    batch, moved = blobs(4, 32), moved_blobs[index]
    assert moved["mask"].dtype == np.uint8
    assert set(np.unique(moved["mask"])) <= {0, 1, 2, IGNORE}
    counted = moved["mask"] != IGNORE
    # The grey level is the class: where the image is not between two, the mask says the same.
    pure = counted & (
        np.abs(2 * moved["image"][..., 0] - np.round(2 * moved["image"][..., 0])) < 0.02
    )
    same = np.round(2 * moved["image"][..., 0])[pure] == moved["mask"][pure]
    assert pure.mean() > 0.25
    assert same.mean() > 0.98
    np.testing.assert_allclose(moved["weight"] / 2, moved["image"][..., 0], atol=1e-5)
    # It did move something.
    assert moved["mask"].shape != batch["mask"].shape or (moved["mask"] != batch["mask"]).any()


def test_each_way_of_a_flip_and_a_turn_is_its_own_inverse():
    batch = blobs(16, 8)
    vertical = partial(geometry.random_flip, vertical=True)
    four_turns = twice(twice(geometry.random_quarter_turn))
    for moved in run_all((twice(geometry.random_flip), twice(vertical), four_turns), batch):
        assert moved.keys() == batch.keys()
        jax.tree.map(np.testing.assert_array_equal, moved, batch)


def test_quarter_turns_are_all_four_and_those_of_numpy():
    batch = blobs(32, 6)
    turned = run(geometry.random_quarter_turn, batch)["mask"]
    matches = np.stack(
        [(np.rot90(batch["mask"], k, axes=(1, 2)) == turned).all((1, 2)) for k in range(4)]
    )
    assert (matches.sum(0) >= 1).all()
    assert matches.any(1).all()


def test_an_affine_of_nothing_and_an_elastic_of_nothing_are_the_identity():
    batch = blobs(2, 16)
    moves = (geometry.random_affine, partial(geometry.random_elastic, sigma=0.0))
    for moved in run_all(moves, batch):
        np.testing.assert_array_equal(moved["mask"], batch["mask"])
        np.testing.assert_allclose(moved["image"], batch["image"], atol=1e-6)


def ramp(rows: int, side: int) -> dict[str, np.ndarray]:
    """The coordinates (y, x) of each pixel from the centre as channels, of a large image."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    image = np.broadcast_to(np.stack([y, x], -1), (rows, side, side, 2))
    return {"image": image.astype(np.float32)}


def test_affine_draws_angle_scale_and_shift_evenly():
    side, rows = 17, 512
    centre = slice(7, 10)
    moved = run(
        geometry.random_affine,
        ramp(rows, side),
        rotation=40.0,
        scale=(0.8, 1.25),
        translation=0.1,
    )["image"][:, centre, centre]
    # The derivative of the sampled coordinates is the inverse of the map.
    pull = np.stack([moved[:, 2, 1] - moved[:, 0, 1], moved[:, 1, 2] - moved[:, 1, 0]], -1) / 2
    zoom = 1 / np.sqrt(np.linalg.det(pull))
    angle = np.rad2deg(np.arctan2(pull[:, 1, 0], pull[:, 0, 0]))
    shift = -np.linalg.solve(pull, moved[:, 1, 1, :, None])[..., 0] / side
    draws = {
        "angle": (angle + 40) / 80,
        "scale": (np.log(zoom) - np.log(0.8)) / np.log(1.25 / 0.8),
        "down": (shift[:, 0] + 0.1) / 0.2,
        "right": (shift[:, 1] + 0.1) / 0.2,
    }
    for name, draw in draws.items():
        assert stats.kstest(draw, "uniform").pvalue > 0.01, name


def test_shear_leaves_rows_where_they_are():
    moved = run(geometry.random_affine, ramp(64, 17), shear=30.0)["image"][:, 6:11, 8]
    np.testing.assert_allclose(moved[..., 0], np.broadcast_to(np.arange(-2, 3), (64, 5)), atol=1e-4)
    slope = (moved[:, 4, 1] - moved[:, 0, 1]) / 4
    assert np.abs(slope).max() <= np.tan(np.deg2rad(30)) + 1e-4
    assert np.abs(slope).max() > 0.4


def test_elastic_displacements_have_the_asked_spread_and_are_smooth():
    side, sigma = 33, 2.0
    moved = run(geometry.random_elastic, ramp(256, side), sigma=sigma, mode="constant")["image"]
    displaced = moved - ramp(256, side)["image"]
    inner = displaced[:, 12:21, 12:21]
    assert abs(inner[:, 4, 4].std() / sigma - 1) < 0.15  # the middle of the grid is a node
    assert np.abs(np.diff(inner, axis=1)).max() < sigma  # a node every 16 pixels


def test_what_is_uncovered_is_black_and_ignored_or_mirrored():
    batch = {
        "image": np.ones((8, 16, 16, 1), np.float32),
        "mask": np.ones((8, 16, 16), np.uint8),
        "weight": np.ones((8, 16, 16), np.float32),
    }
    shrink = partial(geometry.random_affine, scale=(0.5, 0.5))
    moved, mirrored, cropped = run_all(
        (shrink, partial(shrink, mode="reflect"), partial(geometry.random_crop, padding=4)), batch
    )
    assert (moved["mask"][:, 0] == IGNORE).all()
    assert (moved["image"][:, 0] == 0).all()
    assert (moved["weight"][:, 0] == 0).all()
    assert (moved["mask"][:, 8, 8] == 1).all()
    jax.tree.map(np.testing.assert_array_equal, mirrored, batch)
    np.testing.assert_array_equal(cropped["mask"] == IGNORE, cropped["image"][..., 0] == 0)
    assert (cropped["mask"] == IGNORE).any()


def test_layers_of_another_size_are_refused():
    batch = blobs(2, 8)
    with pytest.raises(ValueError, match="mask"):
        run(geometry.random_flip, {**batch, "mask": batch["mask"][:, 1:]})


BAD = [
    (partial(geometry.random_crop, mode="wrap"), "mode"),
    (geometry.random_crop, "neither size nor padding"),
    (partial(geometry.random_crop, size=17), "17x17 does not fit images of 16x12"),
    (partial(geometry.random_resized_crop, scale=(1.0, 0.5)), "scale"),
    (partial(geometry.random_resized_crop, ratio=(2.0, 1.0)), "ratio"),
    (geometry.random_quarter_turn, "square"),
    (partial(geometry.random_affine, scale=(1.0, 0.5)), "scale"),
    (partial(geometry.random_affine, mode="wrap"), "mode"),
]


@pytest.mark.parametrize(("function", "message"), BAD)
def test_bad_options_are_named_in_one_line(function, message):
    batch = {"image": np.zeros((8, 16, 12, 3), np.float32)}
    with pytest.raises(ValueError, match=message) as error:
        jax.eval_shape(function, jax.random.key(0), batch)
    assert "\n" not in str(error.value)
