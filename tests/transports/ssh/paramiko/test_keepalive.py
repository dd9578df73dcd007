"""``relay.transports.ssh.paramiko.keepalive``: when a server counts as dead; real ones are in ``test_backend``."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from relay.eventloop.loop import Loop
from relay.transports.ssh.paramiko.keepalive import Keepalive

EVERY = 1000.0  # seconds; no timer of a test is due by itself


class Rig:
    """A connection without a server: its requests wait until the test answers them."""

    def __init__(self, interval: float | None) -> None:
        self.loop = Loop()
        self.wire = SimpleNamespace(heard=time.monotonic(), stream=SimpleNamespace(socket=None))
        self.ended: OSError | None = None
        self.asked: list[Any] = []
        self.silent: list[OSError] = []
        mux: Any = self
        self.keepalive = Keepalive(mux, mux, interval, self.silent.append)

    def __len__(self) -> int:
        return len(self.asked)

    def ask(self, name: str, data: bytes, answered: Any) -> None:
        assert (name, data) == ("keepalive@openssh.com", b"")
        self.asked.append(answered)

    def check(self) -> None:
        """A check that the transport's thread handles."""
        self.keepalive.check()
        self.loop._run_calls()

    def pass_time(self, seconds: float) -> None:
        """The server has sent nothing meanwhile."""
        self.wire.heard -= seconds
        self.keepalive._probed -= seconds

    def stop_for(self, seconds: float) -> None:
        """Nothing has run meanwhile, so that no check was due."""
        self.pass_time(seconds)
        self.keepalive._checked -= seconds

    def expire(self) -> None:
        self.keepalive._check_silence(time.monotonic())


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig(EVERY)
    yield made
    made.loop.close()


def test_a_probe_at_a_time_and_the_time_of_its_reply(rig: Rig) -> None:
    rig.check()
    rig.check()
    (answered,) = rig.asked
    assert rig.keepalive.rtt is None
    answered(None)  # denied, as every server does
    assert rig.keepalive.rtt is not None
    assert not rig.silent


def test_a_probe_without_a_reply_makes_the_connection_doubtful(rig: Rig) -> None:
    for seconds, is_late in ((EVERY * 1.5, False), (EVERY, True)):
        rig.pass_time(seconds)
        assert rig.keepalive.is_late is is_late
    rig.wire.heard = time.monotonic()
    assert not rig.keepalive.is_late


def test_a_new_connection_is_confirmed_by_an_answer(rig: Rig) -> None:
    confirmed: list[str] = []
    for name in ("answered", "lost"):
        rig.keepalive.ask(partial(confirmed.append, name))
    rig.asked.pop(0)(None)  # denied, as every server does
    rig.ended = OSError("lost")
    rig.asked.pop()(None)
    assert confirmed == ["answered"]


def test_a_request_that_fails_with_its_connection_is_no_reply(rig: Rig) -> None:
    rig.check()
    rig.ended = OSError("lost")
    rig.asked.pop()(None)
    assert rig.keepalive.rtt is None


def test_a_server_that_does_not_answer_a_probe_is_dead(rig: Rig) -> None:
    rig.check()
    rig.pass_time(2.9 * EVERY)
    rig.expire()
    assert not rig.silent
    rig.pass_time(0.2 * EVERY)
    rig.expire()
    assert [str(error)[:18] for error in rig.silent] == ["no answer for 3100"]


@pytest.mark.parametrize("is_checked", [True, False], ids=["checked at once", "not checked"])
@pytest.mark.parametrize("is_answered", [True, False], ids=["answered before", "the answer was not read yet"])
def test_silence_while_this_process_was_stopped_proves_nothing(rig: Rig, is_answered: bool, is_checked: bool) -> None:
    """It asks again, and the server has an interval to answer."""
    for _ in range(4):
        rig.check()
    if is_answered:
        rig.asked.clear()
    before = len(rig.asked)
    rig.stop_for(10 * EVERY)
    if is_checked:
        rig.check()
    rig.expire()
    assert len(rig.asked) == before + 1 and not rig.silent
    rig.pass_time(1.1 * EVERY)
    rig.expire()
    assert len(rig.silent) == 1


def test_a_thread_that_handles_no_check_is_noticed_by_the_checks(rig: Rig) -> None:
    rig.wire.heard -= 4 * EVERY
    for _ in range(3):
        rig.keepalive.check()
    assert not rig.silent
    rig.keepalive.check()
    assert len(rig.silent) == 1


def test_without_an_interval_there_is_no_probe() -> None:
    rig = Rig(None)
    rig.check()
    assert (rig.asked, rig.keepalive._silence.due) == ([], math.inf)
    rig.loop.close()
