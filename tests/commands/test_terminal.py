"""What reaches a terminal: nothing that steers it, in lines of its width."""

import io
import os
import shutil
import sys
from pathlib import Path

import pytest

from opsin.commands.main import COMMANDS, main
from opsin.commands.terminal import Shown, listed
from opsin.config import catalogue
from opsin.errors import visible


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain: café, 猫, ½ → 2\n\tβ\n", "plain: café, 猫, ½ → 2\n\tβ\n"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("100 %\rno", r"100 %\rno"),
        ("a\x08b\x00c\x7f\x9b2J", r"a\x08b\x00c\x7f\x9b2J"),
        ("\u202egnp.exe\u2066 \u2028", r"\u202egnp.exe\u2066 \u2028"),
        ("caf\udce9", r"caf\udce9"),
        ("\x1b[A\x1b[Aover", r"\x1b[A\x1b[Aover"),
    ],
)
def test_what_would_steer_a_terminal_is_written_out(text, seen):
    assert visible(text) == seen
    stream = io.StringIO()
    print(text, end="", file=Shown(stream))  # pyright: ignore[reportArgumentType]
    assert stream.getvalue() == seen


@pytest.mark.parametrize(
    ("moves", "after"), [("\r", "12/40 loss 1.0 ██"), ("\r", ""), ("\n\n", ""), ("\x1b[A", "")]
)
def test_a_progress_bar_moves(moves, after):
    stream = io.StringIO()
    Shown(stream).write(moves + after)
    assert stream.getvalue() == moves + after


def test_what_an_encoding_lacks_is_written_out_and_the_rest_is_the_streams():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", write_through=True)
    assert Shown(stream).encoding == "latin-1"
    Shown(stream).write("é …")
    assert stream.buffer.getvalue() == b"\xe9 \\u2026"  # pyright: ignore


@pytest.mark.parametrize("words", [["list"], ["--help"], ["run", "--help"], ["list", "--models"]])
def test_a_full_disk_behind_the_output_is_one_line(monkeypatch, capfd, words):
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as exited:
            main(words)
        with monkeypatch.context() as patch:  # nor is there another at exit
            patch.setattr(sys, "stderr", io.StringIO())
            full.flush()
    assert exited.value.code == 2
    told = "opsin: cannot write to /dev/full (No space left on device): make room there\n"
    assert capfd.readouterr().err == told


HOSTILE = "\x1b]0;owned\x07\x1b[2J"


@pytest.mark.parametrize("command", [*COMMANDS, HOSTILE])
@pytest.mark.parametrize("word", [HOSTILE, f"--{HOSTILE}", f"{HOSTILE}.py"])
def test_no_command_repeats_a_word_raw(opsin, command, word):
    result = opsin(command, word)
    assert result.code == 2
    assert "\x1b" not in result.out + result.err


def test_a_command_that_is_not_there_is_named_as_it_may_be_seen(opsin):
    assert r"\x1b]0;owned\x07" in opsin(HOSTILE).complaint()
    assert r"\x1b]0;owned\x07" in opsin("run", f"--{HOSTILE}").complaint()


@pytest.mark.parametrize("across", [80, 120, 40])
def test_lists_fit_the_terminal(monkeypatch, across):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((across, 24)))
    claims = {name: catalogue.claim(path) for name, path in catalogue.experiments().items()}
    text = listed(claims)
    assert max(map(len, text.splitlines())) <= across
    assert text.split() == [word for pair in claims.items() for word in " ".join(pair).split()]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    lines = listed(claims).splitlines()
    assert [line.split(maxsplit=1) for line in lines] == [list(pair) for pair in claims.items()]
