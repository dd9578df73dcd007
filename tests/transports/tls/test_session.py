"""A TLS session behind a socketpair: every byte, every kind of end, both versions, and each row of its tables."""

import contextlib
import select
import socket
import ssl
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from helpers import (
    BLOCK,
    WAIT,
    Thread,
    closed,
    ending,
    exchange,
    in_child,
    makes,
    receive_all,
    receive_exactly,
    receive_until_reset,
    wait_until,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tls_rig import VERSIONS, Rig, only

from relay.eventloop.background import BUFFER, Watch
from relay.eventloop.loop import Loop
from relay.eventloop.poller import HUP, IN, OUT
from relay.streams.pair_end import PairEnd
from relay.streams.stream import Stream
from relay.transports.tls.records import decrypt
from relay.transports.tls.session import Incoming, Outgoing, Session


@pytest.fixture(params=VERSIONS)
def version(request):
    return VERSIONS[request.param]


@pytest.fixture
def rig(certificates, listener, version):
    yield from closed(Rig(certificates, listener, only(certificates.server(), version)))


@pytest.fixture
def quick_rig(certificates, listener):
    yield from closed(Rig(certificates, listener, certificates.server()))


@pytest.fixture(params=["epoll", "poll"])
def any_poller(request):
    if request.param == "poll":
        request.getfixturevalue("poll_only")


def test_the_holder_ends_first_and_gets_a_late_answer(any_poller, rig):
    stream, server = rig.connect()
    stream.socket.sendall(b"question")
    stream.socket.shutdown(socket.SHUT_WR)
    assert receive_all(server) == b"question"
    for _ in range(3):
        server.sendall(BLOCK)
        assert receive_exactly(stream.socket, len(BLOCK)) == BLOCK
    server.shutdown(socket.SHUT_WR)
    assert receive_all(stream.socket) == b""
    assert stream.failure() is None


def test_the_server_ends_first_and_gets_the_rest(any_poller, rig):
    stream, server = rig.connect()
    server.sendall(b"enough")
    server.shutdown(socket.SHUT_WR)
    assert receive_all(stream.socket) == b"enough"
    assert stream.failure() is None
    for _ in range(3):
        sending = Thread(stream.socket.sendall, BLOCK)
        assert receive_exactly(server, len(BLOCK)) == BLOCK
        sending.result()
    stream.socket.shutdown(socket.SHUT_WR)
    assert receive_all(server) == b""


def test_a_stream_that_is_closed_waits_for_the_end_of_the_server(rig):
    stream, server = rig.connect()
    stream.close()
    assert receive_all(server) == b""
    server.shutdown(socket.SHUT_WR)  # a closed socket would answer this, or a ticket, by a reset
    assert server.socket.recv(1) == b""
    assert server.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def test_a_stream_that_is_closed_while_the_server_sends_resets_it(rig):
    stream, server = rig.connect()
    stream.close()
    assert receive_all(server) == b""
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        while True:
            server.sendall(BLOCK)


def test_a_stream_that_is_reset_resets_the_server(rig):
    for _ in range(10):
        stream, server = rig.connect()
        stream.socket.sendall(b"half of it")
        assert receive_exactly(server, 10) == b"half of it"
        stream.reset()
        stream.reset()
        with pytest.raises(ConnectionResetError):
            server.recv(1)


def test_a_reset_wins_over_an_end_that_came_before(rig):
    stream, server = rig.connect()
    stream.socket.shutdown(socket.SHUT_WR)
    assert receive_all(server) == b""
    stream.reset()
    with pytest.raises(ConnectionResetError):
        server.socket.recv(1)


def test_a_reset_ends_a_server_that_does_not_read(quick_rig):
    stream, server = quick_rig.connect()
    stream.socket.settimeout(0.2)
    with contextlib.suppress(TimeoutError):
        while True:
            stream.socket.send(BLOCK)
    stream.reset()
    with pytest.raises(ConnectionResetError):
        while server.socket.recv(1 << 20):
            pass


def test_a_truncated_stream_is_a_failure(rig):
    stream, server = rig.connect()
    server.sendall(b"half of it")
    server.close()
    assert receive_until_reset(stream.socket) == b"half of it"
    assert stream.failure().reason == "target_reset"
    assert "close_notify" in str(stream.failure())


def test_a_late_answer_that_is_cut_is_a_failure(rig):
    stream, server = rig.connect()
    stream.socket.shutdown(socket.SHUT_WR)
    assert receive_all(server) == b""
    server.sendall(b"half of it")
    server.close()
    # The holder has ended its direction, so that nothing can be left unread for its reset (relay.eventloop.unix_reset).
    assert receive_all(stream.socket) == b"half of it"
    assert stream.failure().reason == "target_reset"


def test_a_server_that_answers_close_notify_by_closing_is_no_failure(rig):
    stream, server = rig.connect()
    server.sendall(b"all of it")
    assert receive_exactly(stream.socket, 9) == b"all of it"
    stream.socket.shutdown(socket.SHUT_WR)
    assert receive_all(server) == b""
    server.close()
    assert receive_all(stream.socket) == b""
    assert stream.failure() is None


def test_a_server_that_closes_with_close_notify_unread_is_a_failure(rig):
    stream, server = rig.connect()
    server.sendall(b"half of it")
    assert receive_exactly(stream.socket, 10) == b"half of it"
    stream.socket.shutdown(socket.SHUT_WR)
    wait_until(lambda: select.select([server], [], [], 0)[0])
    server.close()
    with contextlib.suppress(ConnectionResetError):
        assert receive_all(stream.socket) == b""
    assert stream.failure().reason == "target_reset"


def test_a_reset_of_the_server_is_a_failure(rig):
    stream, server = rig.connect()
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    server.close()
    assert receive_until_reset(stream.socket) == b""
    assert stream.failure().reason == "target_reset"


def test_a_broken_record_is_a_failure(rig):
    stream, server = rig.connect()
    server.socket.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
    assert receive_until_reset(stream.socket) == b""
    assert stream.failure().reason == "target_reset"


def test_a_flood_of_garbage_ends_its_own_session_only(quick_rig):
    stream, server = quick_rig.connect()
    other, other_server = quick_rig.connect()
    with contextlib.suppress(OSError):
        for _ in range(64):
            server.socket.sendall(b"\xff" * (1 << 16))
    assert receive_until_reset(stream.socket) == b""
    other.socket.sendall(b"ping")
    assert receive_exactly(other_server, 4) == b"ping"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.sampled_from([1, 2, 7, 16381, 16384, 16387, 65537, 131071, 262147]), max_size=8))
def test_whatever_the_sizes_the_bytes_are_the_same(quick_rig, sizes):
    stream, server = quick_rig.connect()
    pieces = [BLOCK[index : index + size] for index, size in enumerate(sizes)]

    def send():
        for piece in pieces:
            stream.socket.sendall(piece)
        stream.socket.shutdown(socket.SHUT_WR)

    sending = Thread(send)
    assert receive_all(server) == b"".join(pieces)
    sending.result()
    receiving = Thread(receive_all, stream.socket)
    for piece in pieces:
        server.sendall(piece)
    server.shutdown(socket.SHUT_WR)
    assert receiving.result() == b"".join(pieces)


@pytest.mark.parametrize("who", ["server", "holder"])
def test_who_does_not_read_is_held_back_and_nobody_else_notices(any_poller, quick_rig, who):
    stream, server = quick_rig.connect()
    other, other_server = quick_rig.connect()
    sender = stream.socket if who == "server" else server
    stop = threading.Event()
    sent = 0

    def send():
        nonlocal sent
        with contextlib.suppress(OSError):
            while not stop.is_set():
                sender.sendall(BLOCK[:65536])
                sent += 65536

    sending = Thread(send)
    sending.join(0.5)
    assert sending.is_alive() and sent < 64 << 20, "a relay that takes so much without passing it on"
    for _ in range(100):
        other.socket.sendall(b"ping")
        assert receive_exactly(other_server, 4) == b"ping"
    stop.set()
    stream.reset()
    server.close()
    sending.result()


# -- forks, and many at once ------------------------------------------------------------------------------------------


def test_a_forked_child_disturbs_nothing(quick_rig):
    stream, server = quick_rig.connect()
    assert in_child(lambda: (stream.reset(), stream.close())) == 0
    stream.socket.sendall(b"ping")
    assert receive_exactly(server, 4) == b"ping"
    with contextlib.closing(quick_rig.connect()[0]) as another:
        another.socket.sendall(b"ping")


def test_a_forked_child_can_make_its_own(quick_rig):
    quick_rig.connect()

    def work():
        stream, server = quick_rig.connect()
        exchange(stream.socket, server)

    assert in_child(work) == 0


def test_many_at_once(quick_rig):
    serving = Thread(lambda: [quick_rig.accept() for _ in range(64)])
    attempts = [Thread(lambda: quick_rig.factory()) for _ in range(64)]
    streams = [attempt.result() for attempt in attempts]
    for end in serving.result():
        end.sendall(b"hello")
    for stream in streams:
        with stream:
            stream.socket.settimeout(WAIT)
            assert receive_exactly(stream.socket, 5) == b"hello"


def test_a_stream_knows_what_is_on_its_way_beyond_its_socket(quick_rig):
    """Else a transfer to a slow server would count as idle."""
    stream, server = quick_rig.connect()
    sent = 0
    while select.select([], [stream.socket], [], 0.2)[1]:
        sent += stream.socket.send(BLOCK[: 1 << 16], socket.MSG_DONTWAIT)
    assert stream.unsent() > 0
    assert stream.queued() > stream.unsent()
    assert len(receive_exactly(server, sent)) == sent
    wait_until(lambda: stream.queued() == 0)


def test_a_session_whose_holder_is_gone_has_all_the_time_in_which_bytes_leave_the_kernel(quick_rig):
    """They left the session long ago; a reset would discard them."""
    stream, server = quick_rig.connect()
    sent = 0
    while select.select([], [stream.socket], [], 0.2)[1]:
        sent += stream.socket.send(BLOCK[: 1 << 16], socket.MSG_DONTWAIT)
    session = stream._session
    stream.close()
    looked = []
    wait_until(lambda: session._pair.gone)
    for count in range(1, 4):
        session.io_thread.loop.call(lambda: (session._pair._look(time.monotonic()), looked.append(session.is_over)))
        wait_until(lambda count=count: len(looked) == count)
        before = session.records.progress()
        got = receive_exactly(server, 1 << 18)
        assert got
        wait_until(lambda before=before: session.records.progress() != before)
        sent -= len(got)
    assert not any(looked)
    assert len(receive_exactly(server, sent)) == sent
    assert server.recv(1) == b""


SENDS_AND_EXITS = """
import sys, relay
connected = relay.connect(sys.argv[1])
connected.sendall(b"x" * int(sys.argv[2]))
"""


@pytest.mark.parametrize(
    ("last", "length", "is_clean"),
    [("connected.close()", 1 << 20, True), ("connected.shutdown(1)", 10, True), ("", 10, False)],
)
def test_a_program_that_sends_and_exits_loses_nothing(certificates, listener, last, length, is_clean):
    """Without an end of its own it has none in TLS either: the far end gets the bytes, and sees that it was cut."""
    url = f"tls://127.0.0.1:{listener.getsockname()[1]}?ca={certificates.ca}"
    command = [sys.executable, "-c", SENDS_AND_EXITS + last, url, str(length)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as program:
        listener.settimeout(WAIT)
        accepted, _ = listener.accept()
        accepted.settimeout(WAIT)
        context = certificates.server()
        with context.wrap_socket(accepted, server_side=True, suppress_ragged_eofs=False) as server:
            assert receive_exactly(server, length) == b"x" * length
            if is_clean:
                assert server.recv(1) == b""
            else:
                with pytest.raises((ssl.SSLEOFError, ConnectionResetError)):
                    server.recv(1)
        assert program.wait(WAIT) == 0


END = ssl.SSLZeroReturnError()
MORE = ssl.SSLWantReadError()


class Records:
    """The records of a far end that sends and takes what the test says."""

    has_received = has_reply = False
    held = None

    def __init__(self):
        self.tls = self
        self.cipher = b""
        self.taken = b""
        self.takes = True
        self.in_kernel = 0
        self.pending = True
        self.script = []

    def receive(self, buffer):
        return 0 if not self.script else len(buffer)

    def decrypt(self, buffer):
        return decrypt(self, self, buffer)

    def read(self, size, buffer):
        item = self.script.pop(0)
        if isinstance(item, Exception):
            raise item
        buffer[: len(item)] = item
        return len(item)

    def write(self, data):
        self.cipher += bytes(data)

    def send_end(self):
        self.cipher += b"close_notify"

    def flush(self):
        if self.takes:
            self.taken, self.cipher = self.taken + self.cipher, b""
        return self.takes

    def unsent(self):
        return len(self.cipher) + self.in_kernel

    progress = unsent


class Scripted:
    """A session in the states of a row, whose loop does not run."""

    def __init__(self, outgoing, incoming):
        transport, self.far = socket.socketpair()
        transport.setblocking(False)
        self.far.settimeout(WAIT)
        self.loop = Loop()
        self.session = session = Session(
            Stream(transport), ssl.create_default_context(), peer="target", name="tls://x", servername="x"
        )
        self.records = session.records = Records()
        session.io_thread = SimpleNamespace(
            loop=self.loop, buffer=memoryview(bytearray(BUFFER)), release=lambda client: None
        )
        pair = session._pair = PairEnd(self.loop, session._on_inner, self.records.progress, session._expired)
        self.holder = pair.hand_over()
        self.drained = 0
        session.drained(self.count)
        session._begin(pair, Watch(transport, self.loop, lambda event, now: None))
        session.outgoing, session.incoming = outgoing, incoming
        session._settle()

    def count(self):
        self.drained += 1

    def close(self):
        self.session.abandon()
        self.loop.stop()
        self.loop.run()
        self.loop.close()
        self.holder.close()
        self.far.close()

    # -- events --

    def the_holder_ends(self):
        self.holder.shutdown(socket.SHUT_WR)
        self.session._on_inner(IN, 0.0)

    def the_holder_closes(self):
        self.holder.close()
        self.session._on_inner(IN | HUP, 0.0)

    def the_holder_resets(self):
        self.session.aborted = True
        self.session._look()

    def the_holder_takes_all(self):
        self.holder.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                self.holder.recv(1 << 20)
        self.session._on_inner(OUT, 0.0)

    def the_transport_is_full(self):
        self.records.takes = False

    def the_transport_takes_all(self):
        self.records.takes = True
        self.session._on_outer(OUT, 0.0)

    def something_is_unacknowledged(self):
        self.records.in_kernel = 1

    def the_holder_does_not_read(self):
        with pytest.raises(BlockingIOError):
            while True:
                self.session._pair.socket.send(bytes(1 << 16))

    def data(self):
        self.records.script = [b"data", MORE]
        self.session._on_outer(IN, 0.0)

    def half_a_message_has_come(self):
        self.records.held = b""

    def the_message_is_complete(self):
        self.records.held = None
        self.session._settle()

    def close_notify(self):
        self.records.script = [END]
        self.session._on_outer(IN, 0.0)

    def data_and_close_notify(self):
        self.records.script = [b"data", END]
        self.session._on_outer(IN, 0.0)

    def the_transport_ends(self):
        self.session._on_outer(IN, 0.0)

    def nothing_moves(self):
        self.session._expired(0.0)


@pytest.fixture
def scripted():
    yield from makes(Scripted)


OVER, CUT = "over", "cut"
O, I = Outgoing, Incoming  # noqa: E741

ROWS = [
    # outgoing, incoming, events (the last one is the row's), the outgoing and the incoming state then
    (O.OPEN, I.OPEN, "the_transport_is_full the_holder_ends", O.ENDING, I.OPEN),
    (O.OPEN, I.OPEN, "the_transport_is_full the_holder_ends the_transport_takes_all", O.ENDED, I.OPEN),
    (O.OPEN, I.OPEN, "half_a_message_has_come the_holder_ends", O.ENDING, I.OPEN),
    (O.OPEN, I.OPEN, "half_a_message_has_come the_holder_ends the_transport_ends", CUT, I.OPEN),
    (O.OPEN, I.OPEN, "half_a_message_has_come the_holder_ends the_message_is_complete", O.ENDED, I.OPEN),
    (O.ENDED, I.OPEN, "the_holder_closes", O.SHUT, I.OPEN),
    (O.OPEN, I.OPEN, "the_holder_does_not_read data_and_close_notify", O.OPEN, I.ENDING),
    (O.ENDED, I.OPEN, "data", O.ENDED, I.REPLYING),
    (O.OPEN, I.OPEN, "data", O.OPEN, I.OPEN),
    (O.ENDED, I.OPEN, "the_transport_ends", OVER, I.ENDED),
    (O.OPEN, I.OPEN, "the_transport_ends", CUT, I.OPEN),
    (O.ENDED, I.OPEN, "something_is_unacknowledged the_transport_ends", CUT, I.OPEN),
    (O.ENDED, I.REPLYING, "close_notify", OVER, I.ENDED),
    (O.ENDED, I.REPLYING, "the_transport_ends", CUT, I.REPLYING),
    (O.SHUT, I.REPLYING, "the_transport_ends", OVER, I.ENDED),
    (O.SHUT, I.OPEN, "something_is_unacknowledged the_transport_ends", OVER, I.ENDED),
    (O.OPEN, I.OPEN, "the_holder_does_not_read data_and_close_notify the_holder_takes_all", O.OPEN, I.ENDED),
    (O.OPEN, I.ENDED, "the_holder_ends", OVER, I.ENDED),
    (O.OPEN, I.OPEN, "close_notify", O.OPEN, I.ENDED),
    (O.OPEN, I.OPEN, "the_holder_resets", OVER, I.OPEN),
    (O.OPEN, I.OPEN, "nothing_moves", CUT, I.OPEN),
    (O.SHUT, I.OPEN, "nothing_moves", OVER, I.OPEN),
]


@pytest.mark.parametrize(("outgoing", "incoming", "events", "then", "then_incoming"), ROWS)
def test_a_row(scripted, outgoing, incoming, events, then, then_incoming):
    made = scripted(outgoing, incoming)
    for event in events.split():
        getattr(made, event)()
    session = made.session
    assert session.incoming is then_incoming
    assert session.is_over == (then in (OVER, CUT))
    assert (session.error is not None) == (then is CUT)
    if not session.is_over:
        assert session.outgoing is then


def test_the_end_of_the_holder_is_close_notify(scripted):
    made = scripted(O.OPEN, I.OPEN)
    made.the_holder_ends()
    assert made.records.taken == b"close_notify" and made.drained == 1


def test_a_cut_resets_the_holder(scripted):
    made = scripted(O.OPEN, I.OPEN)
    made.data()
    made.the_transport_ends()
    made.loop._close_garbage()
    made.holder.settimeout(WAIT)
    assert ending(made.holder) == "reset"
    assert made.drained == 1 and "without close_notify" in str(made.session.error)


def test_a_holder_waits_while_half_a_message_has_come(scripted):
    made = scripted(O.OPEN, I.OPEN)
    made.half_a_message_has_come()
    made.holder.send(b"later")
    made.session._settle()
    assert not made.session._pair.watch.mask & IN
    assert made.session._has_pending()
    made.the_message_is_complete()
    assert made.session._pair.watch.mask & IN
