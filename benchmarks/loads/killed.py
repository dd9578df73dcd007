"""Clients of a relay whose workers are killed: the kills, and which client each worker had accepted."""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import socket
import subprocess
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..machine import MeasurementError, Process

EACH = 0.3  # seconds between two kills
PATIENCE = 60.0  # seconds that the clients may take beyond their time
SEEN = 5.0  # seconds after a kill in which its clients see it
PIDFD_GETFD = 438  # the number of the system call, the same for all processors; pidfd_getfd(2)


@dataclass(frozen=True)
class Kill:
    """One kill: when the worker was stopped and killed, in monotonic seconds, and the ports of its clients then."""

    stopped: float
    killed: float
    clients: frozenset[int]


@dataclass(frozen=True)
class Fates:
    """The fates of all clients.

    :param served: how many got their answer.
    :param seconds: in so many.
    :param longest: the longest time from a connect to its end, in seconds.
    :param kills: how many workers were killed.
    :param accepted: the clients that these had accepted.
    :param lost: by what happened: the clients that were not served, and that a killed worker had accepted.
    :param unexplained: the same for those that no killed worker had accepted.
    """

    served: int
    seconds: float
    longest: float
    kills: int
    accepted: int
    lost: Counter[str]
    unexplained: Counter[str]


def fates(program: str, process: Process, seconds: int, clients: int, *, spared: int) -> Fates:
    """Kill workers while clients connect as fast as they are served.

    A worker is stopped before it is killed, so the clients that it has accepted are exactly known. Workers that die
    young are started again after up to ten seconds. Without a worker, clients wait for the next one.

    :param program: lost.c, compiled.
    :param process: the relay; those of its children that have its listening socket are the workers.
    :param seconds: how long clients connect.
    :param clients: how many at a time.
    :param spared: how many workers that serve clients are left each time.
    :raises MeasurementError: if no client was served.
    """
    words = [program, str(process.port), str(seconds), str(clients)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as load:
        kills: list[Kill] = []
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(EACH, left))
            if kill := _kill_one(process, spared):
                kills.append(kill)
        said, errors = load.communicate(timeout=PATIENCE)
    if load.returncode:
        raise MeasurementError(errors.strip()[-300:])
    *lines, last = said.splitlines()
    done = json.loads(last)
    lost, unexplained = Counter[str](), Counter[str]()
    for line in lines:
        how, port, begun, ended = line.split()
        is_explained = any(
            int(port) in kill.clients
            and float(begun) < kill.killed
            and kill.stopped < float(ended) < kill.killed + SEEN
            for kill in kills
        )
        (lost if is_explained else unexplained)[how] += 1
    accepted = sum(len(kill.clients) for kill in kills)
    return Fates(done["count"], done["seconds"], done["longest"] / 1e6, len(kills), accepted, lost, unexplained)


def _kill_one(process: Process, spared: int) -> Kill | None:
    """Kill one of the workers that serve clients now, if there are enough."""
    serving = [pid for pid in process.children() if _clients_of(pid, process.port)]
    if len(serving) <= spared:
        return None
    pid = random.choice(serving)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        _wait_until_stopped(pid)
        stopped = time.monotonic()
        clients = _clients_of(pid, process.port)
        os.kill(pid, signal.SIGKILL)
        return Kill(stopped, time.monotonic(), clients)
    return None


def _wait_until_stopped(pid: int) -> None:
    threads = list(Path(f"/proc/{pid}/task").iterdir())
    while any((thread / "stat").read_text().rpartition(")")[2].split()[0] != "T" for thread in threads):
        time.sleep(0.001)


def _clients_of(pid: int, port: int) -> frozenset[int]:
    """The ports of the clients whose accepted sockets a process has.

    Its sockets are copied and asked: the kernel's table of connections has tens of thousands of lines under this load.
    """
    found = set()
    with suppress(OSError):
        process = os.pidfd_open(pid)
        try:
            for name in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError), socket.socket(fileno=_copy(process, int(name))) as copy:
                    if copy.family == socket.AF_INET and copy.getsockname()[1] == port:
                        found.add(copy.getpeername()[1])  # the listening socket has none
        finally:
            os.close(process)
    return frozenset(found)


def _copy(process: int, descriptor: int) -> int:
    copied: int = ctypes.CDLL(None, use_errno=True).syscall(PIDFD_GETFD, process, descriptor, 0)
    if copied < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    return copied
