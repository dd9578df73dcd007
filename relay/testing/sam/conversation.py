"""One socket of a program that speaks SAM to the embedded bridge: what every router does alike."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import re
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from ...addresses.destinations import PrivateKey
from ...transports.i2p.messages import Message
from .stream import End, Offer, join
from .values import masked
from .wire import Wire

if TYPE_CHECKING:
    from .destination import Destination
    from .router import Router, Session

__all__ = ["Conversation", "Refusal"]

Options = Mapping[str, str]

_PORT = re.compile(r"[0-9]{1,5}")


class Refusal(NamedTuple):
    """The failure of a command: SAM's word for it, and a text for people."""

    result: str
    text: str = ""


class Conversation(ABC):
    """A socket, from its first line until it is closed or carries a stream.

    :param router: whose it is.
    :param sock: the socket, which is the conversation's from now on.
    """

    def __init__(self, router: Router, sock: socket.socket) -> None:
        self.router = router
        self.settings = router.settings
        self.version = ""  # "" until HELLO is answered
        self.role = ""  # or "session", "accept", "forward", "connect"
        self.session: Session | None = None  # that it belongs to
        self.self_contained = False
        self.over = False
        self._heard = b""
        self._paused = False
        self._silent = False  # nothing is answered
        self._mute = False  # True: the program does not get the destination of each client
        self._place = ("", 0)  # of the program that takes what is forwarded
        self._wire = Wire(router.network.hub, sock, self)

    # -- the socket --

    def received(self, data: bytes) -> None:
        """The program has said something; see :class:`samwire.User`."""
        self._heard += data
        self._next()

    def drained(self) -> None:
        """The program has read; see :class:`samwire.User`."""
        if not self._paused:
            self._go_on()

    def closed(self) -> None:
        """The program has gone; see :class:`samwire.User`."""
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
        session, self.session = self.session, None
        if session is None:
            return
        if self.role == "session":
            self.router.close_session(session)
        else:
            session.sockets.discard(self)
            session.destination.dismiss(self)

    def _become(self, end: End, first: bytes = b"") -> None:
        """Carry a stream from now on. What the program has said too early belongs to that."""
        assert self.session is not None
        self.session.sockets.discard(self)
        self.router.conversations.discard(self)
        self.over = True
        end.take(self._wire, first)
        if self._heard:
            end.received(self._heard)

    def _pause(self) -> None:
        """Hear nothing, until there is an answer."""
        self._paused = True
        self._wire.read(False)

    def _go_on(self) -> None:
        self._paused = False
        self._wire.read(True)
        if self._heard:
            self._next()

    # -- lines --

    @abstractmethod
    def _next(self) -> None:
        """Act on what has been heard, if that is enough."""

    def obey(self, message: Message) -> None:
        """Act on a command, now, or once the bridge answers again."""
        self.router.note(message)
        if self.router.holds(message, lambda: self._obey_late(message)):
            self._pause()
        else:
            self._act(message)

    def _obey_late(self, message: Message) -> None:
        if not self.over:
            self._paused = False
            self._wire.read(True)
            self._act(message)
            if self._heard and not self._paused:
                self._next()

    def _act(self, message: Message) -> None:
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

    def answer(self, *words: str, last: bool = False, text: str = "", **options: str) -> None:
        """Say something.

        :param words: what.
        :param last: whether the socket closes then.
        :param text: of PING and PONG.
        :param options: in their order; empty ones are left out.
        """
        given = {key: value for key, value in options.items() if value}
        if not self._silent:
            try:
                self._wire.send(Message(words, given, text).encode())
            except ValueError:  # a name that no line can hold
                return self.end()
        if last:
            self._pause()
            self._wire.finish()
        elif self._wire.backlog:
            self._wire.read(False)
        return None

    @abstractmethod
    def unknown(self, message: Message) -> None:
        """There is no such command, or not now."""

    # -- HELLO --

    def _greet(self, options: Options) -> None:
        chosen = self.choose(options.get("MIN", ""), options.get("MAX", ""))
        refusal = self.unwelcome(options) if chosen is not None else Refusal("NOVERSION")
        if chosen is None or refusal is not None:
            assert refusal is not None
            self.answer("HELLO", "REPLY", RESULT=refusal.result, MESSAGE=refusal.text, last=True)
        else:
            self.version = chosen
            self.answer("HELLO", "REPLY", RESULT="OK", VERSION=chosen)

    def unwelcome(self, options: Options) -> Refusal | None:
        """Return the reason to reject this program, or ``None``."""
        return None

    @abstractmethod
    def choose(self, minimum: str, maximum: str) -> str | None:
        """The version to speak."""

    # -- SESSION --

    def _create(self, options: Options, shown: Options) -> None:
        fault = self.router.refused_sessions.take()
        refusal = Refusal(fault, _text(fault)) if fault else self.unacceptable(options)
        text = options.get("DESTINATION", "")
        if refusal is None and options.get("ID", "") in self.router.sessions:
            refusal = Refusal("DUPLICATED_ID")
        if refusal is None:
            try:
                key = PrivateKey.generate() if text == "TRANSIENT" else PrivateKey.from_base64(text)
            except ValueError:
                refusal = Refusal("INVALID_KEY")
            else:
                refusal = self.taken(key)
        if refusal is not None:
            return self.refuse_session(refusal)
        self.role = "session"
        self.session = self.router.create(options.get("ID", ""), key, shown, self)
        if self.session.destination.born > time.monotonic():
            return self.wait()
        return self.created()

    def wait(self) -> None:
        """The session is not ready. The end of the program goes unnoticed meanwhile."""
        self._pause()

    @abstractmethod
    def unacceptable(self, options: Options) -> Refusal | None:
        """Return the reason to reject such a session, or ``None``."""

    def taken(self, key: PrivateKey) -> Refusal | None:
        """Return the reason to reject a second session of a destination, or ``None``."""
        return None

    @abstractmethod
    def refuse_session(self, refusal: Refusal) -> None:
        """There is no session."""

    def created(self) -> None:
        """The session is ready."""
        assert self.session is not None
        self.answer("SESSION", "STATUS", RESULT="OK", DESTINATION=self.session.destination.key.base64)
        if self._paused:
            self._go_on()

    # -- STREAM --

    @abstractmethod
    def _on_stream(self, options: Options, act: Callable[[Session, Options], None]) -> None:
        """Find the session, then act."""

    @abstractmethod
    def refuse_stream(self, refusal: Refusal) -> None:
        """There is no stream."""

    def _join(self, session: Session, role: str, options: Options) -> None:
        self.session, self.role = session, role
        self._mute = options.get("SILENT", "").lower() == "true"
        self._silent = self._mute and role != "forward"
        session.sockets.add(self)

    def _find(self, source: Destination, text: str) -> Destination | Refusal:
        """Find the destination of a stream."""
        fault = self.router.failed_connects.take()
        if fault:
            return Refusal(fault, _text(fault))
        b32 = self.router.resolve(text)
        if b32 is None:
            return Refusal("INVALID_KEY")
        found = self.router.network.find(b32)
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
        self, source: Destination, near: End, target: Destination, options: Options, on_result: Callable[[bool], object]
    ) -> None:
        """Begin a stream.

        :param source: the destination that it comes from.
        :param near: its end that this program has, or will have.
        :param on_result: called with ``True`` if it was accepted, ``False`` if not, where that can be known.
        """
        if not target.alive:
            return
        far = End(target)
        lost = self.hollow(source, target)

        def answered(accepted: bool) -> None:
            if accepted:
                for router in {source.router, target.router}:
                    router.streams += 1
            if not lost:
                on_result(accepted)

        if not lost:
            target.meet(source)
            join(near, far)
        ports = _port(options.get("FROM_PORT", "")), _port(options.get("TO_PORT", ""))
        target.offer(Offer(far, source.base64, ports, answered))

    def hollow(self, source: Destination, target: Destination) -> bool:
        """Return true if only the beginning of a stream arrives, and none of its bytes, in either direction."""
        return target.mistaken(source.b32, source) is not None

    @abstractmethod
    def _connect(self, session: Session, options: Options) -> None:
        """STREAM CONNECT."""

    def _accept(self, session: Session, options: Options) -> None:
        self._join(session, "accept", options)
        self.answer("STREAM", "STATUS", RESULT="OK")
        late = self.router.late_errors.take()
        if late:
            return self.answer("STREAM", "STATUS", RESULT=late, MESSAGE=_text(late), last=True)
        return session.destination.accept(self)

    def _forward(self, session: Session, options: Options) -> None:
        place = _place(options.get("HOST") or self._wire.peer, options.get("PORT", ""))
        if place is None:
            return self.refuse_stream(Refusal("I2P_ERROR", "Invalid HOST or PORT"))
        self._join(session, "forward", options)
        self._place, self.self_contained = place, True
        self.answer("STREAM", "STATUS", RESULT="OK")
        return session.destination.accept(self)

    def take(self, offer: Offer) -> None:
        """A stream has come; see :class:`samdestination.Acceptor`."""
        line = b"" if self._mute else self.line_of(offer)
        if not self.self_contained:
            return self._become(offer.end, line)
        host, _ = self._place
        try:
            sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        except OSError:
            return offer.end.close()
        sock.setblocking(False)
        if sock.connect_ex(self._place) not in (0, errno.EINPROGRESS):
            sock.close()
            return offer.end.close()
        return offer.end.take(Wire(self.router.network.hub, sock, offer.end), line)

    def line_of(self, offer: Offer) -> bytes:
        """Return the line that a program reads before the bytes of a stream."""
        return offer.peer.encode() + b"\n"

    # -- NAMING --

    @abstractmethod
    def _look_up(self, name: str) -> None:
        """NAMING LOOKUP."""


def _port(text: str) -> str:
    """A port as the other side reads it."""
    return text if _PORT.fullmatch(text) else "0"


def _text(result: str) -> str:
    """Return the text that routers send with the name of an error; empty for those without one."""
    return "the bridge fails on request" if result == "I2P_ERROR" else ""


def _place(host: str, port: str) -> tuple[str, int] | None:
    """Return the address of a program; only IP addresses, because a lookup may block."""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
        if 0 < int(port) < 65536:
            return str(address), int(port)
    return None
