"""Clients of the status server that take nothing of long answers: health checks, operators and streams go on."""

import contextlib
import json
import socket

import httpx
from command_rig import commands, run
from helpers import WAIT, receive_exactly, reserved_port

IDLE = 400  # connections, so that their list has 120 kB
SILENT = 100  # clients of the status server, of which it takes 128


def test_clients_that_read_nothing_hold_up_no_health_check_and_no_stream(tmp_path, echo_server):
    target = "{}:{}".format(*echo_server.address)
    file = tmp_path / "relay.toml"
    file.write_text(f'[tunnels.x]\nlisten = ":0"\ntarget = "{target}"\nrequired = true\n')
    file.chmod(0o600)
    with contextlib.ExitStack() as stack:
        status = stack.enter_context(reserved_port())
        start = stack.enter_context(commands())
        control = str(tmp_path / "c.sock")
        command = start(str(file), "--control", control, "--status", f"127.0.0.1:{status}", command="up")
        where = command.process.stdout.readline().partition("listening on ")[2].partition(" → ")[0].rpartition(":")
        clients = [stack.enter_context(socket.create_connection((where[0], int(where[2])), WAIT)) for _ in range(IDLE)]
        for client in clients:
            client.sendall(b"x")
            assert receive_exactly(client, 1) == b"x"
        for _ in range(SILENT):
            silent = stack.enter_context(socket.socket())
            silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            silent.settimeout(WAIT)
            silent.connect(("127.0.0.1", status))
            silent.sendall(b"GET /connections HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for check in ("/livez", "/readyz", "/readyz/x"):
            assert httpx.get(f"http://127.0.0.1:{status}{check}", timeout=WAIT).json()["status"] == "ok"
        for client in clients[::10]:
            client.sendall(b"y")
            assert receive_exactly(client, 1) == b"y"
        answer = json.loads(run("ctl", "connections", "--json", "--control", control).stdout)
        assert len(answer["connections"]) == IDLE
