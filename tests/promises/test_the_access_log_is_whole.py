"""``--log-file`` of the command: a line for each connection, and a new file on SIGUSR1."""

import contextlib
import json
import re
import signal
import socket
import subprocess

import pytest
from command_rig import run
from documents import ROOT
from helpers import WAIT, receive_all, receive_exactly, wait_until

FILTER = ROOT / "docs" / "fail2ban" / "relay.conf"


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def talk(address, words):
    with socket.create_connection(address, timeout=WAIT) as client:
        client.sendall(words)
        assert receive_exactly(client, len(words)) == words
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b""


def test_a_command_writes_it_and_opens_it_again(start, echo_server, tmp_path):
    path = tmp_path / "access.log"
    target = "{}:{}".format(*echo_server.address)
    command = start(":0", target, "--log-file", str(path), "--drain", "0.01")
    address = command.address()
    talk(address, b"one")
    wait_until(lambda: path.read_text())
    path.rename(old := tmp_path / "access.log.1")
    command.process.send_signal(signal.SIGUSR1)
    command.hear("SIGUSR1: the log file is open again")
    with socket.create_connection(address, timeout=WAIT) as client:
        client.sendall(b"more")
        assert receive_exactly(client, 4) == b"more"
        status, _ = command.end()  # the connection ends with the command, and has its line
        assert status == 0 or client.recv(1) == b""
    (first,), (last,) = lines(old), lines(path)
    assert (first["tunnel"], first["target"], first["in"], first["out"], first["reason"]) == (
        "forward",
        target,
        3,
        3,
        "done",
    )
    assert (first["local"], first["hops"]) == ("{}:{}".format(*address), [])
    assert first["by"] == "client" and first["connect_ms"] <= first["first_byte_ms"]
    assert (last["in"], last["reason"], last["by"]) == (4, "closed", "admin")
    assert first["id"] < last["id"]


def test_a_file_of_tunnels_has_one_for_all(start, echo_server, tmp_path):
    target = "{}:{}".format(*echo_server.address)
    config = tmp_path / "relay.toml"
    tunnels = "".join(f'[tunnels.{name}]\nlisten = ":0"\ntarget = "{target}"\n' for name in ("a", "b"))
    config.write_text(f'log_file = "access.log"\nlog_interval = "none"\n{tunnels}')
    command = start(str(config), command="up", cwd="/")
    found = dict(re.match(r"(\w): listening on (\S+) ", command.process.stdout.readline()).groups() for _ in "ab")
    for place in found.values():
        host, port = place.split(":")
        talk((host, int(port)), b"hello")
    path = tmp_path / "access.log"  # beside the file, wherever the command is
    wait_until(lambda: path.read_text().count("\n") == 2)
    assert {(line["tunnel"], line["local"]) for line in lines(path)} == set(found.items())
    assert command.end()[0] == 0


def test_a_log_file_that_cannot_be_opened_is_named(tmp_path):
    done = run("forward", ":0", "127.0.0.1:1", "--log-file", str(tmp_path / "none" / "access.log"))
    assert done.returncode == 2
    text = "access.log: No such file or directory; check the path and its permissions\n"
    assert done.stderr.startswith("relay: log file ") and done.stderr.endswith(text)


def matches(log, path):
    """Return the lines of a log that the filter of fail2ban takes."""
    path.write_text(log)
    done = subprocess.run(
        ["fail2ban-regex", "--print-all-matched", str(path), str(FILTER)],
        capture_output=True, text=True, timeout=WAIT, check=True,
    )  # fmt: skip
    return re.findall(r"^\|  (.*)$", done.stdout.partition("Matched line(s):")[2].partition("\n`-")[0], re.MULTILINE)


def test_fail2ban_finds_wrong_logins_and_nothing_else(start, tmp_path):
    (password := tmp_path / "password").write_text("secret\n")
    password.chmod(0o600)
    command = start(
        "http://127.0.0.1:0", "--user", "me", "--password-file", str(password),
        "--log-file", str(tmp_path / "access.log"), command="socks",
    )  # fmt: skip
    host, port = re.search(r"(127\.0\.0\.1):(\d+)", command.process.stdout.readline()).groups()
    for word in ("bWU6d3Jvbmc=", "bWU6d3Jvbmcy"):
        with socket.create_connection((host, int(port)), timeout=WAIT) as client:
            text = f"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nProxy-Authorization: Basic {word}\r\n\r\n"
            client.sendall(text.encode())
            assert b" 407 " in receive_all(client)
    status, log = command.end()
    assert status == 0
    forged = '12:00:00 WARNING web: "x 12:00:00 WARNING denied peer=198.51.100.1:1 tunnel=web rule=login (client a)\n'
    matched = matches(forged + log, tmp_path / "log")
    assert [re.search(r"denied (.*)$", line)[1].split(" ", 1)[1] for line in matched] == ["tunnel=socks rule=login"] * 2
    assert all(f"peer={host}:" in line for line in matched)
    found = lines(tmp_path / "access.log")
    assert [(line["rule"], line["reason"], line["by"]) for line in found] == [("login", "denied", "relay")] * 2


def test_fail2ban_never_bans_a_balancer(start, tmp_path):
    command = start(":0", "127.0.0.1:1", "--accept-proxy", "127.0.0.1", "--deny", "0.0.0.0/0")
    address = command.address()
    for sent in (b"", b"GET / HTTP/1.0\r\n\r\n", b"PROXY UNKNOWN\r\n", b"PROXY TCP4 192.0.2.7 192.0.2.8 1 2\r\n"):
        with socket.create_connection(address, timeout=WAIT) as balancer:
            balancer.sendall(sent)
            with contextlib.suppress(OSError):  # relay has reset it already, perhaps before its end
                balancer.shutdown(socket.SHUT_WR)
                assert balancer.recv(1) == b""
    status, log = command.end()
    assert status == 0
    assert "no valid header of the PROXY protocol" in log and "denied peer=- " in log
    (line,) = matches(log, tmp_path / "log")
    assert "denied peer=192.0.2.7:1 " in line


@pytest.mark.parametrize(
    ("line", "is_found"),
    [
        ("12:31:43 WARNING denied peer=203.0.113.5:51234 tunnel=web rule=login", True),
        ("12:31:43 WARNING denied peer=[2001:db8::7]:51234 tunnel=web rule=access-list", True),
        ("12:31:43 WARNING denied peer=[::ffff:203.0.113.6]:51234 tunnel=web rule=login", True),
        ("01:02:03 WARNING denied peer=1.2.3.4:1 tunnel=w rule=login; 5 more like this since the last such line", True),
        ("Nov 21 12:31:44 host relay[12]: 12:31:44 WARNING denied peer=203.0.113.8:1 tunnel=web rule=login", True),
        ("12:31:43 WARNING denied peer=203.0.113.5:51234 tunnel=web rule=deny cidr:203.0.113.0/24", True),
        ("01:02:03 WARNING denied peer=1.2.3.4:1 tunnel=w rule=limit ip/24:20/10s", True),
        ("12:31:43 WARNING denied peer=- tunnel=web rule=login", False),
        ("12:31:43 WARNING denied peer=unix:www-data tunnel=web rule=allow", False),
        ("12:31:43 WARNING denied peer=tls:203.0.113.9 tunnel=web rule=allow", False),
        ("12:31:43 WARNING denied peer=abc.b32.i2p tunnel=web rule=access-list", False),
        ("12:31:43 WARNING web: WARNING denied peer=203.0.113.10:51234 tunnel=web rule=login", False),
    ],
)  # fmt: skip
def test_the_filter_takes_the_lines_of_relay_only(line, is_found):
    done = subprocess.run(
        ["fail2ban-regex", line, str(FILTER)], capture_output=True, text=True, timeout=WAIT, check=False
    )
    assert f"Lines: 1 lines, 0 ignored, {int(is_found)} matched" in done.stdout
