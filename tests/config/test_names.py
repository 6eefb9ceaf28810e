"""What a file of a stranger may name runs no text, imports nothing by name and writes nothing."""

import ast
import importlib
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from opsin.config.names import HELD, HOUSE, WRITES_FILES, found, full_name, house_files

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
# ``Image.open`` reads; ``Extractor.open``, ``_open`` and so on are our own, and read.
READS = {"Image.open", "self.extractor.open", "self.observer.open", "self.open"}


def held_files() -> list[Path]:
    names = {f: ".".join(f.relative_to(HOUSE).with_suffix("").parts) for f in house_files()}
    whole = tuple(x for x in HELD if x.endswith("."))
    of_it = {x.partition(":")[0] for x in HELD}
    return [
        file
        for file, name in names.items()
        if (f"{name}:".startswith(whole) or name in of_it) and f"{name}:" != WRITES_FILES
    ]


def does(file: Path) -> Iterator[str]:
    """What may be named in a file, imports and calls of what is above."""
    module = ".".join(file.relative_to(HOUSE).with_suffix("").parts)
    tops = ast.parse(file.read_text()).body
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


def test_the_house_is_read():
    names = {str(file.relative_to(HOUSE)) for file in held_files()}
    assert {"losses/classification.py", "data/folder.py", "train/tasks/classify.py"} <= names
    assert "train/weights.py" in names
    assert not names & {"data/files.py", "train/checkpoint.py", "config/names.py"}


def test_what_may_be_named_only_computes_and_reads():
    found = {str(file): more for file in held_files() if (more := list(does(file)))}
    assert found == {}


@pytest.mark.parametrize("start", [x for x in HELD if x.startswith(("jax.", "flax.", "optax"))])
def test_what_may_be_named_of_a_library_is_a_function_of_arrays(start):
    """Each is defined where it may be named; those that take a function call it alone."""
    module, _, begin = start.partition(":")
    for name in dir(importlib.import_module(module)):
        if not name.startswith(begin) or name.startswith("_"):
            continue
        try:
            known = found(f"{module}:{name}")
        except ValueError:  # a ConfigError: it is defined elsewhere, or is no function
            continue
        assert full_name(known).startswith(HELD)
        assert not isinstance(known, types.ModuleType)
        assert name not in CALLS | {"load", "loads", "fromfile", "memmap", "getattr"}
