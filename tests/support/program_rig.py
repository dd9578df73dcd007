"""Trials with a program's standard input and output as a stream, wherever the program runs."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from helpers import WAIT, Thread, receive_exactly, receive_rest

from relay.addresses.hops import Command
from relay.errors import CarrierError, ConnectError
from relay.streams.promise import Cancellation, Promise
from relay.streams.stream import Stream
from relay.transports.ssh.config.settings import resolve_settings

MUCH = bytes(range(256)) * 4096 * 20  # 20 MiB

# Leads to a place, half-close and all: what the far end of a program's stream is in the conformance test.
BRIDGE = (sys.executable, "-S", str(Path(__file__).with_name("stdio_bridge.py")))


def command(*words: str) -> Command:
    """A command of exactly these words."""
    return Command(shlex.join(words).replace("%", "%%"))


Open = Callable[..., Stream]


def finish(stream: Stream, data: bytes = b"") -> bytes:
    """Send all of it and the end of it, and receive everything up to the end.

    A program that fails is a reset only if it does so before the end of it was sent.
    """
    sending = Thread(_send, stream.socket, data)
    received = receive_rest(stream.socket)
    sending.result()
    return received


def _send(end: socket.socket, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the program has ended without all of it
        end.sendall(data)
        end.shutdown(socket.SHUT_WR)


def failure(stream: Stream) -> Any:
    """Return the error that ended it; ``None`` for a clean end."""
    assert stream.failure is not None
    return stream.failure()


# The cases. ``opened(*words)`` returns a stream, blocking with a deadline.


def bytes_go_both_ways(opened: Open) -> None:
    with opened("cat") as stream:
        assert hashlib.sha256(finish(stream, MUCH)).digest() == hashlib.sha256(MUCH).digest()
        assert failure(stream) is None


def the_end_of_input_arrives_and_the_reply_comes(opened: Open) -> None:
    with opened("sha256sum") as stream:
        assert finish(stream, MUCH).split()[0].decode() == hashlib.sha256(MUCH).hexdigest()
        assert failure(stream) is None


def it_answers_before_the_end_of_its_input(opened: Open) -> None:
    with opened("cat") as stream:
        for word in b"ping", b"pong":
            stream.socket.sendall(word)
            assert receive_exactly(stream.socket, 4) == word
        assert finish(stream) == b""
        assert failure(stream) is None


def it_may_end_before_it_has_read_everything(opened: Open) -> None:
    with opened("head", "-c", "10") as stream:
        assert finish(stream, MUCH) == MUCH[:10]
        assert failure(stream) is None


def it_says_nothing(opened: Open) -> None:
    with opened("true") as stream:
        assert finish(stream) == b""
        assert failure(stream) is None


def arguments_arrive_as_they_are(opened: Open) -> None:
    odd = ["a b", "$HOME", ";", "'", '"', "*", "", "--", "%h", "a\\b", "`id`", "ü", "~", "#x", "!", "|", ">y"]
    with opened("printf", "%s|", *odd) as stream:
        assert finish(stream).decode() == "".join(f"{word}|" for word in odd)
        assert failure(stream) is None


def a_status_is_a_failure_with_the_last_line(opened: Open) -> None:
    with opened("sh", "-c", "echo much; echo first >&2; echo 'why it failed' >&2; exit 3") as stream:
        assert finish(stream) == b"much\n"
        error = failure(stream)
        assert str(error) == "exec:sh …: ended with status 3 (why it failed)"
        assert isinstance(error, ConnectError) and error.reason == "target_reset"


def a_signal_is_a_failure(opened: Open) -> None:
    with opened("sh", "-c", "echo much; kill -9 $$") as stream:
        assert finish(stream) == b"much\n"
        error = failure(stream)
        assert str(error).startswith(
            (
                "exec:sh …: was ended by SIGKILL",
                "exec:sh …: ended without a status, probably by a signal",
                "exec:sh …: ended with status 137",  # a shell between
            )
        )
        assert error.reason == "target_reset"


def fifty_run_at_once(opened: Open) -> None:
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(one.result()) for one in [Thread(opened, "cat") for _ in range(50)]]
        for number, stream in enumerate(streams):
            stream.socket.sendall(b"%d" % number)
        for number, stream in enumerate(streams):
            stream.socket.settimeout(6 * WAIT)  # each begins with a shell on the server, and what that reads first
            assert finish(stream) == b"%d" % number
            assert failure(stream) is None


CASES = [
    bytes_go_both_ways,
    the_end_of_input_arrives_and_the_reply_comes,
    it_answers_before_the_end_of_its_input,
    it_may_end_before_it_has_read_everything,
    it_says_nothing,
    arguments_arrive_as_they_are,
    a_status_is_a_failure_with_the_last_line,
    a_signal_is_a_failure,
    fifty_run_at_once,
]


def said(caplog: Any) -> list[str]:
    """The lines that the log has at the level info, of programs."""
    return [one.getMessage() for one in caplog.records if one.levelno == logging.INFO and "exec:" in one.getMessage()]


class Remote:
    """One SSH connection by a backend, for commands."""

    def __init__(self, far_end: Any, **more: Any) -> None:
        backend = import_module(f"relay.transports.ssh.{far_end.backend}.backend")
        settings = resolve_settings(dataclasses.replace(far_end.server, **more))
        stream = Stream(socket.create_connection((settings.hostname, settings.port), WAIT))
        self.lost: list[CarrierError] = []
        with contextlib.closing(Cancellation()) as cancel:
            deadline = time.monotonic() + WAIT
            self.connection = backend.connect(settings, stream, deadline, cancel, self.lost.append)

    def begin(self, *words: str, seconds: float | None = WAIT, **options: Any) -> tuple[Promise[Stream], Any]:
        """Ask for a command; returns where the outcome comes, and how to give it up."""
        answer: Promise[Stream] = Promise()
        deadline = None if seconds is None else time.monotonic() + seconds
        return answer, self.connection.open(command(*words), deadline, answer.put, **options)

    def open(self, *words: str, **options: Any) -> Stream:
        """A stream to a command, blocking with a deadline; raises why there is none."""
        stream = self.begin(*words, **options)[0].get(time.monotonic() + WAIT, None)
        assert stream is not None, "nothing was reported"
        stream.socket.settimeout(WAIT)
        return stream


@contextlib.contextmanager
def remote(far_end: Any, **more: Any) -> Iterator[Remote]:
    """A connection that is closed in the end."""
    made = Remote(far_end, **more)
    try:
        yield made
    finally:
        made.connection.close()
