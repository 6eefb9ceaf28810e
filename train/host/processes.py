"""Several processes that train one model: how they connect, agree, and stop when one of them dies.

``jax.distributed`` joins their devices, and ends all of them when one no longer responds.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from opsin.errors import UserError
from opsin.train.paths import json_leaves
from opsin.train.sharding import AXES, replicated

BIND = "JAX_COORDINATOR_BIND_ADDRESS"
"""The variable of jax for where process 0 listens, if not at the coordinator's own address."""


class ProcessError(UserError):
    """Processes of one run that do not find one another, or were started differently."""


@dataclass(frozen=True)
class Group:
    """How the processes of a run find one another.

    Attributes:
        coordinator: ``host:port`` of process 0, which listens there and nowhere else; None lets
            jax find all three, on TPU and Slurm.
        count: how many there are.
        index: which one this is, from 0.
        timeout: seconds to wait for the others to connect, and for a heartbeat, at least 10 for
            the latter.
    """

    coordinator: str | None = None
    count: int | None = None
    index: int | None = None
    timeout: float = 100.0


@contextmanager
def joined(group: Group) -> Iterator[None]:
    """Joins the devices of all processes; to be entered before jax is first used.

    Inside, a process that dies, sends no heartbeat for the time-out or raises ends all others: what
    they compute together fails, or jax ends them. Otherwise they leave together.

    Raises:
        ProcessError: the port is taken, or the others do not come.
    """
    if group.coordinator is not None and group.index == 0:
        _check_place(os.environ.get(BIND, group.coordinator))
    _meet(group)
    try:
        yield
    except BaseException:
        with suppress(Exception):  # of jax, which may have found no devices
            if (
                is_first()
            ):  # jax ends the others when this one exits: let them report their errors first
                time.sleep(3)
        raise
    multihost_utils.sync_global_devices("the end")
    jax.distributed.shutdown()


def _meet(group: Group) -> None:
    """Waits for the others in a thread: jax itself would abort the process if one does not come.

    Raises:
        ProcessError: they do not come in time.
    """
    # Between the CPUs of several machines; accelerators have their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    met: Future[None] = Future()

    def meet() -> None:
        try:
            met.set_result(_initialize(group))
        except BaseException as error:
            met.set_exception(error)

    threading.Thread(target=meet, daemon=True).start()
    try:
        met.result(group.timeout)
    except (TimeoutError, RuntimeError, ValueError) as error:
        late = f"not all came in {group.timeout:g} s"
        cause = late if isinstance(error, TimeoutError) else _first_line(error)
        if group.coordinator is None:
            raise ProcessError(
                f"jax does not find the other processes ({cause}): say it with "
                "--coordinator HOST:PORT --processes N --process I"
            ) from error
        raise ProcessError(
            f"process {group.index} of {group.count} does not meet the others at "
            f"{group.coordinator} ({cause}): start all {group.count} with the same --coordinator, "
            "or give them longer with --timeout"
        ) from error


def _initialize(group: Group) -> None:
    silent = max(10, round(group.timeout))
    jax.distributed.initialize(
        group.coordinator,
        group.count,
        group.index,
        # jax would listen on all addresses; behind a translated one, its own variable says where.
        coordinator_bind_address=None if BIND in os.environ else group.coordinator,
        cluster_detection_method=None if group.coordinator is None else "deactivate",
        initialization_timeout=round(group.timeout) + 60,  # `_meet` gives up before
        heartbeat_timeout_seconds=silent,
        shutdown_timeout_seconds=silent,
    )


def _check_place(listening: str) -> None:
    """Looks at where process 0 will listen, ``HOST:PORT``.

    jax would share the port with another run, whose processes then join this one. The name of a
    machine is often that of its loopback to itself (/etc/hosts), where no other reaches it.

    Raises:
        ProcessError: somebody listens there already, or nobody else could come.
    """
    host, _, port = listening.rpartition(":")
    try:
        family, *_, address = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM
        )[0]
        if ip_address(address[0]).is_loopback and not _is_loopback(host.strip("[]")):
            raise ProcessError(
                f"process 0 would listen at {address[0]}, which {host} means on this machine, and "
                f"no other reaches it: give --coordinator by its address, or set {BIND} to that"
            )
        with socket.socket(family) as probe:  # bound for a moment; it never listens
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ProcessError(
            f"process 0 cannot listen at {host}:{port} ({error.strerror}): choose another "
            f"--coordinator, for all processes, or set {BIND} to an address of this machine"
        ) from error


def _is_loopback(host: str) -> bool:
    """Whether a host, as it is written, is this machine alone."""
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return "localhost" in host.lower()


def check_same(config: Mapping[str, Any]) -> None:
    """Compares what the processes were started with, as JSON.

    Raises:
        ProcessError: in all of them, if two differ: names both, and where.
    """
    if jax.process_count() == 1:
        return
    text = np.frombuffer(json.dumps(config).encode(), np.uint8)
    lengths = np.asarray(multihost_utils.process_allgather(np.int32(len(text))))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(text)] = text
    texts = np.asarray(multihost_utils.process_allgather(padded))
    first, *others = (
        json_leaves(json.loads(row[:length].tobytes()))
        for row, length in zip(texts, lengths, strict=True)
    )
    for index, other in enumerate(others, start=1):
        for path in sorted(first.keys() | other.keys()):
            values = [leaves.get(path, "absent") for leaves in (first, other)]
            if values[0] != values[1]:
                raise ProcessError(
                    f"processes 0 and {index} were started differently: {path} is {values[0]} in "
                    f"process 0 and {values[1]} in process {index}: start all with one command"
                )


def is_first() -> bool:
    """Whether this is the process that writes files and prints."""
    return jax.process_index() == 0


def of_first(value: bool) -> bool:
    """The value of process 0, in all processes."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.int32(value)))


class Agreement:
    """Whether any process wants to stop: the same answer in all, after the same step.

    All processes must call it equally often. Among several processes the answer is that of the call
    before, so that none waits for the devices.
    """

    def __init__(self, mesh: Mesh):
        self._devices = NamedSharding(mesh, P(AXES))
        self._any = jax.jit(jnp.any, out_shardings=replicated(mesh))
        self._before: jax.Array | None = None

    def __call__(self, mine: bool) -> bool:
        """``mine``: whether this process wants to stop."""
        if jax.process_count() == 1:
            return mine
        shape = (self._devices.num_devices,)
        wishes = jax.make_array_from_callback(
            shape, self._devices, lambda index: np.full(shape, mine)[index]
        )
        before, self._before = self._before, self._any(wishes)
        return before is not None and bool(before)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
