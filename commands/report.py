"""``opsin report``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from opsin.commands import runtime
from opsin.commands.values import File, Folder
from opsin.config import catalogue
from opsin.data.files import holds, replace_text, writing
from opsin.errors import ConfigError


def report(
    name: Annotated[str | None, arg(metavar="[NAME]")] = None,
    /,
    *,
    workdir: Folder[Path] = Path("runs"),
    results: Folder[Path] = Path("results"),
    readme: File[Path] = Path("README.md"),
    check: bool = False,
) -> int:
    """Writes tables and figures.

    Args:
        name: of an experiment, or ./FILE.py: its runs are read; without it all tables are made anew
        workdir: parent of the directories of runs
        results: where the tables are
        readme: whose table is written too
        check: compare, change nothing
    """
    runtime.set_up(runtime.Runtime())  # before the experiments, which import jax
    from opsin.report import reproduction

    names = [name] if name else reproduction.tables(results)
    if not names:
        raise ConfigError(f"no tables in {results}/: run it in the house, or name --results")
    if check:
        return _compare(names, results, readme if name is None else None)
    elsewhere = "choose another place with --results or --readme"
    if name:
        with writing(results, elsewhere):
            return _collect(name, workdir, results)
    from opsin.report.report import derive, overviews

    reports = [catalogue.report_of(each) for each in names]
    with writing(results, elsewhere):
        for chosen in reports:
            derive(chosen, results)
        reproduction.derive(results)
    for path, text in overviews(reports, results, readme).items():
        with writing(path, elsewhere):
            replace_text(path, text)
    print(f"wrote the tables of {len(reports)} experiments, and that of {readme}")
    print(results)
    return 0


def _collect(name: str, workdir: Path, results: Path) -> int:
    """The table of one experiment from its runs."""
    from opsin.config.sweep import identity_of
    from opsin.report.report import write
    from opsin.report.rows import collect

    chosen = catalogue.report_of(name)
    _, module = catalogue.opened(name)
    of = identity_of(module.config(), catalogue.arms(module))
    write(collect(workdir / chosen.name, chosen.arms, of, chosen.typed), chosen, results)
    print((results / f"{chosen.name}.md").read_text(encoding="utf-8"))
    print(results)
    return 0


def _compare(names: list[str], results: Path, readme: Path | None) -> int:
    """Names the files that are not what their data give."""
    from opsin.report import reproduction
    from opsin.report.report import check, overviews

    reports = [catalogue.report_of(name) for name in names]
    stale = [file for chosen in reports for file in check(chosen, results)]
    if readme:
        stale += reproduction.check(results)
        for path, text in overviews(reports, results, readme).items():
            if not holds(path, text.encode()):
                stale.append(str(path))
    for file in stale:
        print(f"opsin: {file} is not what its data give: run opsin report", file=sys.stderr)
    return 1 if stale else 0
