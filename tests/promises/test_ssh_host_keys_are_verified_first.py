"""A key that is unknown, changed or not the one pinned: refused before anything is said about who logs in."""

import base64
import hashlib
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sshd import make_key, server_url

import relay


def refused(far_end, url):
    """The error, which is the same from every way to ask; nothing was tried at the server."""
    said = set()
    for attempt in (lambda: relay.connect("127.0.0.1:9", via=[url]), lambda: relay.ssh_listen(url)):
        with pytest.raises(relay.HostKeyError) as failed:
            attempt()
        said.add(str(failed.value))
    factory = relay.ssh(url, "127.0.0.1", 9)
    with pytest.raises(relay.HostKeyError):
        factory.ready()
    factory.close()
    assert far_end.logins == 0
    if far_end.kind == "embedded":
        assert far_end.rig.attempts == []
    else:
        assert "userauth" not in far_end.rig.log()
        assert "Failed" not in far_end.rig.log()
    [text] = said
    assert "\n" not in text
    return text


def fingerprint(far_end):
    key = base64.b64decode(Path(far_end.rig.known_hosts).read_text().split()[-1])
    return "SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")


def test_an_unknown_key(far_end, tmp_path):
    (tmp_path / "empty").touch()
    text = refused(far_end, far_end.address(known_hosts=tmp_path / "empty"))
    assert str(tmp_path / "empty") in text
    assert fingerprint(far_end) in text


def test_no_file_at_all(far_end, tmp_path):
    text = refused(far_end, far_end.address(known_hosts=tmp_path / "missing"))
    assert fingerprint(far_end) in text
    assert not (tmp_path / "missing").exists()


def test_a_changed_key(far_end, tmp_path):
    host = Path(far_end.rig.known_hosts).read_text().split()[0]
    other = make_key(tmp_path / "other")
    hosts = tmp_path / "hosts"
    hosts.write_text(f"# a comment\n\nsomebody.else {other}\n{host} {other}\n")
    text = refused(far_end, far_end.address(known_hosts=hosts))
    assert f"{hosts}:4" in text or f"{hosts} line 4" in text or f"{hosts}, line 4" in text
    assert fingerprint(far_end) in text
    assert "changed" in text


@pytest.mark.parametrize("accept_new", ["no", "yes"])
def test_a_key_of_another_type_is_no_new_host(far_end, tmp_path, accept_new):
    host = Path(far_end.rig.known_hosts).read_text().split()[0]
    hosts = tmp_path / "hosts"
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    hosts.write_text(f"{host} {other.public_bytes(*form).decode()}\n")
    text = refused(far_end, far_end.address(known_hosts=hosts, accept_new=accept_new))
    key = f"its host key ED25519 {fingerprint(far_end)} is not known"
    assert f"{key}, but one of another type is ({hosts} line 1: ECDSA SHA256:" in text
    assert "ssh-keygen -f" in text
    assert len(hosts.read_text().splitlines()) == 1


def test_a_revoked_key(far_end, tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("@revoked " + Path(far_end.rig.known_hosts).read_text())
    text = refused(far_end, far_end.address(known_hosts=hosts))
    assert "revoked" in text
    assert str(hosts) in text


def test_a_revoked_key_is_refused_even_if_it_is_pinned(far_end, tmp_path):
    hosts = tmp_path / "hosts"
    known = Path(far_end.rig.known_hosts).read_text()
    hosts.write_text(known + "@revoked * " + known.partition(" ")[2])
    text = refused(far_end, far_end.address(hostkey=fingerprint(far_end), known_hosts=hosts))
    assert "revoked" in text
    assert f"{hosts} line 2" in text


def test_beside_a_pin_nothing_else_is_trusted(far_end, tmp_path):
    """Each of these lines alone would let the server pass."""
    known = Path(far_end.rig.known_hosts).read_text()
    (tmp_path / "known").write_text(known)
    (tmp_path / "command").write_text(f"#!/bin/sh\ncat {tmp_path}/known\n")
    (tmp_path / "command").chmod(0o700)
    config = tmp_path / "config"
    config.write_text(
        f"NoHostAuthenticationForLocalhost yes\nKnownHostsCommand {tmp_path}/command\nVerifyHostKeyDNS yes\n"
        f"UserKnownHostsFile {tmp_path}/known\nGlobalKnownHostsFile {tmp_path}/known\nCheckHostIP yes\n"
        "StrictHostKeyChecking no\nUpdateHostKeys yes\n"
    )
    pin = "SHA256:" + "A" * 43
    text = refused(far_end, far_end.address(hostkey=pin, known_hosts=None, config=config, accept_new="yes"))
    assert pin in text
    assert fingerprint(far_end) in text


def test_localhost_is_verified_like_any_host(far_end, tmp_path):
    config = tmp_path / "config"
    config.write_text("NoHostAuthenticationForLocalhost yes\n")
    (tmp_path / "empty").touch()
    assert fingerprint(far_end) in refused(far_end, far_end.address(known_hosts=tmp_path / "empty", config=config))


def test_a_pin_fits_in_any_configuration(far_end, over_ssh, tmp_path):
    config = tmp_path / "config"
    config.write_text("FingerprintHash md5\nHostKeyAlias other\nCheckHostIP yes\n")
    over_ssh(far_end.address(hostkey=fingerprint(far_end), known_hosts=None, config=config)).connect()


def test_every_file_may_be_in_the_home_directory(far_end, over_ssh, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "config").write_text("HostKeyAlias server\n")
    (tmp_path / "known").write_text("server " + Path(far_end.rig.known_hosts).read_text().partition(" ")[2])
    (tmp_path / "key").symlink_to(far_end.server.keyfile)
    over_ssh(far_end.address(config="~/config", known_hosts="~/known", keyfile="~/key")).connect()


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa"])
def test_a_pin_fits_a_server_that_has_a_certificate(make_sshd, over_ssh, backend, tmp_path, kind):
    rig = make_sshd()
    rig.kill()
    for name, its_kind in (("authority", "ed25519"), ("key", kind)):
        subprocess.run(["ssh-keygen", "-q", "-t", its_kind, "-N", "", "-f", str(tmp_path / name)], check=True)
    public = tmp_path / "key.pub"
    sign = ["ssh-keygen", "-q", "-s", str(tmp_path / "authority"), "-I", "server", "-h", "-n", "127.0.0.1", str(public)]
    subprocess.run(sign, check=True)
    rig.configure(f"HostKey {tmp_path}/key", f"HostCertificate {tmp_path}/key-cert.pub", f"HostKeyAlgorithms *{kind}*")
    rig.start()
    key = base64.b64decode(public.read_text().split()[1])
    pin = "SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")
    over_ssh(server_url(rig.server, backend=backend, hostkey=pin, known_hosts=None)).connect()


def test_a_pin_that_does_not_fit(far_end):
    pin = "SHA256:" + "A" * 43
    text = refused(far_end, far_end.address(hostkey=pin, known_hosts=None))
    assert pin in text
    assert fingerprint(far_end) in text


def test_a_pin_that_fits_needs_no_file(far_end, over_ssh, tmp_path):
    url = far_end.address(hostkey=fingerprint(far_end), known_hosts=tmp_path / "missing")
    over_ssh(url).connect()
    assert not (tmp_path / "missing").exists()


def test_accept_new_writes_it_down_once(far_end, over_ssh, tmp_path):
    hosts = tmp_path / "hosts"
    url = far_end.address(known_hosts=hosts, accept_new="yes")
    with relay.Tunnel(relay.listen(":0"), relay.target("127.0.0.1:9", via=[url])):
        relay.ssh(url, "127.0.0.1", 9).ready()
    over_ssh(far_end.address(known_hosts=hosts)).connect()
    assert hosts.stat().st_mode & 0o022 == 0
    lines = hosts.read_text().splitlines()
    assert [line.split()[1:3] for line in lines] == [Path(far_end.rig.known_hosts).read_text().split()[1:3]]


def test_accept_new_does_not_take_a_changed_one(far_end, tmp_path):
    host = Path(far_end.rig.known_hosts).read_text().split()[0]
    hosts = tmp_path / "hosts"
    hosts.write_text(f"{host} {make_key(tmp_path / 'other')}\n")
    assert "changed" in refused(far_end, far_end.address(known_hosts=hosts, accept_new="yes"))
    assert len(hosts.read_text().splitlines()) == 1
