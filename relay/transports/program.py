"""A program's standard input and output as a stream.

One end of a socketpair is the program's standard input and output; the other one is the stream's socket. relay keeps a
copy of the program's end: it shows when the stream is closed, also if only its socket is, and it keeps the end of file
back until it is known how the program has ended.

========== =========================== ========== =====================================================================
state      event                       next state action
========== =========================== ========== =====================================================================
STARTING   started                     RUNNING    report the stream; reset it if the caller has given up
STARTING   cannot be started           OVER       report the error
STARTING   deadline                    STARTING   report the error, as if the caller had given up
RUNNING    the stream is closed        LEAVING    give it a second to end
RUNNING    the stream is reset         TERMINATED SIGTERM, and two seconds to end
LEAVING    the time is over, it reads  LEAVING    give it another second
LEAVING    the time is over            TERMINATED SIGTERM, and two seconds to end
LEAVING    the stream is reset         TERMINATED SIGTERM, and two seconds to end
TERMINATED the stream is reset         TERMINATED SIGTERM, and two seconds to end
TERMINATED the time is over            TERMINATED SIGKILL
STARTED    it ends well                OVER       the stream has an end of file
STARTED    it fails                    OVER       the same, if the holder's end is closed or in another process
STARTED    it fails                    RESETTING  else it has a reset once all copies of the program's end are closed
STARTED    a bug in a handler          the same   SIGKILL
RESETTING  the copies are closed       OVER       none
RESETTING  the time is over            OVER       none
any        another one                 the same   none
========== =========================== ========== =====================================================================

STARTED is RUNNING, LEAVING or TERMINATED.
"""

from __future__ import annotations

import enum
import functools
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from ..errors import ConnectError, RelayError
from ..eventloop.background import IOThread
from ..eventloop.loop import Timer
from ..eventloop.poller import ERR, HUP, IN
from ..eventloop.sockets import drop_unread, shut_down
from ..eventloop.unix_reset import leave_unread, socketpair
from ..process import Process, StandardError, StandardErrorPipe, begin, program_error
from ..streams import exit_drain
from ..streams.pair_end import Reading
from ..streams.promise import Abort, OnResult
from ..streams.stream import Stream, nonblocking

_MOMENT = 1.0  # seconds for a program to end once its stream is closed and it has read everything, until SIGTERM
_PATIENCE = 2.0  # seconds from then on until SIGKILL


class ProgramState(enum.Enum):
    """The state of a program; the docstring of the module has the table."""

    STARTING, RUNNING, LEAVING, TERMINATED, RESETTING, OVER = range(6)


_STARTED = {ProgramState.RUNNING, ProgramState.LEAVING, ProgramState.TERMINATED}


def run(
    words: Sequence[str],
    name: str,
    deadline: float | None,
    done: OnResult,
    *,
    target: str | None = None,
    said: Callable[[bytes], object] | None = None,
    alone: bool = False,
) -> Abort:
    """Begin to start a program whose standard input and output is a stream. Never blocks.

    The end of what the stream sends is the program's end of input; the stream ends when the program has, and that is a
    failure unless its status is 0. After a close the program may read what was sent, as long as it makes progress. A
    program that goes on is sent SIGTERM after a second, and killed two seconds later; what it leaves behind in its
    process group ends with it.

    :param words: the program, looked for in ``PATH`` unless it has a slash, and its arguments; no shell is involved.
    :param name: what to call it in errors and in the log.
    :param deadline: monotonic seconds until which it must have started; ``None`` for as long as it takes.
    :param done: called once, in any thread, perhaps before this returns, with a :class:`ProgramStream` or with the
        error: a :class:`ConnectError`, ``unreachable`` if there is no such program.
    :param target: what it leads to, in records; ``None`` for its name.
    :param said: called in the I/O thread with what it says on its standard error; must not block. ``None`` to log
        the lines of it.
    :param alone: whether the caller uses nothing but the socket of the stream, which the exit of this process closes.
    :returns: gives it up: ``done`` is not called after that, and nothing is left.
    """
    try:
        program = _Program(name, target or name, deadline, done, said, alone)
    except OSError as error:
        done(ConnectError(f"{name}: cannot be started: {error.strerror or error}"))
        return lambda: None
    program.begin(words)
    return program.give_up


class ProgramStream(Stream):
    """A stream whose far end is a program. To reset it is to end the program, which then sees no end of its input."""

    __slots__ = ("_program",)

    def __init__(self, socket: socket.socket, program: _Program) -> None:
        on_close = nonblocking(functools.partial(program.closed))
        super().__init__(socket, target=program.target, failure=lambda: program.error, on_close=on_close)
        self._program = program

    @property
    def status(self) -> int | None:
        """The program's exit status, or the signal that ended it, negative; ``None`` while it runs."""
        return self._program.status

    def close_soon(self) -> None:
        """Close; the program has no longer to read than one that has read everything has to end. Idempotent."""
        self._program.may_read = False
        self.close()

    def reset(self) -> None:
        """Send the program SIGTERM, and close. Idempotent."""
        self._program.terminate()
        self.close()


class _Program:
    """One program, from before its start until it has ended. It belongs to the I/O thread but for what says so."""

    quiet = None  # it is ended some time after the close of its stream; see :class:`relay.streams.exit_drain.Sender`.

    def __init__(
        self,
        name: str,
        target: str,
        deadline: float | None,
        done: OnResult,
        said: Callable[[bytes], object] | None,
        alone: bool,
    ) -> None:
        self.name = name
        self.target = target
        self.status: int | None = None
        self.error: ConnectError | None = None
        self._deadline = deadline
        self._done: OnResult | None = done
        self._lock = threading.Lock()  # for whom to tell, and for the process: it is not signalled once it is reaped
        self._process: Process | None = None
        # A forked child has this object, too, and must not signal a program that is not its own.
        self._owner = os.getpid()
        self._lines = StandardError(name)
        self._pid = -1
        self._state = ProgramState.STARTING
        self.may_read = True  # after the close, as long as it makes progress
        self._is_alone = alone
        self._on_sent: Callable[[], object] | None = None
        # A duplicate of the stream's end, while this process may have a copy of it.
        self._far: socket.socket | None = None
        self._ours: socket.socket | None
        self._theirs, self._ours = socketpair()
        self._theirs.setblocking(True)  # the program shares it, and expects that
        self._reading = Reading(self._theirs)
        try:
            self._stderr = StandardErrorPipe(said or self._lines.feed)
        except OSError:
            self._close_pair()
            raise
        try:
            self._io_thread = IOThread.acquire(self)
        except OSError:
            self.abandon()
            raise
        timers = self._io_thread.loop.timers
        self._late = Timer(timers, self._too_late)
        self._patience = Timer(timers, self._end_it)

    # -- any thread -----------------------------------------------------------------------------------------------

    def begin(self, words: Sequence[str]) -> None:
        """Begin to start it, once."""
        theirs = self._theirs.fileno()
        try:
            future = begin(words, stdin=theirs, stdout=theirs, stderr=self._stderr.theirs)
        except FileNotFoundError:
            self._not_started(ConnectError(f"{self.name}: {missing(words[0])}"))
        except (OSError, RuntimeError) as error:
            self._not_started(start_error(self.name, error))
        else:
            if self._deadline is not None:
                self._io_thread.loop.call(self._start_clock)
            # The callback runs in the thread that starts all children, which must not block.
            future.add_done_callback(lambda future: self._io_thread.loop.call(functools.partial(self._started, future)))

    def give_up(self) -> None:
        """Stop waiting for the result."""
        with self._lock:
            self._done = None

    def closed(self) -> None:
        """Its stream was closed, which its socket does not tell where a forked child has a copy of it."""
        if os.getpid() == self._owner:
            self._io_thread.loop.call(self._wait_for_end)

    def terminate(self) -> None:
        """End it now."""
        if os.getpid() == self._owner:
            # At once, in the caller's thread: the loop may be busy, and a reset is to stop the program now.
            self._signal(signal.SIGTERM)
            self._io_thread.loop.call(self._wait_for_kill)

    def when_sent(self, done: Callable[[], object]) -> bool:
        """Call ``done`` at exit, once it has ended; see :class:`relay.streams.exit_drain.Sender`."""

        def look() -> None:
            if self._state in _STARTED and self._is_alone:
                shut_down(self._theirs)  # as a close of the other end: what was sent is still there
                self._wait_for_end()
            if self._state not in (ProgramState.LEAVING, ProgramState.TERMINATED):
                done()
            self._on_sent = done

        return self._io_thread.loop.call(look)

    def progress(self) -> int:
        """Return how many bytes it has not read."""
        return self._reading.left

    def _signal(self, number: int) -> None:
        """Signal it and what it has started. It is not reaped yet, so its number is its own."""
        with self._lock:
            if self._process is not None:
                _signal_group(self._process, number)

    def abandon(self) -> None:
        """In a forked child: only close the descriptors; every lock may be held for ever."""
        self._close_pair()
        if self._far is not None:
            self._far.close()
        self._stderr.abandon()
        if self._pid >= 0:
            os.close(self._pid)

    def _close_pair(self) -> None:
        self._theirs.close()
        ours, self._ours = self._ours, None
        if ours is not None:
            ours.close()

    # -- its beginning --------------------------------------------------------------------------------------------

    def _start_clock(self) -> None:
        assert self._deadline is not None
        if self._done is not None:
            self._late.start(self._deadline, time.monotonic())

    def _too_late(self, now: float) -> None:
        text = f"{self.name}: not started in time; check the load of this machine, or raise the timeout"
        self._tell(ConnectError(text, reason="connect_timeout"))

    def _tell(self, outcome: Stream | OSError) -> None:
        with self._lock:
            done, self._done = self._done, None
        if done is not None:
            done(outcome)
        elif isinstance(outcome, Stream):
            outcome.reset()

    def _not_started(self, error: OSError) -> None:
        """Nothing of it is there, and nothing is watched."""
        self._state = ProgramState.OVER
        self._stderr.close()
        self._close_pair()
        self._io_thread.release(self)
        self._tell(error)

    def _started(self, future: Future[Process]) -> None:
        self._late.stop()
        try:
            process = future.result()
        except Exception as error:  # noqa: BLE001  (whatever it is, it is why there is no program)
            return self._not_started(start_error(self.name, error))
        try:
            self._pid = os.pidfd_open(process.pid)
        except OSError as error:
            # No descriptor is left to see its end: a program that is not watched would run for ever.
            _signal_group(process, signal.SIGKILL)
            process.wait()
            return self._not_started(start_error(self.name, error))
        self._process = process
        self._state = ProgramState.RUNNING
        exit_drain.track(self)
        loop = self._io_thread.loop
        loop.watch(self._pid, IN, self._on_exit)
        self._stderr.start(loop)
        # With no interest: what the stream sends is the program's to read.
        loop.watch(self._theirs.fileno(), 0, self._on_hang_up)
        ours, self._ours = self._ours, None
        assert ours is not None
        return self._tell(ProgramStream(ours, self))

    # -- its end --------------------------------------------------------------------------------------------------

    def _on_hang_up(self, event: int, now: float) -> None:
        if event & (HUP | ERR):
            self._forget_socket()
            self._wait_for_end()

    def _forget_socket(self) -> None:
        # Not as one that is closed: the program has a copy, with which the kernel would go on reporting it.
        self._io_thread.loop.forget(self._theirs.fileno())

    def _wait_for_end(self) -> None:
        if self._state is ProgramState.RUNNING:
            self._wait(ProgramState.LEAVING, _MOMENT)

    def _wait_for_kill(self) -> None:
        if self._state in _STARTED:
            self._wait(ProgramState.TERMINATED, _PATIENCE)

    def _wait(self, state: ProgramState, seconds: float) -> None:
        now = time.monotonic()
        self._state = state
        self._patience.start(now + seconds, now)

    def _end_it(self, now: float) -> None:
        if self._state is ProgramState.TERMINATED:
            return self._signal(signal.SIGKILL)
        if self.may_read and self._reading.goes_on(now, _MOMENT):
            return self._patience.start(now + _MOMENT, now)
        self._signal(signal.SIGTERM)
        return self._wait_for_kill()

    def _on_exit(self, event: int, now: float) -> None:
        """It has ended: first know how, and then let the end of file through."""
        self._patience.stop()
        with self._lock:
            process, self._process = self._process, None
            assert process is not None
            # What it has started has its end of the socket, too, and would keep the stream open.
            _signal_group(process, signal.SIGKILL)
            # Under the lock, after which its number may be another process's: no signal goes there any more.
            self.status = process.wait()
        # Before the error is made, whose last part is the last line.
        self._stderr.finish()
        self._lines.end()
        self.error = end_error(self.name, self.status, self._lines.last)
        self._release()
        if self._on_sent is not None:
            self._on_sent()

    def _release(self) -> None:
        loop = self._io_thread.loop
        self._forget_socket()
        loop.forget(self._pid)
        os.close(self._pid)
        self._pid = -1
        self._stderr.close()
        if self.error is None:
            # It ended well without reading everything, as `head` does; that is no reset.
            drop_unread(self._theirs)
        else:
            self._far = leave_unread(self._theirs)
        self._state = ProgramState.OVER if self._far is None else ProgramState.RESETTING
        if self._far is None:
            shut_down(self._theirs)  # another process may have a copy
            loop.discard(self._theirs)
            self._io_thread.release(self)
        else:  # a shutdown would be an end of file before it is a reset
            loop.discard(self._theirs)
            loop.call(self._wait_for_copies)

    def _wait_for_copies(self) -> None:
        """Wait until no copy of the program's end is open, so that the holder has seen the reset; but not for ever."""
        assert self._far is not None
        loop, now = self._io_thread.loop, time.monotonic()
        self._copies = Timer(loop.timers, self._copies_closed)
        self._copies.start(now + _MOMENT, now)
        loop.watch(self._far.fileno(), 0, lambda event, now: self._copies_closed(now))

    def _copies_closed(self, now: float) -> None:
        far, self._far = self._far, None
        assert far is not None
        self._state = ProgramState.OVER
        self._copies.stop()
        self._io_thread.loop.forget(far.fileno())
        shut_down(far)
        self._io_thread.loop.discard(far)
        self._io_thread.release(self)

    def crashed(self, now: float) -> None:
        """A bug in a handler: end it."""
        self._signal(signal.SIGKILL)


def _signal_group(process: Process, number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):
        pass  # no such process, or not a child of this one


def start_error(name: str, error: Exception) -> OSError:
    """Return the error of a program that was not started.

    :param name: the program's.
    :param error: what the system reports; an error of relay stays as it is.
    """
    if isinstance(error, RelayError):
        return error
    return ConnectError(f"{name}: cannot be started: {getattr(error, 'strerror', None) or error}")


def missing(program: str) -> str:
    """Return why there is no such program, and what to do.

    :param program: its name, which is looked for in ``PATH``, or its path.
    """
    if os.path.dirname(program):
        if os.path.exists(program):
            return f"{program} is not an executable file; check the path, or run chmod +x"
        return f"there is no {program}; check the spelling"
    return f"there is no {program} in PATH; install it, or give its whole path"


def end_error(name: str, status: int, last: str) -> ConnectError | None:
    """Return the error of a program that has ended; ``None`` if its status is 0.

    :param name: the program's.
    :param status: its exit status, or the signal that ended it, negative.
    :param last: the last line of its standard error, if any.
    """
    if status > 0:
        return program_error(name, f"ended with status {status}", last)
    if status < 0:
        return program_error(name, f"was ended by {_signal_name(-status)}", last)
    return None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
