"""Connections to a server that does not let relay in: one event has one text in both backends."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from helpers import WAIT

import relay

BACKENDS = ("paramiko", "openssh")
CLOSED = "the server has closed the connection (the login was not finished)"


@pytest.fixture
def errors(spawner_thread: None, tmp_path: Path) -> Callable[..., tuple[str, str]]:
    """Returns how each backend fails at a server, ``errors(port, **options)``, and its stage; the same if it is one."""

    def by(backend: str, port: int, options: dict[str, Any]) -> tuple[str, str]:
        known = {} if "known_hosts" in options else {"known_hosts": str(tmp_path / backend), "accept_new": True}
        with relay.ssh(
            f"me@127.0.0.1:{port}", "127.0.0.1", 1, backend=backend, config=os.devnull, **known, **options
        ) as dialer:
            with pytest.raises(OSError, match="ssh:") as caught:
                dialer.ready(WAIT)
        name, _, text = str(caught.value).partition(f"me@127.0.0.1:{port}: ")
        assert name == "ssh://", str(caught.value)
        return f"{type(caught.value).__name__}: {text}", getattr(caught.value, "stage", "")

    def both(port: int, **options: Any) -> tuple[str, str]:
        first, second = (by(backend, port, options) for backend in BACKENDS)
        assert first == second
        return first

    return both


@pytest.fixture
def goodbye() -> Iterator[Callable[[str], int]]:
    """Runs a server that answers a password with DISCONNECT and these words, ``goodbye(words)``; returns its port."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    servers: list[asyncssh.SSHAcceptor] = []

    async def listen(words: str) -> asyncssh.SSHAcceptor:
        class Server(asyncssh.SSHServer):
            def password_auth_supported(self) -> bool:
                return True

            def validate_password(self, username: str, password: str) -> bool:
                raise asyncssh.DisconnectError(asyncssh.DISC_BY_APPLICATION, words)

        key = asyncssh.generate_private_key("ssh-ed25519")
        return await asyncssh.listen("127.0.0.1", 0, server_factory=Server, server_host_keys=[key])

    async def close() -> None:
        for server in servers:
            server.close()
            await server.wait_closed()

    def start(words: str) -> int:
        servers.append(asyncio.run_coroutine_threadsafe(listen(words), loop).result(WAIT))
        return servers[-1].get_port()

    yield start
    asyncio.run_coroutine_threadsafe(close(), loop).result(WAIT)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(WAIT)
    loop.close()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            "maintenance until 9; call Bob",
            "the server says: maintenance until 9; call Bob (the login was not finished)",
        ),
        ("until 9\r\n\r\n  call Böb C:\\x", "the server says: until 9 call Böb C:\\x (the login was not finished)"),
        ("", CLOSED),
    ],
)
def test_the_words_of_a_server_that_disconnects_are_shown(
    goodbye: Callable[[str], int], errors: Callable[..., tuple[str, str]], words: str, text: str
) -> None:
    assert errors(goodbye(words), password="x") == (f"CarrierError: {text}", "the login was not finished")
