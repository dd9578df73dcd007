"""SAM of the Java router, by its specification (v3.3) and its known behaviour."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...addresses.destinations import is_base64
from ...eventloop.loop import Timer
from ...transports.i2p.messages import LONGEST, Message, MessageError, parse
from .conversation import Conversation, Options
from .stream import End, Offer
from .values import Refusal, version

if TYPE_CHECKING:
    from ...addresses.destinations import PrivateKey
    from .router import Router, Session

VERSIONS = ("3.3", "3.2", "3.1", "3.0")
NEWER = (3, 2)  # with ports, and with PINGs from the router instead of a timeout for the first command


class JavaConversation(Conversation):
    """Lines in any segments; CONNECT answers OK when the stream is accepted."""

    def __init__(self, router: Router, sock: socket.socket) -> None:
        # Before the base class, which starts to read: its first event restarts this timer.
        self._timer = Timer(router.network.hub.loop.timers, self._expired)
        self._commanded = False
        self._pinged = False
        self._near: End | None = None
        super().__init__(router, sock)
        self._measure()

    def _next(self) -> None:
        # Asked for each line: the command before may have closed the socket or made it a stream, whose bytes these are
        # then.
        while not self._stops and b"\n" in self._received:
            line, _, self._received = self._received.partition(b"\n")
            if line.strip():
                self._handle_line(line)
        if len(self._received) >= LONGEST and not self.over:
            if self._stops:
                self._wire.read(False)
            else:
                self.end()

    @property
    def _stops(self) -> bool:
        return self.over or self._paused or self.role in ("accept", "connect") or self._wire.backlog > 0

    def _handle_line(self, line: bytes) -> None:
        try:
            message = parse(line + b"\n")
        except MessageError as error:
            return self._fail(str(error))
        # HELLO is no command in this sense: below 3.2 the timeout for the first command begins with it.
        self._commanded = bool(self.version)
        self._measure()
        return self.handle(message)

    def _leave(self) -> None:
        self._timer.stop()
        super()._leave()

    def unknown(self, message: Message) -> None:
        """Answer an unknown command; most leave the socket open."""
        match message.words if self.version else ():
            case ("PING",):
                self.answer("PONG", text=message.text)
            case ("PONG",):
                self._pinged = False
            case ("QUIT" | "STOP" | "EXIT", *_):
                self.answer(message.words[0], "STATUS", RESULT="OK", MESSAGE="bye", last=True)
            case ("STREAM", *_):
                self.refuse_stream(Refusal("I2P_ERROR", "Unrecognized STREAM message opcode"))
            case (domain, *_):
                self.answer(domain, "STATUS", RESULT="I2P_ERROR", MESSAGE="unsupported command")
            case _:
                self._fail("Must start with HELLO VERSION")

    def _fail(self, text: str) -> None:
        words = ("SESSION", "STATUS") if self.version else ("HELLO", "REPLY")
        self.answer(*words, RESULT="I2P_ERROR", MESSAGE=text, last=True)

    # -- HELLO and keepalive --

    def login_refusal(self, options: Options) -> Refusal | None:
        """Return why the login is rejected; ``None`` if it is accepted."""
        login = self.settings.login
        if login is None or login == (options.get("USER"), options.get("PASSWORD")):
            return None
        missing = "USER" not in options or "PASSWORD" not in options
        return Refusal("I2P_ERROR", "USER and PASSWORD required" if missing else "Authorization failed")

    def choose(self, minimum: str, maximum: str) -> str | None:
        """Return the highest common version."""
        low, high = map(version, self.settings.versions)
        least, most = version(minimum) or (0,), version(maximum) or (99,)
        return next((one for one in VERSIONS if max(low, least) <= version(one) <= min(high, most)), None)

    @property
    def _is_newer(self) -> bool:
        return version(self.version) >= NEWER

    def _greet(self, options: Options) -> None:
        super()._greet(options)
        self._measure()

    def _measure(self) -> None:
        """Restart the timeout of the program's silence."""
        now = time.monotonic()
        if self._is_newer:
            self._timer.start(now + self.settings.ping_interval, now)
        elif self._commanded:
            self._timer.stop()
        else:
            self._timer.start(now + self.settings.command_timeout, now)

    def _expired(self, now: float) -> None:
        if self._near is not None:
            self._on_outcome(False)
        elif self._paused or self.role == "accept":
            pass
        elif not self.version:
            self._fail("Timeout waiting for HELLO VERSION")
        elif not self._is_newer:
            self._fail("command timeout, bye")
        elif self._pinged:
            self._fail("PONG timeout")
        else:
            self._pinged = True
            self.answer("PING", text=str(int(now * 1000)))
            self._measure()

    def wait(self) -> None:
        """Wait for the session, and notice if the program closes the socket meanwhile."""
        self._paused = True

    def created(self) -> None:
        """Report that the session is ready, and restart the timeout."""
        self._measure()
        super().created()

    # -- SESSION --

    def session_refusal(self, options: Options) -> Refusal | None:
        """Require all options."""
        for name in ("ID", "STYLE", "DESTINATION"):
            if name not in options:
                return Refusal("I2P_ERROR", f"{name} not specified")
        if self.role:
            return Refusal("I2P_ERROR", "Session already exists")
        if options["STYLE"] != "STREAM":
            return Refusal("I2P_ERROR", "Unrecognized SESSION STYLE")
        return None

    def key_refusal(self, key: PrivateKey) -> Refusal | None:
        """Refuse a second session of a destination."""
        return Refusal("DUPLICATED_DEST") if key.b32 in self.router.destinations else None

    def refuse_session(self, refusal: Refusal) -> None:
        """Refuse the session; the program may retry on the same socket."""
        self.answer("SESSION", "STATUS", RESULT=refusal.result, MESSAGE=refusal.text)

    # -- STREAM --

    def _on_stream(self, options: Options, act: Callable[[Session, Options], None]) -> None:
        if self.role:
            return self.refuse_stream(Refusal("I2P_ERROR", "v3 control socket cannot be used for STREAM"))
        if "ID" not in options:
            return self.refuse_stream(Refusal("I2P_ERROR", "ID not specified"))
        session = self.router.sessions.get(options["ID"])
        if session is None or session.destination.born > time.monotonic():
            return self.refuse_stream(Refusal("INVALID_ID", f"STREAM SESSION ID {options['ID']} does not exist"))
        return act(session, options)

    def refuse_stream(self, refusal: Refusal) -> None:
        """Refuse the stream, and close the socket."""
        self.answer("STREAM", "STATUS", RESULT=refusal.result, MESSAGE=refusal.text, last=True)

    def _connect(self, session: Session, options: Options) -> None:
        """Answer when the stream is accepted, or after the timeout."""
        text = options.get("DESTINATION", "")
        if self.router.look_up(text) is None and not is_base64(text):
            return self.refuse_stream(Refusal("INVALID_KEY", "not found"))
        target = self._find(session.destination, text)
        if isinstance(target, Refusal):
            return self.refuse_stream(target)
        self._join(session, "connect", options)
        self._pause()
        now = time.monotonic()
        self._timer.start(now + self.settings.silence, now)
        self._near = End(session.destination)
        return self._offer(session.destination, self._near, target, options, self._on_outcome)

    def _on_outcome(self, accepted: bool) -> None:
        # The outcome may be reported twice: by the timeout, and by an acceptor that comes at that moment.
        near, self._near = self._near, None
        if near is None:
            return
        self._timer.stop()
        if accepted:
            self.answer("STREAM", "STATUS", RESULT="OK")
            self._become(near)
        else:
            near.close()
            self.refuse_stream(Refusal("CANT_REACH_PEER", "not accepted"))

    def _accept(self, session: Session, options: Options) -> None:
        """Accept any number of ACCEPTs, but none beside FORWARD, which is refused after OK.

        If a program closes the socket of an ACCEPT, the router does not notice; the next stream is lost with it.
        """
        if session.destination.acceptors.forwarding:
            self._join(session, "accept", options)
            self.answer("STREAM", "STATUS", RESULT="OK")
            return self.refuse_stream(Refusal("ALREADY_ACCEPTING", "there is a forward"))
        super()._accept(session, options)
        if not self.over:
            self._wire.read(False)
        return None

    def _forward(self, session: Session, options: Options) -> None:
        """Refuse FORWARD beside another one or ACCEPT."""
        if session.destination.acceptors.accepting:
            return self.refuse_stream(Refusal("I2P_ERROR", "Forwarding failed : something accepts already"))
        return super()._forward(session, options)

    def first_line(self, offer: Offer) -> bytes:
        """Return the peer's line, with ports from SAM 3.2 on."""
        if not self._is_newer:
            return super().first_line(offer)
        return f"{offer.peer} FROM_PORT={offer.ports[0]} TO_PORT={offer.ports[1]}\n".encode()

    # -- NAMING --

    def _look_up(self, name: str) -> None:
        if name == "ME":
            if self.session is None:
                return self.end()
            found: str | None = self.session.destination.base64
        else:
            found = self.router.look_up(name) or (name if is_base64(name) else None)
        if found is None:
            return self.answer("NAMING", "REPLY", RESULT="KEY_NOT_FOUND", NAME=name)
        return self.answer("NAMING", "REPLY", RESULT="OK", NAME=name, VALUE=found)
