"""The sandbox of a command: its rules, on, off with a reason, and what it says to a reload."""

import logging
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from command_rig import commands, run
from helpers import WAIT
from sandbox_rig import error_of, in_child, needs_landlock

import relay
from relay import process
from relay.addresses.parse import parse_listen, parse_target
from relay.cli import output
from relay.daemon import sandboxed
from relay.daemon.options import EndpointPlan, LogPlan, Options
from relay.daemon.plan import make_plan
from relay.daemon.sandbox import Access, Rules, Sandbox, SandboxError, apply, merged
from relay.daemon.sandboxed import NotConfinableError, TunnelRules, file_rules, system_rules
from relay.daemon.tunnel_file import TunnelFile
from relay.errors import RelayError
from relay.transports.i2p import peer_uid
from relay.transports.ssh import confinement, connector
from relay.transports.ssh.connection import IncompatibleError, Settings

NOWHERE = (EndpointPlan(), LogPlan(None, None))


def plan(target="127.0.0.1:5432", listen="127.0.0.1:0"):
    return make_plan(parse_listen(listen), parse_target(target), Options(), name="one")


@pytest.fixture
def applied(monkeypatch):
    """The rules that were applied, by a sandbox that restricts nothing."""
    found = []

    def apply(rules):
        found.append(rules)
        return Sandbox(rules, 7)

    monkeypatch.setattr(sandboxed, "apply", apply)
    monkeypatch.setattr(sandboxed, "end_spawner", lambda: None)
    monkeypatch.setattr(sandboxed, "confine", lambda: None)
    monkeypatch.setattr(sandboxed, "_join", lambda: None)
    return found


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_the_rules_are_those_of_the_tunnels_and_of_the_command(applied, caplog, tmp_path, mode):
    for name in ("log", "run", "secret", "config"):
        (tmp_path / name).mkdir()
    endpoints = EndpointPlan(
        str(tmp_path / "run" / "control"), f"unix://{tmp_path}/run/status", False, str(tmp_path / "secret" / "token"),
        str(tmp_path / "config" / "relay.toml"),
    )  # fmt: skip
    with caplog.at_level(logging.INFO, "relay.cli"):
        made = sandboxed.sandboxed(mode, [plan()], endpoints, LogPlan(str(tmp_path / "log" / "access.log"), None))
    assert made.rules == applied[0]
    assert applied[0].ports == {53, 5432}
    own = {path: access for path, access in applied[0].paths.items() if path.startswith(str(tmp_path))}
    read, write = Access.READ, Access.READ | Access.WRITE
    expected = {"config": read, "secret": read, "run": write, "log": write}
    assert own == {str(tmp_path / name): access for name, access in expected.items()}
    assert caplog.messages == [f"sandbox: on: {made}"]


def test_auto_says_why_it_is_off(applied, caplog):
    with caplog.at_level(logging.INFO, "relay.cli"):
        assert sandboxed.sandboxed("auto", [plan("exec:cat")], *NOWHERE) is None
    assert caplog.messages == ["sandbox: off: exec:cat is a program"]
    assert applied == []


def test_on_fails_with_the_reason(applied):
    with pytest.raises(ValueError, match=r"^sandbox: cannot be applied: exec:cat is a program; change that, or set"):
        sandboxed.sandboxed("on", [plan("exec:cat")], *NOWHERE)


def test_a_kernel_without_it_is_a_reason_too(applied, caplog, monkeypatch):
    def fail(rules):
        raise SandboxError("this kernel has no Landlock")

    monkeypatch.setattr(sandboxed, "apply", fail)
    with caplog.at_level(logging.INFO, "relay.cli"):
        assert sandboxed.sandboxed("auto", [plan()], *NOWHERE) is None
    assert caplog.messages == ["sandbox: off: this kernel has no Landlock"]
    with pytest.raises(ValueError, match="this kernel has no Landlock"):
        sandboxed.sandboxed("on", [plan()], *NOWHERE)


def test_the_kernel_is_asked_about_closed_ends_before(applied, monkeypatch, tmp_path):
    """A lookup connects to a port of its own, which the sandbox prevents."""
    asked = []
    monkeypatch.setattr(peer_uid, "remember_kernel", lambda: asked.append(len(applied)))
    sandboxed.sandboxed("on", [plan()], *NOWHERE)
    assert asked == []
    sandboxed.sandboxed("on", [plan(listen=f"i2p:?keys={tmp_path}/site.dat")], *NOWHERE)
    assert asked == [1]


def test_the_log_goes_on_after_its_thread_was_ended(capfd):
    logger = logging.getLogger("relay.cli")
    with output.logged_to_stderr("text", verbose=False, debug=False):
        logger.info("before")
        with output.log_stopped():
            assert "relay-log" not in [thread.name for thread in threading.enumerate()]
            logger.info("meanwhile")
        logger.info("after")
    assert [line.split()[-1] for line in capfd.readouterr().err.splitlines()] == ["before", "meanwhile", "after"]


# What a reload asks.


def sandbox_for(*plans):
    return Sandbox(sandboxed.merged(rules for one in plans for rules in sandboxed.TunnelRules().of(one)), 7)


def test_a_tunnel_that_needs_more_is_forbidden(tmp_path):
    (tmp_path / "ca.pem").touch()
    inside = sandbox_for(plan(), plan("127.0.0.1:5433"))
    assert sandboxed.forbidden(inside, [plan("127.0.0.1:5433")], *NOWHERE) == []
    more = [plan(f"tls://127.0.0.1:443?ca={tmp_path}/ca.pem"), plan("exec:cat")]
    words = "the sandbox does not let relay"
    assert sandboxed.forbidden(inside, more, EndpointPlan(status="nonsense:x:y"), LogPlan(f"{tmp_path}/log", None)) == [
        f"control, status, log_file and state: {words} read {tmp_path}, write to {tmp_path}; restart relay",
        f"one: the sandbox does not let relay read {tmp_path}, connect to port 443; restart relay",
        "one: the sandbox does not let relay do that: exec:cat is a program; restart relay",
    ]


def test_a_file_that_was_replaced_in_a_shared_folder_needs_a_restart(tmp_path):
    file = tmp_path / "relay.toml"
    file.touch()
    inside = Sandbox(Rules({str(file): Access.READ}), 7)
    assert sandboxed.unreadable(inside, str(file)) == ""
    (tmp_path / "new").touch()
    (tmp_path / "new").rename(file)
    assert sandboxed.unreadable(inside, str(file)) == (
        f"{file}: it was replaced, and the sandbox does not let relay read the new file; restart relay"
    )


# Programs.


def test_the_next_child_gets_another_thread_inside():
    """The thread that has made children before would be outside of the sandbox."""

    def names():
        return [thread.name for thread in threading.enumerate() if thread.name == "relay-spawner"]

    def inside():
        process.start(["true"]).wait(WAIT)
        before = names()
        process.end_spawner()
        after = names()
        return [before, after, process.start(["true"]).wait(WAIT), names()]

    assert in_child(inside) == [["relay-spawner"], [], 0, ["relay-spawner"]]


@pytest.mark.parametrize("program", ["the OpenSSH client", "ProxyCommand"])
def test_a_configuration_that_has_changed_starts_no_program(monkeypatch, program):
    """The sandbox is for the rules of the start."""
    server = connector.SSHServer("host")
    is_client = program == "the OpenSSH client"
    settings = Settings(server, "host", 22, "me", command=None if is_client else "nc", requires_openssh="x" * is_client)
    monkeypatch.setattr(connector, "resolve_settings", lambda server, behind: settings)
    monkeypatch.setattr(confinement, "_is_confined", True)
    one = connector._SSHConnector(server, connector_network(), connector._Addresses())
    with pytest.raises(RelayError, match=f"the sandbox does not let relay start {program}; restart relay"):
        one.connect(0.0, None, lambda error: None)
    one._tried = "paramiko"
    assert one.alternative(IncompatibleError("no algorithm")) == ""
    one.close()


def connector_network():
    from relay.transports.chain import network

    return network(())


# The command.


@pytest.fixture
def file(tmp_path):
    made = tmp_path / "relay.toml"
    made.touch(0o600)

    def write(text):
        made.write_text(text)
        return str(made)

    (tmp_path / "config").write_text("ProxyCommand nc %h %p\n")
    return write


TUNNEL = '[tunnels.one]\nlisten = "127.0.0.1:0"\ntarget = "{}"\nvia = [{}]\n'


def test_a_program_turns_it_off_with_one_line(file):
    with commands() as start:
        file = file('sandbox = "auto"\n' + TUNNEL.format("127.0.0.1:1", '"ssh://host?config=config"'))
        command = start(file, command="up", stdin=subprocess.DEVNULL)
        assert command.hear("sandbox: ").endswith("sandbox: off: ssh://host has a ProxyCommand\n")
        command.hear("1 of 1 tunnels listen")
        status, said = command.end()
    assert status == 0
    assert said.count("sandbox") == 1


def test_on_opens_nothing_without_it(file):
    done = run("up", file('sandbox = "on"\n' + TUNNEL.format("exec:cat", "")), stdin=subprocess.DEVNULL)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "relay: sandbox: cannot be applied: exec:cat is a program; change that, or set sandbox to auto or off\n"
    )


def test_it_is_off_by_default_and_the_command_line_wins(file):
    text = TUNNEL.format("127.0.0.1:1", "")
    with commands() as start:
        for more, options in (("", ()), ('sandbox = "on"\n', ("--sandbox", "off"))):
            command = start(file(more + text), *options, command="up", stdin=subprocess.DEVNULL)
            command.hear("1 of 1 tunnels listen")
            status, said = command.end()
            assert status == 0
            assert "sandbox" not in said


@needs_landlock
@pytest.mark.parametrize("words", [("forward", "127.0.0.1:0"), ("socks", "127.0.0.1:0")])
def test_the_commands_of_one_tunnel_have_it_too(words, echo_server):
    target = [f"127.0.0.1:{echo_server.address[1]}"] if words[0] == "forward" else []
    with commands() as start:
        command = start(*words[1:], *target, "--sandbox", "on", command=words[0])
        command.hear("sandbox: on: Landlock ABI")
        command.address()
        status, said = command.end()
    assert status == 0
    assert ("any port (socks leads to every port)" in said) == (words[0] == "socks")


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
        (tunnel("sni://127.0.0.1:0", "", 'rule = ["a=tcp://10.0.0.1:8443", "b=unix:///run/b"]'), {8443, 7656}),
        (tunnel("sni://127.0.0.1:0", "", 'rule = ["a=tcp://10.0.0.1:8443", "b=direct"]'), None),
        (tunnel("redirect://127.0.0.1:0", ""), None),
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
