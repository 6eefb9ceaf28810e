"""Variational autoencoders as a task: what is descended, what is measured, what is drawn."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.analysis.sampling import sample_images
from opsin.config.tree import override
from opsin.data.binarize import binarized, dequantize, random_binarize
from opsin.data.sources import digits, synthetic
from opsin.losses.likelihoods import Bernoulli, DiscretizedLogistic, Gaussian
from opsin.losses.variational import importance_bound
from opsin.metrics.state import compute_all
from opsin.models.generative.autoencoder import MLP, DenseDecoder, DenseEncoder
from opsin.models.generative.vae import VAE
from opsin.ops.gaussian import Normal, normal_sample, standard_normal
from opsin.ops.keys import row_keys
from opsin.train.durations import DurationError
from opsin.train.experiment import Data, Experiment, Loop
from opsin.train.loop import fit
from opsin.train.measurements import Subject
from opsin.train.methods import adamw
from opsin.train.optim import Optimizer
from opsin.train.settings import SettingError
from opsin.train.sharding import Parallel, make_mesh, replicated
from opsin.train.tasks.checks import supported
from opsin.train.tasks.generative import Generative
from opsin.train.tasks.variational import Variational
from tests.train.drawn import drawn_variables
from tests.train.test_step import assert_same_run, run

IMAGE = (8, 8, 1)
KEY = jax.random.key(3)

small = partial(
    VAE,
    image=IMAGE,
    latents=(3,),
    encoder=partial(DenseEncoder, widths=(8,)),
    decoder=partial(DenseDecoder, widths=(8,)),
)
two_levels = partial(small, latents=(3, 2), between=(partial(MLP, widths=(8,)),))


def batch_of(n: int = 6) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 2, (n, *IMAGE)).astype(np.float32)
    return {"image": image, "label": np.arange(n) % 10, "valid": np.ones(n, bool)}


def params_of(task: Variational) -> Any:
    return drawn_variables(task, batch_of())[0]


@pytest.fixture(scope="module")
def params():
    return params_of(Variational(model=small()))


def losses_of(
    tasks: Sequence[Variational], params: Any, steps: Sequence[int] = (0,)
) -> list[tuple[float, dict[str, float]]]:
    """The loss and its terms, of each task at each step."""

    @jax.jit
    def losses(params: Any) -> Any:
        return [task.loss(params, {}, batch_of(), KEY, step) for task in tasks for step in steps]

    return [(float(value), compute_all(aux.metrics)) for value, aux in losses(params)]


def test_the_loss_is_distortion_plus_beta_times_rate(params):
    task = Variational(model=small())
    (value, terms), (heavy, _) = losses_of((task, replace(task, beta=4.0)), params)
    assert terms["rate"] > 0.01
    np.testing.assert_allclose(value, terms["distortion"] + terms["rate"], rtol=1e-6)
    np.testing.assert_allclose(terms["loss"], value, rtol=1e-6)
    np.testing.assert_allclose(heavy, terms["distortion"] + 4 * terms["rate"], rtol=1e-6)


def test_beta_rises_with_the_step(params):
    task = Variational(model=small(), beta=2.0, warmup_steps=10)
    found = losses_of([task], params, steps=(0, 5, 10, 99))
    for (value, terms), share in zip(found, (0.0, 0.5, 1.0, 1.0), strict=True):
        expected = terms["distortion"] + 2 * share * terms["rate"]
        np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_free_nats_are_not_charged_for(params):
    ((value, terms),) = losses_of([Variational(model=small(), free_nats=50.0)], params)
    np.testing.assert_allclose(value, terms["distortion"] + 3 * 50.0, rtol=1e-6)


@pytest.mark.parametrize("model", [small, two_levels], ids=["one-level", "two-levels"])
def test_the_importance_bound_is_that_of_the_weights(model):
    task = Variational(model=model(), objective="importance", samples=5)

    @jax.jit
    def found(params: Any) -> Any:
        weights = task.log_weights(params, {}, batch_of(), KEY, 5)
        value, _ = task.loss(params, {}, batch_of(), KEY, 0)
        return weights, value, -jnp.mean(importance_bound(weights))

    weights, value, expected = found(params_of(task))
    assert weights.shape == (5, 6)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_one_draw_of_the_weights_estimates_the_elbo(params):
    """E log w is the ELBO: the closed-form divergence against draws of its logarithms."""
    task = Variational(model=small())

    @jax.jit
    def draws(params: Any) -> Any:
        weights = task.log_weights(params, {}, batch_of(), KEY, 20_000)
        keys = jax.random.split(KEY, 2000)
        return weights, jax.vmap(
            lambda key: task.evaluate(params, {}, batch_of(), row_keys(key, 6))
        )(keys)

    weights, states = draws(jax.tree.map(lambda leaf: leaf / 2, params))  # of little spread
    terms = compute_all(jax.tree.map(lambda x: x[0], jax.device_get(states)))
    np.testing.assert_allclose(terms["elbo"], -terms["distortion"] - terms["rate"], rtol=1e-6)
    weights, drawn = np.asarray(weights), np.asarray(states["elbo"].total)
    spread = drawn.std() / 6 / 2000**0.5 + weights.std() / (6 * 20_000) ** 0.5
    assert abs(drawn.mean() / 6 - weights.mean()) < 4 * spread
    assert spread < 0.05


class ExactPosterior(nn.Module):
    """z₂ ~ N(0, 1), z₁ ~ N(2 z₂, 1), pixels are coins, and q is the posterior of both."""

    latents: tuple[int, ...] = (1, 1)

    @nn.compact
    def encode(self, x: Any, *, samples: int = 1, labels: Any = None, train: bool = False) -> Any:
        def draw(key: Any, mean: Any, variance: float) -> tuple[Any, Normal]:
            q = Normal(mean, jnp.full(mean.shape, 0.5 * np.log(variance)))
            return normal_sample(key, q), q

        keys = jax.random.split(self.make_rng("latent"))
        z1, q1 = draw(keys[0], jnp.zeros((samples, len(x), 1)), 5.0)
        z2, q2 = draw(keys[1], 2 * z1 / 5, 1 / 5)
        return [z1, z2], [q1, q2]

    def decode(self, latents: Any, *, labels: Any = None, train: bool = False) -> Any:
        _, z2 = latents
        priors = [Normal(2 * z2, jnp.zeros(z2.shape)), standard_normal(z2.shape)]
        return priors, jnp.zeros((*z2.shape[:-1], *IMAGE))


def test_an_exact_posterior_of_two_levels_has_no_rate():
    """Its ELBO is the likelihood: 64 coins. The levels hang on one another, in q as in p."""
    task = Variational(model=ExactPosterior(), samples=2000)
    coins = -64 * np.log(2)

    @jax.jit
    def found() -> Any:
        weights = task.log_weights({}, {}, batch_of(), KEY, 5)
        return weights, task.loss({}, {}, batch_of(), KEY, 0)

    weights, (value, aux) = found()
    np.testing.assert_allclose(weights, coins, rtol=1e-5)
    assert float(value) == pytest.approx(-coins, abs=0.05)
    assert compute_all(aux.metrics)["rate"] == pytest.approx(0.0, abs=0.05)


@pytest.mark.parametrize(
    ("task", "loop", "message"),
    [
        ({"free_nats": 0.5}, {"accumulate": 2}, "loop.accumulate=1"),
        ({"free_nats": 0.5}, {"pmap": True}, "loop.strategy=jit"),
        ({"warmup_steps": 101}, {}, "is 101 steps, and the run has 100, in which beta"),
    ],
)
def test_loops_that_train_something_else_are_told(task, loop, message):
    how = {"accumulate": 1, "pmap": False, "steps": 100, "epoch": Fraction(4)}
    Variational(model=small()).check_loop(**how | loop)  # the same loop is one for a plain ELBO
    with pytest.raises((SettingError, DurationError), match=message):
        Variational(model=small(), **task).check_loop(**how | loop)


def test_the_doubly_reparameterized_gradient_changes_the_encoder_alone(params):
    plain = Variational(model=small(), objective="importance", samples=4)
    doubly = replace(plain, gradient="doubly_reparameterized")

    @jax.jit
    def gradients(params: Any) -> Any:
        return [
            jax.value_and_grad(lambda p, task=task: task.loss(p, {}, batch_of(), KEY, 0)[0])(params)
            for task in (plain, doubly)
        ]

    (value, grads), (same, other) = gradients(params)
    np.testing.assert_allclose(value, same, rtol=1e-6)
    for name in grads:
        close = jax.tree.all(
            jax.tree.map(lambda a, b: bool(np.allclose(a, b, atol=1e-6)), grads[name], other[name])
        )
        assert close == name.startswith("decoder"), name


def test_evaluation_leaves_padding_out():
    task = Variational(model=two_levels())
    params = params_of(task)
    batch = batch_of() | {"valid": np.arange(6) < 4}
    spoilt = batch | {"image": np.concatenate([batch["image"][:4], 1 - batch["image"][4:]])}

    @jax.jit
    def evaluate(batch: Any) -> Any:
        return task.evaluate(params, {}, batch, row_keys(KEY, 6))

    found = compute_all(evaluate(batch))
    assert found == compute_all(evaluate(spoilt))
    assert found.keys() == {"active_units", "elbo", "rate", "distortion", "bits_per_dim"}
    np.testing.assert_allclose(found["bits_per_dim"], -found["elbo"] / 64 / np.log(2), rtol=1e-6)


def source(split: str) -> Any:
    return binarized(
        split, source=partial(synthetic, n=40, size=8, channels=1, classes=4), splits=("test",)
    )


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return Experiment(
        task=Variational(model=small()),
        data=Data(source=source, batch=16, eval_batch=16, augment=(random_binarize,)),
        optimizer=Optimizer(method=adamw, learning_rate=1e-2, weight_decay=0.0),
        loop=Loop(duration="6 steps", evaluate_every="6 steps", checkpoint_every="6 steps"),
    )


@pytest.mark.proofs
def test_eight_devices_draw_and_learn_the_same(experiment):
    one = run(override(experiment, {"parallel.data": 1, "task.samples": 2}))
    assert_same_run(run(override(experiment, {"parallel.data": 8, "task.samples": 2})), one)


@dataclass(frozen=True)
class Refusing:
    """A measurement that sees before training that it cannot be made."""

    why: str

    def check(self, task: Any, sets: Any) -> None:
        raise SettingError(self.why)

    def __call__(self, subject: Subject[Any]) -> dict[str, float]:
        raise AssertionError("it was told before")


@pytest.mark.proofs
def test_a_run_learns_measures_at_its_end_and_draws(experiment, tmp_path):
    def measurement(subject: Subject[Any]) -> dict:
        assert set(subject.sets) == {"train", "test"}
        assert list(subject.track(range(2), "")) == [0, 1]
        params, _ = subject.variables
        norm = sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(params))
        return {"test/norm": norm}

    changes = {"parallel.data": 1, "measurements": (measurement,), "loop.duration": "60 steps"}
    changes |= {"loop.ema_decay": 0.9, "task.model.latents": (2,)}
    early = override(experiment, changes | {"measurements": (Refusing("too few labels"),)})
    with pytest.raises(SettingError, match="too few labels"):  # before anything is trained
        fit(early, tmp_path / "early", config={}, progress=False)
    assert not (tmp_path / "early" / "metrics.jsonl").exists()
    result = fit(override(experiment, changes), tmp_path, config={}, progress=False)
    (measured,) = result.measured
    assert measured.metrics.keys() == {"test_ema/norm"}  # expensive: of the average alone
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1]) == {
        "step": 60, **measured.metrics
    }  # fmt: skip
    assert result.metrics["test/elbo"] > -46  # 64 pixels of a coin cost 44.4; it begins at 50
    drawn = {path.stem for path in (tmp_path / "previews").glob("*.png")}
    names = ("reconstructions", "samples", "interpolation", "arithmetic", "latent_grid")
    assert drawn == {f"test_{name}" for name in names}
    assert (tmp_path / "curve.png").exists()


def test_a_sample_depends_on_its_seed_and_place_alone():
    task = Variational(model=two_levels())
    assert isinstance(task, Generative)
    params = params_of(task)
    many = sample_images(task, params, {}, 130, seed=1)
    everywhere = jax.device_put(params, replicated(make_mesh(Parallel(data=8))))
    on_eight = sample_images(task, everywhere, {}, 130, seed=1)
    np.testing.assert_allclose(on_eight, many, atol=1e-6)
    assert many.shape == (130, *IMAGE)
    assert 0 <= many.min() < many.max() <= 1
    np.testing.assert_array_equal(sample_images(task, params, {}, 3, seed=1), many[:3])
    assert not np.allclose(many[0], many[1])
    assert not np.allclose(many[:3], sample_images(task, params, {}, 3, seed=2))


def test_a_class_is_asked_for_where_there_are_classes():
    task = Variational(model=small(num_classes=4))
    params = params_of(task)
    with pytest.raises(SettingError, match="give one of 0 to 3"):
        sample_images(task, params, {}, 2)
    with pytest.raises(SettingError, match="class 4 is not one of 0 to 3"):
        sample_images(task, params, {}, 2, labels=np.array([0, 4]))
    a, b = (sample_images(task, params, {}, 2, labels=np.array([c, c])) for c in (0, 1))
    assert not np.allclose(a, b)
    plain = Variational(model=small())
    with pytest.raises(SettingError, match="without classes"):
        sample_images(plain, {}, {}, 2, labels=np.array([0, 1]))
    with pytest.raises(SettingError, match="needs a label"):
        task.init(jax.random.key(0), {"image": batch_of()["image"]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 0}, "task.samples is at least 1"),
        ({"objective": "importance", "beta": 2.0}, "set task.objective=elbo"),
        ({"objective": "importance", "free_nats": 1.0}, "set task.objective=elbo"),
        ({"gradient": "doubly_reparameterized"}, "set task.objective=importance"),
        (
            {
                "gradient": "doubly_reparameterized",
                "objective": "importance",
                "model": two_levels(),
            },
            "one stochastic layer",
        ),
        ({"model": small(num_classes=3)}, "task.model.num_classes=2"),
    ],
)
def test_options_that_contradict_are_told(changes, message):
    with pytest.raises(SettingError, match=message):
        replace(Variational(model=small()), **changes).check(("a", "b"), dict)


@pytest.mark.parametrize(
    ("likelihood", "image", "message"),
    [
        (Bernoulli(), [0.0, 0.5], "have greys"),
        (Bernoulli(), [-1.0, 1.0], "set data.mean"),
        (Gaussian(), [0.0, 1.5], "set data.mean"),
        (DiscretizedLogistic(), [0.0, 0.3], "between the 256 steps"),
    ],
)
def test_images_that_have_no_likelihood_are_told(likelihood, image, message):
    task = Variational(model=small(), likelihood=likelihood)
    with pytest.raises(SettingError, match=message) as caught:
        task.check((), lambda: {"test": {"image": np.asarray(image, np.float32)}})
    assert "'test'" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("likelihood", "augment"),
    [
        (Bernoulli(), (random_binarize,)),
        pytest.param(Gaussian(), (dequantize,), marks=pytest.mark.proofs),
        pytest.param(DiscretizedLogistic(), (), marks=pytest.mark.proofs),
    ],
    ids=["bernoulli", "gaussian", "logistic"],
)
def test_a_run_looks_at_its_own_images(experiment, likelihood, augment, tmp_path, training_alone):
    changes = {
        "task.likelihood": likelihood,
        "task.model.outputs": likelihood.outputs(1),
        "data.augment": augment,
        "data.eval_splits": {},
        "data.source": digits,
        "loop.duration": "1 step",
        "parallel.data": 1,
    }
    fit(override(experiment, changes), tmp_path / "fits", config={}, progress=False)
    wrong = {"data.mean": (0.5,)}
    with pytest.raises(SettingError, match=r"set data\.mean"):
        fit(override(experiment, {**changes, **wrong}), tmp_path, config={}, progress=False)


def test_a_decoder_of_the_wrong_width_is_told():
    with pytest.raises(SettingError, match=r"set task\.model\.outputs=2"):
        Variational(model=small(), likelihood=Gaussian()).init(KEY, batch_of())


@pytest.mark.parametrize(
    ("likelihood", "fit", "unfit"),
    [
        (Bernoulli(), [0.0, 1.0], [0.5, 1.5, -1.0]),
        (DiscretizedLogistic(), [0.0, 77 / 255, 1.0], [0.3, 1.5, -1.0]),
        (Gaussian(), [0.0, 0.3, 1.0, 1 + 1e-6], [1.5, -1.0, np.nan]),
    ],
)
def test_an_image_that_no_check_saw_has_a_loss_that_is_no_number(likelihood, fit, unfit):
    take = jax.jit(partial(supported, likelihood))
    np.testing.assert_array_equal(take(np.array(fit, np.float32)), np.float32(fit))
    assert np.isnan(take(np.array(unfit, np.float32))).all()
    outputs = likelihood.outputs(1)
    task = Variational(model=small().clone(outputs=outputs), likelihood=likelihood)
    batch = batch_of()
    images = np.full_like(batch["image"], fit[1])
    params = params_of(task)

    @jax.jit
    def loss(images):
        return task.loss(params, {}, batch | {"image": images}, KEY, 0)[0]

    assert np.isfinite(loss(images))
    images[-1, 0, 0, 0] = unfit[0]
    assert np.isnan(loss(images))
