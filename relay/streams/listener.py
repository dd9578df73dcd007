"""Listeners as a tunnel and the daemon see them: relay's own ones, and plain sockets.

The clients of an :class:`UpgradeListener` first shake hands, in the thread of the tunnel that accepts them.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from ..eventloop.background import Home
from ..eventloop.loop import Loop
from .accept_queue import Taker


class TunnelListener:
    """A listener of a tunnel; what is said here holds for one that knows nothing of it."""

    listening: socket.socket | None = None
    """The listening socket of this machine, from which the tunnel accepts and which another process can take over;
    ``None`` if :meth:`accept` is all that there is: a server listens, or an object of the program."""

    handshake_timeout: float | None = None
    """Seconds that a handshake of a client may take; ``None`` for no limit. The tunnel sets it."""

    protected: bool | None = None
    """Whether a client of a proxy needs a password; ``None`` if it is no proxy."""

    has_session = False
    """Whether a session under it ends with its last stream; :meth:`join` waits for that."""

    @property
    def state(self) -> str:
        """The state of the connection to the server that listens, one of the words of its class; else ``up``."""
        return "up"

    @property
    def certificate_end(self) -> float | None:
        """Until when its certificate is valid, in seconds since 1970; ``None`` if it has none, or that is not known."""
        return None

    @property
    def certificate_loads(self) -> tuple[int, int] | None:
        """The loads of its certificates after their files have changed, and those that failed; ``None`` without any."""
        return None

    def accept(self) -> tuple[Any, Any]:
        """Wait for the next client; returns its stream and where it comes from."""
        raise NotImplementedError

    def accept_any(self) -> tuple[Any, Any]:
        """Do as :meth:`accept`, but also return the clients that it rejects, each with its reason, for the records."""
        return self.accept()

    def close(self) -> object:
        """Stop listening."""
        raise NotImplementedError

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end of the session under it, if it has one; call :meth:`close` before.

        :param timeout: seconds; ``None`` for no limit.
        """


class PushingListener(TunnelListener):
    """A listener that can bring its streams, which needs no thread that waits for them."""

    @property
    def pushes_streams(self) -> bool:
        """True if :meth:`deliver` may be used."""
        return True

    def deliver(self, taker: Taker | None, loop: Loop | None = None) -> None:
        """Pass streams on at once, instead of by :meth:`accept`.

        :param taker: called with each stream and its peer, on any thread; it must not block. ``None`` keeps the streams
            for :meth:`accept` from now on.
        :param loop: of the thread that had best call it.
        """
        raise NotImplementedError


class SocketListener(TunnelListener):
    """A plain listening socket.

    :param listening: the socket, which the listener owns.
    """

    listening: socket.socket

    def __init__(self, listening: socket.socket) -> None:
        self.listening = listening

    def getsockname(self) -> Any:
        """Return the address of the socket."""
        return self.listening.getsockname()

    def close(self) -> None:
        """Close the socket."""
        self.listening.close()


class ScreenedAddress(tuple[Any, ...]):
    """The address of a client that a tunnel has accepted itself, and found fit for the handshake."""

    __slots__ = ()


class UpgradeListener(TunnelListener):
    """A listener that makes another stream of each client's socket, such as one of TLS.

    A tunnel accepts from its socket. The handshakes run in the thread of the tunnel.
    """

    listening: socket.socket
    """The listening stream socket."""

    on_handshakes: Callable[[int], object] | None = None
    """Called in that thread with the number of handshakes under way, whenever it changes; ``None`` for nothing."""

    def speaks_for_others(self, peer: Any) -> bool:
        """Return whether a peer is a proxy that will say who its client is, so that its own address decides nothing."""
        return False

    def deliver(self, taker: Taker | None, home: Home | None = None) -> None:
        """Pass streams on at once.

        :param taker: called with each stream and its peer, in the thread of ``home``; it must not block. ``None`` keeps
            the streams for the next call.
        :param home: the thread of the tunnel, which calls this and from now on accepts.
        """
        raise NotImplementedError

    def upgrade(self, client: socket.SocketType, peer: Any, now: float) -> None:
        """Begin the handshake of a client, in the thread of the tunnel.

        :param client: its accepted socket, which belongs to the listener.
        :param peer: its address; it comes back with the stream.
        :param now: monotonic seconds.
        """
        raise NotImplementedError

    def make_room(self, now: float) -> None:
        """End some handshakes, in the thread of the tunnel: no descriptor is left."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the socket, and reset the clients that no tunnel has got yet."""
        raise NotImplementedError
