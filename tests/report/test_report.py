"""Reports: from rows to files, with nothing hidden and every byte derived."""

import csv
import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opsin.config.table import Report, ReportError, Table
from opsin.data.records import RecordError
from opsin.report import report as report_module
from opsin.report.figure import apart, draw
from opsin.report.report import best_arms, check, derive, overviews, write
from opsin.report.rows import Row, read_rows
from opsin.train.logging import NonFiniteError

ARMS = ("cross-entropy", "focal-1", "focal-2", "focal-5")
ACCURACY = {
    ("cross-entropy", 0): 0.9,
    ("cross-entropy", 1): 0.92,
    ("cross-entropy", 2): 0.94,
    ("focal-1", 0): 0.91,
    ("focal-1", 1): 0.95,
    ("focal-1", 2): 0.93,
    ("focal-2", 0): 0.96,
}
TABLE = Table(
    title="Focal loss on a long tail",
    metrics={"test/accuracy": ".2%", "test/nll": ".3f"},
    lower_is_better=("test/nll",),
    baseline="cross-entropy",
    paper={("focal-2", "test/accuracy"): "98.10 (Author et al. 2020, Table 3)"},
)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
BLUE, VERMILLION = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)
FOCAL = Report(name="focal", claim="Does focal loss help the tail?", arms=ARMS, table=TABLE)


def row(arm, seed, **changes):
    accuracy = ACCURACY.get((arm, seed), 0.5)
    fields = {
        "arm": arm,
        "seed": seed,
        "id": f"{arm}-{seed}",
        "status": "done",
        "commit": COMMIT,
        "dirty": False,
        "devices": ["cpu:cpu"],
        "hardware": "EPYC, 2 cores",
        "versions": {"jax": "0.10.2", "python": "3.11.9"},
        "seconds": 10.0 + seed,
        "metrics": {"test/accuracy": accuracy, "test/nll": 1 - accuracy},
    }
    return Row(**fields | changes)


def failed(arm, seed, error="NonFiniteError: train/loss is nan at step 12"):
    return row(arm, seed, status="failed", seconds=None, metrics={}, error=error)


@pytest.fixture
def undrawn(monkeypatch):
    """For what is said in words: to draw a figure takes longer than all else."""
    monkeypatch.setattr(report_module, "draw", lambda path, *arguments, **options: path.touch())


def test_rows_of_several_commits_are_marked(undrawn, tmp_path):
    mixed = row("focal-2", 0, commits=["f" * 40, COMMIT])
    write([row("focal-1", 0), mixed], FOCAL, tmp_path)
    text = (tmp_path / "focal.md").read_text()
    line = "- `focal-2`, seed 0: `ffffffffff` and then `0123456789`"
    assert f"By the code of several commits:\n\n{line}\n" in text
    write([row("focal-1", 0)], FOCAL, tmp_path)
    assert "several commits" not in (tmp_path / "focal.md").read_text()


@pytest.fixture
def rows():
    """Arm focal-2 has one failed and one missing seed; arm focal-5 was not run."""
    return [*(row(arm, seed) for arm, seed in ACCURACY), failed("focal-2", 1)]


def colours(path):
    with Image.open(path) as image:
        return {tuple(colour) for colour in np.array(image.convert("RGB")).reshape(-1, 3).tolist()}


def read_csv(folder, name="focal"):
    with open(folder / f"{name}.csv", encoding="utf-8", newline="") as file:
        return {(line["arm"], line["metric"]): line for line in csv.DictReader(file)}


def test_csv_by_hand(rows, undrawn, tmp_path):
    write(rows, FOCAL, tmp_path)
    lines = (tmp_path / "focal.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == (
        "arm,metric,n,mean,std,ci_low,ci_high,delta,delta_ci_low,delta_ci_high,seconds"
    )
    # focal-1 minus cross-entropy: 0.01, 0.03, -0.01; mean 0.01 and, with three pairs, their range.
    assert lines[1:] == [
        "cross-entropy,test/accuracy,3,0.92,0.02,0.9,0.94,,,,11",
        "cross-entropy,test/nll,3,0.08,0.02,0.06,0.1,,,,11",
        "focal-1,test/accuracy,3,0.93,0.02,0.91,0.95,0.01,-0.01,0.03,11",
        "focal-1,test/nll,3,0.07,0.02,0.05,0.09,-0.01,-0.03,0.01,11",
        "focal-2,test/accuracy,1,0.96,,,,0.06,,,10",
        "focal-2,test/nll,1,0.04,,,,-0.06,,,10",
        "focal-5,test/accuracy,0,,,,,,,,",
        "focal-5,test/nll,0,,,,,,,,",
    ]


def test_rounding_is_no_difference(undrawn, tmp_path):
    # (0.9 - 0.8) + (0.7 - 0.8) is -1e-16 in floating point; the arms are equal on average.
    values = {("a", 0): 0.9, ("a", 1): 0.7, ("b", 0): 0.8, ("b", 1): 0.8}
    rows = [row(*place, metrics={"acc": value}) for place, value in values.items()]
    table = Table(title="", metrics={"acc": ".2f"}, baseline="b", seeds=2)
    write(rows, Report(name="focal", claim="", arms=("a", "b"), table=table), tmp_path)
    assert read_csv(tmp_path)["a", "acc"]["delta"] == "0"


def test_markdown_shows_every_arm_and_every_gap(rows, undrawn, tmp_path):
    write(rows, FOCAL, tmp_path)
    text = (tmp_path / "focal.md").read_text(encoding="utf-8")
    lines = text.splitlines()
    assert lines[0] == "# Focal loss on a long tail"
    assert lines[2] == "Does focal loss help the tail?"
    assert lines[4].split(" | ")[1:6] == [
        "n",
        "test/accuracy (%) ↑",
        "Δ to `cross-entropy`",
        "paper",
        "test/nll ↓",
    ]
    assert "| `cross-entropy` | 3 | 92.00 ± 2.00 |  |  | 0.080 ± 0.020 |  | 11.0 |" in lines
    assert (
        "| `focal-1` | 3 | 93.00 ± 2.00 | +1.00 [-1.00, +3.00] |  | 0.070 ± 0.020 | "
        "-0.010 [-0.030, +0.010] | 11.0 |"
    ) in lines
    assert (
        "| `focal-2` | 1 of 3 | 96.00 | +6.00 | 98.10 (Author et al. 2020, Table 3) | 0.040 | "
        "-0.060 | 10.0 |"
    ) in lines
    assert "| `focal-5` | 0 of 3 | - | - |  | - | - |  |" in lines
    assert (
        "- `focal-2`: failed seed 1: `NonFiniteError: train/loss is nan at step 12`; missing seed 2"
    ) in lines
    assert "- `focal-5`: missing seed 0; missing seed 1; missing seed 2" in lines
    assert "opsin sweep focal --seeds 3" in lines
    assert (
        "- 8 runs: commit `0123456789`, 1 cpu:cpu (EPYC, 2 cores), jax 0.10.2, python 3.11.9"
        in lines
    )


def test_markdown_without_baseline_paper_or_gaps(rows, undrawn, tmp_path):
    table = dataclasses.replace(TABLE, baseline=None, paper={}, seeds=3)
    complete = dataclasses.replace(FOCAL, arms=ARMS[:2], table=table)
    write([r for r in rows if r.arm in ARMS[:2]], complete, tmp_path)
    text = (tmp_path / "focal.md").read_text(encoding="utf-8")
    assert not any(word in text for word in ("Δ", "paper", "Incomplete", "missing"))


def test_runs_of_several_commits_and_machines_are_told_apart(undrawn, tmp_path):
    rows = [row("focal-1", seed, devices=["TPU v5e"] * 8, dirty=seed == 2) for seed in range(3)]
    write(rows, dataclasses.replace(FOCAL, arms=ARMS), tmp_path)
    text = (tmp_path / "focal.md").read_text(encoding="utf-8")
    assert "- 2 runs: commit `0123456789`, 8 TPU v5e (EPYC, 2 cores), jax" in text
    assert "- 1 run: commit `0123456789` with uncommitted changes, 8 TPU v5e" in text


def test_seeds_beyond_the_plan_count(undrawn, tmp_path):
    rows = [row("focal-1", seed) for seed in range(4)] + [failed("focal-1", 4)]
    write(rows, FOCAL, tmp_path)
    assert "| `focal-1` | 4 of 5 |" in (tmp_path / "focal.md").read_text(encoding="utf-8")
    assert read_csv(tmp_path)["focal-1", "test/accuracy"]["n"] == "4"


def test_each_point_of_a_curve_has_its_own_baseline(tmp_path):
    arms = ("cnn@50", "cnn@100", "vit@50", "vit@100")
    table = Table(
        title="ViT and CNN on few digits",
        metrics={"test/accuracy": ".1%"},
        baseline={"vit@50": "cnn@50", "vit@100": "cnn@100"},
        lines={arm: (arm[:3], int(arm[4:])) for arm in arms},
        x_label="training images",
        x_scale="log",
        seeds=1,
    )
    report = Report(name="curves", claim="When does a ViT catch up?", arms=arms, table=table)
    values = dict(zip(arms, (0.75, 0.9, 0.5, 0.8), strict=True))
    write([row(a, 0, metrics={"test/accuracy": v}) for a, v in values.items()], report, tmp_path)
    deltas = {arm: line["delta"] for (arm, _), line in read_csv(tmp_path, "curves").items()}
    assert deltas == {"cnn@50": "", "cnn@100": "", "vit@50": "-0.25", "vit@100": "-0.1"}
    text = (tmp_path / "curves.md").read_text(encoding="utf-8")
    assert "| `vit@50` | 1 | 50.0 | -25.0 to `cnn@50` |" in text
    assert {BLUE, VERMILLION} <= colours(tmp_path / "curves.png")
    assert check(report, tmp_path) == []


def test_a_curve_may_run_over_a_metric(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    arms = ("low", "high", "absent")
    table = Table(
        title="Rate and distortion",
        metrics={"distortion": ".1f", "rate": ".1%"},
        lines=dict.fromkeys(arms, ("vae", "rate")),
        seeds=2,
    )
    values = {
        "distortion": {"low": {0: 9.0, 1: 7.0}, "high": {0: 3.0, 1: 3.0}, "absent": {}},
        "rate": {"low": {0: 0.1, 1: 0.3}, "high": {0: 0.5, 1: 0.5}, "absent": {}},
    }
    report = Report(name="curves", claim="What does rate buy?", arms=arms, table=table)
    draw(tmp_path / "curves.png", report, values, arms, "")
    (axes,) = drawn[0].axes  # none for the rate over itself
    points = np.array(axes.lines[0].get_xydata())
    np.testing.assert_allclose(points, [[0.2, 8.0], [0.5, 3.0]])


@pytest.mark.parametrize(("metrics", "wide", "high"), [(1, 1, 1), (3, 3, 1), (4, 2, 2), (5, 3, 2)])
def test_a_figure_has_three_panels_side_by_side_at_most(tmp_path, monkeypatch, metrics, wide, high):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    names = [f"m{place}" for place in range(metrics)]
    table = Table(title="", metrics=dict.fromkeys(names, ".1f"))
    report = Report(name="many", claim="", arms=("one",), table=table)
    draw(tmp_path / "many.png", report, {n: {"one": {0: 1.0}} for n in names}, ("one",), "")
    axes = drawn[0].axes
    assert [each.get_xlabel() for each in axes] == [table.header(name) for name in names]
    places = [each.get_subplotspec() for each in axes]
    assert {(place.rowspan.start, place.colspan.start) for place in places} == {
        divmod(place, wide) for place in range(metrics)
    }
    assert drawn[0].get_size_inches() == pytest.approx([1.8 + 3.4 * wide, 1.8 * high])


def test_jsonl_keeps_every_row_and_digit(rows, undrawn, tmp_path):
    exact = row("focal-5", 0, metrics={"test/nll": 0.1 + 0.2, "test/accuracy": 1 / 3})
    write([exact, *reversed(rows)], FOCAL, tmp_path)
    assert read_rows(tmp_path / "focal.jsonl") == [*rows, exact]
    first = (tmp_path / "focal.jsonl").read_text(encoding="utf-8").splitlines()[0]
    assert first == (
        '{"arm": "cross-entropy", "seed": 0, "id": "cross-entropy-0", "status": "done", '
        f'"commit": "{COMMIT}", "dirty": false, "devices": ["cpu:cpu"], '
        '"hardware": "EPYC, 2 cores", '
        '"versions": {"jax": "0.10.2", "python": "3.11.9"}, "seconds": 10.0, '
        '"metrics": {"test/accuracy": 0.9, "test/nll": 0.09999999999999998}}'
    )


def test_all_files_come_again_byte_for_byte_from_the_jsonl(rows, tmp_path):
    write(rows, FOCAL, tmp_path / "one")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "focal.jsonl").write_bytes((tmp_path / "one" / "focal.jsonl").read_bytes())
    derive(FOCAL, tmp_path / "two")
    for suffix in ("jsonl", "csv", "md", "png"):
        one, two = (tmp_path / folder / f"focal.{suffix}" for folder in ("one", "two"))
        assert one.read_bytes() == two.read_bytes(), suffix


def test_check_names_what_was_edited_by_hand(rows, tmp_path):
    write(rows, FOCAL, tmp_path)
    assert check(FOCAL, tmp_path) == []
    text = (tmp_path / "focal.csv").read_text(encoding="utf-8")
    (tmp_path / "focal.csv").write_text(text.replace("0.93", "0.98"), encoding="utf-8")
    with Image.open(tmp_path / "focal.png") as image:
        pixels = np.array(image)
    pixels[40, 40] = 0
    Image.fromarray(pixels).save(tmp_path / "focal.png")
    (tmp_path / "focal.md").unlink()
    assert check(FOCAL, tmp_path) == ["focal.csv", "focal.md", "focal.png"]


@pytest.mark.parametrize("damage", ["noise", "folder", "nothing"])
def test_check_names_what_is_no_such_file(rows, tmp_path, damage):
    write(rows, FOCAL, tmp_path)
    derived = ["focal.csv", "focal.md", "focal.png"]
    for name in derived:
        path = tmp_path / name
        path.unlink()
        if damage == "folder":
            path.mkdir()
        elif damage == "noise":
            path.write_bytes(bytes(range(256)))
    assert check(FOCAL, tmp_path) == derived


def test_check_sees_a_changed_number_in_the_raw_data(rows, tmp_path):
    write(rows, FOCAL, tmp_path)
    path = tmp_path / "focal.jsonl"
    path.write_text(path.read_text().replace('"test/accuracy": 0.96', '"test/accuracy": 0.99'))
    assert check(FOCAL, tmp_path) == ["focal.csv", "focal.md", "focal.png"]


def test_labels_that_would_run_into_each_other_are_left_out():
    assert apart([3, 4, 7, 8, 15, 16, 31, 32], log=True) == [3, 4, 7, 8, 16, 32]
    assert apart([1, 50, 98, 100], log=False) == [1, 50, 100]
    assert apart([5], log=True) == [5]


def test_figure_shows_the_data_and_ignores_the_users_style(rows, tmp_path):
    import matplotlib

    write(rows, FOCAL, tmp_path / "one")
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 20}):
        write(rows, FOCAL, tmp_path / "two")
    one, two = ((tmp_path / folder / "focal.png").read_bytes() for folder in ("one", "two"))
    assert one == two
    assert {BLUE, VERMILLION} <= colours(tmp_path / "one" / "focal.png")
    with Image.open(tmp_path / "one" / "focal.png") as image:
        assert image.info.keys() <= {"dpi"}  # no time and no version in the file


def test_a_metric_that_is_not_a_number_is_shown(tmp_path):
    rows = [row("focal-1", s, metrics={"test/accuracy": float("nan")}) for s in range(3)]
    table = Table(title="", metrics={"test/accuracy": ".2%"})
    report = Report(name="focal", claim="", arms=("focal-1",), table=table)
    write(rows, report, tmp_path)
    assert "| `focal-1` | 3 | nan ± nan |" in (tmp_path / "focal.md").read_text(encoding="utf-8")
    assert check(report, tmp_path) == []


# Mistakes.


def test_an_unknown_metric_names_those_that_are_there(rows, tmp_path):
    table = Table(title="", metrics={"test/acuracy": ".2%"})
    with pytest.raises(ReportError, match=r"'test/acuracy', which .*has: test/accuracy, test/nll"):
        write(rows, dataclasses.replace(FOCAL, table=table), tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_a_row_of_an_arm_that_is_gone_is_refused(rows, undrawn, tmp_path):
    write(rows, FOCAL, tmp_path)
    shorter = dataclasses.replace(FOCAL, arms=(*ARMS[:1], *ARMS[2:]))
    with pytest.raises(ReportError, match="'focal-1', which its sweep lacks"):
        derive(shorter, tmp_path)


@pytest.mark.parametrize("line", ['{"arm": "focal-1"', '{"arm": "focal-1"}', "[1]"])
def test_a_broken_line_is_named(rows, undrawn, tmp_path, line):
    write(rows, FOCAL, tmp_path)
    with open(tmp_path / "focal.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(RecordError, match=r"focal.jsonl, line 9 cannot be read \(.*report focal"):
        derive(FOCAL, tmp_path)


def test_no_raw_data_names_the_command(tmp_path):
    with pytest.raises(RecordError, match=r"focal.jsonl .*: write it with opsin report focal"):
        check(FOCAL, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": {}, "lower_is_better": (), "paper": {}}, "names no metric"),
        ({"baseline": "focal-3"}, "'focal-3'; its sweep has: cross-entropy, focal-1"),
        ({"baseline": {"focal-1": "plain"}}, "the arm 'plain'"),
        ({"paper": {("focal-9", "test/nll"): "1"}}, "the arm 'focal-9'"),
        ({"paper": {("focal-1", "test/f1"): "1"}}, "'test/f1', which is not among its metrics"),
        ({"lower_is_better": ("nll",)}, "'nll', which is not among its metrics"),
        ({"lines": {"focal-1": ("focal", 1)}}, "no line and x for the arm 'cross-entropy'"),
        ({"lines": {"focal-1": ("focal", "rate")}}, "'rate', which is not among its metrics"),
    ],
)
def test_a_table_must_fit_its_sweep(changes, message):
    with pytest.raises(ReportError, match=message):
        dataclasses.replace(FOCAL, table=dataclasses.replace(TABLE, **changes))


# The README.


def test_the_table_of_best_arms_has_a_line_for_each_experiment(rows, undrawn, tmp_path):
    results = tmp_path / "results"
    write(rows, FOCAL, results)
    lines = best_arms([FOCAL], results, folder="results/").splitlines()
    assert lines[0].startswith("| experiment | metric | best arm | baseline or second | n |")
    assert lines[2:] == [
        "| [focal](results/focal.md) | test/accuracy (%) ↑ | `focal-2` 96.00 | "
        "`cross-entropy` 92.00 ± 2.00 | 1 of 3 | 98.10 (Author et al. 2020, Table 3) |",
    ]
    lower = dataclasses.replace(TABLE, metrics={"test/nll": ".3f", "test/accuracy": ".2%"})
    lines = best_arms([dataclasses.replace(FOCAL, table=lower)], results, folder="").splitlines()
    assert "test/nll ↓ | `focal-2` 0.040 | `cross-entropy` 0.080 ± 0.020 | 1 of 3 |" in lines[2]
    lower = dataclasses.replace(lower, lower_is_better=("test/nll", "test/accuracy"), paper={})
    lower = dataclasses.replace(lower, metrics={"test/accuracy": ".2%", "test/nll": ".3f"})
    (_, _, line) = best_arms(
        [dataclasses.replace(FOCAL, table=lower)], results, folder=""
    ).splitlines()
    assert "| `cross-entropy` 92.00 ± 2.00 | `focal-1` 93.00 ± 2.00 | 3 |  |" in line
    bound = dataclasses.replace(TABLE, references=("focal-2",))
    (_, _, line) = best_arms(
        [dataclasses.replace(FOCAL, table=bound)], results, folder=""
    ).splitlines()
    assert "| `focal-1` 93.00 ± 2.00 | `cross-entropy` 92.00 ± 2.00 | 3 |" in line
    with pytest.raises(ReportError, match="names the arm 'focal-9'"):
        dataclasses.replace(FOCAL, table=dataclasses.replace(TABLE, references=("focal-9",)))


@pytest.fixture
def results(rows, undrawn, tmp_path) -> Path:
    """The results of two experiments."""
    for name in ("focal", "other"):
        write(rows, dataclasses.replace(FOCAL, name=name), tmp_path / "results")
    return tmp_path / "results"


def lines_of(text: str) -> list[str]:
    """The experiments that a text has a line of a table for, as it links to them."""
    return re.findall(r"^\| (\[\w+\]\(.*?\)) \|", text, re.MULTILINE)


def test_the_readme_has_the_lines_that_it_names(results):
    path = results.parent / "README.md"
    reports = [FOCAL, dataclasses.replace(FOCAL, name="other")]
    links = {name: f"[{name}](results/{name}.md)" for name in ("focal", "other")}
    for named, found in ((": other", ["other"]), (": other focal", ["other", "focal"])):
        path.write_text(f"# Title\n\n<!-- results{named} -->\nold\n<!-- /results -->\n\nEnd.\n")
        text = overviews(reports, results, path)[path]
        assert text.startswith(f"# Title\n\n<!-- results{named} -->\n| experiment |")
        assert text.endswith(" |\n<!-- /results -->\n\nEnd.\n")
        assert lines_of(text) == [links[name] for name in found]
        path.write_text(text)
        assert overviews(reports, results, path)[path] == text
    path.write_text("<!-- results -->\n<!-- /results -->\n")
    whole = overviews(reports, results, path)
    assert lines_of(whole[path]) == list(links.values())
    assert lines_of(whole[results / "README.md"]) == ["[focal](focal.md)", "[other](other.md)"]
    path.write_text("<!-- results: focal lost -->\n<!-- /results -->\n")
    with pytest.raises(ReportError, match=r"README\.md names lost, of which .*results/ has no"):
        overviews(reports, results, path)


@pytest.mark.parametrize("text", ["", "<!-- results -->", "<!-- /results -->\n<!-- results -->"])
def test_a_readme_without_its_lines_is_refused(tmp_path, text):
    path = tmp_path / "README.md"
    with pytest.raises(ReportError, match=r"no .*README\.md"):
        overviews([], tmp_path, path)
    path.write_text(text)
    with pytest.raises(ReportError, match="lacks the line <!-- results -->"):
        overviews([], tmp_path, path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ReportError, match=r"README\.md cannot be read .'utf-8' codec"):
        overviews([], tmp_path, path)


def test_reports_start_without_heavy_libraries():
    code = (
        f"import sys, {report_module.__name__}; "
        "assert not {'jax', 'flax', 'matplotlib', 'scipy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_details_have_a_table_of_their_own_and_are_in_the_csv(undrawn, tmp_path):
    table = Table(title="t", metrics={"test/accuracy": ".1%"}, details={"test/recall/0": ".2f"})
    report = Report(name="x", claim="A claim.", arms=["a"], table=table)
    rows = [
        row("a", seed, metrics={"test/accuracy": 0.5, "test/recall/0": value})
        for seed, value in enumerate((0.25, 0.75))
    ]
    write(rows, report, tmp_path)
    assert "| `a` | 0.50 ± 0.35 |" in (tmp_path / "x.md").read_text()
    assert "a,test/recall/0,2,0.5,0.353553," in (tmp_path / "x.csv").read_text()


def test_an_arm_may_lack_a_detail_but_not_all_of_them(undrawn, tmp_path):
    table = Table(title="t", metrics={"test/accuracy": ".1%"}, details={"test/miou": ".2f"})
    report = Report(name="x", claim="A claim.", arms=["a", "b"], table=table)
    both = [
        row("a", 0, metrics={"test/accuracy": 0.5, "test/miou": 0.25}),
        row("b", 0, metrics={"test/accuracy": 0.5}),
    ]
    write(both, report, tmp_path)
    assert "b,test/miou,0,,,,,,,," in (tmp_path / "x.csv").read_text()
    with pytest.raises(ReportError, match="names the metric 'test/miou'"):
        write(both[1:], report, tmp_path)


def test_a_failed_run_counts_where_the_table_says_as_what(undrawn, tmp_path):
    assert NonFiniteError.__name__ == "NonFiniteError"  # which the report does not import
    table = Table(
        title="t",
        metrics={"test/diverged": ".0%", "test/fd": ".1f"},
        failed_as={"test/diverged": 1.0},
    )
    report = Report(name="x", claim="A claim.", arms=["a"], table=table)
    rows = [row("a", seed, metrics={"test/diverged": 0.0, "test/fd": 3.0}) for seed in range(3)]
    full = failed("a", 4, error="SaveError: cannot write to x (No space left on device)")
    write([*rows, failed("a", 3), full], report, tmp_path)
    written = (tmp_path / "x.csv").read_text()
    assert "a,test/diverged,4,0.25," in written
    assert "a,test/fd,3,3,0," in written
    with pytest.raises(ReportError, match="test/nothing"):
        Report(
            name="x",
            claim="",
            arms=["a"],
            table=dataclasses.replace(table, failed_as={"test/nothing": 1}),
        )
