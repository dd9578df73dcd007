"""Probes of reachability: a session for them, and streams from it that must bring a secret reply."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import logging
import random
import re
import secrets
import time
from collections.abc import Callable

from ...addresses.destinations import Peer, PrivateKey
from ...addresses.i2p import I2PRouter
from ...carriers.carrier import Carrier
from ...errors import ConnectError
from ...eventloop.background import IOThread
from ...eventloop.loop import Timer
from ...eventloop.poller import IN
from ...streams.dialer import Network
from ...streams.stream import Stream
from .connector import Keys, make_carrier
from .key_file import SessionKey, TransientKey
from .messages import UnreachableError
from .opening import SETTLE, open_stream
from .session import Session

logger = logging.getLogger("relay")

HEAD_START = 1.0  # seconds after which the probe session is created beside a session that is being created
REACH = 75.0  # seconds for a router that has just started to find the destination
ANSWER = 15.0  # seconds for a stream to bring the reply
PEERS = 8  # probe destinations that are remembered, because a stream may come late
_SERVING = 32  # destinations of the probes of relays that serve: two relays with one at a time get no replies
_STANDBY = 64  # the same of those that stand by, each of which has two at a time
_REPLY = re.compile(rb"relay ([0-9a-f]{32}) ([0-9]{10})\n")
_REPLY_LENGTH = 50
_TUNNELS = {"inbound.quantity": "2", "outbound.quantity": "2"}

# Options, and their values, with which some clients cannot reach the destination by its own name.
_HIDING = {
    "i2cp.leaseSetType": ("5", "7"),
    "i2cp.dontPublishLeaseSet": ("true",),
    "i2cp.enableAccessList": ("true",),
    "i2cp.enableBlackList": ("true",),
}


@dataclasses.dataclass(frozen=True, slots=True)
class OtherRelay:
    """Another relay, which has answered a probe of a destination whose keys it has, too.

    :param ahead: seconds by which its clock is ahead of this machine's, at least; negative if it is behind.
    """

    ahead: float


class ProbeKeys:
    """The keys of probe sessions.

    Relays that have the keys of one destination know from them which streams are probes of each other. A relay that
    serves the destination has other ones than those that stand by.
    """

    def __init__(self) -> None:
        self.destination = ""
        """The destination that they have, in base64; empty before :meth:`share`."""
        self.peers: frozenset[str] = frozenset()
        """The destinations of their probe sessions, in base64."""
        self._serving: tuple[PrivateKey, ...] = ()
        self._standby: tuple[PrivateKey, ...] = ()
        self._numbers = itertools.count(random.randrange(_SERVING))  # noqa: S311  (this needs no secrecy)

    def share(self, key: PrivateKey) -> None:
        """Probe in a way that other relays with this key understand. In any thread; takes up to 0.1 s."""
        self._serving = tuple(key.derived(f"probe {number}") for number in range(_SERVING))
        standby = [key.derived(f"standby {number}") for number in range(_STANDBY)]
        random.shuffle(standby)  # else two relays that had one in common would have the next one in common, too
        self._standby = tuple(standby)
        self.peers = frozenset(one.destination for one in (*self._serving, *self._standby))
        self.destination = key.destination

    def choose(self) -> SessionKey | None:
        """Return the key for a probe session, another one each time; ``None`` for a new one of its own."""
        return TransientKey(self._serving[next(self._numbers) % _SERVING]) if self._serving else None

    def choose_standby(self) -> SessionKey:
        """Return the key for a probe session of a relay that does not serve; after :meth:`share`."""
        return TransientKey(self._standby[next(self._numbers) % _STANDBY])


class ProbeSession:
    """The session from which probes come: of the same router and depths, with keys and a name of its own.

    :param keys: returns the key of each one; ``None`` for a new one.
    """

    def __init__(
        self, io_thread: IOThread, name: str, router: I2PRouter, below: Network, keys: Keys | None = None
    ) -> None:
        self._keys = keys or _no_keys
        options = {**dict(router.options), **_TUNNELS}
        self.is_possible = not hiding(router)
        self._router = dataclasses.replace(
            # Neither name nor keys of the listener: a second session of its keys would disturb the one that is checked.
            router,
            sam=router.sam[:1],
            session="",
            keys=None,
            options=tuple(sorted(options.items())),
        )
        self._name = f"{name} (self-check)"
        self._below = below
        self._carrier: Carrier[Session] | None = None
        self._head_start = Timer(io_thread.loop.timers, lambda now: self.begin())

    def prepare(self) -> None:
        """Create the session after :data:`HEAD_START`."""
        if self.is_possible and self._carrier is None:
            now = time.monotonic()
            self._head_start.start(now + HEAD_START, now)

    def cancel_preparation(self) -> None:
        """Revoke :meth:`prepare`."""
        self._head_start.stop()

    def begin(self) -> None:
        """Create the session, before there is a probe, which would report what prevents that."""
        with contextlib.suppress(OSError):
            self.carrier()

    def follow(self, session: Session) -> None:
        """Probe from the router of this session: of several, another one may be at fault itself."""
        address = session.bridge.address
        if address is not None and self._router.sam != (address,):
            self.close()
            self._router = dataclasses.replace(self._router, sam=(address,))

    def carrier(self) -> Carrier[Session]:
        """Return the supervised session, created on the first call.

        :raises OSError: if no thread or descriptor is available.
        """
        if self._carrier is None:
            self._carrier = make_carrier(self._name, self._router, self._below, self._keys, quiet=True)
            self._carrier.begin()
        return self._carrier

    def close(self) -> None:
        """End the session. Idempotent; :meth:`carrier` creates another one."""
        carrier, self._carrier = self._carrier, None
        if carrier is not None:
            carrier.close(wait=False)


class OwnStreams:
    """Recognizes the streams of probes among those of clients, and has the reply to them.

    :param keys: of the probe sessions.
    """

    def __init__(self, keys: ProbeKeys | None = None) -> None:
        self.name = secrets.token_hex(16)
        """Distinguishes this relay from others with the same keys."""
        self._keys = keys or ProbeKeys()
        self._peers: tuple[str, ...] = ()  # destinations of probe sessions, the newest first

    def add(self, peer: str) -> None:
        """Expect a stream from this destination (base64)."""
        if peer not in self._peers:
            self._peers = (peer, *self._peers)[:PEERS]

    def reply_to(self, stream: Stream, peer: Peer) -> bool:
        """Send the reply on a stream of a probe; in any thread.

        :returns: whether it is one.
        """
        if peer not in self._peers and peer not in self._keys.peers:
            return False
        try:
            # It fits, as nothing was sent on this stream before.
            stream.socket.send(f"relay {self.name} {int(time.time()):010d}\n".encode())
        except OSError as error:
            logger.debug("cannot reply to a reachability check: %s", error)
        return True


class Probe:
    """One stream to a session, and the reply that it must bring. Everything runs on the I/O thread.

    The states are those of its session, in :mod:`.reachability`; a probe only goes forward.

    :param io_thread: the I/O thread.
    :param dest: the destination to check, in base64.
    :param own: learns the probe's destination, and has the reply.
    :param on_result: called once with the probe; the problem, ``None`` if the reply of this relay has come; and whether
        the problem is about the session that is checked.
    :param reach: seconds for the router to find the destination.
    """

    def __init__(
        self,
        io_thread: IOThread,
        dest: str,
        own: OwnStreams,
        on_result: Callable[[Probe, str | None, bool], object],
        reach: float,
    ) -> None:
        self._io_thread = io_thread
        self._reach = reach
        self._dest = dest
        self._own = own
        self._on_result: Callable[[Probe, str | None, bool], object] | None = on_result
        self._cancel: Callable[[], object] = _nothing
        self._stream: Stream | None = None
        self._got = b""
        self._problem = "no reply"
        self.has_opened = False
        """True if the router has found the destination and opened the stream."""
        self.other: OtherRelay | None = None
        """The relay that has answered, if it is another one with the same keys."""
        self.error: Exception | None = None
        """Why the problem is not that of the destination; ``None`` if it is."""
        self._timer = Timer(io_thread.loop.timers, self._expired)

    def begin(self, carrier: Carrier[Session]) -> None:
        """Open the stream once the probe session is up.

        :param carrier: the probe session.
        """
        cancel = carrier.when_up(functools.partial(self._pass_on, self._on_session), None, wait_for_reconnect=False)
        # The session may have been up, so that `_on_session` has set the next step's cancel in this call.
        if self._cancel is _nothing:
            self._cancel = cancel

    def end(self) -> None:
        """Cancel the probe, without a result."""
        # First: what the cancel calls back then finds nothing to report.
        self._on_result = None
        self._cancel()
        self._close()

    def crashed(self, now: float) -> None:
        """End the probe after a bug in a handler: it shows nothing."""
        self.error = ConnectError("a bug in relay; the log has it")
        self._finish(str(self.error), is_conclusive=False)

    def _pass_on(self, then: Callable[[object], object], outcome: object) -> None:
        """Continue on the I/O thread; in any thread."""
        # The I/O thread has ended, so that no other code owns this stream.
        if not self._io_thread.loop.call(functools.partial(then, outcome)) and isinstance(outcome, Stream):
            outcome.close()

    def _on_session(self, outcome: object) -> None:
        if self._on_result is None:
            return
        if not isinstance(outcome, Session):
            self.error = outcome if isinstance(outcome, Exception) else ConnectError(str(outcome))
            return self._finish(str(outcome), is_conclusive=False)
        outcome.observer = None  # the monitor decides what a stream without a reply means
        self._own.add(outcome.destination)
        until = time.monotonic() + self._reach
        self._cancel = open_stream(outcome, self._dest, None, until, functools.partial(self._pass_on, self._on_stream))
        return None

    def _on_stream(self, outcome: object) -> None:
        if self._on_result is None:
            if isinstance(outcome, Stream):
                outcome.close()
        elif isinstance(outcome, Stream):
            self._stream, self.has_opened = outcome, True
            self._io_thread.loop.watch(outcome.fileno(), IN, self._on_event)
            now = time.monotonic()
            self._timer.start(now + ANSWER, now)
        else:  # any error but the router's word is about the probe session
            is_conclusive = isinstance(outcome, UnreachableError)
            # A router may take a minute to find out that a destination has no session any more.
            is_late = isinstance(outcome, ConnectError) and outcome.reason == "connect_timeout"
            if not (is_conclusive or is_late):
                self.error = outcome if isinstance(outcome, Exception) else ConnectError(str(outcome))
            self._finish(str(outcome), is_conclusive=is_conclusive)

    def _on_event(self, event: int, now: float) -> None:
        assert self._stream is not None
        try:
            data = self._stream.socket.recv(_REPLY_LENGTH - len(self._got))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._got += data
        if data and len(self._got) < _REPLY_LENGTH:
            return
        reply = _REPLY.fullmatch(self._got)
        if reply is not None:
            self._stream.answered = True
            if reply[1].decode() == self._own.name:
                return self._finish(None)
            self.other = OtherRelay(_ahead(int(reply[2]), time.time()))
            return self._finish("another relay with the same keys answers")
        self._problem = "a stream ended before its reply"
        self._io_thread.loop.forget(self._stream.fileno())
        self._timer.start(now + SETTLE, now)  # until it is known whether the probe session has ended
        return None

    def _expired(self, now: float) -> None:
        stream = self._stream
        assert stream is not None
        failure = stream.failure() if stream.failure is not None else None
        if isinstance(failure, Exception):
            self.error = failure
        self._finish(str(failure or self._problem), is_conclusive=failure is None)

    def _finish(self, problem: str | None, *, is_conclusive: bool = True) -> None:
        on_result, self._on_result = self._on_result, None
        self._close()
        if on_result is not None:
            on_result(self, problem, is_conclusive)

    def _close(self) -> None:
        self._timer.stop()
        stream, self._stream = self._stream, None
        if stream is not None:
            self._io_thread.loop.forget(stream.fileno())
            self._io_thread.loop.call(stream.close)  # after this turn: its events may still come


def hiding(router: I2PRouter) -> str:
    """Return an option of a session with which some clients cannot reach it by its own name; empty if there is none."""
    for option, value in router.options:
        if value.lower() in _HIDING.get(option, ()):
            return f"{option}={value}"
    return ""


def _ahead(clock: int, now: float) -> float:
    """Return the smallest difference of a clock that was read, in whole seconds, while a stream was open."""
    return max(0.0, clock - now) or min(0.0, clock + 1 - (now - ANSWER))


def _no_keys() -> None:
    return None


def _nothing() -> None:
    pass
