"""The address and the interface from which this machine connects."""

import socket

import pytest

from relay.cli.doctor.network import interface_of, local_facts, source_of
from relay.eventloop.sockets import Endpoint


def test_loopback():
    assert source_of(Endpoint(socket.AF_INET, ("127.0.0.1", 9))) == "127.0.0.1"
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("127.0.0.77") == "lo"


def test_an_address_of_another_machine():
    assert interface_of("192.0.2.254") == ""
    assert interface_of("2001:db8::1") == ""


def test_no_route():
    with pytest.raises(OSError, match=r"."):
        source_of(Endpoint(socket.AF_INET, ("255.255.255.255", 9)))  # broadcast, which a socket must ask for


def test_a_unix_socket_has_no_interface(tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as client:
        listening.bind(path)
        listening.listen()
        client.connect(path)
        assert local_facts(client) == {"peer": f"unix://{path}"}
