"""Transports of a program's own, over which it has reverse tunnels, and what stands at their two ends."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import paramiko
import pytest
from helpers import WAIT, Server
from paramiko_rig import ScriptedServer

from relay.compat.rforward import RevFwTunnel

LOOPBACK = "127.0.0.1"


def log_in(rig: Any) -> paramiko.Transport:
    """A plain transport that is logged in to an :class:`sshd.Sshd` or a :class:`relay.testing.SSHServer`."""
    address = getattr(rig, "address", None) or (LOOPBACK, rig.port)
    transport = paramiko.Transport(socket.create_connection(address, WAIT))
    transport.set_log_channel("relay.testing.ssh")
    try:
        transport.start_client(timeout=WAIT)
        transport.auth_publickey(rig.user, paramiko.Ed25519Key(filename=str(rig.keyfile)))
    except BaseException:
        hang_up(transport)
        raise
    return transport


def hang_up(transport: paramiko.Transport) -> None:
    transport.close()
    transport.join(WAIT)


class World:
    """A transport and its tunnels; everything that was made here ends with the test."""

    def __init__(self, rig: Any) -> None:
        self.rig = rig
        self._open = contextlib.ExitStack()
        self.transport = log_in(rig)
        self._open.callback(hang_up, self.transport)

    def serve(self, handler: Callable[[socket.socket], object]) -> Server:
        """A server that a tunnel may lead to."""
        server = Server(handler)
        self._open.callback(server.close)
        return server

    def tunnel(self, target: Any, port: int = 0, **options: Any) -> RevFwTunnel:
        """A tunnel that has started; ``target`` is a :class:`helpers.Server` or a socket that listens."""
        host, number = target.address if isinstance(target, Server) else target.getsockname()
        tunnel = RevFwTunnel(port, host, number, self.transport, **options)
        self._open.callback(tunnel.stop_thread)
        tunnel.start()
        return tunnel

    def client(self, tunnel: RevFwTunnel | int) -> socket.socket:
        """A client on the server's side."""
        port = tunnel if isinstance(tunnel, int) else tunnel.server_port
        return self._open.enter_context(socket.create_connection((LOOPBACK, port), WAIT))

    def listener(self) -> socket.socket:
        """Something that a tunnel may lead to, played by the test."""
        listening = self._open.enter_context(socket.create_server((LOOPBACK, 0), backlog=512))
        listening.settimeout(WAIT)
        return listening

    def accept(self, listening: socket.socket) -> socket.socket:
        """Return the next stream that came through."""
        made = self._open.enter_context(listening.accept()[0])
        made.settimeout(WAIT)
        return made

    def channels(self) -> tuple[int, queue.SimpleQueue[Any]]:
        """A forward of the caller's own, by its own handler: the port, and where the channels come."""
        came: queue.SimpleQueue[Any] = queue.SimpleQueue()
        return self.transport.request_port_forward(LOOPBACK, 0, lambda channel, *_: came.put(channel)), came

    def close(self) -> None:
        self._open.close()


def worlds(request: pytest.FixtureRequest) -> Iterator[World]:
    """A transport to a server of the kind that a fixture's parameter says: what the fixture ``world`` of a file is."""
    with contextlib.closing(World(request.getfixturevalue(request.param))) as made:
        yield made


class Scripted:
    """A transport to a server that handles nothing by itself."""

    def __init__(self) -> None:
        self.server = ScriptedServer()
        host, port = self.server.listener.getsockname()
        self.transport = paramiko.Transport(socket.create_connection((host, port), WAIT))
        self.transport.start_client(timeout=WAIT)
        self.transport.auth_none("user")
        self.server._thread.join(WAIT)

    def expect_request(self) -> tuple[str, bytes]:
        """The next global request that wants an answer: its kind and the rest."""
        content = self.server.expect(80)
        length = int.from_bytes(content[:4], "big")
        assert content[4 + length] == 1
        return content[4 : 4 + length].decode(), content[5 + length :]

    def open(self, number: int, port: int, host: str = LOOPBACK) -> None:
        """A client has connected to the forwarded port of the server."""
        self.server.send(90, "forwarded-tcpip", number, 1 << 20, 32768, host, port, "192.0.2.1", 4321)

    def close(self) -> None:
        hang_up(self.transport)
        self.server.close()


def reserved() -> socket.socket:
    """A socket that keeps a port which a server may still listen at."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((LOOPBACK, 0))
    return bound


def greet(letter: bytes) -> Callable[[socket.socket], object]:
    """A handler that says a letter and then sends back what it gets, up to the end."""

    def handler(connection: socket.socket) -> None:
        connection.sendall(letter)
        while data := connection.recv(1 << 16):
            connection.sendall(data)

    return handler


def echo_channels(came: queue.SimpleQueue[Any], letter: bytes, count: int) -> None:
    """The same with so many channels of a handler of the caller's own, one after the other."""
    for _ in range(count):
        with came.get(timeout=WAIT) as channel:
            channel.settimeout(WAIT)
            channel.sendall(letter)
            channel.sendall(channel.recv(1 << 16))


def still_usable(transport: paramiko.Transport, echo: Server) -> None:
    """The transport goes on as the caller's: a channel to a target, and a forward."""
    channel = transport.open_channel("direct-tcpip", echo.address, (LOOPBACK, 0), timeout=WAIT)
    with channel:
        channel.settimeout(WAIT)
        channel.sendall(b"echo")
        assert channel.recv(4) == b"echo"
    port = transport.request_port_forward(LOOPBACK, 0)
    with socket.create_connection((LOOPBACK, port), WAIT) as client:
        with transport.accept(WAIT) as accepted:
            client.sendall(b"in")
            accepted.settimeout(WAIT)
            assert accepted.recv(2) == b"in"
    transport.cancel_port_forward(LOOPBACK, port)


def background(function: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True, name="test background")
    thread.start()
    return thread
