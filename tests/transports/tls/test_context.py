"""Certificates in files: contexts that verify by default, and errors that name the argument and the file."""

from __future__ import annotations

import datetime
import os
import ssl
from types import SimpleNamespace

import pytest
import trustme

from relay.transports.tls import context as module
from relay.transports.tls.context import Credentials, load_chain, not_after, trusting


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
        f"it: {bench.key}: key: No such file or directory; the certificates loaded before stay in use"
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
