"""``relay.compat.rforward`` and what it is made of."""

import contextlib
import gc
import logging
import queue
import socket
import threading
import weakref

import paramiko
import pytest
from helpers import (
    PROMPT,
    WAIT,
    Thread,
    closed,
    echo,
    ending,
    exchange,
    is_gone,
    receive_all,
    receive_exactly,
    refusing,
    send_and_end,
    wait_until,
)
from paramiko_rig import asleep
from rforward_rig import LOOPBACK, Scripted, World, greet, hang_up, log_in, still_usable, worlds

import relay
from relay.compat import rforward
from relay.compat._rforward import channels
from relay.compat._rforward import tunnel as reversetunnel
from relay.compat._rforward.channels import _OrderedSender
from relay.compat._rforward.forwards import Forwards
from relay.compat.rforward import RevFwChannelThread, RevFwTunnel, rev_forward_channel_handler, transport_tcp_handler
from relay.testing import check_stream

GRANTED, DENIED, OPENED, REFUSED, CLOSE = 81, 82, 91, 92, 97


@pytest.fixture(params=["ssh_server", "sshd"])
def world(request, openssh_server):
    yield from worlds(request)


@pytest.fixture
def server():
    yield from closed(Scripted())


@pytest.fixture
def impatient(monkeypatch):
    """A server has a quarter of a second for an answer."""
    monkeypatch.setattr(reversetunnel, "_ANSWER", 0.25)


def tunnel_to(transport, target=(LOOPBACK, 9), port=0, **options):
    return RevFwTunnel(port, *target, transport, **options)


# -- arguments and names --


def test_the_names_of_the_original():
    assert rforward.X2GoRevFwTunnel is RevFwTunnel
    assert rforward.X2GoRevFwChannelThread is RevFwChannelThread
    assert rforward.x2go_rev_forward_channel_handler is rev_forward_channel_handler
    assert rforward.x2go_transport_tcp_handler is transport_tcp_handler


def test_its_arguments_keep_their_order_and_defaults(world, echo_server):
    transport = world.transport
    tunnel = RevFwTunnel(0, "localhost", echo_server.address[1], transport, None, None, 56)
    assert (tunnel.server_port, tunnel.remote_host, tunnel.remote_port) == (0, "localhost", echo_server.address[1])
    assert tunnel.daemon
    tunnel.start()
    with world.client(tunnel) as client:
        client.sendall(b"by name")
        assert receive_exactly(client, 7) == b"by name"
    tunnel.stop_thread()
    with pytest.raises(TypeError, match="reconnect"):
        RevFwTunnel(0, LOOPBACK, 9, transport, reconnect=True)


@pytest.mark.parametrize(
    ("values", "error", "text"),
    [
        ((-1, LOOPBACK, 9), ValueError, "server_port: -1 is out of range"),
        ((65536, LOOPBACK, 9), ValueError, "server_port: 65536"),
        (("4713", LOOPBACK, 9), TypeError, "server_port: expected an int, got str"),
        ((0, LOOPBACK, 0), ValueError, "remote_port: 0"),
        ((0, "a b", 9), ValueError, "remote_host: 'a b' is neither"),
        ((0, None, 9), TypeError, "remote_host: expected a str"),
    ],
)
def test_bad_arguments_are_named_at_the_call(server, values, error, text):
    with pytest.raises(error, match=text):
        RevFwTunnel(*values, server.transport)
    with pytest.raises(TypeError, match="ssh_transport: expected a paramiko.Transport, got SSHClient"):
        RevFwTunnel(0, LOOPBACK, 9, paramiko.SSHClient())


# -- its life --


def test_it_may_be_paused_or_stopped_before_it_starts(world):
    listening = world.listener()
    tunnel = tunnel_to(world.transport, listening.getsockname())
    tunnel.pause()
    tunnel.start()
    assert tunnel.server_port == 0
    tunnel.resume()
    exchange(world.client(tunnel), world.accept(listening))
    tunnel.stop_thread()
    with pytest.raises(RuntimeError):
        tunnel.start()
    tunnel = tunnel_to(world.transport)
    tunnel.stop_thread()
    tunnel.start()
    tunnel.join(WAIT)
    assert not tunnel.is_alive()
    assert tunnel.server_port == 0


def test_run_may_be_called_on_a_thread_of_the_callers(world, echo_server):
    tunnel = tunnel_to(world.transport, echo_server.address)
    running = Thread(tunnel.run)
    wait_until(lambda: tunnel.server_port)
    with world.client(tunnel) as client:
        client.sendall(b"echo")
        assert receive_exactly(client, 4) == b"echo"
    tunnel.stop_thread()
    running.result()
    with socket.create_server((LOOPBACK, 0)) as taken, pytest.raises(relay.ForwardError):
        tunnel_to(world.transport, port=taken.getsockname()[1]).run()


def test_the_transport_is_closed_under_it(world, caplog):
    listening = world.listener()
    tunnel, other = world.tunnel(listening), world.tunnel(listening)
    client, far = world.client(tunnel), world.accept(listening)
    exchange(client, far)
    world.transport.close()
    for one in (tunnel, other):
        one.join(WAIT)
        assert not one.is_alive()
        assert isinstance(one.problem, relay.CarrierError)
    assert ending(far) == "reset"
    assert "the SSH connection has ended" in caplog.text
    tunnel.pause()
    with pytest.raises(relay.CarrierError, match="has ended"):
        tunnel.resume()
    tunnel.stop_thread()
    with pytest.raises(relay.CarrierError):
        tunnel_to(world.transport).start()


def test_the_connection_is_lost_under_the_first_request(server):
    starting = Thread(tunnel_to(server.transport, port=4713).start)
    assert server.expect_request()[0] == "tcpip-forward"
    server.server.transport.close()
    with pytest.raises(relay.CarrierError):
        starting.result()


def test_it_sleeps_while_nothing_happens(world):
    tunnel = world.tunnel(world.serve(echo))
    threads = [one for one in threading.enumerate() if one.name == tunnel.name]
    assert len(threads) == 2

    def asleep_for_a_while():
        before = [asleep(one) for one in threads]
        threading.Event().wait(0.3)
        return [asleep(one) for one in threads] == before

    wait_until(asleep_for_a_while)


def test_nothing_holds_a_transport_that_nobody_uses(ssh_server):
    transport = log_in(ssh_server)
    tunnel = tunnel_to(transport)
    tunnel.start()
    tunnel.stop_thread()
    forwards = weakref.ref(Forwards.of(transport))
    assert Forwards.of(transport) is forwards() is Forwards.known(transport)
    hang_up(transport)
    seen = weakref.ref(transport)
    del transport, tunnel
    gc.collect()
    assert seen() is None and forwards() is None


def test_a_handler_of_the_callers_may_stop_a_tunnel(world):
    """In the transport's thread, which must not wait for an answer that it reads itself."""
    tunnel = world.tunnel(world.serve(echo))
    told = queue.SimpleQueue()

    def handler(channel, origin, server):
        channel.close()
        tunnel.pause()
        tunnel.stop_thread()
        told.put("stopped")

    port = world.transport.request_port_forward(LOOPBACK, 0, handler)
    with world.client(port):
        assert told.get(timeout=WAIT) == "stopped"
    tunnel.join(WAIT)
    assert is_gone((LOOPBACK, tunnel.server_port))
    still_usable(world.transport, world.serve(echo))


# -- what is logged --


class X2GoLogger:
    """Called as X2Go calls its own."""

    def __init__(self):
        self.said = []

    def __call__(self, msg, loglevel=0, tag=None):
        self.said.append((loglevel, msg))


@pytest.mark.parametrize(
    ("mask", "told"), [(56, ["WARNING"]), (64, ["INFO"]), (128 | 16, ["DEBUG", "WARNING"]), (0, [])]
)
def test_the_mask(world, caplog, mask, told):
    logger = logging.getLogger("test.rforward")
    caplog.set_level(logging.DEBUG, logger.name)
    tunnel = world.tunnel(world.serve(echo), logger=logger, loglevel=mask)
    with world.client(tunnel) as client:
        send_and_end(client, b"echo")
        receive_all(client)
    tunnel.pause()  # which waits for the log about the client
    tunnel.resume()
    wait_until(lambda: not tunnel._channels._living)
    world.transport.close()
    tunnel.join(WAIT)
    assert sorted({record.levelname for record in caplog.records if record.name == logger.name}) == told


def test_a_logger_that_fails_does_no_harm(world):
    def broken(message, loglevel):
        raise ZeroDivisionError

    tunnel = world.tunnel(world.serve(echo), logger=broken)
    with world.client(tunnel) as client:
        client.sendall(b"echo")
        assert receive_exactly(client, 4) == b"echo"


# -- what the server says --


def test_it_asks_and_cancels_with_the_same_address(server):
    tunnel = tunnel_to(server.transport, port=4713)
    place = b"\0\0\0\x09127.0.0.1" + (4713).to_bytes(4, "big")
    starting = Thread(tunnel.start)
    assert server.expect_request() == ("tcpip-forward", place)
    server.server.send(DENIED)
    assert server.expect_request() == ("cancel-tcpip-forward", place)
    server.server.send(DENIED)
    assert server.expect_request() == ("tcpip-forward", place)
    server.server.send(GRANTED)
    starting.result()
    cancelling = Thread(tunnel.cancel_port_forward, "", 4713)  # as the original said it
    assert server.expect_request() == ("cancel-tcpip-forward", place)
    server.server.send(GRANTED)
    cancelling.result()
    cancelling = Thread(tunnel.cancel_port_forward, "192.0.2.7", 80)
    assert server.expect_request() == ("cancel-tcpip-forward", b"\0\0\0\x09192.0.2.7\0\0\0\x50")
    server.server.send(GRANTED)
    cancelling.result()
    tunnel.stop_thread()


def test_a_server_that_never_answers(server, impatient):
    tunnel = tunnel_to(server.transport, port=4713)
    with pytest.raises(relay.ForwardError, match=r"^127.0.0.1:4713: no answer from the SSH server in 0.25 s"):
        tunnel.start()
    assert not tunnel.is_alive()
    assert server.transport.is_active()
    server.expect_request()
    server.open(1, 4713)
    assert server.server.expect(REFUSED)[:4] == b"\0\0\0\x01"
    server.server.send(GRANTED)  # too late: it is given back
    assert server.expect_request()[0] == "cancel-tcpip-forward"
    server.server.send(GRANTED)


def test_a_chosen_port_that_comes_too_late_is_given_back(server, impatient):
    with pytest.raises(relay.ForwardError, match="no answer"):
        tunnel_to(server.transport).start()
    server.expect_request()
    server.server.send(GRANTED, 4713)
    assert server.expect_request() == ("cancel-tcpip-forward", b"\0\0\0\x09127.0.0.1" + (4713).to_bytes(4, "big"))


def test_a_server_that_never_answers_the_cancellation(server, monkeypatch, caplog):
    tunnel = tunnel_to(server.transport, port=4713)
    starting = Thread(tunnel.start)
    server.expect_request()
    server.server.send(GRANTED)
    starting.result()
    monkeypatch.setattr(reversetunnel, "_ANSWER", 0.25)
    tunnel.stop_thread()
    assert not tunnel.is_alive()
    assert "no answer from the SSH server to the cancellation" in caplog.text
    theirs = queue.SimpleQueue()
    server.transport._tcp_handler = lambda *what: theirs.put(what)
    server.open(1, 4713)
    assert server.server.expect(80) and server.server.expect(REFUSED)
    server.server.send(GRANTED)
    asking = Thread(server.transport.global_request, "after it", None, True)
    server.expect_request()
    server.server.send(DENIED)
    assert asking.result() is None  # and so is what came before
    assert theirs.empty()


@pytest.mark.parametrize("port", [0, 4713])
def test_who_connects_before_the_answer_is_served(server, echo_server, port):
    """The place is ours before the server is asked; where the server chooses it, channels wait for the answer."""
    tunnel = tunnel_to(server.transport, echo_server.address, port)
    starting = Thread(tunnel.start)
    server.expect_request()
    server.open(5, 4713)
    server.server.send(GRANTED, *([] if port else [4713]))
    starting.result()
    assert tunnel.server_port == 4713
    confirmed = server.server.expect(OPENED)
    assert confirmed[:4] == b"\0\0\0\x05"
    number = int.from_bytes(confirmed[4:8], "big")
    server.server.send(94, number, "echo")
    assert server.server.expect(94).endswith(b"echo")
    hang_up(server.transport)
    tunnel.join(WAIT)


def test_what_comes_for_others_meanwhile_is_theirs(server):
    """Held while the server chooses our port, and then given to the handler that was there before."""
    came = queue.SimpleQueue()
    asking = Thread(server.transport.request_port_forward, LOOPBACK, 80, lambda *what: came.put(what))
    server.expect_request()
    server.server.send(GRANTED)
    asking.result()
    tunnel = tunnel_to(server.transport)
    starting = Thread(tunnel.start)
    server.expect_request()
    server.open(1, 80)
    server.open(2, 80, "127.0.0.2")
    server.server.send(GRANTED, 4713)
    starting.result()
    assert [came.get(timeout=WAIT)[2] for _ in range(2)] == [(LOOPBACK, 80), ("127.0.0.2", 80)]
    server.open(3, 4713, "127.0.0.2")  # our port, but not our address
    assert came.get(timeout=WAIT)[2] == ("127.0.0.2", 4713)


def test_an_answer_to_a_request_from_before_goes_to_who_asked(server):
    asking = Thread(server.transport.global_request, "theirs@example.com", None, True)
    assert server.expect_request()[0] == "theirs@example.com"
    tunnel = tunnel_to(server.transport)
    starting = Thread(tunnel.start)
    server.expect_request()
    server.server.send(DENIED)
    assert asking.result() is None
    server.server.send(GRANTED, 4713)
    starting.result()
    assert tunnel.server_port == 4713


def test_answers_go_to_who_asked_in_the_order_of_asking(server):
    Forwards.of(server.transport)
    asking = []
    for name in ("one", "two", "three"):
        asking.append(Thread(server.transport.global_request, name, ("text", 7), True))
        assert server.expect_request() == (name, b"\0\0\0\x04text\0\0\0\x07")
    server.server.send(GRANTED, 1)
    server.server.send(DENIED)
    server.server.send(GRANTED, 3)
    answers = [one.result() for one in asking]
    assert [answer and answer.get_int() for answer in answers] == [1, None, 3]
    server.transport.global_request("unasked@example.com", wait=False)
    asking = Thread(server.transport.global_request, "lost", None, True)
    server.server.expect(80)
    server.server.expect(80)
    server.transport.close()
    assert asking.result() is None
    assert server.transport.global_request("after the end", None, True) is None


def test_more_than_there_is_room_for_is_refused(world, monkeypatch):
    monkeypatch.setattr(channels, "_MOST", 2)
    listening = world.listener()
    tunnel = world.tunnel(listening)
    pairs = [(world.client(tunnel), world.accept(listening)) for _ in range(2)]
    assert ending(world.client(tunnel)) in ("end of file", "reset")
    port = world.transport.request_port_forward(LOOPBACK, 0)
    with world.client(port) as client:
        tunnel.notify()
        assert ending(client) in ("end of file", "reset")
    exchange(*pairs[0])
    for end in pairs[1]:
        end.close()
    wait_until(lambda: tunnel._channels.has_room())
    exchange(world.client(tunnel), world.accept(listening))


# -- channels --


def test_a_channel_is_a_stream_of_ours(sshd):
    with contextlib.closing(World(sshd)) as world:
        port, came = world.channels()

        def pair():
            client = world.client(port)
            return channels.stream_of(came.get(timeout=WAIT), lambda: None), client

        check_stream(pair)


class Transport(threading.Thread):
    """Stands for a transport of which one wants to know what it was given to send, and in which thread."""

    def __init__(self):
        super().__init__(daemon=True)
        self.messages = []
        self.clear_to_send = threading.Event()
        self.clear_to_send.set()
        self.work = self.before = lambda: None

    def run(self):
        self.work()

    def _send_user_message(self, message):
        self.before()
        self.messages.append(message.asbytes()[0])


def message(kind):
    made = paramiko.Message()
    made.add_byte(bytes((kind,)))
    return made


def test_nothing_of_a_channel_follows_its_close():
    transport = Transport()
    order = _OrderedSender(transport)
    for kind in (94, 93, CLOSE, 96, 94, CLOSE):
        order._send_user_message(message(kind))
    assert transport.messages == [94, 93, CLOSE]


def test_the_transports_thread_does_not_wait_for_one_that_sends():
    transport, order = (made := Transport()), _OrderedSender(made)
    transport.work = lambda: order._send_user_message(message(CLOSE))
    sending, go_on = threading.Event(), threading.Event()
    transport.before = lambda: (sending.set(), go_on.wait(WAIT))
    first = Thread(order._send_user_message, message(94))
    assert sending.wait(WAIT)
    transport.start()
    transport.join(WAIT)
    assert not transport.is_alive() and transport.messages == []
    go_on.set()
    first.result()
    assert transport.messages == [94, CLOSE]  # the other has sent it, too


def test_the_transports_thread_does_not_wait_for_the_keys_that_it_exchanges():
    transport, order = (made := Transport()), _OrderedSender(made)
    transport.work = lambda: order._send_user_message(message(CLOSE))
    transport.clear_to_send.clear()
    transport.start()
    transport.join(WAIT)
    assert transport.messages == []
    order.flush()
    assert transport.messages == [CLOSE]


class Unread(paramiko.Channel):
    """A channel whose client has ended, and does not read what is left for it."""

    def __init__(self, transport):
        super().__init__(7)
        self.transport = transport
        self.origin_addr = ("192.0.2.1", 4321)
        self.eof_received = True
        self.sending, self.released = threading.Event(), threading.Event()

    def recv(self, size):
        return b""

    def send(self, data):
        self.sending.set()
        assert self.released.wait(WAIT)
        return 0

    def close(self):
        self.released.set()


def test_last_bytes_that_nobody_reads_do_not_outlive_a_pause(world):
    """The engine is done with that connection, and only the channel still has something to send."""
    listening = world.listener()
    tunnel = world.tunnel(listening)
    channel = Unread(world.transport)
    tunnel._channels.take(channel)
    far = world.accept(listening)
    assert receive_all(far) == b""
    far.sendall(b"the last bytes")
    far.close()
    assert channel.sending.wait(WAIT)
    wait_until(lambda: tunnel._engine.stats().active == 0)
    tunnel.pause()
    wait_until(lambda: not tunnel._channels._living, 1)


# -- the handlers --


def test_a_thread_without_a_target_does_the_usual(echo_server):
    near, far = socket.socketpair()
    near.settimeout(WAIT)
    thread = RevFwChannelThread(far, echo_server.address)
    thread.start()
    with near:
        send_and_end(near, b"echo")
        assert receive_all(near) == b"echo"
    thread.join(WAIT)
    assert not thread.is_alive()
    RevFwChannelThread(None).run()


def test_the_handler_ends_when_its_parent_is_paused(world):
    listening = world.listener()
    parent = world.tunnel(world.serve(echo))
    port, came = world.channels()
    client = world.client(port)
    handling = Thread(rev_forward_channel_handler, came.get(timeout=WAIT), *listening.getsockname(), parent)
    far = world.accept(listening)
    exchange(client, far)
    parent.pause()
    assert ending(far) == "reset"
    handling.result(PROMPT)
    client = world.client(port)
    handling = Thread(rev_forward_channel_handler, came.get(timeout=WAIT), *listening.getsockname(), parent)
    handling.result()
    assert ending(client) in ("end of file", "reset")
    assert not parent._wards


def test_the_handler_and_a_target_that_refuses():
    near, far = socket.socketpair()
    logger = X2GoLogger()
    with near, refusing() as (host, port):
        rev_forward_channel_handler(far, host, port, logger=logger)
        near.settimeout(WAIT)
        assert ending(near) in ("end of file", "reset")
    ((level, text),) = logger.said
    assert level == 16 and "refused" in text


def test_the_handler_for_a_transport_gives_channels_to_whose_they_are(world):
    port = world.transport.request_port_forward(LOOPBACK, 0, transport_tcp_handler)
    tunnel = world.tunnel(world.serve(greet(b"1")))
    with world.client(tunnel) as client, world.client(port) as theirs:
        assert client.recv(1) == b"1"
        with world.transport.accept(WAIT) as channel:
            assert channel.origin_addr == theirs.getsockname()
    with world.client(port) as client:  # handed over by hand, under a tunnel's address
        channel = world.transport.accept(WAIT)
        transport_tcp_handler(channel, channel.origin_addr, (LOOPBACK, tunnel.server_port))
        assert client.recv(1) == b"1"
    tunnel.pause()
    with world.client(port) as client:
        transport_tcp_handler(world.transport.accept(WAIT), ("", 0), (LOOPBACK, tunnel.server_port))
        with world.transport.accept(WAIT):
            pass


def test_notify_takes_what_is_in_the_queue(world):
    tunnel = world.tunnel(world.serve(greet(b"1")))
    port = world.transport.request_port_forward(LOOPBACK, 0)
    with world.client(port) as client:
        wait_until(lambda: world.transport.server_accepts)
        tunnel.notify()
        assert client.recv(1) == b"1"
    tunnel.notify()  # before there is a channel
    with world.client(port) as client:
        assert client.recv(1) == b"1"
    tunnel.pause()
    with world.client(port) as client:
        wait_until(lambda: world.transport.server_accepts)
        tunnel.notify()
        assert ending(client) in ("end of file", "reset")
    tunnel.stop_thread()
    with world.client(port), world.transport.accept(WAIT):
        pass


def test_notify_in_a_handler_takes_the_very_channel(world):
    """Of two tunnels and an older channel that no tunnel has taken yet, with the queue in a bad order."""
    tunnels = [world.tunnel(world.serve(greet(letter))) for letter in (b"1", b"2")]
    whose = {}

    def handler(channel, origin, server):
        world.transport._queue_incoming_channel(channel)
        if server[1] in whose:
            whose[server[1]].notify()

    ports = [world.transport.request_port_forward(LOOPBACK, 0, handler) for _ in range(3)]
    whose |= dict(zip(ports, tunnels, strict=False))
    with world.client(ports[2]) as theirs:
        wait_until(lambda: world.transport.server_accepts)
        clients = [world.client(port) for port in ports[:2] * 10]
        assert [client.recv(1) for client in clients] == [b"1", b"2"] * 10
        with world.transport.accept(WAIT) as channel:
            assert channel.origin_addr == theirs.getsockname()
