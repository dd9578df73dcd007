"""``relay.transports.ssh.paramiko.secrets``: who is asked, how often, and until when."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import wait_until

from relay import CarrierError
from relay.addresses.ssh import SSHServer
from relay.transports.ssh.paramiko.secrets import Secrets


def secrets(password: Any, is_active: Any = lambda: True) -> Secrets:
    settings = SimpleNamespace(
        server=SSHServer("host", "me", 22, password=password), user="me", hostname="host", name="ssh://me@host"
    )
    return Secrets(settings, is_active)  # type: ignore[arg-type]


def test_a_password_answers_every_question() -> None:
    made = secrets("word")
    assert (made.has_password, made.asks, made.password(), made.answer("code? ")) == (True, False, "word", "word")


def test_a_callable_without_parameters_is_called_once() -> None:
    calls: list[None] = []
    made = secrets(lambda: calls.append(None) or "word")
    assert (made.answer("code? "), made.password(), len(calls)) == ("word", "word", 1)


def test_a_callable_with_a_parameter_gets_each_question() -> None:
    made = secrets(lambda question: question.upper())
    assert made.asks
    assert [made.answer("code? "), made.answer("pin? ")] == ["CODE? ", "PIN? "]
    assert made.password() == "ME@HOST'S PASSWORD: "


def test_what_the_callable_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        secrets(None).patiently(lambda: 1 // 0)


def test_a_lost_connection_ends_the_wait() -> None:
    answered = threading.Event()
    before = threading.active_count()
    with pytest.raises(CarrierError, match="^ssh://me@host: the connection was lost while relay waited for a secret$"):
        secrets(None, lambda: False).patiently(answered.wait)
    answered.set()
    wait_until(lambda: threading.active_count() == before)


def test_without_threads_the_login_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(CarrierError, match="can't start new thread"):
        secrets("word").password()
