"""A port of ours to which the router connects for each stream (SAM v3, "STREAM FORWARD")."""

from __future__ import annotations

import errno
import functools
import logging
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...addresses.destinations import Peer
from ...eventloop.loop import Loop, Timer
from ...eventloop.poller import IN
from ...eventloop.sockets import reset
from ...streams.stream import Stream
from .conversation import read_line
from .messages import LONGEST, MessageError, parse_peer
from .peer_uid import PeerUidLookup, hold_end, release_end

if TYPE_CHECKING:
    from .session import Session

__all__ = ["OnStream", "ForwardPort"]

logger = logging.getLogger("relay")

OnStream = Callable[[Stream, Peer], object]

BACKLOG = 4096  # streams that the kernel keeps for us; Linux takes the lower of this and net.core.somaxconn
SILENT = 1024  # connections that have not said yet whose they are, at most
PATIENCE = 30.0  # seconds until they have
AGAIN = 0.1  # seconds until one is accepted again when there were no descriptors left

# Most streams come from somebody who has come before.
_peer_of = functools.lru_cache(maxsize=256)(parse_peer)

_DEFER = getattr(socket, "TCP_DEFER_ACCEPT", None)


class ForwardPort:
    """Where the router connects to. Its first line on each connection says whose the stream is.

    Every program on the machine can connect there, too, and claim to come from any destination. So a connection is
    rejected unless the kernel reports that it belongs to the user of the bridge.

    Every method may be called from any thread; everything else happens in the loop's.

    :param session: whose streams they are.
    :param on_stream: called with each stream and who connects, in the loop's thread.
    :param owners: finds the user of a connection; ``None`` to trust every program.
    :param loop: in whose thread connections are accepted.
    :raises OSError: if no port is free.
    """

    def __init__(self, session: Session, on_stream: OnStream, owners: PeerUidLookup | None, *, loop: Loop) -> None:
        self.on_stream = on_stream
        self.name = session.name
        self._owners = owners
        self._user: int | None = None  # the one behind the bridge
        self._warned = False
        self._loop = loop
        self._watching: Loop | None = None
        self._open = self._held = self._closed = False
        self._silent: set[_ForwardedConnection] = set()
        self._retry: Timer | None = None
        control = session.control_socket
        self._family = control.family
        # Where a router connects to is the address that the conversation comes from.
        self._socket = socket.create_server((control.getsockname()[0], 0), family=control.family, backlog=BACKLOG)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # Linux hands it on
        if _DEFER is not None:  # who says nothing is nothing to us; who does is accepted and read at once
            self._socket.setsockopt(socket.IPPROTO_TCP, _DEFER, int(PATIENCE))
        self._holds_ends = owners is not None and owners.knows_closed
        if self._holds_ends:
            hold_end(self._socket)
        self._place: tuple[str, int] = self._socket.getsockname()[:2]
        self.number = self._place[1]

    def open(self, conversation: socket.socket) -> None:
        """Let connections in from now on.

        :param conversation: with the bridge; who is at its other end may connect.
        """
        if self._owners is not None:
            self._user = self._owners.of(conversation)
        self._open = True
        self._update_there()

    def hold(self, held: bool) -> None:
        """Let none in for now, or go on."""
        self._held = held
        self._update_there()

    def move(self, loop: Loop) -> None:
        """Have everything happen in the thread of another loop from now on."""
        old, self._loop = self._loop, loop

        def moved() -> None:
            self._update(old)
            self._update_there()

        if old is not loop and not old.call(moved):
            self._watching = None
            self._update_there()

    def close(self) -> None:
        """Let none in any more. Idempotent."""
        if not self._closed:
            self._closed = True
            if not self._loop.call(self._close):
                self.abandon()

    def abandon(self) -> None:
        """In a forked child, or where the loop has stopped: close the descriptors and nothing else."""
        self._socket.close()
        for connection in tuple(self._silent):
            connection.socket.close()

    # -- in the loop's thread -----------------------------------------------------------------------------------------

    def _update_there(self) -> None:
        loop = self._loop
        loop.call(functools.partial(self._update, loop))

    def _update(self, loop: Loop) -> None:
        """Watch the port if and only if somebody may come; in the thread of this loop."""
        wanted = self._open and not self._held and not self._closed and loop is self._loop
        wanted = wanted and len(self._silent) < SILENT and self._retry is None
        if wanted and self._watching is None:
            self._watching = loop
            loop.watch(self._socket.fileno(), IN, self._ready)
        elif not wanted and self._watching is loop:
            self._watching = None
            loop.forget(self._socket.fileno())

    def _close(self) -> None:
        loop = self._loop
        self._update(loop)
        loop.discard(self._socket)
        if self._retry is not None:
            self._retry.stop()
        for connection in tuple(self._silent):
            connection.drop()

    def _ready(self, event: int, now: float) -> None:
        try:
            made, place = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            logger.warning("%s: cannot accept for now: %s", self.name, error.strerror or error)
            return self.crashed(now)
        try:
            self._take(made, place, now)
        except BaseException:  # no descriptor to ask the kernel with, or a bug
            reset(made)
            raise
        return None

    def _take(self, made: socket.socket, place: tuple[str, int], now: float) -> None:
        if self._owners is not None and self._is_foreign(place, self._owners):
            return reset(made)
        if self._holds_ends:
            release_end(made)
        made.setblocking(False)
        connection = _ForwardedConnection(self, made, self._loop)
        if not connection.read():
            self._silent.add(connection)
            connection.wait(now)
            self._update(self._loop)
        return None

    def crashed(self, now: float) -> None:
        """No descriptors are left, or there is a bug: accept none for a while."""
        loop = self._loop
        self._retry = Timer(loop.timers, self._try_again)
        self._retry.start(now + AGAIN, now)
        self._update(loop)
        self._watching = None  # also where the loop has forgotten it already

    def _try_again(self, now: float) -> None:
        self._retry = None
        self._update_there()

    def _is_foreign(self, place: tuple[str, int], owners: PeerUidLookup) -> bool:
        user = owners.between(self._family, place, self._place)
        if user is not None and user == self._user:
            return False
        whose = "a program whose user the kernel does not report" if user is None else f"user {user}"
        level = logging.DEBUG if self._warned else logging.WARNING
        self._warned = True
        text = "%s: %s has connected to the port for the router's streams, whose user is %s; it is rejected"
        logger.log(level, text, self.name, whose, "unknown" if self._user is None else self._user)
        return True

    def settled(self, connection: _ForwardedConnection) -> None:
        """A connection that said nothing is waited for no longer."""
        self._silent.discard(connection)
        self._update_there()


class _ForwardedConnection:
    """A connection to the port, which is to say whose it is."""

    __slots__ = ("socket", "_port", "_loop", "_line", "_timer")

    def __init__(self, port: ForwardPort, made: socket.socket, loop: Loop) -> None:
        self.socket = made
        self._port = port
        self._loop = loop
        self._line = b""
        self._timer: Timer | None = None  # while it is waited for

    def read(self) -> bool:
        """Read what there is of the line; what follows it stays in the socket.

        :returns: whether it is known who this is, or there is no more to be had from it.
        """
        try:
            got, complete = read_line(self.socket)
        except BlockingIOError:
            return False
        except OSError as error:
            return self._refuse(os.strerror(error.errno or errno.EIO))
        self._line += got
        if not got or len(self._line) > LONGEST:
            return self._refuse("it ended" if not got else f"a line of more than {LONGEST} bytes")
        if not complete:
            return False
        try:
            peer = _peer_of(self._line)
        except MessageError as error:
            return self._refuse(str(error))
        self._settle()
        self._port.on_stream(Stream(self.socket), peer)
        return True

    def wait(self, now: float) -> None:
        """Wait for more of it."""
        self._loop.watch(self.socket.fileno(), IN, self._on_event)
        self._timer = Timer(self._loop.timers, self._expired)
        self._timer.start(now + PATIENCE, now)

    def drop(self) -> None:
        """Want no more of it."""
        self._settle()
        reset(self.socket)

    def crashed(self, now: float) -> None:
        """A bug in a handler: end it."""
        self.drop()

    def _on_event(self, event: int, now: float) -> None:
        self.read()

    def _expired(self, now: float) -> None:
        self._refuse(f"nothing for {PATIENCE:.0f} s")

    def _refuse(self, why: str) -> bool:
        logger.info("%s: a connection to the port for streams does not say whose it is: %s", self._port.name, why)
        self.drop()
        return True

    def _settle(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer = None
            self._loop.forget(self.socket.fileno())
            self._port.settled(self)
