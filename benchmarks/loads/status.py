"""A monitor that scrapes the metrics of a relay, as Prometheus does."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path

from ..machine import MeasurementError

SECOND = 1.0
PATIENCE = 15.0  # seconds for one answer


class _Connection(HTTPConnection):
    """A connection to a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def scrape(path: Path) -> bytes:
    """Return the metrics of the relay whose status server listens at a Unix socket."""
    connection = _Connection(path)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        page = answer.read()
    finally:
        connection.close()
    if answer.status != 200 or b"relay_connections_accepted_total" not in page:
        raise MeasurementError(f"/metrics: status {answer.status}, {len(page)} bytes")
    return page


def health(path: Path) -> float:
    """Return the seconds until ``/livez`` answers."""
    connection, begin = _Connection(path), time.monotonic()
    try:
        connection.request("GET", "/livez")
        status = connection.getresponse().status
    finally:
        connection.close()
    if status != 200:
        raise MeasurementError(f"/livez: status {status}")
    return time.monotonic() - begin


@contextmanager
def silent(path: Path, count: int) -> Iterator[None]:
    """Clients that ask for the list of the connections, and read nothing of it.

    :param path: the Unix socket of the status server.
    :param count: of them.
    """
    with ExitStack() as stack:
        for _ in range(count):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.settimeout(PATIENCE)
            client.connect(str(path))
            client.sendall(b"GET /connections HTTP/1.1\r\nHost: localhost\r\n\r\n")
        yield


@contextmanager
def scraped_each_second(path: Path) -> Iterator[None]:
    """Scrape each second while the block runs; the first time before it, so that the server has started."""
    scrape(path)
    over = threading.Event()
    errors: list[Exception] = []

    def work() -> None:
        while not over.wait(SECOND):
            try:
                scrape(path)
            except (OSError, MeasurementError) as error:
                errors.append(error)
                return

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if errors:
        raise MeasurementError(f"a scrape failed: {errors[0]}")
