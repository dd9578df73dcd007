"""``relay.tcp``: connects to addresses and to names that are looked up afresh."""

from __future__ import annotations

import socket
import threading
import time

import pytest
from helpers import WAIT, receive_all, send_and_end

import relay
from relay.eventloop.sockets import Endpoint
from relay.streams.connect import SocketDialer
from relay.transports.tcp import inheriting


def test_it_connects_to_an_address(echo_server):
    with relay.tcp(*echo_server.address)() as stream:
        stream.socket.settimeout(WAIT)
        send_and_end(stream.socket, b"hello")
        assert receive_all(stream.socket) == b"hello"


def test_it_connects_to_a_name(echo_server):
    with relay.tcp("localhost", echo_server.address[1])() as stream:
        stream.socket.settimeout(WAIT)
        send_and_end(stream.socket, b"hello")
        assert receive_all(stream.socket) == b"hello"


def no_lookup(*args, **kwargs):
    raise AssertionError("a literal address was looked up")


@pytest.mark.parametrize(
    ("host", "endpoint"),
    [
        ("127.0.0.1", Endpoint(socket.AF_INET, ("127.0.0.1", 80))),
        ("::1", Endpoint(socket.AF_INET6, ("::1", 80, 0, 0))),
    ],
)
def test_an_address_is_not_looked_up(host, endpoint, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", no_lookup)
    factory = relay.tcp(host, 80)
    assert isinstance(factory, SocketDialer)
    assert factory.endpoints
    assert list(factory.resolve()) == [endpoint]


@pytest.mark.parametrize("zone", ["lo", "1"])
def test_a_zone_becomes_the_number_of_its_interface(zone, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", no_lookup)
    expected = Endpoint(socket.AF_INET6, ("fe80::1", 80, 0, socket.if_nametoindex("lo")))
    assert list(relay.tcp(f"fe80::1%{zone}", 80).resolve()) == [expected]


def test_a_zone_that_is_not_here_is_unreachable():
    with pytest.raises(relay.ConnectError, match="there is no interface nowhere0") as failure:
        relay.tcp("fe80::1%nowhere0", 80)()
    assert failure.value.reason == "unreachable"


def test_a_name_is_looked_up_afresh_for_every_connection(echo_server, monkeypatch):
    answers = []

    def lookup(host, port, **options):
        answers.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", echo_server.address)]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    factory = relay.tcp("service.internal", echo_server.address[1])
    assert not factory.endpoints
    assert answers == []
    for _ in range(3):
        factory().close()
    assert answers == ["service.internal"] * 3


def test_a_name_that_does_not_resolve_is_unreachable_and_named():
    with pytest.raises(relay.ConnectError, match=r"^no-such-host\.invalid:80: cannot resolve the host name") as failure:
        relay.tcp("no-such-host.invalid", 80)()
    assert failure.value.reason == "unreachable"


def test_a_refused_connection_says_where(listener):
    address = listener.getsockname()
    listener.close()
    with pytest.raises(relay.ConnectError, match=f"127.0.0.1:{address[1]}: connection refused") as failure:
        relay.tcp(*address)(deadline=time.monotonic() + 10)
    assert failure.value.reason == "refused"


@pytest.mark.parametrize(("host", "port"), [("", 80), ("[::1]", 80), ("a b", 80), ("h", 0), ("h", 65536)])
def test_a_bad_value_is_a_value_error_at_once(host, port):
    with pytest.raises(ValueError, match="^(host|port): "):
        relay.tcp(host, port)


@pytest.mark.parametrize(("host", "port"), [(None, 80), (b"h", 80), ("h", "80"), ("h", 80.0), ("h", True)])
def test_a_bad_type_is_a_type_error_at_once(host, port):
    with pytest.raises(TypeError, match="^(host|port): "):
        relay.tcp(host, port)


@pytest.mark.parametrize(
    ("host", "target"), [("db.internal", "db.internal:80"), ("::1", "[::1]:80"), ("127.0.0.1", "127.0.0.1:80")]
)
def test_its_target_is_its_address(host, target):
    assert relay.tcp(host, 80).target == target


def test_a_socket_is_inherited_at_its_own_address_alone() -> None:
    with relay.listen(":0") as old:
        port = old.getsockname()[1]
        with inheriting([old]), relay.listen(f":{port}") as heir, relay.listen(":0") as other:
            assert heir.fileno() != old.fileno()
            assert heir.getsockname() == old.getsockname() != other.getsockname()
        with pytest.raises(OSError, match="in use"):
            relay.listen(f":{port}")
        with inheriting([old]):
            heir = relay.listen(f":{port}")
        with heir:
            client = socket.create_connection(old.getsockname())  # it is in the backlog of both
            old.close()
            with client, heir.accept()[0] as served:
                client.sendall(b"x")
                assert served.recv(1) == b"x"


def test_a_thread_inherits_nothing_of_another() -> None:
    with relay.listen(":0") as old, inheriting([old]):
        failures: list[OSError] = []

        def bind() -> None:
            try:
                relay.listen(f":{old.getsockname()[1]}").close()
            except OSError as error:
                failures.append(error)

        thread = threading.Thread(target=bind)
        thread.start()
        thread.join()
        assert len(failures) == 1
