"""Objects by name: full names, names that survive a move of the module, and look-up."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import sysconfig
import types
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from opsin.config import own_files
from opsin.errors import ConfigError

HOUSE = Path(__file__).parent.parent
OWN = __name__.removesuffix("config.names")
"""The package that all rooms are in, and a dot: names of this house are written without."""
HELD = (
    *("analysis.", "experiments.", "imaging.", "losses.", "metrics.", "models.", "ops."),
    *("data.", "train.experiment:", "train.extractor:Extractor", "train.methods:", "train.optim:"),
    *("train.schedules:", "train.sharding:Parallel", "train.tasks.", "train.weights:Weights"),
    *("flax.linen:", "jax.nn:", "jax.numpy:bfloat16", "jax.numpy:float", "jax.numpy:tanh"),
    "optax:",
)
"""How the names of all begin that the config of a stranger may hold: nothing in them runs a text
or a file."""
WRITES_FILES = "data.files:"
"""What of these no config may hold either."""


class UntrustedError(ConfigError):
    """A config names code that is neither of this house nor of a library that configs hold."""


def named(text: str) -> Any:
    """The function or class that a text names; any other text is returned as it is.

    Names are ``package.module:name``, and ``./FILE.py:name`` for what is in a file of the user.

    Raises:
        ConfigError: the module is there and cannot be imported, or has no such name.
    """
    file, _, name = text.rpartition(":")
    if file.endswith(".py") and name.isidentifier():
        return own_files.load(Path(file), name)
    module, colon, name = text.partition(":")
    if not colon or not all(part.isidentifier() for part in [*module.split("."), name]):
        return text
    loaded = _imported(_places(module))
    if hasattr(loaded, name):
        return getattr(loaded, name)
    if getattr(loaded, "__file__", None):  # else a mere directory, called "tfds"
        raise ConfigError(f"module {module} has no {name!r}")
    return text


def _places(module: str) -> list[str]:
    """What a module is imported by: as one of this house first."""
    return [*([OWN + module] if _is_room(module) else []), module]


def _imported(places: Sequence[str]) -> types.ModuleType | None:
    """The first module that is there, or None.

    Raises:
        ConfigError: it is there and cannot be imported.
    """
    for path in places:
        try:
            return importlib.import_module(path)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{path}.".startswith(f"{error.name}."):
                raise ConfigError(f"cannot import {path}: {error}") from error
    return None  # "tfds:mnist" is a string: there is no module of that name


def _is_room(module: str) -> bool:
    """Whether a module, named without ``opsin``, would lie in a room: ``tests`` is none."""
    return (HOUSE / module.partition(".")[0] / "__init__.py").is_file()


def found(text: str, trusted: Container[str] = ()) -> Any:
    """The object that a text in a config names; a text that names none as it is.

    What has moved to another module of this house since it was written is found by its name. Other
    code than ``HELD`` is imported only if its name is trusted, or in a file that was read already.

    Raises:
        UntrustedError: for other code.
        ConfigError: for what is not there any more, or cannot be imported.
    """
    module, _, name = text.rpartition(":")
    own_file = module.endswith(".py") and name.isidentifier()
    if text in trusted or (own_file and own_files.is_read(Path(module))):
        return _wherever(text)
    if own_file:
        raise _untrusted(text, module)
    if not all(part.isidentifier() for part in [*module.split("."), name]):
        return text
    if not (_is_room(module) or text.startswith(HELD)):
        if file := _file_of(module):
            raise _untrusted(text, file)
        if "." not in module:
            return text  # "tfds:mnist"
    # Of the house alone: there may be a module of that name in the working directory.
    loaded = _imported(_places(module)[:1]) if text.startswith(HELD) else None
    known = getattr(loaded, name) if hasattr(loaded, name) else _moved(text)
    if known is None:
        raise ConfigError(f"{text} is not there any more")
    if not full_name(known).startswith(HELD) or full_name(known).startswith(WRITES_FILES):
        raise ConfigError(f"{text} is nothing that a config holds")
    return known


def _untrusted(text: str, file: str) -> UntrustedError:
    return UntrustedError(
        f"{text} (in {file}) is no code of opsin: it is executed only if you name it yourself, or "
        "say --trust"
    )


def _file_of(module: str) -> str | None:
    """Where a module lies, without importing it, or None if there is none."""
    package = module.partition(".")[0]
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # __main__
        return package
    # "tfds" may be a mere directory.
    return spec and (spec.origin or (package if "." in module else None))


def _wherever(text: str) -> Any:
    """As ``named``, also for what has moved to another module of this house."""
    try:
        known = named(text)
    except ConfigError:
        moved = _moved(text)
        if moved is None:
            raise
        return moved
    moved = _moved(text) if known is text else None
    return known if moved is None else moved


def full_name(node: Any) -> str:
    """``package.module:name``, or ``/path/FILE.py:name``, by which ``named`` finds the object.

    Modules of this house are written without ``opsin``.

    Raises:
        ConfigError: for an object that cannot be found by a name, such as a lambda, or what a
            module of this house would be taken for.
    """
    module, name = _origin(node)
    if own_files.is_own(module):
        return f"{_file(module)}:{name}"
    public = _public_module(node, module, name)
    if _is_room(public) and _imported(_places(public)) is not sys.modules[public]:
        raise ConfigError(
            f"{public}:{name} is yours, and opsin has a module of that name: rename yours"
        )
    return f"{public.removeprefix(OWN)}:{name}"


def lasting_name(node: Any) -> str:
    """A name of an object that does not change when its module moves.

    An object of this house has its name alone, one of a library ``library:name``, and one of a
    user's own module ``module:name``, without the packages around it.

    Raises:
        ConfigError: as ``full_name``.
    """
    module, name = _origin(node)
    if in_house(module):
        return name
    library, *_, last = module.split(".") if "." in module else (module, module)
    return f"{library if _is_library(module) else last}:{name}"


def in_house(module: str) -> bool:
    """Whether a module lies in a room of this house. A file beside the rooms is a user's own."""
    file = _file(module)
    return file is not None and _in_room(file)


def is_users(file: Path) -> bool:
    """Whether a file is the user's own, neither of this house nor of a library."""
    return file.is_absolute() and not _in_room(file) and not _is_installed(file)


def _in_room(file: Path) -> bool:
    if not file.is_relative_to(HOUSE):
        return False
    inside = file.relative_to(HOUSE).parts
    return len(inside) > 1 and "site-packages" not in inside  # of an environment in the house


def _is_library(module: str) -> bool:
    """Whether a module was installed, or comes with Python."""
    file = _file(module)
    return file is None or _is_installed(file)


def _is_installed(file: Path) -> bool:
    of_python = file.is_relative_to(sysconfig.get_path("stdlib"))
    return of_python or bool({"site-packages", "dist-packages"} & set(file.parts))


def _file(module: str) -> Path | None:
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file) if file else None


def _origin(node: Any) -> tuple[str, str]:
    name = getattr(node, "__qualname__", None) or getattr(node, "__name__", None)
    module = getattr(node, "__module__", None)
    instance = getattr(node, "__self__", None)  # of a bound method: its state has no name
    bound = instance is not None and not isinstance(instance, type | types.ModuleType)
    if not name or not module or "<" in name or bound:
        raise ConfigError(
            f"{node!r} in a config has no name to find it by: use a function or class of a module, "
            "or a functools.partial of one"
        )
    return module, name


def _public_module(node: Any, module: str, name: str) -> str:
    """The shortest module that offers the object, if its own is private: those move about."""
    if not _is_private(module):
        return module
    package = module.partition(".")[0]
    offering = [
        path
        for path, loaded in list(sys.modules.items())
        if path.partition(".")[0] == package
        and not _is_private(path)
        and isinstance(loaded, types.ModuleType)
        and vars(loaded).get(name) is node
    ]
    return min(offering, key=lambda path: (path.count("."), path), default=module)


def _is_private(module: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in module.split("."))


def _moved(text: str) -> Any:
    """The object of ``room.module:name`` in its new file, if exactly one file defines the name."""
    module, _, name = text.partition(":")
    room = module.removeprefix(OWN).partition(".")[0]
    if not name.isidentifier() or not room.isidentifier() or not (HOUSE / room).is_dir():
        return None
    defines = re.compile(rf"^(class|def) {name}\b", re.MULTILINE)
    homes = [file for file in house_files() if defines.search(file.read_text(encoding="utf-8"))]
    if len(homes) != 1:
        return None
    path = homes[0].relative_to(HOUSE).with_suffix("").parts
    return getattr(importlib.import_module(OWN + ".".join(path)), name)


def house_files() -> list[Path]:
    """The Python files of all rooms but tests and benchmarks, which no config can name."""
    rooms = (
        room
        for room in sorted(HOUSE.iterdir())
        if (room / "__init__.py").is_file() and room.name != "benchmarks"
    )
    return [file for room in rooms for file in sorted(room.rglob("*.py"))]
