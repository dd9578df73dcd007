"""A client that guesses passwords is banned: by default where other machines can reach the proxy, else on demand."""

import contextlib
import logging
import socket

import pytest
from helpers import WAIT, makes, receive_rest, wait_until

import relay
from relay.engine import ledgers


def guess(address, password=b"wrong", host="127.0.0.1", header=b""):
    """Try to log in; return what the proxy says, nothing for a reset."""
    with contextlib.suppress(ConnectionError), socket.create_connection((host, address[1]), WAIT) as client:
        client.sendall(header + b"\5\1\2\1\5alice" + bytes([len(password)]) + password)
        if password == b"secret":
            client.sendall(b"\5\1\0\1\x7f\0\0\1\0\x01")  # port 1, where no program listens
        return receive_rest(client)
    return b""


@pytest.fixture
def proxy():
    def make(host, **options):
        receive = relay.socks_listen(host, 0, user="alice", password="secret")
        return relay.Tunnel(receive, relay.dynamic(), name="proxy", **options)

    yield from makes(make)


def rules(tunnel):
    return [record.rule for record in tunnel.recent()]


def test_five_wrong_passwords_ban_for_a_minute_with_one_warning(proxy, caplog):
    tunnel = proxy("0.0.0.0")
    for _ in range(5):
        assert guess(tunnel.address) == b"\5\2\1\1"
    wait_until(lambda: len(rules(tunnel)) == 5)
    assert guess(tunnel.address, b"secret") == b"", "not even the right one is looked at"
    assert rules(tunnel) == ["login"] * 5 + ["ban login"]
    text = "sent 5 wrong passwords; it is rejected for 60 s"
    warnings = [record for record in caplog.records if text in record.getMessage()]
    assert [record.levelno for record in warnings] == [logging.WARNING]
    assert ledgers.clear(tunnel, "bans", "127.0.0.1") == 1
    assert guess(tunnel.address, b"secret")[:2] == b"\5\2"


def test_right_passwords_do_not_count(proxy):
    tunnel = proxy("0.0.0.0")
    for _ in range(8):
        assert guess(tunnel.address, b"secret")[2:4] == b"\1\0"
    assert "ban login" not in rules(tunnel)


def test_a_proxy_behind_a_balancer_of_the_same_machine_bans_the_clients_of_this(proxy):
    tunnel = proxy("127.0.0.1", accept_proxy=["127.0.0.1"])
    one, other = (b"PROXY TCP4 192.0.2.%d 192.0.2.99 5 1080\r\n" % number for number in (1, 2))
    for _ in range(5):
        assert guess(tunnel.address, header=one) == b"\5\2\1\1"
    wait_until(lambda: len(rules(tunnel)) == 5)
    assert guess(tunnel.address, b"secret", header=one) == b""
    assert guess(tunnel.address, b"secret", header=other)[:4] == b"\5\2\1\0"


def test_on_the_loopback_only_a_limit_of_that_name_bans(proxy):
    tunnel = proxy("127.0.0.1")
    for _ in range(8):
        assert guess(tunnel.address) == b"\5\2\1\1"
    strict = proxy("127.0.0.1", limit=[{"name": "login", "rate": "2/1h", "ban": "1h", "action": "close"}])
    for _ in range(2):
        assert guess(strict.address) == b"\5\2\1\1"
    wait_until(lambda: len(rules(strict)) == 2)
    assert guess(strict.address) == b""
    wait_until(lambda: rules(strict)[-1] == "ban login")
