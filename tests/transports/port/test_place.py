"""``relay.transports.port.place``: a port or a path that a program shall take."""

import os
import socket
import tempfile

import pytest
from helpers import closed

from relay.errors import RelayError
from relay.transports.port import place
from relay.transports.port.place import Port, PrivatePath, StrangerError, UnknownOwnerError
from relay.transports.port.processes import HiddenProcessError


@pytest.fixture
def port():
    yield from closed(Port())


@pytest.fixture
def path():
    yield from closed(PrivatePath())


def test_a_port_is_free(port):
    assert port.find(os.getppid()) is None
    assert port.endpoint.address == ("127.0.0.1", int(port.word))


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::"])
def test_this_process_is_below_its_parent(port, host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server(
        (host, int(port.word)), family=family, dualstack_ipv6=family == socket.AF_INET6
    ) as listening:
        found = port.find(os.getppid())
        assert found
        with socket.create_connection(port.endpoint.address) as connection:
            assert port.leads_to(connection, found, os.getppid())
        with pytest.raises(StrangerError, match="another program"):
            other = Port()
            other._port = int(port.word)
            try:
                other.find(os.getpid())
            finally:
                other.close()
        listening.close()
        assert port.find(os.getppid()) is None


def test_a_socket_that_is_bound_and_one_elsewhere_do_not_count(port):
    with socket.socket() as bound, socket.socket() as elsewhere:
        bound.bind(port.endpoint.address)
        elsewhere.bind(("127.0.0.2", int(port.word)))
        elsewhere.listen()
        assert port.find(os.getppid()) is None


def test_a_process_that_hides_what_it_has(port, monkeypatch):
    def hide(*_):
        raise HiddenProcessError("process 7 of it belongs to another user")

    monkeypatch.setattr(place, "has_socket", hide)
    with socket.create_server(port.endpoint.address):
        said = rf"^{port.endpoint}: a program of user {os.geteuid()} listens there, and process 7 .*; run relay as that"
        with pytest.raises(UnknownOwnerError, match=said):
            port.find(os.getppid())


def test_a_path(path):
    assert path.find(os.getppid()) is None
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as connection:
        listening.bind(path.word)
        assert path.find(os.getppid()) is None  # it does not listen yet
        listening.listen()
        found = path.find(os.getppid())
        assert found and path.find(os.getppid()) == found
        connection.connect(path.word)
        assert path.leads_to(connection, found, os.getppid())
        with pytest.raises(StrangerError, match=rf"\(process {os.getpid()}\)"):
            path.leads_to(connection, found, os.getpid())


def test_a_file_that_is_no_socket(path):
    with open(path.word, "w"):
        assert path.find(os.getppid()) is None


def test_a_directory_that_is_too_deep(tmp_path, monkeypatch):
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(RelayError, match="path too long for a socket; set TMPDIR"):
        PrivatePath()
    assert not os.listdir(deep)
