"""Several processes that train one model: how they meet, agree, and stop when one of them is gone.

``jax.distributed`` joins their devices. Beside it each process keeps a connection to process 0: jax
itself takes minutes to notice a dead one, or ends a process with a trace of its own.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from train.paths import json_leaves
from train.sharding import AXES, replicated

GREETING = 64  # characters: a secret of 56, and the number of a process
HERE = b"opsin"  # what processes say to one another before they know a secret
LETTER = 512  # bytes that process 0 tells the others where to find it with


class ProcessError(ValueError):
    """Processes of one run that do not find one another, or were started differently."""


@dataclass(frozen=True)
class Group:
    """How the processes of a run find one another.

    Attributes:
        coordinator: ``host:port`` of process 0; None lets jax find all three, on TPU and Slurm.
        count: how many there are.
        index: which one this is, from 0.
        timeout: seconds that the others may take to come, and that one may be silent.
    """

    coordinator: str | None = None
    count: int | None = None
    index: int | None = None
    timeout: float = 100.0


@contextmanager
def joined(group: Group) -> Iterator[None]:
    """Joins the devices of all processes; to be entered before jax is first used.

    Inside, a process that dies, or is silent for the time-out, ends all others with a line that
    names it, and so does one that leaves by an exception. Else they leave together.

    Raises:
        ProcessError: the port is taken, or the others do not come.
    """
    _initialize(group)
    connections = _Connections(group)
    try:
        yield
        multihost_utils.sync_global_devices("the end")
    except BaseException as error:
        connections.leave(f"{type(error).__name__}: {' '.join(str(error).split())}")
        raise
    connections.leave(None)
    jax.distributed.shutdown()


def _initialize(group: Group) -> None:
    if group.coordinator is not None and (group.count or 1) > 1:
        _assemble(group, group.coordinator)
    # Between the CPUs of several machines; accelerators have their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            group.coordinator,
            group.count,
            group.index,
            cluster_detection_method=None if group.coordinator is None else "deactivate",
            initialization_timeout=max(1, round(group.timeout)),
            # jax ends a process without asking: our own line comes before.
            heartbeat_timeout_seconds=max(10, round(3 * group.timeout)),
            shutdown_timeout_seconds=max(10, round(group.timeout)),
        )
    except (RuntimeError, ValueError) as error:
        if group.coordinator is None:
            raise ProcessError(
                f"jax does not find the other processes ({_first_line(error)}): say it with "
                "--coordinator HOST:PORT --processes N --process I"
            ) from error
        raise _incomplete(group, group.coordinator, _first_line(error)) from error


def _assemble(group: Group, coordinator: str) -> None:
    """Waits until all processes are there, at the port that jax takes next.

    jax itself aborts where one does not come, and grpc would share a port that is taken.

    Raises:
        ProcessError: the port is taken, or the others do not come.
    """
    host, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + group.timeout
    if group.index:
        _report(group, coordinator, (host, int(port)), deadline)
        return
    try:
        server = socket.create_server(("", int(port)), backlog=group.count or 1)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        cause = f"port {port} is taken" if taken else error.strerror
        raise ProcessError(
            f"process 0 cannot listen at {coordinator} ({cause}): choose another --coordinator, "
            "for all processes"
        ) from error
    arrived: dict[int, socket.socket] = {}
    with server, ExitStack() as open_ones:
        while len(arrived) < (group.count or 1) - 1:
            try:
                server.settimeout(max(deadline - time.monotonic(), 0.001))
                connection = open_ones.enter_context(server.accept()[0])
                connection.settimeout(max(deadline - time.monotonic(), 0.001))
                word = connection.recv(len(HERE) + 8, socket.MSG_WAITALL)
            except TimeoutError as error:
                missing = sorted(set(range(1, group.count or 1)) - arrived.keys())
                named = ", ".join(str(index) for index in missing)
                raise _incomplete(group, coordinator, f"missing: {named}") from error
            except OSError:
                continue  # it has gone again
            if word.startswith(HERE) and word[len(HERE) :].strip().isdigit():
                arrived[int(word[len(HERE) :])] = connection
        for connection in arrived.values():
            with suppress(OSError):
                connection.sendall(HERE)


def _report(group: Group, coordinator: str, address: tuple[str, int], deadline: float) -> None:
    """Tells process 0 that this one is there, and waits for its word that all are."""
    cause = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(address, timeout=left) as connection:
                connection.sendall(HERE + f"{group.index:8d}".encode())
                if connection.recv(len(HERE), socket.MSG_WAITALL) == HERE:
                    return
        except OSError as error:
            cause = error.strerror or cause
        time.sleep(min(0.2, max(deadline - time.monotonic(), 0)))
    raise _incomplete(group, coordinator, cause)


def _incomplete(group: Group, coordinator: str, cause: str) -> ProcessError:
    return ProcessError(
        f"process {group.index} of {group.count} met no full company at {coordinator} in "
        f"{group.timeout:g} s ({cause}): start all {group.count} with the same --coordinator, or "
        "give them longer with --timeout"
    )


class _Connections:
    """One from each process to process 0, and threads that hear when it falls silent.

    A line says "" (still there), "bye", or why all are to stop.
    """

    def __init__(self, group: Group):
        self._timeout = group.timeout
        self._index, self._count = jax.process_index(), jax.process_count()
        self._peers: dict[int, socket.socket] = {}
        self._left, self._stopping = threading.Event(), threading.Lock()
        if self._count == 1:
            return
        self._peers = self._meet(group.coordinator)
        for peer, connection in self._peers.items():
            connection.settimeout(self._timeout)
            listen = threading.Thread(target=self._listen, args=(peer, connection), daemon=True)
            listen.start()
        threading.Thread(target=self._beat, daemon=True).start()

    def leave(self, reason: str | None) -> None:
        """Tells the others that this process goes, well or for a reason."""
        if reason is not None and self._peers:
            # Often the others failed first, and this is what it led to: they have a second to say.
            self._left.wait(1.0)
        with self._stopping:
            self._left.set()
            line = "bye" if reason is None else f"process {self._index} stopped ({reason})"
            self._tell(line)

    def _meet(self, coordinator: str | None) -> dict[int, socket.socket]:
        """Connections of process 0 to all others, or of another to process 0."""
        letter = np.zeros(LETTER, np.uint8)
        server, secret = None, ""
        if self._index == 0:
            server = socket.create_server(("", 0), backlog=self._count)
            host = _own_address() if coordinator is None else coordinator.rpartition(":")[0]
            secret = secrets.token_hex(28)
            text = json.dumps([host, server.getsockname()[1], secret]).encode()
            letter[: len(text)] = np.frombuffer(text, np.uint8)
        letter = np.asarray(multihost_utils.broadcast_one_to_all(letter))
        host, port, secret = json.loads(letter.tobytes().rstrip(b"\0"))
        if server is not None:
            with server:
                return self._accept(server, secret)
        try:
            connection = socket.create_connection((host, port), timeout=self._timeout)
            connection.sendall(f"{secret}{self._index:{GREETING - len(secret)}d}".encode())
        except OSError as error:
            raise ProcessError(
                f"process {self._index} does not reach process 0 at {host}:{port} ({error}): let "
                "the machines of a run connect to one another on all ports"
            ) from error
        return {0: connection}

    def _accept(self, server: socket.socket, secret: str) -> dict[int, socket.socket]:
        peers: dict[int, socket.socket] = {}
        server.settimeout(self._timeout)
        while len(peers) < self._count - 1:
            try:
                connection, _ = server.accept()
                connection.settimeout(self._timeout)
                greeting = connection.recv(GREETING, socket.MSG_WAITALL).decode()
            except TimeoutError as error:
                missing = sorted(set(range(1, self._count)) - peers.keys())
                raise ProcessError(
                    f"processes {missing} do not reach process 0: let the machines of a run "
                    "connect to one another on all ports"
                ) from error
            if greeting.startswith(secret):
                peers[int(greeting[len(secret) :])] = connection
            else:
                connection.close()  # a stranger
        return peers

    def _beat(self) -> None:
        while not self._left.wait(self._timeout / 4):
            self._tell("")

    def _tell(self, line: str) -> None:
        for connection in self._peers.values():
            with suppress(OSError):  # who does not listen any more is heard of by its own thread
                connection.sendall(f"{line}\n".encode())

    def _listen(self, peer: int, connection: socket.socket) -> None:
        name = f"process {peer} of {self._count}"
        try:
            with connection.makefile(encoding="utf-8") as lines:
                for line in lines:
                    if line == "bye\n":
                        return
                    if line != "\n":
                        # Most likely this process is about to fail of the same cause, by itself.
                        self._left.wait(2.0)
                        self._stop(line.strip())
            reason = f"{name} has died"
        except TimeoutError:
            reason = f"{name} has been silent for {self._timeout:g} s"
        except OSError:
            reason = f"{name} has died"
        self._stop(reason)

    def _stop(self, reason: str) -> None:
        """Ends this process and, from process 0, all others; not if it has left already."""
        with self._stopping:
            if self._left.is_set():
                return
            self._tell(reason)
            print(
                # On a line of its own, where a bar of progress stands.
                f"\nopsin: {reason}, and so process {self._index} stops: start all of them again "
                "to go on from the last checkpoint",
                file=sys.stderr,
                flush=True,
            )
            # The main thread may wait for the dead one inside the device, where nothing wakes it.
            os._exit(1)


def _own_address() -> str:
    """The address that this machine is reached at by its neighbours."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: it only chooses a way out
        except OSError:
            return socket.gethostname()
        return probe.getsockname()[0]


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
    """Whether this is the process that writes and speaks for all."""
    return jax.process_index() == 0


def of_first(value: bool) -> bool:
    """What process 0 says, for all."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.int32(value)))


class Agreement:
    """Whether any process wants to stop: the same answer in all, after the same step.

    To be asked by all equally often. Among several processes the answer is that of the call before,
    so that nobody waits for the devices.
    """

    def __init__(self, mesh: Mesh):
        self._devices = NamedSharding(mesh, P(AXES))
        self._any = jax.jit(jnp.any, out_shardings=replicated(mesh))
        self._before: jax.Array | None = None

    def __call__(self, mine: bool) -> bool:
        """``mine`` is what this process wants."""
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
