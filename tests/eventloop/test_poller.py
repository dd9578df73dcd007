"""The two pollers behave alike."""

from __future__ import annotations

import select
import socket
import struct
import time

import pytest

from relay.eventloop.poller import END, ERR, HUP, IN, OUT, READ, PollPoller, make_poller

POLLERS = [PollPoller] + ([select.epoll] if hasattr(select, "epoll") else [])


@pytest.mark.parametrize("kind", POLLERS)
def test_readiness_is_told_until_it_is_gone(kind: type) -> None:
    poller = kind()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        poller.register(ours.fileno(), READ)
        assert poller.poll(0, 10) == []
        theirs.send(b"x")
        assert poller.poll(1, 10) == [(ours.fileno(), IN)]
        assert poller.poll(-1, 10) == [(ours.fileno(), IN)]
        poller.modify(ours.fileno(), OUT)
        assert poller.poll(None, 10) == [(ours.fileno(), OUT)]
        poller.unregister(ours.fileno())
        assert poller.poll(0, 10) == []
    poller.close()


@pytest.mark.parametrize("kind", POLLERS)
def test_a_reset_is_seen_without_asking_for_anything(kind: type) -> None:
    poller = kind()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
    with ours:
        poller.register(ours.fileno(), 0)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        ((_, event),) = poller.poll(5, 10)
        assert event & ERR
        assert event & HUP
    poller.close()


@pytest.mark.parametrize("kind", POLLERS)
def test_an_end_is_told_with_the_bytes(kind: type) -> None:
    poller = kind()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        poller.register(ours.fileno(), READ)
        theirs.send(b"x")
        theirs.shutdown(socket.SHUT_WR)
        assert poller.poll(5, 10) == [(ours.fileno(), IN | END)]
    poller.close()


def test_poll_waits_no_longer_than_it_is_told() -> None:
    poller = PollPoller()
    before = time.monotonic()
    assert poller.poll(0.01) == []
    assert time.monotonic() - before >= 0.01


def test_the_best_poller_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    one = make_poller()
    assert type(one) is POLLERS[-1]
    one.close()
    monkeypatch.delattr(select, "epoll", raising=False)
    assert isinstance(make_poller(), PollPoller)
