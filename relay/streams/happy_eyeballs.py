"""Which address to try next, and when: connection racing after RFC 8305 ("happy eyeballs").

:class:`Race` does no I/O and reads no clock. The engine drives it beside its other work, :func:`connect` drives it in
the caller's thread.
"""

from __future__ import annotations

import errno
import os
import queue
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from ..addresses.printable import LONGEST_HOST, printable
from ..errors import ConnectError
from .stream import Stream

Socket = TypeVar("Socket", bound=socket.SocketType)

__all__ = [
    "ATTEMPT_DELAY",
    "Cancel",
    "Direct",
    "Endpoint",
    "Name",
    "Race",
    "connect",
    "interleave",
    "open_socket",
    "place",
    "resolved",
]

_NONBLOCKING_STREAM = socket.SOCK_STREAM | getattr(socket, "SOCK_NONBLOCK", 0)
ATTEMPT_DELAY = 0.25  # seconds before the next address is tried beside the last one; RFC 8305, section 5


class Endpoint(NamedTuple):
    """One thing that ``connect(2)`` takes."""

    family: int
    address: Any

    def __str__(self) -> str:
        return place(self.address)


def place(address: Any) -> str:
    """A socket's address (as ``getsockname`` tells it) as text, empty if it has none; others say it themselves.

    Peers choose it, so it is made fit for logs here: a Unix client binds its socket to any path, and a server says of
    its clients what it likes.
    """
    if hasattr(address, "place"):
        return printable(str(address.place))
    if isinstance(address, tuple) and len(address) >= 2:
        host, port = (printable(str(part), LONGEST_HOST) for part in address[:2])
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if isinstance(address, bytes):
        address = os.fsdecode(address)
    return printable(
        f"unix://{address}" if isinstance(address, str) and address.startswith("/") else str(address or "")
    )


class Cancel(Protocol):
    """What tells a factory that nobody waits for its stream any more."""

    def is_set(self) -> bool:
        """Whether the attempt was given up."""

    def fileno(self) -> int:
        """A descriptor that becomes readable when the attempt is given up."""


def interleave(endpoints: Iterable[Endpoint]) -> list[Endpoint]:
    """Order addresses so that families alternate, the first one's family first (RFC 8305, section 4)."""
    families: dict[int, list[Endpoint]] = {}
    for endpoint in dict.fromkeys(endpoints):
        families.setdefault(endpoint.family, []).append(endpoint)
    queues = list(families.values())
    longest = max(map(len, queues), default=0)
    return [queue[place] for place in range(longest) for queue in queues if place < len(queue)]


class Race:
    """The order and the times of the attempts to reach one target.

    Whoever drives it asks :meth:`next` for an address, tells :meth:`failed` of each attempt that failed, and asks again
    when an attempt fails or the time in :attr:`again` has come.

    :param endpoints: the addresses, in the resolver's order.
    """

    __slots__ = ("_waiting", "_running", "again", "error")

    def __init__(self, endpoints: Iterable[Endpoint]) -> None:
        self._waiting = interleave(endpoints)[::-1]
        self._running = 0
        self.again: float | None = None
        self.error: OSError | None = None

    def next(self, now: float) -> Endpoint | None:
        """The address to try now, or ``None`` if it is not yet time or none is left."""
        if not self._waiting or (self.again is not None and now < self.again):
            return None
        endpoint = self._waiting.pop()
        self._running += 1
        self.again = now + ATTEMPT_DELAY if self._waiting else None
        return endpoint

    def failed(self, error: OSError) -> None:
        """One attempt failed, and the next may begin at once.

        The first error is kept, for it belongs to the address that the resolver likes best.
        """
        self._running -= 1
        self.again = None
        if self.error is None:
            self.error = error

    @property
    def lost(self) -> bool:
        """Whether no attempt runs and no address is left."""
        return not self._running and not self._waiting


def open_socket(endpoint: Endpoint, kind: type[Socket]) -> tuple[Socket, int]:
    """Begin a non-blocking connect.

    :param endpoint: where to.
    :param kind: what to make; :class:`socket.SocketType` is what :class:`socket.socket` derives from, and spares what
        that adds in Python.
    :returns: the socket and the error number of the connect: 0 if it is connected, ``EINPROGRESS`` if it is under way,
        ``EAGAIN`` if a Unix listener's backlog is full and the connect has *not* begun, else why it failed.
    :raises OSError: if there is no socket to be had.
    """
    family, address = endpoint
    made = kind(family, _NONBLOCKING_STREAM)
    try:
        if _NONBLOCKING_STREAM == socket.SOCK_STREAM:
            made.setblocking(False)
        if family != socket.AF_UNIX:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        status = made.connect_ex(address)
        if status == errno.EINPROGRESS:
            # A connect over loopback is over by now, and asking again is cheaper than waiting for an event.
            status = made.connect_ex(address)
            if status in (errno.EALREADY, errno.EISCONN):
                status = 0 if status == errno.EISCONN else errno.EINPROGRESS
    except BaseException:
        made.close()
        raise
    return made, status


def connect(endpoints: Sequence[Endpoint], target: str, deadline: float | None, cancel: Cancel | None) -> socket.socket:
    """Connect to the first of several addresses that answers.

    :param endpoints: the addresses, in the resolver's order.
    :param target: its name, for the error.
    :param deadline: monotonic seconds, or ``None`` for as long as the system tries.
    :param cancel: gives the attempt up when set.
    :returns: a connected, non-blocking socket.
    :raises ConnectError: refused, unreachable, timed out or given up; ``.reason`` tells.
    """
    race = Race(endpoints)
    poller = select.poll()
    running: dict[int, socket.socket] = {}
    if cancel is not None:
        poller.register(cancel.fileno(), select.POLLIN)
    try:
        while True:
            winner = _start(race, poller, running, deadline)
            if winner is not None:
                return winner
            if race.lost:
                raise connect_error(target, race.error)
            now = time.monotonic()
            waits = [at - now for at in (race.again, deadline) if at is not None]
            if deadline is not None and now >= deadline:
                raise connect_error(target, TimeoutError())
            events = poller.poll(max(0.0, min(waits)) * 1000 + 1 if waits else None)
            for descriptor, _ in events:
                if descriptor not in running:
                    raise ConnectError(f"{target}: the attempt was given up", reason="unreachable")
                poller.unregister(descriptor)
                made = running.pop(descriptor)
                error = made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if error == 0:
                    return made
                made.close()
                race.failed(OSError(error, os.strerror(error)))
    finally:
        for made in running.values():
            made.close()


def _start(
    race: Race,
    poller: select.poll,
    running: dict[int, socket.socket],
    deadline: float | None,
) -> socket.socket | None:
    """Begin every attempt whose time has come; returns a socket if one connected at once."""
    while (endpoint := race.next(time.monotonic())) is not None:
        try:
            made, status = open_socket(endpoint, socket.socket)
        except OSError as error:
            race.failed(error)
            continue
        if status == errno.EAGAIN:
            status = connect_patiently(made, endpoint, deadline)
        if status == 0:
            return made
        if status == errno.EINPROGRESS:
            running[made.fileno()] = made
            poller.register(made, select.POLLOUT)
        else:
            made.close()
            race.failed(OSError(status, os.strerror(status)))
    return None


def connect_patiently(made: socket.SocketType, endpoint: Endpoint, deadline: float | None) -> int:
    """Connect to a Unix listener whose backlog is full: poll has no event for that, only a blocking connect waits.

    :returns: 0, or the error number.
    """
    made.settimeout(None)
    wait = max(0.001, deadline - time.monotonic()) if deadline is not None else 0.0
    seconds = int(wait)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", seconds, int((wait - seconds) * 1e6)))
    status = made.connect_ex(endpoint.address)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, 0))
    made.setblocking(False)
    return errno.ETIMEDOUT if status in (errno.EAGAIN, errno.EINPROGRESS) else status


def connect_error(target: str, error: OSError | None) -> ConnectError:
    """The error of a connect as one sentence with its reason."""
    if isinstance(error, ConnectError):
        return error
    number = error.errno if error is not None else None
    if isinstance(error, TimeoutError) or number == errno.ETIMEDOUT:
        return ConnectError(f"{target}: no answer in time; is the host up and the port open?", reason="connect_timeout")
    if number == errno.ECONNREFUSED:
        return ConnectError(f"{target}: connection refused; is the service running?", reason="refused")
    text = error.strerror or str(error) if error is not None else "no address"
    return ConnectError(f"{target}: {text}", reason="unreachable")


Upgraded = Callable[["Stream | OSError"], object]


class Name(Protocol):
    """A host name whose addresses are looked up for every connection."""

    host: str

    def look_up(self) -> Sequence[Endpoint]:
        """Ask the system; blocks as long as its resolver does. Raises what the system raises."""

    def endpoints(self, found: Sequence[Endpoint] | BaseException) -> Sequence[Endpoint]:
        """Return where to connect, of what a look-up of the same host returned or raised.

        :raises ConnectError: if there is nothing to connect to.
        """


def resolved(name: Name) -> Sequence[Endpoint]:
    """Look a name up and return where to connect; blocks.

    :raises ConnectError: if there is no address (``unreachable``), or none may be connected to (``denied``).
    """
    found: Sequence[Endpoint] | BaseException
    try:
        found = name.look_up()
    except (OSError, UnicodeError) as error:
        found = error
    return name.endpoints(found)


class Direct:
    """A factory that needs nothing but a connect, so that an engine can make it itself.

    :param target: its name in records, such as ``db.internal:5432``.
    :param resolve: returns the addresses; may block (a name) and then runs on a thread of its own.
    :param literal: whether ``resolve`` never blocks (an address, a path).
    :param name: what ``resolve`` looks up, so that an engine can do it once for all who ask for the same host.
    """

    upgrade: Callable[[Stream, float | None, Upgraded], Callable[[], object]] | None = None
    """Makes another stream of the connected one, such as one of TLS, without blocking; ``None`` where there is no need.

    It is called with the connected stream, which it owns from then on, with the deadline, and with a function that it
    calls, in any thread, with the stream that it made or with the error. It returns a function that gives it up.
    """

    def __init__(
        self, target: str, resolve: Callable[[], Sequence[Endpoint]], *, literal: bool, name: Name | None = None
    ) -> None:
        self.target = target
        self.resolve = resolve
        self.literal = literal
        self.name = name

    def __call__(self, *, peer: Any = None, deadline: float | None = None, cancel: Cancel | None = None) -> Stream:
        """Connect, and wait for it.

        :param peer: the client's address; it changes nothing here.
        :param deadline: monotonic seconds, or ``None`` for as long as the system tries.
        :param cancel: gives the attempt up when set.
        :returns: a connected stream.
        :raises ConnectError: refused, unreachable, timed out or given up; ``.reason`` tells.
        """
        endpoints = self.resolve() if self.literal else self._resolve_until(deadline)
        return Stream(connect(endpoints, self.target, deadline, cancel), target=self.target)

    def _resolve_until(self, deadline: float | None) -> Sequence[Endpoint]:
        """Look the name up on a thread, because a resolver knows no deadline."""
        answer: queue.SimpleQueue[Sequence[Endpoint] | BaseException] = queue.SimpleQueue()

        def look_up() -> None:
            try:
                answer.put(self.resolve())
            except BaseException as error:  # noqa: BLE001  (it is raised where the answer is waited for)
                answer.put(error)

        threading.Thread(target=look_up, name=f"relay look-up of {self.target}", daemon=True).start()
        try:
            found = answer.get(timeout=max(0.0, deadline - time.monotonic()) if deadline is not None else None)
        except queue.Empty:
            text = f"{self.target}: DNS lookup timed out; check the name server"
            raise ConnectError(text, reason="connect_timeout") from None
        if isinstance(found, BaseException):
            raise found
        return found

    def __repr__(self) -> str:
        return f"<relay factory to {self.target}>"
