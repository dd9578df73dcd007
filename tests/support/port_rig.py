"""Programs that listen, for the tests of ``port:``."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from helpers import WAIT

DOUBLE = str(Path(__file__).with_name("port_double.py"))


def double(*words: object, place: str = "{port}") -> str:
    """The address of a program that listens; see ``port_double.py``."""
    return "port:" + shlex.join([sys.executable, "-S", DOUBLE, place, *map(str, words)])


def children(pid: int | None = None) -> list[int]:
    """The programs that a process runs below their keepers."""
    found = []
    for keeper in _children(os.getpid() if pid is None else pid):
        with contextlib.suppress(OSError):
            if b"\0-P\0-S\0-\0" in Path(f"/proc/{keeper}/cmdline").read_bytes():
                found += _children(keeper)
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):  # a thread that has just ended; the others have children, too
                found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


def port_of(program: int) -> int:
    """The port that was given to a double."""
    return int(re.findall(rb"\0(\d+)\0", Path(f"/proc/{program}/cmdline").read_bytes())[0])


@contextlib.contextmanager
def control(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Gives a function that sends an order to a double with ``control=``, and waits until it is done."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        listening.settimeout(WAIT)
        connected: list[socket.socket] = []

        def order(word: bytes) -> None:
            if not connected:
                connected.append(listening.accept()[0])
                connected[0].settimeout(WAIT)
            connected[0].sendall(word)
            assert connected[0].recv(1) == word

        try:
            yield order
        finally:
            for one in connected:
                one.close()


class Hijacker:
    """Another program of this user that has taken a port of 127.0.0.1; at the end ``clients`` is their number."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_server(("127.0.0.1", port), backlog=64)
        self._socket.setblocking(False)
        self.clients = 0

    def __enter__(self) -> Hijacker:
        return self

    def __exit__(self, *_: Any) -> None:
        with self._socket, contextlib.suppress(BlockingIOError):
            while True:
                self._socket.accept()[0].close()
                self.clients += 1
