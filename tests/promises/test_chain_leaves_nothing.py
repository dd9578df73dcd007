"""A chain that is being made, and is given up at any stage of any hop, leaves nothing: here, and at the far ends."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import tempfile
import threading
import time
from pathlib import Path

import pytest
from covering import each_value
from helpers import PROMPT, WAIT, Server, Thread, closed, fate_of_client, wait_until

import relay
from relay.addresses.destinations import PrivateKey, b32_of
from relay.streams.promise import Cancellation
from relay.testing import SAMBridge, SSHServer, check_leaks

DEADLINE = 6.0  # seconds, in which all get as far as they get, unless the machine is very busy
AT_I2P = b32_of(PrivateKey.generate().destination)
TARGET = "127.0.0.1:9"


class Silent:
    """A server that answers what it hears with these pieces, one by one, and nothing more."""

    def __init__(self, *pieces: bytes, first: bytes = b"") -> None:
        self._pieces, self._first = pieces, first
        self._changed = threading.Condition()
        self._there = self._stuck = 0
        self._server = Server(self._serve)
        self.place = "{}:{}".format(*self._server.address)

    def _serve(self, connection: socket.socket) -> None:
        self._count(1)
        try:
            connection.sendall(self._first)
            for piece in self._pieces:
                connection.recv(1 << 12)
                connection.sendall(piece)
            self._count(0, 1)
            while connection.recv(1 << 12):
                pass
        finally:
            self._count(-1)

    def _count(self, there: int, stuck: int = 0) -> None:
        with self._changed:
            self._there += there
            self._stuck += stuck
            self._changed.notify_all()

    def wait_until_stuck(self) -> None:
        """Wait until a client waits for an answer in vain; forgets those of before."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._stuck, WAIT)
            self._stuck = 0

    def wait_until_left(self) -> None:
        """Wait until no client is connected."""
        with self._changed:
            assert self._changed.wait_for(lambda: not self._there, WAIT), f"{self._there} are still connected"

    def close(self) -> None:
        self._server.close()


class HangingLogin:
    """An SSH server that thinks about who logs in."""

    def __init__(self) -> None:
        self._server = SSHServer()
        self._reached, self._go_on = threading.Event(), threading.Event()
        self._server._state.tried = self._think
        self.url = self._server.url

    def _think(self, user: str, method: str) -> None:
        self._reached.set()
        self._go_on.wait(WAIT)

    def wait_until_stuck(self) -> None:
        assert self._reached.wait(WAIT)
        self._reached.clear()

    def wait_until_left(self) -> None:
        self._go_on.set()
        wait_until(lambda: not self._server.connections)
        self._go_on.clear()

    def close(self) -> None:
        self._go_on.set()
        self._server.close()


class HangingChannel:
    """An SSH server that thinks about what is opened."""

    def __init__(self) -> None:
        self._reached, self._go_on = threading.Event(), threading.Event()
        self._server = SSHServer(permit=self._think)
        self.url = self._server.url

    def _think(self, target: str) -> bool:
        self._reached.set()
        return self._go_on.wait(WAIT)

    wait_until_stuck = HangingLogin.wait_until_stuck
    wait_until_left = HangingLogin.wait_until_left
    close = HangingLogin.close


class HangingBridge:
    """A SAM bridge that does not answer one command."""

    def __init__(self, command: str) -> None:
        self._bridge = SAMBridge()
        self._bridge.hold_answers(command)
        self.url = f"i2p:?sam={self._bridge.sam}"

    def wait_until_stuck(self) -> None:
        wait_until(lambda: self._bridge._router._held)

    def wait_until_left(self) -> None:
        self._bridge.release_answers()  # it reads nothing before that
        wait_until(lambda: not self._bridge.sessions and not self._bridge.connections and not self._bridge.streams)

    def close(self) -> None:
        self._bridge.close()


class HangingProgram:
    """A command as a hop that says nothing, to an SSH server."""

    def __init__(self, backend: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._told = Path(self._folder.name) / "pid"
        self.url = f"ssh://me@127.0.0.1:9{SSH_OPTIONS}&backend={backend}"
        self.before = [f"exec:sh -c 'echo $$ > {self._told}~; mv {self._told}~ {self._told}; cat > {os.devnull}' %h %p"]
        self._pid = 0

    def wait_until_stuck(self) -> None:
        wait_until(self._told.exists)
        self._pid = int(self._told.read_text())
        self._told.unlink()

    def wait_until_left(self) -> None:
        wait_until(lambda: not Path(f"/proc/{self._pid}").exists())

    def close(self) -> None:
        self._folder.cleanup()


def silent(scheme, *pieces, **options):
    def make():
        server = Silent(*pieces, **options)
        server.url = f"i2p:?sam={server.place}" if scheme == "i2p" else f"{scheme}://{server.place}"
        return server

    return make


SSH_OPTIONS = f"?config={os.devnull}&known_hosts={os.devnull}&accept_new=no"


def silent_ssh(backend, first):
    def make():
        server = Silent(first=first)
        server.url = f"ssh://me@{server.place}{SSH_OPTIONS}&backend={backend}"
        return server

    return make


def over(backend, make):
    """The same server with a backend."""

    def made():
        server = make()
        server.url += f"&backend={backend}"
        return server

    return made


STAGES = {
    **{
        f"{backend}, {name}": stage
        for backend in ("paramiko", "openssh")
        for name, stage in {
            "TCP and nothing": silent_ssh(backend, b""),
            "version and nothing": silent_ssh(backend, b"SSH-2.0-silent\r\n"),
            "login": over(backend, HangingLogin),
            "channel": over(backend, HangingChannel),
            "over a program": functools.partial(HangingProgram, backend),
        }.items()
    },
    "i2p, HELLO": silent("i2p"),
    "i2p, half an answer to HELLO": silent("i2p", b"HELLO REPLY RES"),
    "i2p, SESSION CREATE": lambda: HangingBridge("SESSION CREATE"),
    "i2p, STREAM CONNECT": lambda: HangingBridge("STREAM CONNECT"),
    "socks5, greeting": silent("socks5"),
    "socks5, half a greeting": silent("socks5", b"\x05"),
    "socks5, CONNECT": silent("socks5", b"\x05\x00"),
    "socks5, half an answer": silent("socks5", b"\x05\x00", b"\x05\x00\x00\x03\x0c"),
    "http, CONNECT": silent("http"),
    "http, half a head": silent("http", b"HTTP/1.1 200 OK\r\nVia: a pro"),
    "tls": silent("tls"),
}


HOPS = {"nothing": [], "one paramiko": ["paramiko"], "paramiko and openssh": ["paramiko", "openssh"]}


@pytest.fixture(params=HOPS)
def before(request, spawner_thread):
    """The servers before it, and their addresses as hops."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(SSHServer(commands=bool)) for _ in HOPS[request.param]]
        via = [f"{server.url}&backend={name}" for server, name in zip(servers, HOPS[request.param], strict=True)]
        yield servers, via


@pytest.fixture(params=STAGES)
def stage(request, spawner_thread):
    yield from closed(STAGES[request.param]())


def way(stage, before):
    """A target, and the hops to it."""
    if stage.url.startswith("tls"):
        return stage.url, before[1]
    return f"{AT_I2P}:80" if stage.url.startswith("i2p") else TARGET, [
        *before[1],
        *getattr(stage, "before", ()),
        stage.url,
    ]


def all_left(before, *stages):
    for stage in stages:
        stage.wait_until_left()
    wait_until(lambda: not any(server.connections for server in before[0]))


@contextlib.contextmanager
def held(before):
    """The hops before it are up already."""
    with contextlib.ExitStack() as stack:
        if before[1]:
            stack.enter_context(contextlib.closing(relay.target(TARGET, before[1]))).ready(WAIT)
        yield


def try_in_vain(stage, *chain):
    """Connect with a deadline that passes at this stage. One that has passed before is not long enough here."""
    reached, seconds = Thread(stage.wait_until_stuck), DEADLINE
    while reached.is_alive():
        with pytest.raises(relay.ConnectError) as failed:
            relay.connect(*chain, seconds)
        assert failed.value.reason == "connect_timeout"
        seconds *= 2
    reached.result()


@pytest.mark.parametrize("before", ["nothing", "paramiko and openssh"], indirect=True)
def test_a_deadline(before):
    """All at the same time, so that it passes for all."""
    with contextlib.ExitStack() as stack:
        stages = [stack.enter_context(contextlib.closing(make())) for make in STAGES.values()]
        with check_leaks(PROMPT):
            with held(before):
                for attempt in [Thread(try_in_vain, stage, *way(stage, before)) for stage in stages]:
                    attempt.result(2 * WAIT)
            all_left(before, *stages)


@pytest.mark.parametrize(("stage", "before"), each_value(STAGES, HOPS), indirect=True)
def test_a_cancellation(stage, before):
    with check_leaks(PROMPT):
        factory, cancel = relay.target(*way(stage, before)), Cancellation()
        attempt = Thread(lambda: factory(deadline=time.monotonic() + 60, cancel=cancel))
        stage.wait_until_stuck()
        begin = time.monotonic()
        cancel.set()
        with pytest.raises(relay.RelayError):
            attempt.result(PROMPT)
        cancel.close()
        if hasattr(factory, "close"):
            factory.close()
        all_left(before, stage)
        assert time.monotonic() - begin < PROMPT


@pytest.mark.parametrize(("stage", "before"), each_value(STAGES, HOPS, shift=1), indirect=True)
def test_a_tunnel_that_is_closed(stage, before):
    with check_leaks(PROMPT):
        tunnel = relay.Tunnel(relay.listen(":0"), relay.target(*way(stage, before)), connect_timeout=60.0)
        client = Thread(fate_of_client, tunnel.address)
        stage.wait_until_stuck()
        begin = time.monotonic()
        tunnel.close()
        assert client.result(PROMPT) == "reset"
        all_left(before, stage)
        assert time.monotonic() - begin < PROMPT
