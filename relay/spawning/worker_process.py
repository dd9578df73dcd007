"""One process of a worker, as the program sees it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any, Protocol

from ..addresses.options import secret_variables
from ..process import Process
from .parent import ChildProcess
from .questions import NoAnswerError, Question
from .wire import Message

__all__ = ["ProcessObserver", "WorkerProcess"]

logger = logging.getLogger("relay")


class ProcessObserver(Protocol):
    """The place of a worker, as its process sees it."""

    def on_begin(self, process: WorkerProcess) -> None:
        """Take note of a process that starts, in the thread that starts it."""

    def on_message(self, message: Message) -> None:
        """Take what the process says unasked."""

    def on_answer(self) -> None:
        """Take note that the process has answered. Must not block."""

    def on_over(self) -> None:
        """Take note of the end of the process. Must not block."""


class WorkerProcess(ChildProcess):
    """One process of a worker.

    :param observer: takes what happens to it.
    :param process: and the others: as for :class:`ChildProcess`.
    :raises Exception: as for :class:`ChildProcess`.
    """

    def __init__(self, observer: ProcessObserver, process: Process, *arguments: Any) -> None:
        self._observer = observer
        self._process = process
        self.fate = ""
        """How it has ended; empty before that."""
        self._is_up = False
        observer.on_begin(self)
        super().__init__(process, *arguments)
        self._is_up = True

    def ask(self, call: str, *arguments: object, descriptors: Sequence[int] = ()) -> Question:
        """Ask the worker to call a function. Does not wait for the answer.

        A worker that takes no message for two seconds is killed.

        :param call: the name of the function.
        :param arguments: its arguments.
        :param descriptors: that the worker gets copies of.
        :returns: the answer, or what the function raised, or :class:`NoAnswerError`.
        """
        try:
            return self._questions.ask(call, arguments, logger.getEffectiveLevel(), descriptors)
        except TimeoutError:
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

    def is_own_thread(self) -> bool:
        """Return whether the current thread watches it, and so must not wait for its end."""
        return self._is_up and (threading.current_thread() is self._thread or self._questions.is_own_thread())

    def join(self) -> None:
        """Wait until it has ended."""
        self._thread.join()

    def start_close(self) -> None:
        """Let it end. Does not wait."""
        self._close_control()

    def kill(self) -> None:
        """End it, whatever it does. Does not wait."""
        self._process.kill()

    def _share_secrets(self) -> Question:
        return self.ask("secrets", sorted(secret_variables()))

    def _on_message(self, message: Message) -> None:
        self._observer.on_message(message)

    def _on_answer(self) -> None:
        self._observer.on_answer()

    def _on_over(self, fate: str) -> None:
        self.fate = fate
        self._observer.on_over()
