"""Whether the destination of a session can be reached: shown by a stream to it, from a session of its own.

A router may well think that a session is up which nobody can reach: one that was made from the keys of another that had
just ended, or one whose lease set nobody finds. Nothing but a stream tells. Everything here happens in the pump's
thread, unless it says otherwise.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
import random
import secrets
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Protocol

from ...addresses.destinations import Peer
from ...addresses.i2p import I2PRouter
from ...carriers.carrier import Carrier
from ...errors import CarrierError
from ...eventloop.background import Pump
from ...eventloop.loop import Timer
from ...eventloop.poller import IN
from ...streams.dialer import Network
from ...streams.stream import Stream
from .connector import make_carrier
from .messages import UnreachableError
from .opening import SETTLE, open_stream
from .session import Session

__all__ = ["ReachabilityMonitor", "Subject", "silence"]

logger = logging.getLogger("relay")

HEAD_START = 1.0  # seconds that a session is being made before the prover begins to make its own beside it
REACH = 75.0  # seconds for the destination to be found: its lease set spreads for some time
ANSWER = 15.0  # seconds for a stream to bring the answer
AGAIN = 5.0  # seconds until it is tried again when that says nothing about the session
RARELY = 300.0  # and at most, while that goes on
AFTER = (10.0, 30.0, 90.0)  # seconds after one proof to the next, at first: what is unsound may work for seconds
PEERS = 8  # destinations of ours that are known again, for a stream may come late
SELDOM = (600.0, 1800.0)  # from then on
_TUNNELS = {"inbound.quantity": "2", "outbound.quantity": "2"}

# Options, and their values, with which the destination cannot be reached by everybody under its own name.
_HIDING = {
    "i2cp.leaseSetType": ("5", "7"),
    "i2cp.dontPublishLeaseSet": ("true",),
    "i2cp.enableAccessList": ("true",),
    "i2cp.enableBlackList": ("true",),
}

_TCP_INFO = getattr(socket, "TCP_INFO", None) if sys.platform == "linux" else None
_LAST = struct.Struct("=52xI")  # struct tcp_info of linux/tcp.h: tcpi_last_data_recv, in milliseconds


class Subject(Protocol):
    """Whose session is proved."""

    def proved(self) -> None:
        """A stream from another session has come, and was answered."""

    def turn(self, why: str) -> bool:
        """Have streams come in another way, if none has ever come this way.

        :returns: whether that is so.
        """

    def was_held(self, since: float) -> bool:
        """Whether streams were kept waiting since then, so that one that was not answered says nothing."""

    def was_alive(self, since: float) -> bool:
        """Whether the streams of others have come, or brought bytes, since then."""


class ReachabilityMonitor:
    """Proves one session after the other, each several times.

    :param name: of the listener, in errors and in the log.
    :param router: where its session is made, and with which options.
    :param below: the network from which the router's SAM bridge is reached.
    :param subject: what is told.
    :raises OSError: if there is no thread or descriptor to be had.
    """

    def __init__(self, name: str, router: I2PRouter, below: Network, subject: Subject) -> None:
        self._name = name
        options = {**dict(router.options), **_TUNNELS}
        self._possible = not any(value.lower() in _HIDING.get(option, ()) for option, value in options.items())
        own = dataclasses.replace(router, session="", keys=None, options=tuple(sorted(options.items())))
        self._make = functools.partial(make_carrier, f"{name} (self-check)", own, below, _no_keys, quiet=True)
        self._subject = subject
        self._answer = f"relay {secrets.token_hex(16)}\n".encode()
        self._peers: tuple[str, ...] = ()  # the destinations that streams of ours come from, the newest first
        self._session: Session | None = None  # that is to be proved
        self._carrier: Carrier[Session] | None = None  # the one that streams are made from
        self._proved = False  # whether it was proved by a stream of ours
        self._times = 0  # it was proved, also by those of others
        self._renewed = False  # whether the session that streams are made from was replaced for this proof
        self._delay = AGAIN
        self._since = 0.0  # when the proof began
        self._last = 0.0  # when the last one ended
        self._attempt: _Attempt | None = None
        self._pump = Pump.hold(self)
        self._begin = Timer(self._pump.loop.timers, self._warm)
        self._next = Timer(self._pump.loop.timers, self._prove)

    def expect(self) -> None:
        """A session is being made: make another one beside it, from which it will be proved."""
        if self._possible and self._carrier is None and self._session is None:
            now = time.monotonic()
            self._begin.start(now + HEAD_START, now)

    def prove(self, session: Session) -> None:
        """Streams can come to this session: prove that they do, now and again."""
        if session is not self._session:
            self.forget()
        if not self._possible:
            logger.info("%s: its options hide it, so it is not checked whether it can be reached", self._name)
        else:
            self._session = session
            self._proved = False
            self._times = 0
            self._renewed = False
            self._prove(time.monotonic())

    def forget(self) -> None:
        """The session is gone. One that knew it is not asked about the next one, for it may not notice."""
        self._begin.stop()
        self._next.stop()
        self._give_up()
        if self._session is not None:
            self._session = None
            self._release()

    def close(self) -> None:
        """Prove nothing any more. Idempotent."""
        self.forget()
        self._release()
        self._pump.let_go(self)

    def abandon(self) -> None:
        """In a forked child: the carrier and the conversations close their own descriptors."""

    def keeps(self, stream: Stream, peer: Peer) -> bool:
        """Answer a stream if it is one of ours; in any thread.

        :returns: whether it is.
        """
        if peer not in self._peers:
            return False
        try:
            stream.socket.send(self._answer)
        except OSError as error:
            logger.debug("%s: a self-check could not be answered: %s", self._name, error)
        stream.close()
        return True

    # -- the session from which streams are made ----------------------------------------------------------------------

    def _warm(self, now: float) -> None:
        with contextlib.suppress(OSError):  # it is told when it is needed
            self._own()

    def _own(self) -> Carrier[Session]:
        if self._carrier is None:
            self._carrier = self._make()
            self._carrier.begin()
        return self._carrier

    def _release(self) -> None:
        carrier, self._carrier = self._carrier, None
        if carrier is not None:
            carrier.close(wait=False)

    # -- one proof ----------------------------------------------------------------------------------------------------

    def _prove(self, now: float) -> None:
        if self._proved and self._subject.was_alive(self._last):
            return self._passed(now)  # the streams of others are proof enough
        self._since = now
        return self._try(now)

    def _try(self, now: float) -> None:
        session = self._session
        if session is None:
            return
        self._give_up()
        try:
            carrier = self._own()
            self._attempt = _Attempt(self._pump, carrier, session.destination, self._answer, self._know, self._over)
        except OSError as error:
            logger.warning("%s: cannot check for now whether it can be reached: %s", self._name, error)
            self._wait()
        else:
            self._attempt.begin()

    def _know(self, peer: str) -> None:
        """A stream will come from there."""
        if peer not in self._peers:
            self._peers = (peer, *self._peers)[:PEERS]

    def _give_up(self) -> None:
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.end()

    def _over(self, attempt: _Attempt, problem: str | None, conclusive: bool) -> None:
        """An attempt is over."""
        if attempt is not self._attempt:
            return
        self._attempt = None
        now = time.monotonic()
        if problem is None:
            self._proved = True
            self._passed(now)
            self._subject.proved()
        elif conclusive:
            self._failed(problem, now)
        else:
            logger.debug("%s: self-check: %s", self._name, problem)
            self._wait()

    def _passed(self, now: float) -> None:
        assert self._session is not None
        self._last = now
        self._renewed = False
        self._delay = AGAIN
        if self._times == len(AFTER):
            self._session.judge(True)
        if self._times < len(AFTER):
            self._later(AFTER[self._times])
        else:
            self._release()
            self._later(random.uniform(*SELDOM))  # noqa: S311  (so that many do not do it at once)
        self._times += 1

    def _failed(self, problem: str, now: float) -> None:
        """Nobody is reached: the way in may be wrong, or the session that was asked; the session itself comes last."""
        session = self._session
        assert session is not None
        if self._subject.was_held(self._since):
            return self._wait()
        if self._subject.was_alive(self._since):
            return self._passed(now)
        logger.info("%s: self-check: %s", self._name, problem)
        if self._subject.turn(f"{self._name}: streams do not come ({problem})"):
            return self._try(now)
        if not self._renewed:
            self._renewed = True
            self._release()
            return self._try(now)
        session.judge(False)
        return session.lose(
            CarrierError(f"{self._name}: session is not reachable from I2P ({problem}); re-creating it")
        )

    def _wait(self) -> None:
        """Try again with another session, rarely if that does not help."""
        self._release()
        self._later(self._delay)
        self._delay = min(self._delay * 2, RARELY)

    def _later(self, seconds: float) -> None:
        now = time.monotonic()
        self._next.start(now + seconds, now)


class _Attempt:
    """One stream to a session, which is to bring an answer.

    :param pump: whose thread this is.
    :param carrier: the session from which it is made.
    :param dest: where to.
    :param answer: what is to come.
    :param know: called with the destination that the stream will come from.
    :param over: called once with this, with what was wrong, and with whether that says anything about the session.
    """

    def __init__(
        self,
        pump: Pump,
        carrier: Carrier[Session],
        dest: str,
        answer: bytes,
        know: Callable[[str], object],
        over: Callable[[_Attempt, str | None, bool], object],
    ) -> None:
        self._pump = pump
        self._carrier = carrier
        self._dest = dest
        self._answer = answer
        self._know = know
        self._over: Callable[[_Attempt, str | None, bool], object] | None = over
        self._undo: Callable[[], object] = _nothing
        self._stream: Stream | None = None
        self._got = b""
        self._problem = "no answer"
        self._timer = Timer(pump.loop.timers, self._expired)

    def begin(self) -> None:
        """Begin, as soon as there is a session to make it from."""
        undo = self._carrier.when_up(functools.partial(self._told, self._up), None, wait_for_reconnect=False)
        if self._undo is _nothing:
            self._undo = undo

    def end(self) -> None:
        """Give it up; nobody is told."""
        self._over = None
        self._undo()
        self._close()

    def crashed(self, now: float) -> None:
        """A bug in a handler: it says nothing."""
        self._finish("a bug in relay; the log has it", conclusive=False)

    def _told(self, then: Callable[[object], object], outcome: object) -> None:
        """In any thread."""
        if not self._pump.loop.call(functools.partial(then, outcome)) and isinstance(outcome, Stream):
            outcome.close()

    def _up(self, outcome: object) -> None:
        if self._over is None:
            return
        if not isinstance(outcome, Session):
            return self._finish(str(outcome), conclusive=False)
        outcome.on_silence = None  # what is silent is judged here
        self._know(outcome.destination)
        until = time.monotonic() + REACH
        self._undo = open_stream(outcome, self._dest, None, until, functools.partial(self._told, self._opened))
        return None

    def _opened(self, outcome: object) -> None:
        if self._over is None:
            if isinstance(outcome, Stream):
                outcome.close()
        elif isinstance(outcome, Stream):
            self._stream = outcome
            self._pump.loop.watch(outcome.fileno(), IN, self._on_event)
            now = time.monotonic()
            self._timer.start(now + ANSWER, now)
        else:  # what is not the router's word is about this side
            self._finish(str(outcome), conclusive=isinstance(outcome, UnreachableError))

    def _on_event(self, event: int, now: float) -> None:
        assert self._stream is not None
        try:
            data = self._stream.socket.recv(len(self._answer))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._got += data
        if self._got == self._answer:
            self._stream.answered = True
            self._finish(None)
        elif not data or not self._answer.startswith(self._got):
            self._problem = "a stream ended before it was answered"
            self._pump.loop.forget(self._stream.fileno())
            self._timer.start(
                now + SETTLE, now
            )  # until it is known whether the session that it was made from has ended

    def _expired(self, now: float) -> None:
        stream = self._stream
        assert stream is not None
        failure = stream.failure() if stream.failure is not None else None
        self._finish(str(failure or self._problem), conclusive=failure is None)

    def _finish(self, problem: str | None, *, conclusive: bool = True) -> None:
        over, self._over = self._over, None
        self._close()
        if over is not None:
            over(self, problem, conclusive)

    def _close(self) -> None:
        self._timer.stop()
        stream, self._stream = self._stream, None
        if stream is not None:
            self._pump.loop.forget(stream.fileno())
            self._pump.loop.call(stream.close)  # after this turn, for its events may still come


def silence(connection: socket.socket) -> float:
    """For how long nothing has come on a connection.

    :returns: seconds; endless where the system does not tell.
    """
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _LAST.size) if _TCP_INFO is not None else b""
    except OSError:
        return math.inf
    return _LAST.unpack(info)[0] / 1000 if len(info) == _LAST.size else math.inf


def _no_keys() -> None:
    return None


def _nothing() -> None:
    pass
