"""A command on the server, whose standard input and output is a kernel socket (RFC 4254, section 6)."""

from __future__ import annotations

import shlex
import struct
import time
from collections.abc import Sequence
from typing import Protocol

from ....errors import ConnectError
from ....eventloop.loop import Timer
from ....process import StandardError, program_error
from ....streams.stream import Stream
from .channel import Channel
from .messages import REQUEST, printable, text
from .mux import Channels

__all__ = ["CommandChannel"]

_SETTLE = 1.0  # seconds after the end of its output for a command to end, so that it is known how
_STDERR = 1  # RFC 4254, section 5.2


class Opening(Protocol):
    """Who asked for the command, as its channel sees it."""

    pending: CommandChannel | None  # the server has opened the channel and not started the command yet

    @property
    def target(self) -> str:
        """The name of the command."""

    def tell(self, outcome: Stream | OSError, /) -> None:
        """The command runs, or does not."""


class CommandChannel(Channel):
    """A session channel on which one command runs.

    The end of its output waits a moment until it is known how the command has ended.

    :param opening: told when the server has taken the command, or has not.
    """

    __slots__ = ("_how", "_is_known", "_lines", "_opening", "_output_ended", "_settling")

    def __init__(
        self, channels: Channels, number: int, remote: int, credit: int, packet: int, opening: Opening
    ) -> None:
        super().__init__(channels, number, remote, credit, packet, opening.target)
        self._opening: Opening | None = opening
        self._lines = StandardError(opening.target)
        self._how = "ended without a status"
        self._is_known = self._output_ended = False
        self._settling: Timer | None = None
        opening.pending = self

    def ask(self, words: Sequence[str]) -> None:
        """Ask the server to run it (RFC 4254, section 6.5)."""
        self._request("exec", b"\1" + text(shlex.join(words)))

    def _request(self, kind: str, rest: bytes) -> None:
        self._channels.send(struct.pack(">BI", REQUEST, self._remote) + text(kind) + rest)

    # -- from the server ------------------------------------------------------------------------------------------

    def granted(self) -> None:
        """It runs."""
        opening = self._answered()
        if opening is not None:
            opening.tell(self.hand_over())

    def denied(self) -> None:
        """It does not."""
        self._not_run("denied, says {}; it does not run this command for this user")

    def _not_run(self, problem: str) -> None:
        opening = self._answered()
        if opening is not None:
            said = problem.format(self._channels.name)
            opening.tell(ConnectError(f"{self.target}: {said}", reason="denied"))
            self.give_up()

    def _answered(self) -> Opening | None:
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.pending = None
        return opening

    def extended(self, kind: int, data: memoryview) -> None:
        """What it says on its standard error."""
        if kind == _STDERR and self._inner is not None:
            self._lines.feed(bytes(data))
        self.skip(len(data))

    def requested(self, kind: bytes, wants_answer: bool, rest: memoryview) -> None:
        """How it has ended (RFC 4254, section 6.10)."""
        if kind == b"exit-status":
            (status,) = struct.unpack_from(">I", rest)
            self._exited(f"ended with status {status}" if status else "")
        elif kind == b"exit-signal":
            (length,) = struct.unpack_from(">I", rest)
            name = bytes(rest[4 : 4 + length]).decode("utf-8", "replace")
            self._exited(f"was ended by SIG{printable(name)}")
        super().requested(kind, wants_answer, rest)

    def _exited(self, how: str) -> None:
        if not self._is_known:
            self._is_known, self._how = True, how
            if self._output_ended:
                self.end()

    def end(self) -> None:
        """Its output has ended."""
        again, self._output_ended = self._output_ended, True
        if self._is_known:
            self._judge()
            super().end()
        elif not again:
            self.deliver()
            now = time.monotonic()
            self._settling = Timer(self._channels.loop.timers, self._settled)
            self._settling.start(now + _SETTLE, now)

    def _settled(self, now: float) -> None:
        """It goes on without an output."""
        super().end()

    def close(self) -> None:
        """There is nothing more of it."""
        self._not_run("{} has closed the channel before it ran the command")
        self._is_known = True
        self._judge()
        super().close()

    def _judge(self) -> None:
        self._lines.end()
        if self._how and self.error is None:
            self.error = program_error(self.target, self._how, self._lines.last)

    # -- its end --------------------------------------------------------------------------------------------------

    def give_up(self) -> None:
        """Nobody wants it any more, and nobody has it."""
        self._opening = None
        self.cut = True
        self._leave()

    def fail(self, error: OSError) -> None:
        """End it by a failure, which the holder, or who waits for it, can ask for."""
        opening = self._answered()
        super().fail(error)
        if opening is not None:
            opening.tell(error)

    def _leave(self) -> None:
        settling, self._settling = self._settling, None
        if settling is not None:
            settling.stop()
        if self.cut and not self._is_known and not self._sent_close:
            self._request("signal", b"\0" + text("TERM"))  # RFC 4254, section 6.9
        theirs, self._theirs = self._theirs, None
        if theirs is not None:
            theirs.close()
        super()._leave()
