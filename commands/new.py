"""``opsin new``."""

from __future__ import annotations

import importlib.util
import keyword
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from opsin.config import catalogue
from opsin.errors import ConfigError

TEMPLATE = Path(__file__).parents[1] / "experiments" / "template.py"


def new(name: Annotated[str, arg(metavar="NAME", help="of the experiment, one word")], /) -> int:
    """Writes the file of an experiment of your own, to be changed."""
    path = Path(f"{catalogue.check_name(name)}.py")
    if name in catalogue.experiments():
        raise ConfigError(f"opsin has an experiment {name!r}: choose another name")
    if keyword.iskeyword(name) or importlib.util.find_spec(name):
        raise ConfigError(
            f"Python has a word or a module {name!r}, which {path} would hide: choose another name"
        )
    text = TEMPLATE.read_text(encoding="utf-8").replace("NAME", name)
    try:
        with path.open("x", encoding="utf-8") as file:  # never over a file that is there
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"{path} is there already: choose another name") from None
    except OSError as error:
        raise ConfigError(f"cannot write {path} ({error.strerror})") from error
    print(f"now: opsin run ./{path} --smoke")
    print(path)
    return 0
