"""``relay.transports.i2p.dialer``: streams to a destination over a session that is shared, supervised and replaced."""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import socket
import threading
import time

import pytest
from helpers import (
    PROMPT,
    WAIT,
    Thread,
    ended,
    ending,
    exchange,
    fate_of_client,
    receive_all,
    receive_exactly,
    refusing,
    wait_until,
)
from sam_rig import DEST, KEY, ScriptedBridge, pass_deadlines

import relay
from relay.addresses.destinations import PrivateKey, b32_of
from relay.addresses.i2p import I2PRouter, I2PTarget
from relay.addresses.i2p_parser import parse_sam
from relay.carriers import retry
from relay.carriers.link import CarrierState
from relay.errors import AuthenticationError, CarrierError, ConnectError, SAMError
from relay.eventloop.background import IOThread
from relay.streams.dialer import Upgrade
from relay.targets.group import TargetGroup
from relay.transports.chain import network
from relay.transports.i2p.dialer import I2PFactory
from relay.transports.i2p.key_file import write
from relay.transports.i2p.unconfirmed import UnconfirmedStream
from relay.transports.tls.client import Client


class World:
    """A scripted bridge, and factories that lead there."""

    def __init__(self, stack):
        self.stack = stack
        self.bridge = ScriptedBridge()
        stack.callback(self.bridge.close)

    def factory(self, dest=DEST, port=None, **options):
        router = I2PRouter(sam=parse_sam(self.bridge.name), **options)
        return self.stack.enter_context(I2PFactory(I2PTarget(dest, port, router), network()))

    def tunnel(self, factory=None, **options):
        return self.stack.enter_context(relay.Tunnel(relay.listen(":0"), factory or self.factory(), **options))

    def client(self, tunnel):
        """A new client of a tunnel, and the far end of its stream."""
        client = self.stack.enter_context(socket.create_connection(tunnel.address, timeout=WAIT))
        return client, self.bridge.stream()

    def sessions(self):
        return [line for line in self.bridge.asked if line.startswith("SESSION CREATE")]

    def connects(self):
        return [line.split(" ")[2] for line in self.bridge.asked if line.startswith("STREAM CONNECT")]


@pytest.fixture
def world(monkeypatch):
    monkeypatch.setattr(retry, "_BACKOFF", (0.01, 0.02))
    with contextlib.ExitStack() as stack:
        yield World(stack)


@pytest.fixture
def impatient(monkeypatch):
    """Streams without an answer are doubted at once."""
    monkeypatch.setattr("relay.transports.i2p.unconfirmed.SILENT", 0.05)


def soon():
    return time.monotonic() + WAIT


def up(factory):
    factory.ready(WAIT)
    return factory.carrier()


# -- streams ----------------------------------------------------------------------------------------------------------


def test_a_call_makes_a_stream(world):
    factory = world.factory()
    with factory(deadline=soon()) as stream:
        stream.socket.settimeout(WAIT)
        exchange(stream.socket, world.bridge.stream())
    assert factory.dest == KEY.destination and factory.state == "up" and factory.last_error is None
    (session,) = world.sessions()
    assert " STYLE=STREAM " in session and " DESTINATION=TRANSIENT " in session and "SIGNATURE_TYPE=7" in session


def test_nothing_is_made_before_it_is_needed(world):
    factory = world.factory()
    assert (factory.state, factory.dest, factory.last_error) == ("closed", "", None)
    assert factory.target == f"i2p://{b32_of(DEST)}"
    assert not world.bridge.hellos and IOThread._current is None
    assert world.factory("echo.i2p", 81).target == "i2p://echo.i2p:81"


def test_those_who_ask_for_the_same_share_a_session(world):
    one, other, third = world.factory(), world.factory("echo.i2p", 81), world.factory(in_depth=1)
    for factory in (one, other, third):
        factory(deadline=soon()).close()
    assert len(world.sessions()) == 2
    first, second, last = world.connects()
    assert first == second != last


def test_a_socket_alone_keeps_the_session_and_no_longer(world):
    factory = world.factory()
    end = factory.open_socket(soon())
    far, (control,) = world.bridge.stream(), world.bridge.controls
    end.settimeout(WAIT)
    exchange(end, far)
    assert factory.state == "closed" and not control.over.is_set()
    end.close()
    assert control.over.wait(WAIT)
    wait_until(lambda: IOThread._current is None)


def test_several_sockets_keep_it(world):
    factory = world.factory()
    ends = [factory.open_socket(soon()) for _ in range(5)]
    (control,) = world.bridge.controls
    for end in ends[:-1]:
        end.close()
    ends[-1].settimeout(WAIT)
    streams = [world.bridge.stream() for _ in ends]  # in any order
    ends[-1].sendall(b"ping")
    said = [receive_exactly(stream, 4) for stream in streams]
    assert sorted(said) == [b""] * 4 + [b"ping"]
    streams[said.index(b"ping")].sendall(b"pong")
    assert receive_exactly(ends[-1], 4) == b"pong"
    assert not control.over.is_set()
    ends[-1].close()
    assert control.over.wait(WAIT)


def test_a_socket_keeps_it_although_the_session_was_renewed_meanwhile(world, impatient):
    factory = world.factory()
    end = factory.open_socket(soon())
    wait_until(lambda: len(world.bridge.controls) == 2)
    old, new = world.bridge.controls
    end.close()
    assert old.over.wait(WAIT) and new.over.wait(WAIT)
    wait_until(lambda: IOThread._current is None)


def test_a_factory_that_was_closed_leaves_its_streams(world):
    factory = world.factory()
    with factory(deadline=soon()) as stream:
        far, (control,) = world.bridge.stream(), world.bridge.controls
        factory.close()
        factory.close()
        stream.socket.settimeout(WAIT)
        exchange(stream.socket, far)
    assert control.over.wait(WAIT)


def test_a_factory_that_is_forgotten_lets_it_go(world):
    router = I2PRouter(sam=parse_sam(world.bridge.name))
    factory = I2PFactory(I2PTarget(DEST, None, router), network())
    factory(deadline=soon()).close()
    del factory
    gc.collect()
    assert world.bridge.controls[0].over.wait(WAIT)


def test_a_tunnel_lets_it_go(world):
    tunnel = world.tunnel()
    client, far = world.client(tunnel)
    exchange(client, far)
    tunnel.close()
    assert world.bridge.controls[0].over.wait(WAIT)
    wait_until(lambda: IOThread._current is None)


# -- how streams end --------------------------------------------------------------------------------------------------


def test_a_stream_that_its_peer_ends_is_done(world):
    tunnel = world.tunnel()
    client, far = world.client(tunnel)
    exchange(client, far)
    far.sendall(b"bye")
    far.close()
    assert receive_all(client) == b"bye"
    client.close()
    assert ended(tunnel) == ["done"]


def test_a_stream_on_which_nobody_answers_is_reset(world, caplog):
    tunnel = world.tunnel()
    client, far = world.client(tunnel)
    client.sendall(b"request")
    assert receive_exactly(far, 7) == b"request"
    far.close()
    assert ending(client) == "reset"
    assert ended(tunnel) == ["unreachable"]
    assert f"i2p://{b32_of(DEST)}: closed before sending any data" in caplog.text


@pytest.mark.parametrize("first", ["control", "stream", "stream's reset"])
def test_a_stream_whose_session_is_lost_ends_by_a_reset(world, first, monkeypatch):
    monkeypatch.setattr("relay.transports.i2p.opening.SETTLE", 2.0)
    tunnel = world.tunnel()
    client, far = world.client(tunnel)
    exchange(client, far)
    far.sendall(b"some")
    assert receive_exactly(client, 4) == b"some"
    control = world.bridge.controls[0]
    ends = {"control": control.close, "stream": far.close, "stream's reset": far.reset}
    ends[first]()
    threading.Event().wait(0.02)
    control.close()
    far.close()
    assert ending(client) == "reset"
    assert ended(tunnel) == ["carrier_lost"]


def test_a_router_that_dies_with_many_streams(world):
    tunnel = world.tunnel()
    pairs = [world.client(tunnel) for _ in range(20)]
    for _, far in pairs:
        far.sendall(b"x")
    for client, _ in pairs:
        assert receive_exactly(client, 1) == b"x"
    for end in list(world.bridge.ends)[::-1]:  # the control socket last
        end.close()
    assert {ending(client) for client, _ in pairs} == {"reset"}
    assert set(ended(tunnel, 20)) == {"carrier_lost"}
    client, far = world.client(tunnel)
    exchange(client, far)


def test_a_lambda_around_it_is_as_good(world):
    factory = world.factory()
    tunnel = world.tunnel(lambda: factory(deadline=soon()))
    client, far = world.client(tunnel)
    client.sendall(b"request")
    assert receive_exactly(far, 7) == b"request"
    far.close()
    assert ending(client) == "reset"
    client, far = world.client(tunnel)
    exchange(client, far)
    far.close()
    world.bridge.controls[0].close()
    assert ending(client) == "reset"
    assert ended(tunnel, 2) == ["unreachable", "carrier_lost"]


def test_silence_of_the_router_is_the_connect_timeout(world):
    world.bridge.answers.append(world.bridge._create)
    tunnel = world.tunnel(connect_timeout=0.3)
    up(tunnel._relay._make_send)
    world.bridge.answers.append(lambda far: far.over.wait())
    assert fate_of_client(tunnel.address) == "reset"
    assert ended(tunnel) == ["connect_timeout"]


def test_a_client_that_goes_ends_its_stream(world):
    world.bridge.answers += [world.bridge._create, lambda far: far.line() or world.bridge.streams.put(far)]
    tunnel = world.tunnel()
    client = socket.create_connection(tunnel.address, timeout=WAIT)
    wait_until(lambda: world.connects())
    relay.eventloop.sockets.reset(client)
    world.bridge.stream()
    assert ended(tunnel) == ["client_reset"]


# -- sessions ---------------------------------------------------------------------------------------------------------


def test_a_session_that_is_lost_is_made_again(world):
    factory = world.factory()
    states = queue.SimpleQueue()
    up(factory)
    factory.subscribe(lambda state, error: states.put((state, str(error))))
    world.bridge.controls[0].close()
    seen = [states.get(timeout=WAIT) for _ in range(3)]
    assert [state for state, _ in seen] == [CarrierState.BACKING_OFF, CarrierState.CONNECTING, CarrierState.UP]
    assert seen[0][1].endswith("the router has ended the session")
    factory(deadline=soon()).close()
    assert len(world.sessions()) == 2
    assert len({line.split(" ")[3] for line in world.sessions()}) == 2, "each has an id of its own"


def test_a_session_that_the_router_does_not_know_any_more_is_made_again_unseen(world):
    factory = world.factory()
    up(factory)
    world.bridge.answers.append("STREAM STATUS RESULT=INVALID_ID")
    factory(deadline=soon()).close()
    assert len(world.sessions()) == 2


def test_a_session_whose_streams_do_not_answer_is_renewed_beside_it(world, impatient, caplog):
    factory = world.factory()
    states = []
    tunnel = world.tunnel(factory)
    client, far = world.client(tunnel)
    factory.subscribe(lambda state, error: states.append(state))
    wait_until(lambda: len(world.bridge.controls) == 2)
    wait_until(lambda: factory.carrier().link.id in world.sessions()[1])
    old, new = world.bridge.controls
    other, other_far = world.client(tunnel)
    exchange(other, other_far)
    first, last = world.connects()
    assert first != last, "new streams go to the new one"
    exchange(client, far, b"late, but sound")
    assert not old.over.is_set()
    far.close()
    assert receive_all(client) == b""
    client.close()
    assert old.over.wait(WAIT), "it ends with its last stream"
    exchange(other, other_far)
    assert not new.over.is_set() and set(states) <= {CarrierState.UP}
    assert ended_first(tunnel) == "done"
    assert "brings no data" in caplog.text


def ended_first(tunnel):
    wait_until(lambda: tunnel.recent())
    return tunnel.recent()[0].reason


def test_it_is_not_renewed_for_each_such_stream(world, impatient):
    tunnel = world.tunnel()
    for _ in range(5):
        world.client(tunnel)
    wait_until(lambda: len(world.bridge.controls) == 2)
    for _ in range(5):
        world.client(tunnel)
    threading.Event().wait(0.3)
    assert len(world.bridge.controls) == 2


def test_a_session_whose_streams_answer_stays(world):
    factory = world.factory()
    client, far = world.client(world.tunnel(factory))
    exchange(client, far)
    deadlines, looked = factory.carrier().link.unconfirmed._deadlines, threading.Event()
    (doubted,) = [item for item in deadlines._due if isinstance(item, UnconfirmedStream)]
    deadlines.loop.call(lambda: doubted.expire(time.monotonic()) or looked.set())
    assert looked.wait(WAIT)
    threading.Event().wait(0.2)
    assert len(world.bridge.controls) == 1


def test_a_session_with_keys_is_not_renewed(world, impatient, tmp_path):
    write(tmp_path / "k.dat", PrivateKey.generate())
    tunnel = world.tunnel(world.factory(keys=str(tmp_path / "k.dat")))
    world.client(tunnel)
    threading.Event().wait(0.2)
    assert len(world.bridge.controls) == 1


@pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="only Linux tells how much a connection has received")
def test_a_deaf_session_under_tls_is_renewed(world, impatient, certificates):
    client = Client("localhost", 1, None, certificates.ca, None, None)
    factory = Upgrade(world.factory(), "tls://x.i2p:443", begin=client.upgrade)
    tunnel = world.tunnel(factory)
    world.client(tunnel)
    wait_until(lambda: len(world.bridge.controls) == 2)


# -- waiting for it ---------------------------------------------------------------------------------------------------


def test_ready_waits(world):
    factory = world.factory()
    factory.ready()
    assert factory.state == "up"


def test_ready_says_that_nobody_is_there():
    with refusing() as (_, port):
        router = I2PRouter(sam=parse_sam(f"127.0.0.1:{port}"))
        with I2PFactory(I2PTarget(DEST, None, router), network()) as factory:
            with pytest.raises(ConnectError, match="no SAM bridge there") as caught:
                factory.ready(WAIT)
            assert caught.value.reason == "refused"
            assert "no SAM bridge there" in factory.last_error and factory.dest == ""


@pytest.mark.parametrize(
    ("hello", "error", "text"),
    [
        ("HTTP/1.0 400 Bad Request", SAMError, "not a SAM bridge"),
        ("HELLO REPLY RESULT=NOVERSION", SAMError, "update the router"),
        ("HELLO REPLY RESULT=I2P_ERROR", AuthenticationError, "check the SAM user and password"),
    ],
)
def test_ready_says_what_is_wrong(world, hello, error, text):
    world.bridge.hello = [hello] * 9
    factory = world.factory(user="me", password="se cret")
    for attempt in (factory.ready, lambda: factory(deadline=soon())):
        with pytest.raises(error, match=text) as caught:
            attempt()
        assert "se cret" not in str(caught.value) and "\n" not in str(caught.value)
    assert factory.state == "failed" and len(world.bridge.hellos) == 1
    assert "se cret" not in repr(factory) + repr(factory.carrier()) + str(factory.last_error)


@pytest.mark.parametrize(("timeout", "error"), [(0, ValueError), (-1, ValueError), ("1", TypeError)])
def test_bad_times_are_named(world, timeout, error):
    with pytest.raises(error, match="timeout"):
        world.factory().ready(timeout)
    with pytest.raises(error, match="timeout"):
        world.factory().look_up(timeout)


def slow(far):
    """A session that is never made."""
    far.over.wait()


def test_ready_has_its_time(world):
    world.bridge.answers.append(slow)
    begun = time.monotonic()
    with pytest.raises(ConnectError, match="not connected in time"):
        world.factory().ready(0.1)
    assert time.monotonic() - begun < PROMPT


def test_close_is_prompt_while_a_session_is_made(world):
    world.bridge.answers.append(slow)
    factory = world.factory()
    ready = Thread(factory.ready)
    wait_until(lambda: world.sessions())
    begun = time.monotonic()
    factory.close()
    assert time.monotonic() - begun < PROMPT
    with pytest.raises(CarrierError):
        ready.result()
    wait_until(lambda: IOThread._current is None)


def test_a_client_waits_for_a_session_that_is_slow(world):
    go = threading.Event()
    world.bridge.answers.append(lambda far: (go.wait(WAIT), world.bridge._create(far)))
    tunnel = world.tunnel()
    client = socket.create_connection(tunnel.address, timeout=WAIT)
    with client:
        wait_until(lambda: world.sessions())
        go.set()
        exchange(client, world.bridge.stream())


def test_look_up(world):
    assert world.factory().look_up() == DEST
    assert not world.bridge.hellos, "there is nothing to look up"
    world.bridge.names["echo.i2p"] = DEST
    assert world.factory("echo.i2p").look_up(WAIT) == DEST
    with pytest.raises(ConnectError, match="nobody.i2p: the router does not know this name"):
        world.factory("nobody.i2p").look_up(WAIT)


def test_a_look_up_has_its_time(world):
    factory = world.factory("echo.i2p")
    up(factory)
    world.bridge.answers.append(slow)
    with pytest.raises(ConnectError, match=r"echo\.i2p: name lookup timed out"):
        factory.look_up(0.05)


def test_a_target_whose_name_is_not_found_in_time_leaves_time_for_the_next_one(world, monkeypatch):
    monkeypatch.setattr("relay.targets.group._FAIR", 0.0)  # its seconds pass at once here
    factory, next_one = world.factory("echo.i2p"), world.factory(in_depth=1)
    carrier, _ = up(factory), up(next_one)
    world.bridge.answers += ["STREAM STATUS RESULT=INVALID_KEY", slow]
    told = queue.SimpleQueue()
    group = world.stack.enter_context(TargetGroup([factory, next_one]))
    group.dial(soon(), told.put)
    wait_until(lambda: world.bridge.asked[-1].startswith("NAMING LOOKUP"))
    pass_deadlines(carrier.link, WAIT / 4)
    with told.get(timeout=WAIT) as stream:
        assert stream.target == next_one.target
    assert [state.failures for state in group.states()] == [1, 0]


def test_a_call_can_be_cancelled(world):
    factory, cancel = world.factory(), relay.streams.cancellation.Cancellation()
    up(factory)
    world.bridge.answers.append(slow)
    call = Thread(lambda: factory(cancel=cancel))
    wait_until(lambda: world.connects())
    cancel.set()
    with pytest.raises(ConnectError, match="given up"):
        call.result()
    cancel.close()
    wait_until(lambda: factory.carrier().link.streams == 0)


def test_a_forked_child_makes_its_own_session(world):
    factory = world.factory()
    up(factory)
    far_control = world.bridge.controls[0]
    child = os.fork()
    if child == 0:
        os._exit(0 if factory.dest == "" and factory.carrier().state is CarrierState.CONNECTING else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with factory(deadline=soon()) as stream:
        stream.socket.settimeout(WAIT)
        exchange(stream.socket, world.bridge.stream())
    assert not far_control.over.is_set()
