"""The far end: its sessions by their tokens, which the carriers of listeners begin and resume."""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from ...eventloop.background import Home, IOThread
from ...eventloop.loop import Timer
from ...streams.identity import Identity
from ...streams.proxy_handshake import FinalReply
from ...streams.rate_limited_log import RateLog
from ...streams.stream import Stream
from .client import KEPT
from .figures import BUDGET, FAR
from .greeting import Greeting
from .joint import LOST, Joint
from .session import HELD, Session
from .wire import KNOWN, NEW, REFUSED, TOKEN, UNKNOWN, Answer, Hello, read_hello

logger = logging.getLogger("relay.resume")

MOST = 1024  # sessions of one identity
_MOST_PAST = 4096  # sessions that are over, and whose last word may be asked for
_ENDED = "the resume server has ended"
_LONGEST = 1e9  # seconds: those of "for ever", for a timer and as a number in a greeting
_GREETING = 10.0  # seconds for the greeting of a carrier


class Bounds(NamedTuple):
    """The bounds of the sessions of a far end."""

    kept: float = KEPT
    """Seconds for which a session is kept without a carrier."""
    most: int = MOST
    """Sessions of one identity."""
    held: int = HELD
    """Bytes that are kept for one stream, at most."""


USUAL = Bounds()


class Sessions:
    """The sessions of one far end. Belongs to the I/O thread, but for :meth:`offer` and :meth:`close`.

    The states of a session are in :mod:`relay.transports.resume.joint`.

    :param on_stream: called in the I/O thread with each new stream and its peer; it must not block.
    :param home: returns the thread that is to move the bytes of a new stream; ``None`` for the I/O thread.
    :param bounds: of its sessions.
    :raises OSError: if no thread or descriptor is available.
    """

    def __init__(
        self,
        on_stream: Callable[[Stream, Any], object],
        home: Callable[[], Home | None] = lambda: None,
        bounds: Bounds = USUAL,
    ) -> None:
        self._on_stream = on_stream
        self._home = home
        self._kept, self._most, self._held = min(bounds.kept, _LONGEST), bounds.most, bounds.held
        self._sessions: dict[bytes, _Far] = {}
        self._of_identity: dict[str, int] = {}
        self._past: dict[bytes, tuple[float, str, bytes]] = {}  # until when, whose, and the answer
        self._greetings: set[Greeting[Hello]] = set()
        self._parting: set[FinalReply] = set()
        self._foreign = RateLog(logger, logging.WARNING)
        self._is_closed = False
        self.on_idle: Callable[[], object] | None = None
        """Called in the I/O thread once there was no session for ``kept`` seconds; ``None`` for nothing."""
        self._io_thread = IOThread.acquire(self)
        self._idle = Timer(self._io_thread.loop.timers, self._is_idle)
        self._io_thread.loop.call(self._look_idle)

    def __len__(self) -> int:
        """Return the number of sessions that are not over. From any thread."""
        return len(self._sessions)

    def abandon(self) -> None:
        """In a forked child: do nothing; the joints have the descriptors."""

    def offer(self, carrier: Stream, identity: Identity | None, peer: Any) -> None:
        """Take a carrier, whose greeting has not been read. From any thread.

        :param carrier: over a non-blocking kernel socket; owned from now on.
        :param identity: of the near end, as the carrier knows it; ``None`` if it does not.
        :param peer: its address.
        """
        if not self._io_thread.loop.call(functools.partial(self._greet, carrier, identity, peer)):
            carrier.reset()

    def _greet(self, carrier: Stream, identity: Identity | None, peer: Any) -> None:
        """Read the greeting of a carrier."""
        if self._is_closed:
            return carrier.reset()

        def greeted(hello: Hello | OSError, rest: bytes) -> None:
            self._greetings.discard(greeting)
            if isinstance(hello, OSError):
                logger.info("%s: no greeting: %s", identity or "a client", hello)
            elif self._is_closed:
                self._io_thread.loop.call(carrier.reset)
            else:
                self._greeted(carrier, identity, peer, hello, rest)

        try:
            # It begins after this turn of the loop.
            greeting = Greeting(carrier, b"", read_hello, time.monotonic() + _GREETING, greeted)
        except OSError as error:
            logger.info("%s: %s", identity or "a client", error)
            return None
        return self._greetings.add(greeting)

    def close(self) -> None:
        """Take no more carriers; a session goes on until it loses its own. From any thread; idempotent."""
        self._io_thread.loop.call(self._close)

    def _close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._idle.stop()
        for greeting in tuple(self._greetings):
            greeting.cancel()
        for reply in tuple(self._parting):
            reply.finish(time.monotonic())
        for far in tuple(self._sessions.values()):
            far.end_without_carrier()
        if not self._sessions:
            self._io_thread.release(self)

    def _here(self, call: Callable[[], object]) -> None:
        """Make a call in the I/O thread, which runs while this or a session holds it."""
        self._io_thread.loop.call(call)

    def _look_idle(self) -> None:
        if not self._sessions and not self._is_closed:
            now = time.monotonic()
            self._idle.start(now + self._kept, now)

    def _is_idle(self, now: float) -> None:
        if self.on_idle is not None and not self._sessions:
            self.on_idle()

    def _greeted(self, carrier: Stream, identity: Identity | None, peer: Any, hello: Hello, rest: bytes) -> None:
        who = key_of(identity)
        if who is None:
            return self._part(carrier, Answer(REFUSED, word="no_identity"))
        if hello.token is not None:
            return self._resume(carrier, who, hello, rest)
        if self._of_identity.get(who, 0) >= self._most:
            logger.warning("%s has %d sessions, and gets no more", who, self._most)
            return self._part(carrier, Answer(REFUSED, word="limit"))
        token = os.urandom(TOKEN)
        session = Session(BUDGET, window=BUDGET.first_window(self._held), held=self._held)
        try:
            far = _Far(self, token, who, session, f"{identity}", self._home())
        except OSError as error:
            session.release()
            logger.warning("%s: no session: %s", who, error)
            return self._part(carrier, Answer(REFUSED, word="overloaded"))
        self._sessions[token] = far
        self._idle.stop()
        self._of_identity[who] = self._of_identity.get(who, 0) + 1
        far.joint.stream.identity = identity
        # Before its bytes: whatever comes with the greeting is for the holder of the stream.
        self._on_stream(far.joint.stream, peer)
        kept = int(self._kept)
        return far.attach(carrier, hello, lambda one: Answer(NEW, token, window=one.window, kept=kept), rest)

    def _resume(self, carrier: Stream, who: str, hello: Hello, rest: bytes) -> None:
        assert hello.token is not None
        past = self._past.get(hello.token)
        if past is not None and past[1] == who:
            return self._part(carrier, past[2])
        far = self._sessions.get(hello.token)
        if far is None or far.who != who:
            FAR.refused += 1
            if far is not None:
                self._foreign.log(time.monotonic(), "%s has the token of a session of %s; it is refused", who, far.who)
            return self._part(carrier, Answer(UNKNOWN))
        return far.attach(carrier, hello, lambda one: Answer(KNOWN, received=one.received, window=one.window), rest)

    def _part(self, carrier: Stream, last: Answer | bytes) -> None:
        """Send the last bytes, and close the carrier once the near end has them."""
        last = last if isinstance(last, bytes) else last.encode()
        loop = self._io_thread.loop

        def over(now: float) -> None:
            self._parting.discard(reply)
            loop.forget(carrier.fileno())
            if not loop.call(carrier.close):  # after this turn, unless it was the last one
                carrier.close()

        reply = FinalReply(carrier.socket, loop, last, over)
        self._parting.add(reply)
        reply.begin(time.monotonic())

    def _over(self, token: bytes, far: _Far) -> None:
        """Forget a session, but for its last word, which the near end may have missed."""
        del self._sessions[token]
        left = self._of_identity.pop(far.who) - 1
        if left:
            self._of_identity[far.who] = left
        if self._is_closed and not self._sessions:
            return self._io_thread.release(self)
        self._look_idle()
        session, now = far.joint.session, time.monotonic()
        if not session.word:
            return None
        answer = Answer(KNOWN, received=session.received, window=0).encode()
        self._past[token] = now + self._kept, far.who, answer + session.last_word()
        while self._past:
            oldest = next(iter(self._past))
            if len(self._past) <= _MOST_PAST and self._past[oldest][0] > now:
                break
            del self._past[oldest]
        return None


class _Far:
    """One session of a far end. Belongs to the I/O thread; its joint may have another one."""

    def __init__(self, owner: Sessions, token: bytes, who: str, session: Session, name: str, home: Home | None) -> None:
        self.joint = Joint(session, name, "client_reset", home)
        self.joint.on_detached = lambda now: owner._here(functools.partial(self._detached, now))
        self.joint.on_over = lambda: owner._here(self._over)
        self.joint.keeps_word = True
        self.who = who
        self._owner = owner
        self._token = token
        self._timer = Timer(owner._io_thread.loop.timers, self._expired)

    def attach(self, carrier: Stream, hello: Hello, answer: Callable[[Session], Answer], rest: bytes) -> None:
        """Answer a greeting, and go on with its carrier."""
        self._timer.stop()
        joint = self.joint

        def attach() -> None:
            # In the thread of the joint, which may get bytes by the last carrier until then.
            taken = joint.attach(
                carrier, hello.window, hello.received, answer=lambda one: answer(one).encode(), rest=rest
            )
            if taken and hello.token is not None:
                joint.resumes.count += 1
                self._owner._here(_count_resume)

        if not joint.call(attach):
            carrier.reset()

    def end_without_carrier(self) -> None:
        """End it now, if it has no carrier: it gets no other one."""
        self.joint.call(functools.partial(self.joint.expire, _ENDED))

    def _detached(self, now: float) -> None:
        if self._owner._is_closed:
            return self.end_without_carrier()
        return self._timer.start(now + self._owner._kept, now)

    def _expired(self, now: float) -> None:
        text = f"no other carrier in {self._owner._kept:g} s"
        self.joint.call(functools.partial(self.joint.expire, text))

    def _over(self) -> None:
        self._timer.stop()
        if getattr(self.joint.error, "reason", "") == LOST:
            FAR.losses += 1
        self._owner._over(self._token, self)


def _count_resume() -> None:
    FAR.resumes += 1


def key_of(identity: Identity | None) -> str | None:
    """Return what tells one near end from another; ``None`` for an identity that only says where it connects from.

    :param identity: as a listener knows it.
    """
    if identity is None:
        return None
    if identity.certificate is not None:
        return f"tls:{identity.certificate.spki}"
    if identity.destination is not None:
        return f"i2p:{identity.destination}"
    if identity.kind == "unix" and identity.user is not None:
        return f"unix:{identity.user}"
    return None
