"""``relay.transports.i2p.delivery``: the end of a stream's output, until the router has read all of it."""

from __future__ import annotations

import os
import socket
import threading

import pytest
from helpers import BLOCK, WAIT, receive_all, wait_until

from relay.eventloop.background import IOThread
from relay.eventloop.sockets import reset
from relay.transports.i2p import delivery
from relay.transports.i2p.delivery import end_output


@pytest.fixture
def ends():
    """The socket of a stream, and the router's."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = socket.create_connection(listening.getsockname())
        far, _ = listening.accept()
    with near, far:
        near.setblocking(False)
        far.settimeout(WAIT)
        yield near, far


@pytest.fixture
def ended():
    yield threading.Event()
    wait_until(lambda: IOThread._current is None)


def test_it_ends_when_the_router_has_read_everything_and_closes(ends, ended):
    near, far = ends
    near.sendall(BLOCK[: 1 << 14])
    end_output(near, ended.set)
    assert receive_all(far) == BLOCK[: 1 << 14]
    assert not ended.is_set()
    far.close()
    assert ended.wait(WAIT)
    assert near.fileno() >= 0, "its owner closes it"


def test_what_still_comes_is_dropped(ends, ended):
    near, far = ends
    end_output(near, ended.set)
    far.sendall(BLOCK * 4)  # more than the kernel holds, if no client reads
    assert receive_all(far) == b""
    assert not ended.is_set()
    far.close()
    assert ended.wait(WAIT)


def test_a_reset_ends_it(ends, ended):
    near, far = ends
    end_output(near, ended.set)
    reset(far)
    assert ended.wait(WAIT)


def test_a_socket_that_has_failed_ends_it(ends, ended):
    near, far = ends
    reset(far)
    wait_until(lambda: near.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
    end_output(near, ended.set)
    assert ended.wait(WAIT)


def test_a_router_that_reads_nothing_ends_it_in_time(ends, ended, monkeypatch):
    monkeypatch.setattr(delivery, "_TIMEOUT", 0.05)
    near, _ = ends
    end_output(near, ended.set)
    assert ended.wait(WAIT)


def test_no_thread_is_an_error(ends, monkeypatch):
    def refuse(client):
        raise OSError("can't start new thread")

    monkeypatch.setattr(IOThread, "acquire", refuse)
    with pytest.raises(OSError, match="can't start new thread"):
        end_output(ends[0], lambda: None)


def test_a_forked_child_leaves_it_alone(ends, ended):
    near, far = ends
    end_output(near, ended.set)
    child = os.fork()
    if child == 0:
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not ended.is_set()
    far.close()
    assert ended.wait(WAIT)
