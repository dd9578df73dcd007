"""Connections of the paramiko backend, and a server that says what the test wants."""

from __future__ import annotations

import dataclasses
import io
import os
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import paramiko
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from helpers import WAIT
from sshd import embedded

from relay.addresses.ssh import SSHServer
from relay.addresses.values import TCPAddress
from relay.streams.promise import Cancellation
from relay.streams.stream import Stream
from relay.transports.ssh.config.settings import resolve_settings
from relay.transports.ssh.connection import Settings
from relay.transports.ssh.paramiko import backend
from relay.transports.ssh.paramiko.mux import Mux


class Lost(queue.SimpleQueue):
    """The report of a connection that is lost."""

    def __init__(self) -> None:
        self.told = threading.Event()

    def __call__(self, error: Exception) -> None:
        self.put(error)
        self.told.set()

    def wait(self) -> Exception:
        return self.get(timeout=WAIT)


def settings_for(rig: Any, **more: Any) -> Settings:
    """Settings for an :class:`sshd.Sshd` or a :class:`relay.testing.SSHServer`."""
    server = rig.server if hasattr(rig, "server") else embedded(rig)
    fields = {field.name for field in dataclasses.fields(SSHServer)}
    server = dataclasses.replace(server, **{name: value for name, value in more.items() if name in fields})
    return dataclasses.replace(
        resolve_settings(server), **{name: value for name, value in more.items() if name not in fields}
    )


def connect(settings: Settings, lost: Any = None, *, seconds: float = WAIT, cancel: Any = None) -> backend.Connection:
    """A connection of the backend."""
    stream = Stream(socket.create_connection((settings.hostname, settings.port), WAIT))
    cancellation = cancel if cancel is not None else Cancellation()
    try:
        return backend.connect(settings, stream, time.monotonic() + seconds, cancellation, lost or Lost())
    finally:
        if cancel is None:
            cancellation.close()


def begin(
    connection: Any, place: Any, seconds: float | None = WAIT, **options: bool
) -> tuple[queue.SimpleQueue[Any], Any]:
    """Ask for a stream; returns where it comes, and how to give it up."""
    told: queue.SimpleQueue[Any] = queue.SimpleQueue()
    deadline = None if seconds is None else time.monotonic() + seconds
    return told, connection.open(place, deadline, told.put, **options)


def open_stream(connection: Any, place: Any, seconds: float | None = WAIT, **options: bool) -> Stream:
    """A stream to a place, whose socket has a deadline."""
    if isinstance(place, tuple):
        place = TCPAddress(*place)
    outcome = begin(connection, place, seconds, **options)[0].get(timeout=WAIT)
    if isinstance(outcome, Exception):
        raise outcome
    outcome.socket.settimeout(WAIT)
    return outcome


def thread_of_connection() -> backend.Transport:
    """Return the thread of the only connection."""
    (thread,) = (one for one in threading.enumerate() if isinstance(one, backend.Transport))
    return thread


def mux_of(connection: backend.Connection) -> Mux:
    """Return the channels of a connection."""
    return connection._mux


def asleep(thread: threading.Thread) -> int:
    """Return how often a thread has gone to sleep by itself."""
    with open(f"/proc/self/task/{thread.native_id}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("voluntary_ctxt_switches"))


class ScriptedServer(paramiko.ServerInterface):
    """An SSH server that accepts every login; from then on the test says what it sends, and sees what it gets."""

    def __init__(self, **options: Any) -> None:
        self.received: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(WAIT)
        self.key = _new_key()
        self.windows: dict[int, int] = {}  # the bytes that the client has allowed in all, by its number of the channel
        self.transport: Any = None
        self.options = options
        self._thread = threading.Thread(target=self._serve, daemon=True, name="scripted server")
        self._thread.start()

    def _serve(self) -> None:
        try:
            connection, _ = self.listener.accept()
        except OSError:
            return
        self.transport = _Recording(connection, self._receive)
        for name, value in self.options.items():
            setattr(self.transport, name, value)
        self.transport.add_server_key(self.key)
        self.transport.start_server(event=threading.Event(), server=self)

    def _receive(self, kind: int, content: bytes) -> None:
        if kind == 90:
            start = 4 + int.from_bytes(content[:4], "big")
            number, window = struct.unpack_from(">II", content, start)
            self.windows[number] = window
        elif kind == 93:
            number, size = struct.unpack(">II", content)
            self.windows[number - 7] += size
        self.received.put((kind, content))

    def check_auth_none(self, username: str) -> int:
        return paramiko.AUTH_SUCCESSFUL

    def get_allowed_auths(self, username: str) -> str:
        return "none"

    @property
    def settings(self) -> Settings:
        host, port = self.listener.getsockname()
        server = SSHServer(host, "user", port, config=os.devnull, hostkey=self.key.fingerprint)
        return resolve_settings(server)

    def connect(self, lost: Any = None, **more: Any) -> backend.Connection:
        made = connect(dataclasses.replace(self.settings, **more), lost)
        self._thread.join(WAIT)
        return made

    def send(self, kind: int, *parts: Any) -> None:
        """Send a message of numbers (as uint32), strings, and flags."""
        message = paramiko.Message()
        message.add_byte(bytes([kind]))
        for part in parts:
            if isinstance(part, bool):
                message.add_boolean(part)
            elif isinstance(part, int):
                message.add_int(part)
            else:
                message.add_string(part)
        self.transport._send_message(message)

    def expect(self, kind: int) -> bytes:
        """The next message that is not a window adjust, which must be of this kind."""
        while True:
            got, content = self.received.get(timeout=WAIT)
            if got == 93 != kind:
                continue
            assert got == kind, f"{kind} was expected, not {got} {content!r}"
            return content

    def is_heard(self) -> None:
        """Wait until the client has handled all that was sent."""
        self.send(80, "no-such-request", True)
        self.expect(82)

    def expect_open(self) -> int:
        """Open a channel; returns the near end's number of it."""
        content = self.expect(90)
        (length,) = struct.unpack_from(">I", content)
        return struct.unpack_from(">I", content, 4 + length)[0]

    def open(self, connection: Any, window: int = 1 << 20, packet: int = 32768) -> tuple[Stream, int]:
        """A channel that the client has opened: its stream, and the client's number; ours is 7 more."""
        told, _ = begin(connection, TCPAddress("db", 1))
        number = self.expect_open()
        self.send(91, number, number + 7, window, packet)
        stream = told.get(timeout=WAIT)
        stream.socket.settimeout(WAIT)
        return stream, number

    def close(self) -> None:
        self.listener.close()
        if self.transport is not None:
            self.transport.close()
            self.transport.join(WAIT)
        self._thread.join(WAIT)


class _Recording(paramiko.Transport):
    """A server that handles nothing but the login."""

    def __init__(self, connection: socket.socket, received: Callable[[int, bytes], None]) -> None:
        super().__init__(connection)
        self.set_log_channel("relay.testing.ssh")
        for kind in (*range(80, 83), *range(90, 101)):
            self._handler_table[kind] = lambda message, kind=kind: received(kind, message.asbytes())


def _new_key() -> paramiko.PKey:
    form = serialization.PrivateFormat.OpenSSH
    encoding, encryption = serialization.Encoding.PEM, serialization.NoEncryption()
    text = Ed25519PrivateKey.generate().private_bytes(encoding, form, encryption)
    return paramiko.Ed25519Key.from_private_key(io.StringIO(text.decode()))
