"""The part of ``relay demo`` that goes over I2P: a bridge, ``relay expose`` and ``relay forward``, each a process.

They talk nothing but SAM over TCP, so that a real router may take the bridge's place.
"""

from __future__ import annotations

import os
import re
import select
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from ..i2paddress import parse_sam
from ..process import PIPE, Process, end, start
from .output import say

__all__ = ["PATIENCE", "Program", "few", "over_i2p", "program"]

PATIENCE = 300.0  # seconds for a line to come: sessions have to be made, and to be found by others
END = 10.0  # seconds for a program to end by itself
MOST = 10  # pages that are fetched over a real network
LARGEST = 1 << 20  # bytes of one of them

RELAY = ("-c", "import sys; from relay.cli import main; sys.exit(main())")


class Program:
    """A program in Python that runs in a process of its own and says things.

    :param process: it; its standard output is a pipe.
    :param complaints: what is its standard error.
    """

    def __init__(self, process: Process, complaints: IO[bytes]) -> None:
        self._process = process
        self._complaints = complaints
        self._said = b""

    def hear(self, pattern: str) -> re.Match[str]:
        """Wait for its next line.

        :param pattern: what the line is to be.
        :returns: the match.
        :raises OSError: if it is something else, or does not come; with what the program says of it.
        """
        line = self._line(time.monotonic() + PATIENCE)
        found = re.fullmatch(pattern, line)
        if found is None:
            self._complaints.seek(0)
            said = self._complaints.read().decode(errors="replace").split("\n")
            why = next((line for line in reversed(said) if line), "") or line or "it says nothing"
            raise OSError(f"a program of the demo failed: {why.removeprefix('relay: ')}")
        return found

    def _line(self, deadline: float) -> str:
        assert self._process.stdout is not None
        poller = select.poll()
        poller.register(self._process.stdout, select.POLLIN)
        while b"\n" not in self._said and poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            piece = os.read(self._process.stdout.fileno(), 4096)
            if not piece:
                self._process.wait()  # so that all its complaints are there
                break
            self._said += piece
        line, _, self._said = self._said.partition(b"\n")
        return line.decode(errors="replace")


@contextmanager
def program(*arguments: str) -> Iterator[Program]:
    """Run this interpreter with these arguments; it ends with the block."""
    with tempfile.TemporaryFile() as complaints:
        with start([sys.executable, "-P", *arguments], stdin=PIPE, stdout=PIPE, stderr=complaints) as process:
            try:
                yield Program(process, complaints)
            finally:
                end(process, END)


@contextmanager
def over_i2p(server: str, sam: str | None) -> Iterator[tuple[str, int]]:
    """Publish a web server at I2P and have a way there, and say so.

    :param server: its address.
    :param sam: the SAM bridge of a router; ``None`` for one of our own.
    :returns: where a client may connect to.
    :raises OSError: if one of the programs fails.
    """
    with ExitStack() as running:
        if sam is None:
            sam = running.enter_context(program("-m", "relay.testing.sambridge")).hear(r".*?(\S+:\d+)")[1]
            say(f"\nsam bridge   {sam}, in a process of its own; it takes the place of an I2P router")
        else:
            say(f"\ni2p router   {parse_sam(sam)}; it may take some minutes to build tunnels and to find them")
        exposed = running.enter_context(
            program(*RELAY, "expose", server, "--on", "i2p", "--sam", sam, "--transient", "--drain", "0")
        )
        address = exposed.hear(r"(\S+\.b32\.i2p) .*")[1]
        exposed.hear("published .*")
        say(f"relay        {address} → {server}, in a process of its own; reached from outside")
        forwarded = running.enter_context(
            program(*RELAY, "forward", ":0", f"i2p://{address}", "--sam", sam, "--drain", "0")
        )
        found = forwarded.hear(r"listening on (\S+):(\d+) .*")
        say(f"relay        {found[1]}:{found[2]} → i2p://{address}, in a process of its own")
        yield found[1], int(found[2])


def few(pages: Mapping[str, Path]) -> dict[str, Path]:
    """Some of the pages, for a network that carries less than loopback: the largest that will do, and small ones."""
    names = sorted(pages, key=lambda name: pages[name].stat().st_size)
    fitting = [name for name in names if pages[name].stat().st_size <= LARGEST]
    return {name: pages[name] for name in [*fitting[-1:], *fitting[: MOST - 1]]}
