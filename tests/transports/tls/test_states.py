"""``relay.transports.tls.states``: every row of the tables, with records that a test scripts."""

from __future__ import annotations

import socket
import ssl
from types import SimpleNamespace

import pytest
from helpers import WAIT, ending

from relay.eventloop.background import BUFFER, Watch
from relay.eventloop.loop import Loop
from relay.eventloop.poller import HUP, IN, OUT
from relay.streams.pair_end import PairEnd
from relay.streams.stream import Stream
from relay.transports.tls.records import decrypt
from relay.transports.tls.session import Session
from relay.transports.tls.states import Incoming, Outgoing

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


class Rig:
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
def rig():
    made = []

    def make(outgoing, incoming):
        made.append(Rig(outgoing, incoming))
        return made[-1]

    yield make
    for one in made:
        one.close()


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
def test_a_row(rig, outgoing, incoming, events, then, then_incoming):
    made = rig(outgoing, incoming)
    for event in events.split():
        getattr(made, event)()
    session = made.session
    assert session.incoming is then_incoming
    assert session.is_over == (then in (OVER, CUT))
    assert (session.error is not None) == (then is CUT)
    if not session.is_over:
        assert session.outgoing is then


def test_the_end_of_the_holder_is_close_notify(rig):
    made = rig(O.OPEN, I.OPEN)
    made.the_holder_ends()
    assert made.records.taken == b"close_notify" and made.drained == 1


def test_of_a_holder_that_has_closed_the_far_end_sees_the_end(rig):
    made = rig(O.ENDED, I.OPEN)
    made.the_holder_closes()
    assert made.far.recv(1) == b""


def test_the_end_is_passed_on_to_the_holder(rig):
    made = rig(O.OPEN, I.OPEN)
    made.data_and_close_notify()
    made.holder.settimeout(WAIT)
    assert made.holder.recv(10) == b"data" and made.holder.recv(10) == b""


def test_a_cut_resets_the_holder(rig):
    made = rig(O.OPEN, I.OPEN)
    made.data()
    made.the_transport_ends()
    made.loop._close_garbage()
    made.holder.settimeout(WAIT)
    assert ending(made.holder) == "reset"
    assert made.drained == 1 and "without close_notify" in str(made.session.error)


def test_a_holder_waits_while_half_a_message_has_come(rig):
    made = rig(O.OPEN, I.OPEN)
    made.half_a_message_has_come()
    made.holder.send(b"later")
    made.session._settle()
    assert not made.session._pair.watch.mask & IN
    assert made.session._has_pending()
    made.the_message_is_complete()
    assert made.session._pair.watch.mask & IN
