"""One proxy for a browser: each name is reached where it lives, and what no rule allows is refused."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from command_rig import Command
from helpers import Server, wait_until

from relay.addresses.destinations import b32_of

WAYS = ["socks5h", "socks4a", "http"]


@pytest.fixture
def site(serve: Callable[..., Server]) -> Callable[[str], int]:
    """Makes web servers that have one page; returns the port of each."""

    def make(text: str) -> int:
        def page(connection: Any) -> None:
            connection.recv(65536)
            connection.sendall(f"HTTP/1.0 200 OK\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())

        return int(serve(page).address[1])

    return make


def fetch(proxy: str, url: str) -> tuple[int, str, str]:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = ["curl", "-sS", "--noproxy", "", "--proxytunnel", "--proxy", proxy, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("way", WAYS)
def test_each_name_where_it_lives(
    start: Callable[..., Command], site: Callable[[str], int], ssh_server: Any, i2p_double: Any, way: str
) -> None:
    rules = ["127.0.0.1=direct", f"*.corp.example={ssh_server.url}", f"localhost={ssh_server.url}"]
    listen = "http://127.0.0.1:0" if way == "http" else ":0"
    options = [word for rule in rules for word in ("--rule", rule)]
    command = start(listen, *options, "--sam", i2p_double.client, command="socks")
    proxy = "{}://{}:{}".format(way, *command.address())

    with i2p_double.serve(site("over I2P")) as published:
        assert fetch(proxy, f"http://127.0.0.1:{site('directly')}/") == (0, "directly", "")
        assert ssh_server.opened == 0

        port = site("over SSH")
        assert fetch(proxy, f"http://localhost:{port}/") == (0, "over SSH", "")
        assert fetch(proxy, f"http://localhost:{port}/") == (0, "over SSH", "")
        assert (ssh_server.opened, ssh_server.logins) == (2, 1)

        assert fetch(proxy, f"http://{b32_of(published.dest)}/") == (0, "over I2P", "")
        assert ssh_server.opened == 2

        status, page, said = fetch(proxy, f"http://127.0.0.2:{port}/")
        assert (status, page) == (56 if way == "http" else 97, "")
        assert "403" in said if way == "http" else "Can't complete SOCKS" in said

        status, page, _ = fetch(proxy, "http://gone.corp.example/")  # a name without an address, also on the server
        assert (status, page) == (56 if way == "http" else 97, "")
        assert ssh_server.opened + ssh_server.refused == 3

    assert "127.0.0.2" in command.hear("the rules refuse it")
    status, said = command.end()
    assert status == 0
    assert "6 connections" in said
    assert "1 denied" in said
    wait_until(lambda: ssh_server.connections == 0)
