"""Whatever is wrong with a file of a run or of results, every command that reads it says one line."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from opsin.commands import evaluating, prediction, runs
from opsin.commands.exporting import export
from opsin.commands.runs import Options
from opsin.commands.trained import open_run
from opsin.config import catalogue
from opsin.config.sweep import identity_of
from opsin.errors import UserError
from opsin.report import evaluations
from opsin.report.rows import collect, read_rows, write_rows
from opsin.train.conclusion import Result as Ended
from tests.commands import tiny

ODD: tuple[Any, ...] = (None, True, -1, 2**70, "x", "", [], {}, [None], {"type": 3}, 0.5)
DEEP = "[" * 3000 + "]" * 3000


def mutated(content: Any) -> Iterator[str]:
    """JSON with a field less, or another value in the place of one; of lists, in the first item."""
    for odd in ODD:
        yield json.dumps(odd)
    places = [([], content)]
    while places:
        path, value = places.pop()
        below = value.items() if isinstance(value, dict) else enumerate(value[:1])
        for name, child in below:
            inner = [*path, name]
            for odd in ODD:
                yield json.dumps(put(content, inner, odd))
            yield json.dumps(put(content, inner, ...), default=lambda _: None)
            yield json.dumps(put(content, inner, "DEEP")).replace('"DEEP"', DEEP)
            yield json.dumps(put(content, inner, "NAN")).replace('"NAN"', "NaN")
            if isinstance(child, dict | list):
                places.append((inner, child))


def put(content: Any, path: list[Any], value: Any) -> Any:
    """A copy with another value at a path; without it for ``...``."""
    name, *rest = path
    copy = dict(content) if isinstance(content, dict) else list(content)
    if rest or value is not ...:
        copy[name] = put(content[name], rest, value) if rest else value
    else:
        del copy[name]
    return copy


def damaged(text: str) -> Iterator[bytes | None]:
    """A file of JSON that is anything but that; None is a directory in its place."""
    whole = text.encode()
    yield from (None, b"", b"\0" * 64, b"\xff\xfe\x00", whole[: len(whole) // 2], whole[:-2])
    yield from (b"1e400", b"NaN", DEEP.encode(), b'{"a":' * 3000, whole + whole, b"9" * 5000)
    yield from (each.encode() for each in mutated(json.loads(text)))


@pytest.fixture(scope="module")
def untouched() -> Iterator[None]:
    """Nothing trains, and ``tiny`` is an experiment."""
    find = catalogue.find
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "fit", lambda *args, **options: Ended(False, 3))
        patch.setattr(catalogue, "find", lambda name: tiny if name == "tiny" else find(name))
        yield


def readers(run: Path) -> dict[str, Callable[[], object]]:
    """What reads the files of a run, without the arrays of its checkpoint."""
    experiment, arms = tiny.config(), tiny.sweep()
    options = Options(run.parents[1], progress=False)
    identified = identity_of(experiment, arms)
    return {
        "run": lambda: runs.execute("tiny", "slow", experiment, options),
        "sweep": lambda: runs.state_of(run, experiment),
        "report": lambda: collect(run.parent, [arm.name for arm in arms], identified),
    }


def says_one_line(read: Callable[[], object]) -> None:
    """Reading raises nothing, or one line for the user."""
    try:
        read()
    except UserError as error:
        assert "\n" not in " ".join(str(error).split())


def written(path: Path, content: bytes | None) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.mkdir() if content is None else path.write_bytes(content)


def wrong_files(run: Path, name: str, share: int) -> Iterator[Path]:
    """The run again and again, with one file in another state each time."""
    path = run / name
    whole = path.read_bytes()
    for number, content in enumerate(damaged(whole.decode() if name.endswith("n") else '"x"')):
        if number % share == 0 or number < 12:
            written(path, content)
            yield path
    written(path, whole)


@pytest.mark.parametrize(
    "name", ["summary.json", "env.json", "arm.json", "FAILED", "evaluations/splits.json"]
)
@pytest.mark.parametrize("share", [9, pytest.param(1, marks=pytest.mark.proofs)])
@pytest.mark.usefixtures("untouched")
def test_a_damaged_file_of_a_run_is_one_line(a_run: Path, tmp_path: Path, name: str, share: int):
    shutil.copytree(a_run / "runs", tmp_path / "runs")
    (run,) = (tmp_path / "runs" / "tiny").iterdir()
    nothing = {"measurement": {}, "step": 3, "metrics": {"a": 1.0, "b": None}, "seconds": 1.0}
    evaluations.write(run, evaluations.SPLITS, **nothing, commit=None)
    if name == "FAILED":
        (run / "DONE").unlink()
        (run / "FAILED").write_text("NonFiniteError: x")
    for _ in wrong_files(run, name, share):
        for read in readers(run).values():
            says_one_line(read)


@pytest.mark.parametrize("share", [150, pytest.param(3, marks=pytest.mark.proofs)])
@pytest.mark.usefixtures("untouched")
def test_a_damaged_config_is_one_line(a_run: Path, tmp_path: Path, share: int):
    shutil.copytree(a_run / "runs", tmp_path / "runs")
    (run,) = (tmp_path / "runs" / "tiny").iterdir()
    for _ in wrong_files(run, "config.json", share):
        for read in (*readers(run).values(), lambda: open_run(run)):
            says_one_line(read)


