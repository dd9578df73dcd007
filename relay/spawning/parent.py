"""The program's side of a child process that relays; :mod:`relay.spawning.child` is the other."""

from __future__ import annotations

import atexit
import concurrent.futures
import contextlib
import logging
import os
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from ..addresses.options import on_secret_variable, secret_variables
from ..errors import RelayError
from .questions import NoAnswerError, Question, Questions
from .wire import Channel, Message, to_error, to_log_record

if TYPE_CHECKING:
    from ..process import Process

__all__ = ["ChildProcess", "share_secrets"]

logger = logging.getLogger("relay")

_START = 60.0  # seconds for a child to listen: a name to listen at may have to be looked up
_START_AT_I2P = 600.0  # the same where a router builds tunnels first
_ANSWER = 10.0  # seconds for any other answer
_END = 5.0  # seconds for a child to end before it is killed

_living: set[ChildProcess] = set()


class ChildProcess:
    """A child process that answers questions, and sends log records unasked, until this program closes it or ends.

    :param process: the child, which has the other end of ``control`` as its standard input.
    :param control: one end of a socketpair.
    :param receive: the socket to listen with, if there is one.
    :param request: what the child is to do; see :func:`relay.spawning.child.main`.
    :raises Exception: what the child raised, or :class:`RelayError` if it does not start; the arguments then stay with
        the caller.
    """

    def __init__(
        self, process: Process, control: socket.socket, receive: socket.socket | None, request: Message
    ) -> None:
        self._process = process
        self._control = control
        self._channel = Channel(control)
        self._receive = receive
        self._gate = threading.Lock()  # held while the control socket is shut down or closed
        self._closing = False
        self._lost = ""  # why there are no answers
        self._events, its_events = socket.socketpair()
        try:
            with its_events:
                answer = self._begin(request, its_events)
            self.name: str = answer["name"]
            self._begun(answer)
            self._questions = Questions(control, self._channel, f"{self.name} answers", self._on_answer)
            self._thread = threading.Thread(target=self._watch, name=self.name, daemon=True)
            _living.add(self)
            self._thread.start()
            if secret_variables() != self._secrets:  # one was named meanwhile
                self._share_secrets()
        except BaseException:
            _living.discard(self)
            self._events.close()
            raise

    @property
    def pid(self) -> int:
        """The process id of the child."""
        return self._process.pid

    # -- for subclasses ---------------------------------------------------------------------------------------------

    def _begun(self, answer: Message) -> None:
        """Take the first answer of the child."""

    def _on_message(self, message: Message) -> None:
        """Take what the child says unasked, in the thread that watches it."""

    def _on_answer(self) -> None:
        """Take note that the child has answered, in the thread that takes the answers. Must not block."""

    def _on_over(self, fate: str) -> None:
        """Take the end of the child, in the thread that watches it; set ``_lost`` if it was not asked to end.

        :param fate: how it ended.
        """

    def _read_final_state(self, call: str) -> Any:
        """Return the answer to a question after the end of the child."""
        if threading.current_thread() is not self._thread:
            self._thread.join(_END)
        raise RelayError(f"{self.name}: {self._lost}")

    # ---------------------------------------------------------------------------------------------------------------

    def _begin(self, request: Message, its_events: socket.socket) -> Message:
        """Tell the child what to do, and wait until it does."""
        patience = _START_AT_I2P if str(request.get("listen")).lower().startswith("i2p") else _START
        patience += request.get("ready") or 0.0
        deadline = time.monotonic() + patience
        ends = [its_events] if self._receive is None else [its_events, self._receive]
        try:
            socket.send_fds(self._control, [b"\n"], [end.fileno() for end in ends])
            self._secrets = secret_variables()
            own = {"level": logger.getEffectiveLevel(), "program": os.getpid(), "secrets": sorted(self._secrets)}
            request = {**request, **own}
            self._channel.send(request, deadline)
            answer = self._channel.receive(deadline)
        except TimeoutError:
            raise RelayError(f"the child process did not listen within {patience:.0f} s") from None
        except (BrokenPipeError, ConnectionResetError):
            answer = None
        if answer is None:
            raise RelayError(
                f"the child process did not start: it {_describe_exit(self._process)}; see its standard error"
            )
        if "error" in answer:
            raise to_error(answer["error"])
        return answer

    def _ask(self, call: str, *arguments: object) -> Any:
        """Call a function of the child.

        :param call: its name.
        :param arguments: its arguments.
        :raises RelayError: if the child does not answer in time, or has ended.
        :raises Exception: what the function raised.
        """
        try:
            question = self._questions.ask(call, arguments, logger.getEffectiveLevel())
            is_answered = concurrent.futures.wait([question], _ANSWER).done
        except TimeoutError:
            is_answered = set()
        if not is_answered:
            raise RelayError(f"{self.name}: the child process {self.pid} did not answer within {_ANSWER:.0f} s")
        try:
            return question.result()
        except NoAnswerError:
            return self._read_final_state(call)

    def _share_secrets(self) -> Question:
        """Send the names of the variables that hold secrets. Does not wait for the answer.

        :raises TimeoutError: if the child takes no message.
        """
        return self._questions.ask("secrets", [sorted(secret_variables())], logger.getEffectiveLevel())

    def _watch(self) -> None:
        """Take what the child says unasked, until its end."""
        channel = Channel(self._events)
        try:
            while (message := channel.receive()) is not None:
                if "log" in message:
                    _log(message["log"])
                else:
                    self._on_message(message)
        finally:
            self._record_exit()

    def _record_exit(self) -> None:
        fate = _describe_exit(self._process)
        with self._gate, contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)  # another process may have the child's end
        self._questions.join()
        with self._gate:
            self._control.close()
        self._events.close()
        if self._receive is not None:
            self._receive.close()
        _living.discard(self)
        self._on_over(fate)

    def _close_control(self) -> None:
        """Let the child end as it would at the end of this program. Never blocks."""
        self._closing = True
        with self._gate:
            try:
                self._control.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it has ended

    def _end(self) -> None:
        self._close_control()
        self._thread.join(_END)
        if self._thread.is_alive():
            self._process.kill()
            self._thread.join(_END)

    def _forget(self) -> None:
        """Reset the object in a forked child: the watching thread does not run, and no other thread releases a lock."""
        self._questions.after_fork()
        self._gate = threading.Lock()
        self._closing = True
        self._lost = "it stays with the process that spawned it"
        self._process.returncode = 0  # not a child of this process
        self._control.close()
        self._events.close()
        if self._receive is not None:
            self._receive.close()


def share_secrets() -> list[Question]:
    """Send the names of the environment variables that hold secrets to all children: they start programs, too.

    :returns: the answers of those that take messages.
    """
    asked = []
    for child in list(_living):
        with contextlib.suppress(TimeoutError):  # it is stuck, and starts no program meanwhile
            asked.append(child._share_secrets())
    return asked


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
    for child in living:
        child._close_control()
    for child in living:
        child._end()


def _forget_all() -> None:
    while _living:
        _living.pop()._forget()


on_secret_variable.append(share_secrets)
atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_all)
