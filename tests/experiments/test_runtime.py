"""The runtime is set up before jax starts; what is asked for wins over the user's variables."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from experiments.config import ConfigError
from experiments.runtime import Runtime, require, set_up

HOUSE = Path(__file__).parents[2]


@pytest.fixture
def environment(monkeypatch):
    """The environment of a fresh process, in which jax is not imported: a dict to fill and read."""
    variables = {"HOME": "/home/ada"}
    monkeypatch.setattr(os, "environ", variables)
    monkeypatch.delitem(sys.modules, "jax")
    return variables


def test_the_defaults(environment):
    set_up(Runtime())
    environment.pop("PYTEST_CURRENT_TEST", None)
    assert environment == {
        "HOME": "/home/ada",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "GRPC_VERBOSITY": "ERROR",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "JAX_COMPILATION_CACHE_DIR": "/home/ada/.cache/opsin/compiled",
        "JAX_COMPILATION_CACHE_MAX_SIZE": str(2 * 1024**3),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    }


def test_defaults_yield_to_the_users_variables(environment):
    environment |= {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "true",
        "JAX_COMPILATION_CACHE_DIR": "/scratch",
        "JAX_PLATFORMS": "cuda",
        "JAX_NUM_CPU_DEVICES": "2",
        "XLA_FLAGS": "--xla_dump_to=/tmp/x",
        "TF_CPP_MIN_LOG_LEVEL": "0",
    }
    before = dict(environment)
    set_up(Runtime())
    assert {name: environment[name] for name in before} == before


@pytest.mark.parametrize(
    ("runtime", "expected"),
    [
        (Runtime(platform="tpu"), {"JAX_PLATFORMS": "tpu"}),
        (Runtime(devices=8), {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}),
        (
            Runtime(memory_fraction=0.4),
            {"XLA_PYTHON_CLIENT_PREALLOCATE": "true", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.4"},
        ),
        (
            Runtime(deterministic=True),
            {"XLA_FLAGS": "--xla_gpu_deterministic_ops=false --xla_gpu_deterministic_ops=true"},
        ),
        (Runtime(cache=Path("/fast")), {"JAX_COMPILATION_CACHE_DIR": "/fast"}),
    ],
    ids=["platform", "devices", "memory", "deterministic", "cache"],
)
def test_what_is_asked_for_wins_over_the_users_variables(environment, runtime, expected):
    environment |= {
        "JAX_PLATFORMS": "cuda",
        "JAX_NUM_CPU_DEVICES": "2",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9",
        "XLA_FLAGS": "--xla_gpu_deterministic_ops=false",  # of two, XLA takes the last
        "JAX_COMPILATION_CACHE_DIR": "/scratch",
    }
    before = dict(environment)
    set_up(runtime)
    assert {name: environment[name] for name in before} == before | expected


def test_devices_are_faked_on_the_cpu_only(environment):
    with pytest.raises(ConfigError, match="leave out --platform cuda"):
        set_up(Runtime(platform="cuda", devices=8))
    set_up(Runtime(platform="cpu", devices=8))
    assert environment["JAX_NUM_CPU_DEVICES"] == "8"


def test_it_is_too_late_once_jax_is_imported():
    with pytest.raises(RuntimeError, match="jax was imported before"):
        set_up(Runtime())


def test_a_platform_that_is_not_there_is_named(monkeypatch):
    require("cpu")

    def devices():
        raise AssertionError  # what jax raises for cuda where its plug-in is not installed

    monkeypatch.setattr(jax, "devices", devices)
    with pytest.raises(ConfigError, match=r"no cuda device here .*: leave out --platform cuda"):
        require("cuda")


def python(code: str, **variables: str) -> str:
    """Standard output of a fresh process, which must be quiet otherwise."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
        cwd=HOUSE,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


LISTING = """
import sys
from experiments import cli
assert not {"jax", "flax", "tensorflow"} & sys.modules.keys(), "on import"
try:
    cli.main(["list"])
except SystemExit as exit:
    assert exit.code == 0
assert not {"jax", "flax", "tensorflow"} & sys.modules.keys(), "by list"
"""


def test_listing_experiments_imports_no_jax():
    lines = python(LISTING).splitlines()
    assert any(line.startswith("digits_lenet  ") for line in lines)


EVERYTHING = """
import importlib, pathlib, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tensorflow":
            print("imported", name)

sys.meta_path.insert(0, Watch())
for room in ("ops", "losses", "metrics", "models", "data", "train", "experiments"):
    for path in sorted(pathlib.Path(room).rglob("*.py")):
        if path.name not in ("__init__.py", "__main__.py"):
            importlib.import_module(".".join(path.with_suffix("").parts))
"""


def test_no_room_imports_tensorflow_or_prints():
    assert python(EVERYTHING) == ""


FAKED = """
import json, sys
from experiments import cli
sys.argv = ["opsin"]
try:
    cli.main([
        "run", "digits_lenet", "--smoke", "--quiet", "--devices", "8", "--workdir", WORKDIR,
        "--cache", WORKDIR + "/cache",
    ])
except SystemExit as exit:
    assert exit.code == 0, exit.code
"""


def test_eight_devices_are_faked_and_used(tmp_path):
    out = python(f"WORKDIR = {str(tmp_path)!r}\n{FAKED}", JAX_NUM_CPU_DEVICES="2")
    directory = Path(out.splitlines()[-1])  # the last line names it
    environment = json.loads((directory / "env.json").read_text())
    assert environment["devices"] == ["cpu:cpu"] * 8
    assert (directory / "DONE").exists()
    assert any((tmp_path / "cache").iterdir())  # programs are kept where they were asked to be
