"""The command ``relay`` as forks of a process that has imported it: a start takes 20 ms of CPU and not 200.

A fork is a process of its own with its own descriptors, environment, working directory, session and exit status. It
differs from the installed command in its parent, in ``/proc/PID/cmdline`` and in that its modules are there already.
Tests of these differences, and those of other Python settings or another locale, start the installed command.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

RELAY = str(Path(sys.executable).parent / "relay")
_LARGEST = 1 << 20  # bytes of a request
_PLAIN = {"stdin", "stdout", "stderr", "env", "cwd", "text", "start_new_session"}  # options that a fork understands
_AT_START = ("PYTHON", "COVERAGE", "LANG", "LC_", "TZ")  # variables that an interpreter reads only when it starts


def settings(environment: Any) -> dict[str, str]:
    """The variables that have an effect only on an interpreter that starts."""
    return {name: value for name, value in environment.items() if name.startswith(_AT_START)}


class _Server:
    """The process that forks, as the tests see it; it ends when they do."""

    def __init__(self) -> None:
        environment = {**os.environ}
        environment.pop("PYTHONUNBUFFERED", None)
        self.settings = settings(environment)
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.control, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LARGEST)
        with theirs:
            argv = [sys.executable, __file__, str(theirs.fileno())]
            pipes: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
            self.process = subprocess.Popen(argv, pass_fds=[theirs.fileno()], env=environment, **pipes)

    def stop(self) -> None:
        """End it, and wait for that; what it has forked goes on."""
        self.control.close()
        self.process.wait(60)


_server: _Server | None = None


def warm() -> None:
    """Start the process that forks, where the system has what it takes. Before the first test, as it outlives all."""
    global _server
    if _server is None and hasattr(os, "pidfd_open") and "COVERAGE_PROCESS_START" not in os.environ:
        _server = _Server()


def cool() -> None:
    """End it."""
    global _server
    if _server is not None:
        _server.stop()
        _server = None


def popen(arguments: list[str], **options: Any) -> subprocess.Popen[Any]:
    """``subprocess.Popen`` of the command with these arguments, as a fork where that makes no difference."""
    environment = options.get("env")
    same = _server is not None and settings(os.environ if environment is None else environment) == _server.settings
    if same and options.keys() <= _PLAIN:
        return Fork([RELAY, *arguments], **options)
    return subprocess.Popen([RELAY, *arguments], **options)


class Fork(subprocess.Popen[Any]):
    """A process that another one has forked for us and waits for; it tells how that ends."""

    _channel: socket.socket | None = None

    def _execute_child(self, args: Any, *others: Any) -> None:
        names = self._order()
        given = dict(zip(names, others, strict=True))
        assert _server is not None
        environment = os.environ if given["env"] is None else given["env"]
        request = {
            "argv": list(map(os.fsdecode, args)),
            "env": {os.fsdecode(name): os.fsdecode(value) for name, value in environment.items()},
            "cwd": os.fsdecode(given["cwd"] or os.getcwd()),
            "session": given["start_new_session"],
            "hang_up": signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN,  # inherited, and tests change it
        }
        pipes = given["p2cread"], given["c2pwrite"], given["errwrite"]
        standard = [number if number >= 0 else usual for usual, number in enumerate(pipes)]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # surrogates stand for bytes that are no UTF-8, and JSON keeps them
            socket.send_fds(_server.control, [json.dumps(request).encode()], [*standard, theirs.fileno()])
        self._channel = ours
        self.pid = int(ours.recv(100))
        self._child_created = True
        ends = (given[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite"))
        self._close_pipe_fds(*ends)  # type: ignore[attr-defined]

    @staticmethod
    def _order() -> list[str]:
        """The names of the arguments after ``args``; versions of Python differ in them."""
        code = subprocess.Popen._execute_child.__code__  # type: ignore[attr-defined]
        return list(code.co_varnames[2 : code.co_argcount])

    def _try_wait(self, flags: int) -> tuple[int, int]:
        if self._channel is None or (flags & os.WNOHANG and not select.select([self._channel], [], [], 0)[0]):
            return 0, 0
        status = self._channel.recv(100)
        self._channel.close()
        assert status, "the process that forks has died"
        return self.pid, int(status)

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None and self._waitpid_lock.acquire(False):  # type: ignore[attr-defined]
            try:
                pid, status = (0, 0) if self.returncode is not None else self._try_wait(os.WNOHANG)
                if pid:
                    self._handle_exitstatus(status)  # type: ignore[attr-defined]
            finally:
                self._waitpid_lock.release()  # type: ignore[attr-defined]
        return self.returncode


# The process that forks.


def _serve(control: socket.socket) -> None:
    """Fork for each request and tell how each fork ends, until no test can ask any more. Returns in each fork."""
    poll = select.poll()
    poll.register(control, select.POLLIN)
    running: dict[int, tuple[int, socket.socket]] = {}
    while True:
        for number, _ in poll.poll():
            if number == control.fileno():
                data, descriptors, *_rest = socket.recv_fds(control, _LARGEST, 4)
                if not data:
                    os._exit(0)
                channel = socket.socket(fileno=descriptors.pop())
                pid = os.fork()
                if pid == 0:
                    for ours in (control, channel, *(other for _, other in running.values())):
                        ours.detach()  # its number is closed with all others
                    _become(json.loads(data), descriptors)
                    return
                for descriptor in descriptors:
                    os.close(descriptor)
                file = os.pidfd_open(pid)
                running[file] = pid, channel
                poll.register(file, select.POLLIN)
                channel.send(b"%d" % pid)
            else:
                pid, channel = running.pop(number)
                poll.unregister(number)
                os.close(number)
                with channel, contextlib.suppress(OSError):  # the test does not wait for it
                    channel.send(b"%d" % os.waitpid(pid, 0)[1])


def _become(request: Any, descriptors: list[int]) -> None:
    """Make this fork what a new process would be."""
    if request["session"]:
        os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_DFL if request["hang_up"] else signal.SIG_IGN)
    for number, descriptor in enumerate(descriptors):  # none of which is 0, 1 or 2: those are open
        os.dup2(descriptor, number)
    os.closerange(3, max(map(int, os.listdir("/proc/self/fd"))) + 1)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv[:] = request["argv"]
    # as create_stdio() of CPython's Python/pylifecycle.c has them
    encoding, buffer = sys.stdout.encoding, 1 if os.isatty(1) else -1
    sys.stdin = sys.__stdin__ = os.fdopen(0, "r", -1, encoding, sys.stdin.errors, closefd=False)  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", buffer, encoding, sys.stdout.errors, closefd=False)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", 1, encoding, "backslashreplace", closefd=False)  # type: ignore[misc]


def _import_all() -> None:
    import gc
    import pkgutil
    from importlib import import_module

    from relay.transports.ssh.deferred import defer_invoke

    defer_invoke()
    import relay

    for module in pkgutil.walk_packages(relay.__path__, "relay."):
        if not module.name.endswith(".__main__"):
            import_module(module.name)
    gc.collect()
    gc.freeze()  # a fork does not look at, and so does not copy, what was there before it


def _main() -> NoReturn:
    control = socket.socket(fileno=int(sys.argv[1]))
    sys.path[0] = os.path.dirname(RELAY)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)  # a shell ignores it in what it starts in the background
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, which end this process
    _import_all()
    _serve(control)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from relay.cli import main

    status = main()
    # As sys.exit() does, but nothing is freed: that would copy, page after page, what it shares with the other process.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):  # then the interpreter reports it
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    _main()
