"""Certificates in files: contexts that verify by default, clear errors, and the names in a client's certificate."""

import datetime
import os
import ssl
from types import SimpleNamespace

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from relay.transports.tls import context as module
from relay.transports.tls.context import (
    Credentials,
    certificate_of,
    identity_of_client,
    load_chain,
    not_after,
    trusting,
)


def test_a_client_verifies_by_default():
    context = trusting(ssl.Purpose.SERVER_AUTH, "ca", None)
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION


def test_a_server_asks_for_certificates_only_with_an_authority(certificates):
    assert trusting(ssl.Purpose.CLIENT_AUTH, "client_ca", None).verify_mode == ssl.CERT_NONE
    assert trusting(ssl.Purpose.CLIENT_AUTH, "client_ca", certificates.ca).verify_mode == ssl.CERT_REQUIRED


@pytest.fixture
def context():
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


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


# -- files that change ------------------------------------------------------------------------------------------------


class Bench:
    """Credentials of a server of which the test moves the clock and counts the looks at files."""

    def __init__(self, folder, monkeypatch):
        self.now, self.looks = 100.0, 0
        self.cert, self.key = folder / "cert.pem", folder / "key.pem"
        stat = os.stat
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(module, "os", SimpleNamespace(**vars(os) | {"stat": lambda path: self._stat(stat, path)}))
        self.renew()
        self.credentials = Credentials(self.make, self.cert, self.key, None)
        self.looks = 0

    def _stat(self, stat, path):
        self.looks += 1
        return stat(path)

    @staticmethod
    def make(cert, key, ca):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        load_chain(context, cert, key)
        return context

    def renew(self, *, cert=True, key=True):
        """Write another certificate, its key, or both."""
        made = trustme.CA().issue_cert("localhost")
        if cert:
            made.cert_chain_pems[0].write_to_path(self.cert)
        if key:
            made.private_key_pem.write_to_path(self.key)

    def later(self, seconds=1.0):
        """Return the context for a handshake after some time."""
        self.now += seconds
        return self.credentials.current("it")


@pytest.fixture
def bench(tmp_path, monkeypatch):
    return Bench(tmp_path, monkeypatch)


def test_files_that_stay_are_looked_at_once_a_second_and_read_once(bench):
    context = bench.later(0.0)
    assert [bench.later(0.25) for _ in range(7)] == [context] * 7
    assert bench.looks == 2, "two files, in the fourth handshake"
    assert (bench.credentials.loads, bench.credentials.failures) == (0, 0)


def test_changed_files_make_another_context(bench, caplog):
    caplog.set_level("INFO", "relay.tls")
    context = bench.later()
    end = bench.credentials.not_after()
    bench.renew()
    assert bench.later(0.5) is context, "it has looked already"
    renewed = bench.later(0.5)
    assert renewed is not context and bench.later() is renewed
    assert (bench.credentials.loads, bench.credentials.failures) == (1, 0)
    assert caplog.messages == ["it: loaded the certificates again, because their files have changed"]
    assert bench.credentials.not_after() == not_after(renewed) and end is not None


def test_a_certificate_without_its_key_keeps_the_old_pair_and_warns_once(bench, caplog):
    context = bench.later()
    bench.renew(key=False)
    assert bench.later() is bench.later() is context
    bench.renew(key=False)
    assert bench.later() is context
    (warning,) = caplog.messages
    assert warning.startswith(f"it: key: the key in {bench.key} is not that of the certificate in {bench.cert}; ")
    assert warning.endswith("; the certificates loaded before stay in use")
    assert (bench.credentials.loads, bench.credentials.failures) == (0, 2)
    bench.renew()
    assert bench.later() is not context
    bench.renew(cert=False)
    bench.later()
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 2, "it was right meanwhile"


def test_a_file_that_is_gone_keeps_the_old_pair(bench, caplog):
    context = bench.later()
    bench.key.unlink()
    assert bench.later() is context
    assert caplog.messages == [
        f"it: {bench.key}: key: No such file or directory; check the path; the certificates loaded before stay in use"
    ]
    bench.renew()
    assert bench.later() is not context


def test_a_file_that_is_replaced_by_one_of_the_same_size_and_time_has_changed(bench, tmp_path):
    """Kubernetes and certbot move a link; some tools keep the time of a file that they copy."""
    context, status = bench.later(), os.stat(bench.cert)
    copy = tmp_path / "copy"
    copy.write_bytes(bench.cert.read_bytes())
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
    copy.rename(bench.cert)
    assert bench.later() is not context


def test_relative_paths_are_those_of_the_start(bench, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    credentials = Credentials(bench.make, "cert.pem", "key.pem", None)
    before = credentials.current("it")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    bench.renew()
    bench.now += 1
    assert credentials.current("it") is not before
    assert credentials.failures == 0


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
