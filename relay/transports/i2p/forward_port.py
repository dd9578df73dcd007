"""Local port for STREAM FORWARD (SAM v3): the router opens one connection for each incoming stream.

====== ====== ========== ============================================================================================
state  event  next state action
====== ====== ========== ============================================================================================
bound  open   open       accept connections
held   open   paused     none: connections stay in the backlog
bound  pause  held       none
open   pause  paused     stop accepting; connections stay in the backlog
held   resume bound      none
paused resume open       accept connections
bound  close  closed     close the port
held   close  closed     close the port
open   close  closed     close the port, and reset the connections whose first line has not come
paused close  closed     the same
====== ====== ========== ============================================================================================

In any state but ``open`` the port accepts nothing. A combination that is not in the table changes nothing.
"""

from __future__ import annotations

import enum
import errno
import functools
import logging
import os
import socket
from collections.abc import Callable, Mapping
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

logger = logging.getLogger("relay")

OnStream = Callable[[Stream, Peer], object]

BACKLOG = 4096  # listen backlog; Linux takes the lower of this and net.core.somaxconn
MAX_PENDING = 1024  # connections that have not sent their first line yet
LINE_TIMEOUT = 30.0  # seconds for that line
AGAIN = 0.1  # seconds until accept is retried after a lack of descriptors

# Most streams come from a peer that has connected before.
_peer_of = functools.lru_cache(maxsize=256)(parse_peer)

_DEFER = getattr(socket, "TCP_DEFER_ACCEPT", None)


class PortState(enum.Enum):
    """States of a port."""

    BOUND = "bound"
    HELD = "held"
    OPEN = "open"
    PAUSED = "paused"
    CLOSED = "closed"


class PortEvent(enum.Enum):
    """Events of a port."""

    OPEN = "open"
    PAUSE = "pause"
    RESUME = "resume"
    CLOSE = "close"


#: The table above.
TRANSITIONS: Mapping[tuple[PortState, PortEvent], PortState] = {
    (PortState.BOUND, PortEvent.OPEN): PortState.OPEN,
    (PortState.HELD, PortEvent.OPEN): PortState.PAUSED,
    (PortState.BOUND, PortEvent.PAUSE): PortState.HELD,
    (PortState.OPEN, PortEvent.PAUSE): PortState.PAUSED,
    (PortState.HELD, PortEvent.RESUME): PortState.BOUND,
    (PortState.PAUSED, PortEvent.RESUME): PortState.OPEN,
    **{(state, PortEvent.CLOSE): PortState.CLOSED for state in PortState if state is not PortState.CLOSED},
}


class ForwardPort:
    """Listens for the router. The first line on each connection names the peer's destination.

    Every program on the machine can connect to the port and claim to be any destination. So the port rejects a
    connection unless the kernel reports that it belongs to the router's user.

    The public methods are for the I/O thread; everything else runs on the loop's thread.

    :param session: the session of the streams.
    :param on_stream: called with each stream and its peer, on the loop's thread.
    :param lookup: finds the user of a connection; ``None`` to trust every program on the machine.
    :param loop: its thread accepts the connections.
    :raises OSError: if no port is free.
    """

    def __init__(self, session: Session, on_stream: OnStream, lookup: PeerUidLookup | None, *, loop: Loop) -> None:
        self.on_stream = on_stream
        self.name = session.name
        self._state = PortState.BOUND
        self._loop = loop
        self._watching: Loop | None = None
        self._pending: set[_ForwardedConnection] = set()
        self._retry: Timer | None = None
        control = session.control_socket
        # The router connects to the address from which the conversation comes.
        # A random port: any program of the machine may connect to it, and a fixed one would be known before relay runs.
        self._socket = socket.create_server((control.getsockname()[0], 0), family=control.family, backlog=BACKLOG)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it on Linux
        if _DEFER is not None:  # the kernel reports a connection once it has data
            self._socket.setsockopt(socket.IPPROTO_TCP, _DEFER, int(LINE_TIMEOUT))
        self._check = PortCheck(session.name, lookup, self._socket)
        if self._check.holds_ends:
            # Before the router knows the number: a connection inherits the filter when the kernel makes it.
            hold_end(self._socket)
        self.number: int = self._socket.getsockname()[1]

    def open(self, conversation: socket.socket) -> None:
        """Accept connections from now on.

        :param conversation: a socket to the bridge; the user at its other end may connect.
        """
        self._check.learn(conversation)
        self._handle(PortEvent.OPEN)

    def pause(self, paused: bool) -> None:
        """Keep further connections in the backlog, or accept them again."""
        self._handle(PortEvent.PAUSE if paused else PortEvent.RESUME)

    def move(self, loop: Loop) -> None:
        """Accept further connections on another loop's thread."""
        old, self._loop = self._loop, loop

        # The old loop first, in its own thread: two loops that watch one socket would both accept.
        def moved() -> None:
            self._update(old)
            self._update_there()

        if old is not loop and not old.call(moved):
            # The old loop has ended, and with it its watch.
            self._watching = None
            self._update_there()

    def close(self) -> None:
        """Accept no more connections, and reset the pending ones. Idempotent."""
        if self._state is not PortState.CLOSED:
            self._state = TRANSITIONS[self._state, PortEvent.CLOSE]
            if not self._loop.call(self._close):
                self.abandon()

    def abandon(self) -> None:
        """Only close the descriptors: in a forked child, or once the loop has stopped."""
        self._socket.close()
        for connection in tuple(self._pending):
            connection.socket.close()

    def _handle(self, event: PortEvent) -> None:
        self._state = TRANSITIONS.get((self._state, event), self._state)
        self._update_there()

    # -- on the loop's thread -----------------------------------------------------------------------------------------

    def _update_there(self) -> None:
        loop = self._loop
        loop.call(functools.partial(self._update, loop))

    def _update(self, loop: Loop) -> None:
        """Watch the port if and only if it may accept; on the thread of this loop."""
        wanted = self._state is PortState.OPEN and loop is self._loop
        # At the bound further connections wait in the backlog, and the router with them: none is lost.
        wanted = wanted and len(self._pending) < MAX_PENDING and self._retry is None
        if wanted and self._watching is None:
            self._watching = loop
            loop.watch(self._socket.fileno(), IN, self._on_event)
        elif not wanted and self._watching is loop:
            self._watching = None
            loop.forget(self._socket.fileno())

    def _close(self) -> None:
        # After a move that has not ended, the loop before has the descriptor still: it has to forget it first, for its
        # number may be that of another socket of that loop soon.
        watching = self._watching or self._loop
        if watching is self._loop or not watching.call(functools.partial(self._close_on, watching)):
            self._close_on(self._loop)

    def _close_on(self, loop: Loop) -> None:
        self._update(loop)
        loop.discard(self._socket)
        if self._retry is not None:
            self._retry.stop()
        for connection in tuple(self._pending):
            connection.drop_from(loop)

    def _on_event(self, event: int, now: float) -> None:
        try:
            accepted, address = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            logger.warning("%s: cannot accept a connection: %s; retrying", self.name, error.strerror or error)
            # Level-triggered: without a pause the same event would come back at once, as long as no descriptor is free.
            return self.crashed(now)
        try:
            self._take(accepted, address, now)
        except BaseException:  # no descriptor left for the lookup, or a bug
            reset(accepted)
            raise
        return None

    def _take(self, accepted: socket.socket, address: tuple[str, int], now: float) -> None:
        # Before anything is read: the user of a closed end is known only while its FIN is held back.
        if not self._check.is_of_program(address):
            return reset(accepted)
        if self._check.holds_ends:
            release_end(accepted)
        accepted.setblocking(False)
        connection = _ForwardedConnection(self, accepted, self._loop)
        # The line has come, as a rule, since TCP_DEFER_ACCEPT reports the connection with it.
        if not connection.read():
            self._pending.add(connection)
            connection.wait(now)
            self._update(self._loop)
        return None

    def crashed(self, now: float) -> None:
        """Pause for a moment, after a lack of descriptors or a bug."""
        loop = self._loop
        self._retry = Timer(loop.timers, self._try_again)
        self._retry.start(now + AGAIN, now)
        self._update(loop)
        self._watching = None  # even if the loop has stopped watching already

    def _try_again(self, now: float) -> None:
        self._retry = None
        self._update_there()

    def on_settled(self, connection: _ForwardedConnection) -> None:
        """Stop waiting for the first line of a connection."""
        self._pending.discard(connection)
        self._update_there()


class PortCheck:
    """Recognizes the connections of a program by their user.

    :param name: of the session, in the log.
    :param lookup: finds the user of a connection; ``None`` to accept every connection.
    :param listening: the socket of the port.
    :param program: the word for it, in the log.
    """

    def __init__(
        self, name: str, lookup: PeerUidLookup | None, listening: socket.socket, program: str = "router"
    ) -> None:
        self.holds_ends = lookup is not None and lookup.knows_closed
        self._name = name
        self._lookup = lookup
        self._family = listening.family
        self._address = listening.getsockname()[:2]
        self._program = program
        self.user: int | None = None  # of the program
        self._has_warned = False

    def learn(self, conversation: socket.socket) -> None:
        """Learn the router's user from a connection to the bridge."""
        if self._lookup is not None:
            # Learned with each session: after a restart the router may run as another user.
            self.user = self._lookup.of(conversation)

    def is_of_program(self, address: tuple[str, int]) -> bool:
        """Return whether a connection from this address is that of the program; log if it is not."""
        if self._lookup is None:
            return True
        user = self._lookup.between(self._family, address, self._address)
        if user is not None and user == self.user:
            return True
        client = "a program of unknown user" if user is None else f"user {user}"
        # Any program of the machine can repeat it at will; one warning is enough.
        level = logging.DEBUG if self._has_warned else logging.WARNING
        self._has_warned = True
        text = "%s: %s connected to the port for the %s's streams; rejected, because the %s's user is %s"
        known = "unknown" if self.user is None else self.user
        logger.log(level, text, self._name, client, self._program, self._program, known)
        return False


class _ForwardedConnection:
    """A connection to the port whose first line has not come completely."""

    __slots__ = ("socket", "_port", "_loop", "_line", "_timer")

    def __init__(self, port: ForwardPort, accepted: socket.socket, loop: Loop) -> None:
        self.socket = accepted
        self._port = port
        self._loop = loop
        self._line = b""
        self._timer: Timer | None = None  # while waiting for the line

    def read(self) -> bool:
        """Read what has come of the line; the bytes after it stay in the socket.

        :returns: whether the connection is settled: passed on as a stream, or rejected.
        """
        try:
            got, complete = read_line(self.socket)
        except BlockingIOError:
            return False
        except OSError as error:
            return self._refuse(os.strerror(error.errno or errno.EIO))
        self._line += got
        if not got or len(self._line) > LONGEST:
            return self._refuse("EOF" if not got else f"a line of more than {LONGEST} bytes")
        if not complete:
            return False
        try:
            peer = _peer_of(self._line)
        except MessageError as error:
            return self._refuse(str(error))
        # Out of the loop before it is passed on, as the engine watches the same number.
        self._settle()
        self._port.on_stream(Stream(self.socket), peer)
        return True

    def wait(self, now: float) -> None:
        """Wait for the rest of the line."""
        self._loop.watch(self.socket.fileno(), IN, self._on_event)
        self._timer = Timer(self._loop.timers, self._expired)
        self._timer.start(now + LINE_TIMEOUT, now)

    def drop_from(self, loop: Loop) -> None:
        """Reset the connection; on the thread of a loop, which may be another one since the port has moved."""
        # A loop's watches belong to its thread; one that has ended watches nothing, so it can be dropped here.
        if loop is self._loop or not self._loop.call(self._drop_pending):
            self.drop()

    def _drop_pending(self) -> None:
        if self._timer is not None:  # else its line has come meanwhile
            self.drop()

    def drop(self) -> None:
        """Reset the connection."""
        self._settle()
        reset(self.socket)

    def crashed(self, now: float) -> None:
        """Reset the connection after a bug in a handler."""
        self.drop()

    def _on_event(self, event: int, now: float) -> None:
        self.read()

    def _expired(self, now: float) -> None:
        self._refuse(f"none within {LINE_TIMEOUT:.0f} s")

    def _refuse(self, why: str) -> bool:
        logger.info("%s: a connection to the port for streams has no valid first line: %s", self._port.name, why)
        self.drop()
        return True

    def _settle(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer = None
            self._loop.forget(self.socket.fileno())
            self._port.on_settled(self)
