"""Ensembles against NumPy, Jensen's inequality, and files that are no members."""

from dataclasses import replace

import flax.linen as nn
import jax
import numpy as np
import pytest
from scipy import special

from opsin.analysis.ensembles import Ensemble
from opsin.analysis.sampling import untracked
from opsin.config.identity import identity
from opsin.data.augment import scale
from opsin.data.examples import Arrays, Examples
from opsin.models.layers import batch_norm
from opsin.train.measurements import Subject
from opsin.train.settings import SettingError
from opsin.train.tasks.classify import Classify
from opsin.train.tasks.segment import Segment
from opsin.train.weights import WeightsError, save_weights

SIZE = (6, 5, 3)
SEEN = {"mean": [0.0] * 3, "std": [1.0] * 3, "image": list(SIZE), "range": [0.0, 1.0]}
TRUTH = np.arange(30, dtype=np.int32) % 4


class Model(nn.Module):
    num_classes: int = 4

    @nn.compact
    def __call__(self, x, *, train=False):
        x = batch_norm(train=train, name="norm")(x)
        return nn.Dense(self.num_classes, name="head")(x.reshape(len(x), -1))


def variables(seed: int) -> dict:
    """Parameters and statistics of one network."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    head = {"kernel": normal(90, 4) / 9, "bias": normal(4)}
    norm = {"scale": np.ones(3, np.float32), "bias": np.zeros(3, np.float32)}
    statistics = {"mean": normal(3) / 9, "var": np.full(3, 1.0 + seed, np.float32)}
    return {"params": {"norm": norm, "head": head}, "batch_stats": {"norm": statistics}}


@pytest.fixture(scope="module")
def subject():
    image = np.random.default_rng(0).integers(0, 256, (30, *SIZE), np.uint8)
    sets = {"test": Examples(Arrays({"image": image, "label": TRUTH}))}
    own = jax.device_put(variables(0))
    return Subject(Classify(Model()), (own.pop("params"), own), sets, scale, untracked)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    """Two other networks, and the subject's own as the third."""
    folder = tmp_path_factory.mktemp("members")
    for seed in (0, 1, 2):
        save_weights(folder / f"{seed}.safetensors", variables(seed), SEEN)
    return [str(folder / f"{seed}.safetensors") for seed in (1, 2, 0)]


def logits_of(subject: Subject, own: dict) -> np.ndarray:
    images = subject.sets["test"].records.arrays["image"].astype(np.float64) / 255
    moments = own["batch_stats"]["norm"]
    x = (images - moments["mean"]) / np.sqrt(moments["var"] + 1e-5)
    head = own["params"]["head"]
    return x.reshape(30, -1) @ head["kernel"] + head["bias"]


def numbers(log_chances: np.ndarray) -> tuple[float, float]:
    """Accuracy and NLL."""
    accuracy = np.mean(log_chances.argmax(1) == TRUTH)
    return float(accuracy), float(-log_chances[np.arange(30), TRUTH].mean())


def test_ensemble_soup_and_member_equal_numpys(subject, files):
    measurement = Ensemble(tuple(files[:2]), batch=7)
    measurement.check(subject.task, subject.sets)
    found = measurement(subject)
    every = [variables(seed) for seed in (0, 1, 2)]
    chances = np.stack([special.softmax(logits_of(subject, x), -1) for x in every])
    single = [numbers(np.log(x)) for x in chances]

    def mean(*values):
        return np.mean(values, 0) if isinstance(values[0], np.ndarray) else merged(*values)

    def merged(*trees):
        return {name: mean(*(tree[name] for tree in trees)) for name in trees[0]}

    expected = {
        "ensemble": numbers(np.log(chances.mean(0))),
        "soup": numbers(special.log_softmax(logits_of(subject, mean(*every)), -1)),
        "member": np.mean(single, 0),
    }
    assert found.keys() == {f"test/{n}_{k}" for n in ("accuracy", "nll", "ece") for k in expected}
    for kind, (accuracy, nll) in expected.items():
        assert found[f"test/accuracy_{kind}"] == pytest.approx(accuracy, abs=1e-6), kind
        assert found[f"test/nll_{kind}"] == pytest.approx(nll, rel=1e-4), kind
    assert found["test/nll_ensemble"] < found["test/nll_member"]  # Jensen
    other_order = Ensemble((files[1], files[0]), batch=30)(subject)
    assert other_order == pytest.approx(found, rel=1e-5)


def test_a_network_with_its_own_copy_is_itself(subject, files):
    found = Ensemble((files[2],), batch=30)(subject)
    for name in ("accuracy", "nll", "ece"):
        kinds = [found[f"test/{name}_{kind}"] for kind in ("ensemble", "soup", "member")]
        np.testing.assert_allclose(kinds, kinds[0], rtol=1e-5)


def test_a_digest_says_which_bytes_are_meant_and_nothing_else_is_taken(subject, tmp_path):
    path = tmp_path / "a.safetensors"
    sha256 = save_weights(path, variables(1), SEEN)
    meant = Ensemble((str(path),), (sha256,))
    meant.check(subject.task, subject.sets)
    assert identity(meant) == identity(replace(meant, members=("elsewhere",)))
    save_weights(path, variables(2), SEEN)
    with pytest.raises(WeightsError, match="these are other weights"):
        meant.check(subject.task, subject.sets)


def test_what_is_no_member_is_told_in_one_line(subject, files, tmp_path):
    def refused(*members: str, task=subject.task, **fields) -> str:
        with pytest.raises((SettingError, WeightsError)) as raised:
            Ensemble(members, **fields).check(task, subject.sets)
        (line,) = str(raised.value).splitlines()
        return line

    assert "members=() are no others" in refused()
    assert "there is no " in refused(str(tmp_path / "gone"))
    assert "stands twice" in refused(files[0], files[1], files[0])
    assert "0 sha256 for 1 members" in refused(files[0], sha256=())
    assert "2 sha256 for 1 members" in refused(files[0], sha256=("0" * 64,) * 2)
    assert "needs a classifier, not Segment" in refused(*files, task=Segment(Model()))
    assert "no split 'val'" in refused(*files, split="val")
    assert "is of another network" in refused(*files, task=Classify(Model(num_classes=5)))
    scaled = tmp_path / "scaled.safetensors"
    save_weights(scaled, variables(1), SEEN | {"std": [0.5] * 3})
    with pytest.raises(SettingError, match="and the run scales them otherwise: leave it out"):
        Ensemble((str(scaled),))(subject)
