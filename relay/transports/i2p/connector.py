"""Supervised SAM sessions: creating one, re-creating it after a loss, and replacing one that is unresponsive.

With several routers, the session is at one of them until it is lost. An attempt tries each router once, the next one as
soon as one has failed. After a loss it begins with the router after the one that was lost, and at once.
"""

from __future__ import annotations

import functools
import logging
import secrets
import select
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ...addresses.destinations import PrivateKey
from ...addresses.i2p import I2PRouter
from ...carriers.carrier import Carrier
from ...carriers.link import Lost
from ...carriers.renewal import renew
from ...errors import CarrierError, ConnectError, SAMError
from ...eventloop.background import IOThread
from ...eventloop.backoff import Backoff
from ...eventloop.loop import Timer
from ...streams.dialer import Network
from ...streams.promise import Abort, Cancel, Promise
from ...streams.stream import Stream
from ...streams.trace import Stage, observed
from ..credentials import secret_of
from .bridge import Bridge
from .conversation import Conversation
from .key_file import SessionKey
from .messages import Message, ServedElsewhereError, session_create, shown
from .routers import OneRouter, Routers
from .session import Session

if TYPE_CHECKING:
    from .standby import Standby

logger = logging.getLogger("relay")

Keys = Callable[[], SessionKey | None]

_ATTEMPT = 600.0  # seconds to create a session: tunnels may take a minute to build, and a new attempt begins anew
_ATTEMPT_OF_SEVERAL = 120.0  # seconds of that for a router while there is another one to try
_REACH = 10.0  # seconds to connect to the bridge and complete HELLO
_PROGRESS = 15.0  # seconds between two log lines while the router builds tunnels
_REMEMBERED = (13.0, 120.0)  # seconds until a router has forgotten a session of the same keys, and the maximum
_DUPLICATE = 8.0  # seconds to retry the first session of some keys while the router has another session of them
_AGAIN = 2.0  # seconds between these tries
_OTHER_IDS = 3  # other random IDs that are tried if the router says that one is in use: more in use is no coincidence
_REST = 2.0  # maximum back-off in seconds: the bridge is near, as a rule
_REPLACE_AGAIN = (30.0, 900.0)  # seconds from one replacement for a destination to the next, and the maximum
_CHECK = 30.0  # seconds between two keepalive probes

_LENGTH = 3  # default hops of a tunnel
_QUANTITY = 3  # default tunnels in each direction: routers differ (2, 5)
# ECIES-X25519 and ElGamal: i2pd gives a SAM session without this option ElGamal alone, and such a session and one of
# ECIES alone never reach each other, although the router answers OK to each CONNECT.
_ENCRYPTION = "4,0"


def make_carrier(
    name: str,
    router: I2PRouter,
    below: Network,
    keys: Keys,
    number: int | None = None,
    *,
    standby: Standby | None = None,
    quiet: bool = False,
) -> Carrier[Session]:
    """Return a supervised session; :meth:`relay.carriers.carrier.Carrier.begin` creates it.

    :param name: of the session, in errors and in the log.
    :param router: the router, and the session's options.
    :param below: the network from which the bridge is reached.
    :param keys: called before the first attempt, in a thread that may block. It returns the key, which is closed with
        the carrier, or ``None`` for a new destination after each loss.
    :param number: as for :class:`relay.carriers.carrier.Carrier`. Each of several begins with another router.
    :param standby: is asked before each session; ``None`` if no other machine has the keys.
    :param quiet: log at debug level only.
    :raises OSError: if no thread or descriptor is available.
    """
    connector = SessionConnector(name, router, below, keys, (number or 1) - 1, standby, quiet=quiet)
    carrier = Carrier(
        name, connector, _CHECK, _ATTEMPT, max_backoff=_REST, log_at_debug=quiet, kind="i2p", number=number
    )
    # Set afterwards, since the carrier needs its connector first.
    connector.replacement.renew = carrier.replace
    renew(carrier, router.renew_after)
    return carrier


class SessionConnector:
    """Creates one session after the other; see :class:`relay.carriers.link.Connector`."""

    def __init__(
        self,
        name: str,
        router: I2PRouter,
        below: Network,
        keys: Keys,
        begin_with: int,
        standby: Standby | None,
        *,
        quiet: bool,
    ) -> None:
        self.replacement = ReplacementPolicy()
        self._standby = standby
        self._name = name
        self._quiet = quiet
        self._router = router
        self._below = below
        self._routers = Routers(name, router.sam, begin_with)
        self._keys = _KeyUse(name, keys, self._routers.all)
        self._was_up = False
        self._had_last_session = False  # and no other machine has had one of the keys since
        self._cancel_dial: Abort | None = None

    def connect(self, deadline: float, cancel: Cancel, lost: Lost) -> Session:
        """Create a session at the first router where that is possible."""
        # Here and not in the constructor: reading and locking a file may block, and this is a thread that may.
        self._keys.open()
        deadline = self._wait_for_turn(deadline, cancel)
        errors: dict[OneRouter, OSError] = {}
        router = self._routers.first
        while True:
            is_last = len(errors) == len(self._routers.all) - 1
            # The last router gets all that is left: a router that builds tunnels slowly is better than none.
            until = deadline if is_last else min(deadline, time.monotonic() + _ATTEMPT_OF_SEVERAL)
            try:
                session = self._connect_to(router, until, cancel, lost)
            except OSError as error:
                if len(self._routers.all) == 1 or _cancelled(cancel, 0.0):
                    raise
                errors[router] = error
                # A destination that another program has at this router must not be published at the next one as well:
                # clients would reach one or the other.
                if is_last or self._is_in_use(error):
                    raise self._routers.failure(errors, self._below.route) from None
                router = self._routers.after(router)
            else:
                if moved := self._routers.change(errors):
                    logger.log(logging.DEBUG if self._quiet else logging.WARNING, "%s: %s", self._name, moved)
                return session

    def _wait_for_turn(self, deadline: float, cancel: Cancel) -> float:
        if self._standby is None:
            return deadline
        try:
            return self._standby.wait(deadline, cancel)
        except ServedElsewhereError:
            # The other machine has had the key since, so that this one's mark in the key file would be wrong.
            self._had_last_session = False
            raise

    def _connect_to(self, router: OneRouter, deadline: float, cancel: Cancel, lost: Lost) -> Session:
        until = time.monotonic() + _DUPLICATE
        other_ids = 0
        while True:
            try:
                session = self._attempt(router, deadline, cancel, lost)
            except SAMError as error:
                again = error.result == "DUPLICATED_ID" and other_ids < _OTHER_IDS
                other_ids += again
                # It may be a session that this program had before a restart, which the router ends within seconds; the
                # other case, a second program, is known only after that.
                if self._is_in_use(error):
                    again = time.monotonic() + _AGAIN < until and not _cancelled(cancel, _AGAIN)
                if not again:
                    raise
            else:
                self._was_up = self._had_last_session = True
                return session

    def _is_in_use(self, error: OSError) -> bool:
        """Return whether another program may have a session of the key: there must be no second one at another router.

        After the first session, what the router still has is a session that this connector has lost.
        """
        return isinstance(error, SAMError) and error.result == "DUPLICATED_DEST" and not self._was_up

    def alternative(self, error: Exception) -> str:
        """Return the next router if the session was lost and there is one; an attempt has tried all of them."""
        return f"trying the router {self._routers.first}" if error is self._routers.loss else ""

    def close(self) -> None:
        """Release the key, and the connections to the routers."""
        if self._standby is not None:
            self._standby.close()
        if self._cancel_dial is not None:
            self._cancel_dial()
        for router in self._routers.all:
            if router.dialer is not None:
                router.dialer.close()
        self._keys.close(had_session=self._had_last_session)

    def _attempt(self, router: OneRouter, deadline: float, cancel: Cancel, lost: Lost) -> Session:
        # Made with the first attempt, as most routers of a list are never used.
        if router.dialer is None:
            router.dialer = self._below.to(router.address)
        bridge = Bridge(self._name, router.dialer, _login(self._router))
        bridge.address = router.address
        try:
            control = self._open_conversation(router, bridge, deadline, cancel)
            # Only after the bridge has answered: a router that was restarted meanwhile has refused the connection, by
            # which `_on_dialed` knows that it remembers nothing.
            if self._keys.remembered_for(router) > 0:
                control.close()
                self._keys.wait_until_forgotten(router, cancel)
                control = self._open_conversation(router, bridge, deadline, cancel)
            with observed(self._below.trace, Stage.SESSION, self._name):
                return self._create(router, bridge, control, deadline, cancel, lost)
        except BaseException:
            bridge.close()
            raise

    def _open_conversation(self, router: OneRouter, bridge: Bridge, deadline: float, cancel: Cancel) -> Conversation:
        answer: Promise[Conversation] = Promise()
        # A bridge behind hops waits for them, and HELLO has a timeout of its own.
        until = deadline if self._below.route else min(deadline, time.monotonic() + _REACH)

        def on_conversation(outcome: Conversation | OSError) -> None:
            # It came after the wait has ended, and a Promise closes streams only.
            if not answer.put(outcome) and isinstance(outcome, Conversation):
                outcome.close()

        give_up = bridge.open_conversation(until, on_conversation)
        try:
            control = answer.get(until, cancel)
        except ConnectError as error:
            self._on_dialed(router, error)
            raise
        finally:
            give_up()
        if control is None:
            raise ConnectError(f"{self._name}: no answer in time", reason="connect_timeout")
        return control

    def _create(
        self,
        router: OneRouter,
        bridge: Bridge,
        control: Conversation,
        deadline: float,
        cancel: Cancel,
        lost: Lost,
    ) -> Session:
        session_id = secrets.token_hex(8)
        request = session_create(
            id=session_id, destination=self._keys.base64 or "TRANSIENT", options=options_of(self._router)
        )
        answer: Promise[Message] = Promise()
        progress = _ProgressLog(self._name, logging.DEBUG if self._quiet else logging.INFO)
        try:
            # Without a deadline of its own: `get` below watches it, and also the cancel.
            control.ask(request, None, answer.put)
            status = answer.get(deadline, cancel)
            if status is None:
                raise ConnectError(f"{self._name}: creating the session timed out", reason="connect_timeout")
            destination = self._destination(status)
        except BaseException:
            control.close()
            raise
        finally:
            progress.end()
        # Before the session exists: it may be lost as soon as it listens, and the loss must find its router.
        self._routers.on_session(router, session_id)
        session = Session(
            self._name,
            bridge,
            session_id,
            destination,
            control,
            functools.partial(self._on_loss, router, session_id, bridge, lost),
        )
        session.router = str(router) if len(self._routers.all) > 1 else ""
        session.observer = self
        return session

    def _destination(self, answer: Message) -> str:
        if answer.words == ("SESSION", "STATUS") and answer.result == "OK":
            try:
                return PrivateKey.from_base64(answer.options.get("DESTINATION", "")).destination
            except ValueError as error:
                text = f"{self._name}: the router has created the session, but reports no valid destination ({error})"
                raise SAMError(text, result="OK") from None
        raise self._refusal(answer)

    def _refusal(self, answer: Message) -> SAMError:
        result = answer.result or " ".join(answer.words)
        details = answer.options.get("MESSAGE", "")
        where = f" in {self._keys.path}" if self._keys.path is not None else ""
        text = {
            "INVALID_KEY": f"the router rejects the private key{where}",
            "DUPLICATED_DEST": f"the router already has a session of the key{where}; check for another program",
            "DUPLICATED_ID": "the router reports each new session ID as in use; restart the router",
        }.get(result, f"the router refuses the session ({shown(result)}{f': {shown(details)}' if details else ''})")
        error = SAMError(f"{self._name}: {text}", result=result)
        # A file that holds no key stays one; what else a router refuses may pass with its restart.
        error.passing = result != "INVALID_KEY"
        return error

    def _on_loss(self, router: OneRouter, session_id: str, bridge: Bridge, lost: Lost, error: CarrierError) -> None:
        """Note the time: a router that still runs remembers the session, and would end another of its keys with it."""
        self._keys.on_session_end(router)
        self._routers.on_loss(router, session_id, error)
        if self._standby is not None:
            self._standby.on_loss(error)
        if self._keys.base64:
            # Without keys no router remembers anything that matters.
            self._cancel_dial = bridge.dial(time.monotonic() + _REACH, functools.partial(self._on_dialed, router))
        lost(error)

    def _on_dialed(self, router: OneRouter, outcome: Stream | OSError) -> None:
        """Find out whether the router has ended: asked at once, because it may soon be back."""
        if isinstance(outcome, Stream):
            outcome.close()
        elif isinstance(outcome, ConnectError) and outcome.reason == "refused":
            router.forgotten = 0.0  # its next process remembers nothing

    def on_silence(self, session: Session, dest: str) -> None:
        """Replace the session, unless it has keys: with them the new session would be the same."""
        if not self._keys.base64:
            self.replacement.on_silence(session, dest)

    def on_reply(self, dest: str) -> None:
        """Note that a destination answers; in any thread."""
        self.replacement.on_reply(dest)

    def on_verdict(self, is_sound: bool) -> None:
        """Wait longer before the next session, if one of these keys was not reachable."""
        self._keys.on_verdict(is_sound)


class _KeyUse:
    """The key of a connector's sessions, and how long a router remembers the last session of it.

    :param name: of the session, in errors and in the log.
    :param open_key: returns the key; called once.
    :param routers: those at which there are sessions of the key.
    """

    def __init__(self, name: str, open_key: Keys, routers: Iterable[OneRouter]) -> None:
        self._name = name
        self._open_key = open_key
        self._is_open = False
        self._key: SessionKey | None = None
        self._routers = routers
        self._patience = _REMEMBERED[0]

    @property
    def base64(self) -> str:
        """The private key; empty if each session gets a new one."""
        key = self._key
        return key.key.base64 if key is not None else ""

    @property
    def path(self) -> Path | None:
        """File of the key; ``None`` if it has none."""
        key = self._key
        return key.path if key is not None else None

    def open(self) -> None:
        if not self._is_open:
            self._key = self._open_key()
            self._is_open = True
            if self._key is not None:
                forgotten = time.monotonic() + self._patience - self._key.seconds_since_session
                for router in self._routers:  # it is not known which one has had the session
                    router.forgotten = forgotten

    def close(self, *, had_session: bool) -> None:
        key, self._key = self._key, None
        if key is not None:
            if had_session:
                # Before the unlock: who opens the file next must read the mark.
                key.mark_session_ended()
            key.close()

    def on_session_end(self, router: OneRouter) -> None:
        router.forgotten = time.monotonic() + self._patience

    def on_verdict(self, is_sound: bool) -> None:
        # The time that a router remembers differs between versions. A session of these keys that was not reachable
        # shows that the last wait was too short.
        self._patience = _REMEMBERED[0] if is_sound else min(self._patience * 2, _REMEMBERED[1])

    def remembered_for(self, router: OneRouter) -> float:
        """Return the seconds until a router has forgotten the last session; 0 without a key."""
        return router.forgotten - time.monotonic() if self._key is not None else 0.0

    def wait_until_forgotten(self, router: OneRouter, cancel: Cancel) -> None:
        left = self.remembered_for(router)
        logger.info(
            "%s: waiting %.0f s, until the router has forgotten the last session of these keys", self._name, left
        )
        if _cancelled(cancel, left):
            raise CarrierError(f"{self._name}: the session was closed")


class ReplacementPolicy:
    """Replaces a session because a destination does not answer, less often each time that this does not help.

    A destination may be served from another router now. A router that has not noticed sends to the old one, reports OK
    for every stream, and no stream brings a byte. A new session looks the destination up again.
    """

    renew: Callable[[Session, str], None]

    def __init__(self) -> None:
        self._next: dict[str, tuple[float, Backoff]] = {}  # destination → not before, and the time until the one after

    def on_silence(self, session: Session, dest: str) -> None:
        """Replace the session because a stream to ``dest`` brings nothing; on the I/O thread."""
        now = time.monotonic()
        due, backoff = self._next.get(dest) or (0.0, Backoff(*_REPLACE_AGAIN))
        if now < due:
            return
        # Clients of a proxy name the destinations; to forget all costs one early replacement at most.
        if len(self._next) > 1000:
            self._next.clear()
        self._next[dest] = now + backoff.next(), backoff
        self.renew(session, "a stream was opened but brings no data; the session may be unresponsive")

    def on_reply(self, dest: str) -> None:
        """Forget the replacements for a destination: bytes have come from it; in any thread."""
        self._next.pop(dest, None)


class _ProgressLog:
    """Log lines every 15 seconds while the router creates a session, because that may take a minute."""

    def __init__(self, name: str, level: int) -> None:
        self._name = name
        self._level = level
        self._begun = time.monotonic()
        self._over = False
        self._io_thread = IOThread.acquire(self)
        self._timer = Timer(self._io_thread.loop.timers, self._log)
        self._io_thread.loop.call(self._start)

    def end(self) -> None:
        """Log no more."""
        self._over = True
        self._io_thread.loop.call(self._timer.stop)
        self._io_thread.release(self)

    def abandon(self) -> None:
        """Do nothing: in a forked child there is nothing to close."""

    def _start(self) -> None:
        # `end` may have come before the loop was at this call.
        if not self._over:
            now = time.monotonic()
            self._timer.start(now + _PROGRESS, now)

    def _log(self, now: float) -> None:
        text = "%s: the router is still building tunnels, after %.0f s"
        logger.log(self._level, text, self._name, now - self._begun)
        self._start()


def options_of(router: I2PRouter) -> Mapping[str, str]:
    """Return the options of SESSION CREATE, with all defaults given: those of the routers differ."""
    inside = _LENGTH if router.in_depth is None else router.in_depth
    outside = _LENGTH if router.out_depth is None else router.out_depth
    options = {
        "i2cp.leaseSetEncType": _ENCRYPTION,
        "inbound.length": str(inside),
        "outbound.length": str(outside),
        "inbound.quantity": str(_QUANTITY),
        "outbound.quantity": str(_QUANTITY),
    }
    # i2pd knows no quotes in SAM, so a space would end the value; the routers' consoles show it.
    nickname = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in router.session)
    if nickname:
        options["inbound.nickname"] = nickname
    return {**options, **dict(router.options)}


def _login(router: I2PRouter) -> tuple[str, str] | None:
    """Return the user and the password for the bridge.

    :raises AuthenticationError: if the password cannot be read; it does not repeat it.
    """
    if router.user is None:
        return None
    return router.user, secret_of(router, "password", f"{router.user}'s password for SAM: ") or ""


def _cancelled(cancel: Cancel, seconds: float) -> bool:
    """Wait; return whether it was cancelled meanwhile."""
    poller = select.poll()
    poller.register(cancel.fileno(), select.POLLIN)
    return bool(poller.poll(seconds * 1000))
