"""Any user callable is a factory, also an undecorated one."""

import functools
import itertools
import random
import socket
import threading
import time

import paramiko
import pytest
from helpers import (
    BLOCK,
    WAIT,
    Bare,
    Thread,
    ended,
    ending,
    exchange,
    fate_of_client,
    makes,
    receive_all,
    receive_exactly,
    send_and_end,
    wait_until,
)

import relay
from relay.testing import check_factory, pair


@pytest.fixture
def tunnel_to():
    """Makes tunnels, ``tunnel_to(factory, **limits)``."""
    yield from makes(lambda factory, **limits: relay.Tunnel(relay.listen(":0"), factory, **limits))


def ask(tunnel, text=b"hello"):
    """Return what a client gets that sends ``text`` and its end."""
    with socket.create_connection(tunnel.address, timeout=WAIT) as client:
        send_and_end(client, text)
        return receive_all(client)


def visit(tunnel):
    """Connect without a word to a tunnel whose streams have ended already, and wait for the end."""
    with socket.create_connection(tunnel.address, timeout=WAIT) as client:
        ending(client)


def shout(end):
    """A service of the tests: one request in capitals."""
    with end:
        end.settimeout(WAIT)
        end.sendall(receive_all(end).upper())


# Sockets.


def test_a_connected_socket(listener):
    check_factory(lambda: socket.create_connection(listener.getsockname()), listener)


def test_a_connected_socket_from_a_marked_factory(listener):
    check_factory(relay.nonblocking(lambda: socket.create_connection(listener.getsockname())), listener)


@pytest.mark.parametrize("marked", [True, False])
def test_a_connecting_non_blocking_socket(listener, any_engine, marked):
    """The original's own recipe for high performance."""

    def make():
        made = socket.socket()
        made.setblocking(False)
        made.connect_ex(listener.getsockname())
        return made

    check_factory(relay.nonblocking(make) if marked else make, listener)


@pytest.fixture
def full_backlog(tmp_path):
    """A listening Unix socket that takes no more."""
    path = str(tmp_path / "full")
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as first:
        listening.bind(path)
        listening.listen(0)
        listening.settimeout(WAIT)
        first.connect(path)
        yield listening


def test_a_unix_connect_that_said_eagain_is_made_again(full_backlog, tunnel_to, any_engine):
    """With a full backlog such a connect has not begun, whatever poll says."""
    tunnel = tunnel_to(relay.unix(full_backlog.getsockname()))
    with socket.create_connection(tunnel.address, timeout=WAIT) as client:
        client.sendall(b"through")
        wait_until(lambda: tunnel.stats().active == 1)
        threading.Event().wait(0.1)
        assert [record.state for record in tunnel.connections()] == ["connecting"]
        full_backlog.accept()[0].close()  # now there is room
        far, _ = full_backlog.accept()
        with far:
            far.settimeout(WAIT)
            assert receive_exactly(far, 7) == b"through"


def test_a_users_own_unix_connect_that_said_eagain_resets_the_client(full_backlog, tunnel_to, any_engine):
    """Only the callable knows the path: the client must not look connected."""

    @relay.nonblocking
    def make():
        made = socket.socket(socket.AF_UNIX)
        made.setblocking(False)
        made.connect_ex(full_backlog.getsockname())
        return made

    tunnel = tunnel_to(make)
    assert fate_of_client(tunnel.address, b"request") == "reset"
    assert ended(tunnel)[0] in ("unreachable", "factory_error", "refused")


def test_a_socketpair_end(tunnel_to, any_engine):
    def make():
        near, far = socket.socketpair()
        Thread(shout, far)
        return near

    tunnel = tunnel_to(make)
    assert [ask(tunnel, b"word %d" % number) for number in range(10)] == [b"WORD %d" % n for n in range(10)]
    assert ended(tunnel, 10) == ["done"] * 10


def test_a_stream_with_everything_known(listener, tunnel_to):
    closed = threading.Event()

    def make():
        return relay.Stream(
            socket.create_connection(listener.getsockname()), target="the database", on_close=closed.set
        )

    tunnel = tunnel_to(make)
    with socket.create_connection(tunnel.address, timeout=WAIT) as client:
        far, _ = listener.accept()
        with far:
            exchange(client, far)
            assert [record.target for record in tunnel.connections()] == ["the database"]
            assert not closed.is_set()
    assert closed.wait(WAIT)
    assert tunnel.recent()[-1].target == "the database"


@pytest.mark.parametrize(
    ("error", "reason"),
    [(relay.CarrierError("the line is cut"), "carrier_lost"), (RuntimeError("odd"), "target_reset"), (None, "done")],
    ids=repr,
)
def test_a_failure_at_the_end_of_file_resets_the_client(listener, tunnel_to, error, reason):
    tunnel = tunnel_to(lambda: relay.Stream(socket.create_connection(listener.getsockname()), failure=lambda: error))
    with socket.create_connection(tunnel.address, timeout=WAIT) as client:
        far, _ = listener.accept()
        with far:
            exchange(client, far)
        client.settimeout(WAIT)
        if error is None:
            client.shutdown(socket.SHUT_WR)
        assert ending(client) == ("end of file" if error is None else "reset")
    assert ended(tunnel) == [reason]


def test_on_close_is_called_once_and_may_block(listener, tunnel_to):
    release, calls, threads = threading.Event(), [], set()

    def on_close():
        threads.add(threading.current_thread().name)
        release.wait(WAIT)
        calls.append(1)

    tunnel = tunnel_to(lambda: relay.Stream(socket.create_connection(listener.getsockname()), on_close=on_close))
    for _ in range(3):
        with socket.create_connection(tunnel.address, timeout=WAIT) as client:
            far, _ = listener.accept()
            with far:
                exchange(client, far)
    with socket.create_connection(tunnel.address, timeout=WAIT) as client:  # none of the three holds the engine up
        far, _ = listener.accept()
        with far:
            exchange(client, far)
    release.set()
    wait_until(lambda: len(calls) == 4)


# Objects with the socket interface.


class Short:
    """``recv``, a ``send`` that takes little at a time, ``shutdown`` and ``close``."""

    def __init__(self, near):
        self._near = near
        self.recv, self.shutdown = near.recv, near.shutdown

    def send(self, data):
        return self._near.send(data[:1021])

    def close(self):
        try:
            self._near.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._near.close()


class WithShutdownWrite(Bare):
    """The half-close of a paramiko channel."""

    def shutdown_write(self):
        self._near.shutdown(socket.SHUT_WR)


def test_an_object_with_recv_sendall_and_close(listener):
    check_factory(lambda: Bare(socket.create_connection(listener.getsockname())), listener, half_close=False)


def test_an_object_whose_send_is_short(listener):
    check_factory(lambda: Short(socket.create_connection(listener.getsockname())), listener)


def test_an_object_with_shutdown_write(listener):
    check_factory(lambda: WithShutdownWrite(socket.create_connection(listener.getsockname())), listener)


def test_an_object_that_fails_resets_the_client(tunnel_to):
    class Failing:
        def recv(self, size):
            raise ConnectionResetError("the far end is gone")

        def sendall(self, data):
            raise BrokenPipeError

        def close(self):
            pass

    tunnel = tunnel_to(Failing)
    assert fate_of_client(tunnel.address) == "reset"
    assert ended(tunnel) == ["target_reset"]


def test_an_ssl_socket(tunnel_to, certificates):
    """It has no half-close: the answer to a request that ends comes all the same."""
    context = certificates.server()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer():
            for _ in range(3):
                accepted = context.wrap_socket(listening.accept()[0], server_side=True)
                with accepted:
                    accepted.settimeout(WAIT)
                    accepted.sendall(receive_exactly(accepted, len(BLOCK)).swapcase())
                    accepted.unwrap().close()

        def make():
            plain = socket.create_connection(listening.getsockname())
            return certificates.client().wrap_socket(plain, server_hostname="localhost")

        server = Thread(answer)
        tunnel = tunnel_to(make)
        for _ in range(3):
            assert ask(tunnel, BLOCK) == BLOCK.swapcase()
        server.result()


# paramiko, over a socketpair: a real client and a real server, without a network.


class Gateway(paramiko.ServerInterface):
    """Grants every request, and notes where channels want to go."""

    def check_auth_none(self, username):
        return paramiko.AUTH_SUCCESSFUL

    def check_channel_direct_tcpip_request(self, number, origin, destination):
        return paramiko.OPEN_SUCCEEDED if destination[1] == 80 else paramiko.OPEN_FAILED_CONNECT_FAILED


@pytest.fixture
def ssh():
    """A connected client transport, and the server's."""
    near, far = pair()
    server, client = paramiko.Transport(far), paramiko.Transport(near)
    server.add_server_key(paramiko.ECDSAKey.generate())
    server.start_server(event=threading.Event(), server=Gateway())
    client.connect(username="anybody")
    client.auth_none("anybody")
    yield client, server
    for transport in (client, server):
        transport.close()
        transport.join(WAIT)


def test_a_bare_paramiko_channel(ssh):
    client, server = ssh

    class Channels:
        """A listener for what the server accepts."""

        def accept(self):
            return server.accept(10), None

    check_factory(lambda: client.open_channel("direct-tcpip", ("db", 80), ("127.0.0.1", 1)), Channels())


def test_a_paramiko_channel_that_the_server_forbids(ssh, tunnel_to):
    client, _ = ssh
    tunnel = tunnel_to(lambda: client.open_channel("direct-tcpip", ("db", 81), ("127.0.0.1", 1)))
    assert fate_of_client(tunnel.address) == "reset"
    assert ended(tunnel) == ["factory_error"]


def test_a_paramiko_transport_that_dies_ends_its_channels(ssh, tunnel_to):
    client, server = ssh
    tunnel = tunnel_to(lambda: client.open_channel("direct-tcpip", ("db", 80), ("127.0.0.1", 1)))
    with socket.create_connection(tunnel.address, timeout=WAIT) as caller:
        channel = server.accept(10)
        exchange(caller, channel)
        server.close()
        ending(caller)
    wait_until(lambda: tunnel.stats().active == 0)


# What else a callable may do.


def test_one_that_blocks_for_long(tunnel_to):
    """Ten seconds in life; here until the test says so."""
    release, calls = threading.Event(), itertools.count()

    def make():
        if next(calls) == 0:
            release.wait(WAIT)
        near, far = socket.socketpair()
        Thread(shout, far)
        return near

    tunnel = tunnel_to(make)
    slow = Thread(ask, tunnel, b"slow")
    wait_until(lambda: tunnel.stats().active == 1)
    assert ask(tunnel, b"quick") == b"QUICK"
    assert slow.is_alive()
    release.set()
    assert slow.result() == b"SLOW"


def test_one_that_picks_at_random_between_ours(tunnel_to, serve, tmp_path):
    """Any dialer of relay may be called by a user's own callable."""
    servers = [serve(lambda end: end.sendall(b"tcp")), serve(lambda end: end.sendall(b"unix"), str(tmp_path / "s"))]
    choose = random.Random(1)

    def make(*, deadline, cancel):
        return choose.choice(servers).factory()(deadline=deadline, cancel=cancel)

    tunnel = tunnel_to(make)
    assert {ask(tunnel, b"") for _ in range(20)} == {b"tcp", b"unix"}


def test_the_keywords_it_names_are_given_and_no_others(tunnel_to):
    seen = {}

    def stream():
        near, far = socket.socketpair()
        far.close()
        return near

    def with_all(*, peer, deadline, cancel):
        seen["all"] = (peer, deadline - time.monotonic(), cancel.is_set(), cancel.fileno() >= 0)
        return stream()

    def with_deadline(deadline=None):
        seen["deadline"] = deadline
        return stream()

    def with_kwargs(**kwargs):
        seen["kwargs"] = kwargs
        return stream()

    with_all_tunnel = tunnel_to(with_all, connect_timeout=2 * WAIT, timeout=None)
    with socket.create_connection(with_all_tunnel.address, timeout=WAIT) as client:
        ending(client)
        assert seen["all"][0] == client.getsockname()
    assert WAIT < seen["all"][1] <= 2 * WAIT
    assert seen["all"][2:] == (False, True)
    visit(tunnel_to(with_deadline, connect_timeout=None, timeout=None))
    assert seen["deadline"] is None
    visit(tunnel_to(with_kwargs))
    assert seen["kwargs"] == {}


def test_methods_partials_and_objects_are_callables_too(tunnel_to):
    class Maker:
        def __call__(self, *, peer):
            assert peer
            return self.make(b"object")

        def make(self, text):
            near, far = socket.socketpair()
            with far:
                far.sendall(text)
            return near

    maker = Maker()
    assert ask(tunnel_to(maker), b"") == b"object"
    assert ask(tunnel_to(functools.partial(maker.make, b"partial")), b"") == b"partial"
    assert ask(tunnel_to(lambda: maker.make(b"method")), b"") == b"method"


@pytest.mark.parametrize("way", ["tcp", "unix", "tls"])
def test_our_own(way, tmp_path, certificates):
    if way == "tcp":
        with relay.listen(":0") as server:
            check_factory(relay.tcp("localhost", server.getsockname()[1]), server)
    elif way == "unix":
        with relay.listen(f"unix://{tmp_path / 's'}") as server:
            check_factory(relay.unix(tmp_path / "s"), server)
    else:
        with relay.listen(f"tls://127.0.0.1:0?cert={certificates.cert}&key={certificates.key}") as server:
            check_factory(relay.tls("localhost", server.getsockname()[1], ca=str(certificates.ca)), server)
