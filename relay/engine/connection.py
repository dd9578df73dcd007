"""One relayed connection: a client and its outgoing stream, two flows, and the reason for its end.

The states are those of :class:`~relay.engine.records.ConnectionState`. Before it is open, a connection has something
``pending``: the client's request is read (*requesting*), another thread decides about it (*admitting*), the stream is
being made (*connecting*), a last reply is sent (*replying*), or a denied client is kept waiting (*tarpit*). A *queued*
one waits for a slot. An EOF is data that travels: it ends its own direction only.

A stream without half-close ends in both directions at once. What its peer still sends is read and dropped then
(*discarding*): closing a socket with something unread would reset it, and cost the peer the last bytes sent to it.

=========== ================================= =========== =============================================================
state       event                             next state  action
=========== ================================= =========== =============================================================
requesting  header                            connecting  make the stream
requesting  header, request follows           requesting  read the request
requesting  header of a check                 replying    send an EOF
requesting  bad header                        closed      ``denied``
requesting  request                           connecting  make the stream
requesting  request, no slot                  queued      watch the client
requesting  request, question                 admitting   ask; watch the client
requesting  bad request                       replying    send the failure reply
requesting  client gone                       closed      ``client_reset``
requesting  limit                             closed      ``connect_timeout``
requesting  crowded out                       closed      ``overloaded``
admitting   yes                               connecting  make the stream
admitting   yes, no slot                      queued      watch the client
admitting   no                                closed      ``denied``
admitting   no, requested                     replying    send the failure reply
admitting   client gone                       closed      ``client_reset``
admitting   limit                             closed      ``connect_timeout``
admitting   crowded out                       closed      ``overloaded``
queued      slot                              connecting  make the stream
queued      client gone                       closed      ``client_reset``
queued      limit                             replying    send the failure reply
connecting  stream                            open        send the success reply of a proxy; start both flows
connecting  no stream                         closed      reset the client, with the reason
connecting  no stream, requested              replying    send the failure reply of a proxy
connecting  client gone                       closed      ``client_reset``; abandon the attempt
connecting  limit                             closed      ``connect_timeout``; abandon the attempt
connecting  denied, tarpit                    tarpit      keep the client, and read nothing from it
tarpit      client gone                       closed      ``denied``
tarpit      limit                             closed      ``denied``: reset the client
tarpit      crowded out                       closed      ``denied``: reset the client
replying    replied                           closed      close the client, with the reason
replying    crowded out                       closed      close the client, with the reason
open        EOF                               half-closed half-close the sink
open        EOF, sink has no half-close       half-closed hold the EOF back until the other direction ends or is quiet
open        EOF, source has no half-close     discarding  half-close the sink; drop what it still sends
open        EOF, target unconfirmed           closed      ``unreachable``: the target has sent nothing
open        EOF, cause not known yet          open        wait for ``failure()``; then the same event again
open        failure of the stream             closed      reset both; the reason of the failure
open        reset                             closed      reset both; ``client_reset`` or ``target_reset``
open        limit                             closed      reset both; ``idle``, ``lifetime``, ``quota``, ``unreachable``
half-closed EOF                               closed      ``done``: close both
half-closed reset                             closed      reset both; ``client_reset`` or ``target_reset``
half-closed limit                             closed      reset both; ``linger`` or one of these but ``quota``
discarding  EOF                               closed      ``done``: close both
discarding  limit                             closed      ``done``: close both
any         close                             closed      reset both, with the reason
any         fork                              closed      in the child: only close the descriptors
=========== ================================= =========== =============================================================
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import socket
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from ..eventloop.poller import ERR, HUP
from ..eventloop.sockets import format_address, keep_alive, set_to_reset
from ..streams.fairness import source_of
from ..streams.proxy_handshake import FinalReply, FinalStay, HandshakeReader, ProxyHandshake, watch
from ..streams.session_socket import close_descriptor
from ..streams.stream import RejectedRequest, Request, Stream
from .flow_pair import FlowPair, StreamPair
from .limits import ConnectionDeadline, Pending
from .records import ConnectionRecord, ConnectionState, ConnectionSummary
from .tarpit import TarpitStay
from .workspace import Workspace

if TYPE_CHECKING:  # parts of one machine name each other; few clients have a ticket
    from ..access.ticket import Ticket
    from .relay_thread import RelayThread

logger = logging.getLogger("relay")

# Names of the module for what each connection needs, because Python 3.11 looks up the members of an Enum slowly.
_CONNECTING, _OPEN, _CLOSED = ConnectionState.CONNECTING, ConnectionState.OPEN, ConnectionState.CLOSED
_HALF_CLOSED = ConnectionState.HALF_CLOSED


class Connection:
    """One accepted client and its outgoing stream. Belongs to the relay thread.

    :param owner: the relay thread.
    :param client: the client's socket, non-blocking.
    :param stream: the client's stream; ``None`` for a plain socket.
    :param peer: the client's address.
    :param now: the time of the acceptance, monotonic seconds.
    """

    __slots__ = (
        "owner", "client", "client_stream", "target", "target_stream", "pending", "flows", "state", "limits",
        "summary", "ticket", "_deadline",
    )  # fmt: skip

    def __init__(
        self, owner: RelayThread, client: socket.SocketType, stream: Stream | None, peer: Any, now: float
    ) -> None:
        self.owner = owner
        self.client = client
        self.client_stream = stream
        self.target: socket.SocketType | None = None
        self.target_stream: Stream | None = None
        self.pending: Pending | None = None
        self.flows: FlowPair | None = None  # while it is open
        self.state = _CONNECTING
        self.limits = owner.limits
        self._deadline: ConnectionDeadline | None = None  # most connections end before they need one
        self.summary = ConnectionSummary(peer, now)
        self.ticket: Ticket | None = None  # what the gate has given to the client
        if stream is not None:
            self.summary.request = stream.request
            self.summary.identity = stream.identity
            self.summary.server_name = stream.server_name

    @property
    def is_closed(self) -> bool:
        """True once it has ended."""
        return self.state is _CLOSED

    @property
    def deadline(self) -> ConnectionDeadline:
        """The time of the next look at its limits."""
        if self._deadline is None:
            self._deadline = ConnectionDeadline(self, self.limits, self.owner.loop.timers)
        return self._deadline

    @property
    def tunnel_name(self) -> str:
        """The name of the tunnel, for the log."""
        return self.owner.name

    @property
    def request(self) -> Request | None:
        """The request of a proxy client, once it is known."""
        return self.summary.request

    # -- before it is open ------------------------------------------------------------------------------------------

    def read_request(self, handshake: ProxyHandshake, now: float) -> None:
        """Read the client's proxy request; the owner then dials the requested target."""
        self.state = ConnectionState.REQUESTING
        self.deadline.start_request(now)
        self.owner.entrance.half_open[self] = None
        self.pending = introduction = HandshakeReader(self.client, self.owner.loop, handshake, self._on_request)
        introduction.begin(now)

    def source(self) -> Hashable:
        """Return the network that the client belongs to; see :func:`relay.streams.fairness.source_of`."""
        return source_of(self.client, self.summary.peer)

    def give_way(self, now: float) -> None:
        """End a half-open connection, because others need its room."""
        if isinstance(self.pending, FinalStay):
            self.pending.finish(now)
        else:
            self.close("overloaded", now)

    def _on_request(self, outcome: Request | RejectedRequest | OSError, now: float) -> None:
        self.pending = None
        if isinstance(outcome, Request):
            self.state = ConnectionState.CONNECTING
            self.summary.request = outcome
            if outcome.here is not None:
                self.summary.server_name = outcome.host or None
            self.owner.entrance.on_request(self, now)
        elif isinstance(outcome, RejectedRequest):
            self.owner.entrance.on_rejected_request(self, outcome, now)
            if outcome.last is None:
                self.close(outcome.reason, now)
            else:
                self._reply_and_close(outcome.last, outcome.reason, now)
        else:
            self.close("client_reset", now)

    def keep_in_tarpit(self, seconds: float, now: float) -> None:
        """Keep a denied client for so many seconds."""
        self.state = ConnectionState.TARPIT
        self.deadline.stop()
        self.pending = stay = TarpitStay(self.client, self.owner.loop, functools.partial(self.close, "denied"))
        stay.begin(seconds, now)

    def wait_for_answer(self, question: Pending) -> None:
        """Wait until another thread has decided about the client."""
        self.state, self.pending = ConnectionState.ADMITTING, question
        # From the acceptance on: the time of a question is a part of what a client may take until it has its stream.
        self.deadline.start_connecting(self.summary.started, self.summary.started)
        self.watch_client()

    def wait_for_slot(self) -> None:
        """Wait until another connection ends."""
        self.state = ConnectionState.QUEUED
        self.watch_client()

    def wait_for_target(self, pending: Pending, now: float) -> None:
        """Wait for the stream that ``pending`` makes, and read nothing from the client before."""
        self.state = ConnectionState.CONNECTING
        self.pending = pending
        self.deadline.start_connecting(self.summary.started, now)

    def watch_client(self) -> None:
        """Watch for a reset of the client while the stream is being made."""
        watch(self.owner.loop, self.client.fileno(), 0, self.client_event)

    def client_event(self, event: int, now: float) -> None:
        """End the connection if the client has hung up before it was open."""
        if event & ERR and not event & HUP and not self.client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            return
        if event & (ERR | HUP):
            self.close("client_reset", now)

    def fail(self, reason: str, now: float, clean: bool = False) -> None:
        """End a connection that gets no stream: by a reply to a proxy client, else by a reset, or cleanly."""
        reply = self.request.failure_reply if self.request is not None else None
        if reply is not None and not self.is_closed:
            self._reply_and_close(reply(reason), reason, now)
        elif clean:
            self._reply_and_close(b"", reason, now)
        else:
            self.close(reason, now)

    def _reply_and_close(self, last: bytes, reason: str, now: float) -> None:
        if self.pending is not None:
            self.pending.abandon()
        if self.target is not None:
            self._close_end(self.target, self.target_stream, clean=False)
            self.target = self.target_stream = None
        self.state = ConnectionState.REPLYING
        self.deadline.stop()
        self.owner.entrance.on_last_reply(self, now)
        replied = functools.partial(self.close, reason, clean=True)
        self.pending = farewell = FinalReply(self.client, self.owner.loop, last, replied)
        farewell.begin(now)

    # -- open -------------------------------------------------------------------------------------------------------

    def open(self, target: socket.SocketType, stream: Stream | None, work: Workspace, now: float) -> None:
        """Relay between the client and its outgoing stream, which is connected.

        :param target: the socket of the stream.
        :param stream: the stream; ``None`` for a plain socket.
        :param work: what the flows share.
        :param now: monotonic seconds.
        """
        client, owner, loop = self.client, self.owner, work.loop
        self.target = target
        self.target_stream = stream
        request = self.summary.request
        if request is not None and request.success_reply:
            try:
                client.send(request.success_reply)  # it fits, because little was sent before
            except OSError:
                return self.close("client_reset", now)
        if (introduce := owner.entrance.introduce) is not None and not introduce(self, now):
            return None
        self.state = _OPEN
        self.summary.opened = now
        is_plain = stream is None and self.client_stream is None and self.ticket is None
        flows = self.flows = (FlowPair if is_plain else self._pair(stream))(self, work, client, target)
        up, down = flows.upstream, flows.downstream
        if stream is not None and not stream.answered:
            stream.received = down.count
        up.mask, down.mask = up.reads, down.reads
        try:
            loop.watch(down.descriptor, down.mask, down.handler)
            watched = loop.handlers.get(up.descriptor)
            if watched is None:
                loop.watch(up.descriptor, up.mask, up.handler)
            else:
                if watched == self.client_event:  # else it has sent its request, and is read from already
                    loop.poller.modify(up.descriptor, up.mask)
                loop.handlers[up.descriptor] = up.handler
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.ENOMEM):
                raise  # a factory has returned a socket twice
            text = "%s: the system cannot watch another socket: %s (client %s)"
            logger.error(text, owner.name, error.strerror, format_address(self.summary.peer))
            return self.close("overloaded", now)
        if request is not None and request.early:
            up.queue_first(memoryview(request.early))
        self.pending = None
        if self._deadline is not None or self.limits.come_soon:
            self.deadline.start_open(now)
        if self.summary.started <= owner.looked_until:  # it was not open then
            self.lasts(now)
        if isinstance(flows, StreamPair):
            flows.begin(now)
        return None

    def _pair(self, stream: Stream | None) -> type[FlowPair]:
        """Return the class of the flows to a stream, or to a plain socket."""
        if self.ticket is not None and self.ticket.is_shaped:
            from .metered_pair import MeteredPair  # most tunnels never need it

            return MeteredPair
        return FlowPair if stream is None and self.client_stream is None else StreamPair

    def lasts(self, now: float) -> None:
        """Turn TCP keepalive on, on both sides, and set the deadline, if it is open."""
        if self.target is None or self.state is _CONNECTING:
            return
        self.deadline.update(now)
        for end in (self.client, self.target):
            try:
                keep_alive(end)
            except OSError as error:  # also of a kernel whose MPTCP does not have all of it
                logger.debug("%r: keep-alive: %s", self, error)

    def half_closed(self, now: float) -> None:
        """Take the EOF of one direction, which is about to be passed on."""
        self.state = _HALF_CLOSED
        if self._deadline is not None:  # else no limit comes before the look at all that last
            self._deadline.update_linger(now)

    # -- the end ----------------------------------------------------------------------------------------------------

    def limit_reached(self, reason: str, now: float) -> None:
        """End the connection, because a limit has been reached."""
        if reason == "unreachable" and self.flows is not None:
            return self.flows.close_unreachable(now)
        if reason != "connect_timeout":
            return self.close(reason, now)
        if self.pending is not None:
            self.pending.too_late()
        return self.fail(reason, now)

    def close(self, reason: str, now: float, clean: bool = False, clean_target: bool = False) -> None:
        """End the connection. Idempotent.

        :param reason: the word for its record. ``done`` closes both sockets; any other one resets them.
        :param now: monotonic seconds.
        :param clean: whether to close both sockets all the same.
        :param clean_target: whether to close the target's: it was sent everything, and only its answer is given up.
        """
        if self.state is _CLOSED:
            return
        summary, flows, target_stream = self.summary, self.flows, self.target_stream
        summary.reason, summary.finished = reason, now
        self.state = _CLOSED
        if flows is not None:
            up, down = flows.upstream, flows.downstream
            if reason == "linger" and up.ended and target_stream is not None and not target_stream.half_close:
                clean_target = True
            summary.received, summary.sent = up.moved, down.moved
            summary.first_byte = down.first or down.last
            if up.spliced or down.spliced:
                spliced = up.spliced_bytes(), down.spliced_bytes()
                summary.spliced = spliced if any(spliced) else None  # it may have been about to
            if down.ended and not 0 < up.ended <= down.ended:
                summary.target_ended_first = True
            if target_stream is not None and down.moved:
                target_stream.answered = True
            self.flows = None
            flows.release()
        else:
            if self.pending is not None:
                self.pending.abandon()
            loop, descriptor = self.owner.loop, self.client.fileno()
            if (handler := loop.handlers.get(descriptor)) is not None:
                loop.leave(descriptor, handler, closing=True)
        if self._deadline is not None:
            self._deadline.release()
        clean = clean or reason == "done"
        if clean and self.client_stream is None and target_stream is None:  # the usual end, without further calls
            discard = self.owner.loop.discard
            discard(self.client)
            if self.target is not None:
                discard(self.target)
        else:
            self._close_ends(clean, clean_target)
        if self.ticket is not None:
            self.ticket.leave()
            self.ticket = None
        self.target = self.target_stream = self.client_stream = self.pending = None
        self.owner.connection_over(self)

    def _close_ends(self, clean: bool, clean_target: bool) -> None:
        self._close_end(self.client, self.client_stream, clean)
        if self.target is not None:
            if clean_target and not clean:
                # First, because a close with something unread is a reset, and the target then does not see the EOF.
                with contextlib.suppress(OSError):
                    self.target.shutdown(socket.SHUT_WR)
            self._close_end(self.target, self.target_stream, clean or clean_target)

    def _close_end(self, sock: socket.SocketType, stream: Stream | None, clean: bool) -> None:
        if stream is not None:
            self.owner.close_stream(stream, clean)
        else:
            if not clean:
                set_to_reset(sock)
            self.owner.loop.discard(sock)

    def after_fork(self) -> None:
        """Only close the descriptors, in a forked child: the peers notice nothing."""
        self.state = ConnectionState.CLOSED
        close_descriptor(self.client)
        if self.target is not None:
            close_descriptor(self.target)
        if self.pending is not None:
            self.pending.after_fork()

    def record(self, now: float) -> ConnectionRecord:
        """Return its record, with the labels that its tunnel has now; safe from any thread."""
        record, labels = self._record(now), self.owner.labels
        return record._replace(**labels) if labels else record

    def _record(self, now: float) -> ConnectionRecord:
        flows = self.flows
        if flows is not None:
            with contextlib.suppress(AttributeError):  # it has ended meanwhile
                up, down = flows.upstream, flows.downstream
                is_spliced = bool(up.spliced_bytes() or down.spliced_bytes())
                first_byte = down.first or down.last
                return self.summary.record_of(now, self.state, up.moved, down.moved, is_spliced, first_byte)
        return self.summary.record(now, self.state)

    def bytes_moved(self) -> tuple[int, int, int, int]:
        """Return the bytes from and to the client, and how many of these were spliced; safe from any thread."""
        flows = self.flows
        if flows is not None:
            with contextlib.suppress(AttributeError):  # it has ended meanwhile
                up, down = flows.upstream, flows.downstream
                return up.moved, down.moved, up.spliced_bytes(), down.spliced_bytes()
        summary = self.summary
        return summary.received, summary.sent, *(summary.spliced or (0, 0))

    def __repr__(self) -> str:
        summary = self.summary
        peer, kind = format_address(summary.peer), summary.reason or self.state.text
        return f"<connection from {peer} to {summary.target_name()}: {kind}>"
