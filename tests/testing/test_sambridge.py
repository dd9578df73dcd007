"""``relay.testing.SAMBridge``, by plain sockets; what it says of i2pd is asked a real one as well."""

import contextlib
import hashlib
import os
import random
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from helpers import BLOCK, WAIT, Thread, is_gone, receive_all, receive_exactly, sha256_of, wait_until
from i2p_world import address_of

from relay.addresses.destinations import PrivateKey, b32_of
from relay.eventloop.sockets import reset
from relay.testing import SAMBridge, check_leaks
from relay.testing.sam import stream as samstream
from relay.transports.i2p.messages import (
    LONGEST,
    Message,
    MessageError,
    dest_generate,
    hello,
    naming_lookup,
    parse,
    parse_peer,
    ping,
    pong,
    session_create,
    stream_accept,
    stream_connect,
    stream_forward,
)

SHORT = 0.1  # seconds in which nothing comes that is not to come
OK = "OK"
EASY = {f"{way}bound.{what}": value for way in ("in", "out") for what, value in (("length", "0"), ("quantity", "1"))}


class Program:
    """A socket to a bridge. It reads a line and not a byte more."""

    def __init__(self, address):
        self.socket = socket.create_connection(address, WAIT)
        self.socket.settimeout(WAIT)
        self.sendall, self.recv, self.close = self.socket.sendall, self.socket.recv, self.socket.close
        self.shutdown, self.settimeout = self.socket.shutdown, self.socket.settimeout

    def line(self):
        """The next line; what there is of it at the end of file."""
        line = bytearray()
        while not line.endswith(b"\n") and (byte := self.socket.recv(1)):
            line += byte
            if hasattr(socket, "TCP_QUICKACK"):
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return bytes(line)

    def hear(self):
        """The next message."""
        return parse(self.line())

    def ask(self, message):
        """The answer to a message, or to a line."""
        self.sendall(message.encode() if isinstance(message, Message) else message + b"\n")
        return self.hear()

    def result(self, message):
        return self.ask(message).result

    def ends(self):
        """Return whether this is the end, or becomes so within a moment."""
        try:
            return self.recv(1) == b""
        except ConnectionResetError:
            return True

    def is_silent(self, seconds=SHORT):
        """Return whether nothing comes, not even the end."""
        self.settimeout(seconds)
        try:
            return not self.recv(1 << 16) and False
        except TimeoutError:
            return True
        finally:
            self.settimeout(WAIT)


class Made(Program):
    """A control socket, with its session."""

    def __init__(self, clients, name, destination="TRANSIENT", **options):
        super().__init__(clients.address)
        assert self.ask(hello()).result == OK
        self.clients = clients
        self.name = name
        answer = self.ask(session_create(id=name, destination=destination, options=EASY | options))
        assert answer.result == OK, answer
        self.key = PrivateKey.from_base64(answer.options["DESTINATION"])
        self.dest = self.key.destination

    def accept(self):
        """A socket at which the next stream comes."""
        program = self.clients.greeted()
        assert program.result(stream_accept(self.name)) == OK
        return program

    def connect(self, destination):
        """The near end of a stream."""
        program = self.clients.greeted()
        assert program.result(stream_connect(self.name, destination)) == OK
        return program

    def cannot_connect(self, destination):
        """The result of a stream that is refused."""
        return self.clients.asked(stream_connect(self.name, destination)).result

    def forward(self, listening, **options):
        """Let streams be forwarded to a program's own socket."""
        program = self.clients.greeted()
        assert program.result(stream_forward(self.name, listening.getsockname()[1], **options)) == OK
        return program

    def again(self, clients=None, name=""):
        """Another session with its key."""
        return (clients or self.clients).session(name or self.name, self.key.base64)


class Clients:
    """Makes sockets to one bridge, and closes all of them."""

    def __init__(self, address, stack):
        self.address = address
        self._stack = stack

    def _keep(self, one):
        return self._stack.enter_context(contextlib.closing(one))

    def raw(self):
        return self._keep(Program(self.address))

    def greeted(self, **options):
        program = self.raw()
        assert program.result(hello(**options)) == OK
        return program

    def session(self, name="one", destination="TRANSIENT", **options):
        return self._keep(Made(self, name, destination, **options))

    def asked(self, message):
        """The answer to one message after HELLO."""
        return self.greeted().ask(message)

    def listen(self):
        """A program's own listening socket."""
        listening = self._stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1024))
        listening.settimeout(WAIT)
        return listening

    def forwarded(self, listening):
        """Return who has connected, and the socket, which is past the line that says so."""
        connection = self._stack.enter_context(listening.accept()[0])
        connection.settimeout(WAIT)
        line = bytearray()
        while not line.endswith(b"\n"):
            line += connection.recv(1)
        return parse_peer(bytes(line)), connection


def pair(server, client):
    """Both ends of a stream between two sessions: who connected, who accepted."""
    accepted = server.accept()
    connected = client.connect(server.dest)
    assert parse_peer(accepted.line()) == client.dest
    return connected, accepted


@pytest.fixture(autouse=True)
def no_bugs(caplog):
    """The loop goes on after an error in a handler, and reports it."""
    yield
    assert not [record for record in caplog.get_records("call") if "bug in relay" in record.getMessage()]


@pytest.fixture
def make():
    """Makes bridges, and clients of them; returns the bridge and its clients."""
    with contextlib.ExitStack() as stack:

        def made(personality="i2pd", **options):
            bridge = stack.enter_context(SAMBridge(personality=personality, **options))
            return bridge, Clients(bridge.address, stack)

        yield made


@pytest.fixture
def two(make):
    """Makes a bridge with two sessions; returns it, its clients, a server and a client."""

    def made(personality="i2pd", **options):
        bridge, clients = make(personality, **options)
        return bridge, clients, clients.session("server"), clients.session("client")

    return made


@pytest.fixture
def two_routers(make):
    """Makes two bridges in one network; returns each with its clients: the servers' and the clients'."""

    def made(personality="i2pd", server=None, **options):
        near, clients = make(personality, **options)
        return *make(personality, network=near, **(server or {})), near, clients

    return made


@pytest.fixture(params=["i2pd", "java"])
def personality(request):
    return request.param


def sent(one, other, text=b"ping"):
    """Prove that both directions of a stream work."""
    one.sendall(text)
    assert receive_exactly(other, len(text)) == text
    other.sendall(text[::-1])
    assert receive_exactly(one, len(text)) == text[::-1]


def has_come(bridge, *words):
    """Wait until this is the last command that the bridge has read."""
    wait_until(lambda: bridge.commands[-1:] and bridge.commands[-1].words == words)


# Who is asked where, by which line => what the answer begins with, and a point if the bridge ends the connection.
LINES = r"""
i2pd java greeted | STREAM CONNECT ID=nobody DESTINATION={dest} => STREAM STATUS RESULT=INVALID_ID.
i2pd java greeted | STREAM ACCEPT ID=nobody => STREAM STATUS RESULT=INVALID_ID.
i2pd java greeted | STREAM FORWARD ID=nobody PORT=1 => STREAM STATUS RESULT=INVALID_ID.
i2pd java greeted | STREAM FORWARD ID=one PORT= => * RESULT=I2P_ERROR
i2pd java greeted | STREAM FORWARD ID=one PORT=0 => * RESULT=I2P_ERROR
i2pd java greeted | STREAM FORWARD ID=one PORT=65536 => * RESULT=I2P_ERROR
i2pd java greeted | STREAM FORWARD ID=one PORT=-1 => * RESULT=I2P_ERROR
i2pd java greeted | STREAM FORWARD ID=one PORT=http => * RESULT=I2P_ERROR
i2pd java greeted | SESSION CREATE STYLE=STREAM ID=two DESTINATION=abc => SESSION STATUS RESULT=INVALID_KEY
i2pd java greeted | SESSION CREATE STYLE=STREAM ID=two DESTINATION={dest} => SESSION STATUS RESULT=INVALID_KEY
i2pd java greeted | SESSION CREATE STYLE=STREAM ID=two DESTINATION={cut} => SESSION STATUS RESULT=INVALID_KEY
i2pd java greeted | SESSION CREATE STYLE=STREAM ID=two DESTINATION={long} => SESSION STATUS RESULT=INVALID_KEY
i2pd java greeted | SESSION CREATE STYLE=STREAM ID=two DESTINATION=TRANSIENT= => SESSION STATUS RESULT=INVALID_KEY
i2pd java greeted | SESSION CREATE STYLE=DATAGRAM ID=two DESTINATION=TRANSIENT => SESSION STATUS RESULT=I2P_ERROR
i2pd java session | STREAM ACCEPT ID=one => * RESULT=I2P_ERROR.
i2pd java session | STREAM CONNECT ID=one DESTINATION=x.i2p => * RESULT=I2P_ERROR.
i2pd java session | STREAM FORWARD ID=one PORT=1 => * RESULT=I2P_ERROR.
i2pd raw | HELLO VERSIONS => .
i2pd raw |  => .
i2pd session | PING x => .
i2pd session | PING => .
i2pd session | stream accept ID=one => .
i2pd session | FOO BAR => .
i2pd session | FOO => .
i2pd session |  => .
i2pd session |   => .
i2pd session | \0\xff => .
java raw | HELLO VERSION MIN=3.1 MAX=3.3 => HELLO REPLY RESULT=OK VERSION=3.3
java raw | HELLO VERSION MIN=3.0 MAX=3.2 => HELLO REPLY RESULT=OK VERSION=3.2
java raw | HELLO VERSION MIN=3.1 MAX=3.1 => HELLO REPLY RESULT=OK VERSION=3.1
java raw | HELLO VERSION MIN=1 MAX=99.9 => HELLO REPLY RESULT=OK VERSION=3.3
java raw | HELLO VERSION => HELLO REPLY RESULT=OK VERSION=3.3
java raw | HELLO VERSION MIN=3.4 MAX=4.0 => HELLO REPLY RESULT=NOVERSION.
java raw | HELLO VERSION MIN=2.0 MAX=2.9 => HELLO REPLY RESULT=NOVERSION.
java raw | FOO BAR => HELLO REPLY RESULT=I2P_ERROR.
java raw | \nX => HELLO REPLY RESULT=I2P_ERROR.
java raw | SESSION CREATE ID="x => HELLO REPLY RESULT=I2P_ERROR.
java raw | = => HELLO REPLY RESULT=I2P_ERROR.
java raw | \xff => HELLO REPLY RESULT=I2P_ERROR.
java raw | hello => HELLO REPLY RESULT=I2P_ERROR.
java greeted | SESSION CREATE STYLE=STREAM DESTINATION=TRANSIENT => SESSION STATUS RESULT=I2P_ERROR
java greeted | SESSION CREATE ID=two DESTINATION=TRANSIENT => SESSION STATUS RESULT=I2P_ERROR
java greeted | SESSION CREATE ID=two STYLE=STREAM => SESSION STATUS RESULT=I2P_ERROR
java greeted | SESSION CREATE ID="x => SESSION STATUS RESULT=I2P_ERROR.
java greeted | STREAM ACCEPT => STREAM STATUS RESULT=I2P_ERROR
java greeted | STREAM FOO => STREAM STATUS RESULT=I2P_ERROR
java greeted | \xff => * RESULT=I2P_ERROR.
java greeted | NAMING LOOKUP NAME=ME => .
java greeted | QUIT => QUIT STATUS RESULT=OK MESSAGE=bye.
java session | FOO BAR => FOO STATUS RESULT=I2P_ERROR
java session | FOO => FOO STATUS RESULT=I2P_ERROR
java session | HELLO VERSION => HELLO STATUS RESULT=I2P_ERROR
java session | SESSION ADD ID=x => SESSION STATUS RESULT=I2P_ERROR
java session | DEST => DEST STATUS RESULT=I2P_ERROR
java session | PING => PONG\n
java session | PING a  b => PONG a  b\n
java session | PING "x => PONG "x\n
"""
KEY = PrivateKey.generate()
WORDS = {"dest": KEY.destination, "cut": KEY.base64[:-8], "long": "?" * 900}


def exchanges():
    for row in LINES.strip().splitlines():
        *personalities, where = row.partition(" | ")[0].split()
        line, _, answer = row.partition(" | ")[2].partition(" => ")
        yield from (pytest.param(personality, where, line, answer, id=row) for personality in personalities)


@pytest.mark.parametrize(("personality", "where", "line", "answer"), [*exchanges()])
def test_a_line_and_its_answer(make, personality, where, line, answer):
    bridge, clients = make(personality)
    session = clients.session()
    program = {"raw": clients.raw, "greeted": clients.greeted, "session": lambda: session}[where]()
    program.sendall(line.format(**WORDS).encode().decode("unicode-escape").encode("latin-1") + b"\n")
    is_over, answer = answer.endswith("."), answer.removesuffix(".").encode().decode("unicode-escape")
    said = program.line().decode()
    assert said.startswith(answer) if "*" not in answer else answer.removeprefix("*") in said
    assert answer or not said
    assert not is_over or program.ends()
    assert bool(bridge.sessions) is not (is_over and program is session)
    if not is_over:
        assert session.result(naming_lookup("ME")) == OK


# Both personalities.


def test_what_is_said_at_once_comes_after_the_line(personality, two):
    _, _, server, client = two(personality)
    accepted = server.accept()
    connected = client.connect(server.dest)
    connected.sendall(b"at once")
    assert parse_peer(accepted.line()) == client.dest
    assert receive_exactly(accepted, 7) == b"at once"


def test_a_forward(personality, two):
    bridge, clients, server, client = two(personality)
    listening = clients.listen()
    forward = server.forward(listening)
    for text in (b"first", b"second"):
        connected = client.connect(server.dest)
        peer, accepted = clients.forwarded(listening)
        assert peer == client.dest
        sent(connected, accepted, text)
        accepted.close()
        assert connected.ends()
    assert bridge.streams == 2
    forward.close()
    bridge.settings.silence = 0.1
    wait_until(lambda: bridge.connections == 2)
    answer = clients.greeted().result(stream_connect("client", server.dest))
    assert answer == (OK if personality == "i2pd" else "CANT_REACH_PEER")


def test_a_forward_takes_all_that_wait(two):
    _, clients, server, client = two()
    waiting = [client.connect(server.dest) for _ in range(3)]
    listening = clients.listen()
    server.forward(listening)
    for connected in waiting:
        sent(connected, clients.forwarded(listening)[1])


def test_a_forward_that_nobody_takes(personality, two):
    _, clients, server, client = two(personality)
    listening = clients.listen()
    server.forward(listening)
    listening.close()
    assert client.connect(server.dest).ends()


def test_silent_ones(personality, two):
    _, clients, server, client = two(personality)
    accepted, connected = clients.greeted(), clients.greeted()
    accepted.sendall(b"STREAM ACCEPT ID=server SILENT=true\n")
    connected.sendall(f"STREAM CONNECT ID=client DESTINATION={server.dest} SILENT=true\n".encode())
    if personality == "i2pd":  # what is said in one segment with a command is not for the stream
        assert accepted.is_silent(0.1)
    sent(connected, accepted)
    listening = clients.listen()
    forward = clients.greeted()
    request = f"STREAM FORWARD ID=server PORT={listening.getsockname()[1]} SILENT=true"
    assert forward.ask(request.encode()).result == OK
    connected = client.connect(server.dest)
    with listening.accept()[0] as taken:
        sent(connected, taken)
    silent = clients.greeted()
    silent.sendall(b"STREAM ACCEPT ID=nobody SILENT=true\n")
    assert silent.line() == b"STREAM STATUS RESULT=INVALID_ID" * (personality == "java") or silent.ends()


def test_keys_are_kept(personality, make):
    bridge, clients = make(personality)
    first = clients.session()
    first.close()
    wait_until(lambda: not bridge.sessions)
    assert first.again().key == first.key
    generated = clients.asked(dest_generate())
    key = PrivateKey.from_base64(generated.options["PRIV"])
    assert key.destination == generated.options["PUB"]
    assert clients.session("two", key.base64).key == key
    public = Ed25519PrivateKey.from_private_bytes(key.data[-32:]).public_key().public_bytes_raw()
    assert key.data[384 - 32 : 384] == public, "it is a real one"


def test_names(personality, two):
    bridge, clients, server, client = two(personality)
    bridge.addressbook = {"site.i2p": server.dest, "alias.i2p": b32_of(server.dest)}
    me = client.ask(naming_lookup("ME"))
    assert (me.result, me.options["NAME"], me.options["VALUE"]) == (OK, "ME", client.dest)
    address = b32_of(server.dest)
    for name in ("site.i2p", "alias.i2p", address, address.upper().replace("B32.I2P", "b32.i2p")):
        found = clients.asked(naming_lookup(name))
        assert (found.result, found.options["NAME"], found.options["VALUE"]) == (OK, name, server.dest)
        accepted = server.accept()
        connected = client.connect(name)
        assert parse_peer(accepted.line()) == client.dest
        sent(connected, accepted)
    unknown = "INVALID_KEY" if personality == "i2pd" else "KEY_NOT_FOUND"
    for name in ("nobody.i2p", "a" * 52 + ".b32.i2p", "a" * 56 + ".b32.i2p", "nonsense"):
        found = clients.asked(naming_lookup(name))
        assert (found.result, found.options["NAME"]) == (unknown, name)
    for name in ("nobody.i2p", "nonsense"):
        assert client.cannot_connect(name) == "INVALID_KEY"
    assert client.cannot_connect(KEY.destination) == "CANT_REACH_PEER"
    assert client.cannot_connect(KEY.b32) == ("CANT_REACH_PEER" if personality == "i2pd" else "INVALID_KEY")


def test_an_id_is_taken(personality, make):
    bridge, clients = make(personality)
    first = clients.session()
    assert clients.asked(session_create(id="one")).result == "DUPLICATED_ID"
    assert [record.destination for record in bridge.sessions] == [first.dest]
    first.close()
    wait_until(lambda: not bridge.sessions)
    clients.session()


def test_a_session_takes_its_time(personality, make):
    bridge, clients = make(personality)
    target = clients.session("target")
    bridge.settings.build_time = 1.0
    began = time.monotonic()
    program = clients.greeted()
    program.sendall(session_create(id="one").encode())
    has_come(bridge, "SESSION", "CREATE")
    assert [record.id for record in bridge.sessions] == ["target"]
    assert clients.asked(session_create(id="one")).result == "DUPLICATED_ID"
    early = clients.asked(stream_connect("one", target.dest))
    assert early.result == ("CANT_REACH_PEER" if personality == "i2pd" else "INVALID_ID")
    assert program.hear().result == OK
    assert time.monotonic() - began >= 1.0
    assert [record.id for record in bridge.sessions] == ["target", "one"]
    other = clients.greeted()
    other.sendall(session_create(id="two").encode())
    has_come(bridge, "SESSION", "CREATE")
    bridge.kill()
    bridge.restart()
    assert other.ends() and clients.greeted().is_silent(1.1)


def test_a_session_is_found_later(personality, make):
    bridge, clients = make(personality, publish_time=100.0)
    never, client = clients.session("never"), clients.session("client")
    assert client.cannot_connect(never.dest) == client.cannot_connect(client.dest) == "CANT_REACH_PEER"
    assert clients.asked(naming_lookup(never.key.b32)).result != OK
    bridge.settings.publish_time = 0.3
    began = time.monotonic()
    server = clients.session("server")
    accepted = server.accept()
    wait_until(lambda: clients.asked(stream_connect("client", server.dest)).result == OK)
    assert time.monotonic() - began >= 0.3
    assert parse_peer(accepted.line()) == client.dest


def test_what_ended_before_it_was_found_never_is(personality, two):
    bridge, _, server, client = two(personality, publish_time=0.2)
    server.close()
    wait_until(lambda: len(bridge.sessions) == 1)
    assert client.is_silent(0.3)
    assert client.cannot_connect(server.dest) == "CANT_REACH_PEER"


def test_the_beginning_waits_for_who_accepts(personality, two):
    bridge, clients, server, client = two(personality, silence=1.5)
    connected = clients.greeted()
    connected.sendall(stream_connect("client", server.dest).encode())
    if personality == "i2pd":
        assert connected.hear().result == OK
        connected.sendall(b"early")
    has_come(bridge, "STREAM", "CONNECT")
    accepted = server.accept()
    assert parse_peer(accepted.line()) == client.dest
    if personality == "java":
        assert connected.hear().result == OK
        connected.sendall(b"early")
    assert receive_exactly(accepted, 5) == b"early"
    assert accepted.is_silent(1.6)
    sent(connected, accepted)


def test_nobody_accepts(personality, two):
    bridge, clients, server, _ = two(personality, silence=0.2)
    began = time.monotonic()
    connected = clients.greeted()
    answer = connected.ask(stream_connect("client", server.dest))
    assert answer.result == (OK if personality == "i2pd" else "CANT_REACH_PEER")
    assert connected.ends()
    assert time.monotonic() - began >= 0.2
    assert bridge.streams == 0
    pair(server, clients.session("later"))


def test_no_more_than_128_wait(two):
    _, _, server, client = two()
    waiting = [client.connect(server.dest) for _ in range(128)]
    assert client.connect(server.dest).ends()
    assert waiting[0].is_silent() and waiting[-1].is_silent(0.01)


@pytest.mark.parametrize("goes", [0, 1])
def test_one_that_accepts_goes(personality, two, goes):
    bridge, _, server, client = two(personality)
    acceptors = [server.accept(), server.accept()]
    acceptors.pop(goes).close()
    (left,) = acceptors
    if personality == "java":  # that is not seen until a stream comes, which is lost
        assert goes or client.connect(server.dest).ends()
        client.connect(server.dest)
        assert parse_peer(left.line()) == client.dest
        return
    wait_until(lambda: bridge.connections == 3)
    client.connect(server.dest)
    if not goes:
        assert left.is_silent()  # no client is served until another one asks
        assert parse_peer(server.accept().line()) == client.dest
        client.connect(server.dest)
    assert parse_peer(left.line()) == client.dest
    if goes:
        third = server.accept()
        client.connect(server.dest)
        assert parse_peer(third.line()) == client.dest


def test_accept_and_forward_do_not_mix(personality, two):
    bridge, clients, server, client = two(personality, silence=0.1)
    listening = clients.listen()
    accepted = server.accept()
    second = clients.greeted()
    assert second.result(stream_forward("server", 1)) == "I2P_ERROR"
    assert second.ends()
    client.connect(server.dest)
    assert accepted.line()
    wait_until(lambda: bridge.connections == 2)
    server.forward(listening)
    assert clients.asked(stream_forward("server", 1)).result == "I2P_ERROR"
    beside = server.accept()
    if personality == "java":
        assert beside.hear().result == "ALREADY_ACCEPTING"
        assert beside.ends()
    connected = client.connect(server.dest)
    sent(connected, clients.forwarded(listening)[1])
    assert personality == "java" or beside.is_silent()


@pytest.mark.parametrize("way", ["half-close", "close", "reset"])
@pytest.mark.parametrize("who", ["connected", "accepted"])
def test_one_end_ends_both(personality, two, way, who):
    _, _, server, client = two(personality)
    ends = dict(zip(("connected", "accepted"), pair(server, client), strict=True))
    one, other = ends.pop(who), *ends.values()
    one.sendall(b"the last word")
    if way == "half-close":
        one.shutdown(socket.SHUT_WR)
    elif way == "close":
        one.close()
    else:
        assert receive_exactly(other, 13) == b"the last word"  # a reset takes what the kernel holds with it
        reset(one.socket)
    assert receive_all(other) == (b"" if way == "reset" else b"the last word")
    if way == "half-close":
        with contextlib.suppress(OSError):
            other.sendall(b"reply")  # which is lost
        assert receive_all(one) == b""


def test_everything_comes_before_the_end(personality, two):
    _, _, server, client = two(personality)
    connected, accepted = pair(server, client)

    def send():
        for _ in range(16):
            connected.sendall(BLOCK)
        connected.close()

    Thread(send).result()  # 16 MiB wait for a client that does not read yet
    assert sha256_of(accepted) == hashlib.sha256(BLOCK * 16).hexdigest()


def test_a_tail_is_lost(two):
    _, _, server, client = two(loses_tail=True)
    connected, accepted = pair(server, client)
    for _ in range(16):
        connected.sendall(BLOCK)
    connected.close()
    data = bytearray()
    accepted.settimeout(1)
    with pytest.raises(TimeoutError):
        while True:
            data += accepted.recv(1 << 20)
            assert len(data) < 16 << 20
    assert (BLOCK * 16).startswith(data)


@pytest.mark.parametrize("loses_tail", [False, True])
def test_a_stream_that_ended_before_it_was_accepted(two, loses_tail):
    _, _, server, client = two(loses_tail=loses_tail)
    early = client.connect(server.dest)
    early.sendall(b"early")
    early.close()
    accepted = server.accept()
    assert parse_peer(accepted.line()) == client.dest
    assert receive_exactly(accepted, 5) == b"early"
    assert accepted.is_silent() if loses_tail else accepted.ends()


def test_a_session_ends_with_its_socket(personality, two):
    bridge, clients, server, client = two(personality, silence=1.0)
    connected, accepted = pair(server, client)
    waiting, forward = server.accept(), clients.greeted()
    deaf = clients.session("deaf")
    pending = clients.greeted()
    pending.sendall(stream_connect("client", deaf.dest).encode())
    has_come(bridge, "STREAM", "CONNECT")
    deaf.close()
    server.close()
    assert accepted.ends() and waiting.ends()
    wait_until(lambda: [record.id for record in bridge.sessions] == ["client"])
    assert forward.result(stream_accept("server")) == "INVALID_ID"
    if personality == "i2pd":  # who is at the other end hears nothing
        assert pending.hear().result == OK
        assert connected.is_silent() and pending.is_silent(1.1)
    else:
        assert connected.ends()
        assert pending.hear().result == "CANT_REACH_PEER"


def test_a_destination_that_is_gone_is_found_for_a_while(personality, two):
    bridge, clients, server, client = two(personality, silence=0.1)
    server.close()
    wait_until(lambda: len(bridge.sessions) == 1)
    if personality == "i2pd":
        assert client.connect(server.dest).is_silent(0.2)
    assert clients.asked(naming_lookup(server.key.b32)).result == OK
    bridge.settings.lease_life = 0.0
    assert client.cannot_connect(server.dest) == "CANT_REACH_PEER"
    assert clients.asked(naming_lookup(server.key.b32)).result != OK


@pytest.mark.parametrize("result", ["DUPLICATED_ID", "DUPLICATED_DEST", "I2P_ERROR", "INVALID_KEY"])
def test_sessions_are_refused(personality, make, result):
    bridge, clients = make(personality)
    bridge.refuse_sessions(2, result)
    for _ in range(2):
        assert clients.asked(session_create(id="one")).result == result
    assert bridge.sessions == []
    clients.session()


@pytest.mark.parametrize("result", ["CANT_REACH_PEER", "I2P_ERROR", "INVALID_KEY", "TIMEOUT"])
def test_connects_fail(personality, two, result):
    bridge, clients, server, client = two(personality)
    bridge.fail_connects(2, result)
    for _ in range(2):
        program = clients.greeted()
        assert program.result(stream_connect("client", server.dest)) == result
        assert program.ends()
    pair(server, client)
    bridge.fail_connects(1)
    bridge.fail_connects(0)
    pair(server, client)


def test_an_error_comes_late(personality, two):
    bridge, _, server, client = two(personality)
    bridge.late_error(1)
    accepted = server.accept()
    assert accepted.hear().result == "I2P_ERROR"
    assert accepted.ends()
    pair(server, client)


def test_answers_are_held(personality, two):
    bridge, clients, server, client = two(personality)
    connected, accepted = pair(server, client)
    bridge.hold_answers()
    waiting = clients.raw()
    waiting.sendall(hello().encode())
    assert waiting.is_silent()
    sent(connected, accepted)  # streams go on
    bridge.release_answers()
    assert waiting.hear().result == OK
    bridge.hold_answers("SESSION CREATE", "STREAM")
    assert waiting.ask(dest_generate()).words == ("DEST", "REPLY")
    waiting.sendall(session_create(id="held").encode())
    other = clients.greeted()
    other.sendall(stream_connect("client", server.dest).encode())
    gone = clients.greeted()
    gone.sendall(stream_accept("server").encode())
    has_come(bridge, "STREAM", "ACCEPT")
    gone.close()
    assert waiting.is_silent() and other.is_silent(0.01)
    accepting = Thread(server.accept)
    bridge.release_answers()
    assert waiting.hear().result == OK
    assert other.hear().result == OK
    accepting.result()
    bridge.hold_answers("NAMING")
    waiting.sendall(naming_lookup("ME").encode())
    has_come(bridge, "NAMING", "LOOKUP")
    bridge.cut("held")
    bridge.release_answers()
    assert waiting.ends()


def test_a_control_socket_is_cut(personality, make):
    bridge, clients = make(personality)
    one, second, third = (clients.session(name) for name in ("one", "two", "three"))
    connected, accepted = pair(one, second)
    bridge.cut("one")
    assert one.ends() and accepted.ends()
    bridge.cut("nobody")
    assert [record.id for record in bridge.sessions] == ["two", "three"]
    bridge.cut()
    assert second.ends() and third.ends() and connected.ends()
    assert bridge.sessions == []


def test_a_router_dies_and_returns(personality, two):
    bridge, clients, server, client = two(personality, remember=100.0, zombie_life=0.0)
    ends = [server, client, *pair(server, client), clients.raw(), clients.greeted(), server.accept()]
    bridge.kill()
    bridge.kill()
    assert all(end.ends() for end in ends)
    assert bridge.sessions == [] and bridge.connections == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(bridge.address, WAIT)
    bridge.restart()
    bridge.restart()
    sent(*pair(server.again(), clients.session("client")))


def test_two_routers_in_one_network(personality, two_routers):
    far, servers, near, clients = two_routers(personality)
    server, client = servers.session(), clients.session()
    connected, accepted = pair(server, client)
    sent(connected, accepted)
    assert (near.streams, far.streams) == (1, 1)
    far.kill()
    assert accepted.ends()
    assert connected.is_silent()  # it gets no notice
    connected.sendall(b"into the void")
    far.restart()
    connected, accepted = pair(server.again(), client)
    sent(connected, accepted)
    near.close()
    assert connected.ends()
    assert far.sessions and accepted.is_silent()


def test_the_network_lives_as_long_as_one_of_its_bridges():
    with check_leaks(WAIT), contextlib.ExitStack() as stack:
        first = SAMBridge()
        second = SAMBridge(network=first)
        first.close()
        Clients(second.address, stack).session()
        assert second.sessions
        second.close()


def test_closing_is_final(personality, make):
    bridge, clients = make(personality)
    session = clients.session()
    bridge.close()
    bridge.close()
    assert session.ends()
    assert is_gone(bridge.address)
    assert bridge.sessions == [] and bridge.connections == 0 and bridge.commands
    for act in (bridge.restart, bridge.cut, bridge.hold_answers, lambda: SAMBridge(network=bridge)):
        with pytest.raises(OSError, match="Bad file descriptor"):
            act()
    assert "0 sessions" in repr(bridge)


def test_the_port_can_be_chosen(reserved):
    with SAMBridge(port=reserved) as bridge:
        with pytest.raises(OSError, match="in use"):
            SAMBridge(port=reserved)
        assert bridge.address == ("127.0.0.1", reserved)
        assert bridge.sam == f"127.0.0.1:{reserved}"
        assert bridge.sam in repr(bridge)


def test_ipv6(two):
    try:
        bridge, clients, server, client = two(host="::1")
    except OSError:
        pytest.skip("there is no IPv6 loopback")
    assert bridge.sam == f"[::1]:{bridge.address[1]}"
    sent(*pair(server, client))
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listening:
        server.forward(listening)
        connected = client.connect(server.dest)
        sent(connected, clients.forwarded(listening)[1])


@pytest.mark.parametrize(
    "options",
    [
        {"personality": "kaffee"},
        {"user": "me", "password": "secret"},
        {"personality": "java", "user": "me"},
        {"personality": "java", "password": "secret"},
        {"build_time": -1},
        {"silence": float("nan")},
        {"versions": ("3.3", "3.1")},
        {"versions": ("new", "newer")},
    ],
)
def test_wrong_arguments(options):
    with check_leaks(), pytest.raises(ValueError, match=f"^({'|'.join([*options, 'user'])})") as wrong:
        SAMBridge(**options)
    assert "secret" not in str(wrong.value)


def test_what_was_asked_is_told_without_secrets(personality, make):
    login = {"user": "me", "password": "secret"} if personality == "java" else {}
    bridge, clients = make(personality, silence=0.1, **login)
    assert clients.raw().result(hello(user="me", password="secret")) == OK
    control = clients.raw()
    for request in (
        hello(user="me", password="secret"),
        session_create(id="mine", destination=KEY.base64, options={**EASY, "inbound.nickname": "web"}),
    ):
        assert control.result(request) == OK
    (record,) = bridge.sessions
    assert (record.id, record.destination) == ("mine", KEY.destination)
    assert record.options["inbound.nickname"] == "web"
    greeted, created = bridge.commands[-2:]
    assert (greeted.words, created.words) == (("HELLO", "VERSION"), ("SESSION", "CREATE"))
    assert created.options["DESTINATION"] == "***" and created.options["STYLE"] == "STREAM"
    shown = repr((bridge, bridge.sessions, bridge.commands, bridge.settings))
    assert KEY.base64 not in shown and "secret" not in shown
    control.sendall(naming_lookup(KEY.destination).encode())
    has_come(bridge, "NAMING", "LOOKUP")
    assert bridge.commands[-1].options["NAME"] == KEY.destination


# The traps.


def test_the_same_keys_too_soon(make):
    bridge, clients = make(remember=100.0, zombie_life=1.0)
    client, stranger = clients.session("client"), clients.session("stranger")
    first = clients.session("server")
    first.close()
    wait_until(lambda: len(bridge.sessions) == 2)
    bridge.settings.build_time = 50.0
    began = time.monotonic()
    zombie = first.again(name="again")  # it comes at once
    connected, accepted = pair(zombie, client)
    sent(connected, accepted)
    assert accepted.ends()
    assert time.monotonic() - began >= 1.0
    assert connected.is_silent()  # it gets no notice
    assert zombie.ask(naming_lookup("ME")).options["VALUE"] == first.dest
    waiting = zombie.accept()
    lost = client.connect(first.dest)
    assert waiting.is_silent() and lost.is_silent(0.01)
    assert zombie.cannot_connect(client.dest) == "INVALID_ID"
    assert zombie.cannot_connect(stranger.dest) == "CANT_REACH_PEER"
    bridge.settings.build_time = 0.0
    zombie.close()
    wait_until(lambda: len(bridge.sessions) == 2)
    bridge.settings.remember = 0.0  # some time later
    sent(*pair(first.again(name="sound"), client))


def test_other_keys_are_no_trap(make):
    bridge, clients = make(remember=100.0, zombie_life=0.05)
    first = clients.session("first")
    first.close()
    wait_until(lambda: not bridge.sessions)
    connected, accepted = pair(clients.session("one"), clients.session("two"))
    assert accepted.is_silent()
    sent(connected, accepted)


def test_the_same_keys_twice(make):
    bridge, clients = make()
    client, first = clients.session("client"), clients.session("first")
    second = first.again(name="second")
    for session in (first, second):
        pair(session, client)
    stream, _ = pair(client, second)
    first.close()
    assert stream.ends()  # they share everything
    sent(*pair(second, client))
    assert [record.id for record in bridge.sessions] == ["client", "second"]


def test_the_same_keys_twice_die_together(make):
    bridge, clients = make(remember=100.0, zombie_life=1.0)
    client, first = clients.session("client"), clients.session("first")
    second = first.again(name="second")
    first.close()
    wait_until(lambda: len(bridge.sessions) == 2)
    _, accepted = pair(second, client)
    assert accepted.ends()
    assert second.is_silent()


def test_an_abandoned_session_takes_the_next_one_with_it(make):
    bridge, clients = make(remember=100.0, zombie_life=1.0)
    client = clients.session("client")
    bridge.settings.build_time = 1.0
    abandoned = clients.greeted()
    abandoned.sendall(session_create(id="first", destination=KEY.base64).encode())
    has_come(bridge, "SESSION", "CREATE")
    abandoned.close()
    assert clients.asked(session_create(id="first")).result == "DUPLICATED_ID"
    second = clients.session("second", KEY.base64)
    wait_until(lambda: [record.id for record in bridge.sessions] == ["client", "second"])
    _, accepted = pair(second, client)
    assert accepted.ends()
    assert client.connect(second.dest).is_silent()
    assert second.is_silent(0.01)


def test_an_old_lease_set_of_the_server(two_routers):
    far, servers, near, clients = two_routers(stale=100.0)
    server, client = servers.session("server"), clients.session("client")
    pair(server, client)
    far.kill()
    assert client.connect(server.dest).is_silent(0.1)
    far.restart()
    again = server.again()
    accepted = again.accept()
    lost = client.connect(again.dest)
    assert accepted.is_silent(0.1) and lost.is_silent(0.1)
    fresh = clients.session("fresh")
    connected = fresh.connect(again.dest)
    assert parse_peer(accepted.line()) == fresh.dest
    sent(connected, accepted)
    near.settings.stale = 0.0  # some time later
    sent(*pair(again, client))


def test_an_old_lease_set_of_the_client(two_routers):
    _, servers, near, clients = two_routers(server={"stale": 100.0})
    server, client = servers.session("server"), clients.session("client")
    pair(server, client)
    near.kill()
    near.restart()
    connected, accepted = pair(server, client.again())  # it arrives, and no more
    connected.sendall(b"request")
    accepted.sendall(b"reply")
    assert accepted.is_silent(0.1) and connected.is_silent(0.1)
    sent(*pair(server, clients.session("fresh")))


def test_what_is_stale_becomes_fresh(two_routers):
    far, servers, _, clients = two_routers(stale=0.5)
    server, client = servers.session("server"), clients.session("client")
    pair(server, client)
    far.kill()
    assert client.connect(server.dest).is_silent(0.3)
    far.restart()
    began = time.monotonic()
    accepted = server.again().accept()
    wait_until(lambda: client.connect(server.dest) and not accepted.is_silent(0.05))
    assert time.monotonic() - began >= 0.5


def test_a_java_router_says_what_is_stale(two_routers):
    stale = {"stale": 100.0, "silence": 0.2}
    far, servers, near, clients = two_routers("java", stale, **stale)
    server, client = servers.session("server"), clients.session("client")
    pair(server, client)
    far.kill()
    far.restart()
    again = server.again()
    accepted = again.accept()
    assert client.cannot_connect(again.dest) == "CANT_REACH_PEER"
    assert accepted.is_silent()
    fresh = clients.session("fresh")
    fresh.connect(again.dest)
    assert parse_peer(accepted.line()) == fresh.dest
    near.kill()
    near.restart()
    fresh = fresh.again()
    accepted = again.accept()
    assert fresh.cannot_connect(again.dest) == "CANT_REACH_PEER"
    assert parse_peer(accepted.line()) == fresh.dest  # it has come so far
    assert client.ends()


def test_a_stream_to_oneself(personality, make):
    bridge, clients = make(personality)
    session = clients.session()
    connected, accepted = pair(session, session)
    if personality == "java":
        sent(connected, accepted)
    else:  # it arrives, and no byte of it
        connected.sendall(b"x")
        accepted.sendall(b"y")
        assert accepted.is_silent() and connected.is_silent(0.01)
        connected.close()
        assert accepted.is_silent()
    bridge.settings.connect_to_self = False
    assert session.cannot_connect(session.dest) == "CANT_REACH_PEER"


# i2pd alone; see also what is asked a real router below.


def test_i2pd_does_not_wait_for_the_end_of_hello(make):
    _, clients = make()
    for piece in (b"HEL", b"HELLO "):
        program = clients.raw()
        program.sendall(piece)
        assert program.ends()
    program = clients.raw()
    program.sendall(b"HELLO VERSION MIN=3.1")
    assert program.hear().result == OK
    program.sendall(b" MAX=3.3\n")
    assert program.ends()


def test_a_command_in_pieces(personality, make):
    _, clients = make(personality)
    program = clients.greeted()
    for byte in dest_generate().encode():
        program.sendall(bytes([byte]))
    assert program.hear().words == ("DEST", "REPLY")
    program.sendall(dest_generate().encode()[:-1] + b"\r\n")
    assert program.hear().words == ("DEST", "REPLY")


def test_i2pd_shares_its_own_destination(make):
    bridge, clients = make()
    mine, again = (clients.asked(naming_lookup("ME")).options["VALUE"] for _ in range(2))
    assert mine == again and len(b32_of(mine)) == 60
    assert bridge.sessions == []


def test_i2pd_answers_while_it_accepts(two):
    bridge, _, server, client = two()
    accepted = server.accept()
    assert accepted.ask(naming_lookup("ME")).options["VALUE"] == server.dest
    accepted.sendall(b"half a line")
    assert accepted.is_silent(0.1)
    connected = client.connect(server.dest)
    assert parse_peer(accepted.line()) == client.dest
    assert receive_exactly(connected, 11) == b"half a line"
    assert server.accept().ask(stream_accept("server")).result == "I2P_ERROR"
    wait_until(lambda: bridge.connections == 2)


# Java alone.


def test_java_forwards_to_a_host(two):
    bridge, clients, server, client = two("java")
    listening = clients.listen()
    port = listening.getsockname()[1]
    for host in ("nonsense", "example.com", "127.0.0.1.1"):
        assert clients.asked(stream_forward("server", port, host=host)).result == "I2P_ERROR"
    for host in ("127.0.0.1", "localhost"):
        forward = server.forward(listening, host=host)
        client.connect(server.dest)
        assert clients.forwarded(listening)[0] == client.dest
        forward.close()
        wait_until(lambda: bridge.connections == 2)
    assert clients.greeted().result(stream_forward("server", 9, host="255.255.255.255")) == OK
    assert client.connect(server.dest).ends()


def test_versions_can_be_limited(personality, make):
    _, clients = make(personality, versions=("3.2", "3.3"))
    assert clients.raw().ask(hello("3.1", "3.3")).options["VERSION"] == "3.3"
    assert clients.raw().ask(hello("3.1", "3.1")).result == "NOVERSION"


@pytest.mark.parametrize(
    ("login", "result"),
    [
        ({"user": "me", "password": 'se"cr et'}, OK),
        ({"user": "me", "password": "wrong"}, "I2P_ERROR"),
        ({"user": "you", "password": 'se"cr et'}, "I2P_ERROR"),
        ({"user": "me"}, "I2P_ERROR"),
        ({}, "I2P_ERROR"),
    ],
)
def test_java_wants_a_login(make, login, result):
    _, clients = make("java", user="me", password='se"cr et')
    program = clients.raw()
    assert program.result(hello(**login)) == result
    assert result == OK or program.ends()


def test_java_needs_no_newline_between(make):
    _, clients = make("java")
    program = clients.raw()
    program.sendall(hello().encode() + b"\n\r\n" + dest_generate().encode() * 2)
    assert program.hear().result == OK
    assert program.hear().words == program.hear().words == ("DEST", "REPLY")


def test_java_keeps_what_is_sent_with_a_command_for_the_stream(two):
    _, clients, server, client = two("java")
    accepted, connected = clients.greeted(), clients.greeted()
    accepted.sendall(stream_accept("server").encode() + b"220 ready\n")
    assert accepted.hear().result == OK
    connected.sendall(stream_connect("client", server.dest).encode() + b"EHLO\n")
    assert connected.hear().result == OK
    assert receive_exactly(connected, 10) == b"220 ready\n"
    assert parse_peer(accepted.line()) == client.dest
    assert receive_exactly(accepted, 5) == b"EHLO\n"


def test_java_lets_a_destination_be_once(make):
    bridge, clients = make("java")
    first = clients.session("first")
    second = clients.greeted()
    request = session_create(id="second", destination=first.key.base64)
    assert second.result(request) == "DUPLICATED_DEST"
    first.close()
    wait_until(lambda: not bridge.sessions)
    assert second.result(request) == OK  # the socket is still good
    assert second.result(session_create(id="third")) == "I2P_ERROR"


def test_java_tells_ports(two):
    _, clients, server, client = two("java")
    for options, told in ({"from_port": 5, "to_port": 80}, (5, 80)), ({}, (0, 0)):
        accepted = server.accept()
        clients.greeted().ask(stream_connect("client", server.dest, **options))
        peer = parse_peer(accepted.line())
        assert peer == client.dest and (peer.port, peer.to_port) == told
    accepted = server.accept()
    clients.greeted().ask(f'STREAM CONNECT ID=client DESTINATION={server.dest} FROM_PORT="1 X=2"'.encode())
    assert accepted.line().endswith(b" FROM_PORT=0 TO_PORT=0\n")
    older = clients.greeted(maximum="3.1")
    assert older.result(stream_accept("server")) == OK
    client.connect(server.dest)
    assert older.line() == client.dest.encode() + b"\n"
    assert clients.greeted(maximum="3.1").ask(ping("x")).text == "x"


def test_java_asks_for_signs_of_life(make):
    bridge, clients = make("java", ping_interval=1.0, build_time=1.1)
    session = clients.session()
    accepted = session.accept()
    for _ in range(2):
        asked = session.hear()
        assert asked.words == ("PING",)
        session.sendall(pong(asked.text).encode())
    assert session.hear().words == ("PING",)
    assert accepted.is_silent(0.01)
    assert session.hear().options["MESSAGE"] == "PONG timeout"
    assert session.ends()
    assert bridge.sessions == []


def test_java_does_not_wait_for_a_command_for_ever(make):
    _, clients = make("java", command_timeout=2.0)
    newer, older, busy = clients.greeted(), clients.greeted(maximum="3.1"), clients.greeted(maximum="3.1")
    assert busy.ask(dest_generate()).words == ("DEST", "REPLY")
    assert clients.raw().hear() == parse(b'HELLO REPLY RESULT=I2P_ERROR MESSAGE="Timeout waiting for HELLO VERSION"')
    assert older.hear() == parse(b'SESSION STATUS RESULT=I2P_ERROR MESSAGE="command timeout, bye"')
    assert older.ends()
    assert newer.is_silent(0.01) and busy.is_silent(0.01)


def test_java_sees_a_program_go_that_waits_for_its_session(make):
    bridge, clients = make("java", build_time=100.0)
    program = clients.greeted()
    program.sendall(session_create(id="one").encode())
    has_come(bridge, "SESSION", "CREATE")
    assert clients.asked(session_create(id="one")).result == "DUPLICATED_ID"
    bridge.settings.build_time = 0.3
    program.close()
    wait_until(lambda: clients.asked(session_create(id="one")).result == OK)
    program = clients.greeted()
    program.sendall(session_create(id="two").encode() + dest_generate().encode() + b"x" * 9000)
    assert program.hear().result == OK  # what is said meanwhile waits
    assert program.hear().words == ("DEST", "REPLY")
    assert program.ends()


# Robustness; the promises have many streams, and much both ways.


def test_who_sends_has_to_wait_when_too_much_is_held(two, monkeypatch):
    monkeypatch.setattr(samstream, "MOST", 1 << 20)
    _, _, server, client = two()
    stalled, reader = pair(server, client)
    pending = client.connect(server.dest)
    others = pair(client, server)
    for end in (stalled, pending):
        end.settimeout(0.3)
        with pytest.raises(TimeoutError):
            for _ in range(64):
                end.sendall(BLOCK)
        sent(*others)  # they are not in the way of that
        end.settimeout(WAIT)
    assert receive_exactly(reader, 1 << 20) == BLOCK
    late = server.accept()
    assert parse_peer(late.line()) == client.dest
    assert receive_exactly(late, 1 << 20) == BLOCK
    finishing = [Thread(receive_all, end) for end in (reader, late)]
    for end in (stalled, pending):
        end.sendall(BLOCK)
        end.close()
    for thread in finishing:
        thread.result()
    stalled, reader = pair(server, client)
    stalled.settimeout(0.3)
    with pytest.raises(TimeoutError):
        for _ in range(64):
            stalled.sendall(BLOCK)
    stalled.settimeout(WAIT)
    server.close()  # the sender gets no notice
    for _ in range(16):
        stalled.sendall(BLOCK)


def test_a_program_that_reads_no_answers(personality, make):
    bridge, clients = make(personality)
    program = clients.greeted()
    program.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    program.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    asked, before = 0, None
    while bridge.commands[-1] is not before:  # it is obeyed
        assert asked < 20_000
        before = bridge.commands[-1]
        program.sendall(dest_generate().encode())
        asked += 1
        deadline = time.monotonic() + 0.5
        while bridge.commands[-1] is before and time.monotonic() < deadline:
            threading.Event().wait(0.0001)
    clients.session()
    program.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    with program.socket.makefile("rb") as lines:  # all of them come, once they are read
        assert all(next(lines).startswith(b"DEST REPLY PUB=") for _ in range(asked))


def test_an_endless_line(personality, make):
    bridge, clients = make(personality)
    for program in (clients.raw(), clients.greeted(), clients.session()):
        with contextlib.suppress(OSError):
            program.sendall(b"x" * (1 << 20))
        assert program.ends() or program.ends()
    wait_until(lambda: bridge.connections == 0)
    longest = clients.greeted()
    longest.sendall(b"DEST GENERATE " + b"x" * (LONGEST - 15) + b"\n")
    assert longest.hear().words == ("DEST", "REPLY")


def test_an_endless_beginning_of_a_stream(two):
    """Java does not read what comes before there is a stream."""
    _, _, server, client = two("java")
    accepted = server.accept()
    sending = Thread(accepted.sendall, BLOCK * 8)
    connected = client.connect(server.dest)
    assert receive_exactly(connected, 8 << 20) == BLOCK * 8
    sending.result()
    assert parse_peer(accepted.line()) == client.dest


def test_garbage(personality, make):
    bridge, clients = make(personality)
    session = clients.session()
    plain = "HELLO VERSION SESSION CREATE STREAM CONNECT ACCEPT FORWARD NAMING LOOKUP DEST GENERATE PING ID=one ID= ="
    plain += " NAME=ME PORT=99999 PORT=9 HOST=x DESTINATION=TRANSIENT STYLE=STREAM MIN=3.1 MAX=3.3 SILENT=true"
    words = [*plain.encode().split(), b"DESTINATION=" + session.dest.encode(), b"X" * 9000]
    words += [b'"', b"\\", b"\0", b"\xff\xfe", b"\r", b"\n", b"NAME=\x7f"]
    chance = random.Random(4)
    for number in range(300):
        program = Program(bridge.address)
        with contextlib.closing(program), contextlib.suppress(OSError):
            if number % 3:
                program.ask(hello("3.1", "3.1"))
            for _ in range(chance.randrange(6)):
                line = b" ".join(chance.choices(words, k=chance.randrange(1, 9)))
                program.sendall(line + b"\n" * chance.randrange(2))
                if chance.random() < 0.3:
                    program.settimeout(0.01)
                    program.recv(4096)
            if chance.random() < 0.3:
                reset(program.socket)
    wait_until(lambda: bridge.connections == 1)
    assert session.ask(naming_lookup("ME")).result == OK
    sent(*pair(session, clients.session("two")))


def test_programs_go_at_every_point(personality, two):
    bridge, clients, server, client = two(personality, silence=0.2, build_time=0.01)
    listening = clients.listen()
    steps = {  # for ACCEPT there is another test
        "nothing": [],
        "hello": [hello()],
        "session": [hello(), session_create(id="x")],
        "forward": [hello(), stream_forward("server", listening.getsockname()[1])],
        "connect": [hello(), stream_connect("client", server.dest)],
        "naming": [hello(), naming_lookup("x.i2p")],
    }
    for cut in (lambda program: program.close(), lambda program: reset(program.socket)):
        for requests in steps.values():
            for answered in (True, False):
                program = Program(bridge.address)
                for request in requests[:-1]:
                    program.ask(request)
                for request in requests[-1:]:
                    program.ask(request) if answered else program.sendall(request.encode())
                cut(program)
                wait_until(lambda: bridge.connections <= 2)
    wait_until(lambda: bridge.connections == 2 and len(bridge.sessions) == 2)
    sent(*pair(client, server))  # streams to the server that have ended may still wait there


def test_no_descriptors_left(make):
    bridge, clients = make()
    program = clients.greeted()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 8, hard))
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                taken.append(socket.socket())
        taken.pop().close()
        late = socket.create_connection(bridge.address, WAIT)  # the kernel takes it, the bridge cannot
        assert program.ask(dest_generate()).words == ("DEST", "REPLY")
    finally:
        for one in taken:
            one.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with late:
        late.sendall(hello().encode())
        late.settimeout(WAIT)
        assert b"OK" in late.recv(100)


def test_faults_from_any_thread(make):
    bridge, clients = make()
    server = clients.session("server")
    stop = threading.Event()

    def disturb(number):
        while not stop.is_set():
            (bridge.hold_answers, bridge.release_answers, lambda: bridge.cut("x"), lambda: bridge.sessions)[number]()

    threads = [Thread(disturb, number) for number in range(4)]
    for _ in range(5):
        clients.session("x").close()
        wait_until(lambda: len(bridge.sessions) == 1)
    stop.set()
    for thread in threads:
        thread.result()
    bridge.release_answers()
    assert server.ask(naming_lookup("ME")).result == OK


def test_it_leaves_nothing_behind(personality):
    with check_leaks(WAIT):
        with SAMBridge(personality=personality, build_time=100.0) as bridge, contextlib.ExitStack() as stack:
            clients = Clients(bridge.address, stack)
            clients.greeted().sendall(session_create(id="never").encode())
            wait_until(lambda: bridge.commands[-1:] and bridge.commands[-1].words == ("SESSION", "CREATE"))
            clients.raw()


def test_a_child_of_its_own():
    for given, ending in (
        (subprocess.DEVNULL, "signal"),
        (subprocess.PIPE, "end of input"),
        (subprocess.PIPE, "signal"),
    ):
        argv = [sys.executable, "-W", "error", "-m", "relay.testing.sambridge", "--personality", "java"]
        with subprocess.Popen(argv, stdin=given, stdout=subprocess.PIPE) as process:
            line = process.stdout.readline().decode()
            assert line.startswith("listening on 127.0.0.1:")
            with contextlib.ExitStack() as stack:
                session = Clients(address_of(line.split()[-1]), stack).session()
                if ending == "signal":
                    process.send_signal(signal.SIGTERM)
                else:
                    process.stdin.close()
                assert process.wait(WAIT) == 0
                assert session.ends()
            assert process.stdout.read() == b""


# The double and a real router.


@pytest.fixture(scope="module")
def i2p_double():
    with SAMBridge(silence=1.0) as bridge:
        yield SimpleNamespace(client=bridge.sam, client_keys=lambda: None, silence=1.0)


@pytest.fixture(scope="module", params=["double", "i2pd"])
def i2p_world(request):
    return request.getfixturevalue({"double": "i2p_double", "i2pd": "i2p_routers"}[request.param])


@pytest.fixture(scope="module")
def module_clients(i2p_world):
    with contextlib.ExitStack() as stack:
        yield Clients(address_of(i2p_world.client), stack)


def ready_session(world, clients, name):
    keys = world.client_keys()
    return clients.session(name, PrivateKey.from_bytes(keys.read_bytes()).base64 if keys else "TRANSIENT")


def meet(server, client):
    """Both ends of the first stream between two sessions, as soon as the one finds the other.

    Who accepts is there before: a router mixes up streams that wait with those who have stopped accepting.
    """
    accepted, tried = server.accept(), []

    def is_found():
        tried.append(client.clients.greeted())
        return tried[-1].result(stream_connect(client.name, server.dest)) == OK

    wait_until(is_found, 40)
    assert parse_peer(accepted.line()) == client.dest
    return tried[-1], accepted


@pytest.fixture(scope="module")
def sessions(i2p_world, module_clients):
    """Two sessions at one router, which reach each other."""
    server, client = (ready_session(i2p_world, module_clients, name) for name in ("server", "client"))
    for one, other in (server, client), (client, server):
        for end in meet(one, other):
            end.close()
    return server, client


@pytest.fixture
def real(module_clients):
    """Clients whose sockets end with the test."""
    with contextlib.ExitStack() as stack:
        yield Clients(module_clients.address, stack)


@pytest.fixture
def both(real, sessions):
    """The two sessions, whose streams end with the test."""
    for one in sessions:
        one.clients = real
    return sessions


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (b"HELLO VERSION", "3.1"),
        (b"HELLO VERSION MIN=3.1 MAX=3.3", "3.1"),
        (b"HELLO VERSION MIN=3.0 MAX=3.3", "3.0"),
        (b"HELLO VERSION MIN=2.0 MAX=3.3", "3.0"),
        (b"HELLO VERSION MIN=3.1", "3.1"),
        (b"HELLO VERSION MAX=3.1", "3.1"),
        (b"HELLO VERSION MIN=3.1 MAX=3.1 USER=a PASSWORD=b", "3.1"),
        (b"HELLO VERSION MIN=3.2 MAX=3.3", "NOVERSION"),
        (b"HELLO", ""),
        (b"GARBAGE", ""),
        (b"", ""),
    ],
)
def test_as_i2pd_versions(real, line, answer):
    program = real.raw()
    program.sendall(line + b"\n")
    said = program.line()
    shown = {"": b""}.get(answer, b"HELLO REPLY RESULT=OK VERSION=%s\n" % answer.encode())
    assert said == (b"HELLO REPLY RESULT=NOVERSION\n" if answer == "NOVERSION" else shown)
    if not answer or answer == "NOVERSION":
        assert program.ends()


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (b"PING x", b""),
        (b"PING", b""),
        (b"FOO BAR", b""),
        (b"stream accept ID=x", b""),
        (b"STREAM CONNECT", b"STREAM STATUS RESULT=INVALID_ID"),
        (b"STREAM ACCEPT ID=x", b"STREAM STATUS RESULT=INVALID_ID"),
        (b"STREAM FORWARD ID=x PORT=1", b"STREAM STATUS RESULT=INVALID_ID"),
        (b"SESSION CREATE ID=x DESTINATION=TRANSIENT", b'SESSION STATUS RESULT=I2P_ERROR MESSAGE="Unknown STYLE"'),
        (b'SESSION CREATE STYLE=STREAM ID="x" DESTINATION=TRANSIENT', b"SESSION STATUS RESULT=INVALID_ID"),
        (b"SESSION CREATE STYLE=STREAM ID=x", b"SESSION STATUS RESULT=INVALID_KEY"),
        (b"SESSION CREATE STYLE=STREAM ID=x DESTINATION=abc", b"SESSION STATUS RESULT=INVALID_KEY"),
        (b"SESSION ADD STYLE=STREAM ID=x", b'SESSION STATUS RESULT=I2P_ERROR MESSAGE="Wrong session type"'),
    ],
)
def test_as_i2pd_errors(real, line, answer):
    program = real.greeted()
    program.sendall(line + b"\n")
    assert program.line() == answer + b"\n" * bool(answer)
    assert program.ends()


def test_as_i2pd_names(real, both):
    server, client = both
    assert real.asked(naming_lookup("nobody.i2p")) == parse(b"NAMING REPLY RESULT=INVALID_KEY NAME=nobody.i2p")
    assert real.asked(naming_lookup("nonsense")).result == "INVALID_KEY"
    assert client.ask(naming_lookup("ME")).options["VALUE"] == client.dest
    assert real.asked(naming_lookup(server.key.b32)).options["VALUE"] == server.dest
    assert real.asked(naming_lookup("ME")).result == OK
    for name in ("nobody.i2p", "abc"):
        program = real.greeted()
        assert program.ask(stream_connect("client", name)) == parse(b"STREAM STATUS RESULT=INVALID_KEY")
        assert program.ends()


def test_as_i2pd_one_command_in_a_segment(real):
    program = real.raw()
    program.sendall(hello().encode() + dest_generate().encode())
    assert program.hear().result == OK
    assert program.is_silent()
    program.sendall(dest_generate().encode()[:9])
    assert program.is_silent(0.1)
    program.sendall(dest_generate().encode()[9:])
    assert program.hear().words == ("DEST", "REPLY")
    program.sendall(dest_generate().encode() * 2)
    assert program.hear().words == ("DEST", "REPLY")
    assert program.is_silent()


def test_as_i2pd_a_stream_and_its_end(real, both):
    server, client = both
    connected, accepted = pair(server, client)
    sent(connected, accepted)
    accepted.shutdown(socket.SHUT_WR)
    assert connected.ends() and accepted.ends()
    connected, accepted = pair(server, client)
    reset(connected.socket)
    assert accepted.recv(1) == b""


def test_as_i2pd_what_is_sent_with_connect(real, both):
    server, client = both
    accepted, connected = server.accept(), real.greeted()
    connected.sendall(stream_connect("client", server.dest).encode() + b"too early")
    assert connected.hear().result == OK
    assert parse_peer(accepted.line()) == client.dest
    assert receive_exactly(accepted, 9) != b"too early"


def test_as_i2pd_who_accepts(i2p_world, real, both):
    server, client = both
    first, second = server.accept(), server.accept()
    first.close()
    assert second.is_silent()
    connected = client.connect(server.dest)
    connected.sendall(b"x")
    is_served = not second.is_silent()
    if is_served and not hasattr(i2p_world, "silence"):
        return  # a real router has noticed in time that the first one has gone
    assert not is_served
    try:
        third = server.accept()
    except MessageError:  # i2pd 2.45 may say who connects before it says OK, where a stream waits already
        return
    assert parse_peer(third.line()) == client.dest
    assert receive_exactly(third, 1) == b"x"
    client.connect(server.dest)
    assert parse_peer(second.line()) == client.dest
    twice = server.accept()
    assert twice.ask(stream_accept("server")).result == "I2P_ERROR"
    if not hasattr(i2p_world, "silence"):
        assert twice.line() == b""  # a router that ends the connection later ends the next one's accept with it
    again = server.accept()
    assert again.ask(naming_lookup("ME")).options["VALUE"] == server.dest
    refused = real.greeted()
    answer = parse(b'SESSION STATUS RESULT=I2P_ERROR MESSAGE="Already accepting"')
    said = refused.ask(stream_forward("server", 1))
    if said.result == "OK" and not hasattr(i2p_world, "silence"):
        return  # the router has ended the last accept with a connection before it
    assert said == answer
    assert refused.ends()


def test_as_i2pd_a_stream_to_oneself_arrives_empty(real, both):
    server, _ = both
    accepted = server.accept()
    connected = server.connect(server.dest)
    deadline = time.monotonic() + WAIT
    while not select.select([accepted.socket], [], [], WAIT / 6)[0]:  # i2pd 2.45 may lose such a stream altogether
        assert time.monotonic() < deadline, "no stream to oneself has come"
        connected = server.connect(server.dest)
    assert parse_peer(accepted.line()) == server.dest
    connected.sendall(b"x")
    accepted.sendall(b"y")
    assert accepted.is_silent() and connected.is_silent()


def test_as_i2pd_nobody_accepts(i2p_world, both):
    server, client = both
    silence = getattr(i2p_world, "silence", 10.0)
    began = time.monotonic()
    connected = server.connect(client.dest)
    connected.settimeout(silence + WAIT)
    assert connected.recv(1) == b""
    assert time.monotonic() - began > silence - 0.5


def test_as_i2pd_a_session_ends(i2p_world, real, both):
    _, client = both
    server = ready_session(i2p_world, real, "mortal")
    connected, accepted = meet(server, client)
    sent(connected, accepted)
    server.close()
    assert accepted.ends()
    assert connected.is_silent(2.0)  # the far end gets no notice
    assert client.connect(server.dest).is_silent(1.0)
    assert real.asked(stream_accept("mortal")).result == "INVALID_ID"


def test_as_i2pd_the_same_keys_twice(i2p_world, real, both):
    _, client = both
    first = ready_session(i2p_world, real, "twice")
    second = real.session("twice-more", first.key.base64)
    assert second.dest == first.dest
    assert real.asked(session_create(id="twice")).result == "DUPLICATED_ID"
    accepted = second.accept()
    wait_until(lambda: real.asked(stream_connect("client", first.dest)).result == OK, 40)
    assert parse_peer(accepted.line()) == client.dest
