"""The program's side of a child process that relays; :mod:`relay.spawning.child` is the other."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..addresses.options import on_secret_variable, secret_variables
from ..errors import RelayError
from ..process import Process, end, start_python
from .questions import NoAnswerError, Question, Questions
from .wire import Channel, Message, to_log_record

if TYPE_CHECKING:
    from .worker_slot import WorkerSlot

logger = logging.getLogger("relay")

_START = 60.0  # seconds for a child to be up
_FAILED = 1.0  # seconds for a child that failed to start to end by itself

# Everything that the child must know comes over a socket: other users can read arguments and environment.
_CHILD = """
import json, os, socket, sys
control = socket.socket(fileno=os.dup(0))
descriptors = socket.recv_fds(control, 1, 1)[1]
with control.makefile("rb") as lines:
    request = json.loads(lines.readline() or sys.exit())
sys.path[:] = request["path"]
from relay.spawning.child import main
main(control, descriptors, request)
"""

NOT_STARTED = "the child process did not start: it {}; see its standard error"

_living: set[ChildProcess] = set()


class ChildProcess:
    """A child process that answers questions, and sends messages unasked, until this program closes it or it ends.

    The constructor starts it and waits until it is up. Two threads watch it from then on. One takes the answers. The
    other one takes what the child says unasked, so that a slow log handler delays no answer.

    :param slot: its place. It takes what happens to the process: ``on_begin`` before it is up, so that another thread
        can kill it meanwhile; ``on_message`` and ``on_over`` in the thread that watches it; ``on_answer`` in the other.
    :param is_single: whether it has one tunnel, and no successor. It ends with that tunnel, and on a signal.
    :raises RelayError: if it does not start, or this program has no Python interpreter.
    :raises OSError: if the system has no room for another process.
    :raises RuntimeError: if the system has no thread left.
    """

    def __init__(self, slot: WorkerSlot, *, is_single: bool = False) -> None:
        self.fate = ""
        """How it has ended; empty before that."""
        self._slot = slot
        self._is_single = is_single
        self._gate = threading.Lock()  # held while the control socket is shut down or closed
        self._thread: threading.Thread | None = None  # while it starts
        with contextlib.ExitStack() as undo:
            self._control, its_control = socket.socketpair()
            undo.callback(self._control.close)
            # Closed here as soon as the child has it: its end of file must reach this side when the child dies.
            with its_control:
                self._process = start_python(_CHILD, its_control.fileno())
            undo.callback(end, self._process, _FAILED)
            # Before the child is asked anything: a place that is closed meanwhile can kill it while it starts.
            slot.on_begin(self)
            channel = Channel(self._control)
            self._events, its_events = socket.socketpair()
            undo.callback(self._events.close)
            with its_events:
                self.name = self._begin(channel, its_events)
            # Only now: until the first answer has come, the constructor alone reads from the channel.
            self._questions = Questions(self._control, channel, f"{self.name} answers", slot.on_answer)
            # Before the thread starts: it takes the child out again at its end, which may come at once.
            _living.add(self)
            undo.callback(_living.discard, self)
            self._thread = threading.Thread(target=self._watch, name=self.name, daemon=True)
            self._thread.start()
            if secret_variables() != self._secrets:  # one was named meanwhile
                self.share_secrets()
            undo.pop_all()

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
            if not self._is_single:
                # A part of the message may be in its socket, and the next one would be read as its rest: it can never
                # be asked again. Its successor can.
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

    def join(self) -> None:
        """Wait until it has ended, and everything that it has said was taken."""
        assert self._thread is not None
        self._thread.join()

    def start_close(self) -> None:
        """Let the child end as it would at the end of this program. Never blocks."""
        with self._gate:
            try:
                # Not closed: the thread that takes the answers reads from it until the child has closed its end.
                self._control.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it has ended

    def kill(self) -> None:
        """End it, whatever it does. Does not wait."""
        self._process.kill()

    # ---------------------------------------------------------------------------------------------------------------

    def _begin(self, channel: Channel, its_events: socket.socket) -> str:
        """Tell the child what it needs; return its name once it is up."""
        deadline = time.monotonic() + _START
        # What is named after this line is sent again at the end of the constructor: no name falls into the gap.
        self._secrets = secret_variables()
        request = {"level": logger.getEffectiveLevel(), "program": os.getpid(), "secrets": sorted(self._secrets)}
        answer = None
        try:
            # A line of its own: the kernel passes descriptors with a byte, and the child reads JSON only after that
            # line.
            socket.send_fds(self._control, [b"\n"], [its_events.fileno()])
            channel.send({**request, "is_single": self._is_single, "path": _path()}, deadline)
            answer = channel.receive(deadline)
        except TimeoutError:
            raise RelayError(f"the child process did not listen within {_START:.0f} s") from None
        # The child is gone; how it ended says more than this error.
        except (BrokenPipeError, ConnectionResetError):
            pass
        if answer is None:
            raise RelayError(NOT_STARTED.format(_describe_exit(self._process)))
        name: str = answer["name"]
        return name

    def _watch(self) -> None:
        """Take what the child says unasked, until its end."""
        channel = Channel(self._events)
        try:
            while (message := channel.receive()) is not None:
                if "log" in message:
                    _log(message["log"])
                else:
                    self._slot.on_message(message)
        finally:
            self._record_exit()
            self._slot.on_over()

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
        _living.discard(self)
        # Last: those who find it set find everything released.
        self.fate = fate

    def _forget(self) -> None:
        """Reset the object in a forked child: the watching thread does not run, and no other thread releases a lock."""
        self._questions.after_fork()
        self._gate = threading.Lock()
        self._process.returncode = 0  # not a child of this process
        self._control.close()
        self._events.close()


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


def _forget_all() -> None:
    while _living:
        _living.pop()._forget()


on_secret_variable.append(share_secrets)
os.register_at_fork(after_in_child=_forget_all)
