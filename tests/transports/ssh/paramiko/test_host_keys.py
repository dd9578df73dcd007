"""Which host keys are trusted, and what is said of the others."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paramiko
import pytest
from helpers import WAIT, Thread
from ssh_keys import blob, line, make

from relay import HostKeyError
from relay.addresses.ssh import SSHServer
from relay.process import DEVNULL, PIPE, start
from relay.transports.ssh.config.identities import public_key
from relay.transports.ssh.config.known_hosts import append_entry, fingerprint
from relay.transports.ssh.connection import Settings
from relay.transports.ssh.paramiko import host_keys
from relay.transports.ssh.paramiko.host_keys import verify, wanted_algorithms

pytestmark = pytest.mark.usefixtures("spawner_thread")

ED25519 = blob(1)
OTHER = blob(2)
RSA = blob(3, b"ssh-rsa")
ECDSA = blob(4, b"ecdsa-sha2-nistp256")


class Key(paramiko.PKey):  # type: ignore[misc]
    """A host key as it comes out of the key exchange."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def asbytes(self) -> bytes:
        return self.data


@pytest.fixture
def trust(tmp_path: Path) -> Callable[..., Settings]:
    """``trust(lines…, **settings)``: settings for ``db`` with these lines in the user's file."""

    def make_settings(*lines: str, port: int = 22, wishes: dict[str, Any] | None = None, **more: Any) -> Settings:
        known = tmp_path / "known"
        known.write_text("".join(f"{text}\n" for text in lines))
        server = SSHServer("db", port=port, **(wishes or {}))
        name = "db" if port == 22 else f"[db]:{port}"
        return Settings(
            server, "db", port, "me", **{"known_hosts": (str(known), "/no/system"), "host_key_name": name, **more}
        )

    return make_settings


def refused(settings: Settings, data: bytes = ED25519) -> str:
    with pytest.raises(HostKeyError) as raised:
        verify(settings, Key(data))
    text = str(raised.value)
    assert text.startswith("ssh://db") and "\n" not in text
    return text


def test_the_command_to_forget_a_key_forgets_it(trust: Any) -> None:
    settings = trust(line("[db]:2222", OTHER), port=2222)
    command = re.search(r"ssh-keygen -f (\S+) -R '(\S+)'", refused(settings))
    assert command is not None
    assert start(["ssh-keygen", "-f", command[1], "-R", command[2]], stderr=DEVNULL).wait(WAIT) == 0
    assert "is not known" in refused(settings)


def test_a_certificate_authority_is_not_enough(trust: Any) -> None:
    text = refused(trust(line("@cert-authority *", OTHER), accept_new=True))
    assert "certificate authority" in text and "line 1" in text and "backend='openssh'" in text
    verify(trust(line("@cert-authority *", OTHER), line("db", ED25519)), Key(ED25519))


def test_a_key_of_the_plain_name_is_good_at_another_port(trust: Any) -> None:
    verify(trust(line("db", ED25519), port=2222), Key(ED25519))
    assert "changed" in refused(trust(line("db", ED25519), line("[db]:2222", OTHER), port=2222))
    assert "is not known" in refused(trust(line("db", OTHER), port=2222))
    assert "is not known" in refused(trust(line("db", ED25519), port=2222, host_key_name="alias"))
    assert "is revoked" in refused(trust(line("@revoked db", ED25519), port=2222))


@pytest.mark.parametrize("padding", ["", "="])
def test_a_pinned_key(trust: Any, padding: str) -> None:
    pin = {"hostkey": fingerprint(ED25519)}
    settings = trust(line("db", OTHER), line("@revoked db", RSA), wishes=pin)
    object.__setattr__(settings.server, "hostkey", fingerprint(ED25519) + padding)
    verify(settings, Key(ED25519))
    text = refused(settings, OTHER)
    assert fingerprint(OTHER) in text and f"hostkey={fingerprint(ED25519)}" in text


def test_a_new_host_is_written_down(trust: Any) -> None:
    settings = trust(line("web"), port=2222, accept_new=True)
    verify(settings, Key(ED25519))
    assert Path(settings.known_hosts[0]).read_text() == f"{line('web')}\n{line('[db]:2222', ED25519)}\n"
    verify(settings, Key(ED25519))
    assert "changed" in refused(settings, OTHER)


def test_a_new_file_is_the_users_alone(trust: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.transports.ssh.config.known_hosts.home", lambda: str(tmp_path))
    file = tmp_path / ".ssh" / "known_hosts"
    verify(trust(known_hosts=(str(file),), accept_new=True, hash_known_hosts=True), Key(ED25519))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert file.read_text().startswith("|1|")
    verify(trust(known_hosts=(str(file),)), Key(ED25519))


def test_a_file_that_cannot_be_written(trust: Any, tmp_path: Path) -> None:
    text = refused(trust(known_hosts=(str(tmp_path),), accept_new=True))
    assert f"cannot be written to {tmp_path}: Is a directory" in text
    assert "no file" in refused(trust(known_hosts=(), accept_new=True))


def test_no_directory_is_made_for_a_file_that_is_not_the_users_own(trust: Any, tmp_path: Path) -> None:
    text = refused(trust(known_hosts=(str(tmp_path / "new" / "known_hosts"),), accept_new=True))
    assert "known_hosts: No such file or directory; accept_new needs a writable file" in text
    assert not (tmp_path / "new").exists()


def test_many_connections_to_a_new_host_at_once(trust: Any) -> None:
    settings = trust(accept_new=True)
    for thread in [Thread(verify, settings, Key(ED25519)) for _ in range(8)]:
        thread.result()
    assert Path(settings.known_hosts[0]).read_text() == line("db", ED25519) + "\n"


def test_another_key_that_was_written_down_meanwhile(trust: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = trust(accept_new=True)

    def write_second(file: str, name: str, data: bytes, *, hashed: bool) -> None:
        append_entry(file, name, OTHER)
        append_entry(file, name, data, hashed=hashed)

    monkeypatch.setattr(host_keys, "append_entry", write_second)
    assert "changed" in refused(settings)


def test_which_algorithms_are_asked_for_first(trust: Any) -> None:
    assert wanted_algorithms(trust()) == ()
    assert wanted_algorithms(trust(line("db", RSA))) == ("rsa-sha2-512", "rsa-sha2-256")
    both = ("ecdsa-sha2-nistp256", "rsa-sha2-512", "rsa-sha2-256")
    assert wanted_algorithms(trust(line("db", RSA), line("db", ECDSA))) == both
    assert wanted_algorithms(trust(line("db", ECDSA), port=2222)) == ("ecdsa-sha2-nistp256",)
    assert wanted_algorithms(trust(line("@revoked db", RSA), line("@cert-authority db", ECDSA))) == ()
    assert wanted_algorithms(trust(line("db", RSA), host_key_algorithms=("ssh-ed25519",))) == ()


def test_a_pin_that_is_known_tells_its_type(trust: Any) -> None:
    lines = (line("db", RSA), line("db", ECDSA))
    assert wanted_algorithms(trust(*lines, wishes={"hostkey": fingerprint(RSA)})) == ("rsa-sha2-512", "rsa-sha2-256")
    assert wanted_algorithms(trust(*lines, wishes={"hostkey": fingerprint(ED25519)})) == ()


# -- as the client itself decides ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other_keys(tmp_path_factory: pytest.TempPathFactory, spawner_thread: None) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("keys")
    return {kind: public_key(str(make(folder / kind, kind))) or b"" for kind in ("ed25519", "ecdsa")}


@pytest.mark.parametrize("hashed", [False, True], ids=["plain", "hashed"])
@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["{place} OWN"],
        ["127.0.0.1 OWN"],
        ["{place} ed25519"],
        ["{place} ecdsa"],
        ["{place} ed25519", "{place} OWN"],
        ["{place} ed25519", "127.0.0.1 OWN"],
        ["127.0.0.1 ed25519"],
        ["@revoked {place} OWN", "{place} OWN"],
        ["@revoked * OWN", "{place} OWN"],
        ["@revoked {place} ed25519", "{place} OWN"],
        ["[127.0.0.*]:* OWN"],
        ["*,!{place} OWN"],
        ["@cert-authority {place} OWN"],
        ["garbage", "# {place} OWN", "{place} OWN"],
    ],
    ids=" + ".join,
)
def test_the_client_decides_the_same(
    sshd: Any, other_keys: dict[str, bytes], tmp_path: Path, lines: list[str], hashed: bool
) -> None:
    own = public_key(str(sshd.folder / "host_key.pub"))
    assert own is not None
    place = f"[127.0.0.1]:{sshd.port}"
    known = tmp_path / "known"
    known.write_text("".join(_line(text.format(place=place), {**other_keys, "OWN": own}) for text in lines))
    if hashed:
        start(["ssh-keygen", "-q", "-H", "-f", str(known)], stderr=DEVNULL).wait(
            WAIT
        )  # leaves a file with garbage alone
    wishes = {"known_hosts": str(known), "config": "none"}
    settings = Settings(
        SSHServer("127.0.0.1", sshd.user, sshd.port, **wishes),
        "127.0.0.1",
        sshd.port,
        sshd.user,
        known_hosts=(str(known),),
        host_key_name=place,
    )
    try:
        verify(settings, Key(own))
    except HostKeyError:
        trusted = False
    else:
        trusted = True
    assert trusted is _client_trusts(sshd, known)


def _line(text: str, keys: dict[str, bytes]) -> str:
    hosts, _, name = text.rpartition(" ")
    return (line(hosts, keys[name]) if name in keys else text) + "\n"


def _client_trusts(sshd: Any, known: Path) -> bool:
    settings = [
        "StrictHostKeyChecking=yes",
        f"UserKnownHostsFile={known}",
        "GlobalKnownHostsFile=none",
        "BatchMode=yes",
    ]
    argv = ["ssh", "-F", "none", *(word for one in settings for word in ("-o", one)), "-o", "PubkeyAuthentication=no"]
    child = start([*argv, "-p", str(sshd.port), f"{sshd.user}@127.0.0.1", "true"], stderr=PIPE)
    complaint = child.communicate(timeout=WAIT)[1].decode()
    assert "Permission denied" in complaint or "verification failed" in complaint, complaint
    return "Permission denied" in complaint
