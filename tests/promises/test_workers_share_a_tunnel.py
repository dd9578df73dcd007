"""Workers that share a tunnel: killing them loses no client, the limit is exact, and the load is even."""

import contextlib
import errno
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter

import pytest
from helpers import WAIT, Thread, wait_until

import relay

CONNECTS = 4000
KILLS = 8
GREETER = """
import socket, sys
listening = socket.socket(fileno=int(sys.argv[1]))
while True:
    client = listening.accept()[0]
    try:
        client.send(b"+")
    except OSError:
        pass
    client.close()
"""


@pytest.fixture
def greeter():
    """A target in a process of its own that sends one byte and closes."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listening:
        listening.set_inheritable(True)
        address = listening.getsockname()
        number = listening.fileno()
        process = subprocess.Popen([sys.executable, "-S", "-c", GREETER, str(number)], pass_fds=[number])
    yield address
    process.kill()
    process.wait(WAIT)


class Load:
    """Connects again and again, 64 at a time, and counts what each client saw.

    :param address: to connect to.
    :param on_count: called with the number of clients that are done, after each.
    """

    def __init__(self, address, on_count):
        self.seen = Counter()
        self._address = address
        self._on_count = on_count
        self._poller = select.epoll()
        self._clients = {}
        self._begun = 0

    def run(self):
        while self._begun < 64:
            self._begin()
        while self._clients:
            events = self._poller.poll(WAIT)
            assert events, f"{len(self._clients)} clients were never served, of {self.seen}"
            for descriptor, _ in events:
                self._over(self._clients.pop(descriptor))
        self._poller.close()
        return self.seen

    def _begin(self):
        self._begun += 1
        client = socket.socket()
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            client.connect(self._address)
        self._clients[client.fileno()] = client
        self._poller.register(client, select.EPOLLIN)

    def _over(self, client):
        try:
            self.seen["served" if client.recv(1) == b"+" else "ended"] += 1
        except OSError as error:
            self.seen[errno.errorcode[error.errno]] += 1
        self._poller.unregister(client)
        client.close()
        self._on_count(sum(self.seen.values()))
        if self._begun < CONNECTS:
            self._begin()


def test_no_client_is_refused_or_lost_while_workers_are_killed(greeter):
    """Those that a killed worker has accepted end; every other one is served."""
    killed = []

    def kill(done):
        if done % (CONNECTS // (KILLS + 1)) == 0 and len(killed) < KILLS:
            pids = [pid for pid in tunnel.pids if pid not in killed]
            if pids:
                os.kill(pids[0], signal.SIGKILL)
                killed.append(pids[0])

    with relay.spawn(":0", "{}:{}".format(*greeter), workers=2) as tunnel:
        seen = Load(tunnel.address, kill).run()
        wait_until(lambda: tunnel.stats().active == 0)
        figures = tunnel.stats()
    lost = figures.failed.get("worker_lost", 0)
    assert len(killed) >= KILLS // 2
    assert seen["ECONNREFUSED"] == 0
    assert sum(seen.values()) == CONNECTS
    # A worker may be killed between its accept and its count; it has one client in its hands then.
    assert CONNECTS - seen["served"] <= lost + len(killed)
    assert figures.accepted >= seen["served"]


def test_clients_wait_while_no_worker_is_there(greeter, monkeypatch):
    """The backlog is the program's."""
    with relay.spawn(":0", "{}:{}".format(*greeter), workers=2) as tunnel:
        before = tunnel.pids
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        clients = [socket.create_connection(tunnel.address) for _ in range(50)]
        for client in clients:
            client.settimeout(WAIT)
            assert client.recv(1) == b"+"
            client.close()
        assert not set(before) & set(tunnel.pids)


class Holder:
    """A target that greets its clients, holds them, and notes the most that it has had at one time."""

    def __init__(self):
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.held = []
        self.most = 0
        self.greeted = 0
        self._thread = Thread(self._run)

    def _run(self):
        while True:
            try:
                client = self.listening.accept()[0]
            except OSError:
                return
            client.setblocking(False)
            self.held = [one for one in self.held if not self._has_gone(one)]
            self.held.append(client)
            self.most = max(self.most, len(self.held))
            self.greeted += 1
            with contextlib.suppress(OSError):
                client.send(b"+")

    def _has_gone(self, client):
        """Return whether relay has closed its end, which it has before it makes another one."""
        try:
            gone = client.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            gone = False
        except OSError:
            gone = True
        if gone:
            client.close()
        return gone

    def close(self):
        self.listening.shutdown(socket.SHUT_RDWR)
        self._thread.result()
        for one in (self.listening, *self.held):
            one.close()


def test_the_limit_is_exact_also_after_deaths():
    limit, count = 5, 30
    target = Holder()
    clients = []
    with relay.spawn(":0", f"127.0.0.1:{target.listening.getsockname()[1]}", workers=3, nconnect=limit) as tunnel:
        clients += [socket.create_connection(tunnel.address) for _ in range(count)]
        for kill in range(6):
            wait_until(lambda: sum(tunnel.loads()) == limit and len(tunnel.pids) == 3)
            loads = tunnel.loads()
            os.kill(tunnel.pids[kill % 3], signal.SIGKILL)
            gone = loads[kill % 3]
            wait_until(lambda expected=target.greeted + gone: target.greeted >= expected)
        wait_until(lambda: tunnel.stats().active == limit)
        assert target.most == limit
        lost = tunnel.stats().failed["worker_lost"]
        assert (lost, tunnel.stats().accepted) == (10, 15)
        assert target.greeted == limit + lost
    for client in clients:
        client.close()
    target.close()


@pytest.mark.parametrize("count", [2, 4])
def test_a_hundred_long_streams_are_spread_evenly(echo_server, count):
    clients = []
    with relay.spawn(":0", "{}:{}".format(*echo_server.address), workers=count) as tunnel:
        for _ in range(100):
            client = socket.create_connection(tunnel.address)
            client.settimeout(WAIT)
            clients.append(client)
        for client in clients:
            client.sendall(b"ping")
            assert client.recv(4) == b"ping"
        loads = tunnel.loads()
        assert sum(loads) == 100
        assert max(loads) <= 1.5 * 100 / count
        assert tunnel.stats()[:4] == (100, 100, 400, 400)
        assert len({record.id for record in tunnel.connections()}) == 100
    for client in clients:
        client.close()


@pytest.mark.parametrize("count", [2, 4])
def test_tls_clients_are_spread_evenly_though_their_handshakes_take_long(echo_server, certificates, count):
    listen = f"tls://127.0.0.1:0?cert={certificates.cert}&key={certificates.key}"
    with (
        relay.spawn(listen, "{}:{}".format(*echo_server.address), workers=count) as tunnel,
        contextlib.ExitStack() as clients,
    ):
        context = certificates.client()
        connected = [socket.create_connection(tunnel.address, WAIT) for _ in range(80)]
        for each in connected:
            client = clients.enter_context(context.wrap_socket(each, server_hostname="localhost"))
            client.sendall(b"ping")
            assert client.recv(4) == b"ping"
        loads = tunnel.loads()
        assert sum(loads) == 80
        assert max(loads) <= 1.5 * 80 / count


def test_a_tls_listener_is_shared_too(echo_server, certificates):
    listen = f"tls://127.0.0.1:0?cert={certificates.cert}&key={certificates.key}"
    target = "{}:{}".format(*echo_server.address)
    with relay.spawn(listen, target, workers=2) as tunnel, contextlib.ExitStack() as clients:
        url = f"tls://localhost:{tunnel.address[1]}?ca={certificates.ca}"
        made = [clients.enter_context(relay.connect(url, timeout=WAIT)) for _ in range(6)]
        wait_until(lambda: sum(tunnel.loads()) == 6)
        lost = max(tunnel.loads())
        os.kill(tunnel.pids[tunnel.loads().index(lost)], signal.SIGKILL)
        wait_until(lambda: tunnel.stats().failed == {"worker_lost": lost})
        served = 0
        for client in made:
            client.settimeout(WAIT)
            with contextlib.suppress(ConnectionError):
                client.sendall(b"ping")
                served += client.recv(4) == b"ping"
        assert served == 6 - lost
        clients.enter_context(relay.connect(url, timeout=WAIT))


def test_the_counters_never_decrease(echo_server):
    """A program that asks while workers die sees each counter grow."""
    over = threading.Event()

    def ask():
        before = tunnel.metrics()
        while not over.is_set():
            now = tunnel.metrics()
            for name in ("accepted", "received", "sent"):
                assert getattr(now, name) >= getattr(before, name), name
            assert all(now.ended[reason] >= n for reason, n in before.ended.items())
            assert all(a >= b for a, b in zip(now.ages.counts, before.ages.counts, strict=True))
            before = now

    with relay.spawn(":0", "{}:{}".format(*echo_server.address), workers=2) as tunnel:
        asking = [Thread(ask) for _ in range(2)]
        for _ in range(4):
            for _ in range(30):
                with socket.create_connection(tunnel.address) as client:
                    client.settimeout(WAIT)
                    with contextlib.suppress(ConnectionError):
                        client.sendall(b"ping")
                        client.recv(4)
            tunnel.stats()
            restarts = sum(one.restarts for one in tunnel.workers())
            os.kill(tunnel.pids[0], signal.SIGKILL)
            wait_until(lambda before=restarts: sum(one.restarts for one in tunnel.workers()) > before)
            wait_until(lambda: len(tunnel.pids) == 2)
        over.set()
        for thread in asking:
            thread.result()
        assert tunnel.stats().accepted == 120
        assert len(tunnel.recent()) <= 100
