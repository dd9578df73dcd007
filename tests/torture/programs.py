"""The processes of a world: programs that are started again and again, and all their descendants."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from helpers import family

from relay.process import DEVNULL, Process
from relay.process import start as start_program

_END = 20.0  # seconds for a relay to end after SIGTERM


class FaultError(AssertionError):
    """A rule that a fault has broken, or a thing that it has left behind."""


def name_of(pid: int) -> str:
    """Return the name of a process; empty if it is gone, or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    name, _, rest = text.partition("(")[2].rpartition(")")
    return "" if rest.split()[0] in "ZX" else name


def marked(token: str) -> dict[int, str]:
    """Return the processes with a text in their environment, and their names."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if token.encode() in (entry / "environ").read_bytes() and (name := name_of(int(entry.name))):
                    found[int(entry.name)] = name
    return found


def send(pid: int, number: int) -> None:
    """Send a process a signal, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


class Program:
    """A program that is started again and again.

    :param argv: the program and its arguments.
    :param environment: all of it.
    :param path: of its log, which takes its stderr.
    :param run: starts it, in the manner of :func:`relay.process.start`.
    """

    def __init__(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        path: Path,
        run: Callable[..., Process] = start_program,
    ) -> None:
        self._run = run
        self._argv = argv
        self._environment = environment
        self._path = path
        self._process: Process | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """The end of its log."""
        return "\n".join(self._path.read_text(errors="replace").splitlines()[-60:])

    def start(self) -> None:
        """Start it, or start it again after its end."""
        assert self._process is None
        with open(self._path, "ab") as log:
            self._process = self._run(self._argv, stdout=DEVNULL, stderr=log, env=self._environment)

    def family(self) -> list[int]:
        """Return its process and all descendants."""
        return [] if self._process is None else family(self.pid)

    def kill(self) -> None:
        """Kill the process itself. Idempotent."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def kill_family(self) -> None:
        """Kill it with all descendants. Idempotent."""
        for pid in self.family():
            send(pid, signal.SIGKILL)
        self.kill()

    def end(self, seconds: float = _END) -> None:
        """Ask it to end.

        :param seconds: that it may take.
        :raises FaultError: if it does not end, ends with another status than 0, or has logged an error of its own.
        """
        assert self._process is not None
        self._process.terminate()
        try:
            status = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            send(self.pid, signal.SIGABRT)  # the threads' stacks are in the log then
            self._process.wait()
            raise FaultError(f"it does not end:\n{self.log}") from None
        self._process = None
        if status != 0:
            raise FaultError(f"it ends with status {status}:\n{self.log}")
        text = self._path.read_text(errors="replace")
        if (at := text.find("Traceback (most recent call last)")) >= 0:
            raise FaultError(f"it logs an error of its own:\n{text[at : at + 4000]}")
