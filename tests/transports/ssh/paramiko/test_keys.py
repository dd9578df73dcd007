"""Which keys are offered, in which order, and why others are not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paramiko
import pytest
from ssh_agent import RealAgent
from ssh_keys import certify, make

from relay import AuthenticationError
from relay.addresses.ssh import SSHServer
from relay.transports.ssh.config.identities import CERTIFICATE, key_type, public_key
from relay.transports.ssh.connection import Settings
from relay.transports.ssh.paramiko.keys import Keys, Offer, load

pytestmark = pytest.mark.usefixtures("spawner_thread")

SECRET = "correct horse"
KINDS = {"ed25519": "ssh-ed25519", "ecdsa": "ecdsa-sha2-nistp256", "rsa": "ssh-rsa"}


class Found:
    """The keys that are offered with these settings, and the notes."""

    def __init__(self, settings: Settings) -> None:
        self.notes: list[str] = []
        keys = Keys(settings, self.notes.append, lambda ask: ask())
        try:
            self.offers = list(keys)
            self.signatures = [bytes(offer.sign_ssh_data(b"data", _algorithm(offer))) for offer in self.offers]
        finally:
            keys.close()
        self.blobs = [offer.blob for offer in self.offers]


def _algorithm(offer: Offer) -> str:
    return offer.get_name().replace("ssh-rsa", "rsa-sha2-512")


def offered(*identities: Path, server: dict[str, Any] | None = None, **settings: Any) -> Found:
    value = SSHServer("db", **(server or {}))
    return Found(Settings(value, "db", 22, "me", identities=tuple(map(str, identities)), **settings))


def blob(path: Path | str) -> bytes:
    found = public_key(str(path))
    assert found is not None
    return found


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[RealAgent]:
    with RealAgent(tmp_path / "agent") as real:
        yield real


FORMATS = {"openssh": (), "pem": ("-m", "PEM"), "pkcs8": ("-m", "PKCS8")}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("passphrase", ["", SECRET])
def test_keys_of_files(tmp_path: Path, kind: str, form: str, passphrase: str) -> None:
    path = make(tmp_path / "key", kind, *FORMATS[form], "-N", passphrase)
    public = blob(f"{path}.pub")
    os.unlink(f"{path}.pub")
    found = offered(path, server={"passphrase": passphrase or None})
    assert found.blobs == [public] and found.notes == []
    key = paramiko.PKey.from_type_string(KINDS[kind], public)
    assert key.verify_ssh_sig(b"data", paramiko.Message(found.signatures[0]))


def test_a_passphrase_is_asked_for_only_when_it_is_needed(tmp_path: Path) -> None:
    asked: list[str] = []

    def answer(prompt: str) -> str:
        asked.append(prompt)
        return SECRET

    plain = make(tmp_path / "plain")
    locked = make(tmp_path / "locked", "ed25519", "-N", SECRET)
    assert offered(plain, locked, server={"passphrase": answer}).blobs == [blob(plain), blob(locked)]
    assert asked == [f"Passphrase for {locked}: "]


@pytest.mark.parametrize(("passphrase", "note"), [(None, "there is no passphrase"), ("wrong", "another passphrase")])
@pytest.mark.parametrize("form", FORMATS)
def test_an_encrypted_key_is_skipped_with_a_note(tmp_path: Path, form: str, passphrase: str | None, note: str) -> None:
    locked = make(tmp_path / "locked", "rsa", *FORMATS[form], "-N", SECRET)
    plain = make(tmp_path / "plain")
    found = offered(locked, plain, server={"passphrase": passphrase})
    assert found.blobs == [blob(plain)]
    assert len(found.notes) == 1 and f"{locked} is encrypted" in found.notes[0] and note in found.notes[0]
    assert "wrong" not in found.notes[0]


def test_a_passphrase_that_cannot_be_had_is_an_error(tmp_path: Path) -> None:
    locked = make(tmp_path / "locked", "ed25519", "-N", SECRET)
    with pytest.raises(AuthenticationError, match="passphrase_file.*No such file"):
        offered(locked, server={"passphrase_file": "/no/file"})


def test_files_that_are_of_no_use(tmp_path: Path) -> None:
    open_to_all = make(tmp_path / "open")
    open_to_all.chmod(0o644)
    (tmp_path / "garbage").write_text("garbage\n")
    (tmp_path / "garbage").chmod(0o600)
    (tmp_path / "cut").write_bytes(make(tmp_path / "whole").read_bytes()[:150])
    (tmp_path / "cut").chmod(0o600)
    paths = [tmp_path / name for name in ("open", "garbage", "cut", "missing")]
    found = offered(*paths)
    assert found.blobs == []
    assert [note.partition(" ")[0] for note in found.notes] == list(map(str, paths))
    assert "0644" in found.notes[0] and "chmod 600" in found.notes[0]
    assert "not a private key" in found.notes[1] and "not a private key" in found.notes[2]
    assert "No such file" in found.notes[3]


@pytest.mark.parametrize("kind", KINDS)
def test_certificates_go_before_their_keys(tmp_path: Path, kind: str) -> None:
    path = make(tmp_path / "key", kind)
    beside = certify(path, make(tmp_path / "ca"), "-n", "me")
    elsewhere = beside.rename(tmp_path / "elsewhere")
    assert offered(path).blobs == [blob(path)]
    assert offered(path, certificates=(str(elsewhere),)).blobs == [blob(elsewhere), blob(path)]
    elsewhere.rename(beside)
    found = offered(path, certificates=(str(beside), "/missing"))
    assert found.blobs == [blob(beside), blob(path)]
    assert found.offers[0].get_name() == KINDS[kind] + CERTIFICATE
    assert "certificate SHA256:" in found.offers[0].text


def test_a_certificate_of_another_key_is_not_used(tmp_path: Path) -> None:
    path, other = make(tmp_path / "key"), make(tmp_path / "other")
    certificate = certify(other, make(tmp_path / "ca"), "-n", "me")
    assert offered(path, certificates=(str(certificate),)).blobs == [blob(path)]


def test_the_agents_keys(tmp_path: Path, agent: RealAgent) -> None:
    paths = [make(tmp_path / name, "ed25519", "-C", name) for name in ("first", "second", "third")]
    for path in paths:
        agent.add(path)
    first, second, third = map(blob, paths)
    assert offered(agent=agent.path).blobs == [first, second, third]
    os.unlink(paths[1])
    named = Path(f"{paths[1]}.pub")
    assert offered(paths[2], named, agent=agent.path).blobs == [third, second, first]
    only = offered(named, agent=agent.path, identities_only=True)
    assert only.blobs == [second] and only.notes == []
    key = paramiko.PKey.from_type_string("ssh-ed25519", second)
    assert key.verify_ssh_sig(b"data", paramiko.Message(only.signatures[0]))
    assert offered(agent=agent.path).offers[0].text.startswith("the agent's first (ED25519 SHA256:")


@pytest.mark.parametrize("kind", KINDS)
def test_certificates_in_the_agent(tmp_path: Path, agent: RealAgent, kind: str) -> None:
    path = make(tmp_path / "key", kind)
    certificate = certify(path, make(tmp_path / "ca"), "-n", "me")
    agent.add(path)
    expected = sorted([blob(path), blob(certificate)])
    found = offered(agent=agent.path)
    assert sorted(found.blobs) == expected and not any(offer.problem for offer in found.offers)
    certificate.unlink()
    found = offered(path, agent=agent.path, identities_only=True)
    assert [key_type(one).endswith(CERTIFICATE) for one in found.blobs] == [True, False]


def test_a_public_key_that_the_agent_does_not_have(tmp_path: Path, agent: RealAgent) -> None:
    path = make(tmp_path / "key")
    found = offered(Path(f"{path}.pub"), agent=agent.path)
    assert found.blobs == [] and found.notes == [f"the key of {path}.pub is not in the agent"]


def test_an_agent_that_is_not_there_is_noted(tmp_path: Path) -> None:
    path = make(tmp_path / "key")
    found = offered(path, agent="/no/agent")
    assert found.blobs == [blob(path)]
    assert found.notes == ["the agent at /no/agent is not available: No such file or directory"]


def test_a_signature_that_cannot_be_had_raises_nothing(tmp_path: Path) -> None:
    def fail(data: bytes, algorithm: str) -> bytes:
        raise OSError("the agent refuses")

    offer = Offer(blob(f"{make(tmp_path / 'key')}.pub"), "the agent's key", fail)
    assert offer.sign_ssh_data(b"data") == b""
    assert offer.problem == "the agent refuses"


def test_load_says_what_is_wrong_in_words_that_follow_the_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="^cannot be read: No such file"):
        load(str(tmp_path / "none"), lambda: None)


def test_a_key_of_a_kind_that_paramiko_has_not(tmp_path: Path) -> None:
    path = make(tmp_path / "key")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey

    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path.write_bytes(Ed448PrivateKey.generate().private_bytes(serialization.Encoding.PEM, *form))
    assert offered(path).notes == [f"{path} holds a kind of key that paramiko cannot use"]


@pytest.mark.parametrize("form", ["OpenSSH", "PEM"])
@pytest.mark.parametrize("passphrase", ["", SECRET])
def test_a_key_that_is_out_of_date_prints_no_warning(tmp_path: Path, form: str, passphrase: str) -> None:
    """Warnings are errors here."""
    try:
        path = make(tmp_path / "key", "dsa", "-N", passphrase, *(["-m", "PEM"] if form == "PEM" else []))
    except AssertionError:
        pytest.skip("this ssh-keygen makes no such key any more")
    found = offered(path, server={"passphrase": SECRET})
    assert found.notes == [f"{path} holds a kind of key that paramiko cannot use"]


def test_keys_of_the_caller_come_first_each_after_its_certificate(tmp_path: Path) -> None:
    path, other = make(tmp_path / "key"), make(tmp_path / "other")
    certificate = certify(path, make(tmp_path / "authority"))
    key = paramiko.Ed25519Key.from_private_key_file(str(path))
    key.load_certificate(str(certificate))
    found = offered(other, keys=(key, paramiko.Ed25519Key.from_private_key_file(str(other))))
    assert found.blobs == [blob(certificate), blob(path), blob(other)]
    assert [offer.where for offer in found.offers] == ["the caller's key"] * 3
    assert all(found.signatures)
