"""Connections between real sockets, whose loop, clock and limits the test has in its hand."""

import contextlib
import fcntl
import socket
import struct
import termios

from helpers import WAIT, wait_until

import relay
from relay.access.gate import Gate
from relay.access.limit import check_limits
from relay.access.policy import ClientPolicy
from relay.engine.connection import Connection
from relay.engine.limits import Limits
from relay.engine.workspace import Workspace
from relay.eventloop.loop import Loop
from relay.eventloop.pipes import PipePool
from relay.streams.identity import Identity
from relay.streams.session_socket import SessionSocket
from relay.testing import pair

CLIENT = Identity("tcp", "192.0.2.7", "192.0.2.7", 5)
MANY = 1000  # turns after which a loop that still has events spins


class HandLoop(Loop):
    """A loop that takes one turn when it is asked to, at a time of the test."""

    def turn(self, now, wait=0.0):
        """Call what is due; return whether there were events."""
        self._new.clear()
        events = self.poller.poll(wait, 128)
        for descriptor, event in events:
            handler = self.handlers.get(descriptor)
            if handler is not None:
                handler(event, now)
        if self.timers.first <= now:
            self.timers.run(now)
        self._close_garbage()
        return bool(events)


class Reluctant:
    """A socket of relay's that takes less than it could."""

    def __init__(self, sock):
        self.sock = sock
        self.takes = []  # the bytes of each of the next sends, 0 for a full buffer, or an error
        self.flags = []  # those of each send that has taken some
        self.before_send = lambda: None

    def send(self, data, flags=0):
        self.before_send()
        taken = self.takes.pop(0) if self.takes else len(data)
        if isinstance(taken, OSError):
            raise taken
        if not taken:
            raise BlockingIOError
        self.flags.append(flags)
        return self.sock.send(data[:taken], flags)

    def __getattr__(self, name):
        return getattr(self.sock, name)


class Session(SessionSocket):
    """A session whose bytes are those of its transport. It may have read ahead, as one of TLS, and have more to say."""

    def __init__(self, transport, held=b""):
        super().__init__(transport)
        self.transport = transport
        self.held = held  # bytes that no event announces
        self.is_over = False  # an end that no event announces
        self.memory = bytearray(1 << 16)  # what each read returns a view of
        self.reads = 0
        self.waiting = b""  # what it has to say by itself
        self.takes = True  # whether its transport takes anything
        self.needs = False  # input, before it can send
        self.stalls = False
        self.fails = None
        self.close = self.abandon = transport.close

    has_input = property(lambda self: bool(self.held) or self.is_over)
    must_flush = property(lambda self: bool(self.waiting))
    needs_input = property(lambda self: self.needs)
    is_stalled = property(lambda self: self.stalls)

    def recv(self, size, flags=0):
        self.reads += 1
        if self.fails is not None:
            raise self.fails
        if self.needs:
            self.needs, self.takes = not self.transport.recv(size), True
            raise BlockingIOError
        if not self.held and not self.is_over:
            self.held = self.transport.recv(16384, flags)
        data, self.held = self.held[:size], self.held[size:]
        self.memory[: len(data)] = data
        return memoryview(self.memory)[: len(data)]

    def send(self, data, flags=0):
        if self.fails is not None:
            raise self.fails
        if not self.takes:
            raise BlockingIOError
        said, self.waiting, self.stalls = self.waiting + bytes(data), b"", False
        self.transport.send(said)
        return len(data)

    def shutdown(self, how):
        if self.takes and not self.needs:
            self.transport.shutdown(how)
        else:
            self.waiting = b"close_notify"


class Line:
    """One connection: ``client`` and ``target`` are the test's ends, ``near`` and ``far`` those of relay."""

    def __init__(self, bench, connection, ends):
        self.bench, self.connection = bench, connection
        self.client, self.near, self.far, self.target = ends

    @property
    def up(self):
        return self.connection.flows.upstream

    @property
    def down(self):
        return self.connection.flows.downstream

    @property
    def record(self):
        return self.connection.record(self.bench.now)

    @property
    def moved(self):
        """The bytes from and to the client."""
        return self.connection.bytes_moved()[:2]

    def held(self):
        """The bytes that relay has read and not sent."""
        if self.connection.is_closed:
            return 0
        return sum(len(flow.pending or b"") + flow.piped for flow in (self.up, self.down))


class Bench:
    """Connections of one client."""

    name = "t"
    introduce = None
    looked_until = 0.0

    def __init__(self, stack, *, splice=True, times=(None,) * 4, limits=(), family=socket.AF_UNIX):
        self.stack, self.family, self.labels = stack, family, {}
        self.now = 1000.0
        self.limits = Limits(*times)
        self.loop = HandLoop()
        stack.callback(self.loop.close)
        self.pipes = PipePool() if splice else None
        if self.pipes is not None:
            stack.callback(self.pipes.close)
        self.work = Workspace(self.loop, self.pipes)
        self.gate = Gate(ClientPolicy(limits=check_limits(list(limits))), self.loop.timers) if limits else None
        self.entrance = self
        self.ends = []  # the reason and the rule of each connection that has ended
        self.closed = []  # the streams that have, and whether cleanly

    def connection_over(self, connection):
        summary = connection.summary
        assert summary.finished == self.now
        self.ends.append((summary.reason, summary.rule))

    @property
    def reasons(self):
        return [reason for reason, _ in self.ends]

    def close_stream(self, stream, clean):
        self.closed.append((stream, clean))
        self.loop.discard(stream.socket)

    def connect(self, family=None, *, client=None, target=None, wrap=lambda sock: sock, sessions=(), request=None):
        """Open a connection.

        :param family: of its sockets.
        :param client: and ``target``: what is set of its streams, if they are no plain sockets.
        :param wrap: makes something else of relay's sockets.
        :param sessions: the sides that have one, ``client`` and ``target``, and what each has read ahead.
        :param request: of a proxy client.
        """
        ends = [*pair(family or self.family), *pair(family or self.family)]
        for end in ends:
            self.stack.callback(end.close)
            end.setblocking(False)
        streams = [self._stream(ends[1], client), self._stream(ends[2], target)]
        near, far = wrap(ends[1]), wrap(ends[2])
        if "client" in sessions:
            near = Session(near, sessions["client"])
        if "target" in sessions:
            far = Session(far, sessions["target"])
        connection = Connection(self, near, streams[0], (CLIENT.host, CLIENT.port), self.now)
        connection.summary.target = "the target"
        if request is not None:
            connection.summary.request = request
        if self.gate is not None:
            connection.ticket = self.gate.enter(CLIENT, self.now)
        connection.open(far, streams[1], self.work, self.now)
        self.stack.callback(lambda: (connection.close("closed", self.now), self.loop.turn(self.now)))
        return Line(self, connection, (ends[0], near, far, ends[3]))

    def _stream(self, sock, settings):
        if settings is None:
            return None
        options = {name: settings[name] for name in ("half_close", "failure") if name in settings}
        stream = relay.Stream(sock, target="the target", **options)
        for name in settings.keys() - options.keys():
            setattr(stream, name, settings[name])
        return stream

    def turn(self, seconds=0.001):
        """Let so much time pass, and then call what is due; return whether there were events."""
        self.now += seconds
        return self.loop.turn(self.now)

    def rest(self):
        """Turn until there are no more events."""
        for _ in range(MANY):
            if not self.turn():
                return
        raise AssertionError("it spins")

    def until(self, condition):
        """Turn until it is true."""
        wait_until(lambda: self.turn() is None or condition(), WAIT)

    def pass_by(self, seconds, step=1 / 256, each=lambda: None):
        """Let time pass in small steps, with this done after each."""
        end = self.now + seconds
        while self.now < end:
            self.turn(step)
            each()


def take(end, size=1 << 20):
    """Return what has come, and ``None`` if nothing has."""
    with contextlib.suppress(BlockingIOError):
        return end.recv(size)
    return None


def take_all(end):
    """Return all that has come, up to an end or a reset."""
    data = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while piece := take(end):
            data += piece
    return bytes(data)


def put(end, data):
    """Send as much as the socket takes; return how much."""
    with contextlib.suppress(BlockingIOError):
        return end.send(data)
    return 0


def available(end):
    """Return how many bytes could be read."""
    return struct.unpack("i", fcntl.ioctl(end, termios.FIONREAD, bytes(4)))[0]
