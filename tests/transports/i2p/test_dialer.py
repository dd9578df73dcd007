"""``relay.transports.i2p.dialer``: streams to a destination over a session that is shared, supervised and replaced."""

import contextlib
import gc
import queue
import socket
import threading
import time

import pytest
from helpers import WAIT, Thread, ended, ending, exchange, in_child, receive_exactly, wait_until
from sam_rig import DEST, ScriptedBridge, io_thread_ends, pass_deadlines

import relay
from relay.addresses.i2p import I2PRouter, I2PTarget
from relay.addresses.i2p_parser import parse_sam
from relay.carriers.link import CarrierState
from relay.errors import AuthenticationError, ConnectError
from relay.streams.dialer import Upgrade
from relay.targets.group import TargetGroup
from relay.transports.chain import network
from relay.transports.i2p.dialer import I2PFactory
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

    def asked(self, command):
        return [line for line in self.bridge.asked if line.startswith(command)]


@pytest.fixture
def world(times):
    times(back_off=(0.01, 0.02))
    with contextlib.ExitStack() as stack:
        yield World(stack)


@pytest.fixture
def impatient(times):
    """Streams without an answer are doubted at once."""
    times(silent=0.05)


def soon():
    return time.monotonic() + WAIT


def up(factory):
    factory.ready(WAIT)
    return factory.carrier()


# -- streams ----------------------------------------------------------------------------------------------------------


def test_a_socket_alone_keeps_the_session_and_no_longer(world):
    factory = world.factory()
    end = factory.open_socket(soon())
    far, (control,) = world.bridge.stream(), world.bridge.controls
    end.settimeout(WAIT)
    exchange(end, far)
    assert factory.state == "closed" and not control.over.is_set()
    end.close()
    assert control.over.wait(WAIT)
    io_thread_ends()


def test_a_socket_keeps_it_although_the_session_was_renewed_meanwhile(world, impatient):
    factory = world.factory()
    end = factory.open_socket(soon())
    wait_until(lambda: len(world.bridge.controls) == 2)
    old, new = world.bridge.controls
    end.close()
    assert old.over.wait(WAIT) and new.over.wait(WAIT)
    io_thread_ends()


def test_a_factory_that_is_forgotten_lets_it_go(world):
    router = I2PRouter(sam=parse_sam(world.bridge.name))
    factory = I2PFactory(I2PTarget(DEST, None, router), network())
    factory(deadline=soon()).close()
    del factory
    gc.collect()
    assert world.bridge.controls[0].over.wait(WAIT)


# -- how streams end --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["control", "stream", "stream's reset"])
def test_a_stream_whose_session_is_lost_ends_by_a_reset(world, first, times):
    times(settle=2.0)
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


# -- sessions ---------------------------------------------------------------------------------------------------------


def test_a_session_that_the_router_does_not_know_any_more_is_made_again_unseen(world):
    factory = world.factory()
    up(factory)
    world.bridge.answers.append("STREAM STATUS RESULT=INVALID_ID")
    factory(deadline=soon()).close()
    assert len(world.asked("SESSION CREATE")) == 2


@pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="only Linux tells how much a connection has received")
def test_a_deaf_session_under_tls_is_renewed(world, impatient, certificates):
    client = Client("localhost", 1, None, certificates.ca, None, None)
    factory = Upgrade(world.factory(), "tls://x.i2p:443", begin=client.upgrade)
    tunnel = world.tunnel(factory)
    world.client(tunnel)
    wait_until(lambda: len(world.bridge.controls) == 2)


# -- waiting for it ---------------------------------------------------------------------------------------------------


def test_one_that_has_failed_says_why_and_no_secret(world):
    world.bridge.hello = ["HELLO REPLY RESULT=I2P_ERROR"] * 9
    factory = world.factory(user="me", password="se cret")
    for attempt in (factory.ready, lambda: factory(deadline=soon())):
        with pytest.raises(AuthenticationError, match="check the SAM user and password"):
            attempt()
    assert (factory.state, factory.dest, len(world.bridge.hellos)) == ("failed", "", 1)
    assert "check the SAM user" in factory.last_error
    assert "se cret" not in repr(factory) + repr(factory.carrier()) + factory.last_error


@pytest.mark.parametrize(("timeout", "error"), [(0, ValueError), (-1, ValueError), ("1", TypeError)])
def test_bad_times_are_named(world, timeout, error):
    with pytest.raises(error, match="timeout"):
        world.factory().ready(timeout)
    with pytest.raises(error, match="timeout"):
        world.factory().look_up(timeout)


def slow(far):
    """A session that is never made."""
    far.over.wait()


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
    factory, cancel = world.factory(), relay.streams.promise.Cancellation()
    up(factory)
    world.bridge.answers.append(slow)
    call = Thread(lambda: factory(cancel=cancel))
    wait_until(lambda: world.asked("STREAM CONNECT"))
    cancel.set()
    with pytest.raises(ConnectError, match="given up"):
        call.result()
    cancel.close()
    wait_until(lambda: factory.carrier().link.streams == 0)


def test_a_forked_child_makes_its_own_session(world):
    factory = world.factory()
    up(factory)
    far_control = world.bridge.controls[0]
    assert in_child(lambda: factory.dest == "" and factory.carrier().state is CarrierState.CONNECTING) == 0
    with factory(deadline=soon()) as stream:
        stream.socket.settimeout(WAIT)
        exchange(stream.socket, world.bridge.stream())
    assert not far_control.over.is_set()
