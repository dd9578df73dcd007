"""The two flows of an open connection, and the meaning of an EOF or an error of one of its streams."""

from __future__ import annotations

import functools
import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..addresses.printable import printable
from ..errors import ConnectError
from ..eventloop.loop import Timer
from ..eventloop.poller import OUT, READ
from ..eventloop.sockets import format_address, unsent
from ..streams.session_socket import session_of
from ..streams.stream import Stream
from .flow import Flow
from .records import ConnectionState
from .session_flow import NOTHING, SessionFlow
from .workspace import Workspace

if TYPE_CHECKING:  # parts of one machine name each other
    from .connection import Connection

logger = logging.getLogger("relay")

_CLOSED_EARLY = "%s: %s: closed before sending any data; check that the service is running (client %s)"
_SILENT = "%s: %s: has sent nothing within first_byte_timeout; check that the service is running (client %s)"
_LONGEST = 500  # characters of an error of a target, in the log


class FlowPair:
    """The flows of a connection between two plain sockets that the engine has made. Belongs to the relay thread.

    An EOF of a plain socket is one, and each of them can be half-closed. A :class:`StreamPair` has to ask.

    :param connection: the connection.
    :param work: what all flows of the thread share.
    :param client: the client's socket.
    :param target: the socket of the outgoing stream.
    """

    __slots__ = ("connection", "upstream", "downstream", "is_bulk", "is_closed")

    upstream: Flow  # from the client to the target
    downstream: Flow  # from the target to the client

    def __init__(
        self, connection: Connection, work: Workspace, client: socket.SocketType, target: socket.SocketType
    ) -> None:
        self.connection = connection
        self.is_bulk = self.is_closed = False
        self.upstream = up = Flow(self, work, client, target)
        self.downstream = down = Flow(self, work, target, client)
        up.reverse = down
        down.reverse = up

    def close(self, reason: str, now: float) -> None:
        """End the connection."""
        self.connection.close(reason, now)

    def set_bulk(self, is_bulk: bool, now: float) -> None:
        """Take turns with the other bulk transfers of the thread, or with all connections again."""
        self.is_bulk = is_bulk
        pairs = self.upstream.work.bulk_pairs
        if is_bulk:
            pairs.add(self, now)
        else:
            pairs.discard(self)
            self.move(False)

    def move(self, is_bulk: bool) -> None:
        """Let the loop handle the events of both sockets with those of bulk transfers, or with all others again."""
        self.upstream.set_bulk(is_bulk)
        self.downstream.set_bulk(is_bulk)

    def release(self) -> None:
        """Stop the flows, and forget them."""
        self.is_closed = True
        if self.is_bulk:
            self.upstream.work.bulk_pairs.discard(self)
        self.upstream.release(True)
        self.downstream.release(True)
        self.upstream = self.downstream = None  # type: ignore[assignment]

    def unsent(self) -> tuple[int, int]:
        """Return the bytes that the systems of the client and of the target have not acknowledged."""
        return unsent(self.upstream.source), unsent(self.downstream.source)

    def flow_ended(self, flow: Flow, now: float) -> None:
        """Pass on the EOF of one direction."""
        connection = self.connection
        if flow.reverse.ended:
            return connection.close("done", now)
        connection.half_closed(now)
        try:
            flow.sink.shutdown(socket.SHUT_WR)
        except OSError:
            if flow.sink.fileno() < 0:
                return self.on_socket_error(flow.sink, now)
            # It was reset; the flow that reads from it will see that.
        return None

    def passes_end_of(self, flow: Flow) -> bool:
        """Return whether the EOF of this flow's source is passed on to its sink at once."""
        return True

    def takes_urgent(self, flow: Flow) -> bool:
        """Return whether the sink of this flow is TCP up to the peer."""
        return flow.sink.family in (socket.AF_INET, socket.AF_INET6)

    def on_socket_error(self, sock: socket.SocketType, now: float) -> None:
        """End the connection, because a socket has failed; the reason is that of its stream, if this knows one."""
        self.connection.close("client_reset" if sock is self.connection.client else "target_reset", now)

    def close_unreachable(self, now: float, text: str = _SILENT) -> None:
        """End the connection, because the target has sent nothing: in time, unless ``text`` says otherwise."""
        connection, summary = self.connection, self.connection.summary
        values = connection.tunnel_name, summary.target_name(), format_address(summary.peer)
        self.upstream.work.log_problem("unreachable", text, *values)
        connection.close("unreachable", now)


class StreamPair(FlowPair):
    """The flows of a connection with a stream at one end or both.

    A stream may know why it has ended, may have no half-close, and may have a session that speaks by itself. The
    parameters are those of :class:`FlowPair`.
    """

    __slots__ = ()

    def __init__(
        self, connection: Connection, work: Workspace, client: socket.SocketType, target: socket.SocketType
    ) -> None:
        self.connection = connection
        self.is_bulk = self.is_closed = False
        from_session, to_session = session_of(client) is not None, session_of(target) is not None
        self.upstream = up = (SessionFlow if from_session else Flow)(self, work, client, target)
        self.downstream = down = (SessionFlow if to_session else Flow)(self, work, target, client)
        if from_session or to_session:
            up.spliceable = down.spliceable = False
        up.reverse = down
        down.reverse = up

    def begin(self, now: float) -> None:
        """Move what sessions have already: it came with their handshake, and no event announces it."""
        for flow in (self.downstream, self.upstream):
            if not self.is_closed and isinstance(flow, SessionFlow):
                flow.go_on(now)

    def release(self) -> None:
        """Stop the flows, and forget them."""
        connection = self.connection
        self.is_closed = True
        if self.is_bulk:
            self.upstream.work.bulk_pairs.discard(self)
        self.upstream.release(connection.client_stream is None)
        self.downstream.release(connection.target_stream is None)
        self.upstream = self.downstream = None  # type: ignore[assignment]

    def unsent(self) -> tuple[int, int]:
        """Return the bytes that the transports of the client and of the target have not acknowledged."""
        client, target = self.connection.client_stream, self.connection.target_stream
        return (
            unsent(self.upstream.source) if client is None else client.queued(),
            unsent(self.downstream.source) if target is None else target.queued(),
        )

    def flow_ended(self, flow: Flow, now: float) -> None:
        """Pass on the EOF of one direction, once it is known to be one."""
        connection = self.connection
        source, sink = self._streams(flow)
        if source is not None:
            if source.settle:
                flow.ended = 0.0
                return self._wait_for_cause(source, flow.end, now)
            if _failure(source) is not None:
                return self.on_socket_error(flow.source, now)
        if flow.reverse.ended:
            connection.close("done", now)
        elif source is not None and flow is self.downstream and self._is_unconfirmed():
            self.close_unreachable(now, _CLOSED_EARLY)
        elif source is not None and not source.half_close:
            self._discard_reverse(flow, now)
        elif sink is None or sink.half_close:
            super().flow_ended(flow, now)
            if sink is not None and not self.is_closed:
                session = session_of(flow.sink)
                if session is not None and session.must_flush:
                    flow.queue(NOTHING)
        else:
            connection.state = ConnectionState.HALF_CLOSED
            connection.deadline.update(now)
        return None

    def passes_end_of(self, flow: Flow) -> bool:
        """Return whether the EOF of this flow's source is passed on to its sink at once."""
        source, sink = self._streams(flow)
        return (sink is None or sink.half_close) and not (source is not None and source.settle)

    def takes_urgent(self, flow: Flow) -> bool:
        """Return whether the sink of this flow is TCP up to the peer: what has no half-close is another transport."""
        _, sink = self._streams(flow)
        return super().takes_urgent(flow) and session_of(flow.sink) is None and (sink is None or sink.half_close)

    def _streams(self, flow: Flow) -> tuple[Stream | None, Stream | None]:
        """Return the streams of the source and of the sink of a flow; ``None`` for a plain socket."""
        client, target = self.connection.client_stream, self.connection.target_stream
        return (target, client) if flow is self.downstream else (client, target)

    def on_socket_error(self, sock: socket.SocketType, now: float) -> None:
        """End the connection, because a socket has failed; the reason is that of its stream, if this knows one."""
        connection = self.connection
        stream, reason = connection.target_stream, "target_reset"
        if sock is connection.client:
            stream, reason = connection.client_stream, "client_reset"
        if stream is not None and stream.settle:
            self.upstream.set_interest(-1)
            self.downstream.set_interest(-1)
            return self._wait_for_cause(stream, functools.partial(self.on_socket_error, sock), now)
        failure = _failure(stream)
        if failure is None and sock is not connection.client and self._is_unconfirmed():
            return self.close_unreachable(now, _CLOSED_EARLY)
        if isinstance(failure, ConnectError):  # the stream was there before its target could be reached
            problem, peer = printable(str(failure), _LONGEST), format_address(connection.summary.peer)
            work = self.upstream.work
            work.log_problem(failure.reason, "%s: %s (client %s)", connection.tunnel_name, problem, peer)
        return connection.close(getattr(failure, "reason", reason), now)

    def _wait_for_cause(self, stream: Stream, then: Callable[[float], object], now: float) -> None:
        """Wait until ``failure()`` of a stream knows whether its end is an EOF; only the first end starts the wait."""
        if stream.settle > 0:
            timer = Timer(self.upstream.work.loop.timers, functools.partial(self._cause_is_known, stream, then))
            timer.start(now + stream.settle, now)
            stream.settle = -1.0

    def _cause_is_known(self, stream: Stream, then: Callable[[float], object], now: float) -> None:
        stream.settle = 0.0
        if not self.is_closed:
            then(now)

    def _is_unconfirmed(self) -> bool:
        """Return whether only the transport says that the target is there: no byte has come from it."""
        stream = self.connection.target_stream
        return stream is not None and not stream.answered and not self.downstream.moved

    def _discard_reverse(self, flow: Flow, now: float) -> None:
        self.connection.state = ConnectionState.DISCARDING
        reverse = flow.reverse
        reverse.drop()
        flow.set_interest(-1)  # whatever becomes of the stream that has ended, its end was clean
        try:
            flow.sink.shutdown(socket.SHUT_WR)
        except OSError:
            return self.connection.close("done", now)
        reverse.use(reverse.discard)
        session = session_of(flow.sink)
        reverse.set_interest(READ | OUT if session is not None and session.must_flush else READ)
        self.connection.deadline.update(now)


def _failure(stream: Stream | None) -> BaseException | None:
    """Return why the stream ended, if that was a failure."""
    if stream is None or stream.failure is None:
        return None
    try:
        return stream.failure()
    except Exception as error:
        logger.exception("%r: its failure() raised, which counts as one", stream)
        return error
