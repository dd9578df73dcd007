"""Targets: bytes of the servers to which relay connects (proxies, routers, SSH servers), and messages of ``ssh``."""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Callable, Generator
from functools import partial
from types import SimpleNamespace
from typing import Any

import paramiko
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from paramiko.packet import NeedRekeyException

from relay.addresses.hops import Proxy
from relay.addresses.ssh import SSHServer
from relay.addresses.values import TCPAddress
from relay.errors import AuthenticationError, CarrierError, ConnectError, RelayError
from relay.streams.stream import Stream
from relay.transports.i2p import messages
from relay.transports.proxies import http_client, socks_client
from relay.transports.ssh.connection import Settings
from relay.transports.ssh.openssh import diagnostics
from relay.transports.ssh.openssh.channel_log import ChannelLog
from relay.transports.ssh.openssh.control import Control
from relay.transports.ssh.paramiko.forwards import Forwards
from relay.transports.ssh.paramiko.mux import Mux, Requests
from relay.transports.ssh.paramiko.transport import Transport
from relay.transports.ssh.paramiko.wire import LONGEST, Wire
from relay.transports.tor import replies

from .checks import FindingError, equal, one_line, one_of, pieces, rejecting

_TARGET = TCPAddress("example.net", 443)


# -- proxies -----------------------------------------------------------------------------------------------------------


def _talk(dialogue: Generator[Any, bytes, None], said: bytes, size: int) -> tuple[str, int]:
    """Answer a dialogue with what a proxy says, some more of it at each look; return how it ends, and what is left."""
    try:
        question = next(dialogue)
        while True:
            seen = length = 0
            while not length:
                if seen == len(said):
                    dialogue.close()
                    return "incomplete", len(said)
                seen = min(len(said), seen + size)
                length = question.length(said[:seen])
            if not 0 < length <= seen:
                raise FindingError(f"an answer of {length} of {seen} bytes")
            answer, said = said[:length], said[length:]
            question = dialogue.send(answer)
    except StopIteration:
        return "connected", len(said)
    except (ConnectError, AuthenticationError) as error:
        one_line(str(error))
        return type(error).__name__, 0


def _proxy(data: bytes, scheme: Any, connect: Callable[..., Generator[Any, bytes, None]]) -> None:
    if not data:
        return
    proxy = Proxy(scheme, "proxy.example", 1080)
    login = (b"alice", b"secret") if data[0] > 127 else None
    whole = _talk(connect(proxy, _TARGET, login), data[1:], len(data))
    cut = _talk(connect(proxy, _TARGET, login), data[1:], data[0] % 64 + 1)
    equal(whole[0] == "connected", cut[0] == "connected", "cut to pieces")
    if whole[0] == "connected":
        equal(whole, cut, "cut to pieces")


def socks_proxy(data: bytes) -> None:
    """Answers of a SOCKS5 proxy."""
    _proxy(data, "socks5", socks_client.connect)


def http_proxy(data: bytes) -> None:
    """Answers of an HTTP proxy."""
    _proxy(data, "http", http_client.connect)


# -- I2P ---------------------------------------------------------------------------------------------------------------


def sam(data: bytes) -> None:
    """Lines of a SAM bridge; a message is sent as a line that is parsed to the same."""

    def line(data: bytes) -> None:
        with rejecting(messages.MessageError):
            found = messages.parse(data)
            one_line(repr(found))
            try:
                sent = found.encode()
            except ValueError as error:
                one_line(str(error))
                if len(data) < messages.LONGEST // 2:  # quotes may make it longer
                    raise FindingError(f"what was parsed cannot be sent: {error}") from error
            else:
                equal(messages.parse(sent), found, "the line of a message")

    def peer(data: bytes) -> None:
        with rejecting(messages.MessageError):
            found = messages.parse_peer(data)
            one_line(found.place)

    one_of(data, [line, line, peer, line])


# -- the OpenSSH client ------------------------------------------------------------------------------------------------

_SETTINGS = Settings(SSHServer("example", user="me"), "example.net", 22, "me")


class _Observer:
    """The events of a channel."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def ssh_log(data: bytes) -> None:
    """The standard error of ``ssh``: each error that is made of it is one line."""
    lines = data.split(b"\n")
    texts = [diagnostics.decoded(line) for line in lines]
    one_line(str(diagnostics.why(_SETTINGS, texts)))
    one_line(str(diagnostics.timeout_error(_SETTINGS, texts)))
    for text in texts:
        one_line(str(diagnostics.open_error("example:80", "server", text)))
    log = ChannelLog(_Observer)
    log.arrivals[b"/run/relay"] = deque()
    log.name(_Observer())
    for line in lines:
        log.read(line)


class _Loop:
    """A loop that watches nothing."""

    def watch(self, *_: object) -> None:
        """Nothing."""

    forget = watch


def ssh_control(data: bytes) -> None:
    """Replies of ``ssh`` at its control socket."""
    _, parts = pieces(data)
    ours, theirs = socket.socketpair()
    broken: list[RelayError] = []
    replies: list[int | RelayError] = []
    control = Control.__new__(Control)
    control._loop, control._broken, control._socket = _Loop(), broken.append, ours  # type: ignore[assignment]
    control._received, control._unsent, control._greeted = bytearray(), bytearray(), False
    control._replies, control._number = {}, 0
    ours.setblocking(False)
    with theirs:
        for _ in range(3):
            control.request((0x10000006, b""), replies.append)
        for part in parts:
            if broken:
                break
            theirs.sendall(part)
            control._on_event(1, 0.0)
        control.close()
    equal(len(replies), 3, "replies to 3 requests")
    for reply in [*replies, *broken]:
        if not isinstance(reply, int):
            str(reply)
    for error in broken:
        if not isinstance(error, CarrierError):
            raise FindingError(f"{error!r}")


# -- tor ---------------------------------------------------------------------------------------------------------------


def tor_control(data: bytes) -> None:
    """Replies of tor's control port, and the words of their lines."""

    def read(parts: list[bytes]) -> tuple[list[replies.Reply], bool]:
        reader, found = replies.ReplyReader(), []
        try:
            for part in parts:
                found += reader.feed(part)
        except replies.ReplyError as error:
            one_line(str(error))
            return found, True
        return found, False

    size, parts = pieces(data)
    whole, cut = read([b"".join(parts)]), read(parts)
    equal(whole, cut, f"cut to pieces of {size}")
    for reply in whole[0]:
        one_line(reply.text)
        for line in reply.lines:
            replies.words_of(line)


# -- SSH packets -------------------------------------------------------------------------------------------------------

_KEY, _IV = bytes(16), bytes(12)


class _Entry:
    """An open channel, or one that was requested."""

    received = 0

    def __init__(self, mux: Mux, number: int) -> None:
        self.mux, self.number = mux, number

    def is_wanted(self) -> bool:
        return self.number % 2 == 0

    def look(self) -> bool:
        return False

    def receive(self, data: memoryview) -> None:
        self.received += len(data)

    def confirmed(self, number: int, *_: int) -> None:
        self.mux.put(number, self)

    def close(self) -> None:
        self.mux.free(self.number)

    def refused(self, code: int, text: str) -> None:
        """The server has not opened it."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


class _Server:
    """A connection to a server, whose bytes come from the input and whose keys are known; no thread runs."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.theirs.setblocking(False)
        stream = SimpleNamespace(socket=self.ours, target="example", failure=None, close_soon=self.ours.close)
        self.wire = Wire(stream)  # type: ignore[arg-type]
        self.transport = Transport(self.wire, lambda: None)

    def say(self, data: bytes) -> None:
        self.theirs.setblocking(True)
        self.wire.view[self.wire.last : self.wire.last + len(data)] = data
        self.wire.last += len(data)
        self.theirs.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.wire.release()
        self.theirs.close()


def ssh_packets(data: bytes) -> None:
    """Packets of a server that is logged in to: each piece is a message, or with an odd number what is encrypted."""
    server = _Server()
    try:
        transport, packetizer = server.transport, server.transport.packetizer
        mux = Mux(transport, "example")
        names: list[str] = []

        def accept(stream: Stream, peer: object) -> None:
            names.extend((str(stream.target), str(peer)))
            stream.close()

        forwards = Forwards(transport, mux, Requests(transport, mux))
        forwards._dispatcher.add(TCPAddress("127.0.0.1", 80), partial(forwards._take, accept))

        for _ in range(4):
            entry = _Entry(mux, len(mux))
            number = mux.number(entry)
            if number < 2:
                mux.put(number, entry)
        cipher = AESGCM(_KEY)
        packetizer.set_inbound_cipher(cipher, 16, None, 16, _KEY, aead=True, iv_in=_IV)
        sealed = b""
        at = number = 0
        while at + 2 <= len(data) and len(sealed) < LONGEST:
            kind, size = data[at], data[at + 1]
            body, at = data[at + 2 : at + 2 + size], at + 2 + size
            if kind % 2:
                plain = body + bytes(-len(body) % 16 or (16 if not body else 0))
            else:
                padding = 4 + (-len(body) - 5) % 16
                plain = bytes([padding]) + body + bytes(padding)
            head = struct.pack(">I", len(plain))
            nonce = _IV[:4] + (int.from_bytes(_IV[4:], "big") + number).to_bytes(8, "big")
            sealed += head + cipher.encrypt(nonce, plain, head)
            number += 1
        server.say(sealed[:LONGEST])
        try:
            for _ in range(number + 1):
                kind, message = packetizer.read_message()
                handler = transport._handler_table.get(kind)
                if handler is not None and kind >= 80:
                    handler(message)
        except (EOFError, NeedRekeyException, paramiko.SSHException):
            pass
        except (struct.error, IndexError, ValueError, OverflowError, OSError) as error:
            transport.saved_exception = error
            one_line(str(transport.saved_exception))
        for name in names:
            one_line(name)
        if len(mux) > number + 4:
            raise FindingError("more channels than messages")
    finally:
        server.close()


def ssh_greeting(data: bytes) -> None:
    """The first bytes of a server: its version and its offer of algorithms, before any key."""
    server = _Server()
    try:
        transport, packetizer = server.transport, server.transport.packetizer
        server.say(data[:LONGEST])
        try:
            transport.packetizer.readline(1.0)
            one_line(packetizer.greeting.strip() and "greeting")
            for _ in range(20):
                kind, message = packetizer.read_message()
                if kind == 20:
                    transport._offered = transport._really_parse_kex_init(message)
                    for word in ("kex", "host key", "cipher", "mac"):
                        if problem := transport.lacking(f"no acceptable {word}"):
                            one_line(problem)
                    transport.kex  # noqa: B018
                elif kind == 7:
                    transport._parse_ext_info(message)
                elif kind == 1:
                    transport._parse_disconnect(message)
                    one_line(str(server.wire.error))
        except (EOFError, paramiko.SSHException):
            pass
        except Exception as error:  # noqa: BLE001  (as the thread of the transport does)
            transport.saved_exception = error
            one_line(str(transport.saved_exception))
    finally:
        server.close()
