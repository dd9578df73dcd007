"""Questions of the program to its child, and the answers of the child.

Any thread may ask. Questions are sent side by side: no thread waits for the answer that another one has asked for.
"""

from __future__ import annotations

import itertools
import select
import socket
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from ..errors import RelayError
from .wire import Channel, Message, encode, to_error

_ROOM = 2.0  # seconds for the child to take a message

# One count for all children: next() of it is one step for the interpreter, so it needs no lock.
_numbers = itertools.count(1)


class NoAnswerError(RelayError):
    """A child that was asked has ended, or does not answer."""


class Question(Future[Any]):
    """A question, and its answer once that has come."""

    number = 0
    """Of two questions to one child, the one with the higher number is answered later."""


class Questions:
    """The questions to a child.

    :param sock: the program's end of the socketpair, in blocking mode. It stays with the caller.
    :param channel: over that socket; the child's first message has come.
    :param name: of the thread that takes the answers.
    :param on_answer: called in that thread after each answer; it must not block.
    """

    def __init__(
        self, sock: socket.socket, channel: Channel, name: str, on_answer: Callable[[], object] = lambda: None
    ) -> None:
        self._socket = sock
        self._channel = channel
        self._on_answer = on_answer
        self._sending = threading.Lock()  # held while a message is sent, so that none is mixed with another one
        self._lock = threading.Lock()  # guards what follows
        self._open: dict[int, Question] = {}
        self._since: dict[int, float] = {}  # when the child was asked, also for those that nothing waits for any more
        self._is_over = False
        self._thread = threading.Thread(target=self._take_answers, name=name, daemon=True)
        self._thread.start()

    def ask(self, call: str, arguments: Sequence[object], level: int, descriptors: Sequence[int] = ()) -> Question:
        """Ask the child to call a function. Does not wait for the answer.

        :param call: the name of the function.
        :param arguments: its arguments.
        :param level: that the child logs from.
        :param descriptors: that the child gets copies of.
        :returns: the answer, or what the function raised, or :class:`NoAnswerError` if the child has ended.
        :raises TimeoutError: if the child did not take the message in time. It cannot be asked any more then.
        """
        question = Question()
        try:
            # Another thread's message does not get through either: the child reads nothing.
            if not self._sending.acquire(timeout=_ROOM):
                raise TimeoutError
            try:
                if self._begin(question):
                    message = {"number": question.number, "call": call, "arguments": arguments, "level": level}
                    self._send({**message, "descriptors": len(descriptors)}, descriptors)
            finally:
                self._sending.release()
        except TimeoutError:
            # A part of the message may be in the socket: the next one would be read as its rest.
            self.end()
            raise
        except OSError:
            self.end()  # the child is gone
        return question

    def _begin(self, question: Question) -> bool:
        """Note a question that is sent next; return whether the child can be asked."""
        with self._lock:
            if not self._is_over:
                question.number = next(_numbers)
                self._open[question.number], self._since[question.number] = question, time.monotonic()
                return True
        # Outside the lock: callbacks of a future run in this thread, and may ask again.
        question.set_exception(NoAnswerError("the child process has ended"))
        return False

    def oldest(self) -> float | None:
        """Return when the child was asked the first question that it has not answered, in monotonic seconds."""
        with self._lock:
            return next(iter(self._since.values()), None)

    def give_up(self) -> None:
        """Wait for no answer to what was asked so far: it is :class:`NoAnswerError`."""
        with self._lock:
            # _since keeps them: it says for how long the child has not answered, whatever still waits for that.
            found, self._open = self._open, {}
        for question in found.values():
            question.set_exception(NoAnswerError("the child process does not answer"))

    def end(self) -> None:
        """Ask nothing more; each open question gets a :class:`NoAnswerError`. Idempotent."""
        with self._lock:
            self._is_over = True
            self._since.clear()
        self.give_up()

    def is_own_thread(self) -> bool:
        """Return whether the current thread takes the answers."""
        return threading.current_thread() is self._thread

    def join(self) -> None:
        """Wait for the thread, which ends at the end of the socket."""
        self._thread.join()

    def after_fork(self) -> None:
        """Answer no question, in a forked child, where no other thread releases a lock."""
        self._sending, self._lock = threading.Lock(), threading.Lock()
        self._is_over = True
        self._open.clear()

    def _send(self, message: Message, descriptors: Sequence[int]) -> None:
        deadline = time.monotonic() + _ROOM
        left = memoryview(encode(message))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
        while left:
            try:
                # Not by a timeout of the socket: that would also be one of the thread that reads from it.
                sent = self._socket.sendmsg([left], rights, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._wait_for_room(deadline)
            else:
                # Descriptors go with the first byte; the kernel would pass them twice with a second part.
                left, rights = left[sent:], []

    def _wait_for_room(self, deadline: float) -> None:
        room = select.poll()
        try:
            room.register(self._socket, select.POLLOUT)
        except ValueError as error:  # another thread has closed it
            raise BrokenPipeError from error
        if not room.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError

    def _take_answers(self) -> None:
        try:
            while (answer := self._channel.receive()) is not None:
                self._take(answer)
                self._on_answer()
        except OSError:
            pass  # the child is gone
        self.end()

    def _take(self, answer: Message) -> None:
        with self._lock:
            question = self._open.pop(answer["number"], None)
            self._since.pop(answer["number"], None)
        if question is None:
            return  # nothing waits for it any more
        if "error" in answer:
            question.set_exception(to_error(answer["error"]))
        else:
            question.set_result(answer["value"])
