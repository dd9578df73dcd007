"""``relay.eventloop.unix_reset``: a Unix socket whose peer reads ECONNRESET after its bytes."""

import contextlib
import fcntl
import os
import select
import socket
import subprocess
import sys

import pytest
from helpers import WAIT, receive_exactly

from relay.eventloop import unix_reset
from relay.eventloop.sockets import reset
from relay.eventloop.unix_reset import leave_unread, socketpair

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has it")


@pytest.fixture
def pair():
    near, far = socketpair()
    far.settimeout(WAIT)
    with near, far:
        yield near, far


def cut(near):
    """Close it as something that was cut."""
    reset(near)
    assert near.fileno() < 0


def assert_cut(far, before=b"before"):
    assert receive_exactly(far, len(before)) == before
    with pytest.raises(ConnectionResetError):
        far.recv(1)


def test_the_holder_reads_its_bytes_and_then_a_reset(pair):
    near, far = pair
    near.send(b"before")
    cut(near)
    assert_cut(far)


def test_also_where_it_is_not_read_through_the_first_descriptor(pair):
    near, far = pair
    near.send(b"before")
    moved = socket.socket(fileno=os.dup(far.fileno()))
    far.close()
    with moved:
        moved.settimeout(WAIT)
        cut(near)
        assert_cut(moved)


def test_also_where_another_object_has_taken_it_over(pair):
    """As :mod:`ssl` does."""
    near, far = pair
    near.send(b"before")
    with socket.socket(fileno=far.detach()) as moved:
        moved.settimeout(WAIT)
        cut(near)
        assert_cut(moved)


def test_another_socket_that_has_got_its_number_is_left_alone(pair):
    near, far = pair
    number = far.fileno()
    copy = far.dup()
    other, its_peer = socket.socketpair()
    os.dup2(other.fileno(), number)
    with copy, other, its_peer:
        copy.settimeout(WAIT)
        near.send(b"before")
        cut(near)
        assert_cut(copy)
        assert not select.select([its_peer], [], [], 0)[0]
        its_peer.send(b"x")
        assert other.recv(10) == b"x"


def test_a_file_that_has_got_its_number_keeps_its_locks(pair, tmp_path):
    """A close of any duplicate of a file would release them: fcntl(2)."""
    near, theirs = pair
    number, path = theirs.fileno(), tmp_path / "database"
    path.touch()
    look = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    with theirs.dup() as holder:
        theirs.close()
        descriptor = os.open(path, os.O_RDWR)
        if descriptor != number:
            os.dup2(descriptor, number)
            os.close(descriptor)
        try:
            fcntl.lockf(number, fcntl.LOCK_EX)
            reset(near)
            assert subprocess.run([sys.executable, "-c", look, path], capture_output=True, check=False).returncode != 0
        finally:
            os.close(number)
        with pytest.raises(ConnectionResetError):
            holder.recv(1)


def test_what_is_put_there_is_never_data(pair):
    """Also to a process with a copy of relay's end."""
    near, far = pair
    with near.dup() as copy:
        copy.setblocking(False)
        cut(near)
        with pytest.raises(BlockingIOError):
            copy.recv(10)
        far.send(b"data")
        assert copy.recv(10) == b"data"


def test_a_kernel_without_data_out_of_band(pair, monkeypatch):
    monkeypatch.setattr(socket, "MSG_OOB", 0x800000)  # a flag that no kernel knows here

    class Old(socket.socket):
        def send(self, data, flags=0):
            if flags & socket.MSG_OOB:
                raise OSError(95, "Operation not supported")
            return super().send(data, flags)

    duplicate = unix_reset._duplicate

    def old(*where):
        made = duplicate(*where)
        return made and Old(fileno=made.detach())

    monkeypatch.setattr(unix_reset, "_duplicate", old)
    near, far = pair
    near.send(b"before")
    cut(near)
    assert_cut(far)
    one, other = socket.socketpair()
    with one, other:  # not one of relay's: another program may read from it
        assert leave_unread(one) is None


def test_a_holder_that_has_closed_is_not_looked_for(pair, monkeypatch):
    near, far = pair
    far.close()
    monkeypatch.setattr(unix_reset, "_far_end", lambda near: pytest.fail("it was looked for"))
    assert leave_unread(near) is None


def test_a_holder_that_has_ended_its_direction_sees_an_end(pair):
    """The documented limit: nothing can be put where it could be left unread."""
    near, far = pair
    far.shutdown(socket.SHUT_WR)
    cut(near)
    assert far.recv(1) == b""


def test_a_holder_in_another_process_sees_an_end(pair):
    near, far = pair
    code = "import socket; s = socket.socket(fileno=0); print(s.recv(9), s.recv(9))"
    with subprocess.Popen([sys.executable, "-c", code], stdin=far, stdout=subprocess.PIPE) as process:
        far.close()
        near.send(b"before")
        cut(near)
        assert process.communicate(timeout=WAIT)[0] == b"b'before' b''\n"


@pytest.fixture
def accepted(tmp_path):
    """A client of a Unix listener, and the listener's side of it."""
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as client:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        client.settimeout(WAIT)
        client.connect(str(tmp_path / "s"))
        ours, _ = listening.accept()
        with ours:
            yield ours, client


def test_a_client_of_a_listener_in_this_process_reads_a_reset(accepted):
    ours, client = accepted
    ours.send(b"before")
    cut(ours)
    assert_cut(client)


def test_a_client_whose_number_is_known_already(accepted, monkeypatch):
    ours, client = accepted
    unix_reset._search()
    monkeypatch.setattr(unix_reset, "_search", lambda: pytest.fail("it searched again"))
    cut(ours)
    assert_cut(client, b"")


def test_many_at_once_leave_no_descriptor():
    pairs = [socketpair() for _ in range(200)]
    with contextlib.ExitStack() as stack:
        for _, far in pairs:
            stack.enter_context(far)
        for near, _ in pairs:
            cut(near)
        for _, far in pairs:
            with pytest.raises(ConnectionResetError):
                far.recv(1)


def test_holders_in_other_processes_are_searched_for_once(monkeypatch):
    """Each search looks at every descriptor."""
    searches = []
    real = unix_reset._search
    monkeypatch.setattr(unix_reset, "_search", lambda: searches.append(1) or real())
    pairs = [socketpair() for _ in range(20)]
    elsewhere = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[far.fileno() for _, far in pairs])
    try:
        for _, far in pairs:
            far.close()
        for near, _ in pairs:
            cut(near)
        assert len(searches) == 1
        near, far = socketpair()  # a later pair is searched for again
        with socket.socket(fileno=os.dup(far.fileno())) as moved:
            far.close()
            cut(near)
            moved.settimeout(WAIT)
            assert_cut(moved, b"")
        assert len(searches) == 2
    finally:
        elsewhere.communicate(timeout=WAIT)


def test_without_descriptors_it_is_an_end(pair, monkeypatch):
    near, far = pair
    monkeypatch.setattr(os, "dup", lambda descriptor: (_ for _ in ()).throw(OSError(24, "Too many open files")))
    cut(near)
    assert far.recv(1) == b""


def test_sockets_of_other_kinds_are_none_of_its_business(listener):
    with socket.create_connection(listener.getsockname()) as client, listener.accept()[0] as made:
        reset(made)
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_a_closed_socket_is_no_error(pair):
    near, _ = pair
    near.close()
    assert leave_unread(near) is None
    reset(near)
