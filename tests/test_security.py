"""SECURITY.md, read off the code: what may be named computes, and little else could execute."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from opsin.config.names import HELD, HOUSE, OPENS_FILES, house_files
from tests.test_house import nodes, tree


@pytest.fixture(autouse=True, scope="module")
def forget_trees() -> Iterator[None]:
    """Those of all files take 110 MB."""
    yield
    tree.cache_clear()
    nodes.cache_clear()


# With any of these, a function does more than compute, or read images.
MODULES = {
    *("subprocess", "importlib", "pickle", "socket", "shutil", "tempfile", "runpy", "ctypes"),
    *("code", "pty", "marshal", "shelve", "urllib", "http", "orbax", "multiprocessing"),
    *("opsin.config.names", "opsin.config.own_files", "opsin.config.catalogue"),
    *("opsin.config.tree.rebuild", "opsin.config.tree.parse", "opsin.config.tree.parse_all"),
    *("opsin.commands", "opsin.report", "opsin.train.checkpoint"),
}
CALLS = {
    *("open", "exec", "eval", "compile", "__import__", "breakpoint", "input"),
    *("import_module", "system", "popen", "execv", "fork", "kill", "remove", "removedirs"),
    *("write_text", "write_bytes", "mkdir", "makedirs", "unlink", "rmdir", "rmtree", "touch"),
    *("symlink_to", "hardlink_to", "chmod", "rename", "tofile", "savez", "savez_compressed"),
    *("replace_text", "replace_bytes", "save", "savetxt", "dump", "pure_callback", "io_callback"),
}
# ``Image.open`` reads; ``Extractor.open``, ``_open`` and so on are our own, and read. The last one
# codes an image into memory.
READS = {"Image.open", "self.extractor.open", "self.observer.open", "self.open", "pixels.save"}


def held_files() -> list[Path]:
    names = {f: ".".join(f.relative_to(HOUSE).with_suffix("").parts) for f in house_files()}
    whole = tuple(x for x in HELD if x.endswith("."))
    of_it = {x.partition(":")[0] for x in HELD}
    return [
        file
        for file, name in names.items()
        if (f"{name}:".startswith(whole) or name in of_it) and f"{name}:" not in OPENS_FILES
    ]


def what_it_does(file: Path) -> Iterator[str]:
    """What may be named in a file, imports and calls of what is above."""
    module = ".".join(file.relative_to(HOUSE).with_suffix("").parts)
    tops = tree(file).body
    held = [top for top in tops if f"{module}:{getattr(top, 'name', '')}".startswith(HELD)]
    for node in (node for top in held for node in ast.walk(top)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (n for n in names if any(f"{n}.".startswith(f"{x}.") for x in MODULES))
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called.rpartition(".")[2] in CALLS and called not in READS:
                yield called


def test_the_files_that_may_be_named_are_read():
    names = {str(file.relative_to(HOUSE)) for file in held_files()}
    assert {"losses/classification.py", "data/folder.py", "train/tasks/classify.py"} <= names
    assert "train/weights.py" in names
    assert not names & {
        "data/files.py",
        "data/records.py",
        "train/checkpoint.py",
        "config/names.py",
    }


def test_what_may_be_named_only_computes_and_reads():
    found = {str(file): more for file in held_files() if (more := list(what_it_does(file)))}
    assert found == {}


# Where a text, or what a file names, could be executed: these files, and no other.
MAY = {
    "importlib": {"config/names.py", "config/own_files.py", "config/catalogue.py",
                  "commands/main.py", "commands/evaluating.py", "commands/provenance.py",
                  "planning/planner.py", "planning/chips.py",
                  "interchange/conversion.py",  # a file of its room, called as a model's of ours
                  "interchange/files.py",  # torch, by that name
                  "interchange/pretrained.py",  # asks where a package of its table lies
                  "commands/new.py",  # asks whether a module has the name that a user typed
                  "commands/runtime.py"},  # asks whether libtpu is there, by that name
    "subprocess": {"commands/provenance.py"},
    "eval": {"config/hints.py"},  # annotations of code that is imported
    "socket": {"train/host/processes.py"},
}  # fmt: skip
NEVER = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "runpy", "msgpack"}
NEVER |= {"exec", "__import__", "system", "popen", "create_server", "listen"}


def test_what_could_execute_a_text_is_in_these_files_alone():
    found: dict[str, set[str]] = {name: set() for name in MAY}
    for file in house_files():
        for node in nodes(file):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name.partition(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [(node.module or "").partition(".")[0]]
            elif isinstance(node, ast.Call):
                names = [ast.unparse(node.func)]
                assert names[0] not in ("np.load", "numpy.load", "jnp.load"), file
                names = [names[0].rpartition(".")[2]]
            assert not NEVER & set(names), file
            for name in set(names) & MAY.keys():
                found[name].add(str(file.relative_to(HOUSE)))
    assert found == MAY
