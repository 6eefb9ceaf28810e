"""What a file of a stranger may name of libraries; test_house.py reads the code of the house."""

import importlib
from collections import defaultdict

import jax
import pytest

from opsin.config.identity import identity
from opsin.config.names import HELD, SHORT, allowed_code, found, lasting_name
from opsin.config.tree import names_in
from opsin.errors import ConfigError

ACTS = {"load", "loads", "fromfile", "memmap", "getattr", "save", "savez", "dump", "open", "exec"}
ACTS |= {"pure_callback", "io_callback", "eval", "compile", "system", "Popen", "tabulate"}


@pytest.mark.parametrize("start", [x for x in HELD if x.startswith(("jax.", "flax.", "optax"))])
def test_what_may_be_named_of_a_library_reads_and_writes_nothing(start):
    module, _, begin = start.partition(":")
    assert not {x for x in dir(importlib.import_module(module)) if x.startswith(begin)} & ACTS


@pytest.mark.parametrize("name", ["jax.nn:relu", "flax.linen.linear:Dense", "optax:l2_loss"])
def test_what_configs_hold_of_a_library_is_found(name):
    assert callable(found(name))
    with pytest.raises(ConfigError, match="by --allow"):
        found(name.replace(":", ".nowhere:"))


def test_a_short_name_of_a_library_is_that_of_one_thing():
    """Arrays and other constants have no name."""
    holding: dict[str, set[int]] = defaultdict(set)
    for start in SHORT:
        module, _, begin = start.partition(":")
        for name, offered in vars(importlib.import_module(module)).items():
            if name.startswith(begin) and callable(offered):
                holding[f"{module.partition('.')[0]}:{name}"].add(id(offered))
    assert len(holding) > 200
    assert {name for name, things in holding.items() if len(things) > 1} == set()
    assert HELD[-len(SHORT) :] == SHORT  # what a file may hold was named so in every id


def test_what_is_not_named_shortly_keeps_its_path():
    assert lasting_name(jax.nn.initializers.normal) == "jax:normal"
    assert lasting_name(jax.random.normal) == "jax.random:normal"
    assert lasting_name(jax.numpy.sin) == "jax.numpy:sin"
    assert identity(jax.random.normal) != identity(jax.nn.initializers.normal)


def test_a_module_that_python_does_not_find_cannot_be_allowed():
    assert allowed_code(["json", "json.decoder"]) == ("json", "json.decoder")
    with pytest.raises(
        ConfigError, match=r"^--allow nets_of_a: Python finds no module nets_of_a: "
    ):
        allowed_code(["nets_of_a"])


def test_only_names_are_names():
    assert names_in({"a": "train", "b": ["os", "a.b:f", "/x/y.py:f"], "c": {"d": "tfds:f"}}) == {
        "a.b:f", "/x/y.py:f",
    }  # fmt: skip
