"""WebSockets as streams: what their messages do to a tunnel, and what it answers."""

import contextlib
import errno
import logging
import math
import os
import socket
import time

import pytest

pytest.importorskip("wsproto")

from helpers import WAIT, Thread, ended, ending, receive_all, receive_exactly, send_and_end, wait_until
from proxy_world import LOOPBACK
from websocket_world import raw

import relay
from relay.eventloop.background import BUFFER, IOThread
from relay.eventloop.loop import Loop
from relay.streams import exit_drain
from relay.streams.pair_end import LINGER
from relay.streams.session_socket import SessionSocket
from relay.streams.stream import Stream
from relay.transports.websocket.frames import BINARY, CLOSE, PING, PONG, TEXT, Decoder, close_payload, frame
from relay.transports.websocket.opening import RELAY
from relay.transports.websocket.session import DATA, END, PING_EVERY, RESET, WebSocket, WebSocketError, WebSocketStream

OFFER = f"Sec-WebSocket-Protocol: {RELAY}"


class Far:
    """The far end of a relay, which the test plays itself."""

    def __init__(self, tunnel, *lines):
        self.socket, answer = raw(tunnel.address[1], "/", *lines)
        self.socket.settimeout(WAIT)
        assert answer.startswith(b"HTTP/1.1 101 "), answer
        self.decoder = Decoder(is_masked=False)

    def send(self, opcode, payload=b""):
        self.socket.sendall(frame(opcode, payload, is_masked=True))

    def frames(self, count=1):
        """The next frames."""
        found = []
        while len(found) < count and (data := self.socket.recv(65536)):
            found += [(kind, bytes(part)) for kind, part in self.decoder.feed(data)]
        return found


@pytest.fixture
def target():
    """A listening socket, to which the tunnel connects."""
    with socket.create_server((LOOPBACK, 0)) as made:
        made.settimeout(WAIT)
        yield made


@pytest.fixture
def tunnel(target):
    with relay.Tunnel(relay.listen(f"ws://{LOOPBACK}:0"), relay.target(target.getsockname()[1]), timeout=None) as made:
        yield made


def accepted(target):
    end, _ = target.accept()
    end.settimeout(WAIT)
    return end


def test_ends_of_each_direction(tunnel, target):
    far = Far(tunnel, OFFER)
    with far.socket, accepted(target) as end:
        far.send(BINARY, DATA + b"to")
        assert receive_exactly(end, 2) == b"to"
        end.sendall(b"fro")
        assert far.frames() == [(BINARY, DATA + b"fro")]
        far.send(BINARY, END)
        assert end.recv(1) == b""
        end.sendall(b"more")
        assert far.frames() == [(BINARY, DATA + b"more")]
        end.shutdown(socket.SHUT_WR)
        assert far.frames(2) == [(BINARY, END), (CLOSE, close_payload(1000))]
        far.send(CLOSE, close_payload(1000))
        assert far.socket.recv(1) == b""
    assert ended(tunnel) == ["done"]


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_the_handshake_is_a_step_of_its_own(certificates, scheme, echo_server):
    given = f"?cert={certificates.cert}&key={certificates.key}" if scheme == "wss" else ""
    ca = f"?ca={certificates.ca}" if scheme == "wss" else ""
    target = relay.target("{}:{}".format(*echo_server.address))
    with relay.Tunnel(relay.listen(f"{scheme}://{LOOPBACK}:0{given}"), target, timeout=None) as served:
        hop = relay.target(f"{scheme}://{LOOPBACK}:{served.address[1]}/{ca}")
        with relay.Tunnel(relay.listen(":0"), hop, timeout=None) as tunnel:
            with socket.create_connection(tunnel.address, WAIT) as client:
                client.sendall(b"x")
                assert receive_exactly(client, 1) == b"x"
            assert ended(tunnel) == ["done"]
            assert [label for label, _ in tunnel.recent()[0].hop_times] == ["1:target", "1:websocket"]


def test_a_message_may_come_in_parts(tunnel, target):
    far = Far(tunnel, OFFER)
    with far.socket, accepted(target) as end:
        for at, part in enumerate((b"", DATA, b"a", b"", b"bc")):
            made = bytearray(frame(BINARY if not at else 0, part, is_masked=True))
            made[0] &= 0x7F if at < 4 else 0xFF
            far.socket.sendall(made)
            far.send(PING, b"%d" % at)
        assert receive_exactly(end, 3) == b"abc"
        answers = far.frames()
        while answers[-1] != (PONG, b"4"):  # of those that come at once, the last one is answered
            answers += far.frames()
        assert {kind for kind, _ in answers} == {PONG}
        far.send(BINARY, b"")  # says nothing
        far.send(BINARY, RESET)
        assert ending(end) == "reset"
    assert ended(tunnel) == ["client_reset"]


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        ([(BINARY, b"\x03")], 1002),
        ([(BINARY, END + b"x")], 1002),
        ([(0x3, b"")], 1002),
        ([(CLOSE, b"\x00")], 1002),
        ([(BINARY, DATA), (CLOSE, close_payload(1000))], 1011),
        ([(CLOSE, b"")], 1011),
    ],
)
def test_what_breaks_the_protocol_is_a_reset(tunnel, target, messages, code):
    far = Far(tunnel, OFFER)
    with far.socket, accepted(target) as end:
        for one in messages:
            far.send(*one)
        assert ending(end) == "reset"
        found = far.frames()
        assert found[-1][0] in (CLOSE, BINARY)
        assert code_in(found + rest_of(far)) == code
    assert ended(tunnel) == ["client_reset"]


def rest_of(far):
    try:
        return far.frames(10)
    except OSError:
        return []


def code_in(found):
    return next(int.from_bytes(payload, "big") for kind, payload in found if kind == CLOSE)


def test_an_end_of_the_connection_is_a_reset(tunnel, target):
    for lines in ((OFFER,), ()):
        far = Far(tunnel, *lines)
        with accepted(target) as end:
            far.socket.close()
            assert ending(end) == "reset"
    assert ended(tunnel, 2) == ["client_reset", "client_reset"]


def test_plain_messages_have_no_half_close(tunnel, target):
    far = Far(tunnel)
    with far.socket, accepted(target) as end:
        far.send(TEXT, b"one")
        far.send(BINARY, b"\x01two")
        assert receive_exactly(end, 7) == b"one\x01two"
        end.sendall(b"three")
        assert far.frames() == [(BINARY, b"three")]
        far.send(CLOSE, close_payload(1000, "bye"))
        assert end.recv(1) == b""
        end.close()
        assert far.frames() == [(CLOSE, close_payload(1000))]
    assert ended(tunnel) == ["done"]


def test_a_close_with_another_code_is_a_reset(tunnel, target):
    far = Far(tunnel)
    with far.socket, accepted(target) as end:
        far.send(CLOSE, close_payload(1001, "going away"))
        assert ending(end) == "reset"
    assert ended(tunnel) == ["client_reset"]


def test_pings_that_are_not_read_fill_no_memory(tunnel, target):
    """Only the last one is answered, once there is room."""
    far = Far(tunnel, OFFER)
    with far.socket, accepted(target) as end:
        far.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        far.send(BINARY, DATA + b"x")
        receive_exactly(end, 1)
        one = frame(PING, b"p" * 125, is_masked=True)
        far.socket.sendall(one * 50_000)
        far.send(BINARY, DATA + b"y")
        assert receive_exactly(end, 1) == b"y"
        assert len(tunnel.connections()) == 1
        far.send(BINARY, RESET)
        assert ending(end) == "reset"


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_streams_of_programs_are_kernel_sockets(certificates, scheme):
    """``accept()`` of a listener, and ``relay.connect``."""
    given = f"?cert={certificates.cert}&key={certificates.key}" if scheme == "wss" else ""
    ca = f"?ca={certificates.ca}" if scheme == "wss" else ""
    data = os.urandom(3_000_000)
    with relay.listen(f"{scheme}://{LOOPBACK}:0/x{given}") as listener:
        dialing = Thread(relay.connect, f"{scheme}://{LOOPBACK}:{listener.address[1]}/x{ca}")
        stream, peer = listener.accept()
        client = dialing.result(WAIT)
        assert peer[0] == LOOPBACK
        with stream, client:
            client.settimeout(WAIT)
            sending = Thread(send_and_end, client, data)
            stream.socket.setblocking(True)
            assert receive_all(stream.socket) == data
            sending.result(WAIT)
            stream.socket.sendall(b"answer")
            stream.socket.shutdown(socket.SHUT_WR)
            assert receive_all(client) == b"answer"
        again = Thread(relay.connect, f"{scheme}://{LOOPBACK}:{listener.address[1]}/x{ca}")
        stream, _ = listener.accept()
        with again.result(WAIT) as client:
            stream.reset()
            with pytest.raises(ConnectionResetError):
                client.recv(1)


def test_what_was_sent_before_the_close_arrives(tunnel, target):
    """The session goes on in the background until the far end has all of it."""
    far = Far(tunnel, OFFER)
    with far.socket, accepted(target) as end:
        data = os.urandom(2_000_000)
        far.send(BINARY, END)
        sending = Thread(send_and_end, end, data)
        found = far.frames()
        while found[-1] != (CLOSE, close_payload(1000)):
            found += far.frames()
        assert sum(len(part) for kind, part in found if kind != CLOSE) > len(data)
        sending.result(WAIT)
        far.send(CLOSE, close_payload(1000))
    assert ended(tunnel) == ["done"]


# -- one session, driven by the test ----------------------------------------------------------------------------------


class Still:
    """A thread that is none: the test turns its loop, and moves its time on."""

    def __init__(self):
        self.loop = Loop()
        self.buffer = memoryview(bytearray(BUFFER))
        self.clients = []
        self.hold, self.release = self.clients.append, self.clients.remove

    def later(self, seconds):
        self.loop.timers.run(time.monotonic() + seconds)


class Pair:
    """A session, and the socket of the far end."""

    def __init__(self, stack, *, is_client=False, is_relay=True, of_session=None, kind=socket.socket, **of_transport):
        near, self.far = socket.socketpair()
        stack.enter_context(self.far)
        ours = stack.enter_context(kind(fileno=near.detach()))
        ours.setblocking(False)
        self.far.settimeout(WAIT)
        self.home = Still()
        stack.callback(self.home.loop.close)
        self.transport = Stream(ours, **of_transport)
        self.session = WebSocket(
            self.transport, self.home, "far", is_client=is_client, is_relay=is_relay, **(of_session or {})
        )
        self.is_client = is_client
        self._decoder = Decoder(is_masked=is_client)

    def say(self, opcode, payload=b""):
        self.far.settimeout(WAIT)
        self.far.sendall(frame(opcode, payload, is_masked=not self.is_client))

    def heard(self, *, to_the_end=False):
        """The frames that have come to the far end."""
        found = []
        self.far.settimeout(WAIT if to_the_end else 0)
        try:
            while data := self.far.recv(1 << 20):
                found += [(kind, bytes(part)) for kind, part in self._decoder.feed(data)]
        except BlockingIOError:
            pass
        except ConnectionResetError:
            found.append("reset")
        return found

    def broken(self, call=None):
        """The error of a call, which is a reset, and that of the session."""
        with pytest.raises(OSError) as raised:  # noqa: PT011
            (call or (lambda: self.session.recv(BUFFER)))()
        assert not isinstance(raised.value, BlockingIOError) and raised.value.errno
        return str(self.session.error), self.session.error.reason


@pytest.fixture
def paired():
    with contextlib.ExitStack() as stack:
        yield lambda **options: Pair(stack, **options)


def waits(call):
    with pytest.raises(BlockingIOError) as raised:
        call()
    assert (raised.value.errno, raised.value.strerror) == (errno.EAGAIN, os.strerror(errno.EAGAIN))


@pytest.mark.parametrize("is_client", [False, True])
@pytest.mark.parametrize("is_relay", [False, True])
@pytest.mark.parametrize("more", [0, 500_000])
def test_bytes_that_are_in_a_frame_are_sent_once(paired, is_client, is_relay, more):
    """The transport takes a part of it; the caller offers the same bytes again, with or without more."""
    pair = paired(is_client=is_client, is_relay=is_relay)
    session, prefix = pair.session, DATA if is_relay else b""
    data = memoryview(os.urandom(3_000_000))
    waits(lambda: session.send(data[:2_000_000]))
    assert session.must_flush and 0 < session.pending() < 2_000_100
    waits(lambda: session.send(data[:2_000_000]))
    before = session.progress()
    found = pair.heard()
    waits(lambda: session.send(data[:2_000_000]))
    assert session.progress() != before
    at = 0
    for size in (2_000_000 + more, 1_000_000, 1_000_000):
        while at < 3_000_000 and (sent := _sent(session, data[at : min(at + size, 3_000_000)])) == 0:
            found += pair.heard()
        at += sent
    while at < 3_000_000:
        at += _sent(session, data[at:])
        found += pair.heard()
    assert (session.pending(), session.must_flush) == (0, False)
    assert session.send(b"last") == 4
    found += pair.heard()
    whole = [part for kind, part in messages(found)]
    assert [kind for kind, _ in messages(found)] == [BINARY] * len(whole)
    assert b"".join(part.removeprefix(prefix) for part in whole) == bytes(data) + b"last"
    assert whole[-1] == prefix + b"last" and len(whole) <= 4


def test_a_ping_that_waits_goes_before_the_next_message(paired):
    pair = paired()
    junk = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            junk += pair.transport.socket.send(bytes(1 << 16))
    pair.home.later(PING_EVERY + 2)
    assert pair.session.pending() == len(frame(PING, b""))
    pair.far.settimeout(WAIT)
    receive_exactly(pair.far, junk)
    assert pair.session.send(b"x") == 1
    assert pair.heard() == [(PING, b""), (BINARY, DATA + b"x")]


def _sent(session, data):
    try:
        return session.send(data)
    except BlockingIOError:
        return 0


def messages(found):
    whole = []
    for kind, part in found:
        if kind == 0:
            whole[-1] = (whole[-1][0], whole[-1][1] + part)
        else:
            whole.append((kind, part))
    return whole


def test_a_ping_every_thirty_seconds(paired):
    pair = paired()
    pair.home.later(PING_EVERY - 2)
    assert pair.heard() == []
    for times in (1, 2, 3):
        pair.home.later(PING_EVERY * times + times)
        assert pair.heard() == [(PING, b"")]
    waits(lambda: pair.session.send(bytes(2_000_000)))
    size = pair.session.pending()
    pair.home.later(PING_EVERY * 5)
    assert pair.session.pending() == size, "bytes that wait keep proxies awake, too"


@pytest.mark.parametrize("how", ["closed", "failed", "ended"])
def test_none_after_the_end(paired, how):
    pair = paired(is_relay=False)
    if how == "closed":
        pair.far.send(frame(CLOSE, close_payload(1000), is_masked=True))
        assert pair.session.recv(BUFFER) == b""
        pair.session.close()
    elif how == "failed":
        pair.say(CLOSE, close_payload(1001))
        pair.broken()
    else:
        pair.session.shutdown(socket.SHUT_WR)
    pair.home.later(PING_EVERY + 2)
    assert PING not in [kind for kind, _ in pair.heard()]


LONG = "x" * 81
WAS = "far: the WebSocket was closed with the code"


@pytest.mark.parametrize("is_client", [False, True])
@pytest.mark.parametrize(
    ("is_relay", "said", "error", "answer"),
    [
        (False, (CLOSE, close_payload(1001, "going away")), f"{WAS} 1001 (going away)", None),
        (False, (CLOSE, close_payload(1001, f" {LONG}y")), f"{WAS} 1001 ({LONG[:-1]})", None),
        (False, (CLOSE, close_payload(1001)), f"{WAS} 1001", None),
        (False, (CLOSE, close_payload(3000) + b"\xff"), f"{WAS} 3000 (\ufffd)", None),
        (True, (CLOSE, b""), f"{WAS} 1005", None),
        (True, (CLOSE, close_payload(1000)), f"{WAS} 1000", None),
        (True, (BINARY, RESET), "far: the WebSocket was reset by the other relay's peer", None),
        (True, None, "far: the WebSocket ended without a close: bytes may be missing", None),
        (True, (BINARY, b"\x04"), "(what comes is no WebSocket: a message of the unknown kind 4)", 1002),
        (True, (BINARY, END + b"x"), "(what comes is no WebSocket: an end with data)", 1002),
        (False, (CLOSE, b"\x03"), "(what comes is no WebSocket: a close with an invalid code)", 1002),
        (False, (0, b""), "(what comes is no WebSocket: a frame of no message)", 1002),
    ],
)
def test_each_cut_has_its_words(paired, is_client, is_relay, said, error, answer):
    pair = paired(is_client=is_client, is_relay=is_relay)
    if said is None:
        pair.far.shutdown(socket.SHUT_WR)
    else:
        pair.say(*said)
    text, reason = pair.broken()
    assert text == error or (error.startswith("(") and text == f"far: the WebSocket was cut {error}")
    assert reason == ("target_reset" if is_client else "client_reset")
    assert pair.heard() == ([(CLOSE, close_payload(answer))] if answer else [])


def test_data_after_the_end_is_never_looked_at(paired):
    pair = paired()
    pair.far.sendall(frame(BINARY, END, is_masked=True) + frame(BINARY, DATA + b"x", is_masked=True))
    text, _ = pair.broken()
    assert text == "far: the WebSocket was cut (what comes is no WebSocket: data after the end)"


def test_after_the_end_a_close_or_an_end_of_the_transport_is_none_of_a_reset(paired):
    pair = paired()
    pair.far.sendall(frame(BINARY, DATA + b"x", is_masked=True) + frame(BINARY, END, is_masked=True))
    assert bytes(pair.session.recv(BUFFER)) == b"x"
    assert pair.session.has_input and pair.session.recv(BUFFER) == b"" == pair.session.recv(BUFFER)
    assert pair.session.error is None


def test_the_first_error_counts_and_that_of_the_transport_before_it(paired):
    below = ConnectionResetError("the carrier was lost")
    pair = paired(failure=lambda: below)
    pair.far.close()
    assert pair.broken() == ("the carrier was lost", "client_reset")
    pair.session.recv  # noqa: B018
    assert pair.broken(lambda: pair.session.send(b"x"))[0] == "the carrier was lost"


def test_a_transport_that_is_gone_is_an_error_of_a_send(paired):
    pair = paired(is_client=True)
    pair.far.close()
    text, reason = pair.broken(lambda: pair.session.send(b"x"))
    assert (text, reason) == ("far: the WebSocket was cut (Broken pipe)", "target_reset")
    pair = paired()
    pair.far.close()
    assert pair.broken(lambda: pair.session.shutdown(socket.SHUT_WR))[0].endswith("was cut (Broken pipe)")


class Odd(socket.socket):
    """A socket that fails in its own words, as a session of TLS does."""

    def send(self, *_):
        raise OSError("it is odd")


def test_an_error_without_a_number_is_told_in_its_words(paired):
    pair = paired(kind=Odd)
    with pytest.raises(OSError, match="^it is odd$"):
        pair.session.send(b"x")
    assert str(pair.session.error) == "far: the WebSocket was cut (it is odd)"


def test_only_the_last_ping_is_answered_and_none_after_a_close(paired):
    pair = paired(is_relay=False)
    for text in (b"1", b"2"):
        pair.far.sendall(frame(PING, text, is_masked=True) + frame(PING, text * 2, is_masked=True))
        waits(lambda: pair.session.recv(BUFFER))
        assert pair.heard() == [(PONG, text * 2)]
    waits(lambda: pair.session.send(bytes(2_000_000)))
    pair.say(PING, b"3")
    waits(lambda: pair.session.recv(BUFFER))
    while pair.session.must_flush:
        pair.heard()
        _sent(pair.session, bytes(2_000_000))
    pair.session.shutdown(socket.SHUT_WR)
    pair.say(PING, b"4")
    waits(lambda: pair.session.recv(BUFFER))
    assert pair.heard()[-1] == (CLOSE, close_payload(1000)) and not pair.session.must_flush


@pytest.mark.parametrize(("is_relay", "end"), [(True, (BINARY, END)), (False, (CLOSE, close_payload(1000)))])
def test_the_end_is_said_once(paired, is_relay, end):
    pair = paired(is_relay=is_relay)
    pair.session.shutdown(socket.SHUT_WR)
    pair.session.shutdown(socket.SHUT_WR)
    assert pair.heard() == [end] and pair.session.has_ended


@pytest.mark.parametrize(("is_relay", "said"), [(True, [(BINARY, RESET)]), (False, [])])
def test_a_reset_is_said_and_the_transport_is_reset(paired, is_relay, said):
    pair = paired(is_relay=is_relay)
    pair.session.reset()
    pair.session.reset()
    assert pair.heard(to_the_end=True) == [*said, (CLOSE, close_payload(1011)), "reset"]
    assert pair.session.fileno() == -1 and pair.session.is_closed


def test_a_reset_after_a_close_adds_nothing(paired):
    pair = paired()
    pair.say(BINARY, b"\x04")
    pair.broken()
    pair.session.reset()
    assert pair.heard(to_the_end=True) == [(CLOSE, close_payload(1002)), "reset"]


def test_a_reset_adds_nothing_to_bytes_that_wait(paired):
    pair = paired(is_relay=False)
    waits(lambda: pair.session.send(bytes(2_000_000)))
    pair.session.reset()
    found = pair.heard(to_the_end=True)
    assert found[-1] == "reset" and CLOSE not in [kind for kind, _ in found[:-1]]


@pytest.mark.parametrize("has_ended", [False, True])
def test_if_the_far_end_has_closed_a_close_is_the_last_word(paired, has_ended):
    pair = paired()
    pair.far.sendall(frame(BINARY, END, is_masked=True) + frame(CLOSE, close_payload(1000), is_masked=True))
    assert pair.session.recv(BUFFER) == b""
    if has_ended:
        pair.session.shutdown(socket.SHUT_WR)
    pair.session.close()
    pair.session.close()
    assert pair.heard(to_the_end=True) == [(BINARY, END), (CLOSE, close_payload(1000))]


def test_what_comes_to_a_closed_session_is_dropped_until_the_far_end_closes(paired):
    for last in (frame(CLOSE, close_payload(1000), is_masked=True), b"\xff\xff", None):
        pair = paired(is_relay=False)
        waits(pair.session.discard)
        pair.say(BINARY, b"x")
        assert pair.session.discard() is False and not pair.session.far_closed
        if last is None:
            pair.far.shutdown(socket.SHUT_WR)
        else:
            pair.far.sendall(last)
        assert pair.session.discard() is False and pair.session.far_closed is True


def test_bytes_behind_the_handshake_come_first(paired):
    pair = paired(of_session={"rest": frame(BINARY, DATA + b"early", is_masked=True)})
    assert pair.session.has_input
    assert bytes(pair.session.recv(BUFFER)) == b"early" and not pair.session.has_input
    waits(lambda: pair.session.recv(BUFFER))
    pair.say(BINARY, DATA + b"more")
    assert pair.session.recv(9, socket.MSG_PEEK)[:2] == frame(BINARY, DATA + b"more", is_masked=True)[:2]
    assert bytes(pair.session.recv(BUFFER, socket.MSG_DONTWAIT)) == b"more"


def test_the_keys_of_two_sessions_are_others(paired):
    keys = set()
    for _ in range(2):
        pair = paired(is_client=True)
        for _ in range(100):
            pair.session.send(b"x")
            keys.add(receive_exactly(pair.far, len(frame(BINARY, DATA + b"x", is_masked=True)))[2:6])
    assert len(keys) == 200


def test_bytes_of_the_transport_and_of_frames_count_as_waiting(paired):
    pair = paired()
    pair.transport.unsent = lambda: 7
    assert pair.session.pending() == 7
    moved = pair.session.progress()
    pair.session.send(b"x")
    queued = pair.transport.queued()
    assert pair.session.progress() == moved + 7 + len(frame(BINARY, DATA + b"x")) - queued


# -- a session that is closed, and goes on until the far end has closed it, too ----------------------------------------


class Leaving(Pair):
    """A session that was closed in the thread of its home, which is that of the test."""

    def __init__(self, stack, *, waiting=0, after=b"", **options):
        super().__init__(stack, **options)
        self.home.loop.is_here = lambda: True
        if after:
            self.far.sendall(after)
            assert self.session.recv(BUFFER) == b""
        if waiting:
            waits(lambda: self.session.send(bytes(waiting)))
        self.session.close()
        (self.farewell,) = self.home.clients
        self.turn()

    def turn(self, times=4):
        for _ in range(times):
            self.home.loop.call(lambda: None)  # it waits for nothing
            self.home.loop.turn()

    @property
    def is_idle(self):
        """``True`` if no event is there that it waits for: else its loop would never sleep."""
        return self.home.loop.poller.poll(0, 8) == []

    @property
    def is_over(self):
        return self.home.clients == []


@pytest.fixture
def leaving(caplog):
    with contextlib.ExitStack() as stack:
        yield lambda **options: Leaving(stack, **options)
    assert [record for record in caplog.get_records("call") if record.levelno >= logging.ERROR] == []


ENDED = [(BINARY, END), (CLOSE, close_payload(1000))]


@pytest.mark.parametrize("last", ["close", "no frame", "end"])
def test_a_closed_session_ends_when_the_far_end_has(leaving, last):
    pair = leaving()
    sent = []
    assert pair.farewell in exit_drain._senders[exit_drain.SESSIONS], "carriers are waited for after it"
    assert pair.farewell.when_sent(lambda: sent.append(1)) and repr(pair.farewell) == "the WebSocket stream to far"
    assert pair.heard() == ENDED
    pair.say(BINARY, DATA + b"late")
    pair.turn()
    assert not pair.is_over and pair.is_idle and sent == []
    if last == "end":
        pair.far.shutdown(socket.SHUT_WR)
    else:
        pair.far.sendall(frame(CLOSE, close_payload(1000), is_masked=True) if last == "close" else b"\xff\xff")
    pair.turn()
    assert pair.is_over and pair.heard(to_the_end=True) == [] and sent == [1]
    assert pair.home.loop.timers.first == math.inf
    assert not pair.farewell.when_sent(lambda: None)


def test_what_the_transport_has_not_taken_is_sent_after_the_close(leaving):
    pair = leaving(waiting=2_000_000)
    found = []
    while not found or found[-1] != ENDED[-1]:
        found += pair.heard()
        pair.turn(1)
    assert [kind for kind, _ in messages(found)] == [BINARY, BINARY, CLOSE]
    assert len(messages(found)[0][1]) == 2_000_001 and not pair.is_over
    pair.say(CLOSE, close_payload(1000))
    pair.turn()
    assert pair.is_over and pair.heard(to_the_end=True) == []


def test_a_far_end_that_closes_first_still_gets_the_rest(leaving):
    pair = leaving(waiting=2_000_000)
    pair.far.sendall(frame(CLOSE, close_payload(1000), is_masked=True))
    pair.turn()
    pair.say(BINARY, b"what no one reads any more")
    assert not pair.is_over and pair.is_idle
    found = []
    while not pair.is_over:
        found += pair.heard()
        pair.turn(1)
    pair.turn()
    assert (found + pair.heard(to_the_end=True))[-1] == ENDED[-1]


def test_a_far_end_that_has_closed_before_gets_all_that_waits(leaving):
    after = frame(BINARY, END, is_masked=True) + frame(CLOSE, close_payload(1000), is_masked=True)
    pair = leaving(after=after, waiting=2_000_000)
    found = []
    while not pair.is_over:
        found += pair.heard()
        pair.turn(1)
    pair.turn()
    assert (found + pair.heard(to_the_end=True))[-1] == ENDED[-1]


def test_a_far_end_that_takes_nothing_is_given_up(leaving):
    pair = leaving(waiting=2_000_000)
    pair.home.later(LINGER - 1)
    pair.turn()
    pair.home.later(LINGER + 1)  # it has moved since the beginning
    pair.heard()
    pair.turn()
    pair.home.later(2 * LINGER + 3)  # and since then
    pair.turn()
    assert not pair.is_over
    pair.home.later(3 * LINGER + 6)
    pair.turn()
    assert pair.is_over and pair.heard(to_the_end=True)[-1] == "reset"


def test_a_far_end_that_is_gone_ends_it(leaving):
    pair = leaving(waiting=2_000_000)
    pair.far.close()
    pair.turn()
    assert pair.is_over


def test_a_bug_ends_it_by_a_reset(leaving):
    pair = leaving()
    pair.farewell.crashed(0.0)
    pair.turn()
    assert pair.is_over and pair.heard(to_the_end=True) == [*ENDED, "reset"]


def test_when_its_thread_ends_it_goes_on_in_the_io_thread(leaving):
    pair = leaving(waiting=2_000_000)
    pair.farewell.leave()
    pair.farewell.leave()
    assert pair.is_over
    found = []
    pair.far.settimeout(WAIT)
    while not found or found[-1] != ENDED[-1]:
        found += [(kind, bytes(part)) for kind, part in pair._decoder.feed(pair.far.recv(1 << 20))]
    pair.say(CLOSE, close_payload(1000))
    assert pair.heard(to_the_end=True) == []
    wait_until(lambda: IOThread.clients() == ())


def test_without_an_io_thread_it_is_reset(leaving, monkeypatch):
    def acquire(_):
        raise OSError(errno.EAGAIN, "no thread is left")

    pair = leaving()
    monkeypatch.setattr(IOThread, "acquire", acquire)
    pair.farewell.leave()
    assert pair.heard(to_the_end=True) == [*ENDED, "reset"]


def test_elsewhere_it_goes_on_in_the_io_thread_at_once(paired):
    pair = paired()
    pair.session.close()
    assert pair.home.clients == []
    pair.say(CLOSE, close_payload(1000))
    assert pair.heard(to_the_end=True) == ENDED
    wait_until(lambda: IOThread.clients() == ())


def test_what_is_under_a_stream_is_released_when_its_session_is_over(paired):
    released = []
    pair = paired(on_close=lambda: released.append(1))
    stream = WebSocketStream(pair.session)
    assert (stream.half_close, stream.target, stream.failure(), stream.session) == (True, "far", None, pair.session)
    assert stream.on_close is not None and pair.transport.on_close is None
    closing = Thread(stream.close)
    pair.far.settimeout(WAIT)
    assert pair.far.recv(2)
    assert released == []
    pair.say(CLOSE, close_payload(1000))
    closing.result(WAIT)
    assert released == [1] and pair.transport.on_close is None


def test_a_stream_has_what_its_transport_knows(paired):
    pair = paired(is_relay=False)
    given = {name: object() for name in ("identity", "tls", "server_name", "path", "is_introduced")}
    for name, value in given.items():
        setattr(pair.transport, name, value)
    stream = WebSocketStream(pair.session)
    assert {name: getattr(stream, name) for name in given} == given
    assert not stream.half_close and stream.unsent() == 0
    pair.session.error = WebSocketError("cut", reason="client_reset")
    assert stream.failure() is pair.session.error
    pair.session.error = None
    stream.reset()
    assert pair.heard(to_the_end=True) == [(CLOSE, close_payload(1011)), "reset"]


class Held(SessionSocket):
    """A session under the WebSocket, such as one of TLS: it takes bytes, and may hold them until there is room."""

    def __init__(self, transport):
        super().__init__(transport)
        self.transport, self.held, self.has_room, self.home = transport, b"", True, None
        self.is_abandoned = False

    must_flush = property(lambda self: bool(self.held))
    has_input = is_stalled = False

    def send(self, data, *_):
        self.held += data
        if not self.has_room:
            if not data:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            return len(data)
        self.transport.sendall(self.held)
        self.held = b""
        return len(data)

    def recv(self, size, *_):
        return self.transport.recv(size)

    def move(self, home):
        self.home = home

    def abandon(self):
        self.is_abandoned = True

    def close(self):
        self.transport.close()


@pytest.fixture
def over():
    """A WebSocket over a session, that session, and the far end."""
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        far.settimeout(WAIT)
        below, home = Held(near), Still()
        made = WebSocket(Stream(below), home, "far", is_client=False, is_relay=False)
        yield made, below, far
        home.loop.close()


def test_a_session_below_is_flushed_before_bytes_count_as_sent(over):
    made, below, far = over
    below.has_room = False
    waits(lambda: made.send(b"x"))
    assert made.must_flush
    waits(lambda: made.send(b"x"))
    below.has_room = True
    assert made.send(b"x") == 1 and not made.must_flush
    assert receive_exactly(far, 3) == frame(BINARY, b"x")
    assert made.send(b"y") == 1 and receive_exactly(far, 3) == frame(BINARY, b"y")


def test_a_session_below_may_have_more_to_drop(over):
    made, below, far = over
    far.sendall(frame(BINARY, b"x", is_masked=True))
    below.has_input = True
    assert made.has_input and made.discard() is True
    far.sendall(frame(CLOSE, b"", is_masked=True))
    assert made.discard() is False


def test_a_session_below_goes_where_it_goes(over):
    made, below, _ = over
    home = object()
    made.move(home)
    assert made.home is below.home is home
    made.abandon()
    assert below.is_abandoned
