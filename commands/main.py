"""The entry point of ``opsin``: finds a command, runs it, and ends the process as it should end.

jax is imported only once the runtime is set up, and not at all to list experiments; a command's
file only when that command runs.
"""

from __future__ import annotations

import ast
import difflib
import importlib.metadata
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from opsin.commands.endings import INTERRUPTED, exit_code, in_a_line, interrupt, own_trace
from opsin.commands.terminal import OutputError, listed, shown
from opsin.errors import ConfigError

COMMANDS = {
    "list": "listing",
    "new": "new",
    "run": "run",
    "sweep": "sweep",
    "plan": "plan",
    "report": "report",
    "reproduce": "reproduce",
    "inspect": "inspect",
    "predict": "predict",
    "sample": "sample",
    "inpaint": "inpaint",
    "evaluate": "evaluate",
    "embed": "embed",
    "export": "export",
    "import": "import_weights",
}
"""The file beside this one that holds a command: a function of the file's name."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits: 0 done, 1 a run failed, 2 the user's mistake."""
    with shown():
        _main(arguments)


def _main(arguments: Sequence[str] | None) -> None:
    # All that a process did before it came here is to import this file, and costs nothing but CPU.
    began = time.monotonic() - (time.process_time() if arguments is None else 0.0)
    words = list(sys.argv[1:] if arguments is None else arguments)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax and TFDS: we report their errors
    if arguments is None and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        code = _run([word for word in words if word != "--trace"], began)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    except (BrokenPipeError, OutputError) as error:  # whoever read, as `| head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        if told := isinstance(error, OutputError):
            with suppress(OutputError):
                print(f"opsin: {error}", file=sys.stderr)
        code = 2 if told else 1
    except (Exception, SystemExit) as error:
        code, own = exit_code(error), own_trace(error)
        if isinstance(error, SystemExit) and own is None:  # of the parser
            raise
        if code is None and own is None and arguments is not None and not _among_others():
            raise
        if "--trace" in words or (code is None and own is None):
            traceback.print_exc()
        elif own is not None:
            print(own, file=sys.stderr)
        if code is not None and own is None:
            print(f"opsin: {in_a_line(error)}", file=sys.stderr)
        code = 1 if code is None or own is not None else code
    if code and _among_others():
        sys.stderr.flush()
        os._exit(code)  # jax would wait for the others, who stop as well
    sys.exit(code)


def _run(words: Sequence[str], began: float) -> int:
    if words[:1] == ["help"]:
        words = [*words[1:2], "--help"]
    if words[:1] in ([], ["--help"], ["-h"]):
        print(_overview())
        return 0
    if words[:1] in (["--version"], ["-V"]):
        print(f"opsin {importlib.metadata.version('opsin')}")
        return 0
    if words[0] not in COMMANDS:
        raise ConfigError(f"{_no_command(words)}: see opsin --help")
    name = COMMANDS[words[0]]
    command = getattr(importlib.import_module(f"{__package__}.{name}"), name)
    if words == ["list"]:  # no argument to read: answered without tyro, which takes a moment
        return command()
    from opsin.commands.arguments import parse

    call = parse(command, words[1:], f"opsin {words[0]}")
    known = {"began": began, "words": words}
    return partial(call, **{key: value for key, value in known.items() if key in call.keywords})()


def _no_command(words: Sequence[str]) -> str:
    near = difflib.get_close_matches(words[0], COMMANDS, n=1, cutoff=0.5)
    meant = f", did you mean {near[0]!r}?" if near else ""
    return f"there is no command {words[0]!r}{meant}"


def _overview() -> str:
    """All commands with the first line of what each says of itself, read without importing it."""
    more = "opsin COMMAND --help: what it takes. --trace, anywhere: the trace of an error"
    first = "First: opsin run digits_lenet, without data. Then: opsin list; opsin new NAME"
    claims = listed({f"  {name}": _claim(module) for name, module in COMMANDS.items()})
    return f"usage: opsin COMMAND …\n\n{claims}\n\n{more}\n\n{first}"


def _claim(module: str) -> str:
    tree = ast.parse((Path(__file__).parent / f"{module}.py").read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    (command,) = [node for node in functions if node.name == module]
    return (ast.get_docstring(command) or "").partition("\n")[0].rstrip(".")


def _among_others() -> bool:
    """Whether this process has joined others and not left them."""
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


if __name__ == "__main__":
    main()
