"""A SAM session that is up: its control socket, its streams, and what it has learned of itself."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from ...addresses.destinations import b32_of, is_base64
from ...carriers.link import Lost
from ...errors import CarrierError
from ...streams.stream import nonblocking
from .bridge import Bridge
from .conversation import Conversation
from .messages import Message, MessageError, naming_lookup, parse, ping, pong, unreachable
from .unconfirmed import UnconfirmedStreams

__all__ = ["Session"]

logger = logging.getLogger("relay")

_SILENT = 3  # checks in a row without an answer until the bridge is dead
_REST = 0.1  # seconds between the end of the last stream and that of the session
_NAMES = 1000  # looked-up names that are kept
_FRESH = 600.0  # seconds that they are kept
_LONGEST = 4096  # characters of a destination; none in use has a quarter of that
_LOOK_UP = 60.0  # seconds for a name to be looked up; a lease set may have to be fetched for it


class Session:
    """One SAM session that is up (SAM v3, "SESSION CREATE"); see :class:`relay.carriers.carrier.Link`.

    It lives as long as its control socket. Every method may be called from any thread.

    :param name: of the carrier, in errors.
    :param bridge: where it is; it is closed with the session.
    :param session_id: its id there.
    :param destination: its own, in base64.
    :param control: the conversation in which it was made.
    :param lost: called once when it ends and nobody has closed it.
    """

    def __init__(
        self, name: str, bridge: Bridge, session_id: str, destination: str, control: Conversation, lost: Lost
    ) -> None:
        self.name = name
        self.bridge = bridge
        self.id = session_id
        self.destination = destination
        self.b32 = b32_of(destination)
        self.on_silence: Callable[[Session, str], object] | None = None
        """Called with a destination to which a stream was made that does not answer; in the pump's thread."""
        self.on_answer: Callable[[str], object] | None = None
        """Called with a destination of which bytes have come; in any thread."""
        self.on_verdict: Callable[[bool], object] | None = None
        """Called with whether streams to it have shown that it is sound; in the pump's thread."""
        self._control = control
        self._lost: Lost | None = lost
        self._lock = threading.Lock()
        self._left = 0.0  # when the last one ended, monotonic seconds
        self._streams = 0  # open ones, and those on their way
        self._idle: Callable[[], object] | None = None
        self._error: CarrierError | None = None
        self._names: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._pinged = 0  # checks since the bridge has answered; below zero while it is not known to answer at all
        self._can_ping: bool | None = None
        self.unconfirmed = UnconfirmedStreams(bridge.clock, self._silent, self._answered)
        control.listen(self._heard, self._ended)

    # -- streams ------------------------------------------------------------------------------------------------------

    def enter(self) -> None:
        """A stream is on its way, or was accepted; :meth:`leave` is called once when it is over."""
        with self._lock:
            self._streams += 1

    @nonblocking
    def leave(self) -> None:
        """It is over."""
        with self._lock:
            self._streams -= 1
            self._left = time.monotonic()
            idle = None
            if not self._streams:
                idle, self._idle = self._idle, None
        if idle is not None:
            idle()

    def failure(self) -> CarrierError | None:
        """Why streams of the session have ended, if that is because the session has."""
        if self._error is None and not self._control.alive:
            return CarrierError(f"{self.name}: the router has ended the session")
        return self._error

    @property
    def control_socket(self) -> socket.socket:
        """That of its control conversation, to see where the bridge is."""
        return self._control.stream.socket

    def judge(self, sound: bool) -> None:
        """Streams to it have shown that it is sound, or that it is not; in the pump's thread."""
        if self.on_verdict is not None:
            self.on_verdict(sound)

    # -- names --------------------------------------------------------------------------------------------------------

    def known(self, name: str) -> str | None:
        """The destination of a name that was looked up not long ago, in base64."""
        with self._lock:
            destination, until = self._names.get(name, (None, 0.0))
        return destination if until > time.monotonic() else None

    def look_up(self, name: str, done: Callable[[str | OSError], object]) -> None:
        """Ask the router for a destination (SAM v3, "NAMING LOOKUP"), unless it is known.

        :param name: a host name or a b32 address.
        :param done: called once, in any thread, with its base64, or with the error.
        """
        known = self.known(name)
        if known is not None:
            done(known)
            return
        deadline = time.monotonic() + _LOOK_UP

        def met(outcome: Conversation | OSError) -> None:
            if isinstance(outcome, OSError):
                done(outcome)
                return

            def answered(answer: Message | OSError) -> None:
                outcome.close()
                done(answer if isinstance(answer, OSError) else self._named(name, answer))

            outcome.ask(naming_lookup(name), deadline, answered)

        self.bridge.open_conversation(deadline, met)

    def _named(self, name: str, answer: Message) -> str | OSError:
        value = answer.options.get("VALUE", "")
        if answer.words != ("NAMING", "REPLY") or answer.result != "OK":
            return unreachable(f"{name}: the router does not know this name", answer.result)
        if len(value) > _LONGEST or not is_base64(value):
            return unreachable(f"{name}: what the router knows under this name is no destination", "")
        with self._lock:
            self._names[name] = value, time.monotonic() + _FRESH
            while len(self._names) > _NAMES:
                self._names.popitem(last=False)
        return value

    # -- its life -----------------------------------------------------------------------------------------------------

    def when_idle(self, call: Callable[[], object]) -> None:
        """Have ``call`` called once as soon as no stream is open; see :class:`relay.carriers.carrier.Link`."""
        with self._lock:
            if self._streams and self._error is None:
                self._idle = call
                return
        call()

    def check(self) -> None:
        """Ask the bridge for a sign of life, where it is known to give one without ending the session.

        Some end the socket on which they are asked (i2pd), so that is found out on one that nobody needs.
        """
        if self._can_ping is None:
            self._can_ping = False
            _Probe(self).begin()
        elif self._can_ping:
            self._pinged += 1
            if self._pinged > _SILENT:
                self.lose(CarrierError(f"{self.name}: the router does not answer any more"))
            else:
                self._control.say(ping(self.id))

    def may_ping(self) -> None:
        """The bridge has shown that it answers, and goes on."""
        self._can_ping = True

    def lose(self, error: CarrierError) -> None:
        """Give it up: it is of no use any more. Idempotent."""
        with self._lock:
            lost, self._lost = self._lost, None
            if lost is None:
                return
            self._error = error
            idle, self._idle = self._idle, None
        self._control.close()
        lost(error)
        if idle is not None:
            idle()

    def close(self) -> None:
        """End it, and every stream of it. Idempotent; waits for a moment if a stream has just ended.

        A session that ends in the same moment as a stream which it has opened makes i2pd use memory that it has freed,
        and the router dies some sessions later (2.45).
        """
        with self._lock:
            self._lost = None
            self._error = self._error or CarrierError(f"{self.name}: the session was closed")
            rest = self._left + _REST - time.monotonic()
        if rest > 0:
            threading.Event().wait(rest)
        self._control.close()
        self.bridge.close()

    def abandon(self) -> None:
        """In a forked child: the conversations close their own descriptors."""

    def _answered(self, dest: str) -> None:
        if self.on_answer is not None:
            self.on_answer(dest)

    # -- in the pump's thread -----------------------------------------------------------------------------------------

    def _silent(self, dest: str) -> None:
        if self.on_silence is not None:
            self.on_silence(self, dest)

    def _heard(self, line: bytes) -> None:
        try:
            message = parse(line)
        except MessageError as error:
            self.lose(CarrierError(f"{self.name}: {error}"))
            return
        if message.words == ("PING",):
            self._control.say(pong(message.text))
        elif message.words == ("PONG",):
            self._pinged = 0
        else:
            logger.debug("%s: the router says %r", self.name, message)

    def _ended(self, error: OSError) -> None:
        self.lose(CarrierError(f"{self.name}: the router has ended the session"))

    def __repr__(self) -> str:
        return f"<SAM session {self.id} of {self.b32}>"


class _Probe:
    """Finds out whether the bridge answers PING and goes on."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._conversation: Conversation | None = None
        self._answers = 0

    def begin(self) -> None:
        self._session.bridge.open_conversation(time.monotonic() + _LOOK_UP, self._met)

    def _met(self, outcome: Conversation | OSError) -> None:
        if isinstance(outcome, Conversation):
            self._conversation = outcome
            self._ask()

    def _ask(self) -> None:
        assert self._conversation is not None
        self._conversation.ask(ping("relay"), time.monotonic() + 10, self._answered)

    def _answered(self, answer: Message | OSError) -> None:
        assert self._conversation is not None
        right = isinstance(answer, Message) and answer.words == ("PONG",)
        self._answers += right
        if right and self._answers < 2:
            return self._ask()
        if right:
            self._session.may_ping()
        return self._conversation.close()
