"""Bytes from one descriptor to another, in the fastest way there is."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket

import pytest
from helpers import BLOCK

from relay.engine.descriptors import FdCopier, Readiness, SinkError, SourceError


@pytest.fixture
def stack():
    with contextlib.ExitStack() as opened:
        yield opened


@pytest.fixture
def pipe(stack):
    ends = os.pipe()
    for end in ends:
        stack.callback(os.close, end)
    return ends


@pytest.fixture
def sockets(stack):
    pair = socket.socketpair()
    for end in pair:
        stack.enter_context(end)
        end.setblocking(False)
    return pair


@pytest.fixture
def make(stack):
    def mover(source, sink):
        made = FdCopier(source, sink)
        stack.callback(made.close)
        return made

    return mover


def refuse(number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


def test_it_tells_what_it_waits_for(make, pipe, sockets):
    near, far = sockets
    mover = make(pipe[0], near.fileno())
    os.write(pipe[1], b"abc")
    assert mover.move() is Readiness.SOURCE
    assert far.recv(10) == b"abc"
    assert mover.moved == 3
    with contextlib.suppress(BlockingIOError):
        while True:
            near.send(BLOCK)
    os.write(pipe[1], b"more")
    assert mover.move() is Readiness.SINK


def test_a_splice_in_vain_again_and_again_makes_it_copy(make, pipe, sockets, monkeypatch):
    mover = make(sockets[0].fileno(), pipe[1])
    monkeypatch.setattr(os, "splice", refuse(errno.EAGAIN))
    sockets[1].send(b"abc")
    for _ in range(20):
        mover.move()
    assert os.read(pipe[0], 10) == b"abc"


def test_a_pipe_that_bulk_comes_from_is_wider_for_as_long(make, pipe, sockets):
    near, far = sockets
    before = fcntl.fcntl(pipe[0], fcntl.F_GETPIPE_SZ)
    mover = make(pipe[0], near.fileno())
    os.write(pipe[1], b"a small piece")
    mover.move()
    assert fcntl.fcntl(pipe[0], fcntl.F_GETPIPE_SZ) == before
    for _ in range(10):
        os.write(pipe[1], bytes(before))
        while mover.move() is not Readiness.SOURCE:
            far.recv(1 << 20)
        with contextlib.suppress(BlockingIOError):
            far.recv(1 << 20)
    assert fcntl.fcntl(pipe[0], fcntl.F_GETPIPE_SZ) > before
    mover.close()
    assert fcntl.fcntl(pipe[0], fcntl.F_GETPIPE_SZ) == before


def test_a_pipe_that_cannot_be_wider_will_do(make, pipe, sockets, monkeypatch):
    monkeypatch.setattr(fcntl, "fcntl", refuse(errno.EPERM))
    near, far = sockets
    mover = make(pipe[0], near.fileno())
    for _ in range(10):
        os.write(pipe[1], bytes(65536))
        while mover.move() is not Readiness.SOURCE:
            far.recv(1 << 20)
        with contextlib.suppress(BlockingIOError):
            far.recv(1 << 20)
    assert mover.moved == 10 * 65536


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
@pytest.mark.parametrize("call", ["splice", "sendfile"])
def test_where_the_kernel_cannot_it_copies(make, pipe, sockets, monkeypatch, tmp_path, call, number):
    monkeypatch.setattr(os, call, refuse(number))
    near, far = sockets
    (tmp_path / "file").write_bytes(b"abc")
    far.send(b"abc")
    with open(tmp_path / "file", "rb") as file:
        mover = make(file.fileno(), near.fileno()) if call == "sendfile" else make(near.fileno(), pipe[1])
        assert mover.move() is Readiness.SOURCE
        mover.move()
    assert (far.recv(10) if call == "sendfile" else os.read(pipe[0], 10)) == b"abc"
    assert mover.moved == 3


@pytest.mark.parametrize("number", [errno.ETIMEDOUT, errno.ECONNRESET, errno.EHOSTUNREACH])
def test_an_error_of_the_socket_is_told_once_and_never_taken_for_an_end(make, pipe, sockets, monkeypatch, number):
    """The system forgets it once it has reported it: a copy would read an end of file next."""
    monkeypatch.setattr(os, "splice", refuse(number))
    with pytest.raises(SourceError):
        make(sockets[0].fileno(), pipe[1]).move()


def test_an_error_of_the_socket_that_a_file_is_sent_to_is_the_sinks(make, sockets, tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    sockets[1].close()
    with open(tmp_path / "file", "rb") as file, pytest.raises(SinkError):
        make(file.fileno(), sockets[0].fileno()).move()


def test_a_socket_that_blocks_is_not_spliced(make, pipe, sockets, monkeypatch):
    sockets[0].setblocking(True)
    monkeypatch.setattr(os, "splice", refuse(errno.ENOTCONN))
    sockets[1].send(b"abc")
    assert make(sockets[0].fileno(), pipe[1]).move() is Readiness.SOURCE
    assert os.read(pipe[0], 10) == b"abc"
    assert sockets[0].getblocking()


def test_a_copy_into_a_full_pipe_does_not_wait(make, pipe, sockets, monkeypatch):
    monkeypatch.delattr(os, "splice")
    near, far = sockets
    mover = make(near.fileno(), pipe[1])
    with contextlib.suppress(BlockingIOError):
        while True:
            far.send(BLOCK)
    steps = [mover.move() for _ in range(10)]
    assert steps[-1] is Readiness.SINK
    assert os.get_blocking(pipe[1])
    size = mover.moved
    while mover.move() is not Readiness.SINK or mover.moved == size:
        os.read(pipe[0], 1 << 16)


@pytest.mark.parametrize("why", ["cannot be opened anew", "has flags of its own"])
def test_a_pipe_is_written_to_in_pieces_that_it_takes_at_once(make, pipe, sockets, monkeypatch, why):
    monkeypatch.delattr(os, "splice")
    if why == "cannot be opened anew":
        monkeypatch.setattr(os, "open", refuse(errno.EACCES))
    near, far = sockets
    mover = make(near.fileno(), pipe[1])
    far.send(bytes(20000))
    for _ in range(20):
        mover.move()
    assert mover.moved == 20000
    assert len(os.read(pipe[0], 65536)) == 20000


def test_closing_twice_closes_nothing_of_anybody_else(make, pipe, sockets, monkeypatch):
    monkeypatch.delattr(os, "splice")
    mover = make(pipe[0], sockets[0].fileno())
    os.write(pipe[1], b"abc")
    mover.move()
    mover.close()
    others = [os.open(os.devnull, os.O_RDONLY) for _ in range(8)]
    mover.close()
    for other in others:
        os.close(other)
    os.fstat(pipe[0])
