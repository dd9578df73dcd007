"""A SAM client and server that know nothing of relay."""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
import time
from collections.abc import Iterator

import i2pd
from helpers import echo, receive_exactly
from i2p_world import read_line
from scenarios import PartedError, check_routers, journal

WAIT_FOR_ROUTERS = 60.0  # seconds for each step
TRIES = 6  # streams until routers count as parted
ANSWER = 6.0  # seconds for one stream to bring bytes
REST = 0.5  # seconds between the end of the last stream and that of the session
TEXT = b"anybody?"


def check_reachable(server: i2pd.Router, client: i2pd.Router) -> None:
    """Fail if a plain client at one router does not reach a plain server at another one.

    i2pd may take a router that has come back for dead, for many minutes; and its bridge may stop to answer.

    :raises PartedError: with the last failure.
    :raises OSError: if one of them does not run.
    """
    try:
        problem = _try_to_reach(server, client)
    except TimeoutError:
        problem = "a bridge does not answer"
    if problem:
        raise PartedError(f"{server.folder.name} and {client.folder.name} bring no stream of plain SAM: {problem}")


def _try_to_reach(server: i2pd.Router, client: i2pd.Router) -> str:
    """Return what went wrong at last; nothing if a stream brought its bytes."""
    problem = ""
    own = secrets.token_hex(4)  # several scenarios may ask at one time, and a bridge has one session of a name
    with (
        contextlib.closing(PlainSAM(server, f"server-{own}")) as far,
        contextlib.closing(PlainSAM(client, f"client-{own}")) as near,
    ):
        threading.Thread(target=far.serve, daemon=True).start()
        for _ in range(TRIES):
            if not (problem := _problem_with_stream(near, far.dest)):
                break
    return problem


def _problem_with_stream(near: PlainSAM, dest: str) -> str:
    """Return what went wrong; nothing if a stream brought its bytes."""
    try:
        with near.connect(dest, ANSWER) as stream:
            stream.sendall(TEXT)
            return "" if receive_exactly(stream, len(TEXT)) == TEXT else "an end of file"
    except OSError as error:
        return repr(error)


def wait_until_reached(dest: str, client: i2pd.Router, seconds: float) -> None:
    """Wait until a plain client at a router reaches a destination whose service sends bytes back.

    A router that has just started may find no destination for minutes.

    :raises PartedError: if it does not find this one in time.
    """
    until = time.monotonic() + seconds
    try:
        near = PlainSAM(client, f"client-{secrets.token_hex(4)}")
    except TimeoutError:
        raise PartedError(f"{client.folder.name}: its bridge makes no session") from None
    with contextlib.closing(near):
        while problem := _problem_with_stream(near, dest):
            journal.info("%s: a plain client finds no destination yet: %s", client.folder.name, problem)
            check_routers()
            if time.monotonic() > until:
                raise PartedError(f"{client.folder.name} does not find a destination for {seconds:g} s: {problem}")
            threading.Event().wait(1.0)


@contextlib.contextmanager
def blaming(server: i2pd.Router, client: i2pd.Router) -> Iterator[None]:
    """Tell after a failure if the routers fail plain programs, too."""
    try:
        yield
    except (AssertionError, OSError):
        check_routers()
        check_reachable(server, client)
        raise


class PlainSAM:
    """A session as a program has it that gives the router no options at all."""

    def __init__(self, router: i2pd.Router, name: str) -> None:
        self._router = router
        self._name = name
        self._control = self._hello()
        try:
            self._ask(self._control, f"SESSION CREATE STYLE=STREAM ID={name} DESTINATION=TRANSIENT")
            self.dest = self._ask(self._control, "NAMING LOOKUP NAME=ME").partition("VALUE=")[2].strip()
        except BaseException:
            self._control.close()
            raise

    def connect(self, dest: str, timeout: float = WAIT_FOR_ROUTERS) -> socket.socket:
        """A stream to a destination, which may not be known yet.

        :param timeout: seconds; of the stream, too.
        :raises OSError: if the router does not find it.
        """
        stream = self._hello()
        stream.settimeout(timeout)
        try:
            self._ask(stream, f"STREAM CONNECT ID={self._name} DESTINATION={dest} SILENT=false")
        except BaseException:
            stream.close()
            raise
        return stream

    def serve(self) -> None:
        """Send streams back what they bring, one after the other, until the session ends."""
        with contextlib.suppress(OSError):
            while True:
                with self._hello() as stream:
                    self._ask(stream, f"STREAM ACCEPT ID={self._name} SILENT=false")
                    read_line(stream)  # the destination that connects
                    with contextlib.suppress(OSError):
                        echo(stream)

    def close(self) -> None:
        """End the session, a moment after its last stream: i2pd may die of both at once, as relay's sessions know."""
        threading.Event().wait(REST)
        self._control.close()

    def _hello(self) -> socket.socket:
        connection = self._router.connect(WAIT_FOR_ROUTERS)
        try:
            self._ask(connection, "HELLO VERSION MIN=3.0 MAX=3.1")
        except BaseException:
            connection.close()
            raise
        return connection

    def _ask(self, connection: socket.socket, request: str) -> str:
        connection.sendall(request.encode() + b"\n")
        answer = read_line(connection).decode()
        if "RESULT=OK" not in answer:
            raise ConnectionError(f"{request.partition(' DEST')[0]}: {answer.strip()}")
        return answer
