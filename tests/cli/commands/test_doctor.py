"""``relay doctor`` with a file, of this machine, and as a command: what the promises do not show."""

import functools
import signal
import socket
import threading
from pathlib import Path

import pytest
from command_rig import commands
from doctor_rig import diagnose
from helpers import WAIT
from sshd import server_url

import relay
from relay.cli.commands import command
from relay.cli.doctor import explain
from relay.cli.doctor.wording import ADVICE
from relay.streams.trace import Stage
from relay.testing import SAMBridge


@pytest.fixture
def doctor(capsys):
    return functools.partial(diagnose, capsys)


@pytest.fixture
def status(capsys):
    """Runs it for people: the status, standard output, standard error."""

    def run(*arguments):
        code = command("doctor").main([*map(str, arguments)], prog_name="relay doctor", standalone_mode=False)
        said = capsys.readouterr()
        return code or 0, said.out, said.err

    return run


@pytest.fixture
def config(tmp_path):
    """Writes a relay.toml: ``config(db={"listen": …, "target": …})`` returns its path."""

    def write(**tunnels):
        path = tmp_path / "relay.toml"
        lines = []
        for name, keys in tunnels.items():
            lines += [f"[tunnels.{name}]", *(f"{key} = {_toml(value)}" for key, value in keys.items())]
        path.touch(0o600)
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


def _toml(value):
    return "[" + ", ".join(map(_toml, value)) + "]" if isinstance(value, (list, tuple)) else f'"{value}"'


def section(found, name):
    return next(part for part in found.report["sections"] if part["name"] == name)


def outcomes(part):
    return {check["step"]: check["status"] for check in part["checks"]}


# -- a file ------------------------------------------------------------------------------------------------------------


def test_tunnels_of_one_route_share_its_login(doctor, config, make_sshd, target):
    server = make_sshd()
    via = [server_url(server.server)]
    file = config(
        one={"listen": "127.0.0.1:0", "target": target, "via": via},
        two={"listen": "127.0.0.1:0", "target": target, "via": via},
    )
    found = doctor("--config", file)
    assert found.status == 0, found.checks
    assert server.logins == 1
    assert [part["name"] for part in found.report["sections"]] == ["one", "two", "machine"]
    assert outcomes(section(found, "one"))["login"] == "ok"
    assert outcomes(section(found, "two")).keys() >= {"forwarding", "target", "first bytes", "listen"}


def test_a_hop_that_has_failed_is_not_tried_again(doctor, config, ssh_server, target):
    host, port = ssh_server.address
    via = [f"ssh://me@{host}:{port}?config=/dev/null&backend=paramiko&hostkey=SHA256:{'A' * 43}"]
    file = config(
        one={"listen": "127.0.0.1:0", "target": target, "via": via},
        two={"listen": "127.0.0.1:0", "target": target, "via": via},
    )
    found = doctor("--config", file)
    assert found.status == 1
    assert outcomes(section(found, "one"))["host key"] == "failed"
    assert outcomes(section(found, "two"))["hops"] == "failed"
    assert "they have failed for one" in found.check("hops")["text"]


def test_a_program_that_is_missing(doctor, config):
    file = config(db={"listen": "127.0.0.1:0", "target": "db:5432", "via": ["exec:no-such-program %h %p"]})
    doctor("--config", file).names("configuration", "program not found", "install it")


def test_secrets_of_a_file_are_not_shown(status, config, target):
    via = [f"ssh://me:the-secret@{target}?config=/dev/null&backend=paramiko"]
    file = config(db={"listen": "127.0.0.1:0", "target": target, "via": via})
    for option in ([], ["--json"]):
        code, out, err = status("--config", file, *option, "--timeout", "3")
        assert code == 1
        assert "the-secret" not in out + err


def test_some_tunnels_by_name(doctor, config, target):
    tunnels = {name: {"listen": "127.0.0.1:0", "target": target} for name in ("one", "two", "three")}
    found = doctor("--config", config(**tunnels), "three", "one")
    assert [part["name"] for part in found.report["sections"]] == ["one", "three", "machine"]


def test_a_bad_file(status, config, target):
    code, out, err = status("--config", config(db={"listen": "127.0.0.1:0", "targett": target}))
    assert (code, out) == (2, "")
    assert "targett" in err


def test_a_file_that_is_missing(status, tmp_path):
    code, _, err = status("--config", tmp_path / "nothing.toml")
    assert (code, "No such file" in err) == (2, True)


def test_a_name_that_is_not_in_the_file(status, config, target):
    code, _, err = status("--config", config(db={"listen": "127.0.0.1:0", "target": target}), "dv")
    assert (code, "dv: no such tunnel" in err, "db" in err) == (2, True, True)


def test_a_proxy_tests_the_hops_of_its_rules(doctor, config, ssh_server):
    file = config(web={"listen": "socks5://127.0.0.1:0", "rule": [f"*={ssh_server.url}"]})
    found = doctor("--config", file)
    assert found.status == 0, found.checks
    assert {"login", "listen"} <= set(found.steps)


def test_a_remote_listener_is_opened_only_on_request(doctor, config, make_sshd, target):
    server = make_sshd("GatewayPorts no")
    file = config(site={"listen": f"{server_url(server.server)}&listen=0.0.0.0:8080", "target": target})
    found = doctor("--config", file)
    assert found.status == 0, found.checks
    assert found.check("remote listen")["status"] == "skipped"
    assert "GatewayPorts" in found.check("remote listen")["text"]


def test_a_remote_listener_is_opened_at_a_free_port(doctor, config, make_sshd, target):
    server = make_sshd()
    file = config(site={"listen": f"{server_url(server.server)}&listen=127.0.0.1:8080", "target": target})
    found = doctor("--config", file, "--listen")
    assert (found.status, found.check("remote listen")["status"]) == (0, "ok"), found.checks


def test_a_server_that_lets_nobody_listen(doctor, config, make_sshd, target):
    server = make_sshd("AllowTcpForwarding local")
    file = config(site={"listen": f"{server_url(server.server)}&listen=127.0.0.1:8080", "target": target})
    doctor("--config", file, "--listen").names("remote listen", "AllowTcpForwarding")


def test_a_server_without_gateway_ports(doctor, config, make_sshd, target, monkeypatch):
    """Another machine cannot be had here, so its connect is played."""
    server = make_sshd("GatewayPorts no")
    monkeypatch.setattr("relay.cli.doctor.listening.tcp", lambda host, port: relay.tcp("127.0.0.1", 1))
    file = config(site={"listen": f"{server_url(server.server)}&listen=0.0.0.0:8080", "target": target})
    doctor("--config", file, "--listen").names("gateway ports", "not reachable from this machine", "GatewayPorts")


def test_a_listener_at_i2p_is_proved_with_a_new_destination(doctor, config, target):
    with SAMBridge() as bridge:
        file = config(site={"listen": "i2p:", "target": target, "sam": bridge.sam, "session": "site"})
        found = doctor("--config", file, "--listen")
        assert (found.status, found.check("published")["status"]) == (0, "ok"), found.checks
        bridge.settings.publish_time = WAIT
        found = doctor("--config", file, "--listen", "--timeout", "1.5")
    found.names("published", "a second session", "router's console")


def test_a_listener_at_i2p_keeps_its_destination(doctor, config, target, tmp_path):
    keys = tmp_path / "site.keys"
    with SAMBridge() as bridge:
        file = config(site={"listen": "i2p:", "target": target, "sam": bridge.sam, "keys": keys})
        found = doctor("--config", file)
        assert found.status == 0, found.checks
        assert found.check("key file")["status"] == "skipped"
        assert not keys.exists()
        listener = relay.i2p_listen(sam=bridge.sam, keys=str(keys))
        with relay.Tunnel(listener, relay.target(target), timeout=None):
            assert listener.wait_published(WAIT)
            found = doctor("--config", file)
            assert listener.state == "published"
    assert (found.status, found.check("published")["status"]) == (0, "ok"), found.checks


# -- as a command ------------------------------------------------------------------------------------------------------


def test_for_people(status, target):
    code, out, err = status(target)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == target
    assert lines[1].startswith("  ✓ route ")
    assert lines[-1] in ("all is well", "nothing failed, 1 warning")
    assert "\x1b" not in out


def test_advice_has_a_line_of_its_own(status):
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        code, out, _ = status("127.0.0.1:{}".format(*reserved.getsockname()[1:]))
    assert code == 1
    assert "→ check that the service is running" in out
    assert out.splitlines()[-1].startswith("1 check failed")


def test_this_machine_alone(status):
    code, out, _ = status()
    assert code == 0
    assert out.startswith("this machine\n")
    for word in ("python", "dependencies", "paramiko", "open files", "kernel"):
        assert word in out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["a:1", "b:2"], "expected one ADDRESS"),
        (["no address"], "target 'no address'"),
        (["a:1", "--listen"], "--listen"),
        (["--sam", "127.0.0.1:7656"], "--sam"),
        (["a:1", "--via", "ssh://me:secret@b"], "password"),
        (["--config", "relay.toml", "--via", "ssh://b"], "--via"),
    ],
)
def test_a_wrong_command_line(status, config, target, monkeypatch, arguments, word):
    monkeypatch.chdir(config(db={"listen": "127.0.0.1:0", "target": target}).parent)
    code, out, err = status(*arguments)
    assert (code, out, word in err) == (2, "", True), err
    assert "secret" not in err


def test_the_whole_has_a_deadline(doctor, serve, certificates):
    over = threading.Event()
    place = "{}:{}".format(*serve(lambda connection: over.wait(WAIT)).address)
    try:
        found = doctor(f"tls://{place}?ca={certificates.ca}", "--timeout", "1")
    finally:
        over.set()
    found.names("tls", "no TLS handshake in time")


def test_an_interrupt_ends_it_at_once(serve):
    asked, over = threading.Event(), threading.Event()

    def hang(connection):
        asked.set()
        over.wait(WAIT)

    place = "{}:{}".format(*serve(hang).address)
    with commands() as start:
        running = start("127.0.0.1:9", "--via", f"ssh://me@{place}?config=/dev/null", command="doctor")
        assert asked.wait(WAIT)
        code, said = running.end(signal.SIGINT)
        over.set()
    assert code == 1
    assert "Traceback" not in said


def test_every_stage_has_a_limit_and_checks():
    assert set(explain.LIMITS) == set(explain._EXPLAINERS) == set(Stage)


def test_every_step_is_documented():
    page = (Path(__file__).parents[3] / "docs" / "doctor.md").read_text().partition("## Steps")[2]
    assert [step for step in ADVICE if f"`{step}`" not in page] == []
