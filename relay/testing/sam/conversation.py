"""One SAM socket of a program at the embedded bridge: the behaviour that all routers share."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import re
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ...addresses.destinations import PrivateKey
from ...transports.i2p.messages import Message
from .stream import End, Offer, join
from .values import Refusal, masked
from .wire import Wire

if TYPE_CHECKING:
    from .destination import Destination
    from .router import Router, Session

Options = Mapping[str, str]

_PORT = re.compile(r"[0-9]{1,5}")


class Conversation(ABC):
    """A socket, from its first line until it is closed or carries a stream.

    :param router: the router of the bridge.
    :param sock: the socket, which the conversation owns from now on.
    """

    def __init__(self, router: Router, sock: socket.socket) -> None:
        self.router = router
        self.settings = router.settings
        self.version = ""  # "" until HELLO is answered
        self.role = ""  # or "session", "accept", "forward", "connect"
        self.session: Session | None = None  # to which it belongs
        self.self_contained = False  # accepts more than one stream
        self.over = False
        self._received = b""
        self._paused = False
        self._hides_peer = False  # SILENT=true: do not send the peer's destination
        self._forward_address = ("", 0)  # of the program that receives forwarded streams
        # Last: from here on events may come, and they use all that is above.
        self._wire = Wire(router.network.hub, sock, self)

    # -- the socket --

    def received(self, data: bytes) -> None:
        """Handle bytes of the program; see :class:`~relay.testing.sam.wire.User`."""
        self._received += data
        self._next()

    def drained(self) -> None:
        """Continue once everything is written; see :class:`~relay.testing.sam.wire.User`."""
        if not self._paused:
            self._go_on()

    def closed(self) -> None:
        """Handle the end of the socket; see :class:`~relay.testing.sam.wire.User`."""
        self._leave()

    def end(self) -> None:
        """Close the socket. Idempotent."""
        self._leave()
        self._wire.close()

    def _leave(self) -> None:
        if self.over:
            return
        self.over = True
        self.router.conversations.discard(self)
        # Taken away first: closing the session ends its sockets, and one of them may be this one.
        session, self.session = self.session, None
        if session is None:
            return
        if self.role == "session":
            self.router.close_session(session)
        else:
            session.sockets.discard(self)
            session.destination.acceptors.dismiss(self)

    def _become(self, end: End, first: bytes = b"") -> None:
        """Become a stream. Bytes that the program has sent early belong to it."""
        assert self.session is not None
        # From here on the stream owns the wire; the end of the session ends it by the destination's list of ends.
        self.session.sockets.discard(self)
        self.router.conversations.discard(self)
        self.over = True
        end.take(self._wire, first)
        if self._received:
            end.received(self._received)

    def _pause(self) -> None:
        """Stop reading until there is an answer."""
        self._paused = True
        self._wire.read(False)

    def _go_on(self) -> None:
        self._paused = False
        self._wire.read(True)
        if self._received:
            self._next()

    # -- lines --

    @abstractmethod
    def _next(self) -> None:
        """Handle the received bytes, if they hold a whole command."""

    def handle(self, message: Message) -> None:
        """Execute a command, now or when :meth:`SAMBridge.release_answers` is called."""
        self.router.note(message)
        if self.router.holds(message, lambda: self._execute_late(message)):
            self._pause()
        else:
            self._execute(message)

    def _execute_late(self, message: Message) -> None:
        # The program may have closed the socket while the answer was held back.
        if not self.over:
            self._paused = False
            self._wire.read(True)
            self._execute(message)
            if self._received and not self._paused:
                self._next()

    def _execute(self, message: Message) -> None:
        # Both are errors: a second HELLO, and any other command before the first.
        if (message.words == ("HELLO", "VERSION")) == bool(self.version):
            return self.unknown(message)
        match message.words:
            case ("HELLO", "VERSION"):
                self._greet(message.options)
            case ("SESSION", "CREATE"):
                self._create(message.options, masked(message))
            case ("STREAM", "CONNECT"):
                self._on_stream(message.options, self._connect)
            case ("STREAM", "ACCEPT"):
                self._on_stream(message.options, self._accept)
            case ("STREAM", "FORWARD"):
                self._on_stream(message.options, self._forward)
            case ("NAMING", "LOOKUP"):
                self._look_up(message.options.get("NAME", ""))
            case ("DEST", "GENERATE"):
                key = PrivateKey.generate()
                self.answer("DEST", "REPLY", PUB=key.destination, PRIV=key.base64)
            case _:
                self.unknown(message)
        return None

    @property
    def _is_silent(self) -> bool:
        """``True`` if SILENT=true suppresses the status."""
        return self._hides_peer and self.role != "forward"

    def answer(self, *words: str, last: bool = False, text: str = "", **options: str) -> None:
        """Send a message.

        :param words: of the message.
        :param last: close the socket then.
        :param text: of PING and PONG.
        :param options: in their order, without the empty ones.
        """
        given = {key: value for key, value in options.items() if value}
        if not self._is_silent:
            try:
                self._wire.send(Message(words, given, text).encode())
            except ValueError:  # a name that no line can hold
                return self.end()
        if last:
            self._pause()
            self._wire.finish()
        # A program that sends commands and never reads the answers must not fill the memory.
        elif self._wire.backlog:
            self._wire.read(False)
        return None

    @abstractmethod
    def unknown(self, message: Message) -> None:
        """Answer a command that does not exist, or is invalid in this state."""

    # -- HELLO --

    def _greet(self, options: Options) -> None:
        chosen = self.choose(options.get("MIN", ""), options.get("MAX", ""))
        refusal = self.login_refusal(options) if chosen is not None else Refusal("NOVERSION")
        if chosen is None or refusal is not None:
            assert refusal is not None
            self.answer("HELLO", "REPLY", RESULT=refusal.result, MESSAGE=refusal.text, last=True)
        else:
            self.version = chosen
            self.answer("HELLO", "REPLY", RESULT="OK", VERSION=chosen)

    def login_refusal(self, options: Options) -> Refusal | None:
        """Return why the login is rejected; ``None`` if it is accepted."""
        return None

    @abstractmethod
    def choose(self, minimum: str, maximum: str) -> str | None:
        """Return the version of SAM to use; ``None`` if there is no common one."""

    # -- SESSION --

    def _create(self, options: Options, shown: Options) -> None:
        fault = self.router.refused_sessions.take()
        refusal = Refusal(fault, _text(fault)) if fault else self.session_refusal(options)
        text = options.get("DESTINATION", "")
        if refusal is None and options.get("ID", "") in self.router.sessions:
            refusal = Refusal("DUPLICATED_ID")
        if refusal is None:
            try:
                key = PrivateKey.generate() if text == "TRANSIENT" else PrivateKey.from_base64(text)
            except ValueError:
                refusal = Refusal("INVALID_KEY")
            else:
                refusal = self.key_refusal(key)
        if refusal is not None:
            return self.refuse_session(refusal)
        self.role = "session"
        self.session = self.router.create(options.get("ID", ""), key, shown, self)
        if self.session.destination.born > time.monotonic():
            return self.wait()
        return self.created()

    def wait(self) -> None:
        """Wait for the session, without noticing whether the program closes the socket meanwhile."""
        self._pause()

    @abstractmethod
    def session_refusal(self, options: Options) -> Refusal | None:
        """Return why a session with these options is refused; ``None`` if it is not."""

    def key_refusal(self, key: PrivateKey) -> Refusal | None:
        """Return why a second session of a destination is refused; ``None`` if it is not."""
        return None

    @abstractmethod
    def refuse_session(self, refusal: Refusal) -> None:
        """Refuse the session."""

    def created(self) -> None:
        """Report that the session is ready."""
        assert self.session is not None
        self.answer("SESSION", "STATUS", RESULT="OK", DESTINATION=self.session.destination.key.base64)
        if self._paused:
            self._go_on()

    # -- STREAM --

    @abstractmethod
    def _on_stream(self, options: Options, act: Callable[[Session, Options], None]) -> None:
        """Find the session, then call ``act``."""

    @abstractmethod
    def refuse_stream(self, refusal: Refusal) -> None:
        """Refuse the stream."""

    def _join(self, session: Session, role: str, options: Options) -> None:
        self.session, self.role = session, role
        self._hides_peer = options.get("SILENT", "").lower() == "true"
        session.sockets.add(self)

    def _find(self, source: Destination, text: str) -> Destination | Refusal:
        """Return the destination of a stream, or why there is none."""
        fault = self.router.failed_connects.take()
        if fault:
            return Refusal(fault, _text(fault))
        b32 = self.router.resolve(text)
        if b32 is None:
            return Refusal("INVALID_KEY")
        found = self.router.network.find(b32)
        # An old lease set wins over the present one: that is the fault which is imitated.
        target = source.mistaken(b32, found) or found
        if source.born > time.monotonic():
            return Refusal("CANT_REACH_PEER", "the session is not ready")
        if not source.alive:
            return Refusal("INVALID_ID" if source.knows(b32) else "CANT_REACH_PEER")
        if target is None:
            return Refusal("CANT_REACH_PEER", "LeaseSet not found")
        if target is source and not self.settings.connect_to_self:
            return Refusal("CANT_REACH_PEER", "Can't connect to myself")
        source.meet(target)
        return target

    def _offer(
        self,
        source: Destination,
        near: End,
        target: Destination,
        options: Options,
        on_outcome: Callable[[bool], object],
    ) -> None:
        """Open a stream.

        :param source: the destination that opens it.
        :param near: the end of this program, now or later.
        :param target: the destination to which it goes.
        :param options: of the STREAM CONNECT.
        :param on_outcome: called with whether it was accepted, if that becomes known.
        """
        # The lease set was found, and the destination has ended: the stream goes nowhere, and no answer tells the
        # program.
        if not target.alive:
            return
        far = End(target)
        lost = self.is_empty(source, target)

        def answered(accepted: bool) -> None:
            if accepted:
                # A set, since both may be the same router, which counts a stream once.
                for router in {source.router, target.router}:
                    router.streams += 1
            if not lost:
                on_outcome(accepted)

        if not lost:
            target.meet(source)
            # Before the offer: an acceptor that waits already takes the stream inside that call.
            join(near, far)
        ports = _port(options.get("FROM_PORT", "")), _port(options.get("TO_PORT", ""))
        target.acceptors.offer(Offer(far, source.base64, ports, answered))

    def is_empty(self, source: Destination, target: Destination) -> bool:
        """Return whether a stream arrives but carries no bytes in either direction."""
        return target.mistaken(source.b32, source) is not None

    @abstractmethod
    def _connect(self, session: Session, options: Options) -> None:
        """Handle STREAM CONNECT."""

    def _accept(self, session: Session, options: Options) -> None:
        self._join(session, "accept", options)
        self.answer("STREAM", "STATUS", RESULT="OK")
        late = self.router.late_errors.take()
        if late:
            return self.answer("STREAM", "STATUS", RESULT=late, MESSAGE=_text(late), last=True)
        return session.destination.acceptors.accept(self)

    def _forward(self, session: Session, options: Options) -> None:
        place = _forward_address(options.get("HOST") or self._wire.peer, options.get("PORT", ""))
        if place is None:
            return self.refuse_stream(Refusal("I2P_ERROR", "Invalid HOST or PORT"))
        self._join(session, "forward", options)
        self._forward_address, self.self_contained = place, True
        self.answer("STREAM", "STATUS", RESULT="OK")
        return session.destination.acceptors.accept(self)

    def take(self, offer: Offer) -> None:
        """Accept one stream; after FORWARD, each."""
        line = b"" if self._hides_peer else self.first_line(offer)
        if not self.self_contained:
            return self._become(offer.end, line)
        host, _ = self._forward_address
        try:
            sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        except OSError:
            return offer.end.close()
        # The thread serves all programs of the network; one that listens and never accepts must not stop it.
        sock.setblocking(False)
        if sock.connect_ex(self._forward_address) not in (0, errno.EINPROGRESS):
            sock.close()
            return offer.end.close()
        return offer.end.take(Wire(self.router.network.hub, sock, offer.end), line)

    def first_line(self, offer: Offer) -> bytes:
        """Return the line that a program receives before the bytes of a stream."""
        return offer.peer.encode() + b"\n"

    # -- NAMING --

    @abstractmethod
    def _look_up(self, name: str) -> None:
        """Handle NAMING LOOKUP."""


def _port(text: str) -> str:
    """Return a port as the other side receives it."""
    return text if _PORT.fullmatch(text) else "0"


def _text(result: str) -> str:
    """Return the text of an injected error."""
    return "injected fault" if result == "I2P_ERROR" else ""


def _forward_address(host: str, port: str) -> tuple[str, int] | None:
    """Return the address of a listening program; not for host names, whose lookup may block."""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
        if 0 < int(port) < 65536:
            return str(address), int(port)
    return None
