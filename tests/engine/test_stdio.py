"""Two descriptors of any kind as the client of a stream."""

import contextlib
import errno
import hashlib
import itertools
import os
import pty
import select
import socket
import subprocess
import sys
import threading
import time
import tty

import pytest
from helpers import BLOCK, PROMPT, WAIT, Thread, ending, flood, receive_all, receive_exactly, sha256_of, wait_until
from state_table import rows_of
from tls_rig import Rig as TLSRig

import relay
from relay.engine import stdio
from relay.engine.stdio import carry
from relay.errors import CarrierError, ConnectError, RelayError
from relay.eventloop.background import IOThread
from relay.eventloop.sockets import reset, unsent
from relay.streams.promise import Cancellation
from relay.transports.tls.session import TLSStream

HASH = hashlib.sha256(BLOCK).hexdigest()
SOON = 0.2  # seconds of a limit that a test waits for


def tcp_pair():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = socket.create_connection(listening.getsockname())
        return near, listening.accept()[0]


PAIRS = {"tcp": tcp_pair, "unix": socket.socketpair}


class Rig:
    """A stream whose far end is ``far``; ``write`` leads to the input, and the output to ``read``."""

    def __init__(self, stack, pair="tcp", **about):
        self.open = set()
        stack.callback(lambda: self.close(*self.open))
        near, self.far = PAIRS[pair]()
        stack.callback(self.far.close)
        self.far.settimeout(WAIT)
        self.stream = relay.Stream(near, target="the target", **about)
        stack.callback(near.close)
        self.source, self.write = self.keep(*os.pipe())
        self.read, self.sink = self.keep(*os.pipe())

    def keep(self, *descriptors):
        self.open.update(descriptors)
        return descriptors

    def close(self, *descriptors):
        for one in descriptors:
            self.open.remove(one)
            os.close(one)

    def begin(self, **options):
        """Carry, in a thread; the output's own end is the only one from now on."""
        self.thread = Thread(lambda: carry(self.stream, self.source, self.sink, **options))
        return self

    def end_input(self):
        self.close(self.write)

    def answer(self, size=-1):
        """Return what comes out, up to its end or a size."""
        found = bytearray()
        while size < 0 or len(found) < size:
            assert select.select([self.read], [], [], WAIT)[0], "no answer"
            data = os.read(self.read, 65536 if size < 0 else size - len(found))
            if not data:
                break
            found += data
        return bytes(found)

    def over(self):
        return self.thread.result()


@pytest.fixture
def rig():
    with contextlib.ExitStack() as stack:
        made = []

        def make(*args, **options):
            made.append(Rig(stack, *args, **options))
            return made[-1]

        yield make
        for one in made:
            one.far.close()
            one.stream.socket.close()


# Every kind of descriptor.


def as_pipe(rig, name, blocking=True):
    inner, outer = rig.keep(*os.pipe())
    if name == "sink":
        inner, outer = outer, inner
    os.set_blocking(inner, blocking)
    return inner, outer


def as_nonblocking_pipe(rig, name):
    return as_pipe(rig, name, blocking=False)


def as_socket(rig, name, blocking=True):
    inner, outer = (end.detach() for end in socket.socketpair())
    os.set_blocking(inner, blocking)
    return rig.keep(inner, outer)


def as_nonblocking_socket(rig, name):
    return as_socket(rig, name, blocking=False)


def as_raw_terminal(rig, name):
    outer, inner = rig.keep(*pty.openpty())
    tty.setraw(inner)
    return inner, outer


KINDS = {
    "pipe": as_pipe,
    "non-blocking pipe": as_nonblocking_pipe,
    "socket": as_socket,
    "non-blocking socket": as_nonblocking_socket,
}


def write_all(rig, descriptor, data):
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    rig.close(descriptor)


def hash_of(descriptor):
    seen = hashlib.sha256()
    while data := os.read(descriptor, 1 << 18):
        seen.update(data)
    return seen.hexdigest()


@pytest.fixture(params=["splice", "no splice"])
def _system(request, monkeypatch):
    if request.param == "no splice":
        monkeypatch.delattr(os, "splice")


@pytest.mark.usefixtures("_system")
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize(("input_kind", "output_kind"), list(itertools.product(KINDS, KINDS)))
def test_every_byte_arrives_whatever_the_descriptors_are(rig, input_kind, output_kind, pair):
    one = rig(pair)
    one.source, client_writes = KINDS[input_kind](one, "source")
    one.sink, client_reads = KINDS[output_kind](one, "sink")
    kept = one.source, *one.keep(os.dup(one.sink))
    flags = [os.get_blocking(end) for end in kept]
    one.begin()
    writer = Thread(write_all, one, client_writes, BLOCK)
    far_reader = Thread(sha256_of, one.far)
    far_writer = Thread(lambda: (one.far.sendall(BLOCK), one.far.shutdown(socket.SHUT_WR)))
    # A blocking reader of a socket sees the end when the command has ended.
    reader = Thread(hash_of, client_reads)
    assert far_reader.result() == HASH
    assert [os.get_blocking(end) for end in kept] == flags
    writer.result()
    far_writer.result()
    assert one.over() is True
    assert [os.get_blocking(end) for end in kept] == flags
    one.close(one.sink, kept[1])
    assert reader.result() == HASH


@pytest.mark.parametrize("pair", PAIRS)
def test_a_file_is_sent_from_where_it_is_and_one_is_written(rig, tmp_path, pair):
    one = rig(pair)
    (tmp_path / "in").write_bytes(b"head" + BLOCK)
    one.source = os.open(tmp_path / "in", os.O_RDONLY)
    one.sink = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    one.keep(one.source, one.sink)
    os.read(one.source, 4)
    one.begin()
    got = Thread(sha256_of, one.far)
    assert got.result() == HASH
    one.far.sendall(BLOCK)
    one.far.close()
    assert one.over() is True
    assert hashlib.sha256((tmp_path / "out").read_bytes()).hexdigest() == HASH


def test_nothing_is_read_from_and_written_to_the_null_device(rig):
    one = rig()
    one.source, one.sink = one.keep(os.open(os.devnull, os.O_RDONLY), os.open(os.devnull, os.O_WRONLY))
    one.begin()
    assert receive_all(one.far) == b""
    one.far.sendall(b"dropped")
    one.far.close()
    assert one.over() is True


def test_a_reader_that_leaves_as_the_stream_ends_has_lost_nothing(rig):
    one = rig()
    one.stream.answered = True
    one.far.close()
    one.end_input()
    one.close(one.read)
    assert one.begin().over() is True


@pytest.mark.skipif(sys.platform != "linux", reason="this machine has no urgent data that comes in line")
@pytest.mark.parametrize("before", [b"", b"before "])
@pytest.mark.parametrize("after", [b"", b" after"])
@pytest.mark.parametrize("output", ["pipe", "file"])
def test_urgent_data_is_plain_and_does_not_end_the_answer(rig, tmp_path, before, after, output):
    one = rig()
    one.far.sendall(before)
    one.far.send(b"!", socket.MSG_OOB)
    one.far.sendall(after)
    one.far.shutdown(socket.SHUT_WR)
    if output == "pipe":
        assert one.begin().answer() == before + b"!" + after
        one.end_input()
        one.over()
    else:
        one.end_input()
        with open(tmp_path / "output", "wb") as sink:
            carry(one.stream, one.source, sink.fileno())
        assert (tmp_path / "output").read_bytes() == before + b"!" + after


def test_whoever_uses_the_other_end_of_a_pipe_never_waits_for_the_stream(rig):
    """A splice that waits for a socket keeps the pipe locked, and even a read that must not wait is stuck then."""
    one = rig()
    os.set_blocking(one.read, False)
    os.set_blocking(one.write, False)
    one.begin()
    one.far.sendall(b"first")
    while not (data := _try_read(one.read)):
        pass
    assert data == b"first"
    release = threading.Timer(WAIT, one.far.sendall, (b"late",))
    release.start()
    started = time.monotonic()
    for _ in range(50):
        with pytest.raises(BlockingIOError):
            os.read(one.read, 1)
        assert time.monotonic() - started < PROMPT
    with contextlib.suppress(BlockingIOError):
        for _ in range(256):
            os.write(one.write, bytes(65536))  # until nothing more goes in
    release.cancel()
    release.join()
    assert time.monotonic() - started < PROMPT
    one.end_input()
    Thread(receive_all, one.far).result()
    one.far.close()
    one.over()


def _try_read(descriptor):
    try:
        return os.read(descriptor, 100)
    except BlockingIOError:
        return b""


def test_many_small_pieces_fill_a_pipe_and_arrive(rig):
    one = rig()
    one.far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    one.begin()
    expected = b"".join(b"%d," % number for number in range(2000))
    for number in range(2000):
        one.far.sendall(b"%d," % number)
    one.far.close()
    one.end_input()
    assert one.answer(len(expected)) == expected
    assert one.over() is True


def test_one_direction_that_is_stuck_does_not_hold_up_the_other(rig):
    one = rig().begin()
    flooding = Thread(_flood, one.far)  # without a reader of the output
    writer = Thread(write_all, one, one.write, BLOCK)
    assert hashlib.sha256(receive_exactly(one.far, len(BLOCK))).hexdigest() == HASH
    writer.result()
    one.close(one.read)
    with pytest.raises(BrokenPipeError, match="standard output"):
        one.over()
    flooding.result()


def _flood(far):
    with contextlib.suppress(OSError):
        flood(far)


def test_a_terminal_that_takes_nothing_holds_up_neither_the_input_nor_a_signal(rig):
    one = rig()
    one.sink, _ = as_raw_terminal(one, "sink")
    cancel = Cancellation()
    one.begin(cancel=cancel)
    flooding = Thread(_flood, one.far)
    writer = Thread(write_all, one, one.write, BLOCK)
    assert hashlib.sha256(receive_exactly(one.far, len(BLOCK))).hexdigest() == HASH
    writer.result()
    cancel.set()
    assert one.over() is False
    cancel.close()
    flooding.result()


# Ends.


def test_the_end_of_the_input_is_passed_on_and_the_answer_still_comes(rig):
    calls = []
    one = rig(on_close=lambda: calls.append(1)).begin()
    os.write(one.write, b"question")
    one.end_input()
    assert receive_all(one.far) == b"question"
    one.far.sendall(b"answer")
    one.far.close()
    assert one.over() is True
    one.close(one.sink)
    assert one.answer() == b"answer"
    assert calls == [1], "what lies under the stream is let go of once"


@pytest.mark.parametrize("pair", PAIRS)
def test_the_end_of_the_stream_closes_the_output_and_the_rest_of_the_input_still_goes(rig, pair):
    one = rig(pair).begin()
    one.far.sendall(b"all")
    one.far.shutdown(socket.SHUT_WR)
    assert one.answer() == b"all"  # up to its end: the output is closed, though its number is not free
    assert one.thread.is_alive()
    os.write(one.write, b"the rest")
    one.end_input()
    assert receive_all(one.far) == b"the rest"
    assert one.over() is True


def test_one_socket_as_input_and_output_is_told_of_the_end(rig):
    one = rig()
    theirs, ours = socket.socketpair()
    with ours:
        ours.settimeout(WAIT)
        one.source, one.sink = theirs.detach(), -1
        one.sink = os.dup(one.source)
        one.keep(one.source, one.sink)
        one.begin()
        one.far.sendall(b"all")
        one.far.shutdown(socket.SHUT_WR)
        assert receive_all(ours) == b"all"
        ours.sendall(b"the rest")
        ours.shutdown(socket.SHUT_WR)
        assert receive_all(one.far) == b"the rest"
        assert one.over() is True


def test_a_stream_that_has_hung_up_ends_it_though_the_input_is_open(rig):
    one = rig("unix").begin()
    one.far.sendall(b"bye")
    one.far.close()
    assert one.over() is True
    one.close(one.sink)
    assert one.answer() == b"bye"


def test_a_terminals_lines_are_carried_and_it_is_not_waited_for_once_the_stream_has_ended(rig):
    one = rig()
    one.source, types = as_raw_terminal(one, "source")
    one.begin()
    os.write(types, b"hello\n")
    assert receive_exactly(one.far, 6) == b"hello\n"
    one.far.sendall(b"bye")
    one.far.shutdown(socket.SHUT_WR)
    assert one.over() is True


@pytest.mark.parametrize(("target", "name"), [("the target", "the target"), ("", "the stream")])
@pytest.mark.parametrize("has_ended", [False, True])
def test_a_reset_of_the_stream_is_an_error_and_what_came_before_it_is_passed_on(rig, target, name, has_ended):
    one = rig().begin()
    one.stream.target = target
    one.far.sendall(b"half")
    assert one.answer(4) == b"half"
    if has_ended:
        one.far.shutdown(socket.SHUT_WR)
        assert one.answer() == b""
    reset(one.far)
    with pytest.raises(RelayError, match=f"^{name}: the connection was reset"):
        one.over()


def test_bytes_that_the_stream_refuses_are_an_error_after_its_last_words(rig):
    one = rig("unix").begin()
    one.far.sendall(b"too large")
    one.far.shutdown(socket.SHUT_RD)
    os.write(one.write, b"x")
    one.far.shutdown(socket.SHUT_WR)
    with pytest.raises(RelayError, match="the target: the connection was reset"):
        one.over()
    one.close(one.sink)
    assert one.answer() == b"too large"


def test_the_failure_of_a_stream_is_raised(rig):
    lost = CarrierError("ssh://bastion: the connection was lost")
    one = rig(failure=lambda: lost).begin()
    one.far.close()
    with pytest.raises(CarrierError) as raised:
        one.over()
    assert raised.value is lost
    assert one.stream.fileno() == -1


def test_a_stream_that_ends_before_it_has_ever_answered_leads_nowhere(rig):
    one = rig()
    one.stream.answered = False
    one.begin()
    one.far.close()
    with pytest.raises(ConnectError, match="before sending any data") as raised:
        one.over()
    assert raised.value.reason == "unreachable"


@pytest.mark.parametrize("half_close", [True, False])
def test_a_target_that_has_received_an_eof_may_send_nothing(rig, half_close):
    one = rig(half_close=half_close)
    one.stream.answered = False
    one.end_input()
    one.begin()
    if half_close:
        assert receive_all(one.far) == b""
    one.far.close()
    if half_close:
        assert one.over() is True
    else:
        with pytest.raises(ConnectError, match="before sending any data"):
            one.over()


def test_the_failure_of_a_stream_may_be_known_a_moment_after_its_end(rig):
    lost = CarrierError("ssh://bastion: the connection was lost")
    ended = []
    one = rig(failure=lambda: lost if ended and time.monotonic() >= ended[0] + SOON else None)
    one.stream.settle = SOON
    one.begin()
    ended.append(time.monotonic())
    one.far.close()
    with pytest.raises(CarrierError):
        one.over()


def test_a_stream_that_has_answered_is_known_to(rig):
    one = rig()
    one.stream.answered = False
    one.begin()
    one.far.sendall(b"there")
    assert one.answer(5) == b"there"
    wait_until(lambda: one.stream.received() == 5)
    one.far.close()
    one.end_input()
    assert one.over() is True
    assert one.stream.answered


class Clock:
    """The time for the transfer, which looks again after each limit's time."""

    def __init__(self):
        self.now, self.reads = 0.0, 0

    def monotonic(self):
        self.reads += 1
        return self.now

    def pass_by(self, seconds):
        """Let time pass, and return when the transfer has looked at it."""
        self.now += seconds
        before = self.reads
        wait_until(lambda: self.reads >= before + 6)


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr("relay.engine.stdio.time", made)
    return made


def test_without_half_close_the_end_of_the_input_is_held_back_until_the_answer_is_over(rig, clock):
    one = rig(half_close=False).begin(linger=SOON)
    os.write(one.write, b"question")
    one.end_input()
    assert receive_exactly(one.far, 8) == b"question"
    one.far.sendall(b"answer")
    assert one.answer(6) == b"answer"
    assert one.thread.is_alive()

    def is_over_later():
        clock.now += SOON
        return not one.thread.is_alive()

    wait_until(is_over_later)
    assert one.over() is True  # it said no more
    assert ending(one.far) == "end of file"


# The reader of the output.


def test_it_ends_when_nobody_reads_the_output_and_the_input_has_ended(rig):
    one = rig().begin()
    one.close(one.read)
    os.write(one.write, b"last words")
    one.end_input()
    assert one.over() is True
    assert receive_all(one.far) == b"last words"


def test_it_is_cut_when_nobody_reads_the_output_though_the_input_goes_on(rig):
    one = rig().begin()
    one.close(one.read)
    with pytest.raises(BrokenPipeError, match="standard output: its reader has closed it") as raised:
        one.over()
    assert raised.value.errno == errno.EPIPE
    assert ending(one.far) == "reset"


@pytest.mark.parametrize(
    ("side", "path", "problem"),
    [("sink", "/dev/full", "output: No space left on device"), ("source", os.devnull, "input: Bad file descriptor")],
)
def test_an_output_that_is_full_and_an_input_that_cannot_be_read_are_errors(rig, side, path, problem):
    one = rig()
    setattr(one, side, *one.keep(os.open(path, os.O_WRONLY)))
    if side == "sink":
        one.far.sendall(b"x")
    one.begin()
    with pytest.raises(RelayError, match=f"standard {problem}"):
        one.over()
    assert ending(one.far) == "reset"


# Waiting.


def fill(descriptor):
    """Write until nothing more is taken."""
    os.set_blocking(descriptor, False)
    with contextlib.suppress(BlockingIOError):
        for _ in range(2000):
            os.write(descriptor, bytes(65536))
            threading.Event().wait(0.001)


def input_has_hung_up_and_the_stream_is_full(one):
    fill(one.write)
    one.end_input()


def stream_has_hung_up_and_the_output_is_full(one):
    fill(one.far.fileno())
    one.far.close()


def stream_has_ended_and_the_input_is_open(one):
    one.far.shutdown(socket.SHUT_WR)
    assert one.answer() == b""


def input_has_ended_and_the_stream_is_silent(one):
    one.end_input()
    assert receive_all(one.far) == b""


@pytest.mark.usefixtures("_system")
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize(
    "state",
    [
        input_has_hung_up_and_the_stream_is_full,
        stream_has_hung_up_and_the_output_is_full,
        stream_has_ended_and_the_input_is_open,
        input_has_ended_and_the_stream_is_silent,
    ],
)
def test_waiting_uses_no_processor(rig, pair, state):
    one = rig(pair)
    cancel = Cancellation()
    one.begin(cancel=cancel, idle_timeout=1000)
    state(one)
    assert one.thread.is_alive()
    before = wakes(one.thread)
    threading.Event().wait(0.3)
    assert wakes(one.thread) - before < 30
    cancel.set()
    assert one.over() is False
    cancel.close()


def wakes(thread):
    """Return how often a thread has been on the processor; one that spins is preempted, or uses time."""
    with open(f"/proc/self/task/{thread.native_id}/stat") as file:
        ticks = file.read().rpartition(")")[2].split()[11:13]
    with open(f"/proc/self/task/{thread.native_id}/status") as file:
        switches = [int(line.split()[1]) for line in file if "ctxt_switches" in line]
    return sum(map(int, ticks)) + sum(switches)


# Limits.


def test_it_is_cut_after_so_long_without_a_byte(rig):
    started = time.monotonic()
    one = rig().begin(idle_timeout=SOON)
    with pytest.raises(RelayError, match=r"the target: no byte has moved for 0\.2 s"):
        one.over()
    assert time.monotonic() - started >= SOON
    assert ending(one.far) == "reset"


def test_the_other_direction_has_so_long_after_one_end(rig):
    one = rig().begin(linger=SOON)
    one.end_input()
    with pytest.raises(RelayError, match=r"no byte has come for 0\.2 s after one end"):
        one.over()
    with pytest.raises(ConnectionError):
        flood(one.far)


@pytest.mark.parametrize("way", ["up", "down"])
def test_bytes_put_the_limits_off(rig, clock, way):
    one = rig().begin(idle_timeout=SOON)
    for _ in range(6):
        if way == "up":
            os.write(one.write, b".")
            assert receive_exactly(one.far, 1) == b"."
        else:
            one.far.sendall(b".")
            assert one.answer(1) == b"."
        clock.pass_by(SOON / 2)
    one.far.close()
    one.end_input()
    assert one.over() is True


@pytest.mark.parametrize(("name", "seconds"), [("idle_timeout", -1), ("idle_timeout", 0), ("linger", -1)])
def test_a_limit_that_cannot_be_is_named_and_the_stream_closed(rig, name, seconds):
    one = rig()
    with pytest.raises(ValueError, match=f"^{name}"):
        carry(one.stream, one.source, one.sink, **{name: seconds})
    assert one.stream.fileno() == -1


def test_a_linger_of_no_time_waits_for_no_answer(rig):
    one = rig(half_close=False).begin(linger=0)
    one.end_input()
    assert one.over() is True


def test_standard_input_and_output_are_the_client_if_no_other_is_given(listener):
    code = "import socket, sys, relay; from relay.engine.stdio import carry"
    code += "; carry(relay.Stream(socket.create_connection(('127.0.0.1', int(sys.argv[1])))))"

    def answer():
        with listener.accept()[0] as far:
            far.sendall(receive_all(far)[::-1])

    answering = Thread(answer)
    argv = [sys.executable, "-c", code, str(listener.getsockname()[1])]
    found = subprocess.run(argv, input=b"question", capture_output=True, timeout=WAIT, check=True)
    assert found.stdout == b"noitseuq"
    answering.result()


def test_it_is_cut_when_it_is_cancelled(rig):
    one = rig()
    cancel = Cancellation()
    one.begin(cancel=cancel)
    os.write(one.write, b"x")
    assert receive_exactly(one.far, 1) == b"x"
    cancel.set()
    assert one.over() is False
    cancel.close()
    assert ending(one.far) == "reset"


@pytest.mark.parametrize("limit", ["idle_timeout", "linger"])
def test_what_leaves_the_kernel_for_a_slow_target_has_moved(rig, clock, limit):
    one = rig()
    one.far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.stream.socket.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        for _ in range(64):
            one.stream.socket.send(BLOCK[: 1 << 16])
    if limit == "linger":
        one.end_input()
    one.begin(**{limit: SOON})
    for _ in range(3):
        before = one.stream.queued()
        one.far.recv(1 << 20)
        wait_until(lambda before=before: one.stream.queued() != before)
        clock.pass_by(SOON)
        assert one.thread.is_alive()
    clock.now += 2 * SOON
    with pytest.raises(RelayError, match=limit.replace("_", "-")):
        one.over()


class Held:
    """A TLS server has ended its direction, the input ends after that, and the session stands still until it may go."""

    def __init__(self, stack, certificates, listener, monkeypatch):
        rig = stack.enter_context(contextlib.closing(TLSRig(certificates, listener, certificates.server())))
        self.stream, self.server = rig.connect()
        self.server.shutdown(socket.SHUT_WR)
        assert self.stream.socket.recv(1) == b""
        self.reader, writer = os.pipe()
        stack.callback(os.close, self.reader)
        os.write(writer, BLOCK[: 1 << 15])
        os.close(writer)
        self.sink = os.open(os.devnull, os.O_WRONLY)
        stack.callback(os.close, self.sink)
        self.left = []
        close = TLSStream.close
        monkeypatch.setattr(TLSStream, "close", lambda stream: self.left.append(unsent(stream.socket)) or close(stream))
        self.go, stands = threading.Event(), threading.Event()
        thread = IOThread.acquire(self)
        stack.callback(thread.release, self)
        stack.callback(self.go.set)
        thread.loop.call(lambda: stands.set() or self.go.wait(WAIT))
        assert stands.wait(WAIT)

    def carry(self, when_it_waits=lambda: None, **options):
        drained = self.stream.drained
        self.stream.drained = lambda told: when_it_waits() or drained(told)
        return carry(self.stream, self.reader, self.sink, **options)


@pytest.fixture
def held(certificates, listener, monkeypatch):
    with contextlib.ExitStack() as stack:
        yield Held(stack, certificates, listener, monkeypatch)


def test_it_ends_when_all_has_left_this_process(held):
    """The command exits next: what the session still had would be lost, without a word."""
    assert held.carry(held.go.set)
    assert held.left[0] == 0
    assert receive_all(held.server) == BLOCK[: 1 << 15]


@pytest.mark.parametrize("half_close", [True, False])
@pytest.mark.parametrize(
    ("event", "problem"),
    [("cut", "the TLS session was cut"), ("idle_timeout", "--idle-timeout"), ("linger", "--linger")],
)
def test_what_cannot_leave_this_process_is_a_failure(held, half_close, event, problem):
    """Without half-close, a linger does not only note that the answer is over, and then look each millisecond."""

    def cut():
        reset(held.server.socket)
        held.go.set()

    held.stream.half_close = half_close
    with pytest.raises(RelayError, match=problem):
        held.carry(cut) if event == "cut" else held.carry(**{event: SOON})


def test_a_cancel_ends_the_wait_for_what_has_not_left_this_process(held):
    with contextlib.closing(Cancellation()) as cancel:
        assert not held.carry(cancel.set, cancel=cancel)


# The table of states.

RESET = "the target: the connection was reset"
NO_READER = "standard output: its reader has closed it"
# Each row, and how the transfer ends after the event, or after the one that is due in the state that follows.
STATE_ROWS = [
    ("COPYING", "input ends", "INPUT_ENDED", None),
    ("COPYING", "stream takes no more", "INPUT_ENDED", RESET),
    ("COPYING", "stream ends", "STREAM_ENDED", None),
    ("COPYING", "stream ends, input unneeded", "DONE", None),
    ("COPYING", "reader leaves", "READER_GONE", None),
    ("INPUT_ENDED", "stream ends", "DONE", None),
    ("INPUT_ENDED", "reader leaves", "DONE", None),
    ("STREAM_ENDED", "input ends", "DONE", None),
    ("STREAM_ENDED", "stream takes no more", "FAILED", RESET),
    ("STREAM_ENDED", "stream hangs up", "DONE", None),
    ("READER_GONE", "input ends", "DONE", None),
    ("READER_GONE", "stream takes no more", "DONE", None),
    ("READER_GONE", "stream hangs up", "DONE", None),
    ("READER_GONE", "input timeout", "FAILED", NO_READER),
]
ENTRY = {"INPUT_ENDED": "input ends", "STREAM_ENDED": "stream ends", "READER_GONE": "reader leaves"}
NEXT = {"INPUT_ENDED": "stream ends", "STREAM_ENDED": "input ends", "READER_GONE": "input ends"}


class Steps:
    """A transfer over a Unix socket, and what happens to it."""

    def __init__(self, one, clock):
        self.one, self.clock = one, clock

    def do(self, event, ends_it=True):
        """Let an event happen; if it does not end the transfer, return when that is seen, where it can be."""
        one = self.one
        match event:
            case "input ends":
                one.end_input()
                assert ends_it or receive_all(one.far) == b""
            case "stream takes no more":
                one.far.shutdown(socket.SHUT_RD)
                os.write(one.write, b"x")
            case "stream ends" | "stream ends, input unneeded":
                one.stream.half_close = event == "stream ends"
                one.far.shutdown(socket.SHUT_WR)
                assert ends_it or one.answer() == b""
            case "reader leaves":
                before = self.clock.reads
                one.close(one.read)
                if not ends_it:
                    wait_until(lambda: self.clock.reads > before)
            case "stream hangs up":
                one.far.close()
            case "input timeout":
                self.clock.now += 1

    def end(self, problem):
        if problem is None:
            assert self.one.over() is True
        else:
            with pytest.raises((RelayError, BrokenPipeError), match=problem):
                self.one.over()


@pytest.fixture
def steps(rig, clock):
    return Steps(rig("unix"), clock)


@pytest.mark.parametrize(("state", "event", "following", "problem"), STATE_ROWS)
def test_each_row_of_the_table(steps, state, event, following, problem):
    steps.one.begin()
    if state in ENTRY:
        steps.do(ENTRY[state], ends_it=False)
    if (state, event) == ("STREAM_ENDED", "stream takes no more"):
        fill(steps.one.write)  # because a socket that is shut on both sides has hung up
        steps.one.far.shutdown(socket.SHUT_RD)
    else:
        steps.do(event, ends_it=following in ("DONE", "FAILED"))
    if following in NEXT:
        assert steps.one.thread.is_alive()
        steps.do(NEXT[following])
    steps.end(problem)


@pytest.mark.usefixtures("_system")
@pytest.mark.parametrize("event", ["input ends", "stream takes no more", "stream hangs up"])
def test_without_a_reader_lost_bytes_are_an_error_at_the_end(steps, event):
    steps.one.far.sendall(b"lost")
    steps.do("reader leaves")
    steps.one.begin()
    steps.do(event)
    steps.end(NO_READER)


def test_the_table_has_these_rows():
    assert rows_of(stdio) == [row[:3] for row in STATE_ROWS]
