"""Commands on the server: sessions that are asked for at ssh's control socket, one connection to it for each.

ssh gets one end of a socketpair as the command's standard input and output. We keep a copy of it, as
:mod:`relay.transports.program` does: it shows when the holder of the stream is gone, and keeps the end of
file back until it is known how the command has ended.
"""

from __future__ import annotations

import array
import errno
import fcntl
import functools
import os
import shlex
import socket
import termios
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from ....addresses.hops import Command
from ....errors import CarrierError, ConnectError, RelayError
from ....eventloop.loop import Timer
from ....eventloop.poller import ERR, HUP, IN
from ....eventloop.sockets import set_to_reset
from ....eventloop.unix_reset import socketpair
from ....process import StandardError, program_error
from ...program import empty
from .channel_log import Channels
from .control import ControlError, SessionControl
from .master import Master
from .opening import Error, Opening

__all__ = ["Sessions"]

_AT_ONCE = 32  # sessions that are being asked for; ssh has room for 64 in the backlog of its control socket
_CHUNK = 64 << 10  # bytes of standard error that are read at once
_AT_THE_END = 16  # such chunks that are read of a command that has ended
_SETTLE = 1.0  # seconds after the end of its output for a command to end, so that it is known how
_MOMENT = 1.0  # seconds after the holder is gone, for a command to end by itself
_LINGER = 60.0  # seconds without progress until what such a holder has sent is given up


class _Owner(Protocol):
    def begun(self, opening: Opening) -> None:
        """It is counted, and has a deadline. Called with the lock held."""

    def over(self, opening: Opening) -> None:
        """Nothing is left of it. Called with the lock held."""

    def unsaid(self, opening: Opening) -> Error | None:
        """Why a stream ends of which ssh has said nothing. Takes the lock."""


class Sessions:
    """All commands over one ssh; everything but :meth:`open` is for the loop's thread.

    :param master: the process.
    :param channels: what it says of its channels.
    :param owner: told when a command is over.
    """

    def __init__(self, master: Master, channels: Channels, owner: _Owner) -> None:
        self.master = master
        self.channels = channels
        self.owner = owner
        self._waiting: deque[_Session] = deque()
        self._asking: set[_Session] = set()
        self._sessions: set[_Session] = set()

    def open(self, command: Command, opening: Opening) -> Callable[[], object]:
        """Have the server run a command, and tell its opening; the result gives it up. Any thread."""
        with self.master.lock:
            error = self.master.gone
            if error is None:
                self.owner.begun(opening)
                self.master.loop.call(functools.partial(self._begin, command, opening))
        if error is not None and opening.done is not None:
            opening.done(error)
        return functools.partial(self._give_up, opening)

    def _give_up(self, opening: Opening) -> None:
        with self.master.lock:
            opening.give_up()

    def _begin(self, command: Command, opening: Opening) -> None:
        session = _Session(self, command, opening)
        self._sessions.add(session)
        self._waiting.append(session)
        self._ask_next()

    def _ask_next(self) -> None:
        while self._waiting and len(self._asking) < _AT_ONCE:
            session = self._waiting.popleft()
            self._asking.add(session)
            session.ask()

    def answered(self, session: _Session) -> None:
        """It does not wait for ssh's answer any more."""
        if session in self._asking:
            self._asking.remove(session)
            self.master.loop.call(self._ask_next)

    def forget(self, session: _Session) -> None:
        """It is over."""
        self.answered(session)
        self._sessions.discard(session)

    def ended(self, error: Error) -> None:
        """The process is gone."""
        self._waiting.clear()
        for session in list(self._sessions):
            session.lost(error)

    def abandon(self) -> None:
        """In a forked child: close the descriptors and nothing else."""
        for session in list(self._sessions):
            session.abandon()


class _Session:
    """One command; see :class:`relay.transports.ssh.openssh.channel_log.Channel` for what is told of its channel."""

    def __init__(self, sessions: Sessions, command: Command, opening: Opening) -> None:
        self._all = sessions
        self._command = command
        self._opening = opening
        self._loop = sessions.master.loop
        self._lock = sessions.master.lock
        self._lines = StandardError(opening.name)
        self._timer = Timer(self._loop.timers, self._leave)
        self._settling = Timer(self._loop.timers, self._end_output)
        self._giving_up = Timer(self._loop.timers, self._give_up)
        self._control: SessionControl | None = None
        self._theirs: socket.socket | None = None
        self._stderr = -1
        self._is_asked = False  # and not answered: ssh would keep the channel if its connection were closed now
        self._is_left = False  # nobody wants it any more
        self._is_ended = False  # the server has ended the channel
        self._is_freed = False
        self._unread, self._until = -1, 0.0

    # -- its beginning --------------------------------------------------------------------------------------------

    def ask(self) -> None:
        """Ask ssh for a session."""
        if self._opening.done is None:
            return self._finish(None)  # it was given up
        try:
            self._ask()
        except OSError as error:
            gone = error.errno in (errno.ECONNREFUSED, errno.ENOENT, errno.ECONNRESET, errno.EPIPE)
            text = f"{self._opening.name}: ssh takes no command: {error.strerror or error}"
            self._fail(CarrierError(text) if gone else ConnectError(text))
        return None

    def _ask(self) -> None:
        self._theirs, ours = socketpair()
        self._theirs.setblocking(True)  # as ssh, with which it is shared, found it
        try:
            self._stderr, their_stderr = os.pipe()
            with os.fdopen(their_stderr, "wb") as pipe:
                os.set_blocking(self._stderr, False)
                path, theirs = self._all.master.path("control"), self._theirs.fileno()
                self._control = SessionControl(self._loop, path, self._on_end)
                text = shlex.join(self._command.words)
                self._control.open(text, (theirs, theirs, pipe.fileno()), self._answered)
        except OSError:
            ours.close()
            raise
        self._is_asked = True
        self._loop.watch(self._stderr, IN, self._on_stderr)
        self._loop.watch(self._theirs.fileno(), 0, self._on_hang_up)
        with self._lock:
            self._opening.connected(ours)  # tells nobody yet

    def _answered(self, answer: int | RelayError) -> None:
        self._is_asked = False
        self._all.answered(self)
        if isinstance(answer, ControlError):
            server = self._all.master.settings.name
            problem = f"denied, says {server} ({answer}); may this user run commands there, and is MaxSessions enough?"
            return self._fail(ConnectError(f"{self._opening.name}: {problem}", reason="denied"))
        if isinstance(answer, RelayError):
            return None  # the connection has ended, of which it is told next
        with self._lock:
            self._all.master.drain()
            self._all.channels.claim(answer, self)
        if self._is_left:
            self._leave_now()
        return None

    # -- what ssh says of its channel, with the lock held ---------------------------------------------------------

    def opened(self) -> None:
        """The server has made the session, which says nothing of the command yet."""

    def accepted(self) -> None:
        """The server has taken the command."""
        self._opening.opened()

    def refused(self, text: str) -> None:
        """The server has not made it; ssh answers so, too."""

    def ended(self) -> None:
        """The server has ended its direction, or all of it."""
        self._is_ended = True

    def drained(self) -> None:
        """Its output has ended, and ssh has passed all of it on."""
        self._loop.call(self._settle)

    def freed(self) -> None:
        """It is over for ssh."""
        self._is_freed = True
        if self._is_left:
            self._all.owner.over(self._opening)

    # -- its end --------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        if self._theirs is not None:
            now = time.monotonic()
            self._settling.start(now + _SETTLE, now)

    def _end_output(self, now: float) -> None:
        """It goes on without an output."""
        if self._theirs is not None:
            with self._lock:
                self._opening.is_ended = True
            self._theirs.shutdown(socket.SHUT_WR)

    def _on_hang_up(self, event: int, now: float) -> None:
        """The holder is gone. What he has sent is still on its way."""
        if event & (HUP | ERR) and self._theirs is not None:
            self._loop.forget(self._theirs.fileno())
            self._timer.start(now + _MOMENT, now)

    def _leave(self, now: float) -> None:
        unread = self._count_unread()
        if unread != self._unread:
            self._unread, self._until = unread, now + _LINGER
        if unread and now < self._until:
            return self._timer.start(now + _MOMENT, now)
        self._is_left = True
        return None if self._is_asked else self._leave_now()

    def _count_unread(self) -> int:
        """Bytes that ssh has not taken."""
        assert self._theirs is not None
        number = array.array("i", [0])
        fcntl.ioctl(self._theirs.fileno(), termios.FIONREAD, number)
        return number[0]

    def _leave_now(self) -> None:
        """Have ssh send the rest and close the channel; a server does not answer that before the command has ended."""
        self._let_go()
        with self._lock:
            if self._is_freed:
                return self._all.owner.over(self._opening)
        now = time.monotonic()
        self._giving_up.start(now + _LINGER, now)
        return None

    def _give_up(self, now: float) -> None:
        with self._lock:
            self._all.owner.over(self._opening)

    def _on_stderr(self, event: int, now: float) -> None:
        if not self._read_stderr():
            self._loop.forget(self._stderr)

    def _read_stderr(self) -> bool:
        """Take what it has said.

        :returns: whether there may be more, now or later.
        """
        try:
            data = os.read(self._stderr, _CHUNK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if data:
            self._lines.feed(data)
        return bool(data)

    def _on_end(self, error: RelayError) -> None:
        """The connection has ended, and with it the session: ssh has let go of everything."""
        for _ in range(_AT_THE_END):
            if not self._read_stderr():
                break
        self._lines.end()
        with self._lock:
            self._all.master.drain()
        assert self._control is not None
        status = self._control.status
        if status is None and not self._is_ended:
            return self._finish(self._all.owner.unsaid(self._opening))
        if self._opening.done is not None and status is None:
            server = self._all.master.settings.name
            problem = f"denied, says {server}; it does not run this command for this user"
            return self._finish(ConnectError(f"{self._opening.name}: {problem}", reason="denied"))
        return self._finish(self._failure(status))

    def _failure(self, status: int | None) -> ConnectError | None:
        if status == 0:
            return None
        how = "ended without a status; did a signal end it?" if status is None else f"ended with status {status}"
        return program_error(self._opening.name, how, self._lines.last)

    def _fail(self, error: Error) -> None:
        """There is no session."""
        self._let_go()
        with self._lock:
            self._opening.fail(error)
            self._all.owner.over(self._opening)

    def _finish(self, error: Error | None) -> None:
        """Know how it has ended, and then let the end of file through."""
        with self._lock:
            if error is None:
                if self._opening.done is not None:
                    self._opening.opened()
                self._opening.is_ended = True
            elif self._opening.done is not None:
                self._opening.fail(error)
            elif self._opening.error is None:
                self._opening.error = error
        self._let_go(clean=error is None)
        with self._lock:
            self._all.owner.over(self._opening)

    def lost(self, error: Error) -> None:
        """The process is gone."""
        self._finish(error)

    def _let_go(self, *, clean: bool = True) -> None:
        self._all.forget(self)
        self._timer.stop()
        self._settling.stop()
        if self._control is not None:
            self._control.close()
        stderr, self._stderr = self._stderr, -1
        if stderr >= 0:
            self._loop.forget(stderr)
            os.close(stderr)
        theirs, self._theirs = self._theirs, None
        if theirs is not None:
            self._loop.forget(theirs.fileno())
            if clean:
                empty(theirs)
            else:
                set_to_reset(theirs)
            self._loop.discard(theirs)

    def abandon(self) -> None:
        """In a forked child: close the descriptors and nothing else."""
        if self._control is not None:
            self._control.abandon()
        if self._stderr >= 0:
            os.close(self._stderr)
        if self._theirs is not None:
            self._theirs.close()
