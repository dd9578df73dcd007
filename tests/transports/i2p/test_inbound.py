"""Streams that come in by ACCEPT and by FORWARD, whatever the router says."""

import contextlib
import functools
import queue
import socket
import threading

import pytest
from helpers import WAIT, makes, receive_exactly, wait_until
from sam_rig import DEST, OK, ScriptedBridge

from relay.addresses.destinations import Peer
from relay.errors import ConnectError
from relay.streams.stream import Stream
from relay.transports.i2p import inbound
from relay.transports.i2p.inbound import AcceptStreams, ForwardStreams

PEER = f"{DEST} FROM_PORT=7 TO_PORT=80"


@pytest.fixture
def scripted():
    made = ScriptedBridge()
    made.hello = ["HELLO REPLY RESULT=OK VERSION=3.1"]
    yield made
    made.close()


@pytest.fixture(autouse=True)
def prompt(times):
    times(accept_again=(0.01, 0.05))


class Entrance:
    """A way in for the session, and what it tells."""

    def __init__(self, kind, opened, **options):
        self.opened = opened
        self.scripted = opened.scripted
        self.on_stream = queue.SimpleQueue()
        self.on_ready = queue.SimpleQueue()
        given = {"lookup": None, "loop": None} | options if kind is ForwardStreams else options
        self.way = kind(opened.session, self._pass_on, lambda way, error: self.on_ready.put(error), **given)

    def _pass_on(self, stream, peer):
        self.on_stream.put((stream, peer))

    def call(self, function, *arguments):
        """Call it in the I/O thread, and wait for that."""
        done = threading.Event()
        self.way.io_thread.loop.call(lambda: (function(*arguments), done.set()))
        assert done.wait(WAIT)

    def begin(self):
        """Ask, and wait until it is granted."""
        self.call(self.way.begin)
        assert self.on_ready.get(timeout=WAIT) is None
        return self

    def stream(self):
        """The next stream and who it comes from."""
        stream, peer = self.on_stream.get(timeout=WAIT)
        stream.socket.settimeout(WAIT)
        return stream, peer

    def trouble(self):
        """The next error that is reported."""
        while (error := self.on_ready.get(timeout=WAIT)) is None:
            pass
        return error

    def asked(self):
        """Return how often streams were asked for."""
        return sum(line.startswith("STREAM ") for line in self.scripted.asked)

    def close(self):
        self.call(self.way.close)
        with contextlib.suppress(queue.Empty):
            while True:
                self.on_stream.get_nowait()[0].close()


@pytest.fixture
def enter(opened):
    yield from makes(lambda kind, **options: Entrance(kind, opened, **options))


def hand_over(scripted):
    """An answer after which the connection is the test's."""

    def answer(end):
        end.say(OK)
        scripted.streams.put(end)
        end.over.wait()

    return answer


def connect(entrance):
    """A connection to the port, as the router makes it."""
    (forward,) = [line for line in entrance.scripted.asked if line.startswith("STREAM FORWARD")][-1:]
    port = int(forward.partition(" PORT=")[2].split()[0])
    made = socket.create_connection(("127.0.0.1", port), WAIT)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


class Router:
    """Hands streams over, in either way."""

    def __init__(self, entrance, scripted):
        self._entrance = entrance
        self._scripted = scripted

    def hand_over(self, *pieces):
        """A stream that begins with these bytes; returns the router's end."""
        forwards = isinstance(self._entrance.way, ForwardStreams)
        end = connect(self._entrance) if forwards else self._scripted.stream()
        for piece in pieces:
            end.sendall(piece)
        return end


@pytest.fixture(params=[AcceptStreams, ForwardStreams])
def router(request, enter, scripted):
    """A way in that is open, and a router that uses it."""
    scripted.answers.extend([hand_over(scripted)] * 20 if request.param is AcceptStreams else [])
    made = Router(enter(request.param).begin(), scripted)
    made.entrance = made._entrance
    return made


# -- what comes --


def test_a_stream_comes_with_who_connects_and_its_ports(router):
    with contextlib.closing(router.hand_over(f"{PEER}\n".encode())):
        stream, peer = router.entrance.stream()
        with stream:
            assert isinstance(peer, Peer)
            assert (peer, peer.port, peer.to_port) == (DEST, 7, 80)
            assert not stream.half_close
            assert stream.settle == 0.05
            assert router.entrance.way.delivered


def test_the_stream_is_counted_until_it_is_over(router):
    with contextlib.closing(router.hand_over(f"{DEST}\n".encode())):
        stream, _ = router.entrance.stream()
        session = router.entrance.opened.session
        assert session.streams == 1
        stream.close()
        assert session.streams == 0


def test_the_end_of_the_session_is_the_failure_of_its_streams(router):
    with contextlib.closing(router.hand_over(f"{DEST}\n".encode())):
        stream, _ = router.entrance.stream()
        with stream:
            assert stream.failure() is None
            router.entrance.opened.far_control.close()
            router.entrance.opened.lost.get(timeout=WAIT)
            assert "ended the session" in str(stream.failure())


# -- ACCEPT --


def test_one_accept_waits_where_the_bridge_speaks_3_1(enter, scripted):
    entrance = enter(AcceptStreams).begin()
    assert entrance.asked() == 1


def test_several_accepts_wait_where_it_speaks_more(enter, scripted, opened):
    opened.bridge.version = "3.3"
    entrance = enter(AcceptStreams)
    entrance.call(entrance.way.begin)
    for _ in range(inbound.SEVERAL):
        assert entrance.on_ready.get(timeout=WAIT) is None
    assert entrance.asked() == inbound.SEVERAL


def test_who_connects_may_be_said_before_ok(enter, scripted):
    """i2pd 2.45 does so now and then, where streams wait already."""

    def answer(end):
        end.say(DEST)
        scripted.streams.put(end)
        end.over.wait()

    scripted.answers.append(answer)
    entrance = enter(AcceptStreams)
    entrance.call(entrance.way.begin)
    with contextlib.closing(scripted.stream()) as end:
        end.say(OK, more=b"bytes")
        stream, peer = entrance.stream()
        with stream:
            assert peer == DEST
            assert receive_exactly(stream.socket, 5) == b"bytes"


def test_an_error_that_comes_after_ok_is_no_stream(enter, scripted):
    scripted.answers.append(hand_over(scripted))
    entrance = enter(AcceptStreams).begin()
    scripted.stream().say("STREAM STATUS RESULT=I2P_ERROR")
    assert entrance.trouble().result == "I2P_ERROR"
    assert entrance.on_ready.get(timeout=WAIT) is None
    assert entrance.asked() == 2
    assert entrance.on_stream.empty()


@pytest.mark.parametrize("answer", ["STREAM STATUS RESULT=ALREADY_ACCEPTING", "SESSION STATUS RESULT=I2P_ERROR"])
def test_what_the_bridge_does_not_serve_there_is_less_of(enter, scripted, opened, answer):
    opened.bridge.version = "3.3"
    scripted.answers.extend([OK, OK, *[answer] * (inbound.SEVERAL - 2)])
    entrance = enter(AcceptStreams)
    entrance.call(entrance.way.begin)
    wait_until(lambda: sum(end.over.is_set() for end in scripted.ends) == inbound.SEVERAL - 2)
    assert entrance.on_ready.get(timeout=WAIT) is None
    assert entrance.on_ready.get(timeout=WAIT) is None
    assert entrance.on_ready.empty(), "nothing is wrong while one waits"
    assert entrance.asked() == inbound.SEVERAL


def test_a_router_that_does_not_know_the_session_ends_it(enter, scripted, opened):
    scripted.answers.append("STREAM STATUS RESULT=INVALID_ID")
    entrance = enter(AcceptStreams)
    entrance.call(entrance.way.begin)
    assert "no longer knows the session" in str(opened.lost.get(timeout=WAIT))


def test_an_accept_that_is_ended_after_a_while_is_mended_without_a_word(enter, scripted, times):
    times(accept_is_steady=0.0)
    scripted.answers.append(hand_over(scripted))
    entrance = enter(AcceptStreams).begin()
    scripted.stream().close()
    assert entrance.on_ready.get(timeout=WAIT) is None
    assert entrance.asked() == 2


def test_an_accept_that_is_ended_at_once_again_and_again_is_told(enter, scripted):
    scripted.answers.extend([lambda end: end.say(OK)] * 3)
    entrance = enter(AcceptStreams)
    entrance.call(entrance.way.begin)
    for _ in range(3):
        assert "closed the connection" in str(entrance.trouble())


def test_of_the_end_of_the_session_nothing_is_told_here(enter, scripted, opened):
    scripted.answers.append(hand_over(scripted))
    entrance = enter(AcceptStreams).begin()
    opened.far_control.close()
    opened.lost.get(timeout=WAIT)
    scripted.stream().close()
    wait_until(lambda: entrance.asked() == 2)
    assert entrance.on_ready.get(timeout=WAIT) is None, "and no error before it"


def test_silence_is_not_waited_for_without_end(enter, scripted, times):
    times(accept_answer=0.1)
    scripted.answers.append("")
    entrance = enter(AcceptStreams)
    entrance.call(entrance.way.begin)
    error = entrance.trouble()
    assert isinstance(error, ConnectError)
    assert error.reason == "connect_timeout"
    wait_until(lambda: entrance.on_ready.get(timeout=WAIT) is None)  # the next answers may be late, too


def test_while_it_is_held_no_more_are_asked_for(enter, scripted):
    scripted.answers.extend([hand_over(scripted)] * 2)
    entrance = enter(AcceptStreams).begin()
    entrance.call(entrance.way.pause, True)
    with contextlib.closing(scripted.stream()) as end:
        end.say(DEST)
        entrance.stream()[0].close()
        assert entrance.asked() == 1
        entrance.call(entrance.way.pause, False)
        assert entrance.on_ready.get(timeout=WAIT) is None
        assert entrance.asked() == 2


def test_a_bridge_that_cannot_be_reached_any_more_is_tried_again(enter, scripted, opened):
    scripted.hello = ["HELLO REPLY RESULT=I2P_ERROR"] * 2
    entrance = enter(AcceptStreams)
    entrance.call(entrance.way.begin)
    entrance.trouble()
    entrance.trouble()
    assert entrance.on_ready.get(timeout=WAIT) is None


@pytest.mark.parametrize("kind", [AcceptStreams, ForwardStreams])
@pytest.mark.parametrize("when", ["before HELLO", "before the answer", "open", "between two tries"])
def test_it_can_be_closed_at_any_time(enter, scripted, kind, when, times):
    if when == "before HELLO":
        scripted.hello = [None]
    elif when == "before the answer":
        scripted.answers.append("")
    elif when == "between two tries":
        scripted.answers.append("STREAM STATUS RESULT=I2P_ERROR")
        times(accept_again=(WAIT, WAIT))
    entrance = enter(kind)
    hellos = len(scripted.hellos)
    entrance.call(entrance.way.begin)
    wait_until(lambda: len(scripted.hellos) > hellos if when == "before HELLO" else entrance.asked())
    if when == "open":
        entrance.on_ready.get(timeout=WAIT)
    elif when == "between two tries":
        wait_until(lambda: any(end.over.is_set() for end in scripted.ends))  # no error is reported yet
    talks = [end for end in scripted.ends if "".join(end.asked).startswith("STREAM ")] or scripted.ends[-1:]
    entrance.call(entrance.way.close)
    asked = entrance.asked()
    wait_until(lambda: all(end.over.is_set() for end in talks))
    assert entrance.asked() == asked
    assert entrance.on_ready.empty()


# -- FORWARD --


def test_the_router_is_given_a_port_of_the_loopback(enter, scripted):
    entrance = enter(ForwardStreams).begin()
    with connect(entrance) as end:
        host, port = end.getpeername()
        assert host == "127.0.0.1" and port > 1023
        assert scripted.asked[-1] == f"STREAM FORWARD ID=ours PORT={port} SILENT=false"


def test_a_forward_that_has_ended_is_asked_for_again(enter, scripted, times):
    times(accept_is_steady=0.0)
    scripted.answers.append(hand_over(scripted))
    entrance = enter(ForwardStreams).begin()
    scripted.stream().close()
    assert entrance.on_ready.get(timeout=WAIT) is None
    assert entrance.asked() == 2
    with connect(entrance) as end:
        end.sendall(f"{DEST}\n".encode())
        entrance.stream()[0].close()


def test_what_is_under_a_stream_is_let_go_of_with_it(enter):
    """A stream over SSH keeps its channel until it is closed."""
    entrance = enter(AcceptStreams)
    ours, theirs = socket.socketpair()
    over = []
    with theirs:
        under = Stream(ours, on_close=functools.partial(over.append, "channel"))
        entrance.way._pass_on(under, Peer(DEST))
        entrance.stream()[0].close()
    assert over == ["channel"]
    assert entrance.opened.session.streams == 0
