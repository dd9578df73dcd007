"""Facts that key files show without a passphrase."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ssh_keys import certify, make

from relay.transports.ssh.config.identities import certified_key, file_type, key_type, public_key, strings

pytestmark = pytest.mark.usefixtures("spawner_thread")

KINDS = {"ed25519": "ssh-ed25519", "ecdsa": "ecdsa-sha2-nistp256", "rsa": "ssh-rsa"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("passphrase", ["", "secret"])
def test_the_public_key_of_a_private_file(tmp_path: Path, kind: str, passphrase: str) -> None:
    key = make(tmp_path / "key", kind, "-N", passphrase)
    public = public_key(str(key) + ".pub")
    os.unlink(str(key) + ".pub")
    assert public is not None and public_key(str(key)) == public
    assert file_type(str(key)) == KINDS[kind]


def test_a_pem_file_tells_only_by_the_file_beside_it(tmp_path: Path) -> None:
    key = make(tmp_path / "key", "rsa", "-m", "PEM")
    assert key_type(public_key(str(key)) or b"") == "ssh-rsa"
    os.unlink(str(key) + ".pub")
    assert public_key(str(key)) is None and file_type(str(key)) == ""


@pytest.mark.parametrize("kind", KINDS)
def test_which_key_a_certificate_is_of(tmp_path: Path, kind: str) -> None:
    key = make(tmp_path / "key", kind)
    authority = make(tmp_path / "ca", "ed25519")
    certificate = public_key(str(certify(key, authority, "-n", "me")))
    assert certificate is not None
    assert certified_key(certificate) == public_key(str(key))


def test_no_certificate() -> None:
    plain = b"\0\0\0\x0bssh-ed25519\0\0\0\x04abcd"
    assert certified_key(plain) is None
    assert certified_key(b"") is None
    cut = b"ssh-ed25519-cert-v01@openssh.com"
    assert certified_key(len(cut).to_bytes(4, "big") + cut) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"ssh-ed25519",
        b"ssh-ed25519 ????",
        b"ssh-ed25519 AAAAB3NzaC1yc2E=",
        b"\xff\xfe",
        b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n",
        b"-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEA/////w==\n-----END OPENSSH PRIVATE KEY-----\n",
    ],
)
def test_garbage_is_no_key(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    assert public_key(str(tmp_path / "key")) is None


def test_files_that_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path / "missing"):
        assert public_key(str(path)) is None


def test_strings_of_a_message() -> None:
    assert strings(b"\0\0\0\x01a\0\0\0\0rest", 2) == [b"a", b""]
    for cut in (b"", b"\0\0\0", b"\0\0\0\x02a", b"\xff\xff\xff\xff"):
        with pytest.raises(ValueError, match="cut off"):
            strings(cut, 1)
    assert key_type(b"\0\0\0\x01\xff") == ""
