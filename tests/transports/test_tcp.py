"""``relay.tcp``: connects to addresses and to names that are looked up afresh."""

from __future__ import annotations

import errno
import os
import socket
import time
from typing import Any

import pytest
from helpers import WAIT, receive_all, send_and_end

import relay
from relay.eventloop.sockets import Endpoint
from relay.streams.connect import SocketDialer
from relay.transports.tcp import Inherited, listen_tcp


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
    [("127.0.0.1", Endpoint(socket.AF_INET, ("127.0.0.1", 80))), ("::1", Endpoint(socket.AF_INET6, ("::1", 80, 0, 0)))],
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
        of_old = Inherited([old])
        with (
            listen_tcp("127.0.0.1", port, inherited=of_old) as heir,
            listen_tcp("127.0.0.1", 0, inherited=of_old) as other,
        ):
            assert heir.fileno() != old.fileno()
            assert heir.getsockname() == old.getsockname() != other.getsockname()
        with pytest.raises(OSError, match="in use"):
            relay.listen(f":{port}")
        heir = listen_tcp("127.0.0.1", port, inherited=Inherited([old]))
        with heir:
            client = socket.create_connection(old.getsockname())  # it is in the backlog of both
            old.close()
            with client, heir.accept()[0] as served:
                client.sendall(b"x")
                assert served.recv(1) == b"x"


def test_the_mode_of_an_inherited_socket_stays() -> None:
    """Another process accepts there, without blocking; Python does not know the mode of a socket that it received."""
    with relay.listen(":0") as other, socket.socket(fileno=os.dup(other.fileno())) as old:
        other.setblocking(False)
        with listen_tcp(*other.getsockname(), inherited=Inherited([old])) as heir:
            assert not os.get_blocking(other.fileno())
            assert heir.gettimeout() == 0.0


class ClosedMeanwhile(socket.socket):
    """A listening socket that its owner closes, on another thread, after this one has looked at it for some time.

    Its number is another file's then.
    """

    looks = 10
    other: Any = None

    def look(self) -> None:
        self.looks -= 1
        if self.looks == -1:
            number = super().fileno()
            self.close()
            if self.other is not None:
                self.other = os.dup2(self.other, number)

    def getsockname(self) -> Any:
        self.look()
        return super().getsockname()

    def fileno(self) -> int:
        number = super().fileno()
        self.look()
        return number


@pytest.mark.parametrize("kind", ["nothing", "a socket", "a file"])
@pytest.mark.parametrize("looks", range(3))
def test_a_socket_that_its_owner_closes_meanwhile_is_not_inherited(kind: str, looks: int) -> None:
    """A tunnel may end while a reload opens the next one at its address."""
    old = ClosedMeanwhile()
    old.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    old.bind(("127.0.0.1", 0))
    old.listen()
    place = old.getsockname()
    with relay.listen(":0") as other, open(os.devnull) as file:
        old.looks, old.other = looks, {"a socket": other.fileno(), "a file": file.fileno()}.get(kind)
        given = old.other
        inherited = Inherited([old])
        with old, listen_tcp(*place, inherited=inherited) as heir:
            assert heir.getsockname() == place
            assert heir.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            assert inherited.taken == ([old] if looks > 1 else [])
        if old.other != given:
            os.close(old.other)


# Listening.


def test_it_listens_at_a_free_port_of_the_address_alone():
    with listen_tcp("127.0.0.1", 0) as listening:
        host, port = listening.getsockname()
        assert host == "127.0.0.1"
        assert port > 0
        assert listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        assert not listening.get_inheritable()
        socket.create_connection((host, port), timeout=WAIT).close()


def test_a_name_listens_on_ipv4_which_every_client_knows():
    with listen_tcp("localhost", 0) as listening:
        assert listening.family == socket.AF_INET


def test_ipv6_is_ipv6_alone():
    with listen_tcp("::1", 0) as listening:
        assert listening.getsockname()[0] == "::1"
        assert listening.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


def test_every_interface_is_every_interface_of_both():
    with listen_tcp("::", 0) as listening:
        port = listening.getsockname()[1]
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, port), timeout=WAIT).close()


def test_an_address_is_taken_again_at_once_after_its_connections():
    with listen_tcp("127.0.0.1", 0) as listening:
        address = listening.getsockname()
        with socket.create_connection(address, timeout=WAIT), listening.accept()[0] as accepted:
            accepted.close()  # this side ends first, and its address stays in TIME-WAIT
    listen_tcp(*address).close()


def test_it_holds_a_burst_that_nobody_accepts():
    with listen_tcp("127.0.0.1", 0) as listening:
        clients = [socket.create_connection(listening.getsockname(), timeout=WAIT) for _ in range(500)]
        for client in clients:
            client.close()


def test_an_address_in_use_says_where_and_what_to_do():
    with listen_tcp("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1:{port}: Address already in use; another program") as failure:
            listen_tcp("127.0.0.1", port)
    assert failure.value.errno == errno.EADDRINUSE


def test_an_address_of_another_machine_says_so():
    with pytest.raises(OSError, match="192.0.2.1:0: .*this machine has no such address") as failure:
        listen_tcp("192.0.2.1", 0)
    assert failure.value.errno == errno.EADDRNOTAVAIL


def test_a_name_that_does_not_resolve_says_so():
    with pytest.raises(socket.gaierror, match=r"no-such-host\.invalid:0: cannot resolve the host name"):
        listen_tcp("no-such-host.invalid", 0)


@pytest.mark.parametrize(("host", "port"), [("", 0), ("[::1]", 0), ("h", -1), ("h", 65536)])
def test_a_bad_value_is_a_value_error(host, port):
    with pytest.raises(ValueError, match="^(host|port): "):
        listen_tcp(host, port)
