"""A destination that relay listens on: its states, who is allowed, what waits, and its end with the router."""

import contextlib
import functools
import threading
import time

import pytest
from helpers import PROMPT, WAIT, Thread, ending, receive_exactly, wait_until
from listener_rig import States, accept, make_prompt

import relay
from relay.addresses.destinations import Peer, PrivateKey
from relay.addresses.i2p import I2PListen, I2PRouter
from relay.addresses.i2p_parser import parse_sam
from relay.api.i2p import i2p
from relay.carriers.link import CarrierState
from relay.errors import CarrierError, ConnectError, RelayError, SAMError
from relay.transports.chain import network
from relay.transports.i2p import inbound, receiver
from relay.transports.i2p.listener import I2PListener
from relay.transports.i2p.messages import stream_connect, stream_forward

CLOSED = "Bad file descriptor"

pytestmark = pytest.mark.parametrize("bridge", ["i2pd", "java"], indirect=True)


@pytest.fixture(autouse=True)
def prompt(monkeypatch, times, tmp_path):
    make_prompt(times)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


# -- how it begins --


@pytest.mark.parametrize("way", ["accept", "forward", None])
def test_a_stream_comes_with_the_destination_of_who_connects(listen, clients, way):
    there = listen(accept=way)
    with clients.connect(there, b"hello") as near:
        far, peer = accept(there)
        with far:
            assert isinstance(peer, Peer)
            assert peer == clients.dest
            assert receive_exactly(far.socket, 5) == b"hello"
            far.socket.sendall(b"answer")
            assert receive_exactly(near.socket, 6) == b"answer"


def test_nothing_begins_before_it_is_started(listen, bridge):
    there = listen(start=False)
    assert there.state == "connecting"
    assert there.dest == there.b32 == there.address == ""
    assert not bridge.commands
    there.close()
    assert there.state == "closed"


def test_a_start_has_a_time_out_all_the_same(listen, bridge):
    bridge.settings.build_time = 60.0
    there = listen(start=False)
    with pytest.raises(ConnectError, match="not connected in time") as caught:
        there.start(0.05)
    assert caught.value.reason == "connect_timeout"
    for wrong, kind in ((0, ValueError), ("1", TypeError)):
        with pytest.raises(kind):
            there.start(wrong)


def test_the_bridge_that_hands_no_streams_over_in_time(listen, bridge):
    bridge.hold_answers("STREAM")
    there = listen(start=False)
    with pytest.raises(ConnectError) as caught:
        there.start(0.3)
    assert caught.value.reason == "connect_timeout"


def test_forward_that_is_refused_is_an_error_at_once_where_it_was_asked_for(listen, bridge, monkeypatch):
    monkeypatch.setattr(inbound, "stream_forward", lambda session, number: stream_connect(session, "nobody.i2p"))
    with pytest.raises(SAMError, match="refuses to deliver streams"):
        listen(accept="forward")


def test_a_session_that_is_lost_before_streams_can_come_is_an_error(listen, bridge):
    bridge.hold_answers("STREAM")
    there = listen(start=False)
    starting = Thread(there.start)
    wait_until(lambda: any(command.words[0] == "STREAM" for command in bridge.commands))
    bridge.cut()
    with pytest.raises(relay.CarrierError, match="ended the session"):
        starting.result()


# -- keys --


def test_a_file_of_keys_is_made_once_and_names_the_destination(listen, tmp_path):
    path = tmp_path / "me.dat"
    there = listen(keys=str(path))
    assert PrivateKey.from_bytes(path.read_bytes()).destination == there.dest
    with pytest.raises(SAMError, match=r"me\.dat: the key is in use"):
        listen(keys=str(path))


# -- the way in --


@pytest.fixture
def way_of(bridge, listen):
    """Makes a listener; returns by which command it has asked for streams at last."""

    def way_of(**options):
        dest = listen(**options).dest
        (ours,) = [one.id for one in bridge.sessions if one.destination == dest]
        return [command.words[1] for command in bridge.commands if command.options.get("ID") == ours][-1]

    return way_of


def test_forward_where_the_router_can_reach_us(way_of):
    assert way_of() == "FORWARD"
    assert way_of(accept="accept") == "ACCEPT"
    assert way_of(accept="forward") == "FORWARD"
    assert way_of(allow=()) == "FORWARD"


@pytest.fixture
def no_users(monkeypatch):
    """A system that does not report the users of connections."""

    def unknown():
        raise OSError("not on this system")

    monkeypatch.setattr(receiver, "PeerUidLookup", unknown)


def test_accept_where_the_system_does_not_report_users(way_of, listen, no_users):
    assert way_of() == "ACCEPT"
    with pytest.raises(SAMError, match="accept='forward' requires the user IDs of connections.*use 'accept'"):
        listen(accept="forward")


def test_forward_elsewhere_where_you_ask_for_it_and_no_list_depends_on_it(way_of, listen, no_users, monkeypatch):
    monkeypatch.setattr(receiver.sys, "platform", "darwin")
    assert way_of() == "ACCEPT"
    assert way_of(accept="forward") == "FORWARD"
    with pytest.raises(SAMError, match="use 'accept'"):
        listen(accept="forward", deny=(PrivateKey.generate().b32,))


def test_accept_where_the_kernel_does_not_report_users_of_closed_connections(way_of, monkeypatch):
    monkeypatch.setattr(receiver.PeerUidLookup, "_find_closed", lambda self: False)
    assert way_of() == "ACCEPT"
    assert way_of(accept="forward") == "FORWARD"


def test_accept_where_the_user_of_the_bridge_is_not_known(way_of, listen, monkeypatch):
    monkeypatch.setattr(receiver.PeerUidLookup, "of", lambda self, connection: None)
    assert way_of() == "ACCEPT"
    with pytest.raises(SAMError, match="accept='forward' requires the router's user ID"):
        listen(accept="forward")


def test_accept_where_the_bridge_is_not_on_the_loopback(way_of, listen, monkeypatch):
    monkeypatch.setattr(receiver, "is_local", lambda session: False)
    assert way_of() == "ACCEPT"
    with pytest.raises(SAMError, match="accept='forward' requires a router on this machine"):
        listen(accept="forward")


def test_accept_where_forward_is_refused(listen, monkeypatch, clients, caplog):
    monkeypatch.setattr(inbound, "stream_forward", lambda session, number: stream_connect(session, "nobody.i2p"))
    there = listen()
    assert "switching from STREAM FORWARD to STREAM ACCEPT" in caplog.text
    with clients.connect(there):
        accept(there)[0].close()


def test_accept_where_forwarded_streams_do_not_arrive(listen, monkeypatch, clients, caplog):
    """The router may be in a container, where our loopback is not its own."""
    monkeypatch.setattr(inbound, "stream_forward", lambda session, number: stream_forward(session, 9))
    there = listen()
    assert there.wait_published(WAIT)
    assert "streams do not arrive" in caplog.text
    with clients.connect(there):
        accept(there)[0].close()


# -- who is let in --


def test_who_is_denied_is_reset_and_the_next_one_is_let_in(bridge, listen, clients, caplog):
    with contextlib.closing(i2p("nobody.i2p", sam=bridge.sam)) as other:
        other.ready(WAIT)
        there = listen(deny=(other.dest,))
        denied = i2p(there.dest, sam=bridge.sam)
        with contextlib.closing(denied), clients.connect(denied) as stream:
            assert denied.dest == other.dest, "they share a session"
            next_one = Thread(there.accept)
            assert ending(stream.socket) in ("reset", "end of file")
            assert "is denied" in caplog.text
            with clients.connect(clients.factory(there, session="another")):
                next_one.result()[0].close()


def test_a_tunnel_is_told_who_is_denied_and_why(listen, clients):
    there = listen(allow=())
    with clients.connect(there):
        stream, peer = Thread(there.accept_any).result()
        with stream:
            assert peer == clients.dest
            assert isinstance(stream.denied, ConnectError)
            assert stream.denied.reason == "denied"
            assert peer.b32 in str(stream.denied)


# -- what waits --


@pytest.mark.parametrize("way", ["accept", "forward"])
def test_what_nobody_accepts_waits_at_the_router_and_nobody_is_dropped(listen, clients, monkeypatch, way):
    monkeypatch.setattr("relay.streams.accept_queue.MOST", 4)
    there = listen(accept=way)
    assert there.wait_published(WAIT)
    with contextlib.ExitStack() as stack:
        factory = clients.factory(there)
        stack.enter_context(clients.connect(factory, b"a"))
        more = [Thread(clients.connect, factory, text) for text in (b"b", b"c", b"d", b"e", b"f", b"g", b"h", b"i")]
        wait_until(lambda: there._receiver._incoming.paused)
        held = len(there._queue)
        assert 4 <= held <= 4 + inbound.SEVERAL
        texts = set()
        for _ in range(9):
            stream, _ = accept(there)
            stack.enter_context(stream)
            texts.add(receive_exactly(stream.socket, 1))
        assert b"".join(sorted(texts)) == b"abcdefghi"
        for thread in more:
            stack.enter_context(thread.result())
        wait_until(lambda: not there._receiver._incoming.paused)


# -- losses --


def test_a_failure_that_time_does_not_mend_is_raised_once_by_accept(listen, bridge):
    states = States()
    there = listen(states=states)
    bridge.refuse_sessions(100, "INVALID_KEY")
    waiting = Thread(there.accept)
    bridge.cut()
    _, error = states.wait_for("failed")
    assert isinstance(error, SAMError)
    with pytest.raises(SAMError, match="private key"):
        waiting.result()
    again = Thread(there.accept)
    again.join(0.05)
    assert again.is_alive()
    there.close()
    with pytest.raises(OSError, match=CLOSED):
        again.result()


def test_what_has_failed_is_tried_again_after_a_while(listen, bridge, times):
    times(listener_failed=0.05, retry_failed=0.01)
    states = States()
    listen(states=states)
    states.wait_for("published")
    bridge.refuse_sessions(1000, "INVALID_KEY")  # also that of the check, which may be asked for first
    bridge.cut()
    states.wait_for("failed")
    bridge.refuse_sessions(0, "INVALID_KEY")
    states.wait_for("published")


def test_a_way_in_that_cannot_be_made_for_now_is_made_later(listen, bridge, monkeypatch, times, caplog, clients):
    times(receive_again=0.01)
    states = States()
    there = listen(states=states)
    states.wait_for("published")
    failures = [OSError(24, "Too many open files")] * 3
    real = inbound.ForwardPort

    def port(*arguments, **options):
        if failures:
            raise failures.pop()
        return real(*arguments, **options)

    monkeypatch.setattr(inbound, "ForwardPort", port)
    bridge.cut()
    states.wait_for("published")
    assert not failures
    assert "here: cannot receive streams: [Errno 24] Too many open files" in caplog.text
    with clients.connect(there):
        accept(there)[0].close()


# -- its end --


@pytest.mark.parametrize("state", ["connecting", "building", "arming", "up", "backing off", "failed"])
def test_close_takes_less_than_a_second_in_every_state(listen, bridge, state):
    states = States()
    if state == "connecting":
        bridge.hold_answers("HELLO")
    elif state == "building":
        bridge.settings.build_time = 40.0
    elif state == "arming":
        bridge.hold_answers("STREAM")
    there = listen(start=False, states=states)
    starting = Thread(there.start)
    wanted = {"connecting": "HELLO", "building": "SESSION", "arming": "STREAM"}.get(state)
    if wanted is not None:
        wait_until(lambda: any(command.words[0] == wanted for command in bridge.commands))
    else:
        starting.result()
    if state == "backing off":
        bridge.kill()
        states.wait_for("backing off")
    elif state == "failed":
        bridge.refuse_sessions(100, "INVALID_KEY")
        bridge.cut()
        states.wait_for("failed")
    begun = time.monotonic()
    there.close()
    assert time.monotonic() - begun < PROMPT
    there.close()
    there.join(WAIT)
    if wanted is not None:
        with pytest.raises(relay.CarrierError, match="was closed"):
            starting.result()


@pytest.mark.parametrize("moment", ["before", "while it starts"])
def test_close_frees_everything_before_it_has_started(listen, monkeypatch, moment):
    there = listen(start=False)
    holder = there._holder
    real = holder.carrier

    def carrier():
        made = real()
        if there.state != "closed":  # start() acquires another carrier later, and ends it
            there.close()
            made.join(WAIT)
        return made

    if moment == "before":
        there.close()
    else:
        monkeypatch.setattr(holder, "carrier", carrier)
    with pytest.raises(relay.CarrierError, match="was closed"):
        there.start()  # the check for leaks finds a thread, if one is left


def test_it_can_be_closed_from_the_thread_that_tells_of_it(listen):
    closed = threading.Event()

    def close(state, error):
        if state == "up":
            there.close()
            closed.set()

    there = listen(start=False, states=close)
    starting = Thread(there.start)
    assert closed.wait(WAIT)
    with contextlib.suppress(OSError):
        starting.result()


def test_a_stream_outlives_the_listener_and_the_session_ends_with_it(listen, clients, bridge):
    there = listen()
    with clients.connect(there) as near:
        far, _ = accept(there)
        there.close()
        assert there.state == "closed"
        far.socket.sendall(b"still there")
        assert receive_exactly(near.socket, 11) == b"still there"
        assert any(one.destination == there.dest for one in bridge.sessions)
        far.close()
        there.join(WAIT)
        wait_until(lambda: all(one.destination != there.dest for one in bridge.sessions))


# -- under a tunnel --


@pytest.fixture
def echo(echo_server):
    return functools.partial(relay.tcp, *echo_server.address)


@pytest.mark.parametrize("options", [{}, {"nconnect": 3}])
@pytest.mark.parametrize("way", ["accept", "forward"])
def test_a_tunnel_relays_what_comes(listen, clients, echo, way, options):
    there = listen(accept=way)
    with relay.Tunnel(there, echo(), **options) as tunnel:
        assert tunnel.address == there.b32
        for text in (b"one", b"two", b"three"):
            with clients.connect(there, text) as stream:
                assert receive_exactly(stream.socket, len(text)) == text
        wait_until(lambda: len(tunnel.recent()) == 3)
        assert {record.peer for record in tunnel.recent()} == {clients.dest}
    assert there.state == "closed"


def test_without_a_limit_streams_are_accepted_in_the_relay_thread(listen, clients, echo):
    there = listen(accept="forward")
    with relay.Tunnel(there, echo()) as tunnel:
        wait_until(lambda: there._receiver._incoming._port._watching is tunnel._relay.loop)
        with clients.connect(there, b"x") as stream:
            assert receive_exactly(stream.socket, 1) == b"x"
    with pytest.raises(OSError, match=CLOSED):
        there.accept()


@pytest.mark.parametrize("end", ["close", "what a retry cannot fix"])
def test_one_that_is_patient_ends(bridge, end, caplog):
    bridge.kill()
    away = threading.Event()
    router = (
        I2PRouter(sam=parse_sam(bridge.sam), user="me", password=lambda: 1 / 0)
        if end != "close"
        else I2PRouter(sam=parse_sam(bridge.sam))
    )
    with I2PListener(I2PListen(router), network(), "here") as there:
        there.subscribe(lambda state, error: state == CarrierState.BACKING_OFF.value and away.set())
        starting = Thread(lambda: there.start(WAIT, patient=True))
        if end == "close":
            assert away.wait(WAIT)
            there.close()
        with pytest.raises(CarrierError if end == "close" else RelayError):
            starting.result()
    assert "will not retry" not in caplog.text, "the caller reports it"
