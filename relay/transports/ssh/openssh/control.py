"""The wire protocol of the client's control socket: new forwards and sessions on an open connection.

Source: ``PROTOCOL.mux`` of OpenSSH, protocol version 4.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Sequence

from ....addresses.values import TCPAddress
from ....errors import CarrierError, RelayError
from ....eventloop.loop import Loop
from ....eventloop.poller import ERR, HUP, IN
from ..connection import Address

_HELLO, _VERSION = 0x00000001, 4
_NEW_SESSION, _OPEN_FORWARD, _CLOSE_FORWARD = 0x10000002, 0x10000006, 0x10000007
_OK, _DENIED, _FAILURE, _REMOTE_PORT = 0x80000001, 0x80000002, 0x80000003, 0x80000007
_EXITED, _OPENED = 0x80000004, 0x80000006
_LOCAL, _REMOTE = 1, 2
_UNIX = 0xFFFFFFFE  # as a port number: the host is the path of a Unix socket

_LONGEST = 256 << 10  # bytes of one message; the same as in ssh's own client
_CHUNK = 64 << 10
_NO_ESCAPE = 0xFFFFFFFF


class ControlError(RelayError):
    """A request that ssh has rejected; the text is its own."""


Reply = Callable[[int | RelayError], object]


def open_forward(listen: Address, connect: Address, *, remote: bool) -> tuple[int, bytes]:
    """Return type and body of a request for a forward ("Requesting establishment of port forwards").

    :param listen: the address to listen at: here, or at the server if ``remote``.
    :param connect: the address to connect to, on the other side.
    :param remote: whether the server listens.
    """
    return _OPEN_FORWARD, _forward(listen, connect, remote)


def close_forward(listen: Address, connect: Address, *, remote: bool) -> tuple[int, bytes]:
    """Return type and body of a request to cancel a forward; with the arguments of its request."""
    return _CLOSE_FORWARD, _forward(listen, connect, remote)


def _forward(listen: Address, connect: Address, remote: bool) -> bytes:
    return struct.pack(">I", _REMOTE if remote else _LOCAL) + _place(listen) + _place(connect)


def _place(place: Address) -> bytes:
    host, port = (place.host, place.port) if isinstance(place, TCPAddress) else (place.path, _UNIX)
    name = os.fsencode(host)
    return struct.pack(">I", len(name)) + name + struct.pack(">I", port)


class Control:
    """One connection to the control socket, on a loop; every method is for the loop's thread.

    The client replies to requests in their order. A request for a remote forward delays the replies after it until the
    server has replied.

    :param loop: watches the connection.
    :param path: of the control socket.
    :param broken: called once, with the error, if the connection ends or a message is malformed; after the callbacks
        of all requests.
    :raises OSError: if no process listens there.
    """

    def __init__(self, loop: Loop, path: str, broken: Callable[[RelayError], object]) -> None:
        self._loop = loop
        self._broken = broken
        self._received = bytearray()
        self._unsent = bytearray()
        self._greeted = False
        self._replies: dict[int, Reply] = {}
        self._number = 0
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(path)  # to a listener whose backlog is empty: does not wait
            self._socket.setblocking(False)
            self._socket.sendall(struct.pack(">III", 8, _HELLO, _VERSION))
            loop.watch(self._socket.fileno(), IN, self._on_event)
        except BaseException:
            self._socket.close()
            raise

    def request(self, message: tuple[int, bytes], reply: Reply) -> None:
        """Send a request.

        :param message: its type and its body.
        :param reply: called once: with the port that the server chose for a remote forward, with 0 for other
            requests, or with the error.
        """
        if self._socket.fileno() < 0:
            reply(_lost())
            return
        self._number += 1
        self._replies[self._number] = reply
        kind, body = message
        self._unsent += struct.pack(">III", 8 + len(body), kind, self._number) + body
        self._flush()

    def close(self) -> None:
        """Close the connection; pending requests get an error."""
        if self._socket.fileno() >= 0:
            self._loop.forget(self._socket.fileno())
            self._socket.close()
        # Taken first: a reply may send the next request, which must fail at once and not be lost.
        replies, self._replies = self._replies, {}
        for reply in replies.values():
            reply(_lost())

    def abandon(self) -> None:
        """In a forked child: close only the descriptor."""
        self._socket.close()

    def _on_event(self, event: int, now: float) -> None:
        try:
            self._flush()
            if event & (IN | HUP | ERR):
                self._receive()
        except (OSError, struct.error) as error:
            # Before `broken`, as the docstring promises: the callers of all requests know first.
            self.close()
            self._broken(CarrierError(f"the control connection to ssh broke: {error}"))

    def _flush(self) -> None:
        # Requests are small and few, and get replies at once: a full buffer is empty before the next reply arrives.
        while self._unsent:
            try:
                del self._unsent[: self._socket.send(self._unsent)]
            except BlockingIOError:
                return

    def _receive(self) -> None:
        try:
            data = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        self._received += data
        while len(self._received) >= 4:
            (length,) = struct.unpack_from(">I", self._received)
            if not 8 <= length <= _LONGEST:
                raise ControlError(f"a message of {length} bytes")
            if len(self._received) < 4 + length:
                return
            body = bytes(self._received[4 : 4 + length])
            del self._received[: 4 + length]
            self._take(body)

    def _take(self, body: bytes) -> None:
        """Handle a message."""
        kind, number = struct.unpack_from(">II", body)
        if not self._greeted:
            if (kind, number) != (_HELLO, _VERSION):
                raise ControlError(f"expected version {_VERSION} of the protocol, got {number} (message {kind:#x})")
            self._greeted = True
            return
        outcome = _outcome(kind, body)
        reply = self._replies.pop(number, None)
        if reply is None:
            raise ControlError(f"an unexpected reply {kind:#x}")
        reply(outcome)


class SessionControl(Control):
    """A connection to the control socket for one session; ssh closes it at the end of the session.

    It must not be closed before the reply to its request: ssh would keep the channel for ever, or end.

    The parameters are those of :class:`Control`.
    """

    status: int | None = None
    """The command's exit status; ``None`` if it has none. ssh does not report signals."""

    def open(self, command: str, name: str, descriptors: Sequence[int], reply: Reply) -> None:
        """Request a session that runs a command ("Requesting a new session").

        :param command: for the shell at the server.
        :param name: of the request, in ASCII. ssh logs it as the type of the terminal; there is none, so that no server
            gets it.
        :param descriptors: its standard input, output and error; ssh gets copies.
        :param reply: as for :meth:`Control.request`; called with the number of the channel.
        :raises OSError: if they cannot be sent.
        """
        text = os.fsencode(command)
        # No terminal, X11, agent, subsystem, escape character or variables.
        head = struct.pack(">6I", 0, 0, 0, 0, 0, _NO_ESCAPE)
        terminal = struct.pack(">I", len(name)) + name.encode()
        self.request((_NEW_SESSION, head + terminal + struct.pack(">I", len(text)) + text), reply)
        # One message for each: ssh reads them so (`mm_receive_fd`), and would lose further ones of the same message.
        for descriptor in descriptors:
            socket.send_fds(self._socket, [b"\0"], [descriptor])

    def _take(self, body: bytes) -> None:
        if self._greeted and struct.unpack_from(">I", body) == (_EXITED,):
            (self.status,) = struct.unpack_from(">I", body, 8)
        else:
            super()._take(body)


def _outcome(kind: int, body: bytes) -> int | ControlError:
    if kind == _OK:
        return 0
    if kind in (_REMOTE_PORT, _OPENED):
        (number,) = struct.unpack_from(">I", body, 8)
        return int(number)
    if kind in (_DENIED, _FAILURE):
        (length,) = struct.unpack_from(">I", body, 8)
        return ControlError(body[12 : 12 + length].decode("utf-8", "replace"))
    return ControlError(f"ssh replied with an unknown message {kind:#x}")


def _lost() -> RelayError:
    return CarrierError("the control connection to ssh is closed")
