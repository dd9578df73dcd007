"""``relay.streams.socket_proxy``: a stream behind a socket that its holder closes whenever he likes."""

import contextlib
import errno
import os
import socket
import threading
import time

import pytest
from helpers import (
    BLOCK,
    WAIT,
    Thread,
    ending,
    exchange,
    receive_all,
    receive_exactly,
    receive_until_reset,
    send_and_end,
    wait_until,
)

import relay
from relay.eventloop.background import IOThread
from relay.eventloop.sockets import reset
from relay.streams.socket_proxy import self_contained


class Rig:
    """A passage over a TCP connection, and both of its ends."""

    def __init__(self, stack, half_close=False, over=None):
        with socket.create_server(("127.0.0.1", 0)) as listening:
            near = socket.create_connection(listening.getsockname())
            self.far = stack.enter_context(listening.accept()[0])
        near.setblocking(False)
        self.far.settimeout(WAIT)
        self.overs = []
        self.over = threading.Event()
        self.inner = relay.Stream(near, half_close=half_close, target="the target")
        self.stream = self_contained(self.inner, over or self.ended)
        self.near = stack.enter_context(self.stream.socket)
        self.near.settimeout(WAIT)

    def ended(self):
        self.overs.append(threading.current_thread().name)
        self.over.set()

    def all_over(self):
        """Wait until nothing is left, whatever of it was reported."""
        assert self.over.wait(WAIT)
        wait_until(lambda: self.inner.fileno() < 0 and not IOThread.clients())
        assert self.overs == ["relay-io"]


@pytest.fixture
def rig():
    """Makes passages whose ends are closed with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: Rig(stack, **options)


def idle_for(seconds):
    """The share of that time that this process used."""
    before = time.process_time()
    threading.Event().wait(seconds)
    return (time.process_time() - before) / seconds


def fill(end):
    """Send until nothing more is taken; returns how much that was."""
    sent = 0
    end.setblocking(False)
    quiet = time.monotonic() + 0.2
    while time.monotonic() < quiet:
        try:
            sent += end.send(BLOCK[: 1 << 16])
            quiet = time.monotonic() + 0.2
        except BlockingIOError:
            threading.Event().wait(0.005)
    end.settimeout(WAIT)
    return sent


def test_both_directions(rig):
    one = rig()
    exchange(one.near, one.far)
    exchange(one.far, one.near)
    assert one.stream.target == "the target" and not one.stream.half_close
    assert one.stream.socket.family == socket.AF_UNIX
    one.near.close()
    one.all_over()


def test_it_tells_how_much_has_come(rig):
    one = rig()
    assert one.stream.received() == 0
    one.far.sendall(b"four")
    assert receive_exactly(one.near, 4) == b"four"
    assert one.stream.received() == 4
    one.near.sendall(b"up")
    assert receive_exactly(one.far, 2) == b"up"
    assert one.stream.received() == 4


def test_what_has_come_before_is_there():
    near, far = socket.socketpair()
    with far:
        far.sendall(b"early")
        near.setblocking(False)
        with self_contained(relay.Stream(near), lambda: None).socket as end:
            end.settimeout(WAIT)
            assert receive_exactly(end, 5) == b"early"


@pytest.mark.parametrize("way", ["up", "down"])
def test_every_byte_arrives(rig, way):
    one = rig()
    source, sink = (one.near, one.far) if way == "up" else (one.far, one.near)
    sending = Thread(source.sendall, BLOCK * 4)
    assert receive_exactly(sink, 4 << 20) == BLOCK * 4
    sending.result()


@pytest.mark.parametrize("way", ["up", "down"])
def test_every_byte_arrives_although_the_sender_closes_at_once(rig, way):
    one = rig()
    source, sink = (one.near, one.far) if way == "up" else (one.far, one.near)

    def send():
        source.sendall(BLOCK * 4)
        source.close()

    sending = Thread(send)
    threading.Event().wait(0.05)  # the reader is late, so that much is held on the way
    assert receive_all(sink) == BLOCK * 4
    sending.result()
    one.all_over()


def test_the_end_of_the_stream_is_the_end(rig):
    one = rig()
    one.far.sendall(b"bye")
    one.far.close()
    assert receive_all(one.near) == b"bye"
    one.all_over()
    with pytest.raises(BrokenPipeError):
        one.near.sendall(b"x")


def test_closing_the_socket_is_the_end(rig):
    one = rig()
    one.near.close()
    assert receive_all(one.far) == b""
    one.all_over()


def test_an_end_of_file_is_kept_where_there_is_no_half_close(rig):
    one = rig()
    one.near.sendall(b"request")
    one.near.shutdown(socket.SHUT_WR)
    assert receive_exactly(one.far, 7) == b"request"
    one.far.settimeout(0.05)
    with pytest.raises(TimeoutError):
        one.far.recv(1)
    one.far.sendall(b"reply")
    one.far.close()
    assert receive_all(one.near) == b"reply"
    one.all_over()


def test_a_holder_who_closes_after_an_end_of_file_is_seen(rig):
    one = rig()
    one.near.shutdown(socket.SHUT_WR)
    one.far.sendall(b"reply")
    assert receive_exactly(one.near, 5) == b"reply"
    one.near.close()
    assert receive_all(one.far) == b""
    one.all_over()


def test_an_end_of_file_is_passed_on_where_there_is_half_close(rig):
    one = rig(half_close=True)
    one.near.sendall(b"request")
    one.near.shutdown(socket.SHUT_WR)
    assert receive_all(one.far) == b"request"
    one.far.sendall(b"reply")
    one.far.close()
    assert receive_all(one.near) == b"reply"
    one.all_over()


def test_the_streams_end_of_file_is_passed_on_where_there_is_half_close(rig):
    one = rig(half_close=True)
    one.far.sendall(b"all of it")
    one.far.shutdown(socket.SHUT_WR)
    assert receive_all(one.near) == b"all of it"
    assert not one.over.is_set()
    sending = Thread(send_and_end, one.near, BLOCK * 4)
    assert receive_all(one.far) == BLOCK * 4
    sending.result()
    one.all_over()


def test_a_holder_who_closes_after_the_streams_end_of_file_is_seen(rig):
    one = rig(half_close=True)
    one.far.shutdown(socket.SHUT_WR)
    assert receive_all(one.near) == b""
    assert idle_for(0.2) < 0.3
    one.near.sendall(b"the rest")
    one.near.close()
    assert receive_all(one.far) == b"the rest"
    one.all_over()


def test_a_target_that_goes_after_its_end_of_file_is_seen(rig):
    one = rig(half_close=True)
    one.far.shutdown(socket.SHUT_WR)
    assert receive_all(one.near) == b""
    reset(one.far)
    assert idle_for(0.2) < 0.3
    with pytest.raises(BrokenPipeError):
        while True:
            one.near.send(b"x")
    one.all_over()


def test_a_reset_ends_it(rig):
    one = rig()
    exchange(one.near, one.far)
    reset(one.far)
    assert ending(one.near) in ("end of file", "reset")
    one.all_over()


def test_a_target_that_answers_and_takes_no_more_is_heard(rig):
    """A web server says 413 and closes with the upload unread: its answer is read, whatever became of the rest."""
    one = rig()
    sent = fill(one.near)
    assert sent < 16 << 20
    one.far.sendall(b"413")
    reset(one.far)
    assert receive_exactly(one.near, 3) == b"413"
    assert ending(one.near) == "reset", "not all that he sent was read"
    one.all_over()


def test_a_holder_who_leaves_bytes_unread_is_seen(rig):
    one = rig()
    one.far.sendall(b"a greeting that nobody reads")
    one.near.sendall(b"request")
    wait_until(lambda: one.stream.received() > 0)
    one.near.close()
    with contextlib.suppress(ConnectionResetError):
        assert receive_all(one.far) == b"request"
    one.all_over()


@pytest.mark.parametrize("way", ["up", "down"])
def test_what_is_held_is_bounded(rig, way):
    one = rig()
    source, sink = (one.near, one.far) if way == "up" else (one.far, one.near)
    sent = fill(source)
    assert sent < 16 << 20
    assert idle_for(0.2) < 0.3, "it waits, and does not ask again and again"
    assert len(receive_exactly(sink, sent)) == sent


@pytest.mark.parametrize("way", ["up", "down"])
def test_it_waits_quietly_for_a_reader_when_the_sender_has_gone(rig, way):
    one = rig()
    source, sink = (one.near, one.far) if way == "up" else (one.far, one.near)
    sent = fill(source)
    source.close()
    assert idle_for(0.2) < 0.3
    assert len(receive_all(sink)) == sent
    one.all_over()


def test_it_waits_quietly_for_a_reader_when_the_stream_was_reset(rig):
    one = rig()
    fill(one.far)
    reset(one.far)
    assert idle_for(0.2) < 0.3
    assert ending(one.near) == "reset"
    one.all_over()


def test_on_poll(rig, poll_only):
    one = rig()
    exchange(one.near, one.far)
    sent = fill(one.near)
    one.near.close()
    assert idle_for(0.2) < 0.3
    assert len(receive_all(one.far)) == sent
    one.all_over()


def test_without_a_socketpair_the_stream_is_closed(monkeypatch):
    near, far = socket.socketpair()

    def fail(**options):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socketpair", fail)
    with far, pytest.raises(OSError, match="Too many open files"):
        self_contained(relay.Stream(near), lambda: None)
    assert near.fileno() < 0


def test_without_a_io_thread_all_is_closed(monkeypatch):
    near, far = socket.socketpair()

    def refuse(member):
        raise OSError(errno.EAGAIN, "can't start new thread")

    monkeypatch.setattr(IOThread, "acquire", refuse)
    with far, pytest.raises(BlockingIOError):
        self_contained(relay.Stream(near), lambda: None)
    assert near.fileno() < 0


def test_a_bug_in_who_is_told_leaves_nothing(rig, caplog):
    def fail():
        one.ended()
        raise RuntimeError("a bug")

    one = rig(over=fail)
    one.near.close()
    one.all_over()
    assert "a bug" in caplog.text


def test_the_streams_own_end_is_told():
    near, far = socket.socketpair()
    near.setblocking(False)
    closed = threading.Event()
    with far:
        self_contained(relay.Stream(near, on_close=closed.set), lambda: None).socket.close()
        assert closed.wait(WAIT)


def test_a_forked_child_closes_its_copies(rig):
    one = rig()
    exchange(one.near, one.far)
    child = os.fork()
    if child == 0:
        os._exit(0 if one.inner.fileno() < 0 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    exchange(one.near, one.far)


@pytest.mark.parametrize("settle", [0.0, 0.02])
def test_an_end_that_was_a_failure_is_a_reset(rig, settle):
    """It may be known only a moment after the end, as with a session of I2P that is lost."""
    one = rig()
    exchange(one.near, one.far)
    asked = []

    def failure():
        asked.append(time.monotonic())
        return relay.CarrierError("lost")

    one.inner.failure, one.inner.settle = failure, settle
    one.far.sendall(b"before")
    begun = time.monotonic()
    one.far.close()
    assert receive_until_reset(one.near) == b"before"
    assert asked[0] >= begun + settle
    one.all_over()


def test_an_end_that_settles_as_one_is_an_end(rig):
    one = rig()
    exchange(one.near, one.far)
    one.inner.failure, one.inner.settle = lambda: None, 0.01
    one.far.sendall(b"all of it")
    one.far.close()
    assert receive_all(one.near) == b"all of it"
    one.all_over()
