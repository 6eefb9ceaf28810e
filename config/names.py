"""Objects by name: full names, names that survive a move of the module, and look-up."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import re
import sys
import sysconfig
import types
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from opsin.config import own_files
from opsin.data.files import at_home
from opsin.data.source_names import WITH_A_NAME
from opsin.errors import ConfigError

HOUSE = Path(__file__).parent.parent
ALIASES = {"pretrained": "interchange.pretrained"}
"""Modules that are typed by one word: ``weights=pretrained:efficientnet_lite0``."""
OWN = __name__.removesuffix("config.names")
"""The package that all rooms are in, and a dot: names of this house are written without."""
STANDARD_LIBRARY = sysconfig.get_path("stdlib")
SHORT = (
    *("jax.nn:", "jax.nn.initializers:", "jax.numpy:bfloat16", "jax.numpy:float", "jax.numpy:tanh"),
    *("flax.linen.activation:", "flax.linen.linear:", "flax.linen.normalization:"),
    *("flax.linen.pooling:", "optax:", "optax.losses:"),
)
"""How the names of all begin that an id calls ``library:name``. One more would change ids."""
HELD = (
    *("analysis.", "data.", "experiments.", "imaging.", "losses.", "metrics.", "models.", "ops."),
    *("train.experiment:", "train.extractor:Extractor", "train.methods:", "train.optim:"),
    *("train.schedules:", "train.sharding:Parallel", "train.tasks.", "train.weights:Weights"),
    "interchange.pretrained:Pretrained",
    *SHORT,
)
"""How the names of all begin that a file may hold whose author is not known. Whatever it is called
with, nothing in them runs a text, imports a module or writes a file, but for the cache of published
networks; a test reads their code."""
OPENS_FILES = ("data.files:", "data.records:")
"""What of these no file may hold either."""


class UntrustedError(ConfigError):
    """A file names code that is not ``HELD``, and that nobody has allowed."""


def named(text: str) -> Any:
    """The function or class that a text names; any other text is returned as it is.

    Names are ``package.module:name``, and ``./FILE.py:name`` for what is in a file of the user.

    Raises:
        ConfigError: the module is there and cannot be imported, or has no such name.
    """
    file, _, name = text.rpartition(":")
    if file.endswith(".py") and name.isidentifier():
        return own_files.load(at_home(file), name)
    if not is_name(text):
        return text
    module, _, name = text.partition(":")
    module = ALIASES.get(module, module)
    loaded = _imported(_places(module))
    if hasattr(loaded, name):
        return getattr(loaded, name)
    if getattr(loaded, "__file__", None):  # else a mere directory of that name
        yours = f"{module.replace('.', '/')}.py"
        near = difflib.get_close_matches(name, vars(loaded), n=1, cutoff=0.5)
        meant = f": did you mean {near[0]!r}?" if near else ""
        if _is_room(module) and Path(yours).is_file():
            meant = f": that is opsin's module, yours is ./{yours}:{name}"
        raise ConfigError(f"module {module} has no {name!r}{meant}")
    return text


def unfound(text: str) -> str:
    """What to do where Python does not find the module that a text names; or nothing."""
    module = text.partition(":")[0].partition(".")[0]
    if not module.isidentifier() or _is_room(module) or importlib.util.find_spec(module):
        return ""
    return (
        f"Python finds no module {module}: put its folder on PYTHONPATH, or name its file, "
        f"./{module}.py"
    )


def is_name(text: str) -> bool:
    """Whether a text is a name, and not one of a data set: there may be a ``folder.py`` about."""
    module, colon, name = text.rpartition(":")
    parts = [name] if module.endswith(".py") else [*module.split("."), name]
    return bool(colon) and module not in WITH_A_NAME and all(part.isidentifier() for part in parts)


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
                raise own_files.unimportable(path, error) from error
        except (Exception, SystemExit) as error:
            raise own_files.unimportable(path, error) from error
    return None  # "tfds:mnist" is a string: there is no module of that name


def _is_room(module: str) -> bool:
    """Whether a module, named without ``opsin``, would lie in a room: ``tests`` is none."""
    return (HOUSE / module.partition(".")[0] / "__init__.py").is_file()


def allowed_code(asked: Iterable[str]) -> tuple[str, ...]:
    """What a user allows a file to name, for ``found``: modules.

    A file among them is read at once, and so may be named wherever it lay when it was written.

    Raises:
        ConfigError: for what is neither a module that Python finds nor a file that can be read.
    """
    modules = []
    for each in asked:
        if each.endswith(".py"):
            own_files.read(at_home(each))
        elif all(part.isidentifier() for part in each.split(".")):
            if way_out := unfound(each):
                raise ConfigError(f"--allow {each}: {way_out}")
            modules.append(each)
        else:
            raise ConfigError(f"--allow {each}: name a module or a file, such as ./my_losses.py")
    return tuple(modules)


def found(text: str, allowed: Collection[str] = ()) -> Any:
    """The object that a text in a file names; a text that names none as it is.

    Nothing is imported before it is known that the name may stand there: it is ``HELD``, allowed,
    or of a file that was read already. The object must have been defined under such a name too.
    What has moved to another module of this house since it was written is found by its name.

    Args:
        text: of a file whose author is not known.
        allowed: modules (with all below them) or full names that may be named as well.

    Raises:
        UntrustedError: for other code.
        ConfigError: for what is not there any more, or cannot be imported.
    """
    if not is_name(text):
        return text
    name = _present_name(text) if _is_of_the_house(text) else text
    if name is None:
        raise ConfigError(f"{text} is not there any more")
    if not _may_be_named(name, allowed):
        raise _untrusted(text, name)
    known = named(name)
    if known is name:
        raise ConfigError(f"{text} is not there any more")
    try:
        full = full_name(known)
    except ConfigError as error:
        raise UntrustedError(f"{text} is no function or class that a config holds") from error
    if not _may_be_named(full, allowed):
        raise _untrusted(text, full)
    return known


def _is_of_the_house(name: str) -> bool:
    module = name.rpartition(":")[0].removeprefix(OWN)
    return not module.endswith(".py") and _is_room(module)


def _may_be_named(name: str, allowed: Collection[str]) -> bool:
    held = name.startswith(HELD) and not name.startswith(OPENS_FILES)
    given = any(name == each or name.startswith((f"{each}.", f"{each}:")) for each in allowed)
    return held or given or own_files.is_read(Path(name.rpartition(":")[0]))


def _untrusted(text: str, name: str) -> UntrustedError:
    called = text if text == name else f"{text} is {name}"
    if _is_of_the_house(name):
        which = "" if text == name else ", which"
        return UntrustedError(f"{called}{which} is nothing that a config holds")
    return UntrustedError(
        f"{called}: it is no code of opsin, and is executed only if you allow it, in Python by "
        f"allow=[…], or else by --allow {name.rpartition(':')[0]}"
    )


def _present_name(text: str) -> str | None:
    """The name of ``room.module:name`` in its present file, if one file alone defines the name."""
    module, _, name = text.partition(":")
    defines = re.compile(rf"^((class|def) {name}\b|{name}\b[^=\n]*=)", re.MULTILINE)

    def is_in(file: Path) -> bool:
        return file.is_file() and bool(defines.search(file.read_text(encoding="utf-8")))

    here = HOUSE.joinpath(*module.removeprefix(OWN).split(".")).with_suffix(".py")
    homes = [here] if is_in(here) else [file for file in house_files() if is_in(file)]
    if name.startswith("_") or len(homes) != 1:
        return None
    return f"{'.'.join(homes[0].relative_to(HOUSE).with_suffix('').parts)}:{name}"


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

    An object of this house has its name alone, and one of a user's own module ``module:name``,
    without the packages around it. One of a library is ``library:name`` if it is in ``SHORT``,
    where that is unique, and else has its full name: ``jax.random.normal`` is no
    ``jax.nn.initializers.normal``.

    Raises:
        ConfigError: as ``full_name``.
    """
    module, name = _origin(node)
    if in_house(module):
        return name
    if not _is_library(module):
        return f"{module.rpartition('.')[2]}:{name}"
    full = full_name(node)
    return f"{module.partition('.')[0]}:{name}" if full.startswith(SHORT) else full


def in_house(module: str) -> bool:
    """Whether a module lies in a room of this house. A file beside the rooms is a user's own."""
    file = _file(module)
    return file is not None and _in_room(file)


def is_users(file: Path) -> bool:
    """Whether a file is the user's own, neither of this house nor of a library."""
    return file.is_absolute() and not _in_room(file) and not _is_installed(file)


def _in_room(file: Path) -> bool:
    above = len(HOUSE.parts)
    inside = file.parts[above:]
    if file.parts[:above] != HOUSE.parts:
        return False
    return len(inside) > 1 and "site-packages" not in inside  # of an environment in the house


def _is_library(module: str) -> bool:
    """Whether a module was installed, or comes with Python."""
    file = _file(module)
    return file is None or _is_installed(file)


def _is_installed(file: Path) -> bool:
    installed = {"site-packages", "dist-packages"} & set(file.parts)
    return bool(installed) or file.is_relative_to(STANDARD_LIBRARY)


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


def house_files() -> list[Path]:
    """The Python files of all rooms but tests and benchmarks, which no config can name."""
    rooms = (
        room
        for room in sorted(HOUSE.iterdir())
        if (room / "__init__.py").is_file() and room.name != "benchmarks"
    )
    return [file for room in rooms for file in sorted(room.rglob("*.py"))]
