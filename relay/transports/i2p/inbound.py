"""How the streams of a session come in: by STREAM ACCEPT, one after the other, or by STREAM FORWARD, to a port of ours.

Everything here happens in the pump's thread, but for streams of the port.
"""

from __future__ import annotations

import functools
import ipaddress
import socket
import time
from collections.abc import Callable

from ...addresses.destinations import Peer
from ...errors import CarrierError, ConnectError, SAMError
from ...eventloop.background import Pump
from ...eventloop.loop import Loop, Timer
from ...streams.stream import Stream
from .conversation import Conversation
from .forward_port import ForwardPort, OnStream
from .messages import Message, MessageError, parse, parse_peer, shown, stream_accept, stream_forward
from .opening import SETTLE
from .peer_uid import PeerUidLookup
from .session import Session

__all__ = ["AcceptStreams", "OnReady", "ForwardStreams", "IncomingStreams", "is_local"]

OnReady = Callable[["IncomingStreams", "OSError | None"], object]

SEVERAL = 8  # ACCEPTs that wait at one time, where the bridge serves several
ANSWER = 60.0  # seconds for the bridge to answer
NOTICE = 2.0  # seconds for the router to notice that a conversation has ended
STEADY = 10.0  # seconds that it lasts when nothing is wrong
AGAIN = (0.1, 10.0)  # seconds until it is asked again, after the first failure in a row and at most


class IncomingStreams:
    """A way in for the streams of one session, which asks for them again until it is closed.

    :param session: whose.
    :param on_stream: called with each stream and who connected.
    :param on_ready: called with ``None`` each time the router agrees to deliver streams, and with the error each time
        it refuses.
    :raises OSError: if there is no thread or descriptor to be had.
    """

    def __init__(self, session: Session, on_stream: OnStream, on_ready: OnReady) -> None:
        self.session = session
        self.brought = False  # whether a stream has come
        self.held = False
        self.over = False
        self._on_stream = on_stream
        self._on_ready = on_ready
        self._requests: set[_Request] = set()
        self._delay = AGAIN[0]
        self._granted: float | None = None  # when streams were promised, monotonic seconds
        self._error: OSError | None = None  # why they are asked for again, where that is to be told
        self.pump = Pump.hold(self)
        self._again = Timer(self.pump.loop.timers, self._try_again)

    def begin(self) -> None:
        """Ask for streams."""
        raise NotImplementedError

    def hold(self, held: bool) -> None:
        """Let no more in for now, or go on; nobody is dropped."""
        raise NotImplementedError

    def move(self, loop: Loop | None) -> None:
        """Accept streams in the thread of another loop from now on, where that can be chosen."""

    def close(self) -> None:
        """Ask for no more. The streams that have come stay. Idempotent."""
        self.over = True
        self._again.stop()
        for request in list(self._requests):
            request.end()
        self._requests.clear()
        self.pump.let_go(self)

    def abandon(self) -> None:
        """In a forked child: the conversations close their own descriptors."""

    # -- what becomes of a request ------------------------------------------------------------------------------------

    def request(self) -> Message:
        """What is said to ask for streams."""
        raise NotImplementedError

    def granted(self, request: _Request) -> None:
        """The router has said that it hands streams over."""
        self._granted = time.monotonic()
        self._on_ready(self, None)

    def heard(self, request: _Request, line: bytes) -> None:
        """Something was said after that."""

    def failed(self, request: _Request, error: OSError) -> None:
        """It was refused, or has ended."""
        self._requests.discard(request)
        if isinstance(error, SAMError) and error.result == "INVALID_ID":
            self.session.lose(CarrierError(f"{self.session.name}: the router does not know the session any more"))
        elif not self._requests and not self.over:
            self._later(error, time.monotonic())

    def _later(self, error: OSError, now: float) -> None:
        steady = self._granted is not None and now - self._granted > STEADY
        delay = AGAIN[0] if steady else self._delay
        self._granted = None
        self._delay = min(delay * 2, AGAIN[1])
        self._error = None if steady else error
        self._again.start(now + delay, now)

    def _try_again(self, now: float) -> None:
        """Ask again; only now it is told, for often it was the end of the session, which is told by others."""
        error, self._error = self._error, None
        if error is not None and self.session.failure() is None:
            self._on_ready(self, error)
        if not self.over:
            self.begin()

    def _ask(self) -> None:
        request = _Request(self)
        self._requests.add(request)
        request.begin()

    def _pass_on(self, under: Stream, peer: Peer) -> None:
        """Hand a stream on; in any thread."""
        self.brought = True
        self._delay = AGAIN[0]
        session = self.session
        session.enter()
        on_close = session.leave if under.on_close is None else functools.partial(_close, under, session.leave)
        stream = Stream(under.socket, half_close=False, failure=session.failure, on_close=on_close)
        stream.settle = SETTLE
        self._on_stream(stream, peer)


class AcceptStreams(IncomingStreams):
    """Streams by STREAM ACCEPT (SAM v3): conversations each of which waits for one, and becomes it.

    Routers differ in how many may wait (one in SAM 3.1), and some end those that are too many: there are fewer then.
    """

    def __init__(self, session: Session, on_stream: OnStream, on_ready: OnReady) -> None:
        super().__init__(session, on_stream, on_ready)
        self._most = 1 if session.bridge.version in ("3.0", "3.1") else SEVERAL

    def begin(self) -> None:
        """Ask for streams."""
        while not self.over and not self.held and len(self._requests) < self._most:
            self._ask()

    def hold(self, held: bool) -> None:
        """Let no more in than those that are waited for already, or go on."""
        self.held = held
        self.begin()

    def request(self) -> Message:
        """What is said to ask for streams."""
        return stream_accept(self.session.id)

    def heard(self, request: _Request, line: bytes) -> None:
        """Who connects; or that it has failed after all."""
        self._requests.discard(request)
        try:
            peer = parse_peer(line)
        except MessageError as error:
            request.end()
            return self.failed(request, error)
        stream = request.take()
        self.begin()
        return self._pass_on(stream, peer)

    def failed(self, request: _Request, error: OSError) -> None:
        """It was refused, or has ended without a stream."""
        super().failed(request, error)
        self._most = max(1, min(self._most, len(self._requests)))


class ForwardStreams(IncomingStreams):
    """Streams by STREAM FORWARD (SAM v3): the router connects to a port of ours for each.

    :param owners: finds the user of a connection; ``None`` to trust every program.
    :param loop: in whose thread streams are accepted, and told of.
    """

    def __init__(
        self,
        session: Session,
        on_stream: OnStream,
        on_ready: OnReady,
        *,
        owners: PeerUidLookup | None,
        loop: Loop | None,
    ) -> None:
        super().__init__(session, on_stream, on_ready)
        self._then: Callable[[], object] | None = None  # what is to happen when the router has noticed the end
        self._patience = Timer(self.pump.loop.timers, self._not_noticed)
        try:
            self._port = ForwardPort(session, self._pass_on, owners, loop=loop or self.pump.loop)
        except OSError:
            self.pump.let_go(self)
            raise

    def begin(self) -> None:
        """Ask for streams."""
        if not self._requests:
            self._ask()

    def hold(self, held: bool) -> None:
        """Let no more in for now, or go on."""
        self.held = held
        self._port.hold(held)

    def move(self, loop: Loop | None) -> None:
        """Accept streams in the thread of another loop from now on; ``None`` for the pump's."""
        self._port.move(loop or self.pump.loop)

    def end(self, then: Callable[[], object]) -> None:
        """Ask for no more, and have ``then`` called when the router has noticed.

        Until it has, i2pd says OK to an ACCEPT and forgets it.
        """
        request = next(iter(self._requests), None)
        self._port.close()
        if request is None or not request.hang_up():
            self._finish(then)
        else:
            self._then = then
            now = time.monotonic()
            self._patience.start(now + NOTICE, now)

    def failed(self, request: _Request, error: OSError) -> None:
        """It was refused, or has ended."""
        if self._then is not None:
            self._finish(self._then)
        else:
            super().failed(request, error)

    def _not_noticed(self, now: float) -> None:
        if self._then is not None:
            self._finish(self._then)

    def _finish(self, then: Callable[[], object]) -> None:
        if not self.over:
            self.close()
            then()

    def close(self) -> None:
        """Ask for no more."""
        super().close()
        self._patience.stop()
        self._port.close()

    def abandon(self) -> None:
        """In a forked child: close the descriptors and nothing else."""
        self._port.abandon()

    def request(self) -> Message:
        """What is said to ask for streams."""
        return stream_forward(self.session.id, self._port.number)

    def granted(self, request: _Request) -> None:
        """Streams may come from now on."""
        assert request.conversation is not None
        self._port.open(request.conversation.stream.socket)
        super().granted(request)


class _Request:
    """A conversation in which streams are asked for. Everything happens in the pump's thread."""

    __slots__ = ("conversation", "_incoming", "_give_up", "_granted", "_early", "_over", "_timer")

    def __init__(self, way: IncomingStreams) -> None:
        self.conversation: Conversation | None = None
        self._incoming = way
        self._give_up: Callable[[], object] = _nothing
        self._granted = False
        self._early = b""  # who connects, said before it was said that anybody may
        self._over = False
        self._timer = Timer(way.pump.loop.timers, self._expired)

    def begin(self) -> None:
        """Begin to talk to the bridge."""
        self._give_up = self._incoming.session.bridge.open_conversation(time.monotonic() + ANSWER, self._met)

    def take(self) -> Stream:
        """Have the stream that the conversation has become."""
        assert self.conversation is not None
        return self.conversation.take()

    def hang_up(self) -> bool:
        """Say nothing more, so that the router ends it.

        :returns: whether there is an end to wait for.
        """
        if self.conversation is None or not self._granted:
            return False
        try:
            self.conversation.stream.socket.shutdown(socket.SHUT_WR)
        except OSError:
            return False
        return True

    def end(self) -> None:
        """End it; nobody is told."""
        self._over = True
        self._timer.stop()
        self._give_up()
        if self.conversation is not None:
            self.conversation.close()

    def _met(self, outcome: Conversation | OSError) -> None:
        """An error may come in any thread."""
        if isinstance(outcome, OSError):
            self._incoming.pump.loop.call(functools.partial(self._fail, outcome))
        elif self._over:
            outcome.close()
        else:
            self.conversation = outcome
            outcome.listen(self._heard, self._fail)
            outcome.say(self._incoming.request())
            now = time.monotonic()
            self._timer.start(now + ANSWER, now)

    def _heard(self, line: bytes) -> None:
        if self._granted:
            return self._incoming.heard(self, line)
        try:
            answer = parse(line)
        except MessageError as error:
            if self._early or not _is_peer(line):
                return self._fail(error)
            self._early = line  # a race in i2pd 2.45, where streams wait already
            return None
        return self._answered(answer)

    def _answered(self, answer: Message) -> None:
        if answer.result != "OK":
            result = answer.result or " ".join(answer.words)
            said = shown(answer.options.get("MESSAGE", ""))
            text = f"the router hands no streams over ({shown(result)}{f': {shown(said)}' if said else ''})"
            error = SAMError(f"{self._incoming.session.name}: {text}", result=result)
            error.passing = True  # it is asked again
            return self._fail(error)
        self._granted = True
        self._timer.stop()
        self._incoming.granted(self)
        if self._early:
            self._incoming.heard(self, self._early)
        return None

    def _expired(self, now: float) -> None:
        self._fail(ConnectError(f"{self._incoming.session.name}: no answer in time", reason="connect_timeout"))

    def _fail(self, error: OSError) -> None:
        if not self._over:
            self.end()
            self._incoming.failed(self, error)


def _is_peer(line: bytes) -> bool:
    try:
        parse_peer(line)
    except MessageError:
        return False
    return True


def is_local(session: Session) -> bool:
    """Whether the bridge is on this machine and nothing is between, so that it can connect to us."""
    control = session.control_socket
    try:
        host = control.getpeername()[0] if control.family in (socket.AF_INET, socket.AF_INET6) else ""
        return bool(host) and ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except OSError:
        return False


def _close(under: Stream, leave: Callable[[], object]) -> None:
    under.close()
    leave()


def _nothing() -> None:
    pass
