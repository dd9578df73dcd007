"""Connections to a server that does not let relay in: one event has one text in both backends."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from helpers import WAIT, refusing
from sshd import make_key

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


def sends(words: bytes) -> Callable[[socket.socket], None]:
    """Return a handler that sends words and EOF, and reads what the client sends: a close would reset it."""

    def serve(connection: socket.socket) -> None:
        connection.sendall(words)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass

    return serve


def reset(connection: socket.socket) -> None:
    connection.recv(5)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


NO_VERSION = "it has not sent an SSH version"
CHECK = f"({NO_VERSION}); check the port, and MaxStartups of the server"
NO_SERVERS = {
    "closed at once": (sends(b""), f"the server has closed the connection {CHECK}", ""),
    "reset at once": (reset, f"Connection reset by peer {CHECK}", ""),
    "another service": (
        sends(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        "no SSH server: it sent 'HTTP/1.1 400 Bad Request'; check the port",
        NO_VERSION,
    ),
    "overloaded": (
        sends(b"Exceeded MaxStartups\r\n"),
        "the server takes no connection now: it sent 'Exceeded MaxStartups'; check its MaxStartups and its log",
        "",
    ),
    "penalty": (
        sends(b"Not allowed at this time\r\n"),
        "the server takes no connection now: it sent 'Not allowed at this time'; check its MaxStartups and its log",
        "",
    ),
    "closed in the key exchange": (
        sends(b"SSH-2.0-x\r\n"),
        "the server has closed the connection (the key exchange was not finished)",
        "the key exchange was not finished",
    ),
}


@pytest.mark.parametrize(("handler", "text", "stage"), NO_SERVERS.values(), ids=NO_SERVERS)
def test_what_is_no_ssh_server(serve: Any, errors: Any, handler: Any, text: str, stage: str) -> None:
    assert errors(serve(handler).address[1]) == (f"CarrierError: {text}", stage)


def test_a_closed_port(errors: Any) -> None:
    with refusing() as (host, port):
        text = f"ConnectError: {host}:{port}: connection refused; check that the service is running"
        assert errors(port) == (text, "")


ADD = "add the public key to its authorized_keys, or set keyfile to another key"
REJECTED = {
    "key": ({}, f"publickey; rejected: KEY; {ADD}"),
    "key, and no password": ({"users": {"me": "x"}}, f"password, publickey; rejected: KEY; {ADD}; set password,"),
    "key and password": (
        {"users": {"me": "x"}, "options": {"password": "y"}},
        f"password, publickey; rejected: KEY, password; the password or the user name is wrong; {ADD}",
    ),
    "passphrase": (
        {"users": {"me": "x"}, "options": {"keyfile": "locked", "passphrase": "nope"}},
        (
            "password, publickey; no credential was available; "
            "LOCKED is encrypted with another passphrase than the one that was given; set password,"
        ),
    ),
    "no passphrase": (
        {"options": {"keyfile": "locked"}},
        (
            "publickey; no credential was available; "
            "LOCKED is encrypted and there is no passphrase for it; set passphrase, or run ssh-add"
        ),
    ),
}


@pytest.mark.parametrize(("how", "text"), REJECTED.values(), ids=REJECTED)
def test_a_rejected_login(make_ssh_server: Any, errors: Any, tmp_path: Path, how: Any, text: str) -> None:
    make_key(tmp_path / "key")
    locked = make_key(tmp_path / "locked", "open sesame")
    server = make_ssh_server(users=how.get("users", {"me": None}), authorized_keys=[locked])
    options = {"keyfile": "key", **how.get("options", {})}
    said, _ = errors(server.address[1], **{**options, "keyfile": str(tmp_path / options["keyfile"])})
    said = re.sub(r"\S+/key \(ED25519 SHA256:\S+\)", "KEY", said).replace(str(tmp_path / "locked"), "LOCKED")
    assert said.startswith(f"AuthenticationError: login as me was rejected; the server accepts {text}")


HOST_KEYS = {
    "unknown": ("", {}, "its host key ED25519 {} is not known (looked in {known_hosts}"),
    "changed": (
        "[127.0.0.1]:{port} {key}",
        {},
        "its host key has changed to ED25519 {}, while {known_hosts} line 1 has SHA256:",
    ),
    "revoked": ("@revoked {own}", {}, "the host key ED25519 {} is revoked ({known_hosts} line 1); do not connect"),
    "pinned": ("", {"hostkey": "SHA256:" + "A" * 43}, "it offers the host key ED25519 {}, and hostkey=SHA256:AAAA"),
}


@pytest.mark.parametrize(("line", "options", "text"), HOST_KEYS.values(), ids=HOST_KEYS)
def test_a_host_key(ssh_server: Any, errors: Any, tmp_path: Path, line: str, options: Any, text: str) -> None:
    known, port = tmp_path / "known", ssh_server.address[1]
    key = " ".join(make_key(tmp_path / "other").split()[:2])
    known.write_text(line.format(port=port, key=key, own=ssh_server.known_hosts_line) + "\n")
    said, _ = errors(port, known_hosts=str(known), **options)
    assert said.startswith(f"HostKeyError: {text.format(ssh_server.fingerprint, known_hosts=known)}")
