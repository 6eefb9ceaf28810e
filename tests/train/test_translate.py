"""Translation between images and masks: which is made of which, and what is measured of it."""

from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.config.tree import override
from opsin.data.augment import row_keys
from opsin.data.examples import Arrays, Examples
from opsin.data.masks import IGNORE
from opsin.losses.adversarial import RELATIVISTIC
from opsin.metrics.state import compute_all
from opsin.models.generative.pix2pix import PatchGAN
from opsin.models.segmentation.unet import UNet
from opsin.train.experiment import Data, Experiment, Loop
from opsin.train.loop import fit
from opsin.train.methods import adamw
from opsin.train.optim import Optimizer
from opsin.train.schedules import constant
from opsin.train.settings import SettingError
from opsin.train.tasks.translate import Translate
from tests.train.conftest import assert_trees_close
from tests.train.drawn import drawn_variables

TASK = Translate(
    generator=UNet(num_classes=1, width=4, depth=1, padding="same"),
    discriminator=PatchGAN(width=4, strided=1, norm=None),
    l1=10.0,
)


def halves(split: str, *, n: int = 24) -> Examples:
    """Images of 16×16 that are bright where the mask is 1, and dark elsewhere."""
    rng = np.random.default_rng([5, split == "test"])
    mask = np.zeros((n, 16, 16), np.uint8)
    for index, column in enumerate(rng.integers(4, 12, n)):
        mask[index, :, column:] = 1
    image = np.clip(rng.normal(60 + 120 * mask, 10), 0, 255).astype(np.uint8)[..., None]
    return Examples(Arrays({"image": image, "mask": mask}), ("dark", "bright"))


def signed(batch: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Images and masks in [-1, 1]."""
    return 2 * batch["image"] - 1, np.float32(2) * batch["mask"][..., None] - 1


def batch_of() -> dict[str, Any]:
    arrays = halves("test").records.arrays  # pyright: ignore
    image = (arrays["image"][:4] / 255).astype(np.float32)
    return {"image": image, "mask": arrays["mask"][:4].astype(np.int32), "valid": np.arange(4) < 3}


@pytest.fixture(scope="module")
def params():
    return drawn_variables(TASK, batch_of())[0]


@jax.jit
def generated(params: Any, given: Any) -> Any:
    """Images made of others, as the generator makes them in training."""
    return jnp.tanh(TASK.generator.apply({"params": params["generator"]}, given, train=True))


@pytest.mark.parametrize("direction", ["mask to image", "image to mask"])
def test_the_loss_of_the_generator_is_of_its_target(params, direction):
    both = replace(TASK, direction=direction)
    batch, key = batch_of(), jax.random.key(1)
    image, mask = signed(batch)
    given, target = (mask, image) if direction == "mask to image" else (image, mask)

    @jax.jit
    def losses(params: Any) -> Any:
        return [
            task.generator_loss(params, {}, batch, key, 0)
            for task in (both, replace(both, adversarial=0.0))
        ]

    (value, aux), (alone, _) = losses(params)
    error = np.abs(generated(params, given) - target).mean()
    found = compute_all(aux.metrics)
    assert found["l1"] == pytest.approx(error / 2, rel=1e-5)
    assert float(value) == pytest.approx(found["generator_loss"] + 10 * error, rel=1e-5)
    assert float(alone) == pytest.approx(10 * error, rel=1e-5)


def test_the_loss_of_the_discriminator_is_half_that_of_true_and_made_pairs(params):
    """Value and gradient, by hand: each pair with its own condition, and none for the generator."""
    batch, key = batch_of(), jax.random.key(1)
    image, mask = signed(batch)
    made = generated(params, mask)

    def by_hand(own: Any) -> Any:
        def judge(x: Any) -> Any:
            return TASK.discriminator.apply({"params": own}, x, condition=mask, train=True)

        pairs = jax.nn.softplus(-judge(image)) + jax.nn.softplus(judge(made))
        return 0.5 * jnp.mean(pairs)

    @jax.jit
    @jax.value_and_grad
    def ours(params: Any, batch: Any) -> Any:
        return TASK.discriminator_loss(params, {}, batch, key, 0)[0]

    expected, gradient = jax.jit(jax.value_and_grad(by_hand))(params["discriminator"])
    value, found = jax.device_get(ours(params, batch))
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    assert_trees_close(found["discriminator"], gradient, rtol=1e-4, atol=1e-6)
    assert all(not leaf.any() for leaf in jax.tree.leaves(found["generator"]))
    turned = batch | {"mask": batch["mask"][::-1]}
    assert ours(params, turned)[0] != value


def test_a_discriminator_that_has_won_is_told_and_parts_of_a_batch_are_refused():
    assert len(TASK.diagnose({"test/discriminator_auc": 0.999, "test/l1": 0.1})) == 1
    assert TASK.diagnose({"test/discriminator_auc": 0.9}) == []
    TASK.check_loop(accumulate=2, pmap=False, steps=1, epoch=Fraction(4))
    relative = replace(TASK, losses=RELATIVISTIC)
    with pytest.raises(SettingError, match=r"loop\.accumulate=1"):
        relative.check_loop(accumulate=2, pmap=False, steps=1, epoch=Fraction(4))


def test_a_made_mask_is_measured_as_a_segmentation(params):
    task = replace(TASK, direction="image to mask")
    batch = batch_of()
    keys = row_keys(jax.random.key(0), len(batch["image"]))

    @jax.jit
    def evaluated(params: Any) -> Any:
        outputs = TASK.generator.apply({"params": params["generator"]}, signed(batch)[0])
        return task.evaluate(params, {}, batch, keys), outputs

    states, outputs = jax.device_get(evaluated(params))
    found, outputs, mask = compute_all(states), outputs[:3, ..., 0], batch["mask"][:3]
    assert found["accuracy"] == pytest.approx(((outputs > 0) == mask).mean())
    made = np.tanh(outputs) / 2 + 0.5
    assert found["l1"] == pytest.approx(np.abs(made - mask).mean(), rel=1e-5)
    forward = jax.eval_shape(TASK.evaluate, params, {}, batch, keys)
    assert forward.keys() == {"l1", "sharpness", "discriminator_auc"}


@pytest.mark.proofs
def test_a_run_learns_to_read_masks_off_images(tmp_path):
    optimizer = Optimizer(method=partial(adamw, b1=0.5), learning_rate=5e-3, schedule=constant)
    experiment = Experiment(
        task=replace(TASK, direction="image to mask", optimizer=optimizer),
        data=Data(source=halves, batch=8, eval_batch=8),
        optimizer=optimizer,
        loop=Loop(duration="60 steps", evaluate_every="60 steps", checkpoint_every="60 steps"),
    )
    result = fit(override(experiment, {"parallel.data": 1}), tmp_path, config={}, progress=False)
    assert result.metrics["test/miou"] > 0.95
    assert (tmp_path / "previews" / "test_translations.png").exists()


def test_what_cannot_be_translated_is_told():
    with pytest.raises(SettingError, match="masks of two classes, the data have 3"):
        TASK.check(("a", "b", "c"), dict)
    for changes in ({"l1": -1.0}, {"l1": 0.0, "adversarial": 0.0}):
        with pytest.raises(SettingError, match="one is above it"):
            replace(TASK, **changes).check(("a", "b"), dict)
    with pytest.raises(SettingError, match="needs a mask"):
        TASK.init(jax.random.key(0), {"image": batch_of()["image"]})
    wrong = replace(TASK, generator=TASK.generator.clone(num_classes=3))
    with pytest.raises(SettingError, match=r"set task\.generator\.num_classes=1"):
        jax.eval_shape(wrong.init, jax.random.key(0), batch_of())
    masks: Any = {"image": np.zeros(1), "mask": np.array([[[0, 1, 255]]])}
    TASK.check((), lambda: {"train": masks})
    masks["mask"][0, 0, 1] = 2
    with pytest.raises(SettingError, match="labels other than 0, 1 and 255, which is ignored"):
        TASK.check((), lambda: {"train": masks})
    with pytest.raises(SettingError, match="reach from -1 to 1"):
        TASK.check((), lambda: {"train": {"image": np.array([-1.0, 1.0])}})


def test_sharpness_is_the_steepness_over_that_of_the_truth():
    class Faded(nn.Module):
        """What was given, at 0.3 of its contrast before tanh."""

        @nn.compact
        def __call__(self, x: Any, *, train: bool = False) -> Any:
            return 0.3 * x

    task = replace(TASK, generator=Faded(), direction="image to mask")
    mask = np.zeros((2, 8, 8), np.int32)
    mask[:, :, 4:] = 1
    batch = {"image": np.float32(mask[..., None]), "mask": mask, "valid": np.ones(2, bool)}
    params = drawn_variables(task, batch)[0] | {"generator": {}}
    found = compute_all(jax.jit(task.evaluate)(params, {}, batch, row_keys(jax.random.key(0), 2)))
    assert found["sharpness"] == pytest.approx(np.tanh(0.3), rel=1e-5)


def test_without_a_say_the_discriminator_does_not_play(params):
    task = replace(TASK, adversarial=0.0)
    (only,) = task.players()
    assert only.name == "generator"
    value, aux = jax.jit(task.generator_loss)(params, {}, batch_of(), jax.random.key(0), 0)
    assert aux.metrics.keys() == {"l1"}
    assert float(value) == pytest.approx(20 * compute_all(aux.metrics)["l1"], rel=1e-6)


DIRECTIONS = pytest.mark.parametrize("direction", ["mask to image", "image to mask"])


@partial(jax.jit, static_argnums=0)
def played_by(task: Translate, params: Any, batch: dict[str, Any]) -> Any:
    key = jax.random.key(3)
    played = [
        jax.value_and_grad(loss, has_aux=True)(params, {}, batch, key, 0)
        for loss in (task.generator_loss, task.discriminator_loss)
    ]
    return played, task.evaluate(params, {}, batch, row_keys(key, len(batch["image"])))


def losses_of(task: Translate, params: Any, batch: dict[str, Any]) -> Any:
    """Values, gradients and metrics of both players, and what is evaluated."""
    played, evaluated = jax.device_get(played_by(task, params, batch))
    return [
        ((value, compute_all(aux.metrics)), gradient) for (value, aux), gradient in played
    ], compute_all(evaluated)


@DIRECTIONS
def test_ignored_pixels_are_worth_nothing_wherever_they_are(params, direction):
    """Not even a NaN below them counts; those of a made mask are neither right nor wrong."""
    task, batch = replace(TASK, direction=direction), batch_of()
    ignored = np.random.default_rng(0).random((4, 16, 16)) < 0.3
    ignored[2] = True  # an image of which nothing counts
    batch["mask"] = np.where(ignored, IGNORE, batch["mask"])
    played, evaluated = losses_of(task, params, batch)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((played, evaluated)))
    assert 0 <= evaluated["l1"] <= 1
    if direction == "mask to image":  # the image below is not known to any of them
        image = np.where(ignored[..., None], np.float32(0.123), batch["image"])
        below = batch | {"image": image}
        again = losses_of(task, params, below)
        assert_trees_close(again, (played, evaluated), rtol=1e-6, atol=1e-7)
    else:
        # A UNet without dropout or norm makes the same in training and in evaluation.
        made = np.asarray(generated(params, signed(batch)[0]))[..., 0]
        counted = ~ignored[:2]  # the third is all ignored, the fourth is padding
        errors = np.abs(made[:2] - (2.0 * batch_of()["mask"][:2] - 1)) / 2
        by_image = [error[seen].mean() for error, seen in zip(errors, counted, strict=True)]
        assert evaluated["l1"] == pytest.approx(np.mean(by_image), rel=1e-5)
        right = (made[:2] > 0) == batch_of()["mask"][:2]
        assert evaluated["accuracy"] == pytest.approx(right[counted].mean(), rel=1e-6)


@DIRECTIONS
def test_no_pair_can_be_told_by_its_ignored_pixels(params, direction):
    """Truth and what is made are alike there, and as they were elsewhere."""
    task, batch = replace(TASK, direction=direction), batch_of()
    batch["mask"][:, :, :8] = IGNORE

    @jax.jit
    def pairs(params: Any) -> Any:
        given, target, counted = task._pair(batch)
        made, _ = task._make(params, {}, given, counted, jax.random.key(0))
        raw = jnp.tanh(TASK.generator.apply({"params": params["generator"]}, given, train=True))
        return made, raw, target, task._pair(batch_of())[1]

    made, raw, target, whole = map(np.array, pairs(params))
    assert raw[:, :, :8].any()
    raw[:, :, :8] = whole[:, :, :8] = 0
    np.testing.assert_array_equal(made, raw)
    np.testing.assert_array_equal(target, whole)


def test_a_mask_of_another_class_is_not_a_number_in_any_example(params):
    @jax.jit
    def losses(batch: Any) -> Any:
        both = TASK.generator_loss, TASK.discriminator_loss
        return [loss(params, {}, batch, jax.random.key(0), 0)[0] for loss in both]

    batch = batch_of()
    assert np.isfinite(losses(batch)).all()
    for label in (2, 254):
        batch["mask"][3, 0, 0] = label
        assert np.isnan(losses(batch)).all()


class Pixels(nn.Module):
    """Looks at one pixel at a time, as a generator or as a discriminator."""

    @nn.compact
    def __call__(self, x: Any, *, condition: Any = None, train: bool = False) -> Any:
        both = x if condition is None else jnp.concatenate([x, condition], axis=-1)
        return nn.Dense(1)(both)


def test_masks_with_ignored_pixels_after_those_that_are_looked_at_are_learned(
    tmp_path, training_alone
):
    """The 17th mask on has some: the error stays one of values in [0, 1]."""

    def partly(split: str) -> Examples:
        arrays = dict(halves(split, n=40).records.arrays)  # pyright: ignore
        arrays["mask"] = arrays["mask"].copy()
        arrays["mask"][20:, :4] = IGNORE
        return Examples(Arrays(arrays), ("dark", "bright"))

    experiment = Experiment(
        task=Translate(Pixels(), Pixels(), direction="image to mask"),
        data=Data(source=partly, batch=8, eval_batch=8),
        loop=Loop(duration="5 steps", evaluate_every="5 steps", previews=0),
    )
    result = fit(override(experiment, {"parallel.data": 1}), tmp_path, config={}, progress=False)
    assert 0 <= result.metrics["test/l1"] <= 1
