"""The gallery: a page for each experiment, from its file, its pictures and its results."""

from __future__ import annotations

import ast
import re
from pathlib import Path

FAMILIES = "experiments/*/__init__.py"


def experiments(house: Path) -> dict[str, list[Path]]:
    """Family → the files of its experiments."""
    folders = sorted(path.parent for path in house.glob(FAMILIES))
    return {
        folder.name: [path for path in sorted(folder.glob("*.py")) if path.stem != "__init__"]
        for folder in folders
    }


def pages(house: Path) -> dict[str, str]:
    """File name → Markdown of every page, and of their index, for the folder ``docs/gallery``."""
    found = experiments(house)
    texts = {f"{path.stem}.md": _page(path, house) for paths in found.values() for path in paths}
    return {"index.md": _index(found, house), **texts}


def pictures(name: str, house: Path) -> list[str]:
    """Paths of what a run of the experiment drew, below the house."""
    drawn = sorted((house / "results/pictures").glob(f"{name}.png"))
    return [path.relative_to(house).as_posix() for path in drawn]


def results(name: str, house: Path) -> str:
    """Its table and figure as Markdown, without title and claim; empty if it has none."""
    path = house / "results" / f"{name}.md"
    if not path.exists():
        return ""
    _, _, rest = path.read_text(encoding="utf-8").split("\n\n", 2)
    larger = r"[![\1](../../results/\2)](../../results/\2)"  # which a click shows
    return re.sub(r"!\[(.*?)\]\(([\w-]+\.png)\)", larger, rest).strip()


def _page(path: Path, house: Path) -> str:
    """The claim, the pictures, the results and the code of one experiment."""
    text = path.read_text(encoding="utf-8")
    module = ast.parse(text)
    claim, _, more = (ast.get_docstring(module) or "").partition("\n")
    end = module.body[0].end_lineno or 0
    file = path.relative_to(house).as_posix()
    parts = [f"# {path.stem}", f"**{claim}**", more.strip()]
    if planned := sorted((house / "results/plans").glob(f"{path.stem}-*.md")):
        chips = (f"[{each.stem.removeprefix(path.stem)[1:]}]" for each in planned)
        links = (f"{c}(../measured/plans/{p.name})" for c, p in zip(chips, planned, strict=True))
        parts.append(f"Plans: {', '.join(links)}.")
    parts += [
        f"![What a run of {path.stem} drew](../../{each})" for each in pictures(path.stem, house)
    ]
    if table := results(path.stem, house):
        parts += ["## Results", ":::{container} numbers", table, ":::"]
    parts += [
        "## The experiment",
        f"```{{literalinclude}} ../../{file}\n:lines: {end + 2}-\n:language: python\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _index(found: dict[str, list[Path]], house: Path) -> str:
    """All experiments with claim and picture, and one table of their best arms."""
    parts = [
        "# Gallery",
        "Every experiment of this repository: what it asks, what came out, and its code. "
        "`opsin list` prints the same list.",
    ]
    for family, paths in found.items():
        parts += [f"## {family.capitalize()}", "::::{container} cards"]
        parts += [_card(path, house) for path in paths]
        parts.append("::::")
    overview = (house / "results/README.md").read_text(encoding="utf-8")
    parts += ["## Best arms", overview.partition("\n\n")[2].strip()]
    names = "\n".join(path.stem for paths in found.values() for path in paths)
    parts.append(f"```{{toctree}}\n:hidden:\n\n{names}\n```")
    return "\n\n".join(parts) + "\n"


def _card(path: Path, house: Path) -> str:
    """Name, claim and, if there is one, a picture that leads to the page."""
    name, figure = path.stem, f"results/{path.stem}.png"
    shown = [*pictures(name, house), *([figure] if (house / figure).exists() else [])]
    picture = [f"[![{name}](../../{shown[0]})]({name}.md)"] if shown else []
    claim = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[
        0
    ]
    return "\n\n".join([":::{container} card", *picture, f"[{name}]({name}.md)", claim, ":::"])
