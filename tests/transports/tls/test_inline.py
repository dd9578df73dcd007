"""TLS sessions that an engine reads and writes itself: each kind of end, full buffers, forks, and no other thread."""

from __future__ import annotations

import contextlib
import datetime
import os
import queue
import random
import select
import socket
import ssl
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from helpers import (
    BLOCK,
    WAIT,
    Relayed,
    Thread,
    closed,
    ended,
    ending,
    fate_of_client,
    in_child,
    receive_exactly,
    wait_until,
)
from tls_rig import VERSIONS, only

import relay
from relay.engine.workspace import Workspace
from relay.eventloop.loop import Loop
from relay.streams.stream import Stream
from relay.transports.tls.handshake import Handshake
from relay.transports.tls.inline import InlineStream
from relay.transports.tls.session import Incoming, Outgoing, Session

LONG = 20000  # bytes; more than any flight of a handshake here
RECORD = 16384 + 22  # bytes of the longest record of TLS 1.3


class Far:
    """The far end: a TLS server over the other socket, which never waits."""

    def __init__(self, sock, context):
        self.socket = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        self.plain = b""
        self.got_end = self.got_eof = False
        self.rest = b""  # of a message that is longer than a record

    def flush(self):
        while data := self.outgoing.read():
            if len(data) > LONG:
                data, self.rest = data[:RECORD], data[RECORD:]
            self.socket.sendall(data)

    def shake(self):
        """Take the next step of the handshake; return whether it is done."""
        with contextlib.suppress(BlockingIOError):
            self.incoming.write(self.socket.recv(1 << 16))
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        finally:
            self.flush()
        return True

    def say(self, data, *, end=False):
        if data:
            self.tls.write(data)
        if end:
            with contextlib.suppress(ssl.SSLWantReadError):
                self.tls.unwrap()
        self.flush()

    def hear(self):
        """Read all that is there."""
        with contextlib.suppress(BlockingIOError):
            while data := self.socket.recv(1 << 16):
                self.incoming.write(data)
            self.got_eof = True
        try:
            while data := self.tls.read(1 << 16):
                self.plain += data
            self.got_end = True
        except ssl.SSLZeroReturnError:
            self.got_end = True
        except ssl.SSLWantReadError:
            pass
        return self.plain


class Bench:
    """A session in the states after its handshake, and its far end; no loop runs."""

    def __init__(self, certificates, version, shown=None):
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        self.released = threading.Event()
        self.loop = Loop()
        context = only(ssl.create_default_context(cafile=certificates.ca), version)
        server = only(certificates.server(), version)
        if shown is not None:
            context.load_cert_chain(shown)
            server.verify_mode = ssl.CERT_REQUIRED
            server.load_verify_locations(shown)
        transport = Stream(near, on_close=self.released.set)
        self.session = Session(transport, context, peer="target", name="tls://x", servername="localhost")
        self.far = Far(far, server)
        waits = self.session.records.handshake(readable=False)
        while True:
            is_done = self.far.shake()
            if waits:
                waits = self.session.records.handshake(readable=True)
            if not waits and is_done:
                break
        self.stream = InlineStream(self.session, Workspace(self.loop, None))
        self.near = self.stream.socket
        with contextlib.suppress(BlockingIOError):
            assert self.near.recv(1) == b""  # tickets

    def fill(self):
        """Send until the transport takes no more; return what was sent, and what must be sent again."""
        sent = b""
        while True:
            data = BLOCK[: 1 << 16]
            try:
                count = self.near.send(data)
            except BlockingIOError:
                return sent, data
            sent += data[:count]
            if count < len(data):
                return sent, data[count:]

    def close(self):
        self.stream.reset()
        self.far.socket.close()
        self.loop.close()


@pytest.fixture(params=VERSIONS)
def version(request):
    return VERSIONS[request.param]


@pytest.fixture
def bench(certificates, version):
    yield from closed(Bench(certificates, version))


def test_bytes_go_both_ways(bench):
    assert bench.near.send(b"ping") == 4
    assert bench.far.hear() == b"ping"
    bench.far.say(b"pong")
    assert bytes(bench.near.recv(1)) == b"pong", "all that was there, for no event will announce the rest"
    with pytest.raises(BlockingIOError):
        bench.near.recv(1)


def test_it_has_what_an_engine_asks_of_a_socket(bench):
    assert bench.near.family == socket.AF_UNIX
    assert bench.near.fileno() == bench.session.transport.socket.fileno()
    assert bench.near.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    assert bench.near.getpeername() == ""
    assert bench.stream.half_close
    assert bench.stream.target == "tls://x"
    assert bench.stream.failure() is None
    assert bench.stream.unsent() == 0
    assert not bench.near.must_flush
    assert not bench.near.has_input


def test_a_look_at_the_transport_takes_nothing(bench):
    with pytest.raises(BlockingIOError):
        bench.near.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    bench.far.say(b"pong")
    assert bench.near.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    assert bytes(bench.near.recv(9)) == b"pong"


def test_an_end_beside_the_last_bytes_is_announced_by_no_event(bench):
    bench.far.say(b"last", end=True)
    assert bytes(bench.near.recv(9)) == b"last"
    assert bench.near.has_input
    assert bench.near.recv(9) == b""
    assert not bench.near.has_input
    assert bench.stream.failure() is None


def test_each_direction_ends_alone(bench):
    bench.near.shutdown(socket.SHUT_WR)
    bench.near.shutdown(socket.SHUT_WR)
    bench.far.hear()
    assert bench.far.got_end and not bench.far.got_eof
    bench.far.say(b"late")
    assert bytes(bench.near.recv(9)) == b"late"
    bench.far.say(b"", end=True)
    assert bench.near.recv(9) == b""


def test_an_end_without_close_notify_is_a_failure(bench):
    bench.far.say(b"half of it")
    bench.far.socket.shutdown(socket.SHUT_WR)
    assert bytes(bench.near.recv(99)) == b"half of it"
    with pytest.raises(relay.RelayError, match="close_notify"):
        bench.near.recv(99)
    assert bench.stream.failure().reason == "target_reset"


def test_an_alert_is_the_cause_and_not_the_hang_up_behind_it(bench):
    bench.far.socket.sendall(
        b"\x15\x03\x03\x00\x02\x02\x2a"
        if bench.session.records.tls.version() == "TLSv1.2"
        else b"\x17\x03\x03\x00\x20" + bytes(32)
    )
    with pytest.raises(ssl.SSLError):
        bench.near.recv(9)
    first = str(bench.stream.failure())
    assert "failed (" in first
    bench.far.socket.close()
    with pytest.raises(OSError):  # noqa: PT011  (whichever)
        while True:
            bench.near.send(BLOCK)
    assert str(bench.stream.failure()) == first


def test_what_a_full_transport_did_not_take_is_sent_once(bench):
    chance, sent, expected = random.Random(7), 0, BLOCK * 2
    while sent < len(expected):
        try:
            sent += bench.near.send(memoryview(expected)[sent : sent + (1 << 16)])
        except BlockingIOError:
            assert bench.near.must_flush
            assert bench.stream.unsent() > 0
            if chance.random() < 0.5:
                bench.far.hear()
    while bench.near.must_flush:
        bench.far.hear()
        with contextlib.suppress(BlockingIOError):
            bench.near.send(b"")
    assert bench.far.hear() == expected


def test_what_waits_is_bounded(bench):
    _, again = bench.fill()
    waiting = bench.stream.unsent()
    for _ in range(100):
        with pytest.raises(BlockingIOError):
            bench.near.send(again)
    assert bench.stream.unsent() == waiting < 1 << 17


def test_an_end_waits_behind_what_waits(bench):
    sent, again = bench.fill()
    bench.near.shutdown(socket.SHUT_WR)
    assert bench.session.outgoing is Outgoing.ENDING
    while bench.near.must_flush:
        bench.far.hear()
        with contextlib.suppress(BlockingIOError):
            assert bench.near.send(b"") == 0
    assert bench.session.outgoing is Outgoing.ENDED
    assert bench.far.hear() == sent + again
    assert bench.far.got_end


def test_after_both_ends_it_closes_at_once(bench):
    bench.far.say(b"", end=True)
    assert bench.near.recv(1) == b""
    on_close, bench.stream.on_close = bench.stream.on_close, None
    bench.near.close()
    bench.near.close()
    assert bench.near.fileno() == -1
    assert bench.session.transport.socket.fileno() == -1
    bench.far.hear()
    assert bench.far.got_end and bench.far.got_eof
    on_close()
    assert bench.released.is_set()


def test_closed_before_the_far_end_has_ended_it_waits_for_that(bench):
    bench.near.send(b"all")
    bench.near.close()
    assert bench.near.fileno() == -1
    wait_until(lambda: bench.far.hear() and bench.far.got_eof)
    assert bench.far.plain == b"all"
    assert bench.far.got_end
    bench.far.say(b"", end=True)  # a closed socket would answer by a reset
    assert not bench.session.is_over or bench.session.incoming is Incoming.ENDED
    bench.stream.close()
    wait_until(bench.released.is_set)


def test_closed_while_something_waits_it_sends_that(bench):
    sent, again = bench.fill()
    bench.near.close()
    wait_until(lambda: bench.far.hear() is not None and bench.far.got_eof)
    assert bench.far.plain == sent + again
    assert bench.far.got_end


def test_a_reset_is_neither_an_end_nor_close_notify(bench):
    bench.near.send(b"half")
    bench.stream.reset()
    bench.stream.reset()
    assert bench.released.is_set()
    with pytest.raises(ConnectionResetError):
        bench.far.hear()
    assert not bench.far.got_end


def test_a_forked_childs_copy_is_closed_and_says_nothing(bench):
    bench.stream.on_close = None
    bench.near.abandon()
    bench.far.hear()
    assert bench.far.got_eof and not bench.far.got_end


def test_a_flood_of_what_openssl_answers_does_not_fill_the_memory(bench):
    class Records:
        cipher, has_reply, held, reads = b"", False, None, 0

        def receive(self, buffer):
            self.reads += 1
            return 1

        def decrypt(self, buffer):  # the first answer fits into the transport's buffer
            self.cipher, self.has_reply = b"reply", self.reads > 1
            return 0, False

    bench.session.records = Records()
    with pytest.raises(BlockingIOError):
        bench.near.recv(1)
    assert bench.near.must_flush and not bench.near.is_stalled
    with pytest.raises(BlockingIOError):
        bench.near.recv(1)
    assert bench.near.is_stalled, "one answer in the buffer of the transport, one behind it"


def test_a_reset_in_the_loop_closes_after_the_turn(bench):
    """An event of the turn would meet a new socket of the same number."""
    seen = []

    def reset():
        descriptor = bench.near.fileno()
        on_close, bench.stream.on_close = bench.stream.on_close, None  # it waits for the loop
        bench.stream.reset()
        seen.extend((bench.near.fileno(), os.fstat(descriptor), on_close))
        bench.loop.stop()

    bench.loop.call(reset)
    bench.loop.run()
    assert seen[0] == -1
    seen[2]()
    assert bench.released.is_set()
    with pytest.raises(ConnectionResetError):
        bench.far.hear()


# -- a message that has come in part, while OpenSSL encrypts nothing ---------------------------------------------------


@pytest.fixture(scope="module")
def long_certificate(tmp_path_factory):
    """A client certificate with which a ticket is longer than a record."""
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "client")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName(f"name{number:04}.example.com") for number in range(1000)]
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
    made = made.add_extension(x509.SubjectAlternativeName(names), critical=False).sign(key, hashes.SHA256())
    file = tmp_path_factory.mktemp("long") / "client.pem"
    plain = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    file.write_bytes(pem + made.public_bytes(serialization.Encoding.PEM))
    return file


@pytest.fixture
def halting(certificates, long_certificate):
    bench = Bench(certificates, ssl.TLSVersion.TLSv1_3, long_certificate)
    assert bench.far.rest, "half a ticket has come"
    yield bench
    bench.close()


def finish_the_ticket(bench):
    bench.far.socket.sendall(bench.far.rest)
    with pytest.raises(BlockingIOError):
        bench.near.recv(1)


def test_what_is_sent_beside_half_a_ticket_waits_for_the_rest(halting):
    with pytest.raises(BlockingIOError):
        halting.near.send(b"hello")
    assert halting.near.must_flush and halting.near.needs_input
    assert halting.stream.unsent() == 5
    with pytest.raises(BlockingIOError):
        halting.near.send(b"hello")
    finish_the_ticket(halting)
    assert not halting.near.must_flush and not halting.near.needs_input
    assert halting.near.send(b"hello, again") == 12
    assert halting.far.hear() == b"hello, again"


def test_an_end_beside_half_a_ticket_waits_for_the_rest(halting):
    halting.near.shutdown(socket.SHUT_WR)
    assert halting.near.must_flush and halting.near.needs_input
    assert halting.session.outgoing is Outgoing.ENDING
    finish_the_ticket(halting)
    halting.near.send(b"")
    assert not halting.near.must_flush
    assert halting.far.hear() == b"" and halting.far.got_end


@pytest.mark.parametrize("data", [b"last words", b""])
def test_closed_beside_half_a_ticket_it_says_the_rest_in_the_background(halting, data):
    if data:
        with pytest.raises(BlockingIOError):
            halting.near.send(data)
    halting.near.close()
    halting.far.socket.sendall(halting.far.rest)
    wait_until(lambda: halting.far.hear() is not None and halting.far.got_end)
    assert halting.far.plain == data
    assert halting.stream.failure() is None


def test_an_end_of_the_transport_beside_half_a_ticket_is_a_cut(halting):
    halting.near.shutdown(socket.SHUT_WR)
    halting.far.socket.shutdown(socket.SHUT_WR)
    with pytest.raises(OSError, match="without close_notify"):
        halting.near.recv(1)


# -- in a tunnel ------------------------------------------------------------------------------------------------------


@pytest.fixture
def relayed(certificates, tmp_path):
    yield from closed(Relayed(None, tmp_path, certificates, way_out="tls", timeout=None))


def connect(relayed):
    accepting = Thread(relayed.accept)
    client = relayed.client()
    client.settimeout(WAIT)
    return client, accepting.result()


def test_a_tunnel_needs_no_other_thread_but_to_look_names_up(relayed):
    before, seen = set(threading.enumerate()), set()
    for _ in range(3):
        client, far = connect(relayed)
        client.sendall(b"ping")
        assert receive_exactly(far, 4) == b"ping"
        seen |= set(threading.enumerate()) - before
    assert len(seen) == 1  # the one that looks their target up, for all of them


def test_clients_of_one_moment_share_the_look_up_of_their_target(relayed, monkeypatch):
    go, calls, resolve = threading.Event(), queue.SimpleQueue(), socket.getaddrinfo

    def look_up(*arguments, **more):
        calls.put(arguments)
        go.wait(WAIT)
        return resolve(*arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    clients = [relayed.client() for _ in range(5)]
    wait_until(lambda: relayed.tunnel.stats().active == len(clients))
    go.set()
    for _ in clients:
        relayed.accept()
    assert calls.qsize() == 1


def test_what_comes_with_the_handshake_is_passed_on(relayed):
    def speak():
        far = relayed.accept()
        far.sendall(b"220 ready")
        return far

    speaking = Thread(speak)
    client = relayed.client()
    client.settimeout(WAIT)
    assert receive_exactly(client, 9) == b"220 ready"
    speaking.result().close()


def test_a_warm_session_has_its_first_bytes(certificates, tmp_path):
    with contextlib.closing(Relayed(None, tmp_path, certificates, way_out="tls", timeout=None, warm=1)) as relayed:
        far = relayed.accept()
        far.sendall(b"220 ready")
        wait_until(lambda: relayed.tunnel.metrics().warm.ready == 1)
        client = relayed.client()
        client.settimeout(WAIT)
        assert receive_exactly(client, 9) == b"220 ready"
        client.sendall(b"ping")
        assert receive_exactly(far, 4) == b"ping"
        assert relayed.tunnel.stats().warm_hits == 1


def test_sessions_are_taken_up(relayed, certificates, monkeypatch):
    context = certificates.server()  # the one that knows its tickets
    monkeypatch.setattr(type(certificates), "server", lambda self: context)
    for is_first in (True, False, False):
        client, far = connect(relayed)
        assert far._tls.session_reused is not is_first
        far.sendall(b"hello")
        assert receive_exactly(client, 5) == b"hello"


def test_a_client_certificate_that_is_missing_is_a_denial(certificates, listener):
    context = only(certificates.server(), ssl.TLSVersion.TLSv1_3)
    context.load_verify_locations(certificates.ca)
    context.verify_mode = ssl.CERT_REQUIRED

    def refuse():
        connection = listener.accept()[0]
        with connection:
            connection.setblocking(False)
            far = Far(connection, context)
            with contextlib.suppress(ssl.SSLError):
                while not far.shake():
                    select.select([connection], [], [], WAIT)
            connection.settimeout(WAIT)
            with contextlib.suppress(ConnectionResetError):
                while connection.recv(1 << 16):
                    pass

    refusing = Thread(refuse)
    factory = relay.tls("localhost", listener.getsockname()[1], ca=certificates.ca)
    with relay.Tunnel(relay.listen(":0"), factory) as tunnel:
        assert fate_of_client(tunnel.address) == "reset"
        assert ended(tunnel) == ["denied"]
        refusing.result()


def test_a_fork_disturbs_neither_a_session_nor_a_handshake(relayed):
    client, far = connect(relayed)
    shaking = relayed.client()
    connection = relayed.target.accept()[0]
    assert in_child(lambda: None) == 0
    client.sendall(b"ping")
    assert receive_exactly(far, 4) == b"ping"
    connection.settimeout(WAIT)
    assert connection.recv(1), "the hello"
    assert len(relayed.tunnel.connections()) == 2
    connection.close()
    assert ending(shaking) == "reset"


def test_a_workspace_abandons_its_handshakes_in_a_forked_child():
    loop = Loop()
    near, far = socket.socketpair()
    near.setblocking(False)
    work = Workspace(loop, None)
    context = ssl.create_default_context()
    session = Session(Stream(near), context, peer="target", name="x", servername="x")
    outcomes = []
    Handshake(session, None, outcomes.append, home=work)
    work.abandon()
    assert near.fileno() == -1
    assert far.recv(1) == b""
    far.close()
    loop.close()


def test_a_handshake_whose_engine_has_ended_fails():
    loop = Loop()
    loop.stop()
    near, far = socket.socketpair()
    near.setblocking(False)
    session = Session(Stream(near), ssl.create_default_context(), peer="target", name="x", servername="x")
    with far:
        with pytest.raises(OSError, match="cancel"):
            Handshake(session, None, print, home=Workspace(loop, None))
        assert far.recv(1) == b""
    loop.close()


def test_a_handshake_is_given_up_from_any_thread():
    loop = Loop()
    near, far = socket.socketpair()
    near.setblocking(False)
    outcomes = []
    session = Session(Stream(near), ssl.create_default_context(), peer="target", name="x", servername="x")
    handshake = Handshake(session, None, outcomes.append, home=Workspace(loop, None))
    running = Thread(loop.run)
    with far:
        far.settimeout(WAIT)
        assert far.recv(1)
        handshake.cancel()
        assert ending(far) == "reset"
        wait_until(lambda: outcomes)
        loop.call(loop.stop)
        running.result()
        handshake.cancel()  # too late, which does nothing
    assert len(outcomes) == 1
    loop.close()
