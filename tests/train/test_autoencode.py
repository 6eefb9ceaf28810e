"""Autoencoders with plain and with quantised codes, as tasks."""

from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsin.config.tree import override
from opsin.data.color import gaussian_noise
from opsin.data.sources import digits, synthetic
from opsin.losses.likelihoods import Bernoulli, Gaussian
from opsin.metrics.state import compute_all
from opsin.models.generative.autoencoder import Autoencoder, DenseDecoder, DenseEncoder
from opsin.models.generative.vqvae import VQVAE
from opsin.ops.keys import row_keys
from opsin.train.experiment import Data, Experiment, Loop
from opsin.train.loop import fit
from opsin.train.methods import adamw
from opsin.train.optim import Optimizer
from opsin.train.settings import SettingError
from opsin.train.tasks.autoencode import Autoencode
from opsin.train.tasks.generative import Generative
from opsin.train.tasks.quantize import Quantize
from tests.train.drawn import drawn_variables
from tests.train.test_step import assert_same_run, run

IMAGE = (8, 8, 1)
MODEL = Autoencoder(
    image=IMAGE,
    latent=4,
    encoder=partial(DenseEncoder, widths=(16,)),
    decoder=partial(DenseDecoder, widths=(16,)),
)
VQ = VQVAE(outputs=1, width=8, residual_layers=1, residual_width=4, code_size=4, num_codes=16)


def experiment(task: Any) -> Experiment:
    return Experiment(
        task=task,
        data=Data(source=partial(synthetic, n=40, size=8, channels=1), batch=16, eval_batch=16),
        optimizer=Optimizer(method=adamw, learning_rate=1e-2, weight_decay=0.0),
        loop=Loop(duration="6 steps", evaluate_every="6 steps", checkpoint_every="6 steps"),
    )


def batch_of(n: int = 6) -> dict[str, Any]:
    image = np.random.default_rng(0).random((n, *IMAGE), np.float32)
    return {"image": image, "valid": np.arange(n) < n - 1}


def blank(key: Any, batch: Any) -> Any:
    """Hides every image."""
    return batch | {"image": jnp.zeros_like(batch["image"])}


def test_the_loss_is_of_the_clean_image():
    task, image = Autoencode(model=MODEL), batch_of()["image"]
    cases = (task, image), (replace(task, corrupt=blank), np.zeros_like(image))

    @jax.jit
    def found(params: Any) -> Any:
        return [
            (
                task.loss(params, {}, batch_of(), jax.random.key(1), 0)[0],
                MODEL.apply({"params": params}, seen),
            )
            for task, seen in cases
        ]

    for value, outputs in found(drawn_variables(task, batch_of())[0]):
        squares = np.sum(np.square(outputs - image), axis=(1, 2, 3))
        expected = np.mean(0.5 * squares) + 32 * np.log(2 * np.pi)
        np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_evaluation_is_of_the_valid_images():
    task = Autoencode(model=MODEL, likelihood=Bernoulli())

    @jax.jit
    def evaluated(params: Any) -> Any:
        keys = row_keys(jax.random.key(0), 6)
        shown: Any = MODEL.apply({"params": params}, batch_of()["image"])
        return task.evaluate(params, {}, batch_of(), keys), jax.nn.sigmoid(shown)

    states, shown = jax.device_get(evaluated(drawn_variables(task, batch_of())[0]))
    errors = np.square(shown - batch_of()["image"])[:5]
    np.testing.assert_allclose(compute_all(states)["mse"], np.mean(errors), rtol=1e-5)


@pytest.mark.proofs
def test_a_denoising_autoencoder_learns_and_draws(tmp_path):
    task = Autoencode(model=MODEL, corrupt=partial(gaussian_noise, std=0.1))
    changes = {"loop.duration": "300 steps", "data.source": digits, "parallel.data": 1}
    result = fit(override(experiment(task), changes), tmp_path, config={}, progress=False)
    assert result.metrics["test/mse"] < 0.06  # the mean of the set leaves 0.073
    drawn = {path.stem for path in (tmp_path / "previews").glob("*.png")}
    assert drawn == {f"test_{x}" for x in ("reconstructions", "interpolation", "arithmetic")}
    assert not isinstance(task, Generative)


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_the_codebook_learns_in_its_own_way(update):
    task = Quantize(model=VQ.clone(update=update), commitment=0.5, variance=0.1)

    @jax.jit
    def learned(key: Any, params: Any) -> Any:
        variables = task.init(key, batch_of())  # the averages of a codebook are no noise
        mutable = {name: value for name, value in variables.items() if name != "params"}
        losses = task.loss(params, mutable, batch_of(), key, 0)
        output = task.model.apply({"params": params, **mutable}, batch_of()["image"])
        return mutable, losses, output

    params, _ = drawn_variables(task, batch_of())
    mutable, (value, aux), output = jax.device_get(learned(jax.random.key(0), params))
    terms = compute_all(aux.metrics)
    learns = terms.get("codebook", 0.0)
    assert ("codebook" in terms) == (update == "gradient")
    expected = terms["reconstruction"] + 0.5 * terms["commitment"] + learns
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    squares = np.square(output.outputs - batch_of()["image"])
    np.testing.assert_allclose(terms["reconstruction"], squares.mean() / 0.1, rtol=1e-5)
    counts = np.bincount(output.indices.ravel(), minlength=16)
    assert terms["used_codes"] == np.count_nonzero(counts)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), mutable, aux.mutable)
    assert jax.tree.leaves(moved) == [True] * (3 if update == "ema" else 0)


@pytest.mark.proofs
def test_every_layout_gives_one_codebook_and_one_count():
    # A vector between two codes may go to either: small steps keep rounding from deciding that.
    made = override(experiment(Quantize(model=VQ)), {"optimizer.learning_rate": 1e-3})
    one = run(override(made, {"parallel.data": 1}))
    assert_same_run(run(override(made, {"parallel.data": 8})), one)
    assert_same_run(
        run(override(made, {"parallel.data": 8, "loop.strategy": "pmap", "loop.replicas": 8})), one
    )


@pytest.mark.proofs
def test_a_quantised_run_draws_its_codes(tmp_path):
    changes = {"loop.duration": "300 steps", "parallel.data": 1, "data.source": digits}
    changes |= {"task.model.restart": 0.1, "task.model.halvings": 1}
    changes |= {"optimizer.learning_rate": 3e-3}
    made = experiment(Quantize(model=VQ, variance=0.14))
    result = fit(override(made, changes), tmp_path, config={}, progress=False)
    assert result.metrics["test/mse"] < 0.06  # the mean of the set leaves 0.073
    assert 1 < result.metrics["test/perplexity"] <= result.metrics["test/used_codes"] <= 16
    assert (tmp_path / "codes_test.png").exists()
    assert {x.stem for x in (tmp_path / "previews").glob("*.png")} == {"test_reconstructions"}


@pytest.mark.parametrize("changes", [{"variance": 0.0}, {"commitment": -1.0}])
def test_options_that_cannot_be_are_told(changes):
    with pytest.raises(SettingError, match=r"task\.variance is above 0"):
        replace(Quantize(model=VQ), **changes).check((), dict)


def test_a_decoder_of_the_wrong_width_is_told():
    for task in (Autoencode(model=MODEL, likelihood=Gaussian()), Quantize(VQ.clone(outputs=2))):
        with pytest.raises(SettingError, match=r"set task\.model\.outputs="):
            jax.eval_shape(task.init, jax.random.key(0), batch_of())


@pytest.mark.parametrize(
    "task", [Quantize(model=VQ), Autoencode(model=MODEL), Autoencode(MODEL, Bernoulli())]
)
def test_images_beyond_the_range_are_told(task):
    greys = {"test": batch_of()}
    task.check((), lambda: greys)
    signed = {"test": {"image": 2 * batch_of()["image"] - 1}}
    unknown = {"test": {"image": np.full((1, *IMAGE), np.nan)}}
    for wrong in (signed, unknown):
        with pytest.raises(SettingError, match=r"images of 'test' reach.*data\.std=\(1\.0,\)"):
            task.check((), lambda wrong=wrong: wrong)


def test_a_codebook_of_averages_is_not_taught_by_parts_of_a_batch():
    how = {"accumulate": 2, "pmap": False, "steps": 10, "epoch": Fraction(4)}
    Quantize(model=VQ.clone(update="gradient")).check_loop(**how)
    with pytest.raises(SettingError, match=r"loop\.accumulate=1 or task\.model\.update=gradient"):
        Quantize(model=VQ).check_loop(**how)


@pytest.mark.parametrize(
    "task", [Autoencode(MODEL, Bernoulli()), Autoencode(MODEL), Quantize(model=VQ)]
)
def test_images_out_of_range_that_no_check_saw_have_a_loss_that_is_no_number(task):
    batch = batch_of()
    state = drawn_variables(task, batch)

    @jax.jit
    def loss(images, state):
        return task.loss(*state, batch | {"image": images}, jax.random.key(1), 0)[0]

    assert np.isfinite(loss(np.clip(batch["image"], 0.2, 0.7), state))  # greys will do
    batch["image"][-1, 0, 0, 0] = 1.5
    assert np.isnan(loss(batch["image"], state))
