"""A factory's exception ends its own connection and is logged once with its traceback."""

from __future__ import annotations

import logging
import socket

import pytest
from helpers import ended, exchange, fate_of_client, steady

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


def test_a_failing_on_close_is_logged_and_ends_nothing(relayed, caplog):
    def make():
        return relay.Stream(socket.create_connection(rig.target.getsockname()), on_close=buggy)

    rig = relayed(make)
    client, far = rig.connect()
    exchange(client, far)
    client.close()
    far.close()
    ended(rig.tunnel)
    exchange(*rig.connect())
    rig.close()
    records = logged(caplog)
    assert records
    assert all(record.exc_info[0] is HomemadeError for record in records)
