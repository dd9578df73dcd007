"""The near end: a dialer whose streams go on over another carrier when theirs is lost."""

from __future__ import annotations

import copy
import errno
import functools
import logging
import time
from collections.abc import Callable

from ...carriers import network, redial
from ...errors import (
    AddressError,
    AuthenticationError,
    CarrierError,
    ConnectError,
    HostKeyError,
    RelayError,
    SAMError,
    can_retry,
)
from ...eventloop.background import Home, IOThread
from ...eventloop.backoff import Backoff
from ...eventloop.loop import Timer
from ...streams.dialer import Dialer, Engine, Upgrade
from ...streams.promise import Abort, CallbackChain, OnResult
from ...streams.stream import Stream
from ...streams.trace import Stage
from .figures import BUDGET, NEAR
from .greeting import Greeting
from .joint import Joint, JointStream
from .session import DONE, EARLY, HELD, RESET, Session
from .wire import END, KNOWN, NEW, REFUSED, UNKNOWN, Answer, Hello, frame, read_answer

logger = logging.getLogger("relay.resume")

KEPT = 120.0  # seconds for which a stream without a carrier is kept
_LAST_WORD = 10.0  # seconds for the last word of one that has ended
_ATTEMPT = 15.0  # seconds for one attempt to get another carrier
_BACKOFF = (0.1, 2.0)  # seconds after the first failure in a row, and at most
_PATIENCE = 5.0  # seconds for the answer to a greeting after a change of the network
_STABLE = 10.0  # seconds after which a carrier counts as a success that has moved nothing

_REFUSALS = {
    "no_identity": "it does not know who its clients are there; use SSH, TLS with client certificates or I2P",
    "limit": "it has as many sessions of this client as it allows",
}


class _LostError(ConnectError):
    """A carrier that was lost before its far end has answered."""


class Resuming(Upgrade):
    """Resumable streams; those of another dialer are their carriers.

    :param inner: leads to the far end; it is closed with this dialer.
    :param name: of the far end, for errors and records.
    :param kept: seconds for which a stream is kept without a carrier; the far end may keep it for less.
    :param held: bytes that are kept for one stream, at most.
    :param is_slow: whether the carriers are over I2P or Tor, where a change of this machine's network ends no attempt.
    """

    def __init__(
        self, inner: Dialer, name: str, kept: float = KEPT, held: int = HELD, *, is_slow: bool = False
    ) -> None:
        super().__init__(inner, name, begin=functools.partial(self._greet, None, b""), has_session=True)
        self._held = held
        self.is_slow = is_slow
        self.kept = kept
        """Seconds for which a stream is kept without a carrier."""
        self.is_released = False
        """Whether a carrier is needed only for the streams that there are."""
        self.waiting: set[_Near] = set()
        """Those of its streams that wait for another carrier; in the I/O thread."""
        self._said = b""
        self._first = self  # that which was made; others are its copies, which engines use

    introduces = False  # the far end gives the stream to a proxy, which reads no header

    def dial(
        self, deadline: float | None, done: OnResult, *, self_contained: bool = False, wait_for_reconnect: bool = True
    ) -> Abort:
        """Begin to make a stream; see :meth:`Dialer.dial`."""
        self._first.is_released = False

        step = self.trace.begin(Stage.RESUME, self.target)

        def counted(outcome: Stream | OSError) -> None:
            if isinstance(outcome, JointStream):
                step.done(kept=outcome.kept)
                if outcome.path is not None:
                    outcome.path = outcome.path._replace(resumes=outcome.resumes)
            elif isinstance(outcome, OSError):
                step.failed(outcome)
            done(outcome)

        steps: CallbackChain[Stream] = CallbackChain(counted)
        # The joint gives a kernel socket anyway, and needs the stream to its carrier.
        begin = functools.partial(super().dial, deadline, wait_for_reconnect=wait_for_reconnect)

        def dialed(outcome: Stream | OSError) -> None:
            if isinstance(outcome, _LostError) and wait_for_reconnect and not self._first.is_released:
                # Opened over a shared connection whose loss was not known yet. Nothing of the client was sent.
                steps.begin(begin, steps.finish)
            else:
                steps.finish(outcome)

        steps.begin(begin, dialed)
        return steps.give_up

    def saying(self, first: bytes) -> Resuming:
        """Return one whose streams begin with these bytes, which go with the greeting and need no round trip.

        :param first: at most :data:`~relay.transports.resume.session.EARLY` bytes.
        """
        return self._copy(None, first)

    def on(self, engine: Engine) -> Dialer:
        """Return one whose streams are moved in the thread of an engine; see :meth:`Dialer.on`."""
        return self._copy(engine, self._said)

    def _copy(self, home: Home | None, first: bytes) -> Resuming:
        other = copy.copy(self)  # with the same inner one, not one on an engine: a carrier is a kernel socket
        other._said = first
        other._begin_upgrade = functools.partial(self._first._greet, home, first)
        return other

    def close_when_idle(self) -> None:
        """Release the shared connection once it has no streams; see :meth:`Dialer.close_when_idle`."""
        self._first.is_released = True
        super().close_when_idle()

    def close(self) -> None:
        """Release the shared connection; a stream that loses its carrier still gets another one."""
        self._first.is_released = True
        super().close()

    def _greet(self, home: Home | None, first: bytes, carrier: Stream, deadline: float | None, done: OnResult) -> Abort:
        """Begin a session on the first carrier; ``None`` for the I/O thread."""
        session = Session(BUDGET, window=BUDGET.first_window(self._held), held=self._held)
        steps: CallbackChain[Stream] = CallbackChain(done)

        def answered(answer: Answer | OSError, rest: bytes) -> None:
            if isinstance(answer, OSError):
                session.release()
                error = explained(answer, self.target)
                if isinstance(answer, ConnectionError | CarrierError):
                    error = _LostError(str(error), reason=getattr(error, "reason", "unreachable"))
                return steps.finish(error)
            if answer.kind != NEW:
                session.release()
                carrier.reset()
                return steps.finish(_refused(answer, self.target))
            try:
                near = _Near(self, session, answer, home)
            except OSError as error:
                session.release()
                carrier.reset()
                return steps.finish(error)
            # What went with the greeting arrives with it, or the next carrier brings it.
            near.attach(carrier, answer._replace(received=len(first)), hello, rest)
            self.carrier_works()
            return steps.finish(near.joint.stream)

        hello = Hello(session.window)
        session.attach(EARLY)
        session.write(first)
        try:
            greeting = Greeting(carrier, hello.encode() + session.output(), read_answer, deadline, answered)
        except OSError:
            session.release()
            raise

        def give_up() -> None:
            steps.give_up()
            # Else the far end would keep the session, and its stream to the target, until its time is over.
            greeting.cancel(frame(0, END, RESET.encode()))

        return give_up

    def carrier_works(self) -> None:
        """Let no stream wait longer for its next attempt, as one of them has got a carrier. In the I/O thread."""
        for near in tuple(self.waiting):
            near.hurry()


class _Near:
    """The carriers of one stream, from the first one on. Belongs to the I/O thread; its joint may have another one.

    ======== ============================================== ======== ==================================================
    state    event                                          next     action
    ======== ============================================== ======== ==================================================
    ATTACHED the carrier is lost; it had moved something,   DIALING  begin an attempt
             or lasted
    ATTACHED the carrier is lost; it had not                PAUSED   back off
    DIALING  a carrier, and the far end knows the stream    ATTACHED go on, and hurry the other streams
    DIALING  the attempt fails                              PAUSED   back off
    DIALING  the far end does not know the stream, or no    OVER     lose the stream
             other attempt can succeed
    PAUSED   the pause is over, the network has changed, or DIALING  begin an attempt
             another stream has a carrier
    PAUSED   no carrier in time                             OVER     lose the stream
    any      the joint is over                              OVER     give up the attempt
    ======== ============================================== ======== ==================================================
    """

    def __init__(self, owner: Resuming, session: Session, answer: Answer, home: Home | None) -> None:
        self.joint = Joint(session, owner.target, "target_reset", home)
        self.joint.on_detached = lambda now: self._here(functools.partial(self._detached, now))
        self.joint.on_over = lambda: self._here(self._over)
        self._owner = owner
        self._token = answer.token
        self._kept = self.joint.stream.kept = min(owner.kept, answer.kept)
        self._io_thread = IOThread.acquire(self)
        self._is_detached = False
        self._until = 0.0  # when it is lost
        self._backoff = Backoff(*_BACKOFF, jitter=True)
        self._has_hurried = False  # in this row of failures, else streams could hurry each other without end
        self._mark = 0, 0.0  # what had been moved when it got its carrier, and when
        self._next = Timer(self._io_thread.loop.timers, self._try)
        self._steps: CallbackChain[Stream] | None = None  # of the attempt that is under way
        self._greeting: Greeting[Answer] | None = None  # of its carrier
        self._error: OSError | None = None  # of the last one
        network.subscribe(self._io_thread, self._changed)

    def abandon(self) -> None:
        """In a forked child: do nothing; the joint has the descriptors."""

    def _here(self, call: Callable[[], object]) -> None:
        """Make a call in the I/O thread, which runs while this holds it."""
        self._io_thread.loop.call(call)

    def attach(self, carrier: Stream, answer: Answer, hello: Hello, rest: bytes) -> None:
        """Go on with a carrier whose greetings are over."""
        self._is_detached = False
        self._mark = self.joint.session.moved, time.monotonic()
        self._owner.waiting.discard(self)
        attach = functools.partial(
            self.joint.attach, carrier, answer.window, answer.received, said=hello.window, rest=rest
        )
        if not self.joint.call(attach):
            carrier.reset()

    def _detached(self, now: float) -> None:
        self._is_detached = True
        self._owner.waiting.add(self)
        # A stream that has ended at both ends only has to say that it has everything.
        self._until = now + (min(self._kept, _LAST_WORD) if self.joint.session.word == DONE else self._kept)
        self._error = None
        logger.info("%s: a carrier was lost; its stream waits for another one", self._owner.target)
        moved, begun = self._mark
        if self.joint.session.moved > moved or now > begun + _STABLE:
            self._end_failures()
            self._try(now)
        else:  # one that ends each carrier at once would be asked without a pause
            self._pause(now)

    def _changed(self, why: str) -> None:
        if not self._is_detached:
            self.joint.call(self.joint.probe)
        elif self._steps is None:
            self._end_failures()
            self._try(time.monotonic())
        elif self._greeting is not None and not self._owner.is_slow:
            self._greeting.expire_within(_PATIENCE)

    def hurry(self) -> None:
        """Try at once, if it waits for its next attempt."""
        if self._steps is None and not self._has_hurried:
            self._has_hurried = True
            self._try(time.monotonic())

    def _end_failures(self) -> None:
        self._backoff.reset()
        self._has_hurried = False

    def _pause(self, now: float) -> None:
        self._next.start(min(now + self._backoff.next(), self._until), now)

    def _try(self, now: float) -> None:
        """Begin to get another carrier."""
        if self.joint.is_over or not self._is_detached or self._steps is not None:
            return
        if now >= self._until:
            why = f" ({self._error})" if self._error is not None else ""
            self._lost(f"no other carrier in {self._kept:g} s{why}")
            return
        self._next.stop()
        NEAR.attempts += 1
        deadline = min(now + _ATTEMPT, self._until)

        def failed(outcome: Stream | OSError) -> None:
            self._here(functools.partial(self._failed, outcome))

        def dialed(outcome: Stream | OSError) -> None:
            self._here(functools.partial(self._dialed, steps, deadline, outcome))

        steps: CallbackChain[Stream] = CallbackChain(failed)
        self._steps = steps
        inner = self._owner.inner
        dial = inner.dial if self._owner.is_slow else functools.partial(redial.dial, inner)
        steps.begin(functools.partial(dial, deadline, wait_for_reconnect=True), dialed)

    def _dialed(self, steps: CallbackChain[Stream], deadline: float, outcome: Stream | OSError) -> None:
        if self.joint.is_over or steps is not self._steps:
            if isinstance(outcome, Stream):
                outcome.reset()
            return
        if isinstance(outcome, OSError):
            return self._failed(outcome)
        session = self.joint.session  # nothing comes for it while it is detached
        hello = Hello(session.window, self._token, session.received)
        answered = functools.partial(self._answered, outcome, hello)
        try:
            self._greeting = Greeting(outcome, hello.encode(), read_answer, deadline, answered)
        except OSError as error:
            return self._failed(error)
        return None

    def _answered(self, carrier: Stream, hello: Hello, answer: Answer | OSError, rest: bytes) -> None:
        if isinstance(answer, OSError):
            return self._failed(explained(answer, self._owner.target))
        self._steps = self._greeting = None
        if self.joint.is_over:
            carrier.reset()
            return None
        if answer.kind == KNOWN:
            NEAR.resumes += 1
            self.joint.resumes.count += 1
            logger.info("%s: its stream goes on over another carrier", self._owner.target)
            self.attach(carrier, answer, hello, rest)
            return self._owner.carrier_works()
        carrier.reset()
        if answer.kind == UNKNOWN:
            return self._lost("the far end does not know the stream any more; it may have been restarted")
        return self._lost(str(_refused(answer, self._owner.target)))

    def _failed(self, outcome: Stream | OSError) -> None:
        self._steps = self._greeting = None
        if self.joint.is_over:
            return
        assert isinstance(outcome, OSError)
        self._error = outcome
        if _is_final(outcome):
            return self._lost(str(outcome))
        self._pause(time.monotonic())

    def _lost(self, text: str) -> None:
        if self.joint.session.word != DONE:
            NEAR.losses += 1
        self.joint.call(functools.partial(self.joint.lose, text))

    def _over(self) -> None:
        steps, self._steps = self._steps, None
        if steps is not None:
            steps.give_up()
        if self._greeting is not None:
            self._greeting.cancel()
        self._owner.waiting.discard(self)
        self._next.stop()
        network.unsubscribe(self._io_thread, self._changed)
        if self._owner.is_released:
            self._owner.inner.close_when_idle()
        self._io_thread.release(self)


def _is_final(error: OSError) -> bool:
    """Return whether no other attempt can succeed.

    An error of TLS is not final here: a carrier that is cut within its handshake ends with one.
    """
    return isinstance(error, AddressError | AuthenticationError | HostKeyError | SAMError) and not can_retry(error)


def explained(error: OSError, name: str) -> OSError:
    """Return the error of a greeting as one sentence with its reason."""
    if isinstance(error, RelayError):
        # Since TLS 1.3 a server rejects a client's certificate after the handshake.
        if getattr(error, "reason", "") == "denied" and not isinstance(error, ConnectError):
            return ConnectError(f"{name}: {error}; check whether it needs cert=, or another one", reason="denied")
        return error
    if isinstance(error, TimeoutError):
        text = "no answer of the resume server in time; check that one listens there"
        return ConnectError(f"{name}: {text}", reason="connect_timeout")
    if error.errno == errno.EPROTO:
        return ConnectError(f"{name}: what answers there is no resume server ({error.strerror})")
    return ConnectError(f"{name}: the connection to the resume server was lost ({error.strerror or error})")


def _refused(answer: Answer, name: str) -> ConnectError:
    if answer.kind == REFUSED:
        why = _REFUSALS.get(answer.word, answer.word)
        return ConnectError(f"{name}: the resume server refuses a session: {why}", reason="denied")
    return ConnectError(f"{name}: the resume server answers what was not asked")
