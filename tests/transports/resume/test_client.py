"""Streams that outlive their carrier, between two ends in this process: cuts, resets, ends, limits and losses."""

import contextlib
import errno
import random
import socket
import threading
import time

import pytest
from helpers import Server, Thread, echo, ending, receive_all, receive_exactly, send_and_end, wait_until
from resume_rig import PROXY, Rig

import relay
from relay.addresses.values import TCPAddress
from relay.errors import CarrierError
from relay.transports.proxies.dialer import Proxied
from relay.transports.proxies.socks_client import request_of
from relay.transports.resume.client import Resuming
from relay.transports.resume.figures import BUDGET, FAR, NEAR
from relay.transports.resume.wire import DATA, END, KNOWN, MAGIC, NEW, REFUSED, UNKNOWN, Answer, frame
from relay.transports.tls.records import TLSError
from relay.transports.unix import unix


@pytest.fixture
def make_rig(tmp_path, serve):
    """Makes a rig whose target is a server with a handler."""
    made = []

    def make(handler=echo, **options):
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Rig(folder, serve(handler).address, **options))
        return made[-1]

    yield make
    for rig in made:
        rig.close()


def test_cuts_in_both_directions_lose_and_double_no_byte(make_rig):
    rig = make_rig()
    client = rig.dial()
    data = random.Random(1).randbytes(6 << 20)
    sending = Thread(send_and_end, client, data)
    got, next_cut = bytearray(), 300_000
    while piece := client.recv(1 << 16):
        got += piece
        if len(got) >= next_cut:
            rig.cutter.cut()
            next_cut += 500_000
    sending.result()
    assert bytes(got) == data
    assert NEAR.resumes >= 5  # two cuts may meet one carrier
    assert rig.failure() is None
    assert NEAR.losses == 0
    assert rig.tunnel.recent()[-1].reason == "done"


def test_the_record_of_a_connection_counts_its_resumes(make_rig):
    rig = make_rig()
    with (
        relay.Tunnel(relay.listen("127.0.0.1:0"), rig.dialer, timeout=None) as tunnel,
        socket.create_connection(tunnel.address) as client,
    ):
        for number in range(3):
            client.sendall(b"hello")
            assert receive_exactly(client, 5) == b"hello"
            assert [record.resumes for record in tunnel.connections()] == [number]
            if number < 2:
                rig.cutter.cut()
        client.close()
        wait_until(tunnel.recent)
        assert tunnel.recent()[0].resumes == 2


def test_the_ends_of_both_directions_outlive_cuts(make_rig):
    def late(connection):
        asked = receive_all(connection)
        rig.cutter.cut()
        connection.sendall(asked[::-1])

    rig = make_rig(late)
    client = rig.dial()
    client.sendall(b"question")
    rig.cutter.cut()
    client.shutdown(socket.SHUT_WR)
    assert receive_all(client) == b"noitseuq"
    rig.cutter.cut()
    client.close()
    wait_until(lambda: rig.tunnel.recent() and rig.tunnel.recent()[-1].reason == "done")
    wait_until(lambda: BUDGET.offered == 0)  # the far end knows that the near end has everything


@pytest.mark.parametrize("losses", [1, 2])
def test_a_carrier_that_is_lost_before_the_answer_is_dialed_once_more(make_rig, losses):
    rig = make_rig()
    rig.cutter.losses = losses
    if losses == 1:
        client = rig.dial()
        client.sendall(b"hello")
        assert receive_exactly(client, 5) == b"hello"
    else:
        with pytest.raises(relay.ConnectError, match="the connection to the resume server was lost"):
            rig.dial()
    assert rig.cutter.carriers == 2


def test_a_shared_connection_that_is_lost_before_the_answer_is_used_once_more(make_rig, monkeypatch):
    """The stream knows more than its socket says: it was over an SSH connection, or an I2P session."""
    rig = make_rig()
    dial = type(rig.resuming.inner).dial

    def knowing(self, deadline, done, **options):
        def dialed(stream):
            stream.failure = lambda: CarrierError("ssh://bastion: the connection was lost")
            done(stream)

        return dial(self, deadline, dialed, **options)

    monkeypatch.setattr(type(rig.resuming.inner), "dial", knowing)
    rig.cutter.losses = 1
    client = rig.dial()
    client.sendall(b"hello")
    assert receive_exactly(client, 5) == b"hello"
    rig.cutter.losses = 2
    with pytest.raises(relay.ConnectError, match="ssh://bastion: the connection was lost") as failed:
        rig.dial()
    assert failed.value.reason == "carrier_lost"


def test_a_dialer_that_is_closed_does_not_dial_once_more(make_rig):
    rig = make_rig()
    rig.cutter.is_silent = True
    dialing = Thread(rig.dial)
    wait_until(lambda: rig.cutter.carriers == 1)
    rig.resuming.close()
    rig.cutter.cut()
    with pytest.raises(relay.ConnectError, match="the connection to the resume server was lost"):
        dialing.result()
    assert rig.cutter.carriers == 1


def test_a_stream_that_has_ended_leaves_nothing(make_rig):
    rig = make_rig()
    for _ in range(3):
        client = rig.dial()
        send_and_end(client, b"x")
        assert receive_all(client) == b"x"
        client.close()
    wait_until(lambda: len(rig.listener.sessions) == BUDGET.offered == BUDGET.held == 0)


def test_a_reset_by_the_near_end_arrives_without_a_carrier(make_rig):
    fates = []
    rig = make_rig(lambda connection: fates.append(ending(connection)))
    client = rig.dial()
    client.sendall(b"x")
    rig.cutter.is_down = True
    rig.cutter.cut()
    rig._streams[-1].reset()
    rig.cutter.is_down = False
    wait_until(lambda: fates == ["reset"])
    assert client.fileno() == -1


def test_the_streams_of_a_tunnel_that_ends_still_tell_the_far_end(make_rig):
    """The thread that has moved their bytes is gone; another one goes on."""
    rig = make_rig()
    with (
        relay.Tunnel(relay.listen("127.0.0.1:0"), rig.dialer, timeout=None) as tunnel,
        socket.create_connection(tunnel.address) as client,
        socket.create_connection(tunnel.address) as other,
    ):
        for each in (client, other):
            each.sendall(b"hello")
            assert receive_exactly(each, 5) == b"hello"
        rig.cutter.is_down = True
        rig.cutter.cut()
        tunnel.close()
        assert ending(client) == "reset"
    assert NEAR.resumes == 0
    assert BUDGET.offered > 0  # they wait for a carrier, to say their last word
    rig.cutter.is_down = False
    wait_until(lambda: [one.reason for one in rig.tunnel.recent()] == ["client_reset"] * 2)
    wait_until(lambda: BUDGET.offered == BUDGET.held == 0)


def test_a_reset_by_the_target_arrives_with_its_reason(make_rig):
    def reset(connection):
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    rig = make_rig(reset)
    client = rig.dial()
    client.sendall(b"x")
    assert ending(client) == "reset"
    assert rig.failure().reason == "target_reset"


def test_while_there_is_no_carrier_bytes_are_kept_within_a_bound(make_rig):
    rig = make_rig()
    client = rig.dial()
    client.sendall(b"x")
    assert receive_exactly(client, 1) == b"x"
    rig.cutter.is_down = True
    rig.cutter.cut()
    client.setblocking(False)
    sent = 0
    with pytest.raises(BlockingIOError):
        while sent < 64 << 20:
            sent += client.send(bytes(1 << 16))
    assert BUDGET.held <= 1 << 20  # the window of the far end; the rest is in the socketpair
    rig.cutter.is_down = False
    client.settimeout(30)
    client.shutdown(socket.SHUT_WR)
    assert len(receive_all(client)) == sent


def test_a_carrier_that_is_dead_is_replaced_if_something_waits(make_rig, monkeypatch):
    monkeypatch.setattr("relay.transports.resume.joint._WAITING", 0.2)
    monkeypatch.setattr("relay.transports.resume.joint._PONG", 0.3)
    rig = make_rig()
    client = rig.dial()
    client.sendall(b"x")
    assert receive_exactly(client, 1) == b"x"
    rig.cutter.kill()
    client.sendall(b"hello")
    assert receive_exactly(client, 5) == b"hello"
    assert NEAR.resumes >= 1


def test_a_change_of_the_network_replaces_a_carrier_that_is_dead_and_keeps_one_that_is_not(make_rig, monkeypatch):
    changed = []
    monkeypatch.setattr("relay.carriers.network.subscribe", lambda home, call: changed.append((home, call)))
    monkeypatch.setattr("relay.carriers.network.unsubscribe", lambda home, call: None)
    rig = make_rig()
    client = rig.dial()
    [(home, call)] = changed
    home.loop.call(lambda: call("an address"))
    client.sendall(b"x")
    assert receive_exactly(client, 1) == b"x"
    rig.cutter.kill()
    begun = time.monotonic()
    home.loop.call(lambda: call("an address"))
    wait_until(lambda: NEAR.resumes == 1)
    assert time.monotonic() - begun >= 1.9  # the time for an answer
    client.sendall(b"hello")
    assert receive_exactly(client, 5) == b"hello"
    assert rig.cutter.carriers == 2


def test_a_change_of_the_network_ends_an_attempt_that_gets_no_answer(make_rig, monkeypatch):
    changed = []
    monkeypatch.setattr("relay.carriers.network.subscribe", lambda home, call: changed.append((home, call)))
    monkeypatch.setattr("relay.carriers.network.unsubscribe", lambda home, call: None)
    monkeypatch.setattr("relay.transports.resume.client._PATIENCE", 0.1)
    monkeypatch.setattr("relay.transports.resume.client._ATTEMPT", 1000.0)
    rig = make_rig()
    client = rig.dial()
    client.sendall(b"one")
    assert receive_exactly(client, 3) == b"one"
    [(home, call)] = changed
    rig.cutter.is_silent = True
    rig.cutter.cut()
    wait_until(lambda: rig.cutter.carriers == 2)
    rig.cutter.is_silent = False
    # It may not have said its greeting yet, whose answer is what does not come.
    wait_until(lambda: home.loop.call(lambda: call("a new address")) and rig.cutter.carriers == 3)
    client.sendall(b"two")
    assert receive_exactly(client, 3) == b"two"
    assert NEAR.resumes == 1


def test_a_change_of_the_network_ends_the_pause_between_two_attempts(make_rig, monkeypatch):
    changed = []
    monkeypatch.setattr("relay.carriers.network.subscribe", lambda home, call: changed.append((home, call)))
    monkeypatch.setattr("relay.carriers.network.unsubscribe", lambda home, call: None)
    monkeypatch.setattr("relay.transports.resume.client._BACKOFF", (100.0, 100.0))
    rig = make_rig()
    client = rig.dial()
    rig.cutter.is_down = True
    rig.cutter.cut()
    wait_until(lambda: NEAR.attempts == 1)
    rig.cutter.is_down = False
    client.sendall(b"hello")
    # The attempt may still be under way, and then has no pause to end yet.
    home, call = changed[0]  # the others are of attempts
    wait_until(lambda: home.loop.call(lambda: call("an address")) and NEAR.resumes == 1)
    assert receive_exactly(client, 5) == b"hello"


def test_the_exit_waits_for_what_the_far_end_has_not_and_for_no_open_stream(make_rig):
    rig = make_rig()
    client = rig.dial()
    joint = rig._streams[-1]._joint
    client.sendall(b"hello")
    assert receive_exactly(client, 5) == b"hello"
    sent = threading.Event()
    assert joint.when_sent(sent.set)
    assert sent.wait(5)  # less than a ping waits by itself
    rig.cutter.is_down = True
    rig.cutter.cut()
    client.sendall(b"hello")
    sent.clear()
    assert joint.when_sent(sent.set)
    wait_until(lambda: NEAR.attempts > 2)
    assert not sent.is_set()
    rig.cutter.is_down = False
    assert sent.wait(60)


def test_a_restarted_far_end_resets_the_stream_at_once(make_rig):
    rig = make_rig()
    client = rig.dial()
    client.sendall(b"x")
    assert receive_exactly(client, 1) == b"x"
    rig.stop()
    rig.start()
    rig.cutter.is_down = False
    assert ending(client) == "reset"
    assert rig.failure().reason == "resume_lost"
    assert "may have been restarted" in str(rig.failure())
    assert NEAR.losses == 1
    assert FAR.refused == 1


def test_a_stream_without_a_carrier_is_lost_in_time_at_both_ends(make_rig):
    rig = make_rig(kept=1.0)
    client = rig.dial()
    client.sendall(b"x")
    assert receive_exactly(client, 1) == b"x"
    rig.cutter.is_down = True
    rig.cutter.cut()
    assert ending(client) == "reset"
    assert rig.failure().reason == "resume_lost"
    assert "no other carrier in 1 s" in str(rig.failure())
    wait_until(lambda: len(rig.listener.sessions) == 0)
    assert NEAR.attempts > 1


def test_sessions_of_one_identity_are_limited(make_rig):
    rig = make_rig(most=1)
    client = rig.dial()
    with pytest.raises(relay.ConnectError, match="refuses a session: it has as many") as caught:
        rig.dial()
    assert caught.value.reason == "denied"
    send_and_end(client, b"x")
    assert receive_all(client) == b"x"
    client.close()
    wait_until(lambda: len(rig.listener.sessions) == 0)
    rig.dial()


def test_a_request_goes_with_the_greeting_and_costs_no_round_trip(tmp_path):
    place = TCPAddress("db", 5432)
    request = request_of(place)

    def far_end(connection):
        said = b""
        while not said.endswith(request):
            said += connection.recv(100)
        replies = b"\5\0" + b"\5\0\0\1" + bytes(6) + b"hello"
        greeting = Answer(NEW, token=bytes(16), window=1000, kept=60).encode()
        connection.sendall(greeting + frame(len(request), DATA, replies))
        while b"reset" not in said:
            said += connection.recv(100)
        connection.sendall(frame(len(request), END, b"reset"))

    server = Server(far_end, str(tmp_path / "far.sock"))
    try:
        resuming = Resuming(unix(server.address), "far")
        dialer = Proxied(resuming, PROXY, place, (), asking=resuming.saying(request))
        with contextlib.closing(dialer), dialer(deadline=None) as stream:
            stream.socket.settimeout(60)
            assert receive_exactly(stream.socket, 5) == b"hello"
            stream.reset()
            wait_until(lambda: BUDGET.offered == BUDGET.held == 0)
    finally:
        server.close()


def test_a_greeting_without_a_thread_or_descriptor_gives_its_memory_back(make_rig, monkeypatch):
    rig = make_rig()

    def no_thread(client):
        raise OSError(errno.EAGAIN, "no thread")

    with monkeypatch.context() as patch:
        patch.setattr("relay.transports.resume.greeting.IOThread.acquire", no_thread)
        with pytest.raises(OSError, match="no thread"):
            rig.dial()
    assert (BUDGET.offered, BUDGET.held) == (0, 0)
    rig.dial()


def test_the_errors_of_the_far_relay_are_those_of_its_dial(make_rig, reserved):
    rig = make_rig()
    refused = Proxied(rig.resuming, PROXY, TCPAddress("127.0.0.1", reserved), ())
    with pytest.raises(relay.ConnectError, match="refused the connection") as caught:
        refused(deadline=None)
    assert caught.value.reason == "refused"
    wait_until(lambda: BUDGET.offered == 0)  # its session ends at both ends, while there is a far end to tell


@pytest.mark.parametrize(
    ("said", "reason", "text"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "unreachable", "no resume server"),
        (b"", "unreachable", "was lost"),
        (Answer(REFUSED, word="no_identity").encode(), "denied", "does not know who its clients are"),
        (MAGIC + b"\x02", "unreachable", "what was not asked"),
    ],
)
def test_what_is_no_resume_server_is_named(tmp_path, said, reason, text):
    def answer(connection):
        connection.recv(100)
        connection.sendall(said)

    server = Server(answer, str(tmp_path / "s"))
    try:
        dialer = Resuming(unix(server.address), "far")
        with pytest.raises(relay.ConnectError, match=text) as caught:
            dialer(deadline=None)
        assert str(caught.value).startswith("far: ")
        wanted = "denied" if reason == "denied" else "unreachable"
        assert caught.value.reason == wanted
        assert BUDGET.offered == 0
    finally:
        server.close()


def test_a_far_end_that_ends_each_carrier_is_not_asked_without_a_pause(tmp_path):
    request = request_of(TCPAddress("db", 5432))
    times = []

    def far_end(connection):
        while not connection.recv(100).startswith(MAGIC):
            pass
        times.append(time.monotonic())
        if len(times) == 1:
            greeting = Answer(NEW, token=bytes(16), window=1000, kept=60).encode()
            connection.sendall(greeting + frame(len(request), DATA, b"\5\0" + b"\5\0\0\1" + bytes(6)))
            wait_until(lambda: dialed)
        else:
            last = Answer(UNKNOWN) if len(times) > 6 else Answer(KNOWN, received=len(request), window=1000)
            connection.sendall(last.encode())

    dialed = []
    server = Server(far_end, str(tmp_path / "far.sock"))
    try:
        resuming = Resuming(unix(server.address), "far", kept=60.0)
        dialer = Proxied(resuming, PROXY, TCPAddress("db", 5432), (), asking=resuming.saying(request))
        with contextlib.closing(dialer), dialer(deadline=None) as stream:
            dialed.append(stream)
            wait_until(lambda: len(times) >= 6)
            # At once after the first one, which has moved the replies; then the usual pauses.
            assert times[5] - times[1] >= 0.05 + 0.1 + 0.2 + 0.4
            stream.reset()
            wait_until(lambda: BUDGET.offered == 0)
    finally:
        server.close()


def test_streams_that_wait_try_at_once_when_another_one_gets_a_carrier(make_rig, monkeypatch):
    monkeypatch.setattr("relay.transports.resume.client._BACKOFF", (1000.0, 1000.0))
    rig = make_rig(near={"kept": 5000.0}, kept=5000.0)
    waiting = [rig.dial() for _ in range(3)]
    rig.cutter.is_down = True
    rig.cutter.cut()
    wait_until(lambda: NEAR.attempts == 3)
    wait_until(lambda: all(near._steps is None for near in rig.resuming.waiting))
    rig.cutter.is_down = False
    rig.dial()
    for client in waiting:
        client.sendall(b"hello")
        assert receive_exactly(client, 5) == b"hello"


@pytest.mark.parametrize(
    ("error", "is_final"),
    [
        (TLSError("the TLS session ended without close_notify", reason="target_reset"), False),
        (relay.RelayError("something else"), False),
        (relay.HostKeyError("the key is another one"), True),
        (relay.AuthenticationError("the password is wrong"), True),
    ],
)
def test_only_what_no_other_attempt_repairs_ends_a_stream(make_rig, monkeypatch, error, is_final):
    """The cut of a handshake was the end of the stream once."""
    rig = make_rig()
    client = rig.dial()
    inner = rig.resuming.inner
    dial, errors = inner.dial, [error]

    def fail_once(deadline, done, **options):
        if errors:
            done(errors.pop())
            return lambda: None
        return dial(deadline, done, **options)

    monkeypatch.setattr(inner, "dial", fail_once)
    rig.cutter.cut()
    if is_final:
        assert ending(client) == "reset"
        assert (rig.failure().reason, str(error) in str(rig.failure())) == ("resume_lost", True)
    else:
        client.sendall(b"hello")
        assert receive_exactly(client, 5) == b"hello"
    monkeypatch.undo()
    rig.tunnel.close()  # the far end of a stream that is lost has it until then


def test_a_stream_that_is_given_up_before_the_answer_is_ended_at_the_far_end(tmp_path):
    request = request_of(TCPAddress("db", 5432))
    said, has_begun = bytearray(), threading.Event()

    def far_end(connection):
        while piece := connection.recv(100):
            said.extend(piece)
            if said.endswith(request):
                has_begun.set()

    server = Server(far_end, str(tmp_path / "far.sock"))
    resuming = Resuming(unix(server.address), "far")
    dialer = Proxied(resuming, PROXY, TCPAddress("db", 5432), (), asking=resuming.saying(request))
    with contextlib.closing(server), contextlib.closing(dialer):
        give_up = dialer.dial(None, lambda outcome: None)
        assert has_begun.wait(60)
        give_up()
        last = frame(0, DATA, request) + frame(0, END, b"reset")
        wait_until(lambda: said.endswith(last))
    wait_until(lambda: BUDGET.offered == BUDGET.held == 0)
