"""Dead links of a built site, and what a reader's browser would fetch from elsewhere.

``python -m opsin.pages.links build/site`` prints them, and exits with 1 if there are any.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from opsin.errors import ConfigError


class Page(HTMLParser):
    """What one page refers to, and the anchors that it has.

    Attributes:
        anchors: ids that a link may end in.
        links: targets of ``<a>``.
        fetched: what a browser loads to show the page: styles, scripts, images.
    """

    def __init__(self, text: str):
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collects what a tag names."""
        values = {name: value for name, value in attrs if value}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag == "link" and values.get("rel") in ("stylesheet", "icon", "preload"):
            self.fetched.append(values.get("href", ""))
        if "src" in values:
            self.fetched.append(values["src"])


def dead(site: Path) -> list[str]:
    """A line for each link to nowhere, and for each file that is fetched from elsewhere.

    Raises:
        ConfigError: there is no page.
    """
    pages = {
        path.resolve(): Page(path.read_text(encoding="utf-8"))
        for path in sorted(site.rglob("*.html"))
    }
    if not pages:
        raise ConfigError(f"{site} holds no page")
    lines = []
    for path, page in pages.items():
        name = path.relative_to(site.resolve()).as_posix()
        away = [target for target in page.fetched if urlsplit(target).netloc]
        lines += [f"{name} fetches {target}" for target in away]
        lines += [
            f"{name} links to {target}"
            for target in dict.fromkeys([*page.links, *page.fetched])
            if not _leads_somewhere(target, path, pages)
        ]
    return lines


def _leads_somewhere(target: str, page: Path, pages: dict[Path, Page]) -> bool:
    """Whether a link within the site ends at a file and an anchor; others are not followed."""
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        return True
    file = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if file not in pages:
        return file.is_file()
    return not parts.fragment or unquote(parts.fragment) in pages[file].anchors


if __name__ == "__main__":
    found = dead(Path(sys.argv[1]))
    print("\n".join(found) or "every link leads somewhere")
    sys.exit(bool(found))
