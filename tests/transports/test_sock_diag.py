"""``relay.transports.sock_diag``: what the kernel says of a socket."""

import os
import socket
import sys

import pytest
from helpers import closed

from relay.transports import sock_diag
from relay.transports.sock_diag import LISTEN, SockDiag


@pytest.fixture
def kernel():
    yield from closed(SockDiag())


def test_a_socket_that_listens(kernel, listener):
    host, port = listener.getsockname()
    found = kernel.listener(host, port)
    assert (found.state, found.user, found.inode) == (LISTEN, os.geteuid(), os.fstat(listener.fileno()).st_ino)
    assert kernel.listener(host, port).cookie == found.cookie
    assert kernel.listener("127.0.0.2", port) is None
    listener.close()
    assert kernel.listener(host, port) is None
    with socket.create_server((host, port)):
        assert kernel.listener(host, port).cookie != found.cookie


def test_the_ends_of_a_connection(kernel, listener):
    with socket.create_connection(listener.getsockname()) as near, listener.accept()[0] as far:
        ends = near.getsockname(), far.getsockname()
        found = kernel.ask(near.family, *ends)
        assert found.inode == os.fstat(near.fileno()).st_ino
        assert found.is_between(near.family, *ends) and not found.is_between(near.family, *ends[::-1])


def test_an_answer_that_was_left_behind_is_not_taken_for_the_next(kernel, listener):
    nobody = sock_diag._ID.pack(b"\0" * 4, b"\0" * 32, 0, b"\xff" * 8)
    request = sock_diag._QUERY.pack(socket.AF_INET, socket.IPPROTO_TCP, 0, sock_diag._ANY) + nobody
    size = sock_diag._HEAD.size + len(request)
    kernel._netlink.send(sock_diag._HEAD.pack(size, sock_diag._BY_FAMILY, sock_diag._REQUEST, 12345, 0) + request)
    assert kernel.listener(*listener.getsockname())


def test_other_systems_have_none(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(OSError, match="only Linux"):
        SockDiag()
