"""The test of one route: the steps that it shows, the one that it names, and its limits."""

import socket
import threading
import time

import pytest
from helpers import WAIT, Thread, makes, refusing

from relay.addresses.parse import parse_hops, parse_target
from relay.cli.doctor.probe import RouteProbe, first_bytes
from relay.cli.doctor.report import Status
from relay.errors import ConnectError
from relay.streams.stream import Stream


@pytest.fixture
def probe():
    """Makes the probe of a route; it is closed with the test."""
    yield from makes(
        lambda *via, cancelled=None: RouteProbe(parse_hops(via, "db:1") if via else (), cancelled or threading.Event())
    )


def result_of(probe, target, seconds=WAIT):
    found = probe.test(parse_target(target), time.monotonic() + seconds)
    return [(check.step, check.status) for check in found], found


def test_a_target_that_refuses_and_the_next_one_of_the_same_route(probe, echo_server):
    made = probe()
    with refusing() as (host, port):
        rows, _ = result_of(made, f"{host}:{port}")
    assert rows == [("route", Status.OK), ("connect", Status.FAILED)]
    rows, _ = result_of(made, "{}:{}".format(*echo_server.address))
    assert rows[1] == ("connect", Status.OK), "the steps of the first one are forgotten"


def test_a_cancellation_ends_the_wait(probe, serve):
    cancelled, begun, over = threading.Event(), threading.Event(), threading.Event()
    host, port = serve(lambda connection: (begun.set(), over.wait(WAIT))).address
    made = probe(f"socks5://{host}:{port}", cancelled=cancelled)
    caller = Thread(result_of, made, "db:1")
    try:
        assert begun.wait(WAIT)
        cancelled.set()
        made.wake()
        _, checks = caller.result()
    finally:
        over.set()
    assert (checks[-1].status, checks[-1].text) == (Status.FAILED, "cancelled")


@pytest.fixture
def pair():
    near, far = socket.socketpair()
    with near, far:
        yield near, far


def first(stream, seconds=WAIT):
    (check,) = first_bytes(stream, "db:1", time.monotonic() + seconds)
    assert check.step == "first bytes"
    return check


def test_an_end_without_a_byte_is_a_warning_and_with_a_reason_a_failure(pair):
    near, far = pair
    far.close()
    check = first(Stream(near))
    assert (check.status, check.text) == (Status.WARNING, "closed without data")
    reason = ConnectError("db:1: the server was stopped; start it")
    check = first(Stream(near, failure=lambda: reason))
    assert (check.status, check.text, check.advice) == (Status.FAILED, "the server was stopped", "start it")


def test_a_reset_is_a_failure(listener):
    with socket.create_connection(listener.getsockname(), WAIT) as near:
        far, _ = listener.accept()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        far.close()
        assert first(Stream(near)).status is Status.FAILED
