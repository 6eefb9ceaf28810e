"""The runtime is set up before jax starts; what is asked for wins over the user's variables."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from opsin.commands.runtime import TPU_COMPILER, Runtime, require, set_up
from opsin.errors import ConfigError

HOUSE = Path(__file__).parents[2]


@pytest.fixture
def environment(monkeypatch):
    """The environment of a fresh process, in which jax is not imported: a dict to fill and read."""
    variables = {"HOME": "/home/ada"}
    monkeypatch.setattr(os, "environ", variables)
    monkeypatch.delitem(sys.modules, "jax")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # no libtpu
    return variables


def test_the_defaults(environment):
    set_up(Runtime())
    environment.pop("PYTEST_CURRENT_TEST", None)
    assert environment == {
        "HOME": "/home/ada",
        "MPLBACKEND": "agg",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "GRPC_VERBOSITY": "ERROR",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "JAX_COMPILATION_CACHE_DIR": "/home/ada/.cache/opsin/compiled",
        "JAX_COMPILATION_CACHE_MAX_SIZE": str(2 * 1024**3),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


@pytest.mark.parametrize(
    ("devices", "platform"),
    [
        ([], "cpu"),
        (["accel/accel0", "vfio/vfio"], "cpu"),  # no TPU's: of a laptop, and of any machine
        (["accel0"], None),
        (["vfio/0"], None),
        (["nvidia0", "nvidiactl"], None),
    ],
)
def test_libtpu_looks_for_no_tpu_where_none_is(
    environment, monkeypatch, tmp_path, devices, platform
):
    for name in devices:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "libtpu")
    monkeypatch.setattr("opsin.commands.runtime.DEVICES", tmp_path)
    set_up(Runtime())
    assert environment.get("JAX_PLATFORMS") == platform
    set_up(Runtime(platform="tpu"))
    assert environment["JAX_PLATFORMS"] == "tpu"


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
        (Runtime(cached=False), {"JAX_ENABLE_COMPILATION_CACHE": "false"}),
        (Runtime(platform="cpu", tpu_compiler=True), {"JAX_PLATFORMS": "cpu", **TPU_COMPILER}),
    ],
    ids=["platform", "devices", "memory", "deterministic", "cache", "no cache", "tpu compiler"],
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
    assert {name: environment[name] for name in before | expected} == before | expected


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("JAX_DEBUG_NANS", "maybe", "invalid truth value 'maybe' for environment 'JAX_DEBUG_NANS'"),
        ("JAX_PLATFORMS", "abacus", "Unable to initialize backend 'abacus': "),
    ],
)
def test_a_variable_that_jax_does_not_take_is_one_line(tmp_path, variable, value, told):
    done = subprocess.run(
        [sys.executable, "-m", "opsin", "run", "digits_lenet", "--quiet", "seed=1"],
        env={**os.environ, variable: value, "MPLBACKEND": "none"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"opsin: jax does not start: {told}")


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
    with pytest.raises(ConfigError, match=r"no cuda device here: leave out --platform cuda"):
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


ANSWERS = """
import sys
from opsin.commands.main import main

def loaded(*names):
    return sorted(set(names) & sys.modules.keys())

SLOW = ("orbax", "matplotlib", "scipy", "sklearn", "tensorflow_datasets", "grain", "tensorflow")
assert not loaded("jax", "flax", "optax", "numpy", *SLOW), "on import"
sys.stderr = sys.stdout
for arguments, code, forbidden in (
    (["list"], 0, ("jax", "flax", "optax", "numpy", *SLOW)),
    (["run", "digits_lent"], 2, ("jax", "flax", "optax", "numpy", *SLOW)),
    (["run", "digits_lenet", "task.model.with=3"], 2, SLOW),
    (["run", "digits_lenet", "seed=first"], 2, SLOW),
):
    try:
        main(arguments)
    except SystemExit as exit:
        assert exit.code == code, exit.code
    assert not loaded(*forbidden), (arguments, loaded(*forbidden))
    sys.modules.pop("jax", None)  # the runtime is set up in a process of its own otherwise
"""


def test_lists_and_mistakes_are_answered_without_what_is_slow_to_import():
    lines = python(ANSWERS).splitlines()
    assert any(line.startswith("digits_lenet  ") for line in lines)
    assert len([line for line in lines if line.startswith("opsin: ")]) == 3


START = """
import importlib, json, sys
from opsin.commands.main import main
from opsin.config import catalogue
from opsin.commands import runtime
sys.argv = ["opsin"]
counted = {"cache_hits": 0, "cache_misses": 0}

def count(event, **details):
    name = event.rpartition("/")[2]
    if name in counted:
        counted[name] += 1

set_up = runtime.set_up

def set_up_and_listen(asked):
    set_up(asked)
    import jax
    jax.monitoring.register_event_listener(count)

runtime.set_up = set_up_and_listen
catalogue.find = lambda name: importlib.import_module("tests.commands.tiny")
try:
    main([
        "run", "tiny", "--smoke", "--quiet", "--devices", "8", "--workdir", WORKDIR,
        "--cache", WORKDIR + "/cache", f"seed={SEED}", "loop.previews=4",
    ])
except SystemExit as exit:
    assert exit.code == 0, exit.code
print(json.dumps(counted))
"""


def start(workdir: Path, seed: int) -> tuple[Path, dict[str, int]]:
    """Directory of a run in a process of its own, and how often the cache had a program."""
    code = f"WORKDIR, SEED = {str(workdir)!r}, {seed}\n{START}"
    *_, directory, counted = python(code, JAX_NUM_CPU_DEVICES="2").splitlines()
    return Path(directory), json.loads(counted)


@pytest.fixture(scope="module")
def first_start(tmp_path_factory) -> tuple[Path, Path, dict[str, int]]:
    workdir = tmp_path_factory.mktemp("runs")
    return workdir, *start(workdir, seed=0)


def test_eight_devices_are_faked_and_used(first_start):
    _, directory, _ = first_start
    (environment,) = json.loads((directory / "env.json").read_text())
    assert environment["devices"] == ["cpu:cpu"] * 8
    assert (directory / "DONE").exists()


@pytest.mark.proofs
def test_a_second_start_compiles_nothing(first_start):
    """Another process, another seed: every program comes from the cache."""
    workdir, directory, first = first_start
    again, second = start(workdir, seed=1)
    assert again != directory
    assert first["cache_misses"] >= 4  # init, the step, evaluation, previews
    assert second == {"cache_hits": first["cache_hits"] + first["cache_misses"], "cache_misses": 0}
    assert any((workdir / "cache").iterdir())  # programs are kept where they were asked to be


def test_a_start_is_reported_in_parts(first_start):
    _, directory, _ = first_start
    speed = json.loads((directory / "speed.json").read_text())
    parts = speed.pop("startup_seconds")
    assert list(parts) == [
        "imports", "data", "tracing", "peak", "state", "compilation", "first step",
    ]  # fmt: skip
    assert all(seconds >= 0 for seconds in parts.values())
    assert parts["compilation"] > 0.05
    assert speed["images_per_step"] == 8
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["model_flops_per_step"] == speed["model_flops_per_step"]
    achieved = summary["model_flops_per_second"]
    assert summary["utilization"] == pytest.approx(achieved / speed["matmul_peak_flops_per_second"])
    assert achieved == pytest.approx(
        summary["images_per_second"] * speed["model_flops_per_step"] / 8
    )
