"""Sockets with a session on them, such as one of TLS, that an engine reads and writes in its own thread."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..eventloop.background import Home


class SessionSocket:
    """The part of a socket that an engine uses, for bytes that pass through a session. Belongs to the engine's thread.

    ``recv`` and ``send`` never wait. Other than a socket's:

    - ``recv`` returns everything that one read of the transport has brought, perhaps more than it was asked for, and
      perhaps a view of memory that the next ``recv`` of the thread overwrites.
    - A ``send`` that did not take all expects the same bytes again, followed by any others.

    :param transport: a connected, non-blocking socket, which stays with the session.
    """

    __slots__ = ("family", "fileno", "getpeername", "getsockname", "getsockopt", "setsockopt")

    def __init__(self, transport: socket.SocketType) -> None:
        self.family = transport.family
        self.fileno: Callable[[], int] = transport.fileno
        # Bound methods as attributes: these are called for each connection, and a forwarding method costs a call in
        # Python.
        self.getpeername = transport.getpeername
        self.getsockname = transport.getsockname
        self.getsockopt = transport.getsockopt
        self.setsockopt = transport.setsockopt

    @property
    def has_input(self) -> bool:
        """``True`` if ``recv`` has bytes or the end to return that no event announces."""
        raise NotImplementedError

    @property
    def must_flush(self) -> bool:
        """``True`` if bytes wait until the transport takes more; ``send``, even of nothing, sends them."""
        raise NotImplementedError

    @property
    def needs_input(self) -> bool:
        """``True`` if something must be received before they can be sent, even if the transport takes more."""
        return False

    @property
    def is_stalled(self) -> bool:
        """``True`` if nothing may be received before those bytes are sent."""
        raise NotImplementedError

    def recv(self, size: int, flags: int = 0, /) -> bytes | memoryview:
        """Receive; empty at the end.

        :param size: about how many bytes.
        :param flags: with ``MSG_PEEK`` it looks at the transport instead, which is at its end before the session.
        :raises BlockingIOError: if there is nothing yet.
        :raises OSError: if the session or its transport has failed; ``failure()`` of the stream tells why.
        """
        raise NotImplementedError

    def send(self, data: bytes | memoryview, flags: int = 0, /) -> int:
        """Send.

        :param data: the bytes.
        :param flags: as for a socket; no session needs them.
        :returns: how many the transport has taken.
        :raises BlockingIOError: if it takes nothing for now.
        :raises OSError: if the session or its transport has failed.
        """
        raise NotImplementedError

    def shutdown(self, how: int, /) -> None:
        """End the output.

        :param how: ``SHUT_WR``.
        :raises OSError: if the session or its transport has failed.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Close cleanly: end the output, and go on elsewhere if the transport cannot take that now. Idempotent."""
        raise NotImplementedError

    def expect_no_more(self) -> None:
        """Know that the far end sends nothing any more, as the protocol in this session says."""

    def move(self, home: Home) -> None:
        """Belong to another thread from now on; called while neither of the two uses it.

        :param home: that thread.
        """
        raise NotImplementedError

    def abandon(self) -> None:
        """In a forked child: only close the descriptor."""
        raise NotImplementedError


def session_of(sock: object) -> SessionSocket | None:
    """Return what a stream has for its socket, if its bytes pass through a session; ``None`` for a kernel socket."""
    return sock if isinstance(sock, SessionSocket) else None


def close_descriptor(sock: socket.SocketType) -> None:
    """In a forked child: close the copy of a descriptor, and say nothing to the peer."""
    session = session_of(sock)
    if session is not None:
        session.abandon()
    else:
        sock.close()
