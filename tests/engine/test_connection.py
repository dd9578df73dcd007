"""``relay.engine.connection``: each row of its table of states, and clients that are rejected."""

import contextlib
import errno
import logging
import os
import select
import socket
import threading

import pytest
from helpers import WAIT, ended, ending, exchange, receive_exactly, receive_rest, wait_until
from state_table import rows_of

import relay
from relay.access.proxy_header import build_local
from relay.access.senders import parse_senders
from relay.engine import connection as module
from relay.engine import tarpit
from relay.engine.connection import Connection
from relay.engine.header_clients import HeaderClients
from relay.engine.limits import Limits
from relay.engine.records import ConnectionState
from relay.engine.tarpit import take_place
from relay.engine.workspace import Workspace
from relay.eventloop.loop import Loop
from relay.eventloop.sockets import reset
from relay.streams.listener import TunnelListener
from relay.streams.proxy_handshake import ProxyHandshake
from relay.streams.stream import RejectedRequest, Request
from relay.testing import FakeListener, pair

GONE = relay.CarrierError("i2p: gone")


class Words(ProxyHandshake):
    """A proxy's language of two words."""

    def feed(self, data):
        if data == b"ask":
            self.outcome = Request("host", 1, b"yes", lambda reason: f"no: {reason}".encode())
        else:
            self.outcome = RejectedRequest(b"what?", "a bad request")
        return b""


class Attempt:
    """A maker of a stream, which notes what is done with it."""

    def __init__(self):
        self.calls = []

    def abandon(self):
        self.calls.append("abandoned")

    def too_late(self):
        self.calls.append("too late")

    def after_fork(self):
        self.calls.append("after fork")


class Owner:
    """The relay thread of one connection; the test turns its loop and sets its clock."""

    def __init__(self, stack):
        self.name = "t"
        self.labels = {}
        self.limits = Limits(None, 30.0, 60.0, 10.0)
        self.loop = Loop()
        stack.callback(self.loop.close)
        stack.callback(self.loop._close_garbage)
        self.looked_until = 0.0
        self.entrance = self
        self.half_open = {}
        self.has_slot = True
        self.has_question = False
        self.over = []
        self.denials = []
        self.attempt = Attempt()
        self.now = 100.0
        self.stack = stack
        client, self.client = pair(socket.AF_INET)
        self.target, target = pair(socket.AF_INET)
        for end in (self.client, self.target):
            stack.enter_context(end)
            end.settimeout(WAIT)
        for end in (client, target):
            stack.callback(end.close)
            end.setblocking(False)
        self.near = target
        self.stream = None
        self.connection = Connection(self, client, None, "a client", self.now)
        stack.callback(lambda: self.connection.close("closed", self.now))

    # -- what a connection asks of its owner

    def on_request(self, connection, now):
        if self.has_question:
            return connection.wait_for_answer(self.attempt)
        return self.enter(connection)

    def enter(self, connection):
        del self.half_open[connection]
        if self.has_slot:
            self.make_stream()
        else:
            connection.wait_for_slot()

    def on_last_reply(self, connection, now):
        self.half_open[connection] = None

    def close_stream(self, stream, clean):
        if clean:
            self.loop.discard(stream.socket)
        else:
            stream.reset()

    introduce = None

    def admit(self, client, stream, peer, now, count):
        return self.connection

    def count_accepted(self):
        pass

    def read_handshake(self, connection, handshake, now):
        connection.read_request(handshake, now)

    def log_denied(self, connection, now):
        self.denials.append(connection.summary.rule)

    def on_rejected_request(self, connection, rejection, now):
        self.denials.append(rejection.guessed)

    def connection_over(self, connection):
        self.over.append(connection.summary.reason)

    def make_stream(self):
        self.connection.wait_for_target(self.attempt, self.now)
        self.connection.watch_client()

    # -- what a test does

    def turn_until(self, condition):
        """Turn the loop until something is so."""
        for _ in range(int(WAIT / 0.05)):
            if condition():
                break
            for descriptor, event in self.loop.poller.poll(0.05, 128):
                handler = self.loop.handlers.get(descriptor)
                if handler is not None:
                    handler(event, self.now)
        assert condition()
        self.loop._close_garbage()

    def open(self, **stream):
        """Open it; the keywords are attributes of its outgoing stream."""
        if stream:
            half_close, failure = stream.pop("half_close", True), stream.pop("failure", None)
            self.stream = relay.Stream(self.near, half_close=half_close, target="the target", failure=failure)
            for name, value in stream.items():
                setattr(self.stream, name, value)
        self.connection.open(self.near, self.stream, Workspace(self.loop, None), self.now)

    def pass_time(self):
        """Let a limit be reached; while the kernel still sends, a first look postpones it."""
        before = self.state()
        while self.state() == before:
            self.now += 1000.0
            self.loop.timers.run(self.now)

    def state(self):
        return self.connection.state.text


def begin(owner):
    owner.connection.read_request(Words(), owner.now)


def ask(owner):
    begin(owner)
    owner.client.sendall(b"ask")
    owner.turn_until(lambda: owner.state() != "requesting")


def admit(owner):
    owner.half_open[owner.connection] = None
    owner.connection.wait_for_answer(owner.attempt)


def answer_yes(owner):
    owner.connection.pending = None
    owner.enter(owner.connection)


def queue(owner):
    owner.has_slot = False
    ask(owner)


def refuse(owner):
    ask(owner)
    owner.connection.fail("refused", owner.now)


def half_close(owner):
    owner.open()
    owner.target.shutdown(socket.SHUT_WR)
    owner.turn_until(lambda: owner.state() == "half-closed")


def discard(owner):
    owner.open(half_close=False)
    owner.target.close()
    owner.turn_until(lambda: owner.state() == "discarding")


def header(data, handshake=None):
    """In the state *requesting*: the client is one of a balancer, and sends such a header."""

    def event(owner):
        owner.loop.forget(owner.connection.client.fileno())
        owner.clients = HeaderClients(owner, owner, parse_senders(["127.0.0.1"]))
        owner.client.sendall(data)
        owner.clients.read(owner.connection.client, handshake, ("127.0.0.1", 1), owner.now)

    return event


WAYS = {
    "requesting": begin,
    "admitting": admit,
    "queued": queue,
    "connecting": lambda owner: owner.make_stream(),
    "replying": refuse,
    "tarpit": lambda owner: take_place() and owner.connection.keep_in_tarpit(60.0, owner.now),
    "open": lambda owner: owner.open(),
    "half-closed": half_close,
    "discarding": discard,
}


def fresh(**stream):
    """The state *open* with such a stream; then the target ends."""

    def event(owner):
        owner.open(**stream)
        owner.target.shutdown(socket.SHUT_WR)

    return event


def hold_back(owner):
    """The target ends; the client's stream has no half-close."""
    owner.connection.client_stream = relay.Stream(owner.connection.client, half_close=False)
    fresh(answered=True)(owner)


EVENTS = {
    "header": header(b"PROXY TCP4 192.0.2.1 192.0.2.2 3 4\r\n"),
    "header, request follows": header(b"PROXY UNKNOWN\r\n", Words()),
    "header of a check": header(build_local("v2")),
    "bad header": header(b"GET / HTTP/1.1\r\n"),
    "request": lambda owner: owner.client.sendall(b"ask"),
    "bad request": lambda owner: owner.client.sendall(b"nonsense"),
    "request, no slot": lambda owner: (setattr(owner, "has_slot", False), owner.client.sendall(b"ask")),
    "request, question": lambda owner: (setattr(owner, "has_question", True), owner.client.sendall(b"ask")),
    "yes": answer_yes,
    "yes, no slot": lambda owner: (setattr(owner, "has_slot", False), answer_yes(owner)),
    "no": lambda owner: owner.connection.fail("denied", owner.now),
    "no, requested": lambda owner: owner.connection.fail("denied", owner.now),
    "client gone": lambda owner: reset(owner.client),
    "limit": Owner.pass_time,
    "crowded out": lambda owner: owner.connection.give_way(owner.now),
    "slot": Owner.make_stream,
    "stream": Owner.open,
    "no stream": lambda owner: owner.connection.fail("refused", owner.now),
    "no stream, requested": lambda owner: owner.connection.fail("refused", owner.now),
    "replied": lambda owner: owner.client.shutdown(socket.SHUT_WR),
    "EOF": lambda owner: owner.client.shutdown(socket.SHUT_WR),
    "EOF, sink has no half-close": hold_back,
    "EOF, source has no half-close": fresh(half_close=False),
    "EOF, target unconfirmed": fresh(answered=False),
    "EOF, cause not known yet": fresh(settle=1000.0),
    "failure of the stream": fresh(failure=lambda: GONE),
    "reset": lambda owner: reset(owner.client),
    "denied, tarpit": lambda owner: take_place() and owner.connection.keep_in_tarpit(60.0, owner.now),
    "close": lambda owner: owner.connection.close("closed", owner.now),
    "fork": lambda owner: (owner.connection.after_fork(), tarpit._places.after_fork()),
}
# The reason, and what the client sees: how its stream ends, bytes, or None for nothing, or because it has gone.
STATE_ROWS = [
    ("requesting", "header", "connecting", None, None),
    ("requesting", "header, request follows", "requesting", None, None),
    ("requesting", "header of a check", "replying", None, "end of file"),
    ("requesting", "bad header", "closed", "denied", "reset"),
    ("requesting", "request", "connecting", None, None),
    ("requesting", "request, no slot", "queued", None, None),
    ("requesting", "request, question", "admitting", None, None),
    ("requesting", "bad request", "replying", None, b"what?"),
    ("requesting", "client gone", "closed", "client_reset", None),
    ("requesting", "limit", "closed", "connect_timeout", "reset"),
    ("requesting", "crowded out", "closed", "overloaded", "reset"),
    ("admitting", "yes", "connecting", None, None),
    ("admitting", "yes, no slot", "queued", None, None),
    ("admitting", "no", "closed", "denied", "reset"),
    ("admitting", "no, requested", "replying", None, b"no: denied"),
    ("admitting", "client gone", "closed", "client_reset", None),
    ("admitting", "limit", "closed", "connect_timeout", "reset"),
    ("admitting", "crowded out", "closed", "overloaded", "reset"),
    ("queued", "slot", "connecting", None, None),
    ("queued", "client gone", "closed", "client_reset", None),
    ("queued", "limit", "replying", None, b"no: connect_timeout"),
    ("connecting", "stream", "open", None, None),
    ("connecting", "no stream", "closed", "refused", "reset"),
    ("connecting", "no stream, requested", "replying", None, b"no: refused"),
    ("connecting", "client gone", "closed", "client_reset", None),
    ("connecting", "limit", "closed", "connect_timeout", "reset"),
    ("connecting", "denied, tarpit", "tarpit", None, None),
    ("tarpit", "client gone", "closed", "denied", None),
    ("tarpit", "limit", "closed", "denied", "reset"),
    ("tarpit", "crowded out", "closed", "denied", "reset"),
    ("replying", "replied", "closed", "refused", b"no: refused"),
    ("replying", "crowded out", "closed", "refused", b"no: refused"),
    ("open", "EOF", "half-closed", None, None),
    ("open", "EOF, sink has no half-close", "half-closed", None, None),
    ("open", "EOF, source has no half-close", "discarding", None, "end of file"),
    ("open", "EOF, target unconfirmed", "closed", "unreachable", "reset"),
    ("open", "EOF, cause not known yet", "open", None, None),
    ("open", "failure of the stream", "closed", "carrier_lost", "reset"),
    ("open", "reset", "closed", "client_reset", None),
    ("open", "limit", "closed", "idle", "reset"),
    ("half-closed", "EOF", "closed", "done", "end of file"),
    ("half-closed", "reset", "closed", "client_reset", None),
    ("half-closed", "limit", "closed", "linger", None),
    ("discarding", "EOF", "closed", "done", "end of file"),
    ("discarding", "limit", "closed", "done", "end of file"),
    ("any", "close", "closed", "closed", None),
    ("any", "fork", "closed", None, None),
]
WITH_STREAM = [event for event in EVENTS if event.startswith("EOF,")] + ["failure of the stream"]


@pytest.fixture
def owner():
    with contextlib.ExitStack() as stack:
        yield Owner(stack)


def go_to(owner, state, event):
    if event == "no, requested":
        owner.has_question = True
        ask(owner)
        assert owner.state() == "admitting"
    elif event == "no stream, requested":
        ask(owner)
    elif event == "denied, tarpit":
        assert owner.state() == state  # from the beginning
    elif event not in WITH_STREAM:  # these open it with a stream of their own
        WAYS[state](owner)
        assert owner.state() == state


@pytest.mark.parametrize(
    ("state", "event", "following", "reason", "client"), [row for row in STATE_ROWS if row[0] != "any"]
)
def test_each_row_of_the_table(owner, state, event, following, reason, client):
    go_to(owner, state, event)
    before = len(owner.attempt.calls)
    EVENTS[event](owner)
    if event == "EOF, cause not known yet":
        owner.turn_until(lambda: owner.stream.settle < 0)
    owner.turn_until(lambda: owner.state() == following)
    assert owner.connection.summary.reason == reason and owner.over == ([] if reason is None else [reason])
    assert reason is None or owner.connection.summary.finished == owner.now
    if isinstance(client, bytes):
        assert receive_rest(owner.client) == client
    elif client is not None:
        assert ending(owner.client) == client
    if state == "connecting" and following not in ("open", "tarpit"):
        expected = ["too late", "abandoned"] if event == "limit" else ["abandoned"]
        assert owner.attempt.calls[before:] == expected


@pytest.mark.parametrize("state", WAYS)
def test_every_state_can_be_closed(owner, state):
    go_to(owner, state, "close")
    EVENTS["close"](owner)
    owner.connection.close("again", owner.now)
    assert owner.state() == "closed" and owner.over == ["closed"]
    assert len(owner.loop.handlers) == 1, "that of its own wake-up"


@pytest.mark.parametrize("state", WAYS)
def test_a_forked_child_closes_its_descriptors_in_every_state(owner, state):
    go_to(owner, state, "fork")
    EVENTS["fork"](owner)
    assert owner.state() == "closed" and owner.over == [] and owner.connection.client.fileno() < 0
    assert state not in ("open", "half-closed", "discarding") or owner.near.fileno() < 0


def test_the_table_has_these_rows():
    assert rows_of(module) == [row[:3] for row in STATE_ROWS]


# -- its end, at the sockets ------------------------------------------------------------------------------------------


def test_a_client_may_get_an_end_of_file_for_a_denial(owner):
    owner.connection.fail("denied", owner.now, clean=True)
    assert owner.client.recv(1) == b""
    owner.client.close()
    owner.turn_until(lambda: owner.state() == "closed")
    assert owner.over == ["denied"]


def test_a_bad_request_has_its_reason_in_the_record(owner):
    begin(owner)
    owner.client.sendall(b"nonsense")
    owner.turn_until(lambda: owner.state() == "replying")
    assert receive_rest(owner.client) == b"what?"
    owner.client.close()
    owner.turn_until(lambda: owner.state() == "closed")
    assert owner.over == ["denied"]


def test_a_stream_that_is_not_used_is_reset_and_its_client_told(owner):
    owner.connection.summary.request = Request("db", 1, b"yes", lambda reason: f"no: {reason}".encode())
    owner.connection.target = owner.near
    owner.connection.fail("refused", owner.now)
    assert owner.client.recv(100) == b"no: refused"
    owner.turn_until(lambda: True)
    assert ending(owner.target) == "reset"
    owner.connection.close("done", owner.now)
    owner.connection.fail("late", owner.now)
    assert owner.over == ["done"] and owner.state() == "closed"


@pytest.mark.parametrize(
    ("reason", "options", "half_close", "asked", "target"),
    [
        ("idle", {}, True, False, "reset"),
        ("idle", {"clean_target": True}, True, False, "end of file"),
        ("idle", {"clean": True}, True, False, "end of file"),
        ("done", {}, True, False, "end of file"),
        ("linger", {}, False, True, "end of file"),  # it has everything, and no half-close tells it so
        ("linger", {}, True, True, "reset"),
        ("linger", {}, False, False, "reset"),
        ("idle", {}, False, True, "reset"),
    ],
)
@pytest.mark.parametrize("has_unread", [True, False])
def test_what_its_target_sees_of_its_end(owner, reason, options, half_close, asked, target, has_unread):
    owner.open(half_close=half_close, answered=True)
    if asked:
        owner.client.shutdown(socket.SHUT_WR)
        owner.turn_until(lambda: owner.state() == "half-closed")
        if half_close:
            assert owner.target.recv(1) == b""
    if has_unread:
        owner.target.sendall(b"unread")
    owner.connection.close(reason, owner.now, **options)
    owner.turn_until(lambda: True)
    is_clean = options.get("clean") or reason == "done"
    if has_unread and is_clean:
        return  # the kernel resets it, before or after the end of file
    if target == "end of file" or not (asked and half_close):
        assert ending(owner.target) == target
    assert ending(owner.client) == ("end of file" if is_clean else "reset")


def test_a_target_that_has_gone_is_no_error(owner):
    owner.open()
    reset(owner.target)
    owner.connection.close("idle", owner.now, clean_target=True)
    assert owner.over == ["idle"]


def test_a_record_that_is_read_while_it_ends_is_that_of_the_summary(owner):
    """Another thread reads it, and finds flows that are released."""
    owner.open()
    summary = owner.connection.summary
    summary.received, summary.sent = 1, 2
    flows, owner.connection.flows = owner.connection.flows, object()
    record = owner.connection.record(owner.now)
    assert (record.received, record.sent, owner.connection.bytes_moved()) == (1, 2, (1, 2, 0, 0))
    owner.connection.flows = flows


def test_its_text_has_its_client_its_target_and_its_state(owner):
    assert repr(owner.connection) == "<connection from a client to None: connecting>"
    owner.connection.summary.target = "db:5432"
    owner.connection.close("idle", owner.now)
    assert repr(owner.connection) == "<connection from a client to db:5432: idle>"


def test_keepalive_that_the_kernel_does_not_have_is_no_error(owner, caplog):
    owner.open()
    caplog.set_level(logging.DEBUG, "relay")
    with socket.socket() as wrong:
        wrong.close()
        owner.connection.target, target = wrong, owner.connection.target
        owner.connection.lasts(owner.now)
        owner.connection.target = target
    assert owner.connection.client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    problem = f"[Errno {errno.EBADF}] {os.strerror(errno.EBADF)}"
    assert caplog.messages == [f"{owner.connection!r}: keep-alive: {problem}"]


@pytest.mark.parametrize(("error", "is_gone"), [(True, True), (False, False)])
def test_an_error_queue_is_no_hang_up(owner, error, is_gone):
    """Such as time stamps: the kernel reports them as an error, and the socket has none."""
    if error:
        reset(owner.client)
    owner.connection.client_event(select.POLLERR, owner.now)
    assert owner.connection.is_closed is is_gone


def test_records_have_four_words_for_the_states():
    words = {state.text: state.reported for state in ConnectionState}
    assert {state for state, word in words.items() if word == "connecting"} == set(list(WAYS)[:6])
    assert words["discarding"] == words["half-closed"] == "half-closed"
    assert words["open"] == "open" and words["closed"] == "closed"


class World:
    """A tunnel whose listener is fake."""

    def __init__(self, stack, **options):
        self.stack = stack
        self.far = []
        self.listener = FakeListener()
        self.tunnel = stack.enter_context(
            relay.Tunnel(self.listener, self.make, name="t", timeout=None, linger=None, **options)
        )

    def make(self):
        near, far = pair(socket.AF_INET)
        far.settimeout(WAIT)
        self.far.append(self.stack.enter_context(far))
        return near

    def connect(self):
        """A new client, and the far end of its stream."""
        client = self.stack.enter_context(self.listener.connect(socket.AF_INET))
        client.settimeout(WAIT)
        wait_until(lambda: self.far)
        return client, self.far[-1]


@pytest.fixture
def world():
    with contextlib.ExitStack() as stack:
        yield lambda **options: World(stack, **options)


# -- clients that are rejected ----------------------------------------------------------------------------------------


def denied(family=socket.AF_INET):
    """A stream whose client is not let in, and the client."""
    near, client = pair(family)
    client.settimeout(WAIT)
    stream = relay.Stream(near, half_close=False)
    stream.denied = relay.ConnectError("x.b32.i2p is on the list of those who are not let in", reason="denied")
    return stream, client


def test_a_denied_client_is_reset_and_told_of(world, caplog):
    one = world()
    closed = threading.Event()
    stream, client = denied()
    stream.on_close = closed.set
    with client:
        one.listener.put(stream, "the peer")
        assert ending(client) == "reset"
    assert closed.wait(WAIT)
    assert ended(one.tunnel) == ["denied"]
    record = one.tunnel.recent()[0]
    assert record.rule == "access-list"
    assert record.peer == "the peer" and record.target is None and record.received == record.sent == 0
    assert one.tunnel.stats().failed == {"denied": 1} and one.tunnel.stats().accepted == 1
    assert "t: x.b32.i2p is on the list of those who are not let in" in caplog.text
    assert not one.far, "nothing was made for it"


def test_denied_clients_hold_no_slot(world):
    one = world(nconnect=1)
    for _ in range(3):
        stream, client = denied()
        with client:
            one.listener.put(stream)
            assert ending(client) == "reset"
    exchange(*one.connect())


def test_a_listener_that_hands_out_denied_clients_is_asked_for_them(world):
    class Strict(FakeListener, TunnelListener):
        def accept_any(self):
            return super().accept()

        def accept(self):
            raise AssertionError("this one would leave no record")

    listener = Strict()
    with relay.Tunnel(listener, lambda: pytest.fail("it is denied")) as tunnel:
        stream, client = denied()
        with client:
            listener.put(stream)
            assert ending(client) == "reset"
        assert ended(tunnel) == ["denied"]


def test_a_denied_client_of_a_tunnel_that_is_paused_is_let_go(world):
    one = world()
    one.tunnel.pause()
    stream, client = denied()
    with client:
        one.listener.put(stream)
        one.tunnel.resume()
        assert ending(client) == "reset"


# -- what a listener knows of a client ---------------------------------------------------------------------------------


@pytest.mark.parametrize("early", [b"", b"early"])
def test_a_stream_brings_what_its_listener_knows(early):
    listener, reply = FakeListener(), b"welcome"
    near, client = pair(socket.AF_INET)
    stream = relay.Stream(near)
    stream.request = Request("db", 5432, reply, lambda reason: b"no", early)
    stream.identity, stream.server_name = relay.Identity("i2p", "somebody"), "db.example"
    asked = []

    def factory(destination, identity):
        asked.append((str(destination), identity))
        return world

    world, far = pair(socket.AF_INET)
    client.settimeout(WAIT)
    far.settimeout(WAIT)
    with client, far, relay.Tunnel(listener, factory, tag="mine") as tunnel:
        listener.put(stream, ("192.0.2.7", 5))
        assert receive_exactly(client, len(reply)) == reply
        assert receive_exactly(far, len(early)) == early
        exchange(client, far)
        (record,) = tunnel.connections()
        assert (record.target, record.identity, record.server_name) == ("db:5432", stream.identity, "db.example")
        assert record.tag == "mine"
    assert asked == [("db:5432", stream.identity)]
    assert tunnel.recent()[0].tag == "mine"


def test_a_proxy_client_that_goes_before_its_reply_is_client_reset():
    listener = FakeListener()
    near, client = pair(socket.AF_INET)
    stream = relay.Stream(near)
    stream.request = Request("db", 5432, b"welcome", lambda reason: b"no")
    made, far = pair(socket.AF_INET)

    @relay.nonblocking
    def factory():
        reset(client)
        return made

    far.settimeout(WAIT)
    with far, relay.Tunnel(listener, factory) as tunnel:
        listener.put(stream)
        assert ended(tunnel) == ["client_reset"]
        assert ending(far) == "reset"
