"""The entry point: which command, and how a process ends."""

import importlib.metadata
import inspect
import re
import subprocess
import sys

import pytest

from opsin.commands.main import COMMANDS
from opsin.config import catalogue
from tests.commands.conftest import in_process


def test_help_lists_every_command_with_a_line(opsin):
    for asked in (["--help"], ["-h"], []):
        shown = opsin(*asked)
        assert (shown.code, shown.err) == (0, "")
        lines = dict(re.findall(r"^  (\w+) +(\S.*)$", shown.out, re.MULTILINE))
        assert lines == {
            name: (first_line(module)).rstrip(".") for name, module in COMMANDS.items()
        }
        assert "First: opsin run digits_lenet" in shown.out.splitlines()[-1]  # what next


def first_line(module: str) -> str:
    command = getattr(importlib.import_module(f"opsin.commands.{module}"), module)
    return (inspect.getdoc(command) or "").partition("\n")[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_that_names_all_it_takes(opsin, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    shown = opsin(name, "--help")
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.startswith(f"usage: opsin {name} ")
    assert first_line(COMMANDS[name]) in " ".join(shown.out.split())
    assert max(map(len, shown.out.splitlines())) <= 80
    assert "None" not in shown.out
    assert not re.search(r"[^\x00-\x7f…]", shown.out)
    bare = re.findall(r"^ +(--?[a-z]\S*)(?: \S+)?\n(?! {5,}\S)", shown.out, re.MULTILINE)
    assert bare == []  # every flag is explained
    assert not {"--began", "--words"} & set(shown.out.split())


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("train tiny", "there is no command 'train', did you mean 'run'?: see opsin --help"),
        ("runs tiny", "did you mean 'run'?"),
        ("endings", "there is no command 'endings'"),
        ("xyz", "there is no command 'xyz': see opsin --help"),
    ],
)
def test_a_command_that_is_not_there(opsin, arguments, complaint):
    result = opsin(*arguments.split())
    assert result.code == 2
    assert complaint in result.complaint()


@pytest.mark.parametrize("position", [0, 1, 3])
def test_trace_shows_the_trace_wherever_it_stands(opsin, position):
    words = ["run", "tiny", "data.bach=64"]
    words.insert(position, "--trace")
    result = opsin(*words)
    assert result.code == 2
    *trace, complaint = result.err.splitlines()
    assert trace[0] == "Traceback (most recent call last):"
    assert "in override" in result.err
    assert complaint.startswith("opsin: there is no 'data.bach'")


def test_help_and_version_are_words_too(opsin):
    assert opsin("help") == opsin("--help")
    assert (
        opsin("--version")
        == opsin("-V")
        == (0, f"opsin {importlib.metadata.version('opsin')}\n", "")
    )


@pytest.mark.parametrize("closed", [(0, 1, 2), (1,), (2,)])
def test_a_closed_output_takes_what_is_said(tmp_path, closed):
    """And no file that is opened later takes its number."""
    shut = " ".join(f"{number}>&-" for number in closed)
    script = "import os; from opsin.commands.terminal import shown\nwith shown(): print('x')\n"
    script += "assert all(os.readlink(f'/proc/self/fd/{n}') for n in range(3)); os.mkdir('done')"
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {shut}', sys.executable, script],
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0
    assert (tmp_path / "done").is_dir()


def test_list_in_a_process_of_its_own(tmp_path):
    done = in_process("list", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in done.out.splitlines())
    assert lines.keys() == catalogue.experiments().keys()
    for name, claim in lines.items():
        assert (catalogue.find(name).__doc__ or "").startswith(claim)


def test_a_mistake_in_a_process_of_its_own(tmp_path):
    result = in_process("run", "digits_lenet", "seed=first", cwd=tmp_path)
    assert result.code == 2
    assert (
        result.complaint()
        == "opsin: seed takes int from 0 to 4,294,967,295, not 'first'; it is 0 by default"
    )
    assert result.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_has_had_enough_is_no_error():
    command = [sys.executable, "-m", "opsin", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as listing:
        assert listing.stdout is not None
        assert listing.stderr is not None
        listing.stdout.close()
        assert listing.stderr.read() == b""
        assert listing.wait() == 1
