"""The part of ``relay demo`` that goes over I2P: a bridge, ``relay expose`` and ``relay forward``, each a process.

They use only SAM over TCP, so that a real router can replace the bridge.
"""

from __future__ import annotations

import os
import re
import select
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ..addresses.i2p_parser import parse_sam
from ..process import PIPE, Process, end, interpreter, start
from .output import print_line

PATIENCE = 300.0  # seconds for a line: sessions are created, published and found
END = 10.0  # seconds for a program to exit
MOST = 10  # most pages that are fetched over a real network
LARGEST = 1 << 20  # bytes of one of them
ONCE = ("--drain", "0", "--fail-fast")  # a demo ends where a service would retry

RELAY = ("-c", "import sys; from relay.cli import main; sys.exit(main())")


class Program:
    """A Python program in its own process, and the lines that it prints.

    :param process: the process; its standard output is a pipe.
    :param complaints: the file that is its standard error.
    """

    def __init__(self, process: Process, complaints: IO[bytes]) -> None:
        self._process = process
        self._complaints = complaints
        self._said = b""

    def hear(self, pattern: str) -> re.Match[str]:
        """Wait for its next line.

        :param pattern: the expected line, a regular expression.
        :returns: the match.
        :raises OSError: if another line comes, or none; with the last line of the program's errors.
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
                self._process.wait()  # so that all its errors are written
                break
            self._said += piece
        line, _, self._said = self._said.partition(b"\n")
        return line.decode(errors="replace")


@contextmanager
def program(*arguments: str) -> Iterator[Program]:
    """Run this interpreter with these arguments until the end of the block."""
    # A single file with relay and all that it needs has set this up for its own process only.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with tempfile.TemporaryFile() as complaints:
        begun = start([*interpreter(), *arguments], stdin=PIPE, stdout=PIPE, stderr=complaints, env=environment)
        with begun as process:
            try:
                yield Program(process, complaints)
            finally:
                end(process, END)


@contextmanager
def router(sam: str | None) -> Iterator[str]:
    """Print the SAM bridge that is used; start an embedded one if none is given.

    :param sam: the address of a bridge; ``None`` for an embedded one.
    :returns: the address.
    :raises OSError: if the embedded one does not start.
    """
    if sam is not None:
        print_line(f"\ni2p router   {parse_sam(sam)[0]}; it may take some minutes to build tunnels and to find them")
        yield sam
        return
    with program("-m", "relay.testing.sambridge") as bridge:
        own = bridge.hear(r".*?(\S+:\d+)")[1]
        print_line(f"\nsam bridge   {own}, in a process of its own; it takes the place of an I2P router")
        yield own


@contextmanager
def published(service: str, sam: str) -> Iterator[str]:
    """Publish a service on I2P, and print its address.

    :param service: its address.
    :param sam: the SAM bridge.
    :returns: the address of its destination, once it has been reached from outside.
    :raises OSError: if that fails.
    """
    with program(*RELAY, "expose", service, "--on", "i2p", "--sam", sam, "--transient", *ONCE) as exposed:
        address = exposed.hear(r"(\S+\.b32\.i2p) .*")[1]
        exposed.hear("published .*")
        print_line(f"relay        {address} → {service}, in a process of its own; reached from outside")
        yield address


@contextmanager
def reached(address: str, sam: str) -> Iterator[tuple[str, int]]:
    """Forward a local port to a destination, and print that.

    :param address: of the destination.
    :param sam: the SAM bridge.
    :returns: where a client may connect to.
    :raises OSError: if the program fails.
    """
    with program(*RELAY, "forward", ":0", f"i2p://{address}", "--sam", sam, *ONCE) as forwarded:
        found = forwarded.hear(r"listening on (\S+):(\d+) .*")
        print_line(f"relay        {found[1]}:{found[2]} → i2p://{address}, in a process of its own")
        yield found[1], int(found[2])


def few(pages: Mapping[str, Path]) -> dict[str, Path]:
    """Choose some pages for a slow network: the largest below the limit, and small ones."""
    names = sorted(pages, key=lambda name: pages[name].stat().st_size)
    fitting = [name for name in names if pages[name].stat().st_size <= LARGEST]
    return {name: pages[name] for name in [*fitting[-1:], *fitting[: MOST - 1]]}
