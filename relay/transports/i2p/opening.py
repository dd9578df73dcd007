"""A stream on its way to another destination."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable

from ...addresses.destinations import b32_of, is_base64
from ...errors import CarrierError, ConnectError
from ...eventloop.background import Pump
from ...eventloop.loop import Timer
from ...streams.detached import passage
from ...streams.promise import Abort, CallbackChain, OnResult
from ...streams.stream import Stream
from .conversation import Conversation
from .messages import UNKNOWN_NAME, Message, UnreachableError, shown, stream_connect, unreachable
from .session import Session
from .unconfirmed import UnconfirmedStream

__all__ = ["SETTLE", "open_stream"]

SETTLE = 0.05  # seconds until it shows whether the end of a stream is that of its session
_AGAIN = (0.25, 2.0)  # seconds until a destination that cannot be reached is tried again, and at most
_LEAST = 0.1  # seconds that must be left; the pauses become shorter towards the deadline
_ANSWER = 150.0  # seconds for the router to answer where nobody has a deadline; its own patience ends before

_WORDS = {
    "CANT_REACH_PEER": "it cannot be reached; is its server up? A new one takes up to a minute to be found",
    "PEER_NOT_FOUND": "it cannot be found; is its server up?",
    "TIMEOUT": "it does not answer in time",
    "INVALID_KEY": "the router does not know this name or destination",
    "KEY_NOT_FOUND": "the router does not know this name",
}
_LATER = ("CANT_REACH_PEER", "PEER_NOT_FOUND", "TIMEOUT", "I2P_ERROR")


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
    """Begin to open a stream (SAM v3, "STREAM CONNECT"). Never blocks.

    :param session: the session to open it in.
    :param dest: the destination in base64, or a name, which the router looks up.
    :param to_port: the virtual port there; ``None`` for none.
    :param deadline: monotonic seconds; ``None`` for no limit.
    :param done: called once, in any thread, perhaps before this returns, with the stream, which has no half-close;
        or with the error: :class:`ConnectError`, :class:`CarrierError` if the session is lost.
    :param self_contained: as for :meth:`relay.streams.dialer.Dialer.dial`.
    :param patient: whether to retry, until the deadline, while the destination cannot be reached yet.
    :returns: gives it up.
    :raises ValueError: if ``dest`` does not fit in a line of the protocol.
    """
    return _Opening(session, dest, to_port, deadline, done, self_contained=self_contained, patient=patient).begin()


class _Opening:
    """One stream on its way; see :func:`open_stream`."""

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
        self._dest = dest
        self._asked = session.known(dest) or dest  # the destination itself, where its name had to be looked up
        self._to_port = to_port
        self._deadline = deadline
        self._lasting = self_contained
        self._patient = patient and deadline is not None
        self._delay = _AGAIN[0]
        self._refusal: OSError | None = None  # the last time, if it is tried again
        self._unconfirmed: UnconfirmedStream | None = None  # from the moment when the stream is there
        self._left = False
        self._lock = threading.Lock()
        _request(session.id, self._asked, to_port)  # what no line can say is an error here and now
        session.enter()
        self._steps = CallbackChain(functools.partial(self._over, done))

    def begin(self) -> Abort:
        """Begin; the result gives it up, from any thread."""
        self._converse()
        return self._give_up

    def _give_up(self) -> None:
        self._steps.give_up()
        if self._unconfirmed is None:  # else the stream leaves when it is over
            self._leave()

    def _leave(self) -> None:
        with self._lock:
            left, self._left = self._left, True
        if not left:
            self._session.leave()

    def _over(self, done: OnResult, outcome: Stream | OSError) -> None:
        if isinstance(outcome, OSError):
            self._leave()
        done(outcome)

    def _converse(self) -> None:
        self._steps.begin(lambda told: self._session.bridge.open_conversation(self._deadline, told), self._met)

    def _met(self, outcome: Conversation | OSError) -> None:
        if isinstance(outcome, OSError):
            return self._not_met(outcome)

        def connect(told: Callable[[Message | OSError], object]) -> Abort:
            request = _request(self._session.id, self._asked, self._to_port)
            outcome.ask(request, self._deadline or time.monotonic() + _ANSWER, told)
            return outcome.close

        if not self._steps.begin(connect, functools.partial(self._answered, outcome)):
            outcome.close()
        return None

    def _not_met(self, error: OSError) -> None:
        lost = self._session.failure()
        if lost is None and isinstance(error, ConnectError) and error.reason != "denied":
            return self._try_again(error)
        return self._steps.finish(lost or error)

    def _answered(self, conversation: Conversation, answer: Message | OSError) -> None:
        """In the pump's thread."""
        if isinstance(answer, OSError):
            self._steps.finish(self._failed(answer))
        elif answer.words == ("STREAM", "STATUS") and answer.result == "OK":
            self._connected(conversation)
        else:
            conversation.close()
            self._refused(answer)
        self._session.bridge.fill()

    def _failed(self, error: OSError) -> OSError:
        if isinstance(error, ConnectError) and error.reason == "connect_timeout":
            return self._refusal or ConnectError(
                f"{self._shown}: the router did not connect in time", reason="connect_timeout"
            )
        return self._session.failure() or unreachable(f"{self._shown}: {error}", "")

    def _refused(self, answer: Message) -> None:
        result = answer.result
        if result == "INVALID_ID":
            error = CarrierError(f"{self._session.name}: the router does not know the session any more")
            self._session.lose(error)
            return self._steps.finish(error)
        if result in UNKNOWN_NAME and not is_base64(self._asked):
            return self._look_up(answer)
        refusal = self._refusal_of(answer)
        return self._try_again(refusal) if result in _LATER else self._steps.finish(refusal)

    def _try_again(self, error: OSError) -> None:
        """Try again after a while, if there is time for that; this is why."""
        left = (self._deadline or 0.0) - time.monotonic()
        delay, self._delay = min(self._delay, left / 2), min(self._delay * 2, _AGAIN[1])
        if not self._patient or left < _LEAST:
            return self._steps.finish(error)
        self._refusal = error
        self._steps.begin(lambda told: _Pause(delay, told).give_up, lambda _: self._converse())
        return None

    def _refusal_of(self, answer: Message) -> UnreachableError:
        result, said = answer.result, answer.options.get("MESSAGE", "")
        why = _WORDS.get(result, f"the router refuses ({shown(result or ' '.join(answer.words))})")
        return unreachable(f"{self._shown}: {why}{f'; the router says: {shown(said)}' if said else ''}", result)

    def _look_up(self, answer: Message) -> None:
        """It may know the name all the same, where it does not take names here."""

        def named(outcome: str | OSError) -> None:
            if isinstance(outcome, OSError):
                refusal = self._refusal_of(answer)
                # An address cannot be unknown as a name can: Java's router says so of what it has not found yet.
                later = self._asked.endswith(".b32.i2p")
                self._try_again(refusal) if later else self._steps.finish(refusal)
            else:
                self._asked = outcome
                self._converse()

        def look_up(told: Callable[[str | OSError], object]) -> Abort:
            self._session.look_up(self._asked, told)
            return _nothing

        self._steps.begin(look_up, named)

    def _connected(self, conversation: Conversation) -> None:
        """In the pump's thread."""
        session = self._session
        stream = conversation.take()
        stream.half_close = False  # an end of ours would end all of it, and cost what is still to come
        stream.failure, stream.settle = session.failure, SETTLE
        unconfirmed = self._unconfirmed = UnconfirmedStream(
            session.unconfirmed, self._dest, conversation.read, self._leave
        )
        try:
            made = passage(stream, unconfirmed.over) if self._lasting else _over_the_same(stream, unconfirmed.over)
        except OSError as error:
            unconfirmed.over()
            return self._steps.finish(error)
        made.target = self._shown
        made.failure = session.failure
        made.answered = False
        made.settle = SETTLE
        session.unconfirmed.begin(unconfirmed, made, time.monotonic())
        return self._steps.finish(made)

    @property
    def _shown(self) -> str:
        return _shown(self._dest, self._to_port)


def _over_the_same(stream: Stream, over: Callable[[], object]) -> Stream:
    """A stream over the same socket, which tells when it is over."""
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
def _shown(dest: str, port: int | None) -> str:
    name = b32_of(dest) if is_base64(dest) else dest
    return f"i2p://{name}" + (f":{port}" if port is not None else "")


class _Pause:
    """A step that only takes its time."""

    def __init__(self, seconds: float, told: Callable[[None], object]) -> None:
        self._told: Callable[[None], object] | None = told
        self._pump = Pump.hold(self)
        self._timer = Timer(self._pump.loop.timers, self._over)
        self._pump.loop.call(lambda: self._start(seconds))

    def give_up(self) -> None:
        """Tell nobody; from any thread."""
        self._pump.loop.call(self._end)

    def abandon(self) -> None:
        """In a forked child: there is nothing to close."""

    def _start(self, seconds: float) -> None:
        if self._told is not None:
            now = time.monotonic()
            self._timer.start(now + seconds, now)

    def _over(self, now: float) -> None:
        told = self._end()
        if told is not None:
            told(None)

    def _end(self) -> Callable[[None], object] | None:
        told, self._told = self._told, None
        self._timer.stop()
        self._pump.let_go(self)
        return told


def _nothing() -> None:
    pass
