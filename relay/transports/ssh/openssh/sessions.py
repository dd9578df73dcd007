"""Commands on the server: sessions that relay requests at ssh's control socket, on one connection for each.

ssh gets one end of a socketpair as the command's standard input and output. relay keeps a copy of it, as in
:mod:`relay.transports.program`: it reports when the owner has closed the stream, and it delays the EOF until the exit
status of the command is known.

======= =========================== ======= ==========================================================================
state   event                       next    action
======= =========================== ======= ==========================================================================
WAITING its turn                    ASKED   request a session at ssh's control socket
WAITING its turn, but cancelled     OVER    release it
WAITING its turn, but ssh fails     OVER    report the error
ASKED   ssh agrees                  OPEN    none
ASKED   ssh rejects it              OVER    report the error
ASKED   the owner has left          LEAVING none: without the reply, ssh would keep the channel for ever
LEAVING ssh agrees                  LEFT    close the control connection, so that ssh closes the channel
LEAVING ssh rejects it              OVER    report the error
OPEN    the owner has left          LEFT    close the control connection, so that ssh closes the channel
RUNNING the control connection ends OVER    set the outcome, then pass the EOF on
RUNNING ssh ends                    OVER    the same
WAITING ssh ends                    OVER    report the error
LEFT    ssh releases the channel    OVER    stop counting the stream
LEFT    no release in 60 s          OVER    stop counting the stream
======= =========================== ======= ==========================================================================

RUNNING is ASKED, LEAVING or OPEN. The owner *has left* when it has closed the stream, and ssh has read what it had
sent, or nothing of it for a minute. An event of the channel's log may come before ssh agrees: ``_is_ended`` and
``_is_freed`` keep the server's EOF and the release of the channel, and the opening that the server runs the command.
"""

from __future__ import annotations

import enum
import errno
import functools
import shlex
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from ....addresses.hops import Command
from ....errors import CarrierError, ConnectError, RelayError
from ....eventloop.loop import Timer
from ....eventloop.poller import ERR, HUP
from ....eventloop.sockets import drop_unread, set_to_reset
from ....eventloop.unix_reset import socketpair
from ....process import StandardError, StandardErrorPipe, program_error
from ....streams.pair_end import LINGER, Reading
from ..open_failures import command_rejected, session_rejected
from .channel_log import ChannelLog
from .control import ControlError, SessionControl
from .master import Master
from .opening import Error, Opening

if TYPE_CHECKING:
    from .backend import OpenSSH

_AT_ONCE = 32  # pending requests; the backlog of ssh's control socket is 64
_SETTLE = 1.0  # seconds after the EOF of its output for a command to end, so that its status is known
_MOMENT = 1.0  # seconds after the owner has closed the stream, for a command to end by itself


class SessionState(enum.Enum):
    """The state of a session; the docstring of the module has the table."""

    WAITING, ASKED, OPEN, LEAVING, LEFT, OVER = range(6)


class Sessions:
    """The commands of one ssh; everything but :meth:`open` is for the loop's thread.

    :param master: the process.
    :param channels: its log of channels.
    :param owner: counts the commands.
    """

    def __init__(self, master: Master, channels: ChannelLog, owner: OpenSSH) -> None:
        self.master = master
        self.channels = channels
        self.owner = owner
        self._waiting: deque[_Session] = deque()
        self._asking: set[_Session] = set()
        self._sessions: set[_Session] = set()

    def open(self, command: Command, opening: Opening) -> Callable[[], object]:
        """Request a command; its opening gets the outcome. Any thread.

        :returns: a function that cancels the request.
        """
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
        """Send the next request: ssh has replied to one."""
        if session in self._asking:
            self._asking.remove(session)
            # Not here: `answered` comes from within a session that is ending, and the next request may end another one.
            self.master.loop.call(self._ask_next)

    def forget(self, session: _Session) -> None:
        """Remove a session that is over."""
        self.answered(session)
        self._sessions.discard(session)

    def ended(self, error: Error) -> None:
        """End all sessions: ssh has ended."""
        self._waiting.clear()
        for session in list(self._sessions):
            session.lost(error)

    def abandon(self) -> None:
        """In a forked child: close only the descriptors."""
        for session in list(self._sessions):
            session.abandon()


class _Session:
    """One command; an observer of its channel (:class:`.channel_log.SessionObserver`).

    It ends when its control connection ends: ssh closes that after the channel. Until ssh has replied to the request
    the connection must stay open, because ssh would keep the channel for ever.
    """

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
        self._name = ""
        self._control: SessionControl | None = None
        self._theirs: socket.socket | None = None
        self._stderr: StandardErrorPipe | None = None
        self._reading: Reading | None = None
        self._state = SessionState.WAITING
        self._is_ended = False  # the server has ended the channel
        self._is_freed = False  # ssh has released the channel

    # -- its beginning --------------------------------------------------------------------------------------------

    def ask(self) -> None:
        """Send the request to ssh."""
        if self._opening.done is None:
            return self._finish(None)  # it was cancelled
        try:
            self._ask()
        except OSError as error:
            gone = error.errno in (errno.ECONNREFUSED, errno.ENOENT, errno.ECONNRESET, errno.EPIPE)
            text = f"{self._opening.name}: ssh accepts no command: {error.strerror or error}"
            self._fail(CarrierError(text) if gone else ConnectError(text))
        return None

    def _ask(self) -> None:
        self._theirs, ours = socketpair()
        self._theirs.setblocking(True)  # ssh shares it and expects that
        self._reading = Reading(self._theirs)
        try:
            stderr = self._stderr = StandardErrorPipe(self._lines.feed)
            path, theirs = self._all.master.path("control"), self._theirs.fileno()
            self._control = SessionControl(self._loop, path, self._on_end)
            with self._lock:
                self._name = self._all.channels.name(self)
                self._opening.connected(ours)  # before the server can accept the command, which reports it
            text = shlex.join(self._command.words)
            self._control.open(text, self._name, (theirs, theirs, stderr.theirs), self._answered)
        except OSError:
            ours.close()
            raise
        self._state = SessionState.ASKED
        stderr.start(self._loop)
        # With no interest: ssh reads it, and relay only wants the hang-up.
        self._loop.watch(theirs, 0, self._on_hang_up)

    def _answered(self, answer: int | RelayError) -> None:
        self._all.answered(self)
        if isinstance(answer, ControlError):
            return self._fail(session_rejected(self._opening.name, self._all.master.settings.name, str(answer)))
        if isinstance(answer, RelayError):
            return None  # the connection has ended: :meth:`_on_end` follows
        if self._state is SessionState.LEAVING:
            self._leave_now()
        elif self._state is SessionState.ASKED:
            self._state = SessionState.OPEN
        return None

    # -- events of its channel in ssh's log, with the lock held ---------------------------------------------------

    def opened(self) -> None:
        """Ignore the confirmation of the session: it does not concern the command yet."""

    def accepted(self) -> None:
        """Report the stream: the server has accepted the command."""
        self._opening.opened()

    def refused(self, text: str) -> None:
        """Ignore the rejection: the reply of ssh reports it, too."""

    def ended(self) -> None:
        """Note the server's EOF or CLOSE."""
        self._is_ended = True

    def drained(self) -> None:
        """Wait for the exit status: ssh has passed on the output and its EOF."""
        self._loop.call(self._settle)

    def freed(self) -> None:
        """Note that ssh has released the channel."""
        self._is_freed = True
        if self._state is SessionState.LEFT:
            self._end()

    # -- its end --------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        if self._theirs is not None:
            now = time.monotonic()
            self._settling.start(now + _SETTLE, now)

    def _end_output(self, now: float) -> None:
        """Pass the EOF on: the command continues without output."""
        if self._theirs is not None:
            with self._lock:
                self._opening.is_ended = True
            self._theirs.shutdown(socket.SHUT_WR)

    def _on_hang_up(self, event: int, now: float) -> None:
        """Start to wait until ssh has read what the owner of the stream has sent: the owner has closed it."""
        if event & (HUP | ERR) and self._theirs is not None:
            self._loop.forget(self._theirs.fileno())
            self._timer.start(now + _MOMENT, now)

    def _leave(self, now: float) -> None:
        assert self._reading is not None
        # ssh takes what was sent out of the socket as fast as the server does; closing earlier would lose the rest.
        if self._reading.goes_on(now, rest=0.0):
            self._timer.start(now + _MOMENT, now)
        elif self._state is SessionState.ASKED:
            self._state = SessionState.LEAVING
        else:
            self._leave_now()

    def _leave_now(self) -> None:
        """Let ssh send the rest and close the channel. A server replies to that only when the command has ended."""
        self._release()
        with self._lock:
            self._state = SessionState.LEFT
            if self._is_freed:
                return self._end()
        now = time.monotonic()
        self._giving_up.start(now + LINGER, now)
        return None

    def _give_up(self, now: float) -> None:
        with self._lock:
            self._end()

    def _end(self) -> None:
        """Stop counting the stream. Called with the lock held."""
        self._state = SessionState.OVER
        self._all.owner.over(self._opening)

    def _on_end(self, error: RelayError) -> None:
        """End the session: ssh has closed the control connection, and released the channel before."""
        # Before the outcome: the last line of a command is a part of its error.
        if self._stderr is not None:
            self._stderr.finish()
        self._lines.end()
        with self._lock:
            self._all.master.drain()
        assert self._control is not None
        status = self._control.status
        if status is None and not self._is_ended:
            return self._finish(self._all.owner.unexplained_error(self._opening))
        if self._opening.done is not None and status is None:
            return self._finish(command_rejected(self._opening.name, self._all.master.settings.name))
        return self._finish(self._failure(status))

    def _failure(self, status: int | None) -> ConnectError | None:
        if status == 0:
            return None
        how = "ended without a status, probably by a signal" if status is None else f"ended with status {status}"
        return program_error(self._opening.name, how, self._lines.last)

    def _fail(self, error: Error) -> None:
        """Report the error: there is no session."""
        self._release()
        with self._lock:
            self._opening.fail(error)
            self._end()

    def _finish(self, error: Error | None) -> None:
        """Set the outcome, and pass the EOF on after that."""
        with self._lock:
            if error is None:
                if self._opening.done is not None:
                    self._opening.opened()
                self._opening.is_ended = True
            elif self._opening.done is not None:
                self._opening.fail(error)
            elif self._opening.error is None:
                self._opening.error = error
        # After the outcome is set: the EOF wakes the owner, who asks for it.
        self._release(clean=error is None)
        with self._lock:
            self._end()

    def lost(self, error: Error) -> None:
        """End the command: ssh has ended."""
        self._finish(error)

    def _release(self, *, clean: bool = True) -> None:
        with self._lock:
            self._all.channels.forget(self._name)
        self._all.forget(self)
        self._timer.stop()
        self._settling.stop()
        if self._control is not None:
            self._control.close()
        if self._stderr is not None:
            self._stderr.close()
        theirs, self._theirs = self._theirs, None
        if theirs is not None:
            self._loop.forget(theirs.fileno())
            if clean:
                drop_unread(theirs)
            else:
                set_to_reset(theirs)
            self._loop.discard(theirs)

    def abandon(self) -> None:
        """In a forked child: close only the descriptors."""
        if self._control is not None:
            self._control.abandon()
        if self._stderr is not None:
            self._stderr.abandon()
        if self._theirs is not None:
            self._theirs.close()
