"""The names in a client's certificate."""

from __future__ import annotations

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from relay.transports.tls.client_certificate import certificate_of, identity_of_client


def encoded(names, alternatives=(), extension=None):
    """Return a certificate of itself, and its public key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(oid, text) for oid, text in names])
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=9))
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    if extension is not None:
        builder = builder.add_extension(extension, critical=False)
    made = builder.sign(key, hashes.SHA256())
    return made.public_bytes(Encoding.DER), key.public_key().public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )


def test_all_names_are_read():
    alternatives = [
        x509.DNSName("a.example"),
        x509.UniformResourceIdentifier("spiffe://example/a"),
        x509.DNSName("b.example"),
    ]
    names = [(x509.NameOID.ORGANIZATION_NAME, "Org"), (x509.NameOID.COMMON_NAME, "alice")]
    data, key = encoded(names, alternatives)
    certificate = certificate_of(data)
    assert certificate.common_name == "alice"
    assert certificate.dns == ("a.example", "b.example")
    assert certificate.uri == ("spiffe://example/a",)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(key)
    import base64

    assert certificate.spki == "sha256:" + base64.b64encode(digest.finalize()).decode()
    assert certificate.name == "spiffe://example/a"


def test_a_certificate_without_names_is_its_key():
    data, _ = encoded([])
    certificate = certificate_of(data)
    assert (certificate.common_name, certificate.dns, certificate.uri) == (None, (), ())
    assert certificate.name == certificate.spki


def test_what_is_no_certificate_is_an_error():
    with pytest.raises(ValueError, match=r"."):
        certificate_of(b"nothing")


def test_a_name_of_a_kind_that_the_library_does_not_know_is_an_error():
    place = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.17"), b"\x30\x02\xa3\x00")  # an x400Address
    data, _ = encoded([(x509.NameOID.COMMON_NAME, "alice")], extension=place)
    with pytest.raises(ValueError, match="the certificate of the client cannot be read"):
        certificate_of(data)


class Session:
    """A session whose client has shown this."""

    def __init__(self, shown):
        self.shown = shown

    def getpeercert(self, binary_form):
        assert binary_form
        return self.shown


def test_the_identity_has_the_name_and_the_address():
    data, _ = encoded([(x509.NameOID.COMMON_NAME, "a\x1b" * 30)])
    identity = identity_of_client(Session(data), ("192.0.2.7", 5))
    assert (identity.kind, identity.host, identity.port) == ("tls", "192.0.2.7", 5)
    assert identity.name.isprintable()
    assert identity.certificate.common_name == "a\x1b" * 30


def test_a_client_without_a_certificate_has_no_name():
    assert identity_of_client(Session(None), ("192.0.2.7", 5)) is None


def test_a_client_with_a_certificate_that_cannot_be_read_is_nobody():
    with pytest.raises(ValueError, match="the certificate of the client cannot be read"):
        identity_of_client(Session(b"nothing"), None)
