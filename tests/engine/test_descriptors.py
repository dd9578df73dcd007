"""Bytes from one descriptor to another, in the fastest way there is."""

import contextlib
import errno
import fcntl
import os
import select
import socket
from types import SimpleNamespace

import pytest
from helpers import BLOCK

from relay.engine.descriptors import (
    Direction,
    FdCopier,
    Interests,
    Readiness,
    SinkError,
    SourceError,
    _Pipe,
    is_same_socket,
    shut_down,
)


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


@pytest.fixture
def refuses(monkeypatch):
    """Lets a call of the system fail: ``refuses(os, "splice", EINVAL)``."""

    def refuse(module, name, number):
        def fail(*_, **__):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(module, name, fail)

    return refuse


@pytest.fixture
def lacks(monkeypatch):
    """Takes something away that another system does not have: ``lacks(os, "splice")``."""
    return lambda module, name: monkeypatch.delattr(module, name)


def held():
    """Return the number of open descriptors of this process."""
    return len(os.listdir("/dev/fd"))


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


def test_a_file_is_sent_from_where_it_is(make, file, sockets):
    near, far = sockets
    file.seek(10)
    mover = make(file.fileno(), near.fileno())
    before = held()
    assert [mover.move() for _ in range(2)] == [Readiness.SINK, Readiness.NOTHING]
    assert held() == before, "inside the kernel"
    assert (mover.moved, far.recv(200)) == (90, bytes(range(10, 100)))


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


def test_a_pipe_that_cannot_be_wider_will_do(make, pipe, sockets, refuses):
    refuses(fcntl, "fcntl", errno.EPERM)
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
def test_where_the_kernel_cannot_it_copies(make, pipe, sockets, refuses, tmp_path, call, number):
    refuses(os, call, number)
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
def test_an_error_of_the_socket_is_told_once_and_never_taken_for_an_end(make, pipe, sockets, refuses, number):
    """The system forgets it once it has reported it: a copy would read an end of file next."""
    refuses(os, "splice", number)
    with pytest.raises(SourceError) as caught:
        make(sockets[0].fileno(), pipe[1]).move()
    assert isinstance(caught.value.__cause__, OSError) and caught.value.__cause__.errno == number


def test_an_error_of_the_socket_that_a_file_is_sent_to_is_the_sinks(make, sockets, tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    sockets[1].close()
    with open(tmp_path / "file", "rb") as file, pytest.raises(SinkError):
        make(file.fileno(), sockets[0].fileno()).move()


def test_a_socket_that_blocks_is_not_spliced(make, pipe, sockets, refuses):
    sockets[0].setblocking(True)
    refuses(os, "splice", errno.ENOTCONN)
    sockets[1].send(b"abc")
    assert make(sockets[0].fileno(), pipe[1]).move() is Readiness.SOURCE
    assert os.read(pipe[0], 10) == b"abc"
    assert sockets[0].getblocking()


@pytest.mark.parametrize("why", ["cannot be opened anew", "has flags of its own"])
def test_a_pipe_is_written_to_in_pieces_that_it_takes_at_once(make, pipe, sockets, refuses, lacks, why):
    lacks(os, "splice")
    if why == "cannot be opened anew":
        refuses(os, "open", errno.EACCES)
    near, far = sockets
    mover = make(near.fileno(), pipe[1])
    far.send(bytes(20000))
    for _ in range(20):
        mover.move()
    assert mover.moved == 20000
    assert len(os.read(pipe[0], 65536)) == 20000


def test_closing_twice_closes_nothing_of_anybody_else(make, pipe, sockets, lacks):
    lacks(os, "splice")
    mover = make(pipe[0], sockets[0].fileno())
    os.write(pipe[1], b"abc")
    mover.move()
    mover.close()
    others = [os.open(os.devnull, os.O_RDONLY) for _ in range(8)]
    mover.close()
    for other in others:
        os.close(other)
    os.fstat(pipe[0])


# -- a splice ------------------------------------------------------------------------------------------------------


@pytest.fixture
def splices(monkeypatch):
    """Notes the splices, whose outcomes the test decides: how many bytes, or an error."""
    found = SimpleNamespace(calls=[], outcomes=[])

    def splice(*arguments, **options):
        found.calls.append((*arguments, *options.items()))
        outcome = found.outcomes.pop(0)
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    monkeypatch.setattr(os, "splice", splice)
    return found


def test_bytes_of_a_socket_stay_in_the_kernel_on_their_way_into_a_pipe(make, pipe, sockets, splices):
    near, far = sockets
    mover = make(near.fileno(), pipe[1])
    splices.outcomes = [10, 20, 0]
    assert [mover.move() for _ in range(2)] == [Readiness.SOURCE] * 2
    assert mover.moved == 30
    far.send(b"what a splice left")
    far.close()
    assert [mover.move() for _ in range(2)] == [Readiness.SOURCE, Readiness.NOTHING]
    flags = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE
    assert splices.calls == [(near.fileno(), pipe[1], 1 << 20, ("flags", flags))] * 3
    assert (mover.moved, os.read(pipe[0], 100)) == (48, b"what a splice left")


def test_a_splice_in_vain_waits_for_the_other_end(make, pipe, sockets, splices):
    mover = make(sockets[0].fileno(), pipe[1])
    splices.outcomes = [BlockingIOError() for _ in range(7)]
    waited = [mover.move() for _ in range(7)]
    assert waited == [Readiness.SINK, Readiness.SOURCE] * 3 + [Readiness.SINK]
    splices.outcomes = [5, *(BlockingIOError() for _ in range(8))]
    assert mover.move() is Readiness.SOURCE
    waited = [mover.move() for _ in range(8)]
    assert waited == [Readiness.SINK, Readiness.SOURCE] * 3 + [Readiness.SINK, Readiness.SOURCE]
    assert splices.outcomes == []
    sockets[1].send(b"copied")
    assert mover.move() is Readiness.SOURCE
    assert (len(splices.calls), os.read(pipe[0], 10)) == (16, b"copied"), "after eight in a row"


# -- a file --------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    with open(path, "rb", buffering=0) as opened:
        yield opened


def test_a_system_may_have_no_call_for_it(make, file, sockets, lacks):
    lacks(os, "sendfile")
    near, far = sockets
    mover = make(file.fileno(), near.fileno())
    assert mover.move() is Readiness.SOURCE
    assert far.recv(200) == bytes(range(100))
    assert mover.move() is Readiness.NOTHING


# -- a copy --------------------------------------------------------------------------------------------------------


def flags(descriptor):
    return fcntl.fcntl(descriptor, fcntl.F_GETFL)


@pytest.mark.parametrize("is_blocking", [True, False])
def test_a_pipe_that_others_share_keeps_its_flags_and_is_never_waited_for(make, pipe, sockets, is_blocking):
    os.set_blocking(pipe[0], is_blocking)
    before, count = flags(pipe[0]), held()
    mover = make(pipe[0], sockets[0].fileno())
    assert mover.move() is Readiness.SOURCE, "it would wait for bytes"
    assert flags(pipe[0]) == before
    assert held() - count == 1 + is_blocking, "the socket, and a pipe with flags of its own"


@pytest.mark.parametrize("into", [True, False])
def test_a_file_needs_no_descriptor_of_its_own(make, pipe, tmp_path, file, into):
    with open(tmp_path / "out", "wb", buffering=0) as out:
        count = held()
        mover = make(file.fileno(), out.fileno() if into else pipe[1])
        mover.move()
        assert held() - count == (0 if into else 1)
    assert ((tmp_path / "out").read_bytes() if into else os.read(pipe[0], 200)) == bytes(range(100))


def test_a_socket_that_others_share_is_never_waited_for(make, sockets):
    near, far = sockets
    other = socket.socketpair()
    with other[0], other[1]:
        near.setblocking(True)
        other[0].setblocking(True)
        mover = make(near.fileno(), other[0].fileno())
        assert mover.move() is Readiness.SOURCE
        while True:
            with contextlib.suppress(BlockingIOError):
                far.send(BLOCK)
            if mover.move() is Readiness.SINK:
                break
        assert near.getblocking()
        assert other[0].getblocking()
        assert mover.moved > 0


# -- a pipe that is made wider -------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(fcntl, "F_GETPIPE_SZ"), reason="this machine has no sizes of pipes")
@pytest.mark.parametrize(
    ("size", "reads", "becomes"),
    [
        (1 << 16, [1 << 16] * 3 + [(1 << 16) - 1] + [1 << 16] * 3, 1 << 16),
        (1 << 16, [1 << 16] * 4, 1 << 18),
        (1 << 16, [1 << 16] * 12, 1 << 18),
        (1 << 17, [1 << 17] * 4, 1 << 18),
        (1 << 18, [1 << 17] * 8, 1 << 18),
        (1 << 19, [1 << 17] * 8, 1 << 19),
    ],
)
def test_four_full_reads_in_a_row_make_it_wider(pipe, size, reads, becomes):
    fcntl.fcntl(pipe[0], fcntl.F_SETPIPE_SZ, size)
    one = _Pipe(pipe[0])
    for count in reads:
        one.widen(count)
    assert fcntl.fcntl(pipe[0], fcntl.F_GETPIPE_SZ) == becomes
    one.restore()
    assert fcntl.fcntl(pipe[0], fcntl.F_GETPIPE_SZ) == size


def test_a_system_may_have_no_sizes_of_pipes(pipe, lacks):
    before = fcntl.fcntl(pipe[0], fcntl.F_GETPIPE_SZ)
    get = fcntl.F_GETPIPE_SZ
    lacks(fcntl, "F_GETPIPE_SZ")
    one = _Pipe(pipe[0])
    for _ in range(8):
        one.widen(1 << 18)
    one.restore()
    assert fcntl.fcntl(pipe[0], get) == before


# -- a direction ---------------------------------------------------------------------------------------------------


def test_a_direction_waits_for_one_end(pipe, sockets):
    source, sink = pipe[0], sockets[0].fileno()
    one = Direction(source, sink)
    os.write(pipe[1], b"abc")
    assert (one.copier.move(), sockets[1].recv(10), one.ended) == (Readiness.SOURCE, b"abc", None)
    one.copier.close()
    assert (one.interest(source), one.interest(sink)) == (select.POLLIN, 0)
    one.wait_for = Readiness.SINK
    assert (one.interest(source), one.interest(sink)) == (0, select.POLLOUT)
    one.ended = 1234.5
    assert (one.interest(source), one.interest(sink)) == (0, 0)


def test_what_a_thread_waits_for(pipe, sockets):
    near, far = sockets
    interests = Interests(pipe[0])
    interests.set(far.fileno(), -1)
    assert interests.wait(0) == {}
    interests.set(near.fileno(), select.POLLIN)
    assert interests.wait(0) == {}
    far.send(b"abc")
    assert interests.wait(None) == {near.fileno(): select.POLLIN}
    interests.set(near.fileno(), select.POLLOUT)
    assert interests.wait(None) == {near.fileno(): select.POLLOUT}
    interests.set(near.fileno(), 0)
    assert interests.wait(0) == {}
    far.close()
    assert interests.wait(None) == {near.fileno(): select.POLLHUP}, "a hang-up is always told"
    interests.set(near.fileno(), -1)
    interests.set(near.fileno(), -1)
    assert interests.wait(0) == {}
    os.write(pipe[1], b"!")
    assert interests.wait(None) == {pipe[0]: select.POLLIN}


def test_a_wake_may_have_the_number_of_standard_input(monkeypatch):
    calls = []
    poller = SimpleNamespace(register=lambda *given: calls.append(given))
    monkeypatch.setattr(select, "poll", lambda: poller)
    Interests(0)
    Interests()
    assert calls == [(0, select.POLLIN)]


def test_one_socket_by_two_descriptors(stack, pipe, sockets):
    near, far = sockets
    again = stack.enter_context(near.dup())
    assert is_same_socket(near.fileno(), again.fileno())
    assert not is_same_socket(near.fileno(), far.fileno())
    assert not is_same_socket(pipe[0], pipe[0]), "no socket"


def test_an_end_of_file_by_the_descriptor_of_a_socket(sockets):
    near, far = sockets
    far.setblocking(True)
    shut_down(near.fileno())
    assert far.recv(1) == b""
    far.send(b"abc")
    assert near.recv(10) == b"abc"
    far.close()
    shut_down(near.fileno())
