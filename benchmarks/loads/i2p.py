"""The load on a way through I2P, and its target: a program of its own, for both must be inside a network namespace.

``python -m benchmarks.loads.i2p serve PORT`` is the target: the first byte of a connection says whether it sends back
what it gets (``e``), reads as many as are announced and answers one byte at the end (``u``), or sends so many (``d``).
The other words are loads; each prints its figures as JSON.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import struct
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

LOOPBACK = "127.0.0.1"
PIECE = 1 << 16
ANSWERS = 60.0  # seconds for one answer
SIZE = struct.Struct("!cQ")

Connect = Callable[[], socket.socket]


def serve(port: int) -> None:
    with socket.create_server((LOOPBACK, port), backlog=4096) as listener:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=answer, args=(connection,), daemon=True).start()


def answer(connection: socket.socket) -> None:
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            kind, size = SIZE.unpack(exactly(connection, SIZE.size))
            if kind == b"e":
                while data := connection.recv(PIECE):
                    connection.sendall(data)
            elif kind == b"u":
                swallow(connection, size)
                connection.sendall(b".")
                connection.recv(1)
            else:
                data = os.urandom(PIECE)
                for start in range(0, size, PIECE):
                    connection.sendall(data[: size - start])
                connection.recv(1)
        except OSError:
            pass


def exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise ConnectionError(f"it ended after {len(data)} of {size} bytes")
        data += more
    return data


def swallow(connection: socket.socket, size: int) -> None:
    while size:
        data = connection.recv(min(size, PIECE))
        if not data:
            raise ConnectionError(f"it ended {size} bytes too early")
        size -= len(data)


def to_port(port: int) -> Connect:
    def connect() -> socket.socket:
        made = socket.create_connection((LOOPBACK, port), ANSWERS)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    return connect


def through_sam(port: int, session: str, destination: str) -> Connect:
    """A stream of a session that another program holds, without anything between."""

    def connect() -> socket.socket:
        made = to_port(port)()
        for request in "HELLO VERSION", f"STREAM CONNECT ID={session} DESTINATION={destination} SILENT=false":
            made.sendall(f"{request}\n".encode())
            reply = b""
            while not reply.endswith(b"\n"):
                reply += exactly(made, 1)
            if b"RESULT=OK" not in reply:
                raise ConnectionError(reply.decode().strip())
        return made

    return connect


def bulk(connect: Connect, size: int, *, down: bool) -> dict[str, float]:
    with connect() as connection:
        start = time.monotonic()
        connection.sendall(SIZE.pack(b"d" if down else b"u", size))
        if down:
            swallow(connection, size)
        else:
            data = os.urandom(PIECE)
            for done in range(0, size, PIECE):
                connection.sendall(data[: size - done])
            exactly(connection, 1)
        return {"bytes": size, "seconds": time.monotonic() - start}


def echo(connect: Connect) -> float:
    """One connection, and one byte each way; returns the seconds."""
    start = time.monotonic()
    with connect() as connection:
        connection.sendall(SIZE.pack(b"e", 0) + b"?")
        exactly(connection, 1)
        return time.monotonic() - start


def connections(connect: Connect, seconds: float, workers: int) -> dict[str, float]:
    """New connections for so long, so many at a time: the rate, and the median time to the first echo."""
    end = time.monotonic() + seconds

    def work(_: int) -> list[float]:
        times = []
        while time.monotonic() < end:
            times.append(echo(connect))
        return times

    start = time.monotonic()
    with ThreadPoolExecutor(workers) as pool:
        times = [one for some in pool.map(work, range(workers)) for one in some]
    return {"rate": len(times) / (time.monotonic() - start), "p50": statistics.median(times), "count": len(times)}


def burst(connect: Connect, count: int) -> dict[str, float]:
    """So many callers at once: how many were served, and within how many seconds."""

    def call(_: int) -> bool:
        try:
            echo(connect)
        except OSError:
            return False
        return True

    start = time.monotonic()
    with ThreadPoolExecutor(count) as pool:
        served = sum(pool.map(call, range(count)))
    return {"served": served, "seconds": time.monotonic() - start}


def ping(connect: Connect, seconds: float) -> dict[str, float]:
    """64-byte round trips on one connection: the median and the 99th percentile, in seconds."""
    times = []
    with connect() as connection:
        connection.sendall(SIZE.pack(b"e", 0))
        end = time.monotonic() + seconds
        while (start := time.monotonic()) < end:
            connection.sendall(b"x" * 64)
            exactly(connection, 64)
            times.append(time.monotonic() - start)
    times.sort()
    return {"p50": statistics.median(times), "p99": times[len(times) * 99 // 100]}


def until_served(connect: Connect, patience: float) -> dict[str, float]:
    """Call until a service answers: the seconds that took; ``served`` is 0 if none did."""
    start = time.monotonic()
    while time.monotonic() < start + patience:
        trying = threading.Event()
        outcome: list[float] = []

        def call(outcome: list[float] = outcome, trying: threading.Event = trying) -> None:
            try:
                outcome.append(echo(connect))
            except OSError:
                pass
            trying.set()

        threading.Thread(target=call, daemon=True).start()
        if not trying.wait(2.0) or not outcome:
            time.sleep(0.25)
            continue
        return {"seconds": time.monotonic() - start, "served": 1}
    return {"seconds": patience, "served": 0}


def main() -> None:
    word, place, *rest = sys.argv[1:]
    if word == "serve":
        serve(int(place))
        return
    connect = through_sam(*_sam(place)) if "/" in place else to_port(int(place))
    figures = {
        "up": lambda: bulk(connect, int(rest[0]), down=False),
        "down": lambda: bulk(connect, int(rest[0]), down=True),
        "connections": lambda: connections(connect, float(rest[0]), int(rest[1])),
        "burst": lambda: burst(connect, int(rest[0])),
        "ping": lambda: ping(connect, float(rest[0])),
        "until": lambda: until_served(connect, float(rest[0])),
    }[word]()
    print(json.dumps(figures), flush=True)
    os._exit(0)  # a call without an answer may still hang


def _sam(place: str) -> tuple[int, str, str]:
    port, session, destination = place.split("/")
    return int(port), session, destination


if __name__ == "__main__":
    main()
