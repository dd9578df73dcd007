"""One relayed pair: two flows, their limits, and the reason it ended."""

from __future__ import annotations

import contextlib
import functools
import logging
import socket
from collections.abc import Callable, Hashable
from typing import Any, Protocol

from ..addresses.printable import printable
from ..errors import ConnectError
from ..eventloop.loop import Loop, Timer
from ..eventloop.poller import ERR, HUP, READ
from ..eventloop.sockets import format_address, keep_alive, set_to_reset, unsent
from ..streams.checks import FIRST_BYTE
from ..streams.fairness import source_of
from ..streams.introduction import Farewell, Greeting, Introduction, watch
from ..streams.rate_limited_log import RateLog
from ..streams.request import Refusal, Request
from ..streams.stream import Stream
from .flow import Flow, Workspace
from .limits import Limits
from .records import ConnectionRecord, State, Stats

__all__ = ["Connection", "ConnectionRecord", "Host", "State", "Stats"]

logger = logging.getLogger("relay")

_LONGEST = 500  # characters of what is wrong with a client or a target, in the log
_QUIET = 1.0  # seconds; apis: how long the end of a target is held back from a client stream without half-close


class Host(Protocol):
    """The relay thread, as a connection sees it."""

    name: str
    limits: Limits
    loop: Loop
    guesses: RateLog  # wrong users and passwords
    swept: float  # when keepalive was last turned on for every open connection, monotonic seconds
    undecided: dict[Connection, None]  # half-open connections

    def decided(self, connection: Connection, now: float, /) -> None:
        """A client has sent its request."""

    def parting(self, connection: Connection, now: float, /) -> None:
        """A connection gets no stream, only a last reply."""

    def let_go(self, stream: Stream, clean: bool) -> None:
        """Close a stream, or reset it."""

    def connection_over(self, connection: Connection, /) -> None:
        """A connection has ended."""


class Making(Protocol):
    """What a connection waits for before it is open: the client's request, its stream, or its last reply."""

    def abandon(self) -> None:
        """Give it up."""

    def too_late(self) -> None:
        """Its time is over."""

    def after_fork(self) -> None:
        """Close a forked child's copies of its descriptors."""


class Connection:
    """One accepted client and the stream that was made for it. Belongs to the relay thread."""

    __slots__ = (
        "tunnel",
        "limits",
        "client",
        "target",
        "client_stream",
        "target_stream",
        "attempt",
        "request",
        "up",
        "down",
        "state",
        "reason",
        "peer",
        "name",
        "started",
        "opened",
        "finished",
        "received",
        "sent",
        "spliced",
        "over",
        "kept_alive",
        "due",
        "tick",
        "queued",
        "drained",
    )

    up: Flow  # from the client to the target
    down: Flow  # from the target to the client

    def __init__(self, tunnel: Host, client: socket.SocketType, stream: Stream | None, peer: Any, now: float) -> None:
        self.tunnel = tunnel
        self.limits = tunnel.limits
        self.client = client
        self.client_stream = stream  # None for a plain socket
        self.target: socket.SocketType | None = None
        self.target_stream: Stream | None = None
        self.attempt: Making | None = None  # what makes the outgoing stream; None once there is one
        self.request = stream.request if stream is not None else None  # where the client wants to be led, if it said so
        self.state = State.CONNECTING
        self.reason: str | None = None
        self.peer = peer
        self.name: Any = None  # of the target, or its address, which is spelled out only when it is asked for
        self.started = now
        self.opened = 0.0
        self.finished = 0.0
        self.received = self.sent = 0
        self.spliced = False
        self.over = False
        self.kept_alive = False
        self.due = 0.0  # when expire() is to be called; later than a limit only if bytes moved meanwhile
        self.tick = 0
        self.queued = (0, 0)  # what unsent() told when it was last looked at
        self.drained = 0.0  # when it was last seen to be another number, which means that bytes move

    # -- its life -------------------------------------------------------------------------------------------------

    def hear(self, greeting: Greeting, now: float) -> None:
        """Let the client say where it wants to be led; then make the stream."""
        self.due = due = now + min(FIRST_BYTE, self.limits.handshake)
        self.tunnel.loop.timers.set(self, due, now)
        self.tunnel.undecided[self] = None
        self.attempt = introduction = Introduction(self.client, self.tunnel.loop, greeting, self._heard)
        introduction.begin(now)

    def source(self) -> Hashable:
        """Where its client comes from; see :func:`relay.streams.fairness.source_of`."""
        return source_of(self.client, self.peer)

    def give_way(self, now: float) -> None:
        """It is half-open, and others need its room."""
        if isinstance(self.attempt, Farewell):
            self.attempt.finish(now)
        else:
            self.close("overloaded", now)

    def _heard(self, outcome: Request | Refusal | OSError, now: float) -> None:
        self.attempt = None
        if isinstance(outcome, Request):
            self.request = outcome
            self.tunnel.decided(self, now)
        elif isinstance(outcome, Refusal):
            if outcome.problem:
                problem = printable(outcome.problem, _LONGEST)
                if outcome.guessed:
                    self.tunnel.guesses.log(
                        now, "%s: %s (client %s)", self.tunnel.name, problem, format_address(self.peer)
                    )
                else:
                    logger.info("%s: %s (client %s)", self.tunnel.name, problem, format_address(self.peer))
            self._part(outcome.last, outcome.reason, now)
        else:
            self.close("client_reset", now)

    def wait_for_target(self, now: float) -> None:
        """The stream is being made: read nothing from the client yet."""
        if self.limits.making is not None:
            self.due = due = self.started + self.limits.making
            self.tunnel.loop.timers.set(self, due, now)

    def watch_client(self) -> None:
        """See the client's reset while the stream is being made."""
        watch(self.tunnel.loop, self.client.fileno(), 0, self.client_event)

    def client_event(self, event: int, now: float) -> None:
        """The client hung up while its stream was being made."""
        if event & ERR and not event & HUP and not self.client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            return
        if event & (ERR | HUP):
            self.close("client_reset", now)

    def open(self, target: socket.SocketType, stream: Stream | None, work: Workspace, now: float) -> None:
        """The outgoing stream is there: relay."""
        client = self.client
        loop = work.loop
        self.target = target
        self.target_stream = stream
        request = self.request
        if request is not None:
            try:
                client.send(request.granted)  # it fits, for hardly anything was sent before
            except OSError:
                return self.close("client_reset", now)
        self.state = State.OPEN
        self.opened = now
        up = self.up = Flow(self, work, client, target)
        down = self.down = Flow(self, work, target, client)
        up.reverse = down
        down.reverse = up
        if stream is not None and not stream.answered:
            stream.received = down.count
        up.mask = down.mask = READ
        loop.watch(down.descriptor, READ, down.handler)
        watched = loop.handlers.get(up.descriptor)
        if watched is None:
            loop.watch(up.descriptor, READ, up.handler)
        else:
            if watched == self.client_event:  # else it has introduced itself, and is read from already
                loop.poller.modify(up.descriptor, READ)
            loop.handlers[up.descriptor] = up.handler
        if request is not None and request.early:
            up.hold(memoryview(request.early))
        first = self.limits.first
        if first is not None and not (self.tick and self.due <= now + first):
            self.due = due = now + first
            loop.timers.set(self, due, now)
        if self.attempt is not None or request is not None:
            self.attempt = None
            if self.started <= self.tunnel.swept:  # keep-alive was turned on without it
                self.keep_alive()

    def refuse(self, reason: str, now: float) -> None:
        """There is no stream for it: answer a client that has asked for one, reset any other."""
        if self.request is None or self.over:
            self.close(reason, now)
        else:
            self._part(self.request.refused(reason), reason, now)

    def _part(self, last: bytes, reason: str, now: float) -> None:
        """End it by a few last bytes to the client."""
        if self.attempt is not None:
            self.attempt.abandon()
        if self.target is not None:
            self._let_go(self.target, self.target_stream, clean=False)
            self.target = self.target_stream = None
        self.tunnel.loop.timers.cancel(self)
        self.tunnel.parting(self, now)
        over = functools.partial(self.close, reason, clean=True)
        self.attempt = farewell = Farewell(self.client, self.tunnel.loop, last, over)
        farewell.begin(now)

    def flow_ended(self, flow: Flow, now: float) -> None:
        """One direction has come to its end: pass that on."""
        source = self.client_stream if flow is self.up else self.target_stream
        sink = self.target_stream if flow is self.up else self.client_stream
        if source is not None and source.settle:
            flow.ended = 0.0
            self._settle(source, flow.end, now)
        elif _failure(source) is not None:
            self.broken(flow.source, now)
        elif flow.reverse.ended:
            self.close("done", now)
        elif flow is self.down and self._is_unanswered():
            self._nobody_there(now)
        elif source is not None and not source.half_close:
            self._end_both(flow, now)
        else:
            self.state = State.HALF_CLOSED
            if sink is None or sink.half_close:
                try:
                    flow.sink.shutdown(socket.SHUT_WR)
                except OSError:
                    if flow.sink.fileno() < 0:
                        return self.broken(flow.sink, now)
                    # It was reset; the flow that reads from it will see that.
                linger = self.limits.linger
                if linger is not None and not (self.tick and self.due <= now + linger):
                    self.set_deadline(now)
            else:
                self.set_deadline(now)

    def passes_end_of(self, flow: Flow) -> bool:
        """Whether the end of this flow's source will be passed on to its sink at once."""
        source = self.client_stream if flow is self.up else self.target_stream
        sink = self.target_stream if flow is self.up else self.client_stream
        return (sink is None or sink.half_close) and not (source is not None and source.settle)

    def _settle(self, stream: Stream, then: Callable[[float], object], now: float) -> None:
        """Wait until it is known whether an end is that of the stream's transport; only the first one is waited for."""
        if stream.settle > 0:
            timer = Timer(self.tunnel.loop.timers, functools.partial(self._settled, stream, then))
            timer.start(now + stream.settle, now)
            stream.settle = -1.0

    def _settled(self, stream: Stream, then: Callable[[float], object], now: float) -> None:
        stream.settle = 0.0
        if not self.over:
            then(now)

    def _is_unanswered(self) -> bool:
        """Whether the target was said to be there, and no byte has come from it."""
        return self.target_stream is not None and not self.target_stream.answered and not self.down.moved

    def _nobody_there(self, now: float) -> None:
        text = "%s: %s: closed before sending any data; check that the service is running (client %s)"
        logger.warning(text, self.tunnel.name, self.target_name(), format_address(self.peer))
        self.close("unreachable", now)

    def _end_both(self, flow: Flow, now: float) -> None:
        # What the other side still sends has nowhere to go. Closing with it unread would reset that side and cost it
        # the last bytes of what it was sent, so it is read and dropped.
        self.state = State.HALF_CLOSED
        reverse = flow.reverse
        reverse.drop()
        flow.want(-1)  # whatever becomes of the stream that has ended, its end was clean
        try:
            flow.sink.shutdown(socket.SHUT_WR)
        except OSError:
            return self.close("done", now)
        reverse.use(reverse.discard)
        reverse.want(READ)
        self.set_deadline(now)

    def keep_alive(self) -> bool:
        """Turn TCP keep-alive on, both ways.

        :returns: whether it was not on before.
        """
        if self.kept_alive:
            return False
        if self.target is not None and self.state is not State.CONNECTING:
            self.kept_alive = True
            try:
                keep_alive(self.client)
                keep_alive(self.target)
            except OSError as error:
                logger.debug("%r: keep-alive: %s", self, error)
        return True

    def broken(self, sock: socket.SocketType, now: float) -> None:
        """A socket failed: tell whose, and why if its stream knows."""
        stream, reason = self.target_stream, "target_reset"
        if sock is self.client:
            stream, reason = self.client_stream, "client_reset"
        if stream is not None and stream.settle:
            self.up.want(-1)
            self.down.want(-1)
            return self._settle(stream, functools.partial(self.broken, sock), now)
        failure = _failure(stream)
        if failure is None and sock is not self.client and self._is_unanswered():
            return self._nobody_there(now)
        if isinstance(failure, ConnectError):  # a stream that was there before its far end could be reached
            problem = printable(str(failure), _LONGEST)
            logger.warning("%s: %s (client %s)", self.tunnel.name, problem, format_address(self.peer))
        return self.close(getattr(failure, "reason", reason), now)

    def close(self, reason: str, now: float, *, clean: bool = False, said: bool = False) -> None:
        """End it, for this reason: by a close if all was said (then it is clean), else by a reset.

        :param said: whether the target has been sent everything, and only its answer is given up.
        """
        if self.over:
            return
        self.over = True
        if self.state is State.CONNECTING:
            if self.attempt is not None:
                self.attempt.abandon()
            if self.attempt is not None or self.request is not None:
                self.tunnel.loop.forget(self.client.fileno(), closing=True)
        else:
            up, down = self.up, self.down
            said = said or (reason == "linger" and bool(up.ended) and not self._has_half_close())
            self.received, self.sent = up.moved, down.moved
            if self.target_stream is not None and down.moved:
                self.target_stream.answered = True
            self.spliced = up.spliced or down.spliced
            up.release(own=self.client_stream is None)
            down.release(own=self.target_stream is None)
            del self.up, self.down
        self.tunnel.loop.timers.cancel(self)
        clean = clean or reason == "done"
        self._let_go(self.client, self.client_stream, clean)
        if self.target is not None:
            if said and not clean:
                # First, for a close with something unread is a reset, and the target then does not see the end.
                with contextlib.suppress(OSError):
                    self.target.shutdown(socket.SHUT_WR)
            self._let_go(self.target, self.target_stream, clean or said)
        self.state = State.CLOSED
        self.reason = reason
        self.finished = now
        self.target = self.target_stream = self.client_stream = self.attempt = None
        self.tunnel.connection_over(self)

    def _has_half_close(self) -> bool:
        return self.target_stream is None or self.target_stream.half_close

    def _let_go(self, sock: socket.SocketType, stream: Stream | None, clean: bool) -> None:
        if stream is not None:
            self.tunnel.let_go(stream, clean)
        elif clean:
            self.tunnel.loop.discard(sock)
        else:
            set_to_reset(sock)
            self.tunnel.loop.discard(sock)

    def after_fork(self) -> None:
        """Close a forked child's copies of the sockets; nothing is told to the peers."""
        self.over = True
        self.client.close()
        if self.target is not None:
            self.target.close()
        if self.attempt is not None:
            self.attempt.after_fork()

    # -- its limits -----------------------------------------------------------------------------------------------

    def set_deadline(self, now: float) -> None:
        """Have :meth:`expire` called when the next limit may be reached."""
        due, _ = self.next_limit()
        if due is not None and not (self.tick and self.due <= due):
            self.due = due
            self.tunnel.loop.timers.set(self, due, now)

    def expire(self, now: float) -> None:
        """A limit may have been reached. Bytes that moved meanwhile have put some of them off."""
        if self.over:
            return
        due, reason = self.next_limit()
        if due is not None and now >= due and self._still_sends(reason, now):
            due, reason = self.next_limit()
        if due is None:
            return
        if now < due:
            self.due = due
            self.tunnel.loop.timers.set(self, due, now)
        else:
            if reason != "connect_timeout":
                return self.close(reason, now)
            if self.attempt is not None:
                self.attempt.too_late()
            self.refuse(reason, now)

    def crashed(self, now: float) -> None:
        """A bug: end it."""
        self.close("factory_error", now)

    def next_limit(self) -> tuple[float | None, str]:
        """When the next limit is reached if no byte moves until then, and which."""
        limits = self.limits
        found: list[tuple[float, str]] = []
        if limits.lifetime is not None:
            found.append((self.started + limits.lifetime, "lifetime"))
        if self.state is State.CONNECTING:
            if isinstance(self.attempt, Introduction):
                seconds = limits.handshake if self.attempt.begun else min(FIRST_BYTE, limits.handshake)
                found.append((self.started + seconds, "connect_timeout"))
            elif limits.connect is not None:
                found.append((self.started + limits.connect, "connect_timeout"))
        else:
            if limits.idle is not None:
                found.append((max(self.opened, self.drained, self.up.last, self.down.last) + limits.idle, "idle"))
            if self.state is State.HALF_CLOSED:
                found += self._half_closed_limits()
        return min(found, default=(None, ""))

    def unsent(self) -> tuple[int, int]:
        """What the systems of the client and of the target have not taken yet of what was sent to them."""
        client, target = self.client_stream, self.target_stream
        assert self.target is not None
        return (
            unsent(self.client) if client is None else client.queued(),
            unsent(self.target) if target is None else target.queued(),
        )

    def _still_sends(self, reason: str, now: float) -> bool:
        """Whether bytes go on moving that the engine has moved already: out of the kernel, to a slow peer.

        What has changed since the last look has moved. At the first look nobody knows, so that a peer that has stopped
        with something on its way to it is given its time twice.
        """
        if reason not in ("idle", "linger") or (reason == "linger" and not self.limits.linger):
            return False
        queued = self.unsent()
        if not any(queued) or queued == self.queued:
            return False
        self.queued = queued
        self.drained = now
        return True

    def _half_closed_limits(self) -> list[tuple[float, str]]:
        ended = self.up if self.up.ended else self.down
        other = ended.reverse
        found = []
        if self.limits.linger is not None:
            found.append((max(ended.ended, self.drained, other.last) + self.limits.linger, "linger"))
        if other.handler == other.discard:
            return [(ended.ended + (self.limits.linger or _QUIET), "done")]
        held_back = self.client_stream is not None and not self.client_stream.half_close
        if held_back and ended is self.down:
            found.append((max(ended.ended, other.last + _QUIET), "done"))
        return found

    # -- what is told of it ---------------------------------------------------------------------------------------

    def record(self, now: float) -> ConnectionRecord:
        """Its record; safe from any thread."""
        received, sent, spliced = self.received, self.sent, self.spliced
        if not self.over:
            try:
                up, down = self.up, self.down
                received, sent, spliced = up.moved, down.moved, up.spliced or down.spliced
            except AttributeError:
                pass  # it is not open yet, or no longer
        return ConnectionRecord(
            peer=self.peer,
            target=self.target_name(),
            age=(self.finished or now) - self.started,
            received=received,
            sent=sent,
            engine="splice" if spliced else "copy",
            state=self.state.value,
            reason=self.reason,
        )

    def target_name(self) -> str | None:
        """What the outgoing stream leads to, once it is known."""
        return format_address(self.name or self.request) or None

    def __repr__(self) -> str:
        return (
            f"<connection from {format_address(self.peer)} to {self.target_name()}: {self.reason or self.state.value}>"
        )


def _failure(stream: Stream | None) -> BaseException | None:
    """Why the stream ended, if that was a failure."""
    if stream is None or stream.failure is None:
        return None
    try:
        return stream.failure()
    except Exception as error:
        logger.exception("%r: its failure() raised, which counts as one", stream)
        return error
