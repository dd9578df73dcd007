"""The facts about a TLS connection and its certificate."""

from __future__ import annotations

import datetime
import ssl

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from helpers import WAIT, receive_all

from relay.cli.doctor.certificates import certificate_facts, tls_facts


def der(pem):
    return x509.load_pem_x509_certificate(pem.bytes()).public_bytes(Encoding.DER)


@pytest.fixture
def authority():
    return trustme.CA()


def test_a_certificate_and_its_chain(authority):
    now = datetime.datetime.now(datetime.UTC)
    leaf = authority.issue_cert("localhost", "127.0.0.1", not_after=now + datetime.timedelta(days=10))
    facts = certificate_facts([der(leaf.cert_chain_pems[0]), der(authority.cert_pem)])
    assert facts["names"] == ["localhost", "127.0.0.1"]
    assert 9.9 < facts["days_left"] <= 10 and facts["days_until_valid"] < 0
    assert (facts["self_signed"], facts["chain_length"]) == (False, 2)
    assert len(facts["fingerprint"]) == 64
    assert datetime.datetime.fromisoformat(facts["not_after"]) > now


def test_one_that_has_expired_and_one_that_is_not_valid_yet(authority):
    now = datetime.datetime.now(datetime.UTC)
    old = authority.issue_cert("a", not_before=now - datetime.timedelta(9), not_after=now - datetime.timedelta(2))
    assert certificate_facts([der(old.cert_chain_pems[0])])["days_left"] == pytest.approx(-2, abs=0.1)
    new = authority.issue_cert("a", not_before=now + datetime.timedelta(2), not_after=now + datetime.timedelta(9))
    assert certificate_facts([der(new.cert_chain_pems[0])])["days_until_valid"] == pytest.approx(2, abs=0.1)


def test_one_that_signed_itself(authority):
    facts = certificate_facts([der(authority.cert_pem)])
    assert facts["self_signed"] and facts["names"] == []


def test_many_names_are_cut(authority):
    leaf = authority.issue_cert(*(f"host{number}.example" for number in range(20)))
    assert len(certificate_facts([der(leaf.cert_chain_pems[0])])["names"]) == 8


@pytest.mark.parametrize("chain", [[], [b""], [b"no certificate"]])
def test_what_cannot_be_read_has_no_facts(chain):
    assert certificate_facts(chain) == {}


def test_a_connection(certificates, serve):
    """The facts come from the object of the handshake, whether the certificate was accepted or not."""
    context = certificates.server()

    def answer(connection):
        with context.wrap_socket(connection, server_side=True) as end:
            end.recv(1)

    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with serve(answer).factory()() as stream:
        made = certificates.client().wrap_bio(incoming, outgoing, server_hostname="localhost")
        end = stream.socket
        end.settimeout(WAIT)
        while True:
            try:
                made.do_handshake()
                break
            except ssl.SSLWantReadError:
                end.sendall(outgoing.read())
                incoming.write(end.recv(65536))
        facts = tls_facts(made)
        end.sendall(outgoing.read())
        made.write(b"x")
        end.sendall(outgoing.read())
        receive_all(end)
    assert facts["version"] == "TLSv1.3" and facts["cipher"].startswith("TLS_") and facts["alpn"] == ""
    assert certificate_facts(facts["chain"])["names"] == ["localhost", "127.0.0.1"]


def test_a_connection_that_has_not_begun():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="localhost")
    facts = tls_facts(made)
    assert (facts["alpn"], facts["cipher"], facts["chain"]) == ("", "", [])
