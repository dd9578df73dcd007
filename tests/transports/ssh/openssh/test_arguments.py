"""The command line of the master, and where its sockets are."""

from __future__ import annotations

import dataclasses
import os
import resource
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from relay.addresses.ssh import SSHServer
from relay.errors import RelayError
from relay.transports.ssh.connection import Settings
from relay.transports.ssh.openssh.arguments import arguments, environment, private_directory
from relay.transports.ssh.openssh.master import _remove

HERE = Settings(SSHServer("bastion"), "bastion.example", 22, "me")


def with_server(**fields: object) -> Settings:
    return dataclasses.replace(HERE, server=dataclasses.replace(HERE.server, **fields))


def effective(settings: Settings, given: bool = False) -> dict[str, str]:
    """Return what ssh makes of the command line."""
    argv = arguments(settings, "/tmp/x 100%", given=given, seconds=10)
    if "-F" not in argv:
        argv[1:1] = ["-F", "/dev/null"]
    run = subprocess.run([argv[0], "-G", *argv[1:]], capture_output=True, text=True, check=True)
    return dict(line.split(" ", 1) for line in run.stdout.splitlines() if " " in line)


def test_what_the_caller_did_not_say_is_left_to_ssh() -> None:
    argv = arguments(HERE, "/tmp/x", given=False, seconds=10)
    assert argv[-2:] == ["--", "bastion"]
    assert not {"-l", "-p", "-i", "-F"} & set(argv)
    assert [word for word in argv if "ProxyCommand" in word or "KnownHosts" in word] == []


def test_a_key_beside_those_of_the_configuration() -> None:
    """The client tries its default keys only where none is named."""
    settings = with_server(keyfile="/k%", identities_only=False)
    found = dataclasses.replace(settings, identities=("/k%", "/home/me/.ssh/id 1"))
    options = [word for word in arguments(found, "/tmp/x", given=False, seconds=10) if "Identit" in word]
    assert options == ['IdentityFile="/k%%"', 'IdentityFile="/home/me/.ssh/id 1"']
    assert effective(found)["identitiesonly"] == "no"


def test_what_the_caller_said_goes_before_the_configuration(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(
        "Host *\n  User other\n  Port 99\n  ControlPath /other\n  ControlPersist yes\n  BatchMode no\n"
        "  ServerAliveInterval 7\n  LogLevel QUIET\n  StrictHostKeyChecking no\n  ForkAfterAuthentication yes\n"
        "  UserKnownHostsFile /other\n  Compression yes\n"
    )
    known = "/home/me/known hosts 100%"
    found = effective(
        with_server(user="me", port=2222, known_hosts=known, config=str(config), keyfile="/k%", keepalive=4.2)
    )
    assert (found["user"], found["port"], found["userknownhostsfile"]) == ("me", "2222", known)
    assert (found["controlpath"], found["controlpersist"], found["batchmode"]) == ("/tmp/x 100%/control", "no", "yes")
    assert (found["serveraliveinterval"], found["serveralivecountmax"]) == ("4", "2")
    assert (found["loglevel"], found["stricthostkeychecking"], found["compression"]) == ("DEBUG", "true", "no")
    assert (found["forkafterauthentication"], found["clearallforwardings"]) == ("no", "yes")
    assert found["identitiesonly"] == "yes"


def test_ciphers_of_the_configuration_are_kept() -> None:
    assert effective(HERE)["ciphers"].startswith("aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20")
    chosen = dataclasses.replace(HERE, ciphers=("aes256-ctr",))
    assert not any("Ciphers" in word for word in arguments(chosen, "/tmp/x", given=False, seconds=1))


def test_no_keepalive_and_a_new_key() -> None:
    found = effective(dataclasses.replace(with_server(keepalive=None), accept_new=True))
    assert found["serveraliveinterval"] == "0"
    assert found["stricthostkeychecking"] == "accept-new"


def test_with_a_pin_no_other_source_of_trust_counts(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(
        "VerifyHostKeyDNS yes\nKnownHostsCommand /other\nUserKnownHostsFile /other\nGlobalKnownHostsFile /other\n"
        "CheckHostIP yes\nUpdateHostKeys yes\nStrictHostKeyChecking no\nNoHostAuthenticationForLocalhost yes\n"
    )
    pinned = with_server(hostkey="SHA256:" + "A" * 43, config=str(config), known_hosts="/other")
    found = effective(dataclasses.replace(pinned, accept_new=True))
    assert found["verifyhostkeydns"] == found["updatehostkeys"] == "false"
    assert found["nohostauthenticationforlocalhost"] == found["checkhostip"] == "no"
    assert found["stricthostkeychecking"] == "true"
    assert found["userknownhostsfile"] == found["globalknownhostsfile"] == "/dev/null"
    assert found["knownhostscommand"].endswith('AAA" %I %f %H %t %K')
    assert "gssapikeyexchange" not in " ".join(arguments(pinned, "/tmp/x", given=False, seconds=1)).lower()
    kerberos = dataclasses.replace(pinned, gssapi_key_exchange=True)
    assert "GSSAPIKeyExchange=no" in arguments(kerberos, "/tmp/x", given=False, seconds=1)


def test_a_given_connection_is_passed_on() -> None:
    found = effective(HERE, given=True)
    assert found["proxyusefdpass"] == "yes"
    assert "'/tmp/x 100%%/askpass'" in found["proxycommand"]
    assert (found["verifyhostkeydns"], found["canonicalizehostname"]) == ("false", "false"), "nothing is looked up here"


def test_a_secret_is_in_no_argument_environment_or_file(tmp_path: Path) -> None:
    settings = with_server(password="correct horse", passphrase="battery staple")
    argv = arguments(settings, str(tmp_path), given=True, seconds=1)
    assert "BatchMode=no" in argv
    added = environment(settings, str(tmp_path), given=False)
    script = Path(added["SSH_ASKPASS"])
    assert stat.S_IMODE(script.stat().st_mode) == 0o700
    for place in (*argv, *added.values(), script.read_text()):
        assert "horse" not in place
        assert "staple" not in place
    assert "SSH_ASKPASS_REQUIRE" not in environment(HERE, str(tmp_path), given=False)


def test_ssh_keeps_its_memory_unless_the_user_has_set_how_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    found = environment(HERE, str(tmp_path), given=False)
    assert found["MALLOC_TRIM_THRESHOLD_"] == "65536"
    assert int(found["MALLOC_MMAP_THRESHOLD_"]) > 4 << 20, "all of a buffer"


@pytest.mark.parametrize(("secret", "asks"), [({"passphrase": "x"}, "no"), ({"password_env": "X"}, "yes"), ({}, "no")])
def test_ssh_asks_for_no_password_where_none_was_given(tmp_path: Path, secret: dict[str, str], asks: str) -> None:
    config = tmp_path / "config"
    config.write_text("PasswordAuthentication yes\nKbdInteractiveAuthentication yes\n")
    found = effective(with_server(config=str(config), **secret))
    assert (found["passwordauthentication"], found["kbdinteractiveauthentication"]) == (asks, "yes")


def test_a_directory_is_private_and_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = private_directory()
    assert stat.S_IMODE(os.stat(made).st_mode) == 0o700
    os.rmdir(made)
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    made = private_directory()
    assert len(made) < 80
    os.rmdir(made)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(RelayError, match="TMPDIR"):
        private_directory()


def test_what_a_killed_program_left_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("relay.transports.ssh.openssh.arguments._ROOM", 200)
    names = ("dead", "dead-up", "empty", "begun", "alive", "up", "young", "foreign", "full")
    folders = [tmp_path / f"relay-ssh-{name}" for name in names]
    dead, dead_up, empty, begun, alive, up, _, foreign, full = folders
    for folder in folders:
        folder.mkdir()
    (foreign / "askpass").write_text("a file")
    (full / "host_key").write_text("of a server of relay.testing")
    (begun / "askpass~").write_text("")
    for folder in (empty, begun, foreign, full):
        os.utime(folder, (0, 0))
    for path in (dead / "askpass", dead_up / "askpass", dead_up / "control", up / "askpass"):
        with socket.socket(socket.AF_UNIX) as killed:
            killed.bind(str(path))
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as control:
        listening.bind(str(alive / "askpass"))
        listening.listen()
        control.bind(str(up / "control"))  # ssh is up, and asks us no more
        control.listen()
        (tmp_path / "relay-ssh-file").write_text("")
        made = Path(private_directory())
    left = {path.name for path in tmp_path.iterdir()} - {made.name}
    assert left == {f"relay-ssh-{name}" for name in ("alive", "up", "young", "foreign", "full", "file")}
    os.rmdir(made)


def test_the_end_of_a_client_removes_what_a_killed_worker_left(tmp_path: Path) -> None:
    own, dead = tmp_path / "relay-ssh-own", tmp_path / "relay-ssh-dead"
    own.mkdir()
    dead.mkdir()
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(dead / "askpass"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        _remove(str(own), os.getpid())  # an error here would leave the streams of the client open for ever
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    _remove(str(own), os.getpid())
    assert os.listdir(tmp_path) == []
