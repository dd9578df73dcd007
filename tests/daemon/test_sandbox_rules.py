"""The rules of the sandbox for tunnels: files, ports, and what has no sandbox."""

from __future__ import annotations

import os
import socket
import ssl
import sys
import tempfile
from pathlib import Path

import pytest
from sandbox_rig import error_of, in_child, needs_landlock

import relay
from relay.daemon import sandboxed
from relay.daemon.options import Options
from relay.daemon.sandbox import Access, Sandbox, apply, merged
from relay.daemon.sandboxed import NotConfinableError, TunnelRules, file_rules, system_rules
from relay.daemon.tunnel_file import TunnelFile

READ, WRITE, EXECUTE = Access.READ, Access.WRITE, Access.EXECUTE

ALL = READ | WRITE
KEYS = "i2p:?keys=keys/site.dat"


@pytest.fixture
def rules(tmp_path, monkeypatch, spawner_thread):
    """The rules of the tunnels of a text, in a folder with folders and empty files."""
    monkeypatch.chdir(tmp_path)
    for name in ("keys", "tls", "run", "ssh"):
        (tmp_path / name).mkdir()
    for name in ("tls/ca.pem", "tls/cert.pem", "friends.txt", "ssh/key", "ssh/password"):
        (tmp_path / name).touch(0o600)

    def found(text):
        file = tmp_path / "relay.toml"
        file.touch(0o600)
        file.write_text(text.replace("FOLDER", str(tmp_path)))
        tunnels = TunnelRules()
        members = TunnelFile(str(file), Options(), "relay.toml").first()
        return merged(one for member in members for one in tunnels.of(member.plan))

    return found


def tunnel(listen="127.0.0.1:0", target="127.0.0.1:5432", *more):
    lines = ["[tunnels.one]", f'listen = "{listen}"', f'target = "{target}"' if target else "", *more]
    return "\n".join(lines) + "\n"


SSH = "ssh://me@bastion:2222?config=none&keyfile=ssh/key"


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        (tunnel(), {5432}),
        (tunnel(target="tls://127.0.0.1:8443?ca=tls/ca.pem"), {8443}),
        (tunnel(target="unix:///run/app.sock"), set()),
        (tunnel(target="i2p://name.i2p?sam=127.0.0.1:7000"), {7000}),
        (tunnel(target="name.i2p:80"), {7656}),
        (tunnel("i2p:?sam=127.0.0.1:7001", "127.0.0.1:80"), {7001, 80}),
        (tunnel("127.0.0.1:0", "db:5432", f'via = ["{SSH}"]'), {2222}),
        (tunnel("127.0.0.1:0", "db:5432", 'via = ["socks5://proxy:1080"]'), {1080}),
        (tunnel("127.0.0.1:0", "db:5432", f'via = ["socks5://proxy:1080", "{SSH}"]'), {1080}),
        (tunnel("127.0.0.1:0", "exec:date", f'via = ["{SSH}"]'), {2222}),
        (tunnel(f"{SSH}&listen=:8080", "127.0.0.1:80"), {2222, 80}),
        (tunnel("socks5://127.0.0.1:0", "", f'rule = ["*.corp.example={SSH}", "*=refuse"]'), {2222, 7656}),
        (tunnel("socks5://127.0.0.1:0", "", f'rule = ["*.corp.example={SSH}", "*=direct"]'), None),
        (tunnel("socks5://127.0.0.1:0", ""), None),
    ],
)
def test_the_ports_are_those_of_the_first_hop(rules, text, ports):
    assert rules(text).ports == ports


def test_a_proxy_says_why_it_needs_every_port(rules):
    assert rules(tunnel("socks5://127.0.0.1:0", "")).any_port == "one leads to every port"


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        (tunnel(target="tls://127.0.0.1:8443?ca=tls/ca.pem"), {"tls": READ}),
        (tunnel("tls://127.0.0.1:0?cert=tls/cert.pem"), {"tls": READ}),
        (tunnel("unix://FOLDER/run/one.sock"), {"run": ALL}),
        (tunnel(KEYS), {"keys": ALL}),
        (tunnel("i2p:", "127.0.0.1:80", 'keys = "keys/site.dat"', 'allow = ["friends.txt"]'), {"keys": ALL, "": READ}),
        (tunnel("127.0.0.1:0", "db:5432", f'via = ["{SSH}&password_file=ssh/password"]'), {"ssh": READ}),
        (
            tunnel("unix://FOLDER/run/one.sock", "anywhere", 'user = "guest"', 'password_file = "ssh/password"'),
            {"run": ALL, "ssh": READ},
        ),
    ],
)
def test_the_folders_of_files_are_used(rules, tmp_path, text, paths):
    found = rules(text).paths
    own = {path: access for path, access in found.items() if path.startswith(str(tmp_path))}
    assert own == {str(tmp_path / name): access for name, access in paths.items()}


def test_a_stored_session_is_in_the_data_directory(rules, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert rules(tunnel("i2p:")).paths == {str(tmp_path / "data" / "relay" / "i2p"): ALL}


def test_a_file_of_host_keys_may_be_written_to_and_its_folder_may_not(rules, tmp_path):
    """A program that may write in ``~/.ssh`` may write ``authorized_keys``. The file is made, for it to have a rule."""
    known = tmp_path / "ssh" / "known"
    found = rules(tunnel("127.0.0.1:0", "db:5432", f'via = ["{SSH}&known_hosts={known}&accept_new=yes"]')).paths
    assert found[str(known)] == ALL
    assert found[str(tmp_path / "ssh")] == READ
    assert known.read_bytes() == b""


def test_the_configuration_can_be_read_by_ssh_again(rules, tmp_path):
    ssh = sandboxed.which("ssh")
    if ssh is None:
        pytest.skip("there is no ssh (Debian: openssh-client)")
    found = rules(tunnel("127.0.0.1:0", "db:5432", f'via = ["{SSH}"]')).paths
    for program in (ssh, sys.executable):
        assert EXECUTE in found[os.path.realpath(program)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (tunnel(target="exec:cat"), "exec:cat is a program"),
        (tunnel("127.0.0.1:0", "db:1", 'via = ["exec:nc %h %p"]'), "exec:nc … is a program"),
        (tunnel("127.0.0.1:0", "db:1", 'via = ["ssh://bastion?backend=openssh"]'), "uses the OpenSSH client"),
        (tunnel("127.0.0.1:0", "db:1", 'via = ["ssh://bastion?config=config"]'), "has a ProxyCommand"),
        (tunnel("unix:///tmp/one.sock"), r"write in /tmp \(/tmp/one.sock\); choose a folder of its own"),
    ],
)
def test_programs_and_shared_folders_have_no_sandbox(rules, tmp_path, text, words):
    (tmp_path / "config").write_text("ProxyCommand nc %h %p\n")
    with pytest.raises(NotConfinableError, match=words):
        rules(text)


def test_a_configuration_that_cannot_be_read_leaves_the_ports_open(rules, tmp_path):
    """A retry may be able to read it; the tunnel reports it."""
    (tmp_path / "config").write_text("Nonsense yes\n")
    found = rules(tunnel("127.0.0.1:0", "db:1", 'via = ["ssh://bastion?config=config"]'))
    assert found.ports is None
    assert found.any_port.startswith("the SSH configuration for ssh://bastion cannot be read: ")


def test_a_file_in_a_shared_folder_is_read_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "relay.toml").touch()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "file").touch()
    (tmp_path / "link").symlink_to("linked/file")
    assert file_rules(reads=["~/relay.toml"]).paths == {str(tmp_path / "relay.toml"): READ}
    assert file_rules(reads=["~/link"]).paths == {str(tmp_path / "link"): READ, str(tmp_path / "linked"): READ}
    with tempfile.NamedTemporaryFile(dir="/tmp") as file:
        assert file_rules(reads=[file.name]).paths == {file.name: READ}
    with pytest.raises(NotConfinableError, match="choose a folder of its own"):
        file_rules(writes=["~/relay.log"])


def test_the_interpreter_can_import_what_it_needs():
    system = Sandbox(system_rules(), 7)
    for module in (os, relay, pytest):
        assert system.allows(str(Path(module.__file__).resolve()), READ)
    assert system.allows("/etc/hosts", READ)
    assert system.allows("/dev/null", READ | WRITE)
    assert system_rules().ports == {53}


def test_the_home_directory_of_a_service_is_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sandboxed, "home", lambda: str(tmp_path))
    for user, is_shared in ((0, True), (999, False), (1000, True)):
        monkeypatch.setattr(os, "getuid", lambda user=user: user)
        assert sandboxed._is_shared(str(tmp_path)) is is_shared
        assert sandboxed._is_shared(str(tmp_path.parent)) is True


@needs_landlock
def test_the_system_works_inside_and_shows_no_other_program(certificates):
    """Root may read the environment of others in ``/proc``, where Landlock does not prevent it by itself."""
    trusted = ssl.create_default_context().cert_store_stats()

    def inside():
        applied = apply(system_rules())
        with open("/proc/self/stat") as own, open("/dev/null", "w"):
            assert own.read().startswith(str(os.getpid()))
        assert os.listdir("/proc/self/fd")
        assert ssl.create_default_context().cert_store_stats() == trusted
        assert socket.getaddrinfo("localhost", 1)
        names = f"/proc/{os.getppid()}/environ", "/etc/shadow", certificates.key
        return [applied.abi, *(error_of(open, name) for name in names)]

    assert in_child(inside)[1:] == ["EACCES", "EACCES", "EACCES"]


@pytest.mark.parametrize(("user", "allowed"), [(0, False), (1000, True)])
def test_only_others_than_root_read_all_of_etc(monkeypatch, user, allowed):
    """The modes of its files protect what is secret there; the resolver's files are replaced there."""
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert Sandbox(system_rules(), 7).allows("/etc/shadow", READ) is allowed
