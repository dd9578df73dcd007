"""The TLS listener of a program whose workers accept."""

from __future__ import annotations

import contextlib
import socket

import pytest
from helpers import WAIT

from relay.eventloop.background import IOThread
from relay.transports.tls.shared_listener import SharedTLSListener


def test_it_listens_and_leaves_the_clients_to_others(certificates):
    shared = SharedTLSListener("127.0.0.1", 0, cert=certificates.cert, key=certificates.key, client_ca=None)
    with contextlib.closing(shared):
        assert shared.certificate_end is not None
        assert shared.getsockname() == shared.address == shared.listening.getsockname()
        assert repr(shared) == f"<relay.SharedTLSListener at 127.0.0.1:{shared.address[1]}>"
        with socket.create_connection(shared.address, WAIT) as client:
            assert not IOThread.clients()
            accepted, peer = shared.listening.accept()
            accepted.close()
            assert peer == client.getsockname()
    shared.close()
    assert shared.listening.fileno() < 0


def test_it_names_a_wrong_certificate_before_it_listens(tmp_path):
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("no certificate")
    with pytest.raises(ValueError, match="cert"):
        SharedTLSListener("127.0.0.1", 0, cert=wrong, key=None, client_ca=None)
