"""The runtime, set up before jax is imported: afterwards jax no longer listens."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Runtime:
    """What jax reads when it starts.

    Attributes:
        platform: ``cpu``, ``cuda`` or ``tpu``; None takes the best there is.
        devices: number of CPU devices to fake, or None.
        deterministic: GPU kernels that give the same bits every time, at some cost of speed.
        memory_fraction: share of the GPU's memory to take at the start; None takes it as needed.
        cache: directory of compiled programs, None for no cache.
    """

    platform: str | None = None
    devices: int | None = None
    deterministic: bool = False
    memory_fraction: float | None = None
    cache: Path | None = None


def default_cache() -> Path:
    """Where compiled programs are kept between runs."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "opsin" / "compiled"


def set_up(runtime: Runtime) -> None:
    """Writes the settings to the environment. Variables that the user has set win.

    Raises:
        RuntimeError: if jax is imported already.
    """
    if "jax" in sys.modules:
        raise RuntimeError("jax was imported before the runtime was set up")
    settings = {
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "GRPC_VERBOSITY": "ERROR",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "true" if runtime.memory_fraction else "false",
    }
    flags = os.environ.get("XLA_FLAGS", "")
    if runtime.platform:
        settings["JAX_PLATFORMS"] = runtime.platform
    if runtime.devices:
        settings["JAX_PLATFORMS"] = "cpu"
        settings["JAX_NUM_CPU_DEVICES"] = str(runtime.devices)
    if runtime.memory_fraction:
        settings["XLA_PYTHON_CLIENT_MEM_FRACTION"] = str(runtime.memory_fraction)
    if runtime.deterministic:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
    if runtime.cache:
        settings["JAX_COMPILATION_CACHE_DIR"] = str(runtime.cache)
        settings["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(2 * 1024**3)
        settings["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
    for name, value in settings.items():
        os.environ.setdefault(name, value)
