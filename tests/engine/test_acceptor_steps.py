"""``relay.engine.acceptor`` step by step: batches, errors and pauses of each kind of acceptor."""

from __future__ import annotations

import errno
import logging
import math
import os
import socket
import ssl
import threading
import time
from types import SimpleNamespace

import pytest
from helpers import WAIT, wait_until

import relay
from relay.engine import acceptor as module
from relay.engine.acceptor import (
    ObjectAcceptor,
    PushAcceptor,
    SocketAcceptor,
    adapt_acceptor,
    check_listener,
    make_acceptor,
)
from relay.eventloop.loop import Timers
from relay.eventloop.poller import IN
from relay.streams.upgrade_listener import UpgradeListener

NOW = 1234.5
PEER = ("192.0.2.7", 5)


class Loop:
    """The loop of the relay thread, which calls at once while it runs."""

    def __init__(self):
        self.timers, self.handlers, self.is_running = Timers(), {}, True

    def watch(self, descriptor, mask, handler):
        self.handlers[descriptor] = handler
        assert mask == IN

    def forget(self, descriptor):
        del self.handlers[descriptor]

    def call(self, function):
        if self.is_running:
            function()
        return self.is_running


class Owner:
    """The relay thread; notes its calls."""

    name, unlimited, hand, spare, here = "it", True, None, True, True

    def __init__(self):
        self.calls, self.loop, self.workspace = [], Loop(), object()
        self.on_accepted = lambda: None

    def accepted(self, client, stream, peer, now):
        self.calls.append(("accepted", stream, peer, now))
        client.close()
        self.on_accepted()

    def hand_of(self, listener):
        return self.hand

    def offered(self, stream, peer, now):
        self.calls.append(("offered", stream, peer, now))

    def has_spare_fd(self):
        return self.spare

    def accept_failed(self, error):
        self.calls.append(("accept_failed", error))

    def make_room(self, now):
        self.calls.append(("make_room", now))

    def is_on_relay_thread(self):
        return self.here

    def named(self, name):
        return [call[1:] for call in self.calls if call[0] == name]


@pytest.fixture
def owner():
    return Owner()


class Client:
    """An accepted socket; notes what is set."""

    def __init__(self):
        self.set = []

    def setblocking(self, flag):
        self.set.append(flag)

    def setsockopt(self, *arguments):
        self.set.append(arguments)

    def close(self):
        self.set.append("closed")


@pytest.fixture
def one(owner, listener):
    """An acceptor that listens, and whose next accepts the test decides: errors, or how many clients."""
    made = SocketAcceptor(owner, listener)
    made.outcomes = []

    def accept():
        outcome = made.outcomes.pop(0) if made.outcomes else BlockingIOError()
        if isinstance(outcome, OSError):
            raise outcome
        return outcome, PEER

    made._accept = accept
    made.listen(True)
    return made


class Upgrading(UpgradeListener):
    """A listener whose clients first shake hands; notes its calls."""

    listening = None

    def __init__(self, listening):
        self.listening, self.calls = listening, []

    def deliver(self, *arguments):
        self.calls.append(arguments)

    def make_room(self, now):
        self.calls.append(now)


def ready(one, *outcomes, good=True):
    """Let it accept in one turn; return what was left.

    :param good: what it returns.
    """
    one.outcomes[:] = outcomes
    assert one._ready(IN, NOW) is good
    return len(one.outcomes)


# -- the listener --------------------------------------------------------------------------------------------------


def test_a_listener_is_set_up(owner, listener):
    one = SocketAcceptor(owner, listener)
    assert not listener.getblocking()
    assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE)
    assert one.listening is False
    assert owner.loop.handlers == {}


def test_a_unix_socket_has_no_delay(owner, tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        SocketAcceptor(owner, listener)
        assert not listener.getblocking()


def test_a_listener_whose_clients_shake_hands_gives_the_tunnel_each_stream(owner, listener, ends):
    asked = []
    owner.hand_of = lambda of: asked.append(of)
    upgrading = Upgrading(listener)
    one = SocketAcceptor(owner, upgrading)
    assert asked == [upgrading]
    assert upgrading.calls == [(None, owner.workspace)]
    one.listen(True)
    assert owner.loop.handlers == {listener.fileno(): one._ready}
    taker, home = upgrading.calls.pop()
    assert home is owner.workspace
    before = time.monotonic()
    taker(stream := relay.Stream(ends[0]), PEER)
    ((name, taken, peer, now),) = owner.calls
    assert (name, taken, peer) == ("offered", stream, PEER)
    assert before <= now <= time.monotonic()
    one.listen(False)
    assert upgrading.calls.pop() == (None, owner.workspace)


def test_it_makes_room_among_those_that_shake_hands(owner, listener):
    owner.spare = False
    upgrading = Upgrading(listener)
    one = SocketAcceptor(owner, upgrading)
    one.listen(True)
    assert one._ready(IN, NOW) is False
    assert upgrading.calls[2:] == [NOW]


def test_it_listens_while_it_should(owner, listener, one):
    assert owner.loop.handlers == {listener.fileno(): one._ready}
    one.listen(True)
    assert one.listening
    one.listen(False)
    assert (owner.loop.handlers, one.listening) == ({}, False)
    one.listen(False)


def test_its_end_closes_the_listener(owner, listener, one):
    one.close()
    assert (owner.loop.handlers, listener.fileno(), one.listening) == ({}, -1, False)
    one.join(WAIT)


def test_a_number_that_another_socket_has_now_is_still_watched(owner, listener, one):
    """Other code has closed the listening socket."""
    other = owner.loop.handlers[listener.fileno()] = object()
    one.listen(False)
    assert owner.loop.handlers == {listener.fileno(): other}


def test_a_socket_that_other_code_has_closed_is_told(owner, listener, caplog):
    one = SocketAcceptor(owner, listener)
    listener.close()
    one.listen(True)
    text = "it: the listening socket was closed by other code; no client is accepted any more"
    assert caplog.record_tuples == [("relay", logging.ERROR, text)]
    assert owner.loop.handlers == {}


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (
            lambda: socket.socket(type=socket.SOCK_DGRAM),
            ValueError,
            "receive: expected a stream socket, got SOCK_DGRAM",
        ),
        (socket.socket, ValueError, "receive: the socket does not listen; call its listen\\(\\) first"),
        (lambda: SimpleNamespace(accept=int), TypeError, "receive: expected a listening socket, or an object with"),
        (lambda: SimpleNamespace(close=int), TypeError, "got SimpleNamespace"),
        (lambda: SimpleNamespace(accept=1, close=int), TypeError, "got SimpleNamespace"),
    ],
)
def test_what_is_no_listener(make, error, text):
    wrong = make()
    with pytest.raises(error, match=text):
        check_listener(wrong)
    with pytest.raises(error, match="^mine: "):
        check_listener(wrong, "mine")
    if isinstance(wrong, socket.socket):
        wrong.close()
        with pytest.raises(ValueError, match="receive: the socket is closed; pass a listening one"):
            check_listener(wrong)


def test_a_tls_socket_is_no_listener():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with socket.socket() as plain, context.wrap_socket(plain, server_side=True) as tls:
        with pytest.raises(TypeError, match="^mine: an SSLSocket cannot listen here"):
            check_listener(tls, "mine")


class Zero(socket.socket):
    """A socket that says to have the number that standard input has elsewhere."""

    def fileno(self):
        return 0


def test_a_listener_may_have_the_number_of_standard_input(owner, listener, one):
    with Zero() as zero:
        zero.bind(("127.0.0.1", 0))
        zero.listen()
        check_listener(zero)
    one._receive = SimpleNamespace(fileno=lambda: 0)
    owner.loop.handlers.clear()
    one._try_again(NOW)
    assert owner.loop.handlers
    one.take_backlog(NOW)
    client = socket.create_connection(listener.getsockname(), WAIT)
    with client:
        one._accept = lambda: (Client(), PEER)
        owner.on_accepted = lambda: one.listen(False)
        one.take_backlog(NOW)
    assert len(owner.named("accepted")) == 1


def test_what_is_a_listener(listener):
    check_listener(listener)
    check_listener(SimpleNamespace(accept=int, close=int))


# -- a batch -------------------------------------------------------------------------------------------------------


def test_a_client_is_accepted(owner, one):
    client = Client()
    ready(one, client)
    assert owner.calls == [("accepted", None, PEER, NOW)]
    assert client.set[0] is False


@pytest.mark.parametrize(("hands_on", "options"), [(True, []), (False, [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)])])
def test_a_system_may_not_hand_the_option_on(one, hands_on, options):
    one._hands_on = hands_on
    client = Client()
    ready(one, client)
    assert client.set == [False, *options, "closed"]
    one._family_is_ip = False
    ready(one, client := Client())
    assert client.set == [False, "closed"]


def test_a_client_that_first_sends_a_request_goes_to_another_hand(owner, listener):
    taken = []
    owner.hand = lambda *arguments: taken.append(arguments)
    one = SocketAcceptor(owner, listener)
    one.listen(True)
    client = Client()
    one._accept = lambda: (client, PEER)
    one._ready(IN, NOW)
    assert taken == [(client, PEER, NOW)]
    assert owner.calls == []


def clients(count):
    return [Client() for _ in range(count)]


def test_a_batch_grows_under_a_storm_and_shrinks_after_it(one):
    for size in (1, 2, 4, 8, 16, 32, 32):
        assert one._batch == size
        for _ in range(4):
            assert ready(one, *clients(size), Client()) == 1
    for size in (16, 8, 4, 2, 1, 1):
        ready(one)
        assert one._batch == size
    for _ in range(3):
        ready(one, Client())
    assert one._batch == 1
    ready(one)
    ready(one, Client())
    assert one._batch == 1, "not in a row"


def test_a_client_that_has_gone_is_no_error(owner, one):
    one._batch = 3
    assert ready(one, Client(), ConnectionAbortedError(), Client(), Client()) == 1
    assert len(owner.named("accepted")) == 2
    assert owner.named("accept_failed") == []


def test_no_client_is_accepted_after_the_room_is_used(owner, one):
    one._batch = 4
    owner.on_accepted = lambda: one.listen(False)
    assert ready(one, *clients(3)) == 2
    assert one._batch == 4


# -- errors --------------------------------------------------------------------------------------------------------


def due(one):
    return one._retry.due


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.EMFILE, "; raise the limit of open files (ulimit -n)"),
        (errno.ENFILE, "; raise the limit of open files (ulimit -n)"),
        (errno.ENOBUFS, ""),
        (errno.ENOMEM, ""),
        (errno.EPERM, ""),
    ],
)
def test_an_error_is_told_and_accepting_is_tried_again(owner, listener, one, caplog, number, hint):
    error = OSError(number, os.strerror(number))
    ready(one, error, Client(), good=False)
    assert one.outcomes
    assert owner.named("accept_failed") == [(error,)]
    text = f"it: cannot accept for now: {os.strerror(number)}{hint}"
    assert caplog.record_tuples == [("relay", logging.WARNING, text)]
    assert owner.named("make_room") == ([] if number == errno.EPERM else [(NOW,)])
    assert (owner.loop.handlers, due(one)) == ({}, NOW + 0.05)
    one._retry.expire(NOW + 0.05)
    assert owner.loop.handlers == {listener.fileno(): one._ready}


def test_an_error_without_a_number_is_told_by_its_text(one, caplog):
    ready(one, OSError("strange"), good=False)
    assert caplog.messages == ["it: cannot accept for now: strange"]


def test_the_pause_doubles_up_to_a_second_and_begins_anew(one, caplog):
    pauses = []
    for _ in range(7):
        one.listen(False)
        one.listen(True)
        ready(one, OSError(errno.EPERM, "not allowed"), good=False)
        pauses.append(due(one) - NOW)
    assert pauses == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0])
    assert len(caplog.messages) == 1, "the first one in a row"
    ready(one, Client())
    ready(one, OSError(errno.EPERM, "not allowed"), good=False)
    assert due(one) == pytest.approx(NOW + 0.05)
    assert len(caplog.messages) == 2


def test_without_a_spare_descriptor_no_client_is_accepted(owner, one, caplog):
    owner.spare = False
    assert ready(one, Client(), good=False) == 1
    (name, error), room = owner.calls
    assert (name, error.errno, room) == ("accept_failed", errno.EMFILE, ("make_room", NOW))
    assert "cannot accept for now: Too many open files; raise the limit" in caplog.text
    assert due(one) == NOW + 0.05


def test_the_pause_ends_with_the_listening(one):
    ready(one, OSError(errno.EPERM, "not allowed"), good=False)
    one.listen(False)
    assert due(one) == math.inf


def test_a_bug_is_a_pause(owner, one):
    one.crashed(NOW)
    assert (owner.loop.handlers, due(one)) == ({}, NOW + 0.05)
    one.listen(False)
    one.crashed(NOW)
    assert due(one) == math.inf


# -- the backlog ---------------------------------------------------------------------------------------------------


@pytest.fixture
def waiting(owner, listener):
    """An acceptor of a listener at which three clients wait."""
    made = SocketAcceptor(owner, listener)
    ends = [socket.create_connection(listener.getsockname(), WAIT) for _ in range(3)]
    made.listen(True)
    yield made
    for end in ends:
        end.close()


def test_the_clients_that_wait_are_accepted_before_the_end(owner, waiting):
    waiting.take_backlog(NOW)
    assert [now for _, _, now in owner.named("accepted")] == [NOW] * 3


def test_as_far_as_there_is_room(owner, waiting):
    owner.on_accepted = lambda: waiting.listen(False)
    waiting.take_backlog(NOW)
    waiting.take_backlog(NOW)
    assert len(owner.named("accepted")) == 1


def test_as_many_as_a_backlog_holds(owner, waiting, monkeypatch):
    monkeypatch.setattr(module, "_MOST_WAITING", 2)
    waiting.take_backlog(NOW)
    assert len(owner.named("accepted")) == 2


def test_no_client_waits(owner, one, monkeypatch):
    calls = []

    class Poll:
        def register(self, *arguments):
            calls.append(arguments)

        def poll(self, *arguments):
            calls.append(arguments)
            return []

    monkeypatch.setattr(module.select, "poll", Poll)
    one.take_backlog(NOW)
    assert calls == [(one._descriptor, module.select.POLLIN), (0,)]
    assert owner.calls == []


def test_not_after_an_error(owner, waiting):
    owner.spare = False
    waiting.take_backlog(NOW)
    assert [name for name, _ in owner.calls] == ["accept_failed", "make_room"]


def test_not_at_a_socket_that_was_closed(owner, waiting, listener):
    listener.close()
    waiting.take_backlog(NOW)
    assert owner.calls == []


# -- a listener object ---------------------------------------------------------------------------------------------


class Listening:
    """A listener object whose next outcomes the test puts in; then it blocks until it is closed."""

    pushes_streams = True

    def __init__(self, *outcomes):
        self.outcomes, self.ended, self.calls = list(outcomes), threading.Event(), []

    def accept(self):
        if self.outcomes:
            outcome = self.outcomes.pop(0)
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome
        assert self.ended.wait(WAIT)
        raise OSError("closed")

    def deliver(self, *arguments):
        self.calls.append(arguments)

    def close(self):
        self.calls.append("close")
        self.ended.set()


@pytest.fixture
def objects(owner):
    """Make an acceptor of an object, which is closed at the end."""
    made = []

    def make(listening):
        made.append(ObjectAcceptor(owner, listening))
        return made[-1]

    yield make
    for one in made:
        one._receive.close = one._receive.ended.set
        one.close()
        one.join(WAIT)
        assert not one.thread.is_alive()


def test_a_thread_of_its_own_accepts(owner, objects, ends):
    one = objects(Listening((ends[0], PEER)))
    assert (one.thread.name, one.thread.daemon, one.listening) == ("it accept", True, False)
    assert owner.calls == []
    before = time.monotonic()
    one.listen(True)
    wait_until(lambda: owner.calls)
    ((name, stream, peer, now),) = owner.calls
    assert (name, stream.socket, peer) == ("offered", ends[0], PEER)
    assert before <= now <= time.monotonic()


def test_a_listener_may_also_return_those_that_it_rejects(owner, objects, ends):
    listening = Listening((ends[0], PEER))
    listening.accept_any, listening.accept = listening.accept, None
    objects(listening).listen(True)
    wait_until(lambda: owner.named("offered"))


def test_it_waits_while_it_does_not_listen(owner, objects, ends):
    listening = Listening((ends[0], PEER), (ends[0], PEER))
    one = objects(listening)
    owner.offered = lambda *arguments: (owner.calls.append(arguments), one.listen(False))
    one.listen(True)
    wait_until(lambda: len(owner.calls) == 1)
    assert len(listening.outcomes) == 1
    one.listen(True)
    wait_until(lambda: len(owner.calls) == 2)


def test_a_stream_after_the_end_of_the_loop_is_reset(owner, objects, ends, monkeypatch):
    resets = []
    monkeypatch.setattr(relay.Stream, "reset", lambda stream: resets.append(stream.socket))
    owner.loop.is_running = False
    objects(Listening((ends[0], PEER))).listen(True)
    wait_until(lambda: resets == [ends[0]])
    assert owner.calls == []


def test_a_bug_in_the_relay_thread_does_not_hold_it_up(owner, objects, ends):
    calls = []

    def call(function):
        calls.append(True)
        try:
            function()
        except ZeroDivisionError:
            calls.append("logged")
        return True

    owner.loop.call = call
    owner.offered = lambda *arguments: 1 / 0
    objects(Listening((ends[0], PEER), (ends[0], PEER))).listen(True)
    wait_until(lambda: calls == [True, "logged"] * 2)


@pytest.fixture
def pauses(monkeypatch):
    """The pauses of acceptors of objects, which do not wait."""
    found = []
    monkeypatch.setattr(ObjectAcceptor, "_wait_to_be_closed", lambda self, seconds: found.append(seconds))
    return found


def test_its_errors_are_told_and_it_goes_on(owner, objects, ends, pauses, caplog):
    errors = [ValueError(f"number {number}") for number in range(7)]
    stream = (ends[0], PEER)
    objects(Listening(*errors, stream, errors[0], stream)).listen(True)
    wait_until(lambda: len(owner.named("offered")) == 2)
    assert owner.named("accept_failed") == [(error,) for error in [*errors, errors[0]]]
    assert pauses == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 0.05])
    assert caplog.messages == ["it: the listener failed: number 0"] * 2
    assert "ValueError" in caplog.text


def test_what_is_no_stream_is_an_error(owner, objects, pauses):
    objects(Listening(("no stream", PEER), "no pair")).listen(True)
    wait_until(lambda: len(owner.named("accept_failed")) == 2)


def test_its_end_is_no_error(owner, caplog):
    listening = Listening()
    one = ObjectAcceptor(owner, listening)
    one.listen(True)
    one.close()
    one.join(WAIT)
    assert not one.thread.is_alive()
    assert (owner.calls, caplog.messages, listening.calls) == ([], [], ["close"])


def test_its_end_ends_a_pause(owner, objects, monkeypatch):
    monkeypatch.setattr(module, "_BACKOFF", (WAIT * 10, WAIT * 10))
    one = objects(Listening(ValueError("no")))
    one.listen(True)
    wait_until(lambda: owner.calls)
    one.close()
    one.join(WAIT)
    assert not one.thread.is_alive()


def test_a_pause_has_an_end(objects, monkeypatch):
    one = objects(Listening())
    waited = []

    def wait_for(condition, *seconds):
        waited.append(seconds)
        return condition()

    with one._changed:
        monkeypatch.setattr(one._changed, "wait_for", wait_for)
    assert one._wait_to_be_closed(0.25) is False
    monkeypatch.undo()
    assert waited == [(0.25,)]


def test_a_join_has_an_end(objects):
    one = objects(Listening())
    one.thread, thread = SimpleNamespace(join=lambda *seconds: joined.append(seconds)), one.thread
    joined = []
    one.join(0.25)
    one.thread = thread
    assert joined == [(0.25,)]


@pytest.mark.parametrize("kind", [ObjectAcceptor, PushAcceptor])
def test_a_listener_that_cannot_be_closed_is_told(owner, kind, caplog):
    listening = Listening()
    listening.close = lambda: 1 / 0
    one = kind(owner, listening)
    one.close()
    assert caplog.messages == ["it: closing the listener failed"]
    assert "ZeroDivisionError" in caplog.text
    one.join(WAIT)


@pytest.mark.parametrize("kind", [ObjectAcceptor, PushAcceptor])
@pytest.mark.parametrize(("seconds", "waits"), [(WAIT, True), (-1.0, False)])
@pytest.mark.parametrize("is_ours", [True, False])
def test_a_join_waits_for_what_a_listener_of_relay_ends(owner, kind, seconds, waits, is_ours):
    listening, joined = Listening(), []
    listening.join = joined.append
    if is_ours:
        listening.accept_any = listening.accept
    one = kind(owner, listening)
    one.close()
    if kind is ObjectAcceptor:
        one.thread.join(WAIT)
    if kind is PushAcceptor or waits:
        one.join(seconds)
    if is_ours and (kind is PushAcceptor or waits):
        assert 0 <= joined[0] <= WAIT
        assert (joined[0] > 0) == waits
    else:
        assert joined == []


# -- a listener that pushes ----------------------------------------------------------------------------------------


def test_streams_are_pushed_while_it_listens(owner):
    listening = Listening()
    one = PushAcceptor(owner, listening)
    assert one.listening is False
    one.listen(True)
    one.listen(True)
    one.listen(False)
    assert listening.calls == [(one._take, owner.loop), (None,)]
    one.close()
    assert listening.calls[2:] == ["close"]


@pytest.mark.parametrize("here", [True, False])
def test_a_stream_is_taken_in_the_relay_thread(owner, ends, here):
    owner.here = here
    owner.loop.is_running = not here
    before = time.monotonic()
    PushAcceptor(owner, Listening())._take(stream := relay.Stream(ends[0]), PEER)
    ((name, taken, peer, now),) = owner.calls
    assert (name, taken, peer) == ("offered", stream, PEER)
    assert before <= now <= time.monotonic()


def test_a_stream_that_is_pushed_after_the_end_is_reset(owner, ends, monkeypatch):
    resets = []
    monkeypatch.setattr(relay.Stream, "reset", lambda stream: resets.append(stream.socket))
    owner.here = owner.loop.is_running = False
    PushAcceptor(owner, Listening())._take(relay.Stream(ends[0]), PEER)
    assert (resets, owner.calls) == ([ends[0]], [])


# -- the kind ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pushes", "unlimited", "kind"),
    [(True, True, PushAcceptor), (True, False, ObjectAcceptor), (False, True, ObjectAcceptor)],
)
def test_the_kind_of_an_acceptor(owner, pushes, unlimited, kind):
    listening = Listening()
    listening.pushes_streams, owner.unlimited = pushes, unlimited
    one = make_acceptor(owner, listening)
    assert type(one) is kind
    assert (one._owner, one._receive) == (owner, listening)
    one.close()
    del listening.calls[:]
    before = PushAcceptor(owner, listening)
    before.listening = True
    after = adapt_acceptor(owner, before, listening)
    assert type(after) is kind
    assert (after is before) == (kind is PushAcceptor)
    assert before.listening is (after is before)
    assert (after._owner, after._receive) == (owner, listening)
    assert listening.calls == ([] if kind is PushAcceptor else [(None,)])
    after.close()
    after.join(WAIT)


def test_a_listener_without_a_word_of_it_does_not_push(owner):
    listening = SimpleNamespace(accept=lambda: None, close=lambda: None)
    one = make_acceptor(owner, listening)
    assert type(one) is ObjectAcceptor
    one.close()
    one.join(WAIT)


def test_other_acceptors_stay(owner, one, objects):
    listening = Listening()
    assert adapt_acceptor(owner, one, None) is one
    assert adapt_acceptor(owner, other := objects(listening), listening) is other


def test_a_socket_has_an_acceptor_in_the_relay_thread(owner, listener):
    one = make_acceptor(owner, listener)
    assert type(one) is SocketAcceptor
    assert (one._owner, one._listener) == (owner, listener)
