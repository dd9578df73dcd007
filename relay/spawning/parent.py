"""The program's side of a child process that relays; :mod:`relay.spawning.child` is the other.

======== ============================ ======== ========================================================================
state    event                        next     action
======== ============================ ======== ========================================================================
starting it does what it is asked to  up       return its first answer to the constructor
starting an error, no answer in time  over     end it, raise; the listening socket stays with the caller
up       :meth:`~ChildProcess.watch`  watched  start both threads
watched  it takes no message          watched  kill it if it has a successor; else the question has no answer
watched  a close                      closing  end its control socket, which tells it to end
watched  its events end (its death)   over     note how it has ended, close the sockets, call ``on_over``
closing  its events end               over     the same
closing  it does not end in time      closing  kill it
any      fork of the program          foreign  in the new process: close the sockets; ask and end nothing
======== ============================ ======== ========================================================================
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..addresses.options import on_secret_variable, secret_variables
from ..errors import RelayError
from ..process import Process, end, start_python
from .questions import NoAnswerError, Question, Questions
from .wire import Channel, Message, to_error, to_log_record

logger = logging.getLogger("relay")

_START = 60.0  # seconds for a child to listen: a name to listen at may have to be looked up
_START_AT_I2P = 600.0  # the same where a router builds tunnels first
_FAILED = 1.0  # seconds for a child that failed to start to end by itself and remove its files
_END = 5.0  # seconds for any other child to end before it is killed

# Everything that the child must know comes over a socket: other users can read arguments and environment.
_CHILD = """
import json, os, socket, sys
control = socket.socket(fileno=os.dup(0))
descriptors = socket.recv_fds(control, 1, 2)[1]
with control.makefile("rb") as lines:
    request = json.loads(lines.readline() or sys.exit())
sys.path[:] = request["path"]
from relay.spawning.child import main
main(control, descriptors, request)
"""

_living: set[ChildProcess] = set()


class ChildProcess:
    """A child process that answers questions, and sends log records unasked, until this program closes it or ends.

    The constructor starts it and waits until it does what it is asked to; :meth:`watch` starts two threads. One takes
    the answers. The other one takes what the child says unasked, so that a slow log handler delays no answer.

    :param request: what the child is to do; see :func:`relay.spawning.child.main`.
    :param receive: the socket to listen with, if there is one.
    :param on_begin: called with this object before the child is up, so that another thread can kill it meanwhile.
    :param is_expendable: whether the child is killed if it takes no message for two seconds, because it has a
        successor.
    :raises Exception: what the child raised; ``receive`` then stays with the caller.
    :raises RelayError: if it does not start, or this program has no Python interpreter.
    :raises OSError: if the system has no room for another process.
    """

    def __init__(
        self,
        request: Message,
        receive: socket.socket | None = None,
        *,
        on_begin: Callable[[ChildProcess], object] = lambda _: None,
        is_expendable: bool = False,
    ) -> None:
        self.is_closing = False
        """``True`` once it is asked to end."""
        self.fate = ""
        """How it has ended; empty before that."""
        self.is_foreign = False
        """``True`` in a forked child of the program: the child process stays with the program."""
        self._receive = receive
        self._is_expendable = is_expendable
        self._gate = threading.Lock()  # held while the control socket is shut down or closed
        self._thread: threading.Thread | None = None
        with contextlib.ExitStack() as undo:
            self._control, its_control = socket.socketpair()
            undo.callback(self._control.close)
            # Closed here as soon as the child has it: its end of file must reach this side when the child dies.
            with its_control:
                self._process = start_python(_CHILD, its_control.fileno())
            undo.callback(end, self._process, _FAILED)
            # Before the child is asked anything: a place that is closed meanwhile can kill it while it starts.
            on_begin(self)
            self._channel = Channel(self._control)
            self._events, its_events = socket.socketpair()
            undo.callback(self._events.close)
            with its_events:
                self.answer = self._begin(request, its_events)
                """The first answer of the child."""
            self._undo = undo.pop_all()
        self.name: str = self.answer["name"]

    def watch(
        self,
        on_message: Callable[[Message], object],
        on_answer: Callable[[], object] = lambda: None,
        on_over: Callable[[], object] = lambda: None,
    ) -> None:
        """Take what the child says from now on. If that cannot be, the child is ended.

        :param on_message: takes what it says unasked, in the thread that watches it.
        :param on_answer: called when it has answered, in the thread that takes the answers. It must not block.
        :param on_over: called after its end, in the thread that watches it.
        :raises RuntimeError: if the system has no thread left.
        """
        watching = threading.Thread(target=self._watch, args=(on_message, on_over), name=self.name, daemon=True)
        with self._undo:
            # Only now: until the first answer has come, the constructor alone reads from the channel.
            self._questions = Questions(self._control, self._channel, f"{self.name} answers", on_answer)
            # Before the thread starts: it takes the child out again at its end, which may come at once.
            _living.add(self)
            self._undo.callback(_living.discard, self)
            self._thread = watching
            watching.start()
            if secret_variables() != self._secrets:  # one was named meanwhile
                self.share_secrets()
            self._undo.pop_all()

    @property
    def pid(self) -> int:
        """The process id of the child."""
        return self._process.pid

    def ask(self, call: str, *arguments: object, descriptors: Sequence[int] = ()) -> Question:
        """Ask the child to call a function. Does not wait for the answer.

        :param call: the name of the function.
        :param arguments: its arguments.
        :param descriptors: that the child gets copies of.
        :returns: the answer, or what the function raised, or :class:`NoAnswerError`.
        """
        try:
            return self._questions.ask(call, arguments, logger.getEffectiveLevel(), descriptors)
        except TimeoutError:
            if self._is_expendable:
                # A part of the message may be in its socket, and the next one would be read as its rest: it can never
                # be asked again.
                self.kill()
            question = Question()
            question.set_exception(NoAnswerError("the child process takes no message"))
            return question

    def oldest_question(self) -> float | None:
        """Return when it was asked the first question that it has not answered, in monotonic seconds."""
        return self._questions.oldest()

    def give_up_questions(self) -> None:
        """Wait for no answer to what was asked so far."""
        self._questions.give_up()

    def share_secrets(self) -> Question:
        """Send the names of the environment variables that hold secrets. Does not wait for the answer."""
        return self.ask("secrets", sorted(secret_variables()))

    def is_own_thread(self) -> bool:
        """Return whether the current thread watches it, and so must not wait for its end."""
        if self._thread is None:
            return False
        return threading.current_thread() is self._thread or self._questions.is_own_thread()

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, and everything that it has said was taken.

        :param timeout: seconds to wait; ``None`` for ever.
        """
        if self._thread is not None and threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    @property
    def is_watched(self) -> bool:
        """``True`` while it may still say something."""
        return self._thread is not None and self._thread.is_alive()

    def close_listener(self) -> None:
        """Close the program's copy of the listening socket. Idempotent."""
        if self._receive is not None:
            self._receive.close()

    def start_close(self) -> None:
        """Let the child end as it would at the end of this program. Never blocks."""
        self.is_closing = True
        with self._gate:
            try:
                # Not closed: the thread that takes the answers reads from it until the child has closed its end.
                self._control.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it has ended

    def end(self) -> None:
        """Do the same, and wait; a child that does not end in time is killed."""
        self.start_close()
        self.join(_END)
        if self.is_watched:
            self.kill()
            self.join(_END)

    def kill(self) -> None:
        """End it, whatever it does. Does not wait."""
        self._process.kill()

    # ---------------------------------------------------------------------------------------------------------------

    def _begin(self, request: Message, its_events: socket.socket) -> Message:
        """Tell the child what to do, and wait until it does."""
        patience = _START_AT_I2P if str(request.get("listen")).lower().startswith("i2p") else _START
        patience += request.get("ready") or 0.0
        deadline = time.monotonic() + patience
        ends = [its_events] if self._receive is None else [its_events, self._receive]
        try:
            # A line of its own: the kernel passes descriptors with a byte, and the child reads JSON only after that
            # line.
            socket.send_fds(self._control, [b"\n"], [end.fileno() for end in ends])
            # What is named after this line is sent again at the end of watch(): no name falls into the gap.
            self._secrets = secret_variables()
            own = {"level": logger.getEffectiveLevel(), "program": os.getpid(), "secrets": sorted(self._secrets)}
            self._channel.send({**request, **own, "path": _path()}, deadline)
            answer = self._channel.receive(deadline)
        except TimeoutError:
            raise RelayError(f"the child process did not listen within {patience:.0f} s") from None
        # The child is gone; how it ended says more than this error.
        except (BrokenPipeError, ConnectionResetError):
            answer = None
        if answer is None:
            raise RelayError(
                f"the child process did not start: it {_describe_exit(self._process)}; see its standard error"
            )
        if "error" in answer:
            raise to_error(answer["error"])
        return answer

    def _watch(self, on_message: Callable[[Message], object], on_over: Callable[[], object]) -> None:
        """Take what the child says unasked, until its end."""
        channel = Channel(self._events)
        try:
            while (message := channel.receive()) is not None:
                if "log" in message:
                    _log(message["log"])
                else:
                    on_message(message)
        finally:
            self._record_exit()
            on_over()

    def _record_exit(self) -> None:
        # The event socket has ended, so the child is about to end: this does not wait for long.
        fate = _describe_exit(self._process)
        with self._gate, contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)  # another process may have the child's end
        # The other thread reads from the socket until here. Closed before, its number could be another socket's.
        self._questions.join()
        with self._gate:
            self._control.close()
        self._events.close()
        self.close_listener()
        _living.discard(self)
        # Last: those who find it set find everything released.
        self.fate = fate

    def _forget(self) -> None:
        """Reset the object in a forked child: the watching thread does not run, and no other thread releases a lock."""
        self._questions.after_fork()
        self._gate = threading.Lock()
        self.is_closing = self.is_foreign = True
        self._process.returncode = 0  # not a child of this process
        self._control.close()
        self._events.close()
        self.close_listener()


def share_secrets() -> list[Question]:
    """Send the names of the environment variables that hold secrets to all children: they start programs, too.

    :returns: the answers. A child that takes no message is stuck, and starts no program meanwhile.
    """
    # A copy: children come and go in other threads.
    return [child.share_secrets() for child in list(_living)]


def _path() -> list[str]:
    """The module search path of this program, with this package on it."""
    path = [entry for entry in sys.path if isinstance(entry, str)]
    home = str(Path(__file__).absolute().parents[2])
    # At the end: a package of the program must not be hidden by a neighbour of this one.
    return path if home in path else [*path, home]


def _log(fields: Message) -> None:
    record = to_log_record(fields)
    its_logger = logging.getLogger(record.name)
    try:
        if its_logger.isEnabledFor(record.levelno):
            its_logger.handle(record)
    except Exception:  # noqa: BLE001 - a user's filter or handler; it must not end the watch
        threading.excepthook(threading.ExceptHookArgs([*sys.exc_info(), threading.current_thread()]))


def _describe_exit(process: Process) -> str:
    """Wait for the end of a process, and describe it."""
    status = process.wait()
    return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"


def _close_all() -> None:
    """At the interpreter's end, while there still is one for the log records."""
    living = list(_living)
    for child in living:  # all of them first, so that they end side by side
        child.start_close()
    for child in living:
        child.end()


def _forget_all() -> None:
    while _living:
        _living.pop()._forget()


on_secret_variable.append(share_secrets)
atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_all)
