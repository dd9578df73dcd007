"""``relay.daemon.worker_processes``: what a worker makes of the values of a plan."""

from __future__ import annotations

import base64
import contextlib
import pickle
import socket

import pytest
import trustme

from relay.addresses.parse import parse_hops, parse_listen, parse_target
from relay.daemon.worker_processes import make


def packed(listen, target, via=()):
    values = parse_listen(listen), parse_target(target), parse_hops(via, "")
    return base64.b64encode(pickle.dumps(values)).decode()


@pytest.fixture
def receive():
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def test_a_socket_that_listens_is_the_listener(receive):
    listener, make_send = make(receive, values=packed(":0", "db:5432"))
    with contextlib.closing(make_send):
        assert listener is receive
        assert make_send.target == "db:5432"


def test_a_listener_of_tls_wraps_it(receive, tmp_path):
    cert = trustme.CA().issue_cert("localhost")
    cert.private_key_and_cert_chain_pem.write_to_path(file := tmp_path / "pem")
    file.chmod(0o600)
    address = receive.getsockname()
    listener, make_send = make(receive, values=packed(f"tls://127.0.0.1:0?cert={file}", "db:5432"))
    with contextlib.closing(make_send), contextlib.closing(listener):
        assert listener.address[:2] == address


def test_a_file_that_is_missing_leaves_the_socket_to_the_caller(receive, tmp_path):
    with pytest.raises((OSError, ValueError), match="missing"):
        make(receive, values=packed(f"tls://127.0.0.1:0?cert={tmp_path}/missing", "db:5432"))
    assert receive.fileno() >= 0
