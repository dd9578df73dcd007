"""A SAM session that is up: its control socket, its streams, and names that the router has looked up for it."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...addresses.destinations import b32_of, is_base64
from ...carriers.link import PROBE, Lost
from ...errors import CarrierError, ConnectError
from ...eventloop.tcp_probe import TCPProbe
from ...streams.promise import Abort, CallbackChain
from ...streams.stream import nonblocking
from .bridge import Bridge
from .conversation import Conversation
from .messages import Message, MessageError, is_timeout, naming_lookup, parse, ping, pong, unreachable
from .unconfirmed import UnconfirmedStreams

if TYPE_CHECKING:
    from .connector import SessionConnector

logger = logging.getLogger("relay")

_MISSED = 3  # consecutive PINGs without a PONG after which the bridge counts as dead
_REST = 0.1  # seconds between the end of the last stream and that of the session
_NAMES = 1000  # looked-up names that are kept
_FRESH = 600.0  # seconds that they are kept
_LONGEST = 4096  # characters of a destination; none in use has a quarter of that
_LOOKUP_TIMEOUT = 60.0  # seconds for a name lookup; the router may have to fetch a lease set for it
_PING_TIMEOUT = 10.0  # seconds for a PONG, when relay finds out whether the bridge sends any


class Session:
    """One SAM session that is up (SAM v3, "SESSION CREATE"); see :class:`relay.carriers.link.Link`.

    It lives as long as its control socket. Every method may be called from any thread.

    :param name: of the carrier, in errors.
    :param bridge: the SAM bridge; it is closed with the session.
    :param session_id: the session's ID at the bridge.
    :param destination: of the session, in base64.
    :param control: the conversation in which the session was created.
    :param lost: called once with the error if the session ends before :meth:`close`.
    """

    def __init__(
        self, name: str, bridge: Bridge, session_id: str, destination: str, control: Conversation, lost: Lost
    ) -> None:
        self.name = name
        self.bridge = bridge
        self.id = session_id
        self.destination = destination
        self.router = ""
        """The router in the list of carriers, if there are several; set by the connector."""
        self.observer: SessionConnector | None = None  # which streams answer is reported to it
        self.unconfirmed = UnconfirmedStreams(bridge.deadlines, self._on_silence, self._on_reply)
        self._control = control
        self._lost = lost
        self._streams = _OpenStreams()
        self._names = _Names()
        self._keepalive = _Keepalive(self, control)
        # Last: from now on the I/O thread may report a loss, which needs all of the above.
        control.listen(self._on_line, self._on_end)

    # -- streams ------------------------------------------------------------------------------------------------------

    def enter(self) -> None:
        """Count a stream that is being opened, or was accepted; call :meth:`leave` once when it ends."""
        self._streams.enter()

    @nonblocking
    def leave(self) -> None:
        """Count the end of a stream."""
        self._streams.leave()

    @property
    def streams(self) -> int:
        """Number of streams that are open or being opened."""
        return self._streams.count

    @property
    def rtt(self) -> float | None:
        """The seconds until the router's SAM bridge answered the last PING; ``None`` if it answers none."""
        return self._keepalive.rtt

    @property
    def is_doubtful(self) -> bool:
        """``True`` if the last PING has got no answer in time; ``False`` for a bridge that is not pinged."""
        return self._keepalive.is_late

    def failure(self) -> CarrierError | None:
        """Return why the session has ended, which has ended its streams; ``None`` while it is up."""
        error = self._streams.error
        # A stream may see its end before the I/O thread has read that of the control socket; both end together.
        if error is None and not self._control.alive:
            return CarrierError(f"{self.name}: the router has ended the session")
        return error

    @property
    def control_socket(self) -> socket.socket:
        """Socket of the control conversation, whose addresses show where the bridge is."""
        return self._control.stream.socket

    def record_result(self, is_sound: bool) -> None:
        """Record what the reachability check has shown; on the I/O thread."""
        if self.observer is not None:
            self.observer.on_verdict(is_sound)

    # -- names --------------------------------------------------------------------------------------------------------

    def known(self, name: str) -> str | None:
        """Return the destination of a name that was looked up in the last ten minutes, in base64."""
        return self._names.get(name)

    def look_up(self, name: str, done: Callable[[str | OSError], object], deadline: float | None = None) -> Abort:
        """Look a name up (SAM v3, "NAMING LOOKUP"), unless it is known. Never blocks.

        :param name: a host name or a b32 address.
        :param done: called once, in any thread and perhaps before this returns, with the destination in base64, or with
            the error: a :class:`ConnectError` whose reason is ``connect_timeout`` if there was no answer in time.
        :param deadline: monotonic seconds; a look-up ends after 60 s in any case.
        :returns: a function that gives it up, from any thread.
        """
        steps: CallbackChain[str] = CallbackChain(done)
        known = self.known(name)
        if known is not None:
            steps.finish(known)
            return steps.give_up
        latest = time.monotonic() + _LOOKUP_TIMEOUT
        until = latest if deadline is None else min(deadline, latest)

        def on_conversation(outcome: Conversation | OSError) -> None:
            if isinstance(outcome, OSError):
                return steps.finish(outcome)

            def ask(on_result: Callable[[Message | OSError], object]) -> Abort:
                outcome.ask(naming_lookup(name), until, on_result)
                return outcome.close

            def on_answer(answer: Message | OSError) -> None:
                outcome.close()
                steps.finish(self._destination_of(name, answer))

            if not steps.begin(ask, on_answer):
                outcome.close()
            return None

        steps.begin(
            lambda on_result: self.bridge.open_conversation(until, on_result), on_conversation, owned=Conversation
        )
        return steps.give_up

    def _destination_of(self, name: str, answer: Message | OSError) -> str | OSError:
        if isinstance(answer, OSError):
            if is_timeout(answer):
                return ConnectError(f"{name}: name lookup timed out", reason="connect_timeout")
            return answer
        value = answer.options.get("VALUE", "")
        if answer.words != ("NAMING", "REPLY") or answer.result != "OK":
            return unreachable(f"{name}: the router does not know this name", answer.result)
        if len(value) > _LONGEST or not is_base64(value):
            return unreachable(f"{name}: the router's address book has no valid destination for this name", "")
        self._names.add(name, value)
        return value

    # -- its life -----------------------------------------------------------------------------------------------------

    def when_idle(self, call: Callable[[], object]) -> None:
        """Call ``call`` once no stream is open; see :class:`relay.carriers.link.Link`."""
        self._streams.when_idle(call)

    def confirm(self, done: Callable[[], object]) -> None:
        """Call ``done`` at once: a router creates a session when it has built tunnels for it."""
        done()

    def check(self) -> None:
        """Send a keepalive probe (PING), if the bridge answers these without ending the session.

        Some bridges end the socket on which they are pinged (i2pd), so relay finds that out on a spare one.
        """
        self._keepalive.check()

    def probe(self, why: str) -> None:
        """Ask the system of the router for an answer; on the I/O thread."""
        self._keepalive.probe.begin(PROBE, why)

    def lose(self, error: CarrierError) -> None:
        """Give the session up because of an error. Idempotent."""
        if not self._streams.end(error):
            return
        # Called below, after `lost`: the carrier must know of the loss before it takes the session for drained.
        idle = self._streams.take_callback()
        self._control.close()
        self._lost(error)
        if idle is not None:
            idle()

    def close(self) -> None:
        """End the session, and every stream of it. Idempotent; blocks for 0.1 s if a stream has just ended.

        If a session ends in the same moment as a stream that it has opened, i2pd 2.45 uses memory that it has freed,
        and dies some sessions later.
        """
        self._streams.end(CarrierError(f"{self.name}: the session was closed"))
        rest = self._streams.last_end + _REST - time.monotonic()
        if rest > 0:
            threading.Event().wait(rest)
        self._control.close()
        self.bridge.close()

    def abandon(self) -> None:
        """Do nothing: in a forked child the conversations close their own descriptors."""

    def _on_reply(self, dest: str) -> None:
        if self.observer is not None:
            self.observer.on_reply(dest)

    # -- on the I/O thread --------------------------------------------------------------------------------------------

    def _on_silence(self, dest: str) -> None:
        if self.observer is not None:
            self.observer.on_silence(self, dest)

    def _on_line(self, line: bytes) -> None:
        try:
            message = parse(line)
        except MessageError as error:
            self.lose(CarrierError(f"{self.name}: {error}"))
            return
        if message.words == ("PING",):
            self._control.say(pong(message.text))
        elif message.words == ("PONG",):
            self._keepalive.on_pong()
        else:
            logger.debug("%s: the router sent %r", self.name, message)

    def _on_end(self, error: OSError) -> None:
        self.lose(CarrierError(f"{self.name}: the router has ended the session"))

    def __repr__(self) -> str:
        return f"<SAM session {self.id} of {b32_of(self.destination)}>"


class _OpenStreams:
    """Number of open streams of a session, and the error with which the session has ended."""

    def __init__(self) -> None:
        self.count = 0
        self.last_end = 0.0  # of a stream, monotonic seconds
        self.error: CarrierError | None = None
        self._lock = threading.Lock()
        self._on_idle: Callable[[], object] | None = None

    def enter(self) -> None:
        with self._lock:
            self.count += 1

    def leave(self) -> None:
        with self._lock:
            self.count -= 1
            self.last_end = time.monotonic()
            on_idle = None
            if not self.count:
                on_idle, self._on_idle = self._on_idle, None
        # Without the lock, as it closes the session, which counts streams again.
        if on_idle is not None:
            on_idle()

    def when_idle(self, call: Callable[[], object]) -> None:
        with self._lock:
            # A session that has ended has no streams to wait for, whatever their owners still hold.
            if self.count and self.error is None:
                self._on_idle = call
                return
        call()

    def end(self, error: CarrierError) -> bool:
        """Record the end of the session; returns whether it is the first."""
        with self._lock:
            if self.error is not None:
                return False
            self.error = error
            return True

    def take_callback(self) -> Callable[[], object] | None:
        with self._lock:
            on_idle, self._on_idle = self._on_idle, None
            return on_idle


class _Names:
    """Cache of looked-up names; safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[str, float]] = OrderedDict()  # name → destination, monotonic seconds

    def get(self, name: str) -> str | None:
        with self._lock:
            destination, until = self._known.get(name, (None, 0.0))
        return destination if until > time.monotonic() else None

    def add(self, name: str, destination: str) -> None:
        with self._lock:
            self._known[name] = destination, time.monotonic() + _FRESH
            while len(self._known) > _NAMES:
                self._known.popitem(last=False)


class _Keepalive:
    """PINGs on the control socket, once it is known that the bridge answers them there.

    ======== ============== ======== =============================================================================
    state    event          next     action
    ======== ============== ======== =============================================================================
    unknown  check          trying   send two PINGs on a spare conversation
    trying   error          unknown  none: no spare conversation was opened, so that the next check tries again
    trying   both PONGs     pinging  none
    trying   no second PONG trying   none: this bridge is never pinged
    pinging  check          pinging  PING on the control socket; lose the session after three without PONG
    ======== ============== ======== =============================================================================
    """

    def __init__(self, session: Session, control: Conversation) -> None:
        self.can_ping: bool | None = None  # None: unknown; False: trying
        self.rtt: float | None = None
        self._session = session
        self._control = control
        self._missed = 0  # consecutive PINGs without a PONG
        self._pongs = 0  # on the spare conversation
        self._sent = 0.0  # the last PING on the control socket, monotonic seconds
        self.probe = TCPProbe(control.stream.socket, session.bridge.deadlines.loop.timers, self._on_silence)

    @property
    def is_late(self) -> bool:
        return self._missed > 1

    def check(self) -> None:
        if self.can_ping is None:
            # No second trial beside this one: the next check comes while this one may still wait.
            self.can_ping = False
            deadline = time.monotonic() + _LOOKUP_TIMEOUT
            self._session.bridge.open_conversation(deadline, self._on_conversation)
        elif self.can_ping:
            self._missed += 1
            if self._missed > _MISSED:
                self._session.lose(CarrierError(f"{self._session.name}: the router does not respond"))
            else:
                self._sent = time.monotonic()
                self._control.say(ping(self._session.id))

    def _on_silence(self, error: CarrierError) -> None:
        self._session.lose(CarrierError(f"{self._session.name}: {error}"))

    def on_pong(self) -> None:
        if self._missed == 1:  # else it may answer an earlier PING
            self.rtt = time.monotonic() - self._sent
        self._missed = 0

    def _on_conversation(self, outcome: Conversation | OSError) -> None:
        if isinstance(outcome, Conversation):
            self._try(outcome)
        else:
            self.can_ping = None  # this says nothing of PINGs

    def _try(self, spare: Conversation) -> None:
        def on_answer(answer: Message | OSError) -> None:
            is_pong = isinstance(answer, Message) and answer.words == ("PONG",)
            self._pongs += is_pong
            # The first PONG may be the last line of a bridge that then ends the socket; a second one shows that it is
            # not.
            if is_pong and self._pongs < 2:
                return self._try(spare)
            self.can_ping = is_pong
            return spare.close()

        spare.ask(ping("relay"), time.monotonic() + _PING_TIMEOUT, on_answer)
