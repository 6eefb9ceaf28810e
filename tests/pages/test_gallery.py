"""The gallery shows every experiment with its claim, its numbers and its code."""

import re
from pathlib import Path

import pytest

from opsin.config import catalogue
from opsin.pages import gallery, measured

HOUSE = Path(__file__).parents[2]
EXPERIMENTS = catalogue.experiments()


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return gallery.pages(HOUSE)


def test_every_experiment_has_a_page_and_a_card(pages):
    assert set(pages) == {"index.md", *(f"{name}.md" for name in EXPERIMENTS)}
    assert len(EXPERIMENTS) > 35
    for name, path in EXPERIMENTS.items():
        claim = catalogue.claim(path)
        assert pages[f"{name}.md"].startswith(f"# {name}\n\n**{claim}**\n")
        assert f"[{name}]({name}.md)\n\n{claim}" in pages["index.md"]
    listed = pages["index.md"].rpartition(":hidden:\n\n")[2].split("\n```")[0].split()
    assert sorted(listed) == sorted(EXPERIMENTS)


def test_a_page_has_what_is_committed_of_its_experiment(pages):
    reported = 0
    for name, path in EXPERIMENTS.items():
        text = pages[f"{name}.md"]
        table = HOUSE / f"results/{name}.md"
        reported += table.exists()
        assert ("## Results" in text) == table.exists()
        rows = re.findall(r"^\|.*", table.read_text(), re.MULTILINE) if table.exists() else []
        assert [row for row in rows if row not in text] == []
        for picture in re.findall(r"!\[.*?\]\((.*?)\)", text):
            assert (HOUSE / "docs/gallery" / picture).resolve().exists()
        (first,) = re.findall(r":lines: (\d+)-", text)
        lines = path.read_text().splitlines()
        assert '"""' in "".join(lines[: int(first) - 1])
        assert lines[int(first) - 1].startswith(("from ", "import "))
        assert lines[int(first) - 2] == ""
    assert reported >= 30


def test_a_run_that_drew_shows_it(pages):
    assert (
        "![What a run of mnist_ddpm drew](../../results/pictures/mnist_ddpm.png)"
        in (pages["mnist_ddpm.md"])
    )
    assert gallery.pictures("digits_lenet", HOUSE) == []
    drawn = {path.stem for path in (HOUSE / "results/pictures").glob("*.png")}
    assert drawn <= EXPERIMENTS.keys()  # or nobody sees them


def test_the_rest_of_the_results_has_pages(pages):
    found = measured.pages(HOUSE)
    shown = {path.removesuffix(".md") for path in {*found, *pages} - {"index.md"}}
    folder = HOUSE / "results"
    here = {p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.md")}
    assert here - {"README"} <= shown
    assert "](../gallery/digits_lenet.md)" in found["reproduced.md"]


@pytest.mark.parametrize(
    ("link", "led"),
    [
        ("[x](../results/benchmarks.md)", "[x](measured/benchmarks.md)"),
        ("[x](../../results/plans/a-v5e-2x2.md)", "[x](../measured/plans/a-v5e-2x2.md)"),
        ("![x](../results/a.png)", "![x](../results/a.png)"),
        ("[x](results/a.md)", "[x](results/a.md)"),
    ],
)
def test_links_to_results_stay_inside(link, led):
    assert measured.inside(link) == led
