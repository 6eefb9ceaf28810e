"""Augmentations: closed forms, distributions, and draws that depend on the key and the row only."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy import ndimage, stats

from opsin.data import augment, color, geometry, mixing
from opsin.data.randaugment import rand_augment


def images(rows: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(7).random((rows, height, width, channels), np.float32)


def run(function, batch, seed: int = 0, **options) -> dict[str, np.ndarray]:
    """The augmented batch, by the compiled function."""
    return run_all((partial(function, **options),), batch, seed)[0]


def run_all(functions, batch, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """The batch as each of these functions augments it, all in one program."""
    program = jax.jit(lambda key, batch: [function(key, batch) for function in functions])
    return jax.device_get(program(jax.random.key(seed), batch))


def test_scale_then_normalize():
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    scaled = augment.scale({"image": pixels, "label": np.arange(2)})
    assert scaled["image"].dtype == jnp.float32
    np.testing.assert_allclose(scaled["image"], pixels / 255, rtol=1e-6)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    normal = augment.normalize(scaled, mean, std)
    np.testing.assert_allclose(
        normal["image"], (pixels / 255 - mean) / np.array(std), rtol=1e-5, atol=1e-6
    )
    with pytest.raises(ValueError, match="uint8"):
        augment.scale(scaled)
    with pytest.raises(ValueError, match="std"):
        augment.normalize(scaled, 0.0, 0.0)


def test_jitter_of_strength_zero_is_the_identity():
    batch = {"image": images(4, 4, 4)}
    np.testing.assert_array_equal(run(color.color_jitter, batch)["image"], batch["image"])


def test_jitter_draws_the_brightness_evenly():
    batch = {"image": np.full((512, 2, 2, 3), 0.5, np.float32)}
    factor = 2 * run(color.color_jitter, batch, brightness=0.8)["image"][:, 0, 0, 0]
    assert stats.kstest((factor - 0.2) / 1.6, "uniform").pvalue > 0.01


def test_jitter_applies_its_steps_in_either_order():
    # Black and white pixels in equal number. Brightness up, clipped, then contrast down leaves them
    # symmetric about 1/2; the other order does not. Both factors so: 1/4; that order: 1/2.
    chess = np.broadcast_to(np.eye(2, dtype=np.float32)[None, :, :, None], (512, 2, 2, 1))
    jittered = run(color.color_jitter, {"image": chess}, brightness=0.9, contrast=0.9)["image"]
    low, high = jittered.min((1, 2, 3)), jittered.max((1, 2, 3))
    brightness_first = (low > 0) & (np.abs(low + high - 1) < 1e-6)
    assert abs(brightness_first.mean() - 1 / 8) < 0.06  # four standard errors


def test_hue_jitter_keeps_the_value_and_grey():
    batch = {"image": images(8, 4, 4)}
    batch["image"][0] = 0.4
    turned = run(color.color_jitter, batch, hue=0.5)["image"]
    np.testing.assert_allclose(turned.max(-1), batch["image"].max(-1), atol=1e-6)
    np.testing.assert_allclose(turned[0], 0.4, atol=1e-6)
    assert (np.abs(turned - batch["image"])[1:].mean((1, 2, 3)) > 1e-3).all()


def sometimes(augmentation, probability: float):
    return partial(augment.random_apply, augmentation=augmentation, probability=probability)


def is_share(chosen: np.ndarray, probability: float) -> bool:
    """Whether as many are True as independent draws of `probability` would be."""
    return bool(stats.binomtest(int(chosen.sum()), chosen.size, probability).pvalue > 0.01)


def test_grey_is_the_luma_in_every_channel():
    batch = {"image": images(1024, 2, 3), "label": np.arange(1024)}
    original = batch["image"]
    always, never, some = run_all(
        (
            partial(color.random_grayscale, probability=1.0),
            partial(color.random_grayscale, probability=0.0),
            color.random_grayscale,
        ),
        batch,
    )
    luma = original.astype(np.float64) @ [0.299, 0.587, 0.114]
    grey = always["image"]
    np.testing.assert_allclose(grey, np.stack([luma] * 3, axis=-1), atol=1e-7)
    for channel in (1, 2):
        np.testing.assert_array_equal(grey[..., channel], grey[..., 0])
    np.testing.assert_array_equal(never["image"], original)
    drained = (some["image"] == grey).all((1, 2, 3))
    np.testing.assert_array_equal(
        some["image"], np.where(drained[:, None, None, None], grey, original)
    )
    np.testing.assert_array_equal(some["label"], batch["label"])
    assert is_share(drained, 0.2)


def test_blur_is_that_of_scipy_with_mirrored_borders():
    # The kernel has 0.5 · 18 = 9 pixels; a smaller share gives another result.
    options = {"probability": 1.0, "kernel_share": 0.5}
    batch = {"image": images(66, 18, 25)}
    batch["image"][2:] = 0.7
    one_sigma, any_sigma = run_all(
        (
            partial(color.gaussian_blur, sigma=(2.5, 2.5), **options),
            partial(color.gaussian_blur, **options),
        ),
        batch,
    )
    original = batch["image"][:2].astype(np.float64)
    expected = ndimage.gaussian_filter(original, 2.5, mode="mirror", radius=4, axes=(1, 2))
    np.testing.assert_allclose(one_sigma["image"][:2], expected, atol=1e-6)
    np.testing.assert_allclose(any_sigma["image"][2:], 0.7, atol=1e-6)  # flat ones stay


def test_blur_draws_sigma_evenly_and_keeps_the_sum_of_a_point():
    # A point becomes the kernel: beside its centre, exp(-1 / 2 sigma²) of it.
    original = np.zeros((1024, 9, 40, 1), np.float32)
    original[:, 4, 20] = 1.0
    blurred = run(color.gaussian_blur, {"image": original})["image"]
    beside, centre = blurred[:, 4, 21, 0], blurred[:, 4, 20, 0]
    applied = beside > 0
    assert is_share(applied, 0.5)
    np.testing.assert_array_equal(blurred[~applied], original[~applied])
    sigma = np.sqrt(-0.5 / np.log(beside[applied] / centre[applied]))
    assert stats.kstest((sigma - 0.1) / 1.9, "uniform").pvalue > 0.01
    np.testing.assert_allclose(blurred.sum((1, 2, 3)), 1, atol=1e-6)
    beyond = np.ones((9, 40), bool)
    beyond[3:6, 19:22] = False  # all that a kernel of 3 pixels reaches
    assert not blurred[:, beyond].any()


@pytest.mark.parametrize(
    ("side", "pixels"),
    [
        (2, 3),
        (40, 5),
        pytest.param(32, 3, marks=pytest.mark.proofs),
        pytest.param(224, 23, marks=pytest.mark.proofs),
    ],
)
def test_the_kernel_of_a_blur_is_a_tenth_of_the_side(side, pixels):
    # Counted on a step: the pixels that change are those within the radius of it.
    step = np.broadcast_to(np.arange(2 * side) < side, (1, side, 2 * side))[..., None]
    batch = {"image": step.astype(np.float32)}
    options = {"probability": 1.0, "sigma": (50.0, 50.0)}
    blurred = run(color.gaussian_blur, batch, **options)["image"]
    mixed = (blurred > 1e-3) & (blurred < 1 - 1e-3)
    np.testing.assert_array_equal(mixed.sum(2), pixels - 1)


def test_random_apply_takes_or_leaves_whole_examples():
    rows = 512
    batch = {
        "image": images(rows, 3, 4),
        "mask": np.random.default_rng(1).integers(0, 200, (rows, 3, 4), np.uint8),
        "weight": images(rows, 3, 4, 1)[..., 0],
        "label": np.arange(rows, dtype=np.int32),
    }
    always = partial(geometry.random_flip, probability=1.0)
    mirrored, never, every, result, half_of_half = run_all(
        (
            always,
            sometimes(always, 0.0),
            sometimes(always, 1.0),
            sometimes(always, 0.3),
            sometimes(geometry.random_flip, 0.5),
        ),
        batch,
    )
    jax.tree.map(np.testing.assert_array_equal, never, batch)
    jax.tree.map(np.testing.assert_array_equal, every, mirrored)
    chosen = (result["image"] == mirrored["image"]).all((1, 2, 3))
    assert is_share(chosen, 0.3)
    for name, entry in result.items():
        expected = np.where(chosen, mirrored[name].T, batch[name].T).T
        np.testing.assert_array_equal(entry, expected)
        assert entry.dtype == batch[name].dtype
    # Its draw is not that of what it applies: half of a half.
    assert is_share((half_of_half["image"] == mirrored["image"]).all((1, 2, 3)), 0.25)


def test_distortion_of_strength_zero_is_grey_in_a_fifth():
    batch = {"image": images(1024, 2, 2)}
    always, distorted = run_all(
        (
            partial(color.random_grayscale, probability=1.0),
            partial(color.color_distortion, strength=0.0),
        ),
        batch,
    )
    grey, result = always["image"], distorted["image"]
    drained = (result == grey).all((1, 2, 3))
    np.testing.assert_array_equal(
        result, np.where(drained[:, None, None, None], grey, batch["image"])
    )
    assert is_share(drained, 0.2)


def test_distortion_jitters_four_fifths_and_stays_in_range():
    # A grey image has no contrast, saturation or hue to change.
    grey = np.full((1024, 2, 2, 3), 0.5, np.float32)
    batch = {"image": np.concatenate([grey, images(1024, 2, 2)])}
    result = run(color.color_distortion, batch)["image"]
    assert result.min() >= 0
    assert result.max() <= 1
    factor = 2 * result[:1024].mean((1, 2, 3))
    jittered = np.abs(factor - 1) > 1e-6
    assert is_share(jittered, 0.8)
    assert stats.kstest((factor[jittered] - 0.2) / 1.6, "uniform").pvalue > 0.01
    assert is_share(np.ptp(result[1024:], axis=-1).max((1, 2)) < 1e-6, 0.2)
    untouched = (result[1024:] == batch["image"][1024:]).all((1, 2, 3))
    assert is_share(untouched, 0.2 * 0.8)


def test_distortion_is_the_jitter_of_the_paper_then_grey(batch):
    jitter = partial(color.color_jitter, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    by_hand = (sometimes(jitter, 0.8), partial(color.random_grayscale, probability=0.2))
    result, expected = run_all(
        (
            partial(color.color_distortion, strength=0.5),
            partial(augment.apply, augmentations=by_hand),
        ),
        batch,
    )
    np.testing.assert_allclose(result["image"], expected["image"], atol=1e-6)


def test_cutout_fills_a_clipped_square_around_any_pixel():
    height, width, fill, sizes = 5, 6, (2.0, 3.0, 4.0), (1, 4, 5)
    batch = {"image": images(512, height, width)}
    cuts = run_all([partial(mixing.cutout, size=size, fill=fill) for size in sizes], batch)
    for size, cut in zip(sizes, cuts, strict=True):
        erased = (cut["image"] == np.array(fill)).all(-1)
        expected = np.where(erased[..., None], fill, batch["image"])
        np.testing.assert_array_equal(cut["image"], expected)
        assert {mask.tobytes() for mask in erased} == clipped_rectangles(height, width, size, size)


def clipped_rectangles(height: int, width: int, *size: int) -> set[bytes]:
    """Masks of the rectangle around every pixel; chance misses one in 512 draws with p < 1e-5."""
    masks = set()
    for y in range(height):
        for x in range(width):
            top, left = y - size[0] // 2, x - size[1] // 2
            mask = np.zeros((height, width), bool)
            mask[max(top, 0) : top + size[0], max(left, 0) : left + size[1]] = True
            masks.add(mask.tobytes())
    return masks


# Most of a program that mixes is the draw of its lambda: what one lambda for each example shows is
# read from one program of mixup and one of cutmix.

ALPHA = 0.2  # of mixup by example
PASTED = (4, 3)  # rows and columns that cutmix by example asks for


@pytest.fixture(scope="module")
def mixup_by_example() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A batch with soft labels, which need no number of classes, and what becomes of it."""
    batch = {"image": images(1024, 3, 4), "label": np.eye(1024, dtype=np.float32)}
    return batch, run(mixing.mixup, batch, alpha=ALPHA, per_example=True)


@pytest.fixture(scope="module")
def cutmix_by_example() -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
    """A batch, and what becomes of it with alpha 1 and with a huge one.

    The huge one pins lambda to 1/2: sides of sqrt(1/2) of 6 and 5, so 4 and 3.
    """
    batch = numbered(512, 6, 5)
    cutmix = partial(mixing.cutmix, num_classes=512, per_example=True)
    return batch, run_all([partial(cutmix, alpha=alpha) for alpha in (1.0, 1e6)], batch)


def numbered(rows: int, height: int, width: int) -> dict[str, np.ndarray]:
    """Image i is i everywhere."""
    row = np.arange(rows, dtype=np.int32)
    image = np.broadcast_to(row.astype(np.float32)[:, None, None, None], (rows, height, width, 1))
    return {"image": image, "label": row}


@pytest.mark.parametrize("per_example", [False, True])
def test_mixup_averages_images_and_labels_alike(per_example, mixup_by_example):
    batch, mixed = mixup_by_example
    if not per_example:
        batch = {"image": images(6, 3, 4), "label": np.arange(6)}
        mixed = run(mixing.mixup, batch, alpha=1.0, num_classes=6)
    rows = len(batch["image"])
    share = mixed["label"].diagonal()
    # One for each, of which a few are 1 to the last bit, or one for all.
    distinct = len(set(share.tolist()))
    assert distinct > 0.9 * rows if per_example else distinct == 1
    identity = np.eye(rows)
    expected = share[:, None] * identity + (1 - share[:, None]) * np.roll(identity, 1, 0)
    np.testing.assert_allclose(mixed["label"], expected, atol=1e-6)
    original, weight = batch["image"], share[:, None, None, None]
    expected = weight * original + (1 - weight) * np.roll(original, 1, 0)
    np.testing.assert_allclose(mixed["image"], expected, atol=1e-6)


def test_mixup_draws_lambda_from_a_beta_distribution(mixup_by_example):
    share = mixup_by_example[1]["label"].diagonal()
    assert stats.kstest(share, stats.beta(ALPHA, ALPHA).cdf).pvalue > 0.01
    variance = 1 / (4 * (2 * ALPHA + 1))
    assert abs(share.mean() - 0.5) < 4 * np.sqrt(variance / len(share))
    assert abs(share.var() / variance - 1) < 0.15


@pytest.mark.parametrize("per_example", [False, True])
def test_cutmix_labels_are_the_pasted_area(per_example, cutmix_by_example):
    batch, (mixed, _) = cutmix_by_example
    if not per_example:
        batch = numbered(16, 10, 7)
        mixed = run(mixing.cutmix, batch, alpha=1.0, num_classes=16)
    row = batch["label"]
    pasted = mixed["image"][..., 0] == np.roll(row, 1)[:, None, None]
    np.testing.assert_array_equal(
        mixed["image"][..., 0], np.where(pasted, np.roll(row, 1)[:, None, None], row[:, None, None])
    )
    # A full rectangle: as many pixels as its rows times its columns.
    area = pasted.sum((1, 2))
    np.testing.assert_array_equal(area, pasted.any(2).sum(1) * pasted.any(1).sum(1))
    border = np.ones(pasted.shape[1:], bool)
    border[1:-1, 1:-1] = False
    whole = ~(pasted & border).any((1, 2))  # not cut off by the border of the image
    assert (len(set(area[whole])) > 3) == per_example
    assert area.max() > 0
    share = area / pasted[0].size
    np.testing.assert_allclose(mixed["label"][row, row], 1 - share, atol=1e-6)
    np.testing.assert_allclose(mixed["label"][row, row - 1], share, atol=1e-6)
    np.testing.assert_allclose(mixed["label"].sum(1), 1, atol=1e-6)


def test_cutmix_rectangle_has_the_sides_that_lambda_asks_for(cutmix_by_example):
    batch, (_, mixed) = cutmix_by_example
    pasted = (mixed["image"] != batch["image"])[..., 0]
    assert {mask.tobytes() for mask in pasted} == clipped_rectangles(6, 5, *PASTED)


@pytest.mark.proofs  # the draw itself is held to its distribution above
def test_a_tiny_alpha_is_finite_and_keeps_images_pure():
    batch = {"image": images(64, 2, 2), "label": np.eye(64, dtype=np.float32)}
    mixed = run(mixing.mixup, batch, alpha=1e-3, per_example=True)
    assert np.isfinite(mixed["image"]).all()
    assert ((mixed["label"] > 1 - 1e-4).sum(1) == 1).mean() > 0.9


FEW = (
    geometry.random_flip,
    color.gaussian_blur,
    partial(mixing.cutout, size=4),
    partial(mixing.cutmix, alpha=1.0, num_classes=5, per_example=True),
)
ALL = (
    partial(geometry.random_crop, padding=2, mode="reflect"),
    geometry.random_resized_crop,
    partial(color.color_distortion, strength=0.5),
    rand_augment,
    *FEW,
)


@pytest.fixture(
    scope="module", params=[FEW, pytest.param(ALL, marks=pytest.mark.proofs)], ids=["few", "all"]
)
def augmentations(request) -> tuple[augment.Augmentation, ...]:
    return request.param


@pytest.fixture(scope="module")
def batch() -> dict[str, np.ndarray]:
    """The same image in every row, so that differences come from the draws alone."""
    image = np.broadcast_to(images(1, 16, 12), (8, 16, 12, 3))
    row = np.arange(8, dtype=np.int32)
    return {"image": image, "label": row % 5, "valid": row > 3}


@pytest.fixture(scope="module")
def pipeline(augmentations):
    return jax.jit(partial(augment.apply, augmentations=augmentations))


def test_draws_differ_by_key_and_by_row(pipeline, batch, key):
    augmented = pipeline(key, batch)
    jax.tree.map(np.testing.assert_array_equal, augmented, pipeline(key, batch))
    both = np.concatenate([augmented["image"], pipeline(jax.random.key(1), batch)["image"]])
    distance = np.abs(both[:, None] - both).mean((2, 3, 4)) + np.eye(len(both))
    assert distance.min() > 0.01


@pytest.mark.proofs
@pytest.mark.parametrize("augmentations", [ALL], ids=["all"], indirect=True)
def test_half_a_batch_run_eagerly_draws_the_same(augmentations, pipeline, batch, key):
    half = jax.tree.map(lambda array: array[:4], batch)
    before = jax.tree.map(np.array, half)
    eager, compiled = augment.apply(key, half, augmentations), pipeline(key, batch)
    jax.tree.map(np.testing.assert_array_equal, half, before)
    np.testing.assert_array_equal(eager["valid"], half["valid"])
    # Row 0 is mixed with the last row, which is another one in half a batch.
    np.testing.assert_allclose(eager["image"][1:], compiled["image"][1:4], atol=1e-5)
    np.testing.assert_allclose(eager["label"][1:], compiled["label"][1:4], atol=1e-6)


def test_a_pipeline_keeps_shape_type_and_range(pipeline, batch, key):
    augmented = jax.device_get(pipeline(key, batch))
    assert augmented["image"].dtype == np.float32
    assert augmented["image"].shape == batch["image"].shape
    assert augmented["image"].min() > -1e-6
    assert augmented["image"].max() < 1 + 1e-6
    np.testing.assert_allclose(augmented["label"].sum(-1), 1, atol=1e-6)


def test_eight_devices_draw_what_one_draws(augmentations, pipeline, batch, key):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    replicated = NamedSharding(mesh, PartitionSpec())
    sharded = jax.jit(
        partial(augment.apply, augmentations=augmentations),
        in_shardings=(replicated, rows),
        out_shardings=rows,
    )(key, batch)
    assert len(sharded["image"].sharding.device_set) == 8
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), sharded, pipeline(key, batch))


def test_one_channel_passes_through_and_has_no_colour(batch, key):
    gray = {**batch, "image": batch["image"][..., :1]}
    augmentations = (*FEW, color.color_distortion)
    through = jax.eval_shape(partial(augment.apply, augmentations=augmentations), key, gray)
    assert through["image"].shape == (8, 16, 12, 1)
    jittered = run(color.color_jitter, gray, saturation=0.5, hue=0.5)
    np.testing.assert_array_equal(jittered["image"], gray["image"])


def test_image_i_draws_from_the_key_folded_with_i(batch, key):
    @jax.jit
    def draw(key, batch):
        drawn = augment.map_images(lambda key, image: jax.random.uniform(key), key, batch)["image"]
        return drawn, [jax.random.uniform(jax.random.fold_in(key, row)) for row in (0, 3, 7)]

    drawn, expected = jax.device_get(draw(key, batch))
    np.testing.assert_array_equal(drawn[[0, 3, 7]], expected)


def test_each_place_in_a_pipeline_has_its_own_stream(batch, key):
    flip = geometry.random_flip

    @jax.jit
    def both_ways(key, batch):
        by_hand = flip(jax.random.fold_in(key, 1), flip(jax.random.fold_in(key, 0), batch))
        return augment.apply(key, batch, (flip, flip)), by_hand

    twice, by_hand = both_ways(key, batch)
    np.testing.assert_array_equal(twice["image"], by_hand["image"])
    assert not np.array_equal(twice["image"], batch["image"])


BAD = [
    (partial(color.gaussian_blur, sigma=(2.0, 1.0)), "sigma"),
    (
        sometimes(partial(geometry.random_crop, size=8), 0.5),
        r"image would change from float32 \[8, 16, 12, 3\] to float32 \[8, 8, 8, 3\]",
    ),
    (
        sometimes(partial(mixing.mixup, alpha=1.0, num_classes=5), 0.5),
        r"label would change from int32 \[8\] to float32 \[8, 5\]",
    ),
    (sometimes(lambda key, batch: {"image": batch["image"]}, 0.5), "label would change .* to None"),
    (partial(mixing.cutout, size=0), "size"),
    (partial(mixing.cutout, size=13), "size"),
    (partial(mixing.mixup, alpha=1.0), "num_classes"),
    (partial(mixing.cutmix, alpha=1.0), "num_classes"),
]


@pytest.mark.parametrize(("function", "message"), BAD)
def test_bad_options_are_named_in_one_line(function, message, batch, key):
    with pytest.raises(ValueError, match=message) as error:
        jax.eval_shape(function, key, batch)
    assert "\n" not in str(error.value)


def test_unscaled_images_and_labels_of_another_width_are_refused(batch, key):
    with pytest.raises(ValueError, match="see scale"):
        geometry.random_flip(key, {"image": np.zeros((2, 4, 4, 3), np.uint8)})
    with pytest.raises(ValueError, match="num_classes=5"):
        mixing.mixup(
            key, {**batch, "label": np.zeros((8, 4), np.float32)}, alpha=1.0, num_classes=5
        )


def test_noise_is_normal_and_of_the_deviation_asked_for():
    batch = {"image": np.full((64, 12, 12, 3), 0.5, np.float32)}
    noise = run(color.gaussian_noise, batch, std=0.2)["image"] - 0.5
    assert stats.kstest(noise.ravel(), "norm", args=(0, 0.2)).pvalue > 1e-3
