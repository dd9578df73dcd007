"""A monitor that scrapes the metrics of a relay, as Prometheus does."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

from ..machine import MeasurementError

__all__ = ["scrape", "scraped_each_second"]

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
