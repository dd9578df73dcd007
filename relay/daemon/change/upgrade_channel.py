"""The protocol of an upgrade: a process hands its listening sockets over to the one that takes its place.

The successor connects to the control socket. Each message is one line of JSON; its first character, ``{``, tells it
from a request of HTTP. Sockets travel as ``SCM_RIGHTS`` (unix(7)), one with each ``socket`` message. Only the process
that hands over sends any.

============ =============================== =========================================================================
sender       message                         meaning
============ =============================== =========================================================================
successor    ``{"upgrade": 1, …}``           the version of the protocol, and that of relay
predecessor  ``{"upgrade": 1, …}``           the same
predecessor  ``{"socket": {…}}``             what the socket that comes with it is for
predecessor  ``{"paused": "name"}``           a tunnel that accepts no client
predecessor  ``{"failing": "name"}``          a tunnel with a problem that a retry cannot fix
predecessor  ``{"down": "name"}``             a tunnel whose hops are not up
predecessor  ``{"disabled": {…}}``           a target to which an operator has given no connections, and its tunnel
predecessor  ``{"offered": true}``           there are no more sockets
successor    ``{"prepared": [0, 2]}``        all is open and checked; the numbers of the sockets that it keeps
predecessor  ``{"ledger": {…}}``             bans and quotas of a tunnel
predecessor  ``{"go": true}``                start: the state file and the listeners at servers are free
successor    ``{"ready": true}``             all tunnels have started, and no hop fails that has worked: it accepts
                                             clients from now on
predecessor  ``{"released": true}``          it takes no clients any more, neither of tunnels nor of operators
successor    ``{"alone": true}``             ``released`` is late: it goes on, and waits for nothing
either       ``{"failed": "why"}``           nothing changes; a line for each problem
============ =============================== =========================================================================

A message that is not the next one of this table ends the connection, and so does one that is late. Nothing changes
then.

``ready`` decides which process goes on. A predecessor that has waited too long stops reading (shutdown(2)), and looks
whether it came before that. The kernel orders the two: either it is there, or the successor could not send it. So both
know the same, also if one of them was stopped meanwhile. Until then the successor accepts no client. In the same way
the successor stops reading before ``alone``: a predecessor that is ended by a signal later cannot send ``failed``.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from ...addresses.printable import printable

PROTOCOL = 1
ENVIRONMENT = "RELAY_UPGRADE_FROM"
"""The variable with the path of the control socket, for a successor that its predecessor starts."""

_LONGEST = 256 << 10  # bytes of a line
_LONGEST_REASON = 2000  # characters of what one process says of its failure
_MOST_SOCKETS = 16384  # of one upgrade
_PIECE = 64 << 10
_AT_ONCE = 16  # sockets that one recvmsg() may bring
_SEND_TIME = 30.0  # seconds for the other process to take a message
_UCRED = struct.Struct("3i")  # of SO_PEERCRED: process, user, group


class UpgradeError(OSError):
    """An upgrade that has changed nothing; the text says why.

    :param lines: the problems, one line each.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines


class UpgradeProtocolError(UpgradeError):
    """The other process breaks the protocol."""


class PeerEndedError(UpgradeError):
    """The other process has ended without a word."""


class PeerLateError(UpgradeError):
    """The other process has not answered in time."""


class UpgradeChannel:
    """The connection of two processes.

    It is used by one thread at a time, except :meth:`close`, :meth:`fail` and :meth:`give_up`.

    :param connection: a connected Unix stream socket. The channel owns it.
    :param first: bytes that were read from it already.
    :param takes_sockets: whether the other one may send sockets.
    """

    def __init__(self, connection: socket.socket, first: bytes = b"", *, takes_sockets: bool = False) -> None:
        self._connection = connection
        self._read = bytearray(first)
        self._takes_sockets = takes_sockets
        self._sockets: deque[socket.socket] = deque()  # received, and not taken yet
        self._received = 0
        self._is_read = False  # while a thread waits for a message

    def fileno(self) -> int:
        """Return the descriptor of the connection."""
        return self._connection.fileno()

    def send(self, message: Mapping[str, Any], one: socket.socket | None = None) -> None:
        """Send a message, and a socket with it.

        :raises UpgradeError: if the other process does not take it, or the socket was closed.
        """
        if one is not None and one.fileno() < 0:
            raise UpgradeError("a listener was closed before it was handed over; try again")
        data = _encoded(message)
        try:
            self._connection.settimeout(_SEND_TIME)
            sent = 0
            if one is not None:
                sent = socket.send_fds(self._connection, [data], [one.fileno()])
            self._connection.sendall(data[sent:])
        except OSError as error:
            raise UpgradeError(f"the other process does not answer: {error.strerror or error}") from error

    def receive(self, kind: str, seconds: float) -> Any:
        """Return the value of the next message.

        :param kind: its key; :meth:`receive_any` takes several.
        :param seconds: until it must be there.
        :raises UpgradeError: if it does not come, is another one, or says why the other process has failed.
        """
        return self.receive_any((kind,), seconds)[1]

    def receive_any(
        self, kinds: tuple[str, ...], seconds: float, wait: Callable[[float], object] = lambda _: None
    ) -> tuple[str, Any]:
        """Return the kind and the value of the next message; the errors are those of :meth:`receive`.

        :param wait: called with the seconds that are left before each read; may return once there is something to
            read, and raise an error that ends the wait.
        """
        self._is_read = True
        try:
            message = _parsed(self._line(time.monotonic() + seconds, wait))
        finally:
            self._is_read = False
        if isinstance(why := message.get("failed"), str):
            lines = [printable(line) for line in why[:_LONGEST_REASON].split("\n") if line]
            raise UpgradeError(*lines or ["the other process has failed"])
        for kind in kinds:
            if kind in message:
                return kind, message if kind == "upgrade" else message[kind]
        raise UpgradeProtocolError(
            f"expected {' or '.join(kinds) or 'nothing'} from the other process, got {_shown(message)}"
        )

    def receive_decision(self, kind: str, seconds: float) -> Any:
        """Do the same as :meth:`receive`. If it is late, the other process cannot send it any more."""
        try:
            return self.receive(kind, seconds)
        except PeerLateError as late:
            with contextlib.suppress(OSError):  # another thread has closed it
                self._connection.shutdown(socket.SHUT_RD)
            try:
                return self.receive(kind, 0.0)  # it may have come at the last moment
            except PeerEndedError:
                raise late from None

    def has_received(self, kind: str) -> bool:
        """Return whether the other process has sent a message before its end. Does not wait."""
        try:
            self.receive(kind, 0.0)
        except UpgradeError:
            return False
        return True

    def check_waiting(self, *kinds: str) -> None:
        """Check that the other process still waits for a message of this one. Does not wait itself.

        :param kinds: the messages that it may have sent.
        :raises UpgradeError: if it has ended, or has sent another message, such as why it has failed.
        """
        waiting = select.poll()
        waiting.register(self._connection, select.POLLIN)
        if self._read or waiting.poll(0):
            self.receive_any(kinds, 0.0)

    def take_socket(self) -> socket.socket:
        """Return the socket that came with the last message.

        :raises UpgradeError: if there was none, or it does not listen for streams.
        """
        if not self._sockets:
            raise UpgradeProtocolError("the other process has sent no socket")
        one = self._sockets.popleft()
        if one.type != socket.SOCK_STREAM or not one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            one.close()
            raise UpgradeProtocolError("the other process has sent a socket that does not listen")
        # Both processes share this: duplicates take it from here, and a blocking accept() would stop the other one.
        one.setblocking(False)
        return one

    def fail(self, why: str) -> None:
        """Tell the other process that nothing changes, if it still listens, and close the connection.

        While another thread waits for a message, it does the same as :meth:`give_up`: a descriptor that is closed under
        that thread may be another file by then.

        :param why: a line for each problem.
        """
        if self._is_read:
            self.give_up(why)
            return
        try:
            self.send({"failed": why[:_LONGEST_REASON]})
            self._connection.shutdown(socket.SHUT_RDWR)  # wakes a thread that has begun to read since
        except (UpgradeError, OSError):
            pass
        self.close()

    def give_up(self, why: str) -> bool:
        """Do the same while another thread may wait for a message: that gets :class:`PeerEndedError`, and closes it.

        Does not block, whatever the other process does.

        :returns: whether it can still read; false if it goes on alone, or has ended.
        """
        data, is_heard = _encoded({"failed": why[:_LONGEST_REASON]}), True
        with contextlib.suppress(OSError, ValueError):  # the other thread has just closed it
            waiting = select.poll()
            waiting.register(self._connection, select.POLLOUT)
            try:
                if waiting.poll(0):
                    self._connection.send(data)
            except (BrokenPipeError, ConnectionResetError):
                is_heard = False
            self._connection.shutdown(socket.SHUT_RDWR)
        return is_heard

    def close(self) -> None:
        """Close the connection, and the sockets that were not taken. Idempotent."""
        self._connection.close()
        while self._sockets:
            self._sockets.popleft().close()

    def _line(self, deadline: float, wait: Callable[[float], object]) -> bytes:
        """Return the next line."""
        searched = 0
        while (end := self._read.find(b"\n", searched)) < 0:
            searched = len(self._read)
            if searched > _LONGEST:
                raise UpgradeProtocolError(f"the other process has sent a line of more than {_LONGEST} bytes")
            wait(max(0.0, deadline - time.monotonic()))
            self._read += self._piece(deadline)
        line = bytes(self._read[:end])
        del self._read[: end + 1]
        return line

    def _piece(self, deadline: float) -> bytes:
        try:
            self._connection.settimeout(max(0.001, deadline - time.monotonic()))
            data, descriptors, flags, _ = socket.recv_fds(self._connection, _PIECE, _AT_ONCE, socket.MSG_CMSG_CLOEXEC)
        except TimeoutError as error:
            raise PeerLateError("the other process did not answer in time") from error
        except OSError as error:
            raise PeerEndedError(f"the other process has ended: {error.strerror or error}") from error
        self._received += len(descriptors)
        is_lacking = bool(flags & socket.MSG_CTRUNC)  # the kernel drops those for which there is no descriptor
        is_wrong = descriptors and not self._takes_sockets
        for descriptor in descriptors:
            if is_wrong or is_lacking or self._received > _MOST_SOCKETS:
                os.close(descriptor)
                continue
            try:
                self._sockets.append(socket.socket(fileno=descriptor))
            except OSError:  # it is another file
                os.close(descriptor)
                is_wrong = True
        if is_lacking and self._takes_sockets:
            raise UpgradeError("no descriptor is left for a socket; raise the limit of open files (ulimit -n)")
        if is_wrong or is_lacking or self._received > _MOST_SOCKETS:
            raise UpgradeProtocolError("the other process has sent descriptors that are not allowed, or too many")
        if not data:
            raise PeerEndedError("the other process has ended")
        return data


def _encoded(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        shown = printable(line[:80].decode("utf-8", "replace"), 80)
        if line.startswith(b"HTTP/"):
            raise UpgradeError("the relay that runs is too old to hand its sockets over; restart it")
        raise UpgradeProtocolError(f"expected a line of JSON from the other process, got {shown}")
    return message


def _shown(message: Mapping[str, Any]) -> str:
    return printable(", ".join(map(str, message))[:80], 80) or "nothing"


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Return the process and the user at the other end of a Unix socket (``SO_PEERCRED``)."""
    process, user, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return process, user
