"""Pages of what was measured beside the experiments: speed, plans, reproduced rows."""

from __future__ import annotations

import re
from pathlib import Path

from opsin.pages.gallery import experiments

LINK = re.compile(r"\]\(((?:\.\./)*)\.\./results/((?:plans/)?[\w-]+)\.md\)")


def pages(house: Path) -> dict[str, str]:
    """File name → Markdown, for the folder ``docs/measured``: what ``results/`` has for people."""
    own = {path.stem for paths in experiments(house).values() for path in paths}
    folder = house / "results"
    paths = [path for path in sorted(folder.glob("*.md")) if path.stem not in own | {"README"}]
    paths += sorted(folder.glob("plans/*.md"))
    tables = re.compile(rf"\]\(({'|'.join(own)})\.md\)")
    texts = {
        path.relative_to(folder).as_posix(): tables.sub(
            r"](../gallery/\1.md)", path.read_text(encoding="utf-8")
        )
        for path in paths
    }
    names = "\n".join(name.removesuffix(".md") for name in texts)
    index = f"# What was measured\n\n```{{toctree}}\n:maxdepth: 1\n\n{names}\n```\n"
    return {"index.md": index, **texts}


def inside(text: str) -> str:
    """Leads links to ``../results/NAME.md`` to the page of the site that shows that file."""
    return LINK.sub(r"](\1measured/\2.md)", text)
