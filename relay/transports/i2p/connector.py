"""SAM sessions that are kept up: how one is made, made again after a loss, and replaced when it has gone deaf."""

from __future__ import annotations

import functools
import logging
import secrets
import select
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from ...addresses.destinations import PrivateKey
from ...addresses.i2p import I2PRouter
from ...carriers.carrier import Carrier
from ...carriers.link import Lost
from ...errors import CarrierError, ConnectError, SAMError
from ...eventloop.background import Pump
from ...eventloop.loop import Timer
from ...streams.cancellation import Cancel
from ...streams.dialer import Dialer, Network
from ...streams.promise import Abort, Promise
from ...streams.stream import Stream
from ..credentials import secret_of
from .bridge import Bridge
from .conversation import Conversation
from .messages import Message, session_create, shown
from .session import Session

__all__ = ["SessionKey", "Keys", "make_carrier", "options_of"]

logger = logging.getLogger("relay")

Keys = Callable[[], "SessionKey | None"]

_ATTEMPT = 600.0  # seconds for a session to be made: building tunnels may take a minute, and giving up begins anew
_REACH = 10.0  # seconds for the bridge to be reached and to say HELLO
_PROGRESS = 15.0  # seconds between two lines that say that it is still being made
_REMEMBERED = (13.0, 120.0)  # seconds for a router to forget a session of the same keys, and at most
_DUPLICATE = 8.0  # seconds that the first session of some keys is tried for while the router has another one
_AGAIN = 2.0  # seconds between two tries meanwhile
_REPLACE_AGAIN = (30.0, 900.0)  # seconds until a session is replaced again for the same destination, and at most
_REST = 2.0  # seconds until a bridge that has gone is looked for again, at most: it is near, as a rule
_CHECK = 30.0  # seconds between two signs of life of the bridge

_LENGTH = 3  # hops of a tunnel, unless it is said otherwise
_QUANTITY = 3  # tunnels each way: what routers choose by themselves differs (2, 5)
# ECIES-X25519 and ElGamal: i2pd gives a SAM session without this option ElGamal alone, and such a session and one of
# ECIES alone never reach each other, although the router answers OK to each CONNECT.
_ENCRYPTION = "4,0"


class SessionKey(Protocol):
    """The private key of a session's destination, which is held as long as the session is used."""

    @property
    def key(self) -> PrivateKey:
        """The key."""

    @property
    def path(self) -> Path | None:
        """The file that it is in; ``None`` for one that is kept nowhere."""

    @property
    def seconds_since_session(self) -> float:
        """Seconds since a session of it had ended when it was taken; endless if that is not known."""

    def mark_session_ended(self) -> None:
        """A session of it has ended."""

    def close(self) -> None:
        """It may be held by somebody else."""


def make_carrier(name: str, router: I2PRouter, below: Network, keys: Keys, *, quiet: bool = False) -> Carrier[Session]:
    """A supervised session.

    :param name: of it, in errors and in the log.
    :param router: at which router, and its options.
    :param below: the network from which the bridge is reached.
    :param keys: called when the first session is made: the file of its keys, held until the carrier is closed;
        ``None`` for a new destination after each loss.
    :param quiet: whether what becomes of it is of interest to those alone who look for a fault.
    :raises OSError: if there is no thread or descriptor to be had.
    """
    way = _SessionConnector(name, router, below, keys, logging.DEBUG if quiet else logging.INFO)
    carrier = Carrier(name, way, _CHECK, _ATTEMPT, max_backoff=_REST, log_at_debug=quiet)
    way.renew = carrier.replace
    return carrier


class _SessionConnector:
    """Makes one session after the other; see :class:`relay.carriers.carrier.Connector`."""

    renew: Callable[[Session, str], None]

    def __init__(self, name: str, router: I2PRouter, below: Network, keys: Keys, level: int) -> None:
        self._name = name
        self._level = level
        self._router = router
        self._below = below
        self._dialer: Dialer | None = None  # held while this one is, so that the connections below are supervised, too
        self._open_keys = keys
        self._keys: SessionKey | None = None
        self._begun = False
        self._was_up = False
        self._forgotten = 0.0  # when the router has forgotten the last session of these keys, monotonic seconds
        self._patience = _REMEMBERED[0]
        self._stop_asking: Abort = _nothing
        self._replacement = _ReplacementPolicy(self._replace)

    def connect(self, deadline: float, cancel: Cancel, lost: Lost) -> Session:
        if not self._begun:
            self._keys = self._open_keys()
            self._begun = True
            if self._keys is not None:
                self._forgotten = time.monotonic() + self._patience - self._keys.seconds_since_session
        until = time.monotonic() + _DUPLICATE
        while True:
            try:
                session = self._make(deadline, cancel, lost)
            except SAMError as error:
                again = error.result == "DUPLICATED_ID"
                if error.result == "DUPLICATED_DEST" and not self._was_up:
                    again = time.monotonic() + _AGAIN < until and not _cancelled(cancel, _AGAIN)
                if not again:
                    raise
            else:
                self._was_up = True
                return session

    def alternative(self, error: Exception) -> str:
        """There is none."""
        return ""

    def close(self) -> None:
        self._stop_asking()
        if self._dialer is not None:
            self._dialer.close()
        keys, self._keys = self._keys, None
        if keys is not None:
            if self._was_up:
                keys.mark_session_ended()
            keys.close()

    # -- one attempt --------------------------------------------------------------------------------------------------

    def _make(self, deadline: float, cancel: Cancel, lost: Lost) -> Session:
        if self._dialer is None:
            self._dialer = self._below.to(self._router.sam)
        bridge = Bridge(self._name, self._dialer, _login(self._router))
        try:
            control = self._converse(bridge, deadline, cancel)
            if self._keys is not None and self._forgotten > time.monotonic():
                control.close()
                self._wait_until_forgotten(cancel)
                control = self._converse(bridge, deadline, cancel)
            return self._create(bridge, control, deadline, cancel, lost)
        except BaseException:
            bridge.close()
            raise

    def _converse(self, bridge: Bridge, deadline: float, cancel: Cancel) -> Conversation:
        answer: Promise[Conversation] = Promise()
        # A bridge behind hops waits for them, and its own HELLO has a limit of its own.
        until = deadline if self._below.route else min(deadline, time.monotonic() + _REACH)

        def met(outcome: Conversation | OSError) -> None:
            if not answer.put(outcome) and isinstance(outcome, Conversation):
                outcome.close()

        give_up = bridge.open_conversation(until, met)
        try:
            control = answer.get(until, cancel)
        except ConnectError as error:
            self._reached(error)
            raise
        finally:
            give_up()
        if control is None:
            raise ConnectError(f"{self._name}: no answer in time", reason="connect_timeout")
        return control

    def _create(self, bridge: Bridge, control: Conversation, deadline: float, cancel: Cancel, lost: Lost) -> Session:
        session_id = secrets.token_hex(8)
        key = self._keys.key.base64 if self._keys is not None else "TRANSIENT"
        request = session_create(id=session_id, destination=key, options=options_of(self._router))
        answer: Promise[Message] = Promise()
        progress = _ProgressLog(self._name, self._level)
        try:
            control.ask(request, None, answer.put)
            told = answer.get(deadline, cancel)
            if told is None:
                raise ConnectError(f"{self._name}: the session was not made in time", reason="connect_timeout")
            destination = self._destination(told)
        except BaseException:
            control.close()
            raise
        finally:
            progress.end()
        session = Session(
            self._name, bridge, session_id, destination, control, functools.partial(self._lose, bridge, lost)
        )
        session.on_silence = self._replacement.silent
        session.on_answer = self._replacement.answered
        session.on_verdict = self._judge
        return session

    def _destination(self, answer: Message) -> str:
        if answer.words == ("SESSION", "STATUS") and answer.result == "OK":
            try:
                return PrivateKey.from_base64(answer.options.get("DESTINATION", "")).destination
            except ValueError as error:
                text = (
                    f"{self._name}: the router says that the session is made, but not for which destination ({error})"
                )
                raise SAMError(text, result="OK") from None
        raise self._refused(answer)

    def _refused(self, answer: Message) -> SAMError:
        result = answer.result or " ".join(answer.words)
        said = answer.options.get("MESSAGE", "")
        path = self._keys.path if self._keys is not None else None
        where = f" in {path}" if path is not None else ""
        text = {
            "INVALID_KEY": f"the router does not take the private key{where}",
            "DUPLICATED_DEST": f"the router has a session of the key{where} already; does another program use it?",
            "DUPLICATED_ID": "the router has a session of this id already",
        }.get(result, f"the router does not make the session ({shown(result)}{f': {shown(said)}' if said else ''})")
        error = SAMError(f"{self._name}: {text}", result=result)
        error.passing = result != "INVALID_KEY"
        return error

    # -- losses -------------------------------------------------------------------------------------------------------

    def _lose(self, bridge: Bridge, lost: Lost, error: CarrierError) -> None:
        """It is over. A router that lives remembers it for a while, and one of the same keys would die with it."""
        self._forgotten = time.monotonic() + self._patience
        if self._keys is not None:
            self._stop_asking = bridge.dial(time.monotonic() + _REACH, self._reached)
        lost(error)

    def _reached(self, outcome: Stream | OSError) -> None:
        """Whether the router has ended, which must be asked at once: it may be back before long."""
        if isinstance(outcome, Stream):
            outcome.close()
        elif isinstance(outcome, ConnectError) and outcome.reason == "refused":
            self._forgotten = 0.0  # another one will remember nothing

    def _judge(self, sound: bool) -> None:
        """If a session of these keys did not live, wait for longer before the next one."""
        self._patience = _REMEMBERED[0] if sound else min(self._patience * 2, _REMEMBERED[1])

    def _wait_until_forgotten(self, cancel: Cancel) -> None:
        left = self._forgotten - time.monotonic()
        text = "%s: waiting %.0f s, until the router has forgotten the last session of these keys"
        logger.info(text, self._name, left)
        if _cancelled(cancel, left):
            raise CarrierError(f"{self._name}: the session was closed")

    def _replace(self, session: Session, dest: str) -> None:
        if self._keys is None:  # the same keys would be the same session
            self.renew(session, "a stream that is said to be there does not answer; the session may be deaf")


class _ReplacementPolicy:
    """When a session is replaced because a destination does not answer: seldom, if that does not help.

    A router that has not noticed that a destination is served from elsewhere now goes on sending to where it was, says
    OK to every stream, and none is ever answered; a new session looks it up anew.
    """

    def __init__(self, replace: Callable[[Session, str], None]) -> None:
        self._replace = replace
        self._next: dict[str, tuple[float, float]] = {}  # destination → not before, seconds until the one after

    def silent(self, session: Session, dest: str) -> None:
        """A stream to there does not answer; in the pump's thread."""
        now = time.monotonic()
        due, wait = self._next.get(dest, (0.0, _REPLACE_AGAIN[0]))
        if now < due:
            return
        if len(self._next) > 1000:
            self._next.clear()
        self._next[dest] = now + wait, min(wait * 2, _REPLACE_AGAIN[1])
        self._replace(session, dest)

    def answered(self, dest: str) -> None:
        """Bytes have come from there; in any thread."""
        self._next.pop(dest, None)


class _ProgressLog:
    """Says now and then that a session is still being made, because that may take a minute."""

    def __init__(self, name: str, level: int) -> None:
        self._name = name
        self._level = level
        self._begun = time.monotonic()
        self._over = False
        self._pump = Pump.hold(self)
        self._timer = Timer(self._pump.loop.timers, self._say)
        self._pump.loop.call(self._start)

    def end(self) -> None:
        """It is made, or will not be."""
        self._over = True
        self._pump.loop.call(self._timer.stop)
        self._pump.let_go(self)

    def abandon(self) -> None:
        """In a forked child: there is nothing to close."""

    def _start(self) -> None:
        if not self._over:
            now = time.monotonic()
            self._timer.start(now + _PROGRESS, now)

    def _say(self, now: float) -> None:
        logger.log(self._level, "%s: the router is building tunnels, for %.0f s by now", self._name, now - self._begun)
        self._start()


def options_of(router: I2PRouter) -> Mapping[str, str]:
    """What the session is asked for, everything written out: what routers choose by themselves differs."""
    inside = _LENGTH if router.in_depth is None else router.in_depth
    outside = _LENGTH if router.out_depth is None else router.out_depth
    options = {
        "i2cp.leaseSetEncType": _ENCRYPTION,
        "inbound.length": str(inside),
        "outbound.length": str(outside),
        "inbound.quantity": str(_QUANTITY),
        "outbound.quantity": str(_QUANTITY),
    }
    nickname = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in router.session)
    if nickname:
        options["inbound.nickname"] = nickname
    return {**options, **dict(router.options)}


def _login(router: I2PRouter) -> tuple[str, str] | None:
    """The user and the password of the bridge.

    :raises AuthenticationError: if the password cannot be had; it does not repeat it.
    """
    if router.user is None:
        return None
    return router.user, secret_of(router, "password", f"{router.user}'s password of SAM: ") or ""


def _cancelled(cancel: Cancel, seconds: float) -> bool:
    """Wait, unless it is cancelled."""
    poller = select.poll()
    poller.register(cancel.fileno(), select.POLLIN)
    return bool(poller.poll(seconds * 1000))


def _nothing() -> None:
    pass
