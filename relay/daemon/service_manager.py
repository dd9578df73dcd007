"""Notifications to the service manager that has started the program: the datagrams of sd_notify(3).

Imported only if the environment has ``NOTIFY_SOCKET``.
"""

from __future__ import annotations

import array
import logging
import os
import select
import socket
import time
from collections.abc import Mapping, MutableMapping
from types import TracebackType

logger = logging.getLogger("relay.operations")

_TIMEOUT = 5.0  # seconds for the service manager to take a datagram
_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "FDSTORE")
_STORED = "relay-listen-"


class Notifier:
    """Sends notifications. From any thread.

    :param address: of the socket: an absolute path, or ``@`` and an abstract name (unix(7)).
    :param watchdog: most seconds between two :meth:`alive`; ``None`` for no watchdog.
    :param stores: the most descriptors that it keeps over a restart.
    """

    def __init__(self, address: str, watchdog: float | None = None, stores: int = 0) -> None:
        self.watchdog = watchdog
        self.stores = stores
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(_TIMEOUT)

    def __enter__(self) -> Notifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def environment(self) -> dict[str, str]:
        """Return the variables by which another process of the service finds the service manager."""
        address = "@" + self._address[1:] if self._address.startswith("\0") else self._address
        found = {"NOTIFY_SOCKET": address, "FDSTORE": str(self.stores)}
        return found if self.watchdog is None else {**found, "WATCHDOG_USEC": str(int(self.watchdog * 1e6))}

    def succeeded_by(self, process: int) -> None:
        """Report another process as the main one of the service, and wait until the service manager knows.

        :param process: its ID.
        """
        self._send(f"MAINPID={process}")
        self.barrier()

    def ready(self, status: str) -> None:
        """Report that the start, or a reload, is done.

        :param status: one line for people.
        """
        self._send("READY=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        """Report the state in one line for people."""
        self._send(f"STATUS={status}")

    def reloading(self) -> None:
        """Report that a reload begins; :meth:`ready` ends it."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={now}")

    def stopping(self, status: str) -> None:
        """Report that the program is about to end.

        :param status: one line for people.
        """
        self._send("STOPPING=1", f"STATUS={status}")

    def extend(self, seconds: float) -> None:
        """Ask for time until the next notification; beyond that and its own limit, the service manager kills.

        :param seconds: from now.
        """
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1")

    def store(self, name: str, listening: socket.socket) -> None:
        """Ask the service manager to keep a listening socket over a restart.

        :param name: under which it comes back; :func:`stored_name` makes one.
        """
        self._send("FDSTORE=1", f"FDNAME={name}", descriptor=listening.fileno())

    def forget(self, name: str) -> None:
        """Ask the service manager to close the sockets that it keeps under a name."""
        self._send("FDSTOREREMOVE=1", f"FDNAME={name}")

    def barrier(self) -> None:
        """Wait until the service manager has handled everything before this, 5 s at most."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            self._send("BARRIER=1", descriptor=writer)  # it closes this one
            os.close(writer)
            waiting = select.poll()
            waiting.register(reader, 0)  # for POLLHUP
            if not waiting.poll(_TIMEOUT * 1000):
                logger.warning("the service manager did not answer within %g s", _TIMEOUT)
        finally:
            os.close(reader)

    def _send(self, *fields: str, descriptor: int | None = None) -> None:
        """Send fields. A service manager that does not listen is no reason to stop."""
        rights = [] if descriptor is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
        try:
            self._socket.sendmsg(["\n".join(fields).encode()], rights, 0, self._address)
        except OSError as error:
            logger.warning("the service manager did not take %s: %s", fields[0], error.strerror or error)


def notifier(environment: MutableMapping[str, str] = os.environ) -> Notifier | None:
    """Return the notifier for this process, and remove its variables, so that no child notifies in its name.

    :param environment: of the process.
    :returns: ``None`` without a service manager.

    Source: sd_notify(3), sd_watchdog_enabled(3), systemd.exec(5) ("Environment Variables Set or Propagated by the
    Service Manager").
    """
    given = {name: environment.pop(name, "") for name in _VARIABLES}
    address = given["NOTIFY_SOCKET"]
    if len(address) < 2 or address[0] not in "/@":
        return None
    return Notifier(address, _watchdog(given), _number(given["FDSTORE"]))


def _watchdog(given: Mapping[str, str]) -> float | None:
    if given["WATCHDOG_PID"] and given["WATCHDOG_PID"] != str(os.getpid()):
        return None
    return _number(given["WATCHDOG_USEC"]) / 1e6 or None


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0


def stored_name(tunnel: str) -> str:
    """Return the name under which the listening socket of a tunnel is stored.

    :param tunnel: its name, which has no character that systemd rejects (sd_pid_notify_with_fds(3)).
    """
    return _STORED + tunnel


def is_stored_name(name: str) -> bool:
    """Return whether a socket with this name was stored by relay."""
    return name.startswith(_STORED)
