"""The common parts of relays under test and of their worlds: entrances, programs and files."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from relay.process import Process, start

from .programs import Program, marked, send


class Entrance:
    """A relay under test, as a driver needs it; see :class:`.driver.Relay`.

    :param enter: returns a new client, connected.
    :param far: the listening socket of the target.
    :param half_close: whether one direction can end alone.
    :param reset: whether a cut is a reset at the other side, and never an EOF.
    :param takes_ends: whether the end of a connection counts as the answer to the end of one direction.
    :param may_fail: whether connections may be reset at any time. It may change.
    """

    def __init__(
        self,
        enter: Callable[[], socket.socket],
        far: socket.socket,
        *,
        half_close: bool,
        reset: bool = False,
        takes_ends: bool = False,
        may_fail: bool = True,
    ) -> None:
        self._enter = enter
        self._far = far
        self.has_half_close = half_close
        self.has_reset = reset
        self.takes_ends = takes_ends
        self.may_fail = may_fail

    def connect(self) -> socket.socket:
        """Return a new client."""
        return self._enter()

    def far(self) -> socket.socket:
        """Return the listening socket of the target."""
        return self._far

    def disturb(self, chance: random.Random) -> bool:
        """Change something at the running relay; return whether that may reset connections. Here it does nothing."""
        return False

    def faults(self) -> dict[str, int]:
        """Return the number of faults of each kind. Here there are none."""
        return {}


class World:
    """Programs and their files. A context manager, which ends them all.

    :param folder: empty; for all files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token = f"TORTURE_ROUND={secrets.token_hex(8)}"
        """In the environment of each process of this world."""
        self.programs: dict[str, Program] = {}
        """By name."""
        self._opened = contextlib.ExitStack()

    def environment(self, run: str = "run") -> dict[str, str]:
        """Return the environment of a program.

        :param run: the folder with the sockets of a relay.
        """
        name, _, value = self.token.partition("=")
        own = {"RUNTIME_DIRECTORY": f"{self.folder}/{run}", "TMPDIR": f"{self.folder}/tmp", "PYTHONFAULTHANDLER": "1"}
        return {**os.environ, **own, name: value, "SHLVL": "1"}

    def _program(
        self, name: str, argv: Sequence[str], *, run: str = "run", start: Callable[..., Process] = start
    ) -> Program:
        """Return a program that does not run yet.

        :param name: of its log, too.
        :param run: see :meth:`environment`.
        :param start: starts it, in the manner of :func:`relay.process.start`.
        """
        made = self.programs[name] = Program(argv, self.environment(run), self.folder / f"{name}.log", start)
        return made

    def _relay(self, name: str, *, run: str = "run", start: Callable[..., Process] = start) -> Program:
        """Return a ``relay up`` with the file of its name; the options are those of :meth:`_program`."""
        argv = [sys.executable, "-m", "relay", "up", f"{self.folder}/{name}.toml"]
        return self._program(name, argv, run=run, start=start)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for program in self.programs.values():
            program.kill_family()
        for pid in marked(self.token):
            send(pid, signal.SIGKILL)
        self._opened.close()


def write_certificate(folder: Path) -> None:
    """Write a certificate of ``localhost`` with its key, ``cert.pem``, and that of its authority, ``ca.pem``."""
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(f"{folder}/ca.pem")
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(f"{folder}/cert.pem")
    (folder / "cert.pem").chmod(0o600)
