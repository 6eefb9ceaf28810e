"""Whatever is wrong with a file of a run or of results, who reads it says one line."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from opsin.commands import prediction, runs
from opsin.commands.exporting import export
from opsin.commands.runs import Options
from opsin.commands.trained import open_run
from opsin.config import catalogue
from opsin.config.identity import evaluation_id
from opsin.config.sweep import identity_of
from opsin.data.files import read_lines
from opsin.errors import UserError
from opsin.report import evaluations
from opsin.report.rows import collect, read_rows, write_rows
from opsin.report.run_files import read_place
from opsin.train.conclusion import Result as Ended
from opsin.train.logging import JsonLines
from tests.commands import tiny

ODD: tuple[Any, ...] = (None, True, 0, -1, 2**70, "x", "", [], {}, [None], {"type": 3}, 0.5)
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
        "evaluate": lambda: read_place(run),
        "report": lambda: collect(run.parent, [arm.name for arm in arms], identified),
    }


def refused(read: Callable[[], object]) -> bool:
    """Whether reading is refused as a user's mistake; any other error is a bug, and raises."""
    try:
        read()
    except UserError:
        return True
    return False


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
@pytest.mark.parametrize("share", [40, pytest.param(1, marks=pytest.mark.proofs)])
@pytest.mark.usefixtures("untouched")
def test_a_damaged_file_of_a_run_is_one_line(a_run: Path, tmp_path: Path, name: str, share: int):
    shutil.copytree(a_run / "runs", tmp_path / "runs")
    (run,) = (tmp_path / "runs" / "tiny").iterdir()
    nothing = {"measurement": {}, "step": 3, "metrics": {"a": 1.0, "b": None}, "seconds": 1.0}
    nothing |= {"own": {}, "commit": None}
    of = evaluation_id(tiny.config())
    evaluations.write(run, evaluations.SPLITS, **nothing, of=of)
    if name == "FAILED":
        (run / "DONE").unlink()
        (run / "FAILED").write_text("NonFiniteError: x")
    told = [refused(read) for _ in wrong_files(run, name, share) for read in readers(run).values()]
    assert sum(told) > 1


@pytest.mark.parametrize("share", [150, pytest.param(3, marks=pytest.mark.proofs)])
@pytest.mark.usefixtures("untouched")
def test_a_damaged_config_is_one_line(a_run: Path, tmp_path: Path, share: int):
    shutil.copytree(a_run / "runs", tmp_path / "runs")
    (run,) = (tmp_path / "runs" / "tiny").iterdir()
    read = (*readers(run).values(), lambda: open_run(run))
    told = [refused(each) for _ in wrong_files(run, "config.json", share) for each in read]
    assert sum(told) > 30


@pytest.mark.parametrize("share", [30, pytest.param(4, marks=pytest.mark.proofs)])
@pytest.mark.usefixtures("untouched")
def test_damaged_metadata_of_a_checkpoint_are_one_line(a_run: Path, tmp_path: Path, share: int):
    """Without their digest, which whoever writes them can write too; its config is tested above."""
    shutil.copytree(a_run / "runs", tmp_path / "runs")
    (run,) = (tmp_path / "runs" / "tiny").iterdir()
    shutil.rmtree(run / "checkpoints" / "2")  # else it would be taken
    file = run / "checkpoints" / "3" / "metadata" / "metadata"
    saved = json.loads(file.read_text())
    config, _ = saved.pop("config"), saved.pop("sha256")
    known, told = "CONFIG", []
    texts = [*mutated(saved | {"config": known})]
    few = json.dumps(saved | {"config": known, "data": put(saved["data"], ["class_names"], ["a"])})
    for text in (few, *texts[::share]):
        file.write_text(text.replace(f'"{known}"', json.dumps(config)))
        told += [refused(lambda: open_run(run)), refused(lambda: prediction.load(run))]
    assert told[:2] == [False, True]  # a name for one of four classes
    assert sum(told) > len(told) // 3


@pytest.mark.usefixtures("untouched")
def test_a_line_of_results_edited_by_hand_is_one_line(a_run: Path, tmp_path: Path):
    (run,) = (a_run / "runs" / "tiny").iterdir()
    arms = tiny.sweep()
    rows = collect(run.parent, [arm.name for arm in arms], identity_of(tiny.config(), arms))
    whole, path = tmp_path / "whole.jsonl", tmp_path / "tiny.jsonl"
    write_rows(whole, rows)
    told = []
    for content in [*damaged(whole.read_text())][::3]:
        written(path, content)
        told.append(refused(lambda: read_rows(path)))
    assert sum(told) > 50
    written(path, whole.read_bytes() * 2 + b'{"arm": "slow"')
    with pytest.raises(UserError, match=r"tiny\.jsonl, line 3 cannot be read \(.*report tiny$"):
        read_rows(path)


@pytest.mark.parametrize("line", [0, 1, 2])
def test_a_damaged_line_of_the_log_takes_no_other_with_it(
    tmp_path: Path, line: int, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "metrics.jsonl"
    whole = [f'{{"step": {step}, "train/loss": {step}.5}}\n'.encode() for step in range(1, 99)]
    bad = [b"\xff\x00\n", b'{"step": "x"}\n', b'{"step": 5, "train/loss": "low"}\n'][line]
    before = b"".join([*whole[:17], bad, *whole[18:], b'{"step": 99, "tra'])
    path.write_bytes(before)
    log = JsonLines(path, last_step=97)
    log.write(98, {"train/loss": 1.0})
    log.close()
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"{path}: 1 damaged lines are left out, the first is line 18;")
    steps = [each["step"] for each in read_lines(path)]
    assert steps == [*range(1, 18), *range(19, 99)]
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == before
    JsonLines(path, last_step=98).close()
    assert capsys.readouterr().err == ""
    path.write_bytes(before)
    JsonLines(path, last_step=98).close()
    assert (tmp_path / "metrics.jsonl.damaged-2").read_bytes() == before


def test_nothing_is_written_over_a_folder_a_device_or_an_input(a_run: Path, tmp_path: Path):
    (run,) = (a_run / "runs" / "tiny").iterdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "note.txt").write_text("mine")
    predictor = prediction.load(run)
    height, width, _ = predictor.image
    image = tmp_path / "a_label.png"
    for path in (image, tmp_path / "a.png"):
        Image.new("RGB", (width, height)).save(path)
    before = image.read_bytes()

    def predicted(*images: str, to: str = ".") -> list[str]:
        paths = [tmp_path / name for name in images]
        return [*prediction.predict(predictor, paths, tmp_path / to)]

    tries: list[tuple[str, Callable[[], object]]] = [
        ("folder is there already", lambda: export(run, tmp_path / "folder")),
        ("null is there already", lambda: export(run, Path("/dev/null"))),
        ("note.txt is there already", lambda: export(run, tmp_path / "note.txt")),
        ("File exists", lambda: export(run, tmp_path / "note.txt" / "x.safetensors")),
        ("a_label.png is there already", lambda: predicted("a.png", "a_label.png")),
        ("File exists", lambda: predicted("a.png", to="note.txt")),
    ]
    for words, attempt in tries:
        with pytest.raises(UserError, match=words):
            attempt()
    assert image.read_bytes() == before
    assert (tmp_path / "note.txt").read_text() == "mine"
    assert not Path("/dev/null").is_file()
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".part")]
