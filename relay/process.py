"""Child processes: :func:`start` for any program, and :func:`spawn` for a tunnel in an interpreter of its own.

Every child ends when this program does, also when that is killed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Any

from .acceptor import check_listener
from .childtunnel import ChildTunnel
from .errors import RelayError
from .limits import check_count, check_time

__all__ = ["DEVNULL", "PIPE", "Process", "spawn", "start"]

DEVNULL = subprocess.DEVNULL
PIPE = subprocess.PIPE
Process = subprocess.Popen[bytes]

_Request = tuple["Future[Process]", Sequence[str], Mapping[str, Any]]

# Becomes the program that is wanted. Were it done between fork and exec (`preexec_fn`), a lock that another thread of
# this program holds at that moment would never be let go. 1 is PR_SET_PDEATHSIG, 9 SIGKILL, 2 SIG_SETMASK.
_GUARD = """
import ctypes, os, sys, _signal
ctypes.CDLL(None).prctl(1, 9)
_signal.pthread_sigmask(2, [])
if os.getppid() == int(sys.argv[1]):
    try:
        os.execv(sys.argv[2], sys.argv[3:])
    except OSError as error:
        sys.exit(f"{sys.argv[2]}: {error.strerror}")
"""

# Everything that the child must know comes over a socket: arguments and environment are there for all to read.
_CHILD = """
import json, os, socket, sys
control = socket.socket(fileno=os.dup(0))
descriptors = socket.recv_fds(control, 1, 2)[1]
with control.makefile("rb") as lines:
    request = json.loads(lines.readline() or sys.exit())
sys.path[:] = request["path"]
from relay.child import main
main(control, descriptors, request)
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
        self._requests: queue.SimpleQueue[_Request] = queue.SimpleQueue()

    def popen(self, argv: Sequence[str], **options: Any) -> Process:
        """``subprocess.Popen``, in the spawner's thread and in a session of its own."""
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, args=(self._requests,), name="relay-spawner", daemon=True)
                thread.start()
                self._thread = thread
        future: Future[Process] = Future()
        self._requests.put((future, argv, {**options, "start_new_session": True}))
        return future.result()

    @staticmethod
    def _run(requests: queue.SimpleQueue[_Request]) -> None:
        while True:
            _fulfil(*requests.get())


def _fulfil(future: Future[Process], argv: Sequence[str], options: Mapping[str, Any]) -> None:
    # Not in the loop above, where the child and its error would be held until the next one is made.
    try:
        future.set_result(subprocess.Popen(argv, **options))
    except BaseException as error:  # noqa: BLE001 - it belongs to the caller
        future.set_exception(error)


_spawner = _Spawner()
os.register_at_fork(after_in_child=_spawner.reset)


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
    :param stdout: likewise.
    :param stderr: likewise.
    :param pass_fds: further descriptors, which keep their numbers.
    :param env: the whole environment; ``None`` passes on the program's own.
    :returns: the process. Its owner waits for it.
    :raises FileNotFoundError: if there is no such program.
    :raises RelayError: if this program has no Python interpreter to start it with.
    :raises OSError: if the system has no room for another process. A file that turns out not to be a program ends with
        status 1 and a line on its standard error.

    Source: :class:`subprocess.Popen`; ``PR_SET_PDEATHSIG`` in prctl(2).
    """
    path = shutil.which(argv[0])
    if path is None:
        raise FileNotFoundError(errno.ENOENT, "no such program", argv[0])
    guard = [*_python(), "-c", _GUARD, str(os.getpid()), path] if sys.platform == "linux" else []
    return _spawner.popen(
        [*guard, *argv],
        executable=None if guard else path,
        stdin=stdin,
        stdout=stdout,
        stderr=_stderr() if stderr is None else stderr,
        pass_fds=pass_fds,
        env=env,
    )


def spawn(
    listen: str | socket.socket,
    target: str,
    *,
    via: Sequence[str] = (),
    nconnect: int = -1,
    timeout: float | None = None,
    connect_timeout: float | None = 30.0,
    idle_timeout: float | None = None,
    linger: float | None = 60.0,
    name: str | None = None,
) -> ChildTunnel:
    """Relay in a child process: a :class:`~relay.Tunnel` that the program's own threads cannot slow down.

    Python runs one thread at a time, and a tunnel's thread beside a busy one waits for its turn with every message.
    Here the tunnel has an interpreter of its own. The child ends with the program, also when that is killed. Its log
    records come out of this program's own loggers; a level of ``relay`` that is set later reaches it with the next call
    of :meth:`~ChildTunnel.stats` or any other member that asks it.

    :param listen: an address as for :func:`relay.listen`, or a bound, listening :class:`socket.socket`, which belongs
        to the result from then on.
    :param target: an address as for :func:`relay.target`.
    :param via: the hops on the way, the nearest first.
    :param nconnect: the most connections at one time, connecting ones included; −1 for no limit.
    :param timeout: seconds that a connection may last, whatever it does; ``None`` for ever.
    :param connect_timeout: seconds to get the outgoing stream; ``None`` for ever.
    :param idle_timeout: seconds without a byte moved in either direction; ``None`` for ever.
    :param linger: seconds without a byte moved in the other direction after one has ended; ``None`` for ever.
    :param name: for the log and ``repr``.
    :returns: the tunnel, once it listens.
    :raises AddressError: if an address cannot be understood.
    :raises ValueError: if a limit is out of its range, or the socket does not listen.
    :raises TypeError: if an argument is of the wrong type.
    :raises OSError: if the address cannot be had.
    :raises RelayError: if the child cannot be started.

    Source: the project's API, section 1.
    """
    receive = _check_listen(listen)
    if not isinstance(target, str):
        raise TypeError(f"target: an address is wanted, not {type(target).__name__}; a factory needs a Tunnel")
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name: text is wanted, not {type(name).__name__}")
    options = {
        "nconnect": check_count(nconnect),
        "timeout": check_time("timeout", timeout),
        "connect_timeout": check_time("connect_timeout", connect_timeout),
        "idle_timeout": check_time("idle_timeout", idle_timeout),
        "linger": check_time("linger", linger, zero=True),
        "name": name,
    }
    request = {"listen": None if receive else listen, "target": target, "via": via, "options": options, "path": _path()}
    with contextlib.ExitStack() as undo:
        ours, theirs = socket.socketpair()
        undo.callback(ours.close)
        with theirs:
            process = _spawner.popen(
                [*_python(), "-c", _CHILD], stdin=theirs.fileno(), stdout=DEVNULL, stderr=_stderr()
            )
        undo.callback(process.wait)
        undo.callback(process.kill)
        child = ChildTunnel(process, ours, receive, request)
        undo.pop_all()
    return child


def _check_listen(listen: Any) -> socket.socket | None:
    """The socket to hand to the child, if ``listen`` is one."""
    if isinstance(listen, socket.socket):
        check_listener(listen, "listen")
        return listen
    if not isinstance(listen, str):
        raise TypeError(f"listen: an address or a listening socket is wanted, not {type(listen).__name__}")
    return None


def _python() -> list[str]:
    """How to start this interpreter anew, with no module from the working directory.

    Without ``site`` it is there in a third of the time; a child takes over this program's own path instead.
    """
    if not sys.executable or getattr(sys, "frozen", False):
        raise RelayError("sys.executable is no Python interpreter, so no child can be started; use a Tunnel instead")
    return [sys.executable, "-P", "-S", *(["-E"] if sys.flags.ignore_environment else [])]


def _path() -> list[str]:
    """Where this program finds its modules; and this package for certain."""
    path = [entry for entry in sys.path if isinstance(entry, str)]
    home = str(Path(__file__).absolute().parent.parent)
    return path if home in path else [*path, home]


def _stderr() -> int | None:
    """The program's own, if it has one; a child without would give the number to a connection."""
    try:
        own = os.get_inheritable(2)
    except OSError:
        own = False  # it is closed
    # One that is not inheritable is something else, opened by the program after it had closed its standard error.
    return None if own else DEVNULL
