"""Listening on TCP."""

from __future__ import annotations

import errno
import socket

import pytest
from helpers import WAIT

from relay.transports.tcp import listen_tcp


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
