"""Rows that were trained again: the interval of each metric, and the table of what was found."""

import dataclasses
import json
import math
from concurrent.futures import ThreadPoolExecutor

import pytest

from opsin.data.records import RecordError
from opsin.report import reproduction
from opsin.report.reproduction import Comparison, Reproduced, add, check, compare, tables
from opsin.report.rows import Row, read_rows, write_rows
from opsin.report.statistics import prediction_interval

T2 = 4.30265272974946  # 97.5 % of Student's t with 2 degrees of freedom: 0.95 √(2 / (1 - 0.95²))


def test_the_prediction_interval_has_a_closed_form():
    low, high = prediction_interval([1.0, 2.0, 3.0])  # mean 2, s = 1
    assert math.isclose(T2, 0.95 * math.sqrt(2 / (1 - 0.95**2)))
    assert (low, high) == pytest.approx((2 - T2 * math.sqrt(4 / 3), 2 + T2 * math.sqrt(4 / 3)))
    # one degree of freedom is Cauchy's distribution: t = tan(0.475 π)
    room = math.tan(0.475 * math.pi) * math.sqrt(2) * math.sqrt(3 / 2)  # s = √2
    assert prediction_interval([0.0, 2.0]) == pytest.approx((1 - room, 1 + room))


def test_the_prediction_interval_holds_one_more_value_as_often_as_it_says():
    import numpy as np

    draws = np.random.default_rng(0).normal(3.0, 2.0, size=(2000, 4))
    hits = [low <= new <= high for *seen, new in draws for low, high in [prediction_interval(seen)]]
    assert abs(np.mean(hits) - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 2000)


def compared(recorded, now, seeds, form=".3f", images=None):
    return compare(recorded, now, seeds, form=form, images=images)


def test_seeds_that_differ_say_where_one_more_run_lies():
    at = 2 + T2 * math.sqrt(4 / 3)
    inside, outside = (compared(1.0, at + x, [1.0, 2.0, 3.0]) for x in (-1e-3, 1e-3))
    assert (inside.rule, inside.within, outside.within) == ("spread", True, False)
    assert inside.high == pytest.approx(at)


def test_a_count_is_the_same_or_not():
    one = compared(61706.0, 61706.0, [61706.0] * 3, ".0f")
    other = compared(61706.0, 61707.0, [61706.0] * 3, ".0f")
    assert (one.rule, one.within, other.within) == ("count", True, False)
    assert compared(5.0, 6.0, [5.0, 7.0], ".0f").rule == "spread"


@pytest.mark.parametrize("seeds", [[1.0], [1.0] * 3])
def test_a_share_without_spread_may_move_by_two_standard_deviations(seeds):
    p = 98 / 100  # (96 + 2) of (96 + 4)
    room = 2 * math.sqrt(2 * p * (1 - p) / 100)
    assert compared(1.0, 1.0 - room + 1e-9, seeds, ".1%", images=96).within
    lower = compared(1.0, 1.0 - room - 1e-9, seeds, ".1%", images=96)
    assert (lower.rule, lower.within) == ("share", False)


def test_any_other_metric_without_spread_may_move_by_two_percent():
    known = [(-92.0, -93.8, True), (-92.0, -93.9, False), (0.5, 0.509, True), (0.0, 1e-3, False)]
    for recorded, now, within in known:
        found = compared(recorded, now, [recorded])  # a share of an unknown number of images too
        assert (found.rule, found.within) == ("2 %", within)
    for recorded in (1.5, 0.03, 0.87):  # a likelihood or a density is no share, even below 1
        found = compared(recorded, recorded * 1.03, [recorded], images=100)
        assert (found.rule, found.within) == ("2 %", False)


def test_what_differs_by_rounding_is_the_same():
    assert compared(0.1 + 0.2, 0.3, [0.1 + 0.2] * 2, ".0f").within
    assert not compared(0.3, 0.3 * (1 + 1e-5), [0.3] * 2, ".0f").within


@pytest.mark.parametrize(
    ("recorded", "now", "within"),
    [
        (math.nan, math.nan, True),
        (math.inf, math.nan, True),  # a file of JSON does not tell them apart
        (math.nan, 1.0, False),
        (1.0, math.nan, False),
        (1.0, None, False),
        (math.nan, None, False),
    ],
)
def test_a_number_that_is_not_finite_must_stay_so(recorded, now, within):
    for seeds in ([recorded, 1.0, 2.0, 3.0], [recorded]):
        found = compared(recorded, now, seeds)
        assert found.within is within
        json.dumps(dataclasses.asdict(found), allow_nan=False)


def line(**changes):
    good = Comparison(recorded=0.5, now=0.52, low=0.4, high=0.6, rule="spread", within=True)
    bad = dataclasses.replace(good, now=0.7, within=False)
    fields = {"experiment": "focal", "arm": "focal-1", "seed": 2, "id": "abc", "measurement": None}
    fields |= {"commit": "0123456789abcdef", "dirty": False, "hardware": "EPYC, 2 cores"}
    fields |= {"date": "2026-11-29", "seconds": 23.4, "error": None}
    return Reproduced(**fields | {"metrics": {"test/accuracy": good, "test/nll": bad}} | changes)


def tabled(results, *lines):
    """Writes the rows that lines repeat, as the tables of their experiments."""
    every = {"status": "done", "commit": "abc", "dirty": False, "devices": [], "hardware": "x"}
    for each in lines:
        metrics = {name: one.recorded for name, one in each.metrics.items()} | {"test/ece": 0.1}
        where = {"arm": each.arm, "seed": each.seed, "id": each.id, "versions": {}}
        path = results / f"{each.experiment}.jsonl"
        before = read_rows(path) if path.exists() else []
        write_rows(path, [*before, Row(**where, **every, metrics=metrics)])


def test_the_table_is_derived_from_the_lines(tmp_path):
    other = line(experiment="aardvark", metrics={"a": line().metrics["test/accuracy"]})
    tabled(tmp_path, line(), other)
    add(tmp_path, line())
    add(tmp_path, other)
    text = (tmp_path / "reproduced.md").read_text().splitlines()
    rows = [row.strip("| ").split(" | ") for row in text if row.startswith("| [")]
    aardvark, focal, outside = rows
    number = ["0.5", "0.52", "0.4 … 0.6"]
    origin = ["23", "2026-11-29", "`0123456789`", "EPYC, 2 cores"]
    assert aardvark == [
        "[aardvark](aardvark.md)",
        "`focal-1`",
        "2",
        "a",
        *number,
        "1 of 1",
        *origin,
    ]
    where = ["[focal](focal.md)", "`focal-1`", "2"]
    assert focal == [*where, "test/accuracy", *number, "1 of 2", *origin]
    assert outside == [*where, "test/nll", "0.5", "0.7", "0.4 … 0.6", "spread"]
    assert "Rows: 2. Metrics: 3, of which outside: 1." in text
    assert check(tmp_path) == []
    (tmp_path / "reproduced.md").write_text("by hand")
    assert check(tmp_path) == ["reproduced.md"]
    reproduction.derive(tmp_path)
    assert (tmp_path / "reproduced.md").read_text().splitlines() == text


@pytest.mark.parametrize(
    ("change", "stands"),
    [
        ({}, True),
        ({"metrics": {"test/accuracy": 0.5 * (1 + 5e-7), "test/nll": 0.5}}, True),
        ({"metrics": {"test/accuracy": 0.51, "test/nll": 0.5}}, False),
        ({"metrics": {"test/accuracy": 0.5}}, False),
        ({"metrics": {"test/accuracy": math.nan, "test/nll": 0.5}}, False),
        ({"id": "abd"}, False),
        ({"arm": "focal-2"}, False),
        ({"seed": 3}, False),
    ],
)
def test_a_line_counts_while_its_row_has_the_numbers_that_were_compared(tmp_path, change, stands):
    tabled(tmp_path, line())
    add(tmp_path, line())
    (row,) = read_rows(tmp_path / "focal.jsonl")
    write_rows(tmp_path / "focal.jsonl", [dataclasses.replace(row, **change)])
    assert check(tmp_path) == ([] if stands else ["reproduced.md"])
    reproduction.derive(tmp_path)
    assert check(tmp_path) == []
    text = (tmp_path / "reproduced.md").read_text()
    assert ("| [focal](focal.md) |" in text) is stands
    assert ("- focal, `focal-1`, seed 2, 2026-11-29" in text) is not stands


def test_numbers_that_are_not_finite_are_the_same_ones(tmp_path):
    lost = Comparison(recorded=None, now=None, low=None, high=None, rule="2 %", within=True)
    tabled(tmp_path, line(metrics={"test/fd": lost}))
    (row,) = read_rows(tmp_path / "focal.jsonl")
    write_rows(tmp_path / "focal.jsonl", [dataclasses.replace(row, metrics={"test/fd": math.nan})])
    add(tmp_path, line(metrics={"test/fd": lost}))
    assert "Rows: 1." in (tmp_path / "reproduced.md").read_text()


def test_a_row_stays_beside_that_of_other_code_and_takes_the_place_of_its_own(tmp_path):
    """Whoever repeats a row until it is within leaves a trace."""
    for each in (line(), line(seed=1), line(commit="f" * 40), line(seconds=7.0)):
        add(tmp_path, each)
    records = map(json.loads, (tmp_path / "reproduced.jsonl").read_text().splitlines())
    assert [(x["seed"], x["commit"][:4], x["seconds"]) for x in records] == [
        (1, "0123", line().seconds),
        (2, "0123", 7.0),
        (2, "ffff", line().seconds),
    ]


def test_rows_that_are_added_at_once_are_all_kept(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: add(tmp_path, line(seed=seed)), range(16)))
    records = map(json.loads, (tmp_path / "reproduced.jsonl").read_text().splitlines())
    assert [x["seed"] for x in records] == list(range(16))
    assert check(tmp_path) == []


def test_a_run_that_failed_says_why(tmp_path):
    lost = {"test/accuracy": dataclasses.replace(line().metrics["test/nll"], now=None)}
    failed = line(seconds=None, error="NonFiniteError: `loss` is nan", metrics=lost)
    tabled(tmp_path, failed)
    add(tmp_path, failed)
    text = (tmp_path / "reproduced.md").read_text()
    assert "| 0.5 | - | 0.4 … 0.6 | 0 of 1 | failed |" in text
    assert "- focal, `focal-1`, seed 2: `NonFiniteError: 'loss' is nan`" in text


def test_its_lines_are_no_experiment(tmp_path):
    assert (tables(tmp_path), check(tmp_path)) == ([], [])
    (tmp_path / "focal.jsonl").write_text("")
    add(tmp_path, line())
    assert tables(tmp_path) == ["focal"]
    (tmp_path / "reproduced.jsonl").unlink()
    assert check(tmp_path) == ["reproduced.md"]  # a table without its lines


@pytest.mark.parametrize(
    "change", [{"experiment": "../secret"}, {"experiment": "x" * 300}, {"experiment": "reproduced"}]
)
def test_a_line_of_no_row_opens_nothing(tmp_path, change):
    (tmp_path / "results").mkdir()
    (tmp_path / "secret.jsonl").write_text("not to be read")
    record = dataclasses.asdict(line()) | change
    (tmp_path / "results" / "reproduced.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(RecordError, match=r"reproduced\.jsonl, line 1 cannot be read") as told:
        check(tmp_path / "results")
    assert "secret.jsonl" not in str(told.value)


def test_a_line_without_a_metric_is_none(tmp_path):
    record = dataclasses.asdict(line()) | {"metrics": {}}
    (tmp_path / "reproduced.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(RecordError, match="it repeats no row of a table"):
        check(tmp_path)


def test_a_broken_line_is_named(tmp_path):
    add(tmp_path, line())
    with (tmp_path / "reproduced.jsonl").open("a") as file:
        file.write('{"metrics": {"a": {"now": 1}}}\n')
    with pytest.raises(RecordError, match=r"reproduced\.jsonl, line 2 cannot be read \(.*recorded"):
        check(tmp_path)
