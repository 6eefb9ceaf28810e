"""A sweep is every arm under every seed, once; machines that share it do each run exactly once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsin.analysis.probes import Probe
from opsin.config import catalogue
from opsin.config.identity import evaluation_id, identity
from opsin.config.sweep import Planned, arm_of, expand, identities, identity_of, key_of, share
from opsin.config.table import Arm
from opsin.config.tree import override
from opsin.errors import ConfigError
from opsin.metrics.classification import ranking
from opsin.models.classification.lenet import LeNet5
from opsin.train.experiment import Experiment
from opsin.train.tasks.classify import Classify

BASE = Experiment(task=Classify(model=LeNet5()))
ARMS = (Arm("plain"), Arm("wide", {"data.batch": 256}), Arm("long", {"loop.duration": "9 epochs"}))


def test_every_arm_meets_every_seed_and_seeds_turn_slowest():
    planned = expand(BASE, ARMS, 2)
    assert [(run.arm, run.seed) for run in planned] == [
        ("plain", 0), ("wide", 0), ("long", 0), ("plain", 1), ("wide", 1), ("long", 1),
    ]  # fmt: skip
    assert [run.experiment.seed for run in planned] == [0, 0, 0, 1, 1, 1]
    assert [run.experiment.data.batch for run in planned] == [128, 256, 128] * 2
    assert [run.experiment.loop.duration for run in planned[:3]] == [
        "10 epochs", "10 epochs", "9 epochs",
    ]  # fmt: skip
    assert len({identity(run.experiment) for run in planned}) == 6


def test_an_arm_may_seed_more_than_the_run():
    arms = [Arm("plain"), Arm("narrow", {"data.batch": 64}, seeded=("optimizer.weight_decay",))]
    planned = expand(BASE, arms, 3)[4:]
    assert [run.experiment.optimizer.weight_decay for run in planned] == [0.0, 2.0]
    assert arm_of(planned[1].experiment, BASE, arms) == "narrow"


def test_arms_that_differ_in_what_is_measured_are_one_run():
    base = override(BASE, {"measurements": (Probe(),), "loop.duration": "0 steps"})
    arms = [Arm("all"), Arm("few", {"measurements.0.images": 9}, seeded=("measurements.0.seed",))]
    planned = expand(base, arms, 2)
    runs = {(run.arm, run.seed): key_of(run.experiment) for run in planned}
    assert runs["all", 0][0] == runs["few", 0][0] != runs["all", 1][0]
    assert runs["all", 0][1] == runs["all", 1][1] == identity(Probe())
    assert runs["few", 1][1] == identity(Probe(images=9, seed=1))
    assert all(identity_of(base, arms)(*place) == found for place, found in runs.items())
    assert [arm_of(run.experiment, base, arms) for run in planned] == ["all", "few"] * 2
    two = override(base, {"measurements": (Probe(), Probe(seed=1))})
    assert identities(two)[1] == f"{identity(Probe())}+{identity(Probe(seed=1))}"
    assert identities(BASE) == (identity(BASE), None)
    assert key_of(BASE) == (identity(BASE), None, evaluation_id(BASE))


def test_how_is_measured_is_told_apart_and_moves_with_no_module_and_no_default():
    splits = override(BASE, {"data.eval_splits": {"test": "train"}})
    metrics = override(BASE, {"task.more_metrics": (ranking,)})
    batch = override(BASE, {"data.eval_batch": 7, "loop.previews": 3})
    assert identities(splits) == identities(metrics) == identities(BASE)
    assert len({evaluation_id(x) for x in (BASE, splits, metrics)}) == 3
    assert evaluation_id(batch) == evaluation_id(BASE)
    for name, layout in (
        ("shapes_unet", {"task.model.remat": True}),
        ("mnist_cgan", {"task.observer.batch": 7}),
    ):
        module = catalogue.find(name)
        base = module.config()
        assert key_of(override(base, layout)) == key_of(base)
        assert arm_of(override(base, layout), base, catalogue.arms(module)) != "custom"
    assert arm_of(splits, BASE, [Arm("default")]) == "custom"


def test_overrides_are_for_every_arm_and_win_over_its_own():
    arms = [Arm("wide", {"data.batch": 256}), Arm("deep", {"data.batch": 64, "loop.accumulate": 2})]
    planned = expand(BASE, arms, 1, {"optimizer.learning_rate": 0.5, "data.batch": 32})
    assert [run.experiment.data.batch for run in planned] == [32, 32]
    assert [run.experiment.loop.accumulate for run in planned] == [1, 2]
    assert {run.experiment.optimizer.learning_rate for run in planned} == {0.5}


@pytest.mark.parametrize(
    ("arms", "overrides", "message"),
    [
        # The same settings, though written differently: 1 is 1.0 where a float is asked for.
        (
            [Arm("a", {"optimizer.learning_rate": 1}), Arm("b", {"optimizer.learning_rate": 1.0})],
            {},
            "b with seed 0 and a with seed 0 are one and the same run",
        ),
        ([Arm("a"), Arm("b", {"data.batch": 128})], {}, "b with seed 0 and a with seed 0"),
        # What is only measured makes no run of its own.
        ([Arm("a"), Arm("b", {"data.eval_splits": {}})], {}, "b with seed 0 and a with seed 0"),
        # An override that levels the arms.
        (ARMS[:2], {"data.batch": 64}, "wide with seed 0 and plain with seed 0"),
        ([Arm("a")], {"seed": 5}, "a with seed 1 and a with seed 0"),
        ([Arm("a"), Arm("a", {"data.batch": 64})], {}, "two arms of this sweep are called 'a'"),
        ([Arm("a", {"data.bach": 64})], {}, "there is no 'data.bach'"),
    ],
)
def test_twins_and_mistakes_are_refused(arms, overrides, message):
    with pytest.raises(ConfigError) as caught:
        expand(BASE, arms, 2, overrides)
    assert str(caught.value).startswith(message)


def assert_parts(planned: list[Planned], of: int) -> None:
    """Every run is in one share, no directory in two, and the shares have as many of them."""
    shares = [list(share(planned, index, of)) for index in range(of)]
    where = {(run.arm, run.seed): i for i, part in enumerate(shares) for run in part}
    assert sum(map(len, shares)) == len(where) == len(planned)
    ids = [{run.id for run in part} for part in shares]
    assert sum(map(len, ids)) == len({run.id for run in planned})
    assert max(map(len, ids)) - min(map(len, ids)) <= 1
    assert all(part == [run for run in planned if run in part] for part in shares)


@given(ids=st.lists(st.sampled_from("abcdefgh"), max_size=30), of=st.integers(1, 12))
def test_shares_are_a_partition(ids, of):
    assert_parts([Planned(f"arm {i}", 0, BASE, name) for i, name in enumerate(ids)], of)


@pytest.mark.parametrize(("index", "of"), [(3, 3), (-1, 3), (1, 1), (0, 0)])
def test_a_share_that_is_not_there_is_refused(index, of):
    with pytest.raises(ConfigError, match=f"--index {index} --of {of}"):
        share(expand(BASE, ARMS, 1), index, of)


def test_a_run_knows_its_arm_under_any_seed():
    for run in expand(BASE, ARMS, 2):
        assert arm_of(run.experiment, BASE, ARMS) == run.arm
        assert arm_of(override(run.experiment, {"seed": 99}), BASE, ARMS) == run.arm
    assert arm_of(override(BASE, {"data.batch": 1}), BASE, ARMS) == "custom"
    assert arm_of(BASE, BASE, [Arm("default")]) == "default"
