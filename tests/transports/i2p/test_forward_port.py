"""The port that a router connects to: who is let in, what is read, and what is left alone."""

import contextlib
import itertools
import os
import queue
import socket
import sys
import threading

import pytest
from helpers import WAIT, closed, ending, in_child, makes, receive_all, wait_until
from sam_rig import DEST
from state_table import each_row_of

from relay.addresses.destinations import PrivateKey
from relay.eventloop.background import IOThread
from relay.eventloop.loop import Loop
from relay.eventloop.sockets import reset
from relay.transports.i2p import forward_port
from relay.transports.i2p.forward_port import TRANSITIONS, ForwardPort, PortState
from relay.transports.i2p.messages import LONGEST
from relay.transports.i2p.peer_uid import PeerUidLookup


@pytest.fixture(autouse=True)
def prompt(times):
    times(port_again=0.01)


class Session:
    """A session as a port sees it: a name, and the address of the bridge."""

    name = "the session"

    def __init__(self):
        self.control_socket, self._theirs = socket.socket(), socket.create_server(("127.0.0.1", 0))
        self.control_socket.connect(self._theirs.getsockname())
        self._bridge, _ = self._theirs.accept()

    def close(self):
        self.control_socket.close()
        self._bridge.close()
        self._theirs.close()


class Gate:
    """A port in the I/O thread."""

    def __init__(self, owners=None, loop=None):
        self.session = Session()
        self.on_stream = queue.SimpleQueue()
        self.io_thread = IOThread.acquire(self)
        take = self.take
        self.port = ForwardPort(self.session, take, owners, loop=loop or self.io_thread.loop)
        self.port.open(self.session.control_socket)

    def take(self, stream, peer):
        self.on_stream.put((stream, peer))

    def abandon(self):
        self.port.abandon()

    def stream(self):
        """The next stream and who it comes from."""
        stream, peer = self.on_stream.get(timeout=WAIT)
        stream.socket.settimeout(WAIT)
        return stream, peer

    def connect(self):
        """A connection, as the router makes it."""
        made = socket.create_connection(("127.0.0.1", self.port.number), WAIT)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def call(self, function):
        """Call it in the I/O thread, and wait for that."""
        done = threading.Event()
        self.io_thread.loop.call(lambda: (function(), done.set()))
        assert done.wait(WAIT)

    def close(self):
        self.port.close()
        self.call(lambda: None)
        with contextlib.suppress(queue.Empty):
            while True:
                self.on_stream.get_nowait()[0].close()
        self.io_thread.release(self)
        self.session.close()


@pytest.fixture
def enter():
    yield from makes(Gate)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", "expected the peer's destination"),
        (b"x" * (LONGEST + 1), "a line of more than"),
        (b"\xff\xfe\n", "not valid UTF-8"),
        (f"{DEST} TO_PORT=x\n".encode(), "TO_PORT"),
        (b"STREAM STATUS RESULT=I2P_ERROR\n", "STREAM ACCEPT failed"),
    ],
)
def test_who_does_not_say_whose_the_stream_is_is_reset(enter, data, why, caplog):
    caplog.set_level("INFO", "relay")
    entrance = enter()
    with entrance.connect() as end:
        end.sendall(data)
        assert ending(end) == "reset"
    assert why in caplog.text
    assert entrance.on_stream.empty()


def test_a_stream_that_was_waited_for_is_watched_no_longer(enter):
    entrance = enter()
    with entrance.connect() as end:
        end.sendall(DEST.encode())
        wait_until(lambda: entrance.port._pending)
        end.sendall(b"\nmore")
        stream, _ = entrance.stream()
        with stream, pytest.raises((OSError, KeyError)):
            entrance.io_thread.loop.poller.unregister(stream.fileno())


def test_who_ends_before_the_line_is_complete_is_dropped(enter):
    entrance = enter()
    with entrance.connect() as end:
        end.sendall(DEST.encode()[:50])
        wait_until(lambda: entrance.port._pending)
        end.shutdown(socket.SHUT_WR)
        assert ending(end) in ("reset", "end of file")
    wait_until(lambda: not entrance.port._pending)
    assert entrance.on_stream.empty()


def test_who_says_only_half_of_it_is_not_waited_for_without_end(enter, times):
    entrance = enter()
    times(port_line=0.05)
    with entrance.connect() as end:
        end.sendall(b"half")
        assert ending(end) == "reset"


def test_so_many_may_be_silent_and_then_the_kernel_keeps_them(enter, monkeypatch):
    monkeypatch.setattr(forward_port, "MAX_PENDING", 2)
    entrance = enter()
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(entrance.connect()) for _ in range(2)]
        for end in silent:
            end.sendall(b"x")
        wait_until(lambda: len(entrance.port._pending) == 2)
        third = stack.enter_context(entrance.connect())
        third.sendall(f"{DEST}\n".encode())
        with pytest.raises(queue.Empty):
            entrance.on_stream.get(timeout=0.05)
        silent[0].sendall(b"\n")
        entrance.stream()[0].close()


class Told:
    """Stands for the kernel: who is at the other end."""

    knows_closed = False

    def __init__(self, router, others):
        self.router, self.others = router, others

    def of(self, connection):
        return self.router

    def between(self, family, theirs, ours):
        return self.others

    def close(self):
        pass


def test_another_user_is_rejected(enter, caplog):
    owners = Told(router=1, others=2)
    entrance = enter(owners=owners)
    for _ in range(2):
        with entrance.connect() as end, contextlib.suppress(OSError):
            end.sendall(f"{DEST}\n".encode())
            assert ending(end) == "reset"
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1, "others could fill the log"
    assert (
        "user 2 connected to the port for the router's streams; rejected, because the router's user is 1" in warnings[0]
    )
    owners.others = 1
    with entrance.connect() as end:
        end.sendall(f"{DEST}\n".encode())
        entrance.stream()[0].close()
    assert entrance.on_stream.empty()


@pytest.mark.parametrize("router", [1, None])
def test_a_connection_whose_user_the_kernel_does_not_report_is_rejected(enter, caplog, router):
    entrance = enter(owners=Told(router=router, others=None))
    with entrance.connect() as end, contextlib.suppress(OSError):
        end.sendall(f"{DEST}\nall of it".encode())
        assert ending(end) == "reset"
    assert entrance.on_stream.empty()
    assert "a program of unknown user" in caplog.text


@pytest.fixture
def owners():
    yield from closed(PeerUidLookup())


OTHER_DEST = PrivateKey.generate().destination


def attack(number):
    """Send a request in the name of a destination, four ways: reset, close, half-close or keep the connection."""
    for way in range(100):
        attacker = socket.create_connection(("127.0.0.1", number), WAIT)
        with contextlib.suppress(OSError):  # it may be rejected before it has said all
            attacker.sendall(f"{DEST} FROM_PORT=0 TO_PORT=0\nDELETE /everything\n".encode())
            if way % 4 == 2:
                attacker.shutdown(socket.SHUT_WR)
        if way % 4 == 0:
            reset(attacker)
        elif way % 4 == 1:
            attacker.close()
        else:
            attacker.detach()


@contextlib.contextmanager
def as_another_user(function, *arguments):
    """Call it in a child process of a user who is not root, which keeps what is open until the end."""
    done, call = os.pipe()
    wait, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            function(*arguments)
            os.write(call, b"+")
            os.close(go)
            os.read(wait, 1)
        finally:
            os._exit(0)
    os.close(call)
    os.close(wait)
    try:
        assert os.read(done, 1) == b"+", "the child has failed"
        yield
    finally:
        os.close(done)
        os.close(go)
        os.waitpid(pid, 0)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can act as another user")
@pytest.mark.parametrize("late", [False, True], ids=["at-once", "late"])
def test_no_other_user_speaks_for_a_destination(enter, owners, late):
    """Its connections may be accepted at once or after they have ended."""
    entrance = enter(owners=owners)
    entrance.port.pause(late)
    with as_another_user(attack, entrance.port.number):
        entrance.port.pause(False)
        with entrance.connect() as router:  # which is accepted after all the others
            router.sendall(f"{OTHER_DEST}\n".encode())
            stream, peer = entrance.stream()
            stream.close()
    assert peer == OTHER_DEST
    assert entrance.on_stream.empty()


def test_short_streams_of_the_router_arrive_whole_however_late_they_are_accepted(enter, owners):
    entrance = enter(owners=owners)
    entrance.port.pause(True)
    for number in range(200):
        with entrance.connect() as router:
            router.sendall(f"{DEST}\nrequest {number}".encode())
    entrance.port.pause(False)
    if not owners.knows_closed:
        pytest.skip("this kernel does not report the user of a closed connection; `accept` is the default here")
    for number in range(200):
        stream, _ = entrance.stream()
        with stream:
            assert receive_all(stream.socket) == b"request %d" % number


def test_accepting_goes_on_when_there_were_no_descriptors(enter, monkeypatch, caplog):
    entrance = enter()
    there = entrance.port
    real, failures = there._socket.accept, [OSError(24, "Too many open files")] * 2

    class Short:
        def __getattr__(self, name):
            return getattr(there_socket, name)

        def accept(self):
            if failures:
                raise failures.pop()
            return real()

    there_socket = there._socket
    there._socket = Short()
    try:
        with entrance.connect() as end:
            end.sendall(f"{DEST}\n".encode())
            entrance.stream()[0].close()
    finally:
        there._socket = there_socket
    assert caplog.text.count("Too many open files") == 2


def test_a_connection_is_closed_where_the_kernel_cannot_be_asked_whose_it_is(enter, monkeypatch, caplog):
    class Broken:
        knows_closed = False

        def of(self, conversation):
            return 0

        def between(self, *arguments):
            raise OSError(24, "Too many open files")

    made = []
    real = socket.socket.accept
    monkeypatch.setattr(socket.socket, "accept", lambda one: made.append(real(one)) or made[-1])
    entrance = enter(owners=Broken())
    with entrance.connect() as end:
        end.sendall(f"{DEST}\n".encode())
        assert ending(end) == "reset"
        assert made[-1][0].fileno() < 0  # though the frame that made it may live in a traceback


def test_a_bug_ends_one_connection_and_not_the_port(enter, monkeypatch, caplog):
    entrance = enter()
    bugs = [RuntimeError("a bug")]
    arrive = entrance.port.on_stream

    def on_stream(stream, peer):
        if bugs:
            bug = bugs.pop()
            stream.close()
            raise bug
        arrive(stream, peer)

    entrance.port.on_stream = on_stream
    with entrance.connect() as end:
        end.sendall(f"{DEST}\n".encode())
        assert ending(end) in ("reset", "end of file")
    with entrance.connect() as end:
        end.sendall(f"{DEST}\n".encode())
        entrance.stream()[0].close()
    assert "a bug" in caplog.text


@pytest.fixture
def other_loop():
    loop = Loop()
    thread = threading.Thread(target=loop.run, name="another loop")
    thread.start()
    yield loop, thread
    if thread.is_alive():
        loop.call(loop.stop)
        thread.join(WAIT)
    loop.close()


def test_streams_can_be_accepted_in_the_thread_of_another_loop(enter, other_loop):
    loop, thread = other_loop
    entrance = enter()
    threads = queue.SimpleQueue()
    arrive = entrance.port.on_stream
    entrance.port.on_stream = lambda *what: (threads.put(threading.current_thread()), arrive(*what))

    def use():
        with entrance.connect() as end:
            end.sendall(f"{DEST}\n".encode())
            entrance.stream()[0].close()
            return threads.get(timeout=WAIT)

    def move(there):
        entrance.port.move(there)
        wait_until(lambda: entrance.port._watching is there)

    assert use() is entrance.io_thread.thread
    move(loop)
    assert use() is thread
    entrance.port.pause(True)
    wait_until(lambda: entrance.port._watching is None)
    entrance.port.pause(False)
    assert use() is thread
    move(entrance.io_thread.loop)
    assert use() is entrance.io_thread.thread
    move(loop)
    loop.call(loop.stop)
    thread.join(WAIT)
    move(entrance.io_thread.loop)
    assert use() is entrance.io_thread.thread


def test_it_is_closed_whatever_became_of_the_other_loop(enter, other_loop):
    loop, thread = other_loop
    entrance = enter(loop=loop)
    with entrance.connect() as end:
        end.sendall(b"half")
        wait_until(lambda: entrance.port._pending)
        loop.call(loop.stop)
        thread.join(WAIT)
        entrance.port.close()
        assert ending(end) in ("reset", "end of file")
    assert entrance.port._socket.fileno() < 0


def test_closed_while_it_moves_it_leaves_no_number_to_the_loop_before(enter, other_loop):
    """A later socket of that number could not be watched there."""
    loop, _ = other_loop
    entrance = enter(loop=loop)
    wait_until(lambda: entrance.port._watching is loop)
    number = entrance.port._socket.fileno()
    assert number in loop.handlers
    with entrance.connect() as end:
        end.sendall(b"half")
        wait_until(lambda: entrance.port._pending)
        (pending,) = (one.socket.fileno() for one in entrance.port._pending)
        go = threading.Event()
        loop.call(lambda: go.wait(WAIT))
        entrance.port.move(entrance.io_thread.loop)
        entrance.port.close()
        turned = threading.Event()
        entrance.io_thread.loop.call(turned.set)
        assert turned.wait(WAIT)
        assert entrance.port._socket.fileno() == number, "the loop before has not forgotten it yet"
        go.set()
        assert ending(end) in ("reset", "end of file")
        wait_until(lambda: entrance.port._socket.fileno() < 0)
    assert not {number, pending} & loop.handlers.keys()


def test_a_connection_under_way_is_kept_when_the_thread_changes(enter, other_loop):
    loop, _ = other_loop
    entrance = enter()
    with entrance.connect() as end:
        end.sendall(DEST.encode())
        wait_until(lambda: entrance.port._pending)
        entrance.port.move(loop)
        end.sendall(b"\n")
        entrance.stream()[0].close()


def test_in_a_forked_child_the_descriptors_are_closed(enter):
    entrance = enter()
    with entrance.connect() as end:
        end.sendall(b"half")
        wait_until(lambda: entrance.port._pending)
        numbers = [entrance.port._socket.fileno(), *(one.socket.fileno() for one in entrance.port._pending)]
        assert in_child(lambda: not any(os.path.exists(f"/dev/fd/{number}") for number in numbers)) == 0
        end.sendall(f"{DEST}\n".encode()[4:])


def test_no_port_to_be_had_is_an_error(monkeypatch):
    def create_server(*args, **options):
        raise OSError(98, "Address already in use")

    session = Session()
    monkeypatch.setattr(socket, "create_server", create_server)
    with pytest.raises(OSError, match="already in use"):
        ForwardPort(session, print, None, loop=None)
    session.close()


# -- its table --------------------------------------------------------------------------------------------------------

NAMES = [state.value for state in PortState]
TABLE = each_row_of(forward_port, NAMES)


@pytest.fixture
def port_in(enter):
    """Makes a port in this state."""
    gate = enter()

    def make(state):
        gate.port._state = PortState(state)
        gate.call(gate.port._update_there)
        return gate.port

    yield make
    if gate.port._state is PortState.CLOSED:
        gate.port._state = PortState.BOUND  # so that it closes its socket


def send(port, event):
    {
        "open": lambda: port.open(port._socket),
        "pause": lambda: port.pause(True),
        "resume": lambda: port.pause(False),
    }.get(event, port.close)()


@pytest.mark.parametrize(("state", "event", "following", "action"), TABLE)
def test_every_row(port_in, state, event, following, action):
    port = port_in(state)
    send(port, event)
    assert port._state.value == following
    if following == "closed":
        wait_until(lambda: port._socket.fileno() < 0)
    else:
        wait_until(lambda: (port._watching is not None) == (following == "open"))


@pytest.mark.parametrize(
    ("state", "event"), sorted(set(itertools.product(NAMES, ["open", "pause", "resume"])) - {row[:2] for row in TABLE})
)
def test_what_is_not_in_the_table_changes_nothing(port_in, state, event):
    port = port_in(state)
    send(port, event)
    assert port._state.value == state


def test_the_table_is_whole():
    assert {row[:3] for row in TABLE} == {(a.value, b.value, c.value) for (a, b), c in TRANSITIONS.items()}
