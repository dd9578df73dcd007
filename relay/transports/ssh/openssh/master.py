"""The process ``ssh -N`` with its private directory, its standard error, and the thread that watches it.

======= ================================ ======= ======================================================================
state   event                            next    action
======= ================================ ======= ======================================================================
LOGIN   logged in                        UP      end the dialog for secrets, close the copy of ssh's connection
LOGIN   logged in, but no control socket LOGIN   none: the line came from another program, such as ProxyCommand
LOGIN   host key cannot be written       REFUSED SIGTERM, and SIGKILL at once
LOGIN   close                            CLOSING SIGTERM, and SIGKILL at once
LOGIN   process ends                     ENDED   end all streams; the login has failed
UP      logged in                        UP      none: the line came from another program
UP      close                            CLOSING SIGTERM, and SIGKILL after 0.4 s
UP      process ends                     ENDED   end all streams; the connection is lost
REFUSED close                            CLOSING SIGTERM, and SIGKILL at once
REFUSED process ends                     ENDED   end all streams; the login has failed
CLOSING logged in                        CLOSING none
CLOSING close                            CLOSING SIGTERM again
CLOSING process ends                     ENDED   end all streams
ENDED   close                            ENDED   none
======= ================================ ======= ======================================================================
"""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import shutil
import signal
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING

from ....carriers.link import PROBE
from ....errors import CarrierError, ConnectError, RelayError
from ....eventloop.loop import Loop, Timer
from ....eventloop.poller import IN
from ....eventloop.tcp_probe import TCPProbe
from ....process import DEVNULL, Process, start, written
from ....streams.promise import Cancellation
from ....streams.stream import Stream
from ..connection import Settings
from ..login_failures import unwritten_key
from .arguments import ASKPASS, arguments, environment, private_directory, sweep
from .askpass import AskpassServer
from .diagnostics import decoded, said, why
from .host_keys import UNWRITTEN
from .quickack import QuickAck

if TYPE_CHECKING:
    from .backend import OpenSSH

logger = logging.getLogger("relay")

_READY = b"debug1: Entering interactive session."
_UNKNOWN = "WARNING: Server requests forwarding for unknown "  # ssh rejects a stream, and logs it only so
_WARNINGS = 20  # different ones, because the server chooses their text
_CHUNK = 64 << 10
_AT_ONCE = 16  # chunks of standard error that are read in one turn of the loop
_LINES, _LAST_LINES = 1000, 50  # lines that are kept during the login, and after it
_LINE = 2000  # bytes of a line that are kept
_QUIET = 0.02  # seconds in which lines gather before they are read
_MOMENT = 0.2  # seconds for the thread to end after the process
_FLUSH = 0.4  # seconds for ssh to send its data and to end by itself


class MasterState(enum.Enum):
    """The state of the process; the docstring of the module has the table."""

    LOGIN, UP, REFUSED, CLOSING, ENDED = range(5)


class _StandardError:
    """The standard error of ssh: lines for its owner, and the last of them for errors.

    :param name: the name of the server.
    """

    __slots__ = ("descriptor", "_lines", "_name", "_rest", "_warned")

    def __init__(self, name: str) -> None:
        self.descriptor = -1
        self._name = name
        self._lines: deque[str] = deque(maxlen=_LINES)
        self._rest = b""
        self._warned: set[str] = set()

    def read(self) -> list[bytes]:
        """Return the lines that ssh has written by now. Does not block."""
        found: list[bytes] = []
        for _ in range(_AT_ONCE):
            try:
                data = os.read(self.descriptor, _CHUNK)
            except OSError:  # nothing there, or closed
                break
            lines = (self._rest + data).split(b"\n")
            self._rest = lines.pop()[:_LINE]
            found += lines
            if len(data) < _CHUNK:
                break
        return found

    def keep(self, text: str, *, has_logged_in: bool) -> None:
        """Keep a line that is not for its owner, and log it."""
        if text.startswith(_UNKNOWN) and len(self._warned) < _WARNINGS and text not in self._warned:
            self._warned.add(text)
            logger.warning("%s: ssh says: %s", self._name, text.removeprefix("WARNING: "))
        if text and not (has_logged_in and text.startswith("debug")):
            logger.debug("%s: ssh: %s", self._name, text)
            self._lines.append(text)

    def forget_login(self) -> None:
        """Keep fewer lines from now on."""
        self._lines = deque(maxlen=_LAST_LINES)

    def lines(self) -> list[str]:
        """Return the last lines."""
        return list(self._lines)


class Master:
    """One ``ssh -N``.

    :param settings: the server.
    :param stream: the connection for ssh, which the master owns; ``None`` if ssh connects itself.
    :param watcher: the connection, which handles its events after :meth:`start`.
    :raises OSError: if there are no descriptors left.
    """

    def __init__(self, settings: Settings, stream: Stream | None, watcher: OpenSSH) -> None:
        self.settings = settings
        self.name = f"relay ssh {settings.hostname}"  # of its threads
        self.lock = threading.Lock()  # guards the lines of standard error and all state that follows from them
        self.settled = Cancellation()  # set when it is logged in, or has ended
        self.has_logged_in = False
        self.gone: CarrierError | None = None  # it has ended, or is being closed
        self.refusal: OSError | None = None  # why relay has ended it: a missing secret, an unwritable file
        self._state = MasterState.LOGIN
        self._watcher = watcher
        self._stream = stream
        self._stderr = _StandardError(settings.name)
        self._over = threading.Event()
        self.loop = Loop()
        self._quick_ack = QuickAck(self.loop)
        self._probe: TCPProbe | None = None
        self._quiet = Timer(self.loop.timers, self._end_quiet)
        self._patience = Timer(self.loop.timers, self._kill)
        # From start() on, which makes all of them or ends all of this:
        self.folder: str
        self._remove: weakref.finalize[[str, int], Master]
        self._askpass: AskpassServer
        self._process: Process
        self._pid: int  # a descriptor of the process
        self._thread: threading.Thread

    def start(self, deadline: float) -> None:
        """Start ssh, once.

        :param deadline: monotonic seconds for the login.
        :raises RelayError: if there is no ``ssh``.
        :raises OSError: if the system has no descriptors, threads or directories left; nothing remains of the start.
        """
        with contextlib.ExitStack() as undo:
            # Undone in reverse order: the process is killed before its sockets and its folder go.
            undo.callback(self.loop.close)
            if self._stream is not None:
                undo.callback(self._stream.close)
            self.folder = private_directory()
            self._remove = weakref.finalize(self, _remove, self.folder, os.getpid())  # at the latest at exit
            undo.callback(self._remove)
            connection = None if self._stream is None else self._stream.socket
            # Before ssh is started: it may ask at once.
            self._askpass = AskpassServer(self.loop, self.path(ASKPASS), self.settings, connection, self._refused)
            undo.callback(self._askpass.close)
            self._process = self._start(deadline - time.monotonic(), undo)
            # A descriptor that reports the end: waiting for the process would need a thread, and SIGCHLD belongs to the
            # program.
            self._pid = os.pidfd_open(self._process.pid)
            undo.callback(os.close, self._pid)
            self.loop.watch(self._stderr.descriptor, IN, self._on_stderr)
            self.loop.watch(self._pid, IN, self._on_end)
            self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
            self._thread.start()
            undo.pop_all()

    def _start(self, seconds: float, undo: contextlib.ExitStack) -> Process:
        settings, given = self.settings, self._stream is not None
        self._stderr.descriptor, theirs = os.pipe()
        undo.callback(os.close, self._stderr.descriptor)
        os.set_blocking(self._stderr.descriptor, False)
        try:
            # Closed here once ssh has it, or the pipe would never report its end.
            with os.fdopen(theirs, "wb") as pipe:
                process = start(
                    arguments(settings, self.folder, given=given, seconds=seconds),
                    stdin=DEVNULL,
                    stdout=DEVNULL,
                    stderr=pipe,
                    env=environment(settings, self.folder, given=given),
                )
        except FileNotFoundError:
            text = "the backend openssh needs ssh, which is not in PATH; install it, or use the backend paramiko"
            raise RelayError(f"{settings.name}: {text}") from None
        undo.callback(process.wait)
        undo.callback(process.kill)
        return process

    def path(self, name: str) -> str:
        """Return a path in the private directory."""
        return os.path.join(self.folder, name)

    # -- any thread -----------------------------------------------------------------------------------------------

    def stderr_lines(self) -> list[str]:
        """Return the last lines of standard error."""
        with self.lock:
            return self._stderr.lines()

    def written(self) -> int:
        """Return how many bytes ssh has written to all its descriptors, as far as the system reports it."""
        return written(self._process.pid)

    def drain(self) -> None:
        """Read and handle the lines that ssh has written by now; with the lock held. Does not block."""
        for line in self._stderr.read():
            if not self._watcher.line(line):
                self._keep(line)

    def failure(self) -> OSError | None:
        """Return why ssh has ended before the login was complete; ``None`` if it has not ended."""
        if self.refusal is not None:
            return self.refusal
        if self.gone is None:
            return None
        error, stream = why(self.settings, self.stderr_lines()), self._stream
        if isinstance(error, CarrierError) and stream is not None and stream.failure is not None:
            under = stream.failure()  # ssh has found the connection closed: perhaps it never reached the server
            if isinstance(under, ConnectError):
                return ConnectError(f"{self.settings.name}: {under}", reason=under.reason)
            if under is not None:
                error.stage = ""  # the server has not ended it
        return error

    def close(self) -> None:
        """End ssh, and wait for its end. It has a moment to send its data. Idempotent."""
        with self.lock:
            if self._state is not MasterState.ENDED:
                self._state = MasterState.CLOSING
            if self.gone is None:
                self.gone = CarrierError(f"{self.settings.name}: the connection was closed")
        self.loop.call(self._terminate)
        if threading.current_thread() is not self._thread:
            # Without a limit: SIGKILL follows in 0.4 s at most, and the kernel then ends the process.
            self._over.wait()
            self._thread.join(_MOMENT)

    def abandon(self) -> None:
        """In a forked child: close this process's descriptors; every lock may be held for ever."""
        # The folder is the parent's: a finalizer of the child must not remove it.
        self._remove.detach()
        self.loop.close()
        self._askpass.abandon()
        for descriptor in (self._stderr.descriptor, self._pid):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._quick_ack.abandon()
        if self._stream is not None:
            self._stream.socket.close()

    # -- the loop's thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        self.loop.run()
        self.loop.close()
        # Before the stream below is closed, which may block: `close` waits for the process only.
        self._over.set()
        if self._stream is not None:
            self._stream.close_soon()  # may block: it releases the carrier below

    def _keep(self, line: bytes) -> None:
        is_login = self._state is MasterState.LOGIN
        if is_login and line.startswith(_READY):
            # Not here: this is called with the lock held, and may be on the thread of a caller that reads the log.
            self.loop.call(self._ready)
        text = decoded(line[:_LINE])
        if is_login and text.startswith(UNWRITTEN):
            self._state = MasterState.REFUSED
            self.refusal = unwritten_key(self.settings)
            self.gone = CarrierError(str(self.refusal))
            self.loop.call(self._terminate)
        self._stderr.keep(text, has_logged_in=self.has_logged_in)

    def _ready(self) -> None:
        if self._state is not MasterState.LOGIN:
            return
        try:
            self._watcher.ready()
        except OSError as error:
            logger.debug("%s: not logged in yet: %s", self.settings.name, error)
            return
        # Before the copy of the connection is closed, which it duplicates.
        self._quick_ack.begin(None if self._stream is None else self._stream.socket, self._pid)
        if self._stream is not None:
            self._stream.socket.close()  # ssh has it
        with self.lock:
            self.has_logged_in = True
            if self._state is MasterState.LOGIN:  # else it was closed at this moment
                self._state = MasterState.UP
            self._stderr.forget_login()
        # No secret is needed after the login; a program that learns of the socket finds no one to ask.
        self._askpass.close()
        # Last: the caller may open streams as soon as it wakes.
        self.settled.set()

    def probe(self, why: str) -> None:
        """End ssh unless the server's system answers within :data:`PROBE` seconds. On the loop's thread."""
        connection = self._quick_ack.connection
        if connection is not None:  # else relay has no copy: of a connection that is not TCP, or on an old kernel
            if self._probe is None:
                self._probe = TCPProbe(connection, self.loop.timers, self._silent)
            self._probe.begin(PROBE, why)

    def _silent(self, error: CarrierError) -> None:
        with self.lock:
            if self.gone is None:
                self.gone = CarrierError(f"{self.settings.name}: the connection was lost: {error}")
        self._terminate()

    def expect_end(self) -> None:
        """Kill ssh if it does not end in a moment. On the loop's thread."""
        now = time.monotonic()
        self._patience.start(now + _FLUSH, now)

    def _refused(self, error: OSError) -> None:
        self.refusal = error

    def _on_stderr(self, event: int, now: float) -> None:
        # A hang-up without bytes: the end of the process is reported by the pidfd, so this would only repeat itself.
        if not event & IN:
            return self.loop.forget(self._stderr.descriptor)
        self._read()
        if self.has_logged_in and not self._watcher.is_urgent():
            # Lines gather for a moment, unless a caller waits for one: a busy ssh does not wake this thread for each.
            self.loop.poller.modify(self._stderr.descriptor, 0)
            self._quiet.start(now + _QUIET, now)

    def _read(self) -> None:
        with self.lock:
            self.drain()

    def _end_quiet(self, now: float) -> None:
        """Read the lines that have gathered, and wait for the next one."""
        self._read()
        self.read_at_once()

    def read_at_once(self) -> None:
        """Read the next line when it arrives; on the loop's thread."""
        self._quiet.stop()
        # It may have hung up since, and been forgotten.
        if self._stderr.descriptor in self.loop.handlers:
            self.loop.poller.modify(self._stderr.descriptor, IN)

    def _terminate(self) -> None:
        if self._process.returncode is None:
            self._signal(signal.SIGTERM)
            now = time.monotonic()
            self._patience.start(now + (_FLUSH if self.has_logged_in else 0.0), now)

    def _kill(self, now: float) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        """Signal ssh and its children (ProxyCommand). It is not reaped yet, so the process group is its own."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _on_end(self, event: int, now: float) -> None:
        # Its group, before it is reaped: a ProxyCommand that goes on would keep the pipe of standard error open.
        self._signal(signal.SIGKILL)
        self._process.wait()
        # The lock is released in between: callers that wait for it must not wait for all that ssh has written.
        for _ in range(_AT_ONCE):
            with self.lock:
                self.drain()
        with self.lock:
            words = said(self._stderr.lines()) or f"ssh ended with status {self._process.returncode}"
            if self.gone is None:
                self.gone = CarrierError(f"{self.settings.name}: the connection was lost: {words}")
            is_lost = self._state is MasterState.UP
            self._state = MasterState.ENDED
        self._release()
        self._watcher.ended(self.gone, is_lost=is_lost)
        self.settled.set()
        self.loop.stop()

    def _release(self) -> None:
        self._patience.stop()
        self._quiet.stop()
        if self._probe is not None:
            self._probe.stop()
        self._askpass.close()
        self._quick_ack.close()
        for descriptor in (self._stderr.descriptor, self._pid):
            self.loop.forget(descriptor)
        with self.lock:
            os.close(self._stderr.descriptor)
            # Under the lock: another thread may be about to read it, and the number may soon be another file's.
            self._stderr.descriptor = -1
        os.close(self._pid)
        if self._stream is not None:
            self._stream.socket.close()
        self._remove()


def _remove(folder: str, pid: int) -> None:
    if os.getpid() == pid:  # and not at the exit of a forked child
        shutil.rmtree(folder, ignore_errors=True)
        sweep(os.path.dirname(folder))  # of a worker that was killed: no client may start any more
