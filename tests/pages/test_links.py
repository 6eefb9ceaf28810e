"""Dead links and what is fetched from elsewhere are found, and nothing else."""

import re
from pathlib import Path

import pytest

from opsin.errors import ConfigError
from opsin.pages.links import dead

HOUSE = Path(__file__).parents[2]


def site(folder: Path, body: str) -> Path:
    (folder / "sub").mkdir()
    (folder / "a b.png").write_bytes(b"")
    (folder / "index.html").write_text(f'<h1 id="top">Top</h1>{body}')
    (folder / "sub/page.html").write_text('<a href="../index.html#top">up</a><p id="here">')
    return folder


@pytest.mark.parametrize(
    "fine",
    [
        '<a href="sub/page.html">',
        '<a href="sub/page.html#here">',
        '<a href="#top">',
        '<img src="a%20b.png">',
        '<a href="https://example.org/x#y">',
        '<a href="mailto:a@example.org">',
        '<link rel="canonical" href="https://example.org">',
    ],
)
def test_what_leads_somewhere(tmp_path, fine):
    assert dead(site(tmp_path, fine)) == []


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ('<a href="gone.html">', "index.html links to gone.html"),
        ('<a href="sub">', "index.html links to sub"),
        ('<a href="#bottom">', "index.html links to #bottom"),
        ('<a href="sub/page.html#top">', "index.html links to sub/page.html#top"),
        ('<img src="gone.png">', "index.html links to gone.png"),
        ('<script src="https://cdn.org/x.js">', "index.html fetches https://cdn.org/x.js"),
        ('<link rel="stylesheet" href="//cdn.org/x">', "index.html fetches //cdn.org/x"),
    ],
)
def test_what_does_not(tmp_path, wrong, line):
    assert dead(site(tmp_path, wrong)) == [line]


def test_a_folder_without_pages_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no page"):
        dead(tmp_path)


def test_what_pages_quote_is_found_by_its_name_and_numbered():
    quoted = [
        (path, *found)
        for path in (HOUSE / "docs").rglob("*.md")
        for found in re.findall(
            r"^```\{literalinclude\} (\S+)\n((?::[\w-]+:.*\n)+)```", path.read_text(), re.MULTILINE
        )
        if path.parent.name not in ("gallery", "measured", "python")
    ]
    stops = 0
    for path, target, options in quoted:
        code = (path.parent / target).read_text()
        assert ":lineno-match:" in options
        (name,) = re.findall(r":pyobject: ([\w.]+)", options)
        owner, _, member = name.rpartition(".")
        assert f"class {owner}" in code or not owner
        assert re.search(rf"^ *(def|class) {member}\b", code, re.MULTILINE), name
        stops += path.name == "batch.md"
    assert stops >= 15
