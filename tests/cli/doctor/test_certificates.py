"""The facts about a TLS connection and its certificate."""

import datetime
import ssl

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

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


def test_many_names_are_cut(authority):
    leaf = authority.issue_cert(*(f"host{number}.example" for number in range(20)))
    assert len(certificate_facts([der(leaf.cert_chain_pems[0])])["names"]) == 8


@pytest.mark.parametrize("chain", [[], [b""], [b"no certificate"]])
def test_what_cannot_be_read_has_no_facts(chain):
    assert certificate_facts(chain) == {}


def test_a_connection_that_has_not_begun():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="localhost")
    facts = tls_facts(made)
    assert (facts["alpn"], facts["cipher"], facts["chain"]) == ("", "", [])
