"""Factories that begin at once and tell later, so that an engine needs no thread for each stream."""

from __future__ import annotations

import copy
import functools
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, Protocol, Self, TypeVar

from ..addresses.hops import Command, Hop, Route
from ..addresses.i2p import I2PTarget
from ..addresses.values import Target
from ..errors import ConnectError
from .cancellation import Cancellation
from .happy_eyeballs import Cancel, Direct
from .request import Request
from .stream import Stream

__all__ = ["Answer", "Dialed", "Done", "GiveUp", "Guide", "LATE", "Network", "Steps", "Upgrade", "copied"]

Value = TypeVar("Value")
Error = TypeVar("Error", bound=Exception)
Done = Callable[[Stream | OSError], object]
GiveUp = Callable[[], object]
BeginUpgrade = Callable[[Stream, float | None, Done], GiveUp]

LATE = 1.0  # seconds after the deadline until whoever waits no longer trusts that it is told


class Dialed:
    """A factory whose streams are made without blocking.

    :param target: the name of the target in records, such as ``db.internal:5432``.
    """

    route: Route = ()
    """The hops on the way, the nearest first."""

    def __init__(self, target: str) -> None:
        self.target = target

    def dial(self, deadline: float | None, done: Done, *, lasting: bool = False, patient: bool = True) -> GiveUp:
        """Begin to make a stream. Never blocks.

        :param deadline: monotonic seconds, or ``None`` for as long as it takes.
        :param done: called once, in any thread, perhaps before this returns, with the stream or with the error.
        :param lasting: for whoever never asks the stream's ``failure`` nor calls its ``on_close``: whether a refused
            target must be an error here, and closing the socket let go of all that lies under it.
        :param patient: whether to wait, until the deadline, for a lost connection to come back.
        :returns: gives the attempt up: ``done`` is not called after that, and nothing is left.
        """
        raise NotImplementedError

    def __call__(self, *, peer: Any = None, deadline: float | None = None, cancel: Cancel | None = None) -> Stream:
        """Make a stream, and wait for it.

        :param peer: the client's address; it changes nothing here.
        :param deadline: monotonic seconds, until which a lost connection on the way is waited for; ``None`` for one
            attempt, as long as it takes.
        :param cancel: gives the attempt up when set.
        :returns: a connected stream.
        :raises ConnectError: refused, unreachable, timed out, denied or given up; ``.reason`` tells.
        :raises RelayError: why the way there cannot be had: a host key, credentials.
        """
        return self._wait(deadline, cancel, patient=deadline is not None)

    def connect(self, deadline: float | None) -> socket.socket:
        """Make a stream whose socket alone keeps what lies under it, and wait for it; one attempt.

        The factory then holds nothing but for the sake of its streams, until it is used again.

        :param deadline: monotonic seconds, or ``None`` for as long as it takes.
        :returns: a connected, non-blocking socket.
        :raises OSError: as a call does.
        """
        try:
            return self._wait(deadline, None, patient=False).socket
        finally:
            self.release()

    @property
    def state(self) -> str:
        """What the connection under the streams does: ``connecting``, ``up``, ``backing off``, ``failed``, ``closed``.

        Where each stream has its own, this is ``up``.
        """
        return "up"

    @property
    def problem(self) -> str | None:
        """Why streams cannot be made for now, as far as that is known."""
        return None

    def subscribe(self, watcher: Callable[[Any, Exception | None], object]) -> None:
        """Have ``watcher(state, error)`` called at each change of the connection under the streams; it must not block.

        :raises OSError: if there is no thread or descriptor to be had.
        """

    def ready(self, timeout: float | None = 30.0) -> None:
        """Open what the streams ride on, if that is not done yet, and wait for it: one attempt.

        :param timeout: seconds; ``None`` for as long as it takes.
        :raises OSError: why it cannot be had.
        """

    def release(self) -> None:
        """Hold nothing any longer than a stream needs it. Does not wait."""

    def close(self) -> None:
        """Let go of what the streams ride on. Idempotent; the next call takes it up anew."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait(self, deadline: float | None, cancel: Cancel | None, *, patient: bool) -> Stream:
        answer: Answer[Stream] = Answer()
        give_up = self.dial(deadline, answer.put, lasting=True, patient=patient)
        try:
            outcome = answer.get(deadline, cancel)
        finally:
            give_up()
        if outcome is not None:
            return outcome
        if cancel is not None and cancel.is_set():
            raise ConnectError(f"{self.target}: the attempt was given up")
        raise ConnectError(f"{self.target}: no answer in time", reason="connect_timeout")

    def __repr__(self) -> str:
        return f"<relay factory to {self.target}>"


class Answer(Generic[Value]):
    """One outcome, for a thread that waits for it or for something else. A stream that comes too late is closed."""

    def __init__(self) -> None:
        self._there = Cancellation()
        self._lock = threading.Lock()
        self._outcome: Value | Exception | None = None
        self._unwanted = False

    def put(self, outcome: Value | Exception) -> bool:
        """Tell the outcome; from any thread.

        :returns: whether anybody waits for it still.
        """
        with self._lock:
            unwanted = self._unwanted
            if not unwanted:
                self._outcome = outcome
                self._there.set()
        if unwanted and isinstance(outcome, Stream):
            outcome.close()
        return not unwanted

    def get(self, deadline: float | None, cancel: Cancel | None) -> Value | None:
        """Wait for the outcome; this is called once.

        :param deadline: monotonic seconds, a moment after which it is waited for no longer; ``None`` for ever.
        :param cancel: ends the wait when set.
        :returns: the value; ``None`` if nothing came in time.
        :raises Exception: if that is the outcome.
        """
        try:
            self._wait(deadline, cancel)
        except BaseException:
            self.refuse()
            raise
        return self.take()

    def take(self) -> Value | None:
        """The outcome as it is now; it is waited for no longer.

        :returns: the value; ``None`` if there is none.
        :raises Exception: if that is the outcome.
        """
        outcome = self._end()
        if isinstance(outcome, Exception):
            raise copied(outcome)
        return outcome

    def refuse(self) -> None:
        """Wait for it no longer, and close it if it is a stream."""
        outcome = self._end()
        if isinstance(outcome, Stream):
            outcome.close()

    def _end(self) -> Value | Exception | None:
        with self._lock:
            outcome, self._outcome = self._outcome, None
            self._unwanted = True
            self._there.close()
        return outcome

    def _wait(self, deadline: float | None, cancel: Cancel | None) -> None:
        poller = select.poll()
        poller.register(self._there.fileno(), select.POLLIN)
        if cancel is not None:
            poller.register(cancel.fileno(), select.POLLIN)
        poller.poll(None if deadline is None else max(0.0, deadline + LATE - time.monotonic()) * 1000)


def copied(error: Error) -> Error:
    """An error that several were told, for one of them to raise or to change."""
    try:
        made = copy.copy(error)
    except Exception:  # noqa: BLE001  (an exception that does not know how to be made anew)
        return error
    made.__cause__ = error.__cause__
    return made


class Upgrade(Dialed):
    """Streams of another dialer, each made into another one or given clearer errors.

    :param inner: makes the streams; it is closed with this dialer.
    :param target: the name of the target in records; ``None`` for that of ``inner``.
    :param begin: begins to make another stream of a connected one, such as one of TLS, without blocking: it is called
        with the stream, which it owns from then on, the deadline (monotonic seconds or ``None``) and a callback for the
        new stream or the error; it returns a function that gives it up. ``None`` to leave the streams as they are.
    :param explain: returns the error that users see for one of ``inner``; ``None`` to leave the errors as they are.
    """

    def __init__(
        self,
        inner: Dialed,
        target: str | None = None,
        *,
        begin: BeginUpgrade | None = None,
        explain: Callable[[OSError], OSError] | None = None,
    ) -> None:
        super().__init__(inner.target if target is None else target)
        self.inner = inner
        self.route = inner.route
        self._begin_upgrade = begin
        self._explain = explain

    def dial(self, deadline: float | None, done: Done, *, lasting: bool = False, patient: bool = True) -> GiveUp:
        """Begin to make a stream; see :meth:`Dialed.dial`."""
        begin = self._begin_upgrade
        if begin is None:
            return self.inner.dial(deadline, self._explained(done), lasting=lasting, patient=patient)
        steps = Steps(self._explained(done))

        def upgrade(outcome: Stream | OSError) -> None:
            if isinstance(outcome, OSError):
                steps.finish(outcome)
            elif not steps.begin(functools.partial(begin, outcome, deadline), steps.finish):
                outcome.close()

        steps.begin(functools.partial(self.inner.dial, deadline, lasting=lasting, patient=patient), upgrade)
        return steps.give_up

    def _explained(self, done: Done) -> Done:
        """Return a callback that explains the error, also a later one of the stream, and then calls ``done``."""
        explain = self._explain
        if explain is None:
            return done

        def told(outcome: Stream | OSError) -> None:
            if isinstance(outcome, OSError):
                done(explain(outcome))
                return
            failure = outcome.failure
            if failure is not None:
                outcome.failure = functools.partial(_explained_failure, failure, explain)
            done(outcome)

        return told

    def ready(self, timeout: float | None = 30.0) -> None:
        """Open the connection under the streams, and wait for it; see :meth:`Dialed.ready`."""
        try:
            self.inner.ready(timeout)
        except OSError as error:
            if self._explain is None or (explained := self._explain(error)) is error:
                raise
            raise explained from error

    @property
    def state(self) -> str:
        """What the connection under the streams does; see :attr:`Dialed.state`."""
        return self.inner.state

    @property
    def problem(self) -> str | None:
        """Why streams cannot be made for now; see :attr:`Dialed.problem`."""
        problem = self.inner.problem
        if problem is None or self._explain is None:
            return problem
        return str(self._explain(OSError(problem)))

    def subscribe(self, watcher: Callable[[Any, Exception | None], object]) -> None:
        """Have ``watcher(state, error)`` called at each change; see :meth:`Dialed.subscribe`."""
        self.inner.subscribe(watcher)

    def release(self) -> None:
        """Hold nothing any longer than a stream needs it."""
        self.inner.release()

    def close(self) -> None:
        """Close the inner dialer."""
        self.inner.close()


def _explained_failure(
    failure: Callable[[], BaseException | None], explain: Callable[[OSError], OSError]
) -> BaseException | None:
    error = failure()
    return explain(error) if isinstance(error, OSError) else error


class Network(Protocol):
    """The network as seen from one place: from this machine, or from the far end of a hop."""

    @property
    def route(self) -> Route:
        """The hops on the way to that place, the nearest first."""

    def to(self, place: Target | I2PTarget | Command) -> Dialed:
        """Return a dialer for an address as it is seen from there. Opens nothing.

        :raises AddressError: if that place cannot lead to the address.
        :raises OSError: if a file that the address names cannot be read.
        :raises ValueError: if a file does not hold what it should.
        """

    def beyond(self, hop: Hop) -> Network:
        """Return the network as seen from a hop that is reached from there. Opens nothing."""


class Steps:
    """Things that are begun one after the other until there is an outcome, and can be given up in the meantime.

    Every method may be called from any thread.

    :param done: called once with the outcome, unless it was given up.
    """

    __slots__ = ("_done", "_given_up", "_lock", "_number", "_undo")

    def __init__(self, done: Done) -> None:
        self._done: Done | None = done
        self._lock = threading.Lock()
        self._given_up = False
        self._number = 0
        self._undo: GiveUp | None = None

    def begin(self, begin: Callable[[Callable[[Any], object]], GiveUp], then: Callable[[Any], object]) -> bool:
        """Begin the next step.

        :param begin: takes whom to tell the step's outcome, perhaps at once; returns what gives the step up.
        :param then: called with the outcome, unless all was given up: begins the next step, or finishes.
        :returns: whether it was begun: ``False`` if all was given up, and if ``begin`` raised, which is the outcome.
        """
        with self._lock:
            if self._given_up:
                return False
            self._number += 1
            number = self._number
            self._undo = None

        def told(outcome: Any) -> None:
            if not self._given_up:
                then(outcome)
            elif isinstance(outcome, Stream):
                outcome.close()

        try:
            undo = begin(told)
        except OSError as error:
            self.finish(error)
            return False
        if not self._keep(number, undo):
            undo()
        return True

    def _keep(self, number: int, undo: GiveUp) -> bool:
        """Keep what gives a step up, if that is still under way.

        :returns: whether nobody has given it up meanwhile.
        """
        with self._lock:
            if number != self._number:
                return True  # it was over before it returned, and the next one may have begun
            self._undo = undo
            return not self._given_up

    def finish(self, outcome: Stream | OSError) -> None:
        """There is an outcome, and no further step."""
        with self._lock:
            done, self._done = self._done, None
            self._number += 1
            self._undo = None
        if done is not None:
            done(outcome)
        elif isinstance(outcome, Stream):
            outcome.close()

    def give_up(self) -> None:
        """End it; nobody is told any more. Idempotent, and without effect once it is finished."""
        with self._lock:
            self._given_up = True
            self._done = None
            undo, self._undo = self._undo, None
        if undo is not None:
            undo()


class Guide:
    """A factory that leads where each client wants.

    An engine asks it for the way, so that it can make by itself what needs nothing but a connect.
    """

    def lead(self, destination: Request | None) -> Direct | Dialed:
        """The factory for what a client asks for. Never blocks.

        :param destination: the request; ``None`` if the listener's clients make none.
        :raises OSError: if it is not to be had.
        """
        raise NotImplementedError
