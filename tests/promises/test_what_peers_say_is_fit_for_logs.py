"""No control character, bidi mark or line break of a peer reaches a log record or a terminal."""

import contextlib
import logging
import socket
import tempfile

import pytest
from helpers import WAIT, ended, exchange, receive_all, refusing, wait_until

import relay
from relay.cli.output import _Text
from relay.eventloop.sockets import format_address

EVIL = "\x1b[2J\x1b]0;pwn\x07\r\n12:00:00 WARNING forged\u202e\x9b31m"


@pytest.fixture(params=["path", "abstract"])
def client(request):
    """A Unix client that has bound its own socket to such a name."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as made:
        made.settimeout(WAIT)
        made.bind(f"{folder}/{EVIL}" if request.param == "path" else f"\0{EVIL}{folder}")
        yield made


def test_a_unix_client_with_a_name_of_its_own(client, tmp_path, echo_server, caplog):
    caplog.set_level("DEBUG", "relay")
    path = f"{tmp_path}/listen"
    with contextlib.ExitStack() as stack:
        tunnel = stack.enter_context(relay.Tunnel(relay.listen(f"unix://{path}"), relay.tcp(*echo_server.address)))
        client.connect(path)
        exchange(client, client, b"x")
        assert repr(next(iter(tunnel._relay._slots.connections))).isprintable()
        client.close()
        assert ended(tunnel) == ["done"]
    assert_clean(caplog)


def test_a_unix_client_that_is_refused(client, tmp_path, caplog):
    caplog.set_level("DEBUG", "relay")
    path = f"{tmp_path}/listen"
    with refusing() as nowhere, relay.Tunnel(relay.listen(f"unix://{path}"), relay.tcp(*nowhere)) as tunnel:
        client.connect(path)
        with contextlib.suppress(ConnectionResetError):
            receive_all(client)
        wait_until(lambda: tunnel.stats().failed == {"refused": 1})
    assert_clean(caplog)


def test_an_error_that_holds_such_a_name(caplog):
    def factory():
        raise relay.ConnectError(f"the server says: {EVIL} {'x' * 100_000}")

    with relay.Tunnel(relay.listen(":0"), factory) as tunnel:
        # The reset of a busy machine's tunnel may come before connect() has returned.
        with contextlib.suppress(ConnectionResetError), socket.create_connection(tunnel.address, WAIT) as client:
            receive_all(client)
        wait_until(lambda: tunnel.stats().failed == {"unreachable": 1})
    assert_clean(caplog)
    assert max(len(record.getMessage()) for record in caplog.records) < 3000


def assert_clean(caplog):
    assert any("forged" in record.getMessage() for record in caplog.records)
    for record in caplog.records:
        assert record.getMessage().isprintable(), record.getMessage()


@pytest.mark.parametrize(
    "address", [("1.2.3.4" + EVIL, 5), f"/a/{EVIL}", f"\0{EVIL}", f"\0{EVIL}".encode(), (EVIL, EVIL)]
)
def test_an_address_as_text(address):
    assert format_address(address).isprintable()
    assert len(format_address(("x" * 10_000, 1))) < 300


@pytest.mark.parametrize("debug", [False, True])
def test_the_last_line_of_defence_is_the_command(debug):
    try:
        raise ValueError(EVIL)
    except ValueError as error:
        seen = (ValueError, error, error.__traceback__)
    record = logging.LogRecord("relay", logging.WARNING, __file__, 1, "%s", (EVIL,), seen)
    first, *others = _Text(debug=debug, named=False).format(record).split("\n")
    assert first.isprintable()
    assert "forged" in first
    assert bool(others) is debug
    assert all(line.isprintable() for line in others)
