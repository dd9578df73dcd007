"""Certificates in files: contexts that verify by default, and errors that name the argument and the file."""

from __future__ import annotations

import datetime
import ssl

import pytest
import trustme

from relay.transports.tls.context import load_chain, not_after, trusting


def test_a_client_verifies_by_default():
    context = trusting(ssl.Purpose.SERVER_AUTH, "ca", None)
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION


def test_the_authorities_of_a_file_are_the_only_ones(certificates):
    context = trusting(ssl.Purpose.SERVER_AUTH, "ca", certificates.ca)
    assert len(context.get_ca_certs()) == 1
    assert context.check_hostname


def test_a_server_asks_for_certificates_only_with_an_authority(certificates):
    assert trusting(ssl.Purpose.CLIENT_AUTH, "client_ca", None).verify_mode == ssl.CERT_NONE
    assert trusting(ssl.Purpose.CLIENT_AUTH, "client_ca", certificates.ca).verify_mode == ssl.CERT_REQUIRED


def test_a_file_without_certificates_is_named(tmp_path):
    (tmp_path / "ca.pem").write_text("none")
    with pytest.raises(ValueError, match="client_ca: .*ca.pem holds no certificate"):
        trusting(ssl.Purpose.CLIENT_AUTH, "client_ca", tmp_path / "ca.pem")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="ca: No such file.*nowhere.pem"):
        trusting(ssl.Purpose.SERVER_AUTH, "ca", tmp_path / "nowhere.pem")
    with pytest.raises(TypeError, match="ca: .*int"):
        trusting(ssl.Purpose.SERVER_AUTH, "ca", 7)


@pytest.fixture
def context():
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


@pytest.mark.parametrize(
    ("cert", "key", "message"),
    [
        ("EMPTY", "KEY", "cert: .*EMPTY holds no certificate"),
        ("CERT", "EMPTY", "key: .*EMPTY holds no private key"),
        ("CERT", None, "cert: .*CERT holds no private key"),
        ("CERT", "OTHER", "key: .*OTHER is not that of the certificate"),
        ("CERT", "ENCRYPTED", "key: .*ENCRYPTED is encrypted.*openssl pkey"),
        ("BOTH ENCRYPTED", None, "cert: .*BOTH ENCRYPTED is encrypted.*openssl pkey"),
    ],
)
def test_what_is_wrong_with_a_chain_is_said(context, certificates, tmp_path, cert, key, message):
    from cryptography.hazmat.primitives import serialization as form

    loaded = form.load_pem_private_key(certificates.key.read_bytes(), None)
    encrypted = loaded.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.BestAvailableEncryption(b"x"))
    contents = {
        "EMPTY": b"none",
        "CERT": certificates.cert.read_bytes(),
        "KEY": certificates.key.read_bytes(),
        "OTHER": trustme.CA().issue_cert("localhost").private_key_pem.bytes(),
        "ENCRYPTED": encrypted,
        "BOTH ENCRYPTED": certificates.cert.read_bytes() + encrypted,
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_chain(context, tmp_path / cert, None if key is None else tmp_path / key)


def test_a_certificate_and_its_key_may_be_in_one_file(context, certificates, tmp_path):
    both = tmp_path / "both.pem"
    both.write_bytes(certificates.key.read_bytes() + certificates.cert.read_bytes())
    load_chain(context, both, None)
    load_chain(context, str(both), None)


def test_a_context_tells_until_when_its_certificate_is_valid(tmp_path):
    authority = trustme.CA()
    end = datetime.datetime(2030, 2, 3, 4, 5, 6, tzinfo=datetime.UTC)
    made = authority.issue_cert("localhost", not_after=end)
    both = tmp_path / "both.pem"  # the key first: the certificate is found behind it
    both.write_bytes(made.private_key_pem.bytes() + b"".join(blob.bytes() for blob in made.cert_chain_pems))
    context = trusting(ssl.Purpose.CLIENT_AUTH, "client_ca", None)
    assert not_after(context) is None
    load_chain(context, both, None)
    assert not_after(context) == end.timestamp()
