"""The runtime, set up before jax is imported: afterwards jax no longer listens."""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from opsin.data.files import users_cache
from opsin.errors import ConfigError
from opsin.train.host.memory import is_untuned, keep_freed_memory

TPU_COMPILER = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # it compiles only: no device is taken
    "TPU_SKIP_MDS_QUERY": "1",  # else it asks Google Cloud which machine this is
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # any: the topology is given with each program
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_LOG_DIR": "disabled",
}
"""The environment in which libtpu compiles without a TPU."""

DEVICES = Path("/dev")
"""Where the accelerators of a machine show."""


@dataclass(frozen=True)
class Runtime:
    """What jax reads when it starts.

    Attributes:
        platform: ``cpu``, ``cuda`` or ``tpu``; None takes the best there is.
        devices: number of CPU devices to fake, or None.
        deterministic: GPU kernels that give the same bits every time, at some cost of speed.
        memory_fraction: share of the GPU's memory to take at the start; None takes it as needed.
        cache: directory of compiled programs; None takes the one of the user.
        cached: whether programs are kept there and taken from there; not where their compilation
            is to be timed.
        tpu_compiler: whether to compile for TPUs that are not here. The compiler is then not to
            look for them.
    """

    platform: str | None = None
    devices: int | None = None
    deterministic: bool = False
    memory_fraction: float | None = None
    cache: Path | None = None
    cached: bool = True
    tpu_compiler: bool = False


def set_up(runtime: Runtime) -> None:
    """Writes the settings to the environment.

    Options override variables that the user has set, and those override the defaults.

    Raises:
        ConfigError: if CPU devices are to be faked on another platform.
        RuntimeError: if jax is imported already.
    """
    if "jax" in sys.modules:
        raise RuntimeError("jax was imported before the runtime was set up")
    if runtime.devices and runtime.platform not in (None, "cpu"):
        raise ConfigError(f"--devices fakes CPU devices: leave out --platform {runtime.platform}")
    defaults = {
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "GRPC_VERBOSITY": "ERROR",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "JAX_COMPILATION_CACHE_DIR": str(users_cache("compiled")),
        "JAX_COMPILATION_CACHE_MAX_SIZE": str(2 * 1024**3),
        # All programs, the small ones too: a second start compiles nothing.
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    if importlib.util.find_spec("libtpu") and not _has_accelerator():
        defaults["JAX_PLATFORMS"] = "cpu"  # else libtpu looks for a TPU, in five lines of errors
    asked = {"MPLBACKEND": "agg"}  # figures become files
    if runtime.platform:
        asked["JAX_PLATFORMS"] = runtime.platform
    if runtime.devices:
        asked["JAX_PLATFORMS"] = "cpu"
        asked["JAX_NUM_CPU_DEVICES"] = str(runtime.devices)
    if runtime.memory_fraction:
        asked["XLA_PYTHON_CLIENT_PREALLOCATE"] = "true"
        asked["XLA_PYTHON_CLIENT_MEM_FRACTION"] = str(runtime.memory_fraction)
    if runtime.deterministic:
        flags = os.environ.get("XLA_FLAGS", "")
        asked["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
    if runtime.cache:
        asked["JAX_COMPILATION_CACHE_DIR"] = str(runtime.cache)
    if not runtime.cached:
        asked["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    if runtime.tpu_compiler:
        asked |= TPU_COMPILER
    os.environ.update({**defaults, **os.environ, **asked})
    if runtime.platform in (None, "cpu") and is_untuned():
        keep_freed_memory()


def given(
    coordinator: str | None, processes: int | None, process: int | None
) -> tuple[str | None, int | None, int | None] | None:
    """Coordinator, number and index of the processes of a run; None for a single process.

    Where ``processes`` is None, or the environment is that of one task of several (``srun``, or
    TPUs of GKE), jax finds all three.

    Raises:
        ConfigError: if some are given without the others.
    """
    if processes is None and coordinator is None and process is None:
        return None, None, None
    if coordinator is None and process is None and processes == 1:
        tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
        hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
        several = (tasks != "1" and "SLURM_PROCID" in os.environ) or len(hosts) > 1
        return (None, None, None) if several else None
    if coordinator is None or processes is None or process is None:
        raise ConfigError(
            "--coordinator HOST:PORT, --processes N and --process I go together, or --processes "
            "auto alone"
        )
    if process >= processes:
        raise ConfigError(
            f"--process {process} is not one of {processes}: they are counted from 0, so give "
            f"0 to {processes - 1}"
        )
    return coordinator, processes, process


def require(platform: str) -> None:
    """Starts jax on the requested platform.

    Raises:
        ConfigError: if it is not there.
    """
    import jax

    try:
        jax.devices()
    except Exception as error:  # jax raises RuntimeError, its plug-ins whatever they like
        cause = f" ({str(error).splitlines()[0]})" if str(error) else ""
        raise ConfigError(
            f"no {platform} device here{cause}: leave out --platform {platform} to take "
            "the best there is"
        ) from error


def _has_accelerator() -> bool:
    """Whether this machine has a TPU (as Google's VMs show them) or an NVIDIA GPU."""
    names = ("accel[0-9]*", "vfio/[0-9]*", "nvidia[0-9]*")
    return any(True for name in names for _ in DEVICES.glob(name))
