"""The secrets of a login: the password and the answers to questions, from what the user has configured."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from ....errors import CarrierError
from ...credentials import password_of, wants_prompt
from ..connection import Settings

_Answer = TypeVar("_Answer")

_CHECK_INTERVAL = 0.1  # seconds; paramiko reports the end of the connection in no other way


class Secrets:
    """The secrets of one login. Each call of the user's code has its own thread.

    :param settings: the user and the credentials.
    :param is_active: returns whether the connection is up.
    """

    def __init__(self, settings: Settings, is_active: Callable[[], bool]) -> None:
        self._settings = settings
        self._is_active = is_active
        self._text: str | None = None
        self.has_password = settings.server.has_password
        self.asks = wants_prompt(settings.server.password)
        """Whether the password is a callable that takes the question."""

    def password(self) -> str:
        """Return the password; a callable without parameters is called once.

        :raises CarrierError: if the connection was lost meanwhile.
        """
        if self._text is None:
            self._text = self._ask(f"{self._settings.user}@{self._settings.hostname}'s password: ")
        return self._text

    def answer(self, question: str) -> str:
        """Return the answer to a question of the server.

        :raises CarrierError: if the connection was lost meanwhile.
        """
        return self._ask(question) if self.asks else self.password()

    def _ask(self, question: str) -> str:
        return self.patiently(partial(password_of, self._settings.server, question)) or ""

    def patiently(self, ask: Callable[[], _Answer]) -> _Answer:
        """Call a function that may block (the caller's code, an agent); stop waiting when the connection is lost.

        :raises CarrierError: if the connection was lost meanwhile, or the system has no thread left.
        """
        answered: list[_Answer | BaseException] = []
        done = threading.Event()

        def work() -> None:
            try:
                answered.append(ask())
            except BaseException as error:  # noqa: BLE001 - it is raised again below
                answered.append(error)
            done.set()

        try:
            # A daemon: a question that stays unanswered must not hold up the exit.
            threading.Thread(target=work, name="relay ssh secret", daemon=True).start()
        except RuntimeError as error:
            raise CarrierError(f"{self._settings.name}: {error}") from error
        while not done.wait(_CHECK_INTERVAL):
            if not self._is_active():
                raise CarrierError(f"{self._settings.name}: the connection was lost while relay waited for a secret")
        (answer,) = answered
        if isinstance(answer, BaseException):
            raise answer
        return answer
