"""Record ``relay up --watch`` with live traffic: ``python docs/record_terminal.py > docs/terminal.svg``.

Three tunnels run in a network of their own (``unshare``), where bastion and db.internal are this machine. pyte plays
the terminal. The picture shows one state a second; viewers without animations show the last. It loads no other file.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from xml.sax.saxutils import escape

import pexpect
import pyte

import relay.testing

WIDTH, HEIGHT, FRAMES = 118, 17, 8
CELL, LINE, EDGE = 8.4, 18, 14  # pixels; a cell is as wide as most monospaced fonts are at 14 pixels
HOSTS = "127.0.0.1 localhost\n127.0.0.2 bastion\n127.0.0.3 db.internal web.internal\n"
FILE = """
[hops]
bastion = "ssh://me@bastion?keyfile={keyfile}&hostkey={hostkey}&config=/dev/null"

[tunnels.database]
listen = "127.0.0.1:5432"
target = "db.internal:5432"
via = ["bastion"]

[tunnels.web]
listen = "127.0.0.1:8080"
target = "web.internal:80"

[tunnels.proxy]
listen = "socks5://127.0.0.1:1080"
rule = ["*.internal=bastion", "*=direct"]
"""
COLORS = {"default": "#d5dbe3", "red": "#ff8a80"}

over = threading.Event()


def serve(port: int, answer: Callable[[socket.socket], None]) -> None:
    """Listen in this network, and give each client to a function on a thread of its own."""
    listener = socket.create_server(("127.0.0.3", port))

    def run() -> None:
        while True:
            client, _ = listener.accept()
            threading.Thread(target=guarded, args=(answer, client), daemon=True).start()

    threading.Thread(target=run, daemon=True).start()


def guarded(call: Callable[[socket.socket], None], stream: socket.socket) -> None:
    """Call a function with a stream; its end is no failure here."""
    with stream, contextlib.suppress(OSError):
        call(stream)


def rows(stream: socket.socket) -> None:
    """Answer each query with some rows."""
    while stream.recv(4096):
        stream.sendall(bytes(random.randrange(2_000, 60_000)))


def page(stream: socket.socket) -> None:
    """Send a file at about 3 MB/s."""
    stream.recv(4096)
    for _ in range(random.randrange(2, 60)):
        stream.sendall(bytes(300_000))
        over.wait(0.1)


def query(stream: socket.socket) -> None:
    """Ask for rows again and again."""
    while not over.wait(random.uniform(0.05, 0.3)):
        stream.sendall(bytes(120))
        stream.recv(65536)


def load(stream: socket.socket) -> None:
    """Fetch one file."""
    stream.sendall(b"GET / HTTP/1.0\r\n\r\n")
    while stream.recv(65536):
        pass


def through_proxy(stream: socket.socket) -> None:
    """Fetch a file from web.internal through the SOCKS proxy."""
    stream.sendall(b"\5\1\0")
    stream.recv(2)
    stream.sendall(b"\5\1\0\3\x0cweb.internal\0\x50")
    stream.recv(10)
    load(stream)


def repeat(port: int, call: Callable[[socket.socket], None], pause: float) -> None:
    """Be a client of a port, again and again."""

    def run() -> None:
        while not over.wait(random.uniform(0, pause)):
            with contextlib.suppress(OSError):
                guarded(call, socket.create_connection(("127.0.0.1", port)))

    threading.Thread(target=run, daemon=True).start()


def recorded(folder: Path) -> Iterator[pyte.Screen]:
    """Run relay in a terminal; gives the screen once a second while there is traffic."""
    screen = pyte.Screen(WIDTH, HEIGHT)
    feed = pyte.Stream(screen)
    feed.feed("$ relay up --watch\r\n")
    program = str(Path(sys.executable).parent / "relay")
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(WIDTH), "LINES": str(HEIGHT)}
    terminal = pexpect.spawn(
        program, ["up", "--watch"], cwd=folder, env=environment, encoding="utf-8", dimensions=(HEIGHT, WIDTH)
    )

    def read(seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            with contextlib.suppress(pexpect.TIMEOUT):
                feed.feed(terminal.read_nonblocking(65536, left))

    while "tunnels listen" not in "".join(screen.display):
        read(0.2)
    for _ in range(3):
        repeat(5432, query, 0.5)
    for port, call in ((8080, load), (8080, load), (1080, through_proxy)):
        repeat(port, call, 1.5)
    read(2)
    for _ in range(FRAMES):
        read(1)
        yield screen
    over.set()
    terminal.kill(signal.SIGKILL)
    terminal.close()


def drawn(screen: pyte.Screen) -> str:
    """A state of the terminal as SVG: one text for each run of equal style."""
    texts = []
    for y in range(HEIGHT):
        cells = [screen.buffer[y][x] for x in range(WIDTH)]
        x = 0
        for (color, bold), run in groupby(cells, lambda cell: (cell.fg, cell.bold)):
            text = "".join(cell.data for cell in run)
            if text.strip():
                style = f' fill="{COLORS.get(color, COLORS["default"])}"' + (
                    ' style="font-weight:bold"' if bold else ""
                )
                width = f'textLength="{len(text.rstrip()) * CELL:.1f}" lengthAdjust="spacingAndGlyphs"'
                at = f'x="{EDGE + x * CELL:.1f}" y="{EDGE + (y + 1) * LINE - 4}"'
                texts.append(f"<text {at} {width}{style}>{escape(text.rstrip())}</text>")
            x += len(text)
    return "".join(texts)


def picture(frames: list[str]) -> str:
    """All states, one a second."""
    wide, tall = 2 * EDGE + WIDTH * CELL, 2 * EDGE + HEIGHT * LINE
    size = f'width="{wide:g}" height="{tall:g}"'
    style = (
        "text{font:14px ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace}"
        f".f{{animation:f {len(frames)}s step-end infinite}}"
        f"@keyframes f{{0%{{visibility:visible}}{100 / len(frames):g}%,100%{{visibility:hidden}}}}"
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide:g} {tall:g}" {size} xml:space="preserve">',
        "<title>relay up --watch</title>",
        f"<style>{style}</style>",
        f'<rect width="{wide:g}" height="{tall:g}" rx="8" fill="#1d232b"/>',
    ]
    for number, frame in enumerate(frames):
        hidden = "" if number == len(frames) - 1 else ' visibility="hidden"'
        parts.append(f'<g class="f" style="animation-delay:{number - len(frames)}s"{hidden}>{frame}</g>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    """Record, in the network that was made for it."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with (
        tempfile.TemporaryDirectory() as name,
        relay.testing.SSHServer(users={"me": None}, host="127.0.0.2", port=22) as bastion,
    ):
        folder = Path(name)
        (folder / "hosts").write_text(HOSTS)
        subprocess.run(["mount", "--bind", str(folder / "hosts"), "/etc/hosts"], check=True)
        serve(5432, rows)
        serve(80, page)
        (folder / "relay.toml").write_text(FILE.format(keyfile=bastion.keyfile, hostkey=bastion.fingerprint))
        sys.stdout.write(picture([drawn(screen) for screen in recorded(folder)]))


if __name__ == "__main__":
    if sys.argv[1:] == ["--inside"]:
        main()
    else:
        inside = ["unshare", "--map-root-user", "--net", "--mount", sys.executable, __file__, "--inside"]
        os.execvp(inside[0], inside)
