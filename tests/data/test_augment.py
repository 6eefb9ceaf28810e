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


def images(rows: int, height: int, width: int, channels: int = 3) -> jax.Array:
    return jax.random.uniform(jax.random.key(7), (rows, height, width, channels))


def run(function, batch, seed: int = 0, **options) -> dict[str, np.ndarray]:
    """The augmented batch, by the compiled function."""
    augmented = jax.jit(partial(function, **options))(jax.random.key(seed), batch)
    return jax.device_get(augmented)


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
    batch = {"image": jnp.full((512, 2, 2, 3), 0.5)}
    factor = 2 * run(color.color_jitter, batch, brightness=0.8)["image"][:, 0, 0, 0]
    assert stats.kstest((factor - 0.2) / 1.6, "uniform").pvalue > 0.01


def test_jitter_applies_its_steps_in_either_order():
    # Black and white pixels in equal number. Brightness up, clipped, then contrast down leaves them
    # symmetric about 1/2; the other order does not. Both factors so: 1/4; that order: 1/2.
    chess = jnp.broadcast_to(jnp.eye(2)[None, :, :, None], (512, 2, 2, 1))
    jittered = run(color.color_jitter, {"image": chess}, brightness=0.9, contrast=0.9)["image"]
    low, high = jittered.min((1, 2, 3)), jittered.max((1, 2, 3))
    brightness_first = (low > 0) & (np.abs(low + high - 1) < 1e-6)
    assert abs(brightness_first.mean() - 1 / 8) < 0.06  # four standard errors


def test_hue_jitter_keeps_the_value_and_grey():
    batch = {"image": images(8, 4, 4).at[0].set(0.4)}
    turned = run(color.color_jitter, batch, hue=0.5)["image"]
    np.testing.assert_allclose(turned.max(-1), np.asarray(batch["image"]).max(-1), atol=1e-6)
    np.testing.assert_allclose(turned[0], 0.4, atol=1e-6)
    assert (np.abs(turned - batch["image"])[1:].mean((1, 2, 3)) > 1e-3).all()


def sometimes(augmentation, probability: float):
    return partial(augment.random_apply, augmentation=augmentation, probability=probability)


def is_share(chosen: np.ndarray, probability: float) -> bool:
    """Whether as many are True as independent draws of `probability` would be."""
    return bool(stats.binomtest(int(chosen.sum()), chosen.size, probability).pvalue > 0.01)


def test_grey_is_the_luma_in_every_channel():
    batch = {"image": images(1024, 2, 3), "label": jnp.arange(1024)}
    original = np.asarray(batch["image"])
    luma = original.astype(np.float64) @ [0.299, 0.587, 0.114]
    grey = run(color.random_grayscale, batch, probability=1.0)["image"]
    np.testing.assert_allclose(grey, np.stack([luma] * 3, axis=-1), atol=1e-7)
    for channel in (1, 2):
        np.testing.assert_array_equal(grey[..., channel], grey[..., 0])
    none = run(color.random_grayscale, batch, probability=0.0)
    np.testing.assert_array_equal(none["image"], original)
    some = run(color.random_grayscale, batch)
    drained = (some["image"] == grey).all((1, 2, 3))
    np.testing.assert_array_equal(
        some["image"], np.where(drained[:, None, None, None], grey, original)
    )
    np.testing.assert_array_equal(some["label"], batch["label"])
    assert is_share(drained, 0.2)


def test_blur_is_that_of_scipy_with_mirrored_borders():
    # The kernel has 0.5 · 18 = 9 pixels; a smaller share gives another result.
    batch = {"image": images(2, 18, 25)}
    options = {"probability": 1.0, "sigma": (2.5, 2.5), "kernel_share": 0.5}
    blurred = run(color.gaussian_blur, batch, **options)["image"]
    original = np.asarray(batch["image"], np.float64)
    expected = ndimage.gaussian_filter(original, 2.5, mode="mirror", radius=4, axes=(1, 2))
    np.testing.assert_allclose(blurred, expected, atol=1e-6)
    flat = {"image": jnp.full((64, 18, 25, 3), 0.7)}
    blurred = run(color.gaussian_blur, flat, probability=1.0, kernel_share=0.5)["image"]
    np.testing.assert_allclose(blurred, 0.7, atol=1e-6)


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


@pytest.mark.parametrize(("side", "pixels"), [(2, 3), (32, 3), (40, 5), (224, 23)])
def test_the_kernel_of_a_blur_is_a_tenth_of_the_side(side, pixels):
    # Counted on a step: the pixels that change are those within the radius of it.
    step = jnp.broadcast_to(jnp.arange(2 * side) < side, (1, side, 2 * side))[..., None]
    batch = {"image": step.astype(jnp.float32)}
    options = {"probability": 1.0, "sigma": (50.0, 50.0)}
    blurred = run(color.gaussian_blur, batch, **options)["image"]
    mixed = (blurred > 1e-3) & (blurred < 1 - 1e-3)
    np.testing.assert_array_equal(mixed.sum(2), pixels - 1)


def test_random_apply_takes_or_leaves_whole_examples():
    rows = 512
    batch = {
        "image": images(rows, 3, 4),
        "mask": jax.random.randint(jax.random.key(1), (rows, 3, 4), 0, 200).astype(jnp.uint8),
        "weight": images(rows, 3, 4, 1)[..., 0],
        "label": jnp.arange(rows),
    }
    original = jax.device_get(batch)
    always = partial(geometry.random_flip, probability=1.0)
    mirrored = run(always, batch)
    for probability, expected in ((0.0, original), (1.0, mirrored)):
        result = run(sometimes(always, probability), batch)
        jax.tree.map(np.testing.assert_array_equal, result, expected)
    result = run(sometimes(always, 0.3), batch)
    chosen = (result["image"] == mirrored["image"]).all((1, 2, 3))
    assert is_share(chosen, 0.3)
    for name, entry in result.items():
        expected = np.where(chosen, mirrored[name].T, original[name].T).T
        np.testing.assert_array_equal(entry, expected)
        assert entry.dtype == original[name].dtype
    # Its draw is not that of what it applies: half of a half.
    flipped = run(sometimes(geometry.random_flip, 0.5), batch)
    assert is_share((flipped["image"] == mirrored["image"]).all((1, 2, 3)), 0.25)


def test_distortion_of_strength_zero_is_grey_in_a_fifth():
    batch = {"image": images(1024, 2, 2)}
    grey = run(color.random_grayscale, batch, probability=1.0)["image"]
    result = run(color.color_distortion, batch, strength=0.0)["image"]
    drained = (result == grey).all((1, 2, 3))
    np.testing.assert_array_equal(
        result, np.where(drained[:, None, None, None], grey, batch["image"])
    )
    assert is_share(drained, 0.2)


def test_distortion_jitters_four_fifths_and_stays_in_range():
    # A grey image has no contrast, saturation or hue to change.
    grey = jnp.full((1024, 2, 2, 3), 0.5)
    batch = {"image": jnp.concatenate([grey, images(1024, 2, 2)])}
    result = run(color.color_distortion, batch)["image"]
    assert result.min() >= 0
    assert result.max() <= 1
    factor = 2 * result[:1024].mean((1, 2, 3))
    jittered = np.abs(factor - 1) > 1e-6
    assert is_share(jittered, 0.8)
    assert stats.kstest((factor[jittered] - 0.2) / 1.6, "uniform").pvalue > 0.01
    assert is_share(np.ptp(result[1024:], axis=-1).max((1, 2)) < 1e-6, 0.2)
    untouched = (result[1024:] == np.asarray(batch["image"][1024:])).all((1, 2, 3))
    assert is_share(untouched, 0.2 * 0.8)


def test_distortion_is_the_jitter_of_the_paper_then_grey(batch, key):
    jitter = partial(color.color_jitter, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    by_hand = (sometimes(jitter, 0.8), partial(color.random_grayscale, probability=0.2))
    expected = jax.jit(partial(augment.apply, augmentations=by_hand))(key, batch)
    result = run(color.color_distortion, batch, strength=0.5)
    np.testing.assert_allclose(result["image"], expected["image"], atol=1e-6)


@pytest.mark.parametrize("size", [1, 4, 5])
def test_cutout_fills_a_clipped_square_around_any_pixel(size):
    rows, height, width = 512, 5, 6
    batch = {"image": images(rows, height, width)}
    cut = run(mixing.cutout, batch, size=size, fill=(2.0, 3.0, 4.0))["image"]
    erased = (cut == np.array([2.0, 3.0, 4.0])).all(-1)
    np.testing.assert_array_equal(cut, np.where(erased[..., None], [2.0, 3.0, 4.0], batch["image"]))
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


@pytest.mark.parametrize("per_example", [False, True])
def test_mixup_averages_images_and_labels_alike(per_example):
    rows = 6
    batch = {"image": images(rows, 3, 4), "label": jnp.arange(rows)}
    options = {"alpha": 1.0, "num_classes": rows, "per_example": per_example}
    if per_example:  # soft labels, which need no number of classes
        batch["label"], options["num_classes"] = jnp.eye(rows), None
    mixed = run(mixing.mixup, batch, **options)
    share = mixed["label"].diagonal()
    assert len(set(share.tolist())) == (rows if per_example else 1)
    identity = np.eye(rows)
    expected = share[:, None] * identity + (1 - share[:, None]) * np.roll(identity, 1, 0)
    np.testing.assert_allclose(mixed["label"], expected, atol=1e-6)
    original, weight = np.asarray(batch["image"]), share[:, None, None, None]
    expected = weight * original + (1 - weight) * np.roll(original, 1, 0)
    np.testing.assert_allclose(mixed["image"], expected, atol=1e-6)


def test_mixup_draws_lambda_from_a_beta_distribution():
    rows, alpha = 2048, 0.2
    # A white image and a black one in turn: the white ones become their lambda.
    batch = {
        "image": jnp.tile(jnp.array([1.0, 0.0]), rows // 2)[:, None, None, None],
        "label": jnp.zeros(rows, jnp.int32),
    }
    mixed = run(mixing.mixup, batch, alpha=alpha, num_classes=1, per_example=True)
    share = mixed["image"][::2, 0, 0, 0]
    assert stats.kstest(share, stats.beta(alpha, alpha).cdf).pvalue > 0.01
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(share.mean() - 0.5) < 4 * np.sqrt(variance / len(share))
    assert abs(share.var() / variance - 1) < 0.15


@pytest.mark.parametrize("per_example", [False, True])
def test_cutmix_labels_are_the_pasted_area(per_example):
    rows, height, width = 16, 10, 7
    values = jnp.arange(rows, dtype=jnp.float32)  # image i is i everywhere
    batch = {
        "image": jnp.broadcast_to(values[:, None, None, None], (rows, height, width, 1)),
        "label": jnp.arange(rows),
    }
    mixed = run(mixing.cutmix, batch, alpha=1.0, num_classes=rows, per_example=per_example)
    row = np.arange(rows)
    pasted = mixed["image"][..., 0] == np.roll(row, 1)[:, None, None]
    np.testing.assert_array_equal(
        mixed["image"][..., 0], np.where(pasted, np.roll(row, 1)[:, None, None], row[:, None, None])
    )
    # A full rectangle: as many pixels as its rows times its columns.
    area = pasted.sum((1, 2))
    np.testing.assert_array_equal(area, pasted.any(2).sum(1) * pasted.any(1).sum(1))
    assert (len(set(area)) > 1) == per_example
    assert area.max() > 0
    share = area / (height * width)
    np.testing.assert_allclose(mixed["label"][row, row], 1 - share, atol=1e-6)
    np.testing.assert_allclose(mixed["label"][row, row - 1], share, atol=1e-6)
    np.testing.assert_allclose(mixed["label"].sum(1), 1, atol=1e-6)


def test_cutmix_rectangle_has_the_sides_that_lambda_asks_for():
    # A huge alpha pins lambda to 1/2: sides of sqrt(1/2) of 6 and 5, so 4 and 3.
    black_and_white = jnp.tile(jnp.array([1.0, 0.0]), 256)[:, None, None, None]
    batch = {
        "image": jnp.broadcast_to(black_and_white, (512, 6, 5, 1)),
        "label": jnp.zeros(512, jnp.int32),
    }
    mixed = run(mixing.cutmix, batch, alpha=1e6, num_classes=1, per_example=True)
    pasted = mixed["image"][..., 0] != np.asarray(batch["image"])[..., 0]
    assert {mask.tobytes() for mask in pasted} == clipped_rectangles(6, 5, 4, 3)


def test_a_tiny_alpha_is_finite_and_keeps_images_pure():
    batch = {"image": images(64, 2, 2), "label": jnp.eye(64)}
    mixed = run(mixing.mixup, batch, alpha=1e-3, per_example=True)
    assert np.isfinite(mixed["image"]).all()
    assert ((mixed["label"] > 1 - 1e-4).sum(1) == 1).mean() > 0.9


PIPELINE = (
    partial(geometry.random_crop, padding=2, mode="reflect"),
    geometry.random_flip,
    geometry.random_resized_crop,
    partial(color.color_distortion, strength=0.5),
    color.gaussian_blur,
    rand_augment,
    partial(mixing.cutout, size=4),
    partial(mixing.cutmix, alpha=1.0, num_classes=5, per_example=True),
)


@pytest.fixture(scope="module")
def batch() -> dict[str, jax.Array]:
    """The same image in every row, so that differences come from the draws alone."""
    image = jnp.broadcast_to(images(1, 16, 12), (8, 16, 12, 3))
    return {"image": image, "label": jnp.arange(8) % 5, "valid": jnp.arange(8) > 3}


@pytest.fixture(scope="module")
def pipeline():
    return jax.jit(partial(augment.apply, augmentations=PIPELINE))


def test_draws_differ_by_key_and_by_row(pipeline, batch, key):
    augmented = pipeline(key, batch)
    jax.tree.map(np.testing.assert_array_equal, augmented, pipeline(key, batch))
    both = np.concatenate([augmented["image"], pipeline(jax.random.key(1), batch)["image"]])
    distance = np.abs(both[:, None] - both).mean((2, 3, 4)) + np.eye(len(both))
    assert distance.min() > 0.01


@pytest.mark.proofs
def test_half_a_batch_run_eagerly_draws_the_same(pipeline, batch, key):
    half = jax.tree.map(lambda array: array[:4], batch)
    before = jax.tree.map(np.array, half)
    eager, compiled = augment.apply(key, half, PIPELINE), pipeline(key, batch)
    jax.tree.map(np.testing.assert_array_equal, half, before)
    np.testing.assert_array_equal(eager["valid"], half["valid"])
    # Row 0 is mixed with the last row, which is another one in half a batch.
    np.testing.assert_allclose(eager["image"][1:], compiled["image"][1:4], atol=1e-5)
    np.testing.assert_allclose(eager["label"][1:], compiled["label"][1:4], atol=1e-6)


def test_a_pipeline_keeps_shape_type_and_range(pipeline, batch, key):
    augmented = pipeline(key, batch)
    assert augmented["image"].dtype == jnp.float32
    assert augmented["image"].shape == batch["image"].shape
    assert augmented["image"].min() > -1e-6
    assert augmented["image"].max() < 1 + 1e-6
    np.testing.assert_allclose(augmented["label"].sum(-1), 1, atol=1e-6)


def test_eight_devices_draw_what_one_draws(pipeline, batch, key):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    replicated = NamedSharding(mesh, PartitionSpec())
    sharded = jax.jit(
        partial(augment.apply, augmentations=PIPELINE),
        in_shardings=(replicated, rows),
        out_shardings=rows,
    )(key, batch)
    assert len(sharded["image"].sharding.device_set) == 8
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), sharded, pipeline(key, batch))


def test_one_channel_passes_through_and_has_no_colour(batch, key):
    gray = {**batch, "image": batch["image"][..., :1]}
    through = jax.eval_shape(partial(augment.apply, augmentations=PIPELINE), key, gray)
    assert through["image"].shape == (8, 16, 12, 1)
    jittered = run(color.color_jitter, gray, saturation=0.5, hue=0.5)
    np.testing.assert_array_equal(jittered["image"], gray["image"])


def test_image_i_draws_from_the_key_folded_with_i(batch, key):
    drawn = augment.map_images(lambda key, image: jax.random.uniform(key), key, batch)["image"]
    expected = [jax.random.uniform(jax.random.fold_in(key, row)) for row in range(8)]
    np.testing.assert_array_equal(drawn, expected)


def test_each_place_in_a_pipeline_has_its_own_stream(batch, key):
    flip = geometry.random_flip
    twice = augment.apply(key, batch, (flip, flip))
    by_hand = flip(jax.random.fold_in(key, 1), flip(jax.random.fold_in(key, 0), batch))
    np.testing.assert_array_equal(twice["image"], by_hand["image"])
    assert not jnp.array_equal(twice["image"], batch["image"])


BAD = [
    (partial(color.random_grayscale, probability=-0.1), "random_grayscale: .* got -0.1"),
    (partial(color.gaussian_blur, probability=1.5), "gaussian_blur: probability .* got 1.5"),
    (partial(color.gaussian_blur, sigma=(0.0, 1.0)), "sigma"),
    (partial(color.gaussian_blur, sigma=(2.0, 1.0)), "sigma"),
    (partial(color.gaussian_blur, kernel_share=0.0), "kernel_share"),
    (partial(color.gaussian_blur, kernel_share=1.1), "kernel_share"),
    (partial(color.color_distortion, strength=-0.1), "strength"),
    (partial(color.color_distortion, strength=2.6), r"\[0, 2.5\], got 2.6"),
    (sometimes(geometry.random_flip, 1.1), "random_apply: probability"),
    (
        sometimes(partial(geometry.random_crop, size=8), 0.5),
        r"image would change from float32 \[8, 16, 12, 3\] to float32 \[8, 8, 8, 3\]",
    ),
    (
        sometimes(partial(mixing.mixup, alpha=1.0, num_classes=5), 0.5),
        r"label would change from int32 \[8\] to float32 \[8, 5\]",
    ),
    (sometimes(lambda key, batch: {"image": batch["image"]}, 0.5), "label would change .* to None"),
    (partial(color.color_jitter, contrast=-0.1), "contrast=-0.1"),
    (partial(color.color_jitter, hue=0.6), "hue"),
    (partial(mixing.cutout, size=0), "size"),
    (partial(color.gaussian_noise, std=-0.1), "negative"),
    (partial(mixing.cutout, size=13), "size"),
    (partial(mixing.mixup, alpha=0.0, num_classes=5), "alpha"),
    (partial(mixing.mixup, alpha=1.0), "num_classes"),
    (partial(mixing.cutmix, alpha=-1.0, num_classes=5), "alpha"),
    (partial(mixing.cutmix, alpha=1.0), "num_classes"),
]


@pytest.mark.parametrize(("function", "message"), BAD)
def test_bad_options_are_named_in_one_line(function, message, batch, key):
    with pytest.raises(ValueError, match=message) as error:
        jax.eval_shape(function, key, batch)
    assert "\n" not in str(error.value)


def test_unscaled_images_and_labels_of_another_width_are_refused(batch, key):
    with pytest.raises(ValueError, match="see scale"):
        geometry.random_flip(key, {"image": jnp.zeros((2, 4, 4, 3), jnp.uint8)})
    with pytest.raises(ValueError, match="num_classes=5"):
        mixing.mixup(key, {**batch, "label": jnp.zeros((8, 4))}, alpha=1.0, num_classes=5)


def test_noise_is_normal_and_of_the_deviation_asked_for():
    batch = {"image": jnp.full((64, 12, 12, 3), 0.5)}
    noise = np.asarray(run(color.gaussian_noise, batch, std=0.2)["image"]) - 0.5
    assert stats.kstest(noise.ravel(), "norm", args=(0, 0.2)).pvalue > 1e-3
