"""Messages of ØMQ sockets over SSH arrive whole, also if the sockets and the tunnel are closed at once."""

import functools
import hashlib
import time

import pytest
import zmq
from helpers import BLOCK, WAIT, Thread, makes
from zmq_world import User, bound, named, program, sockets

from relay.compat import zmqssh
from relay.process import DEVNULL, PIPE, start

MESSAGES = 100  # of a mebibyte


@pytest.fixture
def connect(far_end, tmp_path, monkeypatch):
    """Connects a ØMQ socket over the server."""
    User(tmp_path / "home", monkeypatch).knows(far_end.server)

    def connect(socket, address, **options):
        paramiko = far_end.backend == "paramiko"
        server, keyfile = named(far_end.server), far_end.server.keyfile
        return zmqssh.tunnel_connection(socket, address, server, keyfile, paramiko=paramiko, **options)

    yield from makes(connect, lambda tunnel: tunnel.terminate())


def message(number):
    """Every one differs from every other."""
    return number.to_bytes(4, "big") + BLOCK[number : number + (1 << 20) - 4]


def hash_of(puller, count):
    seen = hashlib.sha256()
    for _ in range(count):
        seen.update(puller.recv())
    return seen.hexdigest()


@functools.cache  # not while tests are collected, which each process does
def expected():
    """The hash of all messages."""
    return hashlib.sha256(b"".join(map(message, range(MESSAGES)))).hexdigest()


def test_a_hundred_mebibytes_and_an_end_at_once(connect):
    with sockets() as make:
        puller, pusher = make(zmq.PULL), make(zmq.PUSH)
        tunnel = connect(pusher, bound(puller))
        reading = Thread(hash_of, puller, MESSAGES)
        for number in range(MESSAGES):
            pusher.send(message(number))
        pusher.close(linger=-1)
        tunnel.close()
        assert tunnel.recent()[-1].reason == "done"
        assert reading.result() == expected()


def test_a_hundred_mebibytes_back(connect):
    with sockets() as make:
        pusher, puller = make(zmq.PUSH), make(zmq.PULL)
        connect(puller, bound(pusher))
        reading = Thread(hash_of, puller, MESSAGES)
        for number in range(MESSAGES):
            pusher.send(message(number))
        assert reading.result() == expected()


def test_one_message_and_an_end_at_once(connect):
    """Which may come before the socket has even connected."""
    for _ in range(5):
        with sockets() as make:
            puller, pusher = make(zmq.PULL), make(zmq.PUSH)
            tunnel = connect(pusher, bound(puller))
            pusher.send(b"the only one")
            pusher.close(linger=-1)
            tunnel.close()
            assert puller.recv() == b"the only one"


def test_a_puller_that_is_slow(connect):
    """Messages that its queue does not take wait on the way; the close waits for it."""
    with sockets() as make:
        puller, pusher = make(zmq.PULL), make(zmq.PUSH)
        puller.rcvhwm = 1
        tunnel = connect(pusher, bound(puller))
        for number in range(20):
            pusher.send(message(number))
        pusher.close(linger=-1)
        closing = Thread(tunnel.close)
        begin = time.monotonic()
        seen = []
        while len(seen) < 20:
            if closing.is_alive() and time.monotonic() - begin < 1.5:
                closing.join(1.5)  # longer than what is quiet
            seen.append(puller.recv())
        assert seen == [message(number) for number in range(20)]
        closing.result()


def test_a_program_that_ends_loses_nothing(far_end, tmp_path, monkeypatch):
    """Its last message is on its way when its last line has run."""
    User(tmp_path / "home", monkeypatch).knows(far_end.server)
    code = f"""
import zmq
from relay.compat import zmqssh as ssh
context = zmq.Context()
sock = context.socket(zmq.PUSH)
ssh.tunnel_connection(sock, sys.argv[1], {named(far_end.server)!r}, {far_end.server.keyfile!r},
                      paramiko={far_end.backend == "paramiko"})
for number in range(32):
    sock.send(number.to_bytes(4, "big") + bytes(1 << 20))
sock.close()
context.term()
"""
    with sockets() as make:
        puller = make(zmq.PULL)
        with start([*program(code), bound(puller)], stdin=DEVNULL, stdout=PIPE) as process:
            for number in range(32):
                assert puller.recv()[:4] == number.to_bytes(4, "big")
            assert process.wait(WAIT) == 0
