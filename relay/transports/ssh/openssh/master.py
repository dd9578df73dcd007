"""The process: one ``ssh -N`` with its private directory, its standard error, and the thread that watches it."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import threading
import time
import weakref
from collections import deque
from typing import Protocol

from ....errors import CarrierError, ConnectError, RelayError
from ....eventloop.loop import Loop, Timer
from ....eventloop.poller import IN
from ....process import DEVNULL, Process, start
from ....streams.cancellation import Cancellation
from ....streams.stream import Stream
from ..connection import Settings
from .arguments import DESK, arguments, environment, private_directory
from .askpass import Desk
from .diagnostics import decoded, said, why
from .quickack import QuickAck
from .trust import UNWRITTEN, unwritten_error

__all__ = ["Master", "Watcher"]

logger = logging.getLogger("relay")

_READY = b"debug1: Entering interactive session."
_UNKNOWN = "WARNING: Server requests forwarding for unknown "  # a stream is refused that nobody else tells of
_WARNINGS = 20  # different ones, for the server says what is in them
_CHUNK = 64 << 10
_AT_ONCE = 16  # chunks of standard error that are read before something else has its turn
_LINES, _LAST_LINES = 1000, 50  # that are kept until it is up, and from then on
_LINE = 2000  # bytes that are kept of one
_QUIET = 0.02  # seconds for which more lines are let come together before they are read
_MOMENT = 0.2  # seconds for the thread to end when everything is over
_FLUSH = 0.4  # seconds for ssh to send what it has and to end by itself


class Watcher(Protocol):
    """Who wants to know what the master does."""

    def line(self, line: bytes) -> bool:
        """A line of standard error; returns whether that was nothing for its user. Called with the lock held."""

    def is_urgent(self) -> bool:
        """Whether somebody waits for a line. Called in the loop's thread."""

    def ready(self) -> None:
        """It has logged in. Called in the loop's thread.

        :raises OSError: if its control socket cannot be had, and so it was somebody else who said that.
        """

    def ended(self, error: CarrierError) -> None:
        """The process is gone. Called in the loop's thread."""


class Master:
    """One ``ssh -N``.

    :param settings: whom, how.
    :param stream: the connection that it is to use, owned from now on; ``None`` if it is to make its own.
    :param watcher: told of everything, once it is started.
    :raises OSError: if there are no descriptors to be had.
    """

    def __init__(self, settings: Settings, stream: Stream | None, watcher: Watcher) -> None:
        self.settings = settings
        self.name = f"relay ssh {settings.hostname}"  # of its threads
        self.lock = threading.Lock()  # for what is said on standard error, and everything that follows from it
        self.settled = Cancellation()  # set when it is up, or has ended
        self.is_up = False
        self.gone: CarrierError | None = None  # it has ended, or is being closed
        self.refusal: OSError | None = None  # a secret that could not be had
        self._watcher = watcher
        self._stream = stream
        self._lines: deque[str] = deque(maxlen=_LINES)
        self._warned: set[str] = set()
        self._rest = b""
        self._closing = False
        self._over = threading.Event()
        self.loop = Loop()
        self._quick_ack = QuickAck(self.loop)
        self._quiet = Timer(self.loop.timers, self._end_quiet)
        self._patience = Timer(self.loop.timers, self._kill)

    def start(self, deadline: float) -> None:
        """Start it, once.

        :param deadline: monotonic seconds for the login.
        :raises RelayError: if there is no ``ssh``.
        :raises OSError: if there are no descriptors, threads or directories to be had; nothing is left then.
        """
        with contextlib.ExitStack() as undo:
            undo.callback(self.loop.close)
            if self._stream is not None:
                undo.callback(self._stream.close)
            self.folder = private_directory()
            self._remove = weakref.finalize(self, _remove, self.folder, os.getpid())  # at the latest when we exit
            undo.callback(self._remove)
            connection = None if self._stream is None else self._stream.socket
            self._desk = Desk(self.loop, self.path(DESK), self.settings, connection, self._refused)
            undo.callback(self._desk.close)
            self._process = self._start(deadline - time.monotonic(), undo)
            self._pid = os.pidfd_open(self._process.pid)
            undo.callback(os.close, self._pid)
            self.loop.watch(self._stderr, IN, self._on_stderr)
            self.loop.watch(self._pid, IN, self._on_end)
            self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
            self._thread.start()
            undo.pop_all()

    def _start(self, seconds: float, undo: contextlib.ExitStack) -> Process:
        settings, given = self.settings, self._stream is not None
        self._stderr, theirs = os.pipe()
        undo.callback(os.close, self._stderr)
        os.set_blocking(self._stderr, False)
        try:
            with os.fdopen(theirs, "wb") as pipe:
                process = start(
                    arguments(settings, self.folder, given=given, seconds=seconds),
                    stdin=DEVNULL,
                    stdout=DEVNULL,
                    stderr=pipe,
                    env=environment(settings, self.folder, given=given),
                )
        except FileNotFoundError:
            text = "the backend openssh needs the program ssh, which is not in PATH; install it or use paramiko"
            raise RelayError(f"{settings.name}: {text}") from None
        undo.callback(process.wait)
        undo.callback(process.kill)
        return process

    def path(self, name: str) -> str:
        """A path in the private directory."""
        return os.path.join(self.folder, name)

    # -- any thread -----------------------------------------------------------------------------------------------

    def said(self) -> list[str]:
        """The lines of standard error that were kept."""
        with self.lock:
            return list(self._lines)

    def drain(self) -> None:
        """Take what ssh has said by now; with the lock held. Does not block."""
        for _ in range(_AT_ONCE):
            try:
                data = os.read(self._stderr, _CHUNK)
            except OSError:  # nothing there, or closed
                return
            lines = (self._rest + data).split(b"\n")
            self._rest = lines.pop()[:_LINE]
            for line in lines:
                if not self._watcher.line(line):
                    self._keep(line)
            if len(data) < _CHUNK:
                return

    def failure(self) -> OSError | None:
        """Why it ended before it was up; ``None`` if it has not ended."""
        if self.refusal is not None:
            return self.refusal
        if self.gone is None:
            return None
        error, stream = why(self.settings, self.said()), self._stream
        if isinstance(error, CarrierError) and stream is not None and stream.failure is not None:
            under = stream.failure()  # ssh has found the connection closed: perhaps it was never there
            if isinstance(under, ConnectError):
                return ConnectError(f"{self.settings.name}: {under}", reason=under.reason)
            if under is not None:
                error.stage = ""  # it was not the server that ended it
        return error

    def close(self) -> None:
        """End it, and wait for that: what ssh has not sent yet goes out if it can, for a moment. Idempotent."""
        with self.lock:
            self._closing = True
            if self.gone is None:
                self.gone = CarrierError(f"{self.settings.name}: the connection was closed")
        self.loop.call(self._terminate)
        if threading.current_thread() is not self._thread:
            self._over.wait()
            self._thread.join(_MOMENT)

    def abandon(self) -> None:
        """In a forked child: close this process's descriptors; every lock may be held for ever."""
        self._remove.detach()
        self.loop.close()
        self._desk.abandon()
        for descriptor in (self._stderr, self._pid):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._quick_ack.abandon()
        if self._stream is not None:
            self._stream.socket.close()

    # -- the loop's thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        self.loop.run()
        self.loop.close()
        self._over.set()
        if self._stream is not None:
            self._stream.close()  # may block: what lies under it is let go of

    def _keep(self, line: bytes) -> None:
        if not self.is_up and line.startswith(_READY):
            self.loop.call(self._ready)
        text = decoded(line[:_LINE])
        if not self.is_up and self.gone is None and text.startswith(UNWRITTEN):
            self.refusal = unwritten_error(self.settings)
            self.gone = CarrierError(str(self.refusal))
            self.loop.call(self._terminate)
        if text.startswith(_UNKNOWN) and len(self._warned) < _WARNINGS and text not in self._warned:
            self._warned.add(text)
            logger.warning("%s: ssh says: %s", self.settings.name, text.removeprefix("WARNING: "))
        if text and not (self.is_up and text.startswith("debug")):
            logger.debug("%s: ssh: %s", self.settings.name, text)
            self._lines.append(text)

    def _ready(self) -> None:
        if self.is_up or self.gone is not None:
            return
        try:
            self._watcher.ready()
        except OSError as error:
            logger.debug("%s: not ready after all: %s", self.settings.name, error)
            return
        self._quick_ack.begin(None if self._stream is None else self._stream.socket, self._pid)
        if self._stream is not None:
            self._stream.socket.close()  # ssh has it
        with self.lock:
            self.is_up = True
            self._lines = deque(maxlen=_LAST_LINES)
        self._desk.close()
        self.settled.set()

    def expect_end(self) -> None:
        """It ends, or something is wrong with it: kill it if it is still there in a moment. In the loop's thread."""
        now = time.monotonic()
        self._patience.start(now + _FLUSH, now)

    def _refused(self, error: OSError) -> None:
        self.refusal = error

    def _on_stderr(self, event: int, now: float) -> None:
        if not event & IN:
            return self.loop.forget(self._stderr)
        self._read()
        if self.is_up and not self._watcher.is_urgent():
            # Lines are read when a stream asks for them, else some at a time: a busy ssh wakes nobody for each.
            self.loop.poller.modify(self._stderr, 0)
            self._quiet.start(now + _QUIET, now)

    def _read(self) -> None:
        with self.lock:
            self.drain()

    def _end_quiet(self, now: float) -> None:
        """Read the lines that have come together, and wait for the next one."""
        self._read()
        self.listen_closely()

    def listen_closely(self) -> None:
        """Read lines as they come, for now; in the loop's thread."""
        self._quiet.stop()
        if self._stderr in self.loop.handlers:
            self.loop.poller.modify(self._stderr, IN)

    def _terminate(self) -> None:
        if self._process.returncode is None:
            self._signal(signal.SIGTERM)
            now = time.monotonic()
            self._patience.start(now + (_FLUSH if self.is_up else 0.0), now)

    def _kill(self, now: float) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        """Signal it and what it has started (a ProxyCommand); it is not reaped yet, so its number is its own."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _on_end(self, event: int, now: float) -> None:
        self._signal(signal.SIGKILL)
        self._process.wait()
        for _ in range(_AT_ONCE):
            with self.lock:
                self.drain()
        with self.lock:
            words = said(list(self._lines)) or f"ssh ended with status {self._process.returncode}"
            if self.gone is None:
                self.gone = CarrierError(f"{self.settings.name}: the connection was lost: {words}")
        self._let_go()
        self._watcher.ended(self.gone)
        self.settled.set()
        self.loop.stop()

    def _let_go(self) -> None:
        self._patience.stop()
        self._quiet.stop()
        self._desk.close()
        self._quick_ack.close()
        for descriptor in (self._stderr, self._pid):
            self.loop.forget(descriptor)
        with self.lock:
            os.close(self._stderr)
            self._stderr = -1
        os.close(self._pid)
        if self._stream is not None:
            self._stream.socket.close()
        self._remove()

    @property
    def was_closed(self) -> bool:
        """Whether it was ended by :meth:`close`."""
        return self._closing


def _remove(folder: str, pid: int) -> None:
    if os.getpid() == pid:  # a forked child that exits leaves it alone
        shutil.rmtree(folder, ignore_errors=True)
