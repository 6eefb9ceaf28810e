"""Eight CPU devices for the whole session, fixed before jax is first used."""

import gc
import inspect
import os
import resource
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# There is a worker on each core: threads of small matrix products would wait for one another.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jaxtyping
import numpy as np
import pytest
from beartype import BeartypeConf, beartype

from opsin.config import names, own_files

jax.config.update("jax_num_cpu_devices", 8)

# Programs are kept between local runs, which compile what has changed. Not by jax's own limit of
# size: with one, each new entry reads all others, and a thousand of them double the time of a test.
# Each worker has its own, for an entry that another is just writing cannot be read.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "opsin" / "tests"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    worker = os.environ.get("PYTEST_XDIST_WORKER", "alone")
    jax.config.update("jax_compilation_cache_dir", str(CACHE / worker))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)

# Signatures are executed: shapes and dtypes, in calls and results of whatever is imported later.
# NumPy's arrays count as JAX's, since `jax.numpy` takes either.
jaxtyping.Array = jax.Array | np.ndarray
# Not of the rest of train, whose states hold shapes and shardings in the place of arrays.
CHECKED = ("ops", "imaging", "losses", "metrics", "models", "data", "train.tasks", "analysis")
jaxtyping.install_import_hook([f"opsin.{room}" for room in CHECKED], f"{__name__}.check_shapes")


def check_shapes(function: Callable) -> Callable:
    """Beartype, of the hints that name a shape: the other types are left to basedpyright.

    Of constructors where code of ours calls them: where JAX rebuilds a pytree, ``vmap`` and
    ``eval_shape`` put other leaves into it.
    """
    shaped = {
        name: hint for name, hint in function.__annotations__.items() if "jaxtyping" in repr(hint)
    }
    if not shaped:
        return function
    function.__annotations__ = shaped
    checked = beartype(conf=BeartypeConf(is_pep484_tower=True))(function)  # an int is a float
    if not function.__qualname__.endswith("__init__"):
        return checked

    @wraps(function)
    def constructed(*arguments, **options):
        return (function if is_rebuilt() else checked)(*arguments, **options)

    return constructed


def is_rebuilt() -> bool:
    """Whether JAX or Flax calls the constructor that is checked."""
    frame = inspect.currentframe()
    while frame and frame.f_globals["__name__"].startswith((__name__, "jaxtyping.")):
        frame = frame.f_back
    return bool(frame) and frame.f_globals["__name__"].startswith(("jax.", "flax."))


def unchecked(raises: Callable) -> Callable:
    """``pytest.raises`` for our own errors: callers with wrong shapes see them, without a check."""

    @contextmanager
    def context(expected: type[BaseException] | tuple, *args, **options) -> Iterator:
        jaxtyping.config.update("jaxtyping_disable", expected is not jaxtyping.TypeCheckError)
        try:
            with raises(expected, *args, **options) as error:
                yield error
        finally:
            jaxtyping.config.update("jaxtyping_disable", False)

    return context


pytest.raises = unchecked(pytest.raises)


def pytest_configure(config: pytest.Config):
    begins = "PYTEST_XDIST_WORKER" not in os.environ
    if begins and sum(file.stat().st_size for file in CACHE.rglob("*")) > 2 * 1024**3:
        shutil.rmtree(CACHE)
    # Compilation is most of the time of fast tests, and three quarters of it are for speed they do
    # not need. Slow ones train.
    if config.option.markexpr != "slow":
        flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # of processes that tests start
        jax.config.update("jax_disable_most_optimizations", True)


def pytest_collection_finish():
    # What is imported by now stays. Looking through all of it for garbage, again and again while
    # programs are traced, was a tenth of the time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(autouse=True, scope="session")
def house_of_tests():
    """A config may hold the small models and losses of these tests, as if they were in a room."""
    names.HELD = (*names.HELD, "tests.")


@pytest.fixture(autouse=True, scope="session")
def peak_of_no_machine() -> Iterator[None]:
    """Runs do not measure the peak of the machine: a second each. Its own test calls it by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("opsin.train.host.accounting.matmul_peak", lambda dtype: 1e12)
        yield


def resident_bytes() -> int:
    """Memory that this process holds; infinite where there is no /proc."""
    statistics = Path("/proc/self/statm")
    if not statistics.exists():
        return sys.maxsize
    return int(statistics.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="session")
def allowed() -> list[float]:
    """Bytes that this process may hold before it forgets."""
    return [1.5 * 1024**3]


@pytest.fixture(autouse=True, scope="module")
def forget(allowed: list[float]):
    """Compiled programs would fill the memory: all are forgotten wherever it has grown too much.

    What they took is used again, and not given back to the system: from then on it may grow by a
    quarter of a GiB more, up to 2.5. Own files that one test file read are forgotten too: the next
    may write another of that name.
    """
    yield
    if resident_bytes() > allowed[0]:
        jax.clear_caches()
        gc.collect()
        allowed[0] = min(max(allowed[0], resident_bytes() + 2**28), 2.5 * 1024**3)
    for name in [name for name in sys.modules if name.startswith(own_files.PREFIX)]:
        del sys.modules[name]


# What each file costs, in CPU seconds of the test process and its children: the budget of a family
# is 30 seconds (docs/design.md), that of a worker 3 GB.

BEGAN = pytest.StashKey[float]()


def cpu_seconds() -> float:
    return sum(os.times()[:4])


def peak_bytes() -> int:
    """The most that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item):
    item.stash[BEGAN] = cpu_seconds()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    report = yield
    if report.when == "teardown":
        spent = {"cpu_seconds": cpu_seconds() - item.stash[BEGAN], "peak_bytes": peak_bytes()}
        report.user_properties.extend(spent.items())
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config):
    spent: Counter[str] = Counter()
    peak = 0
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "teardown":
                found = dict(report.user_properties)
                spent[report.nodeid.partition("::")[0]] += found.get("cpu_seconds", 0)
                peak = max(peak, found.get("peak_bytes", 0))
    terminalreporter.section("CPU seconds of the ten most expensive files")
    for name, seconds in spent.most_common(10):
        terminalreporter.line(f"{seconds:8.1f}  {name}")
    terminalreporter.line(f"{sum(spent.values()):8.1f}  of all files")
    terminalreporter.line(f"{peak / 1e9:8.1f}  GB at most in a worker")
