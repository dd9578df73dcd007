"""A command that the embedded SSH server runs for a client (RFC 4254, sections 6.5 to 6.10)."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import IO

from ...process import PIPE, Process, start
from .channel import GONE, Channel

_CHUNK = 65536  # bytes copied at once
_ASK_TIMEOUT = 30.0  # seconds for a client to request a command

Kept = Callable[[Process], AbstractContextManager[Process]]


def serve_command(channel: Channel, kept: Kept) -> None:
    """Run the command that the client requests until it has ended, also without the client; then close the channel.

    :param channel: the channel.
    :param kept: registers the process, which is killed when the connection ends.
    """
    text = channel.wait_for_command(_ASK_TIMEOUT)
    try:
        if text is not None:
            _run(channel, text, kept)
    finally:
        channel.finish()


def kill(process: Process) -> None:
    """Kill a process and its children; it is not reaped yet, so the process group is its own."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _run(channel: Channel, text: str, kept: Kept) -> None:
    # One socket for both directions, because a shutdown wakes a thread that reads it. That does not work with a pipe.
    ours, theirs = socket.socketpair()
    with ours:
        # Closed here as soon as the child has it: only then does its exit end the read below.
        with theirs:
            process = start(["/bin/sh", "-c", text], stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=PIPE)
        with kept(process), channel.bound(ours):
            _relay(channel, ours, process)
    with contextlib.suppress(*GONE):
        _tell_end(channel, process.returncode)  # also to a client that has closed it, and waits for the reply


def _relay(channel: Channel, ours: socket.socket, process: Process) -> None:
    channel.use_signals(lambda name: _signal(process, name))
    assert process.stderr is not None
    inward = threading.Thread(target=_inward, args=(channel, ours), name="ssh server channel inward", daemon=True)
    said = threading.Thread(target=_stderr, args=(channel, process.stderr), name="ssh server stderr", daemon=True)
    for thread in inward, said:
        thread.start()
    with contextlib.suppress(*GONE):
        while data := ours.recv(_CHUNK):
            channel.sendall(data)
        # Before the end of file, which is for standard error as well: nothing may follow it (RFC 4254, section 5.3).
        said.join()
        if not channel.closed:
            channel.shutdown_write()
    process.wait()
    # The client may never end its side; the command has ended, so what it says is for no one.
    channel.stop_receiving()
    for thread in inward, said:
        thread.join()


def _inward(channel: Channel, ours: socket.socket) -> None:
    with contextlib.suppress(*GONE):
        while data := channel.recv(_CHUNK):
            ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)


def _stderr(channel: Channel, pipe: IO[bytes]) -> None:
    with pipe, contextlib.suppress(*GONE):
        while data := os.read(pipe.fileno(), _CHUNK):
            channel.sendall_stderr(data)


def _signal(process: Process, name: str) -> None:
    """Send a signal to a process (RFC 4254, section 6.9), if it has not ended."""
    number = getattr(signal, f"SIG{name}", None)
    if isinstance(number, signal.Signals) and process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def _tell_end(channel: Channel, status: int) -> None:
    if status >= 0:
        channel.send_exit_status(status)
    else:
        channel.send_exit_signal(signal.Signals(-status).name.removeprefix("SIG"))
