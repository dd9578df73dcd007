"""A bridge that says what the test scripts: plain sockets without relay, so that it can also be wrong."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from helpers import WAIT, Server, wait_until

from relay.addresses.destinations import PrivateKey
from relay.errors import CarrierError
from relay.eventloop.sockets import reset
from relay.streams.stream import Stream
from relay.transports.i2p.bridge import Bridge
from relay.transports.i2p.conversation import Conversation
from relay.transports.i2p.messages import Message, session_create
from relay.transports.i2p.opening import open_stream
from relay.transports.i2p.session import Session
from relay.transports.tcp import tcp

HELLO = "HELLO REPLY RESULT=OK VERSION=3.3"
OK = "STREAM STATUS RESULT=OK"
KEY = PrivateKey.generate()  # of the sessions
DEST = PrivateKey.generate().destination  # a peer to connect to


class End:
    """One connection, on the bridge's side."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.peer = connection.getpeername()
        self.over = threading.Event()
        self.asked: list[str] = []
        self._file = connection.makefile("rb")

    def line(self) -> str:
        """The next line; empty at the end."""
        return self._file.readline().decode().removesuffix("\n")

    def say(self, *lines: str, more: bytes = b"") -> None:
        """Say lines, and bytes after them, in one segment."""
        self.socket.sendall("".join(f"{line}\n" for line in lines).encode() + more)

    def recv(self, size: int) -> bytes:
        """Read from the stream, for the helpers."""
        return self._file.read1(size)

    def sendall(self, data: bytes) -> None:
        """Send on the stream."""
        self.socket.sendall(data)

    def close(self) -> None:
        """End it, as a router does; the thread that serves it closes it then."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.over.set()

    def reset(self) -> None:
        """Cut it; where no thread uses it."""
        self._file.close()
        reset(self.socket)
        self.over.set()

    def let_go(self) -> None:
        """Close what is left of it."""
        self.over.set()
        self._file.close()
        self.socket.close()


class ScriptedBridge:
    """A bridge that does what it is asked unless the test says otherwise.

    The streams are played by the test, which finds the far end of each in ``streams``.
    """

    def __init__(self) -> None:
        self.hello: list[str | None] = []  # the next answers to HELLO; ``None`` is silence
        self.answers: deque[str | Callable[[End], object]] = deque()  # the next answers to anything else
        self.names: dict[str, str] = {}
        self.asked: list[str] = []  # every line but HELLOs
        self.hellos: list[str] = []
        self.streams: queue.SimpleQueue[End] = queue.SimpleQueue()
        self.controls: list[End] = []
        self.ends: list[End] = []
        self.pongs = True
        self._server = Server(self._handle)
        self.address: tuple[str, int] = self._server.address
        self.name = "{}:{}".format(*self.address)
        self.dialer = tcp(*self.address)  # by which relay gets here; a test may replace its ``dial``

    def bridge(self, login: tuple[str, str] | None = None) -> Bridge:
        """Ours that leads here."""
        return Bridge(self.name, self.dialer, login)

    def stream(self) -> End:
        """The far end of the next stream."""
        return self.streams.get(timeout=WAIT)

    def _handle(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end = End(connection)
        self.ends.append(end)
        with contextlib.suppress(OSError, ValueError):  # it was closed, here or there
            self._serve(end)
        end.let_go()

    def _serve(self, end: End) -> None:
        self.hellos.append(end.line())
        hello = self.hello.pop(0) if self.hello else HELLO
        if hello is not None:
            end.say(hello)
        while line := end.line():
            self.asked.append(line)
            end.asked.append(line)
            answer = self.answers.popleft() if self.answers else self.answer_to(line)
            if callable(answer):
                answer(end)
                return
            if answer:
                end.say(answer)
            if line.startswith("STREAM CONNECT") and answer == OK:
                return self._hand_over(end)

    def answer_to(self, line: str) -> str | Callable[[End], object]:
        command = " ".join(line.split(" ")[:2])
        if command == "SESSION CREATE":
            return self.create
        if command == "NAMING LOOKUP":
            name = line.rpartition("NAME=")[2]
            known = self.names.get(name)
            return f"NAMING REPLY RESULT=OK NAME={name} VALUE={known}" if known else _unknown(name)
        if command.startswith("PING"):
            return f"PONG{line[4:]}" if self.pongs else ""
        return "" if command.startswith("PONG") else OK

    def create(self, end: End) -> None:
        self.controls.append(end)
        end.say(f"SESSION STATUS RESULT=OK DESTINATION={KEY.base64}")
        while line := end.line():
            self.asked.append(line)
            if line.startswith("PING") and self.pongs:
                end.say(f"PONG{line[4:]}")

    def _hand_over(self, end: End) -> None:
        """The connection is the test's, which closes it, or the bridge does."""
        self.streams.put(end)
        end.over.wait()

    def close(self) -> None:
        """End everything."""
        for end in list(self.ends):
            end.close()
        self._server.close()


def _unknown(name: str) -> str:
    return f"NAMING REPLY RESULT=KEY_NOT_FOUND NAME={name}"


class Opened:
    """A session at a scripted bridge, made without a carrier."""

    def __init__(self, scripted: ScriptedBridge) -> None:
        self.scripted = scripted
        self.bridge = scripted.bridge()
        self.lost: queue.SimpleQueue[CarrierError] = queue.SimpleQueue()
        self.control = self.open_conversation()
        self.ask(self.control, session_create(id="ours"))
        self.session = Session("the session", self.bridge, "ours", KEY.destination, self.control, self.lost.put)
        self.far_control = scripted.controls[-1]

    def open_conversation(self) -> Conversation:
        """Another conversation."""
        told: queue.SimpleQueue[Conversation | OSError] = queue.SimpleQueue()
        self.bridge.open_conversation(time.monotonic() + WAIT, told.put)
        outcome = told.get(timeout=WAIT)
        assert isinstance(outcome, Conversation), outcome
        return outcome

    def ask(self, conversation: Conversation, request: Message) -> Message:
        """Return the answer of the bridge."""
        told: queue.SimpleQueue[Message | OSError] = queue.SimpleQueue()
        conversation.ask(request, time.monotonic() + WAIT, told.put)
        outcome = told.get(timeout=WAIT)
        assert isinstance(outcome, Message), outcome
        return outcome

    def pass_deadlines(self, seconds: float = 2 * WAIT) -> None:
        """Let the bridge do now what it does when the deadlines of the next seconds have passed: by default, all."""
        pass_deadlines(self.session, seconds)

    def open(self, dest: str = DEST, seconds: float | None = WAIT, port: int | None = None, **options: Any) -> Begun:
        """Begin a stream."""
        return Begun(self.session, dest, port, seconds, options)

    def close(self) -> None:
        """End it, and look whether every stream has been counted to its end."""
        self.session.close()
        wait_until(lambda: self.session.streams == 0)


def io_thread_ends() -> None:
    """Wait until nothing needs the I/O thread any more."""
    wait_until(lambda: "relay-io" not in {thread.name for thread in threading.enumerate()})


def pass_deadlines(session: Session, seconds: float) -> None:
    """Let the bridge of a session do now what it does when the deadlines of the next seconds have passed."""
    deadlines = session.bridge.deadlines
    deadlines.loop.call(lambda: deadlines._check(time.monotonic() + seconds))


class Begun:
    """A stream on its way."""

    def __init__(self, session: Session, dest: str, port: int | None, seconds: float | None, options: Any) -> None:
        self.told: queue.SimpleQueue[Stream | OSError] = queue.SimpleQueue()
        deadline = None if seconds is None else time.monotonic() + seconds
        self.give_up = open_stream(session, dest, port, deadline, self.told.put, **options)

    def outcome(self) -> Stream | OSError:
        """Wait for the result."""
        return self.told.get(timeout=WAIT)

    def stream(self) -> Stream:
        """The stream, whose socket has a time-out."""
        outcome = self.outcome()
        assert isinstance(outcome, Stream), outcome
        outcome.socket.settimeout(WAIT)
        return outcome

    def error(self) -> OSError:
        """The error: one line."""
        outcome = self.outcome()
        assert isinstance(outcome, OSError), outcome
        assert "\n" not in str(outcome) and len(str(outcome)) < 400
        return outcome
