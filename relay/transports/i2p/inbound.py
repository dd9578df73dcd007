"""Streams that clients open to a session: by STREAM ACCEPT, or by STREAM FORWARD to a local port.

Everything here runs on the I/O thread, except that forwarded streams may come on another loop's thread.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import time
from collections.abc import Callable

from ...addresses.destinations import Peer
from ...errors import CarrierError, ConnectError, SAMError
from ...eventloop.background import IOThread
from ...eventloop.backoff import Backoff
from ...eventloop.loop import Loop, Timer, Timers
from ...streams.stream import Stream
from .conversation import Conversation
from .forward_port import ForwardPort, OnStream
from .messages import Message, MessageError, parse, parse_peer, shown, stream_accept, stream_forward
from .opening import SETTLE
from .peer_uid import PeerUidLookup
from .session import Session

OnReady = Callable[["IncomingStreams", "OSError | None"], object]

SEVERAL = 8  # pending ACCEPTs, where the bridge serves several
ANSWER = 60.0  # seconds for the bridge to answer
NOTICE = 2.0  # seconds for the router to notice the end of a conversation
STEADY = 10.0  # seconds after which a request that ends counts as a success
AGAIN = (0.1, 10.0)  # seconds until the request is repeated, after the first failure in a row, and the maximum


class IncomingStreams:
    """Requests the streams of one session from the router, and repeats the request until it is closed.

    :param session: the session.
    :param on_stream: called with each stream and its peer.
    :param on_ready: called with ``None`` each time the router agrees to deliver streams, and with the error each time
        it refuses.
    :raises OSError: if no thread or descriptor is available.
    """

    def __init__(self, session: Session, on_stream: OnStream, on_ready: OnReady) -> None:
        self.session = session
        self.delivered = False  # whether a stream has come
        self.paused = False
        self.is_over = False
        self._on_stream = on_stream
        self._on_ready = on_ready
        self._requests: set[_Request] = set()
        self.io_thread = IOThread.acquire(self)
        self._repetition = _Repetition(self.io_thread.loop.timers, self._repeat)

    def begin(self) -> None:
        """Request streams."""
        raise NotImplementedError

    def pause(self, paused: bool) -> None:
        """Keep further streams waiting, or receive them again; none is dropped."""
        raise NotImplementedError

    def move(self, loop: Loop | None) -> None:
        """Accept further streams on another loop's thread, if the subclass can; ``None`` for the I/O thread."""

    def close(self) -> None:
        """Request no more streams. Open streams continue. Idempotent."""
        self.is_over = True
        self._repetition.timer.stop()
        # A copy: the end of a request changes the set.
        for request in list(self._requests):
            request.end()
        self._requests.clear()
        self.io_thread.release(self)

    def abandon(self) -> None:
        """Do nothing: in a forked child the conversations close their own descriptors."""

    def request(self) -> Message:
        """Return the message that requests streams."""
        raise NotImplementedError

    def on_grant(self, request: _Request) -> None:
        """Handle the router's agreement to deliver streams."""
        self._repetition.on_grant()
        self._on_ready(self, None)

    def on_line(self, request: _Request, line: bytes) -> None:
        """Handle a line after the router's agreement."""

    def on_failure(self, request: _Request, error: OSError) -> None:
        """Handle the refusal or the end of a request."""
        self._requests.discard(request)
        # The router was restarted, or has dropped the session: no repetition of the request would ever be granted.
        if isinstance(error, SAMError) and error.result == "INVALID_ID":
            self.session.lose(CarrierError(f"{self.session.name}: the router no longer knows the session"))
        # Only the last of several ACCEPTs repeats: others that still wait will bring streams.
        elif not self._requests and not self.is_over:
            self._repetition.begin(error)

    def _repeat(self, error: OSError | None) -> None:
        """Repeat the request.

        The error is reported only now: often it was the end of the session, which the session itself reports.
        """
        if error is not None and self.session.failure() is None:
            self._on_ready(self, error)
        if not self.is_over:
            self.begin()

    def _ask(self) -> None:
        request = _Request(self)
        self._requests.add(request)
        request.begin()

    def _pass_on(self, under: Stream, peer: Peer) -> None:
        """Pass a stream on; in any thread."""
        self.delivered = True
        self._repetition.on_stream()
        session = self.session
        # Counted before it is passed on: a session that is being drained must not end under it.
        session.enter()
        on_close = session.leave if under.on_close is None else functools.partial(_close, under, session.leave)
        # SAM has no half-close: `SHUT_WR` ends the whole stream at the router, and the reply is lost.
        stream = Stream(under.socket, half_close=False, failure=session.failure, on_close=on_close)
        stream.settle = SETTLE
        self._on_stream(stream, peer)


class _Repetition:
    """Repeats a request with back-off.

    :param timers: of the I/O thread.
    :param repeat: called with the error of the request; with ``None`` if that was granted for :data:`STEADY` seconds.
    """

    def __init__(self, timers: Timers, repeat: Callable[[OSError | None], object]) -> None:
        self._repeat = repeat
        self._backoff = Backoff(*AGAIN)
        self._granted: float | None = None  # when the router agreed, monotonic seconds
        self._error: OSError | None = None
        self.timer = Timer(timers, self._expired)

    def on_grant(self) -> None:
        self._granted = time.monotonic()

    def on_stream(self) -> None:
        self._backoff.reset()

    def begin(self, error: OSError) -> None:
        """Repeat the request later."""
        now = time.monotonic()
        steady = self._granted is not None and now - self._granted > STEADY
        if steady:
            # A request that was granted and ended much later is the normal life of a router, and no failure in a row.
            self._backoff.reset()
        self._granted = None
        self._error = None if steady else error
        self.timer.start(now + self._backoff.next(), now)

    def _expired(self, now: float) -> None:
        error, self._error = self._error, None
        self._repeat(error)


class AcceptStreams(IncomingStreams):
    """Streams by STREAM ACCEPT (SAM v3): conversations that each wait for a stream, and become it.

    Routers differ in how many ACCEPTs may be pending (one in SAM 3.1). Some end those that are too many; relay sends
    fewer then.
    """

    def __init__(self, session: Session, on_stream: OnStream, on_ready: OnReady) -> None:
        super().__init__(session, on_stream, on_ready)
        self._most = 1 if session.bridge.version in ("3.0", "3.1") else SEVERAL

    def begin(self) -> None:
        """Request streams."""
        while not self.is_over and not self.paused and len(self._requests) < self._most:
            self._ask()

    def pause(self, paused: bool) -> None:
        """Send no further ACCEPTs, or go on. The streams of pending ones still come."""
        self.paused = paused
        self.begin()

    def request(self) -> Message:
        """Return the STREAM ACCEPT."""
        return stream_accept(self.session.id)

    def on_line(self, request: _Request, line: bytes) -> None:
        """Handle the line with the peer's destination, or a late failure."""
        self._requests.discard(request)
        try:
            peer = parse_peer(line)
        except MessageError as error:
            request.end()
            return self.on_failure(request, error)
        stream = request.take()
        # The next ACCEPT before this stream is passed on: i2pd 2.45 serves one at a time, and a stream that comes while
        # none is pending may be lost.
        self.begin()
        return self._pass_on(stream, peer)

    def on_failure(self, request: _Request, error: OSError) -> None:
        """Handle the refusal or the end of an ACCEPT without a stream."""
        super().on_failure(request, error)
        # So many the router bears: those that it did not end are still pending.
        self._most = max(1, min(self._most, len(self._requests)))


class ForwardStreams(IncomingStreams):
    """Streams by STREAM FORWARD (SAM v3): the router connects to a local port for each.

    :param lookup: finds the user of a connection; ``None`` to trust every program on the machine.
    :param loop: its thread accepts the streams and calls ``on_stream``; ``None`` for the I/O thread.
    """

    def __init__(
        self,
        session: Session,
        on_stream: OnStream,
        on_ready: OnReady,
        *,
        lookup: PeerUidLookup | None,
        loop: Loop | None,
    ) -> None:
        super().__init__(session, on_stream, on_ready)
        self._then: Callable[[], object] | None = None  # called when the router has noticed the end
        self._patience = Timer(self.io_thread.loop.timers, self._not_noticed)
        try:
            self._port = ForwardPort(session, self._pass_on, lookup, loop=loop or self.io_thread.loop)
        except OSError:
            self.io_thread.release(self)
            raise

    def begin(self) -> None:
        """Request streams."""
        if not self._requests:
            self._ask()

    def pause(self, paused: bool) -> None:
        """Keep further streams waiting in the kernel, or accept them again."""
        self.paused = paused
        self._port.pause(paused)

    def move(self, loop: Loop | None) -> None:
        """Accept further streams on another loop's thread; ``None`` for the I/O thread."""
        self._port.move(loop or self.io_thread.loop)

    def end(self, then: Callable[[], object]) -> None:
        """Request no more streams, and call ``then`` when the router has noticed that, or after two seconds.

        Until it has noticed, i2pd answers OK to an ACCEPT and forgets it.
        """
        request = next(iter(self._requests), None)
        self._port.close()
        if request is None or not request.hang_up():
            self._finish(then)
        else:
            self._then = then
            now = time.monotonic()
            self._patience.start(now + NOTICE, now)

    def on_failure(self, request: _Request, error: OSError) -> None:
        """Handle the refusal or the end of the FORWARD."""
        if self._then is not None:
            self._finish(self._then)
        else:
            super().on_failure(request, error)

    def _not_noticed(self, now: float) -> None:
        if self._then is not None:
            self._finish(self._then)

    def _finish(self, then: Callable[[], object]) -> None:
        if not self.is_over:
            self.close()
            then()

    def close(self) -> None:
        """Request no more streams. Open streams continue. Idempotent."""
        super().close()
        self._patience.stop()
        self._port.close()

    def abandon(self) -> None:
        """Only close the descriptors, in a forked child."""
        self._port.abandon()

    def request(self) -> Message:
        """Return the STREAM FORWARD."""
        return stream_forward(self.session.id, self._port.number)

    def on_grant(self, request: _Request) -> None:
        """Let the port accept connections."""
        assert request.conversation is not None
        self._port.open(request.conversation.stream.socket)
        super().on_grant(request)


class _Request:
    """A conversation in which streams are requested."""

    __slots__ = ("conversation", "_incoming", "_give_up", "_granted", "_early_line", "_over", "_timer")

    def __init__(self, incoming: IncomingStreams) -> None:
        self.conversation: Conversation | None = None
        self._incoming = incoming
        self._give_up: Callable[[], object] | None = None
        self._granted = False
        self._early_line = b""  # the peer's line, if it came before the OK
        self._over = False
        self._timer = Timer(incoming.io_thread.loop.timers, self._expired)

    def begin(self) -> None:
        """Open the conversation."""
        self._give_up = self._incoming.session.bridge.open_conversation(
            time.monotonic() + ANSWER, self._on_conversation
        )

    def take(self) -> Stream:
        """Return the stream that the conversation has become."""
        assert self.conversation is not None
        return self.conversation.take()

    def hang_up(self) -> bool:
        """Half-close the conversation, so that the router ends it.

        :returns: whether there is an end to wait for.
        """
        if self.conversation is None or not self._granted:
            return False
        try:
            # No close: the router's own end is then the proof that it has noticed.
            self.conversation.stream.socket.shutdown(socket.SHUT_WR)
        except OSError:
            return False
        return True

    def end(self) -> None:
        """End the conversation without calling the owner."""
        self._over = True
        self._timer.stop()
        if self._give_up is not None:
            self._give_up()
        if self.conversation is not None:
            self.conversation.close()

    def _on_conversation(self, outcome: Conversation | OSError) -> None:
        """Send the request; an error may come in any thread."""
        if isinstance(outcome, OSError):
            self._incoming.io_thread.loop.call(functools.partial(self._fail, outcome))
        elif self._over:
            outcome.close()
        else:
            self.conversation = outcome
            # `listen` and not `ask`: after its OK the router sends a further line, the peer's destination, at any time.
            outcome.listen(self._on_line, self._fail)
            outcome.say(self._incoming.request())
            now = time.monotonic()
            self._timer.start(now + ANSWER, now)

    def _on_line(self, line: bytes) -> None:
        if self._granted:
            return self._incoming.on_line(self, line)
        try:
            answer = parse(line)
        except MessageError as error:
            if self._early_line or not _is_peer(line):
                return self._fail(error)
            self._early_line = line  # i2pd 2.45 may send it first, when streams wait
            return None
        return self._on_answer(answer)

    def _on_answer(self, answer: Message) -> None:
        if answer.result != "OK":
            result = answer.result or " ".join(answer.words)
            details = shown(answer.options.get("MESSAGE", ""))
            text = f"the router refuses to deliver streams ({shown(result)}{f': {details}' if details else ''})"
            error = SAMError(f"{self._incoming.session.name}: {text}", result=result)
            error.passing = True  # the request is repeated
            return self._fail(error)
        self._granted = True
        self._timer.stop()
        self._incoming.on_grant(self)
        # After the grant, which opens the port or counts the request: the line is handled as if it had come in order.
        if self._early_line:
            self._incoming.on_line(self, self._early_line)
        return None

    def _expired(self, now: float) -> None:
        self._fail(ConnectError(f"{self._incoming.session.name}: no answer in time", reason="connect_timeout"))

    def _fail(self, error: OSError) -> None:
        if not self._over:
            self.end()
            self._incoming.on_failure(self, error)


def _is_peer(line: bytes) -> bool:
    with contextlib.suppress(MessageError):
        return bool(parse_peer(line))
    return False


def _close(under: Stream, leave: Callable[[], object]) -> None:
    under.close()
    leave()
