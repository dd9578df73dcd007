"""Out of descriptors and out of pipes, as an unprivileged user: no spinning, no death, service resumes.

The tunnel runs in a child process, which has given up root where it had it: root is exempt from the quota of pipes.
"""

import contextlib
import hashlib
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from helpers import BLOCK, WAIT, Thread, ending, exchange, makes, receive_exactly, send_and_end, sha256_of

CHILD = """
import encodings.idna, fcntl, os, resource, sys, threading
import relay, relay.testing
from relay.eventloop.pipes import PipePool
relay.Tunnel, relay.tcp, relay.listen
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(20000 + os.getpid() % 40000)  # whose quota of pipes no other test uses
port, limit = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
tunnel = relay.Tunnel(relay.listen(":0"), relay.tcp("127.0.0.1", port), timeout=None)
print(tunnel.address[1], flush=True)
spent, pipes = [], []

def spend_descriptors():
    try:
        while True:
            spent.append(os.dup(0))
    except OSError:
        return len(spent)

def spend_pipes():
    while True:
        ends = os.pipe()
        try:
            fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, 1 << 20)
        except OSError:
            for end in ends:
                os.close(end)
            return len(pipes) // 2
        pipes.extend(ends)

def make_pipe(pool, make=PipePool._make):
    if pipes:
        spend_pipes()  # what another process of this user has given back
    return make(pool)

PipePool._make = make_pipe

def engines(count):
    while len(tunnel.recent()) < count:
        threading.Event().wait(0.01)
    return [one.engine for one in tunnel.recent()]

def free():
    for ends in spent, pipes:
        while ends:
            os.close(ends.pop())
    return 0

for line in sys.stdin:
    print(repr(eval(line)), flush=True)
tunnel.close()
print(threading.active_count())
"""


class Child:
    """A process with a tunnel to ``port`` and with few descriptors; takes expressions and says what they are."""

    def __init__(self, port, limit):
        root = Path(__file__).parents[2]
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(port), str(limit)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        self.address = ("127.0.0.1", int(self.process.stdout.readline()))

    def ask(self, expression):
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()
        return eval(Thread(self.process.stdout.readline).result())

    def assert_at_rest(self):
        """It is alive, and a second costs it next to nothing."""
        process = psutil.Process(self.process.pid)
        begin = process.cpu_times()
        threading.Event().wait(1.0)
        end = process.cpu_times()
        used = end.user + end.system - begin.user - begin.system
        assert used < 0.2, f"{used:.2f} s of CPU in a second of having nothing to do"
        assert self.process.poll() is None

    def close(self):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            assert self.process.wait(WAIT) == 0
            assert self.process.stdout.read() == "1\n", "threads are left after close"
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()


@pytest.fixture
def child(listener):
    yield from makes(lambda limit: Child(listener.getsockname()[1], limit))


@pytest.fixture
def opened():
    """Sockets that are closed after the test, with deadlines."""
    with contextlib.ExitStack() as stack:

        def keep(end):
            stack.enter_context(end).settimeout(WAIT)
            return end

        yield keep


def test_a_low_limit_of_descriptors(child, listener, opened):
    relay = child(40)
    clients = [opened(socket.create_connection(relay.address)) for _ in range(100)]
    for client in clients:
        client.sendall(b"ping")
    fars = []
    with contextlib.suppress(TimeoutError):
        while True:
            listener.settimeout(WAIT if len(fars) < 5 else 0.5)
            fars.append(opened(listener.accept()[0]))
            assert receive_exactly(fars[-1], 4) == b"ping"
    listener.settimeout(WAIT)
    assert 5 <= len(fars) <= 20, "as many as there are descriptors for"
    relay.assert_at_rest()
    for far in fars:
        far.close()  # which resets no client: the clients' pings were read
    assert service_resumes(relay, listener, clients, opened)


def service_resumes(relay, listener, clients, opened):
    """All clients leave; a new one is served then."""
    for client in clients:
        client.close()
    listener.settimeout(0.3)
    with contextlib.suppress(TimeoutError):
        while True:  # those that had waited in the backlog, and are gone
            listener.accept()[0].close()
    listener.settimeout(WAIT)
    for _ in range(20):
        client = opened(socket.create_connection(relay.address))
        client.sendall(b"here")
        far = opened(listener.accept()[0])
        while receive_exactly(far, 4) != b"here":  # one of those that are gone is late
            far.close()
            far = opened(listener.accept()[0])
        exchange(client, far)
        client.close()
        assert ending(far) == "end of file"
        far.close()
    return True


def test_waiting_callers_are_served_when_descriptors_come_back(child, listener, opened):
    relay = child(64)
    relay.ask("spend_descriptors()")
    clients = [opened(socket.create_connection(relay.address)) for _ in range(5)]
    relay.assert_at_rest()
    relay.ask("free()")
    for number, client in enumerate(clients):
        client.sendall(bytes([number]))
    seen = {opened(listener.accept()[0]).recv(1) for _ in clients}
    assert seen == {bytes([number]) for number in range(5)}


def test_bulk_without_a_descriptor_for_a_pipe(child, listener, opened):
    relay = child(64)
    client = opened(socket.create_connection(relay.address))
    far = opened(listener.accept()[0])
    exchange(client, far)
    relay.ask("spend_descriptors()")
    carry_much(client, far)
    relay.assert_at_rest()
    assert relay.ask("engines(1)") == ["copy"]
    relay.ask("free()")
    client = opened(socket.create_connection(relay.address))
    far = opened(listener.accept()[0])
    carry_much(client, far)


def carry_much(client, far):
    sending = Thread(send_and_end, client, BLOCK * 24)
    assert sha256_of(far) == hashlib.sha256(BLOCK * 24).hexdigest()
    sending.result()
    send_and_end(far, b"")
    assert ending(client) == "end of file"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a quota of pipes")
def test_bulk_when_the_quota_of_pipes_is_used_up(child, listener, opened):
    relay = child(1000)
    assert relay.ask("spend_pipes()") < 200, "an unprivileged user has a quota"
    pairs = []
    for _ in range(8):
        client = opened(socket.create_connection(relay.address))
        pairs.append((client, opened(listener.accept()[0])))
    carriers = [Thread(carry_much, *ends) for ends in pairs]
    for carrier in carriers:
        carrier.result(30)
    assert relay.ask("engines(8)") == ["copy"] * 8
    relay.assert_at_rest()
    relay.ask("free()")
    client = opened(socket.create_connection(relay.address))
    far = opened(listener.accept()[0])
    carry_much(client, far)
    assert relay.ask("engines(9)[8]") == "splice", "with the quota back, bulk is spliced again"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux splices")
def test_more_stalled_bulk_than_there_are_pipes(child, listener, opened):
    """Each stalled flow has bytes in a pipe of its own; beyond the bound they are copied, and all of it arrives."""
    relay = child(1000)
    pairs, sending = [], []
    for _ in range(70):
        client = opened(socket.create_connection(relay.address))
        far = opened(listener.accept()[0])
        pairs.append((client, far))
    for client, far in pairs:
        sending.append(Thread(send_and_end, client, BLOCK * 8))
        assert receive_exactly(far, 1 << 20) == BLOCK  # it is under way; from now on the reader stops
    relay.assert_at_rest()
    for _, far in pairs:
        assert sha256_of(far) == hashlib.sha256(BLOCK * 7).hexdigest()
    for thread in sending:
        thread.result()
