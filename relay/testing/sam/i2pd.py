"""SAM of i2pd 2.45.1, as measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ...transports.i2p.messages import LONGEST, Message
from .conversation import Conversation, Options
from .stream import End
from .values import Refusal, version

if TYPE_CHECKING:
    from .destination import Destination
    from .router import Session


class I2pdConversation(Conversation):
    """One command per segment: bytes after it in the segment are lost. It has no quotes, and most errors are final."""

    _follows = 0  # bytes that came in one segment with a command, after it

    def _next(self) -> None:
        line, newline, rest = self._received.partition(b"\n")
        if not self.version:
            self._received = b""  # the first segment is the first line, complete or not
            message = read(line)
            self.handle(message) if message.words == ("HELLO", "VERSION") else self.end()
        elif newline:
            self._received = b""
            self._follows = len(rest)
            self.handle(read(line))
        elif len(line) >= LONGEST:
            self.end()

    def unknown(self, message: Message) -> None:
        """Answer an unknown command, such as PING or a command in lower case."""
        if message.words in (("SESSION", "ADD"), ("SESSION", "REMOVE")):
            self._refuse("Wrong session type")
        else:
            self.end()

    def _refuse(self, text: str) -> None:
        self.answer("SESSION", "STATUS", RESULT="I2P_ERROR", MESSAGE=text, last=True)

    def choose(self, minimum: str, maximum: str) -> str | None:
        """Return the highest requested version if it is supported, else the lowest; no version between them."""
        low, high = self.settings.versions
        for wanted in (maximum or high, minimum or low):
            if version(low) <= version(wanted) <= version(high):
                return wanted
        return low if () < version(minimum) < (3,) and version(maximum or high) > version(high) else None

    # -- SESSION --

    def session_refusal(self, options: Options) -> Refusal | None:
        """Check the options in the order of the router."""
        name = options.get("ID", "")
        if any(character in "<>\"'/" for character in name):
            return Refusal("INVALID_ID")
        if name in self.router.sessions:
            return Refusal("DUPLICATED_ID")
        if self.role:
            return Refusal("I2P_ERROR", "Socket already in use")
        if options.get("STYLE") != "STREAM":
            return Refusal("I2P_ERROR", "Unknown STYLE")
        return None

    def refuse_session(self, refusal: Refusal) -> None:
        """Refuse the session, and close the socket."""
        self.answer("SESSION", "STATUS", RESULT=refusal.result, MESSAGE=refusal.text, last=True)

    # -- STREAM --

    def _on_stream(self, options: Options, act: Callable[[Session, Options], None]) -> None:
        if self.role:
            return self._refuse("Socket already in use")
        session = self.router.sessions.get(options.get("ID", ""))
        if session is None:
            return self.refuse_stream(Refusal("INVALID_ID"))
        return act(session, options)

    def refuse_stream(self, refusal: Refusal) -> None:
        """Refuse the stream, and close the socket; some errors have another name."""
        kind = "SESSION" if refusal.result == "I2P_ERROR" and refusal.text else "STREAM"
        self.answer(kind, "STATUS", RESULT=refusal.result, MESSAGE=refusal.text, last=True)

    def _connect(self, session: Session, options: Options) -> None:
        """Answer OK once the lease set is found, whether the stream is accepted or not."""
        source = session.destination
        target = self._find(source, options.get("DESTINATION", ""))
        if isinstance(target, Refusal):
            text = target.text if target.result == "I2P_ERROR" else ""
            return self.refuse_stream(Refusal(target.result, text))
        self._join(session, "connect", options)
        near = End(source)
        self._offer(source, near, target, options, _ignore)
        self.answer("STREAM", "STATUS", RESULT="OK")
        self._received = bytes(self._follows)  # as many bytes as were sent early arrive, but as zeros
        return self._become(near)

    def is_empty(self, source: Destination, target: Destination) -> bool:
        """Return whether a stream carries no bytes, as those to its own destination."""
        return source is target or super().is_empty(source, target)

    def _forward(self, session: Session, options: Options) -> None:
        """Refuse FORWARD beside another one or ACCEPT. An ACCEPT beside FORWARD is never served."""
        if session.destination.acceptors.accepting:
            return self.refuse_stream(Refusal("I2P_ERROR", "Already accepting"))
        # i2pd ignores HOST and always connects to where the command came from.
        return super()._forward(session, {key: value for key, value in options.items() if key != "HOST"})

    # -- NAMING --

    def _look_up(self, name: str) -> None:
        if name == "ME":
            found: str | None = self.session.destination.base64 if self.session else self.router.shared
        else:
            found = self.router.look_up(name)
        if found is None:
            self.answer("NAMING", "REPLY", RESULT="INVALID_KEY", NAME=name)
        else:
            self.answer("NAMING", "REPLY", RESULT="OK", NAME=name, VALUE=found)


def read(line: bytes) -> Message:
    """Split a line at its spaces, skip words without =; if a key occurs twice, the last value counts."""
    words = line.removesuffix(b"\r").decode(errors="replace").split(" ")
    return Message(tuple(words[:2]), dict(word.split("=", 1) for word in words[2:] if "=" in word))


def _ignore(accepted: bool) -> None:
    """Do nothing: the client learns the outcome from bytes or EOF."""
