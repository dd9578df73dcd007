"""Which address next, and when: RFC 8305, driven without a network."""

from __future__ import annotations

import errno
import socket
import threading
import time

import pytest
from helpers import WAIT
from hypothesis import given
from hypothesis import strategies as st

from relay import ConnectError
from relay.streams.cancellation import Cancellation
from relay.streams.happy_eyeballs import (
    ATTEMPT_DELAY,
    Direct,
    Endpoint,
    Race,
    connect,
    connect_error,
    connect_patiently,
    interleave,
    open_socket,
)

FOUR = [Endpoint(socket.AF_INET, (f"127.0.0.{n}", 1)) for n in range(1, 4)]
SIX = [Endpoint(socket.AF_INET6, (f"::{n}", 1, 0, 0)) for n in range(1, 4)]


def test_families_alternate_and_the_resolvers_first_comes_first() -> None:
    assert interleave([SIX[0], SIX[1], FOUR[0], FOUR[1]]) == [SIX[0], FOUR[0], SIX[1], FOUR[1]]
    assert interleave([FOUR[0], FOUR[0]]) == [FOUR[0]]


def test_the_second_address_waits_its_turn() -> None:
    race = Race([SIX[0], FOUR[0]])
    assert race.next(10.0) == SIX[0]
    assert race.next(10.0 + ATTEMPT_DELAY / 2) is None
    assert race.again == 10.0 + ATTEMPT_DELAY
    assert race.next(10.0 + ATTEMPT_DELAY) == FOUR[0]
    assert race.again is None
    assert not race.lost


def test_a_failure_starts_the_next_at_once_and_the_first_error_is_told() -> None:
    race = Race([SIX[0], FOUR[0]])
    race.next(10.0)
    first = OSError(errno.ENETUNREACH, "no route")
    race.failed(first)
    assert race.next(10.0) == FOUR[0]
    race.failed(OSError(errno.ECONNREFUSED, "refused"))
    assert race.lost
    assert race.error is first


@given(st.lists(st.sampled_from(FOUR + SIX), max_size=12), st.lists(st.booleans(), max_size=40))
def test_every_address_is_tried_exactly_once(endpoints: list[Endpoint], fails: list[bool]) -> None:
    race, now, tried, running = Race(endpoints), 0.0, [], 0
    outcomes = iter(fails)
    while not race.lost:
        while (endpoint := race.next(now)) is not None:
            tried.append(endpoint)
            running += 1
        if race.again is not None and next(outcomes, False):
            now = race.again
        elif running:
            race.failed(OSError())
            running -= 1
    assert sorted(tried) == sorted(set(endpoints))


def listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def test_connect_takes_the_address_that_answers() -> None:
    with listening() as there, listening() as gone:
        refused = Endpoint(socket.AF_INET, gone.getsockname())
        gone.close()
        answers = Endpoint(socket.AF_INET, there.getsockname())
        with connect([refused, answers], "a target", time.monotonic() + 10, None) as made:
            assert made.getpeername() == answers.address
            assert made.getblocking() is False
            assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_silent_address_delays_only_by_the_attempt_delay() -> None:
    with listening() as full, listening() as there:
        full.listen(0)
        with socket.create_connection(full.getsockname()):
            silent = Endpoint(socket.AF_INET, full.getsockname())
            answers = Endpoint(socket.AF_INET, there.getsockname())
            with connect([silent, answers], "a target", time.monotonic() + 10, None) as made:
                assert made.getpeername() in (silent.address, answers.address)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), "refused"),
        (TimeoutError(), "connect_timeout"),
        (OSError(errno.ETIMEDOUT, "timed out"), "connect_timeout"),
        (OSError(errno.EHOSTUNREACH, "no route"), "unreachable"),
        (None, "unreachable"),
        (ConnectError("already said", reason="denied"), "denied"),
    ],
)
def test_errors_have_their_word(error: OSError | None, reason: str) -> None:
    assert connect_error("db:1", error).reason == reason


def test_a_refused_connect_says_what_to_do() -> None:
    with listening() as gone:
        endpoint = Endpoint(socket.AF_INET, gone.getsockname())
    with pytest.raises(ConnectError, match="connection refused; is the service running") as caught:
        connect([endpoint], "db:1", time.monotonic() + 10, None)
    assert caught.value.reason == "refused"


def swallower() -> tuple[socket.socket, list[socket.socket]]:
    """A listener that swallows every further SYN."""
    full = socket.create_server(("127.0.0.1", 0), backlog=0)
    fillers = []
    for _ in range(3):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(full.getsockname())
        fillers.append(filler)
    return full, [full, *fillers]


def test_a_deadline_and_a_cancellation_end_the_attempt() -> None:
    full, sockets = swallower()
    endpoint = [Endpoint(socket.AF_INET, full.getsockname())]
    try:
        with pytest.raises(ConnectError) as caught:
            connect(endpoint, "db:1", time.monotonic() + 0.05, None)
        assert caught.value.reason == "connect_timeout"
        cancel = Cancellation()
        threading.Timer(0.05, cancel.set).start()
        with pytest.raises(ConnectError, match="given up"):
            connect(endpoint, "db:1", time.monotonic() + 10, cancel)
        cancel.close()
    finally:
        for one in sockets:
            one.close()


def test_a_full_unix_backlog_is_waited_for(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(path)
        busy.listen(0)
        endpoint = Endpoint(socket.AF_UNIX, path)
        first, status = open_socket(endpoint, socket.socket)
        assert status == 0
        second, status = open_socket(endpoint, socket.socket)
        assert status == errno.EAGAIN
        assert connect_patiently(second, endpoint, time.monotonic() + 0.05) == errno.ETIMEDOUT
        second.close()
        third, _ = open_socket(endpoint, socket.socket)
        threading.Timer(0.05, lambda: busy.accept()[0].close()).start()
        assert connect_patiently(third, endpoint, time.monotonic() + WAIT) == 0
        assert third.getblocking() is False
        first.close()
        third.close()


def test_a_resolver_that_hangs_does_not_outlast_the_deadline() -> None:
    go = threading.Event()

    def resolve() -> list[Endpoint]:
        go.wait(WAIT)
        return []

    with pytest.raises(ConnectError, match="DNS lookup timed out") as caught:
        Direct("db:1", resolve, literal=False)(deadline=time.monotonic() + 0.05)
    assert caught.value.reason == "connect_timeout"
    go.set()


def test_what_a_resolver_raises_is_raised() -> None:
    def resolve() -> list[Endpoint]:
        raise ConnectError("db:1: no such name")

    with pytest.raises(ConnectError, match="no such name"):
        Direct("db:1", resolve, literal=False)()
