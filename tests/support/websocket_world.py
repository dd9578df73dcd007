"""Peers of others for WebSockets: reverse proxies with TLS, and programs that speak to each other in plain messages."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import WAIT, Certificates
from proxy_world import LOOPBACK, RealProxy

from relay.process import DEVNULL, PIPE, end, start

NPM = Path(__file__).parents[2] / ".npm" / "node_modules" / "ws"
NPM_PEER = Path(__file__).with_name("npm_websocket.mjs")
_MODULES = "/usr/lib/apache2/modules"


def nginx(folder: Path, certificates: Certificates, port: int, idle: int = 60) -> RealProxy:
    """A reverse proxy of a listener, which ends what is idle for so many seconds."""
    temporary = [f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")]
    rules = (
        "daemon off; worker_processes 1;",
        f"pid {folder}/nginx.pid; error_log stderr crit;",
        "events {{ worker_connections 1024; }}",
        f"http {{{{ access_log off; {' '.join(temporary)}",
        f"server {{{{ listen {LOOPBACK}:{{port}} ssl;",
        f"ssl_certificate {certificates.cert}; ssl_certificate_key {certificates.key};",
        f"location / {{{{ proxy_pass http://{LOOPBACK}:{port}; proxy_http_version 1.1;",
        "proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;",
        "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;",
        f"proxy_read_timeout {idle}s; proxy_send_timeout {idle}s; }}}} }}}} }}}}",
    )
    return RealProxy("wss", ["nginx", "-e", "stderr", "-p", str(folder), "-c", "{file}"], folder, rules)


def haproxy(folder: Path, certificates: Certificates, port: int, idle: int = 60) -> RealProxy:
    """The same."""
    both = folder / "both.pem"
    both.write_bytes(certificates.cert.read_bytes() + certificates.key.read_bytes())
    rules = (
        "defaults",
        "  mode http",
        "  retries 0",
        "  option forwardfor",
        f"  timeout connect {idle}s",
        f"  timeout client {idle}s",
        f"  timeout server {idle}s",
        "frontend in",
        f"  bind {LOOPBACK}:{{port}} ssl crt {both}",
        "  default_backend out",
        "backend out",
        f"  server one {LOOPBACK}:{port}",
    )
    return RealProxy("wss", ["haproxy", "-db", "-q", "-f", "{file}"], folder, rules)


def apache(folder: Path, certificates: Certificates, port: int, idle: int = 60) -> RealProxy:
    """The same."""
    modules = ("mpm_event", "authz_core", "proxy", "proxy_http", "proxy_wstunnel", "ssl", "unixd")
    rules = (
        *(
            f"LoadModule {name}_module {_MODULES}/mod_{name}.so"
            for name in modules
            if (Path(_MODULES) / f"mod_{name}.so").exists()
        ),
        f"ServerName {LOOPBACK}",
        f"PidFile {folder}/apache.pid",
        f"DefaultRuntimeDir {folder}",
        f"ErrorLog {folder}/apache.log",
        f"Listen {LOOPBACK}:{{port}}",
        "StartServers 1",
        f"ProxyTimeout {idle}",
        f"Timeout {idle}",
        "SSLEngine on",
        f"SSLCertificateFile {certificates.cert}",
        f"SSLCertificateKeyFile {certificates.key}",
        f'ProxyPass "/" "http://{LOOPBACK}:{port}/" upgrade=websocket',
    )
    return RealProxy("wss", ["apache2", "-X", "-d", str(folder), "-f", "{file}"], folder, rules)


def caddy(folder: Path, certificates: Certificates, port: int, idle: int = 60) -> RealProxy:
    """The same, without a limit of idle streams."""
    rules = (
        "{{",
        "  admin off",
        "  auto_https off",
        f"  storage file_system {folder}/caddy",
        "  log {{",
        "    output discard",
        "  }}",
        "}}",
        f"https://{LOOPBACK}:{{port}} {{{{",
        f"  bind {LOOPBACK}",
        f"  tls {certificates.cert} {certificates.key}",
        f"  reverse_proxy {LOOPBACK}:{port} {{{{",
        f"    trusted_proxies {LOOPBACK}/32",  # else it drops what they say
        "  }}",
        "}}",
    )
    return RealProxy("wss", ["caddy", "run", "--adapter", "caddyfile", "--config", "{file}"], folder, rules)


REVERSE_PROXIES: dict[str, Callable[..., RealProxy]] = {
    "nginx": nginx,
    "haproxy": haproxy,
    "apache": apache,
    "caddy": caddy,
}


def websockify(folder: Path, port: int) -> RealProxy:
    """A server that leads each WebSocket to a port, and refuses clients that offer an unknown subprotocol."""
    return RealProxy("ws", ["websockify", f"{LOOPBACK}:{{port}}", f"{LOOPBACK}:{port}"], folder)


@contextlib.contextmanager
def npm(role: str, *arguments: str) -> Iterator[dict[str, Any]]:
    """The ``ws`` of npm: a server that repeats what it gets, or a client that sends much; what its first line says."""
    if not NPM.exists():
        pytest.skip("there is no npm package ws (`make test` installs it)")
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node")
    program = start([node, str(NPM_PEER), str(NPM), role, *arguments], stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL)
    try:
        assert program.stdout is not None
        yield json.loads(program.stdout.readline())
    finally:
        end(program, WAIT, group=True)
        program.stdout.close()


@contextlib.contextmanager
def python_server(context: ssl.SSLContext | None = None) -> Iterator[int]:
    """A server of Python's ``websockets`` that repeats what it gets; its port."""
    import websockets.asyncio.server as server

    ready = threading.Event()
    found: list[Any] = []

    async def repeat(connection: Any) -> None:
        async for message in connection:
            await connection.send(message)

    async def serve() -> None:
        ended = asyncio.Event()
        async with server.serve(repeat, LOOPBACK, 0, ssl=context, compression=None) as made:
            found.extend((asyncio.get_running_loop(), ended, next(iter(made.sockets)).getsockname()[1]))
            ready.set()
            await ended.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(WAIT)
    try:
        yield found[2]
    finally:
        found[0].call_soon_threadsafe(found[1].set)
        thread.join(WAIT)


def raw(port: int, path: str = "/", *lines: str) -> tuple[socket.socket, bytes]:
    """Send a request of our own, and return the socket and the head of the answer."""
    client = socket.create_connection((LOOPBACK, port), WAIT)
    usual = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==")
    given = [line.partition(":")[0].lower() for line in lines]
    head = [
        line
        for line in (f"Host: {LOOPBACK}:{port}", *usual, "Sec-WebSocket-Version: 13")
        if line.partition(":")[0].lower() not in given
    ]
    client.sendall("\r\n".join((f"GET {path} HTTP/1.1", *head, *lines, "", "")).encode())
    answer = b""
    while b"\r\n\r\n" not in answer and (data := client.recv(1)):
        answer += data
    return client, answer
