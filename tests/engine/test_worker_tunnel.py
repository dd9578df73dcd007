"""``relay.engine.worker_tunnel`` and its acceptor: several workers at one listening socket, here in one process."""

import contextlib
import os
import queue
import socket
import stat

import pytest
from helpers import WAIT, Thread, TLSEnd, ending, makes, receive_all, receive_exactly, wait_until

import relay
from relay.access.proxy_header import build_local
from relay.engine import changes, shared_acceptor
from relay.engine.shared_acceptor import WorkerPlace
from relay.engine.worker_table import AWAY, WorkerTable
from relay.engine.worker_tunnel import WorkerTunnel
from relay.transports.proxies.socks_server import SOCKSListener
from relay.transports.tls.listener import TLSListener, server_credentials


class Workers:
    """Tunnels that share a listening socket and their counts."""

    def __init__(self, count, server, listen=":0", **options):
        self.listening = relay.listen(listen)
        self.listening.setblocking(False)  # dup() sets the mode of its original, for all tunnels
        self.address = self.listening.getsockname()
        self.memory = WorkerTable.make(count)
        self.table = WorkerTable(self.memory, count)
        self.pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(count)]
        self.tunnels = []
        self.clients = []
        self.server = server
        self.options = options

    def start(self, number, receive=None, **more):
        sockets = [end.dup() for end in (self.pairs[number][0], *(pair[1] for pair in self.pairs))]
        place = WorkerPlace(number, WorkerTable(self.memory, len(self.pairs)), sockets)
        receive = receive or self.listening.dup()
        options = {"timeout": None, **self.options, **more}
        tunnel = WorkerTunnel(receive, self.server.factory(), place=place, **options)
        self.tunnels.append(tunnel)
        return tunnel

    def wait_until_all_take(self):
        """Wait until each may pass clients to each other one."""
        wait_until(lambda: len(self.tunnels) == len(self.pairs) and max(self.table._loads) < AWAY)

    def connect(self):
        client = socket.socket(self.listening.family)
        client.settimeout(WAIT)
        client.connect(self.address)
        self.clients.append(client)
        return client

    def connect_all(self, count):
        for client in [self.connect() for _ in range(count)]:
            client.sendall(b"ping")
            assert client.recv(4) == b"ping"

    def close(self):
        for thing in (*self.clients, *self.tunnels, self.listening, self.table):
            thing.close()
        os.close(self.memory)
        for sock in (sock for pair in self.pairs for sock in pair):
            sock.close()


@pytest.fixture
def make(echo_server):
    yield from makes(lambda count, **options: Workers(count, echo_server, **options))


@pytest.mark.parametrize("count", [2, 4])
def test_clients_are_spread_evenly(make, count):
    workers = make(count)
    for number in range(count):
        workers.start(number)
    workers.wait_until_all_take()
    workers.connect_all(100)
    loads = workers.table.loads()
    assert sum(loads) == 100
    assert max(loads) <= 1.5 * 100 / count
    assert loads == [tunnel.stats().active for tunnel in workers.tunnels]
    assert sum(workers.table.accepted()) == 100


def test_clients_that_wait_are_spread_too(make):
    """The first worker finds all of them in the backlog, and no other worker is there yet to accept."""
    workers = make(2)
    second = workers.start(1)
    second.pause()
    for _ in range(60):
        workers.connect()
    first = workers.start(0)
    wait_until(lambda: first.stats().active == 60)  # the other one takes none
    second.resume()
    for _ in range(20):
        workers.connect_all(1)  # one by one: a worker keeps a client if too many wait for the other one
    assert workers.table.loads() == [60, 20]


@pytest.mark.parametrize("kind", ["tcp", "tcp6", "unix"])
def test_a_client_that_was_passed_is_as_any_other(make, tmp_path, kind):
    workers = make(2, listen={"tcp": ":0", "tcp6": "[::1]:0", "unix": f"unix://{tmp_path}/s"}[kind])
    first, second = workers.start(0), workers.start(1)
    workers.wait_until_all_take()
    workers.connect_all(1)
    owner = first if first.stats().active else second
    other = second if owner is first else first
    workers.connect_all(1)
    wait_until(lambda: other.stats().active == 1)
    (record,) = other.connections()
    if kind == "unix":
        assert (record.peer, record.identity.process) == ("", os.getpid())
    else:
        assert record.peer == workers.clients[1].getsockname()
    assert not any(map(os.get_inheritable, open_sockets()))
    for client in workers.clients:
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b""
    wait_until(lambda: workers.table.loads() == [0, 0])


def open_sockets():
    with os.scandir("/dev/fd") as entries:
        descriptors = [int(entry.name) for entry in entries]
    found = []
    for descriptor in descriptors:
        with contextlib.suppress(OSError):  # that of the listing is closed
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                found.append(descriptor)
    return found


def test_a_proxys_client_that_was_passed_sends_its_request_there(make):
    workers = make(2)
    first, second = (workers.start(number, SOCKSListener(workers.listening.dup())) for number in range(2))
    workers.wait_until_all_take()
    for _ in range(6):
        client = workers.connect()
        client.sendall(b"\5\1\0" + b"\5\1\0\1\x7f\0\0\1\0\x50")
        assert receive_exactly(client, 12)[:4] == b"\5\0\5\0"
        exchange_with_echo(client)
    assert workers.table.loads() == [3, 3]
    assert first.stats().active == second.stats().active == 3


def test_a_check_of_a_balancer_is_no_client_of_a_worker_either(make):
    workers = make(2, accept_proxy=["127.0.0.1"])
    tunnel = workers.start(0)
    check = workers.connect()
    check.sendall(build_local("v2"))
    assert receive_all(check) == b""
    client = workers.connect()
    client.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.8 5 6\r\n")
    exchange_with_echo(client)
    assert (tunnel.stats().accepted, tunnel.connections()[-1].peer) == (1, ("192.0.2.7", 5))


def tls_client(workers, certificates):
    return TLSEnd(workers.connect(), certificates.client())


def test_clients_of_tls_are_passed_on_before_they_shake_hands(make, certificates):
    workers = make(2)
    credentials = server_credentials(certificates.cert, certificates.key)
    first, second = (workers.start(number, TLSListener(workers.listening.dup(), credentials)) for number in range(2))
    for _ in range(10):
        client = tls_client(workers, certificates)
        client.sendall(b"ping")
        assert client.recv(4) == b"ping"
    assert workers.table.loads() == [5, 5]
    assert first.stats().active == second.stats().active == 5


def test_a_paused_worker_shakes_hands_with_no_client(make, certificates):
    workers = make(2)
    credentials = server_credentials(certificates.cert, certificates.key)
    paused = TLSListener(workers.listening.dup(), credentials)
    workers.start(0, paused, paused=True)
    assert paused._home is workers.tunnels[0]._relay.workspace
    shaking = Thread(tls_client, workers, certificates)
    workers.start(1, TLSListener(workers.listening.dup(), credentials))
    assert shaking.result()
    assert workers.table.accepted()[0] == 0


def test_what_is_on_its_way_to_a_worker_outlives_it(make):
    """It is in the pair of sockets, which the program keeps open."""
    workers = make(2)
    first = workers.start(0)
    workers.table.store_load(1, 0)  # a worker that does not look
    waiting = [workers.connect() for _ in range(10)]
    wait_until(lambda: workers.table.accepted() == [5, 0] and first.stats().active == 5)
    second = workers.start(1)
    wait_until(lambda: second.stats().active == 5)
    for client in waiting:
        exchange_with_echo(client)


def test_a_worker_that_closes_takes_the_clients_on_their_way_to_it(make):
    """They were accepted; the listener of their worker may be closed by then."""
    workers = make(2)
    first, second = workers.start(0), workers.start(1)
    second.pause()
    workers.table.store_load(1, 0)  # it seems to take clients
    waiting = [workers.connect() for _ in range(6)]
    wait_until(lambda: workers.table.accepted() == [3, 0])
    first.pause()
    for tunnel in (first, second):
        tunnel.start_close(WAIT)
    for client in waiting:
        exchange_with_echo(client)
    assert workers.table.accepted() == [3, 3]


@pytest.mark.parametrize("closes", [True, False])
def test_at_the_limit_it_takes_no_more_of_them(make, closes):
    workers = make(2, nconnect=2)
    tunnel = workers.start(1, paused=closes)

    def pass_two(*_):
        with workers.connect().dup() as client:  # any socket will do
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, client.fileno().to_bytes(4, "little"))]
            for number in (1, 2):
                head = b"\x00\x00" + number.to_bytes(8, "little")
                workers.pairs[1][1].sendmsg([head, b'["127.0.0.1", 1]'], rights)

    if closes:
        pass_two()
        tunnel.start_close(WAIT)
    else:
        workers.listening.close()
        workers.listening = relay.listen(":0")
        workers.address = workers.listening.getsockname()
        changes.in_thread(tunnel, pass_two)  # both are there when it looks
    wait_until(lambda: workers.table.accepted() == [0, 1])
    tunnel.turn()
    assert (tunnel.stats().active, workers.table.accepted()) == (1, [0, 1])


def test_while_most_connections_are_short_a_worker_keeps_twice_as_many(make):
    workers = make(2)
    first = workers.start(0)
    for _ in range(64):
        workers.connect_all(1)
        workers.clients.pop().close()
        wait_until(lambda: first.stats().active == 0)
    workers.table.store_load(1, 22)  # a worker that does not look
    workers.connect_all(50)
    assert first.stats().active == 50


def test_a_worker_that_takes_no_client_is_reported(make, monkeypatch):
    monkeypatch.setattr(shared_acceptor, "_TAKEN", 0.01)
    workers = make(2)
    late = queue.SimpleQueue()
    first = workers.start(0, on_late=late.put)
    workers.table.store_load(1, 0)  # a worker that does not look
    waiting = [workers.connect() for _ in range(4)]
    wait_until(lambda: first.stats().active == 2)
    assert [late.get(timeout=WAIT) for _ in range(3)] == [1] * 3, "again and again"
    second = workers.start(1, on_late=late.put)
    for client in waiting:
        exchange_with_echo(client)
    wait_until(lambda: second.stats().active == 2)
    second.pause()
    first.turn()
    while not late.empty():
        late.get()
    workers.connect_all(2)
    first.turn()
    assert late.empty(), "a worker that has paused is not late"


def test_a_client_for_which_only_a_dead_worker_was_woken(make):
    workers = make(2)
    receive = workers.listening.dup()
    tunnel = workers.start(0, receive)
    tunnel.turn()  # it listens
    # As if the kernel had woken another one.
    changes.in_thread(tunnel, lambda thread, now: thread.loop.forget(receive.fileno()))
    client = workers.connect()
    tunnel.take_backlog()
    exchange_with_echo(client)
    tunnel.pause()
    waiting = workers.connect()
    tunnel.take_backlog()
    tunnel.turn()
    assert tunnel.stats().accepted == 1, "it has paused"
    tunnel.resume()
    exchange_with_echo(waiting)


def test_a_worker_keeps_what_it_cannot_pass_on(make):
    workers = make(2)
    first = workers.start(0)
    workers.table.store_load(1, 0)
    workers.pairs[1][1].setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            workers.pairs[1][1].send(bytes(10))  # full
    workers.connect_all(10)
    assert (first.stats().active, workers.table.accepted()) == (10, [10, 0])
    assert workers.table.better(0, -1) == (1, 1), "the next one would be the first"


def test_a_client_whose_descriptor_was_lost_is_counted(make):
    workers = make(2)
    first = workers.start(0)
    workers.pairs[0][1].send(b"\x01\x00" + (1).to_bytes(8, "little") + b'""')
    wait_until(lambda: first.metrics().accept_errors == {"EMFILE": 1})
    workers.connect_all(1)


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_the_limit_is_that_of_all_together(make, limit):
    workers = make(3, nconnect=limit)
    for number in range(3):
        workers.start(number)
    for _ in range(limit + 4):
        workers.connect()
    served = sum_of(workers)
    wait_until(lambda: served() == limit)
    open_ones = {record.peer for tunnel in workers.tunnels for record in tunnel.connections()}
    for client in workers.clients:
        if client.getsockname() in open_ones:
            client.close()
    wait_until(lambda: sum(workers.table.accepted()) == min(2 * limit, limit + 4))
    assert served() <= limit


def test_the_limit_may_change(make):
    workers = make(2, nconnect=2)
    limits = {"timeout": None, "connect_timeout": None, "idle_timeout": None, "linger": None}
    for number in range(2):
        workers.start(number)
    for _ in range(7):
        workers.connect()
    served = sum_of(workers)
    wait_until(lambda: served() == 2)
    for tunnel in workers.tunnels:
        changes.update(tunnel, nconnect=5, **limits)
    wait_until(lambda: served() == 5)
    for tunnel in workers.tunnels:
        changes.update(tunnel, nconnect=-1, **limits)
    wait_until(lambda: served() == 7)


def test_a_worker_that_is_paused_at_first_accepts_none(make):
    workers = make(2)
    first, second = workers.start(0, paused=True), workers.start(1)
    workers.connect_all(5)
    assert (first.stats().accepted, second.stats().accepted) == (0, 5)
    first.resume()
    second.pause()
    workers.connect_all(1)
    assert first.stats().accepted == 1


def test_another_listener(make):
    """Those who have connected to the old one are accepted before it closes."""
    workers = make(2)
    first, second = workers.start(0), workers.start(1)
    workers.connect_all(4)
    other = relay.listen(":0")
    for tunnel in (first, second):
        changes.relisten(tunnel, other.dup(), None)
    workers.listening.close()
    workers.address = other.getsockname()
    other.close()
    workers.connect_all(4)
    assert sum(workers.table.loads()) == 8
    exchange_with_echo(workers.clients[0])


def test_it_closes_without_waiting(make):
    workers = make(1)
    tunnel = workers.start(0)
    workers.connect_all(1)
    tunnel.start_close(None)
    workers.clients[0].close()
    tunnel.join(WAIT)
    assert repr(tunnel).endswith("closed>")


def test_its_connections_may_end_one_after_the_other(make):
    """The oldest one at once, and the next one after a third of a thousand seconds."""
    workers = make(1)
    tunnel = workers.start(0)
    workers.connect_all(3)
    tunnel.start_close(1000, 1000)
    assert ending(workers.clients[0]) == "reset"
    exchange_with_echo(workers.clients[1])
    tunnel.close()


def sum_of(workers):
    return lambda: sum(tunnel.stats().active for tunnel in workers.tunnels)


def exchange_with_echo(client):
    client.sendall(b"ping")
    assert client.recv(4) == b"ping"
