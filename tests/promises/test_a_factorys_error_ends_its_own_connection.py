"""A factory's exception ends its own connection and is logged once with its traceback."""

import logging
import socket
import threading

import pytest
from helpers import WAIT, ended, exchange, fate_of_client, steady

import relay


class HomemadeError(Exception):
    """Of the user's own."""


def buggy():
    raise HomemadeError("in the user's code")


def logged(caplog):
    """The records of the package at warning level or above."""
    return [one for one in caplog.records if one.name.split(".")[0] == "relay" and one.levelno >= logging.WARNING]


@pytest.mark.parametrize("mark", [relay.nonblocking, lambda factory: factory], ids=["engine", "thread"])
def test_it_is_logged_once_with_its_traceback(caplog, mark):
    with relay.Tunnel(relay.listen(":0"), mark(lambda: buggy())) as tunnel:
        assert fate_of_client(tunnel.address) == "reset"
        assert ended(tunnel) == ["factory_error"]
    (record,) = logged(caplog)
    assert record.levelno == logging.ERROR
    assert record.exc_info[0] is HomemadeError
    assert "in buggy" in logging.Formatter().formatException(record.exc_info)


@pytest.mark.parametrize("error", [HomemadeError, SystemExit, KeyboardInterrupt, GeneratorExit, MemoryError])
@pytest.mark.parametrize("mark", [relay.nonblocking, lambda factory: factory], ids=["engine", "thread"])
def test_whatever_it_raises_others_go_on(relayed, mark, error, caplog):
    raising = []

    @mark
    def make():
        if raising:
            raise raising.pop()
        made = socket.socket()
        made.connect(rig.target.getsockname())
        return made

    rig = relayed(make)
    before = rig.connect()
    raising.append(error("no"))
    assert fate_of_client(rig.tunnel.address) == "reset"
    exchange(*before)
    exchange(*rig.connect())
    assert [record.reason for record in rig.tunnel.recent()] == ["factory_error"]
    assert len(logged(caplog)) == 1


@pytest.mark.parametrize(
    "error", [ConnectionRefusedError("nobody there"), relay.ConnectError("nobody there")], ids=repr
)
def test_a_target_that_is_out_of_reach_is_a_warning_of_one_line(caplog, error):
    def make():
        raise error

    with relay.Tunnel(relay.listen(":0"), make) as tunnel:
        assert fate_of_client(tunnel.address) == "reset"
        ended(tunnel)
    (record,) = logged(caplog)
    assert record.levelno == logging.WARNING
    assert "nobody there" in record.getMessage()
    assert not record.exc_info


@pytest.mark.parametrize("nonsense", [None, 7, "text", object(), [], (1, 2)], ids=steady)
@pytest.mark.parametrize("mark", [relay.nonblocking, lambda factory: factory], ids=["engine", "thread"])
def test_nonsense_is_an_error_that_says_what_came(caplog, mark, nonsense):
    with relay.Tunnel(relay.listen(":0"), mark(lambda: nonsense)) as tunnel:
        assert fate_of_client(tunnel.address) == "reset"
        assert ended(tunnel) == ["factory_error"]
    (record,) = logged(caplog)
    text = record.getMessage() + str(record.exc_info and record.exc_info[1])
    assert type(nonsense).__name__ in text


class Odd:
    """An object that breaks the contract of a socket in one method."""

    def __init__(self, **methods):
        self._go = threading.Event()
        for name, method in methods.items():
            setattr(self, name, method)

    def recv(self, size):
        self._go.wait(WAIT)
        return b""

    def send(self, data):
        return len(data)

    def close(self):
        self._go.set()


def leave(*_):
    raise SystemExit


@pytest.mark.parametrize(
    ("methods", "reason"),
    [
        ({"recv": lambda _: "text"}, "factory_error"),
        ({"recv": lambda _: ""}, "factory_error"),
        ({"recv": lambda _: None}, "factory_error"),
        ({"recv": lambda _: [1]}, "factory_error"),
        ({"send": lambda _: None}, "factory_error"),
        ({"send": lambda _: "2"}, "factory_error"),
        ({"send": lambda _: -1}, "factory_error"),
        ({"send": lambda data: len(data) + 1}, "factory_error"),
        ({"send": lambda _: 0}, "target_reset"),  # what paramiko's channel says when it is closed
        ({"send": leave}, "target_reset"),
        ({"settimeout": leave}, "factory_error"),
    ],
    ids=steady,
)
def test_an_object_that_is_no_socket_after_all_ends_its_own_connection(caplog, methods, reason):
    odd = Odd(**methods)
    with relay.Tunnel(relay.listen(":0"), lambda: odd) as tunnel:
        assert fate_of_client(tunnel.address, b"hi") == "reset"
        assert ended(tunnel) == [reason]
    assert odd._go.wait(WAIT), "it was not closed"
    if "recv" in methods or ("send" in methods and reason == "factory_error"):
        (record,) = logged(caplog)
        assert "Odd.recv: expected bytes, got " in record.getMessage() or "Odd.send: expected" in record.getMessage()


def test_a_close_that_raises_whatever_it_is_ends_its_own_connection():
    """Neither thread of the bridge dies of it, which would leave its client waiting."""
    odd = Odd(recv=lambda _: b"", close=leave, shutdown=leave)
    with relay.Tunnel(relay.listen(":0"), lambda: odd) as tunnel:
        with socket.create_connection(tunnel.address, timeout=WAIT) as client:
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
        assert ended(tunnel) == ["done"]
