"""Programs that people really pipe through a relay: netcat, socat and curl, with half-close and bulk."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from helpers import BLOCK, WAIT, Server, ended, receive_all

import relay

UPLOAD = BLOCK * 8


def hash_it(connection: Any) -> None:
    """Answer the hash of all that came, once its end has come."""
    connection.sendall(hashlib.sha256(receive_all(connection)).hexdigest().encode())


def run(program: str, *arguments: str, data: bytes = b"") -> bytes:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    return subprocess.run([program, *arguments], input=data, capture_output=True, check=True, timeout=WAIT).stdout


@pytest.mark.parametrize("way", ["netcat", "netcat to a Unix socket", "socat", "socat to a Unix socket"])
def test_a_request_that_ends_by_a_half_close_is_answered(serve: Callable[..., Server], tmp_path: Any, way: str) -> None:
    server = serve(hash_it)
    receive = relay.listen(f"unix://{tmp_path}/socket" if "Unix" in way else ":0")
    with relay.Tunnel(receive, server.factory()) as tunnel:
        path = f"{tmp_path}/socket"
        arguments = {
            "netcat": ("nc", "-N", "127.0.0.1", str(tunnel.address[1])),
            "netcat to a Unix socket": ("nc", "-N", "-U", path),
            "socat": ("socat", "-t", "20", "-", f"TCP:127.0.0.1:{tunnel.address[1]}"),
            "socat to a Unix socket": ("socat", "-t", "20", "-", f"UNIX-CONNECT:{path}"),
        }
        assert run(*arguments[way], data=UPLOAD).decode() == hashlib.sha256(UPLOAD).hexdigest()
        assert ended(tunnel) == ["done"]
        assert tunnel.recent()[0].received == len(UPLOAD)


def test_curl_downloads_what_the_server_sends(serve: Callable[..., Server]) -> None:
    def page(connection: Any) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + UPLOAD)  # its end is the end of the connection

    with relay.Tunnel(relay.listen(":0"), serve(page).factory()) as tunnel:
        assert run("curl", "-s", "--noproxy", "*", f"http://127.0.0.1:{tunnel.address[1]}/") == UPLOAD
        assert ended(tunnel) == ["done"]
