"""Types: mypy's findings in programs that make tunnels, and the keywords of relay's factories."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import WAIT, Server

import relay
import relay.aio
import relay.compat.rforward
import relay.compat.sshtunnel
import relay.compat.zmqssh
import relay.testing
import relay.types
from relay.engine.attempt import keywords_of
from relay.streams.promise import Cancellation

ROOT = Path(relay.__file__).parent.parent

HEAD = """
import socket
import ssl
import threading
from typing import Any

import paramiko
import relay
import relay.aio
import relay.compat.rforward
import relay.compat.sshtunnel
import relay.compat.zmqssh
import relay.testing
import relay.types
from relay.types import CarrierState, ConnectionRecord, Listener, MakeSend, Metrics, Stats, StreamLike, WorkerStatus

plain = socket.create_server(("127.0.0.1", 0))
to = relay.tcp("127.0.0.1", 1)
context = ssl.create_default_context()


class Channel:
    def recv(self, nbytes: int) -> bytes: return b""
    def sendall(self, data: bytes) -> None: ...
    def close(self) -> None: ...


class Partial:
    def recv(self, size: int, flags: int = 0) -> bytes: return b""
    def send(self, data: bytes) -> int: return 0
    def close(self) -> bool: return True


class Silent:
    def sendall(self, data: bytes) -> None: ...
    def close(self) -> None: ...


class Text:
    def recv(self, size: int) -> str: return ""
    def sendall(self, data: bytes) -> None: ...
    def close(self) -> None: ...


class Door:
    def accept(self) -> tuple[Channel, str]: return Channel(), "me"
    def close(self) -> None: ...


class Open:
    def accept(self) -> tuple[Channel, str]: return Channel(), "me"


class Odd:
    def accept(self) -> Channel: return Channel()
    def close(self) -> None: ...


def plainly() -> socket.socket: return socket.create_connection(("127.0.0.1", 1))
def secured() -> ssl.SSLSocket: return context.wrap_socket(plainly(), server_hostname="h")
def wrapped() -> relay.Stream: return relay.Stream(plainly())
def channel(transport: Any = None) -> paramiko.Channel: return transport.open_channel("direct-tcpip")
def double() -> Channel: return Channel()
def partial() -> Partial: return Partial()
def asking(*, peer: Any, deadline: float | None, cancel: threading.Event) -> socket.socket: return plainly()
def either(deadline: float | None) -> StreamLike: return wrapped() if deadline else double()
def passing(peer: Any, deadline: float | None, cancel: Any) -> relay.Stream:
    return relay.target("db:1")(peer=peer, deadline=deadline, cancel=cancel)
def untyped(): return plainly()  # type: ignore[no-untyped-def]
def nothing() -> None: ...
def number() -> int: return 3
def silent() -> Silent: return Silent()
def text() -> Text: return Text()
async def later() -> socket.socket: return plainly()
def ended(record: ConnectionRecord) -> None: print(record.reason, record.received, record.peer)
def changed(state: CarrierState, error: Exception | None) -> None: ...
def figures(tunnel: relay.Tunnel) -> tuple[Stats, Metrics]: return tunnel.stats(), tunnel.metrics()
"""

GOOD = """
relay.Tunnel(plain, to)
relay.Tunnel(relay.listen(":0"), relay.target("db:1", via=["ssh://me@h"]), timeout=None)
relay.Tunnel(relay.listen("tls://:0?cert=a"), relay.unix("/run/x"))
relay.Tunnel(relay.ssh_listen("me@h"), relay.ssh("me@h", "db", 1))
relay.Tunnel(relay.i2p_listen("site"), relay.tls("h", 443))
relay.Tunnel(relay.tor_listen("site"), relay.tcp("h", 443))
relay.Tunnel(relay.socks_listen("127.0.0.1", 0), relay.dynamic(), on_end=ended)
relay.Tunnel(relay.testing.FakeListener(), relay.i2p("name.i2p"))
relay.Tunnel(Door(), plainly)
relay.Tunnel(plain, secured)
relay.Tunnel(plain, wrapped)
relay.Tunnel(plain, channel)
relay.Tunnel(plain, double)
relay.Tunnel(plain, partial)
relay.Tunnel(plain, asking)
relay.Tunnel(plain, either)
relay.Tunnel(plain, passing)
relay.Tunnel(plain, untyped)
relay.Tunnel(plain, lambda: plainly())
relay.Tunnel(plain, relay.nonblocking(plainly))
relay.Tunnel(plain, to, -1, None, tag="shop", limit=[{"rate": "1/s"}], allow="user:me")
relay.aio.Tunnel(Door(), double)
relay.spawn(":0", "h:1", workers=2, timeout=None, tag="shop")
relay.TunnelServer("site", 1, tag="shop", in_depth=1, host="h")
door: Listener = Door()
factory: MakeSend = asking
records: list[ConnectionRecord] = relay.Tunnel(plain, to).recent()
workers: list[WorkerStatus] = relay.spawn(":0", "h:1", workers=2).workers()
commands: list[relay.testing.SAMCommand] = relay.testing.SAMBridge().commands
sessions: list[relay.testing.SAMSession] = relay.testing.SAMBridge().sessions
"""

BAD = """
relay.Tunnel(":0", to)
relay.Tunnel(8080, to)
relay.Tunnel(Open(), to)
relay.Tunnel(Odd(), to)
relay.Tunnel(Channel(), to)
relay.Tunnel(plain, "db:5432")
relay.Tunnel(plain, plainly())
relay.Tunnel(plain, nothing)
relay.Tunnel(plain, number)
relay.Tunnel(plain, silent)
relay.Tunnel(plain, text)
relay.Tunnel(plain, later)
relay.Tunnel(plain, lambda: "db:5432")
relay.Tunnel(plain, to, on_end="print")
relay.Tunnel(plain, to, on_end=lambda: None)
relay.Tunnel(plain, to, tag=3)
relay.Tunnel(plain, to, nconect=3)
relay.aio.Tunnel(":0", to)
relay.aio.Tunnel(plain, later)
relay.aio.Tunnel(plain, to, warm="3")
relay.spawn(":0", "h:1", on_end=ended)
relay.TunnelServer("site", 1, warm=3)
relay.nonsense
relay.Tunel(plain, to)
relay.types.nonsense
relay.testing.nonsense
relay.compat.zmqssh.nonsense
def late(record: ConnectionRecord) -> None: print(record.nonsense)
"""


DROP_INS = (relay.compat.rforward, relay.compat.sshtunnel, relay.compat.zmqssh)
MODULES = (relay, relay.aio, *DROP_INS, relay.testing, relay.types)
NAMES = "".join(f"{module.__name__}.{name}  # public\n" for module in MODULES for name in module.__all__)
PROGRAM = HEAD + GOOD + NAMES + BAD


def by_mypy(program: Path) -> list[str]:
    """The command that checks a program, in the cache of `make check`, which saves one of the two most of its time."""
    settings = ["--config-file", str(ROOT / "setup.cfg"), "--no-error-summary"]
    return [sys.executable, "-m", "mypy", *settings, str(program)]


def by_pyright(program: Path) -> list[str]:
    """The same with pyright, as an editor does it."""
    checker = ROOT / ".npm/node_modules/.bin/pyright"
    if not checker.exists():
        pytest.skip("pyright is not installed (npm: pyright)")
    return [str(checker), "--pythonpath", sys.executable, str(program)]


@pytest.fixture(scope="module", params=[by_mypy, by_pyright], ids=["mypy", "pyright"])
def wrong_lines(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The lines of a program at which a type checker finds an error; one run for all of them, which takes its time."""
    program = tmp_path_factory.mktemp("types") / "program.py"
    program.write_text(PROGRAM)
    path = f"{os.environ['PATH']}:{Path(sys.executable).parent}"  # where PyPI's node is
    done = subprocess.run(
        request.param(program), cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=240
    )
    lines = PROGRAM.splitlines()
    found = re.findall(r"program\.py:(\d+)(?::\d+ -)?:? error", done.stdout)
    assert found, done.stdout + done.stderr
    return {lines[int(number) - 1] for number in found}


def test_programs_that_are_right_pass(wrong_lines: set[str]) -> None:
    assert wrong_lines & {*HEAD.splitlines(), *GOOD.splitlines(), *NAMES.splitlines()} == set()


@pytest.mark.parametrize("line", BAD.split("\n")[1:-1])
def test_programs_that_are_wrong_fail(wrong_lines: set[str], line: str) -> None:
    assert line in wrong_lines


@pytest.mark.parametrize("kind", ["tcp", "target", "unix", "exec", "tls", "ssh", "i2p", "dynamic"])
def test_every_factory_names_the_keywords(kind: str) -> None:
    factory = {
        "tcp": lambda: relay.tcp("127.0.0.1", 1),
        "target": lambda: relay.target("127.0.0.1:1"),
        "unix": lambda: relay.unix("/run/x"),
        "exec": lambda: relay.target("exec:true"),
        "tls": lambda: relay.tls("localhost", 1),
        "ssh": lambda: relay.ssh("me@localhost", "db", 1),
        "i2p": lambda: relay.i2p("name.i2p"),
        "dynamic": lambda: relay.dynamic(),
    }[kind]()
    assert {"peer", "deadline", "cancel"} <= keywords_of(factory)


def test_a_factory_passes_on_what_it_was_given(echo_server: Server) -> None:
    def wrapping(peer: object, deadline: float | None, cancel: Cancellation) -> relay.Stream:
        return echo_server.factory()(peer=peer, deadline=deadline, cancel=cancel)

    with relay.Tunnel(relay.listen(":0"), wrapping) as tunnel:
        with socket.create_connection(tunnel.address, timeout=WAIT) as client:
            client.sendall(b"ping")
            assert client.recv(4) == b"ping"
