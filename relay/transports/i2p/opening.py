"""Opening a stream to a destination (SAM v3, "STREAM CONNECT")."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable

from ...addresses.destinations import b32_of, is_base64
from ...errors import CarrierError, ConnectError
from ...eventloop.background import IOThread
from ...eventloop.backoff import Backoff
from ...eventloop.loop import Timer
from ...streams.promise import Abort, CallbackChain, OnResult
from ...streams.socket_proxy import self_contained
from ...streams.stream import Stream, nonblocking
from ...streams.trace import Stage
from .conversation import Conversation
from .messages import UNKNOWN_NAME, Message, UnreachableError, is_timeout, shown, stream_connect, unreachable
from .session import Session
from .unconfirmed import UnconfirmedStream

SETTLE = 0.05  # seconds after the end of a stream until it is known whether its session has ended
_AGAIN = (0.25, 2.0)  # seconds until an unreachable destination is tried again, and the maximum
_MIN_LEFT = 0.1  # seconds that must be left for another try; the pauses become shorter towards the deadline
_ANSWER_TIMEOUT = 150.0  # seconds for the router to answer without a deadline; its own timeout is shorter

_WORDS = {
    "CANT_REACH_PEER": "unreachable; check that its server is up. A new one is found after up to a minute",
    "PEER_NOT_FOUND": "not found; check that its server is up",
    "TIMEOUT": "no answer in time",
    "INVALID_KEY": "the router does not know this name or destination",
    "KEY_NOT_FOUND": "the router does not know this name",
}
_RETRY = ("CANT_REACH_PEER", "PEER_NOT_FOUND", "TIMEOUT", "I2P_ERROR")


def open_stream(
    session: Session,
    dest: str,
    to_port: int | None,
    deadline: float | None,
    done: OnResult,
    *,
    self_contained: bool = False,
    patient: bool = True,
) -> Abort:
    """Open a stream (SAM v3, "STREAM CONNECT"). Never blocks.

    :param session: the session that opens it.
    :param dest: the destination in base64, or a name, which the router looks up.
    :param to_port: virtual port of the destination; ``None`` for none.
    :param deadline: monotonic seconds; ``None`` for no limit.
    :param done: called once, in any thread and perhaps before this returns: with the stream, which has no half-close,
        or with the error: :class:`ConnectError`, :class:`CarrierError` if the session is lost.
    :param self_contained: as for :meth:`relay.streams.dialer.Dialer.dial`.
    :param patient: retry until the deadline while the destination is unreachable.
    :returns: a function that cancels it.
    :raises ValueError: if a line of the protocol cannot hold ``dest``.
    """
    return _PendingStream(
        session, dest, to_port, deadline, done, self_contained=self_contained, patient=patient
    ).begin()


class _Place:
    """The destination of a stream: as it was asked for, and as it was found.

    :param known: the destination, where the router had to look its name up.
    """

    __slots__ = ("dest", "resolved", "_port")

    def __init__(self, dest: str, known: str | None, port: int | None) -> None:
        self.dest = dest
        self.resolved = known or dest
        self._port = port

    def request(self, session_id: str) -> bytes:
        """Return the line that asks for a stream.

        :raises ValueError: for an impossible destination.
        """
        return _request(session_id, self.resolved, self._port)

    def __str__(self) -> str:
        return _target(self.dest, self._port)


class _PendingStream:
    """One stream that is being opened; see :func:`open_stream`."""

    def __init__(
        self,
        session: Session,
        dest: str,
        to_port: int | None,
        deadline: float | None,
        done: OnResult,
        *,
        self_contained: bool,
        patient: bool,
    ) -> None:
        self._session = session
        self._place = _Place(dest, session.known(dest), to_port)
        self._deadline = deadline
        self._self_contained = self_contained
        self._patient = patient and deadline is not None
        self._backoff = Backoff(*_AGAIN)
        self._refusal: OSError | None = None  # of the last try
        self._unconfirmed: UnconfirmedStream | None = None  # once the stream is open
        self._leave = _once(session.leave)
        self._place.request(session.id)  # raises ValueError for an impossible destination
        # Now and not with the stream: a session that is drained waits for those that are being opened, too.
        session.enter()
        self._step = session.bridge.trace.begin(Stage.DESTINATION, str(self._place))
        self._steps = CallbackChain(functools.partial(self._on_outcome, done))

    def begin(self) -> Abort:
        """Begin; return a function that cancels it, from any thread."""
        self._open_conversation()
        return self._give_up

    def _give_up(self) -> None:
        self._steps.give_up()
        if self._unconfirmed is None:  # else the stream does that when it ends
            self._leave()

    def _on_outcome(self, done: OnResult, outcome: Stream | OSError) -> None:
        if isinstance(outcome, OSError):
            self._leave()
            self._step.failed(outcome)
        else:
            self._step.done()
        done(outcome)

    def _open_conversation(self) -> None:
        self._steps.begin(
            lambda on_result: self._session.bridge.open_conversation(self._deadline, on_result),
            self._on_conversation,
            owned=Conversation,
        )

    def _on_conversation(self, outcome: Conversation | OSError) -> None:
        if isinstance(outcome, OSError):
            return self._on_no_conversation(outcome)

        def connect(on_result: Callable[[Message | OSError], object]) -> Abort:
            request = self._place.request(self._session.id)
            outcome.ask(request, self._deadline or time.monotonic() + _ANSWER_TIMEOUT, on_result)
            return outcome.close

        if not self._steps.begin(connect, functools.partial(self._on_answer, outcome)):
            outcome.close()
        return None

    def _on_no_conversation(self, error: OSError) -> None:
        lost = self._session.failure()
        if lost is None and isinstance(error, ConnectError) and error.reason != "denied":
            return self._try_again(error)
        return self._steps.finish(lost or error)

    def _on_answer(self, conversation: Conversation, answer: Message | OSError) -> None:
        """Handle the router's answer; on the I/O thread."""
        if isinstance(answer, OSError):
            self._steps.finish(self._failed(answer))
        elif answer.words == ("STREAM", "STATUS") and answer.result == "OK":
            self._connected(conversation)
        else:
            conversation.close()
            self._on_refusal(answer)
        # Last: the caller gets its stream before sockets for later ones are connected.
        self._session.bridge.fill()

    def _failed(self, error: OSError) -> OSError:
        if is_timeout(error):
            return self._refusal or self._timeout("the router did not connect in time")
        return self._session.failure() or unreachable(f"{self._place}: {error}", "")

    def _timeout(self, problem: str) -> ConnectError:
        return ConnectError(f"{self._place}: {problem}", reason="connect_timeout")

    def _on_refusal(self, answer: Message) -> None:
        result = answer.result
        if result == "INVALID_ID":
            error = CarrierError(f"{self._session.name}: the router no longer knows the session")
            self._session.lose(error)
            return self._steps.finish(error)
        if result in UNKNOWN_NAME and not is_base64(self._place.resolved):
            return self._look_up(answer)
        refusal = self._error_of(answer)
        return self._try_again(refusal) if result in _RETRY else self._steps.finish(refusal)

    def _try_again(self, error: OSError) -> None:
        """Try again later if there is time for that, else fail with this error."""
        left = (self._deadline or 0.0) - time.monotonic()
        # Half of what is left at most, so that the last try comes shortly before the deadline: a destination that was
        # just published is found up to 22 s later.
        delay = self._backoff.next(left / 2)
        if not self._patient or left < _MIN_LEFT:
            return self._steps.finish(error)
        self._refusal = error
        self._step.note(error)
        self._steps.begin(lambda on_result: _Pause(delay, on_result).give_up, lambda _: self._open_conversation())
        return None

    def _error_of(self, answer: Message) -> UnreachableError:
        result, said = answer.result, answer.options.get("MESSAGE", "")
        why = _WORDS.get(result, f"the router refuses the stream ({shown(result or ' '.join(answer.words))})")
        return unreachable(f"{self._place}: {why}{f'; the router reports: {shown(said)}' if said else ''}", result)

    def _look_up(self, answer: Message) -> None:
        """Look the name up: the router may know it, although its CONNECT takes no names."""

        def named(outcome: str | OSError) -> None:
            if isinstance(outcome, OSError):
                error = outcome  # of the connection to the bridge, which says nothing about the name
                if is_timeout(outcome):
                    error = self._timeout("name lookup timed out")
                elif isinstance(outcome, UnreachableError):
                    error = self._error_of(answer)
                # An address is never unknown: the Java router answers so if it has not found the lease set yet.
                later = self._place.resolved.endswith(".b32.i2p")
                self._try_again(error) if later else self._steps.finish(error)
            else:
                self._place.resolved = outcome
                self._open_conversation()

        def look_up(on_result: Callable[[str | OSError], object]) -> Abort:
            return self._session.look_up(self._place.resolved, on_result, self._deadline)

        self._steps.begin(look_up, named)

    def _connected(self, conversation: Conversation) -> None:
        """Make the stream of a conversation; on the I/O thread."""
        session = self._session
        stream = conversation.take()
        stream.half_close = False  # the router answers EOF by closing both directions
        stream.failure, stream.settle = session.failure, SETTLE
        unconfirmed = self._unconfirmed = UnconfirmedStream(
            session.unconfirmed, self._place.dest, conversation.read, self._leave
        )
        try:
            made = (
                self_contained(stream, unconfirmed.end)
                if self._self_contained
                else _on_same_socket(stream, unconfirmed.end)
            )
        except OSError as error:
            unconfirmed.end()
            return self._steps.finish(error)
        made.target = str(self._place)
        made.failure = session.failure
        # i2pd answers OK as soon as it knows the lease set, whether or not anything is there.
        made.answered = False
        made.settle = SETTLE
        # Before the caller gets it, who may close it at once: its end must find it counted.
        session.unconfirmed.add(unconfirmed, made, time.monotonic())
        return self._steps.finish(made)


def _once(call: Callable[[], object]) -> Callable[[], object]:
    """Return a function that calls ``call`` the first time; in any thread."""
    is_called = threading.Lock()

    @nonblocking
    def first() -> None:
        # A lock as a flag, which two threads cannot both take; it is never released.
        if is_called.acquire(blocking=False):
            call()

    return first


def _on_same_socket(stream: Stream, over: Callable[[], object]) -> Stream:
    """Return a stream on the same socket that also calls ``over`` when it ends."""
    under = stream.on_close
    on_close = over if under is None else functools.partial(_both, over, under)
    return Stream(stream.socket, half_close=stream.half_close, on_close=on_close)


def _both(one: Callable[[], object], other: Callable[[], object]) -> None:
    one()
    other()


@functools.lru_cache(maxsize=256)
def _request(session_id: str, dest: str, port: int | None) -> bytes:
    return stream_connect(session_id, dest, to_port=port).encode()


@functools.lru_cache(maxsize=256)
def _target(dest: str, port: int | None) -> str:
    name = b32_of(dest) if is_base64(dest) else dest
    return f"i2p://{name}" + (f":{port}" if port is not None else "")


class _Pause:
    """A step that waits."""

    def __init__(self, seconds: float, on_result: Callable[[None], object]) -> None:
        self._on_result: Callable[[None], object] | None = on_result
        self._io_thread = IOThread.acquire(self)
        self._timer = Timer(self._io_thread.loop.timers, self._expired)
        self._io_thread.loop.call(lambda: self._start(seconds))

    def give_up(self) -> None:
        """Cancel the wait; from any thread."""
        self._io_thread.loop.call(self._end)

    def abandon(self) -> None:
        """Do nothing: in a forked child there is nothing to close."""

    def _start(self, seconds: float) -> None:
        if self._on_result is not None:
            now = time.monotonic()
            self._timer.start(now + seconds, now)

    def _expired(self, now: float) -> None:
        on_result = self._end()
        if on_result is not None:
            on_result(None)

    def _end(self) -> Callable[[None], object] | None:
        on_result, self._on_result = self._on_result, None
        self._timer.stop()
        self._io_thread.release(self)
        return on_result
