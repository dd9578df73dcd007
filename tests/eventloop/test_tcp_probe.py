"""``relay.eventloop.tcp_probe``: the other end's system answers, or does not."""

import contextlib
import socket
import time

import pytest
from helpers import WAIT, Server, echo

from relay.eventloop.loop import Timers
from relay.eventloop.tcp_probe import TCPProbe

OPTIONS = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")


def options(connection):
    return [connection.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in OPTIONS]


def begun(connection):
    """A probe that has begun, what it says, and its timers."""
    said, timers = [], Timers()
    probe = TCPProbe(connection, timers, lambda error: said.append(str(error)))
    probe.begin(2.0, "a new address")
    return probe, said, timers


def test_an_end_that_answers_is_kept_and_the_options_are_as_before():
    with contextlib.closing(Server(echo)) as server, socket.create_connection(server.address, WAIT) as client:
        before = options(client)
        _, said, timers = begun(client)
        assert options(client) != before
        client.sendall(b"x")  # the acknowledgement is younger than the probe
        assert client.recv(1) == b"x"
        timers.run(time.monotonic() + 2.1)
        assert not said and options(client) == before
        assert timers.first == float("inf")


def test_one_that_does_not_is_named(monkeypatch):
    with contextlib.closing(Server(echo)) as server, socket.create_connection(server.address, WAIT) as client:
        _, said, timers = begun(client)
        monkeypatch.setattr(TCPProbe, "_fields", lambda self: (0, 60_000, 0))
        timers.run(time.monotonic() + 2.1)
        assert said == ["no answer for 2 s after a new address; check the server and the network"]


def test_data_whose_repetition_is_not_due_yet_are_waited_for(monkeypatch):
    fields = [1, 60_000, 5]
    monkeypatch.setattr(TCPProbe, "_fields", lambda self: tuple(fields))
    with contextlib.closing(Server(echo)) as server, socket.create_connection(server.address, WAIT) as client:
        _, said, timers = begun(client)
        now = time.monotonic()
        timers.run(now + 2.1)
        timers.run(now + 3.2)
        assert not said
        fields[2] += 1
        timers.run(now + 4.3)
        assert said == ["no answer for 4 s after a new address; check the server and the network"]


@pytest.mark.parametrize("closed", [False, True])
def test_what_cannot_be_probed_is_left_alone(closed):
    ours, theirs = socket.socketpair() if not closed else (socket.socket(), socket.socket())
    with ours, theirs:
        if closed:
            ours.close()
        _, said, timers = begun(ours)
        timers.run(time.monotonic() + 2.1)
        assert not said


def test_nothing_is_said_after_the_stop(monkeypatch):
    monkeypatch.setattr(TCPProbe, "_fields", lambda self: (0, 60_000, 0))
    with contextlib.closing(Server(echo)) as server, socket.create_connection(server.address, WAIT) as client:
        probe, said, timers = begun(client)
        probe.stop()
        timers.run(time.monotonic() + 2.1)
        assert not said
