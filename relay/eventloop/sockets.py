"""Sockets: addresses, connecting, resets, keepalive probes, and bytes that are still unread or unsent."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket as sockets
import struct
import sys
import termios
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from ..addresses.printable import LONGEST_HOST, printable
from ..addresses.values import is_loopback
from ..errors import ConnectError
from .unix_reset import leave_unread

Socket = TypeVar("Socket", bound=sockets.SocketType)

_NONBLOCKING_STREAM = sockets.SOCK_STREAM | getattr(sockets, "SOCK_NONBLOCK", 0)
_BIND_ADDRESS_NO_PORT = getattr(sockets, "IP_BIND_ADDRESS_NO_PORT", 24)  # Python 3.11 has no name for it
_BIND_PROBLEMS = {
    errno.EADDRNOTAVAIL: "this machine has no such address; set source to one that it has",
    errno.EADDRINUSE: "all its ports are in use; wait until connections end",
}
MPTCP = 262  # IPPROTO_MPTCP; Python has the name only where the headers of its build had it
_NO_MPTCP = (errno.EPROTONOSUPPORT, errno.ENOPROTOOPT, errno.EINVAL)  # not built in; switched off; before Linux 5.6
_DROPPED = 64 << 10  # bytes that are read at once to drop them
_RESET = struct.pack("ii", 1, 0)


def is_tls(socket: object) -> bool:
    """Return true for an :class:`ssl.SSLSocket`; does not import :mod:`ssl` for programs that do not use it."""
    # While another thread imports the module, it has no such class yet, and there is no such socket.
    kind = getattr(sys.modules.get("ssl"), "SSLSocket", None)
    return kind is not None and isinstance(socket, kind)


def reset(socket: sockets.SocketType) -> None:
    """Close ``socket`` so that its peer sees a reset and not an end of file, where its transport can say so.

    TCP sends RST (``SO_LINGER`` with a time of zero). For Unix sockets see :mod:`relay.eventloop.unix_reset`.
    """
    set_to_reset(socket)
    close_for_good(socket)


def close_for_good(socket: sockets.SocketType) -> None:
    """Close, also where a file of ``makefile()`` would keep the socket open, and its peer waiting."""
    socket.close()
    if socket.fileno() >= 0:
        os.close(socket.detach())


class LentSocket:
    """A socket that a program has, too: its close is one :func:`close_for_good`."""

    __slots__ = ("_socket",)

    def __init__(self, socket: sockets.SocketType) -> None:
        self._socket = socket

    def close(self) -> None:
        """Close the socket."""
        close_for_good(self._socket)


def set_to_reset(socket: sockets.SocketType) -> None:
    """Make the close that follows a reset."""
    if socket.family == sockets.AF_UNIX:
        far = leave_unread(socket) if not unread(socket) else None
        if far is not None:
            far.close()
        return
    try:
        socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, _RESET)
    except OSError:
        pass  # it is closed, or of a kind that has no such thing


def drop_unread(socket: sockets.SocketType) -> None:
    """Drop what was sent in vain: a close with bytes unread would be a reset to the other end."""
    try:
        socket.shutdown(sockets.SHUT_RD)
        while socket.recv(_DROPPED, sockets.MSG_DONTWAIT):
            pass
    except OSError:
        pass


def shut_down(socket: sockets.SocketType) -> None:
    """End both directions, also where another process has a copy; of a socketpair, the other end can still read."""
    try:
        socket.shutdown(sockets.SHUT_RDWR)
    except OSError:
        pass  # it has ended already


def unread(socket: sockets.SocketType) -> int:
    """Bytes that have arrived and are not read yet (FIONREAD of ioctl(2)); 0 if that is not known."""
    return _queued(socket, termios.FIONREAD)


def unsent(socket: sockets.SocketType) -> int:
    """Return how much of the sent data the peer's system has not taken yet (SIOCOUTQ of tcp(7)); 0 if unknown.

    Bytes for TCP. Of a Unix socket it is what the peer has not read, together with the system's own share.
    """
    return _queued(socket, termios.TIOCOUTQ)


def keep_alive(socket: sockets.SocketType) -> None:
    """Notice a TCP peer that has vanished: after 60 s of silence, and three probes 10 s apart without an answer."""
    if socket.family not in (sockets.AF_INET, sockets.AF_INET6):
        return
    socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPALIVE", 60), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        option = getattr(sockets, name, None)
        if option is not None:
            socket.setsockopt(sockets.IPPROTO_TCP, option, value)


def _queued(socket: sockets.SocketType, request: int) -> int:
    number = array.array("i", [0])
    try:
        fcntl.ioctl(socket.fileno(), request, number)
    except (OSError, ValueError):  # it is closed, or of a kind that does not tell
        return 0
    return number[0]


class Endpoint(NamedTuple):
    """An address that ``connect(2)`` takes, its family, the address that ``bind(2)`` takes before, and the protocol."""

    family: int
    address: Any
    source: Any = None
    protocol: int = 0

    def __str__(self) -> str:
        return format_address(self.address)


def format_address(address: Any) -> str:
    """Return a socket's address as text that is safe to log; empty if it has none.

    Peers choose it: a Unix client can bind its socket to any path, and an SSH server can report any peer.

    :param address: as ``getsockname()`` returns it, or an object with a ``place``.
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


def open_socket(endpoint: Endpoint, kind: type[Socket]) -> tuple[Socket, int]:
    """Begin a non-blocking connect.

    :param endpoint: where to.
    :param kind: what to make; :class:`socket.SocketType` is what :class:`socket.socket` derives from, and spares what
        that adds in Python.
    :returns: the socket and the error number of the connect: 0 if it is connected, ``EINPROGRESS`` if it is under way,
        ``EAGAIN`` if a Unix listener's backlog is full and the connect has *not* begun, else why it failed.
    :raises ConnectError: if the connection cannot come from the endpoint's source.
    :raises OSError: if no socket can be made.
    """
    family, address, source, protocol = endpoint
    made = kind(family, _NONBLOCKING_STREAM, protocol)
    try:
        if _NONBLOCKING_STREAM == sockets.SOCK_STREAM:
            made.setblocking(False)
        if family != sockets.AF_UNIX:
            made.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_NODELAY, 1)
        if source is not None:
            _bind(made, endpoint)
        status = made.connect_ex(address)
        if status == errno.EINPROGRESS:
            # A connect over loopback is over by now, and asking again is cheaper than waiting for an event.
            status = made.connect_ex(address)
            if status == errno.EISCONN:
                status = 0
            elif status == errno.EALREADY:
                status = errno.EINPROGRESS
        if source is not None and status in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
            raise _no_source(endpoint, "all its ports are in use for this target; wait until connections end")
    except BaseException:
        made.close()
        raise
    return made, status


def _bind(made: sockets.SocketType, endpoint: Endpoint) -> None:
    """Bind a socket to the endpoint's source. The port is chosen by the connect, so that two targets may share one."""
    try:
        if sys.platform == "linux":
            made.setsockopt(sockets.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
        made.bind(endpoint.source)
    except OSError as error:
        text = _BIND_PROBLEMS.get(error.errno or 0, error.strerror or str(error))
        raise _no_source(endpoint, text) from error


def _no_source(endpoint: Endpoint, text: str) -> ConnectError:
    return ConnectError(f"{endpoint}: source {endpoint.source[0]}: {text}", reason="unreachable")


def connect_blocking(made: sockets.SocketType, endpoint: Endpoint, deadline: float | None) -> int:
    """Connect to a Unix listener whose backlog is full, and wait for room: only a blocking connect can.

    :param made: the socket; it is non-blocking again afterwards.
    :param endpoint: the listener's address.
    :param deadline: monotonic seconds; ``None`` for no limit.
    :returns: 0, or the error number; ``ETIMEDOUT`` if there was no room in time.
    """
    made.settimeout(None)
    wait = max(0.001, deadline - time.monotonic()) if deadline is not None else 0.0
    seconds = int(wait)
    made.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDTIMEO, struct.pack("ll", seconds, int((wait - seconds) * 1e6)))
    status = made.connect_ex(endpoint.address)
    made.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDTIMEO, struct.pack("ll", 0, 0))
    made.setblocking(False)
    return errno.ETIMEDOUT if status in (errno.EAGAIN, errno.EINPROGRESS) else status


def connect_error(target: str, error: OSError | None) -> ConnectError:
    """Return the error of a connect as one sentence with its reason.

    :param target: the name of the target.
    :param error: what the system reported; ``None`` if there was no address.
    """
    if isinstance(error, ConnectError):
        return error
    number = error.errno if error is not None else None
    if isinstance(error, TimeoutError) or number == errno.ETIMEDOUT:
        return ConnectError(
            f"{target}: no answer in time; check that the host is up and the port is open", reason="connect_timeout"
        )
    if number == errno.ECONNREFUSED:
        return ConnectError(f"{target}: connection refused; check that the service is running", reason="refused")
    text = error.strerror or str(error) if error is not None else "no address"
    made = ConnectError(f"{target}: {text}", reason="unreachable")
    made.errno = number
    return made


def check_mptcp() -> None:
    """Check that this machine has Multipath TCP.

    :raises ValueError: if it does not.
    """
    try:
        sockets.socket(sockets.AF_INET, sockets.SOCK_STREAM, MPTCP).close()
    except OSError as error:
        if error.errno not in _NO_MPTCP and sys.platform == "linux":
            raise
        remedy = "set the sysctl net.mptcp.enabled to 1, or leave mptcp out"
        raise ValueError(f"mptcp: this system does not have it ({error.strerror}); {remedy}") from None


def is_exposed(listening: sockets.SocketType) -> bool:
    """Return whether other machines may reach a listening socket: whether it is TCP and not on the loopback.

    Its clients may outlive it. Where one has listened that is closed is not known, so they may be of other machines.
    """
    if listening.family not in (sockets.AF_INET, sockets.AF_INET6):
        return False
    try:
        return not is_loopback(str(listening.getsockname()[0]))
    except OSError:
        return True


def duplicate(one: sockets.socket) -> sockets.socket:
    """Return a duplicate of a socket, in the mode that both have.

    The mode belongs to what all duplicates share, in other processes, too. :meth:`socket.socket.dup` sets it to the one
    that Python remembers for the original: if that is wrong, an accept of another owner blocks.

    :param one: the socket, which stays with the caller.
    :raises OSError: if it is closed, or the system has no descriptor left.
    """
    descriptor = os.dup(one.fileno())
    try:
        made = sockets.socket(one.family, one.type, one.proto, fileno=descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    if not os.get_blocking(descriptor):
        made.setblocking(False)
    return made


def quick_accept(receive: sockets.socket) -> Callable[[], tuple[sockets.SocketType, Any]]:
    """Return the ``accept`` of a socket, without what :class:`socket.socket` adds in Python, about two microseconds."""
    quick = getattr(receive, "_accept", None)
    if quick is None or type(receive).accept is not sockets.socket.accept:
        return receive.accept
    family, kind, protocol = int(receive.family), int(receive.type), receive.proto

    def accept() -> tuple[sockets.SocketType, Any]:
        descriptor, peer = quick()
        return sockets.SocketType(family, kind, protocol, descriptor), peer

    return accept
