"""Segmentation: what counts, by how much, and the same however a batch is laid out."""

from dataclasses import replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from opsin.config.tree import override
from opsin.data.examples import Arrays, Examples
from opsin.data.masks import IGNORE
from opsin.losses.classification import cross_entropy_loss, focal_loss
from opsin.losses.lovasz import lovasz_hinge_loss, lovasz_softmax_loss
from opsin.losses.segmentation import boundary_loss, combined_loss, dice_loss, tversky_loss
from opsin.metrics.state import compute_all
from opsin.models.layers import Conv, Norm, batch_norm, group_norm
from opsin.models.segmentation.unet import UNet, valid_margin
from opsin.ops.keys import row_keys
from opsin.train.experiment import Experiment
from opsin.train.settings import SettingError
from opsin.train.tasks.segment import Segment
from opsin.train.tasks.task import Aux
from tests.train.conftest import make_tiny
from tests.train.drawn import drawn_variables
from tests.train.test_step import assert_same_run, lay_out, run


class TinySegmenter(nn.Module):
    """Two convolutions and a norm; an auxiliary head on the first."""

    num_classes: int = 3
    norm: Norm = batch_norm
    auxiliary: bool = False
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: Any, *, train: bool = False) -> Any:
        x = Conv(8, (3, 3), padding=self.padding, name="conv")(x)
        x = nn.relu(self.norm(train=train, name="norm")(x))
        if self.auxiliary:
            self.sow("auxiliary", "logits", Conv(self.num_classes, (1, 1), name="auxiliary")(x))
        return Conv(self.num_classes, (3, 3), padding=self.padding, name="head")(x)


def unevenly_labelled(split: str, *, n: int = 48, size: int = 8) -> Examples:
    """Noise whose brightness is the class; each image has another share of ignored pixels."""
    rng = np.random.default_rng([7, split == "test"])
    image = rng.integers(0, 256, (n, size, size, 1), np.uint8)
    mask = (image[..., 0] // 86).astype(np.uint8)
    ignored = rng.random((n, size, size)) < np.linspace(0, 0.95, n)[:, None, None]
    mask[ignored] = IGNORE
    weight = rng.random((n, size, size), np.float32)
    arrays = {"image": image, "mask": mask}
    return Examples(
        Arrays(arrays | ({"weight": weight} if split == "weighted" else {})), tuple("abc")
    )


GROUPS = partial(group_norm, groups=2)


def experiment(model: nn.Module, **task: Any) -> Experiment:
    tiny = make_tiny()
    data = replace(tiny.data, source=unevenly_labelled)
    return override(replace(tiny, task=Segment(model, **task), data=data), {"parallel.data": 1})


@pytest.fixture(scope="module")
def batch() -> dict[str, np.ndarray]:
    arrays = unevenly_labelled("weighted", n=6).records.arrays  # pyright: ignore
    image = np.asarray(arrays["image"], np.float32) / 255
    return {**arrays, "image": image, "valid": np.arange(6) < 5}


@pytest.fixture(scope="module")
def trained(batch):
    """Variables of a TinySegmenter with an auxiliary head."""
    task = Segment(TinySegmenter(auxiliary=True))
    params, mutable = drawn_variables(task, batch)
    assert mutable.keys() == {"batch_stats"}
    return params, mutable


def without_weights(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: x for name, x in batch.items() if name != "weight"}


def loss_of(task: Segment, params, mutable, batch) -> tuple[jax.Array, Aux]:
    return jax.jit(task.loss)(params, mutable, batch, jax.random.key(0), 0)


@jax.jit
def training_logits(params, mutable, batch):
    """Of the main and of the auxiliary head."""
    logits, updated = TinySegmenter(auxiliary=True).apply(
        {"params": params, **mutable},
        batch["image"],
        train=True,
        mutable=["batch_stats", "auxiliary"],
    )
    return logits, updated["auxiliary"]["logits"][0]


def test_a_loss_of_pixels_is_averaged_over_those_that_count(batch, trained):
    task = Segment(TinySegmenter(auxiliary=True), auxiliary_weight=0.25)
    total, aux = loss_of(task, *trained, without_weights(batch))
    counted = batch["mask"] != IGNORE
    means = []
    for logits in training_logits(*trained, batch):
        log_p = special.log_softmax(logits, axis=-1)
        mask = np.where(counted, batch["mask"], 0)
        means.append(-np.take_along_axis(log_p, mask[..., None], -1)[..., 0][counted].mean())
    assert float(total) == pytest.approx(means[0] + 0.25 * means[1], rel=1e-5)
    assert float(aux.weight) == counted.sum()
    logged = compute_all(jax.device_get(aux.metrics))
    assert logged["main_loss"] == pytest.approx(means[0], rel=1e-5)
    assert logged["auxiliary_loss"] == pytest.approx(means[1], rel=1e-5)
    assert logged["loss"] == pytest.approx(float(total), rel=1e-5)
    assert aux.mutable.keys() == {"batch_stats"}


def test_weights_multiply_pixels_and_leave_the_count(batch, trained):
    task = Segment(TinySegmenter(auxiliary=True), auxiliary_weight=0.0)
    counted = batch["mask"] != IGNORE
    logits, _ = training_logits(*trained, batch)
    losses = jax.jit(cross_entropy_loss)(logits, np.where(counted, batch["mask"], 0), where=counted)
    total, _ = loss_of(task, *trained, batch)
    expected = np.sum(losses * batch["weight"]) / np.sum(counted)
    assert float(total) == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(ValueError, match="need a loss of pixels"):
        loss_of(replace(task, loss_function=dice_loss), *trained, batch)


def test_a_loss_of_images_is_averaged_over_images_with_any_pixel(batch, trained):
    void = batch["mask"].copy()
    void[2] = IGNORE
    task = Segment(TinySegmenter(auxiliary=True), loss_function=dice_loss, auxiliary_weight=0.0)
    whole = {**without_weights(batch), "mask": void}
    total, aux = loss_of(task, *trained, whole)
    logits, _ = training_logits(*trained, batch)
    kept = np.array([0, 1, 3, 4, 5])
    labels = np.where(void == IGNORE, 0, void)
    each = jax.jit(dice_loss)(np.asarray(logits)[kept], labels[kept], where=(void != IGNORE)[kept])
    assert float(total) == pytest.approx(float(each.mean()), rel=1e-5)
    assert float(aux.weight) == 5


def test_a_batch_without_any_label_has_no_loss_and_no_gradient(batch, trained):
    void = {**without_weights(batch), "mask": np.full_like(batch["mask"], IGNORE)}
    task = Segment(TinySegmenter(auxiliary=True))
    tasks = task, replace(task, loss_function=dice_loss)

    @jax.jit
    def descend(*state: Any) -> Any:
        key = jax.random.key(0)
        return [jax.grad(task.loss, has_aux=True)(*state, void, key, 0) for task in tasks]

    for grads, aux in jax.device_get(descend(*trained)):
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads))
        loss_metric = aux.metrics["loss"]
        assert (loss_metric.total, loss_metric.count) == (0, 0)  # beside others, it is not there


def test_evaluation_counts_labelled_pixels_of_valid_images(batch, trained):
    task = Segment(TinySegmenter(auxiliary=True), boundary_tolerance=1.0)

    @jax.jit
    def found(*state: Any) -> Any:
        keys = row_keys(jax.random.key(0), 6)
        return task.evaluate(*state, batch, keys), task.pixel_logits(*state, batch["image"])

    evaluated, logits = jax.device_get(found(*trained))
    metrics, logits = compute_all(evaluated), logits[:5]
    counted = batch["mask"][:5] != IGNORE
    mask, predicted = batch["mask"][:5][counted], logits.argmax(-1)[counted]
    assert metrics["accuracy"] == pytest.approx((mask == predicted).mean(), rel=1e-6)
    ious = [
        ((mask == c) & (predicted == c)).sum() / ((mask == c) | (predicted == c)).sum()
        for c in range(3)
    ]
    assert metrics["miou"] == pytest.approx(np.mean(ious), rel=1e-6)
    log_p = special.log_softmax(logits, axis=-1)[counted]
    nll = -np.take_along_axis(log_p, mask[:, None], -1).mean()
    assert metrics["nll"] == pytest.approx(nll, rel=1e-5)
    assert 0 <= metrics["boundary_f1"] <= 1


def test_without_padding_the_labels_are_those_of_the_centre(batch):
    task = Segment(TinySegmenter(padding="VALID"), margin=2)

    @jax.jit
    def found(*state: Any) -> Any:
        _, aux = task.loss(*state, without_weights(batch), jax.random.key(0), 0)
        return aux, task.preview(*state, batch, jax.random.key(0))["predictions"]

    aux, preview = found(*drawn_variables(task, batch))
    assert float(aux.weight) == (batch["mask"][:, 2:-2, 2:-2] != IGNORE).sum()
    assert preview.images.shape == (6, 4, 4, 1)
    assert preview.masks.shape == preview.predictions.shape == (6, 4, 4)
    np.testing.assert_array_equal(preview.masks, batch["mask"][:, 2:-2, 2:-2])


def test_one_logit_is_that_of_class_one_against_class_zero(batch):
    mask = np.where(batch["mask"] == IGNORE, IGNORE, np.minimum(batch["mask"], 1))
    binary = {**without_weights(batch), "mask": mask}
    task = Segment(TinySegmenter(num_classes=1), loss_function=lovasz_hinge_loss)
    task.check(("background", "foreground"), dict)

    @jax.jit
    def found(params: Any, mutable: Any) -> Any:
        variables, image = {"params": params, **mutable}, binary["image"]
        in_training, _ = task.model.apply(variables, image, train=True, mutable=["batch_stats"])
        single = task.model.apply(variables, image)
        losses = task.loss(params, mutable, binary, jax.random.key(0), 0)
        evaluated = task.evaluate(params, mutable, binary, row_keys(jax.random.key(0), 6))
        return in_training[..., 0], single[..., 0], losses, evaluated

    outputs = jax.device_get(found(*drawn_variables(task, binary)))
    in_training, single, (loss, aux), evaluated = outputs
    assert np.isfinite(loss)
    assert loss > 0
    seen = mask != IGNORE
    trained = compute_all(aux.metrics)
    right = (in_training > 0) == mask
    assert trained["accuracy"] == pytest.approx(right[seen].mean(), rel=1e-6)
    metrics = compute_all(evaluated)
    counted = seen[:5]
    right = (single[:5] > 0) == mask[:5]
    assert metrics["accuracy"] == pytest.approx(right[counted].mean(), rel=1e-6)
    with pytest.raises(SettingError, match="num_classes=3"):
        task.check(tuple("abc"), dict)


@pytest.mark.parametrize(
    ("loss", "takes"),
    [
        (lovasz_hinge_loss, True),
        (dice_loss, True),
        (partial(tversky_loss, alpha=0.3, beta=0.7), True),
        (boundary_loss, True),
        (partial(combined_loss, terms=((1.0, dice_loss), (0.5, boundary_loss))), True),
        (cross_entropy_loss, False),
        (partial(cross_entropy_loss, class_weights=(1.0, 2.0)), False),
        (partial(cross_entropy_loss, smoothing=0.1), False),
        (focal_loss, False),
        (partial(dice_loss, classes=(1,)), False),
        (lovasz_softmax_loss, True),
        (lambda logits, labels, where: jnp.mean(logits, axis=(1, 2, 3)), False),
    ],
)
def test_one_logit_with_a_loss_of_classes_is_refused_before_the_start(loss, takes):
    task = Segment(TinySegmenter(num_classes=1), loss_function=loss)
    if takes:
        task.check(("background", "foreground"), dict)
        return
    with pytest.raises(
        SettingError, match=r"takes one logit a class: set task\.model\.num_classes=2"
    ):
        task.check(("background", "foreground"), dict)
    with pytest.raises(SettingError, match="takes one logit a class"):
        task.check((), dict)  # whatever the classes are called


def test_logits_of_another_size_than_said_are_refused(batch):
    for model, margin in ((TinySegmenter(padding="VALID"), 0), (TinySegmenter(), 2)):
        task = Segment(model, margin=margin)
        variables = jax.eval_shape(task.init, jax.random.key(0), batch)
        state = variables.pop("params"), variables
        with pytest.raises(ValueError, match=r"for masks of 8x8: .*task\.margin"):
            jax.eval_shape(task.loss, *state, without_weights(batch), jax.random.key(0), 0)


def test_with_its_margin_mirrored_a_valid_network_labels_the_whole_image(batch):
    task = Segment(TinySegmenter(padding="VALID"), margin=2, mirror=2)
    variables = jax.eval_shape(task.init, jax.random.key(0), batch)
    logits = jax.eval_shape(task.pixel_logits, variables.pop("params"), variables, batch["image"])
    assert logits.shape == (6, 8, 8, 3)
    margin = valid_margin(1) // 2
    unet = Segment(UNet(width=4, depth=1, num_classes=3), margin=margin, mirror=margin)
    images = {
        "image": np.zeros((1, 20, 20, 1), np.float32),
        "mask": np.zeros((1, 20, 20), np.uint8),
    }
    shapes = jax.eval_shape(unet.init, jax.random.key(0), images)
    logits = jax.eval_shape(unet.pixel_logits, shapes["params"], {}, images["image"])
    assert logits.shape[1:3] == (20, 20)


@pytest.fixture(scope="module")
def reference():
    return run(experiment(TinySegmenter(auxiliary=True)))


@pytest.mark.proofs
@pytest.mark.parametrize(
    "layout",
    [
        {"parallel.data": 8},
        {"parallel.data": 8, "loop.strategy": "pmap", "loop.replicas": 8},
    ],
    ids=["data-8", "pmap-8"],
)
def test_devices_with_more_and_fewer_labels_take_the_same_steps(reference, layout):
    assert_same_run(run(override(experiment(TinySegmenter(auxiliary=True)), layout)), reference)


@pytest.mark.proofs
@pytest.mark.parametrize("loss", [cross_entropy_loss, dice_loss])
def test_microbatches_with_more_and_fewer_labels_are_one_batch(loss):
    whole = experiment(TinySegmenter(norm=GROUPS), loss_function=loss)
    assert_same_run(run(override(whole, {"loop.accumulate": 4}), 2), run(whole, 2))


def test_it_learns_to_tell_three_levels_of_grey():
    bright = override(
        experiment(TinySegmenter()),
        {"optimizer.learning_rate": 0.3, "loop.duration": "15 steps", "loop.ema_decay": None},
    )
    losses = run(bright, 15)[1]["loss"]
    assert losses[-1] < 0.4 * losses[0]


def test_what_does_not_fit_is_one_line():
    task = Segment(TinySegmenter(), rand=True)
    with pytest.raises(SettingError, match=r"task\.model\.num_classes=2"):
        task.check(("membrane", "cell"), dict)
    with pytest.raises(SettingError, match=r"task\.rand=False"):
        task.check(tuple("abc"), dict)
    tiny = make_tiny()
    with pytest.raises(SettingError, match=r"needs a mask .* only image, label: .*masks:PATH"):
        lay_out(replace(tiny, task=Segment(TinySegmenter())))
    with pytest.raises(SettingError, match=r"needs a label .* only image, mask: .*folder:PATH"):
        lay_out(override(tiny, {"data.source": unevenly_labelled}))
