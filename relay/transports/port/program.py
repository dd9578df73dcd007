"""A program that listens: the link of a carrier, whose streams are connections to it.

======== ================== ======== ============================================================================
state    event              next     action
======== ================== ======== ============================================================================
STARTING it listens         UP       the carrier has its link
STARTING another listens    STARTING the attempt has failed; the connector closes it, and tries another place
STARTING deadline or cancel STARTING the attempt has failed; the connector closes it
STARTING it ends            ENDED    the attempt has failed
STARTING close              CLOSING  SIGTERM; its keeper then ends it in two seconds
UP       another listens    UP       the stream gets an error; the link is lost, which closes it
UP       none listens       UP       the same
UP       it ends            ENDED    the link is lost
UP       close              CLOSING  SIGTERM; its keeper then ends it in two seconds
CLOSING  it ends            ENDED    none
CLOSING  the time is over   CLOSING  SIGKILL
ENDED    close              ENDED    none
======== ================== ======== ============================================================================
"""

from __future__ import annotations

import contextlib
import enum
import errno
import functools
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

from ...carriers.link import Lost
from ...errors import CarrierError, ConnectError, RelayError
from ...eventloop.background import IOThread
from ...eventloop.poller import IN
from ...process import DEVNULL, Process, StandardError, StandardErrorPipe, begin
from ...streams.connect import SocketDialer
from ...streams.promise import Abort, CallbackChain, Cancel, Cancellation, OnResult
from ...streams.socket_proxy import self_contained
from ...streams.stream import Stream, nonblocking
from ...streams.trace import Trace
from ..program import end_error, missing, start_error
from .keeper import PATIENCE, keeper
from .place import LOOPBACK, ListeningPlace, Port, PrivatePath, StrangerError

if TYPE_CHECKING:  # it made the link, which has what it needs of it
    from ...addresses.port import PortProgram

# The kernel reports no event when a port begins to listen. While a program starts, relay looks for that; once it
# listens, no more. A connect would show it, too, but each is a stream at the program, and perhaps at the target.
_FIRST_LOOK, _LONGEST_PAUSE = 0.005, 0.1  # seconds between two looks, each pause half as long again as the one before
_STEADY = 1.0  # seconds after which a program that ends is one that has worked, even if it had no stream
_PAUSE = 0.3  # seconds until a program that has worked is started again; else it is a failure in a row
_NONE_LISTENS = (errno.ECONNRESET, errno.ENOENT)  # it has closed its socket meanwhile, or removed its file
_SETTLE = 0.02  # seconds after an end of file in which the kernel closes the other sockets of a program that ends
_TRIES = 3  # times that a stream is begun again because the program has taken its place anew


class ProgramState(enum.Enum):
    """The state of a program; the docstring of the module has the table."""

    STARTING, UP, CLOSING, ENDED = range(4)


class ListeningProgram:
    """One start of a program; see :class:`relay.carriers.link.Link`.

    :param command: the program.
    :param lost: called once if it ends, or does not listen any more, after :meth:`wait` has returned.
    :param trace: observes the connects.
    :raises RelayError: if there is no such program, or the system does not report to whom a socket belongs.
    :raises OSError: if the system has no descriptors, threads or directories left.
    """

    router, rtt, is_doubtful = "", None, False  # it is not probed: its end is noticed

    def __init__(self, command: PortProgram, lost: Lost, trace: Trace) -> None:
        self.name = str(command)
        self.gone: ConnectError | CarrierError | None = None
        self._lost: Lost | None = lost
        self._trace = trace
        self._lock = threading.Lock()
        self._state = ProgramState.STARTING
        self._begun = 0.0  # when it was up
        self.has_served = False  # a stream
        self._open: set[object] = set()
        self._on_idle: Callable[[], object] | None = None
        self._lines = StandardError(self.name)
        self._settled = Cancellation()  # set when it has ended
        self._over = threading.Event()
        with contextlib.ExitStack() as undo:
            try:
                self.place: ListeningPlace = PrivatePath() if command.has_path else Port()
            except RelayError as error:
                raise RelayError(f"{self.name}: {error}") from error
            undo.callback(self.place.close)
            self._stderr = StandardErrorPipe(self._lines.feed)
            undo.callback(self._stderr.close)
            self._process = self._start(command)
            undo.callback(self._process.wait)
            undo.callback(self._process.terminate)
            # A descriptor that reports the end: SIGCHLD belongs to the program that uses relay.
            self._pid = os.pidfd_open(self._process.pid)
            undo.callback(os.close, self._pid)
            self._io_thread = IOThread.acquire(self)
            undo.pop_all()
        self._io_thread.loop.call(self._watch)

    def _start(self, command: PortProgram) -> Process:
        words = command.at(self.place.word, LOOPBACK)
        code = keeper()
        try:
            return begin(
                words, stdin=code, stdout=DEVNULL, stderr=self._stderr.theirs, guard=("-", self.place.folder)
            ).result()
        except FileNotFoundError:
            raise RelayError(f"{self.name}: {missing(words[0])}") from None
        except OSError as error:
            raise start_error(self.name, error) from error
        finally:
            os.close(code)

    def wait(self, deadline: float, cancel: Cancel) -> None:
        """Wait until it listens.

        :param deadline: monotonic seconds.
        :param cancel: ends the wait when set.
        :raises StrangerError: if another program has taken its place.
        :raises ConnectError: if it does not listen in time, or ends.
        :raises OSError: if the kernel does not answer.
        """
        try:
            self._wait(deadline, cancel)
        finally:
            self._settled.close()

    def _wait(self, deadline: float, cancel: Cancel) -> None:
        poller = select.poll()
        poller.register(self._settled.fileno(), select.POLLIN)
        poller.register(cancel.fileno(), select.POLLIN)
        pause = _FIRST_LOOK
        while True:
            left = deadline - time.monotonic()
            poller.poll(max(0.0, min(pause, left)) * 1000)
            pause = min(pause * 1.5, _LONGEST_PAUSE)
            if self.gone is not None:
                raise self.gone
            if cancel.is_set():
                raise ConnectError(f"{self.name}: the attempt was given up")
            if self.place.find(self._process.pid) is not None and self._is_up():
                return
            if left <= 0:
                text = f"{self.name}: it does not listen at {self.place.endpoint}{self._said()}"
                raise ConnectError(f"{text}; check its arguments", reason="connect_timeout")

    def _is_up(self) -> bool:
        with self._lock:
            if self._state is ProgramState.STARTING:
                self._state, self._begun = ProgramState.UP, time.monotonic()
            return self._state is ProgramState.UP

    # -- streams, in any thread ---------------------------------------------------------------------------------------

    def open(self, target: str, deadline: float | None, done: OnResult, *, alone: bool) -> Abort:
        """Begin to connect to the program. Never blocks.

        :param target: the name of the target in records.
        :param deadline: monotonic seconds; ``None`` for no limit.
        :param done: called once, in any thread, perhaps before this returns, with the stream or the error: a
            :class:`CarrierError` if the program does not listen any more, :class:`ConnectError` (``denied``) if another
            one listens there.
        :param alone: whether the caller uses nothing but the stream's socket.
        :returns: gives it up: ``done`` is not called after that.
        """
        opening = _Opening(self, target, deadline, done, alone)
        with self._lock:
            gone = self.gone
            if gone is None:
                self._open.add(opening)
        if gone is not None:
            done(gone if isinstance(gone, CarrierError) else CarrierError(str(gone)))
        else:
            opening.begin()
        return opening.give_up

    def find(self) -> Hashable:
        """Return the identity of the socket that it listens with.

        :raises StrangerError: if another program listens there.
        :raises CarrierError: if none listens there.
        :raises OSError: if the kernel does not answer.
        """
        found = self.place.find(self._process.pid)
        if found is None:
            raise CarrierError(f"{self.name}: it does not listen at {self.place.endpoint} any more{self._said()}")
        return found

    def leads_to(self, connection: Stream, found: Hashable) -> bool:
        """Return whether a connection is one to the program; see :meth:`.place.ListeningPlace.leads_to`."""
        return self.place.leads_to(connection.socket, found, self._process.pid)

    def dialer(self) -> SocketDialer:
        """Return a dialer for connections to it."""
        place = self.place.endpoint
        made = SocketDialer(f"{self.name}: {place}", lambda: (place,), literal=True)
        made.trace = self._trace
        return made

    def failure(self, found: Hashable) -> BaseException | None:
        """Return why a stream has ended, if that is no end of the target: the program has ended, or is about to."""
        if self.gone is not None:
            return self.gone
        try:
            is_there = self.find() == found
        except OSError:
            is_there = False
        # The kernel closes the sockets of a program one after the other, the first ones last, and then reports its end.
        return None if is_there else CarrierError(f"{self.name}: it has ended, or does not listen any more")

    def lose(self, error: RelayError) -> None:
        """Report that it is of no use any more."""
        with self._lock:
            lost, self._lost = self._lost, None
        if lost is not None:
            lost(error if isinstance(error, CarrierError) else CarrierError(str(error)))

    def ended(self, opening: object) -> None:
        """Note that a stream is over. Idempotent."""
        call = None
        with self._lock:
            self._open.discard(opening)
            if not self._open:
                call, self._on_idle = self._on_idle, None
        if call is not None:
            call()

    @property
    def streams(self) -> int:
        """The number of streams that are open or being opened."""
        return len(self._open)

    def when_idle(self, call: Callable[[], object]) -> None:
        """Call ``call`` once no stream is open; see :class:`relay.carriers.link.Link`."""
        with self._lock:
            is_idle = not self._open
            self._on_idle = None if is_idle else call
        if is_idle:
            call()

    def confirm(self, done: Callable[[], object]) -> None:
        """Call ``done`` at once: it listens."""
        done()

    def check(self) -> None:
        """Do nothing: its end is noticed."""

    def probe(self, why: str) -> None:
        """Do nothing: it is on this machine. A change of the network only ends a wait for its next start."""

    def close(self) -> None:
        """End the program, and wait for that: for two seconds if it ignores SIGTERM. Idempotent."""
        with self._lock:
            self._lost = None
            if self._state is not ProgramState.ENDED:
                self._state = ProgramState.CLOSING
            if self.gone is None:
                self.gone = CarrierError(f"{self.name}: the program was ended")
            if self._state is ProgramState.CLOSING:  # else its number may be another process's
                self._process.send_signal(signal.SIGTERM)
        if threading.current_thread() is self._io_thread.thread or self._over.wait(PATIENCE + 1):
            return
        with self._lock, contextlib.suppress(OSError):  # its keeper is stopped, perhaps
            os.killpg(self._process.pid, signal.SIGKILL)
        self._over.wait(1)

    def abandon(self) -> None:
        """In a forked child: only close the descriptors; every lock may be held for ever."""
        os.close(self._pid)
        self._stderr.abandon()
        self._settled.abandon()
        if not self.place.folder:  # which is the parent's
            self.place.close()

    # -- in the I/O thread --------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        loop = self._io_thread.loop
        self._stderr.start(loop)
        loop.watch(self._pid, IN, self._on_end)

    def _on_end(self, event: int, now: float) -> None:
        with self._lock:  # no signal goes to its number from here on
            status = self._process.wait()
            was, self._state = self._state, ProgramState.ENDED
        self._stderr.finish()
        self._lines.end()
        how = str(end_error(self.name, status, "") or f"{self.name}: ended with status 0")
        error: ConnectError | CarrierError
        if was is ProgramState.STARTING:
            text = f"{how} before it listened at {self.place.endpoint}{self._said()}"
            error = ConnectError(text if status else f"{text}; it must stay in the foreground")
        else:
            error = CarrierError(f"{how}{self._said()}")
            error.pause = _PAUSE if self.has_served or now - self._begun > _STEADY else None
        self.gone = self.gone or error
        self._io_thread.loop.forget(self._pid)
        os.close(self._pid)
        self._stderr.close()
        self.place.close()
        self._io_thread.release(self)
        self._settled.set()
        self._over.set()
        if was is ProgramState.UP:
            self.lose(error)

    def crashed(self, now: float) -> None:
        """End it because of a bug in a handler."""
        self._process.send_signal(signal.SIGTERM)

    def _said(self) -> str:
        """Return the last lines of its standard error, for an error."""
        return f" ({' / '.join(self._lines.lines)})" if self._lines.lines else ""


class _Opening:
    """One stream that is being opened, or is open."""

    def __init__(
        self, program: ListeningProgram, target: str, deadline: float | None, done: OnResult, alone: bool
    ) -> None:
        self._program = program
        self._target = target
        self._deadline = deadline
        self._is_alone = alone
        self._steps: CallbackChain[Stream] = CallbackChain(done)
        self._tries = 0
        self._found: Hashable = None
        self._is_made = False  # its stream reports its end

    def begin(self) -> None:
        """Look who listens, and connect."""
        try:
            self._found = self._program.find()
        except OSError as error:
            return self._fail(error)
        self._steps.begin(functools.partial(self._program.dialer().dial, self._deadline), self._connected)
        return None

    def give_up(self) -> None:
        """Do not call ``done``, unless it was called."""
        self._steps.give_up()
        if not self._is_made:
            self._program.ended(self)

    def _connected(self, outcome: Stream | OSError) -> None:
        if isinstance(outcome, OSError):
            return self._fail(outcome)
        try:
            is_right = self._program.leads_to(outcome, self._found)
        except OSError as error:
            outcome.reset()  # nothing was read of it, or sent
            return self._fail(error)
        if is_right:
            return self._pass_on(outcome)
        outcome.reset()
        self._tries += 1
        if self._tries < _TRIES:
            return self.begin()
        return self._fail(CarrierError(f"{self._program.name}: it takes its place again and again"))

    def _pass_on(self, stream: Stream) -> None:
        program = self._program
        over = functools.partial(program.ended, self)
        stream.target = self._target
        stream.failure, stream.settle = functools.partial(program.failure, self._found), _SETTLE
        if self._is_alone:
            try:
                stream = self_contained(stream, over)
            except OSError as error:
                return self._fail(error)
        else:
            stream.on_close = nonblocking(over)
        self._is_made = program.has_served = True
        return self._steps.finish(stream)

    def _fail(self, error: OSError) -> None:
        program = self._program
        if isinstance(error, StrangerError):
            error = ConnectError(f"{program.name}: {error}", reason="denied")
            program.lose(error)
        elif (
            getattr(error, "reason", "") == "refused" or error.errno in _NONE_LISTENS
        ):  # between the look and the connect
            error = CarrierError(f"{program.name}: it does not listen at {program.place.endpoint} any more")
        program.ended(self)
        self._steps.finish(error)
