"""``sni://``: one port for many servers with TLS, by nginx, HAProxy, curl and OpenSSL; nothing is decrypted."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import hashlib
import json
import os
import select
import shutil
import socket
import ssl
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from command_rig import Command, commands
from helpers import WAIT, echo, ended, ending, fate_of_client, receive_exactly, wait_until

import relay
from relay.process import DEVNULL, end, start
from relay.transports.proxies import sni_server

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"
PROGRAMS = {"nginx": "nginx-light", "haproxy": "haproxy", "curl": "curl", "openssl": "openssl"}
FOUND = {name: shutil.which(name, path=PATH) for name in PROGRAMS}
LOOPBACK = "127.0.0.1"
SIOCATMARK = 0x8905
NAMES = ("old.example", "new.example", "a.haproxy.example", "far.example", "any.example")

pytestmark = pytest.mark.skipif(
    not all(FOUND.values()), reason=f"not all of {', '.join(PROGRAMS.values())} are installed"
)

NGINX = """
daemon off;
user {user};
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
    uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
    ssl_certificate {folder}/both.pem; ssl_certificate_key {folder}/both.pem;
    server {{
        listen unix:{folder}/old ssl; ssl_protocols TLSv1.2;
        location / {{ return 200 "nginx $ssl_protocol $ssl_server_name"; }}
    }}
    server {{
        listen unix:{folder}/new ssl; ssl_protocols TLSv1.3;
        location / {{ return 200 "nginx $ssl_protocol $ssl_server_name"; }}
    }}
}}
"""
HAPROXY = """
defaults
    mode http
    timeout connect 60s
    timeout client 60s
    timeout server 60s
frontend names
    bind unix@{folder}/haproxy ssl crt {folder}/both.pem
    http-request return status 200 content-type text/plain lf-string "haproxy %[ssl_fc_protocol] %[ssl_fc_sni]"
"""


class World:
    """The servers, and the rules that lead to them."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.ca = folder / "ca.pem"
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.ca))
        authority.issue_cert(*NAMES).private_key_and_cert_chain_pem.write_to_path(str(folder / "both.pem"))
        user = "root" if os.geteuid() == 0 else "nobody"
        for name, text in (("nginx", NGINX), ("haproxy", HAPROXY)):
            (folder / f"{name}.conf").write_text(text.format(folder=folder, user=user))
        for argv in (["nginx", "-c"], ["haproxy", "-db", "-f"]):
            words = [str(FOUND[argv[0]]), *argv[1:], f"{folder}/{argv[0]}.conf"]
            stack.callback(end, start(words, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL), WAIT, group=True)
        for name in ("old", "new", "haproxy"):
            wait_until(functools.partial(_listens, str(folder / name)))
        self.rules = [
            f"old.example=unix://{folder}/old",
            f"new.example=unix://{folder}/new",
            f"*.haproxy.example=unix://{folder}/haproxy",
            "gone.example=tcp://127.0.0.1:1",
        ]
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.load_cert_chain(folder / "both.pem")
        self.client = ssl.create_default_context(cafile=self.ca)

    def curl(self, port: int, name: str, *more: str) -> subprocess.CompletedProcess[str]:
        words = ["curl", "-sS", "-m", "60", "--noproxy", "*", "--cacert", str(self.ca), *more]
        words += ["--connect-to", f"::{LOOPBACK}:{port}", f"https://{name}/"]
        return subprocess.run(words, capture_output=True, text=True, timeout=90)

    def openssl(self, port: int, *more: str) -> str:
        """The answer to a request by ``openssl s_client``."""
        words = ["openssl", "s_client", "-quiet", "-connect", f"{LOOPBACK}:{port}", "-CAfile", str(self.ca), *more]
        request = "GET / HTTP/1.1\r\nHost: it\r\nConnection: close\r\n\r\n"
        return subprocess.run(words, input=request, capture_output=True, text=True, timeout=90).stdout


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, spawner_thread: None) -> Iterator[World]:
    with contextlib.ExitStack() as stack:
        yield World(tmp_path_factory.mktemp("names"), stack)


@pytest.fixture
def tunnel(world: World) -> Iterator[relay.Tunnel]:
    with relay.Tunnel(relay.listen("sni://127.0.0.1:0"), relay.dynamic(rules=world.rules), timeout=None) as made:
        yield made


SERVERS = {
    "old.example": "nginx TLSv1.2 old.example",
    "new.example": "nginx TLSv1.3 new.example",
    "a.haproxy.example": "haproxy TLSv1.3 a.haproxy.example",
}


@pytest.mark.parametrize("name", SERVERS)
def test_each_name_gets_its_server(world: World, tunnel: relay.Tunnel, name: str) -> None:
    assert world.curl(tunnel.address[1], name).stdout == SERVERS[name]
    said = world.openssl(tunnel.address[1], "-servername", name, "-verify_return_error", "-verify_hostname", name)
    assert said.endswith(f"\n\n{SERVERS[name]}"), said
    ended(tunnel, 2)
    assert {record.server_name for record in tunnel.recent()} == {name}


def test_a_server_behind_a_hop(world: World) -> None:
    with (
        relay.Tunnel(relay.listen("socks5://127.0.0.1:0"), relay.dynamic(), timeout=None) as hop,
        relay.Tunnel(relay.listen(":0"), relay.target(world.rules[1].partition("=")[2])) as server,
    ):
        rule = f"far.example=socks5://{LOOPBACK}:{hop.address[1]},tcp://{LOOPBACK}:{server.address[1]}"
        with relay.Tunnel(relay.listen("sni://127.0.0.1:0"), relay.dynamic(rules=[rule]), timeout=None) as tunnel:
            assert world.curl(tunnel.address[1], "far.example").stdout == "nginx TLSv1.3 far.example"
            wait_until(tunnel.recent)
            assert [label for label, _ in tunnel.recent()[0].hop_times] == ["1:socks5", "2:target"]


def test_names_are_the_same_in_any_case_and_with_a_dot_at_the_end(world: World, tunnel: relay.Tunnel) -> None:
    assert "nginx TLSv1.3" in world.openssl(tunnel.address[1], "-servername", "NEW.Example.")
    wait_until(tunnel.recent)
    assert tunnel.recent()[0].server_name == "new.example"


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_name_without_a_rule_is_reset(world: World, tunnel: relay.Tunnel, version: str) -> None:
    said = world.curl(tunnel.address[1], "else.example", f"--tlsv{version}", "--tls-max", version)
    assert said.returncode == 35, said.stderr  # the handshake was reset
    assert world.openssl(tunnel.address[1], "-noservername") == ""
    assert ended(tunnel, 2) == ["denied", "denied"]
    assert [record.target for record in tunnel.recent()] == ["else.example:443", None]


def test_a_server_that_is_down_is_a_reset(world: World, tunnel: relay.Tunnel) -> None:
    assert world.curl(tunnel.address[1], "gone.example").returncode == 35
    assert ended(tunnel) == ["refused"]
    assert tunnel.recent()[0].target == "127.0.0.1:1"


def test_a_rule_for_all_is_for_clients_without_a_name_too(world: World) -> None:
    rules = [world.rules[1].replace("new.example", "*")]
    with relay.Tunnel(relay.listen("sni://127.0.0.1:0"), relay.dynamic(rules=rules), timeout=None) as tunnel:
        assert "nginx TLSv1.3" in world.openssl(tunnel.address[1], "-noservername")
        assert "nginx TLSv1.3" in world.openssl(tunnel.address[1], "-servername", "any.example")


def first_message(context: ssl.SSLContext, name: str) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def test_the_server_gets_every_byte_as_it_came_however_it_was_cut(world: World, serve: Any) -> None:
    """The bytes are not those of a record alone: what follows the first message is passed on as well."""
    hello = first_message(world.client, "any.example")
    got: list[bytes] = []

    def take(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        got.append(receive_exactly(connection, len(hello) + 4))
        select.select([connection], [], [], WAIT)
        is_urgent = any(fcntl.ioctl(connection, SIOCATMARK, bytes(4)))
        connection.sendall(b"over" if is_urgent and connection.recv(2) == b"!" else b"none")

    host, port = serve(take).address
    send_raw = relay.dynamic(rules=[f"any.example=tcp://{host}:{port}"])
    with relay.Tunnel(relay.listen("sni://127.0.0.1:0"), send_raw, timeout=None) as tunnel:
        for size in (1, 100, len(hello)):
            with socket.create_connection(tunnel.address, WAIT) as client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for at in range(0, len(hello), size):
                    client.sendall(hello[at : at + size])
                client.sendall(b"more")
                wait_until(lambda: got)
                client.send(b"!", socket.MSG_OOB)
                assert receive_exactly(client, 4) == b"over"
            assert got.pop() == hello + b"more"


def test_much_goes_both_ways(world: World, serve: Any) -> None:
    def echo_over_tls(connection: socket.socket) -> None:
        with world.server.wrap_socket(connection, server_side=True) as session:
            echo(session)

    host, port = serve(echo_over_tls).address
    data = os.urandom(5 << 20)
    send = relay.dynamic(rules=[f"any.example=tcp://{host}:{port}"])

    async def exchange(port: int) -> bytes:
        """One thread does both: two must not use one session of OpenSSL at a time, as :mod:`ssl` lets them."""
        reader, writer = await asyncio.open_connection(LOOPBACK, port, ssl=world.client, server_hostname="any.example")
        writer.write(data)
        try:
            return await asyncio.wait_for(reader.readexactly(len(data)), 3 * WAIT)
        finally:
            writer.close()

    with relay.Tunnel(relay.listen("sni://127.0.0.1:0"), send, timeout=None) as tunnel:
        assert hashlib.sha256(asyncio.run(exchange(tunnel.address[1]))).digest() == hashlib.sha256(data).digest()
        assert ended(tunnel) in (["done"], ["client_reset"])


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: new.example\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        struct.pack("!BHH", 22, 0x0301, 4) + b"\1\0\xff\xff",
    ],
    ids=["HTTP", "SSH", "too long"],
)
def test_what_is_no_client_hello_is_reset_at_once(tunnel: relay.Tunnel, said: bytes) -> None:
    assert fate_of_client(tunnel.address, said) == "reset"
    assert ended(tunnel) == ["denied"]


def test_half_a_message_has_a_deadline(world: World) -> None:
    send = relay.dynamic(rules=world.rules)
    with relay.Tunnel(relay.listen("sni://127.0.0.1:0"), send, timeout=0.3) as tunnel:
        for said in (b"", first_message(world.client, "new.example")[:-1]):
            assert fate_of_client(tunnel.address, said) == "reset"
        assert ended(tunnel, 2) == ["connect_timeout", "connect_timeout"]


def test_a_client_of_a_balancer_is_known(world: World) -> None:
    listen, send = relay.listen("sni://127.0.0.1:0"), relay.dynamic(rules=world.rules)
    with relay.Tunnel(listen, send, timeout=None, accept_proxy=[LOOPBACK], deny=["cidr:192.0.2.9"]) as tunnel:
        for address, fate in (("192.0.2.7", "done"), ("192.0.2.9", "denied")):
            with socket.create_connection(tunnel.address, WAIT) as plain:
                header = f"PROXY TCP4 {address} 192.0.2.8 5 443\r\n".encode()
                plain.sendall(header + first_message(world.client, "new.example"))
                assert plain.recv(1) == b"\x16" if fate == "done" else ending(plain) == "reset"
        ended(tunnel, 2)
        assert [record.peer[0] for record in tunnel.recent()] == ["192.0.2.7", "192.0.2.9"]
        assert tunnel.recent()[1].reason == "denied"


def test_a_name_that_is_the_listener_itself_is_denied(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    send = relay.dynamic(rules=["localhost=direct"])
    with relay.Tunnel(relay.listen("sni://127.0.0.1:0"), send, timeout=None) as tunnel:
        monkeypatch.setattr(sni_server, "PORT", tunnel.address[1])
        assert fate_of_client(tunnel.address, first_message(world.client, "localhost")) == "reset"
        assert ended(tunnel) == ["denied"]


def test_the_command_and_a_file_have_it(world: World, tmp_path: Path) -> None:
    file, log = tmp_path / "relay.toml", tmp_path / "access.log"
    rules = json.dumps(world.rules)
    file.write_text(
        f'log_file = "{log}"\n[tunnels.names]\nlisten = "sni://127.0.0.1:0"\nrule = {rules}\nnconnect = 5\n'
    )
    file.chmod(0o600)
    words = [word for rule in world.rules for word in ("--rule", rule)]
    with commands() as make:
        one = make("sni://127.0.0.1:0", *words, command="socks")
        both: list[Command] = [one, make(str(file), "--control", "none", command="up")]
        ports = [one.address()[1]]
        line = both[1].process.stdout.readline()
        ports.append(int(line.split(" ")[-3 if " by " not in line else line.split(" ").index("→") - 1].split(":")[-1]))
        for command, port in zip(both, ports, strict=True):
            assert world.curl(port, "new.example").stdout == SERVERS["new.example"]
            assert world.curl(port, "else.example").returncode == 35
            command.hear("else.example:443: the rules refuse it (client 127.0.0.1:")
            assert command.end()[0] == 0
    found = [(one["server_name"], one["reason"]) for one in map(json.loads, log.read_text().splitlines())]
    assert found == [("new.example", "done"), ("else.example", "denied")]
