"""Result files: a csv for programs, a page of Markdown for people, and where both come from."""

from __future__ import annotations

import csv
import datetime
import importlib.metadata
import importlib.util
import io
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opsin.commands.provenance import environment
from opsin.data.files import replace_text
from opsin.report.report import markdown_table


def has_torch() -> bool:
    """Whether PyTorch is there, which is not imported; where it is not, says how to install it."""
    found = importlib.util.find_spec("torch") is not None
    if not found:
        print(
            "PyTorch is not installed, so its rows are left out: `make bench` installs it, or "
            "pip install -c constraints.txt -e '.[bench]' (on Linux with --extra-index-url "
            "https://download.pytorch.org/whl/cpu, which saves gigabytes of CUDA)"
        )
    return found


def origin(program: str, arguments: Sequence[str] | None, peak: float) -> dict[str, str]:
    """When, where, with what and how: for the end of a page.

    Args:
        program: the command without its arguments.
        arguments: those; None for those of this process.
        peak: FLOP/s of matrix products.
    """
    found = environment()
    versions = {"Python": found["python"]}
    versions |= {name: found["versions"][name] for name in ("jax", "flax")}
    if importlib.util.find_spec("torch") is not None:
        versions["torch"] = importlib.metadata.version("torch")
    return {
        "date": datetime.date.today().isoformat(),
        "hardware": f"{found['hardware']}; load average {os.getloadavg()[0]:.1f}",
        "peak": f"{peak / 1e9:.0f} GFLOP/s",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "commit": f"{found['commit']}{' with uncommitted changes' if found['dirty'] else ''}",
        "command": shlex.join(
            [*program.split(), *(sys.argv[1:] if arguments is None else arguments)]
        ),
    }


def number(value: float | None) -> str:
    """Four digits for people, ``3.141`` or ``1234``; nothing for None."""
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:#.4g}"


def page(title: str, legend: str, lines: Sequence[Sequence[str]], origin: Mapping[str, str]) -> str:
    """A page of Markdown: a table, of which the first line is the header, and its origin."""
    source = "\n".join(f"- {name}: {text}" for name, text in origin.items())
    return f"# {title}\n\n{legend}\n\n{markdown_table(lines)}\n\n{source}\n"


def write(path: Path, rows: Sequence[Mapping[str, Any]], page: str) -> None:
    """Writes ``rows`` to ``path``.csv and ``page`` to ``path``.md, each whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path.with_suffix(".csv"), text.getvalue())
    replace_text(path.with_suffix(".md"), page)
