"""Operators control a running relay: the promise of ``relay ctl``, the control socket and the status address."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import httpx
import pytest
from command_rig import commands, run
from helpers import WAIT, receive_exactly, wait_until

FILE = """
status = "127.0.0.1:0"
[tunnels.web]
listen = ":0"
target = "{}:{}"
required = true
probe = "connect"
[tunnels.other]
listen = ":0"
target = "{}:{}"
"""
LAZY = ("starlette", "uvicorn", "anyio", "h11", "http.client")


@pytest.fixture
def file(tmp_path, echo_server):
    made = tmp_path / "relay.toml"
    made.touch(0o600)
    made.write_text(FILE.format(*echo_server.address, *echo_server.address))
    return made


def ctl(environment, *words, status=0):
    done = run("ctl", *words, env=environment)
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


def addresses(command):
    """Return the addresses where the tunnels listen, by name, and the address of the status server."""
    where = {}
    for _ in range(2):
        name, _, rest = command.process.stdout.readline().partition(": listening on ")
        where[name] = rest.partition(" → ")[0].rpartition(":")
    return {name: (host, int(port)) for name, (host, _, port) in where.items()}


def test_a_relay_is_shown_and_controlled_while_it_runs(file, environment):
    with commands() as start:
        command = start(str(file), command="up", env=environment)
        url = command.hear("status server at").partition("at ")[2].strip()
        where = addresses(command)
        command.hear("2 of 2 tunnels listen")
        (path,) = Path(environment["RUNTIME_DIRECTORY"]).glob("*.sock")

        # A second one does not start, and names the first.
        second = run("up", str(file), env=environment)
        assert (second.returncode, second.stdout) == (1, "")
        assert second.stderr == (
            f"relay: control socket {path}: relay runs already with {file}, process {command.process.pid}; "
            "relay ctl stop ends it\n"
        )

        # relay doctor knows it.
        text = file.read_text().replace('":0"', '"{}:{}"'.format(*where["web"]), 1)
        (asked := file.with_name("asked.toml")).write_text(text)
        done = run("doctor", "--config", str(asked), "web", env=environment)
        assert f"the running relay (process {command.process.pid}) listens here" in done.stdout, done

        with socket.create_connection(where["web"], WAIT) as client:
            client.sendall(b"ping")
            assert client.recv(4) == b"ping"
            assert "2 of 2 tunnels listen" in ctl(environment, "status")
            (shown,) = json.loads(ctl(environment, "connections", "--json"))["connections"]
            assert (shown["tunnel"], shown["received"], shown["state"]) == ("web", 4, "open")

            ctl(environment, "pause", "other")
            assert [each["state"] for each in json.loads(ctl(environment, "list", "--json"))["tunnels"]] == [
                "listening",
                "paused",
            ]
            ctl(environment, "resume", "other")
            assert "no such tunnel" in ctl(environment, "pause", "nope", status=2)

            assert ctl(environment, "reload") == "nothing has changed\n"
            before = file.read_text()
            file.write_text(before + "nconnect = 5\n")
            assert ctl(environment, "reload", "--dry-run") == "other: tuned (nconnect)\n"
            file.write_text(before + "nonsense = 5\n")
            assert "nonsense" in ctl(environment, "reload", status=1)

            ctl(environment, "kill", shown["id"])
            with pytest.raises(ConnectionResetError):
                client.recv(1)

        if shutil.which("curl"):
            curl = ["curl", "--silent", "--unix-socket", str(path), "http://localhost/tunnels/web"]
            answer = subprocess.run(curl, capture_output=True, check=True, timeout=WAIT).stdout
            assert json.loads(answer)["figures"]["accepted"] == 1

        wait_until(lambda: httpx.get(f"{url}/readyz", timeout=WAIT).status_code == 200)
        probe = json.loads(ctl(environment, "list", "--json"))["tunnels"][0]["probe"]
        assert (probe["kind"], probe["interval"], probe["problem"]) == ("connect", 30.0, "")
        assert httpx.post(f"{url}/stop", timeout=WAIT).status_code == 405
        ctl(environment, "drain", "web")
        assert httpx.get(f"{url}/readyz", timeout=WAIT).status_code == 503
        assert httpx.get(f"{url}/livez", timeout=WAIT).status_code == 200

        ctl(environment, "stop")
        status, said = command.wait()
        assert status == 0
        assert "SIGTERM: closing" in said
        assert not path.exists()


def test_while_connections_finish_it_is_alive_but_not_ready(file, environment):
    with commands() as start:
        command = start(str(file), command="up", env=environment)
        url = command.hear("status server at").partition("at ")[2].strip()
        where = addresses(command)
        with socket.create_connection(where["web"], WAIT) as client:
            client.sendall(b"ping")
            assert client.recv(4) == b"ping"
            command.process.send_signal(signal.SIGTERM)
            command.hear("SIGTERM: closing")
            answer = httpx.get(f"{url}/readyz", timeout=WAIT)
            assert (answer.status_code, answer.json()["status"]) == (503, "draining")
            assert httpx.get(f"{url}/livez", timeout=WAIT).status_code == 200
            client.sendall(b"more")
            assert client.recv(4) == b"more"
        assert command.wait()[0] == 0


@pytest.mark.parametrize("listens", [False, True], ids=["waiting", "listening"])
def test_nothing_of_the_server_is_imported_before_a_tunnel_listens(file, environment, tmp_path, listens):
    if not listens:
        file.write_text('[tunnels.one]\nlisten = "i2p:?sam=127.0.0.1:1"\ntarget = "127.0.0.1:1"\n')
    code = "import atexit, sys\natexit.register(lambda: print('loaded:', *sys.modules, file=sys.stderr))\n"
    (tmp_path / "sitecustomize.py").write_text(code)
    with commands() as start:
        command = start(str(file), "--debug", command="up", env={**environment, "PYTHONPATH": str(tmp_path)})
        command.hear("operators are served" if listens else "; 1 do not")
        status, said = command.end()
    assert status == 0
    loaded = {*said.partition("loaded:")[2].split()}
    assert "relay.cli.commands.up" in loaded
    assert ({*LAZY} & loaded != set()) is listens


def test_a_single_tunnel_has_the_same_by_its_options(echo_server, environment, tmp_path):
    path = os.path.join(environment["RUNTIME_DIRECTORY"], "x.sock")
    with commands() as start:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            words = (":0", "{}:{}".format(*echo_server.address), "--control", path, "--status", f"127.0.0.1:{port}")
            command = start(*words, env=environment)
            command.hear(f"status address 127.0.0.1:{port}: Address already in use; relay continues without")
            command.address()
        (tunnel,) = json.loads(ctl(environment, "list", "--json", "--control", path))["tunnels"]
        assert (tunnel["name"], tunnel["state"]) == ("forward", "listening")
        ctl(environment, "stop", "--control", path)
        assert command.wait()[0] == 0
    assert not os.path.exists(path)


def test_without_the_options_a_single_tunnel_has_no_socket(echo_server, environment):
    with commands() as start:
        command = start(":0", "{}:{}".format(*echo_server.address), env=environment)
        command.address()
        assert "no relay with a control socket" in ctl(environment, "status", status=2)
        assert command.end()[0] == 0


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--status", "0.0.0.0:0"], "relay: status address '0.0.0.0:0': other machines can reach it"),
        (["--status", "nonsense:"], "relay: "),
        (["--control", "/dev/null/x.sock"], "relay: "),
    ],
)
def test_a_wrong_address_is_one_line_before_anything_opens(file, environment, words, line):
    done = run("up", str(file), *words, env=environment)
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "words", "hop"),
    [
        ("forward", [":0", "{target}"], "1:target"),
        ("forward", [":0", "{target}", "--via", "{server}"], "2:target"),
        ("socks", [":0", "--via", "{server}"], "2:target"),
        ("expose", ["{target}", "--on", "{server}"], "1:target"),
    ],
    ids=["forward", "forward over ssh", "socks", "expose"],
)
def test_each_command_has_status_metrics_and_health(command, words, hop, echo_server, ssh_server, tmp_path):
    target = "{}:{}".format(*echo_server.address)
    words = [word.format(target=target, server=ssh_server.url) for word in words]
    path = str(tmp_path / "status")
    with commands() as start:
        started = start(*words, "--status", f"unix://{path}", command=command)
        line = started.process.stdout.readline()
        port = int(re.search(r":(\d+) ", line)[1])
        with socket.create_connection(("127.0.0.1", port), WAIT) as client:
            if command == "socks":
                client.sendall(b"\5\1\0\5\1\0\1\x7f\0\0\1" + echo_server.address[1].to_bytes(2))
                assert receive_exactly(client, 12)[3] == 0
            client.sendall(b"ping")
            assert receive_exactly(client, 4) == b"ping"
            with httpx.Client(transport=httpx.HTTPTransport(uds=path), base_url="http://relay", timeout=WAIT) as http:
                assert [http.get(f"/{check}").status_code for check in ("livez", "readyz", "instance")] == [200] * 3
                (tunnel,) = http.get("/tunnels").json()["tunnels"]
                assert (tunnel["name"], tunnel["state"], tunnel["figures"]["active"]) == (command, "listening", 1)
                assert [each["kind"] for each in http.get("/carriers").json()["carriers"]] == ["ssh"] * (
                    "ssh" in words[-1]
                )
                client.close()
                count = f'relay_connect_seconds_count{{tunnel="{command}",hop="{hop}"}} 1\n'
                wait_until(lambda: count in http.get("/metrics").text)
                assert "relay_config_reloads_total{" not in http.get("/metrics").text, "there is no file"
        assert started.end()[0] == 0
