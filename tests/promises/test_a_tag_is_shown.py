"""The ``tag`` of a tunnel is shown wherever operators see the tunnel, and a reload changes it in place."""

import json
import os
import socket

import httpx
import pytest
from command_rig import commands, run
from helpers import WAIT, receive_all, wait_until

import relay

TAG = 'Zahlungen, "Süd"'
FILE = """
status = "127.0.0.1:0"
log_file = "access.log"
workers = {workers}
[tunnels.web]
listen = ":0"
target = "{target}"
tag = {tag}
[tunnels.other]
listen = ":0"
target = "{target}"
"""


def talk(address):
    with socket.create_connection(address, timeout=WAIT) as client:
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b""


@pytest.mark.parametrize("workers", [1, 2])
def test_operators_see_it(workers, tmp_path, runtime_directory, echo_server):
    values = {"workers": workers, "target": "{}:{}".format(*echo_server.address)}
    file, log, environment = tmp_path / "relay.toml", tmp_path / "access.log", {**os.environ}
    file.touch(0o600)
    file.write_text(FILE.format(tag=json.dumps(TAG, ensure_ascii=False), **values))

    def ctl(*words):
        done = run("ctl", *words, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with commands() as start:
        command = start(str(file), command="up", env=environment)
        url = command.hear("status server at").partition("at ")[2].strip()
        command.hear("2 of 2 tunnels listen")
        shown = {tunnel["name"]: tunnel for tunnel in json.loads(ctl("list", "--json"))["tunnels"]}
        assert (shown["web"]["labels"], shown["other"]["labels"]) == ({"tag": TAG}, {})
        head, web, other = ctl("list").splitlines()
        assert head.endswith("tag") and web.endswith(TAG) and "Süd" not in other
        sample = 'relay_tunnel_info{tunnel="web",tag="Zahlungen, \\"Süd\\""} 1'
        assert [line for line in httpx.get(f"{url}/metrics").text.splitlines() if "tunnel_info{" in line] == [sample]
        address = socket.getaddrinfo("127.0.0.1", shown["web"]["listen"].rpartition(":")[2])[0][4]
        talk(address)
        wait_until(log.read_text)
        assert json.loads(log.read_text())["tag"] == TAG

        file.write_text(FILE.format(tag='"another"', **values))
        assert "web: tuned (tag)" in ctl("reload")
        talk(address)
        wait_until(lambda: log.read_text().count("\n") == 2)
        assert json.loads(log.read_text().splitlines()[1])["tag"] == "another"
        assert "another" in ctl("list")


def test_a_record_has_it(echo_server):
    with relay.Tunnel(relay.listen(":0"), relay.tcp(*echo_server.address), tag=TAG) as tunnel:
        with socket.create_connection(tunnel.address, timeout=WAIT):
            wait_until(tunnel.connections)
            assert [record.tag for record in tunnel.connections()] == [TAG]
        wait_until(tunnel.recent)
        assert [record.tag for record in tunnel.recent()] == [TAG]


@pytest.mark.parametrize("tag", ["x" * 65, "two\nlines", "a\x1b[2J", "\udcff"])
def test_one_that_cannot_be_shown_is_refused(tag):
    with relay.listen(":0") as receive:
        with pytest.raises(ValueError, match=r"^tag: .* is too long or has a control character; at most 64 printable"):
            relay.Tunnel(receive, relay.tcp("127.0.0.1", 1), tag=tag)
        with pytest.raises(TypeError, match=r"^tag: expected text, got int$"):
            relay.Tunnel(receive, relay.tcp("127.0.0.1", 1), tag=3)


@pytest.mark.parametrize("tag", ["x" * 65, "two\nlines"])
def test_a_command_and_a_file_refuse_it_likewise(tag, tmp_path):
    done = run("forward", ":0", "127.0.0.1:1", "--tag", tag)
    assert done.returncode == 2
    assert "--tag" in done.stderr and "too long or has a control character" in done.stderr
    file = tmp_path / "relay.toml"
    file.write_text(FILE.format(workers=1, target="127.0.0.1:1", tag=json.dumps(tag)))
    done = run("check", str(file))
    assert done.returncode == 2
    assert "web.tag" in done.stderr and "too long or has a control character" in done.stderr
