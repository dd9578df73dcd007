"""The streams of one ssh, and the state of each from the request to the end of its channel.

========= ===================== ========= ============================================================================
state     event                 next      action
                                state
========= ===================== ========= ============================================================================
ASKED     socket, patient       CONNECTED keep the socket until the server has replied
ASKED     socket, not patient   REPORTED  the caller gets the stream; keep the socket for the deadline
ASKED     opened                ANSWERED  stop watching the deadline
ANSWERED  socket                OPEN      the caller gets the stream
CONNECTED opened                OPEN      stop watching the deadline; the caller gets the stream
REPORTED  opened                OPEN      stop watching the deadline
WAITING   error                 OVER      close the socket; the caller gets the error
WAITING   cancel                OVER      close the socket
REPORTED  error                 OVER      the stream's ``failure`` returns the error at its EOF
REPORTED  deadline              OVER      the same, and cut the stream
REPORTED  cancel                REPORTED  stop watching the deadline
OPEN      error                 OVER      the stream's ``failure`` returns the error at its EOF
OVER      socket                OVER      close it
OVER      opened                OVER      none
========= ===================== ========= ============================================================================

WAITING is ASKED, CONNECTED or ANSWERED. A stream that the server has opened begins as OPEN. The server's EOF does not
change the state: ``is_ended`` notes it for the stream's ``failure``.
"""

from __future__ import annotations

import enum
import functools
import math
import socket
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from ....errors import CarrierError, ConnectError
from ....eventloop.sockets import shut_down
from ....streams.stream import Stream
from ..connection import OnResult
from ..open_failures import open_timeout
from .diagnostics import open_error

if TYPE_CHECKING:
    from .backend import OpenSSH

Error = ConnectError | CarrierError


class OpeningState(enum.Enum):
    """The state of an opening; the docstring of the module has the table."""

    ASKED, CONNECTED, REPORTED, ANSWERED, OPEN, OVER = range(6)


class Opening:
    """One stream. Every method but :meth:`failure` is called with the owner's lock held.

    :param owner: the connection.
    :param name: the name of the target, for errors.
    :param done: called with the outcome; ``None`` for a stream that the server has opened.
    :param deadline: monotonic seconds until which the server must have replied.
    :param patient: whether ``done`` is called only after that reply; otherwise as soon as ssh has the stream.
    :param alone: whether the caller uses nothing but the socket of the stream, which the exit of this process closes.
    """

    __slots__ = (
        "_made",
        "_socket",
        "_state",
        "alone",
        "deadline",
        "done",
        "error",
        "is_cut",
        "is_ended",
        "is_traced",
        "name",
        "owner",
        "patient",
    )

    def __init__(
        self,
        owner: OpenSSH,
        name: str,
        done: OnResult | None = None,
        deadline: float | None = None,
        *,
        patient: bool = False,
        alone: bool = False,
    ) -> None:
        self.owner = owner
        self.name = name
        self.done = done
        self.deadline = math.inf if deadline is None else deadline
        self.patient = patient
        self.alone = alone
        self.error: Error | None = None
        self.is_ended = False  # the server has sent EOF or CLOSE
        self.is_cut = False  # the stream was reset: what was sent may be lost
        self.is_traced = True  # ssh logs the events of its channel
        self._state = OpeningState.OPEN if done is None else OpeningState.ASKED
        self._socket: socket.socket | None = None  # kept until the server has replied
        self._made: weakref.ref[socket.socket] | None = None  # of a stream that has an owner

    def stream(self, made: socket.socket) -> Stream:
        """Make the stream over a socket to ssh."""
        self._made = weakref.ref(made)
        return _OpenedStream(made, self)

    def leave(self) -> bool:
        """Return at exit whether its owner has closed the stream; one that only has the socket does so now."""
        if self._made is None or self.is_cut:
            return False
        made = self._made()
        if made is None or made.fileno() < 0:
            return True
        if self.alone:
            shut_down(made)
        return self.alone

    def failure(self) -> Error | None:
        """Return why the stream has failed; called at its EOF. ``None`` if it has ended without a failure."""
        # Only if the log has not explained the EOF yet: to ask takes the lock, and reads the log.
        if self.error is None and not self.is_ended:
            self.error = self.owner.unexplained_error(self)
        return self.error

    def connected(self, made: socket.socket) -> OnResult | None:
        """Note the socket that is connected to ssh.

        :returns: the callback to call with the stream, after the lock is released; ``None`` if there is none yet.
        """
        if self._state is OpeningState.OVER:
            made.close()
            return None
        if self._state is OpeningState.ANSWERED:
            self._state = OpeningState.OPEN
        else:
            self._socket = made
            self._state = OpeningState.CONNECTED if self.patient else OpeningState.REPORTED
            if self.patient:
                return None
        done, self.done = self.done, None
        return done

    def opened(self) -> None:
        """Report the stream: the server has opened it."""
        self.owner.answered(self)
        made, self._socket = self._socket, None
        if self._state is OpeningState.ASKED:
            self._state = OpeningState.ANSWERED
        elif self._state is OpeningState.REPORTED:
            self._state = OpeningState.OPEN
        elif self._state is OpeningState.CONNECTED:
            self._state = OpeningState.OPEN
            done, self.done = self.done, None
            assert done is not None
            assert made is not None
            self.owner.soon(functools.partial(done, self.stream(made)))

    def refused(self, text: str) -> None:
        """Report the error: the server has not opened the stream."""
        self.fail(open_error(self.name, self.owner.server, text))

    def ended(self) -> None:
        """Note the server's EOF or CLOSE."""
        self.is_ended = True

    def freed(self) -> None:
        """Stop counting the stream: ssh has released its channel."""
        self.owner.over(self)

    def fail(self, error: Error) -> None:
        """Report an error; if the caller has the stream already, its ``failure`` returns the error at EOF."""
        if self.error is None:
            self.error = error
        done = self.done
        self.give_up()
        self._state = OpeningState.OVER
        if done is not None:
            self.owner.soon(lambda: done(error))

    def give_up(self) -> None:
        """Cancel: the caller does not wait any more."""
        self.owner.answered(self)
        made, self._socket = self._socket, None
        if self.done is None:
            return  # the caller has the stream
        self.done = None
        self._state = OpeningState.OVER
        if made is not None:
            made.close()

    def expire(self) -> None:
        """Fail the stream: the server has not replied before the deadline."""
        # Taken before `fail`, which forgets it.
        made = self._socket if self._state is OpeningState.REPORTED else None
        self.fail(open_timeout(self.name, self.owner.server))
        if made is not None:
            try:
                # A shutdown and no close: the socket is the caller's, who reads the EOF and then the error.
                made.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # its owner has closed it


class _OpenedStream(Stream):
    """A stream whose socket is connected to ssh, which learns of no reset. The exit waits for none that was reset."""

    __slots__ = ("_opening",)

    def __init__(self, made: socket.socket, opening: Opening) -> None:
        super().__init__(made, target=opening.name, failure=opening.failure)
        self._opening = opening

    def reset(self) -> None:
        """Close. Idempotent; SSH has no reset, so the far end reads EOF."""
        self._opening.is_cut = True
        self.close()


class OpenStreams:
    """The streams of one ssh. Every method is called with the lock of its master held.

    :param soon: calls a function on the loop's thread, without the lock.
    """

    def __init__(self, soon: Callable[[Callable[[], object]], object]) -> None:
        self._soon = soon
        self._open: set[Opening] = set()
        self._on_idle: Callable[[], object] | None = None
        self._on_sent: Callable[[], object] | None = None

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._open)

    def add(self, opening: Opening) -> None:
        """Count a stream."""
        self._open.add(opening)

    def remove(self, opening: Opening) -> None:
        """Stop counting a stream, which has ended. Idempotent."""
        if opening not in self._open:
            return
        self._open.remove(opening)
        self._look_sent()
        if not self._open:
            self._call_idle()

    def clear(self) -> None:
        """Stop counting all streams: ssh has ended."""
        self._open.clear()
        self._look_sent()
        self._call_idle()

    def when_idle(self, call: Callable[[], object] | None) -> None:
        """Call ``call`` once there is none; it replaces an earlier one."""
        self._on_idle = call

    def when_sent(self, call: Callable[[], object]) -> None:
        """Call ``call`` once ssh has released every stream that its owner has closed; at exit."""
        self._on_sent = call
        self._look_sent()

    def _call_idle(self) -> None:
        call, self._on_idle = self._on_idle, None
        if call is not None:
            # Not here: the lock is held, and the callback closes the connection, which takes it.
            self._soon(call)

    def _look_sent(self) -> None:
        call = self._on_sent
        if call is None:
            return
        leaving = [one for one in self._open if one.leave()]
        if not leaving:
            self._on_sent = None
            self._soon(call)
