"""The house keeps its own rules: docs/design.md and README.md, executed."""

import ast
import csv
import importlib
import inspect
import re
import shlex
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
import yaml

from opsin.commands.arguments import parse
from opsin.commands.evaluating import known_measurements
from opsin.commands.main import COMMANDS as COMMANDS_OF_THE_HOUSE
from opsin.commands.new import TEMPLATE
from opsin.config import catalogue
from opsin.config.identity import identity
from opsin.config.tree import override, parse_all
from opsin.interchange.pretrained import NETWORKS
from opsin.train.experiment import Data

HOUSE = Path(__file__).parents[1]
ROOM = re.compile(r"^\| `([\w/]+)/` \|.*\| ([^|]+) \|$", re.MULTILINE)
DESIGN = dict(ROOM.findall((HOUSE / "docs" / "design.md").read_text()))
WITHIN = [name for name in DESIGN if "/" in name]  # rooms within rooms
ROOMS = [
    name for name in DESIGN if (HOUSE / name).is_dir() and name not in ("results", "tests", *WITHIN)
]


def files(*rooms: str) -> list[Path]:
    return sorted(path for room in rooms for path in (HOUSE / room).rglob("*.py"))


@cache  # most rules read all files
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(tree(path)))


@pytest.fixture(autouse=True, scope="module")
def forget_trees() -> Iterator[None]:
    """Those of all files take 110 MB."""
    yield
    tree.cache_clear()
    nodes.cache_clear()


def imports(path: Path) -> Iterator[str]:
    """What a file imports, anywhere in it, of this house without ``opsin``: ``train.loop.fit``."""
    for node in nodes(path):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            assert name.partition(".")[0] not in ROOMS, f"{path}: write opsin.{name}"
            yield name.removeprefix("opsin.")


def allowed(room: str) -> set[str]:
    """The rooms, and files of rooms, that a room may import, by the table of the design."""
    above = list(DESIGN)[: list(DESIGN).index(room)]
    rule = DESIGN[room]
    if rule == "everything":
        return DESIGN.keys() - {"tests"}
    named = {room, *re.findall(r"`([\w/]+\w)`", rule)}
    if rule.startswith("all above"):  # but not what it lies in
        named |= {name for name in above if not room.startswith(f"{name}/")}
    return named


def room_of(name: str) -> str | None:
    """The innermost room of ``train.host.memory.keep``; None if it is in none."""
    path = f"{name.replace('.', '/')}/"
    return max((x for x in DESIGN if path.startswith(f"{x}/")), key=len, default=None)


def may_import(room: str, name: str) -> bool:
    there = room_of(name)
    files = allowed(room) - DESIGN.keys()
    by_file = any(f"{name}.".startswith(f"{file.replace('/', '.')}.") for file in files)
    return there is None or there in allowed(room) or by_file


def test_the_table_is_read():
    assert set(ROOMS) >= {"ops", "losses", "metrics", "models", "data", "train", "experiments"}
    assert allowed("ops") == {"ops"}
    assert allowed("losses") == {"ops", "imaging", "losses"}
    below = {"ops", "imaging", "losses", "metrics", "models", "data", "pictures"}
    assert allowed("train") == {*below, "train", "train/host", "train/tasks/task"}
    assert allowed("train/tasks") >= {*below, "train/optim"}
    assert allowed("config") >= {*below, "train", *WITHIN}
    packages = {path.parent.name for path in HOUSE.glob("*/__init__.py")}
    assert packages == set(ROOMS)  # no room that the design does not know
    assert {path.parent.name for path in HOUSE.glob("train/*/__init__.py")} == {
        name.partition("/")[2] for name in WITHIN
    }


def test_arrows_within_train_are_seen():
    assert room_of("train.host.memory.keep_memory") == "train/host"
    assert room_of("train.loop.fit") == "train"
    assert room_of("numpy.random") is None
    assert may_import("train/host", "train.paths.flatten")
    assert may_import("train", "train.tasks.task.Task")
    assert may_import("commands", "train.host.processes.is_first")
    for room, name in (
        ("train/host", "train.evaluate.evaluate_sets"),
        ("train/host", "train.tasks.task.Task"),
        ("train/host", "models.layers.Conv"),
        ("train/tasks", "train.loop.fit"),
        ("train/tasks", "train.host.processes.is_first"),
        ("train/tasks", "train.optim_of_another.sgd"),
        ("train", "train.tasks.classify.Classify"),
        ("data", "train.host.processes.is_first"),
    ):
        assert not may_import(room, name), (room, name)


@pytest.mark.parametrize("room", [*ROOMS, *WITHIN])
def test_imports_point_up_the_table_only(room):
    here = [path for name, path in modules(room).items() if room_of(name) == room]
    assert here
    wrong = [
        f"{path.relative_to(HOUSE)} imports {name}"
        for path in here
        for name in imports(path)
        if not may_import(room, name)
    ]
    assert wrong == []


def test_no_room_within_is_given_a_file_that_it_does_not_use():
    """The rule is as strict as it can be."""
    for room in ("train", *WITHIN):
        used = {name for path in files(room) for name in imports(path)}
        for given in allowed(room) - {room} - set(ROOMS):
            assert any(f"{name}.".startswith(f"{given.replace('/', '.')}.") for name in used), given


def modules(room: str) -> dict[str, Path]:
    """Files of a room by the name that they are imported by."""
    return {".".join(p.relative_to(HOUSE).with_suffix("").parts): p for p in files(room)}


def arrows(room: str) -> dict[str, set[str]]:
    """Which files of a room each of them imports; what only type checkers import is left out."""
    known = modules(room)
    found = {}
    for name, path in known.items():
        checked = {
            node
            for block in nodes(path)
            if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
            for node in (ast.unparse(line) for line in block.body)
        }
        imported = {
            full.rpartition(".")[0] if full not in known else full
            for full in imports(path)
            if not any(full.rpartition(".")[2] in line for line in checked)
        }
        found[name] = imported & known.keys()
    return found


def floors(arrows: dict[str, set[str]]) -> list[set[str]]:
    """Files in layers, each of which imports only from those before; a circle raises."""
    left, built = dict(arrows), []
    while left:
        ready = {name for name, needed in left.items() if not needed & left.keys()}
        assert ready, f"these import one another in a circle: {sorted(left)}"
        built.append(ready)
        left = {name: needed for name, needed in left.items() if name not in ready}
    return built


def test_files_of_train_stand_on_floors():
    """No circle; and a task never stands on what only knows tasks by their protocol."""
    train = arrows("train")
    assert len(floors(train)) > 5
    with pytest.raises(AssertionError, match="in a circle"):
        floors({**train, "train.paths": {"train.loop"}})
    protocol = "train.tasks.task"
    knowing = {name for name, needed in train.items() if protocol in needed}
    knowing = {name for name in knowing if not name.startswith("train.tasks.")}
    reached = {name for name in train if name.startswith("train.tasks.")}
    while further := {x for name in reached for x in train[name]} - reached:
        reached |= further
    assert reached & knowing == set()


CONCRETE = re.compile(r"train\.tasks\.(?!task$|task\.|generative\.)")


def test_only_configs_and_tasks_know_which_tasks_there_are():
    """All others ask a task, by its protocol, and never which one it is or what it happens to have.

    The cases of a race are configs too.
    """
    outside = [
        path
        for path in files(*ROOMS)
        if not path.is_relative_to(HOUSE / "train" / "tasks")
        if not path.is_relative_to(HOUSE / "experiments")
        if path != HOUSE / "benchmarks" / "cases.py"
    ]
    assert {path.parent.name for path in outside} > {"analysis", "commands", "pages", "interchange"}
    assert len(outside) > 200
    wrong = [
        f"{path.relative_to(HOUSE)} imports {name}"
        for path in outside
        for name in imports(path)
        if CONCRETE.match(name)
    ]
    asked = [
        f"{path.relative_to(HOUSE)}, line {node.lineno}"
        for path in outside
        for node in nodes(path)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("isinstance", "getattr", "hasattr")
        and re.search(r"\btask\b", ast.unparse(node.args[0]))
    ]
    assert wrong + asked == []


def test_every_package_is_listed_to_be_installed():
    listed = tomllib.loads((HOUSE / "pyproject.toml").read_text())["tool"]["setuptools"]
    here = {path.parent.relative_to(HOUSE) for room in ROOMS for path in files(room)}
    assert all((HOUSE / folder / "__init__.py").exists() for folder in here)
    assert set(listed["packages"]) == {".".join(["opsin", *folder.parts]) for folder in here} | {
        "opsin"
    }


def test_array_mathematics_needs_array_libraries_only():
    libraries = {name.partition(".")[0] for path in files("ops") for name in imports(path)}
    standard = set(sys.stdlib_module_names) | {"__future__"}
    assert libraries - standard <= {
        "annotated_types",
        "jax",
        "jaxtyping",
        "numpy",
        "diffrax",
        "ops",
        "ranges",
    }


def test_nothing_private_is_imported():
    private = [
        f"{path.relative_to(HOUSE)} imports {name}"
        for path in files(*ROOMS, "tests")
        for name in imports(path)
        if any(part.startswith("_") and not part.endswith("__") for part in name.split("."))
    ]
    reached = [
        f"{path.relative_to(HOUSE)}, line {node.lineno}"
        for path in files(*ROOMS, "tests")
        for node in nodes(path)
        if isinstance(node, ast.Attribute) and node.attr == "_src"
    ]
    assert private + reached == []


def test_no_drawer_for_odds_and_ends():
    vague = re.compile(r"(^|_)(utils?|helpers?|misc|common|tools|legacy|v2)(_|$)")
    names = [path for path in files(*ROOMS, "tests") if vague.search(path.stem)]
    folders = [path for room in (*ROOMS, "tests") for path in (HOUSE / room).rglob("*/")]
    assert names + [path for path in folders if vague.search(path.name)] == []


def test_no_file_is_long():
    lengths = {
        path.relative_to(HOUSE): len(path.read_text().splitlines()) for path in files(*ROOMS)
    }
    assert {path: lines for path, lines in lengths.items() if lines > 400} == {}


def path_files(after: str) -> list[Path]:
    """The files of train that the design lists after these words."""
    (listed,) = re.findall(after + r" `([^`]+)`", (HOUSE / "docs/design.md").read_text())
    return [HOUSE / "train" / f"{name}.py" for name in listed.split()]


CORE_FILES = path_files("the core, in the order in which it runs, is")


def lines(paths: list[Path]) -> int:
    return sum(len(path.read_text().splitlines()) for path in paths)


def nested(node: ast.AST, outer: int = 0) -> Iterator[tuple[ast.FunctionDef, int]]:
    """All functions below a node, and how many functions each of them lies in."""
    for child in ast.iter_child_nodes(node):
        inside = isinstance(child, ast.FunctionDef)
        if inside:
            yield child, outer
        yield from nested(child, outer + inside)


def test_the_core_reads_in_one_sitting():
    """From experiment to updated weights; what goes out of it has to be off that path."""
    assert {"loop", "program", "sharding", "step", "task"} <= {path.stem for path in CORE_FILES}
    assert len(CORE_FILES) <= 10
    texts = [path.read_text() for path in CORE_FILES]
    assert lines(CORE_FILES) <= 1700
    assert [text for text in texts if "# fmt:" in text] == []
    functions = [(path.stem, *found) for path in CORE_FILES for found in nested(tree(path))]
    assert len(functions) > 80
    lengths = {f"{file}.{f.name}": (f.end_lineno or 0) - f.lineno + 1 for file, f, _ in functions}
    assert {name: lines for name, lines in lengths.items() if lines > 60} == {}
    assert [f"{file}.{f.name}" for file, f, outer in functions if outer > 1] == []


def test_what_lies_beside_the_core_is_counted_too():
    """What the core imports of train is on the path, off it, or the machine."""
    beside, off = path_files("beside it on the path lie"), path_files("Off the path lie")
    train = arrows("train")
    known = {path: name for name, path in modules("train").items()}
    reached = {known[path] for path in CORE_FILES}
    while further := {x for name in reached for x in train[name]} - reached:
        reached |= further
    reached = {name for name in reached if room_of(name) != "train/host"}
    listed = [known[path] for path in (*CORE_FILES, *beside, *off)]
    assert sorted(reached) == sorted(listed)
    assert lines([*CORE_FILES, *beside]) <= 2700


def test_functions_inside_functions_are_counted():
    code = "def a():\n def b():\n  def c(): pass\nclass D:\n def e(self): pass"
    assert [(f.name, outer) for f, outer in nested(ast.parse(code))] == [
        ("a", 0),
        ("b", 1),
        ("c", 2),
        ("e", 0),
    ]


@pytest.mark.parametrize("room", ROOMS)
def test_all_that_is_public_is_documented(room):
    bare = []
    for path in files(room):
        module = tree(path)
        public = [
            node
            for node in module.body
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        ]
        bare += [
            f"{path.relative_to(HOUSE)}: {getattr(node, 'name', 'module')}"
            for node in [module, *public]
            if not ast.get_docstring(node)
        ]
    assert bare == []


CHECKS = ("raises", "warns", "fail", "check_grads", "debug_nans")


def asserts(function: ast.FunctionDef, module: ast.Module) -> bool:
    """Whether a test can fail: by assert, an expected exception, or a function that asserts."""
    helpers = {node.name: node for node in module.body if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func).rpartition(".")[2]
        of_a_process = any(word.arg == "check" for word in node.keywords) and name == "run"
        if name.startswith("assert") or name in CHECKS or of_a_process:
            return True
        helper = helpers.get(name)
        if helper is not None and helper is not function and asserts(helper, module):
            return True
    return False


def test_every_test_can_fail():
    vacuous = [
        f"{path.relative_to(HOUSE)}: {node.name}"
        for path in files("tests")
        for module in [tree(path)]
        for node in nodes(path)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test")
        if not asserts(node, module)
    ]
    assert vacuous == []


def test_each_room_has_tests_under_its_name():
    untested = [room for room in ROOMS if room != "benchmarks" and not files(f"tests/{room}")]
    assert untested == []


# What the README promises.

README = (HOUSE / "README.md").read_text()
MADE = ("gallery", "measured", "reference")  # by `make docs`, from code and results
WRITTEN = [
    path for path in (HOUSE / "docs").rglob("*.md") if path.parts[-2] not in (*MADE, "plans")
]
DOCUMENTS = {
    path.relative_to(HOUSE).as_posix(): path.read_text()
    for path in sorted([*HOUSE.glob("*.md"), *WRITTEN])
}
PAGES = {
    name: text
    for name, text in DOCUMENTS.items()
    if name not in ("CHANGELOG.md", "docs/design.md")  # the first tells of commands that are gone
} | {name: ast.get_docstring(tree(path)) or "" for name, path in catalogue.experiments().items()}


def test_the_readme_names_commands_that_make_knows():
    named = set(re.findall(r"`make ([a-z]+)|^make ([a-z]+)", README, re.MULTILINE))
    wanted = {one or other for one, other in named}
    assert {"run", "test", "check"} <= wanted
    done = subprocess.run(
        ["make", "--dry-run", f"PYTHON={sys.executable}", *sorted(wanted)],  # which it looks for
        cwd=HOUSE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


STARTS = r"(?:`|^ *|&& |[A-Z_]+=\S+ |srun \S+ )"  # what may stand before a command
COMMANDS = [
    (page, command)
    for page, text in PAGES.items()
    for command in re.findall(
        STARTS + r"(opsin [a-z][^`\n&]*)", re.sub(r"\\\n *", "", text), re.MULTILINE
    )
]
OWN = """
from opsin.data.sources import digits as my_set
from opsin.losses.classification import cross_entropy_loss as poly1_loss
from opsin.models.classification.resnet import ResNet18 as Small
"""


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_documented_commands_name_what_is_there(page, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = {
        "my_losses.py": OWN,
        "my_data.py": OWN,
        "my_model.py": OWN,
        "my_experiment.py": TEMPLATE.read_text(),
    }
    for name, text in own.items():  # a user's own
        monkeypatch.delitem(sys.modules, f"own_files_{Path(name).stem}", raising=False)
        Path(name).write_text(text)
    stated = command.rstrip('"') if command.count('"') % 2 else command
    stated = stated.replace(" NAME", " digits_lenet").replace(" I --of N", " 0 --of 2")
    _, verb, *words = shlex.split(stated, comments=True)
    module = COMMANDS_OF_THE_HOUSE[verb]
    called = getattr(importlib.import_module(f"opsin.commands.{module}"), module)
    if not words:
        return
    read = parse(called, words, f"opsin {verb}")
    assert read.func is called
    given = dict(zip(inspect.signature(called).parameters, read.args, strict=False))
    overrides = given.get("overrides", ())
    if "run" in given and given["run"].name in NETWORKS:
        assert verb == "predict"
    elif "run" in given:  # runs/NAME/ID
        catalogue.find(given["run"].parts[1])
        asked = {x for x in overrides if "=" not in x and not x.startswith("./")}
        assert asked <= known_measurements().keys()
    elif verb == "new":
        assert catalogue.check_name(given["name"]) not in catalogue.experiments()
    elif given.get("name"):
        _, module = catalogue.opened(given["name"])
        assert override(module.config(), parse_all(overrides)) is not None
        assert verb not in ("report", "reproduce") or hasattr(module, "TABLE")


def test_commands_on_lines_of_their_own_are_shown_as_code():
    """Four columns in, or within a fence: else a page shows curly quotes."""
    for page, text in DOCUMENTS.items():
        assert (
            re.findall(r"^opsin .*", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.M) == []
        ), page


SETTING = re.compile(r"`((?:loop|data|optimizer|parallel)\.[a-z_]+=[^`…{]+)`")


@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if SETTING.search(text)])
def test_settings_within_a_sentence_are_taken(page):
    for setting in SETTING.findall(PAGES[page]):
        changes = parse_all(shlex.split(setting))
        assert override(catalogue.find("digits_lenet").config(), changes) is not None, setting


def test_the_page_on_speed_repeats_what_was_measured():
    page = (HOUSE / "docs" / "speed.md").read_text()
    with (HOUSE / "results" / "benchmarks.csv").open() as file:
        races = [row for row in csv.DictReader(file) if row["phase"] == "training"]
    for peer, digits in (("flax", 1), ("pytorch", 2)):
        ratios = [f"{float(row['ratio']):.{digits}f}" for row in races if row["peer"] == peer]
        title = {"flax": "plain Flax", "pytorch": "PyTorch"}[peer]
        assert f"| over {title} | {' | '.join(ratios)} |" in page

    plans = re.findall(r"^\| \[`\w+`\]\(\.\./(results/plans/\S+)\) \| (.*) \|$", page, re.MULTILINE)
    assert len(plans) == len([*(HOUSE / "results" / "plans").glob("*.md")])
    for file, row in plans:
        text = (HOUSE / file).read_text()
        chips, images, memory, step, limit, share = row.split(" | ")
        assert re.search(rf" on {chips}$", text.splitlines()[0])
        assert f"; {images} images a step, " in text
        pattern = r"with the program \| ([\d.]+) ([GM])iB of (\d+) GiB"
        ((taken, unit, there),) = re.findall(pattern, text)
        assert memory == f"{float(taken) / {'G': 1, 'M': 1024}[unit]:.1f} of {there} GiB"
        assert f"**At best {step} a step, limited by {limit}: {share} utilization" in text


def test_commands_are_found():
    found = Counter(page for page, _ in COMMANDS)
    assert found["README.md"] >= 3
    assert found["docs/commands.md"] >= 15
    assert sum(n for page, n in found.items() if page.startswith("docs/how-to/")) >= 25
    assert found["docs/pods.md"] >= 3


def test_the_experiment_that_the_readme_explains_is_the_one_that_runs():
    module = catalogue.find("digits_lenet")
    (code,) = re.findall(r"```python\n(def config.*?)```", README, re.DOTALL)
    scope = dict(vars(module))
    exec(code, scope)
    assert identity(scope["config"]()) == identity(module.config())


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_that_the_documents_link_to_exists(document):
    linked = re.findall(r"\]\(([^)#:]+)\)", DOCUMENTS[document])
    here = (HOUSE / document).parent
    assert [
        path
        for path in linked
        if not here.joinpath(path).exists() and not path.startswith(MADE)  # make docs checks these
    ] == []


def test_the_readme_leads_to_every_page():
    pages = {path.relative_to(HOUSE).as_posix() for path in WRITTEN if path.parent.name != "python"}
    included = {"docs/index.md", "docs/contributing.md", "docs/changelog.md"}
    assert sorted(path for path in pages - included if f"]({path})" not in README) == []
    assert len(README.splitlines()) <= 90


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((HOUSE / "CITATION.cff").read_text())
    project = tomllib.loads((HOUSE / "pyproject.toml").read_text())["project"]
    assert {"cff-version", "message", "title", "authors", "type"} <= cited.keys()
    assert str(cited["version"]) == project["version"]
    assert cited["license"] == project["license"]


NAMES = re.compile(rf"`(?:opsin\.)?((?:{'|'.join(ROOMS)})(?:/[\w/]+\.py(?::\w+)?|\.[\w.:]*\w))`")


def exists(name: str) -> bool:
    """Whether the house has a file, ``ops/gaussian.py``, or object, ``ops.gaussian.Normal``."""
    if "/" in name:
        path, _, member = name.partition(":")
        return (HOUSE / path).exists() and (not member or member in (HOUSE / path).read_text())
    room, *members = re.split("[.:]", name)
    found: object = importlib.import_module(f"opsin.{room}")
    for member in members:
        with suppress(ModuleNotFoundError):
            importlib.import_module(f"{getattr(found, '__name__', None)}.{member}")
        if not hasattr(found, member):
            return False
        found = getattr(found, member)
    return True


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_the_documents_name_exists(document):
    named = {
        name
        for name in NAMES.findall(DOCUMENTS[document])
        if not name.endswith((".json", ".jsonl"))
        and not (name.startswith("data.") and name.split(".")[1] in Data.__dataclass_fields__)
    }
    named |= set(re.findall(r"`(tests/[\w/.]+)`", DOCUMENTS[document]))
    assert sorted(name for name in named if not exists(name)) == []
    assert exists("ops/gaussian.py")
    assert exists("ops.gaussian.Normal")
    assert not exists("ops.gaussian.Abnormal")
    assert not exists("train.tasks.nowhere")
