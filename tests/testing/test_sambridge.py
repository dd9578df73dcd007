"""``relay.testing.SAMBridge``, by plain sockets; what it says of i2pd is asked a real one as well."""

from __future__ import annotations

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
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from helpers import BLOCK, WAIT, Thread, is_gone, receive_all, receive_exactly, sha256_of, wait_until
from i2p_world import address_of

import relay
import relay.testing
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

    def __init__(self, address, name, destination="TRANSIENT", **options):
        super().__init__(address)
        assert self.ask(hello()).result == OK
        self.name = name
        answer = self.ask(session_create(id=name, destination=destination, options=EASY | options))
        assert answer.result == OK, answer
        self.key = PrivateKey.from_base64(answer.options["DESTINATION"])
        self.dest = self.key.destination


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
        return self._keep(Made(self.address, name, destination, **options))

    def asked(self, message):
        """The answer to one message after HELLO."""
        return self.greeted().ask(message)

    def accept(self, name="one"):
        program = self.greeted()
        assert program.result(stream_accept(name)) == OK
        return program

    def connect(self, name, destination):
        program = self.greeted()
        assert program.result(stream_connect(name, destination)) == OK
        return program

    def listen(self):
        """A program's own listening socket."""
        listening = self._stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1024))
        listening.settimeout(WAIT)
        return listening

    def forward(self, name, listening):
        program = self.greeted()
        assert program.result(stream_forward(name, listening.getsockname()[1])) == OK
        return program

    def forwarded(self, listening):
        """Return who has connected, and the socket, which is past the line that says so."""
        connection = self._stack.enter_context(listening.accept()[0])
        connection.settimeout(WAIT)
        line = bytearray()
        while not line.endswith(b"\n"):
            line += connection.recv(1)
        return parse_peer(bytes(line)), connection

    def pair(self, server, client):
        """Both ends of a stream between two sessions: who connected, who accepted."""
        accepted = self.accept(server.name)
        connected = self.connect(client.name, server.dest)
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


@pytest.fixture(params=["i2pd", "java"])
def personality(request):
    return request.param


def sent(one, other, text=b"ping"):
    """Prove that both directions of a stream work."""
    one.sendall(text)
    assert receive_exactly(other, len(text)) == text
    other.sendall(text[::-1])
    assert receive_exactly(one, len(text)) == text[::-1]


# Both personalities.


def test_a_stream(personality, make):
    bridge, clients = make(personality)
    server, client = clients.session("server"), clients.session("client")
    connected, accepted = clients.pair(server, client)
    sent(connected, accepted)
    connected.close()
    assert accepted.ends()
    assert bridge.streams == 1


def test_what_is_said_at_once_comes_after_the_line(personality, make):
    _, clients = make(personality)
    server, client = clients.session("server"), clients.session("client")
    accepted = clients.accept("server")
    connected = clients.connect("client", server.dest)
    connected.sendall(b"at once")
    assert parse_peer(accepted.line()) == client.dest
    assert receive_exactly(accepted, 7) == b"at once"


def test_the_one_who_accepts_may_speak_first(personality, make):
    _, clients = make(personality)
    server, client = clients.session("server"), clients.session("client")
    connected, accepted = clients.pair(server, client)
    sent(accepted, connected, b"220 ready")


def test_a_forward(personality, make):
    bridge, clients = make(personality)
    server, client = clients.session("server"), clients.session("client")
    listening = clients.listen()
    forward = clients.forward("server", listening)
    for text in (b"first", b"second"):
        connected = clients.connect("client", server.dest)
        peer, accepted = clients.forwarded(listening)
        assert peer == client.dest
        sent(connected, accepted, text)
        accepted.close()
        assert connected.ends()
    assert bridge.streams == 2
    forward.close()
    bridge.settings.silence = 0.1
    wait_until(lambda: bridge.connections == 2)
    assert clients.greeted().result(stream_connect("client", server.dest)) == (
        OK if personality == "i2pd" else "CANT_REACH_PEER"
    )


def test_a_forward_takes_all_that_wait(make):
    _, clients = make()
    server = clients.session("server")
    clients.session("client")
    waiting = [clients.connect("client", server.dest) for _ in range(3)]
    listening = clients.listen()
    clients.forward("server", listening)
    for connected in waiting:
        sent(connected, clients.forwarded(listening)[1])


def test_a_forward_that_nobody_takes(personality, make):
    _, clients = make(personality)
    server = clients.session("server")
    clients.session("client")
    listening = clients.listen()
    clients.forward("server", listening)
    listening.close()
    assert clients.connect("client", server.dest).ends()


def test_silent_ones(personality, make):
    _, clients = make(personality)
    server = clients.session("server")
    clients.session("client")
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
    connected = clients.connect("client", server.dest)
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
    again = clients.session(destination=first.key.base64)
    assert again.key == first.key
    generated = clients.asked(dest_generate())
    key = PrivateKey.from_base64(generated.options["PRIV"])
    assert key.destination == generated.options["PUB"]
    assert clients.session("two", key.base64).key == key


def test_a_key_that_it_made_is_a_real_one(make):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    _, clients = make()
    data = PrivateKey.from_base64(clients.asked(dest_generate()).options["PRIV"]).data
    public = Ed25519PrivateKey.from_private_bytes(data[-32:]).public_key().public_bytes_raw()
    assert data[384 - 32 : 384] == public


def test_names(personality, make):
    bridge, clients = make(personality)
    server, client = clients.session("server"), clients.session("client")
    bridge.addressbook = {"site.i2p": server.dest, "alias.i2p": b32_of(server.dest)}
    me = client.ask(naming_lookup("ME"))
    assert (me.result, me.options["NAME"], me.options["VALUE"]) == (OK, "ME", client.dest)
    for name in (
        "site.i2p",
        "alias.i2p",
        b32_of(server.dest),
        b32_of(server.dest).upper().replace("B32.I2P", "b32.i2p"),
    ):
        found = clients.asked(naming_lookup(name))
        assert (found.result, found.options["NAME"], found.options["VALUE"]) == (OK, name, server.dest)
        accepted = clients.accept("server")
        connected = clients.connect("client", name)
        assert parse_peer(accepted.line()) == client.dest
        sent(connected, accepted)
    unknown = "INVALID_KEY" if personality == "i2pd" else "KEY_NOT_FOUND"
    for name in ("nobody.i2p", "a" * 52 + ".b32.i2p", "a" * 56 + ".b32.i2p", "nonsense"):
        found = clients.asked(naming_lookup(name))
        assert (found.result, found.options["NAME"]) == (unknown, name)
    for name in ("nobody.i2p", "nonsense"):
        assert clients.asked(stream_connect("client", name)).result == "INVALID_KEY"


def test_nobody_there(personality, make):
    _, clients = make(personality)
    clients.session()
    stranger = PrivateKey.generate()
    assert clients.asked(stream_connect("one", stranger.destination)).result == "CANT_REACH_PEER"
    by_address = "CANT_REACH_PEER" if personality == "i2pd" else "INVALID_KEY"
    assert clients.asked(stream_connect("one", stranger.b32)).result == by_address


def test_no_such_session(personality, make):
    _, clients = make(personality)
    dest = PrivateKey.generate().destination
    for request in (stream_connect("nobody", dest), stream_accept("nobody"), stream_forward("nobody", 1)):
        program = clients.greeted()
        assert program.result(request) == "INVALID_ID"
        assert program.ends()


def test_an_id_is_taken(personality, make):
    bridge, clients = make(personality)
    first = clients.session()
    second = clients.greeted()
    assert second.result(session_create(id="one")) == "DUPLICATED_ID"
    assert [record.destination for record in bridge.sessions] == [first.dest]
    first.close()
    wait_until(lambda: not bridge.sessions)
    clients.session()


def test_what_no_session_can_be(personality, make):
    bridge, clients = make(personality)
    key = PrivateKey.generate()
    for destination in ("abc", key.destination, key.base64[:-8], "?" * 900, "TRANSIENT="):
        assert clients.asked(session_create(id="one", destination=destination)).result == "INVALID_KEY"
    assert clients.asked(session_create("DATAGRAM", id="one")).result == "I2P_ERROR"
    assert bridge.sessions == []


def test_a_session_takes_its_time(personality, make):
    bridge, clients = make(personality)
    target = clients.session("target")
    bridge.settings.build_time = 1.0
    began = time.monotonic()
    program = clients.greeted()
    program.sendall(session_create(id="one").encode())
    wait_until(lambda: bridge.commands[-1].words == ("SESSION", "CREATE"))
    assert [record.id for record in bridge.sessions] == ["target"]
    assert clients.greeted().result(session_create(id="one")) == "DUPLICATED_ID"
    early = clients.asked(stream_connect("one", target.dest))
    assert early.result == ("CANT_REACH_PEER" if personality == "i2pd" else "INVALID_ID")
    assert program.hear().result == OK
    assert time.monotonic() - began >= 1.0
    assert [record.id for record in bridge.sessions] == ["target", "one"]
    other = clients.greeted()
    other.sendall(session_create(id="two").encode())
    wait_until(lambda: bridge.commands[-1].words == ("SESSION", "CREATE"))
    bridge.kill()
    bridge.restart()
    assert other.ends() and clients.greeted().is_silent(1.1)


def test_a_session_is_found_later(personality, make):
    bridge, clients = make(personality, publish_time=100.0)
    never, client = clients.session("never"), clients.session("client")
    assert clients.asked(stream_connect("client", never.dest)).result == "CANT_REACH_PEER"
    assert clients.asked(stream_connect("client", client.dest)).result == "CANT_REACH_PEER"
    assert clients.asked(naming_lookup(never.key.b32)).result != OK
    bridge.settings.publish_time = 0.3
    began = time.monotonic()
    server = clients.session("server")
    request = stream_connect("client", server.dest)
    accepted = clients.accept("server")
    wait_until(lambda: clients.asked(request).result == OK)
    assert time.monotonic() - began >= 0.3
    assert parse_peer(accepted.line()) == client.dest


def test_what_ended_before_it_was_found_never_is(personality, make):
    bridge, clients = make(personality, publish_time=0.2)
    client, server = clients.session("client"), clients.session("server")
    server.close()
    wait_until(lambda: len(bridge.sessions) == 1)
    assert client.is_silent(0.3)
    assert clients.asked(stream_connect("client", server.dest)).result == "CANT_REACH_PEER"


def test_the_beginning_waits_for_who_accepts(personality, make):
    bridge, clients = make(personality, silence=1.5)
    server, client = clients.session("server"), clients.session("client")
    connected = clients.greeted()
    connected.sendall(stream_connect("client", server.dest).encode())
    if personality == "i2pd":
        assert connected.hear().result == OK
        connected.sendall(b"early")
    wait_until(lambda: bridge.commands[-1].words == ("STREAM", "CONNECT"))
    accepted = clients.accept("server")
    assert parse_peer(accepted.line()) == client.dest
    if personality == "java":
        assert connected.hear().result == OK
        connected.sendall(b"early")
    assert receive_exactly(accepted, 5) == b"early"
    assert accepted.is_silent(1.6)
    sent(connected, accepted)


def test_nobody_accepts(personality, make):
    bridge, clients = make(personality, silence=0.2)
    server = clients.session("server")
    clients.session("client")
    began = time.monotonic()
    connected = clients.greeted()
    answer = connected.ask(stream_connect("client", server.dest))
    assert answer.result == (OK if personality == "i2pd" else "CANT_REACH_PEER")
    assert connected.ends()
    assert time.monotonic() - began >= 0.2
    assert bridge.streams == 0
    clients.pair(server, clients.session("later"))


def test_no_more_than_128_wait(make):
    _, clients = make()
    server = clients.session("server")
    clients.session("client")
    waiting = [clients.connect("client", server.dest) for _ in range(128)]
    assert clients.connect("client", server.dest).ends()
    assert waiting[0].is_silent() and waiting[-1].is_silent(0.01)


def test_several_accept(personality, make):
    _, clients = make(personality)
    server, client = clients.session("server"), clients.session("client")
    acceptors = [clients.accept("server") for _ in range(3)]
    for number, accepted in enumerate(acceptors):
        connected = clients.connect("client", server.dest)
        assert parse_peer(accepted.line()) == client.dest
        sent(connected, accepted, b"%d" % number)


def test_one_that_accepts_goes(personality, make):
    bridge, clients = make(personality)
    server, client = clients.session("server"), clients.session("client")
    first, second = clients.accept("server"), clients.accept("server")
    first.close()
    if personality == "java":  # that is not seen until a stream comes, which is lost
        assert clients.connect("client", server.dest).ends()
        clients.connect("client", server.dest)
        assert parse_peer(second.line()) == client.dest
        return
    wait_until(lambda: bridge.connections == 3)
    clients.connect("client", server.dest)
    assert second.is_silent()  # no client is served until another one asks
    third = clients.accept("server")
    assert parse_peer(third.line()) == client.dest
    clients.connect("client", server.dest)
    assert parse_peer(second.line()) == client.dest


def test_one_that_waits_behind_goes(make):
    bridge, clients = make()
    server, client = clients.session("server"), clients.session("client")
    first, second = clients.accept("server"), clients.accept("server")
    second.close()
    wait_until(lambda: bridge.connections == 3)
    clients.connect("client", server.dest)
    assert parse_peer(first.line()) == client.dest
    third = clients.accept("server")
    clients.connect("client", server.dest)
    assert parse_peer(third.line()) == client.dest


def test_accept_and_forward_do_not_mix(personality, make):
    bridge, clients = make(personality, silence=0.1)
    server = clients.session("server")
    clients.session("client")
    listening = clients.listen()
    accepted = clients.accept("server")
    second = clients.greeted()
    assert second.result(stream_forward("server", 1)) == "I2P_ERROR"
    assert second.ends()
    connected = clients.connect("client", server.dest)
    assert accepted.line()
    wait_until(lambda: bridge.connections == 2)
    clients.forward("server", listening)
    assert clients.asked(stream_forward("server", 1)).result == "I2P_ERROR"
    beside = clients.accept("server")
    if personality == "java":
        assert beside.hear().result == "ALREADY_ACCEPTING"
        assert beside.ends()
    connected = clients.connect("client", server.dest)
    sent(connected, clients.forwarded(listening)[1])
    assert personality == "java" or beside.is_silent()


@pytest.mark.parametrize("way", ["half-close", "close", "reset"])
@pytest.mark.parametrize("who", ["connected", "accepted"])
def test_one_end_ends_both(personality, make, way, who):
    _, clients = make(personality)
    server, client = clients.session("server"), clients.session("client")
    ends = dict(zip(("connected", "accepted"), clients.pair(server, client), strict=True))
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
        assert receive_all(one) == b""


def test_a_half_close_loses_the_reply(personality, make):
    _, clients = make(personality)
    server, client = clients.session("server"), clients.session("client")
    connected, accepted = clients.pair(server, client)
    connected.sendall(b"question")
    connected.shutdown(socket.SHUT_WR)
    assert receive_all(accepted) == b"question"
    with contextlib.suppress(OSError):
        accepted.sendall(b"reply")
    assert receive_all(connected) == b""


def test_everything_comes_before_the_end(personality, make):
    _, clients = make(personality)
    server, client = clients.session("server"), clients.session("client")
    connected, accepted = clients.pair(server, client)

    def send():
        for _ in range(16):
            connected.sendall(BLOCK)
        connected.close()

    sending = Thread(send)
    sending.result()  # 16 MiB wait for a client that does not read yet
    assert sha256_of(accepted) == hashlib.sha256(BLOCK * 16).hexdigest()


def test_a_tail_is_lost(make):
    _, clients = make(loses_tail=True)
    server, client = clients.session("server"), clients.session("client")
    connected, accepted = clients.pair(server, client)
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
    early = clients.connect("client", server.dest)
    early.sendall(b"early")
    early.close()
    accepted = clients.accept("server")
    assert parse_peer(accepted.line()) == client.dest
    assert receive_exactly(accepted, 5) == b"early"
    assert accepted.is_silent()


def test_a_stream_that_ended_before_it_was_accepted(make):
    _, clients = make()
    server, client = clients.session("server"), clients.session("client")
    early = clients.connect("client", server.dest)
    early.sendall(b"early")
    early.close()
    accepted = clients.accept("server")
    assert parse_peer(accepted.line()) == client.dest
    assert receive_all(accepted) == b"early"


def test_a_session_ends_with_its_socket(personality, make):
    bridge, clients = make(personality, silence=1.0)
    server, client = clients.session("server"), clients.session("client")
    connected, accepted = clients.pair(server, client)
    waiting, forward = clients.accept("server"), clients.greeted()
    deaf = clients.session("deaf")
    pending = clients.greeted()
    pending.sendall(stream_connect("client", deaf.dest).encode())
    wait_until(lambda: bridge.commands[-1].words == ("STREAM", "CONNECT"))
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


def test_a_destination_that_is_gone_is_found_for_a_while(personality, make):
    bridge, clients = make(personality, silence=0.1)
    server = clients.session("server")
    clients.session("client")
    server.close()
    wait_until(lambda: len(bridge.sessions) == 1)
    if personality == "i2pd":
        assert clients.connect("client", server.dest).is_silent(0.2)
    assert clients.asked(naming_lookup(server.key.b32)).result == OK
    bridge.settings.lease_life = 0.0
    assert clients.asked(stream_connect("client", server.dest)).result == "CANT_REACH_PEER"
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
def test_connects_fail(personality, make, result):
    bridge, clients = make(personality)
    server, client = clients.session("server"), clients.session("client")
    bridge.fail_connects(2, result)
    for _ in range(2):
        program = clients.greeted()
        assert program.result(stream_connect("client", server.dest)) == result
        assert program.ends()
    clients.pair(server, client)
    bridge.fail_connects(1)
    bridge.fail_connects(0)
    clients.pair(server, client)


def test_an_error_comes_late(personality, make):
    bridge, clients = make(personality)
    server, client = clients.session("server"), clients.session("client")
    bridge.late_error(1)
    accepted = clients.accept("server")
    assert accepted.hear().result == "I2P_ERROR"
    assert accepted.ends()
    clients.pair(server, client)


def test_answers_are_held(personality, make):
    bridge, clients = make(personality)
    server, client = clients.session("server"), clients.session("client")
    connected, accepted = clients.pair(server, client)
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
    wait_until(lambda: bridge.commands[-1].words == ("STREAM", "ACCEPT"))
    gone.close()
    assert waiting.is_silent() and other.is_silent(0.01)
    accepting = Thread(clients.accept, "server")
    bridge.release_answers()
    assert waiting.hear().result == OK
    assert other.hear().result == OK
    accepting.result()
    bridge.hold_answers("NAMING")
    waiting.sendall(naming_lookup("ME").encode())
    wait_until(lambda: bridge.commands[-1].words == ("NAMING", "LOOKUP"))
    bridge.cut("held")
    bridge.release_answers()
    assert waiting.ends()


def test_a_control_socket_is_cut(personality, make):
    bridge, clients = make(personality)
    one, two, three = (clients.session(name) for name in ("one", "two", "three"))
    connected, accepted = clients.pair(one, two)
    bridge.cut("one")
    assert one.ends() and accepted.ends()
    bridge.cut("nobody")
    assert [record.id for record in bridge.sessions] == ["two", "three"]
    bridge.cut()
    assert two.ends() and three.ends() and connected.ends()
    assert bridge.sessions == []


def test_a_router_dies_and_returns(personality, make):
    bridge, clients = make(personality, remember=100.0, zombie_life=0.0)
    server, client = clients.session("server"), clients.session("client")
    connected, accepted = clients.pair(server, client)
    more = [clients.raw(), clients.greeted(), clients.accept("server")]
    forward = clients.greeted()
    bridge.kill()
    bridge.kill()
    for end in [server, client, connected, accepted, forward, *more]:
        assert end.ends()
    assert bridge.sessions == [] and bridge.connections == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(bridge.address, WAIT)
    bridge.restart()
    bridge.restart()
    again = clients.session("server", server.key.base64)
    sent(*clients.pair(again, clients.session("client")))


def test_two_routers_in_one_network(personality, make):
    near, clients = make(personality)
    far, servers = make(personality, network=near)
    server, client = servers.session("one"), clients.session("one")
    accepted = servers.accept("one")
    connected = clients.connect("one", server.dest)
    assert parse_peer(accepted.line()) == client.dest
    sent(connected, accepted)
    assert (near.streams, far.streams) == (1, 1)
    far.kill()
    assert accepted.ends()
    assert connected.is_silent()  # it gets no notice
    connected.sendall(b"into the void")
    far.restart()
    again = servers.session("one", server.key.base64)
    accepted = servers.accept("one")
    connected = clients.connect("one", again.dest)
    parse_peer(accepted.line())
    sent(connected, accepted)
    near.close()
    assert connected.ends()
    assert far.sessions and accepted.is_silent()


def test_the_network_lives_as_long_as_one_of_its_bridges():
    with check_leaks(WAIT):
        first = SAMBridge()
        second = SAMBridge(network=first)
        first.close()
        with contextlib.closing(Made(second.address, "one")):
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


def test_ipv6(make):
    try:
        bridge, clients = make(host="::1")
    except OSError:
        pytest.skip("there is no IPv6 loopback")
    assert bridge.sam == f"[::1]:{bridge.address[1]}"
    server, client = clients.session("server"), clients.session("client")
    sent(*clients.pair(server, client))
    listening = socket.create_server(("::1", 0), family=socket.AF_INET6)
    with listening:
        clients.forward("server", listening)
        connected = clients.connect("client", server.dest)
        sent(connected, clients.forwarded(listening)[1])


def test_behind_tls(make, certificates):
    bridge, _ = make()
    listening = relay.listen(f"tls://127.0.0.1:0?cert={certificates.cert}&key={certificates.key}")
    with relay.Tunnel(listening, relay.tcp(*bridge.address)) as tunnel:
        with socket.create_connection(tunnel.address, WAIT) as plain:
            with certificates.client().wrap_socket(plain, server_hostname="localhost") as program:
                program.sendall(hello().encode())
                assert parse(program.recv(100)).result == OK


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
    bridge, clients = make(personality, silence=0.1)
    key = PrivateKey.generate()
    session = clients.session("mine", key.base64, **{"inbound.nickname": "web"})
    greeting = clients.raw()
    greeting.ask(hello(user="me", password="secret"))
    clients.asked(stream_connect("mine", session.dest))
    (record,) = bridge.sessions
    assert (record.id, record.destination) == ("mine", key.destination)
    assert record.options["inbound.nickname"] == "web"
    words = [command.words for command in bridge.commands]
    assert words[:2] == [("HELLO", "VERSION"), ("SESSION", "CREATE")]
    assert bridge.commands[-1].options["DESTINATION"] == session.dest
    shown = repr((bridge, bridge.sessions, bridge.commands, bridge.settings))
    assert key.base64 not in shown and "secret" not in shown
    created = next(command for command in bridge.commands if command.words == ("SESSION", "CREATE"))
    assert created.options["DESTINATION"] == "***" and created.options["STYLE"] == "STREAM"


def test_a_login_is_not_in_the_settings_text(make):
    bridge, _ = make("java", user="me", password="secret")
    assert "secret" not in repr(bridge.settings) + repr(bridge)


# The traps.


def test_the_same_keys_too_soon(make):
    bridge, clients = make(remember=100.0, zombie_life=1.0)
    client, stranger = clients.session("client"), clients.session("stranger")
    first = clients.session("server")
    first.close()
    wait_until(lambda: len(bridge.sessions) == 2)
    bridge.settings.build_time = 50.0
    began = time.monotonic()
    zombie = clients.session("again", first.key.base64)  # it comes at once
    connected, accepted = clients.pair(zombie, client)
    sent(connected, accepted)
    assert accepted.ends()
    assert time.monotonic() - began >= 1.0
    assert connected.is_silent()  # it gets no notice
    assert zombie.ask(naming_lookup("ME")).options["VALUE"] == first.dest
    waiting = clients.accept("again")
    lost = clients.connect("client", first.dest)
    assert waiting.is_silent() and lost.is_silent(0.01)
    assert clients.asked(stream_connect("again", client.dest)).result == "INVALID_ID"
    assert clients.asked(stream_connect("again", stranger.dest)).result == "CANT_REACH_PEER"
    bridge.settings.build_time = 0.0
    zombie.close()
    wait_until(lambda: len(bridge.sessions) == 2)
    bridge.settings.remember = 0.0  # some time later
    sound = clients.session("sound", first.key.base64)
    sent(*clients.pair(sound, client))


def test_other_keys_are_no_trap(make):
    bridge, clients = make(remember=100.0, zombie_life=0.05)
    first = clients.session("first")
    first.close()
    wait_until(lambda: not bridge.sessions)
    one, two = clients.session("one"), clients.session("two")
    connected, accepted = clients.pair(one, two)
    assert accepted.is_silent()
    sent(connected, accepted)


def test_the_same_keys_twice(make):
    bridge, clients = make()
    client, first = clients.session("client"), clients.session("first")
    second = clients.session("second", first.key.base64)
    for name in ("first", "second"):
        accepted = clients.accept(name)
        clients.connect("client", first.dest)
        assert parse_peer(accepted.line()) == client.dest
    stream, _ = clients.pair(client, second)
    first.close()
    assert stream.ends()  # they share everything
    sent(*clients.pair(second, client))
    assert [record.id for record in bridge.sessions] == ["client", "second"]


def test_the_same_keys_twice_die_together(make):
    bridge, clients = make(remember=100.0, zombie_life=1.0)
    client, first = clients.session("client"), clients.session("first")
    second = clients.session("second", first.key.base64)
    first.close()
    wait_until(lambda: len(bridge.sessions) == 2)
    _, accepted = clients.pair(second, client)
    assert accepted.ends()
    assert second.is_silent()


def test_an_abandoned_session_takes_the_next_one_with_it(make):
    bridge, clients = make(remember=100.0, zombie_life=1.0)
    client, key = clients.session("client"), PrivateKey.generate()
    bridge.settings.build_time = 1.0
    abandoned = clients.greeted()
    abandoned.sendall(session_create(id="first", destination=key.base64).encode())
    wait_until(lambda: bridge.commands[-1].words == ("SESSION", "CREATE"))
    abandoned.close()
    assert clients.asked(session_create(id="first")).result == "DUPLICATED_ID"
    second = clients.session("second", key.base64)
    wait_until(lambda: [record.id for record in bridge.sessions] == ["client", "second"])
    _, accepted = clients.pair(second, client)
    assert accepted.ends()
    assert clients.connect("client", second.dest).is_silent()
    assert second.is_silent(0.01)


def test_an_old_lease_set_of_the_server(make):
    near, clients = make(stale=100.0)
    far, servers = make(network=near)
    server = servers.session("server")
    client = clients.session("client")
    accepted = servers.accept("server")
    clients.connect("client", server.dest)
    assert parse_peer(accepted.line()) == client.dest
    far.kill()
    assert clients.connect("client", server.dest).is_silent(0.1)
    far.restart()
    again = servers.session("server", server.key.base64)
    accepted = servers.accept("server")
    lost = clients.connect("client", again.dest)
    assert accepted.is_silent(0.1) and lost.is_silent(0.1)
    fresh = clients.session("fresh")
    connected = clients.connect("fresh", again.dest)
    assert parse_peer(accepted.line()) == fresh.dest
    sent(connected, accepted)
    near.settings.stale = 0.0  # some time later
    accepted = servers.accept("server")
    connected = clients.connect("client", again.dest)
    assert parse_peer(accepted.line()) == client.dest
    sent(connected, accepted)


def test_an_old_lease_set_of_the_client(make):
    far, servers = make(stale=100.0)
    near, clients = make(network=far)
    server, client = servers.session("server"), clients.session("client")
    accepted = servers.accept("server")
    clients.connect("client", server.dest)
    assert parse_peer(accepted.line()) == client.dest
    near.kill()
    near.restart()
    again = clients.session("client", client.key.base64)
    accepted = servers.accept("server")
    connected = clients.connect("client", server.dest)
    connected.sendall(b"request")
    assert parse_peer(accepted.line()) == again.dest  # it arrives, and no more
    accepted.sendall(b"reply")
    assert accepted.is_silent(0.1) and connected.is_silent(0.1)
    fresh = clients.session("fresh")
    accepted = servers.accept("server")
    connected = clients.connect("fresh", server.dest)
    assert parse_peer(accepted.line()) == fresh.dest
    sent(connected, accepted)


def test_without_the_traps_a_new_life_is_found_at_once(personality, make):
    near, clients = make(personality)
    far, servers = make(personality, network=near)
    server, client = servers.session("server"), clients.session("client")
    for _ in range(2):
        accepted = servers.accept("server")
        connected = clients.connect("client", server.dest)
        assert parse_peer(accepted.line()) == client.dest
        sent(connected, accepted)
        far.kill()
        far.restart()
        server = servers.session("server", server.key.base64)
        clients.address = near.address
        near.kill()
        near.restart()
        client = clients.session("client", client.key.base64)


def test_what_is_stale_becomes_fresh(make):
    near, clients = make(stale=0.5)
    far, servers = make(network=near)
    server = servers.session("server")
    clients.session("client")
    servers.accept("server")
    clients.connect("client", server.dest)
    far.kill()
    assert clients.connect("client", server.dest).is_silent(0.3)
    far.restart()
    began = time.monotonic()
    servers.session("server", server.key.base64)
    accepted = servers.accept("server")

    def answered():
        clients.connect("client", server.dest)
        return not accepted.is_silent(0.05)

    wait_until(answered)
    assert time.monotonic() - began >= 0.5


def test_a_java_router_says_what_is_stale(make):
    near, clients = make("java", stale=100.0, silence=0.2)
    far, servers = make("java", network=near, stale=100.0, silence=0.2)
    server, client = servers.session("server"), clients.session("client")
    servers.accept("server")
    clients.connect("client", server.dest)
    far.kill()
    far.restart()
    again = servers.session("server", server.key.base64)
    accepted = servers.accept("server")
    assert clients.asked(stream_connect("client", again.dest)).result == "CANT_REACH_PEER"
    assert accepted.is_silent()
    fresh = clients.session("fresh")
    clients.connect("fresh", again.dest)
    assert parse_peer(accepted.line()) == fresh.dest
    near.kill()
    near.restart()
    fresh = clients.session("fresh", fresh.key.base64)
    accepted = servers.accept("server")
    assert clients.asked(stream_connect("fresh", again.dest)).result == "CANT_REACH_PEER"
    assert parse_peer(accepted.line()) == fresh.dest  # it has come so far
    assert client.ends()


def test_a_stream_to_oneself(personality, make):
    bridge, clients = make(personality)
    session = clients.session()
    accepted = clients.accept()
    connected = clients.connect("one", session.dest)
    assert parse_peer(accepted.line()) == session.dest
    if personality == "java":
        sent(connected, accepted)
    else:  # it arrives, and no byte of it
        connected.sendall(b"x")
        accepted.sendall(b"y")
        assert accepted.is_silent() and connected.is_silent(0.01)
        connected.close()
        assert accepted.is_silent()
    bridge.settings.connect_to_self = False
    assert clients.asked(stream_connect("one", session.dest)).result == "CANT_REACH_PEER"


# i2pd alone.


def test_i2pd_forgets_what_comes_in_one_segment_with_a_command(make):
    _, clients = make()
    program = clients.raw()
    program.sendall(hello().encode() + dest_generate().encode())
    assert program.hear().result == OK
    assert program.is_silent()
    program.sendall(dest_generate().encode() * 2)
    assert program.hear().words == ("DEST", "REPLY")
    assert program.is_silent()


def test_i2pd_spoils_what_is_sent_with_connect(make):
    _, clients = make()
    server = clients.session("server")
    clients.session("client")
    accepted = clients.accept("server")
    program = clients.greeted()
    program.sendall(stream_connect("client", server.dest).encode() + b"too early")
    assert program.hear().result == OK
    program.sendall(b"in time")
    parse_peer(accepted.line())
    data = receive_exactly(accepted, 16)
    assert data[:9] != b"too early" and data[9:] == b"in time"


def test_i2pd_does_not_wait_for_the_end_of_hello(make):
    _, clients = make()
    for piece in (b"HEL", b"HELLO ", b"\n", b"HELLO VERSIONS\n"):
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


def test_i2pd_does_not_know_quotes(make):
    _, clients = make()
    program = clients.greeted()
    assert program.ask(b'SESSION CREATE STYLE=STREAM ID="one" DESTINATION=TRANSIENT').result == "INVALID_ID"
    assert program.ends()


def test_i2pd_shares_its_own_destination(make):
    bridge, clients = make()
    mine = clients.asked(naming_lookup("ME")).options["VALUE"]
    assert clients.asked(naming_lookup("ME")).options["VALUE"] == mine
    assert len(b32_of(mine)) == 60
    assert bridge.sessions == []


def test_i2pd_answers_while_it_accepts(make):
    bridge, clients = make()
    server, client = clients.session("server"), clients.session("client")
    accepted = clients.accept("server")
    assert accepted.ask(naming_lookup("ME")).options["VALUE"] == server.dest
    accepted.sendall(b"half a line")
    assert accepted.is_silent(0.1)
    connected = clients.connect("client", server.dest)
    assert parse_peer(accepted.line()) == client.dest
    assert receive_exactly(connected, 11) == b"half a line"
    assert clients.accept("server").ask(stream_accept("server")).result == "I2P_ERROR"
    wait_until(lambda: bridge.connections == 2)


@pytest.mark.parametrize(
    "line", [b"PING x", b"PING", b"stream accept ID=one", b"FOO BAR", b"FOO", b"", b" ", b"\x00\xff"]
)
def test_i2pd_ends_the_session_for_what_it_does_not_know(make, line):
    bridge, clients = make()
    session = clients.session()
    session.sendall(line + b"\n")
    assert session.ends()
    assert bridge.sessions == []


@pytest.mark.parametrize("request_", [stream_accept("one"), stream_connect("one", "x.i2p"), stream_forward("one", 1)])
def test_a_control_socket_carries_no_stream(personality, make, request_):
    bridge, clients = make(personality)
    session = clients.session()
    assert session.result(request_) == "I2P_ERROR"
    assert session.ends()
    assert bridge.sessions == []


def test_i2pd_ignores_the_host_of_a_forward(make):
    _, clients = make()
    server, client = clients.session("server"), clients.session("client")
    listening = clients.listen()
    request = stream_forward("server", listening.getsockname()[1], host="198.18.0.1")
    assert clients.greeted().result(request) == OK
    clients.connect("client", server.dest)
    assert clients.forwarded(listening)[0] == client.dest


def test_java_forwards_to_a_host(make):
    bridge, clients = make("java")
    server, client = clients.session("server"), clients.session("client")
    listening = clients.listen()
    port = listening.getsockname()[1]
    for host in ("nonsense", "example.com", "127.0.0.1.1"):
        assert clients.asked(stream_forward("server", port, host=host)).result == "I2P_ERROR"
    for host in ("127.0.0.1", "localhost"):
        forward = clients.greeted()
        assert forward.result(stream_forward("server", port, host=host)) == OK
        clients.connect("client", server.dest)
        assert clients.forwarded(listening)[0] == client.dest
        forward.close()
        wait_until(lambda: bridge.connections == 2)
    assert clients.greeted().result(stream_forward("server", 9, host="255.255.255.255")) == OK
    assert clients.connect("client", server.dest).ends()


@pytest.mark.parametrize("port", ["", "0", "65536", "-1", "http"])
def test_a_forward_to_no_port(personality, make, port):
    _, clients = make(personality)
    clients.session()
    assert clients.asked(f"STREAM FORWARD ID=one PORT={port}".encode()).result == "I2P_ERROR"


# Java alone.


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        (hello("3.1", "3.3"), "3.3"),
        (hello("3.0", "3.2"), "3.2"),
        (hello("3.1", "3.1"), "3.1"),
        (hello("1", "99.9"), "3.3"),
        (Message(("HELLO", "VERSION")), "3.3"),
        (hello("3.4", "4.0"), None),
        (hello("2.0", "2.9"), None),
    ],
)
def test_java_takes_the_highest_version(make, asked, chosen):
    _, clients = make("java")
    program = clients.raw()
    answer = program.ask(asked)
    assert (answer.result, answer.options.get("VERSION")) == ((OK, chosen) if chosen else ("NOVERSION", None))
    assert chosen or program.ends()


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
    if result != OK:
        assert program.ends()


def test_java_needs_no_newline_between(make):
    _, clients = make("java")
    program = clients.raw()
    program.sendall(hello().encode() + b"\n\r\n" + dest_generate().encode() * 2)
    assert program.hear().result == OK
    assert program.hear().words == program.hear().words == ("DEST", "REPLY")


def test_java_keeps_what_is_sent_with_a_command_for_the_stream(make):
    _, clients = make("java")
    server = clients.session("server")
    clients.session("client")
    accepted, connected = clients.greeted(), clients.greeted()
    accepted.sendall(stream_accept("server").encode() + b"220 ready\n")
    assert accepted.hear().result == OK
    connected.sendall(stream_connect("client", server.dest).encode() + b"EHLO\n")
    assert connected.hear().result == OK
    assert receive_exactly(connected, 10) == b"220 ready\n"
    parse_peer(accepted.line())
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


@pytest.mark.parametrize("missing", ["ID", "STYLE", "DESTINATION"])
def test_java_wants_everything(make, missing):
    _, clients = make("java")
    options = {"ID": "one", "STYLE": "STREAM", "DESTINATION": "TRANSIENT"}
    del options[missing]
    assert clients.asked(Message(("SESSION", "CREATE"), options)).result == "I2P_ERROR"
    assert clients.asked(b"STREAM ACCEPT").result == "I2P_ERROR"


def test_java_tells_ports(make):
    _, clients = make("java")
    server, client = clients.session("server"), clients.session("client")
    for options, told in ({"from_port": 5, "to_port": 80}, (5, 80)), ({}, (0, 0)):
        accepted = clients.accept("server")
        clients.greeted().ask(stream_connect("client", server.dest, **options))
        peer = parse_peer(accepted.line())
        assert peer == client.dest and (peer.port, peer.to_port) == told
    accepted = clients.accept("server")
    clients.greeted().ask(f'STREAM CONNECT ID=client DESTINATION={server.dest} FROM_PORT="1 X=2"'.encode())
    assert accepted.line().endswith(b" FROM_PORT=0 TO_PORT=0\n")
    older = clients.greeted(maximum="3.1")
    assert older.result(stream_accept("server")) == OK
    clients.connect("client", server.dest)
    assert older.line() == client.dest.encode() + b"\n"


def test_java_answers_pings(make):
    _, clients = make("java")
    session = clients.session()
    for text in ("", "a  b", '"x'):
        answer = session.ask(ping(text))
        assert (answer.words, answer.text) == (("PONG",), text)
    older = clients.greeted(maximum="3.1")
    assert older.ask(ping("x")).text == "x"


def test_java_asks_for_signs_of_life(make):
    bridge, clients = make("java", ping_interval=1.0, build_time=1.1)
    session = clients.session()
    accepted = clients.accept()
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


def test_java_knows_no_me_without_a_session(make):
    _, clients = make("java")
    program = clients.greeted()
    program.sendall(naming_lookup("ME").encode())
    assert program.ends()


@pytest.mark.parametrize("line", [b"FOO BAR", b"", b'SESSION CREATE ID="x', b"=", b"\xff", b"hello"])
def test_java_wants_to_be_greeted(make, line):
    _, clients = make("java")
    program = clients.raw()
    program.sendall(line + b"\nX\n")
    answer = program.hear()
    assert answer.words == ("HELLO", "REPLY") and answer.result == "I2P_ERROR"
    assert program.ends()


def test_java_goes_on_after_what_it_does_not_know(make):
    _, clients = make("java")
    session = clients.session()
    for line in (b"FOO BAR", b"FOO", b"HELLO VERSION", b"SESSION ADD ID=x", b"DEST"):
        answer = session.ask(line)
        assert (answer.words, answer.result) == ((line.split()[0].decode(), "STATUS"), "I2P_ERROR")
    assert session.ask(naming_lookup("ME")).result == OK
    assert clients.asked(b"STREAM FOO").words == ("STREAM", "STATUS")
    for line in (b'SESSION CREATE ID="x', b"\xff"):
        program = clients.greeted()
        assert program.ask(line).result == "I2P_ERROR"
        assert program.ends()
    leaving = clients.greeted()
    assert leaving.ask(b"QUIT") == parse(b"QUIT STATUS RESULT=OK MESSAGE=bye")
    assert leaving.ends()


def test_java_sees_a_program_go_that_waits_for_its_session(make):
    bridge, clients = make("java", build_time=100.0)
    program = clients.greeted()
    program.sendall(session_create(id="one").encode())
    wait_until(lambda: bridge.commands[-1].words == ("SESSION", "CREATE"))
    assert clients.asked(session_create(id="one")).result == "DUPLICATED_ID"
    bridge.settings.build_time = 0.3
    program.close()
    wait_until(lambda: clients.asked(session_create(id="one")).result == OK)
    program = clients.greeted()
    program.sendall(session_create(id="two").encode() + dest_generate().encode() + b"x" * 9000)
    assert program.hear().result == OK  # what is said meanwhile waits
    assert program.hear().words == ("DEST", "REPLY")
    assert program.ends()


# Robustness.


def test_many_streams_at_once(personality, make):
    bridge, clients = make(personality)
    server = clients.session("server")
    clients.session("client")
    listening = clients.listen()
    forward = clients.greeted(maximum="3.1")  # no ports
    assert forward.result(stream_forward("server", listening.getsockname()[1])) == OK

    def answer(connection):
        with connection:
            connection.settimeout(None)  # its four bytes come when all streams are there, or its end with the test's
            assert receive_exactly(connection, 525).endswith(b"\n")
            connection.sendall(receive_exactly(connection, 4))

    def serve():
        with ThreadPoolExecutor(16) as pool:
            for _ in range(500):
                pool.submit(answer, listening.accept()[0])

    serving = Thread(serve)
    streams = []
    try:
        for _ in range(500):
            program = Program(bridge.address)
            streams.append(program)
            program.sendall(hello("3.1", "3.1").encode())
            assert program.hear().result == OK
            program.sendall(stream_connect("client", server.dest).encode())
        for number, program in enumerate(streams):
            assert program.hear().result == OK
            program.sendall(b"%04d" % number)
        for number, program in enumerate(streams):
            assert receive_all(program) == b"%04d" % number
    finally:
        for program in streams:
            program.close()
    serving.result()
    assert bridge.streams == 500


def test_64_mebibytes_both_ways(personality, make):
    _, clients = make(personality)
    server, client = clients.session("server"), clients.session("client")
    ends = clients.pair(server, client)

    def send(end):
        for _ in range(64):
            end.sendall(BLOCK)

    def receive(end):
        seen, left = hashlib.sha256(), 64 << 20
        while left:
            data = end.recv(min(left, 1 << 18))
            assert data
            seen.update(data)
            left -= len(data)
        return seen.hexdigest()

    sending = [Thread(send, end) for end in ends]
    receiving = [Thread(receive, end) for end in ends]
    expected = hashlib.sha256()
    for _ in range(64):
        expected.update(BLOCK)
    for thread in sending:
        thread.result(60)
    assert {thread.result(60) for thread in receiving} == {expected.hexdigest()}


def test_who_sends_has_to_wait_when_too_much_is_held(make, monkeypatch):
    monkeypatch.setattr(samstream, "MOST", 1 << 20)
    bridge, clients = make()
    server, client = clients.session("server"), clients.session("client")
    stalled, reader = clients.pair(server, client)
    pending = clients.connect("client", server.dest)
    for end in (stalled, pending):
        end.settimeout(0.3)
        with pytest.raises(TimeoutError):
            for _ in range(64):
                end.sendall(BLOCK)
    hub = bridge._network.hub
    assert hub.held < 3 << 20
    others = clients.pair(client, server)
    for _ in range(3):
        sent(*others)  # they are not in the way of that
    stalled.settimeout(WAIT)
    assert receive_exactly(reader, 1 << 20) == BLOCK
    late = clients.accept("server")
    assert parse_peer(late.line()) == client.dest
    assert receive_exactly(late, 1 << 20) == BLOCK
    finishing = [Thread(receive_all, end) for end in (reader, late)]
    for end in (stalled, pending):
        end.sendall(BLOCK)
        end.close()
    for thread in finishing:
        thread.result()
    stalled, reader = clients.pair(server, client)
    stalled.settimeout(0.3)
    with pytest.raises(TimeoutError):
        for _ in range(64):
            stalled.sendall(BLOCK)
    stalled.settimeout(WAIT)
    server.close()  # the sender gets no notice
    for _ in range(16):
        stalled.sendall(BLOCK)
    for end in (server, client):
        end.close()
    wait_until(lambda: hub.held == 0)


def test_a_program_that_reads_no_answers(personality, make):
    bridge, clients = make(personality)
    program = clients.greeted()
    program.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    program.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    asked = 0

    def is_obeyed(before):
        deadline = time.monotonic() + 0.5
        while bridge.commands[-1] is before and time.monotonic() < deadline:
            threading.Event().wait(0.0001)
        return bridge.commands[-1] is not before

    obeyed = True
    while obeyed:
        before = bridge.commands[-1]
        program.sendall(dest_generate().encode())
        asked += 1
        obeyed = is_obeyed(before)
        assert asked < 20_000
    assert 0 < bridge._network.hub.held < 1 << 16
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


def test_an_endless_beginning_of_a_stream(make):
    """Java does not read what comes before there is a stream."""
    _, clients = make("java")
    server, client = clients.session("server"), clients.session("client")
    accepted = clients.accept("server")
    sending = Thread(accepted.sendall, BLOCK * 8)
    connected = clients.connect("client", server.dest)
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
    sent(*clients.pair(session, clients.session("two")))


def test_programs_go_at_every_point(personality, make):
    bridge, clients = make(personality, silence=0.2, build_time=0.01)
    server, client = clients.session("server"), clients.session("client")
    listening = clients.listen()
    steps = {
        "nothing": [],
        "hello": [hello()],
        "session": [hello(), session_create(id="x")],
        "accept": [hello(), stream_accept("server")],
        "forward": [hello(), stream_forward("server", listening.getsockname()[1])],
        "connect": [hello(), stream_connect("client", server.dest)],
        "naming": [hello(), naming_lookup("x.i2p")],
    }
    if personality == "java":
        del steps["accept"]  # that is not seen
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
    wait_until(lambda: not bridge._router.sessions["server"].destination.acceptors.pending)
    sent(*clients.pair(server, client))


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
            with contextlib.closing(Made(address_of(line.split()[-1]), "one")) as session:
                if ending == "signal":
                    process.send_signal(signal.SIGTERM)
                else:
                    process.stdin.close()
                assert process.wait(WAIT) == 0
                assert session.ends()
            assert process.stdout.read() == b""


def test_it_is_exported():
    assert relay.testing.SAMBridge is SAMBridge
    assert "SAMBridge" in relay.testing.__all__


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


def meet(clients, server, client):
    """Both ends of the first stream between two sessions, as soon as the one finds the other.

    Who accepts is there before: a router mixes up streams that wait with those who have stopped accepting.
    """
    accepted, tried = clients.accept(server.name), []

    def is_found():
        tried.append(clients.greeted())
        return tried[-1].result(stream_connect(client.name, server.dest)) == OK

    wait_until(is_found, 40)
    assert parse_peer(accepted.line()) == client.dest
    return tried[-1], accepted


@pytest.fixture(scope="module")
def both(i2p_world, module_clients):
    """Two sessions at one router, which reach each other."""
    server, client = (ready_session(i2p_world, module_clients, name) for name in ("server", "client"))
    for one, other in (server, client), (client, server):
        for end in meet(module_clients, one, other):
            end.close()
    return server, client


@pytest.fixture
def real(module_clients):
    """Clients whose sockets end with the test."""
    with contextlib.ExitStack() as stack:
        yield Clients(module_clients.address, stack)


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
    connected, accepted = real.pair(server, client)
    sent(connected, accepted)
    accepted.shutdown(socket.SHUT_WR)
    assert connected.ends() and accepted.ends()
    connected, accepted = real.pair(server, client)
    reset(connected.socket)
    assert accepted.recv(1) == b""


def test_as_i2pd_what_is_sent_with_connect(real, both):
    server, client = both
    accepted, connected = real.accept("server"), real.greeted()
    connected.sendall(stream_connect("client", server.dest).encode() + b"too early")
    assert connected.hear().result == OK
    assert parse_peer(accepted.line()) == client.dest
    assert receive_exactly(accepted, 9) != b"too early"


def test_as_i2pd_who_accepts(i2p_world, real, both):
    server, client = both
    first, second = real.accept("server"), real.accept("server")
    first.close()
    assert second.is_silent()
    connected = real.connect("client", server.dest)
    connected.sendall(b"x")
    is_served = not second.is_silent()
    if is_served and not hasattr(i2p_world, "silence"):
        return  # a real router has noticed in time that the first one has gone
    assert not is_served
    try:
        third = real.accept("server")
    except MessageError:  # i2pd 2.45 may say who connects before it says OK, where a stream waits already
        return
    assert parse_peer(third.line()) == client.dest
    assert receive_exactly(third, 1) == b"x"
    real.connect("client", server.dest)
    assert parse_peer(second.line()) == client.dest
    twice = real.accept("server")
    assert twice.ask(stream_accept("server")).result == "I2P_ERROR"
    if not hasattr(i2p_world, "silence"):
        assert twice.line() == b""  # a router that ends the connection later ends the next one's accept with it
    again = real.accept("server")
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
    accepted = real.accept("server")
    connected = real.connect("server", server.dest)
    deadline = time.monotonic() + WAIT
    while not select.select([accepted.socket], [], [], WAIT / 6)[0]:  # i2pd 2.45 may lose such a stream altogether
        assert time.monotonic() < deadline, "no stream to oneself has come"
        connected = real.connect("server", server.dest)
    assert parse_peer(accepted.line()) == server.dest
    connected.sendall(b"x")
    accepted.sendall(b"y")
    assert accepted.is_silent() and connected.is_silent()


def test_as_i2pd_nobody_accepts(i2p_world, real, both):
    _, client = both
    silence = getattr(i2p_world, "silence", 10.0)
    began = time.monotonic()
    connected = real.connect("server", client.dest)
    connected.settimeout(silence + WAIT)
    assert connected.recv(1) == b""
    assert time.monotonic() - began > silence - 0.5


def test_as_i2pd_a_session_ends(i2p_world, real, both):
    _, client = both
    server = ready_session(i2p_world, real, "mortal")
    connected, accepted = meet(real, server, client)
    sent(connected, accepted)
    server.close()
    assert accepted.ends()
    assert connected.is_silent(2.0)  # the far end gets no notice
    assert real.connect("client", server.dest).is_silent(1.0)
    assert real.asked(stream_accept("mortal")).result == "INVALID_ID"


def test_as_i2pd_the_same_keys_twice(i2p_world, real, both):
    _, client = both
    first = ready_session(i2p_world, real, "twice")
    second = real.session("twice-more", first.key.base64)
    assert second.dest == first.dest
    assert real.asked(session_create(id="twice")).result == "DUPLICATED_ID"
    accepted = real.accept("twice-more")
    wait_until(lambda: real.asked(stream_connect("client", first.dest)).result == OK, 40)
    assert parse_peer(accepted.line()) == client.dest
