"""Child processes, the only place that makes them, and what they write on standard error."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import IO, Any

from .addresses.options import secret_variables
from .addresses.printable import one_line
from .errors import ConnectError, RelayError
from .eventloop.loop import Loop, expect_child
from .eventloop.poller import IN

DEVNULL = subprocess.DEVNULL
PIPE = subprocess.PIPE
Process = subprocess.Popen[bytes]

_Request = tuple["Future[Process]", Sequence[str], Mapping[str, Any]]

# Becomes the program to run. Were it done between fork and exec (`preexec_fn`), a lock that another thread of
# this program holds at that moment would never be released. 1 is PR_SET_PDEATHSIG, 9 SIGKILL. Python ignores SIGPIPE
# and SIGXFSZ, which the program would inherit.
_GUARD = """
import ctypes, os, sys, _signal
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
for ignored in _signal.SIGPIPE, _signal.SIGXFSZ:
    _signal.signal(ignored, _signal.SIG_DFL)
_signal.pthread_sigmask(_signal.SIG_SETMASK, [])
if os.getppid() == int(sys.argv[1]):
    try:
        os.execv(sys.argv[2], sys.argv[3:])
    except OSError as error:
        print(f"{sys.argv[2]}: {error.strerror}", file=sys.stderr)
        sys.exit(126)
"""


class _Spawner:
    """The one thread that makes all children, for as long as the program lives.

    The kernel's parent-death signal is sent when the *thread* that made the child ends, and not when its process does:
    the child of a thread that does some work and ends would die with it.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew; in a forked child the thread does not run, and the lock may be held for ever."""
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()

    def stop(self) -> None:
        """End the thread, and with it the children that it has made; the next child gets another one."""
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is not None:
                self._requests.put(None)
                # Under the lock: a thread that was started meanwhile could take this request to end from the queue.
                thread.join()

    def popen(self, argv: Sequence[str], **options: Any) -> Future[Process]:
        """``subprocess.Popen``, in the spawner's thread and in a session of its own. Does not wait."""
        with self._lock:
            if self._thread is None:
                # A daemon: it waits for requests without end, and must not hold up the interpreter's exit.
                thread = threading.Thread(target=self._run, args=(self._requests,), name="relay-spawner", daemon=True)
                thread.start()
                self._thread = thread
        future: Future[Process] = Future()
        self._requests.put((future, argv, {**options, "start_new_session": True}))
        return future

    @staticmethod
    def _run(requests: queue.SimpleQueue[_Request | None]) -> None:
        while (request := requests.get()) is not None:
            _fulfil(*request)
            del request  # else the child and its error would be held until the next one is made


def _fulfil(future: Future[Process], argv: Sequence[str], options: Mapping[str, Any]) -> None:
    # Before the fork, since a loop of another thread may close a watched socket between the fork and the exec.
    expect_child()
    try:
        future.set_result(subprocess.Popen(argv, **options))
    except BaseException as error:  # noqa: BLE001 - it belongs to the caller
        future.set_exception(error)


_spawner = _Spawner()
os.register_at_fork(after_in_child=_spawner.reset)


def end_spawner() -> None:
    """End the thread that makes children, and the children with it; the next child gets another thread."""
    _spawner.stop()


def start(
    argv: Sequence[str],
    *,
    stdin: int | IO[Any] | None = DEVNULL,
    stdout: int | IO[Any] | None = DEVNULL,
    stderr: int | IO[Any] | None = None,
    pass_fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
) -> Process:
    """Start a program that ends when this one does, also (on Linux) when this one is killed.

    It has a session of its own: Ctrl-C in the terminal reaches this program alone, which decides.

    :param argv: the program, looked for in ``PATH`` unless it has a slash, and its arguments. No shell is involved.
    :param stdin: a descriptor, a file, ``PIPE`` or ``DEVNULL``; ``None`` passes on the program's own.
    :param stdout: as ``stdin``.
    :param stderr: as ``stdin``.
    :param pass_fds: further descriptors, which keep their numbers.
    :param env: the whole environment; ``None`` passes on the program's own. Variables that hold a secret of relay
        (:func:`relay.addresses.options.secret_variables`) and those of a service manager are taken out.
    :returns: the process. Its owner waits for it.
    :raises FileNotFoundError: if there is no such program.
    :raises RelayError: if this program has no Python interpreter to start it with.
    :raises OSError: if the system has no room for another process. A file that turns out not to be a program ends with
        status 126 and a line on its standard error.

    Source: :class:`subprocess.Popen`; ``PR_SET_PDEATHSIG`` in prctl(2).
    """
    return begin(argv, stdin=stdin, stdout=stdout, stderr=stderr, pass_fds=pass_fds, env=env).result()


def begin(
    argv: Sequence[str],
    *,
    stdin: int | IO[Any] | None,
    stdout: int | IO[Any] | None,
    stderr: int | IO[Any] | None,
    pass_fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
    guard: Sequence[str] = ("-c", _GUARD),
) -> Future[Process]:
    """Start a program as :func:`start` does, and do not wait for it.

    :param argv: and the others: as for :func:`start`. The descriptors stay open until there is an outcome.
    :param guard: on Linux, the arguments of an interpreter that becomes the program, or starts it. Those that follow
        are the number of this process, the path of the program, and ``argv``.
    :returns: gets the process, or the error, in the spawner's thread, which starts every other child: whatever is
        called back there must not block.
    :raises FileNotFoundError: if there is no such program.
    :raises RelayError: if this program has no Python interpreter to start it with.
    """
    path = find_program(argv[0])
    # The guard gets the number of this process: if its parent is another one, this one has died before the signal was
    # set, which then would never come.
    before = [*python(), *guard, str(os.getpid()), path] if sys.platform == "linux" else []
    return _spawner.popen(
        [*before, *argv],
        executable=None if before else path,
        stdin=stdin,
        stdout=stdout,
        stderr=own_stderr() if stderr is None else stderr,
        pass_fds=pass_fds,
        env=_without_secrets(env),
    )


def find_program(name: str) -> str:
    """Return the path of a program, looked for in ``PATH`` unless it has a slash.

    :raises FileNotFoundError: if there is no such program.
    """
    path = shutil.which(name)
    if path is None:
        raise FileNotFoundError(errno.ENOENT, "no such program", name)
    return path


# A service manager means them for this process alone; sd_listen_fds(3), sd_notify(3).
_OF_THIS_PROCESS = frozenset(
    ("FDSTORE", "LISTEN_FDNAMES", "LISTEN_FDS", "LISTEN_PID", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")
)


def _without_secrets(env: Mapping[str, str] | None) -> Mapping[str, str] | None:
    names = _OF_THIS_PROCESS | secret_variables()
    whole = os.environ if env is None else env
    return env if names.isdisjoint(whole) else {name: value for name, value in whole.items() if name not in names}


def start_in_place(argv: Sequence[str], path: str, folder: str, env: Mapping[str, str]) -> Process:
    """Start a program that the user sees in the place of this one: in its process group, with its terminal and files.

    So a job of the shell is both, and each signal of the terminal reaches both. It ends when this program is killed
    (on Linux), if it is called in the main thread.

    :param argv: the program's name and its arguments.
    :param path: as :func:`find_program` returns it.
    :param folder: its current directory.
    :param env: the whole environment, of which the same is taken out as by :func:`start`.
    :returns: the process. Its owner waits for it.
    :raises RelayError: if this program has no Python interpreter to start it with.
    :raises OSError: if the system has no room for another process.
    """
    expect_child()
    guard = [*python(), "-c", _GUARD, str(os.getpid()), path]
    # What relay has opened is not inheritable. What it has inherited is for the program: a shell's <(command).
    return subprocess.Popen([*guard, *argv], cwd=folder, env=_without_secrets(env), close_fds=False)


def start_python(code: str, stdin: int) -> Process:
    """Start this program's interpreter anew. It does not end by itself when the program does; its code sees to that.

    It is a part of this program, which reads its secrets itself: it gets the whole environment.

    :param code: what it runs.
    :param stdin: a descriptor.
    :raises RelayError: if this program has no Python interpreter.
    :raises OSError: if the system has no room for another process.
    """
    return _spawner.popen([*python(), "-c", code], stdin=stdin, stdout=DEVNULL, stderr=own_stderr()).result()


def start_successor(argv: Sequence[str], folder: str, env: Mapping[str, str]) -> Process:
    """Start a program that takes the place of this one, and outlives it. It gets the whole environment, and the output.

    :param argv: the program and its arguments.
    :param folder: its current directory.
    :param env: the whole environment.
    :raises OSError: if it cannot be started.
    """
    return _spawner.popen(argv, cwd=folder, env=env, stdin=DEVNULL, stdout=None, stderr=own_stderr()).result()


def start_detached(argv: Sequence[str]) -> Process:
    """Start a program that outlives this one and its login, without its files. It gets the whole environment.

    :param argv: the program and its arguments.
    :returns: the process, whose standard output is a pipe.
    :raises OSError: if it cannot be started.
    """
    return _spawner.popen(argv, cwd="/", stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL).result()


def end(process: Process, seconds: float, *, group: bool = False) -> None:
    """Ask a child to end, make it end if it has not done so in time, and wait for it.

    :param process: what :func:`start` returned.
    :param seconds: for it to end by itself.
    :param group: whether what it has started is ended, too; it is the leader of a session, and so of a group.
    """

    def signal_all(number: int) -> None:
        if group:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        else:
            process.send_signal(number)

    signal_all(signal.SIGTERM)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        signal_all(signal.SIGKILL)
        process.wait()


def written(pid: int) -> int:
    """Return how many bytes a child has written to all its descriptors; 0 if the system does not report it.

    Source: ``/proc/pid/io`` in proc(5).
    """
    try:
        with open(f"/proc/{pid}/io", encoding="ascii") as file:
            return int(file.read().partition("wchar:")[2].split()[0])
    except OSError:
        return 0


def python() -> list[str]:
    """Return the command that starts this interpreter again, with no module from the working directory.

    Without ``site`` it starts in a third of the time; a child takes over this program's own path instead.
    """
    if not sys.executable or getattr(sys, "frozen", False):
        raise RelayError("sys.executable is no Python interpreter, so no child can be started; use a Tunnel instead")
    return [sys.executable, "-P", "-S", *(["-E"] if sys.flags.ignore_environment else [])]


def interpreter() -> list[str]:
    """Return the command that starts this interpreter again, with its flags and no module of the working directory."""
    # As multiprocessing does; nothing public has them.
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [sys.executable, *([] if "-P" in flags else ["-P"]), *flags]


def own_stderr() -> int | None:
    """The program's own, if it has one; a child without would give the number to a connection."""
    try:
        own = os.get_inheritable(2)
    except OSError:
        own = False  # it is closed
    # One that is not inheritable is something else, opened by the program after it had closed its standard error.
    return None if own else DEVNULL


logger = logging.getLogger("relay")

_LONGEST = 300  # bytes that are kept of a line
_LAST_LINES = 3  # that are kept
_AT_ONCE = 50  # lines of one chunk that are looked at
_RATE = 20  # lines that are logged in a second
_CHUNK = 64 << 10  # bytes that are read of a pipe at once
_AT_THE_END = 16  # such chunks that are read of a program that has ended


class StandardError:
    """Lines of one program, which are logged at the level info, bounded in their length and in their number.

    :param name: the program's name.
    """

    def __init__(self, name: str) -> None:
        self.lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._name = name
        self._rest = b""
        self._second = 0  # in which lines are counted
        self._logged = self._left_out = 0

    @property
    def last(self) -> str:
        """The last line; empty if there is none."""
        return self.lines[-1] if self.lines else ""

    def feed(self, data: bytes) -> None:
        """Take what has come; takes little time, whatever that is."""
        # From the right, so that the cost has a bound however many lines there are: the last ones say why a program
        # ends.
        *lines, rest = (self._rest + data).rsplit(b"\n", _AT_ONCE)
        # A program may write without any line break; its line is cut here, and not kept until memory is full.
        self._rest = rest[:_LONGEST]
        for line in lines:
            more = line.count(b"\n")
            if more:  # the first one may hold many, which are not looked at
                self._left_out += more + 1
            else:
                self._say(line)

    def end(self) -> None:
        """There is no more."""
        rest, self._rest = self._rest, b""
        self._say(rest)
        self._tell_left_out()

    def _say(self, line: bytes) -> None:
        text = one_line(line[:_LONGEST], _LONGEST)
        if not text:
            return
        self.lines.append(text)
        second = int(time.monotonic())
        if second != self._second:
            self._tell_left_out()
            self._second, self._logged = second, 0
        if self._logged < _RATE:
            self._logged += 1
            logger.info("%s: %s", self._name, text)
        else:
            self._left_out += 1

    def _tell_left_out(self) -> None:
        number, self._left_out = self._left_out, 0
        if number:
            logger.info("%s: it said %d lines more", self._name, number)


class StandardErrorPipe:
    """The pipe that a program gets as its standard error. relay's end belongs to the thread of its loop.

    :param feed: called with what the program has written; must not block.
    :raises OSError: if there are no descriptors left.
    """

    __slots__ = ("descriptor", "theirs", "_feed", "_loop")

    def __init__(self, feed: Callable[[bytes], object]) -> None:
        self.descriptor, self.theirs = os.pipe()
        # relay's end only: the mode belongs to the open file description, which the two ends of a pipe do not share.
        # The program must find a blocking standard error, as each program expects one.
        os.set_blocking(self.descriptor, False)
        self._loop: Loop | None = None
        self._feed = feed

    def start(self, loop: Loop) -> None:
        """Close the program's end, which the program has by now, and watch the other one."""
        # Else the pipe would have a writer for ever, and its end would never be seen.
        self._close_theirs()
        self._loop = loop
        loop.watch(self.descriptor, IN, self._on_event)

    def finish(self) -> None:
        """Read the rest, after the program has ended. A child of it may have the pipe and write without end."""
        for _ in range(_AT_THE_END):
            if not self._read():
                break

    def close(self) -> None:
        """Close both ends. Idempotent."""
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.forget(self.descriptor)
        self.abandon()

    def abandon(self) -> None:
        """In a forked child: only close the descriptors."""
        self._close_theirs()
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _close_theirs(self) -> None:
        theirs, self.theirs = self.theirs, -1
        if theirs >= 0:
            os.close(theirs)

    def _on_event(self, event: int, now: float) -> None:
        # The end, or an error: without this the loop would report the hang-up in each turn.
        if not self._read() and self._loop is not None:
            self._loop.forget(self.descriptor)

    def _read(self) -> bool:
        """Take what the program has written; return whether there may be more, now or later."""
        try:
            data = os.read(self.descriptor, _CHUNK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if data:
            self._feed(data)
        return bool(data)


def program_error(name: str, how: str, last: str) -> ConnectError:
    """The end of a program that was a failure.

    :param name: the program's.
    :param how: it has ended.
    :param last: the last line that it said on its standard error, if any.
    """
    return ConnectError(f"{name}: {how}" + (f" ({last})" if last else ""), reason="target_reset")
