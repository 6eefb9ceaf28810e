"""Diffusion as a task: what is descended, how images are made, and what is refused."""

from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from opsin.analysis.diffusion import Inpainting, SampledBy, VariationalBound
from opsin.analysis.sampling import sample_images, untracked
from opsin.config.tree import override
from opsin.data.augment import scale
from opsin.data.examples import Arrays, DataError, Examples
from opsin.experiments.extractors import LENET
from opsin.losses.diffusion import min_snr_weight
from opsin.metrics.state import compute_all
from opsin.models.generative.diffusion_unet import ScoreUNet
from opsin.ops.diffusion.samplers import Ancestral, DpmSolver2M, Heun
from opsin.ops.diffusion.sampling import Sampling
from opsin.ops.diffusion.schedules import Discrete, cosine_betas
from opsin.ops.diffusion.sde import VarianceExploding, VariancePreserving
from opsin.ops.keys import row_keys
from opsin.train.experiment import Data, Experiment, Loop
from opsin.train.measurements import Subject
from opsin.train.methods import adamw
from opsin.train.optim import Optimizer
from opsin.train.settings import SettingError
from opsin.train.tasks.diffuse import Diffuse
from opsin.train.tasks.generative import Generative
from tests.train.conftest import TinyDenoiser
from tests.train.drawn import drawn_variables
from tests.train.test_step import assert_same_run, run

IMAGE = (4, 4, 1)


def two_greys(split: str) -> Examples:
    """Images of class 0 are dark, those of class 1 are bright."""
    rng = np.random.default_rng([3, split == "test"])
    label = np.arange(64, dtype=np.int32) % 2
    grey = np.where(label, 0.9, 0.1)[:, None, None, None] + rng.normal(0, 0.03, (64, *IMAGE))
    image = np.round(255 * np.clip(grey, 0, 1)).astype(np.uint8)
    return Examples(Arrays({"image": image, "label": label}), ("dark", "bright"))


def made(**task: Any) -> Experiment:
    options = {
        "model": TinyDenoiser(num_classes=2),
        "image": IMAGE,
        "process": Discrete(cosine_betas, steps=50),
        "target": "x0",
        "sampling": Sampling(steps=10),
        **task,
    }
    return Experiment(
        task=Diffuse(**options),
        data=Data(source=two_greys, batch=16, eval_batch=16),
        optimizer=Optimizer(method=adamw, learning_rate=3e-3, weight_decay=0.0),
        loop=Loop(duration="6 steps", evaluate_every="6 steps", checkpoint_every="3 steps"),
    )


def variables_of(task: Any) -> Any:
    return drawn_variables(task, batch_of())[0]


def batch_of(count: int = 6) -> dict[str, Any]:
    image = np.random.default_rng(0).integers(0, 256, (count, *IMAGE)).astype(np.float32) / 255
    return {
        "image": image,
        "label": np.arange(count) % 2,
        "valid": np.arange(count) < count - 1,
    }


@pytest.fixture(scope="module")
def trained():
    """A task, what it began with, and what it learned in 150 steps."""
    changes = {"parallel.data": 1, "loop.steps_per_dispatch": 50, "loop.duration": "150 steps"}
    experiment = override(made(), changes | {"optimizer.learning_rate": 1e-2})
    states, _ = run(experiment, 150)
    return experiment.task, states[0].params, states[-1].params


def test_it_draws_the_class_that_is_asked_for(trained):
    task, _, params = trained
    assert isinstance(task, Generative)
    for sampling in (Sampling(steps=10), Sampling(Ancestral(), steps=50, guidance=2.0)):
        drawing = replace(task, sampling=sampling)
        labels = np.arange(40) % 2
        images = sample_images(drawing, params, {}, 40, labels=labels)
        assert images.shape == (40, *IMAGE)
        means = images.mean(axis=(1, 2, 3))
        assert (means[labels == 0] < 0.3).mean() > 0.9
        assert (means[labels == 1] > 0.7).mean() > 0.9


def test_guidance_of_one_asks_once_and_of_zero_knows_no_class(trained):
    task, _, params = trained
    labels, nothing = np.array([0, 0, 1, 1]), np.full(4, 2)

    @jax.jit
    def drawn(params: Any) -> Any:
        keys = jax.random.split(jax.random.key(0), 4)
        ways = (0.0, labels), (1.0, nothing), (1.0, labels), (3.0, labels)
        return [
            replace(task, sampling=replace(task.sampling, guidance=guidance)).sample(
                params, {}, keys, asked
            )
            for guidance, asked in ways
        ]

    of_zero, of_nothing, of_one, of_three = map(np.asarray, drawn(params))
    np.testing.assert_allclose(of_zero, of_nothing, atol=1e-5)
    assert np.abs(of_three - of_one).max() > 0.01


def test_the_path_ends_in_the_sample(trained):
    task, _, params = trained

    @jax.jit
    def both(params: Any) -> Any:
        given = params, {}, jax.random.split(jax.random.key(0), 3), np.array([0, 1, 1])
        return task.path(*given), task.sample(*given)

    (x, estimates), sampled = jax.device_get(both(params))
    assert x.shape == estimates.shape == (10, 3, *IMAGE)
    np.testing.assert_allclose(x[-1], np.clip(sampled, 0, 1), atol=1e-5)
    shown = jax.eval_shape(partial(task.preview, params, {}, {}), jax.random.key(0))["path"]
    times = task.sampling.times(task.process)
    assert shown.columns == tuple(f"t = {t:g}" for t in times[1:])  # that of a frame is its own
    assert shown.images.shape[1] == len(shown.columns)


def test_known_pixels_stay_and_the_rest_fits_them(trained):
    """Half of a bright image, without a class: the other half is bright too."""
    task, _, params = trained
    task = replace(task, sampling=Sampling(Ancestral(), steps=50))

    @jax.jit
    def inpainted(params: Any) -> Any:
        known, nothing = np.full((32, *IMAGE), np.float32(0.9)), np.full(32, 2)
        mask = np.arange(4)[:, None, None] < 2
        keys = jax.random.split(jax.random.key(1), 32)
        return task.inpaint(params, {}, keys, nothing, known, mask, 5)

    made = np.asarray(inpainted(params))
    np.testing.assert_allclose(made[:, :2], 0.9, atol=1e-6)
    assert (made[:, 2:].mean(axis=(1, 2, 3)) > 0.6).mean() > 0.8


def test_what_is_measured_in_the_end(trained):
    """The bound against its own function; the same images in another way, by another name."""
    task, _, params = trained
    sets = {"test": two_greys("test")}
    bound = VariationalBound(images=5, choice="first", batch=4)
    bound.check(task, sets)
    found = bound(Subject(task, (params, {}), sets, scale, untracked))
    examples = two_greys("test").records[:5]
    batch = {"image": np.float32(examples["image"]) / 255, "label": examples["label"]}

    @jax.jit
    def by_hand(params: Any) -> Any:
        return task.bound(params, {}, batch, row_keys(jax.random.key(0), 5), None)

    expected = float(by_hand(params).mean())
    assert found["test/bound_given_class"] == pytest.approx(expected, rel=1e-4)
    bits = expected / np.log(2) / 16
    assert found["test/bound_given_class_bits_per_dim"] == pytest.approx(bits, rel=1e-4)

    seen = []

    def look(subject):
        seen.append(subject.task.sampling)
        return {"test/a": 1.0, "test_b/recall/3": 2.0}

    other = Sampling(Ancestral(), steps=3)
    by_other = SampledBy(other, look, "slow")
    by_other.check(task, sets)
    assert by_other(Subject(task, (params, {}), sets, scale, untracked)) == {
        "test/slow_a": 1,
        "test_b/slow_recall/3": 2,
    }
    assert seen == [other]
    with pytest.raises(SettingError, match="has 50 steps: take 1 to 50, not 99"):
        SampledBy(Sampling(steps=99), look, "slow").check(task, sets)


def test_the_bound_of_noise_that_is_known():
    """Of images that the network knows all steps are free, but the last has a fixed deviation."""

    class Knows(TinyDenoiser):
        """Grey images only."""

        @nn.compact
        def __call__(self, x: Any, noise: Any, labels: Any = None, *, train: bool = False) -> Any:
            self.param("unused", nn.initializers.zeros, (1,))
            return jnp.full_like(x, 2 * (51 / 255) - 1)

    task: Any = made(model=Knows(num_classes=2)).task
    grey, label = np.full((3, *IMAGE), np.float32(51 / 255)), np.zeros(3, int)

    @jax.jit
    def bounds() -> Any:
        keys = row_keys(jax.random.key(0), 3)
        same, brighter = (
            task.bound({"unused": np.zeros(1)}, {}, {"image": x, "label": label}, keys, None)
            for x in (grey, grey + np.float32(3 / 255))
        )
        return same, brighter, task.process.log_variances(np.array([1]))[0]

    same, brighter, log_variance = map(np.asarray, bounds())
    share = special.erf(1 / 255 / np.sqrt(2 * np.exp(float(log_variance[0]))))  # in its bin
    np.testing.assert_allclose(same, -16 * np.log(share), rtol=1e-3)
    assert (brighter > same + 1).all()


def test_the_bound_falls_with_training(trained):
    task, untrained, params = trained
    examples = two_greys("test").records[:8]
    batch = {"image": np.float32(examples["image"]) / 255, "label": examples["label"]}

    @jax.jit
    def bound(params: Any) -> Any:
        keys = jax.random.split(jax.random.key(0), 8)
        return jnp.mean(task.bound(params, {}, batch, keys, None))

    assert 0 < bound(params) < bound(untrained)


def test_a_network_that_says_nothing_has_the_loss_of_its_target():
    """Of x_0 the mean square of the images, whatever is drawn; of the noise about 1."""
    batch = batch_of(200)
    targets = (
        ("x0", float(np.mean(np.square(2 * batch["image"] - 1))), 1e-5),
        ("epsilon", 1.0, 0.05),
    )

    @jax.jit
    def losses() -> Any:
        tasks: list[Any] = [made(target=target).task for target, *_ in targets]
        given = jax.tree.map(np.zeros_like, variables_of(tasks[0])), {}, batch
        keys = row_keys(jax.random.key(1), len(batch["image"]))
        return [
            (task.loss(*given, jax.random.key(5), 0), task.evaluate(*given, keys)) for task in tasks
        ]

    for (target, wanted, slack), ((value, aux), evaluated) in zip(targets, losses(), strict=True):
        assert float(value) == pytest.approx(wanted, abs=slack)
        assert compute_all(aux.metrics)["loss"] == pytest.approx(float(value), rel=1e-6)
        found = compute_all(evaluated)
        assert found["loss"] == pytest.approx(wanted, abs=max(slack, 0.01))
        if target == "epsilon":
            thirds = [found[f"noise_error_{name}"] for name in ("early", "middle", "late")]
            np.testing.assert_allclose(thirds, 1.0, atol=0.1)


def test_a_share_of_the_labels_is_hidden():
    class Seen(TinyDenoiser):
        """Says 0 of an image with a label and 1 of one without."""

        @nn.compact
        def __call__(self, x: Any, noise: Any, labels: Any = None, *, train: bool = False) -> Any:
            self.param("unused", nn.initializers.zeros, (1,))
            return jnp.broadcast_to((labels == 2)[:, None, None, None], x.shape).astype(float)

    task: Any = made(model=Seen(num_classes=2), target="x0", label_dropout=0.3).task
    batch = {"image": np.full((2000, *IMAGE), np.float32(0.5)), "label": np.zeros(2000, int)}
    value, _ = jax.jit(task.loss)({"unused": np.zeros(1)}, {}, batch, jax.random.key(0), 0)
    assert float(value) == pytest.approx(0.3, abs=0.04)


@pytest.mark.proofs
@pytest.mark.parametrize(
    "layout",
    [
        {"parallel.data": 8},
        {"parallel.data": 2, "parallel.fsdp": 4, "parallel.min_shard_size": 8},
        {"parallel.data": 1, "loop.steps_per_dispatch": 2},
    ],
    ids=["data-8", "data-2-fsdp-4", "two-a-dispatch"],
)
def test_every_layout_learns_the_same(layout):
    experiment = override(made(weighting=min_snr_weight), {"loop.ema_decay": 0.9})
    one = run(override(experiment, {"parallel.data": 1}), 4)
    assert_same_run(run(override(experiment, layout), 4), one)


def test_a_variance_is_learned_and_guided_by_its_class_alone():
    model = TinyDenoiser(num_classes=2, outputs=2)
    experiment = made(model=model, learned_variance=True, sampling=Sampling(Ancestral(), steps=50))
    task: Any = experiment.task
    params = run(override(experiment, {"parallel.data": 1}), 4)[0][-1].params

    @jax.jit
    def drawn(params: Any) -> Any:
        keys = jax.random.split(jax.random.key(0), 2)
        return [
            replace(task, sampling=replace(task.sampling, guidance=guidance)).sample(
                params, {}, keys, np.array([0, 1])
            )
            for guidance in (1.0, 2.0)
        ]

    assert np.isfinite(drawn(params)).all()
    frozen: Any = replace(task, learned_variance=False, model=TinyDenoiser(num_classes=2))
    assert variables_of(task)["Dense_1"]["bias"].size == 32
    assert variables_of(frozen)["Dense_1"]["bias"].size == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling": Sampling(cast(Any, "heun"))}, r"such as Heun.., not 'heun'"),
        ({"sampling": Sampling(cast(Any, Heun))}, r"such as Heun.., not <class"),
        ({"sampling": Sampling(steps=51)}, "has 50 steps: take 1 to 50, not 51"),
        ({"model": TinyDenoiser(), "sampling": Sampling(guidance=2.0)}, "trained without classes"),
        ({"label_dropout": 1.0}, r"must lie in \[0, 1\)"),
        (
            {"process": Discrete(cosine_betas, zero_terminal_snr=True), "target": "epsilon"},
            'predict "v" or "x0"',
        ),
        ({"process": VariancePreserving(), "learned_variance": True}, "needs discrete steps"),
        ({"model": TinyDenoiser(num_classes=3)}, "num_classes=2"),
        ({"sampling": Sampling(guidance=2.0), "label_dropout": 0.0}, "was never seen"),
        ({"sampling": Sampling(spacing="even")}, '"time" or "noise"'),
        ({"process": VarianceExploding()}, "the network takes time, and the process gives sigma"),
        (
            {"model": ScoreUNet(TinyDenoiser(num_classes=2))},
            "takes sigma, .* gives time",
        ),
        (
            {
                "process": Discrete(cosine_betas, zero_terminal_snr=True),
                "weighting": min_snr_weight,
            },
            "task.weighting is 0",
        ),
    ],
)
def test_options_that_contradict_are_told(changes, message):
    task: Any = replace(made().task, **changes)
    with pytest.raises(SettingError, match=message):
        task.check(("dark", "bright"), dict)


def test_a_network_of_ones_own_says_what_it_takes():
    class OwnScore(TinyDenoiser):
        conditioning: ClassVar = "sigma"

    own: Any = replace(made().task, model=OwnScore(num_classes=2), process=VarianceExploding())
    own.check(("dark", "bright"), dict)
    with pytest.raises(SettingError, match=r"OwnScore and Discrete do not fit"):
        replace(own, process=Discrete(steps=50)).check(("dark", "bright"), dict)


def test_images_outside_of_the_range_are_told():
    task: Any = made().task
    with pytest.raises(SettingError, match=r"reach from -1 to 1.*data\.std=\(1\.0,\)"):
        task.check(("dark", "bright"), lambda: {"train": {"image": np.array([-1.0, 1.0])}})


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"image": (8, 8, 1)}, r"set task\.image=\(4, 4, 1\)"),
        ({"model": TinyDenoiser(num_classes=2, outputs=3)}, r"set task\.model\.outputs=1"),
        ({"learned_variance": True}, r"set task\.model\.outputs=2"),
    ],
)
def test_networks_of_other_images_are_told(task, message):
    with pytest.raises(SettingError, match=message):
        variables_of(made(**task).task)


def test_measurements_that_cannot_be_made_are_told_before():
    task: Any = made().task
    sets = {"test": two_greys("test")}
    for changes, measurement, message in (
        ({}, VariationalBound(steps=51), "has 50 steps: take 1 to 50, not 51"),
        ({"process": VarianceExploding()}, VariationalBound(steps=10), "ends with noise left"),
        ({"process": VariancePreserving()}, VariationalBound(), "has no steps of its own"),
        ({}, VariationalBound(split="val"), "no split 'val'"),
        ({}, Inpainting(LENET), "choose ddim or ancestral"),
        ({"sampling": Sampling(Ancestral())}, Inpainting(LENET), "is for images"),
    ):
        with pytest.raises(SettingError, match=message):
            measurement.check(replace(task, **changes), sets)
    unlabelled = Examples(Arrays({"image": sets["test"].records[:]["image"]}))
    with pytest.raises(DataError, match='have no "label"'):
        Inpainting(LENET).check(replace(task, sampling=Sampling(Ancestral())), {"test": unlabelled})


def test_steps_that_remember_cannot_be_taken_back():
    task: Any = replace(made().task, sampling=Sampling(DpmSolver2M(), steps=5))
    with pytest.raises(SettingError, match="choose ddim or ancestral"):
        task.inpaint({}, {}, None, None, None, None, 1)
