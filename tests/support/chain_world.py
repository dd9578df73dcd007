"""The hops and targets of chains, in a process of their own, so that a test's own process holds the chain and no more.

``python chain_world.py FOLDER`` prints one line of JSON, where everything is, and ends with its standard input.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trustme
from helpers import WAIT, Certificates, Server, Thread, TLSEnd, echo, receive_all, receive_exactly, wait_until
from sshd import Sshd, server_url

import relay
from relay.addresses.destinations import b32_of
from relay.process import DEVNULL, PIPE, start
from relay.testing import SAMBridge

HOPS = ("paramiko", "openssh", "i2p", "socks5", "http", "exec")
TARGETS = ("tcp", "unix", "tls", "i2p", "exec")
SSH = ("paramiko", "openssh")
SIZE = 300_000  # bytes each way
PACKAGES = {  # of Debian, by the program
    "microsocks": "microsocks",
    "nc": "netcat-openbsd",
    "ssh": "openssh-client",
    "sshd": "openssh-server",
    "tinyproxy": "tinyproxy-bin",
}
LOOPBACK = "127.0.0.1"

Way = Sequence[str]  # the kinds of its hops, the nearest first


def fits(way: Way) -> bool:
    """Return true if each of its hops reaches the next: a command runs here, or on a server that SSH leads to."""
    return all(kind != "exec" or way[place - 1] in SSH for place, kind in enumerate(way) if place)


def leads_to(way: Way, target: str) -> bool:
    """Return true if its last hop reaches a target: Unix sockets and commands are here, or on such a server."""
    return target not in ("unix", "exec") or not way or way[-1] in SSH


def keeps_half_close(way: Way, target: str) -> bool:
    """Return true if both directions can end alone: neither I2P's streams nor these proxies' have that."""
    return target != "i2p" and not {"i2p", "socks5", "http"}.intersection(way)


class World:
    """Addresses of hops and targets: each as it is after what comes before it.

    :param message: the message of the process.
    """

    def __init__(self, message: dict[str, Any]) -> None:
        self._ports: dict[str, int] = message["ports"]
        self._names: dict[str, str] = message["names"]  # at I2P, where nothing has another address
        self._servers: dict[str, list[str]] = message["servers"]
        self._path: str = message["path"]
        self._ca: str = message["ca"]

    def via(self, way: Way) -> list[str]:
        """The hops of a way."""
        return [self._hop(kind, way[place - 1] if place else "", place) for place, kind in enumerate(way)]

    def _place(self, name: str, before: str) -> str:
        host = self._names[name] if before == "i2p" else LOOPBACK
        return f"{host}:{self._ports[name]}"

    def _hop(self, kind: str, before: str, number: int) -> str:
        if kind == "exec":
            return "exec:nc -N %h %p"
        if kind == "http" and number % 2:
            return f"http://{self._place('another http', before)}"  # no tinyproxy leads to itself
        place = self._place(kind, before)
        if kind in SSH:
            return f"ssh://{self._servers[kind][0]}@{place}?backend={kind}&{self._servers[kind][1]}"
        return f"i2p:?sam={place}" if kind == "i2p" else f"{kind}://{place}"

    def target(self, kind: str, way: Way) -> str:
        """A target behind a way."""
        before = way[-1] if way else ""
        if kind == "unix":
            return f"unix://{self._path}"
        if kind == "exec":
            return "exec:cat"
        if kind == "i2p":
            return f"i2p://{self._names['tcp']}" + ("" if before == "i2p" else f"?sam={self._place('i2p', before)}")
        place = self._place(kind, before)
        return place if kind == "tcp" else f"tls://{place}?ca={self._ca}&servername=localhost"


@contextlib.contextmanager
def running(folder: Path) -> Iterator[World]:
    """The process, and where everything in it is.

    :param folder: where it may put its files.
    """
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
    for program, package in PACKAGES.items():
        if shutil.which(program, path=path) is None:
            pytest.skip(f"there is no {program} (Debian: {package})")
    process = start([sys.executable, __file__, str(folder)], stdin=PIPE, stdout=PIPE)
    with process:
        assert process.stdout is not None and process.stdin is not None
        yield World(json.loads(process.stdout.readline()))
        process.stdin.close()
        process.wait(WAIT)


def exchange(end: Any, size: int = SIZE) -> None:
    """Send random bytes to where they come back from, and compare."""
    data = os.urandom(size)
    sending = Thread(end.sendall, data)
    assert receive_exactly(end, size) == data, "other bytes came back"
    sending.result()


def end_and_hear(end: Any) -> None:
    """End one direction, and get what was sent before, and the end of the other one."""
    end.sendall(b"that was all")
    end.shutdown(socket.SHUT_WR)
    assert receive_all(end) == b"that was all", "the end was no half-close"


# From here on: the process.


def _echo_over_tls(certificates: Certificates) -> Callable[[socket.socket], None]:
    def handler(connection: socket.socket) -> None:
        end = TLSEnd(connection, certificates.server(), server_side=True)
        echo(end)  # type: ignore[arg-type]
        end.shutdown(socket.SHUT_WR)

    return handler


def _certificates(folder: Path) -> Certificates:
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost")
    made = Certificates(*(folder / f"{name}.pem" for name in ("ca", "cert", "key")))
    authority.cert_pem.write_to_path(str(made.ca))
    leaf.cert_chain_pems[0].write_to_path(str(made.cert))
    leaf.private_key_pem.write_to_path(str(made.key))
    return made


def _program(stack: contextlib.ExitStack, *argv: str, port: int) -> None:
    """Start a server, and wait until it listens."""
    process = stack.enter_context(start(argv, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL))
    stack.callback(process.kill)
    wait_until(lambda: _listens(port))


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0


def _reserved(stack: contextlib.ExitStack) -> int:
    """A port that no other program gets; a program that sets SO_REUSEADDR can listen there."""
    bound = stack.enter_context(socket.socket())
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((LOOPBACK, 0))
    return int(bound.getsockname()[1])


def _proxies(stack: contextlib.ExitStack, folder: Path) -> dict[str, int]:
    ports = {name: _reserved(stack) for name in ("socks5", "http", "another http")}
    _program(stack, "microsocks", "-i", LOOPBACK, "-p", str(ports["socks5"]), port=ports["socks5"])
    for name in ("http", "another http"):
        configuration = folder / f"{name}.conf"
        configuration.write_text(f"Listen {LOOPBACK}\nPort {ports[name]}\nMaxClients 100\nAllow {LOOPBACK}\n")
        _program(stack, "tinyproxy", "-d", "-c", str(configuration), port=ports[name])
    return ports


def _servers(stack: contextlib.ExitStack, folder: Path) -> dict[str, Sshd]:
    made = {}
    for kind in SSH:
        (folder / kind).mkdir()
        made[kind] = Sshd(folder / kind)
        stack.callback(made[kind].stop)
        made[kind].start()
    return made


def _serve(folder: Path, stack: contextlib.ExitStack) -> dict[str, Any]:
    certificates, path = _certificates(folder), str(folder / "echo")
    handlers = {"tcp": echo, "tls": _echo_over_tls(certificates)}
    servers = _servers(stack, folder)
    bridge = stack.enter_context(SAMBridge())
    ports = {"i2p": bridge.address[1], **{kind: server.port for kind, server in servers.items()}}
    for kind, handler in handlers.items():
        echoing = Server(handler)
        stack.callback(echoing.close)
        ports[kind] = echoing.address[1]
    stack.callback(Server(echo, path).close)
    ports |= _proxies(stack, folder)
    names = {}
    for kind, port in ports.items():
        published = stack.enter_context(relay.TunnelServer("", port, bridge.sam, nconnect=-1))
        names[kind] = b32_of(published.dest)
    for kind, server in servers.items():
        hosts = (f"[{LOOPBACK}]:{server.port}", names[kind], f"[{names[kind]}]:{server.port}")
        server.known_hosts.write_text("".join(f"{host} {server.host_key_line}\n" for host in hosts))
    known = {kind: [server.user, server_url(server.server).partition("?")[2]] for kind, server in servers.items()}
    return {"ports": ports, "names": names, "servers": known, "path": path, "ca": str(certificates.ca)}


def _main(folder: Path) -> None:
    with contextlib.ExitStack() as stack:
        print(json.dumps(_serve(folder, stack)), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
