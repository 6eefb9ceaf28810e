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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from errors import UserError
from train.paths import json_leaves
from train.sharding import AXES, replicated

HERE = b"opsin"  # the greeting of processes that were told where to meet, and the answer to all
LETTER = 512  # bytes that process 0 tells the others where to find it with


class ProcessError(UserError):
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
    if group.coordinator is None:
        _initialize(group)
        index, count = jax.process_index(), jax.process_count()
        peers = _meet(index, count, group.timeout)
    else:
        # jax itself aborts where one does not come, and grpc would share a port that is taken.
        index, count = group.index or 0, group.count or 1
        peers = _assemble(group, group.coordinator)
    connections = _Connections(peers, index, count, group.timeout)
    try:
        if group.coordinator is not None:
            _initialize(group)
        yield
        multihost_utils.sync_global_devices("the end")
    except BaseException as error:
        connections.leave(f"{type(error).__name__}: {' '.join(str(error).split())}")
        raise
    connections.leave(None)
    jax.distributed.shutdown()


def _initialize(group: Group) -> None:
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


def _assemble(group: Group, coordinator: str) -> dict[int, socket.socket]:
    """Connections of process 0 to all others, or of another to process 0, once all are there.

    They meet at the port that jax takes next.

    Raises:
        ProcessError: the port is taken, or the others do not come.
    """
    host, _, port = coordinator.rpartition(":")
    count = group.count or 1
    if group.index:
        try:
            return {0: _connect((host, int(port)), _greeting(HERE, group.index), group.timeout)}
        except OSError as error:
            raise _incomplete(group, coordinator, error.strerror or str(error)) from error
    try:
        server = socket.create_server(("", int(port)), backlog=count)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        cause = f"port {port} is taken" if taken else error.strerror
        raise ProcessError(
            f"process 0 cannot listen at {coordinator} ({cause}): choose another --coordinator, "
            "for all processes"
        ) from error
    peers, missing = _accept(server, HERE, count, group.timeout)
    if missing:
        raise _incomplete(group, coordinator, f"missing: {missing}")
    return peers


def _meet(index: int, count: int, timeout: float) -> dict[int, socket.socket]:
    """As `_assemble`, of processes that jax has joined already, at a port that it tells them of."""
    if count == 1:
        return {}
    letter = np.zeros(LETTER, np.uint8)
    server = None
    if index == 0:
        server = socket.create_server(("", 0), backlog=count)
        text = json.dumps([_own_address(), server.getsockname()[1], secrets.token_hex(28)]).encode()
        letter[: len(text)] = np.frombuffer(text, np.uint8)
    letter = np.asarray(multihost_utils.broadcast_one_to_all(letter))
    host, port, secret = json.loads(letter.tobytes().rstrip(b"\0"))
    advice = "let the machines of a run connect to one another on all ports"
    if server is not None:
        peers, missing = _accept(server, secret.encode(), count, timeout)
        if missing:
            raise ProcessError(f"processes {missing} do not reach process 0: {advice}")
        return peers
    try:
        return {0: _connect((host, port), _greeting(secret.encode(), index), timeout)}
    except OSError as error:
        raise ProcessError(
            f"process {index} does not reach process 0 at {host}:{port} ({error}): {advice}"
        ) from error


def _greeting(secret: bytes, index: int) -> bytes:
    return secret + f"{index:8d}".encode()


def _connect(address: tuple[str, int], greeting: bytes, timeout: float) -> socket.socket:
    """A connection to process 0, once it has said that all are there.

    Raises:
        OSError: it does not in time.
    """
    deadline, cause = time.monotonic() + timeout, OSError("no answer")
    while (left := deadline - time.monotonic()) > 0:
        try:
            connection = socket.create_connection(address, timeout=left)
        except OSError as error:
            cause = error
        else:
            with suppress(OSError):
                connection.sendall(greeting)
                if connection.recv(len(HERE), socket.MSG_WAITALL) == HERE:
                    return connection
            connection.close()
        time.sleep(min(0.2, max(deadline - time.monotonic(), 0)))
    raise cause


def _accept(
    server: socket.socket, secret: bytes, count: int, timeout: float
) -> tuple[dict[int, socket.socket], str]:
    """A connection from each process but the first, and who of them did not come in time.

    If all did, they are told so.
    """
    expected = {_greeting(secret, index): index for index in range(1, count)}
    peers: dict[int, socket.socket] = {}
    deadline = time.monotonic() + timeout
    with server:
        while len(peers) < len(expected) and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            try:
                connection, _ = server.accept()
            except OSError:
                continue  # time is up
            connection.settimeout(min(left, 2.0))  # a stranger may say nothing
            index = None
            with suppress(OSError):  # it has gone again
                index = expected.get(connection.recv(len(secret) + 8, socket.MSG_WAITALL))
            if index is None:
                connection.close()  # who is no stranger comes again
            else:
                peers[index] = connection
    missing = ", ".join(str(index) for index in expected.values() if index not in peers)
    if not missing:
        for connection in peers.values():
            with suppress(OSError):  # who is gone again is missed by its own thread
                connection.sendall(HERE)
    return peers, missing


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

    def __init__(self, peers: Mapping[int, socket.socket], index: int, count: int, timeout: float):
        self._timeout, self._peers = timeout, peers
        self._index, self._count = index, count
        self._left, self._stopping = threading.Event(), threading.Lock()
        for peer, connection in peers.items():
            connection.settimeout(timeout)
            listen = threading.Thread(target=self._listen, args=(peer, connection), daemon=True)
            listen.start()
        if peers:
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
