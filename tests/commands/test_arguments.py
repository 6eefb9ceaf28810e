"""From words to the call of a command: what is read, and one line for what cannot be."""

import io
import re
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from functools import partial
from pathlib import Path

import pytest

from opsin.commands import sampling
from opsin.commands.arguments import parse
from opsin.commands.embed import embed
from opsin.commands.evaluate import evaluate
from opsin.commands.export import export
from opsin.commands.groups import PLATFORMS, SAMPLERS, Features, Images, Output, Runtime
from opsin.commands.inpaint import inpaint
from opsin.commands.inspect import inspect
from opsin.commands.listing import listing
from opsin.commands.plan import plan
from opsin.commands.predict import predict
from opsin.commands.report import report
from opsin.commands.reproduce import reproduce
from opsin.commands.run import Several, run
from opsin.commands.sample import sample
from opsin.commands.sweep import sweep
from opsin.errors import ConfigError

BY_NAME = {
    command.__name__: command
    for command in (
        embed, evaluate, export, inpaint, inspect, listing,
        plan, predict, report, reproduce, run, sample, sweep,
    )
}  # fmt: skip
KINDS = ("models", "losses", "data", "augmentations", "selections", "measurements")
KINDS += ("optimizers", "schedules")
HERE, ANEW, SHOWN, ONE = Runtime(), Images(), Output(), Several()


def read(text: str) -> partial[int]:
    """``"run tiny --quiet"`` → the call."""
    name, *words = text.split()
    return parse(BY_NAME[name], words, f"opsin {name}")


LISTED = dict.fromkeys((*KINDS, "runs"), False) | {"workdir": Path("runs")}


@pytest.mark.parametrize(
    ("text", "arguments", "options"),
    [
        ("listing", (), LISTED),
        ("listing --models", (), LISTED | {"models": True}),
        (
            "run tiny a=1 --smoke b=2 --workdir there c=3 --process 0 --processes 2",
            ("tiny", ("a=1", "b=2", "c=3")),
            {
                "smoke": True, "profile": None, "began": None, "runtime": HERE,
                "output": Output(workdir=Path("there")), "processes": Several(None, 2, 0),
            },
        ),
        (
            "run --quiet --tensorboard --wandb tiny --profile 2:3 --platform cpu --devices 8 "
            "--deterministic --memory-fraction 0.5 --cache /fast",
            ("tiny", ()),
            {
                "smoke": False, "profile": (2, 3), "began": None, "processes": ONE,
                "output": Output(quiet=True, tensorboard=True, wandb=True),
                "runtime": Runtime("cpu", 8, True, 0.5, Path("/fast")),
            },
        ),
        (
            "run tiny --processes auto --coordinator 10.0.0.1:7 --timeout 0.5",
            ("tiny", ()),
            {
                "smoke": False, "profile": None, "began": None, "runtime": HERE, "output": SHOWN,
                "processes": Several("10.0.0.1:7", None, None, 0.5),
            },
        ),
        (
            "sweep tiny --seeds=3 --index 1 --of 4 --dry-run seed=1",
            ("tiny", ("seed=1",)),
            {"seeds": 3, "index": 1, "of": 4, "dry_run": True, "output": SHOWN, "runtime": HERE},
        ),
        (
            "plan --topology v5e:4x4 tiny --parallelism data=-1,fsdp=4 a=1 --global-batch 8 "
            "--sweep --out x.json",
            ("tiny", ("a=1",)),
            {
                "topology": "v5e:4x4", "parallelism": {"data": -1, "fsdp": 4}, "global_batch": 8,
                "sweep": True, "out": Path("x.json"), "words": (),
            },
        ),
        (
            "report",
            (None,),
            {
                "workdir": Path("runs"), "results": Path("results"), "readme": Path("README.md"),
                "check": False,
            },
        ),
        (
            "report tiny --check --results r --readme R --workdir w",
            ("tiny",),
            {"workdir": Path("w"), "results": Path("r"), "readme": Path("R"), "check": True},
        ),
        (
            "inspect tiny a=1 --batches 2 --output x.png",
            ("tiny", ("a=1",)),
            {"batches": 2, "output": Path("x.png"), "runtime": HERE},
        ),
        (
            "predict a/run 1.png 2.png --output p",
            (Path("a/run"), (Path("1.png"), Path("2.png"))),
            {"allow": (), "output": Path("p"), "runtime": HERE},
        ),
        (
            "predict a/run 1.png",
            (Path("a/run"), (Path("1.png"),)),
            {"allow": (), "output": Path("predictions"), "runtime": HERE},
        ),
        (
            "sample a/run --class 3 --n 4 --path --seed 7 --weights raw --sampler dpm++2m "
            "--steps 9 --guidance 1.5 --output s",
            (Path("a/run"),),
            {
                "allow": (), "n": 4, "path": True, "output": Path("s"), "runtime": HERE,
                "images": Images(3, 7, "raw", "dpm++2m", 9, 1.5),
            },
        ),
        (
            "sample a/run",
            (Path("a/run"),),
            {"allow": (), "n": 64, "path": False, "output": Path("samples"), "images": ANEW,
             "runtime": HERE},
        ),
        (
            "inpaint a/run i.png m.png --resamplings 2",
            (Path("a/run"), Path("i.png"), Path("m.png")),
            {
                "allow": (), "n": 8, "resamplings": 2, "output": Path("inpainted"),
                "images": ANEW, "runtime": HERE,
            },
        ),
        (
            "evaluate a/run Probe neighbours=5 seed=2",
            (Path("a/run"), ("Probe", "neighbours=5", "seed=2")),
            {"allow": (), "runtime": HERE},
        ),
        (
            "embed a/run",
            (Path("a/run"), None),
            {
                "allow": (), "n": 2000, "before": False, "output": None, "features": Features(),
                "runtime": HERE,
            },
        ),
        (
            "embed a/run folder:photos --n 5 --before --output e --layer head --split val --seed 2",
            (Path("a/run"), "folder:photos"),
            {
                "allow": (), "n": 5, "before": True, "output": Path("e"), "runtime": HERE,
                "features": Features("head", "val", 2),
            },
        ),
        (  # a directory may be called so
            "export a/run None --cache None",
            (Path("a/run"), Path("None")),
            {"allow": (), "names": None, "runtime": Runtime(cache=Path("None"))},
        ),
        (
            "export a/run x.safetensors --allow my_module --allow ./f.py",
            (Path("a/run"), Path("x.safetensors")),
            {"allow": ("my_module", "./f.py"), "names": None, "runtime": HERE},
        ),
    ],
)  # fmt: skip
def test_what_is_read(text, arguments, options):
    call = read(text)
    assert call.func is BY_NAME[text.split()[0]]
    assert call.args == arguments
    assert call.keywords == options


def test_names_that_stand_for_objects_are_those_that_there_are():
    assert tuple(sampling.SAMPLERS) == SAMPLERS
    for platform in PLATFORMS:
        assert read(f"export a b --platform {platform}").keywords["runtime"].platform == platform
    for sampler in SAMPLERS:
        assert read(f"sample a --sampler {sampler}").keywords["images"].sampler == sampler


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("run", "Missing from opsin run: NAME of an experiment, see opsin list"),
        ("plan tiny", "Missing from opsin plan: --topology CHIP:SHAPE such as v5e:16x16 or cpu:8"),
        ("inpaint a b.png", "Missing from opsin inpaint: MASK white where to fill in"),
        ("run tiny --seed 3", "unrecognized arguments: --seed: see opsin run --help"),
        ("sweep tiny --sedes=3", "unrecognized arguments: --sedes=3, did you mean --seeds?"),
        ("run tiny --quite a=1", "unrecognized arguments: --quite, did you mean --quiet?"),
        ("run tiny --data.batch=32", "did you mean data.batch=32, which has no dashes?"),
        ("run tiny --no-quiet", "unrecognized arguments: --no-quiet"),
        ("listing tiny", "unrecognized arguments: tiny"),
        ("export a b c", "unrecognized arguments: c"),
        ("sweep tiny --seeds 0", "--seeds: '0' is not a whole number from 1 to 10000"),
        ("sweep tiny --index 0 --of=0", "--index or --of: '0' is not a whole number from 1 to"),
        (f"run tiny --workdir {'a' * 300}", "--workdir: File name too long"),
        ("sweep tiny --of many", "--of: 'many' is not a whole number from 1 to 1000000"),
        ("sweep tiny --index one", "--index: 'one' is not a whole number"),
        ("inspect tiny --batches -1", "--batches: '-1' is not a whole number from 1 to 36"),
        ("run tiny --profile 5", "--profile: '5' is not first:last, two steps counted from 1"),
        ("run tiny --profile 9:3", "--profile: '9:3' is not first:last"),
        ("run tiny --profile 0:2", "--profile: '0:2' is not first:last"),
        ("run tiny --profile -1:2", "--profile: '-1:2' is not first:last"),
        ("run tiny --profile", "Missing value for argument '--profile'"),
        (
            "run tiny --memory-fraction 2",
            "--memory-fraction: '2' is not a share above 0, 1 at",
        ),
        ("run tiny --memory-fraction x", "--memory-fraction: 'x' is not a number"),
        ("run tiny --platform gpu", "'gpu' for argument '--platform'. Expected one of ('cpu',"),
        ("run tiny --platform None", "invalid choice 'None'"),
        ("run tiny --coordinator here", "'here' is not HOST:PORT"),
        ("run tiny --coordinator here:99999", "is not HOST:PORT"),
        ("run tiny --processes some", "'some' is not a whole number"),
        ("run tiny --process -1", "'-1' is not a whole number"),
        ("run tiny --timeout 0", "'0' is not a number of seconds above 0, 604800 at most"),
        ("plan tiny --topology cpu:8 --parallelism 2x4", "as in data=16,fsdp=16"),
        ("plan tiny --topology cpu:8 --parallelism data=1,data=2", "'data=1,data=2' is not axes"),
        ("sample a --class 1.5", "--class: '1.5' is not a whole number"),
        ("sample a --guidance much", "--guidance: 'much' is not a number"),
        ("sample a --sampler euler", "invalid choice 'euler' for argument '--sampler'"),
        ("embed a --layer middle", "invalid choice 'middle' for argument '--layer'"),
    ],
)
def test_a_mistake_is_one_line_that_says_where_help_is(text, complaint):
    with pytest.raises(ConfigError) as told:
        read(text)
    assert complaint in str(told.value)
    assert str(told.value).endswith(f": see opsin {text.split()[0]} --help")
    assert "\n" not in str(told.value)


NEEDED = {"run": "tiny", "sweep": "tiny", "plan": "tiny --topology cpu:8", "report": "tiny"} | {
    "reproduce": "tiny", "inspect": "tiny", "predict": "a b.png", "sample": "a", "evaluate": "a",
    "inpaint": "a b.png c.png", "embed": "a", "export": "a b",
}  # fmt: skip
WRONG = ("", "-1000000000", str(2**70), "9" * 5000, "1e400", "inf", "-inf", "nan", "٣", "²", "1_0")
WRONG = (*WRONG, "0x10", " 5 x", "True", "--5")


def flags(values: str) -> Iterator[tuple[str, str]]:
    """Each command with each flag whose help names one of these kinds of values."""
    for command in NEEDED:
        said = io.StringIO()
        with pytest.raises(SystemExit), redirect_stdout(said):
            read(f"{command} --help")
        for flag in re.findall(rf"^\s*(--[a-z-]+) (?:{values})\b", said.getvalue(), re.MULTILINE):
            yield command, flag


def test_every_number_of_every_command_has_a_range():
    found = [*flags("N|X")]
    known = {("sample", "--seed"), ("embed", "--n"), ("inspect", "--batches"), ("sweep", "--seeds")}
    assert known | {("run", "--devices"), ("run", "--timeout")} <= {*found}
    of_all = {"--devices", "--memory-fraction"}  # declared once
    accepted = []
    for command, flag in [x for x in found if x[0] == "run" or x[1] not in of_all]:
        for value in WRONG:
            words = [*NEEDED[command].split(), f"{flag}={value}"]
            with suppress(ConfigError):
                parse(BY_NAME[command], words, f"opsin {command}")
                accepted.append((command, flag, value))
    assert accepted == []


def test_every_place_of_every_command_is_looked_at_before_any_work(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    wrong = {
        "FOLDER": {
            "file": "cannot write to {0}, which is no folder",
            "file/x": "cannot write to {0}: {1}/file is no folder",
            "/dev/null": "cannot write to /dev/null, which is no folder",
        },
        "FILE": {
            "folder": "cannot write to {0}, which is a folder",
            "file/x.json": "cannot write to {1}/file: {1}/file is no folder",
            "/dev/null": "cannot write to /dev/null, which is a device",
        },
    }
    found = {values: [*flags(values)] for values in wrong}
    assert {("run", "--workdir"), ("report", "--results"), ("embed", "--output")} <= {
        *found["FOLDER"]
    }
    assert {*found["FILE"]} == {("inspect", "--output"), ("plan", "--out"), ("report", "--readme")}
    for name in ("inspect tiny --output", "plan tiny --topology cpu:8 --out", "export a"):
        with pytest.raises(ConfigError, match=": move it away, or choose another place: see opsin"):
            read(f"{name} {tmp_path / 'file'}")
    assert [*flags("PATH")] == []  # which would say nothing of what it has to be
    for values, cases in wrong.items():
        for command, flag in found[values]:
            for name, complaint in cases.items():
                place = tmp_path / name  # that of an absolute name is itself
                words = [*NEEDED[command].split(), flag, str(place)]
                with pytest.raises(ConfigError) as told:
                    parse(BY_NAME[command], words, f"opsin {command}")
                expected = f"{flag}: {complaint.format(place, tmp_path)}: choose another place: "
                assert str(told.value).startswith(expected)
            with pytest.raises(ConfigError, match=f"^{flag}: nothing is named: this folder is wr"):
                parse(BY_NAME[command], [*NEEDED[command].split(), flag, ""], f"opsin {command}")
            for place in (tmp_path / "folder" / "new" / "newer", tmp_path / "new"):
                parse(BY_NAME[command], [*NEEDED[command].split(), flag, str(place)], "opsin")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == []
    with pytest.raises(ConfigError, match=r"^cannot write to /dev/null, which is a device"):
        read("export a /dev/null")
