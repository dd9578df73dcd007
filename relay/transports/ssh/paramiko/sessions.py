"""A command on the server, whose standard input and output is a kernel socket (RFC 4254, section 6)."""

from __future__ import annotations

import shlex
import struct
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ....errors import ConnectError
from ....eventloop.loop import Timer
from ....process import StandardError, program_error
from ..open_failures import command_rejected
from .channel import Channel
from .messages import REQUEST, printable, text
from .mux import Mux

if TYPE_CHECKING:
    from .opening import Opening

_SETTLE = 1.0  # seconds after the EOF of its output for a command to end, so that its status is known
_STDERR = 1  # RFC 4254, section 5.2


class CommandChannel(Channel):
    """A session channel on which one command runs.

    The EOF of its output is delayed by up to a second, until its exit status is known: after a failure the owner of the
    stream must read a reset and no EOF.

    :param opening: receives the outcome: the server has accepted the command, or has not.
    """

    __slots__ = ("_how", "_is_known", "_lines", "_opening", "_output_ended", "_settling")

    def __init__(self, mux: Mux, number: int, remote: int, credit: int, packet: int, opening: Opening) -> None:
        super().__init__(mux, number, remote, credit, packet, opening.target, opening.window)
        self._opening: Opening | None = opening
        self._lines = StandardError(opening.target)
        self._how = "ended without a status"
        self._is_known = self._output_ended = False
        self._settling: Timer | None = None
        # So that a caller who gives up ends the command, and not only its own wait.
        opening.pending = self

    def execute(self, words: Sequence[str]) -> None:
        """Request the execution of the command (RFC 4254, section 6.5)."""
        self._send_request("exec", b"\1" + text(shlex.join(words)))

    def _send_request(self, kind: str, rest: bytes) -> None:
        self._mux.send(struct.pack(">BI", REQUEST, self._remote) + text(kind) + rest)

    # -- from the server ------------------------------------------------------------------------------------------

    def granted(self) -> None:
        """Handle the success of the request: the command runs."""
        opening = self._take_opening()
        if opening is not None:
            opening.resolve(self.hand_over(alone=opening.is_alone))

    def denied(self) -> None:
        """Handle the failure of the request."""
        self._not_run(command_rejected(self.target, self._mux.name))

    def _not_run(self, error: ConnectError) -> None:
        opening = self._take_opening()
        if opening is not None:
            opening.resolve(error)
            self.give_up()

    def _take_opening(self) -> Opening | None:
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.pending = None
        return opening

    def extended(self, kind: int, data: memoryview) -> None:
        """Log the lines of its standard error."""
        if kind == _STDERR and self._inner is not None:
            self._lines.feed(bytes(data))
        self.skip(len(data))

    def requested(self, kind: bytes, wants_answer: bool, rest: memoryview) -> None:
        """Handle the exit status or the exit signal (RFC 4254, section 6.10)."""
        if kind == b"exit-status":
            (status,) = struct.unpack_from(">I", rest)
            self._on_exit(f"ended with status {status}" if status else "")
        elif kind == b"exit-signal":
            (length,) = struct.unpack_from(">I", rest)
            name = bytes(rest[4 : 4 + length]).decode("utf-8", "replace")
            self._on_exit(f"was ended by SIG{printable(name)}")
        super().requested(kind, wants_answer, rest)

    def _on_exit(self, how: str) -> None:
        if not self._is_known:
            self._is_known, self._how = True, how
            if self._output_ended:
                self.end()

    def end(self) -> None:
        """Handle EOF: the output has ended."""
        again, self._output_ended = self._output_ended, True
        if self._is_known:
            self._set_error()
            super().end()
        # The EOF is held back: it must follow the exit status, by which it is clean or a reset.
        elif not again:
            self.deliver()
            now = time.monotonic()
            self._settling = Timer(self._mux.loop.timers, self._pass_eof)
            self._settling.start(now + _SETTLE, now)

    def _pass_eof(self, now: float) -> None:
        """Pass the EOF on: the command continues without output."""
        super().end()

    def close(self) -> None:
        """Handle CLOSE: the command has ended."""
        problem = f"{self._mux.name} has closed the channel before it ran the command"
        self._not_run(ConnectError(f"{self.target}: {problem}", reason="denied"))
        self._is_known = True
        self._set_error()
        super().close()

    def _set_error(self) -> None:
        self._lines.end()
        if self._how and self.error is None:
            self.error = program_error(self.target, self._how, self._lines.last)

    # -- its end --------------------------------------------------------------------------------------------------

    def give_up(self) -> None:
        """End a command whose stream has no owner yet."""
        self._opening = None
        self.cut = True
        self._detach()

    def fail(self, error: OSError) -> None:
        """End the command with a failure, for the owner of its stream or for the caller that waits for it."""
        opening = self._take_opening()
        super().fail(error)
        if opening is not None:
            opening.resolve(error)

    def _detach(self) -> None:
        settling, self._settling = self._settling, None
        if settling is not None:
            settling.stop()
        if self.cut and not self._is_known and self._is_sending:
            self._send_request("signal", b"\0" + text("TERM"))  # RFC 4254, section 6.9
        theirs, self._theirs = self._theirs, None
        if theirs is not None:
            theirs.close()
        super()._detach()
